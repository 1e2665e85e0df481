"""From a task's description to what publishing it sends, and what that will cost.

Pure, except that `check_task` asks the chain for its prices, its gas limit and how long it keeps
files. Every assertion that `publish` can reach in the contracts has its twin here or in terms.py.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Final

from steelyard.chain import params
from steelyard.chain.cid import compute_blob_name
from steelyard.chain.model import decode_model
from steelyard.chain.rules import Rule, RuleKind
from steelyard.chain.types import Address, BlobName

from .amounts import format_coins
from .bundle import encode_bundle
from .errors import InvalidTask
from .founding import fetch_genesis
from .metrics import METRICS_SETTING
from .outbox import BASE_FEE_HEADROOM
from .quantize import build_manifest, quantize_model
from .records import FRACTION_UNIT, Admission, Parameters, RuleTerms
from .reserve import (
    Closing,
    compute_closing,
    compute_closing_pay,
    compute_price,
    find_weakness,
)
from .retention import SLACK_SECONDS, check_retention, compute_slack, format_seconds
from .rpc import Rpc, as_int, as_object
from .terms import (
    ADMISSIONS,
    NEVER,
    POLICIES,
    RULES,
    WEIGHTINGS,
    Task,
    check_task_terms,
    compute_steps,
    compute_units,
    parse_allowed,
    parse_platform,
)
from .transactions import check_prices, compute_blob_call_gas

PUBLISH_GAS: Final = 2_500_000
GAS_PER_INVITED: Final = 40_000
HEADS: Final = (RuleKind.TRIMMED_MEAN, RuleKind.MULTI_KRUM)
"""Rules that keep or leave out whole updates, whatever they weigh."""
COMMIT_PART: Final = Fraction(3, 4)
"""Of `round_seconds`: training takes longer than revealing."""
DEFAULT_EXTENSIONS: Final = 2
MEMBER_GAS: Final = 1_000_000
"""Joining, leaving and claiming."""
STEP_GAS: Final = 600_000
"""A commitment, or a report of metrics, in each round."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A checked task: what publishing will send, and what it costs. Amounts in wei."""

    name: str
    parameters: Parameters
    model: bytes
    bundle: bytes
    allow: tuple[Address, ...]
    gas: int
    closing: Closing
    sponsorship: int
    """Stake for everybody in `allow`; 0 without sponsoring."""
    sponsored_gas: int
    """Coins for the transactions of everybody in `allow`; 0 without sponsoring."""
    base_fee: int
    tip: int
    retention_seconds: int
    """How long the chain keeps a file that was declared."""
    label: str

    @property
    def blobs(self) -> dict[BlobName, bytes]:
        """The files that travel with the task."""
        return {compute_blob_name(data): data for data in (self.model, self.bundle) if data}

    @property
    def escrow(self) -> int:
        """What the contract keeps: the reward, and what closing may cost."""
        return self.parameters.escrow

    @property
    def fee(self) -> int:
        """What publishing costs at the present base fee, if it needs all of its gas."""
        return self.gas * (self.base_fee + self.tip)

    @property
    def most_fee(self) -> int:
        """What publishing may cost if base fees rise before it is included."""
        return self.gas * (BASE_FEE_HEADROOM * self.base_fee + self.tip)

    @property
    def worst_cost(self) -> int:
        """What leaves the account at most; all of the escrow that nobody earned returns."""
        sponsored = len(self.allow) * (self.sponsorship + self.sponsored_gas)
        return self.escrow + self.most_fee + sponsored

    @property
    def pool(self) -> int:
        """What a round shares out, as long as no earlier one left anything."""
        return self.parameters.reward // self.parameters.rounds

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the chain takes and the publisher may regret."""
        terms = self.parameters
        part = self.pool // terms.min_clients
        slack = compute_slack(terms, self.retention_seconds)
        counts_heads = terms.weighting == WEIGHTINGS["uniform"] or terms.rule.kind in HEADS
        found = {
            "one participant who stays silent fails a round: max_clients leaves no spare one": (
                1 < terms.min_clients == terms.max_clients
            ),
            f"who commits and never reveals loses less ({format_coins(terms.bond)} coins) than an "
            f"update earns ({format_coins(part)}), and has seen the others' updates: raise bond": (
                terms.bond < part
            ),
            "claims of samples cost nothing, and weigh: set stake_per_sample": (
                terms.weighting == WEIGHTINGS["samples"] and not terms.stake_per_sample
            ),
            "newcomers cannot join: their reputation is 0.125": (
                terms.min_reputation > FRACTION_UNIT // 8
            ),
            "a late update can be a copy of one that was shown in time, for the discounted pay: "
            "leave max_staleness at 0 unless clients are slow": terms.max_staleness > 0,
            "heads count here, and anybody may come with many: invite, or take applicants": (
                counts_heads and terms.admission == Admission.OPEN
            ),
            f"the chain keeps the model only {format_seconds(slack)} longer than the first round "
            "may need it: after a later start, or a pause, it has to be declared again, which "
            "costs whoever does it the gas of its size": slack < SLACK_SECONDS,
        }
        weakness = find_weakness(terms, self.closing, self.base_fee, self.tip)
        told = [text for text, is_so in found.items() if is_so]
        return (*told, *([] if weakness is None else [weakness]))

    @property
    def close_price(self) -> int:
        """Up to how many wei a gas the reserve pays whoever closes a round."""
        return compute_price(self.parameters, self.closing)

    @property
    def most_platform(self) -> int:
        """What the platform earns if every round makes a model."""
        parameters = self.parameters
        return parameters.reward * parameters.platform_share >> params.WEIGHT_BITS


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a task finds on a chain at present. `base_fee`, `tip`: wei a gas."""

    gas_limit: int
    base_fee: int
    tip: int
    retention_seconds: int


def check_task(rpc: Rpc, task: Task) -> Draft:
    """Return the task as it would be published on the chain of `rpc`. Raises as `draft_task`,
    `fetch_conditions`.
    """
    now = fetch_conditions(rpc)
    return draft_task(task, now.gas_limit, now.base_fee, now.tip, now.retention_seconds)


def fetch_conditions(rpc: Rpc) -> Conditions:
    """Ask the chain. Raises: NodeUnreachable, NodeRefused; ClientError `fee_high`."""
    block = as_object(rpc.call("eth_getBlockByNumber", "latest", False))
    tip = as_int(rpc.call("eth_maxPriorityFeePerGas"))
    base_fee = as_int(block.get("baseFeePerGas"))
    check_prices(base_fee, tip)
    retention_seconds = fetch_genesis(rpc).blob_retention_seconds
    return Conditions(as_int(block.get("gasLimit")), base_fee, tip, retention_seconds)


def draft_task(
    task: Task, gas_limit: int, base_fee: int, tip: int, retention_seconds: int
) -> Draft:
    """Return a checked task. Pure. Raises InvalidTask and what the quantizer raises."""
    check_task_terms(task)
    model = (
        bytes(task.model)
        if isinstance(task.model, bytes | bytearray)
        else quantize_model(task.model, build_manifest(task.model))
    )
    manifest = decode_model(model).manifest
    rule = build_rule(task)
    extensions = get_extensions(task)
    closing = compute_closing(rule, model, task.max_clients, gas_limit, extensions)
    parameters = build_parameters(task, rule, closing.gas, base_fee, tip)
    check_retention(parameters, retention_seconds)
    config = dict(task.config)
    config.setdefault(METRICS_SETTING, ",".join(task.metrics))
    directory = None if task.bundle is None else Path(task.bundle)
    bundle = encode_bundle(directory, config, task.bundle_include)
    allow = tuple(dict.fromkeys(parse_allowed(entry) for entry in task.allow))
    names = tuple({compute_blob_name(model), compute_blob_name(bundle)})
    gas = (
        compute_blob_call_gas(names, names, manifest.parameters)
        + PUBLISH_GAS
        + GAS_PER_INVITED * len(allow)
    )
    if gas > gas_limit:
        raise InvalidTask(
            "task_capacity",
            f"publishing may need {gas} gas and a block holds {gas_limit}; take a smaller model or "
            "bundle, or invite later",
        )
    member_gas = compute_member_gas(parameters, model) if task.sponsor_samples else 0
    return Draft(
        name=task.name,
        parameters=parameters,
        model=model,
        bundle=bundle,
        allow=allow,
        gas=gas,
        closing=closing,
        sponsorship=parameters.compute_stake(task.sponsor_samples) if task.sponsor_samples else 0,
        sponsored_gas=member_gas * (BASE_FEE_HEADROOM * base_fee + tip),
        base_fee=base_fee,
        tip=tip,
        retention_seconds=retention_seconds,
        label=f"publish/{compute_identity(task, parameters, sorted(names), allow)}",
    )


def compute_identity(
    task: Task, parameters: Parameters, names: Sequence[BlobName], allow: Sequence[Address]
) -> str:
    """Return what makes two descriptions one task: everything but what fees make of defaults."""
    fixed = replace(parameters, close_reserve=0, close_bounty=0)
    terms = [item.hex() if isinstance(item, bytes) else item for item in fixed.encode()]
    identity = [
        task.name,
        terms,
        [task.close_reserve, task.close_bounty],
        [name.digest.hex() for name in names],
        [address.hex() for address in allow],
        task.reference,
    ]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def build_rule(task: Task) -> Rule:
    """Return how the task aggregates, in the chain's units."""
    bound = int(Fraction(task.clip_norm or 0) * 2**params.FRACTION_BITS)
    return Rule(
        kind=RULES[task.rule],
        bound=bound if RULES[task.rule] is RuleKind.NORM_CLIPPED_MEAN else task.byzantine or 0,
        max_share=compute_units(task.max_weight_share),
        server_lr=compute_steps(task.server_lr),
        momentum=compute_steps(task.momentum),
    )


def build_parameters(task: Task, rule: Rule, close_gas: int, base_fee: int, tip: int) -> Parameters:
    """Return the contract's parameters, with defaults for what was left open."""
    commit = int(task.round_seconds * COMMIT_PART)
    reserve, bounty = compute_closing_pay(task, close_gas, base_fee, tip)
    reports = 1 if task.evaluate_every is None else task.evaluate_every
    norm = Fraction(task.admission_norm)
    admission = task.admission or ("invited" if task.allow else "open")
    return Parameters(
        rule=RuleTerms(int(rule.kind), rule.bound, rule.max_share, rule.server_lr, rule.momentum),
        weighting=WEIGHTINGS[task.weighting],
        bits=task.bits,
        rounds=task.rounds,
        min_clients=task.min_clients,
        max_clients=task.max_clients,
        fraction_fit=compute_units(task.fraction_fit),
        spare_clients=task.spare_clients,
        max_staleness=task.max_staleness,
        staleness_discount=compute_units(task.staleness_discount),
        on_failed_quorum=int(POLICIES[task.on_failed_quorum]),
        max_extensions=get_extensions(task),
        max_saturated=NEVER if task.max_saturated is None else task.max_saturated,
        evaluate_every=reports if task.metrics else 0,
        join_seconds=task.join_seconds,
        commit_seconds=commit if task.commit_seconds is None else task.commit_seconds,
        reveal_seconds=(
            max(1, task.round_seconds - commit)
            if task.reveal_seconds is None
            else task.reveal_seconds
        ),
        base_stake=task.base_stake,
        stake_per_sample=task.stake_per_sample,
        bond=task.bond,
        admission=int(ADMISSIONS[admission]),
        min_reputation=compute_units(task.min_reputation),
        admission_norm2=int(norm**2 * 2 ** (2 * params.FRACTION_BITS)),
        reward=task.reward,
        close_reserve=reserve,
        close_bounty=bounty,
        platform=parse_platform(task.platform),
        platform_share=compute_units(task.platform_share),
    )


def get_extensions(task: Task) -> int:
    """Return how often a round may be extended."""
    if task.on_failed_quorum != "extend":
        return 0
    return DEFAULT_EXTENSIONS if task.max_extensions is None else task.max_extensions


def compute_member_gas(parameters: Parameters, model: bytes) -> int:
    """Return the gas that one participant may need for a whole task."""
    manifest = decode_model(model).manifest
    size = manifest.update_values * (parameters.bits // 8)
    name = compute_blob_name(model)
    update = BlobName(name.digest, size)
    reveal = compute_blob_call_gas((update,), (update, name), manifest.update_values)
    return MEMBER_GAS + parameters.rounds * (reveal + 2 * STEP_GAS)

"""The organisation: publishes a task with its escrow, watches it, fetches the model.

Publishing is idempotent: the same description gives the same task, however often the program is
killed and run again. To publish a second identical task, give it another `reference`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from steelyard.chain import params
from steelyard.chain.cid import compute_blob_name, encode_cid
from steelyard.chain.model import compute_layout, decode_model
from steelyard.chain.pricing import compute_aggregation_gas
from steelyard.chain.rules import RuleKind
from steelyard.chain.types import Address, BlobName

from .account import Account
from .bundle import check_config, encode_bundle
from .errors import ClientError, InvalidTask
from .outbox import Receipt
from .published import PublishedModel
from .quantize import build_manifest, quantize_model
from .records import MAX_METRICS, NO_BLOB, Parameters, TaskInfo
from .rounds import DEFAULT_METRICS, METRICS_SETTING
from .rpc import Rpc, as_int
from .transactions import Call, check_prices, compute_blob_call_gas
from .watching import TaskEvent, watch_task

RULES: Final = {"fedavg": RuleKind.WEIGHTED_MEAN, "clipped": RuleKind.NORM_CLIPPED_MEAN}
WEIGHTINGS: Final = {"samples": 0, "stake": 1, "uniform": 2}
MAX_CLIENTS: Final = 128
PUBLISH_GAS: Final = 2_500_000
GAS_PER_INVITED: Final = 40_000
CLOSE_GAS: Final = 500_000
CLOSE_GAS_PER_CLIENT: Final = 50_000
CLOSE_BLOCK_PART: Final = Fraction(3, 4)
"""The part of a block's gas that closing one round may need. All three are contracts/terms.vy's."""
WIDEST_BITS: Final = 16
MAX_WEI: Final = 2**120
MAX_PERIOD_SECONDS: Final = 30 * 86_400
MIN_NORM: Final = 2.0**-params.FRACTION_BITS
MAX_NORM: Final = 2.0**100
"""Squared and in units of 2**-48 it still fits the contract's 256 bits."""
RANGES: Final = {
    "rounds": (1, 10_000),
    "max_clients": (1, MAX_CLIENTS),
    "min_clients": (1, MAX_CLIENTS),
    "round_seconds": (2, MAX_PERIOD_SECONDS),
    "join_seconds": (1, MAX_PERIOD_SECONDS),
    "commit_seconds": (1, MAX_PERIOD_SECONDS),
    "reveal_seconds": (1, MAX_PERIOD_SECONDS),
    "reward": (0, MAX_WEI),
    "base_stake": (0, MAX_WEI),
    "stake_per_sample": (0, MAX_WEI),
    "close_reserve": (0, MAX_WEI),
    "close_bounty": (0, MAX_WEI),
}
"""Whole numbers of a task: least and most, as in contracts/terms.vy."""
RESERVE_HEADROOM: Final = 16
"""The default reserve for closing, over the cost at the present base fee. What is left returns."""
COMMIT_PART: Final = Fraction(3, 4)
"""Of `round_seconds`: training takes longer than revealing."""
TIMEOUT_SECONDS: Final = 86_400


@dataclass(frozen=True)
class Task:
    """A task to publish. Amounts in wei (see `coins`), times in seconds.

    `model`: named arrays, or the bytes of a model file. `bundle`: a directory for participants.
    `config`: what training functions see as `ctx.config`. `admission_norm`: the largest L2 norm of
    an update. `rule` "clipped" needs `clip_norm`. `metrics`: what participants report, in order;
    none for no reports.
    """

    name: str
    model: Mapping[str, NDArray[np.generic]] | bytes
    bundle: str | Path | None = None
    config: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    metrics: Sequence[str] = DEFAULT_METRICS
    mode: str = "open"
    rule: str = "fedavg"
    clip_norm: float | None = None
    weighting: str = "samples"
    bits: int = 8
    rounds: int = 8
    min_clients: int = 2
    max_clients: int = 16
    round_seconds: int = 3600
    join_seconds: int = 3600
    commit_seconds: int | None = None
    reveal_seconds: int | None = None
    reward: int = 0
    base_stake: int = 0
    stake_per_sample: int = 0
    admission_norm: float = 16.0
    close_reserve: int | None = None
    close_bounty: int | None = None
    allow: Sequence[str | Address] = ()
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Draft:
    """A checked task: what publishing will send, and what it costs. Amounts in wei."""

    name: str
    parameters: Parameters
    model: bytes
    bundle: bytes
    allow: tuple[Address, ...]
    gas: int
    close_gas: int
    label: str

    @property
    def blobs(self) -> dict[BlobName, bytes]:
        """The files that travel with the task."""
        return {compute_blob_name(data): data for data in (self.model, self.bundle) if data}


class Organisation(Account):
    """An account that publishes tasks."""

    def check(self, task: Task) -> Draft:
        """Return the task as it would be published, checked against this chain.

        Raises: InvalidTask, InvalidModel or SteelyardError from the quantizer, naming the field.
        """
        return check_task(self.rpc, task)

    def publish(self, task: Task) -> "PublishedTask":
        """Publish `task`, deposit its escrow, and carry its model and bundle onto the chain.

        Returns the task. Raises: as `check`; ClientError `balance_low`; Reverted.
        """
        draft = self.check(task)
        names = [compute_blob_name(draft.model)]
        if draft.bundle:
            names.append(compute_blob_name(draft.bundle))
        bundle = names[1] if draft.bundle else NO_BLOB
        data = self.tasks.encode(
            "publish",
            draft.name,
            draft.parameters.encode(),
            (names[0].digest, names[0].size),
            (bundle.digest, bundle.size),
            draft.allow,
        )
        call = Call(
            Address(params.TASKS_ADDRESS),
            data,
            draft.parameters.escrow,
            gas=draft.gas,
            blobs=tuple(dict.fromkeys(names)),
        )
        self.report(f"publishing {draft.name!r}: model {encode_cid(names[0])}")
        receipt = self.outbox.send(draft.label, call, draft.blobs)
        (event,) = [e for e in self.tasks.decode_logs(receipt.logs) if e.name == "Published"]
        self.report(f"task {event.values['task']} is published")
        return PublishedTask(self, event.values["task"])

    def get_task(self, task: int) -> "PublishedTask":
        """Return a published task by its number. Raises ClientError `task_unknown`."""
        self.tasks.get_task(task)
        return PublishedTask(self, task)


@dataclass(frozen=True)
class PublishedTask:
    """A task on chain, as its organisation handles it."""

    organisation: Organisation = field(repr=False)
    number: int

    def get_info(self) -> TaskInfo:
        """Return the task as it stands."""
        return self.organisation.tasks.get_task(self.number)

    def watch(self) -> Iterator[TaskEvent]:
        """Yield what happens, from the beginning, until the task is over. Fits a notebook."""
        organisation = self.organisation
        return watch_task(
            organisation.tasks,
            self.number,
            lambda: organisation.clock.sleep(organisation.poll_seconds),
        )

    def model(self, round_number: int | None = None) -> PublishedModel:
        """Return the newest model, or the one that a round made, checked against its name.

        Raises: ClientError `model_unknown`; NodeUnreachable.
        """
        tasks = self.organisation.tasks
        name = (
            tasks.get_task(self.number).model
            if round_number is None
            else tasks.get_round(self.number, round_number).model
        )
        if not name.size:
            raise ClientError("model_unknown", f"round {round_number} has made no model")
        return PublishedModel(name, self.organisation.rpc.get_blob(name))

    def start(self) -> Receipt:
        """End the lobby now: allowed with `min_clients` participants."""
        return self._send("start")

    def abort(self) -> Receipt:
        """End the task early, where the contract allows it."""
        return self._send("abort")

    def refund(self) -> int:
        """Fetch what nobody earned from a task that is over; return the wei, 0 for none."""
        self.organisation.outbox.flush()
        amount = self.organisation.tasks.get_account(self.number).left
        if amount:
            self._send("refund")
        return amount

    def _send(self, name: str) -> Receipt:
        label = self.organisation.get_label(f"task/{self.number}/{name}")
        return self.organisation.send(label, name, self.number)


def check_task(rpc: Rpc, task: Task) -> Draft:
    """Return the task as it would be published on the chain of `rpc`. Raises as `draft_task`."""
    block = rpc.call("eth_getBlockByNumber", "latest", False)
    tip = as_int(rpc.call("eth_maxPriorityFeePerGas"))
    base_fee = as_int(block["baseFeePerGas"])
    check_prices(base_fee, tip)
    return draft_task(task, as_int(block["gasLimit"]), base_fee, tip)


def draft_task(task: Task, gas_limit: int, base_fee: int, tip: int) -> Draft:
    """Return a checked task. Pure. Raises InvalidTask and what the quantizer raises."""
    check_choices(task)
    model = (
        bytes(task.model)
        if isinstance(task.model, bytes | bytearray)
        else quantize_model(task.model, build_manifest(task.model))
    )
    manifest = decode_model(model).manifest
    close_gas = compute_close_gas(model, task.max_clients)
    most_gas = int(gas_limit * CLOSE_BLOCK_PART)
    if close_gas > most_gas:
        raise InvalidTask(
            "task_capacity",
            f"closing a round with {task.max_clients} clients needs {close_gas} gas and a block "
            f"has {most_gas} for it; lower max_clients or shrink the model",
        )
    parameters = build_parameters(task, close_gas, base_fee, tip)
    config = dict(task.config)
    config.setdefault(METRICS_SETTING, ",".join(task.metrics))
    check_config(config)
    bundle = encode_bundle(None if task.bundle is None else Path(task.bundle), config)
    allow = tuple(parse_address(entry) for entry in task.allow)
    names = tuple({compute_blob_name(model), compute_blob_name(bundle)})
    gas = (
        compute_blob_call_gas(names, names, manifest.parameters)
        + PUBLISH_GAS
        + GAS_PER_INVITED * len(allow)
    )
    label = f"publish/{compute_identity(task, parameters, sorted(names), allow)}"
    return Draft(task.name, parameters, model, bundle, allow, gas, close_gas, label)


def compute_identity(
    task: Task, parameters: Parameters, names: Sequence[BlobName], allow: Sequence[Address]
) -> str:
    """Return what makes two descriptions one task: everything but what fees make of defaults."""
    fixed = replace(parameters, close_reserve=0, close_bounty=0)
    identity = [
        task.name,
        fixed.encode(),
        [task.close_reserve, task.close_bounty],
        [name.digest.hex() for name in names],
        [address.hex() for address in allow],
        task.reference,
    ]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def check_choices(task: Task) -> None:
    """Raises InvalidTask, naming the field, for what the chain or this version refuses."""
    check_ranges(task)
    checks = {
        "name": 0 < len(task.name.encode()) <= 64,
        "mode": task.mode == "open",
        "rule": task.rule in RULES,
        "weighting": task.weighting in WEIGHTINGS,
        "bits": task.bits in (8, 16),
        "min_clients": task.min_clients <= task.max_clients,
        "admission_norm": is_norm(task.admission_norm),
        "clip_norm": (task.clip_norm is not None) == (task.rule == "clipped")
        and (task.clip_norm is None or is_norm(task.clip_norm)),
        "base_stake": task.base_stake > 0 or task.weighting != "stake",
        "allow": len(task.allow) <= MAX_CLIENTS,
        "metrics": len(task.metrics) <= MAX_METRICS and not any("," in n for n in task.metrics),
    }
    hints = {
        "mode": 'mode must be "open"',
        "rule": f"rule must be one of {', '.join(RULES)}",
        "weighting": f"weighting must be one of {', '.join(WEIGHTINGS)}",
        "bits": "bits must be 8 or 16",
        "name": "a name has 1 to 64 bytes",
        "clip_norm": 'give clip_norm > 0 with rule="clipped", and only with it',
        "base_stake": "weighting by stake needs a base_stake",
        "metrics": f"metrics are at most {MAX_METRICS} names without commas",
    }
    for name, is_good in checks.items():
        if not is_good:
            hint = hints.get(name, f"{name} is out of range: {getattr(task, name)!r:.60}")
            raise InvalidTask(f"task_{name}", hint)


def check_ranges(task: Task) -> None:
    """Raises InvalidTask for a number that is not whole or out of range; None means a default."""
    for name, (least, most) in RANGES.items():
        value = getattr(task, name)
        if value is None and Task.__dataclass_fields__[name].default is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InvalidTask(
                f"task_{name}", f"{name} is {value!r:.60}; give a whole number, {least} to {most}"
            )


def is_norm(value: object) -> bool:
    """Whether the contract can hold `value` as a norm; NaN is none."""
    return isinstance(value, int | float) and MIN_NORM <= value <= MAX_NORM


def build_parameters(task: Task, close_gas: int, base_fee: int, tip: int) -> Parameters:
    """Return the contract's parameters, with defaults for what closing a round costs."""
    commit = (
        int(task.round_seconds * COMMIT_PART)
        if task.commit_seconds is None
        else task.commit_seconds
    )
    reveal = (
        max(1, task.round_seconds - int(task.round_seconds * COMMIT_PART))
        if task.reveal_seconds is None
        else task.reveal_seconds
    )
    bounty = 2 * close_gas * tip if task.close_bounty is None else task.close_bounty
    reserve = (
        RESERVE_HEADROOM * close_gas * base_fee + bounty
        if task.close_reserve is None
        else task.close_reserve
    )
    if bounty > reserve:
        raise InvalidTask(
            "task_close_reserve",
            f"close_reserve {reserve} wei is below the bounty of {bounty} wei; raise one or lower "
            "the other",
        )
    clip = Fraction(task.clip_norm or 0)
    return Parameters(
        rule=(int(RULES[task.rule]), int(clip * 2**params.FRACTION_BITS)),
        weighting=WEIGHTINGS[task.weighting],
        bits=task.bits,
        rounds=task.rounds,
        min_clients=task.min_clients,
        max_clients=task.max_clients,
        join_seconds=task.join_seconds,
        commit_seconds=commit,
        reveal_seconds=reveal,
        base_stake=task.base_stake,
        stake_per_sample=task.stake_per_sample,
        admission_norm2=int(Fraction(task.admission_norm) ** 2 * 2 ** (2 * params.FRACTION_BITS)),
        reward=task.reward,
        close_reserve=reserve,
        close_bounty=bounty,
    )


def compute_close_gas(model: bytes, clients: int) -> int:
    """Return the gas that closing a round may need, as `publish` will reckon it."""
    layout = compute_layout(decode_model(model).manifest)
    name = compute_blob_name(model)
    aggregation = compute_aggregation_gas(name, model, layout, clients, WIDEST_BITS)
    return aggregation + CLOSE_GAS + clients * CLOSE_GAS_PER_CLIENT


def parse_address(text: str | Address) -> Address:
    """Return an address. Raises InvalidTask `task_allow`."""
    try:
        raw = text if isinstance(text, bytes) else bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raw = b""
    if len(raw) != 20:
        raise InvalidTask("task_allow", f"{text!r} is not an address of 20 bytes")
    return Address(raw)

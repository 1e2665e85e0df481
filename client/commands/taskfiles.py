"""A task as its publisher writes it (TOML), and as people read it: in words and coins."""

import tomllib
from dataclasses import fields
from math import isqrt
from pathlib import Path
from typing import Any, Final

from steelyard.chain import params

from ..amounts import coins, format_coins, format_gwei
from ..bundle import decode_bundle
from ..drafting import Draft
from ..errors import ClientError, InvalidTask
from ..keys import format_address
from ..loading import read_model_file
from ..records import FRACTION_UNIT, Admission, OnFailedQuorum, Parameters
from ..terms import NEVER, RULES, WEIGHTINGS, Task
from ..training import NORM_UNIT
from .options import format_table, to_json

EXAMPLE_ROWS: Final = 100
COIN_FIELDS: Final = {
    "reward": "task_reward",
    "base_stake": "task_base_stake",
    "stake_per_sample": "task_stake_per_sample",
    "bond": "task_bond",
    "close_reserve": "task_close_reserve",
    "close_bounty": "task_close_bounty",
}
"""Amounts in a task file are decimal coins, as strings; the code for one that is none."""


def read_task_file(path: Path) -> Task:
    """Return the task in a TOML file; paths in it are relative to it. Raises InvalidTask."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidTask("task_file", f"cannot read {path}: {error}") from None
    known = {field.name for field in fields(Task)}
    if unknown := sorted(set(document) - known):
        raise InvalidTask("task_file", f"{path} has an unknown entry {unknown[0]!r}")
    for name in ("name", "model"):
        if not isinstance(document.get(name), str):
            raise InvalidTask("task_file", f'{path} needs {name} = "…"')
    document["model"] = read_model(path.parent / document["model"])
    if "bundle" in document:
        document["bundle"] = path.parent / str(document["bundle"])
    for name in COIN_FIELDS:
        if name in document:
            document[name] = read_amount(name, document[name])
    try:
        return Task(**document)
    except TypeError as error:
        raise InvalidTask("task_file", f"{path}: {error}") from None


def read_model(path: Path) -> Any:
    """Return the arrays or the bytes in a task's model file. Raises InvalidTask."""
    try:
        return read_model_file(path)
    except ClientError as error:
        raise InvalidTask("model_file", f"model: {error.message}") from None


def read_amount(name: str, value: Any) -> int:
    """Return the wei of the entry `name`. Raises InvalidTask, as COIN_FIELDS says."""
    try:
        return coins(value)
    except ClientError as error:
        hint = f'write coins as text: {name} = "1.5"'
        told = f"{value!r:.60} is no text" if isinstance(value, float | bool) else error.message
        raise InvalidTask(COIN_FIELDS.get(name, "task_file"), f"{name}: {told}; {hint}") from None


def describe_draft(draft: Draft) -> dict[str, Any]:
    """Return a checked task for JSON; amounts in wei, as strings."""
    amounts = {
        "escrow": draft.escrow,
        "pool": draft.pool,
        "stake_for_100_rows": draft.parameters.compute_stake(EXAMPLE_ROWS),
        "publish_fee": draft.fee,
        "publish_fee_most": draft.most_fee,
        "platform_most": draft.most_platform,
        "sponsored_stake_each": draft.sponsorship,
        "sponsored_gas_each": draft.sponsored_gas,
        "worst_cost": draft.worst_cost,
    }
    return {
        "ok": True,
        "name": draft.name,
        "parameters": to_json(draft.parameters),
        **{name: str(amount) for name, amount in amounts.items()},
        "publish_gas": draft.gas,
        "close_calls": draft.closing.calls,
        "close_gas": draft.closing.gas,
        "close_price": str(draft.close_price),
        "model_bytes": len(draft.model),
        "bundle_bytes": len(draft.bundle),
        "bundle_files": {name: len(data) for name, data in decode_bundle(draft.bundle).items()},
        "invited": len(draft.allow),
        "warnings": draft.warnings,
    }


def format_draft(draft: Draft) -> str:
    """Return a checked task as text."""
    terms = draft.parameters
    reserve = format_coins(terms.rounds * terms.close_reserve)
    rows: list[list[Any]] = [
        ["name", ascii(draft.name)],
        *list_terms(terms),
        ["model", f"{len(draft.model)} bytes"],
        ["bundle", f"{len(draft.bundle)} bytes, public for ever:"],
        *[["", f"{name}, {len(data)} bytes"] for name, data in decode_bundle(draft.bundle).items()],
        ["invited", len(draft.allow)],
        ["pool", f"{format_coins(draft.pool)} coins a round, more where one paid less"],
        ["closing", describe_closing(draft)],
        ["", describe_price(draft)],
        ["mode", "open: updates are PUBLIC"],
        ["escrow", f"{format_coins(draft.escrow)} coins: the reward, and {reserve} for closing"],
        ["", "what nobody earned of it returns, and what closing did not need"],
        ["publishing", f"{format_coins(draft.fee)} coins now, {format_coins(draft.most_fee)} most"],
        ["", f"for up to {draft.gas} gas"],
    ]
    if terms.platform_share:
        rows.append(["platform", f"up to {format_coins(draft.most_platform)} coins of the reward"])
    if draft.sponsorship or draft.sponsored_gas:
        stake, gas = format_coins(draft.sponsorship), format_coins(draft.sponsored_gas)
        rows.append(["sponsoring", f"{stake} coins stake and {gas} for gas, for each invited"])
    rows.append(["worst cost", f"{format_coins(draft.worst_cost)} coins leave the account at most"])
    warnings = [f"warning: {text}" for text in draft.warnings]
    return "\n".join([format_table(rows), *warnings])


def describe_closing(draft: Draft) -> str:
    """Return what closing a round takes, and who pays for it."""
    calls = f"{draft.closing.calls} call{'s' if draft.closing.calls > 1 else ''}"
    reserve = format_coins(draft.parameters.close_reserve)
    return f"{calls}, up to {draft.closing.gas} gas and {reserve} coins a round, by anybody"


def describe_price(draft: Draft) -> str:
    """Return how dear gas may become before validators close no rounds."""
    paid, now = format_gwei(draft.close_price), format_gwei(draft.base_fee)
    return f"it pays validators for gas up to {paid} gwei; the base fee is {now} now"


def list_terms(terms: Parameters) -> list[list[Any]]:
    """Return a task's parameters as rows of words."""
    least = format_coins(terms.compute_stake(EXAMPLE_ROWS))
    stake = (
        f"{format_coins(terms.base_stake)} coins + {format_coins(terms.stake_per_sample)} a row, "
        f"so {least} for {EXAMPLE_ROWS} rows; it comes back"
    )
    rows: list[list[Any]] = [
        ["rule", describe_rule(terms)],
        ["weights", describe_weights(terms)],
        ["server step", describe_step(terms)],
        ["admission norm", f"{isqrt(terms.admission_norm2) / NORM_UNIT:g}, {terms.bits} bits"],
        ["rounds", terms.rounds],
        ["clients", f"{terms.min_clients} to {terms.max_clients}"],
        ["drawn", describe_draw(terms)],
        ["late updates", describe_lateness(terms)],
        ["too few", describe_quorum(terms)],
        ["round", f"{terms.commit_seconds} s to commit, {terms.reveal_seconds} s to reveal"],
        ["lobby", f"{terms.join_seconds} s"],
        ["reports", describe_reports(terms)],
        ["who may join", describe_admission(terms)],
        ["stake", stake],
        ["bond", f"{format_coins(terms.bond)} coins, lost by who commits and never reveals"],
        ["reward", f"{format_coins(terms.reward)} coins for all rounds together"],
    ]
    if terms.max_saturated != NEVER:
        rows.append(["pause", f"when more than {terms.max_saturated} values saturate"])
    if terms.platform_share:
        share = f"{terms.platform_share / FRACTION_UNIT:.4%}"
        rows.append(["platform", f"{share} of each pool to {format_address(terms.platform)}"])
    return rows


def describe_rule(terms: Parameters) -> str:
    """Return how updates become one delta."""
    names = {int(kind): name for name, kind in RULES.items()}
    name = names.get(terms.rule.kind, f"rule {terms.rule.kind}")
    match name:
        case "clipped":
            return f"clipped to norm {terms.rule.bound / NORM_UNIT:g}"
        case "trimmed" | "multi_krum":
            return f"{name}, withstands {terms.rule.bound} dishonest"
        case _:
            return name


def describe_weights(terms: Parameters) -> str:
    """Return what an update counts by."""
    names = dict(enumerate(WEIGHTINGS))
    cap = terms.rule.max_share
    capped = f", none above {cap / FRACTION_UNIT:.4%}" if cap < FRACTION_UNIT else ""
    return f"by {names.get(terms.weighting, terms.weighting)}{capped}"


def describe_step(terms: Parameters) -> str:
    """Return what the server does with the mean."""
    rate, momentum = terms.rule.server_lr / params.STEP_UNIT, terms.rule.momentum / params.STEP_UNIT
    if (rate, momentum) == (1, 0):
        return "the mean as it is"
    return f"learning rate {rate:g}, momentum {momentum:g}"


def describe_draw(terms: Parameters) -> str:
    """Return who is asked in a round."""
    if terms.fraction_fit == FRACTION_UNIT:
        return "everybody, every round"
    spare = f", and {terms.spare_clients} to spare" if terms.spare_clients else ""
    part = f"{terms.fraction_fit / FRACTION_UNIT:.4%}"
    return f"{part} of who is in, at least {terms.min_clients}{spare}"


def describe_lateness(terms: Parameters) -> str:
    """Return what a late update counts."""
    if not terms.max_staleness:
        return "not taken"
    factor = terms.staleness_discount / FRACTION_UNIT
    return f"up to {terms.max_staleness} rounds, weight times {factor:g} for each"


def describe_quorum(terms: Parameters) -> str:
    """Return what follows a round with too few updates."""
    match terms.on_failed_quorum:
        case OnFailedQuorum.EXTEND:
            return f"extended up to {terms.max_extensions} times, then skipped"
        case OnFailedQuorum.REFUND:
            return "the task ends and its money returns"
        case _:
            return "the round is skipped, its pool stays for later ones"


def describe_reports(terms: Parameters) -> str:
    """Return when participants are asked to evaluate."""
    match terms.evaluate_every:
        case 0:
            return "only when asked for"
        case 1:
            return "after each model"
        case every:
            return f"after every {every} models, and after the last round"


def describe_admission(terms: Parameters) -> str:
    """Return who may join."""
    words = {
        Admission.OPEN: "anybody",
        Admission.INVITED: "who is invited",
        Admission.APPLICANTS: "who is invited; anybody may apply",
    }
    known = words.get(Admission(terms.admission), "")
    if not terms.min_reputation:
        return known
    return f"{known}, with a reputation of {terms.min_reputation / FRACTION_UNIT:g}"

"""What an update weighs in a round and what it is paid, told to the last unit.

The numbers are the chain's own record; the words say how they follow from one another
(docs/tasks.md, "Money"; docs/protocol.md, section 4). Whether they do follow is for an audit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, Final

from steelyard.chain.params import WEIGHT_BITS, WEIGHT_TOTAL
from steelyard.chain.rules import Flag, RuleKind

from .errors import NodeRefused
from .records import MAX_STALENESS, Parameters, SubmissionInfo

BY_SAMPLES: Final = 0
BY_STAKE: Final = 1
LEFT_OUT: Final = Flag.EXCLUDED | Flag.DUPLICATE
LISTS: Final = ("clients", "origins", "updates", "raw_weights", "shares", "scores", "flags")
"""Of the record of an aggregation: an entry for each update."""


@dataclass(frozen=True, slots=True)
class Weighing:
    """One update's numbers. Weights are raw, shares in units of 2**-20, amounts in wei."""

    origin: int
    weight: int
    total: int
    """Of all updates that the rule kept; in a failed round of the silent ones as well."""
    share: int
    score: int | None
    """None where no model was made."""
    flags: Flag
    paid: int
    units: int = WEIGHT_TOTAL
    """What the updates below the cap share among them; in a failed round the cap."""
    uncapped: int = 0
    """The weights of these."""

    @property
    def flag_names(self) -> tuple[str, ...]:
        """The flags by name."""
        return tuple(flag.name or "" for flag in Flag if flag in self.flags)


@dataclass(frozen=True, slots=True)
class Payment:
    """A round's pool and what became of it. Amounts in wei."""

    pool: int
    platform: int
    paid: int

    @property
    def to_share(self) -> int:
        """What shares are shares of."""
        return self.pool - self.platform

    @property
    def dust(self) -> int:
        """What rounding down left over: it stays for later rounds."""
        return self.pool - self.platform - self.paid


def compute_platform_fee(pool: int, parameters: Parameters) -> int:
    """Return what a round's pool gives the platform, in wei."""
    return pool * parameters.platform_share >> WEIGHT_BITS


def compute_cap(parameters: Parameters, count: int) -> int:
    """Return the most of one share in a failed round to which so many committed, 2**-20."""
    return max(parameters.rule.max_share, WEIGHT_TOTAL // count)


def check_record(record: Mapping[str, Any], round_number: int) -> None:
    """Raise NodeRefused `rpc_answer` for what no contract writes down about a round."""
    count = len(record["clients"])
    if any(len(record[name]) != count for name in LISTS):
        raise NodeRefused("rpc_answer", "the lists of a round's record differ in length")
    if any(not 0 <= round_number - one <= MAX_STALENESS for one in record["origins"]):
        raise NodeRefused("rpc_answer", "a round's record has an update of no round near it")


def weigh(record: Mapping[str, Any], parameters: Parameters) -> tuple[Weighing, ...]:
    """Return each update's numbers, in the order of the record of an aggregation."""
    flags = [Flag(value) for value in record["flags"]]
    weights = record["raw_weights"]
    kept = [i for i, flag in enumerate(flags) if not flag & LEFT_OUT]
    free = [i for i in kept if Flag.CAPPED not in flags[i]]
    total, uncapped = (sum(weights[i] for i in places) for places in (kept, free))
    units = WEIGHT_TOTAL - sum(record["shares"][i] for i in kept if i not in free)
    to_share = record["pool"] - compute_platform_fee(record["pool"], parameters)
    rows = zip(record["origins"], weights, record["shares"], record["scores"], flags, strict=True)
    return tuple(
        Weighing(
            origin,
            weight,
            total,
            share,
            score,
            flag,
            to_share * share >> WEIGHT_BITS,
            units,
            uncapped,
        )
        for origin, weight, share, score, flag in rows
    )


def weigh_compensated(
    shares: Sequence[int],
    pool: int,
    origins: Sequence[int],
    weights: Sequence[int],
    parameters: Parameters,
) -> tuple[Weighing, ...]:
    """Return what those who revealed in a failed round got, in the order of its record.

    `origins`: of their updates; `weights`: theirs, and then those of who kept silent.
    """
    total, cap = sum(weights), compute_cap(parameters, len(weights))
    return tuple(
        Weighing(
            origin,
            weight,
            total,
            share,
            None,
            Flag(0),
            pool * share >> WEIGHT_BITS,
            cap,
            total,
        )
        for origin, weight, share in zip(origins, weights[: len(shares)], shares, strict=True)
    )


def compute_payment(record: Mapping[str, Any], parameters: Parameters) -> Payment:
    """Return what a round that made a model paid."""
    paid = sum(one.paid for one in weigh(record, parameters))
    return Payment(record["pool"], compute_platform_fee(record["pool"], parameters), paid)


def describe_weighing(
    one: Weighing,
    payment: Payment,
    parameters: Parameters,
    round_number: int,
    done: SubmissionInfo,
    norm2: int,
) -> tuple[str, ...]:
    """Return the steps from samples, or stake, to wei, one line each. `norm2`: 2**-48."""
    return (
        f"weight  {describe_weight(one, parameters, round_number, done)}",
        f"share   {describe_share(one)}",
        *([f"effect  {describe_clip(one, parameters, norm2)}"] if one.flags & Flag.CLIPPED else []),
        f"paid    ({payment.pool} - {payment.platform}) * {one.share} >> {WEIGHT_BITS} "
        f"= {one.paid} wei",
    )


def describe_compensated(
    one: Weighing,
    payment: Payment,
    parameters: Parameters,
    round_number: int,
    done: SubmissionInfo,
) -> tuple[str, ...]:
    """Return the steps to what an update got in a round that others failed, one line each."""
    floor = one.weight * WEIGHT_TOTAL // one.total if one.total else 0
    how = "rounded down" if floor <= one.units else f"above the cap: {one.units}"
    if min(floor, one.units) != one.share:
        how += f", but the record says {one.share}"
    return (
        f"weight  {describe_weight(one, parameters, round_number, done)}",
        f"share   {one.weight} * {WEIGHT_TOTAL} / {one.total} = {floor} of {WEIGHT_TOTAL}, {how}; "
        "the silent count too",
        f"paid    {payment.pool} * {one.share} >> {WEIGHT_BITS} = {one.paid} wei",
    )


def describe_weight(
    one: Weighing, parameters: Parameters, round_number: int, done: SubmissionInfo
) -> str:
    """Return how the raw weight came about."""
    starts = {BY_SAMPLES: f"{done.samples} samples", BY_STAKE: f"stake of {done.stake} wei"}
    start = f"{starts.get(parameters.weighting, '1')} << {WEIGHT_BITS}"
    late = round_number - one.origin
    discount = f" * {parameters.staleness_discount} >> {WEIGHT_BITS}" * late
    told = f", {late} round{'s' if late > 1 else ''} late" if late else ""
    return f"{start}{discount} = {one.weight}{told}"


def describe_share(one: Weighing) -> str:
    """Return how the share followed from the weights."""
    if one.flags & Flag.DUPLICATE:
        return "0: the same update as another's; only one of them counts"
    if one.flags & Flag.EXCLUDED:
        return "0: too far from the others (Multi-Krum)"
    if one.total == 0:
        return f"{one.share} of {WEIGHT_TOTAL}: all weights are zero, so all count alike"
    start = f"{one.weight} * {WEIGHT_TOTAL} / {one.total}"
    if one.flags & Flag.CAPPED:
        return f"{start} is above the cap: {one.share} of {WEIGHT_TOTAL}"
    left = ""
    if one.units != WEIGHT_TOTAL:
        left = f", of what those above the cap leave of {WEIGHT_TOTAL}"
    start = f"{one.weight} * {one.units} / {one.uncapped}"
    floor, rest = divmod(one.weight * one.units, one.uncapped) if one.uncapped else (0, 0)
    match one.share - floor:
        case 0:
            how = f"rounded down, remainder {rest}" if rest else "exact"
        case 1 if rest:
            how = f"rounded up, remainder {rest} was among the largest"
        case _:
            return f"{start} = {floor}, but the record says {one.share} of {WEIGHT_TOTAL}"
    return f"{start} = {one.share} of {WEIGHT_TOTAL} ({how}){left}"


def describe_clip(one: Weighing, parameters: Parameters, norm2: int) -> str:
    """Return what a clipped update counts in the model."""
    bound = parameters.rule.bound
    if parameters.rule.kind != RuleKind.NORM_CLIPPED_MEAN or norm2 <= bound**2:
        return "clipped says the record, but neither this rule nor this norm asks for it"
    effective = isqrt(one.share**2 * bound**2 // norm2)
    return (
        f"isqrt({one.share}**2 * {bound}**2 / {norm2}) = {effective} of {WEIGHT_TOTAL} in the "
        "model: clipped to the norm, paid by its share"
    )

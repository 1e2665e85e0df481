"""What an update weighs in a round and what it is paid, told to the last unit.

The numbers are the chain's own record; the words say how they follow from one another
(docs/tasks.md, "Money"; docs/protocol.md, section 4). Whether they do follow is for an audit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from steelyard.chain.params import WEIGHT_BITS, WEIGHT_TOTAL
from steelyard.chain.rules import Flag

from .records import Parameters, SubmissionInfo

BY_SAMPLES: Final = 0
BY_STAKE: Final = 1
LEFT_OUT: Final = Flag.EXCLUDED | Flag.DUPLICATE


@dataclass(frozen=True, slots=True)
class Weighing:
    """One update's numbers. Weights are raw, shares in units of 2**-20, amounts in wei."""

    origin: int
    weight: int
    total: int
    """Of all updates that the rule kept."""
    share: int
    score: int
    flags: Flag
    paid: int

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


def weigh(record: Mapping[str, Any], parameters: Parameters) -> tuple[Weighing, ...]:
    """Return each update's numbers, in the order of the record of an aggregation."""
    flags = [Flag(value) for value in record["flags"]]
    weights = record["raw_weights"]
    total = sum(w for w, flag in zip(weights, flags, strict=True) if not flag & LEFT_OUT)
    to_share = record["pool"] - compute_platform_fee(record["pool"], parameters)
    rows = zip(record["origins"], weights, record["shares"], record["scores"], flags, strict=True)
    return tuple(
        Weighing(origin, weight, total, share, score, flag, to_share * share >> WEIGHT_BITS)
        for origin, weight, share, score, flag in rows
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
) -> tuple[str, ...]:
    """Return the steps from samples, or stake, to wei, one line each."""
    return (
        f"weight  {describe_weight(one, parameters, round_number, done)}",
        f"share   {describe_share(one)}",
        f"paid    ({payment.pool} - {payment.platform}) * {one.share} >> {WEIGHT_BITS} "
        f"= {one.paid} wei",
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
    exact = one.weight * WEIGHT_TOTAL
    start = f"{one.weight} * {WEIGHT_TOTAL} / {one.total}"
    if one.flags & Flag.CAPPED:
        return f"{start} is above the cap: {one.share} of {WEIGHT_TOTAL}"
    floor, rest = divmod(exact, one.total)
    match one.share - floor:
        case 0:
            how = f"rounded down, remainder {rest}" if rest else "exact"
        case 1:
            how = f"rounded up, remainder {rest} was among the largest"
        case more:
            how = f"{more} of it from those above the cap"
    return f"{start} = {one.share} of {WEIGHT_TOTAL} ({how})"

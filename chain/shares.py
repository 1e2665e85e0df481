"""Shares: raw weights normalised to units that sum to exactly WEIGHT_TOTAL.

The total is a power of two, so that the mean's only division is a shift. What flooring leaves over
goes to the largest remainders (Hamilton's method), ties to the smaller digest: the order in which
clients are listed never matters. A cap is applied as water fills vessels: who would exceed it gets
exactly the cap, and the others divide what is left, until nobody exceeds it.

Pure: Python integers. Called by the kernels' driver, the reference and the precompile.
"""

from collections.abc import Sequence

from .errors import InvalidAggregation
from .params import MAX_RAW_WEIGHT, MAX_UPDATES, WEIGHT_TOTAL
from .types import BlobName


def compute_shares(
    names: Sequence[BlobName], weights: Sequence[int], max_share: int = WEIGHT_TOTAL
) -> tuple[int, ...]:
    """Return each update's share, in the order given; they sum to WEIGHT_TOTAL.

    A cap that cannot be kept is lifted to the least one that can.
    Raises: InvalidAggregation if names are repeated, there are none or too many, or a weight is
    out of range, or all are zero.
    Source: docs/protocol.md, "Aggregation", step 1.
    """
    return compute_capped_shares(names, weights, max_share)[0]


def compute_capped_shares(
    names: Sequence[BlobName], weights: Sequence[int], max_share: int
) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Return the shares, and which of them were cut down to the cap. Raises as compute_shares."""
    check_names(names)
    check_weights(weights, len(names))
    cap = max(max_share, -(-WEIGHT_TOTAL // sum(weight > 0 for weight in weights)))
    shares = [cap] * len(names)
    free, left = list(range(len(names))), WEIGHT_TOTAL
    while True:
        for i, share in zip(free, _divide(left, free, names, weights), strict=True):
            shares[i] = share
        over = frozenset(i for i in free if shares[i] > cap)
        if not over:
            break
        for i in over:
            shares[i] = cap
        left -= cap * len(over)
        free = [i for i in free if i not in over]
    is_free = frozenset(free)
    return tuple(shares), tuple(i not in is_free for i in range(len(names)))


def _divide(
    total: int, free: Sequence[int], names: Sequence[BlobName], weights: Sequence[int]
) -> list[int]:
    """Return shares of `total` for the updates in `free`, by the largest remainder."""
    sum_of_weights = sum(weights[i] for i in free)
    floors = [weights[i] * total // sum_of_weights for i in free]
    ranking = sorted(
        range(len(free)),
        key=lambda k: (-(weights[free[k]] * total % sum_of_weights), names[free[k]]),
    )
    lucky = frozenset(ranking[: total - sum(floors)])
    return [floor + (k in lucky) for k, floor in enumerate(floors)]


def check_names(names: Sequence[BlobName]) -> None:
    """Raise InvalidAggregation unless there are 1 to MAX_UPDATES updates, all different."""
    if not 1 <= len(names) <= MAX_UPDATES:
        raise InvalidAggregation(
            "aggregation_count",
            f"{len(names)} updates, an aggregation takes 1 to {MAX_UPDATES}",
        )
    if len(set(names)) != len(names):
        raise InvalidAggregation("aggregation_duplicate", "an update is listed more than once")


def check_weights(weights: Sequence[int], updates: int) -> None:
    """Raise InvalidAggregation unless there is one usable weight for each update."""
    if len(weights) != updates:
        raise InvalidAggregation(
            "aggregation_count", f"{len(weights)} weights for {updates} updates; list one for each"
        )
    for weight in weights:
        if not 0 <= weight <= MAX_RAW_WEIGHT:
            raise InvalidAggregation(
                "aggregation_weight", f"weight {weight} is outside 0 to 2**128 - 1"
            )
    if not any(weights):
        raise InvalidAggregation("aggregation_weight", "all weights are zero; nothing to average")

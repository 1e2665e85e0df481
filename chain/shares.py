"""Shares: raw weights normalised to units that sum to exactly WEIGHT_TOTAL.

The total is a power of two, so that the mean's only division is a shift. What flooring leaves over
goes to the largest remainders (Hamilton's method), ties to the smaller digest: the order in which
clients are listed never matters.

Pure: Python integers. Called by the kernels' driver, the reference and the precompile.
"""

from collections.abc import Sequence

from .errors import InvalidAggregation
from .params import MAX_RAW_WEIGHT, MAX_UPDATES, WEIGHT_TOTAL
from .types import BlobName


def compute_shares(names: Sequence[BlobName], weights: Sequence[int]) -> tuple[int, ...]:
    """Return each update's share, in the order given; they sum to WEIGHT_TOTAL.

    Raises: InvalidAggregation if names are repeated, there are none or too many, or a weight is
    out of range, or all are zero.
    Source: docs/protocol.md, "Aggregation", step 1.
    """
    check_names(names)
    check_weights(weights, len(names))
    total = sum(weights)
    floors = [weight * WEIGHT_TOTAL // total for weight in weights]
    left = WEIGHT_TOTAL - sum(floors)
    ranking = sorted(
        range(len(names)),
        key=lambda i: (-(weights[i] * WEIGHT_TOTAL % total), names[i]),
    )
    lucky = frozenset(ranking[:left])
    return tuple(floor + (i in lucky) for i, floor in enumerate(floors))


def check_names(names: Sequence[BlobName]) -> None:
    """Raise InvalidAggregation unless there are 1 to MAX_UPDATES updates, all different."""
    if not 1 <= len(names) <= MAX_UPDATES:
        raise InvalidAggregation(
            "aggregation_count",
            f"{len(names)} updates, one call takes 1 to {MAX_UPDATES}; use pages for more",
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

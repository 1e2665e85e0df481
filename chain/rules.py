"""What can be asked of an aggregation and what it answers; shared by the kernels and the oracle.

No arithmetic of tensors here: this module is what a thin client needs to read a record.
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from math import isqrt
from typing import Final

from .errors import InvalidAggregation
from .params import MAX_NORM2


class RuleKind(IntEnum):
    """How the updates of a round become one delta."""

    WEIGHTED_MEAN = 0
    NORM_CLIPPED_MEAN = 1


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind and its bound: for NORM_CLIPPED_MEAN an L2 norm in units of 2**-24, otherwise 0."""

    kind: RuleKind
    bound: int


class Flag(IntFlag):
    """What the record says about one update."""

    CLIPPED = 1
    ZERO_SHARE = 2


@dataclass(frozen=True, slots=True)
class Aggregate:
    """What one aggregation made. `shares`, `scores` and `flags` are in the order of the updates.

    Scores are cosines in units of 2**-20. `saturated` counts model values that hit int32's ends.
    """

    model: bytes
    shares: tuple[int, ...]
    scores: tuple[int, ...]
    flags: tuple[int, ...]
    saturated: int


MAX_BOUND: Final = isqrt(MAX_NORM2)
"""No norm is larger, so no larger bound means anything."""


def check_rule(rule: Rule) -> None:
    """Raise InvalidAggregation unless the bound fits the kind."""
    match rule.kind:
        case RuleKind.WEIGHTED_MEAN:
            if rule.bound != 0:
                raise InvalidAggregation(
                    "aggregation_bound", "the weighted mean has no bound; give 0"
                )
        case RuleKind.NORM_CLIPPED_MEAN:
            if not 1 <= rule.bound <= MAX_BOUND:
                raise InvalidAggregation(
                    "aggregation_bound", f"bound {rule.bound} is outside 1 to 2**128 - 1"
                )

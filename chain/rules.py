"""What can be asked of an aggregation and what it answers; shared by the kernels and the oracle.

No arithmetic of tensors here: this module is what a thin client needs to read a record.
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from math import isqrt
from typing import Final

from .errors import InvalidAggregation
from .params import (
    MAX_COMPARED_UPDATES,
    MAX_MOMENTUM,
    MAX_NORM2,
    MAX_SERVER_RATE,
    MAX_UPDATES,
    STEP_UNIT,
    WEIGHT_TOTAL,
)


class RuleKind(IntEnum):
    """How the updates of a round become one delta."""

    WEIGHTED_MEAN = 0
    NORM_CLIPPED_MEAN = 1
    TRIMMED_MEAN = 2
    MULTI_KRUM = 3


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind and its numbers.

    bound: for NORM_CLIPPED_MEAN an L2 norm in units of 2**-24; for TRIMMED_MEAN and MULTI_KRUM how
    many bad updates to withstand; otherwise 0. max_share: the largest share of one update, in
    2**-20. server_lr and momentum: in units of 2**-12; 4096 and 0 leave the mean as it is.
    """

    kind: RuleKind
    bound: int
    max_share: int = WEIGHT_TOTAL
    server_lr: int = STEP_UNIT
    momentum: int = 0

    @property
    def has_momentum(self) -> bool:
        """Whether rounds hand a velocity on."""
        return self.momentum > 0

    @property
    def has_server_step(self) -> bool:
        """Whether the mean is not simply added to the base."""
        return (self.server_lr, self.momentum) != (STEP_UNIT, 0)


class Flag(IntFlag):
    """What the record says about one update."""

    CLIPPED = 1
    ZERO_SHARE = 2
    DUPLICATE = 4
    EXCLUDED = 8
    CAPPED = 16


@dataclass(frozen=True, slots=True)
class Aggregate:
    """What one aggregation made. `shares`, `scores` and `flags` are in the order of the updates.

    Scores are cosines in units of 2**-20. `saturated` counts model values that hit int32's ends.
    `velocity` is a blob for the next round, None without momentum.
    """

    model: bytes
    shares: tuple[int, ...]
    scores: tuple[int, ...]
    flags: tuple[int, ...]
    saturated: int
    velocity: bytes | None = None


MAX_BOUND: Final = isqrt(MAX_NORM2)
"""No norm is larger, so no larger bound means anything."""
MAX_TRIMMED: Final = (MAX_UPDATES - 1) // 2
MAX_WITHSTOOD: Final = (MAX_COMPARED_UPDATES - 3) // 2
_BOUNDS: Final = {
    RuleKind.WEIGHTED_MEAN: (0, 0),
    RuleKind.NORM_CLIPPED_MEAN: (1, MAX_BOUND),
    RuleKind.TRIMMED_MEAN: (1, MAX_TRIMMED),
    RuleKind.MULTI_KRUM: (1, MAX_WITHSTOOD),
}


def check_rule(rule: Rule) -> None:
    """Raise InvalidAggregation unless the numbers fit the kind."""
    least, most = _BOUNDS[rule.kind]
    if not least <= rule.bound <= most:
        raise InvalidAggregation(
            "aggregation_bound", f"bound {rule.bound} is outside {least} to {most} of this rule"
        )
    if not 1 <= rule.max_share <= WEIGHT_TOTAL:
        raise InvalidAggregation(
            "aggregation_cap", f"the largest share {rule.max_share} is outside 1 to 2**20"
        )
    if not 1 <= rule.server_lr <= MAX_SERVER_RATE:
        raise InvalidAggregation(
            "aggregation_server_lr", f"learning rate {rule.server_lr} is outside 1 to 2**15"
        )
    if not 0 <= rule.momentum <= MAX_MOMENTUM:
        raise InvalidAggregation(
            "aggregation_momentum", f"momentum {rule.momentum} is outside 0 to {MAX_MOMENTUM}"
        )


def check_enough(rule: Rule, updates: int) -> None:
    """Raise InvalidAggregation unless the rule can be computed over so many updates."""
    least, most = get_update_range(rule)
    if not least <= updates <= most:
        raise InvalidAggregation(
            "aggregation_rule_count",
            f"{updates} updates; with bound {rule.bound} this rule takes {least} to {most}",
        )


def get_update_range(rule: Rule) -> tuple[int, int]:
    """Return the fewest and the most updates that the rule (checked) can take."""
    if rule.kind is RuleKind.TRIMMED_MEAN:
        return 2 * rule.bound + 1, MAX_UPDATES
    if rule.kind is RuleKind.MULTI_KRUM:
        return 2 * rule.bound + 3, MAX_COMPARED_UPDATES
    return 1, MAX_UPDATES


def needs_measures(rule: Rule) -> bool:
    """Return whether all updates must be measured before any block can be combined."""
    return rule.kind in (RuleKind.NORM_CLIPPED_MEAN, RuleKind.MULTI_KRUM)

"""Sound terms of tasks, small enough that everything about them happens often."""

from random import Random
from typing import Any

from steelyard.chain.types import Address

from .agreement import FLOOR, ONE
from .arena import ZERO

NEVER = 2**256 - 1


def make_rule(random: Random) -> tuple[dict[str, int], int]:
    """Return a rule, and the fewest clients that it takes."""
    kind = random.choices((0, 1, 2, 3), (6, 2, 2, 2))[0]
    has_step = random.random() < 0.25
    rule = {
        "kind": kind,
        "bound": (0, random.choice((1, 2**20, 2**100)), 1, 1)[kind],
        "max_share": random.choice((ONE, ONE, ONE // 3, 1)),
        "server_lr": 2_048 if has_step else 4_096,
        "momentum": random.choice((0, 3_686)) if has_step else 0,
    }
    return rule, (1, 1, 3, 5)[kind]


def make_terms(random: Random, platform: Address) -> dict[str, Any]:
    """Return the parameters of a task, by name."""
    rule, fewest = make_rule(random)
    min_clients = max(fewest, random.choice((1, 2, 2, 3)))
    policy = random.randrange(3)
    weighting = 2 if rule["kind"] == 2 else random.randrange(3)
    base_stake = random.choice((100, 100, 10**9) if weighting == 1 else (0, 100, 10**9))
    reserve = random.choice((0, 10**5, 10**8))
    share = random.choice((0, 0, 1, ONE // 7, ONE // 5))
    return {
        "rule": rule,
        "weighting": weighting,
        "bits": random.choice((8, 16)),
        "rounds": random.choice((1, 2, 3, 5, 8)),
        "min_clients": min_clients,
        "max_clients": min_clients + random.choice((0, 1, 2)),
        "fraction_fit": random.choice((ONE, ONE, ONE // 2, 1)),
        "spare_clients": random.choice((0, 0, 1)),
        "max_staleness": random.choice((0, 1, 2)),
        "staleness_discount": random.choice((0, ONE // 2, ONE)),
        "on_failed_quorum": policy,
        "max_extensions": random.choice((1, 2)) if policy == 1 else 0,
        "max_saturated": random.choice((0, NEVER)),
        "evaluate_every": random.choice((0, 1, 2)),
        "join_seconds": random.choice((20, 100)),
        "commit_seconds": random.choice((10, 40)),
        "reveal_seconds": random.choice((10, 40)),
        "base_stake": base_stake,
        "stake_per_sample": random.choice((0, 1, 7)),
        "bond": random.choice((0, base_stake // 3, base_stake)),
        "admission": random.choice((0, 0, 1, 2)),
        "min_reputation": random.choice((0, 0, 0, 0, FLOOR, FLOOR + 1)),
        "admission_norm2": 2**200,
        "reward": random.choice((0, 7, 10**9 + 7, 2**100)),
        "close_reserve": reserve,
        "close_bounty": random.choice((0, reserve // 5, reserve)),
        "platform": platform if share else ZERO,
        "platform_share": share,
    }

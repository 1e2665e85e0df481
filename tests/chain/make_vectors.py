"""Write chain/vectors/aggregation.json from the reference: `python -m tests.chain.make_vectors`."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np

from steelyard.chain import reference
from steelyard.chain.errors import SteelyardError
from steelyard.chain.model import Role, compute_layout
from steelyard.chain.params import (
    MAX_MOMENTUM,
    MAX_SERVER_RATE,
    STEP_UNIT,
    VELOCITY_LIMIT,
    WEIGHT_TOTAL,
)
from steelyard.chain.rules import Rule, RuleKind
from steelyard.chain.selftest import VECTORS, describe
from steelyard.chain.server import encode_velocity
from steelyard.chain.types import BlobName

from .aggregation_kit import Base, make_base, make_flat_base, make_manifest

MEAN = Rule(RuleKind.WEIGHTED_MEAN, 0)


@dataclass
class Draft:
    """A case before its answer."""

    name: str
    base: Base
    updates: Sequence[tuple[BlobName, bytes]]
    weights: Sequence[int]
    rule: Rule = field(default=MEAN)
    velocity: bytes | None = None


def make_random_update(base: Base, random: Random, bits: int, sender: int, is_extreme: bool):
    """Return an update with any valid exponents; an extreme one has only the largest values."""
    layout = compute_layout(base.manifest)
    values: list[int] = []
    exponents: list[int] = []
    for length, fraction_bits in zip(
        layout.length.tolist(), layout.fraction_bits.tolist(), strict=True
    ):
        exponent = random.randint(-fraction_bits, 31 - fraction_bits - 1)
        most = min(2 ** (bits - 1) - 1, (2**31 - 1) >> (exponent + fraction_bits))
        exponents.append(exponent)
        values += [
            random.choice((-most, most)) if is_extreme else random.randint(-most, most)
            for _ in range(length)
        ]
    return base.make_update(values, exponents, bits, sender)


def draft_cases() -> list[Draft]:
    """Return all cases."""
    random = Random("steelyard")
    mixed = make_base(
        make_manifest(
            (4097, 24, Role.TRAIN), (7, 10, Role.AVERAGE), (3, 0, Role.KEEP), (50, 16, Role.TRAIN)
        ),
        [random.randint(-(2**31), 2**31 - 1) for _ in range(4157)],
    )
    small = make_base(
        make_manifest((9, 24, Role.TRAIN), (2, 0, Role.KEEP), (4, 12, Role.AVERAGE)), range(15)
    )
    drafts = [
        Draft(
            "one update", make_flat_base(3), [make_flat_base(3).make_update([1, -2, 3], [-20])], [1]
        )
    ]
    ties = make_flat_base(6)
    drafts.append(
        Draft(
            "halves go to the even neighbour",
            ties,
            [
                ties.make_update([1, 3, -1, -3, 5, 2], [-24], sender=1),
                ties.make_update([0] * 6, [30], 16, sender=2),
            ],
            [1, 1],
        )
    )
    thirds = [ties.make_update([i, 0, 0, 0, 0, 1], [-24], sender=i) for i in range(1, 8)]
    drafts.append(Draft("equal weights that do not divide", ties, thirds, [2**128 - 1] * 7))
    drafts.append(Draft("a weight too small for a share", ties, thirds[:2], [1, 2**100]))
    for is_extreme in (False, True):
        updates = [
            make_random_update(mixed, random, 8 + 8 * (i % 2), i, is_extreme) for i in range(5)
        ]
        kind = "the largest" if is_extreme else "random"
        drafts.append(
            Draft(f"{kind} values, mixed widths and roles", mixed, updates, [5, 0, 1, 7, 3])
        )
        clipped = Rule(RuleKind.NORM_CLIPPED_MEAN, 2**35)
        drafts.append(
            Draft(f"{kind} values, norms clipped", mixed, updates, [5, 0, 1, 7, 3], clipped)
        )
    late = [
        make_flat_base(6, bits).make_update([bits, -bits, 3, 1, 0, 7], [-20], sender=bits)
        for bits in (22, 20)
    ]
    drafts += [
        Draft("the lowest value", ties, [thirds[0], ties.make_update([-128] * 6, [-24])], [1, 1]),
        Draft("a value past 32 bits", ties, [ties.make_update([64] * 6, [1])], [1]),
        Draft("an exponent below the model's", ties, [ties.make_update([0] * 6, [-25])], [1]),
        Draft("no weight", ties, thirds[:2], [0, 0]),
        Draft("a repeated update", ties, [thirds[0], thirds[0]], [1, 1]),
        Draft("updates made on another base model", make_flat_base(6, 22), late, [1, 2]),
    ]
    return drafts + draft_robust_cases(mixed, small, random) + draft_server_cases(small, random)


def draft_robust_cases(mixed: Base, small: Base, random: Random) -> list[Draft]:
    """Return cases of caps, trimmed means and Multi-Krum."""
    many = [make_random_update(small, random, 8 + 8 * (i % 2), i, i % 3 == 0) for i in range(1, 10)]
    weights = [900, 1, 2, 300, 0, 4, 5, 6, 7]
    flat = make_flat_base(3)
    near = [flat.make_update([i, 1, -i], [-10], sender=i) for i in (1, 2, 3, 5)]
    copy = flat.make_update([4, 4, -4], [-12], 16, sender=9)
    far = flat.make_update([-100, 100, 100], [-6], sender=10)
    wide = [make_random_update(mixed, random, 8 + 8 * (i % 2), i, False) for i in range(5)]
    return [
        Draft("a cap that two exceed", small, many, weights, _rule(0, 0, max_share=2**18)),
        Draft("a cap that is lifted", small, many, weights, _rule(0, 0, max_share=1)),
        Draft("norms clipped and shares capped", small, many, weights, _rule(1, 2**29, 2**17)),
        Draft("one trimmed from either end", small, many, [1] * 9, _rule(2, 1)),
        Draft("the median", small, many, [1] * 9, _rule(2, 4)),
        Draft("the median of many widths", mixed, wide, [3, 1, 1, 1, 0], _rule(2, 2)),
        Draft("too few to trim", small, many[:8], [1] * 8, _rule(2, 4)),
        Draft("Multi-Krum leaves out the far one", flat, [*near, copy, far], [1] * 6, _rule(3, 1)),
        Draft("Multi-Krum, only copies", flat, [near[0]] + [
            flat.make_update([4, 4, -4], [-12], sender=i) for i in range(20, 24)
        ], [5, 4, 3, 2, 1], _rule(3, 1)),
        Draft("Multi-Krum, three of nine bad", small, many, weights, _rule(3, 3, 2**18)),
        Draft("Multi-Krum, two blocks", mixed, wide, [0, 0, 7, 1, 0], _rule(3, 1)),
        Draft("too few for Multi-Krum", small, many[:8], [1] * 8, _rule(3, 3)),
    ]  # fmt: skip


def draft_server_cases(base: Base, random: Random) -> list[Draft]:
    """Return cases of the server's step: without, before and after the first velocity."""
    updates = [make_random_update(base, random, 8 + 8 * (i % 2), i, i == 1) for i in range(3)]
    count = base.manifest.update_values
    most = VELOCITY_LIMIT - 1
    drawn = [random.choice((-most, 0, most, random.randint(-most, most))) for _ in range(count)]
    velocity = encode_velocity(np.array(drawn, np.int64))
    heavy = _rule(0, 0, server_lr=MAX_SERVER_RATE, momentum=MAX_MOMENTUM)
    slow = _rule(2, 1, momentum=1)
    past = np.array([VELOCITY_LIMIT, *drawn[1:]], np.int64)
    weights = [3, 2, 2]
    return [
        Draft("half the server's rate", base, updates, weights, _rule(0, 0, server_lr=2048)),
        Draft("a first velocity", base, updates, weights, _rule(0, 0, momentum=3686)),
        Draft("the fastest server", base, updates, weights, heavy, velocity),
        Draft("the median with momentum", base, updates, weights, slow, velocity),
        Draft("a velocity without momentum", base, updates, weights, MEAN, velocity),
        Draft("a velocity out of range", base, updates, weights, heavy, encode_velocity(past)),
        Draft("a velocity of another size", base, updates, weights, heavy, velocity[:-8]),
    ]


def _rule(kind: int, bound: int, max_share: int = WEIGHT_TOTAL, **fields: int) -> Rule:
    return Rule(RuleKind(kind), bound, max_share, **fields)


def describe_rule(rule: Rule) -> dict[str, object]:
    """Return a rule as the file has it: without what changes nothing."""
    extras = {
        "max_share": (rule.max_share, WEIGHT_TOTAL),
        "server_lr": (rule.server_lr, STEP_UNIT),
        "momentum": (rule.momentum, 0),
    }
    return {
        "kind": int(rule.kind),
        "bound": str(rule.bound),
        **{key: value for key, (value, usual) in extras.items() if value != usual},
    }


def answer(draft: Draft) -> dict[str, object]:
    """Return the case as it stands in the file."""
    base, velocity = draft.base.data, draft.velocity
    try:
        expected = describe(
            reference.aggregate(draft.rule, base, draft.velocity, draft.updates, draft.weights)
        )
    except SteelyardError as error:
        expected = {"error": error.code}
    return {
        "name": draft.name,
        "rule": describe_rule(draft.rule),
        "base": base64.b64encode(base).decode(),
        **({} if velocity is None else {"velocity": base64.b64encode(velocity).decode()}),
        "updates": [base64.b64encode(data).decode() for _, data in draft.updates],
        "weights": [str(weight) for weight in draft.weights],
        "expected": expected,
    }


def make_document() -> str:
    """Return the file's text."""
    document = {
        "format": "steelyard-aggregation-2",
        "cases": [answer(draft) for draft in draft_cases()],
    }
    return json.dumps(document, indent=1) + "\n"


if __name__ == "__main__":
    VECTORS.write_text(make_document(), encoding="utf-8")

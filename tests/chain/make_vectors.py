"""Write chain/vectors/aggregation.json from the reference: `python -m tests.chain.make_vectors`."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from steelyard.chain import reference
from steelyard.chain.cid import compute_blob_name
from steelyard.chain.errors import SteelyardError
from steelyard.chain.model import Role, compute_layout
from steelyard.chain.rules import Rule, RuleKind
from steelyard.chain.selftest import VECTORS, describe
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
    drafts += [
        Draft("the lowest value", ties, [thirds[0], ties.make_update([-128] * 6, [-24])], [1, 1]),
        Draft("a value past 32 bits", ties, [ties.make_update([64] * 6, [1])], [1]),
        Draft("an exponent below the model's", ties, [ties.make_update([0] * 6, [-25])], [1]),
        Draft("no weight", ties, thirds[:2], [0, 0]),
        Draft("a repeated update", ties, [thirds[0], thirds[0]], [1, 1]),
        Draft("another base model", make_flat_base(6, 20), thirds[:1], [1]),
    ]
    return drafts


def answer(draft: Draft) -> dict[str, object]:
    """Return the case as it stands in the file."""
    base = draft.base.data
    try:
        expected = describe(
            reference.aggregate(
                draft.rule, compute_blob_name(base), base, draft.updates, draft.weights
            )
        )
    except SteelyardError as error:
        expected = {"error": error.code}
    return {
        "name": draft.name,
        "rule": {"kind": int(draft.rule.kind), "bound": str(draft.rule.bound)},
        "base": base64.b64encode(base).decode(),
        "updates": [base64.b64encode(data).decode() for _, data in draft.updates],
        "weights": [str(weight) for weight in draft.weights],
        "expected": expected,
    }


def make_document() -> str:
    """Return the file's text."""
    document = {
        "format": "steelyard-aggregation-1",
        "cases": [answer(draft) for draft in draft_cases()],
    }
    return json.dumps(document, indent=1) + "\n"


if __name__ == "__main__":
    VECTORS.write_text(make_document(), encoding="utf-8")

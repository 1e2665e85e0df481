"""Known answers: does this machine compute what the network computes?

A node refuses to start unless its kernels give back `vectors/aggregation.json` bit for bit: a
compiler bug, a foreign byte order or a changed file shows here and not in a forked chain.
"""

import base64
import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from .aggregate import aggregate, assemble, combine_range, measure_range
from .cid import compute_blob_name
from .errors import SteelyardError
from .model import compute_layout, decode_model
from .params import STEP_UNIT, WEIGHT_TOTAL
from .rules import Aggregate, Rule, RuleKind, needs_measures
from .types import BlobName

VECTORS: Final = Path(__file__).with_name("vectors").joinpath("aggregation.json")


@dataclass(frozen=True, slots=True)
class Case:
    """One aggregation: blobs, weights, and what must come of them (or which refusal)."""

    name: str
    rule: Rule
    base: bytes
    velocity: bytes | None
    updates: tuple[bytes, ...]
    weights: tuple[int, ...]
    expected: dict[str, object]

    @property
    def named(self) -> list[tuple[BlobName, bytes]]:
        """The updates with their names."""
        return [(compute_blob_name(data), data) for data in self.updates]


def load_cases(path: Path = VECTORS) -> list[Case]:
    """Return the cases of a file in the format of vectors/README.md."""
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["format"] == "steelyard-aggregation-2", document["format"]
    return [
        Case(
            name=case["name"],
            rule=_read_rule(case["rule"]),
            base=base64.b64decode(case["base"]),
            velocity=base64.b64decode(case["velocity"]) if "velocity" in case else None,
            updates=tuple(base64.b64decode(update) for update in case["updates"]),
            weights=tuple(int(weight) for weight in case["weights"]),
            expected=case["expected"],
        )
        for case in document["cases"]
    ]


def _read_rule(fields: dict[str, int | str]) -> Rule:
    return Rule(
        RuleKind(int(fields["kind"])),
        int(fields["bound"]),
        int(fields.get("max_share", WEIGHT_TOTAL)),
        int(fields.get("server_lr", STEP_UNIT)),
        int(fields.get("momentum", 0)),
    )


def describe(made: Aggregate) -> dict[str, object]:
    """Return an aggregate as vectors record it: blobs by their names, no Nones."""
    described: dict[str, object] = {}
    for key, value in asdict(made).items():
        if isinstance(value, bytes):
            name = compute_blob_name(value)
            described[key] = {"digest": name.digest.hex(), "size": name.size}
        elif value is not None:
            described[key] = list(value) if isinstance(value, tuple) else value
    return described


def run(cases: list[Case] | None = None) -> list[str]:
    """Return a line for each known answer that this machine gets wrong."""
    failures: list[str] = []
    for case in load_cases() if cases is None else cases:
        try:
            made = aggregate(case.rule, case.base, case.velocity, case.named, case.weights)
        except SteelyardError as error:
            found: dict[str, object] = {"error": error.code}
        else:
            found = describe(made)
            if _aggregate_in_pages(case) != made:
                failures.append(f"{case.name}: pages give another answer")
        failures += [
            f"{case.name}: {key} is {found.get(key)}, not {case.expected.get(key)}"
            for key in sorted(found.keys() | case.expected.keys())
            if found.get(key) != case.expected.get(key)
        ]
    return failures


def _aggregate_in_pages(case: Case) -> Aggregate:
    """Return the same from two pages in each phase, or from one if there is but one block."""
    rule, base, updates, weights = case.rule, case.base, case.named, case.weights
    blocks = compute_layout(decode_model(base).manifest).length.size
    cuts = sorted({0, blocks // 2, blocks})
    ranges = list(pairwise(cuts))
    measures = [
        measure_range(rule, base, updates, first, last)
        for first, last in ranges
        if needs_measures(rule)
    ]
    combined = [
        combine_range(rule, base, case.velocity, updates, weights, measures, first, last)
        for first, last in ranges
    ]
    return assemble(rule, base, [name for name, _ in updates], weights, measures, combined)

"""Known answers: does this machine compute what the network computes?

A node refuses to start unless its kernels give back `vectors/aggregation.json` bit for bit: a
compiler bug, a foreign byte order or a changed file shows here and not in a forked chain.
"""

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from .aggregate import accumulate, aggregate, finish
from .cid import compute_blob_name
from .errors import SteelyardError
from .rules import Aggregate, Rule, RuleKind
from .types import BlobName

VECTORS: Final = Path(__file__).with_name("vectors").joinpath("aggregation.json")


@dataclass(frozen=True, slots=True)
class Case:
    """One aggregation: blobs, weights, and what must come of them (or which refusal)."""

    name: str
    rule: Rule
    base: bytes
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
    assert document["format"] == "steelyard-aggregation-1", document["format"]
    return [
        Case(
            name=case["name"],
            rule=Rule(RuleKind(case["rule"]["kind"]), int(case["rule"]["bound"])),
            base=base64.b64decode(case["base"]),
            updates=tuple(base64.b64decode(update) for update in case["updates"]),
            weights=tuple(int(weight) for weight in case["weights"]),
            expected=case["expected"],
        )
        for case in document["cases"]
    ]


def describe(made: Aggregate) -> dict[str, object]:
    """Return an aggregate as vectors record it: the model by its name."""
    name = compute_blob_name(made.model)
    fields = {**asdict(made), "model": {"digest": name.digest.hex(), "size": name.size}}
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()
    }


def run(cases: list[Case] | None = None) -> list[str]:
    """Return a line for each known answer that this machine gets wrong."""
    failures: list[str] = []
    for case in load_cases() if cases is None else cases:
        base_name = compute_blob_name(case.base)
        try:
            made = aggregate(case.rule, base_name, case.base, case.named, case.weights)
        except SteelyardError as error:
            found: dict[str, object] = {"error": error.code}
        else:
            found = describe(made)
            if _aggregate_in_pages(case, made) != (made.model, made.saturated):
                failures.append(f"{case.name}: pages give another model")
        failures += [
            f"{case.name}: {key} is {found.get(key)}, not {case.expected.get(key)}"
            for key in sorted(found.keys() | case.expected.keys())
            if found.get(key) != case.expected.get(key)
        ]
    return failures


def _aggregate_in_pages(case: Case, whole: Aggregate) -> tuple[bytes, int]:
    """Return the model and its saturated values from pages of one update each."""
    base_name = compute_blob_name(case.base)
    partial: bytes | None = None
    for update, share in zip(case.named, whole.shares, strict=True):
        partial = accumulate(case.rule, partial, base_name, case.base, [update], [share])
    assert partial is not None
    return finish(base_name, case.base, partial)

"""Of several faults in one call, the first of docs/protocol.md, section 5, is reported."""

from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from steelyard.chain import precompile, server
from steelyard.chain.arguments import NO_BLOB
from steelyard.chain.model import Role, compute_layout
from steelyard.chain.pages import (
    Combined,
    Measures,
    compute_combine_key,
    compute_measure_key,
    encode_combined,
    encode_measures,
)
from steelyard.chain.rules import Rule, RuleKind
from steelyard.chain.types import BlobName

from .aggregation_kit import make_base, make_manifest
from .precompile_kit import ONE, RATE, Host, catch_code, encode_call, pair

CODES = {
    "static": "call_static",
    "encoding": "call_encoding",
    "blob": "blob_unknown",
    "bound": "aggregation_bound",
    "unmeasured": "aggregation_rule",
    "repeated": "aggregation_duplicate",
    "weightless": "aggregation_weight",
    "few": "aggregation_rule_count",
    "base": "model_header",
    "too long": "velocity_size",
    "unused": "velocity_unused",
    "range": "page_cover",
    "capacity": "aggregation_capacity",
    "measures": "page_length",
    "pages": "page_length",
    "velocity": "velocity_format",
    "form": "update_length",
    "value": "update_value",
}
FIRST, LAST = ("static", "encoding", "blob", "bound"), ("form", "value")
LIST = ("repeated", "weightless", "few", "base", "too long")
ORDERS = {
    "aggregate": (*FIRST, *LIST, "velocity", *LAST),
    "measure": (*FIRST, "unmeasured", "repeated", "few", "base", "too long", "range", *LAST),
    "combine": (*FIRST, *LIST, "range", "capacity", "measures", "velocity", *LAST),
    "assemble": (*FIRST, *LIST, "measures", "pages"),
}
BASE = make_base(make_manifest((4_100, 24, Role.TRAIN)))
LAYOUT = compute_layout(BASE.manifest)
BLOCKS, VALUES = LAYOUT.length.size, LAYOUT.update_values
CLIENTS = 5


@cache
def make_update(last: int, sender: int) -> bytes:
    """Return an update whose last value is this one."""
    return BASE.make_update([sender] * (VALUES - 1) + [last], [-24] * BLOCKS, 8, sender)[1]


@dataclass
class Faulty:
    """A round closed by Multi-Krum with momentum, with some faults."""

    host: Host
    faults: frozenset[str]

    def has(self, fault: str) -> bool:
        return fault in self.faults

    def make_rule(self) -> tuple[int, ...]:
        bound = 200 * self.has("bound")
        momentum = 0 if self.has("unused") else 2_048
        if self.has("unmeasured"):
            return RuleKind.WEIGHTED_MEAN, bound, ONE, RATE, momentum
        return RuleKind.MULTI_KRUM, bound or 1, ONE, RATE, momentum

    def make_updates(self) -> list[BlobName]:
        lasts = [-128 if self.has("value") else 0, 1, 2, 3, 4]
        names = [self.host.add(make_update(last, i)) for i, last in enumerate(lasts)]
        if self.has("form"):
            names[2] = self.host.add(b"short")
        if self.has("repeated"):
            names[3] = names[1]
        return names[: CLIENTS - self.has("few")]

    def encode(self, call: str) -> bytes:
        words, names = self.make_rule(), self.make_updates()
        rule = Rule(RuleKind(words[0]), *words[1:])
        base = self.host.add(bytes(100) if self.has("base") else BASE.data)
        velocity = self.host.add(b"short") if self.has("velocity") or self.has("unused") else None
        weights = [1 - self.has("weightless")] * len(names)
        measures, pages = self.forge(rule, base, velocity or NO_BLOB, names, weights)
        if self.has("blob"):
            del self.host.admissions[base]
        blocks = (0, BLOCKS + self.has("range"))
        pairs = [pair(name) for name in names]
        of_round = (words, pair(base), pair(velocity or NO_BLOB), pairs, weights)
        arguments = {
            "aggregate": of_round,
            "measure": (words, pair(base), pairs, *blocks),
            "combine": (*of_round, measures, *blocks),
            "assemble": (*of_round, measures, pages),
        }[call]
        return encode_call(call, *arguments) + bytes(32 * self.has("encoding"))

    def forge(
        self,
        rule: Rule,
        base: BlobName,
        velocity: BlobName,
        names: list[BlobName],
        weights: list[int],
    ) -> tuple[list[tuple[bytes, int]], list[tuple[bytes, int]]]:
        """Return one page of each phase; they fit whatever was asked."""
        count = len(names)
        measured = Measures(0, BLOCKS, (0,) * count, (0,) * (count * (count - 1) // 2))
        measure = self.host.add(encode_measures(measured, compute_measure_key(rule, base, names)))
        zeros = (0,) * count
        step = np.zeros(VALUES, np.int64) if rule.has_momentum else None
        combined = Combined(0, BLOCKS, np.zeros(VALUES, np.int32), step, 0, zeros, zeros)
        key = compute_combine_key(rule, base, velocity, names, weights, [measure])
        page = self.host.add(encode_combined(combined, key))
        return (
            [pair(names[0] if self.has("measures") else measure)],
            [] if self.has("pages") else [pair(page)],
        )


def catch(monkeypatch: pytest.MonkeyPatch, call: str, *faults: str) -> str:
    host = Host(is_static="static" in faults)
    data = Faulty(host, frozenset(faults)).encode(call)
    with monkeypatch.context() as patch:
        if "too long" in faults:
            patch.setattr(server, "MAX_BLOB_BYTES", 8 * VALUES)
        if "capacity" in faults:
            patch.setattr(precompile, "MAX_BLOB_BYTES", 4 * VALUES)
        return catch_code(host, data)


@pytest.mark.parametrize("call", ORDERS)
def test_of_two_faults_the_first_is_reported(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for first, second in combinations(ORDERS[call], 2):
        code = catch(monkeypatch, call, first, second)
        assert code == CODES[first], (first, second)
    assert catch(monkeypatch, call, ORDERS[call][-1]) == CODES[ORDERS[call][-1]]


@pytest.mark.parametrize("call", ORDERS)
def test_without_a_fault_the_call_is_answered(call: str) -> None:
    host = Host()
    assert precompile.call(host, Faulty(host, frozenset()).encode(call))


@pytest.mark.parametrize("call", ["aggregate", "combine", "assemble"])
def test_a_velocity_without_momentum_is_refused_before_it_is_read(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = ORDERS[call]
    at = order.index("too long")
    for other in order[:at]:
        assert catch(monkeypatch, call, other, "unused") == CODES[other]
    for other in (*order[at + 1 :], "unused"):
        assert catch(monkeypatch, call, other, "unused") == "velocity_unused"


def test_assembling_needs_neither_the_updates_nor_the_velocity() -> None:
    host = Host()
    faulty = Faulty(host, frozenset({"velocity"}))
    data = faulty.encode("assemble")
    for name in (*faulty.make_updates(), host.add(b"short")):
        del host.admissions[name]
    assert precompile.call(host, data)

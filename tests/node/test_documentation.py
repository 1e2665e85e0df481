"""What operators read is so: docs/node.md names everything that they may set or watch, and
docs/operating.md how many validators may be missing."""

import re
from dataclasses import fields
from pathlib import Path

from steelyard.chain.consensus.validators import has_quorum
from steelyard.node.config import SECTIONS
from steelyard.node.metrics import GAUGES, NETWORK_COUNTERS

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE = (DOCS / "node.md").read_text(encoding="utf-8")


def test_the_page_lists_exactly_the_settings() -> None:
    rows = re.findall(r"^\| (`(?:" + "|".join(SECTIONS) + r")\..*?) \|", PAGE, re.M)
    listed = re.findall(r"`(\w+\.\w+)`", "".join(rows))
    assert sorted(listed) == sorted(
        f"{section}.{one.name}" for section, kind in SECTIONS.items() for one in fields(kind)
    )


def test_the_page_lists_every_gauge_and_counter_of_the_network() -> None:
    for name, (label, _) in NETWORK_COUNTERS.items():
        assert f"`steelyard_network_{name}_total{{{label}}}`" in PAGE
    assert [name for name in GAUGES if not re.search(rf"`(steelyard_)?{name}`", PAGE)] == []


def test_the_table_of_how_many_validators_may_be_missing_is_the_rule_of_quorums() -> None:
    page = (DOCS / "operating.md").read_text(encoding="utf-8")
    head, _, row = re.findall(r"(\| Validators \|.*)\n(.*)\n(.*)\n", page)[0]
    table = dict(
        zip(*(map(int, re.findall(r"\b\d+\b", line)) for line in (head, row)), strict=True)
    )
    assert {1, 2, 3, 4, 7} <= table.keys()
    for count, missing in table.items():
        assert has_quorum(count - missing, count)
        assert not has_quorum(count - missing - 1, count)

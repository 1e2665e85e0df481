"""docs/node.md names everything that an operator may set or watch."""

import re
from dataclasses import fields
from pathlib import Path

from steelyard.node.config import SECTIONS
from steelyard.node.metrics import GAUGES, NETWORK_COUNTERS

PAGE = (Path(__file__).parent.parent.parent / "docs" / "node.md").read_text(encoding="utf-8")


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

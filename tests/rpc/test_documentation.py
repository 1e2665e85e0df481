"""docs/http.md names everything that is served."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

from steelyard.node.gateway import STATUSES
from steelyard.node.rpc.methods import build_methods

from .double import DoubleNode

if TYPE_CHECKING:
    from steelyard.node.node import Node

PAGE = (Path(__file__).parent.parent.parent / "docs" / "http.md").read_text(encoding="utf-8")


def test_the_page_lists_exactly_the_methods(tmp_path: Path) -> None:
    listed = re.findall(r"(?:eth|net|web3)_\w+", "".join(re.findall(r"^- `.*`.*$", PAGE, re.M)))
    assert sorted(listed) == sorted(build_methods(cast("Node", DoubleNode(tmp_path)), "0"))


def test_the_page_lists_every_status_of_our_codes() -> None:
    rows = {
        code: int(status)
        for status, codes in re.findall(r"^\| (\d{3}) \| (.*) \|$", PAGE, re.M)
        for code in re.findall(r"`(\w+)`", codes)
    }
    assert {code: rows.get(code) for code in STATUSES} == STATUSES

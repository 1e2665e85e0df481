"""Rule changes that a node is given: known ones count, unknown and late ones stop it."""

from dataclasses import replace
from pathlib import Path

import pytest

from steelyard.chain.errors import InvalidGenesis, SteelyardError

from .world import ALICE, CONFIG, found, open_node, sign_transaction, wait_for

FORK = "test-only"


@pytest.fixture
def known_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that knows one rule change."""
    monkeypatch.setattr("steelyard.chain.genesis_document.KNOWN_FORKS", frozenset({FORK}))


@pytest.mark.usefixtures("known_fork")
def test_a_rule_change_is_shown_and_may_not_come_late(tmp_path: Path) -> None:
    home = found(tmp_path / "node")
    scheduled = replace(CONFIG, upgrades={FORK: 1_000})
    node = open_node(home, scheduled)
    assert node.get_status().upgrades == (f"{FORK}=1000",)
    assert node.rules.is_active(FORK, 1_000)
    node.start()
    wait_for(node, node.submit_transaction(sign_transaction(ALICE, 0)))
    node.stop()
    with pytest.raises(SteelyardError) as caught:
        open_node(home, replace(CONFIG, upgrades={FORK: 1}))
    assert caught.value.code == "upgrade_late"
    node = open_node(home, replace(CONFIG, upgrades={FORK: 2_000}))
    node.stop()


def test_a_rule_change_that_this_release_does_not_know_stops_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidGenesis, match="upgrade") as caught:
        open_node(found(tmp_path / "node"), replace(CONFIG, upgrades={"tomorrow": 7}))
    assert caught.value.code == "genesis_fork"

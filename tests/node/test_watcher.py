"""The watcher gathers what it says from a node that runs."""

from collections.abc import Iterator

import pytest

from steelyard.chain.types import Address
from steelyard.node.alarms import State
from steelyard.node.network.mesh import Peer, PeerStatus
from steelyard.node.node import Node
from steelyard.node.records import Alarm
from steelyard.node.watcher import SILENT_SECONDS, Watcher

from .world import SECRETS, found, open_node


def hear(address: Address, seen_at: float | None, *, is_connected: bool = True) -> PeerStatus:
    peer = Peer(address, bytes(32), "127.0.0.1:1")
    return PeerStatus(peer, is_connected, False, seen_at, 0, 0, 0, 0, 0, {})


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = open_node(found(tmp_path_factory.mktemp("watcher") / "node"))
    yield node
    node.stop()


def test_a_validator_alone_reaches_all_of_the_power(node: Node) -> None:
    facts = Watcher(node).collect()
    assert facts.reach is not None
    assert facts.reach.power == facts.reach.total > 0
    assert facts.has_voted
    assert facts.free_bytes > 0


def test_staking_says_where_we_stand(node: Node) -> None:
    facts = Watcher(node).collect()
    assert facts.standing is not None
    assert facts.standing.state == State.ACTIVE
    assert not facts.standing.is_banned
    assert facts.standing.balance > 0


def test_only_validators_that_are_connected_and_not_silent_are_reached(node: Node) -> None:
    now = node.clock.get_seconds()
    us, other = SECRETS.address, Address(b"\x09" * 20)
    current = Watcher(node).get_current_set()

    def count(status: PeerStatus) -> int:
        return len(Watcher(node, lambda: [status]).find_reached(current))

    assert count(hear(us, now)) == 1
    assert count(hear(us, now, is_connected=False)) == 0
    assert count(hear(us, None)) == 0
    assert count(hear(us, now - SILENT_SECONDS - 1)) == 0
    assert count(hear(other, now)) == 0


def test_alarms_are_shown_where_an_operator_looks(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert node.get_status().alarms == ()
    low = Alarm("disk_low", "free some")
    node.watcher.board.update([low])
    stopped = Alarm("disk_full", "no space")
    monkeypatch.setattr(node.driver, "alarm", stopped)
    status = node.get_status()
    assert (status.alarm, status.alarms) == ("disk_full", (stopped, low))
    node.watcher.board.update([stopped, low])
    assert node.get_status().alarms == (stopped, low)
    node.watcher.board.update([])


def test_a_look_tells_the_board(node: Node) -> None:
    watcher = Watcher(node)
    watcher._final_at -= 3_600.0
    watcher.look()
    assert [alarm.code for alarm in watcher.board.get()] == ["finality_stalled"]
    watcher._note_final(node.get_head())
    watcher.look()
    assert watcher.board.get() == ()

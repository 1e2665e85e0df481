"""Meshes of well-behaved validators: delivery, reconnection, changes of the set, an orderly end."""

import contextlib
import os
import threading
from collections import Counter
from dataclasses import replace

import pytest

from steelyard.chain.errors import SteelyardError
from steelyard.chain.types import Address, Hash, Height
from steelyard.node.config import InvalidConfig, NetworkConfig
from steelyard.node.network import caller, lane, links, wire
from steelyard.node.network.endpoint import InvalidEndpoint
from steelyard.node.network.links import Peer
from steelyard.node.network.mesh import Mesh, compute_listen, parse_overrides
from steelyard.node.network.names import Names
from steelyard.node.network.roster import Roster, Totals
from steelyard.node.network.wire import encode_message
from steelyard.node.ports import find_ports

from .kit import PATIENCE_SECONDS, Node, running, wait_until
from .messages import EXAMPLES, HASH, NAME

VOTE = EXAMPLES[1]
REQUEST = wire.SegmentRequest(Height(5))


def test_every_message_arrives_on_its_lane_with_its_sender() -> None:
    first, second = Node(1), Node(2)
    with running(first, second):
        for message in EXAMPLES:
            first.mesh.send(second.address, message)
        wait_until(lambda: len(second.received) == len(EXAMPLES))
        assert all(sender == first.address for sender, _ in second.received)
        assert [one for one in EXAMPLES if not second.has(one)] == []
        assert first.received == []


def test_four_validators_reach_each_other() -> None:
    nodes = [Node(number) for number in range(1, 5)]
    with running(*nodes):
        for node in nodes:
            node.mesh.broadcast(VOTE)
            node.mesh.broadcast(REQUEST)
        for node in nodes:
            wait_until(lambda node=node: len(node.received) == 6)  # type: ignore[misc]
            others = {one.address for one in nodes} - {node.address}
            for message in (VOTE, REQUEST):
                assert {one for one, said in node.received if said == message} == others
        wait_until(lambda: all(peer.is_connected for peer in nodes[0].mesh.get_peers()))
        # What is sent is counted after it went out.
        wait_until(lambda: nodes[0].get_status(nodes[1]).messages_out == 2)
        status = nodes[0].get_status(nodes[1])
        assert (status.messages_in, status.messages_out, status.dropped) == (2, 2, 0)
        assert status.bytes_in == status.bytes_out > 0
        assert status.seen_at is not None
        assert not status.refused


def test_a_peer_that_restarts_is_reached_again() -> None:
    # Not among the ports that the system gives away: nobody takes it while nobody listens.
    (port,) = find_ports(1, 0)
    first, second = Node(1), Node(2, listen=f"127.0.0.1:{port}")
    with running(first):
        with running(second):
            for node in (first, second):
                node.mesh.set_peers([first.peer, second.peer])
            first.mesh.broadcast(VOTE)
            wait_until(lambda: second.has(VOTE))
            place = second.mesh.endpoint
        again = Node(2, secret=second.secret, listen=place)
        again.mesh.set_peers([first.peer])
        again.mesh.start()
        try:
            wait_until(lambda: first.mesh.send(again.address, VOTE) is None and again.has(VOTE))
            again.mesh.broadcast(REQUEST)
            wait_until(lambda: first.has(REQUEST))
        finally:
            again.mesh.stop()


def test_a_peer_that_nobody_reaches_shows_as_not_connected() -> None:
    first, second = Node(1), Node(2)
    with running(first):
        first.mesh.set_peers([replace(second.peer, endpoint="127.0.0.1:1")])
        first.mesh.broadcast(VOTE)
        assert not first.get_status(second).is_connected


def test_the_set_changes_while_running() -> None:
    first, second, third = Node(1), Node(2), Node(3)
    with running(first, second, third):
        first.mesh.broadcast(VOTE)
        wait_until(lambda: second.has(VOTE) and third.has(VOTE))
        second.received.clear()
        first.mesh.set_peers([first.peer, third.peer])
        assert [one.peer.address for one in first.mesh.get_peers()] == [third.address]
        first.mesh.broadcast(REQUEST)
        first.mesh.send(second.address, REQUEST)
        wait_until(lambda: third.has(REQUEST))
        assert second.received == []
        first.mesh.set_peers([second.peer, third.peer])
        first.mesh.broadcast(REQUEST)
        wait_until(lambda: second.has(REQUEST))


def test_an_override_says_where_a_peer_is() -> None:
    second = Node(2)
    with running(second):
        row = f"0x{second.address.hex()}={second.mesh.endpoint}"
        first = Node(1, config=NetworkConfig(peers=(row,)))
        with running(first):
            second.mesh.set_peers([first.peer])
            first.mesh.set_peers([replace(second.peer, endpoint="nowhere.invalid:1")])
            first.mesh.broadcast(VOTE)
            wait_until(lambda: second.has(VOTE))


def test_a_name_is_looked_up() -> None:
    first, second = Node(1), Node(2)
    with running(first, second):
        named = second.mesh.endpoint.replace("127.0.0.1", "localhost")
        first.mesh.set_peers([replace(second.peer, endpoint=named)])
        first.mesh.broadcast(VOTE)
        wait_until(lambda: second.has(VOTE))


@pytest.mark.parametrize("endpoint", ["", "no port", "tcp://1.2.3.4:5", "x:0", "\0", "é:1" * 99])
def test_a_bad_endpoint_of_one_peer_harms_no_other(endpoint: str) -> None:
    first, second, third = Node(1), Node(2), Node(3)
    with running(first, second):
        first.mesh.set_peers([replace(third.peer, endpoint=endpoint), second.peer])
        first.mesh.broadcast(VOTE)
        wait_until(lambda: second.has(VOTE))
        assert not first.get_status(third).is_connected


def test_whoever_copies_a_key_does_not_take_its_place() -> None:
    first, second, thief = Node(1), Node(9), Node(2)
    with running(first, second):
        copy = replace(thief.peer, network_key=second.peer.network_key, endpoint="127.0.0.1:1")
        first.mesh.set_peers([copy, second.peer])
        assert [one.peer.address for one in first.mesh.get_peers()] == [second.address]
        second.mesh.broadcast(VOTE)
        wait_until(lambda: first.has(VOTE))
        assert first.received[0][0] == second.address


def test_keys_that_are_none_are_left_out() -> None:
    first, second = Node(1), Node(2)
    first.mesh.set_peers([first.peer, replace(second.peer, network_key=b"short")])
    assert first.mesh.get_peers() == ()


def test_a_full_queue_drops_the_oldest_and_counts() -> None:
    first, second = Node(1, config=NetworkConfig(queue_messages=3)), Node(2)
    first.mesh.set_peers([replace(second.peer, endpoint="127.0.0.1:1")])
    for height in range(5):
        first.mesh.broadcast(wire.SegmentRequest(Height(height)))
    assert first.get_status(second).dropped == 2


def test_a_full_queue_counts_bytes_too() -> None:
    first, second = Node(1, config=NetworkConfig(queue_bytes=3 * 2**20)), Node(2)
    first.mesh.set_peers([replace(second.peer, endpoint="127.0.0.1:1")])
    chunk = wire.BlobChunk(NAME, 0, bytes(2**20))
    for _ in range(4):
        first.mesh.broadcast(chunk)
    assert first.get_status(second).dropped == 2


def test_what_waited_too_long_is_dropped() -> None:
    link = links.Link(Node(1).peer, None, links.Traffic.__new__(links.Traffic))
    link.traffic.dropped = 0
    link.put(links.Waiting(b"1", 0.0), 9, 9)
    link.put(links.Waiting(b"22", 1.0), 9, 9)
    waiting = link.get_next(links.MAX_AGE_SECONDS)
    assert waiting is not None
    assert (waiting.size, link.traffic.dropped, link.queued_bytes) == (2, 1, 0)


def test_what_users_cause_waits_for_consensus_and_leaves_it_its_share() -> None:
    first, second = Node(1, config=NetworkConfig(messages_per_second=100)), Node(2)
    first.mesh.set_peers([second.peer])
    roster = first.mesh._lanes[0].roster
    transaction, now = EXAMPLES[4], first.clock.get_seconds()
    for _ in range(300):
        first.mesh.broadcast(transaction)
    first.mesh.broadcast(VOTE)
    (link,) = roster.get_links()
    taken = [roster.take_next(link, now) for _ in range(201)]
    sent = [one.data for one in taken if one is not None]
    assert sent == [encode_message(VOTE), *[encode_message(transaction)] * 150]
    assert roster.list_waiting() == (link,), "the rest follows later"
    assert roster.take_next(link, now + 0.1) is not None


def test_a_full_queue_drops_what_users_cause_first() -> None:
    first, second = Node(1, config=NetworkConfig(queue_messages=2)), Node(2)
    first.mesh.set_peers([second.peer])
    for message in (VOTE, EXAMPLES[4], EXAMPLES[4], VOTE):
        first.mesh.broadcast(message)
    (link,) = first.mesh._lanes[0].roster.get_links()
    assert [one.data for one in link.queue] == [encode_message(VOTE)] * 2
    assert not link.patient


def list_files() -> set[tuple[str, str]]:
    """What this process has open: number and name."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return found


def test_stopping_leaves_no_thread_and_no_file() -> None:
    before = set(threading.enumerate()), list_files()
    nodes = [Node(number) for number in (1, 2)]
    with running(*nodes):
        nodes[0].mesh.broadcast(EXAMPLES[3])
        wait_until(lambda: nodes[1].received)
    nodes[0].mesh.broadcast(VOTE)  # too late, and harmless
    nodes[0].mesh.stop()
    # Others of before may end meanwhile: a lookup, say, that nobody asks for any more.
    assert not set(threading.enumerate()) - before[0]
    wait_until(lambda: not list_files() - before[1])


def test_a_port_in_use_is_an_error_and_nothing_stays() -> None:
    first, before = Node(1), set(threading.enumerate())
    with running(first):
        for listen in (first.mesh.endpoint, f"127.0.0.1:0/{first.mesh.endpoint.split('/')[1]}"):
            second = Node(2, listen=listen)
            with pytest.raises(SteelyardError) as caught:
                second.mesh.start()
            assert caught.value.code == "port_taken"
    assert not set(threading.enumerate()) - before


def test_an_address_of_nobody_cannot_be_listened_on() -> None:
    with pytest.raises(SteelyardError) as caught:
        Node(1, listen="192.0.2.1:0").mesh.start()
    assert caught.value.code == "listen_failed"


def test_a_bug_in_the_handler_loses_one_message_only() -> None:
    first, second = Node(1), Node(2)

    def fail(peer: links.Peer, message: wire.Message) -> None:
        if message == VOTE:
            raise ZeroDivisionError
        second.received.append((peer.address, message))

    second.mesh = Mesh(second.secret, "127.0.0.1:0", NetworkConfig(), fail)
    with running(first, second):
        first.mesh.broadcast(VOTE)
        first.mesh.broadcast(wire.BlockRequest(Hash(HASH)))
        wait_until(lambda: len(second.received) == 1)


def test_where_to_listen_follows_from_the_own_endpoint() -> None:
    assert compute_listen("", "example.org:4000") == "0.0.0.0:4000"
    assert compute_listen("", "[2001:db8::1]:4000/5000") == "[::]:4000/5000"
    assert compute_listen("10.0.0.1:7", "example.org:4000") == "10.0.0.1:7"
    with pytest.raises(InvalidEndpoint):
        compute_listen("", "nonsense")


def test_overrides_are_addresses_and_endpoints() -> None:
    address = Address(b"\1" * 20)
    assert parse_overrides([f"0x{address.hex()}=a.example:5"]) == {address: "a.example:5"}


@pytest.mark.parametrize("row", ["", "=a:1", "0x01=a:1", f"0x{'01' * 20}", f"0x{'01' * 20}=a"])
def test_other_overrides_are_refused(row: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse_overrides([row])
    assert caught.value.code == "config_value"


def test_who_calls_is_called_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for constant in ("RECALL_SECONDS", "MAX_RECALL_SECONDS"):
        monkeypatch.setattr(lane, constant, 3_600.0)
    monkeypatch.setattr(caller, "HANDSHAKE_SECONDS", PATIENCE_SECONDS)
    first, second = Node(1), Node(2)
    with running(first), running(second):
        first.mesh.set_peers([second.peer])
        wait_until(lambda: second.mesh.get_strangers().get("handshake_key") == 2)
        wait_until(lambda: all(one.roster.get_links()[0].failures for one in first.mesh._lanes))
        second.mesh.set_peers([first.peer])
        wait_until(lambda: first.get_status(second).is_connected)


def test_who_calls_is_called_back_though_its_refusal_was_not_noticed_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lane, "WATCH_SECONDS", 3_600.0)
    first, second = Node(1), Node(2)
    with running(first), running(second):
        first.mesh.set_peers([second.peer])
        found = [one.roster.get_links()[0] for one in first.mesh._lanes]
        wait_until(lambda: all(one.caller is not None and one.caller.is_closed for one in found))
        second.mesh.set_peers([first.peer])
        wait_until(lambda: first.get_status(second).is_connected)


def test_every_address_of_a_name_gets_its_turn_however_long_a_peer_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[str] = []

    class DeadCall:
        is_ready, is_closed, descriptor = False, True, -1

        def __init__(self, _keys: object, _key: bytes, host: str, *_: object) -> None:
            called.append(host)

        def watch(self, now: float) -> None:
            pass

        def close(self) -> None:
            pass

    monkeypatch.setattr(lane, "Caller", DeadCall)
    names = Names(lambda _: ("::1", "127.0.0.1"))
    mesh = Mesh(bytes(32), "127.0.0.1:0", NetworkConfig(), lambda *_: None, names=names)
    mesh.set_peers([replace(Node(2).peer, endpoint="a.example:5")])
    wait_until(lambda: names.get("a.example"))
    for turn in range(200):
        mesh._lanes[0]._watch_links(10.0 * turn)
    assert set(called[-2:]) == {"::1", "127.0.0.1"}


def test_a_lane_that_fails_again_and_again_pauses_and_can_be_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lane, "PAUSE_SECONDS", 3_600.0)
    first, failed = Node(1), list[float]()

    def fail() -> None:
        failed.append(1.0)
        raise ZeroDivisionError

    monkeypatch.setattr(first.mesh._lanes[0], "_end_what_is_over", fail)
    with running(first):
        wait_until(lambda: failed)
        for _ in range(9):
            first.mesh._lanes[0].wake()
    assert len(failed) == 1


def test_a_bug_in_a_decoder_loses_one_message_only(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Node(1), Node(2)
    decode = lane.decode_message

    def fail(data: bytes, number: wire.Lane) -> wire.Message:
        if data[0] == VOTE.kind:
            raise ZeroDivisionError
        return decode(data, number)

    monkeypatch.setattr(lane, "decode_message", fail)
    monkeypatch.setattr(lane, "PAUSE_SECONDS", 3_600.0)
    with running(first, second):
        first.mesh.broadcast(VOTE)
        first.mesh.broadcast(wire.BlockRequest(Hash(HASH)))
        wait_until(lambda: second.has(wire.BlockRequest(Hash(HASH))))


def test_a_bug_in_a_turn_does_not_end_the_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "PAUSE_SECONDS", 0.0)
    first, second = Node(1), Node(2)
    with running(first, second):
        thread = first.mesh._lanes[0]
        watch, failed = thread._watch_links, threading.Event()

        def fail_once(now: float) -> None:
            if not failed.is_set():
                failed.set()
                raise ZeroDivisionError
            watch(now)

        monkeypatch.setattr(thread, "_watch_links", fail_once)
        wait_until(failed.is_set)
        first.mesh.broadcast(VOTE)
        wait_until(lambda: second.has(VOTE))


def test_totals_keep_what_was_counted_of_a_peer_that_left() -> None:
    roster = Roster(NetworkConfig(queue_messages=1), bytes(32))
    peer = Peer(Address(b"\x01" * 20), b"\x02" * 32, "127.0.0.1:1")
    roster.set_peers([peer], 0.0)
    (link,) = roster.get_links()
    roster.add_fault(link, "vote_signature", 0.0)
    roster.add_stranger("handshake_key")
    for _ in range(3):
        roster.put(None, b"message", 0.0)
    expected = Totals(2, Counter({"vote_signature": 1, "handshake_key": 1}))
    assert roster.get_totals() == expected
    roster.set_peers([], 1.0)
    assert roster.get_totals() == expected
    roster.set_peers([peer], 2.0)
    assert roster.get_totals() == expected

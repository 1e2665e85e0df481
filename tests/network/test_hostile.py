"""Peers that break the rules, and strangers: what they send is dropped, all others are served."""

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from steelyard.chain.types import Height
from steelyard.node.clock import Clock
from steelyard.node.config import NetworkConfig
from steelyard.node.network import wire
from steelyard.node.network.endpoint import parse_endpoint
from steelyard.node.network.links import Peer
from steelyard.node.network.wire import Lane, encode_message

from .kit import Node, connected, running, wait_until
from .messages import EXAMPLES, HASH

VOTE = EXAMPLES[1]
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)


@contextlib.contextmanager
def attacked(**settings: Any) -> Iterator[tuple[Node, Node, Node]]:
    """A node, an honest peer and one that will not keep to the rules; its own mesh is not used."""
    node = Node(1, config=NetworkConfig(**settings))
    honest, hostile = Node(2), Node(3)
    with running(node, honest, hostile):
        yield node, honest, hostile


def check_alive(node: Node, honest: Node) -> None:
    """Both directions and lanes still work."""
    for message in (wire.BlockRequest(HASH), wire.SegmentRequest(Height(77))):
        node.received.clear()
        honest.mesh.broadcast(message)
        wait_until(lambda message=message: (honest.address, message) in list(node.received))  # type: ignore[misc]
        node.mesh.send(honest.address, message)
        wait_until(lambda message=message: honest.has(message))  # type: ignore[misc]


@pytest.mark.parametrize("lane", Lane)
def test_what_does_not_decode_is_dropped_and_counted(lane: Lane) -> None:
    frames = {
        b"": "message_empty",
        b"\0": "message_kind",
        b"\x01\xc0": "message_malformed" if lane == Lane.CONSENSUS else "message_lane",
        b"\x23" + bytes(80): "message_lane" if lane == Lane.CONSENSUS else "message_size",
    }
    with attacked() as (node, honest, hostile), connected(node, hostile.secret, lane) as sender:
        for frame in frames:
            sender.send(frame)
        for code in frames.values():
            wait_until(lambda code=code: node.count_refused(hostile, code) == 1)  # type: ignore[misc]
        assert not any(address == hostile.address for address, _ in node.received)
        check_alive(node, honest)


def test_frames_of_every_wrong_length_are_refused() -> None:
    whole = encode_message(VOTE)
    with attacked() as (node, honest, hostile), connected(node, hostile.secret) as sender:
        for link in node.mesh._lanes[Lane.CONSENSUS].roster.get_links():
            link.traffic.quota.faults.tokens = link.traffic.quota.faults.burst = 1_000
        for size in range(len(whole)):
            sender.send(whole[:size])
        sender.send(whole)
        wait_until(lambda: node.has(VOTE))
        assert sum(node.get_status(hostile).refused.values()) == len(whole)
        check_alive(node, honest)


def test_a_message_in_parts_is_refused() -> None:
    with attacked() as (node, honest, hostile), connected(node, hostile.secret) as sender:
        sender.send_multipart([encode_message(VOTE), encode_message(VOTE)])
        sender.send_multipart([b""] * 1_000)
        wait_until(lambda: node.count_refused(hostile, "message_parts") == 2)
        assert not node.received
        check_alive(node, honest)


def test_a_frame_above_the_limit_ends_the_connection() -> None:
    with attacked() as (node, honest, hostile), connected(node, hostile.secret) as sender:
        sender.send(bytes(wire.MAX_MESSAGE_BYTES[Lane.CONSENSUS] + 100))
        # What follows at once is lost with the connection; a new one is as good as ever.
        wait_until(lambda: sender.send(encode_message(VOTE)) is None and node.has(VOTE))
        check_alive(node, honest)


def test_a_peer_that_keeps_sending_garbage_is_muted_and_comes_back() -> None:
    seconds = [0.0]
    node = Node(1, clock=Clock(get_seconds=lambda: seconds[0]))
    honest, hostile = Node(2), Node(3)
    with running(node, honest, hostile):
        with connected(node, hostile.secret) as sender:
            for _ in range(17):
                sender.send(b"\0")
            wait_until(lambda: node.get_status(hostile).is_muted)
        assert node.count_refused(hostile, "message_kind") == 17
        with connected(node, hostile.secret):
            wait_until(lambda: node.count_refused(hostile, "handshake_quota"))
        check_alive(node, honest)
        seconds[0] = 61.0
        assert not node.get_status(hostile).is_muted
        with connected(node, hostile.secret) as sender:
            sender.send(encode_message(VOTE))
            wait_until(lambda: node.has(VOTE))


def test_whoever_finds_a_message_wrong_can_hold_it_against_its_sender() -> None:
    node, hostile = Node(1), Node(3)
    node.mesh.set_peers([hostile.peer])
    for _ in range(16):
        node.mesh.refuse(hostile.address, Lane.BULK, "blob_mismatch")
    assert not node.get_status(hostile).is_muted
    node.mesh.refuse(hostile.address, Lane.BULK, "blob_mismatch")
    assert node.get_status(hostile).is_muted
    assert node.count_refused(hostile, "blob_mismatch") == 17


def test_a_flood_of_a_known_peer_is_dropped_and_the_others_are_served() -> None:
    limits = {"messages_per_second": 20.0}
    with attacked(**limits) as (node, honest, hostile), connected(node, hostile.secret) as sender:
        frame = encode_message(VOTE)
        for _ in range(3_000):
            sender.send(frame)
        wait_until(lambda: node.count_refused(hostile, "message_quota") > 1_000)
        check_alive(node, honest)
        assert node.get_status(hostile).is_muted is False


def test_a_flood_counts_bytes_too() -> None:
    limits = {"bytes_per_second": 1}
    with attacked(**limits) as (node, honest, hostile), connected(node, hostile.secret) as sender:
        frame = encode_message(wire.BlockAnswer(EXAMPLES[7].block))  # type: ignore[union-attr]
        large = b"\x08" + bytes(4 * 2**20)
        for _ in range(3):
            sender.send(large)
        sender.send(frame)
        wait_until(lambda: node.count_refused(hostile, "message_quota") >= 1)
        check_alive(node, honest)


def test_an_unknown_key_is_refused_before_anything_is_read() -> None:
    with attacked() as (node, honest, _), connected(node, secrets.token_bytes(32)) as sender:
        sender.sndtimeo = 0
        wait_until(lambda: node.mesh.get_strangers().get("handshake_key"))
        assert not sender.poll(0, 2)  # never connected: nothing can be sent
        check_alive(node, honest)
        assert "message_key" not in node.mesh.get_strangers()


def test_a_wrong_server_key_connects_to_nobody() -> None:
    stranger = Node(9)
    with attacked() as (node, honest, hostile):
        wrong = connected(node, hostile.secret, server_key=stranger.peer.network_key)
        with wrong as sender:
            check_alive(node, honest)
            assert not sender.poll(0, 2)
        assert not any(address == hostile.address for address, _ in node.received)


def test_messages_of_a_revoked_key_on_an_open_connection_are_dropped() -> None:
    with attacked() as (node, honest, hostile), connected(node, hostile.secret) as sender:
        sender.send(encode_message(VOTE))
        wait_until(lambda: node.has(VOTE))
        node.received.clear()
        # The set changes between arrival and reading: the roster knows, the thread does not yet.
        roster = node.mesh._lanes[Lane.CONSENSUS].roster
        del roster._by_user[hostile.peer.network_key.hex()]
        sender.send(encode_message(VOTE))
        wait_until(lambda: node.mesh.get_strangers().get("message_key"))
        check_alive(node, honest)
        assert not any(address == hostile.address for address, _ in node.received)


def test_a_peer_that_left_the_set_loses_its_connections() -> None:
    with attacked() as (node, honest, hostile), connected(node, hostile.secret) as sender:
        sender.send(encode_message(VOTE))
        wait_until(lambda: node.has(VOTE))
        node.mesh.set_peers([honest.peer])
        wait_until(lambda: node.mesh.get_strangers().get("handshake_key"))  # it calls again
        check_alive(node, honest)


def open_raw(node: Node, lane: Lane = Lane.CONSENSUS) -> socket.socket:
    endpoint = parse_endpoint(node.mesh.endpoint)
    return socket.create_connection((endpoint.host, endpoint.ports[lane]), timeout=60)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 64,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        GREETING[:10],
        GREETING,
        GREETING.replace(b"CURVE", b"NULL\0"),
        GREETING + b"\x04\xc8\x05HELLO" + bytes(194),
        GREETING + b"\x04\x05\x05HELL",
        GREETING + b"\x06" + b"\xff" * 8,
        GREETING + b"\x02" + (2**62).to_bytes(8, "big"),
        b"\xff" * 4_096,
    ],
)
def test_raw_bytes_and_half_handshakes_do_no_harm(data: bytes) -> None:
    with attacked() as (node, honest, _):
        for lane in Lane:
            with open_raw(node, lane) as stranger:
                stranger.sendall(data)
                check_alive(node, honest)


def test_strangers_cannot_use_up_the_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelyard.node.network.connections.SPARE_CONNECTIONS", 4)
    with attacked() as (node, honest, _), contextlib.ExitStack() as stack:
        check_alive(node, honest)
        connections = node.mesh._lanes[Lane.CONSENSUS]._connections
        strangers = [stack.enter_context(open_raw(node)) for _ in range(30)]
        wait_until(lambda: connections.shut >= 10)
        assert len(connections.rows) <= 2 * 4 + 4
        for stranger in strangers[:5]:
            drain(stranger)
        check_alive(node, honest)


def drain(stranger: socket.socket) -> None:
    """Read to the end that the other side made; a time-out fails the test."""
    with contextlib.suppress(ConnectionError):
        while stranger.recv(4096):
            pass


def test_a_slow_reader_holds_up_nobody() -> None:
    slow = Node(1)
    sender, other = Node(2, config=NetworkConfig(queue_messages=10)), Node(3)
    with running(slow, sender, other):
        slow.gate.clear()
        request = wire.TransactionMessage(bytes(100_000))
        wait_until(
            lambda: (
                sender.mesh.send(slow.address, request) is None
                and sender.get_status(slow).dropped > 20
            )
        )
        check_alive(sender, other)
        slow.gate.set()
        check_alive(sender, slow)


def test_handshakes_of_one_peer_are_limited() -> None:
    clock = Clock(get_seconds=lambda: 0.0)
    node, hostile = Node(1, clock=clock), Node(3)
    node.mesh.set_peers([hostile.peer])
    roster = node.mesh._lanes[0].roster
    user = hostile.peer.network_key.hex()
    assert [roster.is_welcome(user, 0.0) for _ in range(9)] == [True] * 8 + [False]
    assert roster.is_welcome(user, 1.0)


def test_a_peer_does_not_lose_its_mute_by_moving() -> None:
    node, hostile = Node(1), Node(3)
    node.mesh.set_peers([hostile.peer])
    for _ in range(17):
        node.mesh.refuse(hostile.address, Lane.CONSENSUS, "vote_signature")
    node.mesh.set_peers([Peer(hostile.address, bytes(31) + b"\1", "127.0.0.1:5")])
    assert node.mesh.get_peers()[0].is_muted


@pytest.mark.slow
def test_memory_and_files_stay_bounded_under_floods() -> None:
    def count_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    with attacked() as (node, honest, hostile):
        check_alive(node, honest)
        before = count_files()
        for _ in range(300):
            with open_raw(node) as stranger:
                stranger.sendall(GREETING)
        with connected(node, hostile.secret) as sender:
            large = b"\x08" + bytes(4 * 2**20)
            sender.sndtimeo = 100

            def is_muted() -> bool:
                with contextlib.suppress(zmq.Again):
                    sender.send(large)
                return node.get_status(hostile).is_muted

            wait_until(is_muted)
        check_alive(node, honest)
        wait_until(lambda: count_files() <= before + 4)

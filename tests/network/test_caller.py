"""The calling side of CurveZMQ against those who answer wrongly. The right answers: test_mesh."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from nacl.bindings import crypto_box, crypto_box_keypair

from steelyard.node.keyfiles import compute_network_key
from steelyard.node.network import caller as module
from steelyard.node.network.caller import GREETING, HANDSHAKE_SECONDS, SILENCE_SECONDS, Caller
from steelyard.node.network.endpoint import parse_endpoint
from steelyard.node.network.wire import Lane

from .kit import Node, running, wait_until

SECRET = bytes(range(32))
KEYS = (SECRET, compute_network_key(SECRET))
SMALL_ORDER = (bytes(32), b"\1" + bytes(31))


def make_welcome(public: bytes, secret: bytes, hello: bytes, ephemeral: bytes) -> bytes:
    nonce = bytes(16)
    box = crypto_box(ephemeral + bytes(96), b"WELCOME-" + nonce, hello[80:112], secret)
    return b"\x04\xa8\x07WELCOME" + nonce + box


@contextlib.contextmanager
def answered(first: bytes, answer: Callable[[bytes, bytes, bytes], bytes]) -> Iterator[Caller]:
    """A caller whose peer sends `first` and, to its HELLO, `answer(public, secret, hello)`."""
    public, secret = crypto_box_keypair()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as peer:
                peer.sendall(first)
                got = b""
                while len(got) < len(GREETING) + 202:
                    data = peer.recv(4096)
                    if not data:
                        return
                    got += data
                peer.sendall(answer(public, secret, got[len(GREETING) + 2 :]))
                while peer.recv(4096):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        caller = Caller(KEYS, public, "127.0.0.1", listener.getsockname()[1], 0.0)
        try:
            yield caller
        finally:
            caller.close()
            thread.join()


def wait_for_end(caller: Caller) -> None:
    wait_until(lambda: caller.advance(0.0) or caller.is_closed)
    assert not caller.is_ready
    assert not caller.has_room


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_an_ephemeral_key_of_small_order_ends_one_connection_and_no_process(point: bytes) -> None:
    with answered(GREETING, lambda *one: make_welcome(*one, point)) as caller:
        wait_for_end(caller)


@pytest.mark.parametrize("key", [*SMALL_ORDER, b"\xff" * 32])
def test_a_peer_key_of_small_order_or_none_is_called_in_vain(key: bytes) -> None:
    public, _ = crypto_box_keypair()
    with answered(GREETING, lambda *one: make_welcome(*one, public)) as caller:
        caller._peer_key = key
        wait_for_end(caller)


@pytest.mark.parametrize(
    "answer",
    [
        b"\x04\x10\x05ERROR\x03400" + bytes(8),
        b"\x04\xa8\x07WELCOME" + bytes(160),
        b"\x04\x0a\x07WELCOME" + bytes(8),
        b"\x06" + b"\xff" * 8,
        b"\x00\xa8\x07WELCOME" + bytes(160),
        b"\x04\xa8\x05READY" + bytes(162),
        bytes(4_096),
    ],
)
def test_other_answers_to_a_hello_end_the_connection(answer: bytes) -> None:
    with answered(GREETING, lambda *_: answer) as caller:
        wait_for_end(caller)


@pytest.mark.parametrize(
    "greeting",
    [b"HTTP/1.1 400 Bad Request\r\n".ljust(64), bytes(64), GREETING.replace(b"CURVE", b"PLAIN")],
)
def test_other_greetings_end_the_connection(greeting: bytes) -> None:
    with answered(greeting, lambda *_: b"") as caller:
        wait_for_end(caller)


def test_nobody_waits_for_half_a_handshake() -> None:
    with answered(GREETING[:11], lambda *_: b"") as caller:
        caller.watch(HANDSHAKE_SECONDS - 1)
        assert not caller.is_closed
        caller.watch(HANDSHAKE_SECONDS)
        assert caller.is_closed


def call(target: Node, secret: bytes, now: float = 0.0) -> Caller:
    """A caller that is ready."""
    place = parse_endpoint(target.mesh.endpoint)
    keys = (secret, compute_network_key(secret))
    caller = Caller(keys, target.peer.network_key, place.host, place.ports[Lane.CONSENSUS], now)
    wait_until(lambda: caller.advance(now) or caller.is_ready)
    return caller


def test_a_peer_that_falls_silent_is_given_up() -> None:
    node, other = Node(1), Node(2)
    with running(node, other):
        caller = call(node, other.secret)
        caller.watch(SILENCE_SECONDS)
        assert caller.is_closed


def test_pings_are_answered() -> None:
    node, other = Node(1), Node(2)
    with running(node, other):
        caller = call(node, other.secret)
        caller.watch(module.PING_SECONDS)
        wait_until(lambda: caller.advance(7.0) or caller._heard_at == 7.0)
        caller.close()
        assert not node.mesh.get_peers()[0].refused


def test_a_message_that_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelyard.node.network.lane.KERNEL_BYTES", -38 * 2**20)
    node, hostile = Node(1), Node(3)
    with running(node, hostile):
        caller = call(node, hostile.secret)
        connections = node.mesh._lanes[Lane.CONSENSUS]._connections

        def is_cut() -> bool:
            if caller.has_room:
                caller._put_message(1, bytes(2**16))  # and more of it follows
            caller.advance(0.0)
            return bool(caller.is_closed and connections.shut)

        wait_until(is_cut)
        assert node.received == []

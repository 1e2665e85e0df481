"""Meshes on 127.0.0.1 that wait for what they expect, and clients that do not keep the rules."""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import zmq

from steelyard.chain.types import Address
from steelyard.node.clock import Clock
from steelyard.node.config import NetworkConfig
from steelyard.node.keyfiles import compute_network_key
from steelyard.node.network.endpoint import get_port, parse_endpoint
from steelyard.node.network.mesh import Mesh, Peer, PeerStatus
from steelyard.node.network.wire import Lane, Message

PATIENCE_SECONDS = 60.0


def wait_until(is_so: Callable[[], object]) -> None:
    """Ask again and again; a slow machine may take a minute."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen within a minute"
        time.sleep(0.002)


@dataclass
class Node:
    """One validator's mesh and all that came in. `gate` set: `on_message` does not wait."""

    number: int
    config: NetworkConfig = field(default_factory=NetworkConfig)
    clock: Clock = field(default_factory=Clock)
    listen: str = "127.0.0.1:0"
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    received: list[tuple[Address, Message]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    endpoint: str = ""

    def __post_init__(self) -> None:
        self.gate.set()
        self.mesh = Mesh(self.secret, self.listen, self.config, self.take, self.clock)

    @property
    def address(self) -> Address:
        return Address(bytes([self.number]) * 20)

    @property
    def peer(self) -> Peer:
        return Peer(self.address, compute_network_key(self.secret), self.mesh.endpoint)

    def take(self, peer: Peer, message: Message) -> None:
        assert self.gate.wait(PATIENCE_SECONDS)
        self.received.append((peer.address, message))

    def get_status(self, other: "Node") -> PeerStatus:
        return next(one for one in self.mesh.get_peers() if one.peer.address == other.address)

    def count_refused(self, other: "Node", code: str) -> int:
        return self.get_status(other).refused.get(code, 0)

    def has(self, message: Message) -> bool:
        return any(one == message for _, one in list(self.received))


@contextlib.contextmanager
def running(*nodes: Node) -> Iterator[None]:
    """Started, each with all the others as peers."""
    started: list[Node] = []
    try:
        for node in nodes:
            node.mesh.start()
            started.append(node)
        # Keys first: who calls before the other knows its key has to wait and call again.
        for node in nodes:
            node.mesh.set_peers([replace(one.peer, endpoint="") for one in nodes])
        for node in nodes:
            node.mesh.set_peers([one.peer for one in nodes])
        yield
    finally:
        for node in started:
            node.gate.set()
            node.mesh.stop()


@contextlib.contextmanager
def connected(
    target: Node, secret: bytes, lane: Lane = Lane.CONSENSUS, server_key: bytes = b""
) -> Iterator[Any]:
    """A bare socket that speaks CURVE with `secret` to one lane of `target`."""
    endpoint = parse_endpoint(target.mesh.endpoint)
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.curve_serverkey = server_key or target.peer.network_key
    socket.curve_secretkey, socket.curve_publickey = secret, compute_network_key(secret)
    socket.linger = 0
    socket.immediate = True
    socket.sndtimeo = int(PATIENCE_SECONDS * 1000)
    socket.connect(f"tcp://{endpoint.host}:{get_port(endpoint, lane)}")
    try:
        yield socket
    finally:
        context.destroy(linger=0)

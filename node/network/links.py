"""What one lane keeps for each peer: its queue, its quota, its counters and its socket."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

import zmq

from steelyard.chain.types import Address

from .endpoint import Endpoint
from .quota import Bucket, Quota

MAX_AGE_SECONDS: Final = 10.0
"""What waited longer for a peer is dropped: it was away, and will ask for what it missed."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another validator: account, X25519 key (32 bytes) and `host:port`, as Staking has them."""

    address: Address
    network_key: bytes
    endpoint: str


@dataclass(slots=True)
class Traffic:
    """Counted since the peer was first set; a new endpoint or key does not start it anew."""

    quota: Quota
    handshakes: Bucket
    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    dropped: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    seen_at: float | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """An encoded message in a queue. A frame shares its bytes with all other queues it is in."""

    frame: zmq.Frame
    size: int
    queued_at: float


@dataclass(eq=False, slots=True)
class Link:
    """One peer on one lane. `endpoint` is None if Staking's text names no place."""

    peer: Peer
    endpoint: Endpoint | None
    traffic: Traffic
    queue: deque[Waiting] = field(default_factory=deque)
    queued_bytes: int = 0
    socket: "zmq.Socket[bytes] | None" = None
    attempts: int = 0
    writable_at: float = 0.0
    """When something could last be sent, or the socket was made."""
    is_connected: bool = False

    @property
    def user(self) -> str:
        """The peer's key as ZeroMQ's User-Id."""
        return self.peer.network_key.hex()

    def put(self, waiting: Waiting, max_messages: int, max_bytes: int) -> None:
        """Queue it, and drop what waited longest if there is no room.

        What was asked for longest ago has most likely come from somebody else by now, and old
        votes matter least.
        """
        self.queue.append(waiting)
        self.queued_bytes += waiting.size
        while len(self.queue) > 1 and (
            len(self.queue) > max_messages or self.queued_bytes > max_bytes
        ):
            self.pop()
            self.traffic.dropped += 1

    def pop(self) -> Waiting:
        """Take the oldest one."""
        waiting = self.queue.popleft()
        self.queued_bytes -= waiting.size
        return waiting

    def get_next(self, now: float) -> Waiting | None:
        """Take the oldest one that is not too old."""
        while self.queue:
            waiting = self.pop()
            if now < waiting.queued_at + MAX_AGE_SECONDS:
                return waiting
            self.traffic.dropped += 1
        return None

    def put_back(self, waiting: Waiting) -> None:
        """Return what `get_next` gave and could not be sent."""
        self.queue.appendleft(waiting)
        self.queued_bytes += waiting.size

    def close(self) -> None:
        """Close the socket; what is in it is lost."""
        if self.socket is not None:
            self.socket.close(linger=0)
        self.socket, self.is_connected = None, False

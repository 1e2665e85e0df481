"""What one lane keeps for each peer: its queue, its quota, its counters and its connection."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from steelyard.chain.types import Address

from .caller import Caller
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
    pace: Quota
    """How much of what is patient we send: the rest of what it takes from us is for consensus."""
    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    dropped: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    seen_at: float | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """An encoded message in a queue; a broadcast one is in many queues and in memory once.

    One `is_patient` that users cause: consensus goes before it, and it never uses up what a peer
    takes from us. Else whoever hands much to a validator could silence its votes.
    """

    data: bytes
    queued_at: float
    is_patient: bool = False

    @property
    def size(self) -> int:
        return len(self.data)


@dataclass(eq=False, slots=True)
class Link:
    """One peer on one lane. `endpoint` is None if Staking's text names no place."""

    peer: Peer
    endpoint: Endpoint | None
    traffic: Traffic
    queue: deque[Waiting] = field(default_factory=deque)
    patient: deque[Waiting] = field(default_factory=deque)
    queued_bytes: int = 0
    caller: Caller | None = None
    failures: int = 0
    """Calls since the last one that was answered."""
    call_at: float = 0.0
    """Not to be called before."""

    @property
    def user(self) -> str:
        """The peer's key as ZeroMQ's User-Id."""
        return self.peer.network_key.hex()

    @property
    def is_connected(self) -> bool:
        return self.caller is not None and self.caller.is_ready

    def put(self, waiting: Waiting, max_messages: int, max_bytes: int) -> None:
        """Queue it, and drop what waited longest if there is no room, patient ones first.

        What was asked for longest ago has most likely come from somebody else by now, and old
        votes matter least.
        """
        (self.patient if waiting.is_patient else self.queue).append(waiting)
        self.queued_bytes += waiting.size
        while (count := len(self.queue) + len(self.patient)) > 1 and (
            count > max_messages or self.queued_bytes > max_bytes
        ):
            self._pop(self.patient or self.queue)
            self.traffic.dropped += 1

    def _pop(self, queue: deque[Waiting]) -> Waiting:
        """Take the oldest one."""
        waiting = queue.popleft()
        self.queued_bytes -= waiting.size
        return waiting

    def get_next(self, now: float) -> Waiting | None:
        """Take the oldest one that is not too old, and a patient one only if it is time for it."""
        for queue in (self.queue, self.patient):
            while queue and now >= queue[0].queued_at + MAX_AGE_SECONDS:
                self._pop(queue)
                self.traffic.dropped += 1
        if self.queue:
            return self._pop(self.queue)
        if self.patient and self.traffic.pace.has_room(self.patient[0].size, now):
            return self._pop(self.patient)
        return None

    def clear(self) -> None:
        """Forget all that waits."""
        self.queue.clear()
        self.patient.clear()
        self.queued_bytes = 0

    def close(self) -> None:
        """Hang up; what was not sent is lost."""
        if self.caller is not None:
            self.caller.close()
        self.caller = None

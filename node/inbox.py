"""What other validators send to the driver: a queue that nobody can fill at another's cost.

Each kind of message has its own room, so that a flood of votes displaces no proposal, and one of
requests no certificate. What finds no room is dropped and counted; consensus repeats what matters.
The network has checked who sends, not what they say: who sent a message stays with it, to be told
of if it turns out to be wrong.
"""

import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from steelyard.chain.block import Block
from steelyard.chain.consensus.certificates import Certificate
from steelyard.chain.consensus.messages import CertificateReceived, VoteReceived
from steelyard.chain.consensus.votes import Vote
from steelyard.chain.types import Address, Epoch, Hash, Height, View


@dataclass(frozen=True, slots=True)
class Arrival:
    """A leader's block and its vote for it."""

    block: Block
    vote: Vote


@dataclass(frozen=True, slots=True)
class BlockAnswered:
    """A block that we asked for, perhaps."""

    block: Block


@dataclass(frozen=True, slots=True)
class BlockWanted:
    """Somebody asks for a block."""

    hash: Hash
    address: Address


@dataclass(frozen=True, slots=True)
class CertificatesWanted:
    """Somebody asks for the certificates of `view` and later."""

    epoch: Epoch
    view: View
    address: Address


@dataclass(frozen=True, slots=True)
class PlaceHeard:
    """What a validator says of itself: the height of its finalized head, its epoch and view."""

    address: Address
    height: Height
    epoch: Epoch
    view: View


@dataclass(frozen=True, slots=True)
class Segment:
    """Final blocks of one epoch, oldest first, and the finalization of the last.

    `source` names who sent them, for the log. Blocks that we have may come first.
    """

    blocks: tuple[Block, ...]
    certificate: Certificate
    source: str


Incoming: TypeAlias = (
    VoteReceived
    | CertificateReceived
    | Arrival
    | BlockAnswered
    | BlockWanted
    | CertificatesWanted
    | PlaceHeard
    | Segment
)

ROOM: Final[Mapping[type, int]] = {
    VoteReceived: 4_096,
    CertificateReceived: 1_024,
    Arrival: 32,
    BlockAnswered: 32,
    BlockWanted: 256,
    CertificatesWanted: 256,
    PlaceHeard: 512,
    Segment: 2,
}
"""Most messages of a kind that wait. A block has up to 4 MiB, a segment more."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message and the validator that answers for it; None if none does."""

    message: Incoming
    sender: Address | None = None


class Inbox:
    """First come, first served. Thread-safe; `condition` is notified of every message."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.dropped: Counter[str] = Counter()
        """Messages that found no room, by kind."""
        self._messages: deque[Delivery] = deque()
        self._waiting: Counter[type] = Counter()

    def put(self, message: Incoming, sender: Address | None = None) -> None:
        """Queue a message, or drop it if its kind has no room."""
        kind = type(message)
        with self.condition:
            if self._waiting[kind] >= ROOM[kind]:
                self.dropped[kind.__name__] += 1
                return
            self._waiting[kind] += 1
            self._messages.append(Delivery(message, sender))
            self.condition.notify_all()

    def take(self) -> Delivery | None:
        """The next message and who sent it, or None."""
        with self.condition:
            if not self._messages:
                return None
            delivery = self._messages.popleft()
            self._waiting[type(delivery.message)] -= 1
            return delivery

    def count_dropped(self) -> Counter[str]:
        """A copy of `dropped`, from any thread."""
        with self.condition:
            return self.dropped.copy()

    def is_empty(self) -> bool:
        return not self._messages

"""Asking for blocks and certificates that consensus misses, a few validators at a time.

One thread owns a `Requests`, but `is_expected` may be called from any. Methods return the messages
to send. The consensus machine asks again itself for what does not come, so nothing is kept long.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from steelyard.chain.types import Address, Epoch, Hash, View

from .outgoing import Outgoing
from .wire import BlockRequest, CertificatesRequest

NEXT_SECONDS: Final = 0.25
"""After so long without an answer the next holder is asked for the block."""
GIVE_UP_SECONDS: Final = 30.0
MAX_BLOCKS: Final = 256
"""Blocks asked for at once; the oldest questions go first."""
ASKED_FOR_CERTIFICATES: Final = 3
"""Validators asked at once: each may answer with many."""


@dataclass(slots=True)
class Question:
    """A block that is asked for; `turn` counts the holders asked so far."""

    holders: tuple[Address, ...]
    turn: int
    next_at: float
    until: float


class Requests:
    """See the module."""

    def __init__(self) -> None:
        self._questions: dict[Hash, Question] = {}
        self._peers: dict[Address, int] = {}
        self._turn = 0

    def set_peers(self, peers: Iterable[Address]) -> None:
        """All that may be asked, the likeliest to answer first."""
        self._peers = {peer: rank for rank, peer in enumerate(peers)}

    def fetch_block(
        self, block_hash: Hash, holders: Iterable[Address], now: float
    ) -> list[Outgoing]:
        """Ask the likeliest holder, then the next ones; all others after them."""
        known = self._questions.pop(block_hash, None)
        turn, next_at = (0, now) if known is None else (known.turn, known.next_at)
        question = Question(tuple(holders), turn, next_at, now + GIVE_UP_SECONDS)
        self._questions[block_hash] = question
        while len(self._questions) > MAX_BLOCKS:
            del self._questions[next(iter(self._questions))]
        return self._ask(block_hash, question, now)

    def is_expected(self, block_hash: Hash) -> bool:
        return block_hash in self._questions

    def is_asking(self) -> bool:
        """Is any block expected? From any thread."""
        return bool(self._questions)

    def on_block(self, block_hash: Hash) -> None:
        """It came."""
        self._questions.pop(block_hash, None)

    def fetch_certificates(self, epoch: Epoch, view: View) -> list[Outgoing]:
        """Ask some, other ones each time."""
        peers = tuple(self._peers)
        if not peers:
            return []
        count = min(ASKED_FOR_CERTIFICATES, len(peers))
        places = [(self._turn + i) % len(peers) for i in range(count)]
        self._turn += count
        return [(peers[place], CertificatesRequest(epoch, view)) for place in places]

    def tick(self, now: float) -> list[Outgoing]:
        """Several times a second: asks the next holders."""
        for block_hash in [one for one, asked in self._questions.items() if asked.until <= now]:
            del self._questions[block_hash]
        return [
            sending
            for block_hash, question in self._questions.items()
            for sending in self._ask(block_hash, question, now)
        ]

    def _ask(self, block_hash: Hash, question: Question, now: float) -> list[Outgoing]:
        order = sorted(self._peers, key=lambda peer: peer not in question.holders)
        if now < question.next_at or not order:
            return []
        address = order[question.turn % len(order)]
        question.turn += 1
        question.next_at = now + NEXT_SECONDS
        return [(address, BlockRequest(block_hash))]

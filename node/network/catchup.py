"""Catching up: finalized blocks by height with a certificate, from validators that are ahead.

We are behind when we do not reach a height that another one had within LAG_SECONDS: consensus
itself is given that long. A segment is verified here (links, and a finalization of its last block
by the set of its epoch), so whoever sends a wrong one is known; the driver executes it. While it
does, the next one is fetched and kept, up to the end of the epoch: the set after it is known only
once the boundary block has been executed.

What a validator says of its height is only a reason to ask it. If it then has nothing it is left
alone for a while, the longer the more often; so a liar costs a question now and then.

Sans-IO. One thread owns a `CatchUp`; methods return the messages to send.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from steelyard.chain.block import Header
from steelyard.chain.epochs import EpochSet, compute_epoch
from steelyard.chain.errors import SteelyardError
from steelyard.chain.following import check_segment
from steelyard.chain.types import Address, Domain, Epoch, Height

from ..inbox import Segment
from ..logs import log_event
from .outgoing import Outgoing
from .wire import SegmentAnswer, SegmentRequest

LAG_SECONDS: Final = 1.5
ANSWER_SECONDS: Final = 5.0
"""A segment is at most a few megabytes."""
SLOW_SECONDS: Final = 1.0
"""Whoever took longer for its last answer is asked after the others: it may do so on purpose."""
IMPORT_SECONDS: Final = 60.0
"""If the driver finalizes nothing for so long of what it was given, it is fetched again."""
CLOSE_ENOUGH: Final = 2
"""Blocks that consensus is left to catch up with by itself."""
REST_SECONDS: Final = (1.0, 2.0, 5.0, 10.0, 30.0, 120.0)
LIAR_SECONDS: Final = 600.0


@dataclass(slots=True)
class Source:
    """What another validator says of its head, and how it kept its word."""

    height: int = 0
    is_connected: bool = False
    failures: int = 0
    rests_until: float = float("-inf")
    asked_at: float = float("-inf")
    is_slow: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """The segment that was asked for, of whom, and until when we wait."""

    source: Address
    height: int
    until: float


@dataclass(slots=True)
class CatchUpCounters:
    """Totals since the start."""

    segments_wrong: int = 0
    segments_unasked: int = 0
    segment_timeouts: int = 0


class CatchUp:
    """See the module."""

    def __init__(
        self, domain: Domain, epoch_blocks: int, blame: Callable[[Address, str], None]
    ) -> None:
        """`blame` learns who sent a wrong segment."""
        self._domain, self._epoch_blocks, self._blame = domain, epoch_blocks, blame
        self._sources: dict[Address, Source] = {}
        self._sets: dict[Epoch, EpochSet] = {}
        self._head: Header | None = None
        self._tip: Header | None = None
        """The last verified block: the head, or one that is not final here yet."""
        self._given_height = 0
        self._given_at = 0.0
        self._ready: Segment | None = None
        """Verified, while the driver still has the one before."""
        self._question: Question | None = None
        self._answered: Question | None = None
        """The last one whose answer came in, right or wrong."""
        self._watched: tuple[int, float] | None = None
        """A height that another one has, and since when we know."""
        self.target: Height | None = None
        """Where the others are, while we are behind."""
        self.counters = CatchUpCounters()

    # -- what is known -----------------------------------------------------------------------------
    def set_peers(self, peers: Iterable[Address]) -> None:
        """Those that may be asked."""
        self._sources = {peer: self._sources.get(peer) or Source() for peer in peers}

    def set_place(self, head: Header, sets: Iterable[EpochSet], now: float) -> None:
        """Our finalized head, and the sets that are known."""
        self._sets = {one.epoch: one for one in sets}
        if self._head is None or head.height > self._head.height:
            self._given_at = now
        self._head = head
        if self._tip is None or head.height >= self._tip.height:
            self._tip, self._ready = head, None

    def on_status(self, peer: Address, height: int) -> None:
        """Where a validator says it is."""
        if peer in self._sources:
            self._sources[peer].height = height

    def set_connected(self, peer: Address, *, is_connected: bool) -> None:
        if peer in self._sources:
            self._sources[peer].is_connected = is_connected

    def has_expected(self, peer: Address) -> bool:
        """Is an answer of this validator due? Once for each question. Called on another thread."""
        asked = self._question
        is_due = asked is not None and asked.source == peer and asked is not self._answered
        if is_due:
            self._answered = asked
        return is_due

    # -- answers -----------------------------------------------------------------------------------
    def on_segment(self, peer: Address, answer: SegmentAnswer, now: float) -> None:
        """Keep the segment that was asked for, if it is right; see `take_segment`."""
        asked, tip = self._question, self._tip
        height = answer.blocks[0].height
        if asked is None or tip is None or (asked.source, asked.height) != (peer, height):
            self.counters.segments_unasked += 1
            return
        self._question = None
        if asked.height != tip.height + 1:
            return  # consensus was faster
        current = self._sets[compute_epoch(asked.height, self._epoch_blocks)]
        try:
            check_segment(tip, answer.blocks, answer.certificate, current, self._domain)
        except SteelyardError as error:
            self.counters.segments_wrong += 1
            log_event("segment_wrong", peer=peer, height=asked.height, code=error.code)
            self._blame(peer, "segment_wrong")
            self._sources[peer].rests_until = now + LIAR_SECONDS
            self._sources[peer].failures += 1
            return
        source = self._sources[peer]
        source.failures, source.is_slow = 0, now - source.asked_at > SLOW_SECONDS
        self._tip = answer.blocks[-1].header
        self._ready = Segment(answer.blocks, answer.certificate, f"0x{peer.hex()}")

    def take_segment(self, now: float) -> Segment | None:
        """The next segment for the driver, once it has made the one before final."""
        ready = self._ready
        if ready is None or self._head is None or self._head.height < self._given_height:
            return None
        self._ready = None
        self._given_height, self._given_at = ready.blocks[-1].height, now
        return ready

    def on_absent(self, peer: Address, height: int, now: float) -> None:
        """It lacks what its status promised."""
        asked = self._question
        if asked is not None and (asked.source, asked.height) == (peer, height):
            self._fail(asked, now)

    def _fail(self, asked: Question, now: float) -> None:
        self._question = None
        source = self._sources.get(asked.source)
        if source is not None:
            source.rests_until = now + REST_SECONDS[min(source.failures, len(REST_SECONDS) - 1)]
            source.failures += 1

    # -- turns -------------------------------------------------------------------------------------
    def tick(self, now: float) -> list[Outgoing]:
        """Several times a second: looks whether we are behind, and asks for the next segment."""
        if self._head is None or self._tip is None:
            return []
        asked = self._question
        if asked is not None and (now >= asked.until or asked.source not in self._sources):
            self.counters.segment_timeouts += 1
            self._fail(asked, now)
        is_late = now - self._given_at > IMPORT_SECONDS
        if self._given_height > self._head.height and is_late:
            self._given_height, self._tip, self._ready = 0, self._head, None
        self._look(self._head.height, now)
        if self.target is None or self._question is not None or self._ready is not None:
            return []
        return self._ask(self._tip.height + 1, now)

    def _look(self, height: int, now: float) -> None:
        """Set `target` while we are behind."""
        best = max((one.height for one in self._sources.values() if is_usable(one, now)), default=0)
        if best <= height:
            self._watched = self.target = None
        elif self._watched is None or height >= self._watched[0]:
            is_close = self.target is None or best - height <= CLOSE_ENOUGH
            self._watched = (best, now if is_close else float("-inf"))
        if self._watched is not None:
            is_behind = now - self._watched[1] >= LAG_SECONDS
            self.target = Height(best) if is_behind else None

    def _ask(self, height: int, now: float) -> list[Outgoing]:
        """Of those that say they have it, the one that failed least, is not slow and was asked
        longest ago."""
        candidates = [
            (one.failures, one.is_slow, one.asked_at, address)
            for address, one in self._sources.items()
            if one.height >= height and is_usable(one, now)
        ]
        if not candidates or compute_epoch(height, self._epoch_blocks) not in self._sets:
            return []
        address = min(candidates)[-1]
        self._sources[address].asked_at = now
        self._question = Question(address, height, now + ANSWER_SECONDS)
        return [(address, SegmentRequest(Height(height)))]


def is_usable(source: Source, now: float) -> bool:
    """Connected, and not being left alone."""
    return source.is_connected and source.rests_until <= now

"""The thread that keeps a node at the head of the chain when the validators' mesh does not.

It asks the sources for their heads, fetches segments, verifies each against the validator set of
its epoch, and hands it to the driver, which executes and commits. What a source sends is wrong or
right by the chain's own rules, so any mixture of liars is survived as long as one source is honest.

A full node follows all the time. A validator follows only when its own head stands still while the
sources go on: else it would run ahead of its own consensus.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from steelyard.chain.block import Block, Header
from steelyard.chain.epochs import EpochSet, compute_epoch
from steelyard.chain.errors import SteelyardError
from steelyard.chain.following import check_checkpoint_age, check_segment
from steelyard.chain.genesis import Genesis
from steelyard.chain.segments import (
    MAX_SEGMENT_BYTES,
    FinalBlocks,
    InvalidSegment,
    decode_segment,
)
from steelyard.chain.transactions import decode_transaction
from steelyard.chain.types import BlobName, Hash

from ..blobs import BlobStore
from ..calls import start_thread
from ..clock import Clock
from ..config import FollowConfig
from ..inbox import Segment
from ..logs import log_alarm, log_event
from ..records import FollowingStatus
from ..store import ChainStore
from .fetcher import Fetcher, Stopped
from .fetching import fetch_blob
from .sources import Source, Sources, TooLarge
from .together import TogetherFetch

SEGMENT_SECONDS: Final = 60.0
PROGRESS_SECONDS: Final = 5.0
STUCK_SECONDS: Final = 30.0
"""The driver did nothing with a segment for so long, and a second for each block, which it executes
before any of them counts: it is handed over again."""
PATIENCE_SECONDS: Final = 10.0
"""A validator's head may stand still behind a source for so long before it is helped."""
BLOB_PAUSE_SECONDS: Final = 5.0
"""Before a blob is looked for again that no source had."""
MAX_WANTED: Final = 1_024
WANTED_SECONDS: Final = 600.0
"""A blob that the driver did not ask for again for so long is no longer looked for."""


@dataclass(slots=True)
class Wanted:
    """A blob that the driver needs: when it was asked for last, and when to look again."""

    asked_at: float
    next_at: float = float("-inf")


class Stuck(Exception):
    """The driver did not take what was handed over; begin again from the head."""


@dataclass(frozen=True, slots=True)
class FollowerParts:
    """What a follower works with. `is_member`: does this node vote in the current epoch?"""

    genesis: Genesis
    config: FollowConfig
    store: ChainStore
    blobs: BlobStore
    deliver: Callable[[Segment], None]
    wake: Callable[[], None]
    is_member: Callable[[], bool]
    clock: Clock

    @property
    def genesis_hash(self) -> Hash:
        """Of block 0, which names the chain."""
        genesis_hash = self.store.get_hash(0)
        assert genesis_hash is not None, "a store is initialised before it is followed with"
        return genesis_hash


class Follower:
    """`start`, then `stop`. The other methods are for any thread."""

    def __init__(self, parts: FollowerParts) -> None:
        """Raises SteelyardError follow_url."""
        self._parts = parts
        self._fetcher = Fetcher()
        self._sources = Sources(
            parts.config.nodes, self._fetcher, parts.genesis_hash, parts.clock.get_seconds
        )
        self._condition = threading.Condition()
        self._wanted: dict[BlobName, Wanted] = {}
        self._thread: threading.Thread | None = None
        self._target = 0
        self._refusal: str | None = None
        self._told_at = float("-inf")
        self._behind_at: tuple[int, float] | None = None

    # -- from other threads ------------------------------------------------------------------------
    def start(self) -> None:
        self._thread = start_thread("follower", self._run)

    def stop(self) -> None:
        """End what is under way, and wait for the thread."""
        self._fetcher.stop()
        with self._condition:
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join()
        else:
            self._fetcher.close()

    def on_final(self, _header: Header, _transactions: int) -> None:
        """A block became final: perhaps the one that the thread waits for."""
        with self._condition:
            self._condition.notify_all()

    def fetch_blobs(self, names: tuple[BlobName, ...]) -> None:
        """Look for blobs that a block needs; the driver is woken when one is on disk."""
        now = self._parts.clock.get_seconds()
        with self._condition:
            for name in names:
                if name in self._wanted:
                    self._wanted[name].asked_at = now
                elif len(self._wanted) < MAX_WANTED:
                    self._wanted[name] = Wanted(now)
            self._condition.notify_all()

    def get_status(self) -> FollowingStatus:
        """For /health and `node status`."""
        height = self._parts.store.get_head().height
        return FollowingStatus(
            target=self._target,
            behind=max(self._target - height, 0),
            refusal=self._refusal,
            missing_blobs=len(self._wanted),
            sources={one.url: self._sources.describe(one) for one in self._sources.all},
        )

    # -- the thread --------------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            while True:
                try:
                    self._turn()
                except (Stuck, SteelyardError) as error:
                    log_event("following_interrupted", reason=str(error))
                except Stopped:
                    raise
                except Exception as error:
                    # Ours to fix; a full node that stops following would be worse.
                    log_alarm("follower_failed", trace=True, error=repr(error))
                self._pause(self._parts.config.interval_seconds)
        except Stopped:
            pass
        finally:
            self._fetcher.close()

    def _pause(self, seconds: float) -> None:
        """Wait, unless a blob is wanted. Raises Stopped."""
        with self._condition:
            self._fetcher.check()
            if not self._get_due():
                self._condition.wait(seconds)
        self._fetcher.check()

    def _turn(self) -> None:
        """Look, and catch up as far as the best source goes. Raises Stopped, Stuck."""
        head = self._parts.store.get_head()
        self._refusal = self._find_refusal(head)
        if self._refusal is not None:
            return
        source = self._sources.look()
        self._fetch_wanted()
        if source is None or source.head is None:
            return
        self._target = source.head.height
        if self._is_behind(head):
            self._advance(source, head)

    def _find_refusal(self, head: Header) -> str | None:
        """Why following from this head would trust validators that may have left long ago."""
        if self._parts.config.trust_old_head:
            return None
        now = int(self._parts.clock.get_unix_seconds())
        try:
            check_checkpoint_age(head, now, self._parts.genesis.unbonding_seconds)
        except InvalidSegment as error:
            if self._refusal is None:
                log_alarm("following_refused", code=error.code, message=error.message)
            return error.code
        return None

    def _is_behind(self, head: Header) -> bool:
        """Is there something to fetch, and is it ours to fetch it?"""
        if head.height >= self._target:
            self._behind_at = None
            return False
        now = self._parts.clock.get_seconds()
        if self._behind_at is None or self._behind_at[0] != head.height:
            self._behind_at = head.height, now
        return not self._parts.is_member() or now - self._behind_at[1] >= PATIENCE_SECONDS

    def _advance(self, source: Source, tip: Header) -> None:
        """Fetch from one source while the driver executes what came before."""
        while source.head is not None and tip.height < source.head.height:
            current = self._find_set(tip)
            try:
                segment = self._fetch_segment(source, tip, current)
            except SteelyardError as error:
                self._sources.set_aside(source, error)
                break
            self._sources.praise(source)
            self._fetch_declared(segment)
            self._wait_for(tip)
            self._parts.deliver(Segment(segment.blocks, segment.certificate, source.url))
            tip = segment.blocks[-1].header
            self._tell(tip)
        self._wait_for(tip)

    def _find_set(self, tip: Header) -> EpochSet:
        """The validators that decide the block after `tip`; known once the boundary is final."""
        epoch = compute_epoch(tip.height + 1, self._parts.genesis.epoch_blocks)
        found = self._parts.store.find_epoch_set(epoch)
        if found is None:
            self._wait_for(tip)
            found = self._parts.store.get_epoch_set(epoch)
        return found

    def _fetch_segment(self, source: Source, tip: Header, current: EpochSet) -> FinalBlocks:
        """The next blocks, verified. Raises SteelyardError for whatever is wrong with them."""
        path = f"/chain/segments/{tip.height + 1}"
        try:
            data = self._sources.get(source, path, MAX_SEGMENT_BYTES, SEGMENT_SECONDS)
            segment = decode_segment(data)
        except TooLarge:
            segment = TogetherFetch(self._sources, source, self._parts.genesis).run(tip, current)
        check_segment(tip, segment.blocks, segment.certificate, current, self._parts.genesis.domain)
        return segment

    def _wait_for(self, tip: Header) -> None:
        """Until the driver made `tip` final, fetching what it lacks. Raises Stuck, Stopped."""
        height, deadline = -1, 0.0
        while True:
            head = self._parts.store.get_head()
            if head.height >= tip.height:
                return
            now = self._parts.clock.get_seconds()
            if head.height != height:
                height = head.height
                deadline = now + STUCK_SECONDS + tip.height - height
            if now >= deadline:
                raise Stuck(f"block {height + 1} does not become final here")
            if not self._fetch_wanted():
                self._pause(min(1.0, deadline - now))

    def _tell(self, tip: Header) -> None:
        now = self._parts.clock.get_seconds()
        if now >= self._told_at + PROGRESS_SECONDS:
            self._told_at = now
            log_event("following", height=tip.height, target=self._target)

    # -- blobs -------------------------------------------------------------------------------------
    def _fetch_declared(self, segment: FinalBlocks) -> None:
        """The blobs that these blocks carry, so that the driver need not wait, and clients find
        them here. One that nobody has any more is no reason to wait: perhaps nothing reads it."""
        for name in list_declared(segment.blocks):
            if not self._parts.blobs.has(name):
                self._fetch_blob(name)

    def _get_due(self) -> list[BlobName]:
        now = self._parts.clock.get_seconds()
        for name in [
            name for name, one in self._wanted.items() if now > one.asked_at + WANTED_SECONDS
        ]:
            del self._wanted[name]
        return [name for name, one in self._wanted.items() if one.next_at <= now]

    def _fetch_wanted(self) -> bool:
        """Look for the blobs that the driver lacks. Did one come?"""
        with self._condition:
            due = self._get_due()
        came = False
        for name in due:
            is_here = self._parts.blobs.has(name) or self._fetch_blob(name)
            came = came or is_here
            with self._condition:
                if is_here:
                    self._wanted.pop(name, None)
                elif name in self._wanted:
                    now = self._parts.clock.get_seconds()
                    self._wanted[name].next_at = now + BLOB_PAUSE_SECONDS
        if came:
            self._parts.wake()
        return came

    def _fetch_blob(self, name: BlobName) -> bool:
        """Ask every source that may be asked. Raises Stopped, StorageFull."""
        data = fetch_blob(self._sources, name)
        if data is None:
            return False
        self._parts.blobs.put(name, data)
        return True


def list_declared(blocks: tuple[Block, ...]) -> tuple[BlobName, ...]:
    """The blobs that these blocks carry. Their bodies are those of final headers."""
    names = [
        name
        for block in blocks
        for raw in block.transactions
        for name in decode_transaction(raw).blobs
    ]
    return tuple(dict.fromkeys(names))

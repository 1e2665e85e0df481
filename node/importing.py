"""Making blocks final here: those of our own machine, and segments that others made final.

A final block is never refused for what we lack: it waits until the blobs that it reads are here,
and whatever came after it waits behind it. Segments are checked again before they are executed,
though the network side did: our head may have moved, it costs one signature check, and this is the
only door to the disk.
"""

from collections import deque
from typing import Final

from steelyard.chain.consensus.messages import Finalize
from steelyard.chain.errors import InvalidBlock, SteelyardError, UnavailableBlob
from steelyard.chain.following import check_segment
from steelyard.chain.types import Address, BlobName

from .inbox import Segment
from .journal import Journal
from .logs import log_event
from .outbox import Outbox
from .parts import Parts
from .records import Alarm
from .tree import BlockTree, get_candidate
from .voting import Voter

RETRY_SECONDS: Final = 0.5
"""Pause before looking again for what was not here, unless it comes."""
PATIENCE_SECONDS: Final = 10.0
"""A final block that waits longer for a blob is an alarm."""


class ForkOrBug(RuntimeError):
    """A block that a quorum made final breaks a rule here. Nothing more may be signed."""

    code = "fork_or_bug"

    def __init__(self, error: InvalidBlock) -> None:
        self.message = (
            f"a final block is invalid here ({error.code}: {error.message}): either a third of the "
            "validators cheated or this node computes something else; compare with other nodes"
        )
        super().__init__(f"{self.code}: {self.message}")


class Importer:
    """The way of final blocks to the disk, in one session."""

    def __init__(
        self, parts: Parts, outbox: Outbox, voter: Voter, tree: BlockTree, journal: Journal
    ) -> None:
        self._parts, self._outbox, self._voter = parts, outbox, voter
        self._tree, self._journal = tree, journal
        self._holders: tuple[Address, ...] = tuple(
            member.address for member in tree.current.members if member.address != parts.address
        )
        self._backlog: deque[Finalize] = deque()
        self._segment: Segment | None = None
        self._since: float | None = None
        self.retry_at: float | None = None
        """When what waits is tried again; None if nothing does."""
        self.has_imported = False
        """Blocks became final past our machine: it must be made anew."""

    def finalize(self, effect: Finalize) -> None:
        """Make blocks of our machine final, now or later. Raises StorageFull, ForkOrBug, …."""
        self._backlog.append(effect)
        self.work()

    def take(self, segment: Segment) -> None:
        """Make other's final blocks final here, now or later; refuse what does not follow ours."""
        head, epoch_set = self._tree.root, self._tree.current
        blocks = tuple(block for block in segment.blocks if block.height > head.height)
        if not blocks or self._segment is not None:
            return
        try:
            domain = self._parts.rules.domain
            check_segment(head, blocks, segment.certificate, epoch_set, domain)
        except SteelyardError as error:
            log_event(
                "segment_refused", source=segment.source, code=error.code, message=error.message
            )
            return
        for block in blocks:
            self._tree.add(block, None)
        self._segment = Segment(blocks, segment.certificate, segment.source)
        self.work()

    def work(self) -> None:
        """Make final whatever can be. Raises StorageFull, CorruptData, ForkOrBug."""
        try:
            while self._backlog:
                self._commit(self._backlog[0])
                self._backlog.popleft()
            if self._segment is not None:
                self._import(self._segment)
                self._segment = None
        except UnavailableBlob:
            self._wait_for(self._tree.take_missing())
            return
        except InvalidBlock as error:
            raise ForkOrBug(error) from error
        self._since = self.retry_at = None

    def is_waiting(self) -> bool:
        """Does a final block wait for its blobs?"""
        return self.retry_at is not None

    def find_alarm(self) -> Alarm | None:
        """What a person should know, if it waits for long."""
        now = self._parts.clock.get_seconds()
        if self._since is None or now - self._since < PATIENCE_SECONDS:
            return None
        return Alarm("blob_unavailable", "a final block reads blobs that no peer has sent yet")

    def _import(self, segment: Segment) -> None:
        blocks = [block for block in segment.blocks if block.height > self._tree.root.height]
        if blocks:
            candidates = tuple(get_candidate(block) for block in blocks)
            self._commit(Finalize(candidates, segment.certificate))
            self._voter.follow((segment.certificate.epoch, segment.certificate.view))
            self.has_imported = True

    def _commit(self, effect: Finalize) -> None:
        declared = self._execute(effect)
        self._parts.finalizer.finalize(effect, self._tree, self._journal)
        self._parts.progress.final_at = self._parts.clock.get_seconds()
        absent = tuple(name for name in declared if not self._parts.blobs.has(name))
        if absent:  # not needed to go on, but clients will ask us for them
            self._outbox.fetch_blobs(absent, self._holders)

    def _execute(self, effect: Finalize) -> list[BlobName]:
        """Execute what never was. Returns what the blocks declare."""
        return [name for one in effect.blocks for name in self._tree.execute(one.hash).declared]

    def _wait_for(self, names: tuple[BlobName, ...]) -> None:
        """Keep on disk what leads here, ask for the blobs, look again later."""
        now = self._parts.clock.get_seconds()
        self._journal.flush()
        self._since = now if self._since is None else self._since
        self.retry_at = now + RETRY_SECONDS
        log_event("final_block_waits", blobs=len(names))
        self._outbox.fetch_blobs(names, self._holders)

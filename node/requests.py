"""What consensus asks for that takes long: build a block, or execute another one's.

A request is served when no event waits. One that lacks a blob, or whose block is ahead of our
clock, is set aside and tried again until its view is over: that is no reason to reject it, and none
to keep the rest waiting.
"""

from typing import Final, TypeAlias

from steelyard.chain.block import Block, encode_block
from steelyard.chain.consensus.messages import (
    BlockBuilt,
    BlockRejected,
    BlockValidated,
    Event,
    Propose,
    Validate,
)
from steelyard.chain.errors import InvalidBlock, UnavailableBlob
from steelyard.chain.execute import Outcome
from steelyard.chain.params import MAX_CLOCK_LEAD_SECONDS
from steelyard.chain.trie import MissingState
from steelyard.chain.types import Address, View

from .directory import check_space
from .journal import BLOCK, Journal
from .logs import log_alarm, log_event
from .outbox import Outbox
from .parts import Parts
from .store import CorruptData, StorageFull
from .tree import BlockTree, get_candidate

Request: TypeAlias = Propose | Validate
RETRY_SECONDS: Final = 0.5


class Requests:
    """At most one at a time: consensus asks once in a view."""

    def __init__(self, parts: Parts, outbox: Outbox, tree: BlockTree, journal: Journal) -> None:
        self._parts, self._outbox, self._tree, self._journal = parts, outbox, tree, journal
        self._request: Request | None = None
        self.retry_at: float | None = None
        """When a request that was set aside is tried again."""
        self.has_built_in_vain = False
        """The last block that we built is empty."""

    def has_one(self, view: View) -> bool:
        """Is there a request of this view? One of an earlier view is over."""
        return self._request is not None and self._request.view == view

    def put(self, request: Request) -> None:
        """Take what consensus asks for; what it asked for before is over."""
        self._request, self.retry_at = request, None

    def take_due(self) -> Request | None:
        """The request, if there is one to be served now."""
        if self.retry_at is not None and self._get_now() < self.retry_at:
            return None
        request, self._request = self._request, None
        self.retry_at = None
        return request

    def serve(self, request: Request) -> Event | None:
        """Build or validate; None if not, or not yet. Raises StorageFull, CorruptData."""
        try:
            if isinstance(request, Propose):
                return self._propose(request)
            return self._validate(request)
        except UnavailableBlob:
            self._set_aside(request, RETRY_SECONDS)
            self._outbox.fetch_blobs(self._tree.take_missing(), self._list_holders(request))
            return None

    def _get_now(self) -> float:
        return self._parts.clock.get_seconds()

    def _set_aside(self, request: Request, seconds: float) -> None:
        """Try again after a pause, until the view is over."""
        self._request, self.retry_at = request, self._get_now() + seconds

    def _list_holders(self, request: Request) -> tuple[Address, ...]:
        """Who should have what a block needs: its proposer first."""
        candidate = request.candidate if isinstance(request, Validate) else request.parent
        others = (member.address for member in self._tree.current.members)
        holders = dict.fromkeys((candidate.proposer, *others))
        return tuple(one for one in holders if one != self._parts.address)

    def _propose(self, request: Propose) -> Event | None:
        check_space(self._parts.directory, self._parts.config.storage.min_free_bytes)
        started = self._get_now()
        try:
            parent = self._tree.prepare(request.parent.hash)
        except InvalidBlock as error:
            # A quorum found it valid. If it becomes final, `Importer` says what that means.
            log_alarm("certified_block_invalid", height=request.parent.height, code=error.code)
            return None
        built = self._parts.builder.build(request, parent)
        self._keep_block(built.block, built.outcome)
        progress = self._parts.progress
        progress.blocks_built += 1
        progress.last_block_seconds = self._get_now() - started
        self.has_built_in_vain = not built.block.transactions
        return BlockBuilt(get_candidate(built.block))

    def _validate(self, request: Validate) -> Event | None:
        block = self._tree.get_block(request.candidate.hash)
        if block is None:
            return None
        early = block.header.timestamp - MAX_CLOCK_LEAD_SECONDS
        early_seconds = early - self._parts.clock.get_unix_seconds()
        if early_seconds > 0:
            self._set_aside(request, early_seconds)
            return None
        try:
            self._tree.check_blobs(block.hash)
            outcome = self._execute(block)
        except InvalidBlock as error:
            log_event("block_rejected", height=block.height, code=error.code, message=error.message)
            return BlockRejected(block.hash)
        if outcome is None:
            return BlockRejected(block.hash)
        self._keep_block(block, outcome)
        return BlockValidated(block.hash)

    def _execute(self, block: Block) -> Outcome | None:
        """None if it makes this node stumble: one leader's block must not end everybody's votes.

        Execution changes nothing but its outcome, so it is safe to go on without. Should others
        make the block final, `Importer` stumbles as well, and that is the end.
        """
        try:
            return self._tree.execute(block.hash)
        except (InvalidBlock, UnavailableBlob, StorageFull, CorruptData, MissingState):
            raise
        except Exception as error:
            log_alarm("block_crashed", trace=True, height=block.height, error=repr(error))
            return None

    def _keep_block(self, block: Block, outcome: Outcome) -> None:
        """Before our vote for it leaves, a block and the blobs that it made are on disk."""
        for name in sorted(outcome.blobs):
            self._parts.blobs.put(name, outcome.blobs[name])
        self._journal.entries[BLOCK + block.hash] = encode_block(block)
        self._journal.flush()
        self._tree.add(block, outcome)

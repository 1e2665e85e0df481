"""Blocks above the finalized one: a tree in memory, over the store.

A block is *known* once its bytes are here and *executed* once its outcome is. State of an
unfinalized block is what its branch changed, looked up branch first, store last; so any number of
branches can be built upon, and a losing one leaves nothing behind. Only the driver uses it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from steelyard.chain.block import (
    MAX_ANCESTORS,
    Block,
    Header,
    Rules,
)
from steelyard.chain.consensus.messages import Candidate
from steelyard.chain.environment import BlobSource
from steelyard.chain.epochs import EpochSet, compute_epoch
from steelyard.chain.errors import InvalidTransaction, UnavailableBlob
from steelyard.chain.execute import Outcome, apply_block
from steelyard.chain.transactions import decode_transaction
from steelyard.chain.trie import NodeSource
from steelyard.chain.types import Address, BlobName, Hash, View

from .store import ChainStore


@dataclass(slots=True)
class Branch:
    """One unfinalized block. `outcome` is None until it was executed."""

    block: Block
    outcome: Outcome | None
    declared: tuple[BlobName, ...] | None = None

    def get_declared(self) -> tuple[BlobName, ...]:
        """Blobs that the block carries; nothing is for sure about those of an invalid one."""
        if self.declared is None:
            self.declared = tuple(
                name for raw in self.block.transactions for name in read_declared(raw)
            )
        return self.declared


def read_declared(raw: bytes) -> tuple[BlobName, ...]:
    """The blobs of a transaction, none if it is not one: whoever executes it says so."""
    try:
        return decode_transaction(raw).blobs
    except InvalidTransaction:
        return ()


class BranchNodes:
    """Trie nodes as a block's branch sees them."""

    def __init__(self, layers: tuple[Mapping[bytes, bytes], ...], below: NodeSource) -> None:
        self._layers, self._below = layers, below

    def get(self, key: bytes, /) -> bytes | None:
        for layer in self._layers:
            value = layer.get(key)
            if value is not None:
                return value
        return self._below.get(key)


class BranchBlobs:
    """Blobs as a block's branch sees them: made by an ancestor, or on disk.

    Names that are neither are added to `missing`.
    """

    def __init__(
        self,
        layers: tuple[Mapping[BlobName, bytes], ...],
        below: BlobSource,
        missing: set[BlobName],
    ) -> None:
        self._layers, self._below, self._missing = layers, below, missing

    def read(self, name: BlobName, /) -> bytes | memoryview:
        for layer in self._layers:
            value = layer.get(name)
            if value is not None:
                return value
        try:
            return self._below.read(name)
        except UnavailableBlob:
            self._missing.add(name)
            raise


@dataclass(frozen=True, slots=True)
class Parent:
    """All that building on, or applying to, a block needs."""

    header: Header
    nodes: NodeSource
    blobs: BlobSource
    ancestors: tuple[Hash, ...]
    """Hashes from the parent backwards, as many as BLOCKHASH reaches."""
    nonces: Mapping[Address, int]
    """Next nonces of the senders in its unfinalized branch."""
    current: EpochSet
    """The validators that decide the block after the root."""


def get_candidate(block: Block) -> Candidate:
    """What consensus needs to know of a block, from its bytes."""
    said = block.extension
    return Candidate(
        hash=block.hash,
        parent=block.header.parent_hash,
        height=block.height,
        epoch=said.epoch,
        view=View(said.view),
        proposer=said.proposer,
    )


def get_place(block: Block) -> tuple[int, int]:
    """Epoch and view in which a block was made."""
    return block.extension.epoch, block.extension.view


class BlockTree:
    """Known blocks above `root`, the finalized head; `current` are the validators above it."""

    def __init__(self, rules: Rules, store: ChainStore, blobs: BlobSource) -> None:
        self._rules, self._store, self._blobs = rules, store, blobs
        self._branches: dict[Hash, Branch] = {}
        self._missing: set[BlobName] = set()
        self.root = store.get_head()
        self.current = self._read_current()

    def _read_current(self) -> EpochSet:
        """The validators that decide the block after the root. Raises CorruptData."""
        epoch = compute_epoch(self.root.height + 1, self._rules.epoch_blocks)
        return self._store.get_epoch_set(epoch)

    def add(self, block: Block, outcome: Outcome | None) -> None:
        """Know a block; a second time adds at most the outcome."""
        branch = self._branches.setdefault(block.hash, Branch(block, outcome))
        branch.outcome = branch.outcome or outcome

    def remove(self, block_hash: Hash) -> None:
        """Forget a block that nothing was built on."""
        self._branches.pop(block_hash, None)

    def take_missing(self) -> tuple[BlobName, ...]:
        """Blobs that execution asked for in vain since this was last called."""
        missing = tuple(sorted(self._missing))
        self._missing.clear()
        return missing

    def has(self, block_hash: Hash) -> bool:
        return block_hash == self.root.hash or block_hash in self._branches

    def get_block(self, block_hash: Hash) -> Block | None:
        branch = self._branches.get(block_hash)
        return None if branch is None else branch.block

    def get_candidates(self) -> tuple[Candidate, ...]:
        """Every known block that connects to the root, parents first."""
        blocks = sorted((one.block for one in self._branches.values()), key=lambda one: one.height)
        connected, found = {self.root.hash}, []
        for block in blocks:
            if block.header.parent_hash in connected:
                connected.add(block.hash)
                found.append(get_candidate(block))
        return tuple(found)

    def get_tip(self) -> Hash:
        """The highest executed block, or the root: where the next one will likely go."""
        executed = [one.block for one in self._branches.values() if one.outcome is not None]
        connected = {candidate.hash for candidate in self.get_candidates()}
        heights = [(one.height, one.hash) for one in executed if one.hash in connected]
        return max(heights)[1] if heights else self.root.hash

    def get_declared(self) -> frozenset[BlobName]:
        """Blobs that known blocks carry."""
        return frozenset(name for one in self._branches.values() for name in one.get_declared())

    def check_blobs(self, block_hash: Hash) -> None:
        """Check that every blob which a block carries is here. Raises UnavailableBlob."""
        missing = [
            name for name in self._branches[block_hash].get_declared() if not self._is_here(name)
        ]
        if missing:
            self._missing.update(missing)
            raise UnavailableBlob("blob_unavailable", f"{len(missing)} are not here yet")

    def _is_here(self, name: BlobName) -> bool:
        try:
            self._blobs.read(name)
        except UnavailableBlob:
            return False
        return True

    def prepare(self, block_hash: Hash) -> Parent:
        """Make a block ready to be built on. Raises InvalidBlock, UnavailableBlob."""
        if block_hash != self.root.hash:
            self.execute(block_hash)
        return self.get_parent(block_hash)

    def execute(self, block_hash: Hash) -> Outcome:
        """The outcome of a block, executing it and its ancestors as far as that never happened.

        Raises InvalidBlock, UnavailableBlob.
        """
        branch = self._branches[block_hash]
        if branch.outcome is None:
            waiting = [one for one in self._iter_branch(block_hash) if one.outcome is None]
            for one in reversed(waiting):
                parent = self.get_parent(one.block.header.parent_hash)
                one.outcome = apply_block(
                    parent.nodes,
                    parent.blobs,
                    self._rules,
                    parent.header,
                    one.block,
                    parent.ancestors,
                    parent.current,
                )
        assert branch.outcome is not None
        return branch.outcome

    def get_parent(self, block_hash: Hash) -> Parent:
        """The view of an executed block (or the root) that its children are built on."""
        branch = tuple(self._iter_branch(block_hash))
        outcomes = tuple(one.outcome for one in branch if one.outcome is not None)
        assert len(outcomes) == len(branch), "a parent is executed before its children"
        nonces: dict[Address, int] = {}
        for outcome in outcomes:
            for transaction in outcome.transactions:
                nonces[transaction.sender] = max(
                    nonces.get(transaction.sender, 0), transaction.nonce + 1
                )
        recent = self._store.get_recent_hashes(self.root.height, MAX_ANCESTORS)
        hashes = (*(one.block.hash for one in branch), *recent)
        return Parent(
            header=branch[0].block.header if branch else self.root,
            nodes=BranchNodes(tuple(one.nodes for one in outcomes), self._store),
            blobs=BranchBlobs(tuple(one.blobs for one in outcomes), self._blobs, self._missing),
            ancestors=hashes[:MAX_ANCESTORS],
            nonces=nonces,
            current=self.current,
        )

    def set_root(self, header: Header, place: tuple[int, int]) -> None:
        """Move the root up; `place` is the epoch and view in which it became final.

        Blocks of later views stay even if their parent is not here yet.
        """
        self.root = header
        self.current = self._read_current()
        for block_hash, branch in tuple(self._branches.items()):
            if get_place(branch.block) <= place or branch.block.height <= header.height:
                del self._branches[block_hash]

    def _iter_branch(self, block_hash: Hash) -> Iterator[Branch]:
        """The block, its parent, and so on down to (not including) the root."""
        while block_hash != self.root.hash:
            branch = self._branches[block_hash]
            yield branch
            block_hash = branch.block.header.parent_hash

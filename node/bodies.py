"""Which blocks of others are kept: one proposal a view that may still matter, and what is wanted.

So nobody can fill memory or disk: a leader has one place in each of its views, few views are open,
and whatever was asked for is certified, or the parent of what is.
"""

from typing import Final

from steelyard.chain.block import Block, encode_block
from steelyard.chain.consensus.simplex import Simplex
from steelyard.chain.params import MAX_LOOKAHEAD_VIEWS, MAX_LOOKBEHIND_VIEWS
from steelyard.chain.segments import check_body
from steelyard.chain.types import Hash, View

from .journal import BLOCK, Journal
from .tree import BlockTree

MAX_WANTED: Final = 256


class Bodies:
    """The way of other people's blocks into one session's tree and journal."""

    def __init__(self, tree: BlockTree, journal: Journal) -> None:
        self._tree, self._journal = tree, journal
        self._first: dict[View, Hash] = {}
        self._wanted: dict[Hash, None] = {}

    def want(self, block_hash: Hash) -> None:
        """This block is asked for: it may come."""
        self._wanted[block_hash] = None
        if len(self._wanted) > MAX_WANTED:
            del self._wanted[next(iter(self._wanted))]

    def has_taken(self, block: Block) -> bool:
        """Keep a block if it was asked for. Raises InvalidSegment if the body is another one's."""
        if block.hash not in self._wanted:
            return False
        self._keep(block)
        del self._wanted[block.hash]
        return True

    def has_kept(self, block: Block, view: View, machine: Simplex) -> bool:
        """Keep a block that is proposed in `view` if it is new and may matter to the machine.

        Raises InvalidSegment if it would be kept and the body is another one's.
        """
        root_view = machine.root.view if machine.root.epoch == self._tree.current.epoch else 0
        first = max(root_view + 1, machine.view - MAX_LOOKBEHIND_VIEWS)
        is_relevant = first <= view <= machine.view + MAX_LOOKAHEAD_VIEWS
        is_first = self._first.get(view, block.hash) == block.hash
        is_due = (is_relevant and is_first) or block.hash in self._wanted
        if not is_due or self._tree.has(block.hash):
            return False
        self._keep(block)
        return True

    def _keep(self, block: Block) -> None:
        """Know a block that is what its header says, and put it on disk with the next write."""
        check_body(block)
        self._tree.add(block, None)
        self._journal.entries[BLOCK + block.hash] = encode_block(block)

    def set_first(self, view: View, block_hash: Hash) -> None:
        """The machine took this as the proposal of that view; another one is not kept."""
        self._first.setdefault(view, block_hash)

    def drop(self, block_hash: Hash) -> None:
        """The machine refused what was just kept."""
        self._tree.remove(block_hash)
        self._journal.entries.pop(BLOCK + block_hash, None)

    def forget(self, view: View) -> None:
        """Everything up to this view is decided."""
        self._first = {one: first for one, first in self._first.items() if one > view}

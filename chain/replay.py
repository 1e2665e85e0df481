"""Re-execution from genesis: the whole chain, or a stretch of it, from a node that nobody trusts.

A replay keeps the state in memory. It believes nothing but the genesis document: every block must
follow its parent and have the roots that executing it gives. Certificates are checked elsewhere.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from .block import MAX_ANCESTORS, Block, Header
from .environment import BlobSource
from .epochs import EpochSet
from .errors import InvalidBlock, UnavailableBlob
from .execute import Outcome, apply_block
from .genesis import Genesis, build_genesis, schedule_forks
from .types import BlobName, Hash, Height


@dataclass(frozen=True, slots=True)
class Replayed:
    """One height, and the validators whose certificate makes it final, as execution found them.

    `difference` is None if the block does what it says, else the code of what differs
    (`block_state_root`, …), and `message` explains it.
    """

    height: Height
    block_hash: Hash
    epoch_set: EpochSet
    difference: str | None = None
    message: str = ""


class MadeBlobs:
    """The blobs that replayed blocks made, in front of the source of those that clients made."""

    def __init__(self, source: BlobSource) -> None:
        self.source = source
        self.made: dict[BlobName, bytes] = {}

    def read(self, name: BlobName) -> bytes | memoryview:
        """Return the bytes. Raises UnavailableBlob."""
        made = self.made.get(name)
        return self.source.read(name) if made is None else made


class NoBlobs:
    """A source without blobs."""

    def read(self, name: BlobName) -> bytes:
        """Raise UnavailableBlob."""
        raise UnavailableBlob("blob_unavailable", f"0x{name.digest.hex()} of {name.size} bytes")


def replay(
    genesis: Genesis,
    blocks: Iterable[Block],
    blobs: BlobSource,
    upgrades: Mapping[str, int] | None = None,
) -> Iterator[Replayed]:
    """Execute `blocks`, heights 1, 2, …, and yield each height; stop after the first difference.

    `upgrades` are the rule changes that were scheduled after genesis.
    Raises: UnavailableBlob if the replay needs a blob that `blobs` lacks; InvalidGenesis.
    """
    rules = schedule_forks(genesis.rules, upgrades or {})
    state = build_genesis(genesis)
    nodes = dict(state.nodes)
    made = MadeBlobs(blobs)
    parent: Header = state.block.header
    current = state.epoch_set
    ancestors: deque[Hash] = deque([parent.hash], maxlen=MAX_ANCESTORS)
    for block in blocks:
        try:
            outcome: Outcome = apply_block(
                nodes, made, rules, parent, block, tuple(ancestors), current
            )
        except InvalidBlock as error:
            yield Replayed(block.height, block.hash, current, error.code, error.message)
            return
        nodes.update(outcome.nodes)
        made.made.update(outcome.blobs)
        parent = block.header
        ancestors.appendleft(parent.hash)
        yield Replayed(block.height, block.hash, current)
        if outcome.next_set is not None:
            current = outcome.next_set.epoch_set

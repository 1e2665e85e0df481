"""Beginning in the middle of the chain, at a block whose hash the operator vouches for.

A checkpoint must be young: validators that left more than the unbonding time ago have nothing to
lose, so certificates can prove nothing about a past that old (*weak subjectivity*). From the hash
everything else follows: the header, the validators that decide what comes next, the state, and the
hashes before it that BLOCKHASH can reach. Until all of it is here the store stays at block 0, so a
start that was interrupted begins again, and fetches only what is missing.
"""

from collections.abc import Callable
from dataclasses import dataclass

from steelyard.chain.block import MAX_ANCESTORS, Block, decode_block, encode_block, encode_header
from steelyard.chain.consensus.certificates import (
    MAX_CERTIFICATE_BYTES,
    Certificate,
    decode_certificate,
    encode_certificate,
)
from steelyard.chain.epochs import (
    EpochSet,
    compute_epoch,
    decode_epoch_set,
    encode_epoch_set,
    get_boundary,
    is_boundary,
)
from steelyard.chain.errors import SteelyardError
from steelyard.chain.following import (
    Checkpoint,
    check_checkpoint,
    check_checkpoint_age,
    check_finality,
    check_handover,
    check_named_set,
)
from steelyard.chain.genesis import Genesis, GenesisState
from steelyard.chain.params import MAX_BLOCK_BYTES, MAX_EPOCH_SET_BYTES
from steelyard.chain.segments import check_body, decode_segment
from steelyard.chain.types import Hash, Height

from ..history import set_first_executed, set_oldest_state
from ..logs import log_event
from ..pruning import Progress
from ..store import CHECKED_BLOCKS, SCHEMA, ChainStore, Writer, encode_height
from .download import StateDownload
from .fetcher import Fetcher
from .sources import EXHAUSTED, Sources, SourceWrong


@dataclass(frozen=True, slots=True)
class Beginning:
    """What the store holds of the chain once it begins at `block`. Ancestors: the parent first."""

    block: Block
    certificate: Certificate
    sets: tuple[EpochSet, ...]
    ancestors: tuple[Block, ...]


class CheckpointStart:
    """Brings a store that holds block 0 to a checkpoint."""

    def __init__(
        self,
        store: ChainStore,
        genesis: Genesis,
        state: GenesisState,
        sources: Sources,
        fetcher: Fetcher,
        report: Callable[[str], None],
    ) -> None:
        self._store, self._genesis, self._state = store, genesis, state
        self._sources, self._fetcher, self._report = sources, fetcher, report

    def run(self, checkpoint: Checkpoint, now: int) -> None:
        """`now` is in Unix seconds. Nothing happens if the store is past block 0 already.

        Raises SteelyardError: checkpoint_too_old, sources_exhausted, state_unavailable,
        state_malformed, genesis_mismatch, checkpoint_fork; StorageFull, CorruptData, Stopped.
        """
        if checkpoint.height == 0:
            self._check_genesis(checkpoint.hash)
        if checkpoint.height == 0 or self._store.get_head().height > 0:
            return
        block = self._fetch_block(checkpoint)
        check_checkpoint_age(block.header, now, self._genesis.unbonding_seconds)
        self._report(f"block {block.height} is the checkpoint; fetching what came before it")
        ancestors = self._fetch_ancestors(block)
        sets = self._fetch_sets(block, ancestors[0])
        certificate = self._fetch_certificate(block, sets[0])
        self._fetch_epochs(sets[0])
        download = StateDownload(self._store, self._sources, self._fetcher.wait, self._report)
        self._report(download.run(block.header.state_root))
        self._commit(Beginning(block, certificate, sets, ancestors))
        log_event("checkpoint_reached", height=block.height, hash=block.hash)

    # -- fetching ----------------------------------------------------------------------------------
    def _fetch_block(self, expected: Checkpoint) -> Block:
        def read(data: bytes) -> Block:
            block = decode_block(data)
            check_checkpoint(expected, block.header)
            check_body(block)
            return block

        return self._sources.ask(f"/chain/blocks/{expected.height}", MAX_BLOCK_BYTES, read)

    def _fetch_ancestors(self, block: Block) -> tuple[Block, ...]:
        """As many as BLOCKHASH reaches, each by the hash that its child names."""
        ancestors: list[Block] = []
        child = block
        while child.height > 0 and len(ancestors) < MAX_ANCESTORS:
            height = child.height - 1
            parent_hash = child.header.parent_hash
            if height == 0:
                self._check_genesis(parent_hash)
                child = self._state.block
            else:
                child = self._fetch_block(Checkpoint(Height(height), parent_hash))
            # Only the last bodies are kept: what the store checks when it opens.
            is_near = len(ancestors) <= CHECKED_BLOCKS
            ancestors.append(child if is_near else Block(child.header, child.extension))
        return tuple(ancestors)

    def _check_genesis(self, block_hash: Hash) -> None:
        if block_hash != self._state.block.hash:
            raise SteelyardError(
                "genesis_mismatch",
                f"the checkpoint's chain began with 0x{block_hash.hex()}, the document makes "
                f"0x{self._state.block.hash.hex()}",
            )

    def _fetch_sets(self, block: Block, parent: Block) -> tuple[EpochSet, ...]:
        """The validators that decided the block, then those that decide the next one if others."""
        deciding = self._fetch_set(parent)
        if not is_boundary(block.height, self._genesis.epoch_blocks):
            return (deciding,)
        return deciding, self._fetch_set(block)

    def _fetch_set(self, block: Block) -> EpochSet:
        """The validators that a block which is trusted says decide the next one."""
        epoch_blocks = self._genesis.epoch_blocks

        def read(data: bytes) -> EpochSet:
            epoch_set = decode_epoch_set(data)
            check_named_set(block.header, block.extension, epoch_set, epoch_blocks)
            return epoch_set

        epoch = compute_epoch(block.height + 1, epoch_blocks)
        return self._sources.ask(f"/chain/validators/{epoch}", MAX_EPOCH_SET_BYTES, read)

    def _fetch_certificate(self, block: Block, deciding: EpochSet) -> Certificate:
        """That it is final. The operator's word is what counts; this finds a wrong word early."""

        def read(data: bytes) -> Certificate:
            certificate = decode_certificate(data)
            if certificate.hash != block.hash:
                raise SourceWrong(
                    "checkpoint_unsealed",
                    f"block {block.height} has no certificate of its own there; take another "
                    "block as the checkpoint",
                )
            check_finality(certificate, block.hash, deciding, self._genesis.domain)
            return certificate

        return self._sources.ask(f"/chain/certificates/{block.height}", MAX_CERTIFICATE_BYTES, read)

    def _fetch_epochs(self, last: EpochSet) -> None:
        """The boundary blocks from genesis on, so that this node can serve them for ever, too.

        Each is verified by the set that the one before names. What is here already is kept; if no
        source has them any more, those who ask for them must ask elsewhere.
        """
        current, progress = self._state.epoch_set, Progress(self._report)
        while current.epoch < last.epoch:
            following = self._store.find_epoch_set(current.epoch + 1)
            if following is None:
                try:
                    following = self._fetch_epoch(current)
                except SteelyardError as error:
                    if error.code != EXHAUSTED:
                        raise
                    log_event("boundaries_unknown", epoch=current.epoch, reason=str(error))
                    return
                progress.tell(f"epoch {current.epoch} of {last.epoch}")
            current = following
        if current.hash != last.hash:
            raise SteelyardError(
                "checkpoint_fork",
                f"the validators of epoch {last.epoch} at the checkpoint are not those that follow "
                "from genesis: it is of another chain, or genesis' validators signed two",
            )

    def _fetch_epoch(self, current: EpochSet) -> EpochSet:
        """The set after `current`, and the boundary block that hands over to it."""
        height = get_boundary(current.epoch, self._genesis.epoch_blocks)

        def read(data: bytes) -> tuple[Block, Certificate]:
            segment = decode_segment(data)
            block, certificate = segment.blocks[0], segment.certificate
            check_finality(certificate, block.hash, current, self._genesis.domain)
            if block.height != height:
                raise SourceWrong("source_block", f"block {block.height} is not block {height}")
            check_body(block)
            return block, certificate

        limit = MAX_BLOCK_BYTES + 2 * MAX_CERTIFICATE_BYTES
        path = f"/chain/segments/{height}"
        block, certificate = self._sources.ask(path, limit, read, attempts=2)
        following = self._fetch_set(block)
        check_handover(
            block.header,
            block.extension,
            certificate,
            current,
            following,
            domain=self._genesis.domain,
            epoch_blocks=self._genesis.epoch_blocks,
        )
        with self._store.database.write() as writer:
            put_block(writer, block, has_body=True)
            put_certificate(writer, height, certificate)
            put_set(writer, following)
        return following

    # -- the end -----------------------------------------------------------------------------------
    def _commit(self, beginning: Beginning) -> None:
        """Make the checkpoint the head, in one transaction."""
        block = beginning.block
        with self._store.database.write() as writer:
            for place, ancestor in enumerate(beginning.ancestors):
                if ancestor.height > 0:
                    put_block(writer, ancestor, has_body=place <= CHECKED_BLOCKS)
            put_block(writer, block, has_body=True)
            put_certificate(writer, block.height, beginning.certificate)
            for epoch_set in beginning.sets:
                put_set(writer, epoch_set)
            writer.put("meta", b"schema", SCHEMA)
            set_oldest_state(writer, block.height)
            set_first_executed(writer, block.height + 1)
            writer.put("meta", b"head", encode_height(block.height))


def put_block(writer: Writer, block: Block, *, has_body: bool) -> None:
    """A block that was not executed here: no receipts, and its transactions are not indexed."""
    key = encode_height(block.height)
    writer.put("hashes", key, block.hash)
    writer.put("heights", block.hash, key)
    writer.put("headers", key, encode_header(block.header))
    if has_body:
        writer.put("blocks", key, encode_block(block))


def put_certificate(writer: Writer, height: int, certificate: Certificate) -> None:
    writer.put("certificates", encode_height(height), encode_certificate(certificate))


def put_set(writer: Writer, epoch_set: EpochSet) -> None:
    writer.put("sets", encode_height(epoch_set.epoch), encode_epoch_set(epoch_set))

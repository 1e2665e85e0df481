"""Who finalized a block, from a node that nobody trusts: validator sets, then a certificate.

    genesis, or a checkpoint -> the first validators
    per epoch: boundary block, its certificate by the validators so far -> hash of the next ones
    the block's certificate, by the validators of its epoch

So an auditor needs two answers for each epoch, however many blocks it has. Needs a BLS backend.
"""

import importlib
import time
from collections.abc import Callable
from typing import Final

from steelyard.chain.block import Block, decode_block
from steelyard.chain.consensus.certificates import Certificate, decode_certificate
from steelyard.chain.epochs import (
    EpochSet,
    compute_epoch,
    decode_epoch_set,
    get_boundary,
    get_genesis_set,
)
from steelyard.chain.errors import SteelyardError
from steelyard.chain.following import (
    Checkpoint,
    check_checkpoint,
    check_finality,
    check_handover,
    check_named_set,
    compute_age_limit,
)
from steelyard.chain.genesis import Genesis
from steelyard.chain.params import MAX_EPOCH_SET_BYTES
from steelyard.chain.segments import InvalidSegment
from steelyard.chain.types import Domain, Hash

from .errors import ClientError
from .rpc import Rpc
from .verdicts import Verdict

MAX_BLOCK_ANSWER_BYTES: Final = 8 * 2**20
MAX_CERTIFICATE_ANSWER_BYTES: Final = 4096
MAX_DESCENDANTS: Final = 256
"""Blocks from one to the certificate that finalizes it: each has its own, but for faults."""
DAY_SECONDS: Final = 86_400


def can_check_certificates() -> bool:
    """Whether a BLS backend is installed."""
    for name in ("pyblst", "py_ecc"):
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        return True
    return False


def verify_certificate(
    rpc: Rpc, block: Block, genesis: Genesis, checkpoint: Checkpoint | None = None
) -> tuple[Verdict, str]:
    """Return whether the validators of its epoch finalized `block`, and who signed.

    They are followed from genesis, or from the block after `checkpoint`.
    """
    return Follower(rpc, genesis, checkpoint).verify(block)


def judge_certificate(
    certificate: Certificate, block_hash: Hash, current: EpochSet, domain: Domain
) -> tuple[Verdict, str]:
    """Return whether the validators of `current` finalized the block with this hash, and why not.

    Asks nobody: this is what refutes a forged certificate.
    """
    try:
        check_finality(certificate, block_hash, current, domain)
    except InvalidSegment as error:
        return Verdict.REFUTED, error.message
    signers = sum(byte.bit_count() for byte in certificate.bitmap)
    return (
        Verdict.YES,
        f"{signers} of {len(current.members)} validators signed 0x{certificate.hash.hex()}"
        f" in epoch {current.epoch}",
    )


class Follower:
    """Follows the validator sets of a chain forwards, and remembers where it is."""

    def __init__(
        self,
        rpc: Rpc,
        genesis: Genesis,
        checkpoint: Checkpoint | None = None,
        get_unix_seconds: Callable[[], float] = time.time,
    ) -> None:
        self._rpc, self._genesis, self._checkpoint = rpc, genesis, checkpoint
        self._get_unix_seconds = get_unix_seconds
        self._start_seconds = genesis.timestamp
        self._sets: list[EpochSet] = []

    def verify(self, block: Block) -> tuple[Verdict, str]:
        """Return whether `block` is final, and who says so."""

        def find() -> tuple[Verdict, str]:
            if self._checkpoint is not None and block.height <= self._checkpoint.height:
                return self._verify_before(block, self._checkpoint)
            epoch = compute_epoch(block.height, self._genesis.epoch_blocks)
            return self._verify_by(block, self.follow(epoch))

        return _answer(find)

    def verify_by(self, block: Block, current: EpochSet) -> tuple[Verdict, str]:
        """Return whether the validators of `current`, known otherwise, finalized `block`."""
        return _answer(lambda: self._verify_by(block, current))

    def _verify_by(self, block: Block, current: EpochSet) -> tuple[Verdict, str]:
        """A certificate may be that of a descendant: it finalizes all blocks before its own."""
        certificate = self._fetch_certificate(block.height)
        verdict, detail = judge_certificate(
            certificate, certificate.hash, current, self._genesis.domain
        )
        if verdict is not Verdict.YES:
            return verdict, detail
        boundary = get_boundary(current.epoch, self._genesis.epoch_blocks)
        last = min(boundary, block.height + MAX_DESCENDANTS)
        link = judge_link(self._rpc, block, certificate.hash, last)
        if link is Verdict.UNKNOWN and last < boundary:
            return link, f"the certificate is for a block more than {MAX_DESCENDANTS} blocks above"
        if link is not Verdict.YES:
            return Verdict.REFUTED, "the certificate is for another block"
        return verdict, detail + self._describe_age()

    def _verify_before(self, block: Block, checkpoint: Checkpoint) -> tuple[Verdict, str]:
        """A block is as good as the checkpoint that descends from it."""
        if checkpoint.height - block.height > MAX_DESCENDANTS:
            return (
                Verdict.UNKNOWN,
                f"block {block.height} is far below the checkpoint; give one of an earlier block",
            )
        link = judge_link(self._rpc, block, checkpoint.hash, checkpoint.height)
        if link is not Verdict.YES:
            return Verdict.REFUTED, f"the checkpoint {checkpoint} does not descend from it"
        return Verdict.YES, f"an ancestor of your checkpoint, block {checkpoint.height}"

    # -- the sets ----------------------------------------------------------------------------------
    def follow(self, epoch: int) -> EpochSet:
        """Return the validators of an epoch; of the first one after the start if that is later.

        Raises: SteelyardError that says which part of the evidence is wrong, or withheld.
        """
        if not self._sets:
            self._sets.append(self._find_start())
        while self._sets[-1].epoch < epoch:
            self._sets.append(self._follow_one(self._sets[-1]))
        return self._sets[max(epoch - self._sets[0].epoch, 0)]

    def get_sets(self) -> tuple[EpochSet, ...]:
        """Return all sets that were followed so far, oldest first."""
        return tuple(self._sets)

    def _find_start(self) -> EpochSet:
        """The first set: of genesis, or the one that the checkpoint's block names."""
        checkpoint = self._checkpoint
        if checkpoint is None:
            return get_genesis_set(self._genesis)
        block = fetch_block(self._rpc, checkpoint.height)
        check_checkpoint(checkpoint, block.header)
        epoch_blocks = self._genesis.epoch_blocks
        named = self._fetch_set(compute_epoch(block.height + 1, epoch_blocks))
        check_named_set(block.header, block.extension, named, epoch_blocks)
        self._start_seconds = block.header.timestamp
        return named

    def _follow_one(self, current: EpochSet) -> EpochSet:
        epoch_blocks = self._genesis.epoch_blocks
        boundary = fetch_block(self._rpc, (current.epoch + 1) * epoch_blocks)
        following = self._fetch_set(current.epoch + 1)
        check_handover(
            boundary.header,
            boundary.extension,
            self._fetch_certificate(boundary.height),
            current,
            following,
            domain=self._genesis.domain,
            epoch_blocks=epoch_blocks,
        )
        return following

    def _fetch_set(self, epoch: int) -> EpochSet:
        path = f"/chain/validators/{epoch}"
        return decode_epoch_set(self._rpc.get_bytes(path, MAX_EPOCH_SET_BYTES))

    def _fetch_certificate(self, height: int) -> Certificate:
        path = f"/chain/certificates/{height}"
        return decode_certificate(self._rpc.get_bytes(path, MAX_CERTIFICATE_ANSWER_BYTES))

    def _describe_age(self) -> str:
        """Say that validators who left long ago could have signed another past."""
        age = int(self._get_unix_seconds()) - self._start_seconds
        if age <= compute_age_limit(self._genesis.unbonding_seconds):
            return ""
        start = "genesis" if self._checkpoint is None else "a checkpoint"
        return (
            f" (followed from {start}, {age // DAY_SECONDS} days old: compare a recent block's hash"
            " with somebody else's, or give it with --checkpoint)"
        )


def _answer(find: Callable[[], tuple[Verdict, str]]) -> tuple[Verdict, str]:
    """Return what was found; silence proves nothing, and a wrong answer refutes."""
    try:
        return find()
    except ClientError as error:
        return Verdict.UNKNOWN, f"this node does not serve what is needed: {error.message}"
    except SteelyardError as error:
        return Verdict.REFUTED, f"{error.code}: {error.message}"


# -- blocks ----------------------------------------------------------------------------------------
def fetch_block(rpc: Rpc, height: int) -> Block:
    """Return a block; only its height is checked. Raises NodeRefused, InvalidBlock."""
    block = decode_block(rpc.get_bytes(f"/chain/blocks/{height}", MAX_BLOCK_ANSWER_BYTES))
    if block.height != height:
        raise InvalidSegment("segment_height", f"the node sent block {block.height}, not {height}")
    return block


def judge_link(rpc: Rpc, block: Block, descendant: Hash, last_height: int) -> Verdict:
    """Return whether the block `descendant` is `block` or follows it.

    UNKNOWN if no block up to `last_height` is it; REFUTED if one is no child of the one before.
    """
    while block.hash != descendant:
        if block.height >= last_height:
            return Verdict.UNKNOWN
        child = fetch_block(rpc, block.height + 1)
        if child.header.parent_hash != block.hash:
            return Verdict.REFUTED
        block = child
    return Verdict.YES

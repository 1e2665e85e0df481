"""Following a chain without taking part: what a node or an auditor checks of what others serve.

    checkpoint, or genesis -> the validators of an epoch -> certificates of that epoch's blocks
    boundary block + its certificate -> the hash of the next validators -> those validators

Certificates say who decided; only execution says that what they decided is right. A follower that
asks nobody it trusts needs both, and a start that is young enough: validators that have left, and
have their stakes back, lose nothing by signing another past. Pure; needs no engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .block import Block, Extension, Header, compute_extension_hash
from .bls import DEFAULT, Backend
from .consensus.certificates import Certificate, check_certificate
from .consensus.validators import ValidatorSet
from .consensus.votes import Kind
from .epochs import EpochSet, compute_epoch, get_boundary
from .errors import InvalidVote
from .params import CHECKPOINT_AGE_DIVISOR
from .segments import InvalidSegment, check_body
from .types import Domain, Hash, Height

MAX_HEIGHT_DIGITS = 18


# -- blocks ----------------------------------------------------------------------------------------
def check_segment(
    head: Header,
    blocks: Sequence[Block],
    certificate: Certificate,
    current: EpochSet,
    domain: Domain,
    backend: Backend = DEFAULT,
) -> None:
    """Check that `blocks` follow `head` in one epoch and that its validators finalized the last.

    `current` is the set that decides the block after `head`. Blocks before the last are final
    because the last is. What they do is not checked: execute them.
    Raises: InvalidSegment segment_malformed, segment_link, segment_height, segment_epoch,
    segment_boundary, segment_body, segment_certificate.
    """
    if not blocks:
        raise InvalidSegment("segment_malformed", "a segment holds at least one block")
    parent = head
    for block in blocks:
        if block.header.parent_hash != parent.hash:
            raise InvalidSegment("segment_link", f"block {block.height} is no child of its parent")
        if block.height != parent.height + 1:
            raise InvalidSegment("segment_height", f"{block.height} follows {parent.height}")
        check_body(block)
        if block.extension.epoch != current.epoch:
            raise InvalidSegment(
                "segment_epoch",
                f"block {block.height} is of epoch {block.extension.epoch}, not {current.epoch}",
            )
        parent = block.header
    if any(one.extension.next_validator_set_hash != current.hash for one in blocks[:-1]):
        raise InvalidSegment("segment_boundary", "other validators decide about its last block")
    check_finality(certificate, blocks[-1].hash, current, domain, backend)


def check_finality(
    certificate: Certificate,
    block_hash: Hash,
    current: EpochSet,
    domain: Domain,
    backend: Backend = DEFAULT,
) -> None:
    """Check that the validators of `current` finalized the block with this hash.

    Raises: InvalidSegment segment_certificate.
    """
    if certificate.kind != Kind.FINALIZE:
        raise InvalidSegment("segment_certificate", "the certificate does not finalize anything")
    if certificate.epoch != current.epoch:
        raise InvalidSegment(
            "segment_certificate",
            f"the certificate is of epoch {certificate.epoch}, not {current.epoch}",
        )
    if certificate.hash != block_hash:
        raise InvalidSegment("segment_certificate", "the certificate is for another block")
    try:
        check_certificate(certificate, current.validators, domain, backend)
    except InvalidVote as error:
        reason = describe_quorum(certificate, current.validators)
        if error.code != "certificate_quorum":
            reason = f"{error.code}: {error.message}"
        raise InvalidSegment("segment_certificate", reason) from error


def describe_quorum(certificate: Certificate, validators: ValidatorSet) -> str:
    """Return who signed, and how many must: in validators if all have the same power."""
    bits = int.from_bytes(certificate.bitmap, "little")
    signers = [place for place in range(len(validators)) if bits >> place & 1]
    said = f"{len(signers)} of {len(validators)} signers"
    powers = {validator.power for validator in validators.validators}
    if len(powers) == 1:
        return f"{said}, quorum is {-(-validators.quorum // powers.pop())}"
    power = validators.get_power(signers)
    return f"{said} with power {power} of {validators.total_power}, quorum is {validators.quorum}"


# -- validators ------------------------------------------------------------------------------------
def check_handover(
    header: Header,
    extension: Extension,
    certificate: Certificate,
    current: EpochSet,
    following: EpochSet,
    *,
    domain: Domain,
    epoch_blocks: int,
    backend: Backend = DEFAULT,
) -> None:
    """Check that the validators of `current` handed over to those of `following`.

    `header` and `extension` are of the boundary block. No other block of the epoch is needed.
    Raises: InvalidSegment segment_height, segment_body, segment_epoch, segment_boundary,
    segment_certificate.
    """
    boundary = get_boundary(current.epoch, epoch_blocks)
    if header.height != boundary:
        raise InvalidSegment(
            "segment_height",
            f"epoch {current.epoch} ends with block {boundary}, not {header.height}",
        )
    if header.parent_beacon_block_root != compute_extension_hash(extension):
        raise InvalidSegment("segment_body", f"block {header.height} came with another extension")
    if extension.epoch != current.epoch or following.epoch != current.epoch + 1:
        raise InvalidSegment(
            "segment_epoch",
            f"from epoch {extension.epoch} to {following.epoch}, after {current.epoch}",
        )
    if following.hash != extension.next_validator_set_hash:
        raise InvalidSegment(
            "segment_boundary", f"block {header.height} hands over to other validators"
        )
    check_finality(certificate, header.hash, current, domain, backend)


def check_named_set(
    header: Header, extension: Extension, named: EpochSet, epoch_blocks: int
) -> None:
    """Check that `named` is the set that decides the block after the trusted one of `header`.

    Raises: InvalidSegment segment_body, segment_epoch, segment_boundary.
    """
    if header.parent_beacon_block_root != compute_extension_hash(extension):
        raise InvalidSegment("segment_body", f"block {header.height} came with another extension")
    epoch = compute_epoch(header.height + 1, epoch_blocks)
    if named.epoch != epoch:
        raise InvalidSegment(
            "segment_epoch", f"validators of epoch {named.epoch} came instead of {epoch}"
        )
    if named.hash != extension.next_validator_set_hash:
        raise InvalidSegment("segment_boundary", f"block {header.height} names other validators")


# -- checkpoints -----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A block that somebody vouches for, found outside of the chain."""

    height: Height
    hash: Hash

    def __str__(self) -> str:
        return f"{self.height}:0x{self.hash.hex()}"


def parse_checkpoint(text: str) -> Checkpoint:
    """Return the checkpoint `HEIGHT:0xHASH`. Raises InvalidSegment checkpoint_malformed."""
    height, _, digits = text.partition(":")
    try:
        if height.isascii() and height.isdigit() and len(height) <= MAX_HEIGHT_DIGITS:
            block_hash = bytes.fromhex(digits.removeprefix("0x"))
            if len(block_hash) == 32 and len(digits.removeprefix("0x")) == 64:
                return Checkpoint(Height(int(height)), Hash(block_hash))
    except ValueError:
        pass
    raise InvalidSegment("checkpoint_malformed", f"{text!r:.100} is not HEIGHT:0xHASH of a block")


def check_checkpoint(checkpoint: Checkpoint, header: Header) -> None:
    """Check that `header` is the block of the checkpoint. Raises InvalidSegment."""
    if header.height != checkpoint.height or header.hash != checkpoint.hash:
        raise InvalidSegment(
            "checkpoint_mismatch",
            f"block {header.height} is 0x{header.hash.hex()}; the checkpoint says {checkpoint}",
        )


def compute_age_limit(unbonding_seconds: int) -> int:
    """Return how old, in seconds, the block may be that a follower starts from."""
    return unbonding_seconds // CHECKPOINT_AGE_DIVISOR


def check_checkpoint_age(header: Header, now_seconds: int, unbonding_seconds: int) -> None:
    """Check that a follower may start from this block. Raises InvalidSegment checkpoint_too_old."""
    age, limit = now_seconds - header.timestamp, compute_age_limit(unbonding_seconds)
    if age > limit:
        raise InvalidSegment(
            "checkpoint_too_old",
            f"block {header.height} is {age} seconds old, at most {limit} are safe: its validators "
            "may have left with their stakes; ask somebody you trust for a newer block's hash",
        )

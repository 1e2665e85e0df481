"""Segments: finalized blocks that follow one another, and the certificate of the last of them.

What travels to those who follow the chain. A segment lies within one epoch, so that one validator
set decides about it; `following.check_segment` says whether it does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .block import (
    Block,
    compute_extension_hash,
    compute_transactions_root,
    compute_withdrawals_root,
    decode_block,
    encode_block,
)
from .consensus.certificates import (
    MAX_CERTIFICATE_BYTES,
    Certificate,
    decode_certificate,
    encode_certificate,
)
from .errors import SteelyardError
from .params import MAX_BLOCK_BYTES
from .rlp import InvalidEncoding, decode_rlp, encode_rlp, read_bytes, read_list

MAX_SEGMENT_BLOCKS: Final = 32
SEGMENT_BYTES: Final = 4 * 2**20
"""A segment ends at the first certificate past this; one block may be as large."""
MAX_SEGMENT_BYTES: Final = 32 * 2**20
"""Blocks that became final together may exceed SEGMENT_BYTES, but never this."""
MAX_TOGETHER_BLOCKS: Final = 256
"""Nor are they ever more than this in one segment, however small."""

FIXED_ITEMS: Final = 3
"""Of a segment's encoding, besides one for each block: both lists and the certificate."""

assert MAX_SEGMENT_BLOCKS <= MAX_TOGETHER_BLOCKS
assert SEGMENT_BYTES + MAX_BLOCK_BYTES + MAX_CERTIFICATE_BYTES < MAX_SEGMENT_BYTES


class InvalidSegment(SteelyardError):
    """Bytes that are no segment, or blocks that are not the final ones after those we hold."""


@dataclass(frozen=True, slots=True)
class FinalBlocks:
    """At least one block, oldest first; `certificate` finalizes the last."""

    blocks: tuple[Block, ...]
    certificate: Certificate


def check_body(block: Block) -> None:
    """Check that the rest of a block is what its header names.

    A certificate and the links between headers say nothing about the bodies that come with them:
    without this, a liar's body would look like an invalid block that the validators finalized.
    Raises: InvalidSegment segment_body.
    """
    header = block.header
    if (
        header.parent_beacon_block_root != compute_extension_hash(block.extension)
        or header.transactions_root != compute_transactions_root(block.transactions)
        or header.withdrawals_root != compute_withdrawals_root(block.withdrawals)
    ):
        raise InvalidSegment("segment_body", f"block {block.height} came with another body")


def encode_segment(blocks: Sequence[bytes], certificate: bytes) -> bytes:
    """Return rlp([[block, …], certificate]) of encoded blocks and an encoded certificate."""
    return encode_rlp([list(blocks), certificate])


def encode_final_blocks(segment: FinalBlocks) -> bytes:
    """Return the bytes of a segment; `decode_segment` reads them."""
    blocks = [encode_block(block) for block in segment.blocks]
    return encode_segment(blocks, encode_certificate(segment.certificate))


def decode_segment(data: bytes) -> FinalBlocks:
    """Return the segment in these bytes. Format only; nothing is verified yet.

    Raises: InvalidSegment segment_malformed; InvalidBlock; InvalidVote.
    """
    if len(data) > MAX_SEGMENT_BYTES:
        raise InvalidSegment("segment_malformed", f"above {MAX_SEGMENT_BYTES} bytes")
    try:
        items = decode_rlp(data, max_items=MAX_TOGETHER_BLOCKS + FIXED_ITEMS)
        rows, certificate = read_list(items, 2)
        blocks = [read_bytes(row) for row in read_list(rows)]
        sealed = read_bytes(certificate, limit=MAX_CERTIFICATE_BYTES)
    except InvalidEncoding as error:
        raise InvalidSegment("segment_malformed", error.message) from error
    if not blocks:
        raise InvalidSegment("segment_malformed", "a segment holds at least one block")
    return FinalBlocks(tuple(decode_block(block) for block in blocks), decode_certificate(sealed))

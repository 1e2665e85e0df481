"""Serving finalized blocks to validators that are behind."""

from typing import Final

from steelyard.chain.block import Block, encode_block
from steelyard.chain.consensus.certificates import Certificate
from steelyard.chain.types import Height

from ..store import ChainStore
from .wire import (
    MAX_SEGMENT_BLOCKS,
    MAX_SEGMENT_BYTES,
    Absent,
    CertificateMessage,
    SegmentAnswer,
    SegmentRequest,
)

MAX_SERVED_BLOCKS: Final = 64
"""Fewer than a message may hold: reading them must not hold up consensus on this machine."""

assert MAX_SERVED_BLOCKS <= MAX_SEGMENT_BLOCKS


def build_segment(store: ChainStore, height: int) -> SegmentAnswer | CertificateMessage | Absent:
    """Return blocks from `height` on, of one epoch, with the certificate of the last.

    Where more blocks than one message holds were finalized at once, the answer is that certificate
    alone: with it, consensus asks for the blocks one by one.
    """
    first = get_block(store, height) if height > 0 else None
    certificate = None if first is None else store.get_certificate(height)
    # A node that began at a checkpoint lacks blocks from before, or the certificate of a boundary.
    if first is None or certificate is None or first.extension.epoch != certificate.epoch:
        return Absent(SegmentRequest(Height(height)))
    part = read_blocks(store, height, certificate, MAX_SEGMENT_BYTES, MAX_SERVED_BLOCKS)
    if part is None:
        return CertificateMessage(certificate)
    blocks, size = part
    while (following := store.get_certificate(blocks[-1].height + 1)) is not None:
        if following.epoch != certificate.epoch:
            break
        room = MAX_SEGMENT_BYTES - size, MAX_SERVED_BLOCKS - len(blocks)
        more = read_blocks(store, blocks[-1].height + 1, following, *room)
        if more is None:
            break
        blocks, size, certificate = blocks + more[0], size + more[1], following
    return SegmentAnswer(tuple(blocks), certificate)


def read_blocks(
    store: ChainStore, start: int, certificate: Certificate, max_bytes: int, max_blocks: int
) -> tuple[list[Block], int] | None:
    """The blocks up to the certificate's, and their encoded size.

    None if they are too many, or not all here.
    """
    last = store.get_height(certificate.hash)
    assert last is not None, "a stored certificate is of a stored block"
    if last - start >= max_blocks:
        return None
    blocks: list[Block] = []
    size = 0
    for height in range(start, last + 1):
        block = get_block(store, height)
        if block is None:
            return None  # a boundary block above our head, left by a checkpoint start given up
        blocks.append(block)
        size += len(encode_block(block)) + 4
        if size > max_bytes:
            return None
    return blocks, size


def get_block(store: ChainStore, height: int) -> Block | None:
    """The block at this height, if this node has its body."""
    block_hash = store.get_hash(height)
    return None if block_hash is None else store.get_block(block_hash)

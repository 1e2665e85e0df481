"""Blocks: finding one, and the methods that read it."""

from typing import TYPE_CHECKING

from steelyard.chain.block import Block

from .dispatcher import Caller
from .encoding import JsonObject, encode_full_block, encode_quantity, encode_receipts
from .errors import REFUSED, Json, RpcError
from .parameters import BlockReference, parse_block, parse_flag, parse_hash, take

if TYPE_CHECKING:
    from ..node import Node


def find_block(node: "Node", reference: BlockReference) -> Block | None:
    """The finalized block, or None: not there yet, or never finalized."""
    if reference.is_head:
        return node.get_block(node.get_head().hash)
    if reference.height is not None:
        block_hash = node.get_hash(reference.height)
        return None if block_hash is None else node.get_block(block_hash)
    assert reference.block_hash is not None
    block = node.get_block(reference.block_hash)
    is_final = block is not None and node.get_hash(block.height) == reference.block_hash
    return block if is_final else None


def get_height(node: "Node", reference: BlockReference) -> int | None:
    """The height that a state query needs; None is the head. Raises RpcError for unknown hashes."""
    if reference.block_hash is None:
        return reference.height
    header = node.get_header(reference.block_hash)
    if header is None or node.get_hash(header.height) != reference.block_hash:
        raise RpcError(
            REFUSED, "header not found: no such finalized block", {"code": "unknown_block"}
        )
    return header.height


class BlockMethods:
    """eth_blockNumber, eth_getBlock…"""

    def __init__(self, node: "Node") -> None:
        self.node = node

    def get_block_number(self, params: object, _caller: Caller) -> Json:
        take(params, 0, 0)
        return encode_quantity(self.node.get_head().height)

    def get_block_by_number(self, params: object, _caller: Caller) -> Json:
        block, full = take(params, 1, 2)
        return self._encode(parse_block(block), parse_flag(full, "full transactions"))

    def get_block_by_hash(self, params: object, _caller: Caller) -> Json:
        block_hash, full = take(params, 1, 2)
        reference = BlockReference(block_hash=parse_hash(block_hash, "block hash"))
        return self._encode(reference, parse_flag(full, "full transactions"))

    def count_transactions_by_number(self, params: object, _caller: Caller) -> Json:
        (block,) = take(params, 1, 1)
        return self._count(parse_block(block))

    def count_transactions_by_hash(self, params: object, _caller: Caller) -> Json:
        (block_hash,) = take(params, 1, 1)
        return self._count(BlockReference(block_hash=parse_hash(block_hash, "block hash")))

    def get_block_receipts(self, params: object, _caller: Caller) -> Json:
        (reference,) = take(params, 1, 1)
        block = find_block(self.node, parse_block(reference))
        if block is None:
            return None
        return encode_receipts(block, self.node.get_receipts(block.hash))

    def _encode(self, reference: BlockReference, full: bool) -> JsonObject | None:
        block = find_block(self.node, reference)
        return None if block is None else encode_full_block(block, full)

    def _count(self, reference: BlockReference) -> str | None:
        block = find_block(self.node, reference)
        return None if block is None else encode_quantity(len(block.transactions))

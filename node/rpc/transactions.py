"""Transactions: sending, finding, and their receipts."""

from typing import TYPE_CHECKING

from steelyard.chain.params import MAX_TRANSACTION_BYTES
from steelyard.chain.transactions import decode_transaction

from .blocks import find_block
from .dispatcher import Caller
from .encoding import JsonObject, encode_data, encode_receipt, encode_transaction
from .errors import InvalidParameters, Json
from .parameters import BlockReference, parse_block, parse_data, parse_hash, parse_quantity, take

if TYPE_CHECKING:
    from ..node import Node

MAX_INDEX = 2**32 - 1


class TransactionMethods:
    """eth_sendRawTransaction, eth_getTransaction…"""

    def __init__(self, node: "Node") -> None:
        self.node = node

    def send_raw_transaction(self, params: object, _caller: Caller) -> Json:
        (value,) = take(params, 1, 1)
        raw = parse_data(value, "transaction")
        if len(raw) > MAX_TRANSACTION_BYTES:
            raise InvalidParameters(
                f"a transaction may have {MAX_TRANSACTION_BYTES} bytes, not {len(raw)}; "
                "tensors travel as blobs: PUT /blobs/{cid}"
            )
        return encode_data(self.node.submit_transaction(raw))

    def get_transaction_by_hash(self, params: object, _caller: Caller) -> Json:
        (value,) = take(params, 1, 1)
        transaction_hash = parse_hash(value, "transaction hash")
        # The pool first: a transaction leaves it only after it is in a finalized block.
        pending = self.node.get_pending_transaction(transaction_hash)
        inclusion = self.node.find_transaction(transaction_hash)
        if inclusion is not None:
            return self._encode(BlockReference(block_hash=inclusion.block_hash), inclusion.index)
        return None if pending is None else encode_transaction(pending, None, None)

    def get_transaction_by_block_hash(self, params: object, _caller: Caller) -> Json:
        block_hash, index = take(params, 2, 2)
        reference = BlockReference(block_hash=parse_hash(block_hash, "block hash"))
        return self._encode(reference, parse_quantity(index, "transaction index", MAX_INDEX))

    def get_transaction_by_block_number(self, params: object, _caller: Caller) -> Json:
        block, index = take(params, 2, 2)
        return self._encode(
            parse_block(block), parse_quantity(index, "transaction index", MAX_INDEX)
        )

    def get_transaction_receipt(self, params: object, _caller: Caller) -> Json:
        (value,) = take(params, 1, 1)
        inclusion = self.node.find_transaction(parse_hash(value, "transaction hash"))
        if inclusion is None:
            return None
        block = self.node.get_block(inclusion.block_hash)
        assert block is not None, "an indexed transaction whose block is gone"
        receipts = self.node.get_receipts(inclusion.block_hash)
        return encode_receipt(
            block.header,
            decode_transaction(block.transactions[inclusion.index]),
            inclusion.index,
            receipts[inclusion.index],
            sum(len(receipt.logs) for receipt in receipts[: inclusion.index]),
        )

    def _encode(self, reference: BlockReference, index: int) -> JsonObject | None:
        block = find_block(self.node, reference)
        if block is None or index >= len(block.transactions):
            return None
        return encode_transaction(
            decode_transaction(block.transactions[index]), block.header, index
        )

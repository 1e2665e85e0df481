"""What gas costs: the next base fee, the suggested tip, and the history of both."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from steelyard.chain.block import Block, compute_base_fee
from steelyard.chain.receipts import Receipt
from steelyard.chain.transactions import decode_transaction

from .blocks import get_height
from .dispatcher import Caller
from .encoding import compute_gas_price, encode_quantity
from .errors import InvalidParameters, Json
from .limits import MAX_FEE_HISTORY_BLOCKS, MAX_REWARD_BLOCKS, MAX_REWARD_PERCENTILES
from .parameters import describe, parse_block, parse_list, parse_quantity, take

if TYPE_CHECKING:
    from ..node import Node

BLOB_BASE_FEE = "0x1"
"""EIP-4844 blobs are refused; their price stays at the smallest one."""


class FeeMethods:
    """eth_gasPrice, eth_maxPriorityFeePerGas, eth_feeHistory."""

    def __init__(self, node: "Node") -> None:
        self.node = node

    def get_gas_price(self, params: object, _caller: Caller) -> Json:
        take(params, 0, 0)
        return encode_quantity(self.node.get_next_base_fee() + self.node.get_suggested_tip())

    def get_priority_fee(self, params: object, _caller: Caller) -> Json:
        take(params, 0, 0)
        return encode_quantity(self.node.get_suggested_tip())

    def get_fee_history(self, params: object, _caller: Caller) -> Json:
        count_value, newest_value, percentiles_value = take(params, 2, 3)
        percentiles = parse_percentiles(percentiles_value)
        most = MAX_REWARD_BLOCKS if percentiles else MAX_FEE_HISTORY_BLOCKS
        count = min(parse_count(count_value), most)
        newest = get_height(self.node, parse_block(newest_value))
        head = self.node.get_head().height
        newest = head if newest is None else newest
        if newest > head:
            raise InvalidParameters(f"block {newest} is beyond the head, {head}")
        blocks = self._list_blocks(newest, count)
        oldest = newest - len(blocks) + 1
        fees = [block.header.base_fee for block in blocks]
        if blocks:
            fees.append(compute_base_fee(blocks[-1].header, self.node.rules.min_base_fee))
        history: dict[str, Json] = {
            "oldestBlock": encode_quantity(oldest),
            "baseFeePerGas": [encode_quantity(fee) for fee in fees],
            "gasUsedRatio": [block.header.gas_used / block.header.gas_limit for block in blocks],
            "baseFeePerBlobGas": [BLOB_BASE_FEE] * len(fees),
            "blobGasUsedRatio": [0.0] * len(blocks),
        }
        if percentiles:
            history["reward"] = [
                [encode_quantity(tip) for tip in self._compute_rewards(block, percentiles)]
                for block in blocks
            ]
        return history

    def _list_blocks(self, newest: int, count: int) -> list[Block]:
        """The last `count` blocks up to `newest`; fewer if this node has not so many."""
        blocks: list[Block] = []
        for height in range(newest, max(newest - count, -1), -1):
            block_hash = self.node.get_hash(height)
            block = None if block_hash is None else self.node.get_block(block_hash)
            if block is None:
                break  # it began at a checkpoint
            blocks.append(block)
        return blocks[::-1]

    def _compute_rewards(self, block: Block, percentiles: Sequence[float]) -> list[int]:
        return compute_rewards(block, self.node.get_receipts(block.hash), percentiles)


def parse_count(value: object) -> int:
    """How many blocks: hex, or (as older clients send) a number."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    return parse_quantity(value, "block count")


def parse_percentiles(value: object) -> list[float]:
    """Numbers from 0 to 100 in ascending order."""
    if value is None:
        return []
    percentiles: list[float] = []
    for one in parse_list(value, "percentiles", MAX_REWARD_PERCENTILES):
        if isinstance(one, bool) or not isinstance(one, int | float) or not 0 <= one <= 100:
            raise InvalidParameters(f"a percentile must be from 0 to 100, not {describe(one)}")
        if percentiles and one < percentiles[-1]:
            raise InvalidParameters("percentiles must ascend")
        percentiles.append(float(one))
    return percentiles


def compute_rewards(
    block: Block, receipts: Sequence[Receipt], percentiles: Sequence[float]
) -> list[int]:
    """The tip in wei at each percentile of the block's gas, cheapest first; zeros if empty."""
    base_fee = block.header.base_fee
    paid = sorted(
        (compute_gas_price(decode_transaction(raw), base_fee) - base_fee, receipt.gas_used)
        for raw, receipt in zip(block.transactions, receipts, strict=True)
    )
    if not paid:
        return [0] * len(percentiles)
    rewards, index, gas = [], 0, paid[0][1]
    for percentile in percentiles:
        while gas < block.header.gas_used * percentile / 100 and index < len(paid) - 1:
            index += 1
            gas += paid[index][1]
        rewards.append(paid[index][0])
    return rewards

"""Logs of finalized blocks: one query, and the ranges that filters poll."""

from typing import TYPE_CHECKING

from ..records import LogQuery
from .blocks import find_block, get_height
from .dispatcher import Caller
from .encoding import JsonObject, encode_log
from .errors import REFUSED, InvalidParameters, Json, LimitExceeded, RpcError
from .limits import MAX_LOG_BLOCKS, MAX_LOGS
from .parameters import BlockReference, LogCriteria, parse_log_criteria, take

if TYPE_CHECKING:
    from ..node import Node


def compute_query(criteria: LogCriteria, start: int, stop: int) -> LogQuery:
    """The same criteria over a range of heights."""
    return LogQuery(start, stop, criteria.addresses, criteria.topics)


def resolve_range(node: "Node", criteria: LogCriteria) -> tuple[int, int]:
    """The heights that are meant now, both included; start > stop means none."""
    head = node.get_head().height
    if criteria.block_hash is not None:
        block = find_block(node, BlockReference(block_hash=criteria.block_hash))
        if block is None:
            raise RpcError(REFUSED, "no such finalized block", {"code": "unknown_block"})
        return block.height, block.height
    start, stop = get_height(node, criteria.start), get_height(node, criteria.stop)
    if start is not None and stop is not None and start > stop:
        raise InvalidParameters(f"fromBlock {start} is after toBlock {stop}")
    return (head if start is None else start), (head if stop is None else min(stop, head))


def read_logs(node: "Node", criteria: LogCriteria, start: int, stop: int) -> list[JsonObject]:
    """The logs from one height to another. Raises LimitExceeded, SteelyardError logs_limit."""
    if start > stop:
        return []
    if stop - start + 1 > MAX_LOG_BLOCKS:
        raise LimitExceeded(
            f"{stop - start + 1} blocks are too many; ask for at most {MAX_LOG_BLOCKS} at a time"
        )
    query = compute_query(criteria, start, stop)
    return [encode_log(entry) for entry in node.get_logs(query, MAX_LOGS)]


class LogMethods:
    """eth_getLogs."""

    def __init__(self, node: "Node") -> None:
        self.node = node

    def get_logs(self, params: object, _caller: Caller) -> Json:
        (value,) = take(params, 1, 1)
        criteria = parse_log_criteria(value)
        return read_logs(self.node, criteria, *resolve_range(self.node, criteria))

"""Polled filters. Finalized blocks never change: a filter is a cursor, the next height to report.

Filters live in memory and end when nobody polls them, when the node restarts, or when asked.
"""

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from eth_hash.auto import keccak

from steelyard.chain.types import Hash

from .dispatcher import Caller
from .encoding import encode_data
from .errors import REFUSED, InvalidParameters, Json, LimitExceeded, RpcError
from .limits import (
    FILTER_IDLE_SECONDS,
    MAX_FILTERS,
    MAX_FILTERS_PER_CALLER,
    MAX_LOG_BLOCKS,
)
from .logs import read_logs, resolve_range
from .parameters import LogCriteria, describe, parse_log_criteria, take

if TYPE_CHECKING:
    from ..node import Node


class Kind(Enum):
    LOGS = auto()
    BLOCKS = auto()
    PENDING = auto()


@dataclass(slots=True)
class Filter:
    """One filter: `next_height` is the first block that it has not reported."""

    kind: Kind
    host: str
    next_height: int
    polled_at: float
    criteria: LogCriteria | None = None
    seen: set[Hash] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


class FilterMethods:
    """eth_newFilter, eth_newBlockFilter, eth_newPendingTransactionFilter and their polling."""

    def __init__(self, node: "Node", now: Callable[[], float] = time.monotonic) -> None:
        self.node, self.now = node, now
        self._filters: dict[str, Filter] = {}
        self._lock = threading.Lock()

    def create_log_filter(self, params: object, caller: Caller) -> Json:
        (value,) = take(params, 1, 1)
        criteria = parse_log_criteria(value)
        if criteria.block_hash is not None:
            raise InvalidParameters("a filter follows new blocks: leave blockHash out")
        start, _ = resolve_range(self.node, criteria)
        first = max(start, self.node.get_head().height + 1)
        return self._add(Kind.LOGS, caller, first, criteria)

    def create_block_filter(self, params: object, caller: Caller) -> Json:
        take(params, 0, 0)
        return self._add(Kind.BLOCKS, caller, self.node.get_head().height + 1)

    def create_pending_filter(self, params: object, caller: Caller) -> Json:
        take(params, 0, 1)
        seen = {one.hash for one in self.node.get_pending()}
        return self._add(Kind.PENDING, caller, self.node.get_head().height + 1, seen=seen)

    def get_changes(self, params: object, _caller: Caller) -> Json:
        one = self._get(*take(params, 1, 1))
        with one.lock:
            if one.kind is Kind.LOGS:
                return self._read_new_logs(one)
            if one.kind is Kind.BLOCKS:
                return self._read_new_blocks(one)
            return self._read_new_transactions(one)

    def get_logs(self, params: object, _caller: Caller) -> Json:
        one = self._get(*take(params, 1, 1))
        if one.criteria is None:
            raise InvalidParameters("this filter is not one of logs")
        return read_logs(self.node, one.criteria, *resolve_range(self.node, one.criteria))

    def uninstall(self, params: object, _caller: Caller) -> Json:
        (identifier,) = take(params, 1, 1)
        with self._lock:
            return isinstance(identifier, str) and self._filters.pop(identifier, None) is not None

    def _read_new_logs(self, one: Filter) -> Json:
        assert one.criteria is not None
        _, stop = resolve_range(self.node, one.criteria)
        stop = min(stop, one.next_height + MAX_LOG_BLOCKS - 1)
        logs = read_logs(self.node, one.criteria, one.next_height, stop)
        one.next_height = max(one.next_height, stop + 1)
        return logs

    def _read_new_blocks(self, one: Filter) -> Json:
        stop = min(self.node.get_head().height, one.next_height + MAX_LOG_BLOCKS - 1)
        hashes = [self.node.get_hash(height) for height in range(one.next_height, stop + 1)]
        one.next_height = max(one.next_height, stop + 1)
        return [encode_data(block_hash) for block_hash in hashes if block_hash is not None]

    def _read_new_transactions(self, one: Filter) -> Json:
        """Hashes that are pending now, or were finalized since, and have not been reported."""
        pending = {transaction.hash: None for transaction in self.node.get_pending()}
        found = dict.fromkeys([*self._read_finalized(one), *pending])
        fresh = [one_hash for one_hash in found if one_hash not in one.seen]
        one.seen = set(pending)  # what is final by now lies below `next_height`
        return [encode_data(one_hash) for one_hash in fresh]

    def _read_finalized(self, one: Filter) -> list[Hash]:
        stop = min(self.node.get_head().height, one.next_height + MAX_LOG_BLOCKS - 1)
        hashes: list[Hash] = []
        for height in range(one.next_height, stop + 1):
            block_hash = self.node.get_hash(height)
            block = None if block_hash is None else self.node.get_block(block_hash)
            assert block is not None, "a finalized height without a block"
            hashes.extend(Hash(keccak(raw)) for raw in block.transactions)
        one.next_height = max(one.next_height, stop + 1)
        return hashes

    def _add(
        self,
        kind: Kind,
        caller: Caller,
        next_height: int,
        criteria: LogCriteria | None = None,
        seen: set[Hash] | None = None,
    ) -> str:
        identifier = "0x" + secrets.token_hex(16)
        with self._lock:
            self._forget_idle()
            if len(self._filters) >= MAX_FILTERS:
                raise LimitExceeded(f"this node already has {MAX_FILTERS} filters; use eth_getLogs")
            owned = Counter(one.host for one in self._filters.values())[caller.host]
            if owned >= MAX_FILTERS_PER_CALLER:
                raise LimitExceeded(
                    f"{caller.host} already has {MAX_FILTERS_PER_CALLER} filters; "
                    "call eth_uninstallFilter on those no longer needed"
                )
            self._filters[identifier] = Filter(
                kind, caller.host, next_height, self.now(), criteria, seen or set()
            )
        return identifier

    def _get(self, identifier: object) -> Filter:
        if not isinstance(identifier, str):
            raise InvalidParameters(f"a filter id is a string, not {describe(identifier)}")
        with self._lock:
            self._forget_idle()
            one = self._filters.get(identifier)
            if one is None:
                raise RpcError(
                    REFUSED,
                    f"filter not found: they end {FILTER_IDLE_SECONDS:.0f} s after the last poll",
                    {"code": "unknown_filter"},
                )
            one.polled_at = self.now()
            return one

    def _forget_idle(self) -> None:
        oldest = self.now() - FILTER_IDLE_SECONDS
        idle = [key for key, one in self._filters.items() if one.polled_at < oldest]
        for key in idle:
            del self._filters[key]

"""Pending transactions: bounded, one queue for each sender, in the order of what they pay.

A transaction is *eligible* when its nonce follows on, its fee cap covers the base fee and every
blob that it declares is available. The pool is not consensus and is not kept over a restart:
senders send the same bytes again.

Thread-safe. The account reader and `is_available` are called under the lock and must not call back.
"""

import heapq
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from steelyard.chain.block import Rules
from steelyard.chain.cid import Cid, is_named
from steelyard.chain.errors import InvalidTransaction
from steelyard.chain.params import MAX_BLOB_BYTES_PER_BLOCK
from steelyard.chain.transactions import (
    StaleNonce,
    Transaction,
    check_transaction,
    decode_transaction,
)
from steelyard.chain.types import Address, BlobName, Hash

from .config import MempoolConfig

REPLACEMENT_PERCENT = 110
REPLACEMENT_PERCENT_BLOBS = 200
"""Blobs were already transferred and stored for the transaction that would be thrown away."""
REMEMBERED_LATE = 1024
PASSING = frozenset({"tx_nonce_high", "tx_fee_low", "tx_block_full"})
"""Refusals of a builder that say nothing against trying again in a later block."""

Rank: TypeAlias = tuple[bool, int, int]
"""Nothing is missing before it, tip, fee cap: the lowest goes first."""
NOBODY: Final[tuple[Rank, "Entry | None"]] = (False, 0, 0), None


@dataclass(frozen=True, slots=True)
class Sender:
    """An account as the finalized head has it."""

    nonce: int
    balance: int
    has_code: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """A pending transaction with the second it arrived (monotonic) and its place in the line."""

    transaction: Transaction
    arrived: float
    order: int
    source: Address | None
    """The validator that sent it; None if it was handed to this node."""


@dataclass(slots=True)
class Queue:
    """One sender's pending transactions by nonce; `nonce` is that of the finalized account."""

    nonce: int
    entries: dict[int, Entry] = field(default_factory=dict)

    def get_next_nonce(self) -> int:
        """The first nonce without a transaction."""
        nonce = self.nonce
        while nonce in self.entries:
            nonce += 1
        return nonce

    def get_last(self) -> Entry:
        return self.entries[max(self.entries)]


class Mempool:
    """See the module. `clock` gives monotonic seconds; `is_held` says whether a blob is on disk;
    `read_base_fee` is what a unit of gas costs in the next block.

    `is_available` says whether a block may carry a blob: where others vote, that enough of them
    hold it. `on_added` learns every new transaction with its source, outside the lock.
    """

    def __init__(
        self,
        rules: Rules,
        config: MempoolConfig,
        read_sender: Callable[[Address], Sender],
        read_base_fee: Callable[[], int],
        is_held: Callable[[BlobName], bool],
        clock: Callable[[], float],
    ) -> None:
        self._rules, self._config = rules, config
        self._read_sender, self._read_base_fee = read_sender, read_base_fee
        self._is_held, self._clock = is_held, clock
        self.is_available = is_held
        self.on_added: Callable[[Transaction, Address | None], None] = lambda *_: None
        self._lock = threading.RLock()
        self._queues: dict[Address, Queue] = {}
        self._by_hash: dict[Hash, Entry] = {}
        self._declared: dict[BlobName, set[Hash]] = {}
        self._late: OrderedDict[BlobName, None] = OrderedDict()
        self._bytes = 0
        self._arrivals = 0

    # -- adding ------------------------------------------------------------------------------------
    def add(self, raw: bytes) -> Hash:
        """Take a transaction in. Raises InvalidTransaction. Known bytes are accepted again."""
        return self.add_transaction(decode_transaction(raw), None)

    def add_transaction(self, transaction: Transaction, source: Address | None) -> Hash:
        """The same for a decoded one, which the validator `source` sent."""
        check_transaction(transaction, self._rules.chain_id, self._rules.gas_limit)
        self._check_fees(transaction)
        if self._take(transaction, source):
            self.on_added(transaction, source)
        return transaction.hash

    def _take(self, transaction: Transaction, source: Address | None) -> bool:
        """Whether it was new."""
        with self._lock:
            if transaction.hash in self._by_hash:
                return False
            sender = self._read_sender(transaction.sender)
            queue = self._queues.get(transaction.sender) or Queue(sender.nonce)
            queue.nonce = sender.nonce
            replaced = queue.entries.get(transaction.nonce)
            check_queue(transaction, sender, queue, self._config)
            if transaction.blobs:
                check_blob_queue(transaction, queue, self._read_base_fee())
            check_replacement(transaction, replaced)
            self._make_room(transaction, queue)
            if replaced is not None:
                self._remove(replaced.transaction)
            self._insert(transaction, sender.nonce, source)
            return True

    def _check_fees(self, transaction: Transaction) -> None:
        if transaction.max_fee < self._rules.min_base_fee:
            raise InvalidTransaction(
                "tx_fee_low",
                f"fee cap {transaction.max_fee} wei; the base fee is never below "
                f"{self._rules.min_base_fee}",
            )
        if transaction.max_priority_fee < self._config.min_tip_wei:
            raise InvalidTransaction(
                "tx_tip",
                f"tip {transaction.max_priority_fee} wei; at least {self._config.min_tip_wei} here",
            )

    def _make_room(self, transaction: Transaction, queue: Queue) -> None:
        """Evict the cheapest last-in-line of other senders until this fits, or refuse it."""
        replaced = queue.entries.get(transaction.nonce)
        freed = len(replaced.transaction.raw) if replaced is not None else 0
        count = 1 if replaced is None else 0
        while (
            len(self._by_hash) + count > self._config.max_transactions
            or self._bytes + len(transaction.raw) - freed > self._config.max_bytes
        ):
            base_fee = self._read_base_fee()
            victims = [
                (self._rank(one.get_last().transaction, one, base_fee), one.get_last())
                for address, one in self._queues.items()
                if address != transaction.sender
            ]
            rank, cheapest = min(victims, key=lambda one: (one[0], -one[1].order), default=NOBODY)
            if cheapest is None or self._rank(transaction, queue, base_fee) <= rank:
                raise InvalidTransaction(
                    "tx_pool_full", "the pool is full of better paying ones; pay more or try later"
                )
            self._remove(cheapest.transaction)

    def _rank(self, transaction: Transaction, queue: Queue, base_fee: int) -> Rank:
        """What a place in the pool is worth: no more than for those before it in its line.

        Whatever stands behind a gap is worth least: else a pool could be filled with offers that
        nobody ever has to pay.
        """
        tip = compute_tip(transaction, base_fee)
        for nonce in range(queue.nonce, transaction.nonce):
            entry = queue.entries.get(nonce)
            if entry is None or not self._has_blobs(entry.transaction):
                return False, tip, transaction.max_fee
            tip = min(tip, compute_tip(entry.transaction, base_fee))
        return True, tip, transaction.max_fee

    def _insert(self, transaction: Transaction, nonce: int, source: Address | None) -> None:
        self._arrivals += 1
        entry = Entry(transaction, self._clock(), self._arrivals, source)
        queue = self._queues.setdefault(transaction.sender, Queue(nonce))
        queue.entries[transaction.nonce] = entry
        self._by_hash[transaction.hash] = entry
        self._bytes += len(transaction.raw)
        for name in transaction.blobs:
            self._declared.setdefault(name, set()).add(transaction.hash)
            self._late.pop(name, None)

    def _remove(self, transaction: Transaction) -> None:
        self._by_hash.pop(transaction.hash)
        self._bytes -= len(transaction.raw)
        queue = self._queues[transaction.sender]
        del queue.entries[transaction.nonce]
        if not queue.entries:
            del self._queues[transaction.sender]
        for name in transaction.blobs:
            holders = self._declared[name]
            holders.discard(transaction.hash)
            if not holders:
                del self._declared[name]

    # -- leaving -----------------------------------------------------------------------------------
    def remove_included(self, transactions: Iterable[Transaction]) -> None:
        """A block is final: its transactions, and what their nonces made void, leave."""
        with self._lock:
            for included in transactions:
                queue = self._queues.get(included.sender)
                if queue is None:
                    continue
                queue.nonce = max(queue.nonce, included.nonce + 1)
                for nonce in sorted(nonce for nonce in queue.entries if nonce < queue.nonce):
                    self._remove(queue.entries[nonce].transaction)

    def remove_refused(self, raw: bytes, error: InvalidTransaction) -> None:
        """A builder could not include it; unless that may change, it leaves."""
        if error.code in PASSING:
            return
        with self._lock:
            transaction = decode_transaction(raw)
            if transaction.hash in self._by_hash:
                self._remove(transaction)

    def expire(self) -> tuple[Hash, ...]:
        """Drop what waited too long, and blob transactions whose blobs did not come in time."""
        now = self._clock()
        with self._lock:
            expired = [
                entry.transaction
                for entry in self._by_hash.values()
                if self._is_expired(entry, now)
            ]
            for transaction in expired:
                self._remove(transaction)
                for name in transaction.blobs:
                    self._late[name] = None
            while len(self._late) > REMEMBERED_LATE:
                self._late.popitem(last=False)
            return tuple(transaction.hash for transaction in expired)

    def _is_expired(self, entry: Entry, now: float) -> bool:
        age = now - entry.arrived
        if age > self._config.expiry_seconds:
            return True
        return age > self._config.blob_expiry_seconds and not self._has_blobs(entry.transaction)

    # -- asking ------------------------------------------------------------------------------------
    def get(self, transaction_hash: Hash) -> Transaction | None:
        with self._lock:
            entry = self._by_hash.get(transaction_hash)
            return None if entry is None else entry.transaction

    def get_all(self) -> tuple[Transaction, ...]:
        """Every pending transaction, first come first."""
        with self._lock:
            entries = sorted(self._by_hash.values(), key=lambda entry: entry.order)
            return tuple(entry.transaction for entry in entries)

    def get_own(self) -> tuple[Entry, ...]:
        """What was handed to this node and not to another validator, first come first."""
        with self._lock:
            own = (entry for entry in self._by_hash.values() if entry.source is None)
            return tuple(sorted(own, key=lambda entry: entry.order))

    def get_next_nonce(self, address: Address) -> int | None:
        """The sender's first free nonce, or None if nothing of it is pending."""
        with self._lock:
            queue = self._queues.get(address)
            return None if queue is None else queue.get_next_nonce()

    def get_size(self) -> tuple[int, int]:
        """Transactions, bytes."""
        with self._lock:
            return len(self._by_hash), self._bytes

    def is_declared(self, name: BlobName) -> bool:
        with self._lock:
            return name in self._declared

    def get_declared(self) -> tuple[BlobName, ...]:
        """The blobs that pending transactions declare."""
        with self._lock:
            return tuple(self._declared)

    def find_declared(self, cid: Cid) -> tuple[BlobName, ...]:
        """The blobs that pending transactions declare under this CID."""
        with self._lock:
            return tuple(name for name in self._declared if is_named(name, cid))

    def is_late(self, cid: Cid) -> bool:
        """Did the transaction that declared it leave because its blobs had not come?"""
        with self._lock:
            return any(is_named(name, cid) for name in self._late)

    def has_eligible(self, base_fee: int, nonces: Mapping[Address, int]) -> bool:
        """Is there work for a block? See `iter_eligible`."""
        return next(self.iter_eligible(base_fee, nonces), None) is not None

    def iter_eligible(self, base_fee: int, nonces: Mapping[Address, int]) -> Iterator[Transaction]:
        """Best paying first, each sender's by nonce, over a copy of the pool.

        `nonces` are those of senders that unfinalized ancestors of the new block moved on.
        """
        with self._lock:
            queues = [
                (nonces.get(address, queue.nonce), dict(queue.entries))
                for address, queue in self._queues.items()
            ]
        heap: list[tuple[int, int, int, dict[int, Entry]]] = []
        for nonce, entries in queues:
            self._push_next(heap, base_fee, nonce, entries)
        blob_bytes = 0
        while heap:
            _, _, nonce, entries = heapq.heappop(heap)
            transaction = entries[nonce].transaction
            if blob_bytes + transaction.blob_bytes > MAX_BLOB_BYTES_PER_BLOCK:
                continue
            blob_bytes += transaction.blob_bytes
            yield transaction
            self._push_next(heap, base_fee, nonce + 1, entries)

    def _push_next(
        self,
        heap: list[tuple[int, int, int, dict[int, Entry]]],
        base_fee: int,
        nonce: int,
        entries: dict[int, Entry],
    ) -> None:
        entry = entries.get(nonce)
        if (
            entry is None
            or entry.transaction.max_fee < base_fee
            or not all(self.is_available(name) for name in entry.transaction.blobs)
        ):
            return
        tip = compute_tip(entry.transaction, base_fee)
        heapq.heappush(heap, (-tip, entry.order, nonce, entries))

    def _has_blobs(self, transaction: Transaction) -> bool:
        return all(self._is_held(name) for name in transaction.blobs)


def check_queue(
    transaction: Transaction, sender: Sender, queue: Queue, config: MempoolConfig
) -> None:
    """Raise InvalidTransaction if the sender may not queue this, whatever others pay."""
    if transaction.nonce < sender.nonce:
        raise StaleNonce(expected=sender.nonce, actual=transaction.nonce)
    if sender.has_code:
        raise InvalidTransaction("tx_sender_code", "the sender is a contract (EIP-3607)")
    if transaction.nonce >= sender.nonce + config.max_per_sender:
        raise InvalidTransaction(
            "tx_nonce_high",
            f"nonce {transaction.nonce}; the account is at {sender.nonce} and this node queues "
            f"{config.max_per_sender} transactions of a sender",
        )
    check_balance(transaction, sender, queue)


def check_balance(transaction: Transaction, sender: Sender, queue: Queue) -> None:
    """The sender can pay for all that it has pending, at the fee caps."""
    others = sum(
        entry.transaction.max_cost
        for nonce, entry in queue.entries.items()
        if sender.nonce <= nonce != transaction.nonce
    )
    if sender.balance < transaction.max_cost + others:
        raise InvalidTransaction(
            "tx_balance",
            f"{sender.balance} wei; value and gas need {transaction.max_cost}"
            + (f" beside {others} of other pending transactions" if others else ""),
        )


def check_blob_queue(transaction: Transaction, queue: Queue, base_fee: int) -> None:
    """One pending blob transaction for each sender, and nothing before it that keeps it waiting.

    What could wait as long as it likes would occupy the quota of blobs for nothing.
    """
    for nonce, entry in queue.entries.items():
        if queue.nonce <= nonce != transaction.nonce and entry.transaction.blobs:
            raise InvalidTransaction(
                "tx_blob_pending", f"transaction {nonce} of this sender still waits with its blobs"
            )
    if transaction.nonce > queue.get_next_nonce():
        raise InvalidTransaction(
            "tx_nonce_high",
            f"a blob transaction may not leave a gap: nonce {transaction.nonce}, the next one is "
            f"{queue.get_next_nonce()}",
        )
    before = (
        entry.transaction.max_fee
        for nonce, entry in queue.entries.items()
        if queue.nonce <= nonce < transaction.nonce
    )
    lowest = min((transaction.max_fee, *before))
    if lowest < base_fee:
        raise InvalidTransaction(
            "tx_fee_low",
            f"fee cap {lowest} wei, of it or of one before it; blobs are taken at no less than the "
            f"base fee, {base_fee}",
        )


def check_replacement(transaction: Transaction, replaced: Entry | None) -> None:
    """The same nonce again must pay a tenth more, or twice as much where blobs are involved."""
    if replaced is None:
        return
    old = replaced.transaction
    percent = REPLACEMENT_PERCENT_BLOBS if old.blobs or transaction.blobs else REPLACEMENT_PERCENT
    if (
        100 * transaction.max_fee < percent * old.max_fee
        or 100 * transaction.max_priority_fee < percent * old.max_priority_fee
    ):
        raise InvalidTransaction(
            "tx_underpriced",
            f"nonce {old.nonce} is pending; a replacement must raise fee cap and tip by "
            f"{percent - 100} %",
        )


def compute_tip(transaction: Transaction, base_fee: int) -> int:
    """Wei a gas for the proposer; below 0 if the fee cap does not cover the base fee."""
    return min(transaction.max_priority_fee, transaction.max_fee - base_fee)

"""Transactions among validators: what is handed to one of them soon waits in every pool.

Each is connected to all, so only the validator that a user handed a transaction to sends it on;
what came from a validator is never passed on. Messages may be lost and validators may be away: own
transactions that stay pending are sent again now and then, and to whoever connects.

Pools are not alike at every instant: a transaction may arrive before the one with the nonce before
it, or before the block that funds its sender. What is refused for such a reason is set aside and
tried again for a while, at every new head and whenever a transaction of its sender comes.

A refusal costs the validator that sent it: bytes that no honest one would have passed on cost much,
others little. Whoever has used up its allowance is not listened to until it has filled again.

One thread owns a `Gossip`; methods return the messages to send.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from eth_utils.crypto import keccak

from steelyard.chain.errors import InvalidTransaction
from steelyard.chain.transactions import Transaction, decode_transaction
from steelyard.chain.types import Address, Hash

from ..mempool import Entry, Mempool
from .outgoing import Outgoing
from .quota import Bucket
from .wire import TransactionMessage

REPEAT_SECONDS: Final = 5.0
"""Own transactions that are pending for so long are sent again, this often."""
MAX_REPEATED: Final = 256
MAX_REPEATED_BYTES: Final = 2**20
"""What is sent again at once: to all, or to one that connected."""
EARLY: Final = frozenset({"tx_nonce_high", "tx_balance", "tx_blob_pending", "tx_fee_low"})
"""Refusals that another head, or another transaction, may turn into the opposite."""
PASSED: Final = frozenset(
    {*EARLY, "tx_nonce_low", "tx_pool_full", "tx_underpriced", "tx_sender_code", "tx_tip"}
)
"""Refusals that an honest validator's transaction may meet here."""
MAX_EARLY: Final = 64
MAX_EARLY_BYTES: Final = 2**20
"""Set aside for each validator; its oldest go first."""
EARLY_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 0.5
ALLOWANCE: Final = 1_024.0
ALLOWANCE_PER_SECOND: Final = 16.0
COST_OF_GARBAGE: Final = 32.0
COST_OF_REFUSAL: Final = 0.25
MAX_REFUSED: Final = 4_096
"""Hashes of transactions that can never enter, so that they are decoded once."""


@dataclass(frozen=True, slots=True)
class Early:
    """A decoded transaction that was refused for now."""

    transaction: Transaction
    until: float


@dataclass(slots=True)
class GossipCounters:
    """Totals since the start."""

    transactions_received: int = 0
    transactions_refused: int = 0
    transactions_unheard: int = 0
    """Of validators that had used up their allowance."""


class Gossip:
    """See the module."""

    def __init__(self, mempool: Mempool) -> None:
        self._mempool = mempool
        self._allowances: dict[Address, Bucket] = {}
        self._early: dict[Address, OrderedDict[Hash, Early]] = {}
        self._refused: OrderedDict[Hash, None] = OrderedDict()
        self._retry_at = self._repeat_at = float("-inf")
        self._repeated = -1
        self.counters = GossipCounters()

    def set_peers(self, peers: Iterable[Address], now: float) -> None:
        """Those whose transactions are taken."""
        self._allowances = {
            peer: self._allowances.get(peer) or Bucket.create(ALLOWANCE_PER_SECOND, ALLOWANCE, now)
            for peer in peers
        }
        self._early = {peer: self._early.get(peer, OrderedDict()) for peer in self._allowances}

    # -- ours --------------------------------------------------------------------------------------
    def on_added(self, transaction: Transaction, source: Address | None) -> list[Outgoing]:
        """A new one is in the pool. From any thread."""
        return [] if source is not None else [(None, TransactionMessage(transaction.raw))]

    def on_connected(self, peer: Address) -> list[Outgoing]:
        """It may have missed what is pending: send it the oldest own ones, a bounded number."""
        return [(peer, TransactionMessage(raw)) for raw in select_repeated(self._mempool.get_own())]

    def _repeat(self, now: float) -> list[Outgoing]:
        """Own ones that wait, in turns, so that all are sent again some time."""
        self._repeat_at = now + REPEAT_SECONDS
        waiting = [
            entry for entry in self._mempool.get_own() if now - entry.arrived >= REPEAT_SECONDS
        ]
        later = [entry for entry in waiting if entry.order > self._repeated] or waiting
        chosen = select_repeated(later)
        self._repeated = later[len(chosen) - 1].order if chosen else -1
        return [(None, TransactionMessage(raw)) for raw in chosen]

    # -- theirs ------------------------------------------------------------------------------------
    def on_transaction(self, peer: Address, raw: bytes, now: float) -> None:
        """A validator passed on what was handed to it."""
        allowance = self._allowances.get(peer)
        if allowance is None:
            return
        name = Hash(bytes(keccak(raw)))
        is_known = self._mempool.get(name) is not None or name in self._early[peer]
        if is_known or name in self._refused:
            return
        if not allowance.has_taken(0.0, now) or allowance.tokens < COST_OF_GARBAGE:
            self.counters.transactions_unheard += 1
            return
        self.counters.transactions_received += 1
        try:
            transaction = decode_transaction(raw)
            self._mempool.add_transaction(transaction, peer)
        except InvalidTransaction as error:
            self._refuse(peer, name, error, now)
            if error.code in EARLY:
                self._set_aside(peer, transaction, now)
        else:
            self._retry(now, transaction.sender)

    def _refuse(self, peer: Address, name: Hash, error: InvalidTransaction, now: float) -> None:
        self.counters.transactions_refused += 1
        is_passed = error.code in PASSED
        self._allowances[peer].has_taken(COST_OF_REFUSAL if is_passed else COST_OF_GARBAGE, now)
        if error.code == "tx_nonce_low" or not is_passed:
            self._refused[name] = None
            if len(self._refused) > MAX_REFUSED:
                self._refused.popitem(last=False)

    def _set_aside(self, peer: Address, transaction: Transaction, now: float) -> None:
        early = self._early[peer]
        early[transaction.hash] = Early(transaction, now + EARLY_SECONDS)
        while (
            len(early) > MAX_EARLY
            or sum(len(one.transaction.raw) for one in early.values()) > MAX_EARLY_BYTES
        ):
            early.popitem(last=False)

    def count_early(self) -> int:
        """Transactions that were set aside."""
        return sum(len(early) for early in self._early.values())

    def on_head(self, now: float) -> None:
        """A block is final: what came too early may be in time now."""
        self._retry(now, None)

    def tick(self, now: float) -> list[Outgoing]:
        """Several times a second: tries again what came early, sends again what waits."""
        if now >= self._retry_at:
            self._retry_at = now + RETRY_SECONDS
            self._retry(now, None)
        return self._repeat(now) if now >= self._repeat_at else []

    def _retry(self, now: float, sender: Address | None) -> None:
        """Try again what was set aside, of one sender or of all, in the order of the nonces."""
        waiting = [
            (one.transaction.nonce, name, peer, one)
            for peer, early in self._early.items()
            for name, one in early.items()
            if sender is None or one.transaction.sender == sender
        ]
        for _, name, peer, one in sorted(waiting, key=lambda row: row[:2]):
            try:
                self._mempool.add_transaction(one.transaction, peer)
            except InvalidTransaction as error:
                if error.code in EARLY and now < one.until:
                    continue
            del self._early[peer][name]


def select_repeated(entries: Iterable[Entry]) -> list[bytes]:
    """The first of these that are few and small enough to be sent at once."""
    chosen: list[bytes] = []
    for entry in entries:
        chosen.append(entry.transaction.raw)
        if len(chosen) == MAX_REPEATED or sum(map(len, chosen)) >= MAX_REPEATED_BYTES:
            break
    return chosen

"""Building this validator's own blocks from the pool.

A transaction that cannot be executed here, because a blob that the chain admitted is lost or
because of a bug of ours, must not stop the chain: the block is built without it.
"""

from collections.abc import Iterator

from steelyard.chain.block import Rules, compute_base_fee
from steelyard.chain.consensus.messages import Propose
from steelyard.chain.errors import InvalidTransaction, UnavailableBlob
from steelyard.chain.execute import Built, Proposal, build_block
from steelyard.chain.transactions import Transaction
from steelyard.chain.types import Hash

from .clock import Clock
from .config import BlocksConfig
from .logs import log_alarm, log_event
from .mempool import Mempool
from .store import CorruptData, StorageFull
from .tree import Parent

SET_ASIDE_SECONDS = 30.0
MAX_ATTEMPTS = 8


class Selection:
    """The eligible transactions in order; counts them, and remembers the one handed out last."""

    def __init__(self, transactions: Iterator[Transaction], set_aside: frozenset[Hash]) -> None:
        self._transactions, self._set_aside = transactions, set_aside
        self.current: Transaction | None = None
        self.count = 0

    def __iter__(self) -> Iterator[bytes]:
        for transaction in self._transactions:
            if transaction.hash not in self._set_aside:
                self.current = transaction
                self.count += 1
                yield transaction.raw


class Builder:
    """Builds blocks on request of consensus; runs on the driver's thread."""

    def __init__(self, rules: Rules, mempool: Mempool, config: BlocksConfig, clock: Clock) -> None:
        self._rules, self._mempool = rules, mempool
        self._config, self._clock = config, clock
        self._aside: dict[Hash, float] = {}

    def build(self, request: Propose, parent: Parent) -> Built:
        """A block of the best paying transactions; perhaps an empty one. Raises StorageFull."""
        for _ in range(MAX_ATTEMPTS):
            selection = self._select(parent)
            try:
                return self._build(request, parent, selection)
            except (StorageFull, CorruptData):
                raise
            except Exception as error:
                # Whatever a transaction provokes is its own loss; without one it is our fault.
                if selection.current is None:
                    raise
                self._set_aside(selection.current, error)
        return self._build(request, parent, Selection(iter(()), frozenset()))

    def _build(self, request: Propose, parent: Parent, selection: Selection) -> Built:
        started = self._clock.get_seconds()

        def should_stop() -> bool:
            """Not before one: after an empty block all that waits would wait for a heartbeat."""
            is_late = self._clock.get_seconds() - started > self._config.build_seconds
            return is_late and selection.count > 1

        proposal = Proposal(
            view=request.view,
            timestamp=max(parent.header.timestamp, int(self._clock.get_unix_seconds())),
            ancestors=parent.ancestors,
        )
        built = build_block(
            parent.nodes,
            parent.blobs,
            self._rules,
            parent.header,
            proposal,
            selection,
            parent.current,
            should_stop,
        )
        for refused in built.outcome.refused:
            self._refuse(refused.raw, refused.error)
        return built

    def _refuse(self, raw: bytes, error: InvalidTransaction) -> None:
        self._mempool.remove_refused(raw, error)
        log_event("transaction_refused", code=error.code)

    def _select(self, parent: Parent) -> Selection:
        now = self._clock.get_seconds()
        self._aside = {one: until for one, until in self._aside.items() if until > now}
        base_fee = compute_base_fee(parent.header, self._rules.min_base_fee)
        eligible = self._mempool.iter_eligible(base_fee, parent.nonces)
        return Selection(eligible, frozenset(self._aside))

    def _set_aside(self, transaction: Transaction, error: Exception) -> None:
        self._aside[transaction.hash] = self._clock.get_seconds() + SET_ASIDE_SECONDS
        if isinstance(error, UnavailableBlob):
            log_alarm("blob_unavailable", transaction=transaction.hash, error=error)
            return
        self._mempool.remove_refused(
            transaction.raw, InvalidTransaction("tx_crashed", "this node could not execute it")
        )
        log_alarm(
            "transaction_crashed", trace=True, transaction=transaction.hash, error=repr(error)
        )

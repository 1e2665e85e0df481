"""What happens when blocks are final: one commit; then the pool, the blobs and listeners learn it.

Also the housekeeping that finality drives: blobs whose time is over, uploads that nobody declares
any more, transactions that waited too long. Runs on the driver's thread.
"""

from collections.abc import Callable, Mapping

from steelyard.chain.block import Header, decode_block
from steelyard.chain.consensus.messages import Finalize
from steelyard.chain.execute import Outcome
from steelyard.chain.types import BlobName, Hash

from .blobs import BlobStore
from .history import is_admitted
from .journal import CERTIFICATE, VOTED, Journal
from .logs import log_alarm, log_event
from .mempool import Mempool
from .signer import Signer, decode_place
from .store import ChainStore, FinalBlock
from .tree import BlockTree, get_place

FORGET_VIEWS = 64
"""The signer's floor follows the finalized view in steps of this, to save one fsync a block."""
EXPIRED_AT_ONCE = 64


class Finalizer:
    """Writes finalized blocks and cleans up behind them."""

    def __init__(
        self,
        store: ChainStore,
        blobs: BlobStore,
        mempool: Mempool,
        signer: Signer,
        on_final: Callable[[Header, int], None],
        *,
        archive: bool,
        prune: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._blobs = store, blobs
        self._mempool, self._signer, self._on_final = mempool, signer, on_final
        self._archive, self._prune = archive, prune
        self.set_error: str | None = None
        """Why the set of the next epoch is the old one, if it is."""

    def finalize(self, effect: Finalize, tree: BlockTree, journal: Journal) -> None:
        """Make the blocks final in one transaction, with the journal's entries that still matter.

        Raises StorageFull, CorruptData; of a block that was never executed here, UnavailableBlob
        and InvalidBlock.
        """
        executed = [(one, tree.execute(one.hash)) for one in effect.blocks]
        finals = [self._get_final(tree, one.hash, outcome) for one, outcome in executed]
        head = finals[-1].block.header
        place = (effect.certificate.epoch, effect.certificate.view)
        kept = self._select_journal(head, place, journal.entries)
        self._store.commit(finals, effect.certificate, kept)
        journal.entries = {}
        tree.set_root(head, place)
        for final, (candidate, outcome) in zip(finals, executed, strict=True):
            self._mempool.remove_included(outcome.transactions)
            self._blobs.set_admitted(name for name, _ in final.expiries)
            log_event(
                "block_finalized",
                height=candidate.height,
                hash=candidate.hash,
                view=candidate.view,
                transactions=len(outcome.transactions),
                gas=outcome.gas_used,
            )
            self._report_next_set(outcome)
            self._on_final(final.block.header, len(outcome.transactions))
        self._forget(place)

    def _forget(self, place: tuple[int, int]) -> None:
        epoch, view = self._signer.get_floor()
        if (epoch, view + FORGET_VIEWS) <= place:
            self._signer.raise_floor(*place)

    def _report_next_set(self, outcome: Outcome) -> None:
        """Say who comes next; that Staking could not be read is everybody's alarm."""
        if outcome.next_set is None:
            return
        epoch_set, error = outcome.next_set.epoch_set, outcome.next_set.error
        self.set_error = error
        if error is not None:
            log_alarm("next_set_kept", epoch=epoch_set.epoch, error=error)
        log_event(
            "epoch_decided",
            epoch=epoch_set.epoch,
            validators=len(epoch_set.members),
            hash=epoch_set.hash,
        )

    def _get_final(self, tree: BlockTree, block_hash: Hash, outcome: Outcome) -> FinalBlock:
        """All that is kept of a block; blobs that it made are put on disk before the commit."""
        block = tree.get_block(block_hash)
        assert block is not None, "consensus finalizes blocks of the tree"
        for name in sorted(outcome.blobs):
            self._blobs.put(name, outcome.blobs[name])
        names = dict.fromkeys((*outcome.declared, *sorted(outcome.blobs)))
        expiries = tuple((name, outcome.blobs_expire_at) for name in names)
        next_set = None if outcome.next_set is None else outcome.next_set.epoch_set
        return FinalBlock(block, outcome.receipts, outcome.nodes, expiries, next_set)

    def _select_journal(
        self, head: Header, place: tuple[int, int], new: Mapping[bytes, bytes | None]
    ) -> dict[bytes, bytes | None]:
        """New entries that still matter, and deletions of stored ones that no longer do.

        `place` is the epoch and view of the finalization: what belongs to it or before is over.
        """

        def is_over(key: bytes, value: bytes | None) -> bool:
            if key == VOTED:
                return False
            if key[:1] == CERTIFICATE:
                return decode_place(key[1:]) <= place
            if value is None:
                return True
            block = decode_block(value)
            return block.height <= head.height or get_place(block) <= place

        entries: dict[bytes, bytes | None] = {
            key: None for key, value in self._store.read_journal() if is_over(key, value)
        }
        return entries | {key: value for key, value in new.items() if not is_over(key, value)}

    # -- housekeeping ------------------------------------------------------------------------------
    def keep_house(self, tree: BlockTree) -> None:
        """Let go of what is over. Cheap when nothing is."""
        for transaction_hash in self._mempool.expire():
            log_event("transaction_expired", hash=transaction_hash)
        waiting = self._blobs.get_waiting()
        # An upload that ended after its block, or replaced a lost file, waits for nothing.
        self._blobs.set_admitted(one for one in waiting if is_admitted(self._store, one))
        self._delete_orphans(waiting, tree)
        if not self._archive:
            self._delete_expired(tree)
        self._prune()

    def sweep(self, tree: BlockTree) -> None:
        """Before a start: delete files that no finalized and no journaled block needs."""
        gone = self._delete_orphans(self._blobs.get_names(), tree)
        if gone:
            log_event("blobs_swept", count=len(gone))

    def _delete_orphans(self, names: tuple[BlobName, ...], tree: BlockTree) -> tuple[BlobName, ...]:
        declared = tree.get_declared()
        return self._blobs.delete(names, lambda name: self._is_orphan(name, declared))

    def _is_orphan(self, name: BlobName, declared: frozenset[BlobName]) -> bool:
        return (
            name not in declared
            and not self._mempool.is_declared(name)
            and not is_admitted(self._store, name)
        )

    def _delete_expired(self, tree: BlockTree) -> None:
        """Only past the finalized time of expiry: no block can read them that declares them not."""
        expired = self._store.scan_expired(tree.root.timestamp, EXPIRED_AT_ONCE)
        if not expired:
            return
        declared = tree.get_declared()
        gone = self._blobs.delete(
            expired, lambda name: name not in declared and not self._mempool.is_declared(name)
        )
        if gone:
            self._store.forget_blobs(gone)
            log_event("blobs_expired", count=len(gone))

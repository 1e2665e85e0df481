"""py-evm's account database, without the three places where its cost grows with the block.

- Stock `record`, `commit` and `discard` visit every account whose storage changed in the block, on
  every CALL. Here a storage journal learns of a checkpoint when it is first written under it.
- Stock `get_code` copies the set of all database keys read so far.
- Stock EIP-161 clearing walks every call frame; here the accounts left empty are remembered.

Values, gas and roots are those of the stock database (tests compare them).
"""

from collections.abc import Iterator
from contextlib import contextmanager

from eth.abc import AccountStorageDatabaseAPI
from eth.constants import EMPTY_SHA3
from eth.db.account import AccountDB
from eth.db.atomic import AtomicDB
from eth.db.backends.base import BaseDB
from eth.db.batch import BatchDB
from eth.db.cache import CacheDB
from eth.db.hash_trie import HashTrie
from eth.db.journal import JournalDB
from eth.rlp.accounts import Account
from eth.vm.interrupt import EVMMissingData, MissingBytecode
from lru import LRU
from trie import HexaryTrie
from trie.exceptions import MissingTrieNode

from .trie import MissingState, NodeSource


class Overlay(BaseDB):  # type: ignore[misc]
    """Reads fall through to the node source; writes stay in `new`."""

    def __init__(self, source: NodeSource) -> None:
        self.source = source
        self.new: dict[bytes, bytes] = {}

    def __getitem__(self, key: bytes) -> bytes:
        value = self.new.get(key)
        if value is None:
            value = self.source.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def _exists(self, key: bytes) -> bool:
        return key in self.new or self.source.get(key) is not None

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self.new[key] = value

    def __delitem__(self, key: bytes) -> None:
        self.new.pop(key, None)


@contextmanager
def missing_state() -> Iterator[None]:
    """Turn py-evm's errors about absent nodes and code into MissingState."""
    try:
        yield
    except MissingBytecode as error:
        raise MissingState(error.missing_code_hash) from error
    except (EVMMissingData, MissingTrieNode) as error:
        raise MissingState(bytes(error.missing_node_hash)) from error


class Scope:
    """One checkpoint, with the storage journals that were written under it.

    `known` maps an address to the checkpoint under which its journal knows this scope: its own, or
    that of an inner scope which was committed.
    """

    __slots__ = ("checkpoint", "known")

    def __init__(self, checkpoint: int) -> None:
        self.checkpoint = checkpoint
        self.known: dict[bytes, int] = {}


class Accounts(AccountDB):  # type: ignore[misc]
    """The account database of the engine."""

    def __init__(self, db: AtomicDB, state_root: bytes) -> None:
        # The stock constructor, less the loggers of every key read.
        self._raw_store_db = db
        self._batchdb = BatchDB(db)
        self._batchtrie = BatchDB(db, read_through_deletes=True)
        self._journaldb = JournalDB(self._batchdb)
        self._trie = HashTrie(HexaryTrie(self._batchtrie, state_root, prune=True))
        self._trie_cache = CacheDB(self._trie)
        self._journaltrie = JournalDB(self._trie_cache)
        self._account_cache: LRU[bytes, Account] = LRU(2048)
        self._account_stores: dict[bytes, AccountStorageDatabaseAPI] = {}
        self._dirty_accounts: set[bytes] = set()
        self._root_hash_at_last_persist = state_root
        self._accessed_accounts: set[bytes] = set()
        self._accessed_bytecodes: set[bytes] = set()
        self._reset_access_counters()
        self._scopes: list[Scope] = []
        self._unlocked: set[bytes] = set()
        self._left_empty: set[bytes] = set()

    # -- checkpoints -------------------------------------------------------------------------------
    def record(self) -> int:
        checkpoint: int = self._journaldb.record()
        self._journaltrie.record(checkpoint)
        self._journal_accessed_state.record(checkpoint)
        self._scopes.append(Scope(checkpoint))
        return checkpoint

    def discard(self, checkpoint: int) -> None:
        self._journaldb.discard(checkpoint)
        self._journaltrie.discard(checkpoint)
        self._journal_accessed_state.discard(checkpoint)
        self._account_cache.clear()
        while True:
            scope = self._scopes.pop()
            for address, known in scope.known.items():
                self._account_stores[address].discard(known)
            if scope.checkpoint == checkpoint:
                return

    def commit(self, checkpoint: int) -> None:
        self._journaldb.commit(checkpoint)
        self._journaltrie.commit(checkpoint)
        self._journal_accessed_state.commit(checkpoint)
        while True:
            scope = self._scopes.pop()
            if self._scopes:
                self._merge(self._scopes[-1], scope)
            else:
                for address, known in scope.known.items():
                    self._account_stores[address].commit(known)
            if scope.checkpoint == checkpoint:
                return

    def _merge(self, outer: Scope, inner: Scope) -> None:
        """Let `outer` know the journals of `inner`, in time proportional to the smaller one."""
        if len(outer.known) < len(inner.known):
            for address, known in outer.known.items():
                if address in inner.known:
                    self._account_stores[address].commit(inner.known[address])
                inner.known[address] = known
            outer.known = inner.known
            return
        for address, known in inner.known.items():
            if address in outer.known:
                self._account_stores[address].commit(known)
            else:
                outer.known[address] = known

    def lock_changes(self) -> None:
        assert not self._scopes
        for address in self._unlocked:
            self._account_stores[address].lock_changes()
        self._unlocked.clear()
        self._reset_access_counters()

    # -- storage -----------------------------------------------------------------------------------
    def set_storage(self, address: bytes, slot: int, value: int) -> None:
        self._open_store(address).set(slot, value)

    def _wipe_storage(self, address: bytes) -> None:
        self._open_store(address).delete()

    def _open_store(self, address: bytes) -> AccountStorageDatabaseAPI:
        """Return the storage of an account, ready to be written in the innermost scope."""
        store = self._get_address_store(address)
        self._dirty_accounts.add(address)
        self._unlocked.add(address)
        if self._scopes:
            scope = self._scopes[-1]
            if address not in scope.known:
                store.record(scope.checkpoint)
                scope.known[address] = scope.checkpoint
        return store

    # -- accounts ----------------------------------------------------------------------------------
    def get_code(self, address: bytes) -> bytes:
        code_hash = self.get_code_hash(address)
        if code_hash == EMPTY_SHA3:
            return b""
        try:
            code: bytes = self._journaldb[code_hash]
        except KeyError:
            raise MissingBytecode(code_hash) from None
        return code

    def _set_account(self, address: bytes, account: Account) -> None:
        super()._set_account(address, account)
        if not account.balance and not account.nonce and account.code_hash == EMPTY_SHA3:
            self._left_empty.add(address)

    def touch_account(self, address: bytes) -> None:
        """Note an account for EIP-161; only an empty one can be cleared, so others cost nothing."""
        if self.account_is_empty(address):
            super().touch_account(address)

    def clear_empty_accounts(self) -> None:
        """Remove the accounts that this transaction touched and left empty (EIP-161).

        Such an account never had storage: a contract has a nonce from the start (EIP-161 too).
        """
        for address in sorted(self._left_empty):
            if self.account_exists(address) and self.account_is_empty(address):
                if address in self._account_cache:
                    del self._account_cache[address]
                del self._journaltrie[address]
        self._left_empty.clear()

    def _get_meta_witness(self) -> None:
        """No witness is kept."""

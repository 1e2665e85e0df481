"""One validator process without its HTTP side: what everything else in `node/` is reached through.

Threads. The *driver* thread owns the consensus machine, the block tree and every write to the
chain store; the *keeper* has one of its own. Any thread may call the methods here: they read
finalized data (LMDB gives each reader a snapshot) or hand work to a locked collaborator. EVM calls
recurse deeply: make them from a thread that `calls.start_thread` started.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from steelyard.chain import proofs
from steelyard.chain.block import MAX_ANCESTORS, Block, Header, Rules, compute_base_fee
from steelyard.chain.cid import Cid, encode_cid, is_named
from steelyard.chain.consensus.certificates import Certificate
from steelyard.chain.environment import Environment
from steelyard.chain.epochs import EpochSet
from steelyard.chain.errors import SteelyardError
from steelyard.chain.execute import CallRequest, CallResult, build_environment, call
from steelyard.chain.genesis import Genesis
from steelyard.chain.proofs import AccountProof
from steelyard.chain.receipts import Receipt
from steelyard.chain.transactions import Transaction
from steelyard.chain.types import Address, BlobName, Hash, Height

from .assembly import Assembly, assemble
from .blobs import BlobStore, BlobUpload
from .clock import Clock
from .config import NodeConfig, load_config
from .directory import (
    GENESIS_FILE,
    DirectoryLock,
    check_space,
    parse_document,
    read_genesis_document,
)
from .duties import EVIDENCE, Duties, EvidenceBook
from .gas import estimate
from .history import check_history, check_state, find_blob_expiry
from .keeper import Keeper
from .keyfiles import Secrets
from .log_index import find_logs
from .logs import log_alarm, log_event
from .mempool import Mempool
from .network.mesh import PeerStatus
from .records import BlobFile, Inclusion, LogEntry, LogQuery, NodeStatus
from .status import build_status
from .store import ChainStore
from .wallet import Wallet
from .watcher import Watcher

SUGGESTED_TIP_WEI = 10**6


class Node:
    """A validator: `Node.open(directory, secrets)`, then `start()`, then `stop()`."""

    def __init__(
        self,
        directory: Path,
        lock: DirectoryLock,
        genesis: Genesis,
        document: bytes,
        assembly: Assembly,
        secrets: Secrets,
    ) -> None:
        parts = assembly.parts
        self.directory, self.genesis, self.config = directory, genesis, parts.config
        self.rules: Rules = parts.rules
        self.store: ChainStore = parts.store
        self.mempool: Mempool = parts.mempool
        self.blobs: BlobStore = parts.blobs
        self.driver = assembly.driver
        self.clock: Clock = parts.clock
        self.address = parts.address
        self._lock, self._document, self._signer = lock, document, parts.signer
        self._listeners: list[Callable[[Header], None]] = []
        self._listeners_lock = threading.Lock()
        self._book = EvidenceBook(directory / EVIDENCE)
        wallet = Wallet(self, secrets.account)
        self.duties = Duties(self, wallet, self._book)
        self.driver.duties = self.duties
        self._keeper = Keeper(self, wallet, self.duties.look)
        self.started_at = self.clock.get_seconds()
        self.transactions_finalized = 0
        assembly.on_final.append(self._announce)
        self.membership, self.following = assembly.membership, assembly.following
        self.watcher = Watcher(self, self._get_peers)

    @classmethod
    def open(
        cls,
        directory: Path,
        secrets: Secrets,
        config: NodeConfig | None = None,
        clock: Clock | None = None,
    ) -> "Node":
        """Lock and check a data directory, make block 0 if it is new.

        Raises SteelyardError (data_locked, genesis_mismatch, signer_mismatch, …), CorruptData.
        """
        lock = DirectoryLock(directory)
        try:
            config = load_config(directory) if config is None else config
            document = read_genesis_document(directory)
            genesis = parse_document(document, directory / GENESIS_FILE)
            assembly = assemble(directory, genesis, secrets, config, clock or Clock())
            return cls(directory, lock, genesis, document, assembly, secrets)
        except BaseException:
            lock.release()
            raise

    # -- the finalized chain -----------------------------------------------------------------------
    def get_head(self) -> Header:
        """The finalized head: latest = safe = finalized.

        Read from the store each time: whoever sees a receipt must not then see an older head.
        """
        return self.store.get_head()

    def get_header(self, block_hash: Hash) -> Header | None:
        """The finalized header with this hash."""
        return self.store.get_header(block_hash)

    def get_block(self, block_hash: Hash) -> Block | None:
        """The finalized block with this hash."""
        return self.store.get_block(block_hash)

    def get_hash(self, height: int) -> Hash | None:
        """The hash of the finalized block at this height."""
        return self.store.get_hash(height)

    def get_receipts(self, block_hash: Hash) -> tuple[Receipt, ...]:
        """The receipts of a finalized block, in order; none if it is unknown.

        Raises HistoryMissing.
        """
        height = self.store.get_height(block_hash)
        if height:
            check_history(self.store, height)
        return self.store.get_receipts(block_hash)

    def get_certificate(self, height: int) -> Certificate | None:
        """The finalization of the block at this height, or of its first descendant with one."""
        return self.store.get_certificate(height)

    def get_epoch_set(self) -> EpochSet:
        """The validators that decide the block after the head."""
        return self.driver.get_epoch_set()

    def find_transaction(self, transaction_hash: Hash) -> Inclusion | None:
        """Where a finalized transaction stands."""
        return self.store.find_transaction(transaction_hash)

    def get_logs(self, query: LogQuery, limit: int) -> tuple[LogEntry, ...]:
        """Matching logs of finalized blocks, in order.

        Raises SteelyardError logs_limit, HistoryMissing.
        """
        check_history(self.store, max(query.from_height, 1))
        return find_logs(self.store, query, limit)

    # -- state at a finalized block (None: the head); SteelyardError unknown_block, state_pruned ---
    def get_balance(self, address: Address, height: int | None = None) -> int:
        """Wei."""
        return self._get_account(address, height).balance

    def get_nonce(self, address: Address, *, pending: bool, height: int | None = None) -> int:
        """The account's nonce; with `pending` the first one that nothing in the pool has."""
        queued = self.mempool.get_next_nonce(address) if pending else None
        return self._get_account(address, height).nonce if queued is None else queued

    def get_code(self, address: Address, height: int | None = None) -> bytes:
        """The contract's code."""
        return proofs.get_code(self.store, self._get_header_at(height).state_root, address)

    def get_storage(self, address: Address, slot: int, height: int | None = None) -> int:
        """A storage word."""
        return proofs.get_storage(self.store, self._get_header_at(height).state_root, address, slot)

    def get_proof(
        self, address: Address, slots: Sequence[int], height: int | None = None
    ) -> AccountProof:
        """Merkle proofs of an account and of some of its storage."""
        return proofs.get_proof(self.store, self._get_header_at(height).state_root, address, slots)

    def _get_account(self, address: Address, height: int | None) -> proofs.Account:
        return proofs.get_account(self.store, self._get_header_at(height).state_root, address)

    def _get_header_at(self, height: int | None) -> Header:
        if height is None:
            return self.get_head()
        block_hash = self.store.get_hash(height)
        header = None if block_hash is None else self.store.get_header(block_hash)
        if header is None:
            raise SteelyardError(
                "unknown_block",
                f"no finalized block {height}; the head is {self.get_head().height}",
            )
        check_state(self.store, header.height)
        return header

    # -- computing ---------------------------------------------------------------------------------
    def call(self, request: CallRequest, height: int | None = None) -> CallResult:
        """Try a message. At the head (None) it sees the time, height and base fee of the block to
        come, so that what is due now is due in the call; at a height, those of that block.

        Raises InvalidTransaction, UnavailableBlob, SteelyardError unknown_block.
        """
        header = self._get_header_at(height)
        environment = self._build_environment(header, is_next=height is None)
        return call(
            self.store,
            self.blobs,
            self.rules,
            header.state_root,
            environment,
            request,
            self.get_gas_cap(),
        )

    def estimate_gas(self, request: CallRequest, height: int | None = None) -> CallResult:
        """The call's result with `gas_used` replaced by a limit that suffices, at most 2 % above
        the least; the failed result if no limit does. Raises what `call` raises.
        """
        cap = self.get_gas_cap() if request.gas is None else min(request.gas, self.get_gas_cap())
        return estimate(lambda gas: self.call(replace(request, gas=gas), height), cap)

    def get_gas_cap(self) -> int:
        """What one call may use."""
        return min(self.config.calls.gas_cap, self.rules.gas_limit)

    def _build_environment(self, header: Header, *, is_next: bool) -> Environment:
        ancestors = self.store.get_recent_hashes(header.height, MAX_ANCESTORS)
        if not is_next:
            return build_environment(header, (), ancestors[1:])
        now = int(self.clock.get_unix_seconds())
        return Environment(
            height=Height(header.height + 1),
            timestamp=max(header.timestamp, now),
            coinbase=self._get_fee_recipient(),
            base_fee=self.get_next_base_fee(),
            prev_randao=header.prev_randao,
            parent_hash=header.hash,
            parent_beacon_block_root=header.parent_beacon_block_root,
            ancestors=ancestors,
        )

    def _get_fee_recipient(self) -> Address:
        """Who gets the fees of the blocks that this node makes."""
        member = self.get_epoch_set().find(self.address)
        return self.address if member is None else member.fee_recipient

    # -- fees --------------------------------------------------------------------------------------
    def get_next_base_fee(self) -> int:
        """Wei a gas in the next block."""
        return compute_base_fee(self.get_head(), self.rules.min_base_fee)

    def get_suggested_tip(self) -> int:
        """Wei a gas: enough where blocks are not full."""
        return max(self.config.mempool.min_tip_wei, SUGGESTED_TIP_WEI)

    # -- pending -----------------------------------------------------------------------------------
    def submit_transaction(self, raw: bytes) -> Hash:
        """Take a signed transaction into the pool. Raises InvalidTransaction. Returns its hash."""
        transaction_hash = self.mempool.add(raw)
        self.driver.wake()
        return transaction_hash

    def get_pending(self) -> tuple[Transaction, ...]:
        """The pool, first come first."""
        return self.mempool.get_all()

    def get_pending_transaction(self, transaction_hash: Hash) -> Transaction | None:
        """A transaction of the pool."""
        return self.mempool.get(transaction_hash)

    # -- blobs -------------------------------------------------------------------------------------
    def open_blob_upload(self, cid: Cid, size: int) -> BlobUpload:
        """Start storing a declared blob: `write(chunk)` then `commit()`, or `abort()`.

        Raises SteelyardError: blob_undeclared, blob_size, blob_quota, blob_too_late, blob_held,
        disk_full here; blob_size, blob_mismatch, blob_too_late, disk_full from write and commit.
        """
        name = BlobName(cid.digest, size)
        if not is_named(name, cid):
            raise SteelyardError("blob_size", f"{size} bytes cannot have the CID {encode_cid(cid)}")
        if not self._is_wanted(name) and not self.blobs.has(name):
            raise self._explain_unwanted(cid, size)
        incoming = size + self.blobs.count_incoming()
        check_space(self.directory, self.config.storage.min_free_bytes + incoming)
        return self.blobs.open_upload(name, self._is_wanted)

    def _is_wanted(self, name: BlobName) -> bool:
        """A pending transaction declares it, or the chain admitted it and our copy is lost."""
        if self.mempool.is_declared(name):
            return True
        expires_at = find_blob_expiry(self.store, name)
        return expires_at is not None and expires_at >= self.get_head().timestamp

    def _explain_unwanted(self, cid: Cid, size: int) -> SteelyardError:
        declared = self.mempool.find_declared(cid)
        if declared:
            return SteelyardError(
                "blob_size", f"declared with {declared[0].size} bytes, not {size}"
            )
        if self.mempool.is_late(cid):
            return SteelyardError(
                "blob_too_late",
                "its transaction left the pool unsent; send it again, then the blob",
            )
        return SteelyardError(
            "blob_undeclared",
            "no pending transaction declares it; send the transaction first, then the blob",
        )

    def open_blob(self, cid: Cid) -> BlobFile | None:
        """The file of a blob that this node holds."""
        return self.blobs.find(cid)

    # -- life --------------------------------------------------------------------------------------
    def subscribe(self, callback: Callable[[Header], None]) -> Callable[[], None]:
        """Call back with each finalized header, on the driver's thread. Returns what ends it."""
        with self._listeners_lock:
            self._listeners.append(callback)

        def unsubscribe() -> None:
            with self._listeners_lock:
                if callback in self._listeners:
                    self._listeners.remove(callback)

        return unsubscribe

    def _announce(self, header: Header, transactions: int) -> None:
        self.transactions_finalized += transactions
        with self._listeners_lock:
            listeners = tuple(self._listeners)
        for listener in listeners:
            try:
                listener(header)
            except Exception as error:  # a listener's fault is not the chain's
                log_alarm("listener_failed", error=repr(error))

    def get_status(self) -> NodeStatus:
        """For /health, /metrics and `node status`."""
        return build_status(self)

    def count_rounds_left(self) -> int:
        """How many due rounds the keeper leaves to others."""
        return self._keeper.count_left()

    def _get_peers(self) -> tuple[PeerStatus, ...]:
        network = self.membership.network
        return () if network is None else network.mesh.get_peers()

    def get_genesis_document(self) -> bytes:
        """The bytes of genesis.json."""
        return self._document

    def start(self) -> None:
        """Connect, start producing blocks, and the keeper.

        Raises SteelyardError port_taken, listen_failed, endpoint_malformed.
        """
        log_event(
            "node_started",
            chain=self.rules.chain_id,
            genesis=cast(bytes, self.store.get_hash(0)),
            height=self.get_head().height,
            validator=self.address,
        )
        self.membership.follow((self.get_epoch_set(),))
        self.driver.start()
        self.following.start()
        self.watcher.start()
        if self.config.keeper.enabled:
            self._keeper.start()

    def stop(self) -> None:
        """Stop the threads and close the directory. Nothing final is lost by not calling it."""
        height = self.get_head().height
        self._keeper.stop()
        self.watcher.stop()
        self.following.stop()
        self.driver.stop()
        self.membership.stop()
        self._signer.close()
        self._book.close()
        self.store.close()
        self._lock.release()
        log_event("node_stopped", height=height)

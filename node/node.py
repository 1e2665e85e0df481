"""One validator process without its HTTP side: what everything else in `node/` is reached through.

Threads. The *driver* thread owns the consensus machine, the block tree and every write to the
chain store. Any thread may call the methods here: they read finalized data (LMDB gives each reader
a snapshot), or hand work to a locked collaborator (mempool, blob store). EVM calls recurse deeply,
so they run on the node's own threads with a large stack, a few at a time.
"""

from collections.abc import Callable, Sequence

from steelyard.chain.block import Block, Header
from steelyard.chain.cid import Cid
from steelyard.chain.consensus.certificates import Certificate
from steelyard.chain.execute import CallRequest, CallResult, Rules
from steelyard.chain.genesis import Genesis
from steelyard.chain.proofs import AccountProof
from steelyard.chain.receipts import Receipt
from steelyard.chain.transactions import Transaction
from steelyard.chain.types import Address, Hash

from .blobs import BlobStore, BlobUpload
from .mempool import Mempool
from .records import BlobFile, Inclusion, LogEntry, LogQuery, NodeStatus
from .store import ChainStore


class Node:
    """A validator: `Node.open(config, keys)`, then `start()`, then `stop()`."""

    rules: Rules
    genesis: Genesis
    store: ChainStore
    mempool: Mempool
    blobs: BlobStore

    # -- the finalized chain --------------------------------------------------------------------
    def get_head(self) -> Header:
        """The finalized head: latest = safe = finalized."""

    def get_header(self, block_hash: Hash) -> Header | None: ...

    def get_block(self, block_hash: Hash) -> Block | None: ...

    def get_hash(self, height: int) -> Hash | None: ...

    def get_receipts(self, block_hash: Hash) -> tuple[Receipt, ...]: ...

    def get_certificate(self, height: int) -> Certificate | None: ...

    def find_transaction(self, transaction_hash: Hash) -> Inclusion | None: ...

    def get_logs(self, query: LogQuery, limit: int) -> tuple[LogEntry, ...]: ...

    # -- state at a finalized block (None: the head); SteelyardError "unknown_block" --------------
    def get_balance(self, address: Address, height: int | None = None) -> int: ...

    def get_nonce(self, address: Address, *, pending: bool, height: int | None = None) -> int: ...

    def get_code(self, address: Address, height: int | None = None) -> bytes: ...

    def get_storage(self, address: Address, slot: int, height: int | None = None) -> int: ...

    def get_proof(
        self, address: Address, slots: Sequence[int], height: int | None = None
    ) -> AccountProof: ...

    # -- computing -------------------------------------------------------------------------------
    def call(self, request: CallRequest, height: int | None = None) -> CallResult: ...

    def estimate_gas(self, request: CallRequest, height: int | None = None) -> CallResult:
        """The result of the call with `gas_used` replaced by the smallest limit that succeeds."""

    # -- fees --------------------------------------------------------------------------------------
    def get_next_base_fee(self) -> int: ...

    def get_suggested_tip(self) -> int: ...

    # -- pending -----------------------------------------------------------------------------------
    def submit_transaction(self, raw: bytes) -> Hash:
        """Take a signed transaction into the pool. Raises InvalidTransaction. Returns its hash."""

    def get_pending(self) -> tuple[Transaction, ...]: ...

    def get_pending_transaction(self, transaction_hash: Hash) -> Transaction | None: ...

    # -- blobs -------------------------------------------------------------------------------------
    def open_blob_upload(self, cid: Cid, size: int) -> BlobUpload:
        """Start storing a declared blob: `write(chunk)` then `commit()`, or `abort()`.

        Raises SteelyardError: blob_undeclared, blob_size, blob_quota, blob_too_late, blob_held,
        disk_full here; blob_size, blob_mismatch, disk_full from write and commit.
        """

    def open_blob(self, cid: Cid) -> BlobFile | None: ...

    # -- life --------------------------------------------------------------------------------------
    def subscribe(self, callback: Callable[[Header], None]) -> Callable[[], None]:
        """Call back with each finalized header, on the driver's thread. Returns the unsubscriber."""

    def get_status(self) -> NodeStatus: ...

    def get_genesis_document(self) -> bytes: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

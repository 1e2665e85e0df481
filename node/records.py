"""What the node answers with: values that the store, the driver and the HTTP side share."""

from dataclasses import dataclass

from steelyard.chain.receipts import Log
from steelyard.chain.types import Address, BlobName, Hash, Height


@dataclass(frozen=True, slots=True)
class Inclusion:
    """Where a finalized transaction stands."""

    block_hash: Hash
    height: Height
    index: int


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Logs of finalized blocks from one height to another, both included.

    `addresses` empty means any. `topics[i]` is the set of values accepted at position i; None
    accepts all. A log with fewer topics than `topics` never matches.
    """

    from_height: int
    to_height: int
    addresses: frozenset[Address] = frozenset()
    topics: tuple[frozenset[bytes] | None, ...] = ()


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One log with its place in the chain; `log_index` counts over the whole block."""

    log: Log
    height: Height
    block_hash: Hash
    transaction_hash: Hash
    transaction_index: int
    log_index: int


@dataclass(frozen=True, slots=True)
class BlobFile:
    """A blob on this machine's disk."""

    name: BlobName
    path: str


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """For /health, /metrics and `node status`. `alarm` is None, or the code of what is wrong."""

    version: str
    chain_id: int
    genesis_hash: str
    validator: str
    height: int
    block_hash: str
    timestamp: int
    view: int
    uptime_seconds: float
    blocks_built: int
    transactions_finalized: int
    mempool_transactions: int
    mempool_bytes: int
    blob_files: int
    blob_bytes: int
    free_disk_bytes: int
    last_block_seconds: float
    alarm: str | None
    alarm_message: str | None

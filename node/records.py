"""What the node answers with: values that the store, the driver and the HTTP side share."""

from dataclasses import dataclass, field

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
class FollowingStatus:
    """How following over HTTP goes. `refusal` is None, or the code of why it does not.

    `sources` maps each URL to the height it claims, to what is wrong with it, or to both, where the
    wrong was some time ago and it has put right nothing but its head.
    """

    target: int
    behind: int
    refusal: str | None
    missing_blobs: int
    sources: dict[str, str]


@dataclass(frozen=True, slots=True)
class NetworkTotals:
    """What the validators' network counted since this node joined it; nothing before.

    `dropped`: messages that were not dealt with, by reason; `refused`: what the mesh did not take,
    and what broke a rule, by code; `work`: what was done, by name. `muted`: peers that are not
    listened to now. docs/network.md explains the words.
    """

    dropped: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    work: dict[str, int] = field(default_factory=dict)
    muted: int = 0


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that a person must look at; the message says what to do."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """For /health, /metrics and `node status`.

    `alarm` is None, or the code of why this node takes no part in making blocks; `alarms` has
    everything that a person must look at, that included. `peers` counts those that we reach, of
    the validators of `epoch`, which is that of the next block.
    """

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
    epoch: int = 0
    validators: int = 1
    is_validator: bool = True
    peers: int = 0
    clock_skew_seconds: float | None = None
    """How far this clock is ahead of the other leaders'; None before any was heard."""
    alarms: tuple[Alarm, ...] = ()
    following: FollowingStatus | None = None
    """None if this node follows nobody over HTTP."""
    genesis_document_hash: str = ""
    """Of genesis.json, for which votes are signed; `genesis_hash` is that of block 0."""
    upgrades: tuple[str, ...] = ()
    """`NAME=HEIGHT`: all rule changes of this chain that the node knows of."""
    network: NetworkTotals = field(default_factory=NetworkTotals)
    rounds_left: int = 0
    """Due rounds that the keeper leaves unclosed: unpaid, or its account is at the floor."""
    account_wei: int = 0
    """What the validator's own account holds."""

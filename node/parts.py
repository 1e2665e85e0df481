"""What a session of consensus works with: made once by the assembly, shared by every session."""

from dataclasses import dataclass, field
from pathlib import Path

from steelyard.chain.block import Rules
from steelyard.chain.bls import PublicKey
from steelyard.chain.genesis import ConsensusSettings
from steelyard.chain.types import Address

from .alarms import ClockWatch
from .blobs import BlobStore
from .builder import Builder
from .clock import Clock
from .config import NodeConfig
from .finality import Finalizer
from .mempool import Mempool
from .signer import Signer
from .store import ChainStore


@dataclass(slots=True)
class Progress:
    """What sessions got done, for others to read."""

    blocks_built: int = 0
    last_block_seconds: float = 0.0
    """How long building our last block took."""
    final_at: float | None = None
    """Monotonic seconds of the last finalization since the process began."""
    clocks: ClockWatch = field(default_factory=ClockWatch)
    """Our clock against those of the leaders whose proposals came."""


@dataclass(frozen=True, slots=True)
class Parts:
    """`address` and `voting_key` are ours, whether or not the current validators include them."""

    directory: Path
    rules: Rules
    consensus: ConsensusSettings
    address: Address
    voting_key: PublicKey
    config: NodeConfig
    store: ChainStore
    blobs: BlobStore
    mempool: Mempool
    signer: Signer
    builder: Builder
    finalizer: Finalizer
    clock: Clock
    progress: Progress = field(default_factory=Progress)

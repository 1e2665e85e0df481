"""What a block may know besides the state: its place, time and proposer, and the blobs on disk."""

from dataclasses import dataclass
from typing import Protocol

from .block import Withdrawal
from .types import Address, BlobName, Hash, Height


class BlobSource(Protocol):
    """The blobs that this machine holds."""

    def read(self, name: BlobName, /) -> bytes | memoryview:
        """Return the bytes. Raises UnavailableBlob if they are not here."""


@dataclass(frozen=True, slots=True)
class Environment:
    """The block being executed. Seconds, wei a gas; `ancestors` are hashes, parent first."""

    height: Height
    timestamp: int
    coinbase: Address
    base_fee: int
    prev_randao: Hash
    parent_hash: Hash
    parent_beacon_block_root: Hash
    withdrawals: tuple[Withdrawal, ...] = ()
    ancestors: tuple[Hash, ...] = ()

"""What a block may know besides the state: its place, time and proposer, and the blobs on disk."""

from dataclasses import dataclass
from typing import Protocol

from .block import MAX_ANCESTORS, Header, Withdrawal
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


def build_environment(
    header: Header, withdrawals: tuple[Withdrawal, ...], ancestors: tuple[Hash, ...]
) -> Environment:
    """Return the environment in which the block of this header ran, or runs."""
    return Environment(
        height=header.height,
        timestamp=header.timestamp,
        coinbase=header.coinbase,
        base_fee=header.base_fee,
        prev_randao=header.prev_randao,
        parent_hash=header.parent_hash,
        parent_beacon_block_root=header.parent_beacon_block_root,
        withdrawals=withdrawals,
        ancestors=ancestors[:MAX_ANCESTORS],
    )

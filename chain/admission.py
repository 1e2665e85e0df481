"""Admission records: which blobs the chain knows, since when and until when.

A record is one storage slot of the precompile's account (docs/protocol.md, section 1), so that a
contract, a proof and a node that never executed the block see the same thing.
"""

from dataclasses import dataclass

from eth_hash.auto import keccak

from .types import BlobName, Height


@dataclass(frozen=True, slots=True)
class Admission:
    """The block that admitted a blob last, and the last second at which it may be read."""

    height: Height
    expires_at: int


def compute_admission_slot(name: BlobName) -> int:
    """Return the slot keccak256(digest || uint256(size)) of FEDAVG_ADDRESS."""
    return int.from_bytes(keccak(name.digest + name.size.to_bytes(32, "big")), "big")


def encode_admission(admission: Admission) -> int:
    """Return the stored word: height << 128 | expires_at."""
    return admission.height << 128 | admission.expires_at


def decode_admission(word: int) -> Admission | None:
    """Return the record, or None for an empty slot."""
    return Admission(Height(word >> 128), word & (2**128 - 1)) if word else None

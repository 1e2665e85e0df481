"""The words that several modules share. A `Digest` is 32 bytes, an `Address` 20."""

from dataclasses import dataclass
from typing import NewType, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes that are read in place; at run time a flat numpy array of uint8 will do as well."""

Address = NewType("Address", bytes)
Digest = NewType("Digest", bytes)
Hash = NewType("Hash", bytes)
Domain = NewType("Domain", bytes)
"""What votes are signed for: the hash of their chain's genesis document, not that of block 0."""
Height = NewType("Height", int)
Epoch = NewType("Epoch", int)
View = NewType("View", int)
Round = NewType("Round", int)
TaskId = NewType("TaskId", int)
Power = NewType("Power", int)


@dataclass(frozen=True, slots=True, order=True)
class BlobName:
    """Bytes named by the SHA-256 of their IPFS root block and by their size.

    Size is part of the name: a file's root node, stored raw, has the same digest as the file.
    """

    digest: Digest
    size: int

"""Partial blobs: the exact sums of a mean that is computed in pages (docs/protocol.md, section 4).

Pure: numpy only. The sums of a decoded partial are a read-only view of the caller's bytes.
"""

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidAggregation
from .params import VALUE_LIMIT, WEIGHT_TOTAL
from .types import BlobName, Buffer, Digest

PARTIAL_MAGIC: Final = b"STLYPART"
PARTIAL_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sIIQQ32sQ")
PARTIAL_HEADER_BYTES: Final = _HEADER.size
MAX_PARTIAL_UPDATES: Final = 2**32 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Partial:
    """Sums over the first `updates` updates, whose shares sum to `shares`. sums: (values,)."""

    updates: int
    shares: int
    base: BlobName
    sums: NDArray[np.int64]


def encode_partial(partial: Partial) -> bytes:
    """Return the partial blob."""
    header = _HEADER.pack(
        PARTIAL_MAGIC,
        PARTIAL_VERSION,
        partial.updates,
        partial.shares,
        partial.base.size,
        partial.base.digest,
        partial.sums.size,
    )
    return b"".join((header, partial.sums.data))


def decode_partial(data: Buffer, base: BlobName, values: int) -> Partial:
    """Return the partial in `data`. Raises InvalidAggregation.

    `base` and `values` are the model it must belong to and that model's number of update values.
    A sum larger than its shares allow is refused, so that adding to it cannot overflow.
    """
    view = memoryview(data)
    if len(view) < PARTIAL_HEADER_BYTES:
        raise InvalidAggregation("partial_format", f"{len(view)} bytes are too few for a partial")
    magic, version, updates, shares, size, digest, count = _HEADER.unpack_from(view)
    if magic != PARTIAL_MAGIC or version != PARTIAL_VERSION:
        raise InvalidAggregation("partial_format", "not a partial of version 1")
    if BlobName(Digest(digest), size) != base:
        raise InvalidAggregation("partial_base", "the partial belongs to another base model")
    if count != values or len(view) != compute_partial_size(values):
        raise InvalidAggregation("partial_length", f"the base model's updates have {values} values")
    if shares > WEIGHT_TOTAL:
        raise InvalidAggregation("aggregation_shares", f"shares sum to {shares}, past 2**20")
    sums = np.frombuffer(view, np.int64, offset=PARTIAL_HEADER_BYTES)
    sums.flags.writeable = False
    most = shares * (VALUE_LIMIT - 1)
    if int(sums.max()) > most or int(sums.min()) < -most:
        raise InvalidAggregation("partial_range", "a sum is larger than its shares allow")
    return Partial(updates, shares, base, sums)


def compute_partial_size(values: int) -> int:
    """Return the bytes of a partial with that many values."""
    return PARTIAL_HEADER_BYTES + 8 * values


assert PARTIAL_HEADER_BYTES == 72, "sums stay aligned to eight bytes"

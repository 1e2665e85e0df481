"""Velocities: what a server with momentum carries on (docs/protocol.md, section 4).

A blob: magic, version, number of values, then int64 little-endian in update order, in units of
2**-(fraction_bits + VELOCITY_BITS). Values of `average` tensors are zero: statistics are averaged.

Pure: numpy only. The values of a decoded velocity are a read-only view of the caller's bytes.
Source: FedAvgM of Hsu, Qi and Brown, arXiv:1909.06335.
"""

import struct
import sys
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidAggregation
from .params import MAX_BLOB_BYTES, VELOCITY_LIMIT
from .rules import Rule
from .types import Buffer

VELOCITY_MAGIC: Final = b"STLYVELO"
VELOCITY_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sQQ")
VELOCITY_HEADER_BYTES: Final = _HEADER.size

assert sys.byteorder == "little", "values are read in place, so the machine must be little-endian"


def compute_velocity_size(values: int) -> int:
    """Return the bytes of a velocity with that many values."""
    return VELOCITY_HEADER_BYTES + 8 * values


def check_velocity_size(values: int) -> None:
    """Raise InvalidAggregation if a velocity of that many values would be too large for a blob."""
    if compute_velocity_size(values) > MAX_BLOB_BYTES:
        raise InvalidAggregation(
            "velocity_size",
            f"a velocity of {values} values exceeds {MAX_BLOB_BYTES} bytes; go without momentum",
        )


def check_velocity_use(rule: Rule, values: int, *, is_given: bool) -> None:
    """Raise InvalidAggregation if the rule has no use for a velocity that is given, or would make
    one of so many values that no blob could hold it.
    """
    if rule.has_momentum:
        check_velocity_size(values)
    elif is_given:
        raise InvalidAggregation("velocity_unused", "a rule without momentum has no velocity")


def encode_velocity(values: NDArray[np.int64]) -> bytes:
    """Return the velocity blob. values: shape (update values,)."""
    assert values.dtype == np.int64, values.dtype
    return b"".join((_HEADER.pack(VELOCITY_MAGIC, VELOCITY_VERSION, values.size), values.data))


def decode_velocity(data: Buffer, values: int) -> NDArray[np.int64]:
    """Return the velocity in `data`, which must have `values` values. Raises InvalidAggregation."""
    view = memoryview(data)
    if len(view) < VELOCITY_HEADER_BYTES:
        raise InvalidAggregation("velocity_format", f"{len(view)} bytes are too few for a velocity")
    magic, version, count = _HEADER.unpack_from(view)
    if magic != VELOCITY_MAGIC or version != VELOCITY_VERSION:
        raise InvalidAggregation("velocity_format", "not a velocity of version 1")
    if count != values or len(view) != compute_velocity_size(values):
        raise InvalidAggregation(
            "velocity_length", f"the base model's updates have {values} values"
        )
    velocity = np.frombuffer(view, np.int64, offset=VELOCITY_HEADER_BYTES)
    velocity.flags.writeable = False
    if int(velocity.max()) >= VELOCITY_LIMIT or int(velocity.min()) <= -VELOCITY_LIMIT:
        raise InvalidAggregation("velocity_range", "a velocity is past what rounds can reach")
    return velocity

"""Updates: one client's quantized delta for one round (docs/protocol.md, "Updates").

The header binds the update to its sender, round and base model, so that it cannot be replayed
elsewhere. This module knows the format only. Whether exponents and values stay in range depends on
the model's layout, and is checked together with the norm (`aggregate.check_ranges`).

Pure: numpy only. The arrays of a decoded update are read-only views of the caller's bytes.
"""

import struct
import sys
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidUpdate
from .params import (
    BLOCK_VALUES,
    MAX_MODEL_PARAMETERS,
    MAX_MODEL_TENSORS,
    UPDATE_HEADER_BYTES,
    UPDATE_VERSION,
)
from .types import Address, BlobName, Buffer, Digest, Round, TaskId

UPDATE_MAGIC: Final = b"STLYUPD\0"
BLOCK_BITS: Final = BLOCK_VALUES.bit_length() - 1
MAX_UPDATE_BLOCKS: Final = -(-MAX_MODEL_PARAMETERS // BLOCK_VALUES) + MAX_MODEL_TENSORS
"""Each tensor may end in a block that is not full."""
_HEADER: Final = struct.Struct("<8s4BI5Q32s20s84s")
_RESERVED: Final = bytes(84)

UpdateValues: TypeAlias = NDArray[np.int8 | np.int16 | np.uint32]

assert _HEADER.size == UPDATE_HEADER_BYTES
assert 1 << BLOCK_BITS == BLOCK_VALUES
assert sys.byteorder == "little", "values are read in place, so the machine must be little-endian"


class Mode(IntEnum):
    """Open: exponents and integers. Masked: ring elements mod 2**32 for secure aggregation."""

    OPEN = 0
    MASKED = 1


_DTYPES: Final[dict[tuple[Mode, int], np.dtype[np.int8 | np.int16 | np.uint32]]] = {
    (Mode.OPEN, 8): np.dtype(np.int8),
    (Mode.OPEN, 16): np.dtype(np.int16),
    (Mode.MASKED, 32): np.dtype(np.uint32),
}


@dataclass(frozen=True, slots=True)
class UpdateHeader:
    """What an update says about itself. `values` and `exponents` are counts."""

    mode: Mode
    bits: int
    round: Round
    chain_id: int
    task: TaskId
    values: int
    exponents: int
    base: BlobName
    sender: Address


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """A decoded update; `exponents` has shape (header.exponents,), `values` (header.values,)."""

    header: UpdateHeader
    exponents: NDArray[np.int8]
    values: UpdateValues


@dataclass(frozen=True, slots=True)
class Binding:
    """What an update must be bound to before it counts."""

    chain_id: int
    task: TaskId
    round: Round
    base: BlobName
    sender: Address


def compute_update_size(values: int, exponents: int, bits: int) -> int:
    """Return the bytes of an update with that many values and exponents."""
    return UPDATE_HEADER_BYTES + _pad(exponents) + values * (bits // 8)


def _pad(size: int) -> int:
    return -(-size // 8) * 8


def encode_update(header: UpdateHeader, exponents: NDArray[np.int8], values: UpdateValues) -> bytes:
    """Return the update blob. Raises InvalidUpdate if the header is not one that decodes."""
    _check_counts(header)
    assert exponents.dtype == np.int8, exponents.dtype
    assert exponents.shape == (header.exponents,), exponents.shape
    assert values.dtype == _get_dtype(header.mode, header.bits), values.dtype
    assert values.shape == (header.values,), values.shape
    packed = _HEADER.pack(
        UPDATE_MAGIC,
        UPDATE_VERSION,
        header.mode,
        header.bits,
        BLOCK_BITS,
        header.round,
        header.chain_id,
        header.task,
        header.values,
        header.exponents,
        header.base.size,
        header.base.digest,
        header.sender,
        _RESERVED,
    )
    padding = bytes(_pad(header.exponents) - header.exponents)
    return b"".join((packed, exponents.tobytes(), padding, values.tobytes()))


def decode_update(data: Buffer) -> Update:
    """Return the update in `data`, without copying its values. Raises InvalidUpdate.

    Format only: see `check_binding` for the binding and `aggregate.check_ranges` for the numbers.
    """
    view = memoryview(data)
    header = decode_update_header(view)
    expected = compute_update_size(header.values, header.exponents, header.bits)
    if len(view) != expected:
        raise InvalidUpdate(
            "update_length", f"{len(view)} bytes, but its header makes {expected}; send it whole"
        )
    start = UPDATE_HEADER_BYTES + _pad(header.exponents)
    if any(view[UPDATE_HEADER_BYTES + header.exponents : start]):
        raise InvalidUpdate("update_padding", "the padding after the exponents must be zero")
    exponents = np.frombuffer(
        view, dtype=np.int8, count=header.exponents, offset=UPDATE_HEADER_BYTES
    )
    values: UpdateValues = np.frombuffer(
        view, dtype=_get_dtype(header.mode, header.bits), offset=start
    )
    exponents.flags.writeable = False
    values.flags.writeable = False
    return Update(header, exponents, values)


def decode_update_header(data: Buffer) -> UpdateHeader:
    """Return the header at the start of `data`, whatever follows it. Raises InvalidUpdate."""
    view = memoryview(data)
    if len(view) < UPDATE_HEADER_BYTES:
        raise InvalidUpdate(
            "update_length", f"{len(view)} bytes are fewer than the header's {UPDATE_HEADER_BYTES}"
        )
    (
        magic, version, mode, bits, block_bits, round_, chain_id, task, values, exponents,
        base_size, base_digest, sender, reserved,
    ) = _HEADER.unpack_from(view)  # fmt: skip
    if magic != UPDATE_MAGIC:
        raise InvalidUpdate("update_magic", f"starts with {magic!r}: this is not an update")
    if version != UPDATE_VERSION:
        raise InvalidUpdate(
            "update_version", f"version {version}; this software reads version {UPDATE_VERSION}"
        )
    if mode not in (Mode.OPEN, Mode.MASKED):
        raise InvalidUpdate("update_mode", f"mode {mode}; it is 0 (open) or 1 (masked)")
    if block_bits != BLOCK_BITS:
        raise InvalidUpdate(
            "update_block_size", f"blocks of 2**{block_bits} values; they have 2**{BLOCK_BITS}"
        )
    if reserved != _RESERVED:
        raise InvalidUpdate("update_padding", "the reserved bytes of the header must be zero")
    header = UpdateHeader(
        mode=Mode(mode),
        bits=bits,
        round=Round(round_),
        chain_id=chain_id,
        task=TaskId(task),
        values=values,
        exponents=exponents,
        base=BlobName(Digest(base_digest), base_size),
        sender=Address(sender),
    )
    _check_counts(header)
    return header


def _get_dtype(mode: Mode, bits: int) -> np.dtype[np.int8 | np.int16 | np.uint32]:
    dtype = _DTYPES.get((mode, bits))
    if dtype is None:
        allowed = "8 or 16" if mode is Mode.OPEN else "32"
        raise InvalidUpdate("update_bits", f"{bits} bits; {mode.name.lower()} has {allowed}")
    return dtype


def _check_counts(header: UpdateHeader) -> None:
    """Bound what the header promises, before anything of that size is touched."""
    _get_dtype(header.mode, header.bits)
    if not 1 <= header.values <= MAX_MODEL_PARAMETERS:
        raise InvalidUpdate(
            "update_count", f"{header.values} values; there are 1 to {MAX_MODEL_PARAMETERS}"
        )
    if header.mode is Mode.MASKED:
        fewest = most = 1
    else:
        fewest = -(-header.values // BLOCK_VALUES)
        most = min(header.values, fewest + MAX_MODEL_TENSORS)
    if not fewest <= header.exponents <= most:
        raise InvalidUpdate(
            "update_count",
            f"{header.exponents} exponents for {header.values} values; "
            f"there are {fewest} to {most}, one for each block",
        )


def check_binding(header: UpdateHeader, binding: Binding) -> None:
    """Raise InvalidUpdate unless the update was made for exactly this place."""
    if header.chain_id != binding.chain_id:
        raise InvalidUpdate(
            "update_chain", f"made for chain {header.chain_id}, this is {binding.chain_id}"
        )
    if header.task != binding.task:
        raise InvalidUpdate("update_task", f"made for task {header.task}, this is {binding.task}")
    if header.round != binding.round:
        raise InvalidUpdate(
            "update_round",
            f"made for round {header.round}, this is {binding.round}; train on the current model",
        )
    if header.base != binding.base:
        raise InvalidUpdate(
            "update_base",
            f"made against model {header.base.digest.hex()} of {header.base.size} bytes, "
            f"this round's is {binding.base.digest.hex()} of {binding.base.size}",
        )
    if header.sender != binding.sender:
        raise InvalidUpdate(
            "update_sender", f"signed by 0x{binding.sender.hex()}, made by 0x{header.sender.hex()}"
        )

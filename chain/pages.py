"""Pages: an aggregation that is too large for one block, in parts (docs/protocol.md, section 4).

Both phases of an aggregation run over the blocks of updates, and a page is one phase over some of
the blocks: phase 1 measures the updates, for the rules that must know norms or distances before
they can weigh; phase 2 makes the new values. Whoever assembles them gets the bits of a single call.

A page says what it was made of: the keccak-256 of all inputs of its phase. So a page of other
updates, weights or measurements does not fit. Anybody can write bytes that claim to be a page: they
are refused where they could not have been computed, and otherwise harm only those who use them. A
contract keeps the names of the pages that it asked for.

Pure: numpy only. The arrays of a decoded page are read-only views of the caller's bytes.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

import numpy as np
from eth_hash.auto import keccak
from numpy.typing import NDArray

from .errors import InvalidAggregation
from .model import VALUE_BYTES, Layout
from .params import (
    FRACTION_BITS,
    MAX_BLOB_BYTES,
    MAX_COMPARED_UPDATES,
    MAX_MODEL_PARAMETERS,
    MAX_UPDATES,
    VALUE_LIMIT,
    VELOCITY_LIMIT,
    WEIGHT_TOTAL,
)
from .rules import Rule, RuleKind
from .types import BlobName, Buffer, Hash

PAGE_MAGIC: Final = b"STLYPAGE"
PAGE_VERSION: Final = 1
NUMBER_BYTES: Final = 32
"""Squares and dot products: two's complement, little-endian."""
VELOCITY_BYTES: Final = 8
_HEADER: Final = struct.Struct("<8s6I2Q32s")
PAGE_HEADER_BYTES: Final = _HEADER.size
_NORM2_LIMIT: Final = MAX_MODEL_PARAMETERS * (VALUE_LIMIT << FRACTION_BITS) ** 2
_DOT_LIMIT: Final = _NORM2_LIMIT * WEIGHT_TOTAL

assert PAGE_HEADER_BYTES % VELOCITY_BYTES == NUMBER_BYTES % VELOCITY_BYTES == 0, (
    "arrays are aligned"
)
assert _DOT_LIMIT < 2 ** (8 * NUMBER_BYTES - 1)
assert PAGE_HEADER_BYTES + NUMBER_BYTES * MAX_COMPARED_UPDATES**2 <= MAX_BLOB_BYTES
assert (
    PAGE_HEADER_BYTES + 2 * NUMBER_BYTES * MAX_UPDATES + VALUE_BYTES * MAX_MODEL_PARAMETERS
    <= MAX_BLOB_BYTES
), "without momentum, one page can hold the largest model"


class Phase(IntEnum):
    """What a page holds."""

    MEASURE = 1
    COMBINE = 2


@dataclass(frozen=True, slots=True)
class Measures:
    """Phase 1 over blocks first..last-1; exact, in units of 2**-48, in the order of the updates.

    `norms2`: squared norms over `train` values. `gram`: the dot products of updates i < j, row by
    row; empty unless the rule is Multi-Krum.
    """

    first: int
    last: int
    norms2: tuple[int, ...]
    gram: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Combined:
    """Phase 2 over blocks first..last-1: new values, in update order, and what scores need.

    `values` and `velocity`: shape (values of those blocks,); `velocity` is None without momentum.
    `norms2` as in Measures; `dots` are the updates' dot products with the weighted sum.
    """

    first: int
    last: int
    values: NDArray[np.int32]
    velocity: NDArray[np.int64] | None
    saturated: int
    norms2: tuple[int, ...]
    dots: tuple[int, ...]


class Range(Protocol):
    """What covers blocks first..last-1."""

    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...


# -- what a page is made of ------------------------------------------------------------------------


def compute_measure_key(rule: Rule, base: BlobName, updates: Sequence[BlobName]) -> Hash:
    """Return the hash of all inputs of phase 1."""
    return _hash(Phase.MEASURE, *_list_rule(rule), *_list_names((base, *updates)))


def compute_combine_key(
    rule: Rule,
    base: BlobName,
    velocity: BlobName,
    updates: Sequence[BlobName],
    weights: Sequence[int],
    measures: Sequence[BlobName],
) -> Hash:
    """Return the hash of all inputs of phase 2. `measures` names the pages of phase 1."""
    return _hash(
        Phase.COMBINE,
        *_list_rule(rule),
        *_list_names((base, velocity)),
        len(updates),
        *_list_names(updates),
        *weights,
        *_list_names(measures),
    )


def _list_rule(rule: Rule) -> tuple[int, ...]:
    return rule.kind, rule.bound, rule.max_share, rule.server_lr, rule.momentum


def _list_names(names: Iterable[BlobName]) -> list[int]:
    return [word for name in names for word in (int.from_bytes(name.digest, "big"), name.size)]


def _hash(*words: int) -> Hash:
    return Hash(keccak(b"".join(word.to_bytes(32, "big") for word in words)))


def check_cover(pages: Sequence[Range], blocks: int) -> None:
    """Raise InvalidAggregation unless the pages cover every block once, in order."""
    at = 0
    for page in pages:
        if page.first != at:
            raise InvalidAggregation(
                "page_cover", f"a page begins at block {page.first}, not at {at}; list all in order"
            )
        at = page.last
    if at != blocks:
        raise InvalidAggregation("page_cover", f"the pages end at block {at} of {blocks}")


def check_range(first: int, last: int, blocks: int) -> None:
    """Raise InvalidAggregation unless first..last-1 are blocks of the model."""
    if not 0 <= first < last <= blocks:
        raise InvalidAggregation(
            "page_cover", f"no blocks {first} to {last}; the model's updates have {blocks}"
        )


# -- sizes -----------------------------------------------------------------------------------------


def compute_measures_size(rule: Rule, updates: int) -> int:
    """Return the bytes of a page of phase 1."""
    return PAGE_HEADER_BYTES + NUMBER_BYTES * (updates + _count_pairs(rule, updates))


def compute_combined_size(rule: Rule, updates: int, values: int) -> int:
    """Return the bytes of a page of phase 2 over that many values."""
    each = VALUE_BYTES + (VELOCITY_BYTES if rule.has_momentum else 0)
    return PAGE_HEADER_BYTES + 2 * NUMBER_BYTES * updates + each * values


def count_values(layout: Layout, first: int, last: int) -> int:
    """Return the values in blocks first..last-1."""
    return int(layout.length[first:last].sum())


def _count_pairs(rule: Rule, updates: int) -> int:
    return updates * (updates - 1) // 2 if rule.kind is RuleKind.MULTI_KRUM else 0


# -- the codec -------------------------------------------------------------------------------------


def encode_measures(measures: Measures, key: Hash) -> bytes:
    """Return the page."""
    header = _HEADER.pack(
        PAGE_MAGIC,
        PAGE_VERSION,
        Phase.MEASURE,
        measures.first,
        measures.last,
        len(measures.norms2),
        0,
        0,
        0,
        key,
    )
    return b"".join((header, *map(_encode_number, (*measures.norms2, *measures.gram))))


def decode_measures(data: Buffer, key: Hash, rule: Rule, updates: int, layout: Layout) -> Measures:
    """Return the page in `data`. Raises InvalidAggregation.

    `key` is the hash of the inputs that it must have been made of.
    """
    view = memoryview(data)
    first, last, values, saturated = _decode_header(view, Phase.MEASURE, key, updates, layout)
    if len(view) != compute_measures_size(rule, updates):
        raise InvalidAggregation("page_length", f"{len(view)} bytes for {updates} updates")
    if values or saturated:
        raise InvalidAggregation("page_format", "a page of phase 1 has no values")
    norms2 = _decode_numbers(view, PAGE_HEADER_BYTES, updates)
    start = PAGE_HEADER_BYTES + NUMBER_BYTES * updates
    gram = _decode_numbers(view, start, _count_pairs(rule, updates))
    _check_numbers(norms2, 0, _NORM2_LIMIT)
    _check_numbers(gram, -_NORM2_LIMIT, _NORM2_LIMIT)
    return Measures(first, last, norms2, gram)


def encode_combined(combined: Combined, key: Hash) -> bytes:
    """Return the page."""
    header = _HEADER.pack(
        PAGE_MAGIC,
        PAGE_VERSION,
        Phase.COMBINE,
        combined.first,
        combined.last,
        len(combined.norms2),
        0,
        combined.values.size,
        combined.saturated,
        key,
    )
    numbers = b"".join(map(_encode_number, (*combined.norms2, *combined.dots)))
    velocity = b"" if combined.velocity is None else combined.velocity.data
    return b"".join((header, numbers, velocity, combined.values.data))


def decode_combined(data: Buffer, key: Hash, rule: Rule, updates: int, layout: Layout) -> Combined:
    """Return the page in `data`. Raises InvalidAggregation. `key` as in decode_measures."""
    view = memoryview(data)
    first, last, values, saturated = _decode_header(view, Phase.COMBINE, key, updates, layout)
    if values != count_values(layout, first, last):
        raise InvalidAggregation("page_length", f"{values} values in blocks {first} to {last}")
    if len(view) != compute_combined_size(rule, updates, values):
        raise InvalidAggregation("page_length", f"{len(view)} bytes for {values} values")
    at = PAGE_HEADER_BYTES
    norms2 = _decode_numbers(view, at, updates)
    at += NUMBER_BYTES * updates
    dots = _decode_numbers(view, at, updates)
    at += NUMBER_BYTES * updates
    velocity = None
    if rule.has_momentum:
        velocity = np.frombuffer(view, np.int64, values, at)
        velocity.flags.writeable = False
        at += VELOCITY_BYTES * values
        if max(int(velocity.max()), -int(velocity.min())) >= VELOCITY_LIMIT:
            raise InvalidAggregation("page_value", "a velocity that no rounds can reach")
    new_values = np.frombuffer(view, np.int32, values, at)
    new_values.flags.writeable = False
    _check_numbers(norms2, 0, _NORM2_LIMIT)
    _check_numbers(dots, -_DOT_LIMIT, _DOT_LIMIT)
    if saturated > values:
        raise InvalidAggregation("page_value", f"{saturated} of {values} values saturated")
    return Combined(first, last, new_values, velocity, saturated, norms2, dots)


def _decode_header(
    view: memoryview, phase: Phase, key: Hash, updates: int, layout: Layout
) -> tuple[int, int, int, int]:
    """Return first, last, values and saturated."""
    if len(view) < PAGE_HEADER_BYTES:
        raise InvalidAggregation("page_length", f"{len(view)} bytes are too few for a page")
    magic, version, kind, first, last, count, reserved, values, saturated, made_of = (
        _HEADER.unpack_from(view)
    )
    if (magic, version, kind, reserved) != (PAGE_MAGIC, PAGE_VERSION, phase, 0):
        raise InvalidAggregation("page_format", f"not a page of phase {phase:d}, version 1")
    if made_of != key or count != updates:
        raise InvalidAggregation("page_inputs", "the page was made of other inputs")
    check_range(first, last, layout.length.size)
    return first, last, values, saturated


def _encode_number(number: int) -> bytes:
    return number.to_bytes(NUMBER_BYTES, "little", signed=True)


def _decode_numbers(view: memoryview, start: int, count: int) -> tuple[int, ...]:
    return tuple(
        int.from_bytes(view[at : at + NUMBER_BYTES], "little", signed=True)
        for at in range(start, start + NUMBER_BYTES * count, NUMBER_BYTES)
    )


def _check_numbers(numbers: Sequence[int], least: int, most: int) -> None:
    if numbers and not least <= min(numbers) <= max(numbers) <= most:
        raise InvalidAggregation("page_value", "a square or a dot product that no values have")

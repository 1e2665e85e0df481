"""The inner loops of the robust rules: trimmed sums and dot products of all pairs of updates.

Trimming sorts the same value of all clients. Exponents differ between clients, so values are first
brought to the smallest exponent of the block, in 16 bits if they fit, else in 32; then a
network of comparators, the same for all values, sorts many values at once without a branch.

Comparing takes the dot products of all pairs, four clients at a time while the payloads of a block
are in the cache.

Widths. A trimmed sum of 1024 values below 2**31, times 2**20, is below 2**61. A product of two
payloads is below 2**30, its distance from the unit is kept in steps of GRAM_SPAN bits, and the sum
over a model stays below 2**62. The bounds are asserted below. Values out of range give some number:
`kernels.py` finds them. Sources: docs/protocol.md, "Aggregation"; Knuth, 5.3.4.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# The types of kernels are their numba signatures, which say more than annotations could.

from typing import Final

import numpy as np
from numba import njit, types

from .params import (
    BLOCK_VALUES,
    FRACTION_BITS,
    MAX_EXPONENT,
    MAX_MODEL_PARAMETERS,
    MAX_UPDATES,
    VALUE_LIMIT,
    WEIGHT_BITS,
)
from .payloads import (
    BOOL,
    I64_TABLE,
    INT8,
    INT16,
    LAYOUT,
    OUT_I64,
    OUT_I64_CUBE,
    PAYLOADS,
    kernel,
    view,
)

GRAM_SPAN: Final = 8
"""Bits of distance from 2**-48 that share a bucket."""
GRAM_BUCKETS: Final = 2 * (FRACTION_BITS + MAX_EXPONENT) // GRAM_SPAN + 1
VALUE_BITS: Final = VALUE_LIMIT.bit_length() - 1
_ROWS_BYTES: Final = 2**16
"""What is sorted at a time, of all clients: about what the first cache holds."""
_ROW_BYTES: Final = 256
"""The least of it for each client."""

assert MAX_MODEL_PARAMETERS * 2**30 * 2 ** (GRAM_SPAN - 1) < 2**62, "a bucket of a model"
assert BLOCK_VALUES * 2**14 < 2**31, "the dot product of a block of int8"
assert MAX_UPDATES * 2**15 < 2**31, "a trimmed sum of int16"
assert MAX_UPDATES * VALUE_LIMIT << WEIGHT_BITS <= 2**61, "what is divided"

# -- trimmed sums ----------------------------------------------------------------------------------


@njit(nogil=True)
def _align_payloads(rows, count, at, addresses, shifts, kind, size):
    """Copy `count` values of each payload, of `size` bytes each, from value `at` on, shifted."""
    for k in range(addresses.size):
        q = view(addresses[k] + np.uint64(at * size), count, kind)
        row = rows[k]
        if shifts[k] == 0:
            for x in range(count):
                row[x] = q[x]
            continue
        factor = np.int64(1) << min(shifts[k], VALUE_BITS)
        for x in range(count):
            row[x] = np.int32(np.int64(q[x]) * factor)


@njit(nogil=True)
def _sort_rows(rows, width, network):
    for c in range(network.shape[0]):
        i, j = network[c, 0], network[c, 1]
        for x in range(width):
            first, second = rows[i, x], rows[j, x]
            rows[i, x] = first if first < second else second
            rows[j, x] = second if first < second else first


@njit(nogil=True)
def _sum_rows(sums, rows, first, last, totals):
    """Set sums to those of rows first..last-1, gathered in `totals`."""
    totals[:] = 0
    for k in range(first, last):
        row = rows[k]
        for x in range(sums.size):
            totals[x] += row[x]
    for x in range(sums.size):
        sums[x] = totals[x]


@njit(nogil=True)
def _divide_half_even(sums, shift, divisor):
    """Set sums to `sums * 2**shift / divisor`, rounded to the nearest, a tie to the even one."""
    for x in range(sums.size):
        number = sums[x] << shift
        whole = number // divisor
        twice = 2 * (number - whole * divisor)
        sums[x] = whole + (twice > divisor or (twice == divisor and (whole & 1) == 1))


@njit(nogil=True)
def _trim_block(sums, start, addresses, narrow, shifts, network, trimmed, rows, totals):
    """Set sums to those of a block's values, without the `trimmed` lowest and highest of each."""
    clients, width = rows.shape
    for at in range(0, sums.size, width):
        count = min(width, sums.size - at)
        _align_payloads(
            rows[:narrow], count, start + at, addresses[:narrow], shifts[:narrow], INT8, 1
        )
        _align_payloads(
            rows[narrow:], count, start + at, addresses[narrow:], shifts[narrow:], INT16, 2
        )
        _sort_rows(rows, count, network)
        _sum_rows(sums[at : at + count], rows, trimmed, clients - trimmed, totals)


@njit(nogil=True)
def _count_bits(shifts, narrow):
    """Return how many bits the largest value takes, without its sign."""
    bits = 0
    for k in range(shifts.size):
        bits = max(bits, shifts[k] + (7 if k < narrow else 15))
    return bits


@kernel(types.void(types.int64, types.int64, LAYOUT, *PAYLOADS, I64_TABLE, types.int64, OUT_I64))
def trim_blocks(first, last, layout, addresses, narrow, exponents, network, trimmed, sums):
    """Set sums (values of blocks first..last-1,) to trimmed means in units of 2**-(f + 20).

    network (comparators, 2) moves the `trimmed` lowest of the clients first and the highest last.
    """
    update_start, _, lengths, fraction_bits = layout
    clients = addresses.size
    width = min(BLOCK_VALUES, max(_ROW_BYTES, _ROWS_BYTES // clients // 64 * 64))
    rows16 = np.empty((clients, width // 2), np.int16)
    rows32 = np.empty((clients, width // 4), np.int32)
    totals32 = np.empty(width, np.int32)
    totals64 = np.empty(width, np.int64)
    shifts = np.empty(clients, np.int64)
    for block in range(first, last):
        start, length = update_start[block], lengths[block]
        least = np.int64(exponents[:, block].min())
        for k in range(clients):
            shifts[k] = exponents[k, block] - least
        to = start - update_start[first]
        made = sums[to : to + length]
        bits = _count_bits(shifts, narrow)
        if bits <= 15:
            _trim_block(made, start, addresses, narrow, shifts, network, trimmed, rows16, totals32)
        else:
            _trim_block(made, start, addresses, narrow, shifts, network, trimmed, rows32, totals64)
        # Past VALUE_BITS every value in range is zero.
        shift = min(least + fraction_bits[block], VALUE_BITS) + WEIGHT_BITS
        _divide_half_even(made, shift, clients - 2 * trimmed)


# -- dot products of pairs -------------------------------------------------------------------------


@njit(nogil=True)
def _dot_narrow(left, addresses, length, dots):
    """Set dots to the dot products of one int8 payload with others. In 32 bits: they fit."""
    count = addresses.size
    for k in range(0, count - count % 4, 4):
        q0 = view(addresses[k], length, INT8)
        q1 = view(addresses[k + 1], length, INT8)
        q2 = view(addresses[k + 2], length, INT8)
        q3 = view(addresses[k + 3], length, INT8)
        a0 = a1 = a2 = a3 = np.int32(0)
        for i in range(length):
            v = np.int32(left[i])
            a0 = np.int32(a0 + np.int32(v * np.int32(q0[i])))
            a1 = np.int32(a1 + np.int32(v * np.int32(q1[i])))
            a2 = np.int32(a2 + np.int32(v * np.int32(q2[i])))
            a3 = np.int32(a3 + np.int32(v * np.int32(q3[i])))
        dots[k], dots[k + 1], dots[k + 2], dots[k + 3] = a0, a1, a2, a3
    for k in range(count - count % 4, count):
        q = view(addresses[k], length, INT8)
        a = np.int32(0)
        for i in range(length):
            a = np.int32(a + np.int32(np.int32(left[i]) * np.int32(q[i])))
        dots[k] = a


@njit(nogil=True)
def _dot_wide(left, addresses, length, dots):
    """Set dots to the dot products of one payload with others of int16."""
    for k in range(addresses.size):
        q = view(addresses[k], length, INT16)
        a = np.int64(0)
        for i in range(length):
            a += np.int64(left[i]) * np.int64(q[i])
        dots[k] = a


@kernel(types.void(types.int64, types.int64, LAYOUT, BOOL, *PAYLOADS, OUT_I64_CUBE))
def compare_blocks(first, last, layout, is_train, addresses, narrow, exponents, dots):
    """Add the dot products of payloads k < l in `train` blocks first..last-1 to dots[k, l].

    dots (clients, clients, GRAM_BUCKETS): bucket b is GRAM_SPAN * b bits from the unit, 2**-48.
    """
    update_start, _, lengths, _ = layout
    clients = addresses.size
    at = np.empty(clients, np.uint64)
    found = np.empty(clients, np.int64)
    for block in range(first, last):
        if not is_train[block]:
            continue
        start, length = update_start[block], lengths[block]
        for k in range(clients):
            at[k] = addresses[k] + np.uint64(start * (1 if k < narrow else 2))
        for k in range(clients - 1):
            split = max(narrow, k + 1)
            if k < narrow:
                left = view(at[k], length, INT8)
                _dot_narrow(left, at[k + 1 : split], length, found[k + 1 : split])
                _dot_wide(left, at[split:], length, found[split:])
            else:
                _dot_wide(view(at[k], length, INT16), at[split:], length, found[split:])
            for j in range(k + 1, clients):
                distance = np.int64(exponents[k, block]) + exponents[j, block] + 2 * FRACTION_BITS
                inside = distance % GRAM_SPAN
                dots[k, j, distance // GRAM_SPAN] += found[j] << inside

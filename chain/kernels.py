"""The inner loops of aggregation, compiled once for every machine: integers in, the same bits out.

One pass over the updates does everything that memory bandwidth pays for. Block by block (4096
values, one exponent for each client) it measures each payload (norm, range), adds four clients at a
time into sums that stay in the L1 cache, rounds the sums into the model, and while the payloads are
still in the L2 cache takes their dot products with those sums, which is all that scores need.

Widths. A delta is `q << shift` with `max|q| << shift < 2**31` (checked before the shift, by
`_is_in_range`), shares sum to at most 2**20, so a sum stays below 2**51. Dot products take the sum
in two parts, `(high << SPLIT_BITS) + low`. The bounds are asserted below.

With NUMBA_DISABLE_JIT=1 the same functions run as plain Python and give the same bits.
Sources: docs/protocol.md, "Aggregation"; Algorithm 1 of McMahan et al., arXiv:1602.05629.
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
    MAX_SERVER_RATE,
    STEP_BITS,
    VALUE_LIMIT,
    VELOCITY_LIMIT,
    WEIGHT_BITS,
)
from .payloads import (
    BOOL,
    I32,
    I64,
    I64_TABLE,
    INT8,
    INT16,
    LAYOUT,
    OUT_I32,
    OUT_I64,
    OUT_I64_CUBE,
    OUT_I64_TABLE,
    PAYLOADS,
    kernel,
    view,
)

VALUE_BITS: Final = VALUE_LIMIT.bit_length() - 1
SQUARE_SHIFTS: Final = FRACTION_BITS + MAX_EXPONENT + 1
"""How many values `exponent + 24` has: the distance of a value from 2**-24, the unit of norms."""
DOT_SHIFTS: Final = 2 * FRACTION_BITS + MAX_EXPONENT + 1
"""How many values `exponent + 48 - fraction_bits` has: the same for value x sum."""
SPLIT_BITS: Final = 30
"""Dot products use the low 30 bits of a sum, and the rest of it, apart."""

MOST_8: Final = 2**7 - 1
MOST_16: Final = 2**15 - 1
_HIGH: Final = 2 ** (WEIGHT_BITS + VALUE_BITS - SPLIT_BITS)
assert max(_HIGH, 2**SPLIT_BITS) <= 2**31, "both parts of a sum are int32"
assert BLOCK_VALUES * MOST_16 * 2**SPLIT_BITS < 2**62, "the low dot product of a block"
assert 2 * MAX_MODEL_PARAMETERS * MOST_16 * _HIGH < 2**62, "the high one of a model, with carries"
assert MAX_MODEL_PARAMETERS * 2**SPLIT_BITS < 2**62, "what carrying leaves in the low one"
assert BLOCK_VALUES * 2**14 < 2**31, "the squares of a block of int8"
assert MAX_MODEL_PARAMETERS * MOST_16**2 < 2**62, "the squares of a model"
assert MAX_SERVER_RATE * VELOCITY_LIMIT < 2**63, "the server's rate times a velocity"

_SPLIT_MASK: Final = 2**SPLIT_BITS - 1
_INT32_MAX: Final = 2**31 - 1
_INT32_MIN: Final = -(2**31)

# -- one block -------------------------------------------------------------------------------------


@njit(nogil=True)
def _sum_squares_8(q):
    """In 32 bits, which is twice as fast: BLOCK_VALUES squares of 2**14 fit."""
    squares = np.int32(0)
    for i in range(q.size):
        squares = np.int32(squares + np.int32(np.int32(q[i]) * np.int32(q[i])))
    return np.int64(squares)


@njit(nogil=True)
def _sum_squares_16(q):
    squares = np.int64(0)
    for i in range(q.size):
        squares += np.int64(q[i]) * np.int64(q[i])
    return squares


@njit(nogil=True)
def _is_in_range(q, shift, most):
    """No value is the type's lowest, and none shifted reaches VALUE_LIMIT."""
    low = q[0]
    high = q[0]
    for i in range(1, q.size):
        low = min(low, q[i])
        high = max(high, q[i])
    return max(-np.int64(low), np.int64(high)) <= min(most, (VALUE_LIMIT - 1) >> shift)


@njit(nogil=True)
def _weigh(share, shift):
    """Return what a payload is multiplied by. Past VALUE_BITS every value in range is zero."""
    return share << shift if shift < VALUE_BITS else np.int64(0)


@njit(nogil=True)
def _add_payloads(sums, squares, addresses, shifts, shares, kind, most):
    """Measure each client's payload of one block and add it to the sums. False: out of range."""
    length, clients = sums.size, addresses.size
    for k in range(clients):
        q = view(addresses[k], length, kind)
        if not _is_in_range(q, shifts[k], most):
            return False
        squares[k] = _sum_squares_8(q) if most == MOST_8 else _sum_squares_16(q)
        if k % 4 == 3:
            q0 = view(addresses[k - 3], length, kind)
            q1 = view(addresses[k - 2], length, kind)
            q2 = view(addresses[k - 1], length, kind)
            c0 = _weigh(shares[k - 3], shifts[k - 3])
            c1 = _weigh(shares[k - 2], shifts[k - 2])
            c2 = _weigh(shares[k - 1], shifts[k - 1])
            c3 = _weigh(shares[k], shifts[k])
            for i in range(length):
                first = c0 * np.int64(q0[i]) + c1 * np.int64(q1[i])
                sums[i] += first + c2 * np.int64(q2[i]) + c3 * np.int64(q[i])
    for k in range(clients - clients % 4, clients):
        q = view(addresses[k], length, kind)
        c = _weigh(shares[k], shifts[k])
        for i in range(length):
            sums[i] += c * np.int64(q[i])
    return True


@njit(nogil=True)
def _dot_payloads(low, high, dots, addresses, kind):
    """Set `dots[client]` to the dot products of its payload with both parts of the sums."""
    length, clients = low.size, addresses.size
    for k in range(0, clients - clients % 4, 4):
        q0 = view(addresses[k], length, kind)
        q1 = view(addresses[k + 1], length, kind)
        q2 = view(addresses[k + 2], length, kind)
        q3 = view(addresses[k + 3], length, kind)
        a0 = a1 = a2 = a3 = np.int64(0)
        b0 = b1 = b2 = b3 = np.int64(0)
        for i in range(length):
            a, b = np.int64(low[i]), np.int64(high[i])
            v0, v1, v2, v3 = np.int64(q0[i]), np.int64(q1[i]), np.int64(q2[i]), np.int64(q3[i])
            a0 += v0 * a
            a1 += v1 * a
            a2 += v2 * a
            a3 += v3 * a
            b0 += v0 * b
            b1 += v1 * b
            b2 += v2 * b
            b3 += v3 * b
        dots[k, 0], dots[k + 1, 0], dots[k + 2, 0], dots[k + 3, 0] = a0, a1, a2, a3
        dots[k, 1], dots[k + 1, 1], dots[k + 2, 1], dots[k + 3, 1] = b0, b1, b2, b3
    for k in range(clients - clients % 4, clients):
        q = view(addresses[k], length, kind)
        low_dot = high_dot = np.int64(0)
        for i in range(length):
            low_dot += np.int64(q[i]) * np.int64(low[i])
            high_dot += np.int64(q[i]) * np.int64(high[i])
        dots[k, 0], dots[k, 1] = low_dot, high_dot


@njit(nogil=True)
def _split(sums, low, high):
    for i in range(sums.size):
        low[i] = np.int32(sums[i] & _SPLIT_MASK)
        high[i] = np.int32(sums[i] >> SPLIT_BITS)


@njit(nogil=True)
def _shift_half_even(number, bits):
    """Return `number / 2**bits`, rounded to the nearest integer, a tie to the even one."""
    odd = (number >> bits) & 1
    return (number + ((np.int64(1) << (bits - 1)) - 1 + odd)) >> bits


@njit(nogil=True)
def _round_into(model, base, sums):
    """Set `model` to `base + sums / 2**20`; return how many saturated."""
    saturated = 0
    for i in range(sums.size):
        value = np.int64(base[i]) + _shift_half_even(sums[i], WEIGHT_BITS)
        clamped = min(max(value, np.int64(_INT32_MIN)), np.int64(_INT32_MAX))
        saturated += clamped != value
        model[i] = np.int32(clamped)
    return saturated


@njit(nogil=True)
def _step_into(model, base, sums, before, after, rate, momentum):
    """Set `model` to the base moved by the server's step, and `after` to the velocity it took.

    `before` is empty where nothing moved yet, `after` where the velocity is not kept.
    """
    saturated = 0
    for i in range(sums.size):
        velocity = _shift_half_even(sums[i], STEP_BITS)
        if before.size > 0:
            velocity += _shift_half_even(momentum * before[i], STEP_BITS)
        if after.size > 0:
            after[i] = velocity
        value = np.int64(base[i]) + _shift_half_even(rate * velocity, WEIGHT_BITS)
        clamped = min(max(value, np.int64(_INT32_MIN)), np.int64(_INT32_MAX))
        saturated += clamped != value
        model[i] = np.int32(clamped)
    return saturated


# -- whole models ----------------------------------------------------------------------------------


@njit(nogil=True)
def _sum_block(sums, squares, block, start, bits, addresses, narrow, exponents, shares):
    """Add one block of all clients to `sums`. False: a value is out of range."""
    shifts = np.empty(addresses.size, np.int64)
    at = np.empty(addresses.size, np.uint64)
    for k in range(addresses.size):
        width = 1 if k < narrow else 2
        shifts[k] = np.int64(exponents[k, block]) + bits
        at[k] = addresses[k] + np.uint64(start * width)
    return _add_payloads(
        sums, squares[:narrow], at[:narrow], shifts[:narrow], shares[:narrow], INT8, MOST_8
    ) and _add_payloads(
        sums, squares[narrow:], at[narrow:], shifts[narrow:], shares[narrow:], INT16, MOST_16
    )


@njit(nogil=True)
def _dot_block(low, high, dots, start, addresses, narrow):
    at = np.empty(addresses.size, np.uint64)
    for k in range(addresses.size):
        width = 1 if k < narrow else 2
        at[k] = addresses[k] + np.uint64(start * width)
    _dot_payloads(low, high, dots[:narrow], at[:narrow], INT8)
    _dot_payloads(low, high, dots[narrow:], at[narrow:], INT16)


@kernel(
    types.int64(
        types.int64, types.int64, LAYOUT, BOOL, *PAYLOADS, I64_TABLE, I64, I32, OUT_I32,
        types.UniTuple(types.int64, 2), I64, OUT_I64, OUT_I64_TABLE, OUT_I64_CUBE,
    )
)  # fmt: skip
def combine_blocks(
    first, last, layout, is_train, addresses, narrow, exponents, shares, given, base, model,
    step, before, after, squares, dots,
):  # fmt: skip
    """Make blocks first..last-1 of the new model; return the saturated values, -1: out of range.

    shares (2, clients): what applies to `average` and to `train` tensors. given (values of the
    range,), if not empty: what a robust rule made, in the sums' units, instead of the sums.
    model (values of the range,): in update order. step: the server's rate and momentum, (0, 0) for
    none; before (update values,) and after (values of the range,): velocities, each may be empty.
    squares (clients, SQUARE_SHIFTS) and dots (clients, DOT_SHIFTS, 2) collect `train` blocks by
    their distance from the unit; a dot product is `(dots[..., 1] << SPLIT_BITS) + dots[..., 0]`.
    """
    update_start, model_start, lengths, fraction_bits = layout
    buffer = np.empty(BLOCK_VALUES, np.int64)
    low_buffer = np.empty(BLOCK_VALUES, np.int32)
    high_buffer = np.empty(BLOCK_VALUES, np.int32)
    block_squares = np.empty(addresses.size, np.int64)
    block_dots = np.empty((addresses.size, 2), np.int64)
    rate, momentum = step
    saturated = 0
    for block in range(first, last):
        start, length, bits = update_start[block], lengths[block], fraction_bits[block]
        sums, low, high = buffer[:length], low_buffer[:length], high_buffer[:length]
        sums[:] = 0
        chosen = shares[1 if is_train[block] else 0]
        if not _sum_block(
            sums, block_squares, block, start, bits, addresses, narrow, exponents, chosen
        ):
            return -1
        to, at = start - update_start[first], model_start[block]
        made = given[to : to + length] if given.size > 0 else sums
        old, new = base[at : at + length], model[to : to + length]
        if rate > 0 and is_train[block]:
            saturated += _step_into(
                new, old, made, before[start : start + length], after[to : to + length],
                rate, momentum,
            )  # fmt: skip
        else:
            saturated += _round_into(new, old, made)
            after[to : to + length] = 0
        if not is_train[block]:
            continue
        _split(sums, low, high)
        _dot_block(low, high, block_dots, start, addresses, narrow)
        for k in range(addresses.size):
            exponent = np.int64(exponents[k, block])
            squares[k, exponent + FRACTION_BITS] += block_squares[k]
            distance = exponent + 2 * FRACTION_BITS - bits
            dots[k, distance, 0] += block_dots[k, 0] & _SPLIT_MASK
            dots[k, distance, 1] += block_dots[k, 1] + (block_dots[k, 0] >> SPLIT_BITS)
    return saturated


@kernel(types.int64(types.int64, types.int64, LAYOUT, BOOL, *PAYLOADS, OUT_I64))
def measure_blocks(first, last, layout, is_train, addresses, narrow, exponents, squares):
    """Collect one update's squares by distance (SQUARE_SHIFTS,); return its bad block, or -1."""
    update_start, _, lengths, fraction_bits = layout
    for block in range(first, last):
        exponent = np.int64(exponents[0, block])
        shift, length = exponent + fraction_bits[block], lengths[block]
        if narrow:
            q8 = view(addresses[0] + np.uint64(update_start[block]), length, INT8)
            is_valid, square = _is_in_range(q8, shift, MOST_8), _sum_squares_8(q8)
        else:
            q16 = view(addresses[0] + np.uint64(2 * update_start[block]), length, INT16)
            is_valid, square = _is_in_range(q16, shift, MOST_16), _sum_squares_16(q16)
        if not is_valid:
            return block
        if is_train[block]:
            squares[exponent + FRACTION_BITS] += square
    return -1

"""The inner loops of aggregation, compiled once for every machine: integers in, the same bits out.

One pass over the updates does everything that memory bandwidth pays for. Block by block (4096
values, one exponent for each client) it measures each payload (norm, range), adds four clients at a
time into sums that stay in the L1 cache, rounds the sums into the model, and while the payloads are
still in the L2 cache takes their dot products with those sums, which is all that scores need.

Payloads stay where they are: a kernel gets a table of their addresses. The caller keeps the buffers
alive, and has checked lengths and exponents before a kernel reads or shifts anything.

Widths. A delta is `q << shift` with `max|q| << shift < 2**31` (checked before the shift, by
`_measure`), shares sum to at most 2**20, so a sum stays below 2**51. Dot products take the sum in
two parts, `(high << SPLIT_BITS) + low`. The bounds are asserted below.

With NUMBA_DISABLE_JIT=1 the same functions run as plain Python and give the same bits.
Sources: docs/protocol.md, "Aggregation"; Algorithm 1 of McMahan et al., arXiv:1602.05629.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# The types of kernels are their numba signatures, which say more than annotations could.

import ctypes
from typing import Final

import numpy as np
from numba import carray, config, njit, types
from numba.extending import intrinsic

from .params import (
    BLOCK_VALUES,
    FRACTION_BITS,
    MAX_EXPONENT,
    MAX_MODEL_PARAMETERS,
    VALUE_LIMIT,
    WEIGHT_BITS,
    WEIGHT_TOTAL,
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

_SPLIT_MASK: Final = 2**SPLIT_BITS - 1
_INT32_MAX: Final = 2**31 - 1
_INT32_MIN: Final = -(2**31)
_JUST_UNDER_HALF: Final = WEIGHT_TOTAL // 2 - 1

# -- payloads by address ---------------------------------------------------------------------------

_INT8: Final = np.int8(0)
_INT16: Final = np.int16(0)
"""Values that stand for their type: a function is compiled for each."""

if config.DISABLE_JIT:

    def _view(address, length, kind):
        """Return the `length` values of `kind` at an address."""
        memory = (ctypes.c_char * (int(length) * kind.itemsize)).from_address(int(address))
        return np.frombuffer(memory, kind.dtype)

else:

    @intrinsic
    def _pointer(_context, _address, kind):
        """Make a typed pointer of an address."""

        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.uint64, kind), generate

    @njit(nogil=True)
    def _view(address, length, kind):
        """Return the `length` values of `kind` at an address."""
        return carray(_pointer(address, kind), (length,))


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
        q = _view(addresses[k], length, kind)
        if not _is_in_range(q, shifts[k], most):
            return False
        squares[k] = _sum_squares_8(q) if most == MOST_8 else _sum_squares_16(q)
        if k % 4 == 3:
            q0 = _view(addresses[k - 3], length, kind)
            q1 = _view(addresses[k - 2], length, kind)
            q2 = _view(addresses[k - 1], length, kind)
            c0 = _weigh(shares[k - 3], shifts[k - 3])
            c1 = _weigh(shares[k - 2], shifts[k - 2])
            c2 = _weigh(shares[k - 1], shifts[k - 1])
            c3 = _weigh(shares[k], shifts[k])
            for i in range(length):
                first = c0 * np.int64(q0[i]) + c1 * np.int64(q1[i])
                sums[i] += first + c2 * np.int64(q2[i]) + c3 * np.int64(q[i])
    for k in range(clients - clients % 4, clients):
        q = _view(addresses[k], length, kind)
        c = _weigh(shares[k], shifts[k])
        for i in range(length):
            sums[i] += c * np.int64(q[i])
    return True


@njit(nogil=True)
def _dot_payloads(low, high, dots, addresses, kind):
    """Set `dots[client]` to the dot products of its payload with both parts of the sums."""
    length, clients = low.size, addresses.size
    for k in range(0, clients - clients % 4, 4):
        q0 = _view(addresses[k], length, kind)
        q1 = _view(addresses[k + 1], length, kind)
        q2 = _view(addresses[k + 2], length, kind)
        q3 = _view(addresses[k + 3], length, kind)
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
        q = _view(addresses[k], length, kind)
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
def _round_into(model, base, sums):
    """Set `model` to `base + sums / 2**20`, rounded half to even; return how many saturated."""
    saturated = 0
    for i in range(sums.size):
        odd = (sums[i] >> WEIGHT_BITS) & 1
        value = np.int64(base[i]) + ((sums[i] + (_JUST_UNDER_HALF + odd)) >> WEIGHT_BITS)
        clamped = min(max(value, np.int64(_INT32_MIN)), np.int64(_INT32_MAX))
        saturated += clamped != value
        model[i] = np.int32(clamped)
    return saturated


# -- whole models ----------------------------------------------------------------------------------


def _kernel(signature):
    """Compile a kernel now, and keep it beside this file for the next start if that can be.

    A cache on a full or read-only disk, or one that a power cut left half written, must not stop a
    node: without it a start takes some seconds more. A kernel that does not compile raises again.
    """

    def compile_kernel(function):
        try:
            return njit(signature, nogil=True, cache=True)(function)
        except Exception:
            return njit(signature, nogil=True)(function)

    return compile_kernel


_I64: Final = types.Array(types.int64, 1, "C", readonly=True)
_I32: Final = types.Array(types.int32, 1, "C", readonly=True)
_BOOL: Final = types.Array(types.boolean, 1, "C", readonly=True)
_U64: Final = types.Array(types.uint64, 1, "C", readonly=True)
_I8_TABLE: Final = types.Array(types.int8, 2, "C", readonly=True)
_I64_TABLE: Final = types.Array(types.int64, 2, "C", readonly=True)
_OUT_I64: Final = types.Array(types.int64, 1, "C")
_OUT_I32: Final = types.Array(types.int32, 1, "C")
_OUT_I64_TABLE: Final = types.Array(types.int64, 2, "C")
_OUT_I64_CUBE: Final = types.Array(types.int64, 3, "C")
# update_start, model_start, length, fraction_bits, is_train: see model.Layout.
_LAYOUT: Final = types.UniTuple(_I64, 4)
# addresses, how many of them hold int8 (these come first; the rest hold int16), exponents.
_PAYLOADS: Final = (_U64, types.int64, _I8_TABLE)


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
        sums, squares[:narrow], at[:narrow], shifts[:narrow], shares[:narrow], _INT8, MOST_8
    ) and _add_payloads(
        sums, squares[narrow:], at[narrow:], shifts[narrow:], shares[narrow:], _INT16, MOST_16
    )


@njit(nogil=True)
def _dot_block(low, high, dots, start, addresses, narrow):
    at = np.empty(addresses.size, np.uint64)
    for k in range(addresses.size):
        width = 1 if k < narrow else 2
        at[k] = addresses[k] + np.uint64(start * width)
    _dot_payloads(low, high, dots[:narrow], at[:narrow], _INT8)
    _dot_payloads(low, high, dots[narrow:], at[narrow:], _INT16)


@_kernel(
    types.int64(
        types.int64, types.int64, _LAYOUT, _BOOL, *_PAYLOADS, _I64_TABLE,
        _I32, _OUT_I32, _OUT_I64_TABLE, _OUT_I64_CUBE,
    )
)  # fmt: skip
def aggregate_blocks(
    first, last, layout, is_train, addresses, narrow, exponents, shares, base, model, squares, dots
):
    """Write blocks first..last-1 of the new model; return the saturated values, -1: out of range.

    shares (2, clients): what applies to `average` and to `train` tensors. squares (clients,
    SQUARE_SHIFTS) and dots (clients, DOT_SHIFTS, 2) collect `train` blocks by their distance from
    the unit; a dot product is `(dots[..., 1] << SPLIT_BITS) + dots[..., 0]`.
    """
    update_start, model_start, lengths, fraction_bits = layout
    buffer = np.empty(BLOCK_VALUES, np.int64)
    low_buffer = np.empty(BLOCK_VALUES, np.int32)
    high_buffer = np.empty(BLOCK_VALUES, np.int32)
    block_squares = np.empty(addresses.size, np.int64)
    block_dots = np.empty((addresses.size, 2), np.int64)
    saturated = 0
    for block in range(first, last):
        start, length, bits = update_start[block], lengths[block], fraction_bits[block]
        to = model_start[block]
        sums, low, high = buffer[:length], low_buffer[:length], high_buffer[:length]
        sums[:] = 0
        chosen = shares[1 if is_train[block] else 0]
        if not _sum_block(
            sums, block_squares, block, start, bits, addresses, narrow, exponents, chosen
        ):
            return -1
        saturated += _round_into(model[to : to + length], base[to : to + length], sums)
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


@_kernel(types.boolean(_LAYOUT, _BOOL, *_PAYLOADS, _I64_TABLE, _OUT_I64))
def accumulate_blocks(layout, is_train, addresses, narrow, exponents, shares, sums):
    """Add all updates to `sums` (update values,). False: a value is out of range."""
    update_start, _, lengths, fraction_bits = layout
    squares = np.empty(addresses.size, np.int64)
    for block in range(lengths.size):
        start = update_start[block]
        if not _sum_block(
            sums[start : start + lengths[block]],
            squares, block, start, fraction_bits[block],
            addresses, narrow, exponents, shares[1 if is_train[block] else 0],
        ):  # fmt: skip
            return False
    return True


@_kernel(types.int64(_LAYOUT, _I32, _I64, _OUT_I32))
def finish_blocks(layout, base, sums, model):
    """Write the averaged blocks of the new model; return how many values saturated."""
    update_start, model_start, lengths, _ = layout
    saturated = 0
    for block in range(lengths.size):
        start, to, length = update_start[block], model_start[block], lengths[block]
        saturated += _round_into(
            model[to : to + length], base[to : to + length], sums[start : start + length]
        )
    return saturated


@_kernel(types.int64(_LAYOUT, _BOOL, *_PAYLOADS, _OUT_I64))
def measure_blocks(layout, is_train, addresses, narrow, exponents, squares):
    """Collect one update's squares by distance (SQUARE_SHIFTS,); return its bad block, or -1."""
    update_start, _, lengths, fraction_bits = layout
    for block in range(lengths.size):
        exponent = np.int64(exponents[0, block])
        shift, length = exponent + fraction_bits[block], lengths[block]
        if narrow:
            q8 = _view(addresses[0] + np.uint64(update_start[block]), length, _INT8)
            is_valid, square = _is_in_range(q8, shift, MOST_8), _sum_squares_8(q8)
        else:
            q16 = _view(addresses[0] + np.uint64(2 * update_start[block]), length, _INT16)
            is_valid, square = _is_in_range(q16, shift, MOST_16), _sum_squares_16(q16)
        if not is_valid:
            return block
        if is_train[block]:
            squares[exponent + FRACTION_BITS] += square
    return -1

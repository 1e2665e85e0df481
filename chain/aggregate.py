"""Federated averaging in integers, so that every validator gets the same bits.

Sums of integers do not depend on the order of the clients, as sums of floats do, and one rounding
happens at the end. This module checks, arranges and scores; `kernels.py` does the inner loops and
`reference.py` is the independent oracle.

Scores need no second look at the updates. With S the sum of all weighted updates, the others of
client i are `S - c_i x_i`, so `x_i . others = x_i . S - c_i |x_i|**2`, and because S is a sum of
updates `|S|**2 = sum_j c_j (x_j . S)`: everything follows from the norms and the dots with S.

Pure: numpy and numba only. Called by the precompile. Source: docs/protocol.md, "Aggregation".
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Final, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from . import kernels
from .errors import InvalidAggregation, InvalidUpdate
from .model import Layout, Model, compute_layout, decode_model, encode_model
from .params import MAX_EXPONENT, VALUE_LIMIT, WEIGHT_BITS, WEIGHT_TOTAL
from .partial import MAX_PARTIAL_UPDATES, Partial, decode_partial, encode_partial
from .rules import Aggregate, Flag, Rule, RuleKind, check_rule
from .shares import check_names, compute_shares
from .types import BlobName, Buffer
from .update import Binding, Mode, Update, check_binding, decode_update

RANGE_BLOCKS: Final = 512
"""Blocks that one kernel call takes: two million values."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What a range of blocks adds up to; `saturated` is -1 if a value was out of range."""

    saturated: int
    squares: NDArray[np.int64]
    dots: NDArray[np.int64]


class Spread(Protocol):
    """`map`, or the `map` of a thread pool: the kernels release the interpreter."""

    def __call__(
        self, function: Callable[[int], Tally], first_blocks: Sequence[int], /
    ) -> Iterable[Tally]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Payloads:
    """Updates as kernels take them: 8-bit ones first. `order[k]` is the place of k in the list.

    Holds the updates, because an address keeps nothing alive.
    """

    updates: tuple[Update, ...]
    order: tuple[int, ...]
    addresses: NDArray[np.uint64]
    narrow: int
    exponents: NDArray[np.int8]


# -- public calls ----------------------------------------------------------------------------------


def verify_update(update: Buffer, model: Model, binding: Binding, max_norm2: int) -> int:
    """Return the squared norm of an update, in units of 2**-48. Raises InvalidUpdate.

    An update that passes can never make an aggregation over the same base fail.
    """
    decoded = decode_update(update)
    check_binding(decoded.header, binding)
    norm2 = check_ranges(decoded, compute_layout(model.manifest))
    if norm2 > max_norm2:
        raise InvalidUpdate(
            "update_norm", f"the squared norm {norm2} exceeds {max_norm2}; clip harder"
        )
    return norm2


def check_ranges(update: Update, layout: Layout) -> int:
    """Return the squared norm. Raises InvalidUpdate for the first thing that is out of range."""
    check_form(update, layout)
    payloads = _arrange((update,))
    squares = np.zeros(kernels.SQUARE_SHIFTS, np.int64)
    bad_block = kernels.measure_blocks(
        _get_arrays(layout), layout.is_train, *_get_table(payloads), squares
    )
    if bad_block >= 0:
        _raise_bad_block(update, layout, bad_block)
    return _weigh_squares(squares)


def check_form(update: Update, layout: Layout) -> None:
    """Raise InvalidUpdate unless mode, counts and exponents fit the model."""
    header = update.header
    if header.mode is not Mode.OPEN:
        raise InvalidUpdate("update_mode", "masked updates are for masked tasks; send it open")
    if header.values != layout.update_values or header.exponents != layout.length.size:
        raise InvalidUpdate(
            "update_count",
            f"{header.values} values in {header.exponents} blocks; the model has "
            f"{layout.update_values} in {layout.length.size}",
        )
    exponents = update.exponents.astype(np.int64)
    bad = (exponents < -layout.fraction_bits) | (exponents > MAX_EXPONENT)
    if bad.any():
        block = int(bad.argmax())
        raise InvalidUpdate(
            "update_exponent",
            f"block {block} has exponent {exponents[block]}; it has "
            f"{-layout.fraction_bits[block]} to {MAX_EXPONENT}",
        )


def aggregate(
    rule: Rule,
    base_name: BlobName,
    base: Buffer,
    updates: Sequence[tuple[BlobName, Buffer]],
    weights: Sequence[int],
    spread: Spread = map,
) -> Aggregate:
    """Return the new model and what the record says about it.

    Raises: InvalidAggregation for the list, the weights or the rule; InvalidUpdate for the first
    update in the list that does not belong; InvalidModel for the base.
    """
    check_rule(rule)
    shares = compute_shares([name for name, _ in updates], weights)
    model = decode_model(base)
    layout = compute_layout(model.manifest)
    decoded = _decode_updates(base_name, updates, layout)
    effective, flags = _apply_rule(rule, decoded, layout, shares)
    payloads = _arrange(decoded)
    values = model.values.copy()
    tally = _aggregate_ranges(payloads, layout, (shares, effective), model.values, values, spread)
    if tally is None:
        _raise_first_fault(decoded, layout)
    return Aggregate(
        model=encode_model(model.manifest, values),
        shares=shares,
        scores=_compute_scores(tally, payloads.order, effective),
        flags=flags,
        saturated=tally.saturated,
    )


def accumulate(
    rule: Rule,
    partial: Buffer | None,
    base_name: BlobName,
    base: Buffer,
    updates: Sequence[tuple[BlobName, Buffer]],
    shares: Sequence[int],
) -> bytes:
    """Return the partial with a page of updates added; None starts one.

    The caller keeps updates apart between pages, and has the shares of all of them.
    Raises: as `aggregate`, and InvalidAggregation for the partial or the shares.
    """
    check_rule(rule)
    check_names([name for name, _ in updates])
    check_shares(shares, len(updates))
    model = decode_model(base)
    layout = compute_layout(model.manifest)
    before = _open_partial(partial, base_name, layout.update_values)
    total = before.shares + sum(shares)
    if total > WEIGHT_TOTAL:
        raise InvalidAggregation("aggregation_shares", f"shares sum to {total}, past 2**20")
    if before.updates + len(updates) > MAX_PARTIAL_UPDATES:
        raise InvalidAggregation("aggregation_count", "the partial has too many updates")
    decoded = _decode_updates(base_name, updates, layout)
    effective, _ = _apply_rule(rule, decoded, layout, shares)
    payloads = _arrange(decoded)
    sums = before.sums.copy()
    if not kernels.accumulate_blocks(
        _get_arrays(layout),
        layout.is_train,
        *_get_table(payloads),
        _order_shares(payloads, (shares, effective)),
        sums,
    ):
        _raise_first_fault(decoded, layout)
    return encode_partial(Partial(before.updates + len(updates), total, base_name, sums))


def finish(base_name: BlobName, base: Buffer, partial: Buffer) -> tuple[bytes, int]:
    """Return the new model and how many values saturated. Raises InvalidAggregation."""
    model = decode_model(base)
    layout = compute_layout(model.manifest)
    done = decode_partial(partial, base_name, layout.update_values)
    if done.shares != WEIGHT_TOTAL:
        raise InvalidAggregation(
            "aggregation_shares", f"the pages' shares sum to {done.shares}, not 2**20; add the rest"
        )
    values = model.values.copy()
    saturated = kernels.finish_blocks(_get_arrays(layout), model.values, done.sums, values)
    return encode_model(model.manifest, values), int(saturated)


def check_shares(shares: Sequence[int], updates: int) -> None:
    """Raise InvalidAggregation unless there is a share in range for each update."""
    if len(shares) != updates:
        raise InvalidAggregation(
            "aggregation_count", f"{len(shares)} shares for {updates} updates; list one for each"
        )
    if not all(0 <= share <= WEIGHT_TOTAL for share in shares):
        raise InvalidAggregation("aggregation_shares", "a share is outside 0 to 2**20")


# -- steps -----------------------------------------------------------------------------------------


def _open_partial(partial: Buffer | None, base_name: BlobName, values: int) -> Partial:
    if partial is None:
        return Partial(0, 0, base_name, np.zeros(values, np.int64))
    return decode_partial(partial, base_name, values)


def _decode_updates(
    base_name: BlobName, updates: Sequence[tuple[BlobName, Buffer]], layout: Layout
) -> tuple[Update, ...]:
    decoded: list[Update] = []
    for _, data in updates:
        update = decode_update(data)
        if update.header.base != base_name:
            raise InvalidUpdate("update_base", "an update was made against another base model")
        check_form(update, layout)
        decoded.append(update)
    return tuple(decoded)


def _apply_rule(
    rule: Rule, updates: Sequence[Update], layout: Layout, shares: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the effective shares and the flags."""
    flags = [int(Flag.ZERO_SHARE) if share == 0 else 0 for share in shares]
    effective = list(shares)
    if rule.kind is RuleKind.NORM_CLIPPED_MEAN:
        bound2 = rule.bound**2
        for i, update in enumerate(updates):
            norm2 = check_ranges(update, layout)
            if norm2 > bound2:
                effective[i] = isqrt(shares[i] ** 2 * bound2 // norm2)
                flags[i] |= int(Flag.CLIPPED)
    return tuple(effective), tuple(flags)


def _arrange(updates: Sequence[Update]) -> Payloads:
    order = sorted(range(len(updates)), key=lambda i: updates[i].header.bits)
    arranged = tuple(_align(updates[i]) for i in order)
    return Payloads(
        updates=arranged,
        order=tuple(order),
        addresses=np.array([update.values.ctypes.data for update in arranged], np.uint64),
        narrow=sum(update.header.bits == 8 for update in arranged),
        exponents=np.stack([update.exponents for update in arranged]),
    )


def _align(update: Update) -> Update:
    """Blobs in files and in bytes are aligned; a slice of something larger may not be."""
    if update.values.flags.aligned:
        return update
    return Update(update.header, update.exponents, update.values.copy())


def _get_arrays(layout: Layout) -> tuple[NDArray[np.int64], ...]:
    return layout.update_start, layout.model_start, layout.length, layout.fraction_bits


def _get_table(payloads: Payloads) -> tuple[NDArray[np.uint64], int, NDArray[np.int8]]:
    return payloads.addresses, payloads.narrow, payloads.exponents


def _order_shares(payloads: Payloads, shares: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    return np.array([[row[i] for i in payloads.order] for row in shares], np.int64)


def _aggregate_ranges(
    payloads: Payloads,
    layout: Layout,
    shares: Sequence[Sequence[int]],
    base: NDArray[np.int32],
    model: NDArray[np.int32],
    spread: Spread,
) -> Tally | None:
    """Fill `model` range by range; None if a value of an update is out of range."""
    clients, blocks = len(payloads.updates), layout.length.size
    arrays, table = _get_arrays(layout), _get_table(payloads)
    ordered = _order_shares(payloads, shares)

    def aggregate_range(first: int) -> Tally:
        squares = np.zeros((clients, kernels.SQUARE_SHIFTS), np.int64)
        dots = np.zeros((clients, kernels.DOT_SHIFTS, 2), np.int64)
        saturated = kernels.aggregate_blocks(
            first, min(first + RANGE_BLOCKS, blocks), arrays, layout.is_train, *table,
            ordered, base, model, squares, dots,
        )  # fmt: skip
        return Tally(int(saturated), squares, dots)

    tallies = list(spread(aggregate_range, range(0, blocks, RANGE_BLOCKS)))
    if any(tally.saturated < 0 for tally in tallies):
        return None
    total = tallies[0]
    for tally in tallies[1:]:
        total = Tally(
            total.saturated + tally.saturated,
            total.squares + tally.squares,
            total.dots + tally.dots,
        )
    return total


def _weigh_squares(squares: NDArray[np.int64]) -> int:
    """Return the squared norm: each bucket is `2 * shift` bits from its unit."""
    return sum(square << (2 * shift) for shift, square in enumerate(squares.tolist()) if square)


def _weigh_dots(dots: NDArray[np.int64]) -> int:
    return sum(
        ((high << kernels.SPLIT_BITS) + low) << shift
        for shift, (low, high) in enumerate(dots.tolist())
        if low or high
    )


def _compute_scores(
    tally: Tally, order: Sequence[int], effective: Sequence[int]
) -> tuple[int, ...]:
    """Return the cosines of the updates with the sum of the others, in units of 2**-20."""
    place = sorted(range(len(order)), key=lambda k: order[k])
    norms2 = [_weigh_squares(tally.squares[k]) for k in place]
    dots = [_weigh_dots(tally.dots[k]) for k in place]
    sum2 = sum(share * dot for share, dot in zip(effective, dots, strict=True))
    return tuple(
        compute_cosine(dot - share * norm2, norm2, sum2 - 2 * share * dot + share * share * norm2)
        for share, dot, norm2 in zip(effective, dots, norms2, strict=True)
    )


def compute_cosine(dot: int, left2: int, right2: int) -> int:
    """Return the cosine from a dot product and two squared norms, toward zero; 0 if undefined."""
    if left2 == 0 or right2 == 0:
        return 0
    size = isqrt((dot * dot << (2 * WEIGHT_BITS)) // (left2 * right2))
    return size if dot >= 0 else -size


# -- faults ----------------------------------------------------------------------------------------


def _raise_first_fault(updates: Sequence[Update], layout: Layout) -> NoReturn:
    """Raise InvalidUpdate for the first bad update in the list, whatever a kernel met first."""
    for update in updates:
        check_ranges(update, layout)
    raise AssertionError("a kernel refused updates that are in range")


def _raise_bad_block(update: Update, layout: Layout, block: int) -> NoReturn:
    start, length = int(layout.update_start[block]), int(layout.length[block])
    values = update.values[start : start + length].astype(np.int64)
    if int(values.min()) == -(2 ** (update.header.bits - 1)):
        raise InvalidUpdate(
            "update_value", f"block {block} has the lowest value of its type; it has no negative"
        )
    shift = int(update.exponents[block]) + int(layout.fraction_bits[block])
    assert int(np.abs(values).max()) << shift >= VALUE_LIMIT
    raise InvalidUpdate(
        "update_overflow", f"block {block} shifted by {shift} leaves 32 bits; use a finer exponent"
    )

"""Federated averaging in integers, so that every validator gets the same bits.

Sums of integers do not depend on the order of the clients, as sums of floats do, and one rounding
happens at the end. This module runs the phases and scores; `jobs.py` decodes and arranges,
`robust.py` decides what an update counts, `kernels.py` and `robust_kernels.py` do the inner loops,
`reference.py` is the independent oracle.

An aggregation has two phases over the blocks of updates: measuring them (only for rules that need
norms or distances), then combining them by what was decided. `aggregate` runs both over all blocks;
pages run them over some of the blocks each, and are assembled to the same bits.

Scores need no second look at the updates. With S the sum of all weighted updates, the others of
client i are `S - c_i x_i`, so `x_i . others = x_i . S - c_i |x_i|**2`, and because S is a sum of
updates `|S|**2 = sum_j c_j (x_j . S)`: everything follows from the norms and the dots with S.

Pure: numpy and numba only. Called by the precompile. Source: docs/protocol.md, "Aggregation".
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import Final, NoReturn, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import kernels
from .errors import InvalidUpdate
from .jobs import (
    Job,
    Named,
    Payloads,
    arrange,
    check_form,
    get_arrays,
    get_end,
    get_table,
    open_job,
)
from .model import Layout, Model, compute_layout, decode_model, encode_model
from .pages import Combined, Measures
from .params import VALUE_LIMIT, WEIGHT_BITS, WEIGHT_TOTAL
from .robust import Decision, decide, list_comparators
from .robust_kernels import GRAM_BUCKETS, GRAM_SPAN, compare_blocks, trim_blocks
from .rules import Aggregate, Rule, RuleKind, check_enough, check_rule, needs_measures
from .server import check_velocity_use, encode_velocity
from .shares import check_names, check_weights
from .types import BlobName, Buffer
from .update import Binding, Update, check_binding, decode_update

RANGE_BLOCKS: Final = 512
"""Blocks that one kernel call takes: two million values."""
TRIM_BLOCKS: Final = 16
"""The same where a call needs eight bytes for each value: they stay in the cache."""

T = TypeVar("T", np.int32, np.int64)


@dataclass(frozen=True, slots=True)
class Tally:
    """What some blocks add up to, in the kernels' buckets and the order of the payloads.

    `saturated` is -1 if a value was out of range. dots: with the sum, or of pairs of updates.
    """

    saturated: int
    squares: NDArray[np.int64]
    dots: NDArray[np.int64]


class Spread(Protocol):
    """`map`, or the `map` of a thread pool: the kernels release the interpreter."""

    def __call__(
        self, function: Callable[[int], Tally], first_blocks: Sequence[int], /
    ) -> Iterable[Tally]: ...


# -- public calls ----------------------------------------------------------------------------------


def check_list(rule: Rule, names: Sequence[BlobName], weights: Sequence[int]) -> None:
    """Raise InvalidAggregation unless the rule can be computed over such a list."""
    check_rule(rule)
    check_names(names)
    check_weights(weights, len(names))
    check_enough(rule, len(names))


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
    payloads = arrange((update,))
    squares = np.zeros(kernels.SQUARE_SHIFTS, np.int64)
    bad_block = _measure_payload(payloads, 0, layout, 0, layout.length.size, squares)
    if bad_block >= 0:
        _raise_bad_block(update, layout, bad_block)
    return _weigh_squares(squares)


def aggregate(
    rule: Rule,
    base: Buffer,
    velocity: Buffer | None,
    updates: Named,
    weights: Sequence[int],
    spread: Spread = map,
) -> Aggregate:
    """Return the new model and what the record says about it.

    `velocity` is what the last round left, None before there is any.
    Raises: InvalidAggregation for the rule, the list, the weights or the velocity; InvalidUpdate
    for the first update in the list that does not belong; InvalidModel for the base.
    """
    names = [name for name, _ in updates]
    check_list(rule, names, weights)
    job = open_job(rule, base, velocity, updates)
    blocks = job.layout.length.size
    measures = [_measure(job, 0, blocks, spread)] if needs_measures(rule) else []
    decision = decide(rule, names, weights, _add_measures(measures))
    combined = _combine(job, decision, 0, blocks, spread)
    return _assemble(rule, job.model, decision, [combined])


def measure_range(
    rule: Rule, base: Buffer, updates: Named, first: int, last: int, spread: Spread = map
) -> Measures:
    """Run phase 1 over blocks first..last-1, which exist. Raises as `aggregate`."""
    check_rule(rule)
    names = [name for name, _ in updates]
    check_names(names)
    check_enough(rule, len(names))
    return _measure(open_job(rule, base, None, updates), first, last, spread)


def combine_range(
    rule: Rule,
    base: Buffer,
    velocity: Buffer | None,
    updates: Named,
    weights: Sequence[int],
    measures: Sequence[Measures],
    first: int,
    last: int,
    spread: Spread = map,
) -> Combined:
    """Run phase 2 over blocks first..last-1, which exist. Raises as `aggregate`.

    `measures` cover all blocks once; there are none for rules that need none.
    """
    names = [name for name, _ in updates]
    check_list(rule, names, weights)
    job = open_job(rule, base, velocity, updates)
    decision = decide(rule, names, weights, _add_measures(measures))
    return _combine(job, decision, first, last, spread)


def assemble(
    rule: Rule,
    base: Buffer,
    names: Sequence[BlobName],
    weights: Sequence[int],
    measures: Sequence[Measures],
    combined: Sequence[Combined],
) -> Aggregate:
    """Return what `aggregate` returns, from pages that cover all blocks once, in order.

    Pages that no updates could have made give some answer. Raises as `aggregate`.
    """
    check_list(rule, names, weights)
    model = decode_model(base)
    check_velocity_use(rule, model.manifest.update_values, is_given=False)
    decision = decide(rule, names, weights, _add_measures(measures))
    return _assemble(rule, model, decision, combined)


# -- phase 1 ---------------------------------------------------------------------------------------


def _measure_payload(
    payloads: Payloads,
    k: int,
    layout: Layout,
    first: int,
    last: int,
    squares: NDArray[np.int64],
) -> int:
    """Add to the squares of payload k; return its first bad block, or -1."""
    return int(
        kernels.measure_blocks(
            first, last, get_arrays(layout), layout.is_train, payloads.addresses[k : k + 1],
            int(k < payloads.narrow), payloads.exponents[k : k + 1], squares,
        )
    )  # fmt: skip


def _measure(job: Job, first: int, last: int, spread: Spread) -> Measures:
    payloads, layout = job.payloads, job.layout
    clients = len(payloads.updates)
    pairs = clients if job.rule.kind is RuleKind.MULTI_KRUM else 0

    def measure_some(start: int) -> Tally:
        end = min(start + RANGE_BLOCKS, last)
        squares = np.zeros((clients, kernels.SQUARE_SHIFTS), np.int64)
        dots = np.zeros((pairs, pairs, GRAM_BUCKETS), np.int64)
        for k in range(clients):
            if _measure_payload(payloads, k, layout, start, end, squares[k]) >= 0:
                return Tally(-1, squares, dots)
        if pairs:
            table = get_table(payloads)
            compare_blocks(start, end, get_arrays(layout), layout.is_train, *table, dots)
        return Tally(0, squares, dots)

    tally = _add_tallies(spread(measure_some, range(first, last, RANGE_BLOCKS)))
    if tally.saturated < 0:
        _raise_first_fault(payloads, layout, first, last)
    place = payloads.place
    norms2 = tuple(_weigh_squares(tally.squares[k]) for k in place)
    gram = tuple(
        _weigh_gram(tally.dots[min(place[i], place[j]), max(place[i], place[j])])
        for i in range(pairs)
        for j in range(i + 1, pairs)
    )
    return Measures(first, last, norms2, gram)


def _add_tallies(tallies: Iterable[Tally]) -> Tally:
    """Return the sums; `saturated` is -1 if any is."""
    total: Tally | None = None
    for tally in tallies:
        if total is None:
            total = tally
            continue
        is_bad = total.saturated < 0 or tally.saturated < 0
        saturated = -1 if is_bad else total.saturated + tally.saturated
        total = Tally(saturated, total.squares + tally.squares, total.dots + tally.dots)
    assert total is not None, "a range has blocks"
    return total


def _add_measures(measures: Sequence[Measures]) -> Measures | None:
    """Return the sums of pages."""
    if not measures:
        return None
    return Measures(
        measures[0].first,
        measures[-1].last,
        tuple(map(sum, zip(*(page.norms2 for page in measures), strict=True))),
        tuple(map(sum, zip(*(page.gram for page in measures), strict=True))),
    )


def _weigh_squares(squares: NDArray[np.int64]) -> int:
    """Return the squared norm: each bucket is `2 * shift` bits from its unit."""
    return sum(square << (2 * shift) for shift, square in enumerate(squares.tolist()) if square)


def _weigh_gram(dots: NDArray[np.int64]) -> int:
    return sum(dot << (GRAM_SPAN * i) for i, dot in enumerate(dots.tolist()) if dot)


# -- phase 2 ---------------------------------------------------------------------------------------


def _combine(job: Job, decision: Decision, first: int, last: int, spread: Spread) -> Combined:
    rule, layout, payloads = job.rule, job.layout, job.payloads
    origin = int(layout.update_start[first])
    count = get_end(layout, last - 1) - origin
    values = np.empty(count, np.int32)
    velocity = np.empty(count if rule.has_momentum else 0, np.int64)
    shares = np.array(
        [[row[i] for i in payloads.order] for row in (decision.shares, decision.effective)],
        np.int64,
    )
    step = (rule.server_lr, rule.momentum) if rule.has_server_step else (0, 0)
    arrays, table = get_arrays(layout), get_table(payloads)
    is_trimmed = rule.kind is RuleKind.TRIMMED_MEAN
    size = TRIM_BLOCKS if is_trimmed else RANGE_BLOCKS
    network = _make_network(len(payloads.updates), rule.bound) if is_trimmed else None

    def combine_some(start: int) -> Tally:
        end = min(start + size, last)
        part = slice(int(layout.update_start[start]) - origin, get_end(layout, end - 1) - origin)
        given = np.empty(0 if network is None else part.stop - part.start, np.int64)
        if network is not None:
            trim_blocks(start, end, arrays, *table, network, rule.bound, given)
        squares = np.zeros((len(payloads.updates), kernels.SQUARE_SHIFTS), np.int64)
        dots = np.zeros((len(payloads.updates), kernels.DOT_SHIFTS, 2), np.int64)
        saturated = kernels.combine_blocks(
            start, end, arrays, layout.is_train, *table, shares, given, job.model.values,
            values[part], step, job.velocity, velocity[part], squares, dots,
        )  # fmt: skip
        return Tally(int(saturated), squares, dots)

    tally = _add_tallies(spread(combine_some, range(first, last, size)))
    if tally.saturated < 0:
        _raise_first_fault(payloads, layout, first, last)
    return Combined(
        first,
        last,
        values,
        velocity if rule.has_momentum else None,
        tally.saturated,
        tuple(_weigh_squares(tally.squares[k]) for k in payloads.place),
        tuple(_weigh_dots(tally.dots[k]) for k in payloads.place),
    )


def _make_network(clients: int, trimmed: int) -> NDArray[np.int64]:
    comparators = list_comparators(clients, trimmed)
    return np.array(comparators, np.int64).reshape(len(comparators), 2)


def _weigh_dots(dots: NDArray[np.int64]) -> int:
    return sum(
        ((high << kernels.SPLIT_BITS) + low) << shift
        for shift, (low, high) in enumerate(dots.tolist())
        if low or high
    )


# -- the answer ------------------------------------------------------------------------------------


def _assemble(
    rule: Rule, model: Model, decision: Decision, combined: Sequence[Combined]
) -> Aggregate:
    layout = compute_layout(model.manifest)
    values = _join([page.values for page in combined])
    velocity = None
    if rule.has_momentum:
        velocity = encode_velocity(
            _join([page.velocity for page in combined if page.velocity is not None])
        )
    return Aggregate(
        model=encode_model(model.manifest, _place_values(model, layout, values)),
        shares=decision.shares,
        scores=_compute_scores(combined, decision.effective),
        flags=decision.flags,
        saturated=sum(page.saturated for page in combined),
        velocity=velocity,
    )


def _join(arrays: Sequence[NDArray[T]]) -> NDArray[T]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _place_values(model: Model, layout: Layout, values: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the values in file order; `values` are in update order."""
    if values.size == model.values.size:
        return values
    placed = model.values.copy()
    offsets = layout.model_start - layout.update_start
    runs = [0, *(np.flatnonzero(np.diff(offsets)) + 1).tolist(), offsets.size]
    for first, last in pairwise(runs):
        start, end = int(layout.update_start[first]), get_end(layout, last - 1)
        placed[start + int(offsets[first]) : end + int(offsets[first])] = values[start:end]
    return placed


def _compute_scores(combined: Sequence[Combined], effective: Sequence[int]) -> tuple[int, ...]:
    """Return the cosines of the updates with the sum of the others, in units of 2**-20."""
    norms2 = [sum(parts) for parts in zip(*(page.norms2 for page in combined), strict=True)]
    dots = [sum(parts) for parts in zip(*(page.dots for page in combined), strict=True)]
    sum2 = sum(share * dot for share, dot in zip(effective, dots, strict=True))
    return tuple(
        compute_cosine(dot - share * norm2, norm2, sum2 - 2 * share * dot + share * share * norm2)
        for share, dot, norm2 in zip(effective, dots, norms2, strict=True)
    )


def compute_cosine(dot: int, left2: int, right2: int) -> int:
    """Return the cosine from a dot product and two squared norms, toward zero; 0 if undefined.

    Numbers that no vectors have, which a page may hold, give 0 or the nearest end.
    """
    if left2 <= 0 or right2 <= 0:
        return 0
    size = min(isqrt((dot * dot << (2 * WEIGHT_BITS)) // (left2 * right2)), WEIGHT_TOTAL)
    return size if dot >= 0 else -size


# -- faults ----------------------------------------------------------------------------------------


def _raise_first_fault(payloads: Payloads, layout: Layout, first: int, last: int) -> NoReturn:
    """Raise InvalidUpdate for the first bad update in the list, whatever a kernel met first."""
    for k in payloads.place:
        squares = np.zeros(kernels.SQUARE_SHIFTS, np.int64)
        bad_block = _measure_payload(payloads, k, layout, first, last, squares)
        if bad_block >= 0:
            _raise_bad_block(payloads.updates[k], layout, bad_block)
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

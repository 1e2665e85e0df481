"""The oracle: aggregation again, in plain Python integers, written from docs/protocol.md alone.

It shares the codecs with `aggregate.py` and nothing else: no numpy arithmetic, no numba, no
algebraic short cuts. Auditors run it, and tests hold the kernels against it. It is slow (about a
million values a second for each client) and easy to check against the page, step by step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Final

import numpy as np

from .errors import InvalidAggregation, InvalidUpdate
from .model import Manifest, Model, Role, decode_model, encode_model
from .params import (
    BLOCK_VALUES,
    FRACTION_BITS,
    MAX_COMPARED_UPDATES,
    MAX_EXPONENT,
    MAX_RAW_WEIGHT,
    MAX_UPDATES,
    STEP_UNIT,
    VALUE_LIMIT,
    WEIGHT_TOTAL,
)
from .rules import Aggregate, Flag, Rule, RuleKind, check_rule
from .server import check_velocity_size, decode_velocity, encode_velocity
from .types import BlobName, Buffer
from .update import Binding, Mode, Update, check_binding, decode_update

_INT32_MIN: Final = -(2**31)
_INT32_MAX: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Block:
    """Values that share an exponent: where they start in the model, and what they mean."""

    model_start: int
    update_start: int
    length: int
    fraction_bits: int
    is_train: bool


@dataclass(frozen=True, slots=True)
class Delta:
    """One update in integers, value by value in update order.

    `steps` are in the tensors' own units, `finest` in units of 2**-24 with zeros outside `train`.
    """

    steps: list[int]
    finest: list[int]
    norm2: int


@dataclass(frozen=True, slots=True)
class Choice:
    """What each update counts; `effective` is for `train` tensors."""

    shares: tuple[int, ...]
    effective: tuple[int, ...]
    flags: tuple[int, ...]


def verify_update(update: Buffer, model: Model, binding: Binding, max_norm2: int) -> int:
    """Return the squared norm of an update, in units of 2**-48. Raises InvalidUpdate."""
    decoded = decode_update(update)
    check_binding(decoded.header, binding)
    blocks = _list_blocks(model.manifest)
    _check_form(decoded, blocks)
    norm2 = _read_delta(decoded, blocks).norm2
    if norm2 > max_norm2:
        raise InvalidUpdate("update_norm", f"the squared norm {norm2} exceeds {max_norm2}")
    return norm2


def compute_shares(
    names: Sequence[BlobName], weights: Sequence[int], max_share: int = WEIGHT_TOTAL
) -> tuple[int, ...]:
    """Return the shares. Raises InvalidAggregation."""
    _check_list(names, weights)
    return _share_out(names, dict(enumerate(weights)), max_share)[0]


def aggregate(
    rule: Rule,
    base: Buffer,
    velocity: Buffer | None,
    updates: Sequence[tuple[BlobName, Buffer]],
    weights: Sequence[int],
) -> Aggregate:
    """Return the new model and its record. Raises as `steelyard.chain.aggregate.aggregate`."""
    check_rule(rule)
    names = [name for name, _ in updates]
    _check_list(names, weights)
    _check_count(rule, len(names))
    model = decode_model(base)
    blocks = _list_blocks(model.manifest)
    before = _read_velocity(rule, velocity, model.manifest.update_values)
    deltas = _read_updates(updates, blocks)
    choice = _choose(rule, names, weights, deltas)
    if rule.kind is RuleKind.TRIMMED_MEAN:
        sums = _trim(deltas, rule.bound)
    else:
        sums = _sum_deltas(deltas, blocks, choice)
    if (rule.server_lr, rule.momentum) == (STEP_UNIT, 0):
        moves = [_divide(total, WEIGHT_TOTAL) for total in sums]
    else:
        moves, before = _step(rule, blocks, sums, before)
    data, saturated = _move(model, blocks, moves)
    return Aggregate(
        data,
        choice.shares,
        _compute_scores(deltas, choice.effective),
        choice.flags,
        saturated,
        encode_velocity(np.array(before, np.int64)) if rule.momentum else None,
    )


# -- the list --------------------------------------------------------------------------------------


def _check_list(names: Sequence[BlobName], weights: Sequence[int]) -> None:
    if not 1 <= len(names) <= MAX_UPDATES:
        raise InvalidAggregation("aggregation_count", f"{len(names)} updates")
    if len({(name.digest, name.size) for name in names}) != len(names):
        raise InvalidAggregation("aggregation_duplicate", "an update is listed more than once")
    if len(weights) != len(names):
        raise InvalidAggregation("aggregation_count", f"{len(weights)} weights")
    if min(weights) < 0 or max(weights) > MAX_RAW_WEIGHT or sum(weights) == 0:
        raise InvalidAggregation("aggregation_weight", "weights are out of range or all zero")


def _check_count(rule: Rule, count: int) -> None:
    trims, compares = rule.kind is RuleKind.TRIMMED_MEAN, rule.kind is RuleKind.MULTI_KRUM
    if (trims and count <= 2 * rule.bound) or (
        compares and not 2 * rule.bound + 3 <= count <= MAX_COMPARED_UPDATES
    ):
        raise InvalidAggregation("aggregation_rule_count", f"{count} updates")


def _share_out(
    names: Sequence[BlobName], weights: dict[int, int], max_share: int
) -> tuple[tuple[int, ...], set[int]]:
    """Return the shares of all, by the weights of some, and who was held to the cap."""
    givers = sum(weight != 0 for weight in weights.values())
    cap = max(max_share, (WEIGHT_TOTAL + givers - 1) // givers)
    capped: set[int] = set()
    while True:
        free = {i: weight for i, weight in weights.items() if i not in capped}
        shares = _hamilton(names, free, WEIGHT_TOTAL - cap * len(capped))
        over = {i for i, share in shares.items() if share > cap}
        if not over:
            break
        capped |= over
    return tuple(cap if i in capped else shares.get(i, 0) for i in range(len(names))), capped


def _hamilton(names: Sequence[BlobName], weights: dict[int, int], units: int) -> dict[int, int]:
    total = sum(weights.values())
    shares: dict[int, int] = {}
    remainders: list[tuple[int, bytes, int, int]] = []
    for i, weight in weights.items():
        shares[i], remainder = divmod(weight * units, total)
        remainders.append((-remainder, names[i].digest, names[i].size, i))
    for *_, i in sorted(remainders)[: units - sum(shares.values())]:
        shares[i] += 1
    return shares


# -- reading updates -------------------------------------------------------------------------------


def _list_blocks(manifest: Manifest) -> list[Block]:
    blocks: list[Block] = []
    model_start = update_start = 0
    for spec in manifest.tensors:
        if spec.role is Role.LOCAL:
            continue
        if spec.role is not Role.KEEP:
            left = spec.size
            while left:
                length = min(left, BLOCK_VALUES)
                done = spec.size - left
                blocks.append(
                    Block(
                        model_start + done,
                        update_start + done,
                        length,
                        spec.fraction_bits,
                        spec.role is Role.TRAIN,
                    )
                )
                left -= length
            update_start += spec.size
        model_start += spec.size
    return blocks


def _read_velocity(rule: Rule, velocity: Buffer | None, values: int) -> list[int]:
    if rule.momentum:
        check_velocity_size(values)
    if velocity is None:
        return [0] * values
    if not rule.momentum:
        raise InvalidAggregation("velocity_unused", "a velocity without momentum")
    numbers: list[int] = decode_velocity(velocity, values).tolist()
    return numbers


def _read_updates(
    updates: Sequence[tuple[BlobName, Buffer]], blocks: Sequence[Block]
) -> list[Delta]:
    """Decode all, then read the numbers of all: the order in which faults are found."""
    decoded = []
    for _, data in updates:
        update = decode_update(data)
        _check_form(update, blocks)
        decoded.append(update)
    return [_read_delta(update, blocks) for update in decoded]


def _check_form(update: Update, blocks: Sequence[Block]) -> None:
    header = update.header
    if header.mode is not Mode.OPEN:
        raise InvalidUpdate("update_mode", "a masked update")
    values = sum(block.length for block in blocks)
    if header.values != values or header.exponents != len(blocks):
        raise InvalidUpdate("update_count", "the update has another shape than the model")
    for block, exponent in zip(blocks, update.exponents.tolist(), strict=True):
        if not -block.fraction_bits <= exponent <= MAX_EXPONENT:
            raise InvalidUpdate("update_exponent", f"exponent {exponent}")


def _read_delta(update: Update, blocks: Sequence[Block]) -> Delta:
    steps: list[int] = []
    finest: list[int] = []
    values = update.values.tolist()
    lowest = -(2 ** (update.header.bits - 1))
    for block, exponent in zip(blocks, update.exponents.tolist(), strict=True):
        part = values[block.update_start : block.update_start + block.length]
        if lowest in part:
            raise InvalidUpdate("update_value", "the lowest value of the type")
        step = 2 ** (exponent + block.fraction_bits)
        if max(abs(q) for q in part) * step >= VALUE_LIMIT:
            raise InvalidUpdate("update_overflow", "a value leaves 32 bits")
        finest_step = 2 ** (exponent + FRACTION_BITS) if block.is_train else 0
        steps += [q * step for q in part]
        finest += [q * finest_step for q in part]
    return Delta(steps, finest, sum(x * x for x in finest))


# -- rules -----------------------------------------------------------------------------------------


def _choose(
    rule: Rule, names: Sequence[BlobName], weights: Sequence[int], deltas: Sequence[Delta]
) -> Choice:
    flags = [0] * len(names)
    kept = dict(enumerate(weights))
    if rule.kind is RuleKind.MULTI_KRUM:
        for i, flag in _find_outliers(rule.bound, names, deltas).items():
            flags[i] |= flag
            del kept[i]
        if not any(kept.values()):
            kept = dict.fromkeys(kept, 1)
    shares, capped = _share_out(names, kept, rule.max_share)
    effective = []
    for i, (share, delta) in enumerate(zip(shares, deltas, strict=True)):
        flags[i] |= Flag.CAPPED if i in capped else 0
        flags[i] |= Flag.ZERO_SHARE if share == 0 else 0
        effective.append(share)
        if rule.kind is RuleKind.NORM_CLIPPED_MEAN and delta.norm2 > rule.bound**2:
            effective[i] = isqrt(share**2 * rule.bound**2 // delta.norm2)
            flags[i] |= Flag.CLIPPED
    return Choice(shares, tuple(effective), tuple(int(flag) for flag in flags))


def _find_outliers(
    bound: int, names: Sequence[BlobName], deltas: Sequence[Delta]
) -> dict[int, Flag]:
    """Return whom Multi-Krum leaves out, and why."""
    by_name = sorted(range(len(names)), key=lambda i: (names[i].digest, names[i].size))
    left_out: dict[int, Flag] = {}
    seen: list[list[int]] = []
    for i in by_name:
        if deltas[i].finest in seen:
            left_out[i] = Flag.DUPLICATE
        seen.append(deltas[i].finest)
    distinct = [i for i in by_name if i not in left_out]
    if len(distinct) < 3:
        return left_out
    while len(distinct) < 2 * bound + 3:
        bound -= 1
    ranking = []
    for place, i in enumerate(distinct):
        distances = sorted(
            sum((x - y) ** 2 for x, y in zip(deltas[i].finest, deltas[j].finest, strict=True))
            for j in distinct
            if j != i
        )
        ranking.append((sum(distances[: len(distinct) - bound - 2]), place, i))
    for *_, i in sorted(ranking)[len(distinct) - bound :]:
        left_out[i] = Flag.EXCLUDED
    return left_out


def _trim(deltas: Sequence[Delta], trimmed: int) -> list[int]:
    """Return, in units of a share, the means of what is left of each value."""
    sums: list[int] = []
    left = len(deltas) - 2 * trimmed
    for column in zip(*(delta.steps for delta in deltas), strict=True):
        middle = sorted(column)[trimmed : trimmed + left]
        sums.append(_divide(sum(middle) * WEIGHT_TOTAL, left))
    return sums


def _sum_deltas(deltas: Sequence[Delta], blocks: Sequence[Block], choice: Choice) -> list[int]:
    sums: list[int] = []
    for block in blocks:
        total = [0] * block.length
        weights = choice.effective if block.is_train else choice.shares
        for weight, delta in zip(weights, deltas, strict=True):
            part = delta.steps[block.update_start : block.update_start + block.length]
            total = [old + weight * step for old, step in zip(total, part, strict=True)]
        sums += total
    return sums


# -- the server's step, the model, scores ----------------------------------------------------------


def _step(
    rule: Rule, blocks: Sequence[Block], sums: Sequence[int], before: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return how far values move, and the velocity."""
    moves: list[int] = []
    velocity: list[int] = []
    for block in blocks:
        for i in range(block.update_start, block.update_start + block.length):
            if not block.is_train:
                moves.append(_divide(sums[i], WEIGHT_TOTAL))
                velocity.append(0)
                continue
            speed = _divide(sums[i], STEP_UNIT) + _divide(rule.momentum * before[i], STEP_UNIT)
            moves.append(_divide(rule.server_lr * speed, WEIGHT_TOTAL))
            velocity.append(speed)
    return moves, velocity


def _move(model: Model, blocks: Sequence[Block], moves: Sequence[int]) -> tuple[bytes, int]:
    values = model.values.tolist()
    saturated = 0
    for block in blocks:
        for i in range(block.length):
            place = block.model_start + i
            exact = values[place] + moves[block.update_start + i]
            values[place] = min(max(exact, _INT32_MIN), _INT32_MAX)
            saturated += values[place] != exact
    return encode_model(model.manifest, np.array(values, np.int32)), saturated


def _divide(number: int, divisor: int) -> int:
    """Return the quotient, rounded to the nearest integer, a tie to the even one."""
    whole, rest = divmod(number, divisor)
    is_up = 2 * rest > divisor or (2 * rest == divisor and whole % 2 == 1)
    return whole + is_up


def _compute_scores(deltas: Sequence[Delta], effective: Sequence[int]) -> tuple[int, ...]:
    total = [0] * len(deltas[0].finest)
    for share, delta in zip(effective, deltas, strict=True):
        total = [old + share * x for old, x in zip(total, delta.finest, strict=True)]
    scores = []
    for share, delta in zip(effective, deltas, strict=True):
        others = [whole - share * x for whole, x in zip(total, delta.finest, strict=True)]
        dot = sum(x * other for x, other in zip(delta.finest, others, strict=True))
        others_norm2 = sum(other * other for other in others)
        if delta.norm2 == 0 or others_norm2 == 0:
            scores.append(0)
            continue
        size = isqrt(dot**2 * WEIGHT_TOTAL**2 // (delta.norm2 * others_norm2))
        scores.append(size if dot > 0 else -size)
    return tuple(scores)

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
    MAX_EXPONENT,
    MAX_RAW_WEIGHT,
    MAX_UPDATES,
    VALUE_LIMIT,
    WEIGHT_TOTAL,
)
from .partial import MAX_PARTIAL_UPDATES, Partial, decode_partial, encode_partial
from .rules import Aggregate, Flag, Rule, RuleKind, check_rule
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


def compute_shares(names: Sequence[BlobName], weights: Sequence[int]) -> tuple[int, ...]:
    """Return the shares by giving away one unit at a time. Raises InvalidAggregation."""
    if not 1 <= len(names) <= MAX_UPDATES:
        raise InvalidAggregation("aggregation_count", f"{len(names)} updates")
    if len({(name.digest, name.size) for name in names}) != len(names):
        raise InvalidAggregation("aggregation_duplicate", "an update is listed more than once")
    if len(weights) != len(names):
        raise InvalidAggregation("aggregation_count", f"{len(weights)} weights")
    total = sum(weights)
    if min(weights) < 0 or max(weights) > MAX_RAW_WEIGHT or total == 0:
        raise InvalidAggregation("aggregation_weight", "weights are out of range or all zero")
    shares: list[int] = []
    remainders: list[tuple[int, bytes, int, int]] = []
    for name, weight in zip(names, weights, strict=True):
        share, remainder = divmod(weight * WEIGHT_TOTAL, total)
        remainders.append((-remainder, name.digest, name.size, len(shares)))
        shares.append(share)
    for *_, i in sorted(remainders)[: WEIGHT_TOTAL - sum(shares)]:
        shares[i] += 1
    return tuple(shares)


def aggregate(
    rule: Rule,
    base_name: BlobName,
    base: Buffer,
    updates: Sequence[tuple[BlobName, Buffer]],
    weights: Sequence[int],
) -> Aggregate:
    """Return the new model and its record. Raises as `steelyard.chain.aggregate.aggregate`."""
    check_rule(rule)
    shares = compute_shares([name for name, _ in updates], weights)
    model = decode_model(base)
    blocks = _list_blocks(model.manifest)
    deltas = _read_updates(base_name, updates, blocks)
    effective, flags = _apply_rule(rule, deltas, shares)
    sums = _sum_deltas(deltas, blocks, shares, effective)
    data, saturated = _apply_sums(model, blocks, sums)
    return Aggregate(data, shares, _compute_scores(deltas, effective), flags, saturated)


def accumulate(
    rule: Rule,
    partial: Buffer | None,
    base_name: BlobName,
    base: Buffer,
    updates: Sequence[tuple[BlobName, Buffer]],
    shares: Sequence[int],
) -> bytes:
    """Return the partial with a page added. Raises as `steelyard.chain.aggregate.accumulate`."""
    check_rule(rule)
    names = [name for name, _ in updates]
    if not 1 <= len(names) <= MAX_UPDATES:
        raise InvalidAggregation("aggregation_count", f"{len(names)} updates")
    if len(set(names)) != len(names):
        raise InvalidAggregation("aggregation_duplicate", "an update is listed more than once")
    if len(shares) != len(names):
        raise InvalidAggregation("aggregation_count", f"{len(shares)} shares")
    if min(shares) < 0 or max(shares) > WEIGHT_TOTAL:
        raise InvalidAggregation("aggregation_shares", "a share is out of range")
    model = decode_model(base)
    blocks = _list_blocks(model.manifest)
    values = model.manifest.update_values
    sums, count, total = [0] * values, 0, 0
    if partial is not None:
        before = decode_partial(partial, base_name, values)
        sums, count, total = before.sums.tolist(), before.updates, before.shares
    count, total = count + len(updates), total + sum(shares)
    if total > WEIGHT_TOTAL:
        raise InvalidAggregation("aggregation_shares", f"shares sum to {total}")
    if count > MAX_PARTIAL_UPDATES:
        raise InvalidAggregation("aggregation_count", "the partial has too many updates")
    deltas = _read_updates(base_name, updates, blocks)
    effective, _ = _apply_rule(rule, deltas, shares)
    page = _sum_deltas(deltas, blocks, shares, effective)
    sums = [old + new for old, new in zip(sums, page, strict=True)]
    return encode_partial(Partial(count, total, base_name, np.array(sums, np.int64)))


def finish(base_name: BlobName, base: Buffer, partial: Buffer) -> tuple[bytes, int]:
    """Return the new model and the saturated values. Raises InvalidAggregation."""
    model = decode_model(base)
    done = decode_partial(partial, base_name, model.manifest.update_values)
    if done.shares != WEIGHT_TOTAL:
        raise InvalidAggregation("aggregation_shares", f"shares sum to {done.shares}")
    return _apply_sums(model, _list_blocks(model.manifest), done.sums.tolist())


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


def _read_updates(
    base_name: BlobName, updates: Sequence[tuple[BlobName, Buffer]], blocks: Sequence[Block]
) -> list[Delta]:
    """Decode all, then read the numbers of all: the order in which faults are found."""
    decoded = []
    for _, data in updates:
        update = decode_update(data)
        if update.header.base != base_name:
            raise InvalidUpdate("update_base", "an update was made against another base model")
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


# -- rules, sums, scores ---------------------------------------------------------------------------


def _apply_rule(
    rule: Rule, deltas: Sequence[Delta], shares: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    effective: list[int] = []
    flags: list[int] = []
    for share, delta in zip(shares, deltas, strict=True):
        flag = Flag.ZERO_SHARE if share == 0 else Flag(0)
        if rule.kind is RuleKind.NORM_CLIPPED_MEAN and delta.norm2 > rule.bound**2:
            effective.append(isqrt(share**2 * rule.bound**2 // delta.norm2))
            flag |= Flag.CLIPPED
        else:
            effective.append(share)
        flags.append(int(flag))
    return tuple(effective), tuple(flags)


def _sum_deltas(
    deltas: Sequence[Delta],
    blocks: Sequence[Block],
    shares: Sequence[int],
    effective: Sequence[int],
) -> list[int]:
    sums: list[int] = []
    for block in blocks:
        total = [0] * block.length
        for weight, delta in zip(effective if block.is_train else shares, deltas, strict=True):
            part = delta.steps[block.update_start : block.update_start + block.length]
            total = [old + weight * step for old, step in zip(total, part, strict=True)]
        sums += total
    return sums


def _apply_sums(model: Model, blocks: Sequence[Block], sums: Sequence[int]) -> tuple[bytes, int]:
    values = model.values.tolist()
    saturated = 0
    for block in blocks:
        for i in range(block.length):
            place = block.model_start + i
            exact = values[place] + _round_half_even(sums[block.update_start + i])
            values[place] = min(max(exact, _INT32_MIN), _INT32_MAX)
            saturated += values[place] != exact
    return encode_model(model.manifest, np.array(values, np.int32)), saturated


def _round_half_even(total: int) -> int:
    """Return `total / 2**20`, rounded to the nearest integer, a tie to the even one."""
    whole, rest = divmod(total, WEIGHT_TOTAL)
    is_up = 2 * rest > WEIGHT_TOTAL or (2 * rest == WEIGHT_TOTAL and whole % 2 == 1)
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

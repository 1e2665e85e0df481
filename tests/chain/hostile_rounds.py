"""Hostile rounds: whatever is thrown at them, the kernels and the oracle end alike.

Each seed is a round of any exponents and values, at and past every bound, damaged bytes, unusable
weights, any rule, and pages of any cut, honest and forged. Both implementations must give the same
bits or the same code, and pages the same as one call. For more:
`python -m tests.chain.hostile_rounds FIRST_SEED SECONDS`.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from random import Random
from time import monotonic

import numpy as np

from steelyard.chain import aggregate, reference
from steelyard.chain.errors import SteelyardError
from steelyard.chain.model import Role, compute_layout, decode_model
from steelyard.chain.pages import (
    PAGE_HEADER_BYTES,
    check_cover,
    decode_combined,
    decode_measures,
    encode_combined,
    encode_measures,
)
from steelyard.chain.params import (
    MAX_EXPONENT,
    MAX_MOMENTUM,
    MAX_NORM2,
    MAX_RAW_WEIGHT,
    MAX_SERVER_RATE,
    STEP_UNIT,
    VALUE_LIMIT,
    VELOCITY_LIMIT,
    WEIGHT_TOTAL,
)
from steelyard.chain.rules import MAX_BOUND, Aggregate, Rule, RuleKind, needs_measures
from steelyard.chain.server import encode_velocity
from steelyard.chain.types import BlobName, Hash

from .aggregation_kit import Base, make_base, make_manifest

Updates = list[tuple[BlobName, memoryview]]
KEY = Hash(bytes(32))
INT32_ENDS = (-(2**31), 2**31 - 1)
SMALL, LARGE = (1, 1, 2, 3, 17), (4095, 4096, 4097, 8193)


def catch(function: Callable[..., object], *arguments: object) -> object:
    """Return what a call returns, or the type and code of its refusal."""
    try:
        return function(*arguments)
    except SteelyardError as error:
        return type(error).__name__, error.code


def misalign(random: Random, data: bytes) -> memoryview:
    """Return the same bytes at any address."""
    offset = random.randrange(8)
    return memoryview(bytes(offset) + data)[offset:]


def flip_bits(random: Random, data: bytes, size: int) -> bytes:
    """Damage the first `size` bytes."""
    damaged = bytearray(data)
    for _ in range(random.randint(1, 2)):
        damaged[random.randrange(size)] ^= 1 << random.randrange(8)
    return bytes(damaged)


def make_hostile_base(random: Random) -> Base:
    sizes = [random.choice(LARGE if random.random() < 0.05 else SMALL) for _ in range(4)]
    roles = [Role.TRAIN, *random.choices(list(Role), k=3)]
    random.shuffle(roles)
    manifest = make_manifest(
        *(
            (size, random.choice((0, 24, random.randint(0, 24))), role)
            for size, role in zip(sizes, roles, strict=True)
        )
    )
    numbers = (*INT32_ENDS, -1, 0, 1)
    return make_base(manifest, random.choices(numbers, k=manifest.parameters))


def make_hostile_update(
    random: Random, base: Base, sender: int, is_valid: bool
) -> tuple[BlobName, bytes]:
    bits = random.choice((8, 16))
    largest = 2 ** (bits - 1) - 1
    style = random.randrange(4)
    values: list[int] = []
    exponents: list[int] = []
    layout = compute_layout(base.manifest)
    for length, fraction_bits in zip(
        layout.length.tolist(), layout.fraction_bits.tolist(), strict=True
    ):
        exponent = random.randint(-fraction_bits, MAX_EXPONENT)
        if not is_valid and random.random() < 0.05:
            exponent = random.choice((-fraction_bits - 1, MAX_EXPONENT + 1, -128, 127))
        shift = max(exponent + fraction_bits, 0)
        most = min(largest, (VALUE_LIMIT - 1) >> shift)
        choices = ((0,), (most,), (-most, most), range(-most, most + 1))[style]
        block = random.choices(choices, k=length)
        if not is_valid and random.random() < 0.1:
            past = min(most + 1, largest)
            block[random.randrange(length)] = random.choice((-largest - 1, -past, past))
        values += block
        exponents.append(exponent)
    name, data = base.make_update(values, exponents, bits, sender)
    if not is_valid and random.random() < 0.2:
        data = flip_bits(random, data, random.choice((192, len(data))))
    return name, data


def make_hostile_rule(random: Random, updates: int, is_valid: bool) -> Rule:
    kind = random.choice(list(RuleKind))
    most = {RuleKind.TRIMMED_MEAN: (updates - 1) // 2, RuleKind.MULTI_KRUM: (updates - 3) // 2}
    if most.get(kind, 1) < 1:
        kind = RuleKind.NORM_CLIPPED_MEAN
    bound = random.choice((1, 2, MAX_BOUND, 2 ** random.randint(1, 70)))
    bound = random.randint(1, most[kind]) if kind in most else bound
    bound = 0 if kind is RuleKind.WEIGHTED_MEAN else bound
    if not is_valid and random.random() < 0.1:
        bound = random.choice((-1, 0, 5, 5, MAX_BOUND + 1))
    share = random.choice((WEIGHT_TOTAL, WEIGHT_TOTAL, 1, random.randint(1, WEIGHT_TOTAL)))
    rate = random.choice((STEP_UNIT, STEP_UNIT, 1, MAX_SERVER_RATE))
    momentum = random.choice((0, 0, 1, MAX_MOMENTUM, random.randint(0, MAX_MOMENTUM)))
    if not is_valid and random.random() < 0.07:
        share, rate, momentum = random.choice(((0, 1, 0), (1, 2**16, 0), (1, 1, STEP_UNIT)))
    return Rule(kind, bound, share, rate, momentum)


def make_hostile_velocity(
    random: Random, rule: Rule, values: int, is_valid: bool
) -> memoryview | None:
    if not rule.has_momentum or random.random() < 0.3:
        is_unused = not is_valid and random.random() < 0.1
        return memoryview(encode_velocity(np.zeros(values, np.int64))) if is_unused else None
    ends = (-VELOCITY_LIMIT + 1, VELOCITY_LIMIT - 1, 0, 1, -1, random.getrandbits(40))
    velocity = random.choices(ends, k=values)
    if not is_valid and random.random() < 0.1:
        velocity[-1] = random.choice((VELOCITY_LIMIT, -VELOCITY_LIMIT, 2**63 - 1, -(2**63)))
    data = encode_velocity(np.array(velocity, np.int64))
    if not is_valid and random.random() < 0.1:
        data = random.choice((data[:-8], data[1:], flip_bits(random, data, 24)))
    return misalign(random, data)


def make_hostile_weights(random: Random, updates: int, is_valid: bool) -> list[int]:
    weights = [
        random.choice((0, 1, 7, MAX_RAW_WEIGHT, random.getrandbits(128))) for _ in range(updates)
    ]
    if is_valid:
        weights[0] = weights[0] or 1
    elif random.random() < 0.1:
        weights[0] = random.choice((-1, MAX_RAW_WEIGHT + 1))
    elif random.random() < 0.05:
        weights.append(1)
    return weights


def forge_page(random: Random, page: bytes) -> bytes:
    """Return a page that somebody else could have declared: other numbers, or damaged bytes."""
    forged = bytearray(page)
    for _ in range(random.randint(0, 3)):
        at = random.randrange(PAGE_HEADER_BYTES, len(page) - 31, 4)
        number = random.choice((0, 1, -1, 2**130, -(2**130), random.getrandbits(250)))
        forged[at : at + 32] = number.to_bytes(32, "little", signed=True)
    return flip_bits(random, bytes(forged), 48) if random.random() < 0.3 else bytes(forged)


def cut_blocks(random: Random, blocks: int) -> list[tuple[int, int]]:
    """Return ranges that cover all blocks."""
    cuts = sorted({0, blocks, *random.choices(range(blocks), k=random.randint(0, 3))})
    return list(pairwise(cuts))


def assemble_pages(
    random: Random,
    rule: Rule,
    base: Base,
    velocity: memoryview | None,
    updates: Updates,
    weights: Sequence[int],
    is_forged: bool,
) -> Aggregate:
    """Return what pages of some cut come to, each encoded and decoded on its way."""
    layout, names = compute_layout(base.manifest), [name for name, _ in updates]
    blocks, count = base.blocks, len(updates)

    def hand_over(page: bytes) -> memoryview:
        return misalign(random, forge_page(random, page) if is_forged else page)

    measures = []
    for first, last in cut_blocks(random, blocks) if needs_measures(rule) else ():
        measured = aggregate.measure_range(rule, base.data, updates, first, last)
        page = hand_over(encode_measures(measured, KEY))
        measures.append(decode_measures(page, KEY, rule, count, layout))
    check_cover(measures, blocks if needs_measures(rule) else 0)
    pages = []
    for first, last in cut_blocks(random, blocks):
        combined = aggregate.combine_range(
            rule, base.data, velocity, updates, weights, measures, first, last
        )
        page = hand_over(encode_combined(combined, KEY))
        pages.append(decode_combined(page, KEY, rule, count, layout))
    check_cover(pages, blocks)
    return aggregate.assemble(rule, base.data, names, weights, measures, pages)


def compare_round(seed: int, pool: ThreadPoolExecutor) -> list[str]:
    """Run one round both ways, and in pages; return how its parts ended."""
    random = Random(seed)
    is_valid = random.random() < 0.5
    base = make_hostile_base(random)
    made = [
        make_hostile_update(random, base, i, is_valid or random.random() < 0.5)
        for i in range(random.randint(1, 9))
    ]
    updates = [(name, misalign(random, data)) for name, data in made]
    if not is_valid and random.random() < 0.05:
        updates[-1] = (updates[0][0], updates[-1][1])
    rule = make_hostile_rule(random, len(updates), is_valid)
    weights = make_hostile_weights(random, len(updates), is_valid)
    velocity = make_hostile_velocity(random, rule, base.manifest.update_values, is_valid)
    arguments = (rule, misalign(random, base.data), velocity, updates, weights)
    expected = catch(reference.aggregate, *arguments)
    found = catch(aggregate.aggregate, *arguments, random.choice((map, pool.map)))
    assert found == expected
    if isinstance(found, Aggregate):
        numbers = (*found.shares, *found.scores, *found.flags, found.saturated)
        assert {type(number) for number in numbers} == {int}, "what the ABI encodes"
    assert isinstance(found, Aggregate) or not is_valid
    model = decode_model(base.data)
    for i, (_, data) in enumerate(updates):
        most = random.choice((0, MAX_NORM2, 2 ** random.randint(0, 130)))
        norms = [
            catch(m.verify_update, data, model, base.bind(i), most) for m in (aggregate, reference)
        ]
        assert norms[0] == norms[1]
    paged = catch(assemble_pages, random, rule, base, velocity, updates, weights, False)
    assert paged == found or not isinstance(found, Aggregate)
    assert isinstance(paged, Aggregate) == isinstance(found, Aggregate)
    forged = catch(assemble_pages, random, rule, base, velocity, updates, weights, True)
    return [_name_end(end) for end in (found, paged, forged)]


def _name_end(outcome: object) -> str:
    match outcome:
        case (str(), str(code)):
            return code
        case _:
            return "answered"


def compare_rounds(seeds: range, seconds: float = 1e9) -> Counter[str]:
    """Compare rounds until one differs; return how often each end was met."""
    ends: Counter[str] = Counter()
    stop = monotonic() + seconds
    with ThreadPoolExecutor(3) as pool:
        for seed in seeds:
            try:
                ends.update(compare_round(seed, pool))
            except AssertionError as error:
                raise AssertionError(f"seed {seed} ends differently") from error
            if monotonic() > stop:
                break
    return ends


if __name__ == "__main__":
    aggregate.RANGE_BLOCKS = 1  # type: ignore[misc]
    first, last_seconds = int(sys.argv[1]), float(sys.argv[2])
    print(dict(compare_rounds(range(first, 10**9), last_seconds)))

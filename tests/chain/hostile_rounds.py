"""Hostile rounds: whatever is thrown at them, the kernels and the oracle end alike.

Each seed is a round of any exponents and values, at and past every bound, damaged bytes, unusable
weights, and pages with forged partials. Both implementations must give the same bits or the same
code. `python -m tests.chain.hostile_rounds FIRST_SEED SECONDS` looks for more by hand.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from struct import pack_into
from time import monotonic

from steelyard.chain import aggregate, reference
from steelyard.chain.errors import SteelyardError
from steelyard.chain.model import Role, compute_layout, decode_model
from steelyard.chain.params import (
    MAX_EXPONENT,
    MAX_NORM2,
    MAX_RAW_WEIGHT,
    VALUE_LIMIT,
    WEIGHT_TOTAL,
)
from steelyard.chain.partial import PARTIAL_HEADER_BYTES
from steelyard.chain.rules import MAX_BOUND, Aggregate, Rule, RuleKind
from steelyard.chain.types import BlobName

from .aggregation_kit import Base, make_base, make_manifest

Updates = list[tuple[BlobName, memoryview]]
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


def make_hostile_rule(random: Random, is_valid: bool) -> Rule:
    if not is_valid and random.random() < 0.05:
        return Rule(random.choice(list(RuleKind)), random.choice((-1, 0, 1, MAX_BOUND + 1)))
    if random.random() < 0.4:
        return Rule(RuleKind.WEIGHTED_MEAN, 0)
    bound = random.choice((1, 2, MAX_BOUND, 2 ** random.randint(1, 70)))
    return Rule(RuleKind.NORM_CLIPPED_MEAN, bound)


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


def forge_partial(random: Random, partial: bytes) -> bytes:
    """Return a partial that somebody else could have declared."""
    forged = bytearray(partial)
    if random.random() < 0.5:
        shares = random.choice((0, WEIGHT_TOTAL, WEIGHT_TOTAL, WEIGHT_TOTAL + 1, 2**64 - 1))
        pack_into("<Q", forged, 16, shares)
    if random.random() < 0.1:
        pack_into("<I", forged, 12, random.choice((0, 2**32 - 1)))
    half, shares = WEIGHT_TOTAL // 2, int.from_bytes(forged[16:24], "little")
    limit = min(shares, WEIGHT_TOTAL) * (VALUE_LIMIT - 1)
    sums = [-limit, limit, 0, -half, half, 3 * half, half - 1]
    if random.random() < 0.3:
        sums += [-limit - 1, limit + 1, -(2**63), 2**63 - 1]
    for start in range(PARTIAL_HEADER_BYTES, min(len(forged), 800), 8):
        pack_into("<q", forged, start, random.choice(sums))
    return flip_bits(random, bytes(forged), 72) if random.random() < 0.1 else bytes(forged)


def compare_pages(
    random: Random, rule: Rule, base: Base, updates: Updates, shares: Sequence[int]
) -> object:
    """Add pages of any size, some to forged partials, and finish; return how it ended."""
    page = random.randint(1, len(updates))
    partial: bytes | None = None
    for start in range(0, len(updates), page):
        end = start + page
        before = None if partial is None else misalign(random, partial)
        arguments = (rule, before, base.name, base.data, updates[start:end], shares[start:end])
        made, expected = (catch(m.accumulate, *arguments) for m in (aggregate, reference))
        assert made == expected
        if not isinstance(made, bytes):
            return made
        partial = forge_partial(random, made) if random.random() < 0.2 else made
    assert partial is not None
    arguments = (base.name, misalign(random, base.data), misalign(random, partial))
    made, expected = (catch(m.finish, *arguments) for m in (aggregate, reference))
    assert made == expected
    return made


def compare_round(seed: int, pool: ThreadPoolExecutor) -> list[str]:
    """Run one round both ways; return how its parts ended."""
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
    rule = make_hostile_rule(random, is_valid)
    weights = make_hostile_weights(random, len(updates), is_valid)
    arguments = (rule, base.name, misalign(random, base.data), updates, weights)
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
    shares: Sequence[int] = random.choices((-1, 0, 1, WEIGHT_TOTAL // 3), k=len(updates))
    if isinstance(found, Aggregate):
        shares = found.shares
    return [_name_end(found), _name_end(compare_pages(random, rule, base, updates, shares))]


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

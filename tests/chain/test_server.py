"""The server's step: a learning rate, a velocity, and blobs that hold it."""

import struct
from fractions import Fraction

import numpy as np
import pytest

from steelyard.chain import aggregate, reference
from steelyard.chain.errors import SteelyardError
from steelyard.chain.model import Role, decode_model
from steelyard.chain.params import (
    MAX_BLOB_BYTES,
    MAX_MOMENTUM,
    MAX_SERVER_RATE,
    STEP_UNIT,
    VALUE_LIMIT,
    VELOCITY_LIMIT,
    WEIGHT_TOTAL,
)
from steelyard.chain.rules import Aggregate, Rule, RuleKind
from steelyard.chain.server import (
    VELOCITY_HEADER_BYTES,
    check_velocity_size,
    compute_velocity_size,
    decode_velocity,
    encode_velocity,
)

from .aggregation_kit import Base, make_base, make_flat_base, make_manifest

HALF = STEP_UNIT // 2


def make_rule(server_lr: int = STEP_UNIT, momentum: int = 0) -> Rule:
    return Rule(RuleKind.WEIGHTED_MEAN, 0, WEIGHT_TOTAL, server_lr, momentum)


def run(rule: Rule, base: Base, delta: list[int], velocity: bytes | None = None) -> Aggregate:
    update = base.make_update(delta, [-24] * base.blocks, 16)
    made = aggregate.aggregate(rule, base.data, velocity, [update], [1])
    assert made == reference.aggregate(rule, base.data, velocity, [update], [1])
    return made


def get_values(made: Aggregate) -> list[int]:
    values: list[int] = decode_model(made.model).values.tolist()
    return values


def get_velocity(made: Aggregate) -> list[int]:
    assert made.velocity is not None
    size = (len(made.velocity) - VELOCITY_HEADER_BYTES) // 8
    velocity: list[int] = decode_velocity(made.velocity, size).tolist()
    return velocity


def test_a_rate_scales_the_mean_and_rounds_half_to_even() -> None:
    assert get_values(run(make_rule(HALF), make_flat_base(4), [10, 1, 3, -3])) == [5, 0, 2, -2]
    assert get_values(run(make_rule(3 * STEP_UNIT), make_flat_base(2), [10, -7])) == [30, -21]


def test_without_momentum_there_is_no_velocity() -> None:
    assert run(make_rule(HALF), make_flat_base(1), [1]).velocity is None


def test_momentum_goes_on_moving_the_model() -> None:
    base, rule = make_flat_base(2), make_rule(momentum=HALF)
    first = run(rule, base, [100, -100])
    assert get_values(first) == [100, -100]
    assert get_velocity(first) == [25600, -25600]
    second = run(rule, base, [8, 0], first.velocity)
    assert get_values(second) == [58, -50]
    assert get_velocity(second) == [12800 + 2048, -12800]


def test_an_absent_velocity_is_a_velocity_of_zeros() -> None:
    base, rule = make_flat_base(3), make_rule(700, MAX_MOMENTUM)
    zeros = encode_velocity(np.zeros(3, np.int64))
    assert run(rule, base, [5, -9, 30000]) == run(rule, base, [5, -9, 30000], zeros)


def test_statistics_are_averaged_and_never_overshoot() -> None:
    base = make_base(make_manifest((1, 24, Role.AVERAGE), (1, 0, Role.KEEP), (1, 24, Role.TRAIN)))
    rule = make_rule(2 * STEP_UNIT, HALF)
    moved = encode_velocity(np.array([2560, 2560], np.int64))
    made = run(rule, base, [100, 100], moved)
    assert get_values(made) == [100, 0, 210]
    assert get_velocity(made) == [0, 25600 + 1280]


def test_the_model_saturates_and_the_velocity_goes_on() -> None:
    base = make_base(make_manifest((1, 24, Role.TRAIN)), [2**31 - 10])
    made = run(make_rule(momentum=HALF), base, [100])
    assert get_values(made) == [2**31 - 1]
    assert made.saturated == 1
    assert get_velocity(made) == [25600]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_velocity_that_grows_for_ever_stays_in_range(sign: int) -> None:
    """The largest deltas of all rounds come to less than the limit, and the step fits int64."""
    base, rule = make_flat_base(1), make_rule(MAX_SERVER_RATE, MAX_MOMENTUM)
    update = base.make_update([sign * 32767], [-8], 16)
    velocity = encode_velocity(np.array([sign * (VELOCITY_LIMIT - 1)], np.int64))
    made = aggregate.aggregate(rule, base.data, velocity, [update], [1])
    assert made == reference.aggregate(rule, base.data, velocity, [update], [1])
    assert abs(get_velocity(made)[0]) < VELOCITY_LIMIT
    largest = WEIGHT_TOTAL * (VALUE_LIMIT - 1) // STEP_UNIT + 1
    assert Fraction(MAX_MOMENTUM, STEP_UNIT) * (VELOCITY_LIMIT - 1) + 1 + largest < VELOCITY_LIMIT


@pytest.mark.parametrize("module", [aggregate, reference])
def test_velocities_that_do_not_belong_are_refused(module) -> None:
    base = make_flat_base(2)
    update = base.make_update([1, 2], [-24])
    good = encode_velocity(np.array([1, -1], np.int64))
    past = [
        encode_velocity(np.array([0, end], np.int64))
        for end in (VELOCITY_LIMIT, -VELOCITY_LIMIT, -(2**63))
    ]
    cases = {
        "velocity_format": [b"", good[:23], b"X" + good[1:], good[:8] + b"\2" + good[9:]],
        "velocity_length": [good[:-8], good + bytes(8), good[:16] + b"\1" + good[17:]],
        "velocity_range": past,
    }
    for code, velocities in cases.items():
        for velocity in velocities:
            assert code == catch_code(module, make_rule(momentum=1), base, velocity, update)
    assert catch_code(module, make_rule(HALF), base, good, update) == "velocity_unused"


def catch_code(module, rule: Rule, base: Base, velocity: bytes, update: object) -> str:
    with pytest.raises(SteelyardError) as caught:
        module.aggregate(rule, base.data, velocity, [update], [1])
    return caught.value.code


def test_a_velocity_may_lie_at_any_address() -> None:
    base, rule = make_flat_base(2), make_rule(momentum=HALF)
    velocity = encode_velocity(np.array([999, -1], np.int64))
    update = base.make_update([1, 2], [-24])
    moved = memoryview(b"\0" + velocity)[1:]
    assert aggregate.aggregate(rule, base.data, moved, [update], [1]) == (
        aggregate.aggregate(rule, base.data, velocity, [update], [1])
    )


def test_a_velocity_that_no_blob_holds_is_refused() -> None:
    most = (MAX_BLOB_BYTES - VELOCITY_HEADER_BYTES) // 8
    check_velocity_size(most)
    assert compute_velocity_size(most) <= MAX_BLOB_BYTES
    with pytest.raises(SteelyardError) as caught:
        check_velocity_size(most + 1)
    assert caught.value.code == "velocity_size"


def test_the_largest_velocities_are_refused_before_updates_are_read() -> None:
    base = make_flat_base((MAX_BLOB_BYTES - VELOCITY_HEADER_BYTES) // 8 + 1)
    broken = (make_flat_base(1).make_update([1], [-24])[0], b"")
    with pytest.raises(SteelyardError) as caught:
        aggregate.aggregate(make_rule(momentum=1), base.data, None, [broken], [1])
    assert caught.value.code == "velocity_size"


def test_a_velocity_blob_is_its_header_and_its_numbers() -> None:
    data = encode_velocity(np.array([1, -2], np.int64))
    assert data == struct.pack("<8sQQqq", b"STLYVELO", 1, 2, 1, -2)

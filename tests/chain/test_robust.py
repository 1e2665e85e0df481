"""Robust rules by hand: whom they leave out, what they keep, and where they refuse."""

from itertools import product
from random import Random

import numpy as np
import pytest

from steelyard.chain import aggregate, reference
from steelyard.chain.errors import SteelyardError
from steelyard.chain.model import Role, decode_model
from steelyard.chain.params import (
    MAX_COMPARED_UPDATES,
    MAX_MODEL_PARAMETERS,
    MAX_UPDATES,
    WEIGHT_TOTAL,
)
from steelyard.chain.robust import choose_by_distance, list_comparators
from steelyard.chain.rules import MAX_TRIMMED, MAX_WITHSTOOD, Aggregate, Flag, Rule, RuleKind
from steelyard.chain.types import BlobName, Digest

from .aggregation_kit import Base, make_base, make_flat_base, make_manifest

OUT = Flag.EXCLUDED | Flag.ZERO_SHARE
COPY = Flag.DUPLICATE | Flag.ZERO_SHARE


def trimmed(bound: int, **fields: int) -> Rule:
    return Rule(RuleKind.TRIMMED_MEAN, bound, **fields)


def krum(bound: int, **fields: int) -> Rule:
    return Rule(RuleKind.MULTI_KRUM, bound, **fields)


def run(
    rule: Rule, base: Base, deltas: list[list[int]], weights: list[int] | None = None
) -> Aggregate:
    """Aggregate deltas in units of 2**-24, by both implementations."""
    updates = [
        base.make_update(delta, [-24] * base.blocks, 16, i) for i, delta in enumerate(deltas)
    ]
    arguments = (rule, base.data, None, updates, weights or [1] * len(updates))
    made = aggregate.aggregate(*arguments)
    assert made == reference.aggregate(*arguments)
    return made


def get_values(made: Aggregate) -> list[int]:
    values: list[int] = decode_model(made.model).values.tolist()
    return values


# -- the trimmed mean ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(1, 10))
def test_a_network_parts_the_extremes_from_the_rest(count: int) -> None:
    """All inputs of zeros and ones: what holds for them holds for all numbers."""
    bits = np.array(list(product((0, 1), repeat=count)), np.int8).T
    for trim in range((count - 1) // 2 + 1):
        rows = bits.copy()
        for i, j in list_comparators(count, trim):
            rows[[i, j]] = np.minimum(rows[i], rows[j]), np.maximum(rows[i], rows[j])
        expected = np.sort(bits, axis=0)
        for part in (slice(0, trim), slice(trim, count - trim), slice(count - trim, count)):
            assert (rows[part].sum(axis=0) == expected[part].sum(axis=0)).all()


@pytest.mark.parametrize("count", [33, 100, 257, MAX_UPDATES])
def test_a_network_for_many_parts_them_as_well(count: int) -> None:
    values = np.random.default_rng(count).integers(-50, 50, (count, 200))
    for trim in (1, count // 5, (count - 1) // 2):
        rows = values.copy()
        for i, j in list_comparators(count, trim):
            rows[[i, j]] = np.minimum(rows[i], rows[j]), np.maximum(rows[i], rows[j])
        expected = np.sort(values, axis=0)
        assert (rows[:trim].sum(axis=0) == expected[:trim].sum(axis=0)).all()
        assert (rows[count - trim :].sum(axis=0) == expected[count - trim :].sum(axis=0)).all()


def test_what_lies_far_out_is_trimmed_value_by_value() -> None:
    deltas = [[1, 9000], [2, 20], [-9000, 10], [3, 30], [9000, -9000]]
    made = run(trimmed(1), make_flat_base(2), deltas)
    assert get_values(made) == [2, 20]
    assert made.flags == (0,) * 5


def test_with_all_but_one_trimmed_the_median_is_left() -> None:
    assert get_values(run(trimmed(2), make_flat_base(1), [[5], [-7], [100], [3], [4]])) == [4]


@pytest.mark.parametrize(("middle", "mean"), [((1, 2), 2), ((0, 1), 0), ((-1, 0), 0), ((2, 3), 2)])
def test_half_a_unit_of_a_trimmed_mean_goes_to_the_even_neighbour(middle, mean) -> None:
    deltas = [[-99], [middle[0]], [99], [middle[1]]]
    assert get_values(run(trimmed(1), make_flat_base(1), deltas)) == [mean]


def test_a_third_of_a_unit_is_rounded_to_the_nearest() -> None:
    for middle, mean in (((0, 0, 1), 0), ((0, 1, 1), 1), ((0, 0, -1), 0), ((-1, -1, 0), -1)):
        deltas = [[-99], [99], *([q] for q in middle)]
        assert get_values(run(trimmed(1), make_flat_base(1), deltas)) == [mean]


def test_trimming_equal_updates_gives_them() -> None:
    assert get_values(run(trimmed(3), make_flat_base(2), [[7, -8]] * 7)) == [7, -8]


def test_weights_decide_pay_and_not_the_trimmed_mean() -> None:
    deltas = [[1], [2], [6]]
    light, heavy = (run(trimmed(1), make_flat_base(1), deltas, [1, 1, w]) for w in (0, 998))
    assert get_values(light) == get_values(heavy) == [2]
    assert light.shares == (WEIGHT_TOTAL // 2, WEIGHT_TOTAL // 2, 0)
    assert light.flags == (0, 0, Flag.ZERO_SHARE)


def test_statistics_are_trimmed_too() -> None:
    base = make_base(make_manifest((1, 24, Role.TRAIN), (1, 24, Role.AVERAGE)))
    assert get_values(run(trimmed(1), base, [[0, 5], [1, 6], [2, 30000]])) == [1, 6]


# -- Multi-Krum ------------------------------------------------------------------------------------


def test_the_updates_far_from_the_others_are_left_out() -> None:
    near = [[10, 10], [11, 9], [9, 12], [10, 8], [12, 11]]
    made = run(krum(2), make_flat_base(2), [[-5000, 0], *near, [0, 30000]])
    assert made.flags == (OUT, 0, 0, 0, 0, 0, OUT)
    assert made.shares[0] == made.shares[6] == 0
    assert sum(made.shares) == WEIGHT_TOTAL
    assert get_values(made) == [10, 10]


def test_with_too_few_different_updates_multi_krum_promises_nothing() -> None:
    """Seven for f = 2 withstand two attackers; five equal honest ones count as one, and do not."""
    attack = [[30_000, 30_000], [30_000, 29_999]]
    made = run(krum(2), make_flat_base(2), [*([[0, 0]] * 5), *attack])
    assert sorted(made.flags[:5]) == [0, COPY, COPY, COPY, COPY]
    assert made.flags[5:] == (0, 0)
    assert get_values(made) == [20_000, 20_000], "the attackers have two thirds"
    made = run(krum(2), make_flat_base(2), [*([0, i] for i in range(5)), *attack])
    assert made.flags == (0, 0, 0, 0, 0, OUT, OUT)
    assert get_values(made) == [0, 2]


def test_copies_are_no_neighbours() -> None:
    """Four equal bad updates would be the nearest to each other; they count as one."""
    honest = [[10, i] for i in range(5)]
    made = run(krum(3), make_flat_base(2), [*([[-900, -900]] * 4), *honest])
    assert sorted(made.flags[:4]) == sorted((OUT, COPY, COPY, COPY))
    assert get_values(made) == [10, 2]


def test_of_equal_updates_the_smallest_name_is_kept() -> None:
    base = make_flat_base(1)
    made = run(krum(1), base, [[4]] * 5, [9, 8, 7, 6, 5])
    names = [base.make_update([4], [-24], 16, i)[0] for i in range(5)]
    kept = names.index(min(names))
    assert [i for i, flag in enumerate(made.flags) if flag == 0] == [kept]
    assert all(flag == COPY for i, flag in enumerate(made.flags) if i != kept)
    assert made.shares[kept] == WEIGHT_TOTAL


def test_equal_values_of_other_exponents_are_copies() -> None:
    base = make_flat_base(2)
    updates = [base.make_update([i, 5], [-20], sender=i) for i in range(4)]
    updates.append(base.make_update([6, 10], [-21], sender=9))
    made = aggregate.aggregate(krum(1), base.data, None, updates, [1] * 5)
    assert sorted((made.flags[3], made.flags[4])) == [0, COPY]


@pytest.mark.parametrize(("distinct", "left_out"), [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1), (6, 1)])
def test_fewer_different_updates_withstand_fewer_bad_ones(distinct: int, left_out: int) -> None:
    deltas = [[min(i, distinct - 1) ** 3] for i in range(7)]
    flags = run(krum(2), make_flat_base(1), deltas).flags
    assert flags.count(COPY) == 7 - distinct
    assert flags.count(OUT) == left_out


def test_a_tie_of_distances_keeps_the_smaller_name() -> None:
    base = make_flat_base(1)
    made = run(krum(1), base, [[-2], [-1], [0], [1], [2]])
    ends = {i: base.make_update([q], [-24], 16, i)[0] for i, q in ((0, -2), (4, 2))}
    assert made.flags.index(OUT) == max(ends, key=lambda i: ends[i])


def test_as_many_neighbours_count_as_there_are_good_ones_less_two() -> None:
    """Of 7 with 2 bad, 3 distances count; with 2 or 4 of them others would be left out."""
    deltas = [[10], [13], [16], [22], [23], [25], [28]]
    assert run(krum(2), make_flat_base(1), deltas).flags == (OUT, OUT, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("shift", range(12))
def test_values_of_any_exponents_are_trimmed_as_they_are(shift: int) -> None:
    """On both sides of what 16 bits hold."""
    base = make_flat_base(3)
    updates = [
        base.make_update([127, -127, 1], [-20 + shift], sender=1),
        base.make_update([126, -126, 0], [-20 + shift], sender=2),
        base.make_update([1, 2, -3], [-20], sender=3),
    ]
    made = aggregate.aggregate(trimmed(1), base.data, None, updates, [1] * 3)
    assert made == reference.aggregate(trimmed(1), base.data, None, updates, [1] * 3)
    assert get_values(made)[0] == 126 << 4 + shift


def test_without_weight_the_kept_ones_count_alike() -> None:
    deltas = [[1, 0], [0, 1], [1, 1], [0, 0], [-999, 5]]
    made = run(krum(1), make_flat_base(2), deltas, [0, 0, 0, 0, 7])
    assert made.shares == (WEIGHT_TOTAL // 4,) * 4 + (0,)
    assert made.flags[4] == OUT


def test_the_cap_holds_among_the_kept() -> None:
    deltas = [[1, 0], [0, 1], [1, 1], [0, 0], [-999, 5]]
    rule = krum(1, max_share=WEIGHT_TOTAL // 2)
    made = run(rule, make_flat_base(2), deltas, [90, 4, 4, 2, 1000])
    assert made.shares[0] == WEIGHT_TOTAL // 2
    assert made.flags == (Flag.CAPPED, 0, 0, 0, OUT)


def test_statistics_of_those_left_out_do_not_count() -> None:
    base = make_base(make_manifest((1, 24, Role.TRAIN), (1, 24, Role.AVERAGE)))
    deltas = [[1, 8], [2, 8], [3, 8], [4, 8], [20000, 30000]]
    made = run(krum(1), base, deltas)
    assert made.flags[4] == OUT
    assert get_values(made)[1] == 8


def test_distance_is_that_of_trained_values_alone() -> None:
    base = make_base(make_manifest((1, 24, Role.TRAIN), (1, 24, Role.AVERAGE)))
    made = run(krum(1), base, [[1, 30000], [2, 8], [3, 8], [4, 8], [90, 8]])
    assert made.flags == (0, 0, 0, 0, OUT)


def test_numbers_that_no_updates_have_are_only_compared() -> None:
    random = Random(8)
    names = [BlobName(Digest(bytes([i]) * 32), 1) for i in range(9)]
    for _ in range(20):
        norms2 = [random.randint(-(2**200), 2**200) for _ in names]
        gram = [random.randint(-(2**200), 2**200) for _ in range(36)]
        flags = choose_by_distance(3, names, norms2, gram)
        assert flags.count(Flag.EXCLUDED) == 3


@pytest.mark.slow
def test_the_dot_products_of_the_largest_model_are_exact() -> None:
    size = MAX_MODEL_PARAMETERS
    base = make_flat_base(size)
    values = np.full(size, 32767)
    datas = [
        base.make_update(values, [exponent] * base.blocks, 16)[1]  # type: ignore[arg-type]
        for exponent in (-8, -9)
    ]
    updates = [(BlobName(Digest(bytes([i]) * 32), 1), datas[i % 2]) for i in range(5)]
    measured = aggregate.measure_range(krum(1), base.data, updates, 0, base.blocks)
    numbers = [32767 << 16 - i % 2 for i in range(5)]
    assert measured.norms2 == tuple(size * number**2 for number in numbers)
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    assert measured.gram == tuple(size * numbers[i] * numbers[j] for i, j in pairs)


# -- refusals --------------------------------------------------------------------------------------


def catch_code(module, rule: Rule, count: int) -> str:
    base = make_flat_base(1)
    data = base.make_update([1], [-24])[1]
    updates = [(BlobName(Digest(i.to_bytes(32, "big")), 1), data) for i in range(count)]
    with pytest.raises(SteelyardError) as caught:
        module.aggregate(rule, base.data, None, updates, [1] * count)
    return caught.value.code


@pytest.mark.parametrize("module", [aggregate, reference])
@pytest.mark.parametrize(
    ("rule", "count"),
    [
        (trimmed(1), 2),
        (trimmed(4), 8),
        (krum(1), 4),
        (krum(4), 10),
        (krum(1), MAX_COMPARED_UPDATES + 1),
    ],
)
def test_a_rule_needs_enough_updates_and_not_too_many(module, rule: Rule, count: int) -> None:
    assert catch_code(module, rule, count) == "aggregation_rule_count"


@pytest.mark.parametrize("module", [aggregate, reference])
@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (trimmed(0), "aggregation_bound"),
        (trimmed(MAX_TRIMMED + 1), "aggregation_bound"),
        (krum(0), "aggregation_bound"),
        (krum(MAX_WITHSTOOD + 1), "aggregation_bound"),
        (trimmed(1, max_share=0), "aggregation_cap"),
        (trimmed(1, max_share=WEIGHT_TOTAL + 1), "aggregation_cap"),
        (trimmed(1, server_lr=0), "aggregation_server_lr"),
        (trimmed(1, server_lr=2**15 + 1), "aggregation_server_lr"),
        (trimmed(1, momentum=-1), "aggregation_momentum"),
        (trimmed(1, momentum=4081), "aggregation_momentum"),
    ],
)
def test_rules_have_bounds(module, rule: Rule, code: str) -> None:
    assert catch_code(module, rule, 5) == code
    assert catch_code(module, rule, 0) == code, "the rule is looked at before the list"


@pytest.mark.parametrize("module", [aggregate, reference])
def test_weights_are_looked_at_before_the_number_of_updates(module) -> None:
    base = make_flat_base(1)
    updates = [base.make_update([1], [-24], sender=i) for i in range(2)]
    with pytest.raises(SteelyardError) as caught:
        module.aggregate(trimmed(1), base.data, None, updates, [0, 0])
    assert caught.value.code == "aggregation_weight"


@pytest.mark.parametrize("module", [aggregate, reference])
@pytest.mark.parametrize("rule", [trimmed(1), krum(1)])
def test_values_out_of_range_are_refused_whatever_would_be_left_out(module, rule: Rule) -> None:
    base = make_flat_base(2)
    good = [base.make_update([i, 1], [-24], sender=i) for i in range(4)]
    for values, exponent, code in (
        ([-128, 0], -24, "update_value"),
        ([64, 0], 1, "update_overflow"),
        ([1, 0], 30, "update_overflow"),
    ):
        updates = [*good, base.make_update(values, [exponent], sender=9)]
        with pytest.raises(SteelyardError) as caught:
            module.aggregate(rule, base.data, None, updates, [1] * 5)
        assert caught.value.code == code

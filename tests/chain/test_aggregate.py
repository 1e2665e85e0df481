"""Aggregation is exact: kernels, oracle, order, pages and threads give the same bits."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.chain import aggregate, reference
from steelyard.chain.errors import SteelyardError
from steelyard.chain.model import Role, compute_layout, decode_model
from steelyard.chain.params import (
    MAX_MODEL_PARAMETERS,
    MAX_MOMENTUM,
    MAX_SERVER_RATE,
    MAX_UPDATES,
    STEP_UNIT,
    VELOCITY_LIMIT,
    WEIGHT_TOTAL,
)
from steelyard.chain.rules import Aggregate, Flag, Rule, RuleKind, needs_measures
from steelyard.chain.server import encode_velocity
from steelyard.chain.types import BlobName
from steelyard.chain.update import decode_update

from .aggregation_kit import Base, make_base, make_flat_base, make_manifest

MEAN = Rule(RuleKind.WEIGHTED_MEAN, 0)
INT32_MAX = 2**31 - 1


@dataclass
class Round:
    """A base, updates to it, and their weights."""

    base: Base
    updates: list[tuple[BlobName, bytes]]
    weights: list[int]
    velocity: bytes | None = None

    def run(self, rule: Rule = MEAN, spread: aggregate.Spread = map) -> Aggregate:
        return aggregate.aggregate(
            rule, self.base.data, self.velocity, self.updates, self.weights, spread
        )

    def ask_the_oracle(self, rule: Rule) -> Aggregate:
        return reference.aggregate(rule, self.base.data, self.velocity, self.updates, self.weights)


def make_round(random: Random, clients: int, sizes: tuple[int, ...]) -> Round:
    """Return a round with any valid numbers, half of its blocks at the very bounds."""
    roles = [Role.TRAIN, *(random.choice((Role.TRAIN, Role.AVERAGE, Role.KEEP)) for _ in sizes)]
    manifest = make_manifest(
        *((size, random.randint(0, 24), role) for size, role in zip(sizes, roles, strict=False))
    )
    ends = (-(2**31), INT32_MAX)
    base = make_base(
        manifest,
        [random.choice((*ends, random.randint(*ends))) for _ in range(manifest.parameters)],
    )
    layout = compute_layout(manifest)
    blocks = list(zip(layout.length.tolist(), layout.fraction_bits.tolist(), strict=True))
    updates = []
    for client in range(clients):
        bits = random.choice((8, 16))
        values: list[int] = []
        exponents: list[int] = []
        for length, fraction_bits in blocks:
            exponent = random.randint(-fraction_bits, 30)
            most = min(2 ** (bits - 1) - 1, INT32_MAX >> (exponent + fraction_bits))
            choices = (-most, most) if random.random() < 0.5 else range(-most, most + 1)
            exponents.append(exponent)
            values += [random.choice(choices) for _ in range(length)]
        updates.append(base.make_update(values, exponents, bits, client))
    weights = [random.choice((0, 1, 7, random.getrandbits(128))) for _ in updates]
    return Round(base, updates, [weights[0] or 1, *weights[1:]])


def pick_rule(random: Random, clients: int) -> Rule:
    """Return any rule that so many clients can be aggregated by."""
    bounds = {
        RuleKind.WEIGHTED_MEAN: (0, 0),
        RuleKind.NORM_CLIPPED_MEAN: (1, 128),
        RuleKind.TRIMMED_MEAN: (1, (clients - 1) // 2),
        RuleKind.MULTI_KRUM: (1, (clients - 3) // 2),
    }
    kind = random.choice([kind for kind, (least, most) in bounds.items() if least <= most])
    bound = random.randint(*bounds[kind])
    return Rule(
        kind,
        2**bound - 1 if kind is RuleKind.NORM_CLIPPED_MEAN else bound,
        random.choice((WEIGHT_TOTAL, WEIGHT_TOTAL // 3, random.randint(1, WEIGHT_TOTAL))),
        random.choice((STEP_UNIT, 1, MAX_SERVER_RATE)),
        random.choice((0, 1, MAX_MOMENTUM)),
    )


def pick_round(random: Random, clients: int, sizes: tuple[int, ...]) -> tuple[Round, Rule]:
    """Return a round, with some updates of equal numbers and perhaps a velocity, and a rule."""
    round_, rule = make_round(random, clients, sizes), pick_rule(random, clients)
    for i in range(1, clients):
        if random.random() < 0.2:
            copied = decode_update(round_.updates[i - 1][1])
            round_.updates[i] = round_.base.make_update(
                copied.values.tolist(), copied.exponents.tolist(), copied.header.bits, 99 - i
            )
    if rule.has_momentum and random.random() < 0.7:
        ends = (1 - VELOCITY_LIMIT, 0, VELOCITY_LIMIT - 1, random.getrandbits(40))
        count = round_.base.manifest.update_values
        round_.velocity = encode_velocity(np.array(random.choices(ends, k=count), np.int64))
    return round_, rule


SIZES = st.sampled_from([(1,), (5, 3), (2, 9, 4, 1), (4096,), (4097, 2), (8191, 3, 4095)])
GENERATORS = st.integers(0, 2**64 - 1).map(Random)
"""Thousands of values from one number: were each drawn, a round would be too large a draw."""
rounds = st.builds(pick_round, GENERATORS, st.integers(1, 10), SIZES)


# -- the same bits ---------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(rounds)
def test_the_kernels_agree_with_the_oracle(drawn: tuple[Round, Rule]) -> None:
    round_, rule = drawn
    assert round_.run(rule) == round_.ask_the_oracle(rule)


@settings(max_examples=30, deadline=None)
@given(rounds, GENERATORS)
def test_nothing_depends_on_the_order_of_the_clients(
    drawn: tuple[Round, Rule], random: Random
) -> None:
    round_, rule = drawn
    order = list(range(len(round_.updates)))
    random.shuffle(order)
    shuffled = Round(
        round_.base,
        [round_.updates[i] for i in order],
        [round_.weights[i] for i in order],
        round_.velocity,
    )
    first, second = round_.run(rule), shuffled.run(rule)
    assert (first.model, first.velocity) == (second.model, second.velocity)
    assert first.saturated == second.saturated
    for before, after in (
        (first.shares, second.shares),
        (first.scores, second.scores),
        (first.flags, second.flags),
    ):
        assert tuple(before[i] for i in order) == after


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(rounds, st.integers(1, 5), st.integers(1, 3))
def test_the_number_of_threads_changes_nothing(
    drawn: tuple[Round, Rule], threads: int, blocks: int
) -> None:
    round_, rule = drawn
    alone = round_.run(rule)
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(threads) as pool:
        patch.setattr(aggregate, "RANGE_BLOCKS", blocks)
        patch.setattr(aggregate, "TRIM_BLOCKS", blocks)
        assert round_.run(rule, pool.map) == alone


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(rounds, st.lists(st.integers(0, 5), max_size=3), st.lists(st.integers(0, 5), max_size=3))
def test_ranges_of_blocks_are_assembled_to_the_bits_of_one_call(
    drawn: tuple[Round, Rule], measure_cuts: list[int], combine_cuts: list[int]
) -> None:
    round_, rule = drawn
    base, updates, blocks = round_.base.data, round_.updates, round_.base.blocks

    def cut(cuts: list[int]) -> list[tuple[int, int]]:
        return list(pairwise(sorted({0, blocks, *(at for at in cuts if at < blocks)})))

    measures = [
        aggregate.measure_range(rule, base, updates, first, last)
        for first, last in (cut(measure_cuts) if needs_measures(rule) else ())
    ]
    combined = [
        aggregate.combine_range(
            rule, base, round_.velocity, updates, round_.weights, measures, first, last
        )
        for first, last in cut(combine_cuts)
    ]
    names = [name for name, _ in updates]
    assembled = aggregate.assemble(rule, base, names, round_.weights, measures, combined)
    assert assembled == round_.run(rule)


@pytest.mark.slow
def test_the_most_updates_at_the_bounds_agree_with_the_oracle() -> None:
    base = make_flat_base(3)
    updates = [
        base.make_update([q, -q, 1 - q], [8 - bits], bits, sender)
        for sender in range(MAX_UPDATES)
        for bits in (8 + 8 * (sender % 2),)
        for q in (2 ** (bits - 1) - 1,)
    ]
    round_ = Round(base, updates, [2**128 - 1] * MAX_UPDATES)
    for rule in (
        MEAN,
        Rule(RuleKind.NORM_CLIPPED_MEAN, 2**30),
        Rule(RuleKind.TRIMMED_MEAN, 1),
        Rule(RuleKind.TRIMMED_MEAN, (MAX_UPDATES - 1) // 2),
    ):
        assert round_.run(rule) == round_.ask_the_oracle(rule)


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_payloads_may_lie_at_any_address(offset: int) -> None:
    round_ = make_round(Random(4), 5, (4099, 3))
    moved = Round(
        round_.base,
        [
            (name, memoryview(bytes(offset) + data)[offset:])  # type: ignore[misc]
            for name, data in round_.updates
        ],
        round_.weights,
    )
    assert moved.run() == round_.run()


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_model_at_the_bounds_stays_exact(sign: int) -> None:
    """All values of all updates at their limit: no accumulator overflows."""
    size, value = MAX_MODEL_PARAMETERS, sign * 32767
    base = make_flat_base(size)
    exponents = [-8] * base.blocks
    values = np.full(size, value)
    updates = [base.make_update(values, exponents, 16, i) for i in range(2)]  # type: ignore[arg-type]
    made = Round(base, updates, [1, 1]).run()
    assert made.scores == (WEIGHT_TOTAL, WEIGHT_TOTAL)
    assert (decode_model(made.model).values == value << 16).all()
    layout = compute_layout(base.manifest)
    norm2 = aggregate.check_ranges(aggregate.decode_update(updates[0][1]), layout)
    assert norm2 == size * (value << 16) ** 2


# -- rules, rounding, scores -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delta", "moved"), [(1, 0), (3, 2), (5, 2), (7, 4), (-1, 0), (-3, -2), (-5, -2), (2, 1)]
)
def test_half_a_unit_goes_to_the_even_neighbour(delta: int, moved: int) -> None:
    base = make_flat_base(1)
    updates = [base.make_update([delta], [-24]), base.make_update([0], [-24], sender=2)]
    made = Round(base, updates, [1, 1]).run()
    assert decode_model(made.model).values.tolist() == [moved]


def test_the_model_saturates_and_says_so() -> None:
    base = make_base(make_manifest((3, 24, Role.TRAIN)), [INT32_MAX, -(2**31), 0])
    made = Round(base, [base.make_update([1, -1, 1], [-24])], [1]).run()
    assert decode_model(made.model).values.tolist() == [INT32_MAX, -(2**31), 1]
    assert made.saturated == 2


def test_kept_tensors_are_copied_and_statistics_only_averaged() -> None:
    manifest = make_manifest((1, 24, Role.AVERAGE), (2, 0, Role.KEEP), (1, 24, Role.TRAIN))
    base = make_base(manifest, [10, 7, -7, 20])
    updates = [base.make_update([100, 4], [-24, -24])]
    made = Round(base, updates, [1]).run(Rule(RuleKind.NORM_CLIPPED_MEAN, 2))
    assert decode_model(made.model).values.tolist() == [110, 7, -7, 22]
    assert made.flags == (Flag.CLIPPED,)


def test_an_update_at_the_bound_is_not_clipped() -> None:
    base = make_flat_base(2)
    made = Round(base, [base.make_update([3, 4], [-24])], [1]).run(
        Rule(RuleKind.NORM_CLIPPED_MEAN, 5)
    )
    assert made.flags == (0,)


def test_scores_say_which_way_the_others_went() -> None:
    base = make_flat_base(2)
    updates = [
        base.make_update(values, [-24], sender=i)
        for i, values in enumerate([[5, 0], [3, 0], [-9, 0], [0, 0]])
    ]
    made = Round(base, updates, [1, 1, 1, 0]).run()
    assert made.scores == (-WEIGHT_TOTAL, -WEIGHT_TOTAL, -WEIGHT_TOTAL, 0)
    assert made.flags[3] == Flag.ZERO_SHARE
    assert Round(base, updates[:2], [1, 1]).run().scores == (WEIGHT_TOTAL, WEIGHT_TOTAL)


def test_a_huge_update_that_was_clipped_does_not_turn_the_others_around() -> None:
    base = make_flat_base(1)
    honest = [base.make_update([q], [-24], sender=q) for q in (1, 2, 3)]
    updates = [*honest, base.make_update([-100], [0], 8, sender=9)]
    scores = Round(base, updates, [1] * 4).run(Rule(RuleKind.NORM_CLIPPED_MEAN, 2)).scores
    assert scores == (WEIGHT_TOTAL,) * 3 + (-WEIGHT_TOTAL,)


# -- refusals --------------------------------------------------------------------------------------


def catch_code(function, *arguments) -> str:
    with pytest.raises(SteelyardError) as caught:
        function(*arguments)
    return str(caught.value.code)


@pytest.mark.parametrize("module", [aggregate, reference])
class TestRefusals:
    """Both implementations give the same code."""

    @pytest.mark.parametrize(
        ("values", "exponent", "bits", "code"),
        [
            ([-128, 0], -24, 8, "update_value"),
            ([-32768, 0], -24, 16, "update_value"),
            ([64, 0], 1, 8, "update_overflow"),
            ([-64, 0], 1, 8, "update_overflow"),
            ([1, 0], 7, 8, "update_overflow"),
            ([1, 0], 30, 16, "update_overflow"),
            ([0, 0], 31, 8, "update_exponent"),
            ([0, 0], -25, 8, "update_exponent"),
        ],
    )
    def test_values_out_of_range(self, module, values, exponent, bits, code) -> None:
        base = make_flat_base(2)
        good, bad = base.make_update([1, 1], [-24]), base.make_update(values, [exponent], bits, 2)
        for rule in (MEAN, Rule(RuleKind.NORM_CLIPPED_MEAN, 5)):
            assert code == catch_code(module.aggregate, rule, base.data, None, [good, bad], [1, 1])
        model = decode_model(base.data)
        assert code == catch_code(module.verify_update, bad[1], model, base.bind(2), 2**256)

    def test_the_first_bad_update_of_the_list_is_named(self, module) -> None:
        base = make_flat_base(5000)
        late = base.make_update([0] * 4999 + [-128], [-24, -24])
        early = base.make_update([64] + [0] * 4999, [1, -24], sender=2)
        for updates, code in (([late, early], "update_value"), ([early, late], "update_overflow")):
            assert code == catch_code(module.aggregate, MEAN, base.data, None, updates, [1, 1])

    def test_updates_that_do_not_belong(self, module) -> None:
        base = make_flat_base(2)
        long = make_flat_base(3).make_update([1] * 3, [-24])
        found = catch_code(module.aggregate, MEAN, base.data, None, [long], [1])
        assert found == "update_count"

    def test_norms_past_the_bound(self, module) -> None:
        base = make_flat_base(2)
        model, update = decode_model(base.data), base.make_update([3, 4], [-24])[1]
        assert module.verify_update(update, model, base.bind(), 25) == 25
        assert catch_code(module.verify_update, update, model, base.bind(), 24) == "update_norm"

    def test_another_sender(self, module) -> None:
        base = make_flat_base(1)
        update = base.make_update([1], [-24], sender=1)[1]
        assert (
            catch_code(module.verify_update, update, decode_model(base.data), base.bind(2), 1)
            == "update_sender"
        )

    @pytest.mark.parametrize(
        "rule",
        [
            Rule(RuleKind.WEIGHTED_MEAN, 1),
            Rule(RuleKind.NORM_CLIPPED_MEAN, 0),
            Rule(RuleKind.NORM_CLIPPED_MEAN, 2**128),
        ],
    )
    def test_bounds_that_do_not_fit_the_rule(self, module, rule) -> None:
        base = make_flat_base(1)
        update = base.make_update([1], [-24])
        arguments = (base.data, None, [update], [1])
        assert catch_code(module.aggregate, rule, *arguments) == "aggregation_bound"

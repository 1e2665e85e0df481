"""Pages of any cut give the bits of one call, fit their gas, and cannot be passed off as others."""

from dataclasses import replace
from itertools import pairwise
from random import Random
from struct import pack_into

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.chain import precompile, pricing, server
from steelyard.chain.aggregate import assemble
from steelyard.chain.errors import InvalidAggregation, SteelyardError
from steelyard.chain.model import Role, compute_layout, encode_model
from steelyard.chain.pages import (
    PAGE_HEADER_BYTES,
    Combined,
    Measures,
    check_cover,
    decode_combined,
    decode_measures,
    encode_combined,
    encode_measures,
)
from steelyard.chain.params import MAX_PAGES, PAIR_VALUES_PER_GAS
from steelyard.chain.pricing import Plan, get_page_range, plan_pages
from steelyard.chain.rules import Rule, RuleKind
from steelyard.chain.types import BlobName, Digest, Hash

from .aggregation_kit import make_base, make_manifest
from .precompile_kit import (
    MEAN,
    NOTHING,
    ONE,
    RATE,
    Host,
    OutOfGas,
    World,
    catch_code,
    encode_call,
    pair,
)

BASE = make_base(
    make_manifest(
        (9_000, 24, Role.TRAIN),
        (5, 0, Role.KEEP),
        (4_100, 20, Role.AVERAGE),
        (10, 22, Role.TRAIN),
    )
)
LAYOUT = compute_layout(BASE.manifest)
BLOCKS = LAYOUT.length.size
CLIENTS = 6
WEIGHTS = [5, 40, 0, 7, 7, 1]
NORM = 3 * 10**6
RULES = {
    "mean": (0, 0, ONE, RATE, 0),
    "mean, capped, with momentum": (0, 0, ONE // 4, RATE, 3_000),
    "clipped": (1, NORM, ONE, RATE // 3, 0),
    "clipped with momentum": (1, NORM, ONE // 3, 2 * RATE, 4_000),
    "trimmed": (2, 2, ONE, RATE, 0),
    "trimmed with momentum": (2, 1, ONE // 3, RATE, 1),
    "krum": (3, 1, ONE, RATE, 0),
    "krum, capped, with momentum": (3, 1, ONE // 4, RATE, 2_048),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
RuleWords = tuple[int, ...]
Names = list[tuple[bytes, int]]


@pytest.fixture(scope="module")
def world() -> World:
    random = np.random.default_rng(3)
    host = Host(gas=10**12)
    host.add(BASE.data)
    updates = []
    for sender in range(1, CLIENTS + 1):
        bits = 8 if sender % 3 else 16
        values = random.integers(-100, 101, LAYOUT.update_values) * (9 if sender == 2 else 1)
        exponents = random.integers(-18, -9, BLOCKS)
        values = np.clip(values, -127, 127).tolist()
        updates.append(host.add(BASE.make_update(values, exponents.tolist(), bits, sender)[1]))
    return World(host, BASE, updates)


def has_measures(rule: RuleWords) -> bool:
    return rule[0] in (RuleKind.NORM_CLIPPED_MEAN, RuleKind.MULTI_KRUM)


def get_velocity(world: World, rule: RuleWords) -> tuple[bytes, int]:
    """Return the velocity of a round before this one."""
    if not rule[4]:
        return NOTHING
    return world.host.ask("aggregate", rule, world.model, NOTHING, world.pairs, [1] * CLIENTS)[1]


def make_measures(world: World, rule: RuleWords, cuts: list[int]) -> Names:
    if not has_measures(rule):
        return []
    return [
        world.host.ask("measure", rule, world.model, world.pairs, first, last)[0]
        for first, last in zip([0, *cuts], [*cuts, BLOCKS], strict=True)
    ]


def list_inputs(world: World, rule: RuleWords) -> tuple[object, ...]:
    return rule, world.model, get_velocity(world, rule), world.pairs, WEIGHTS


def make_pages(world: World, rule: RuleWords, measures: Names, cuts: list[int]) -> Names:
    inputs = list_inputs(world, rule)
    return [
        world.host.ask("combine", *inputs, measures, first, last)[0]
        for first, last in zip([0, *cuts], [*cuts, BLOCKS], strict=True)
    ]


def name(words: tuple[bytes, int]) -> BlobName:
    return BlobName(Digest(words[0]), words[1])


cuts = st.sets(st.integers(1, BLOCKS - 1)).map(sorted)


# -- the same bits ---------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(RULES)), cuts, cuts)
def test_pages_of_any_cut_give_the_answer_of_one_call(
    world: World, rule_name: str, measure_cuts: list[int], combine_cuts: list[int]
) -> None:
    rule = RULES[rule_name]
    inputs = list_inputs(world, rule)
    measures = make_measures(world, rule, measure_cuts)
    pages = make_pages(world, rule, measures, combine_cuts)
    assembled = world.host.run("assemble", *inputs, measures, pages)
    assert assembled == world.host.run("aggregate", *inputs)


@every_rule
def test_every_step_of_a_plan_fits_its_gas(
    world: World, rule: RuleWords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pricing, "VALUES_PER_GAS", 1)  # else such a model costs what a page costs
    monkeypatch.setattr(pricing, "PAIR_VALUES_PER_GAS", 2)
    (quote,) = world.host.ask("quote", rule, world.model, CLIENTS, 16)
    assert world.host.ask("plan", rule, world.model, CLIENTS, 16, quote) == (0, 1, BLOCKS)
    page_gas = quote * 3 // 4
    measures, combines, blocks = world.host.ask("plan", rule, world.model, CLIENTS, 16, page_gas)
    assert (blocks, bool(measures)) == (BLOCKS, has_measures(rule))
    assert combines >= (1 if measures else 2)
    inputs = list_inputs(world, rule)
    host = replace(world.host)

    def ask(call: str, *arguments: object) -> tuple:
        host.gas = page_gas
        return host.ask(call, *arguments)

    measured = [
        ask("measure", rule, world.model, world.pairs, *get_page_range(i, measures, BLOCKS))[0]
        for i in range(measures)
    ]
    pages = [
        ask("combine", *inputs, measured, *get_page_range(i, combines, BLOCKS))[0]
        for i in range(combines)
    ]
    assert ask("assemble", *inputs, measured, pages) == world.host.ask("aggregate", *inputs)


def find_plan(*of_round: object) -> Plan | None:
    """Return the plan of a round; None if there is none."""
    try:
        return plan_pages(*of_round)
    except InvalidAggregation as error:
        if error.code == "aggregation_capacity":
            return None
        raise


@every_rule
def test_less_gas_means_more_pages_until_there_are_too_many(rule: RuleWords) -> None:
    manifest = make_manifest((6_000_000, 24, Role.TRAIN))
    layout = compute_layout(manifest)
    header = encode_model(make_manifest((1, 24, Role.TRAIN)), np.zeros(1, np.int32))
    base = BlobName(Digest(bytes(32)), 4 * manifest.parameters + len(header))
    of_round = (Rule(RuleKind(rule[0]), *rule[1:]), base, header, layout, 128, 8)
    plans = []
    page_gas = 60_000_000
    while (plan := find_plan(*of_round, page_gas)) is not None:
        plans.append(plan)
        page_gas = page_gas * 9 // 10
    assert (plans[0].measures, plans[0].combines) == (0, 1)
    for one, two in pairwise(plans):
        assert one.measures <= two.measures
        assert one.combines <= two.combines
    assert plans[-1].combines > 2
    assert all(plan.measures > 0 for plan in plans if plan.combines > 1) == has_measures(rule)


def test_plans_count_short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pricing, "PAIR_VALUES_PER_GAS", 1)
    base = make_base(make_manifest(*[(1, 24, Role.TRAIN)] * 60))
    host = Host(gas=10**12)
    host.add(base.data)
    updates = [host.add(base.make_update([i] * 60, [-24] * 60, 8, i)[1]) for i in range(CLIENTS)]
    rule, pairs = RULES["krum"], [pair(update) for update in updates]
    for page_gas, fewest in ((105_000, 2), (95_000, 3)):
        host.gas = 10**12
        measures, _, _ = host.ask("plan", rule, pair(base.name), CLIENTS, 8, page_gas)
        assert measures == fewest
        for page in range(measures):
            host.gas = page_gas
            host.run("measure", rule, pair(base.name), pairs, *get_page_range(page, measures, 60))


def test_a_short_block_costs_as_many_products_as_a_longer_one() -> None:
    rule = Rule(RuleKind.MULTI_KRUM, 1)
    full = pricing.compute_measuring_gas(rule, 640, 10, 100)
    assert pricing.compute_measuring_gas(rule, 10, 10, 100) == full
    assert pricing.compute_measuring_gas(rule, 641, 10, 1_000) > (
        pricing.compute_measuring_gas(rule, 640, 10, 1_000)
    )
    assert full > 640 * 100 * 101 // 2 // PAIR_VALUES_PER_GAS


def test_page_ranges_cover_all_blocks_once() -> None:
    for blocks in (1, 5, 64, 1000):
        for pages in range(1, min(blocks, MAX_PAGES) + 1):
            made = [get_page_range(page, pages, blocks) for page in range(pages)]
            check_cover([Measures(first, last, (), ()) for first, last in made], blocks)


# -- gas and sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["measure", "combine", "assemble"])
def test_a_page_is_paid_before_anything_but_the_base_is_read(world: World, call: str) -> None:
    rule = RULES["clipped"] if call == "measure" else MEAN
    inputs = list_inputs(world, rule)
    pages = make_pages(world, MEAN, [], [2])
    arguments = {
        "measure": (rule, world.model, world.pairs, 1, 3),
        "combine": (*inputs, [], 1, 3),
        "assemble": (*inputs, [], pages),
    }[call]
    rich, poor = replace(world.host, gas=10**9), replace(world.host, reads=0)
    rich.run(call, *arguments)
    poor.gas = 10**9 - rich.gas - 1
    with pytest.raises(OutOfGas):
        poor.run(call, *arguments)
    assert poor.reads == 1


def test_a_page_costs_by_its_blocks(world: World) -> None:
    inputs = list_inputs(world, MEAN)
    spent = []
    for last in range(1, BLOCKS + 1):
        before = world.host.gas
        world.host.run("combine", *inputs, [], 0, last)
        spent.append(before - world.host.gas)
    assert spent == sorted(spent)
    assert spent[-1] > 1.02 * spent[0]


def test_pages_of_impossible_sizes_are_not_read(world: World) -> None:
    clipped = list_inputs(world, RULES["clipped"])
    (measured,) = make_measures(world, RULES["clipped"], [])
    (page,) = make_pages(world, MEAN, [], [])
    wrong = [pair(world.host.add(bytes(size))) for size in (measured[1] - 1, page[1] + 1, 80)]
    inputs = list_inputs(world, MEAN)
    world.host.reads = 0
    calls = [
        encode_call("combine", *clipped, [wrong[0]], 0, 1),
        encode_call("assemble", *clipped, [wrong[0]], [page]),
        encode_call("assemble", *inputs, [], [wrong[1]]),
        encode_call("assemble", *inputs, [], [page, wrong[2]]),
        encode_call("assemble", *inputs, [], []),
    ]
    for data in calls:
        assert catch_code(world.host, data) == "page_length"
    assert world.host.reads == len(calls), "the base only"


def test_a_page_that_no_blob_could_hold_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precompile, "MAX_BLOB_BYTES", 50_000)
    inputs = list_inputs(world, MEAN)
    assert catch_code(world.host, encode_call("combine", *inputs, [], 0, BLOCKS)) == (
        "aggregation_capacity"
    )
    world.host.run("combine", *inputs, [], 0, 2)


# -- pages that do not belong ----------------------------------------------------------------------


@pytest.mark.parametrize(("first", "last"), [(0, 0), (3, 2), (0, BLOCKS + 1), (BLOCKS, BLOCKS + 1)])
def test_pages_are_of_blocks_that_there_are(world: World, first: int, last: int) -> None:
    data = encode_call("combine", *list_inputs(world, MEAN), [], first, last)
    assert catch_code(world.host, data) == "page_cover"
    data = encode_call("measure", RULES["krum"], world.model, world.pairs, first, last)
    assert catch_code(world.host, data) == "page_cover"


def test_rules_that_weigh_without_measuring_have_no_measures(world: World) -> None:
    data = encode_call("measure", MEAN, world.model, world.pairs, 0, 1)
    assert catch_code(world.host, data) == "aggregation_rule"
    measures = make_measures(world, RULES["clipped"], [])
    data = encode_call("combine", *list_inputs(world, MEAN), measures, 0, 1)
    assert catch_code(world.host, data) == "page_cover"


def test_holes_overlaps_and_another_order_are_refused(world: World) -> None:
    rule = RULES["clipped"]
    inputs = list_inputs(world, rule)
    measures = make_measures(world, rule, [2, 4])
    wrong = [[], measures[:2], measures[1:], measures[::-1], [*measures, measures[2]]]
    for some in wrong:
        data = encode_call("combine", *inputs, some, 0, 1)
        assert catch_code(world.host, data) == "page_cover"
    pages = make_pages(world, rule, measures, [1, 2])
    assert pages[0][1] == pages[1][1], "so that no length gives it away"
    for some in ([pages[1], pages[0], pages[2]], [pages[0], pages[0], pages[2]], pages[::-1]):
        data = encode_call("assemble", *inputs, measures, some)
        assert catch_code(world.host, data) == "page_cover"
    for some in (pages[:2], pages[1:], [*pages, pages[0]]):
        data = encode_call("assemble", *inputs, measures, some)
        assert catch_code(world.host, data) == "page_length"


def test_pages_of_other_inputs_are_refused(world: World) -> None:
    rule = RULES["krum, capped, with momentum"]
    _, model, velocity, pairs, weights = inputs = list_inputs(world, rule)
    measures = make_measures(world, rule, [3])
    pages = make_pages(world, rule, measures, [1])
    others = [
        ((*rule[:3], 1, rule[4]), model, velocity, pairs, weights),
        (rule, model, NOTHING, pairs, weights),
        (rule, model, velocity, pairs, [2 * weight for weight in weights]),
        (rule, model, velocity, pairs[::-1], weights[::-1]),
    ]
    for other in others:
        some = measures if other[0] == rule and other[3] == pairs else []
        if not some:
            some = [
                world.host.ask("measure", other[0], model, other[3], *blocks)[0]
                for blocks in ((0, 3), (3, BLOCKS))
            ]
            data = encode_call("combine", *other, measures, 0, 1)
            assert catch_code(world.host, data) == "page_inputs"
        data = encode_call("assemble", *other, some, pages)
        assert catch_code(world.host, data) == "page_inputs"
    cut = make_measures(world, rule, [2])
    assert catch_code(world.host, encode_call("assemble", *inputs, cut, pages)) == "page_inputs"
    world.host.run("assemble", *inputs, measures, pages)


# -- bytes that claim to be pages ------------------------------------------------------------------

KEY = Hash(b"\7" * 32)
KRUM_RULE = Rule(RuleKind.MULTI_KRUM, 1, momentum=1)


def make_examples() -> tuple[bytes, bytes]:
    values = int(LAYOUT.length[1:3].sum())
    measures = Measures(1, 3, (5, 6, 7), (1, -2, 3))
    combined = Combined(
        1, 3,
        np.arange(values, dtype=np.int32), -np.arange(values, dtype=np.int64),
        4, (5, 6, 7), (-1, 2, -3),
    )  # fmt: skip
    return encode_measures(measures, KEY), encode_combined(combined, KEY)


def test_pages_decode_to_what_was_encoded() -> None:
    measured, made = make_examples()
    measures = decode_measures(measured, KEY, KRUM_RULE, 3, LAYOUT)
    assert measures == Measures(1, 3, (5, 6, 7), (1, -2, 3))
    combined = decode_combined(made, KEY, KRUM_RULE, 3, LAYOUT)
    assert (combined.norms2, combined.dots, combined.saturated) == ((5, 6, 7), (-1, 2, -3), 4)
    assert combined.velocity is not None
    assert encode_combined(combined, KEY) == made
    assert not combined.values.flags.writeable
    assert not combined.velocity.flags.writeable


def test_hostile_pages_are_refused_with_a_code() -> None:
    measured, made = make_examples()
    at = PAGE_HEADER_BYTES

    def change(data: bytes, form: str, offset: int, value: int) -> bytes:
        changed = bytearray(data)
        pack_into(form, changed, offset, value)
        return bytes(changed)

    def set_number(data: bytes, index: int, number: int) -> bytes:
        start = at + 32 * index
        return data[:start] + number.to_bytes(32, "little", signed=True) + data[start + 32 :]

    measure_cases = {
        "page_length": [b"", measured[:79], measured[:-1], measured + bytes(32)],
        "page_format": [
            b"X" + measured[1:],
            change(measured, "<I", 8, 2),
            change(measured, "<I", 12, 2),
            change(measured, "<I", 28, 1),
            change(measured, "<Q", 32, 1),
            change(measured, "<Q", 40, 1),
        ],
        "page_inputs": [change(measured, "<I", 24, 4), change(measured, "<Q", 48, 0)],
        "page_cover": [
            change(measured, "<I", 16, 3),
            change(measured, "<I", 20, BLOCKS + 1),
            change(measured, "<I", 20, 2**32 - 1),
        ],
        "page_value": [
            set_number(measured, 0, -1),
            set_number(measured, 2, 2**255 - 1),
            set_number(measured, 3, 2**160),
            set_number(measured, 5, -(2**255)),
        ],
    }
    values = (len(made) - at - 6 * 32) // 12
    combine_cases = {
        "page_length": [
            b"",
            made[:-4],
            made + bytes(4),
            change(made, "<Q", 32, values - 1),
            change(made, "<I", 20, 2),
        ],
        "page_format": [change(made, "<I", 12, 1), change(made, "<Q", 8, 2**63)],
        "page_inputs": [change(made, "<I", 24, 2), change(made, "<B", 79, 0)],
        "page_cover": [change(made, "<I", 16, 3), change(made, "<I", 20, 0)],
        "page_value": [
            change(made, "<Q", 40, values + 1),
            set_number(made, 1, -1),
            set_number(made, 3, 2**200),
            set_number(made, 4, -(2**200)),
            change(made, "<q", at + 6 * 32, 2**47),
            change(made, "<q", at + 6 * 32 + 8, -(2**63)),
        ],
    }
    for decode_page, cases in ((decode_measures, measure_cases), (decode_combined, combine_cases)):
        for code, pages in cases.items():
            for page in pages:
                with pytest.raises(InvalidAggregation) as caught:
                    decode_page(page, KEY, KRUM_RULE, 3, LAYOUT)
                assert caught.value.code == code


@every_rule
def test_forged_pages_are_answered_or_refused(world: World, rule: RuleWords) -> None:
    """Whoever declares bytes as a page may get a useless model, and never stops a node."""
    random = Random(str(rule))
    inputs = list_inputs(world, rule)
    measures = make_measures(world, rule, [2])
    pages = make_pages(world, rule, measures, [4])
    for _ in range(15):
        forged = [forge(world, random, page) for page in measures]
        end = catch(world, "combine", *inputs, forged, 0, 3)
        assert end is None or end.startswith(("page_", "aggregation_"))
        end = catch(world, "assemble", *inputs, measures, [forge(world, random, p) for p in pages])
        assert end is None or end.startswith("page_")


def test_no_pages_make_a_velocity_that_no_blob_could_hold(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forged pages each fit; what they would be put together to does not."""
    rule = RULES["mean, capped, with momentum"]
    inputs = list_inputs(world, rule)
    pages = make_pages(world, rule, [], [2])
    made = world.host.ask("assemble", *inputs, [], pages)[1]
    monkeypatch.setattr(server, "MAX_BLOB_BYTES", made[1])
    world.host.run("assemble", *inputs, [], pages)
    monkeypatch.setattr(server, "MAX_BLOB_BYTES", made[1] - 1)
    assert all(size < made[1] - 1 for _, size in pages)
    assert catch(world, "assemble", *inputs, [], pages) == "velocity_size"
    names = [name(update) for update in world.pairs]
    with pytest.raises(InvalidAggregation) as caught:
        assemble(Rule(RuleKind(rule[0]), *rule[1:]), BASE.data, names, WEIGHTS, [], [])
    assert caught.value.code == "velocity_size"


def forge(world: World, random: Random, page: tuple[bytes, int]) -> tuple[bytes, int]:
    """Return a page whose numbers are others, mostly possible ones."""
    forged = bytearray(world.host.blobs[name(page)])
    for _ in range(random.randint(1, 4)):
        at = PAGE_HEADER_BYTES + 32 * random.randrange(CLIENTS * (2 if len(forged) > 2_000 else 1))
        number = random.choice((0, 1, -1, 2**100, -(2**100), 2**133, random.getrandbits(120)))
        forged[at : at + 32] = number.to_bytes(32, "little", signed=True)
    return pair(world.host.add(bytes(forged)))


def catch(world: World, call: str, *arguments: object) -> str | None:
    try:
        world.host.run(call, *arguments)
    except SteelyardError as error:
        return error.code
    return None

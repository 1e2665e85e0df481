"""The gas table of docs/protocol.md, section 5, written again from the page: what is charged."""

import pytest

from steelyard.chain import params
from steelyard.chain.model import Role, compute_layout
from steelyard.chain.rules import RuleKind

from .aggregation_kit import ROUND, TASK, make_base, make_manifest
from .precompile_kit import NOTHING, ONE, RATE, Host, World, pair

BASE = make_base(
    make_manifest(
        (5_000, 24, Role.TRAIN), (5, 0, Role.KEEP), (9, 20, Role.AVERAGE), (10, 22, Role.TRAIN)
    )
)
LAYOUT = compute_layout(BASE.manifest)
BLOCKS, VALUES, SIZE = int(LAYOUT.length.size), LAYOUT.update_values, len(BASE.data)
CLIENTS = 6
HEADER = -(-int.from_bytes(BASE.data[:8], "little") // params.HEADER_BYTES_PER_GAS)
RULES = {
    "mean": (0, 0, ONE, RATE, 0),
    "mean with momentum": (0, 0, ONE, RATE, 99),
    "clipped with a rate": (1, 3 * 10**6, ONE, RATE // 3, 0),
    "trimmed": (2, 1, ONE, RATE, 0),
    "krum": (3, 1, ONE, RATE, 0),
    "krum with momentum": (3, 1, ONE, RATE, 2_048),
}


@pytest.fixture(scope="module")
def world() -> World:
    host = Host(gas=10**12)
    host.add(BASE.data)
    updates = [
        BASE.make_update([i + 1] * VALUES, [-20] * BLOCKS, 8 if i % 3 else 16, i)[1]
        for i in range(CLIENTS)
    ]
    return World(host, BASE, [host.add(update) for update in updates])


def divide(amount: int, per_gas: int) -> int:
    return -(-amount // per_gas)


def read(size: int) -> int:
    return divide(size, params.BYTES_READ_PER_GAS)


def make(size: int) -> int:
    return params.BLOB_GAS_EACH + divide(size, params.BYTES_MADE_PER_GAS)


def call(names: int) -> int:
    return params.GAS_CALL + params.GAS_PER_UPDATE * names


def visit(visits: int) -> int:
    return divide(visits, params.VALUES_PER_GAS)


def decide(rule: tuple[int, ...]) -> int:
    return params.GAS_PER_DISTANCE * CLIENTS**2 if rule[0] == RuleKind.MULTI_KRUM else 0


def measure(rule: tuple[int, ...], values: int, blocks: int) -> int:
    if rule[0] == RuleKind.NORM_CLIPPED_MEAN:
        return visit(values * CLIENTS)
    if rule[0] == RuleKind.MULTI_KRUM:
        products = max(values, params.PAIR_VALUES_PER_BLOCK * blocks) * CLIENTS * (CLIENTS + 1) // 2
        return divide(products, params.PAIR_VALUES_PER_GAS) + decide(rule)
    return 0


def combine(rule: tuple[int, ...], values: int) -> int:
    visits = 1 + CLIENTS + (params.STEP_VISITS if rule[3:] != (RATE, 0) else 0)
    if rule[0] == RuleKind.TRIMMED_MEAN:
        visits += params.TRIMMED_VISITS * CLIENTS
    return visit(values * visits)


def read_parts(world: World, values: int) -> int:
    """Bytes of all updates, each rounded up."""
    head = 192 + (BLOCKS + 7) // 8 * 8
    return sum(
        min(one.size, head) + divide(max(one.size - head, 0) * values, VALUES)
        for one in world.updates
    )


def spend(world: World, name: str, *arguments: object) -> tuple[int, tuple]:
    before = world.host.gas
    answer = world.host.ask(name, *arguments)
    return before - world.host.gas, answer


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_an_aggregation_costs_what_the_page_says(world: World, rule: tuple[int, ...]) -> None:
    momentum, weights = rule[4], [1] * CLIENTS
    before = NOTHING
    if momentum:
        before = world.host.ask("aggregate", rule, world.model, NOTHING, world.pairs, weights)[1]
    of_round = (rule, world.model, before, world.pairs, weights)

    def make_velocity(values: int) -> int:
        return make(8 * values + 24) if momentum else 0

    spent, whole = spend(world, "aggregate", *of_round)
    most, sizes = SIZE // 4, sum(one.size for one in world.updates)
    made = read(SIZE + before[1] + sizes) + make(SIZE) + make_velocity(most)
    phases = measure(rule, most, 0) + decide(rule) + combine(rule, most)
    assert spent == call(CLIENTS) + made + phases + HEADER

    opening, measures, pages = read(SIZE) + HEADER, [], []
    for first, last in ((0, BLOCKS - 2), (BLOCKS - 2, BLOCKS)):
        values = int(LAYOUT.length[first:last].sum())
        if measure(rule, 1, 0):
            spent, (page,) = spend(world, "measure", rule, world.model, world.pairs, first, last)
            done = read(read_parts(world, values)) + measure(rule, values, last - first)
            assert spent == call(CLIENTS) + opening + done + make(page[1])
            measures.append(page)
    decoding = divide(sum(size for _, size in measures), params.PAGE_BYTES_PER_GAS)
    for first, last in ((0, 1), (1, BLOCKS)):
        values = int(LAYOUT.length[first:last].sum())
        spent, (page,) = spend(world, "combine", *of_round, measures, first, last)
        done = read(read_parts(world, values) + before[1]) + decide(rule) + combine(rule, values)
        names = CLIENTS + len(measures)
        assert spent == call(names) + opening + done + make(page[1]) + decoding
        pages.append(page)
    spent, answer = spend(world, "assemble", *of_round, measures, pages)
    heads = divide(2 * (80 + 64 * CLIENTS), params.PAGE_BYTES_PER_GAS)
    done = decide(rule) + make(SIZE) + make_velocity(VALUES) + visit(SIZE // 4)
    read_pages = decoding + heads + read(VALUES * (12 if momentum else 4))
    assert spent == call(CLIENTS + len(measures) + 2) + opening + done + read_pages
    assert answer == whole


def test_other_calls_cost_what_the_page_says(world: World) -> None:
    looking = params.GAS_CALL + read(SIZE) + visit(SIZE // 4) + HEADER
    assert spend(world, "check_model", world.model)[0] == looking
    assert spend(world, "quote", RULES["mean"], world.model, 3, 8)[0] == looking
    planned = spend(world, "plan", RULES["mean"], world.model, 3, 8, 10**6)[0]
    assert planned == looking + params.GAS_PER_PLAN
    update, sender = world.updates[1], (1).to_bytes(20, "big")
    spent = spend(world, "verify", pair(update), TASK, ROUND, world.model, sender, 2**200)[0]
    assert spent == call(1) + read(SIZE + update.size) + visit(2 * (SIZE // 4)) + HEADER

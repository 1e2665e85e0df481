"""What Tasks and Rounds may ask of each other, nobody else may."""

import ape
import pytest
from injection import install_code
from world import NO_BLOB, PARAMETERS

from steelyard.chain.params import ROUNDS_ADDRESS

SKIPPED = 2
SETTLEMENT = (1, 1, 1, NO_BLOB, 0, [], [], 0)
PLAN = (
    "0x" + "11" * 20,
    PARAMETERS["rule"],
    *(
        PARAMETERS[name]
        for name in (
            "weighting",
            "rounds",
            "min_clients",
            "max_clients",
            "fraction_fit",
            "spare_clients",
            "max_staleness",
            "staleness_discount",
            "on_failed_quorum",
            "max_extensions",
            "evaluate_every",
            "commit_seconds",
            "reveal_seconds",
            "base_stake",
            "stake_per_sample",
            "admission_norm2",
        )
    ),
)


@pytest.fixture(params=["publisher", "hospital", "stranger"])
def caller(request, world):
    return {
        "publisher": world.publisher,
        "hospital": world.hospitals[0],
        "stranger": world.stranger,
    }[request.param]


def test_nobody_but_rounds_settles_a_round(world, caller):
    task = world.start(count=2)
    with ape.reverts("tasks: not the contract Rounds"):
        world.tasks.settle((task, *SETTLEMENT[1:]), sender=caller)
    with ape.reverts("tasks: not the contract Rounds"):
        world.tasks.pay_closer(task, 1, caller, 10**9, True, sender=caller)
    assert world.tasks.get_account(task).left == world.tasks.get_account(task).deposited


@pytest.fixture
def impostor(world, wallet_type):
    """A wallet in the place of Rounds, once it is asked for, until the end of the test."""
    code = bytes(world.rounds.contract_type.get_runtime_bytecode())

    def take_place():
        stand_in = bytes(wallet_type.contract_type.get_runtime_bytecode())
        install_code(world.chain, ROUNDS_ADDRESS, stand_in)
        return wallet_type.at(world.rounds.address, fetch_from_explorer=False)

    yield take_place
    install_code(world.chain, ROUNDS_ADDRESS, code)


def test_even_rounds_settles_nothing_but_the_round_in_progress(world, impostor):
    task, lobby, over = world.start(count=2), world.publish(), world.start(count=2)
    world.tasks.cancel(over, sender=world.publisher)
    rounds = impostor()

    def settle(number, round):
        call = world.tasks.settle.encode_input((number, round, SKIPPED, *SETTLEMENT[3:]))
        rounds.execute(world.tasks, call, sender=world.stranger)

    for number, round in [(task, 0), (task, 2), (lobby, 0), (lobby, 1), (over, 1), (over + 1, 0)]:
        with ape.reverts("tasks: not running"):
            settle(number, round)
    settle(task, 1)
    assert world.tasks.get_task(task).round == 2


def test_nobody_but_tasks_opens_or_ends_a_round(world, caller):
    task = world.start(count=2)
    calls = [
        (world.rounds.register, (task, PLAN, NO_BLOB, 1)),
        (world.rounds.open, (task, 2, NO_BLOB, 0b11, 10**18)),
        (world.rounds.drop, (task, 0)),
        (world.rounds.stop, (task,)),
    ]
    before = tuple(world.rounds.get_round(task, 1))
    for method, arguments in calls:
        with ape.reverts("rounds: not the contract Tasks"):
            method(*arguments, sender=caller)
    assert tuple(world.rounds.get_round(task, 1)) == before
    assert world.rounds.get_current(task) == 1


def test_the_plan_holds_what_was_published(world):
    task = world.publish(max_staleness=3, evaluate_every=4)
    plan, split = world.rounds.get_plan(task)
    assert plan.publisher == world.publisher
    assert tuple(plan.rule) == PARAMETERS["rule"]
    assert (plan.max_staleness, plan.evaluate_every) == (3, 4)
    assert (plan.min_clients, plan.max_clients) == (2, 3)
    assert plan.admission_norm2 == PARAMETERS["admission_norm2"]
    assert tuple(split) == (0, 1, 1), "one call does it all"


def test_a_round_is_told_apart_from_the_same_round_of_another_task(world):
    first, second = world.start(count=2), world.start(count=2)
    world.play_round(first, 1, world.hospitals[:2])
    assert world.rounds.get_current(first) == 2
    assert world.rounds.get_current(second) == 1
    assert world.tasks.get_task(second).round == 1

"""Publishing: the escrow is exact, and a task that could not be played cannot be created."""

import ape
import pytest
from world import (
    APPLICANTS,
    BASE_STAKE,
    EXTEND,
    INVITED,
    JOIN_SECONDS,
    LOBBY,
    NO_BLOB,
    ONE,
    PARAMETERS,
    REFUND,
    as_tuple,
)

PLATFORM = "0x" + "77" * 20


def make_rule(kind, bound=0, max_share=ONE, server_lr=4096, momentum=0):
    return (kind, bound, max_share, server_lr, momentum)


def test_publish_opens_a_lobby_and_takes_the_escrow(world):
    before = world.tasks.balance
    task = world.publish(admission=INVITED, invited=world.hospitals[:2])
    published = world.tasks.get_task(task)
    escrow = PARAMETERS["reward"] + 2 * PARAMETERS["close_reserve"]
    assert published.state == LOBBY
    assert published.publisher == world.publisher
    assert published.name == "heart"
    assert published.parameters.admission == INVITED
    assert published.round == 0
    assert published.join_ends == world.now + JOIN_SECONDS
    assert published.parameters.reward == PARAMETERS["reward"]
    assert world.tasks.balance - before == escrow
    assert tuple(world.tasks.get_account(task)) == (
        escrow,
        escrow,
        PARAMETERS["reward"],
        *[0] * 7,
    )
    assert world.tasks.is_invited(task, world.hospitals[1])
    assert not world.tasks.is_invited(task, world.hospitals[2])


def test_tasks_are_numbered_from_one_and_apart(world):
    count = world.tasks.task_count()
    first, second = world.publish(), world.publish(reward=5)
    assert (first, second) == (count + 1, count + 2)
    assert world.tasks.get_account(first).deposited != world.tasks.get_account(second).deposited
    assert world.tasks.get_task(0).state == world.tasks.get_task(second + 1).state == 0


@pytest.mark.parametrize("difference", [-1, 1])
def test_an_escrow_that_differs_by_one_wei_is_refused(world, difference):
    escrow = PARAMETERS["reward"] + 2 * PARAMETERS["close_reserve"]
    with ape.reverts("tasks: escrow differs from reward and reserves"):
        world.publish(value=escrow + difference)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rounds": 0}, "rounds out of range"),
        ({"rounds": 10_001}, "rounds out of range"),
        ({"min_clients": 0}, "clients out of range"),
        ({"min_clients": 4}, "clients out of range"),
        ({"max_clients": 129}, "clients out of range"),
        ({"join_seconds": 0}, "period out of range"),
        ({"commit_seconds": 0}, "period out of range"),
        ({"reveal_seconds": 0}, "period out of range"),
        ({"reveal_seconds": 30 * 86_400 + 1}, "period out of range"),
        ({"weighting": 3}, "unknown weighting"),
        ({"weighting": 1, "base_stake": 0}, "weighting by stake needs a base stake"),
        ({"bits": 4}, "bits must be 8 or 16"),
        ({"rule": make_rule(4, 1)}, "unknown rule"),
        ({"rule": make_rule(0, 1)}, "bound does not fit the rule"),
        ({"rule": make_rule(1, 0)}, "bound does not fit the rule"),
        ({"rule": make_rule(1, 2**128)}, "bound does not fit the rule"),
        ({"admission_norm2": 0}, "no admission norm"),
        ({"base_stake": 2**100 + 1}, "amount out of range"),
        ({"stake_per_sample": 2**100 + 1}, "amount out of range"),
        ({"reward": 2**100 + 1}, "amount out of range"),
        ({"close_reserve": 2**100 + 1}, "amount out of range"),
        ({"close_bounty": PARAMETERS["close_reserve"] + 1}, "bounty above the reserve"),
        ({"fraction_fit": 0}, "drawing out of range"),
        ({"fraction_fit": ONE + 1}, "drawing out of range"),
        ({"spare_clients": 129}, "drawing out of range"),
        ({"max_staleness": 9}, "staleness out of range"),
        ({"staleness_discount": ONE + 1}, "staleness out of range"),
        ({"on_failed_quorum": 3}, "unknown quorum policy"),
        ({"on_failed_quorum": EXTEND}, "extensions do not fit the policy"),
        ({"on_failed_quorum": EXTEND, "max_extensions": 17}, "extensions do not fit the policy"),
        ({"max_extensions": 1}, "extensions do not fit the policy"),
        ({"evaluate_every": 10_001}, "evaluations out of range"),
        ({"admission": 3}, "unknown admission"),
        ({"min_reputation": ONE - 14}, "reputation out of range"),
        ({"rule": make_rule(2, 1), "min_clients": 3}, "the trimmed mean needs uniform weighting"),
        ({"rule": make_rule(2, 1), "weighting": 2}, "too few clients for the rule"),
        (
            {"rule": make_rule(3, 1), "min_clients": 4, "max_clients": 4},
            "too few clients for the rule",
        ),
        (
            {
                "rule": make_rule(2, 1),
                "weighting": 2,
                "min_clients": 3,
                "max_staleness": 1,
                "staleness_discount": 0,
            },
            "late updates would count unpaid",
        ),
        ({"rule": make_rule(3, 0)}, "bound does not fit the rule"),
        ({"rule": make_rule(0, max_share=0)}, "share cap out of range"),
        ({"rule": make_rule(0, max_share=ONE + 1)}, "share cap out of range"),
        ({"rule": make_rule(0, server_lr=0)}, "server step out of range"),
        ({"rule": make_rule(0, server_lr=2**15 + 1)}, "server step out of range"),
        ({"rule": make_rule(0, momentum=4096 - 15)}, "server step out of range"),
        ({"bond": BASE_STAKE + 1}, "bond above the base stake"),
        ({"platform_share": 1}, "platform share out of range"),
        ({"platform": PLATFORM}, "platform share out of range"),
        ({"platform": PLATFORM, "platform_share": ONE // 5 + 1}, "platform share out of range"),
        ({"name": ""}, "no name"),
    ],
)
def test_parameters_out_of_bounds_are_refused(world, changes, reason):
    with ape.reverts(f"tasks: {reason}"):
        world.publish(value=0, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 10_000, "close_reserve": 10**12},
        {"min_clients": 3},
        {"min_clients": 1, "max_clients": 1},
        {"weighting": 1},
        {"weighting": 2, "base_stake": 0, "stake_per_sample": 0, "bond": 0},
        {"bits": 16},
        {"rule": make_rule(1, 1)},
        {"rule": make_rule(1, 2**128 - 1)},
        {"reward": 0, "close_reserve": 0, "close_bounty": 0},
        {"rule": make_rule(2, 1), "weighting": 2, "min_clients": 3, "staleness_discount": 0},
        {"rule": make_rule(3, 1, server_lr=2**15), "min_clients": 5, "max_clients": 5},
        {"rule": make_rule(0, max_share=1, server_lr=1, momentum=4096 - 16), "bond": BASE_STAKE},
        {"fraction_fit": 1, "spare_clients": 128, "max_staleness": 8, "staleness_discount": 0},
        {"on_failed_quorum": EXTEND, "max_extensions": 16, "evaluate_every": 10_000},
        {"on_failed_quorum": REFUND, "admission": APPLICANTS, "min_reputation": ONE - 15},
        {"platform": PLATFORM, "platform_share": ONE // 5},
    ],
)
def test_parameters_at_their_bounds_are_taken(world, changes):
    assert world.tasks.get_task(world.publish(**changes)).state == LOBBY


def test_a_task_that_could_not_be_closed_within_a_block_is_refused(world):
    """128 clients alone are more than three quarters of a block of 8 million gas."""
    world.publish(max_clients=128)
    with (
        world.limited_block_gas(8_000_000),
        ape.reverts("rounds: a round would not fit in a block"),
    ):
        world.publish(max_clients=128)


def test_the_same_task_with_fewer_clients_fits_the_small_block(world):
    with world.limited_block_gas(8_000_000):
        world.publish(max_clients=16)


def test_a_model_nobody_declared_is_refused(world):
    name = world.declare(world.make_model())
    world.shelf.clear()
    with ape.reverts("fedavg: blob_unknown"):
        world.publish(model=name)


def test_a_blob_that_is_not_a_model_is_refused(world):
    name = world.declare(b"not a model")
    with ape.reverts("fedavg: model_header"):
        world.publish(model=name)


def test_a_model_that_expires_before_the_first_close_is_refused(world):
    name = world.declare(world.make_model(), retention_seconds=86_400)
    with ape.reverts("rounds: model expires too soon"):
        world.publish(model=name)


def test_money_without_a_call_is_not_taken(world):
    with ape.reverts():
        world.stranger.transfer(world.tasks.address, 1)


def test_calls_that_are_not_payable_take_no_money(world):
    task = world.publish()
    with ape.reverts():
        world.tasks.start(task, sender=world.publisher, value=1)


def test_published_names_everything_a_participant_must_know(world):
    model = world.declare(world.make_model())
    receipt = world.tasks.publish(
        "heart",
        tuple(PARAMETERS.values()),
        as_tuple(model),
        NO_BLOB,
        [],
        value=PARAMETERS["reward"] + 2 * PARAMETERS["close_reserve"],
        sender=world.publisher,
    )
    (event,) = receipt.decode_logs(world.tasks.Published)
    assert event.task == world.tasks.task_count()
    assert list(event.parameters)[3] == PARAMETERS["rounds"]
    assert tuple(event.model) == as_tuple(model)

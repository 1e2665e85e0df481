"""Pausing, resuming, cancelling and funding: the publisher's hand on a running task."""

import ape
import pytest
from world import (
    ABORT,
    ABORTED,
    FINISHED,
    OPEN,
    PARAMETERS,
    PAUSED,
    RUNNING,
    STOPPED,
    WAIT,
)

PAUSE_SECONDS = 30 * 86_400
NOTHING, PAUSE, CANCEL = 0, 1, 2


@pytest.fixture
def paused(world):
    task = world.start(count=2, rounds=3)
    world.tasks.pause(task, sender=world.publisher)
    world.play_round(task, 1, world.hospitals[:2])
    return task


# -- pause and resume ------------------------------------------------------------------------------


def test_a_pause_waits_for_the_round_in_progress(world):
    task = world.start(count=2, rounds=3)
    receipt = world.tasks.pause(task, sender=world.publisher)
    (event,) = receipt.decode_logs(world.tasks.Wished)
    assert (event.round, event.wish) == (1, PAUSE)
    assert world.tasks.get_task(task).state == RUNNING
    receipt = world.play_round(task, 1, world.hospitals[:2])
    (event,) = receipt.decode_logs(world.tasks.Paused)
    assert event.pause_ends == receipt.timestamp + PAUSE_SECONDS
    assert world.tasks.get_task(task).state == PAUSED
    assert world.tasks.get_task(task).wish == NOTHING
    assert world.rounds.get_round(task, 2).state == 0
    assert world.tasks.claimable(task, world.hospitals[0]) > 0, "the round is paid"


def test_a_resumed_task_goes_on_from_its_newest_model(world, paused):
    receipt = world.tasks.resume(paused, sender=world.publisher)
    assert len(receipt.decode_logs(world.tasks.Resumed)) == 1
    opened = world.rounds.get_round(paused, 2)
    assert opened.state == OPEN
    assert opened.base == world.rounds.get_round(paused, 1).model
    assert opened.drawn == 0b11
    world.play_round(paused, 2, world.hospitals[:2])


def test_a_pause_can_be_taken_back_before_it_begins(world):
    task = world.start(count=2, rounds=3)
    world.tasks.pause(task, sender=world.publisher)
    world.tasks.resume(task, sender=world.publisher)
    world.play_round(task, 1, world.hospitals[:2])
    assert world.tasks.get_task(task).state == RUNNING


def test_resuming_what_is_not_paused_is_refused(world):
    task = world.start(count=2)
    with ape.reverts("tasks: not paused"):
        world.tasks.resume(task, sender=world.publisher)


def test_only_a_running_task_is_paused_and_once(world, paused):
    with ape.reverts("tasks: not running"):
        world.tasks.pause(paused, sender=world.publisher)
    world.tasks.resume(paused, sender=world.publisher)
    world.tasks.pause(paused, sender=world.publisher)
    with ape.reverts("tasks: already ending"):
        world.tasks.pause(paused, sender=world.publisher)


def test_after_the_last_round_there_is_no_pause(world):
    task = world.start(count=2, rounds=1)
    world.tasks.pause(task, sender=world.publisher)
    world.play_round(task, 1, world.hospitals[:2])
    assert world.tasks.get_task(task).state == FINISHED
    with ape.reverts("tasks: not paused"):
        world.tasks.resume(task, sender=world.publisher)


def test_only_the_publisher_pauses_resumes_and_cancels(world, paused):
    for method in (world.tasks.pause, world.tasks.resume, world.tasks.cancel):
        with ape.reverts("tasks: not the publisher"):
            method(paused, sender=world.stranger)


def test_a_pause_binds_nobody_and_lets_people_in(world, paused):
    world.tasks.leave(paused, sender=world.hospitals[0])
    world.join(paused, world.hospitals[5])
    assert world.tasks.get_participant(paused, world.hospitals[5]).active_from == 2
    with ape.reverts("rounds: not the current round"):
        world.rounds.commit(paused, 1, 1, b"\1" * 32, sender=world.hospitals[1])
    with ape.reverts("rounds: not the current round"):
        world.close(paused, 1)
    world.tasks.resume(paused, sender=world.publisher)
    assert world.rounds.get_round(paused, 2).drawn == 0b11


def test_a_pause_that_lasts_may_be_ended_by_anybody(world, paused):
    world.advance(PAUSE_SECONDS - 100)
    assert tuple(world.tasks.next_action(paused)) == (WAIT, 1)
    with ape.reverts("tasks: too early to abort"):
        world.tasks.abort(paused, sender=world.stranger)
    world.advance(100)
    assert tuple(world.tasks.next_action(paused)) == (ABORT, 1)
    world.tasks.abort(paused, sender=world.stranger)
    assert world.tasks.get_task(paused).state == ABORTED
    world.tasks.refund(paused, sender=world.publisher)


def test_too_many_saturated_values_pause_the_task(world):
    task = world.start(count=2, rounds=3, max_saturated=0, rule=(0, 0, 2**20, 2**15, 0))
    top = world.make_model(first_value=2**31 - 8)
    assert world.tasks.get_task(task).state == RUNNING
    world.tasks.cancel(task, sender=world.publisher)
    task = world.publish(model=world.declare(top), rounds=3, max_clients=2, max_saturated=7)
    other = world.publish(model=world.declare(top), rounds=3, max_clients=2, max_saturated=8)
    for each, state in ((task, PAUSED), (other, RUNNING)):
        for hospital in world.hospitals[:2]:
            world.join(each, hospital)
        world.play_round(each, 1, world.hospitals[:2])
        assert world.rounds.get_round(each, 1).saturated == 8
        assert world.tasks.get_task(each).state == state


# -- cancel ----------------------------------------------------------------------------------------


def test_a_round_without_a_commitment_is_cancelled_at_once(world):
    task = world.start(count=2)
    receipt = world.tasks.cancel(task, sender=world.publisher)
    assert len(receipt.decode_logs(world.tasks.Aborted)) == 1
    assert world.tasks.get_task(task).state == ABORTED
    assert world.rounds.get_round(task, 1).state == STOPPED
    with ape.reverts("rounds: not the current round"):
        world.rounds.commit(task, 1, 1, b"\1" * 32, sender=world.hospitals[0])
    world.tasks.leave(task, sender=world.hospitals[0])
    world.tasks.refund(task, sender=world.publisher)


def test_a_commitment_holds_the_publisher_to_the_round(world):
    task = world.start(count=2)
    world.commit(task, 1, world.hospitals[0])
    world.tasks.cancel(task, sender=world.publisher)
    assert world.tasks.get_task(task).state == RUNNING
    assert world.tasks.get_task(task).wish == CANCEL
    with ape.reverts("tasks: already ending"):
        world.tasks.cancel(task, sender=world.publisher)
    with ape.reverts("tasks: already ending"):
        world.tasks.pause(task, sender=world.publisher)
    with ape.reverts("tasks: not paused"):
        world.tasks.resume(task, sender=world.publisher)
    world.commit(task, 1, world.hospitals[1], value=2)
    for hospital in world.hospitals[:2]:
        world.reveal(task, 1, hospital)
    world.close(task, 1)
    assert world.tasks.get_task(task).state == ABORTED
    assert world.tasks.claimable(task, world.hospitals[0]) > 0, "the round is paid"
    with ape.reverts("rounds: not the current round"):
        world.close(task, 2)


def test_a_paused_task_is_cancelled_at_once(world, paused):
    world.tasks.cancel(paused, sender=world.publisher)
    assert world.tasks.get_task(paused).state == ABORTED


def test_a_task_that_is_over_cannot_be_cancelled(world):
    task = world.publish()
    world.tasks.cancel(task, sender=world.publisher)
    with ape.reverts("tasks: not open"):
        world.tasks.cancel(task, sender=world.publisher)


def test_a_stopped_round_frees_its_participants(world):
    task = world.start(count=2)
    world.commit_all(task, 1, world.hospitals[:2])
    assert world.rounds.is_bound(task, world.hospitals[0])
    assert not world.rounds.is_bound(task, world.stranger)
    world.advance_to(world.rounds.get_round(task, 1).reveal_ends + 86_400)
    world.tasks.abort(task, sender=world.stranger)
    assert world.rounds.get_round(task, 1).state == STOPPED
    assert not world.rounds.is_bound(task, world.hospitals[0])
    assert not world.rounds.is_due(task)


# -- fund, pools, platform -------------------------------------------------------------------------


def test_anybody_may_add_to_the_reward_of_later_rounds(world):
    task = world.start(count=2, rounds=2)
    pool = world.rounds.get_round(task, 1).pool
    assert pool == PARAMETERS["reward"] // 2
    receipt = world.tasks.fund(task, value=10**18, sender=world.stranger)
    (event,) = receipt.decode_logs(world.tasks.Funded)
    assert (event.funder, event.amount) == (world.stranger, 10**18)
    world.play_round(task, 1, world.hospitals[:2])
    paid = world.tasks.get_account(task).paid
    assert paid <= pool
    assert world.rounds.get_round(task, 2).pool == PARAMETERS["reward"] + 10**18 - paid


def test_the_last_round_takes_no_more_funds(world):
    task = world.start(count=2, rounds=1)
    with ape.reverts("tasks: last round is running"):
        world.tasks.fund(task, value=1, sender=world.stranger)


@pytest.mark.parametrize("value", [0, 2**100 + 1])
def test_funds_have_bounds(world, value):
    task = world.publish()
    with ape.reverts("tasks: amount out of range"):
        world.tasks.fund(task, value=value, sender=world.stranger)


def test_a_task_that_is_over_takes_no_funds(world):
    task = world.publish()
    world.tasks.cancel(task, sender=world.publisher)
    with ape.reverts("tasks: not open"):
        world.tasks.fund(task, value=1, sender=world.stranger)


def test_what_a_skipped_round_did_not_pay_rolls_on(world):
    task = world.start(count=2, rounds=2)
    world.skip_round(task, 1)
    assert world.rounds.get_round(task, 2).pool == PARAMETERS["reward"]


def test_the_platform_takes_its_part_of_an_aggregated_round_only(world):
    platform = world.stranger
    task = world.start(count=2, rounds=3, platform=platform.address, platform_share=2**20 // 10)
    world.skip_round(task, 1)
    assert world.tasks.claimable(task, platform) == 0
    pool = world.rounds.get_round(task, 2).pool
    fee = pool * (2**20 // 10) >> 20
    receipt = world.play_round(task, 2, world.hospitals[:2])
    assert world.tasks.claimable(task, platform) == fee
    assert world.tasks.claimable(task, world.hospitals[0]) == (pool - fee) // 2
    (settled,) = receipt.decode_logs(world.tasks.Settled)
    account = world.tasks.get_account(task)
    assert (settled.pool, settled.paid, settled.platform) == (pool, account.paid, fee)
    assert account.platform == fee
    world.tasks.claim(task, sender=platform)

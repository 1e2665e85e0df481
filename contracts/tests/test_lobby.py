"""Joining, the lobby and its end."""

import ape
import pytest
from world import (
    ABORT,
    ABORTED,
    INVITED,
    JOIN_SECONDS,
    LOBBY,
    RUNNING,
    START,
    WAIT,
    compute_stake,
)


def test_join_takes_the_stake_and_lists_the_participant(world):
    task = world.publish()
    before = world.tasks.balance
    world.join(task, world.hospitals[0], samples=10)
    participant = world.tasks.get_participant(task, world.hospitals[0])
    assert participant.stake == compute_stake(10) == world.tasks.balance - before
    assert participant.samples == 10
    assert participant.active_from == 1
    assert world.tasks.get_participants(task) == [world.hospitals[0]]


def test_a_larger_stake_than_needed_is_kept_whole(world):
    task = world.publish()
    world.join(task, world.hospitals[0], samples=10, value=compute_stake(10) + 5)
    assert world.tasks.get_participant(task, world.hospitals[0]).stake == compute_stake(10) + 5


def test_samples_not_covered_by_stake_are_refused(world):
    task = world.publish()
    with ape.reverts("tasks: samples not covered by stake"):
        world.join(task, world.hospitals[0], samples=10, value=compute_stake(10) - 1)


@pytest.mark.parametrize("samples", [0, 2**64])
def test_samples_out_of_range_are_refused(world, samples):
    task = world.publish()
    with ape.reverts("tasks: samples out of range"):
        world.join(task, world.hospitals[0], samples=samples, value=compute_stake(1))


def test_a_stake_that_could_overflow_a_weight_is_refused(world):
    task = world.publish()
    with ape.reverts("tasks: stake out of range"):
        world.join(task, world.hospitals[0], value=2**100 + 1)


def test_the_largest_stake_is_taken(world):
    task = world.publish(stake_per_sample=2**35)
    world.join(task, world.hospitals[0], samples=2**64 - 1, value=2**100)
    assert world.tasks.get_participant(task, world.hospitals[0]).stake == 2**100


def test_joining_twice_is_refused(world):
    task = world.publish()
    world.join(task, world.hospitals[0])
    with ape.reverts("tasks: already joined"):
        world.join(task, world.hospitals[0])


def test_a_stranger_is_refused_where_there_is_an_allowlist(world):
    task = world.publish(admission=INVITED, invited=world.hospitals[:2])
    with ape.reverts("tasks: not invited"):
        world.join(task, world.stranger)


def test_the_invited_are_let_in(world):
    task = world.publish(admission=INVITED, invited=world.hospitals[:2])
    world.join(task, world.hospitals[1])
    assert world.tasks.get_participants(task) == [world.hospitals[1]]


def test_a_task_that_does_not_exist_cannot_be_joined(world):
    with ape.reverts("tasks: not open"):
        world.join(world.tasks.task_count() + 1, world.hospitals[0])


def test_a_full_task_cannot_be_joined(world):
    task = world.start(count=2)
    with ape.reverts("tasks: full"):
        world.join(task, world.hospitals[5])


@pytest.mark.parametrize("rounds", [1])
def test_a_finished_task_cannot_be_joined(world, rounds):
    task = world.start(count=2, rounds=rounds)
    world.play_round(task, 1, world.hospitals[:2])
    with ape.reverts("tasks: not open"):
        world.join(task, world.hospitals[5])


def test_the_last_free_place_starts_the_task(world):
    task = world.publish(max_clients=2)
    world.join(task, world.hospitals[0])
    assert world.tasks.get_task(task).state == LOBBY
    receipt = world.join(task, world.hospitals[1])
    assert world.tasks.get_task(task).state == RUNNING
    assert [event.participants for event in receipt.decode_logs(world.tasks.Started)] == [2]
    assert world.rounds.get_round(task, 1).drawn == 0b11


def test_the_publisher_may_start_early_with_enough_participants(world):
    task = world.publish()
    for hospital in world.hospitals[:2]:
        world.join(task, hospital)
    world.tasks.start(task, sender=world.publisher)
    assert world.tasks.get_task(task).state == RUNNING


def test_nobody_else_may_start_early(world):
    task = world.publish()
    for hospital in world.hospitals[:2]:
        world.join(task, hospital)
    with ape.reverts("tasks: not due"):
        world.tasks.start(task, sender=world.keeper)


def test_anybody_may_start_a_lobby_whose_time_is_over(world):
    task = world.publish()
    for hospital in world.hospitals[:2]:
        world.join(task, hospital)
    assert tuple(world.tasks.next_action(task)) == (WAIT, 0)
    world.advance(JOIN_SECONDS)
    assert tuple(world.tasks.next_action(task)) == (START, 0)
    world.tasks.start(task, sender=world.keeper)
    assert world.tasks.get_task(task).state == RUNNING
    assert world.tasks.get_task(task).round == 1


def test_too_few_participants_cannot_start(world):
    task = world.publish()
    world.join(task, world.hospitals[0])
    world.advance(JOIN_SECONDS)
    with ape.reverts("tasks: too few participants"):
        world.tasks.start(task, sender=world.publisher)


def test_a_running_task_cannot_start_again(world):
    task = world.start()
    with ape.reverts("tasks: not in the lobby"):
        world.tasks.start(task, sender=world.publisher)


def test_a_lobby_that_never_filled_may_be_aborted_by_anybody(world):
    task = world.publish()
    world.join(task, world.hospitals[0])
    world.advance(JOIN_SECONDS)
    assert tuple(world.tasks.next_action(task)) == (ABORT, 0)
    world.tasks.abort(task, sender=world.keeper)
    assert world.tasks.get_task(task).state == ABORTED
    assert tuple(world.tasks.next_action(task)) == (WAIT, 0)


def test_a_stranger_cannot_abort_a_lobby_that_still_waits(world):
    task = world.publish()
    with ape.reverts("tasks: too early to abort"):
        world.tasks.abort(task, sender=world.stranger)


def test_a_stranger_cannot_abort_a_lobby_that_may_start(world):
    task = world.publish()
    for hospital in world.hospitals[:2]:
        world.join(task, hospital)
    world.advance(JOIN_SECONDS)
    with ape.reverts("tasks: too early to abort"):
        world.tasks.abort(task, sender=world.stranger)


def test_the_publisher_may_call_off_a_lobby(world):
    task = world.publish()
    world.tasks.cancel(task, sender=world.publisher)
    assert world.tasks.get_task(task).state == ABORTED


def test_joining_a_running_task_counts_from_the_next_round(world):
    task = world.publish()
    for hospital in world.hospitals[:2]:
        world.join(task, hospital)
    world.tasks.start(task, sender=world.publisher)
    late = world.hospitals[2]
    world.join(task, late)
    assert world.rounds.get_round(task, 1).drawn == 0b11
    with ape.reverts("rounds: not active in that round"):
        world.commit(task, 1, late)
    world.play_round(task, 1, world.hospitals[:2])
    assert world.rounds.get_round(task, 2).drawn == 0b111
    world.commit(task, 2, late)


def test_joining_in_the_last_round_is_refused(world):
    task = world.publish(rounds=1)
    for hospital in world.hospitals[:2]:
        world.join(task, hospital)
    world.tasks.start(task, sender=world.publisher)
    with ape.reverts("tasks: last round is running"):
        world.join(task, world.hospitals[2])

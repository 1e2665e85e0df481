"""The second in which each period ends: a call just before it, and one in a block at it.

A period ends at its `ends` second, exclusive; what waits for the end is taken from that second on.
Each refused call is in a block of its own, at the second that was set.
"""

import ape
import pytest
from world import (
    ABORT,
    ABORTED,
    CLOSE,
    CLOSE_TIMEOUT_SECONDS,
    COMMIT_SECONDS,
    EXTEND,
    JOIN_SECONDS,
    ONE,
    REVEAL_SECONDS,
    SKIPPED,
    START,
    WAIT,
)


@pytest.fixture
def refused_at(world):
    """Refuse a call in a block at that second exactly."""

    def refuse(timestamp, reason, method, *arguments, **options):
        world.set_next(timestamp)
        with ape.reverts(reason):
            method(*arguments, **options)
        assert world.now == timestamp

    return refuse


@pytest.fixture
def taken_at(world):
    """Take a call in a block at that second exactly."""

    def take(timestamp, method, *arguments, **options):
        world.set_next(timestamp)
        assert method(*arguments, **options).timestamp == timestamp

    return take


@pytest.fixture
def action_at(world):
    """Return what a keeper is told in a block at that second, which is then forgotten."""

    def ask(timestamp, task):
        with world.chain.isolate():
            world.advance_to(timestamp)
            return world.tasks.next_action(task)[0]

    return ask


# -- the lobby -------------------------------------------------------------------------------------


def test_a_lobby_lets_people_in_until_its_end(world, taken_at, refused_at):
    task = world.publish()
    ends = world.tasks.get_task(task).join_ends
    taken_at(ends - 1, world.join, task, world.hospitals[0])
    refused_at(ends, "tasks: lobby is over", world.join, task, world.hospitals[1])


def test_anybody_starts_a_lobby_from_its_end_on(world, taken_at, refused_at, action_at):
    task = world.publish()
    for hospital in world.hospitals[:2]:
        world.join(task, hospital)
    ends = world.tasks.get_task(task).join_ends
    assert [action_at(second, task) for second in (ends - 1, ends)] == [WAIT, START]
    refused_at(ends - 1, "tasks: not due", world.tasks.start, task, sender=world.keeper)
    taken_at(ends, world.tasks.start, task, sender=world.keeper)


def test_a_lobby_with_too_few_is_aborted_from_its_end_on(world, taken_at, refused_at, action_at):
    task = world.publish()
    world.join(task, world.hospitals[0])
    ends, abort = world.tasks.get_task(task).join_ends, world.tasks.abort
    assert [action_at(second, task) for second in (ends - 1, ends)] == [WAIT, ABORT]
    refused_at(ends - 1, "tasks: too early to abort", abort, task, sender=world.keeper)
    taken_at(ends, abort, task, sender=world.keeper)


def test_a_model_lasts_to_the_second_as_long_as_its_first_round_may(world, taken_at, refused_at):
    """Join, four times commit and reveal, and the day in which the last close may come."""
    needed = JOIN_SECONDS + 4 * (COMMIT_SECONDS + REVEAL_SECONDS) + CLOSE_TIMEOUT_SECONDS
    world.chain.mine()
    last = world.now + 1_000
    model = world.declare(world.make_model(), retention_seconds=1_000 + needed)
    terms = {"model": model, "on_failed_quorum": EXTEND, "max_extensions": 3}
    world.set_next(last)
    world.publish(**terms)
    assert world.now == last
    refused_at(last + 1, "rounds: model expires too soon", world.publish, **terms)


# -- a round ---------------------------------------------------------------------------------------


def test_commitments_are_taken_until_their_period_ends(world, taken_at, refused_at):
    task = world.start(count=3)
    ends = world.rounds.get_round(task, 1).commit_ends
    taken_at(ends - 1, world.commit, task, 1, world.hospitals[0])
    over = "rounds: commit period is over"
    refused_at(ends, over, world.commit, task, 1, world.hospitals[1], value=2)


@pytest.fixture
def committed(world):
    """A round with two commitments of three, so that its reveals have not been opened early."""
    task = world.start(count=3)
    world.commit_all(task, 1, world.hospitals[:2])
    return task


def test_reveals_are_taken_from_the_end_of_the_commitments_on(
    world, committed, taken_at, refused_at
):
    begins = world.rounds.get_round(committed, 1).commit_ends
    early = "rounds: commit period is running"
    refused_at(begins - 1, early, world.reveal, committed, 1, world.hospitals[0])
    taken_at(begins, world.reveal, committed, 1, world.hospitals[0])


def test_reveals_are_taken_until_their_period_ends(world, committed, taken_at, refused_at):
    ends = world.rounds.get_round(committed, 1).reveal_ends
    taken_at(ends - 1, world.reveal, committed, 1, world.hospitals[0])
    over = "rounds: reveal period is over"
    refused_at(ends, over, world.reveal, committed, 1, world.hospitals[1])


@pytest.mark.parametrize("commitments", [1, 2])
def test_a_round_is_closed_from_the_second_on_when_it_is_due(
    world, taken_at, refused_at, action_at, commitments
):
    """Due is the end of the commitments where they are too few, else the end of the reveals."""
    task = world.start(count=3)
    world.commit_all(task, 1, world.hospitals[:commitments])
    opened = world.rounds.get_round(task, 1)
    due = opened.commit_ends if commitments == 1 else opened.reveal_ends
    assert [action_at(second, task) for second in (due - 1, due)] == [WAIT, CLOSE]
    refused_at(due - 1, "rounds: not due", world.close, task, 1)
    assert not world.rounds.is_due(task)
    taken_at(due, world.close, task, 1)
    assert world.rounds.get_round(task, 1).state == SKIPPED


def test_a_round_is_aborted_a_day_after_it_was_due(world, committed, taken_at, refused_at):
    timeout = world.rounds.get_round(committed, 1).reveal_ends + CLOSE_TIMEOUT_SECONDS
    early, abort = "tasks: too early to abort", world.tasks.abort
    refused_at(timeout - 1, early, abort, committed, sender=world.stranger)
    taken_at(timeout, abort, committed, sender=world.stranger)


# -- after a round ---------------------------------------------------------------------------------


def test_reports_are_taken_until_the_evaluation_ends(world, taken_at, refused_at):
    task = world.start(count=2)
    world.play_round(task, 1, world.hospitals[:2])
    ends, report = world.rounds.get_evaluation_ends(task, 1), world.rounds.report
    taken_at(ends - 1, report, task, 1, 10, [ONE], sender=world.hospitals[0])
    over = "rounds: evaluation is over"
    refused_at(ends, over, report, task, 1, 10, [ONE], sender=world.hospitals[1])


def test_an_evaluation_is_asked_for_again_from_the_end_of_the_last_one_on(
    world, taken_at, refused_at
):
    task = world.start(count=2)
    world.play_round(task, 1, world.hospitals[:2])
    ends, request = world.rounds.get_evaluation_ends(task, 1), world.rounds.request_evaluation
    refused_at(ends - 1, "rounds: evaluation is running", request, task, 1, sender=world.publisher)
    taken_at(ends, request, task, 1, sender=world.publisher)
    again = world.rounds.get_evaluation_ends(task, 1)
    assert again == ends + COMMIT_SECONDS + REVEAL_SECONDS


def test_a_pause_is_ended_by_anybody_from_its_end_on(world, taken_at, refused_at, action_at):
    task = world.start(count=2, rounds=3)
    world.tasks.pause(task, sender=world.publisher)
    world.play_round(task, 1, world.hospitals[:2])
    ends, abort = world.tasks.get_task(task).pause_ends, world.tasks.abort
    assert [action_at(second, task) for second in (ends - 1, ends)] == [WAIT, ABORT]
    refused_at(ends - 1, "tasks: too early to abort", abort, task, sender=world.stranger)
    taken_at(ends, abort, task, sender=world.stranger)
    assert world.tasks.get_task(task).state == ABORTED

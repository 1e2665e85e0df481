"""Late updates: made for an earlier round, discounted, once."""

import ape
import pytest
from world import AGGREGATED, ONE, SKIPPED


@pytest.fixture
def second(world):
    """In round 2; the third hospital missed round 1, for which it had been drawn."""
    task = world.start(count=3, rounds=6, max_staleness=2, staleness_discount=ONE // 2)
    world.commit_all(task, 1, world.hospitals[:2])
    world.advance_to(world.rounds.get_round(task, 1).commit_ends)
    for hospital in world.hospitals[:2]:
        world.reveal(task, 1, hospital)
    world.close(task, 1)
    return task


def test_a_late_update_counts_by_its_discount(world, second):
    late = world.hospitals[2]
    assert world.get_base(second, 1) != world.get_base(second, 2)
    world.commit(second, 2, late, origin=1, value=3)
    world.commit_all(second, 2, world.hospitals[:2])
    for hospital in world.hospitals[:3]:
        world.reveal(second, 2, hospital)
    (record,) = world.close(second, 2).decode_logs(world.rounds.Aggregated)
    assert record.origins == [2, 2, 1]
    assert record.raw_weights == [10 * ONE, 10 * ONE, 5 * ONE]
    assert world.tasks.claimable(second, late) > 0
    submission = world.rounds.get_submission(second, 2, late)
    assert (submission.origin, submission.samples) == (1, 10)


def test_the_base_of_a_late_update_must_stay_readable_too(world, second):
    data = world.shelf.blobs[world.get_base(second, 1)]
    world.declare(data, retention_seconds=86_400)
    with ape.reverts("rounds: model expires too soon"):
        world.commit(second, 2, world.hospitals[2], origin=1)
    world.commit(second, 2, world.hospitals[0])
    world.declare(data)
    world.commit(second, 2, world.hospitals[2], origin=1)


def test_each_round_of_delay_discounts_again(world, second):
    world.skip_round(second, 2)
    world.commit(second, 3, world.hospitals[2], origin=1)
    world.commit_all(second, 3, world.hospitals[:2])
    for hospital in world.hospitals[:3]:
        world.reveal(second, 3, hospital)
    (record,) = world.close(second, 3).decode_logs(world.rounds.Aggregated)
    assert record.raw_weights[2] == 10 * ONE // 4


def test_too_late_is_refused(world, second):
    for round in (2, 3):
        world.skip_round(second, round)
    with ape.reverts("rounds: origin out of range"):
        world.commit(second, 4, world.hospitals[2], origin=1)


def test_a_task_without_staleness_takes_nothing_late(world):
    task = world.start(count=2)
    world.skip_round(task, 1)
    with ape.reverts("rounds: origin out of range"):
        world.commit(task, 2, world.hospitals[0], origin=1)


@pytest.mark.parametrize("origin", [3, 2**255])
def test_no_update_comes_from_the_future(world, second, origin):
    with ape.reverts("rounds: origin out of range"):
        world.rounds.commit(second, 2, origin, b"\1" * 32, sender=world.hospitals[2])


def test_nothing_comes_from_before_the_first_round(world):
    task = world.start(count=2, max_staleness=8)
    with ape.reverts("rounds: not active in that round"):
        world.rounds.commit(task, 1, 0, b"\1" * 32, sender=world.hospitals[0])


def test_who_has_answered_a_round_does_not_answer_again(world, second):
    with ape.reverts("rounds: already answered"):
        world.commit(second, 2, world.hospitals[0], origin=1)


def test_a_late_answer_is_given_once(world, second):
    late = world.hospitals[2]
    world.commit(second, 2, late, origin=1)
    world.commit(second, 2, world.hospitals[0])
    world.advance_to(world.rounds.get_round(second, 2).commit_ends)
    world.reveal(second, 2, late)
    world.advance_to(world.rounds.get_round(second, 2).reveal_ends)
    world.close(second, 2)
    with ape.reverts("rounds: already answered"):
        world.commit(second, 3, late, origin=1)
    world.commit(second, 3, late, origin=2)


def test_a_commitment_holds_to_the_origin_that_it_was_made_with(world, second):
    late = world.hospitals[2]
    world.commit(second, 2, late, origin=1)
    world.commit(second, 2, world.hospitals[0])
    world.advance_to(world.rounds.get_round(second, 2).commit_ends)
    with ape.reverts("rounds: differs from the commitment"):
        world.reveal(second, 2, late, origin=2)
    world.reveal(second, 2, late)


def test_one_commitment_a_round_whatever_its_origin(world, second):
    world.commit(second, 2, world.hospitals[2], origin=1)
    with ape.reverts("rounds: already committed"):
        world.commit(second, 2, world.hospitals[2])


def test_who_was_not_drawn_has_nothing_to_send_late(world):
    task = world.start(count=4, max_staleness=1, fraction_fit=ONE // 2)
    (other, *_) = [each for each in world.hospitals[:4] if not world.rounds.is_drawn(task, 1, each)]
    world.skip_round(task, 1)
    with ape.reverts("rounds: not drawn"):
        world.commit(task, 2, other, origin=1)


def test_a_round_of_updates_that_count_for_nothing_is_skipped(world):
    task = world.start(count=2, rounds=3, max_staleness=1, staleness_discount=0)
    world.skip_round(task, 1)
    for hospital in world.hospitals[:2]:
        world.commit(task, 2, hospital, origin=1)
    for hospital in world.hospitals[:2]:
        world.reveal(task, 2, hospital)
    receipt = world.close(task, 2)
    (event,) = receipt.decode_logs(world.rounds.RoundSkipped)
    assert (event.committed, event.revealed) == (2, 2)
    assert world.rounds.get_round(task, 2).state == SKIPPED
    assert world.tasks.get_account(task).paid == 0
    assert world.tasks.get_participant(task, world.hospitals[0]).stake > 0
    world.play_round(task, 3, world.hospitals[:2])
    assert world.rounds.get_round(task, 3).state == AGGREGATED

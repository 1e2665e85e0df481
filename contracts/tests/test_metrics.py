"""Self-reported metrics: from participants, once, about rounds that made a model."""

import ape
import pytest
from world import COMMIT_SECONDS, ONE, REVEAL_SECONDS


@pytest.fixture
def played(world):
    task = world.start(count=2)
    world.play_round(task, 1, world.hospitals[:2])
    return task


def test_the_mean_weighs_by_evaluation_samples(world, played):
    world.rounds.report(played, 1, 10, [ONE, -ONE], sender=world.hospitals[0])
    world.rounds.report(played, 1, 30, [3 * ONE], sender=world.hospitals[1])
    totals, means = world.rounds.get_metrics(played, 1)
    assert totals.reports == 2
    assert list(totals.samples)[:3] == [40, 10, 0]
    assert list(totals.sums)[:3] == [100 * ONE, -10 * ONE, 0]
    assert list(means) == [100 * ONE // 40, -ONE, 0, 0, 0, 0, 0, 0]
    assert world.rounds.has_reported(played, 1, world.hospitals[0])
    assert not world.rounds.has_reported(played, 1, world.stranger)


def test_a_strangers_metrics_are_refused(world, played):
    with ape.reverts("rounds: not a participant"):
        world.rounds.report(played, 1, 10, [ONE], sender=world.stranger)


def test_reporting_twice_is_refused(world, played):
    world.rounds.report(played, 1, 10, [ONE], sender=world.hospitals[0])
    with ape.reverts("rounds: already reported"):
        world.rounds.report(played, 1, 10, [ONE], sender=world.hospitals[0])


def test_joining_again_does_not_let_anybody_report_twice(world):
    task = world.start(count=2, rounds=3)
    hospital = world.hospitals[0]
    world.play_round(task, 1, world.hospitals[:2])
    world.rounds.report(task, 1, 10, [ONE], sender=hospital)
    world.tasks.leave(task, sender=hospital)
    world.join(task, hospital)
    with ape.reverts("rounds: already reported"):
        world.rounds.report(task, 1, 10, [ONE], sender=hospital)


@pytest.mark.parametrize("round", [0, 2, 3])
def test_a_round_without_a_model_takes_no_metrics(world, played, round):
    with ape.reverts("rounds: no evaluation requested"):
        world.rounds.report(played, round, 10, [ONE], sender=world.hospitals[0])


@pytest.mark.parametrize("samples", [0, 2**64])
def test_samples_out_of_range_are_refused(world, played, samples):
    with ape.reverts("rounds: samples out of range"):
        world.rounds.report(played, 1, samples, [ONE], sender=world.hospitals[0])


def test_no_metrics_are_refused(world, played):
    with ape.reverts("rounds: no metrics"):
        world.rounds.report(played, 1, 1, [], sender=world.hospitals[0])


@pytest.mark.parametrize("value", [2**127 + 1, -(2**127) - 1])
def test_metrics_out_of_range_are_refused(world, played, value):
    with ape.reverts("rounds: metric out of range"):
        world.rounds.report(played, 1, 1, [value], sender=world.hospitals[0])


def test_metrics_at_their_bounds_are_taken(world, played):
    largest = 2**127
    world.rounds.report(played, 1, 2**64 - 1, [largest, -largest] * 4, sender=world.hospitals[0])
    _, means = world.rounds.get_metrics(played, 1)
    assert list(means) == [largest, -largest] * 4


def test_nine_metrics_are_refused(world, played):
    with pytest.raises(Exception):  # noqa: B017 the ABI decoder reverts without a reason
        world.rounds.report(played, 1, 1, [1] * 9, sender=world.hospitals[0])


# -- when evaluation is asked for ------------------------------------------------------------------


def test_every_so_manieth_aggregation_and_the_last_are_evaluated(world):
    task = world.start(count=2, rounds=4, evaluate_every=2)
    world.skip_round(task, 1)
    requested = []
    for round in (2, 3, 4):
        receipt = world.play_round(task, round, world.hospitals[:2])
        events = receipt.decode_logs(world.rounds.EvaluationRequested)
        requested += [event.round for event in events]
        if events:
            assert events[0].ends == receipt.timestamp + COMMIT_SECONDS + REVEAL_SECONDS
            assert events[0].model == world.rounds.get_round(task, round).model
            assert world.rounds.get_evaluation_ends(task, round) == events[0].ends
    assert requested == [3, 4]


def test_a_task_may_ask_for_no_evaluations_and_its_publisher_for_one(world):
    task = world.start(count=2, evaluate_every=0)
    world.play_round(task, 1, world.hospitals[:2])
    with ape.reverts("rounds: no evaluation requested"):
        world.rounds.report(task, 1, 10, [ONE], sender=world.hospitals[0])
    world.rounds.request_evaluation(task, 1, sender=world.publisher)
    world.rounds.report(task, 1, 10, [ONE], sender=world.hospitals[0])
    with ape.reverts("rounds: evaluation is running"):
        world.rounds.request_evaluation(task, 1, sender=world.publisher)


def test_a_late_report_is_refused_until_it_is_asked_for_again(world, played):
    world.advance_to(world.rounds.get_evaluation_ends(played, 1))
    with ape.reverts("rounds: evaluation is over"):
        world.rounds.report(played, 1, 10, [ONE], sender=world.hospitals[0])
    world.rounds.request_evaluation(played, 1, sender=world.publisher)
    world.rounds.report(played, 1, 10, [ONE], sender=world.hospitals[0])


def test_only_the_publisher_asks_and_only_about_a_model(world, played):
    with ape.reverts("rounds: not the publisher"):
        world.rounds.request_evaluation(played, 1, sender=world.stranger)
    with ape.reverts("rounds: round made no model"):
        world.rounds.request_evaluation(played, 2, sender=world.publisher)

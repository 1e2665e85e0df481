"""Self-reported metrics: from participants, once, about rounds that made a model."""

import ape
import pytest

ONE = 2**20


@pytest.fixture
def played(world):
    task = world.start(count=2)
    world.play_round(task, 1, world.hospitals[:2])
    return task


def test_the_mean_weighs_by_evaluation_samples(world, played):
    world.tasks.report(played, 1, 10, [ONE, -ONE], sender=world.hospitals[0])
    world.tasks.report(played, 1, 30, [3 * ONE], sender=world.hospitals[1])
    totals, means = world.tasks.get_metrics(played, 1)
    assert totals.reports == 2
    assert list(totals.samples)[:3] == [40, 10, 0]
    assert list(totals.sums)[:3] == [100 * ONE, -10 * ONE, 0]
    assert list(means) == [100 * ONE // 40, -ONE, 0, 0, 0, 0, 0, 0]
    assert world.tasks.has_reported(played, 1, world.hospitals[0])
    assert not world.tasks.has_reported(played, 1, world.stranger)


def test_a_strangers_metrics_are_refused(world, played):
    with ape.reverts("tasks: not a participant"):
        world.tasks.report(played, 1, 10, [ONE], sender=world.stranger)


def test_reporting_twice_is_refused(world, played):
    world.tasks.report(played, 1, 10, [ONE], sender=world.hospitals[0])
    with ape.reverts("tasks: already reported"):
        world.tasks.report(played, 1, 10, [ONE], sender=world.hospitals[0])


def test_joining_again_does_not_let_anybody_report_twice(world):
    task = world.start(count=2, rounds=3)
    hospital = world.hospitals[0]
    world.play_round(task, 1, world.hospitals[:2])
    world.tasks.report(task, 1, 10, [ONE], sender=hospital)
    world.tasks.leave(task, sender=hospital)
    world.join(task, hospital)
    with ape.reverts("tasks: already reported"):
        world.tasks.report(task, 1, 10, [ONE], sender=hospital)


@pytest.mark.parametrize("round", [0, 2, 3])
def test_a_round_without_a_model_takes_no_metrics(world, played, round):
    with ape.reverts("tasks: round made no model"):
        world.tasks.report(played, round, 10, [ONE], sender=world.hospitals[0])


@pytest.mark.parametrize("samples", [0, 2**64])
def test_samples_out_of_range_are_refused(world, played, samples):
    with ape.reverts("tasks: samples out of range"):
        world.tasks.report(played, 1, samples, [ONE], sender=world.hospitals[0])


def test_no_metrics_are_refused(world, played):
    with ape.reverts("tasks: no metrics"):
        world.tasks.report(played, 1, 1, [], sender=world.hospitals[0])


@pytest.mark.parametrize("value", [2**127 + 1, -(2**127) - 1])
def test_metrics_out_of_range_are_refused(world, played, value):
    with ape.reverts("tasks: metric out of range"):
        world.tasks.report(played, 1, 1, [value], sender=world.hospitals[0])


def test_metrics_at_their_bounds_are_taken(world, played):
    largest = 2**127
    world.tasks.report(played, 1, 2**64 - 1, [largest, -largest] * 4, sender=world.hospitals[0])
    _, means = world.tasks.get_metrics(played, 1)
    assert list(means) == [largest, -largest] * 4


def test_nine_metrics_are_refused(world, played):
    with pytest.raises(Exception):  # noqa: B017 the ABI decoder reverts without a reason
        world.tasks.report(played, 1, 1, [1] * 9, sender=world.hospitals[0])

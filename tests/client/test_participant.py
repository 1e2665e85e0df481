"""The participant against a chain in memory: whole tasks, refusals, and kills at every step."""

from steelyard.client.contracts import TaskState

from .conftest import make_task


def test_a_client_trains_every_round_and_is_paid(ledger, organisation, hospital) -> None:
    task = organisation.publish(make_task()).number
    summary = hospital.run(task, samples=50)
    assert summary.state is TaskState.FINISHED
    assert (summary.rounds, summary.submitted, summary.claimed) == (2, 2, 1000)

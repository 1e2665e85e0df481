"""Numbers that no contract takes: an error with a code, whichever call they are given to."""

import pytest

from steelyard.client.abi import check_number
from steelyard.client.audit import audit_round
from steelyard.client.contracts import Tasks
from steelyard.client.errors import ClientError
from steelyard.client.events import get_events
from steelyard.client.organisation import PublishedTask, list_applicants
from steelyard.client.registered import RegistryView
from steelyard.client.verdicts import Verdict

from .conftest import make_task, open_rpc

WRONG = [2**256, -1, "7", 1.5, True, None]
SOMEBODY = b"\x07" * 20


@pytest.mark.parametrize("number", WRONG)
def test_a_number_that_no_contract_takes_is_refused(number) -> None:
    with pytest.raises(ClientError, match=r"task is .*give a whole number") as caught:
        check_number("task", number)
    assert caught.value.code == "number_range"


@pytest.mark.parametrize(("number", "bits"), [(0, 256), (2**256 - 1, 256), (255, 8)])
def test_the_first_and_the_last_number_are_taken(number: int, bits: int) -> None:
    check_number("task", number, bits)
    with pytest.raises(ClientError, match="number_range"):
        check_number("task", 2**bits, bits)


def test_an_audit_of_what_cannot_be_knows_nothing_and_says_so(ledger, organisation) -> None:
    organisation.publish(make_task())
    for task, number in ((2**256, 1), (1, 2**256), (-1, 1), (1, -1)):
        report = audit_round(open_rpc(ledger), task, number)
        assert report.verdict is Verdict.UNKNOWN
        assert report.checks[-1].detail.startswith("number_range: ")


@pytest.mark.parametrize("number", [2**256, -1])
def test_no_call_lets_such_a_number_through(ledger, organisation, hospital, number) -> None:
    task, rpc = organisation.publish(make_task(max_clients=2)), open_rpc(ledger)
    registry, sent = RegistryView(rpc), len(ledger.seen)
    calls = [
        lambda: organisation.get_task(number),
        lambda: task.model(number),
        lambda: task.explain(number),
        lambda: task.request_evaluation(number),
        lambda: task.fund(number),
        lambda: next(PublishedTask(organisation, number).watch()),
        lambda: list_applicants(rpc, number),
        lambda: get_events(rpc, 1, round_number=number),
        lambda: Tasks(rpc).get_next_action(number),
        lambda: hospital.get_status(number),
        lambda: hospital.get_rounds(number),
        lambda: hospital.explain(number, 1),
        lambda: hospital.close_round(number),
        lambda: hospital.join(1, number),
        lambda: hospital.apply(number, "who"),
        lambda: hospital.claim(number),
        lambda: hospital.leave(number),
        lambda: registry.get_dataset(number),
        lambda: registry.get_publication(number),
        lambda: registry.get_access(number, SOMEBODY),
        lambda: registry.find_events("DatasetPublished", number),
    ]
    for call in calls:
        with pytest.raises(ClientError) as caught:
            call()
        assert caught.value.code == "number_range"
    assert len(ledger.seen) == sent

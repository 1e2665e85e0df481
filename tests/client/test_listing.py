"""What lists and `status` show, asked from Python; the same as the commands say."""

import re
from pathlib import Path

import pytest

import steelyard.client as package
from steelyard.client import doctor
from steelyard.client.errors import ClientError
from steelyard.client.listing import OpenTask, Standing, list_rounds, list_tasks
from steelyard.client.organisation import Organisation, PublishedTask
from steelyard.client.participant import Client
from steelyard.client.records import RoundState, TaskState

from .conftest import make_task, open_rpc

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text("utf-8")
TABLES = PAGE[PAGE.index("| The organisation |") : PAGE.index("A task as TOML")]
KINDS = {"task": PublishedTask, "org": Organisation, "client": Client}


def test_the_newest_tasks_are_listed_first(ledger, organisation) -> None:
    for name in ("first", "second", "third"):
        organisation.publish(make_task(name=name))
    assert [info.name for info in organisation.list_tasks()] == ["third", "second", "first"]
    assert [info.number for info in list_tasks(open_rpc(ledger), most=2)] == [3, 2]


def test_a_member_sees_what_it_may_join_or_is_in(organisation, hospital) -> None:
    organisation.publish(make_task(name="open", max_clients=2))
    closed = organisation.publish(make_task(name="invited", admission="invited", max_clients=2))
    organisation.publish(make_task(name="applicants", admission="applicants"))
    assert [one.info.name for one in hospital.list_tasks()] == ["applicants", "open"]
    hospital.join(1, 50)
    closed.invite(hospital.address)
    assert [(one.info.number, one.is_joined) for one in hospital.list_tasks()] == [
        (3, False),
        (2, False),
        (1, True),
    ]
    closed.cancel()
    assert [one.info.number for one in hospital.list_tasks()] == [3, 1]
    assert isinstance(hospital.list_tasks(most=1)[0], OpenTask)


def test_a_member_sees_where_it_stands(organisation, hospital) -> None:
    task = organisation.publish(make_task(stake_per_sample=2, max_clients=2))
    task.sponsor(hospital.address, stake=30)
    stranger = Standing(1, TaskState.LOBBY, 0, False, True, False, 0.125, 0, 0, 30, 0)
    assert hospital.get_status(1) == stranger
    hospital.join(1, 50)
    task.start()
    told = hospital.get_status(1)
    assert (told.joined, told.samples, told.stake, told.sponsored) == (True, 50, 100, 30)
    assert (told.round, told.drawn, told.committed, told.revealed) == (1, True, False, False)
    assert hospital.run(1).submitted == 2
    told = hospital.get_status(1)
    assert (told.state, told.committed, told.revealed) == (TaskState.FINISHED, True, True)
    assert told.reputation > 0.125


def test_rounds_are_told_to_whoever_asks(ledger, organisation, hospital) -> None:
    task = organisation.publish(make_task())
    assert task.get_rounds() == []
    hospital.run(1, samples=50)
    rounds = task.get_rounds()
    assert [info.state for info in rounds] == [RoundState.AGGREGATED] * 2
    assert rounds == hospital.get_rounds(1) == list_rounds(open_rpc(ledger), 1)
    told = task.explain(2)
    assert (told.task, told.round, told.state) == (1, 2, RoundState.AGGREGATED)
    assert told == hospital.explain(1, 2)


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (lambda client: client.get_status(9), "task_unknown"),
        (lambda client: client.get_rounds(9), "task_unknown"),
        (lambda client: client.explain(9, 1), "task_unknown"),
        (lambda client: client.explain(1, 3), "round_unknown"),
    ],
)
def test_what_is_not_there_is_an_error_with_a_code(organisation, hospital, ask, code) -> None:
    organisation.publish(make_task())
    with pytest.raises(ClientError) as caught:
        ask(hospital)
    assert caught.value.code == code


def test_a_node_cannot_make_a_list_endless(ledger, organisation) -> None:
    organisation.publish(make_task())
    ledger.agreement.view_task_count = lambda: [2**200]
    real = ledger.agreement.view_get_task
    ledger.agreement.view_get_task = lambda task: real(1)
    assert len(organisation.list_tasks()) == 100


# -- the page --------------------------------------------------------------------------------------
def test_all_that_the_page_calls_in_python_exists() -> None:
    called = set(re.findall(r"\b(task|org|client)\.(\w+)\(", TABLES))
    assert len(called) > 30
    missing = [call for call in called if not hasattr(KINDS[call[0]], call[1])]
    assert not missing
    for name in ("list_rounds", "explain_round", "list_tasks", "Rpc"):
        assert f"{name}(" in TABLES
        assert name in package.__all__
    assert callable(doctor.examine)


def test_no_call_of_the_page_lacks_its_python() -> None:
    rows = [line for line in TABLES.splitlines() if line.startswith("|")]
    assert len(rows) > 25
    assert not [row for row in rows if row.rstrip().endswith("| |")]

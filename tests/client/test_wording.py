"""What is said is what a person can act on, in the words of where it is said."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steelyard.chain.types import Hash
from steelyard.client.abi import Event
from steelyard.client.audit import audit_round
from steelyard.client.commands import task, tasks
from steelyard.client.errors import ClientError
from steelyard.client.evidence import audit_evidence
from steelyard.client.organisation import Organisation
from steelyard.client.records import Wish
from steelyard.client.registry import Registry
from steelyard.client.rpc import Rpc
from steelyard.client.verdicts import Report, Verdict
from steelyard.client.watching import Progress

from .conftest import ORGANISATION, make_task, open_account, open_rpc
from .ledger import Ledger


def test_a_round_that_was_never_opened_is_told_from_one_in_progress(
    ledger: Ledger, organisation: Organisation
) -> None:
    organisation.publish(make_task())
    (check,) = audit_round(open_rpc(ledger), 1, 9).checks
    assert check.verdict is Verdict.UNKNOWN
    assert check.detail == "round 9 was never opened: task 1 is in round 0 of 2 (lobby)"


@contextmanager
def nobody() -> Iterator[Rpc]:
    rpc = Rpc("http://127.0.0.1:1", sleep=lambda seconds: None)
    yield rpc
    rpc.close()


@pytest.mark.parametrize(
    "audit", [lambda rpc: audit_round(rpc, 1, 1), lambda rpc: audit_evidence(rpc, Hash(bytes(32)))]
)
def test_every_audit_names_the_code_of_a_node_that_is_away(audit) -> None:
    with nobody() as rpc:
        report: Report = audit(rpc)
    assert report.verdict is Verdict.UNKNOWN
    assert report.checks[0].detail.startswith("node_unreachable: no node answered")


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (Wish.PAUSE, "pauses after this round"),
        (Wish.NOTHING, "a pause was taken back"),
        (Wish.CANCEL, "ends after this round"),
        (7, "wish 7"),
    ],
)
def test_a_wish_is_told_in_words(wish: int, said: str) -> None:
    values = {"task": 1, "round": 2, "wish": wish}
    told = str(Progress().add(Event("Wished", values, 5, Hash(bytes(32)), 0)))
    assert "round 2" in told
    assert said in told


def test_a_task_with_a_pending_pause_shows_its_round_too(
    ledger: Ledger, organisation: Organisation, hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = organisation.publish(make_task())
    hospital.join(1, 30)
    published.pause()
    monkeypatch.setattr(tasks, "open_nodes", lambda urls: open_rpc(ledger))
    shown = CliRunner().invoke(task, ["show", "1"]).stdout
    assert "round           1 of 2\n" in shown
    assert "then            pause, when this round has ended\n" in shown


@pytest.mark.parametrize(
    ("origin", "said"), [({}, "give a model file"), ({"task": 1, "round_number": 1}, "round 1 of")]
)
def test_a_model_that_nobody_named_is_told_from_one_that_was_never_made(
    ledger: Ledger, organisation: Organisation, tmp_path: Path, origin: dict[str, int], said: str
) -> None:
    organisation.publish(make_task())
    with (
        open_account(Registry, ledger, ORGANISATION, tmp_path / "registry") as registry,
        pytest.raises(ClientError, match=f"model_unknown: {said}") as caught,
    ):
        registry.publish_model(**origin)
    assert "task 0" not in caught.value.message

"""The commands about people and the course of a task, each once in the good way and once not."""

import functools
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from steelyard.chain.errors import SteelyardError
from steelyard.client.commands import options
from steelyard.client.keys import create_key
from steelyard.client.organisation import Organisation
from steelyard.client.outbox import Clock
from steelyard.client.participant import Client
from steelyard.client.records import TaskState

from .conftest import HOSPITAL, ORGANISATION, URL, open_rpc
from .ledger import Ledger

PASSWORD = "correct horse"
SITE_ADDRESS = HOSPITAL.address
OTHER = "0x" + "77" * 20
TASK = """
name = "heart"
model = "model.npz"
rounds = 2
min_clients = 1
max_clients = 3
round_seconds = 60
join_seconds = 60
reward = "2"
base_stake = "1"
bond = "1"
admission = "applicants"
"""
COIN = 10**18


class Desk:
    """An organisation's and a hospital's keys, a task file, and a chain in memory."""

    def __init__(self, directory: Path, ledger: Ledger) -> None:
        self.directory, self.ledger = directory, ledger

    def ask(self, line: str, key: str | None = None) -> tuple[int, dict]:
        """Run one command; return its exit code and its JSON. Raises SteelyardError."""
        part, *words = line.split()
        app = getattr(importlib.import_module("steelyard.client.commands"), part)
        if key is not None:
            state = self.directory / f"{key}.d"
            words += ["--key", str(self.directory / key), "--state", str(state)]
        done = CliRunner().invoke(app, [*words, "--node", URL, "--json"])
        if isinstance(done.exception, SteelyardError):
            raise done.exception
        assert done.stdout, done.output
        return done.exit_code, json.loads(done.stdout.splitlines()[-1])

    def org(self, line: str) -> tuple[int, dict]:
        return self.ask(f"task {line}", "org.key")

    def site(self, line: str) -> tuple[int, dict]:
        return self.ask(f"client {line}", "site.key")

    def refuse(self, line: str, reason: str, key: str | None = "org.key") -> None:
        """The command ends with an error that says so."""
        with pytest.raises(SteelyardError, match=reason):
            self.ask(line, key)

    @property
    def task(self):
        return self.ledger.tasks[1]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    create_key(directory / "org.key", PASSWORD, bytes(ORGANISATION.key), scrypt_n=2**4)
    create_key(directory / "site.key", PASSWORD, bytes(HOSPITAL.key), scrypt_n=2**4)
    return directory


@pytest.fixture
def desk(keys: Path, tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A published task, in its lobby."""
    monkeypatch.setenv("STEELYARD_PASSWORD", PASSWORD)
    clock = Clock(lambda: ledger.now, ledger.sleep)
    monkeypatch.setattr(options, "Rpc", lambda nodes: open_rpc(ledger))
    for kind in (Organisation, Client):
        monkeypatch.setattr(options, kind.__name__, functools.partial(kind, clock=clock))
    for name in ("org.key", "site.key"):
        (tmp_path / name).write_bytes((keys / name).read_bytes())
    (tmp_path / "task.toml").write_text(TASK)
    np.savez(tmp_path / "model.npz", weight=np.zeros(4, np.float32))
    desk = Desk(tmp_path, ledger)
    assert desk.org(f"publish {tmp_path}/task.toml") == (0, {"task": 1})
    return desk


def join(desk: Desk, *, then_start: bool = False) -> None:
    """The hospital is invited and joins."""
    desk.org(f"invite 1 {SITE_ADDRESS}")
    desk.site("join 1 --samples 5")
    if then_start:
        desk.org("start 1")


# -- before it costs anything ----------------------------------------------------------------------
def test_check_previews_escrow_pool_stake_and_gas(desk: Desk) -> None:
    sent = len(desk.ledger.seen)
    code, told = desk.ask(f"task check {desk.directory}/task.toml")
    assert (code, told["ok"]) == (0, True)
    assert (told["pool"], told["stake_for_100_rows"]) == (str(COIN), str(COIN))
    reserve = int(told["parameters"]["close_reserve"])
    assert int(told["escrow"]) == 2 * COIN + 2 * reserve
    assert int(told["worst_cost"]) == int(told["escrow"]) + int(told["publish_fee_most"])
    assert (told["close_calls"], told["publish_gas"] > 0) == (1, True)
    assert told["warnings"] == ["claims of samples cost nothing, and weigh: set stake_per_sample"]
    assert told["bundle_files"] == {"steelyard.json": 32}
    assert len(desk.ledger.seen) == sent


def test_check_says_no_to_what_the_chain_would_refuse(desk: Desk) -> None:
    path = desk.directory / "bad.toml"
    path.write_text(TASK + 'rule = "multi_krum"\nbyzantine = 1\n')
    code, told = desk.ask(f"task check {path}")
    assert (code, told["ok"], told["error"]) == (1, False, "task_byzantine")


def test_check_says_no_to_a_task_that_outlives_its_model(desk: Desk) -> None:
    sent = len(desk.ledger.seen)
    path = desk.directory / "slow.toml"
    path.write_text(TASK.replace("join_seconds = 60", "join_seconds = 2592000"))
    code, told = desk.ask(f"task check {path}")
    assert (code, told["ok"], told["error"]) == (1, False, "task_retention")
    assert "join_seconds at most" in told["message"]
    desk.refuse(f"task publish {path}", "task_retention")
    assert len(desk.ledger.seen) == sent


# -- people ----------------------------------------------------------------------------------------
def test_an_applicant_is_listed_invited_and_uninvited(desk: Desk) -> None:
    assert desk.ask("task applicants 1") == (1, [])
    (desk.directory / "who.txt").write_text("St. Mary's\x1b[2J")
    assert desk.site(f"apply 1 --statement {desk.directory}/who.txt")[1]["applied"] is True
    code, (found,) = desk.ask("task applicants 1")
    assert (code, found["address"], found["text"]) == (0, SITE_ADDRESS, "St. Mary's\x1b[2J")
    assert (found["is_invited"], found["is_joined"]) == (False, False)
    assert desk.org(f"invite 1 {SITE_ADDRESS} {OTHER}")[1]["invited"] == [SITE_ADDRESS, OTHER]
    assert desk.org(f"uninvite 1 {OTHER}") == (0, {"task": 1, "uninvited": OTHER})
    assert desk.task.invited == {bytes.fromhex(SITE_ADDRESS[2:])}


def test_applications_and_invitations_that_cannot_be_are_refused(desk: Desk) -> None:
    desk.refuse(
        f"client apply 1 --statement {desk.directory}/none.txt", "statement_file", "site.key"
    )
    desk.site("apply 1")
    desk.refuse("client apply 1", "already applied", "site.key")
    desk.refuse(f"task invite 1 {OTHER}", "not the publisher", "site.key")
    desk.refuse("task invite 1 0x12", "task_allow")
    desk.refuse(f"task uninvite 1 {OTHER}", "not invited")
    desk.refuse("task applicants 9", "task_unknown", key=None)
    desk.refuse("client join 1 --samples 5", "not invited", "site.key")


def test_a_sponsor_puts_down_stake_and_takes_it_back(desk: Desk) -> None:
    code, told = desk.org(f"sponsor 1 {OTHER} --samples 100 --gas 0.5")
    assert (code, told["stake"]) == (0, str(COIN))
    assert desk.ledger.get_balance(b"\x77" * 20) == 10**24 + COIN // 2
    assert desk.org(f"unsponsor 1 {OTHER}")[1]["returned"] == str(COIN)
    assert desk.org(f"unsponsor 1 {OTHER}")[0] == 1


def test_sponsorship_without_an_amount_or_by_somebody_else_is_refused(desk: Desk) -> None:
    desk.refuse(f"task sponsor 1 {OTHER}", "sponsor_stake")
    desk.refuse(f"task sponsor 1 {OTHER} --stake 1 --samples 5", "sponsor_stake")
    desk.refuse(f"task sponsor 1 {OTHER} --stake much", "amount")
    desk.refuse(f"task sponsor 1 {OTHER} --stake 1", "not the publisher", "site.key")
    desk.org(f"sponsor 1 {OTHER} --stake 1")
    desk.refuse(f"task unsponsor 1 {OTHER}", "not the publisher", "site.key")


def test_a_stake_is_added_to_what_is_missing(desk: Desk) -> None:
    desk.refuse("client stake 1", "not_joined", "site.key")
    join(desk)
    assert desk.site("stake 1") == (1, {"task": 1, "added": "0"})
    assert desk.site("stake 1 0.25") == (0, {"task": 1, "added": str(COIN // 4)})
    desk.task.members[bytes.fromhex(SITE_ADDRESS[2:])].stake = COIN // 2
    assert desk.site("stake 1") == (0, {"task": 1, "added": str(COIN // 2)})
    desk.refuse("client stake 1 much", "amount", "site.key")


@pytest.mark.slow
def test_the_stake_of_who_never_left_is_released(desk: Desk) -> None:
    desk.org(f"sponsor 1 {SITE_ADDRESS} --stake 0.75")
    join(desk)
    desk.refuse(f"task release 1 {SITE_ADDRESS}", "not over")
    desk.org("cancel 1")
    desk.refuse("task release 1 0x12", "task_allow")
    code, told = desk.ask(f"task release 1 {SITE_ADDRESS}", "site.key")
    assert (code, told["own"], told["sponsored"]) == (0, str(COIN // 4), str(COIN * 3 // 4))
    assert desk.org(f"release 1 {SITE_ADDRESS}")[0] == 1
    assert desk.org("claim 1") == (0, {"task": 1, "claim": str(COIN * 3 // 4)})
    assert desk.org("claim 1") == (1, {"task": 1, "claim": "0"})
    assert desk.site("claim 1")[1]["claimed"] == str(COIN // 4)


# -- the course of the task ------------------------------------------------------------------------
def test_coins_are_added_to_the_reward(desk: Desk) -> None:
    before = desk.task.reward_left
    assert desk.ask("task fund 1 1.5", "site.key")[0] == 0, "anybody may"
    assert desk.task.reward_left == before + COIN * 3 // 2
    desk.refuse("task fund 1 much", "amount")


def test_a_task_pauses_and_resumes(desk: Desk) -> None:
    desk.refuse("task pause 1", "not running")
    desk.refuse("task resume 1", "not paused")
    join(desk, then_start=True)
    desk.refuse("task pause 1", "not the publisher", "site.key")
    assert desk.org("pause 1") == (0, {"task": 1, "pause": True})
    desk.ledger.sleep(100)
    assert desk.task.state == TaskState.PAUSED
    assert desk.org("resume 1") == (0, {"task": 1, "resume": True})
    assert desk.task.state == TaskState.RUNNING


def test_a_task_is_cancelled_by_its_publisher_only(desk: Desk) -> None:
    desk.refuse("task cancel 1", "not the publisher", "site.key")
    assert desk.org("cancel 1") == (0, {"task": 1, "cancel": True})
    assert desk.task.state == TaskState.ABORTED
    assert desk.org("refund 1")[0] == 0
    assert desk.org("refund 1")[0] == 1


def test_a_task_starts_with_enough_participants_only(desk: Desk) -> None:
    desk.refuse("task start 1", "too few participants")
    join(desk, then_start=True)
    assert desk.task.state == TaskState.RUNNING


@pytest.mark.slow
def test_an_evaluation_is_asked_for_where_there_is_a_model(desk: Desk) -> None:
    join(desk, then_start=True)
    (desk.directory / "client.py").write_text(
        "from steelyard.client import Result\n"
        "def train(model, ctx): return Result({n: a + 1 for n, a in model.items()}, samples=5)\n"
    )
    desk.refuse("task evaluate 1 1", "made no model")
    assert desk.site(f"run 1 --app {desk.directory}/client.py")[1]["submitted"] == 2
    first = desk.task.rounds[1].evaluation_ends
    desk.ledger.sleep(10)
    assert desk.org("evaluate 1 1") == (0, {"task": 1, "round": 1, "evaluate": True})
    assert desk.task.rounds[1].evaluation_ends > first
    desk.refuse("task evaluate 1 1", "not the publisher", "site.key")


# -- lists -----------------------------------------------------------------------------------------
def test_a_list_has_only_the_newest_tasks_whatever_count_a_node_names(desk: Desk) -> None:
    desk.ledger.agreement.view_task_count = lambda: [2**200]
    asked: list[int] = []
    real = desk.ledger.agreement.view_get_task
    desk.ledger.agreement.view_get_task = lambda task: asked.append(task) or real(1)
    assert len(desk.ask("task list --most 3")[1]) == 3
    assert asked == [2**200, 2**200 - 1, 2**200 - 2]
    assert len(desk.ask("task list")[1]) == 100

"""The participant against a chain in memory: whole tasks, and everything that can go wrong."""

import random
import shutil
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from steelyard.client.amounts import coins
from steelyard.client.errors import ClientError, InvalidTraining, Reverted
from steelyard.client.flower import name_parameters
from steelyard.client.metrics import read_metric_names
from steelyard.client.outbox import Clock
from steelyard.client.participant import Client
from steelyard.client.records import TaskState
from steelyard.client.rounds import ChainClock
from steelyard.client.training import Result

from .conftest import HOSPITAL, make_task, open_account, train
from .ledger import Ledger


@pytest.fixture
def lines(hospital) -> list[str]:
    told: list[str] = []
    hospital.report = told.append
    return told


def test_a_client_trains_every_round_and_is_paid(ledger, organisation, hospital) -> None:
    task = organisation.publish(make_task()).number
    summary = hospital.run(task, samples=50)
    assert summary.state is TaskState.FINISHED
    assert (summary.rounds, summary.submitted, summary.claimed) == (2, 2, 1000)
    assert hospital.claim(task) == 0


def test_the_function_gets_named_arrays_and_the_task_settings(organisation, hospital) -> None:
    seen = []

    @hospital.train
    def look(model, ctx):
        seen.append((ctx.task, ctx.round, ctx.rounds, ctx.config["local_epochs"]))
        assert {name: array.dtype for name, array in model.items()} == {
            "bias": np.float32,
            "weight": np.float32,
        }
        return train(model, ctx)

    task = organisation.publish(make_task(config={"local_epochs": 3})).number
    hospital.run(task, samples=50)
    assert seen == [(task, 1, 2, 3), (task, 2, 2, 3)]


def test_evaluation_is_reported_once_a_round(ledger, organisation, hospital) -> None:
    @hospital.evaluate
    def evaluate(model, ctx):
        return Result(samples=20, metrics={"loss": 1.5, "accuracy": 0.75, "other": 9.0})

    task = organisation.publish(make_task()).number
    hospital.run(task, samples=50)
    for number in (1, 2):
        metrics = organisation.rounds.get_metrics(task, number)
        assert (metrics.reports, metrics.means) == (1, (0.75, 1.5))


def test_metrics_stand_where_the_task_names_them() -> None:
    assert read_metric_names({"metrics": "f1, loss"}) == ("f1", "loss")
    assert read_metric_names({}) == ("accuracy", "loss")


def test_a_failing_evaluation_costs_the_report_only(organisation, hospital, lines) -> None:
    @hospital.evaluate
    def evaluate(model, ctx):
        raise RuntimeError("no data")

    summary = hospital.run(organisation.publish(make_task()).number, samples=50)
    assert summary.submitted == 2
    assert any("evaluation failed" in line for line in lines)


def test_who_has_not_joined_is_told_how(organisation, hospital) -> None:
    task = organisation.publish(make_task()).number
    with pytest.raises(ClientError, match="client join") as caught:
        hospital.run(task)
    assert caught.value.code == "not_joined"


def test_a_client_without_training_function_is_refused(ledger, organisation, tmp_path) -> None:
    with open_account(Client, ledger, HOSPITAL, tmp_path / "bare") as bare:
        for function in (bare.run, bare.dry_run):
            with pytest.raises(ClientError) as caught:
                function(1)
            assert caught.value.code == "no_trainer"


FLOWER = """
import numpy as np

class Client:
    def fit(self, parameters, config):
        return [one + np.float32(0.01) for one in parameters], 30, {"loss": 0.5}

    def evaluate(self, parameters, config):
        return 1.5, 20, {"accuracy": 0.75}

client = Client()
"""


def test_flower_code_runs_a_whole_task_from_its_file(organisation, hospital, tmp_path) -> None:
    (tmp_path / "site.py").write_text(FLOWER)
    model = name_parameters([np.zeros((3, 2), np.float32), np.zeros(2, np.float32)])
    task = organisation.publish(make_task(model=model)).number
    assert hospital.run(task, samples=50, app=tmp_path / "site.py").submitted == 2
    assert organisation.rounds.get_metrics(task, 2).means == (0.75, 1.5)


def test_an_app_that_cannot_train_is_refused_before_joining(
    ledger, organisation, tmp_path, monkeypatch
) -> None:
    task = organisation.publish(make_task()).number
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    (tmp_path / "only_evaluates.py").write_text("def evaluate(model, ctx): ...\n")
    with open_account(Client, ledger, HOSPITAL, tmp_path / "bare") as bare:
        for app, code in [
            (tmp_path / "only_evaluates.py", "no_trainer"),
            (str(tmp_path / "absent.py"), "app_missing"),
            ("only_evaluates:absent", "app_failed"),
            ("only_evaluates:evaluate", "flower_code"),
        ]:
            with pytest.raises(ClientError) as caught:
                bare.run(task, samples=50, app=app)
            assert caught.value.code == code
    assert organisation.tasks.get_participants(task) == []


def test_a_stranger_on_an_allowlist_is_refused(organisation, hospital) -> None:
    task = organisation.publish(make_task(allow=["0x" + "77" * 20])).number
    with pytest.raises(Reverted, match="not invited"):
        hospital.run(task, samples=50)


def test_a_stake_that_does_not_cover_the_samples_is_refused(organisation, hospital) -> None:
    task = organisation.publish(make_task(stake_per_sample=coins("0.5"))).number
    with pytest.raises(ClientError, match="need a stake of 25") as caught:
        hospital.join(task, 50, stake=coins(24))
    assert caught.value.code == "stake_low"


def test_joining_twice_joins_once_and_leaving_returns_the_stake(
    ledger, organisation, hospital
) -> None:
    task = organisation.publish(make_task(base_stake=70, max_clients=3)).number
    assert hospital.join(task, 50) is not None
    assert hospital.join(task, 50) is None
    assert hospital.leave(task) == 70
    assert hospital.leave(task) == 0
    assert hospital.join(task, 10) is not None
    assert ledger.tasks[task].members[hospital.address].samples == 10


def test_a_lobby_is_waited_for_and_told_once(organisation, hospital, lines) -> None:
    task = organisation.publish(make_task(max_clients=5, join_seconds=30)).number
    assert hospital.run(task, samples=50).submitted == 2
    assert len([line for line in lines if line.startswith("lobby")]) == 1


def break_training(hospital, rounds: set[int], error: Exception | float) -> None:
    @hospital.train
    def sometimes(model, ctx):
        if ctx.round not in rounds:
            return train(model, ctx)
        if isinstance(error, Exception):
            raise error
        return Result({k: np.full_like(v, error) for k, v in model.items()}, samples=3)


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError("cuda"), float("nan"), float("inf")])
def test_training_that_fails_costs_its_round_only(organisation, hospital, lines, error) -> None:
    break_training(hospital, {1}, error)
    task = organisation.publish(make_task(rounds=3)).number
    summary = hospital.run(task, samples=50)
    assert (summary.state, summary.submitted) == (TaskState.FINISHED, 2)
    assert any("training failed" in line for line in lines)


@pytest.mark.slow
def test_training_that_keeps_failing_ends_the_run(organisation, hospital) -> None:
    break_training(hospital, {1, 2, 3}, RuntimeError("cuda"))
    with pytest.raises(InvalidTraining, match="cuda") as caught:
        hospital.run(organisation.publish(make_task(rounds=5)).number, samples=50)
    assert caught.value.code == "training_failed"


@pytest.mark.slow
def test_a_result_that_keeps_failing_ends_the_run_with_a_code(organisation, hospital) -> None:
    """It has arrays of its own kind, which raise what is no error of ours when they are read."""

    class Lazy(dict):
        def get(self, *words: object) -> object:
            raise OSError("the file is gone")

    @hospital.train
    def lazily(model, ctx):
        return Result(Lazy(model), samples=3)

    with pytest.raises(InvalidTraining, match="OSError: the file is gone in ") as caught:
        hospital.run(organisation.publish(make_task(rounds=5)).number, samples=50)
    assert caught.value.code == "training_failed"


@pytest.mark.slow
def test_more_samples_than_the_stake_covers_are_never_sent(organisation, hospital, lines) -> None:
    summary = hospital.run(organisation.publish(make_task()).number, samples=29)
    assert summary.submitted == 0
    assert any("stake covers 29" in line for line in lines)


def test_training_that_takes_too_long_misses_the_round_and_goes_on(
    ledger, organisation, hospital, lines
) -> None:
    @hospital.train
    def slow(model, ctx):
        if ctx.round == 1:
            ledger.sleep(80)
        return train(model, ctx)

    task = organisation.publish(make_task(rounds=2)).number
    summary = hospital.run(task, samples=50)
    assert summary.submitted == 1
    assert any(line.startswith("round 1: commit refused") for line in lines)


def test_a_lost_journal_cannot_reveal_and_says_so(ledger, organisation, tmp_path) -> None:
    task = organisation.publish(make_task(rounds=2, round_seconds=200)).number
    state, told = tmp_path / "lost", []
    client = open_account(Client, ledger, HOSPITAL, state)
    client.train(train)
    real = ledger.agreement.do_reveal

    def die(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    ledger.agreement.do_reveal = die
    with pytest.raises(KeyboardInterrupt):
        client.run(task, samples=50)
    client.close()
    ledger.agreement.do_reveal = real
    shutil.rmtree(state)
    with open_account(Client, ledger, HOSPITAL, state, report=told.append) as client:
        client.train(train)
        summary = client.run(task)
    assert summary.submitted == 1
    assert any("only that one can reveal" in line for line in told)


def test_an_aborted_task_ends_the_run(ledger, organisation, hospital) -> None:
    task = organisation.publish(make_task(max_clients=3)).number
    hospital.join(task, 50)
    ledger.tasks[task].state = 4
    summary = hospital.run(task)
    assert (summary.state, summary.claimed) == (TaskState.ABORTED, 0)


@pytest.mark.slow
def test_who_left_elsewhere_is_told(ledger, organisation, hospital) -> None:
    task = organisation.publish(make_task(rounds=50)).number
    hospital.join(task, 50)

    @hospital.train
    def leave_meanwhile(model, ctx):
        ledger.tasks[task].members.clear()
        raise RuntimeError("interrupted")

    with pytest.raises(ClientError) as caught:
        hospital.run(task)
    assert caught.value.code == "not_joined"


def test_an_outage_in_the_middle_is_waited_for(ledger, organisation, tmp_path) -> None:
    task = organisation.publish(make_task(rounds=4)).number
    chance = random.Random(1)  # a regular outage could fall on the same step for ever
    times = {"up": 9, "down": 0}

    def answer(request: httpx.Request) -> httpx.Response:
        if not any(times.values()):
            times.update(up=chance.randint(4, 20), down=chance.randint(4, 12))
        kind = "up" if times["up"] else "down"
        times[kind] -= 1
        if kind == "down":
            raise httpx.ConnectError("refused")
        return ledger.answer(request)

    with open_account(Client, ledger, HOSPITAL, tmp_path / "s", answer) as client:
        client.train(train)
        summary = client.run(task, samples=50)
    assert summary.state is TaskState.FINISHED
    assert summary.submitted == 4


def test_a_dry_run_sends_nothing(ledger, organisation, hospital) -> None:
    task = organisation.publish(make_task(admission_norm=0.01)).number
    before = len(ledger.seen)
    trial = hospital.dry_run(task)
    assert (trial.samples, trial.metrics) == (30, {"loss": 0.5})
    assert trial.scale < 1 < trial.norm * 100
    assert len(ledger.seen) == before
    assert hospital.journal.get_submission(task, 1) is None


def test_a_dry_run_tells_what_a_run_would_refuse_or_scale(organisation, hospital, tmp_path) -> None:
    (tmp_path / "site.py").write_text(FLOWER)
    model = name_parameters([np.zeros((3, 2), np.float32), np.zeros(2, np.float32)])
    task = organisation.publish(make_task(model=model, admission_norm=0.015625, max_clients=2))
    trial = hospital.dry_run(task.number, app=tmp_path / "site.py")
    assert (trial.limit, trial.refusal) == (0.015625, "")
    assert trial.scale == pytest.approx(0.015625 / trial.norm, rel=0.1)
    hospital.join(task.number, 29)
    assert hospital.dry_run(task.number).refusal == (
        "samples_not_covered: 30 samples were used and the stake covers 29; train on at most 29, "
        "or promise more: `steelyard client leave 1`, then `steelyard client join 1 --samples 30`"
    )
    hospital.leave(task.number)
    hospital.join(task.number, 30)
    assert hospital.dry_run(task.number).refusal == ""


def test_a_dry_run_bears_metrics_that_are_no_numbers(organisation, hospital, lines) -> None:
    hospital.train(lambda model, ctx: Result(model, samples=3, metrics={"loss": "low"}))
    assert hospital.dry_run(organisation.publish(make_task()).number).metrics == {}
    assert lines[0].startswith("metrics must be numbers")


@pytest.mark.slow
def test_a_run_that_fails_says_how_to_get_the_stake_back(organisation, hospital, lines) -> None:
    task = organisation.publish(make_task(rounds=5, stake_per_sample=coins("0.01"))).number
    with pytest.raises(InvalidTraining, match="samples_not_covered"):
        hospital.run(task, samples=29)
    assert lines[-1] == "stake 0.29 is still in task 1: `steelyard client leave 1` returns it"


@pytest.mark.slow
def test_a_round_that_nobody_closes_is_told_once(ledger, organisation, hospital, lines) -> None:
    ledger.agreement.is_kept = False
    task = organisation.publish(make_task(round_seconds=100, max_clients=1)).number
    started = ledger.now
    hospital.report = lambda line: lines.append(f"{int(ledger.now - started)} {line}")

    def wait(seconds: float) -> None:
        assert ledger.now < started + 1_000
        if ledger.now > started + 200:
            ledger.agreement.is_kept = True
        ledger.sleep(seconds)

    hospital.clock = Clock(lambda: ledger.now, wait)
    hospital.run(task, samples=50)
    told = [line for line in lines if "round 1: due since" in line]
    assert len(told) == 1
    assert "and nobody closes it; anybody may: `steelyard round close 1`" in told[0]
    assert len([line for line in lines if "round 1: submitted, 1/1 in" in line]) == 1
    assert not any("round 2: due" in line for line in lines)


def test_personal_tensors_survive_from_round_to_round(organisation, hospital) -> None:
    from steelyard.chain.model import Role
    from steelyard.client.quantize import NamedArrays

    heads = []

    @hospital.train
    def personal(model, ctx):
        heads.append(model.get("head"))
        moved = {name: array + np.float32(0.01) for name, array in model.items()}
        return Result({**moved, "head": np.full(2, ctx.round, np.float32)}, samples=3)

    arrays = {"head": np.zeros(2, np.float32), "weight": np.zeros(3, np.float32)}
    model = NamedArrays(arrays, {"head": Role.LOCAL})
    hospital.run(organisation.publish(make_task(model=model)).number, samples=5)
    assert heads[0] is None
    assert np.array_equal(heads[1], np.ones(2))


@pytest.mark.parametrize("skew", [-10_000, 0, 10_000])
def test_the_chain_clock_never_runs_ahead_of_the_validators(skew: int) -> None:
    true_time = {"now": 5_000.0}
    clock = ChainClock(lambda: true_time["now"] + skew)
    for age in (30, 2, 11, 0, 60):
        clock.observe(int(true_time["now"]) - age, 7)
        assert clock.get_seconds() <= true_time["now"]
        true_time["now"] += 7.5
    assert clock.get_seconds() >= true_time["now"] - 2


def test_two_clients_may_not_share_a_journal(ledger: Ledger, hospital, tmp_path: Path) -> None:
    with pytest.raises(ClientError) as caught:
        open_account(Client, ledger, HOSPITAL, tmp_path / "hospital")
    assert caught.value.code == "state_in_use"


def test_a_final_model_that_no_node_keeps_does_not_hold_up_the_pay(
    ledger, organisation, hospital, lines, tmp_path: Path
) -> None:
    """Retention is days: a client that comes back later is still paid, it just cannot evaluate."""
    task = organisation.publish(make_task()).number
    real = hospital.claim
    hospital.claim = lambda number: 0
    hospital.run(task, samples=50)
    hospital.claim = real
    ledger.blobs.pop(organisation.tasks.get_task(task).model)

    @hospital.evaluate
    def evaluate(model, ctx):
        return Result(samples=20, metrics={"accuracy": 0.75})

    assert hospital.run(task).claimed == 1000
    assert any("no node keeps its model" in line for line in lines)


def test_a_run_goes_on_when_a_transaction_waits_for_long(
    ledger, organisation, hospital, lines
) -> None:
    task = organisation.publish(make_task(round_seconds=40_000)).number
    hospital.join(task, 50)
    real, opened = ledger.eth_sendRawTransaction, ledger.now

    def forget_for_a_while(raw: str) -> str:
        return real(raw) if ledger.now - opened > 1000 else "0x" + bytes(32).hex()

    ledger.eth_sendRawTransaction = forget_for_a_while
    assert hospital.run(task).submitted == 2
    assert any("in no block after" in line for line in lines)

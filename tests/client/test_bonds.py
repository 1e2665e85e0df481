"""What could lose our own client its bond: refused reveals, false clocks, refusing nodes."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from eth_account import Account as Keys

from steelyard.chain.transactions import decode_transaction
from steelyard.client.contracts import get_contract
from steelyard.client.errors import ClientError, NodeRefused, NodeUnreachable
from steelyard.client.evaluating import find_height
from steelyard.client.outbox import MAX_NONCES_AHEAD, Clock
from steelyard.client.participant import Client
from steelyard.client.patience import PATIENCE_SECONDS
from steelyard.client.records import TaskState
from steelyard.client.rounds import ChainClock
from steelyard.client.rpc import Rpc
from steelyard.client.training import Result

from .agreement import TasksRefusal
from .conftest import HOSPITAL, URL, open_account, open_rpc, train
from .conftest import make_task as make_long_task
from .ledger import Ledger
from .test_drawing import be_slow_in, find_calls

BOND = {"base_stake": 1000, "bond": 500}
OTHER = Keys.from_key(b"\x09" * 32)
Answer = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def lines(hospital) -> list[str]:
    told: list[str] = []
    hospital.report = told.append
    return told


def make_task(**changes):
    """Fifteen seconds to commit, five to reveal, and a bond to lose."""
    return make_long_task(**{"rounds": 1, "round_seconds": 20, "join_seconds": 5} | BOND | changes)


def join_somebody(ledger: Ledger, task: int, state: Path) -> None:
    """Somebody who never commits, so that the commit period runs to its end."""
    with open_account(Client, ledger, OTHER, state) as other:
        other.join(task, 10)


def has_committed(ledger: Ledger, number: int = 1) -> bool:
    rounds = ledger.tasks[1].rounds if ledger.tasks else {}
    return number in rounds and any(not one.update.size for one in rounds[number].done.values())


def count_nonces_once(ledger: Ledger) -> bool:
    sent = [decode_transaction(raw) for raw in ledger.seen]
    nonces = [(t.sender, t.nonce) for t in sent]
    return len(nonces) == len(set(nonces))


def refuse_reveals(ledger: Ledger, reasons: list[str]) -> None:
    """Each reveal meets the next of these refusals: in its block, and when it is explained."""
    real, met = ledger.agreement.do_reveal, [reason for reason in reasons for _ in range(2)]

    def refuse(sender, value, **arguments):
        if met:
            raise TasksRefusal(met.pop(0))
        real(sender, value, **arguments)

    ledger.agreement.do_reveal = refuse


# -- refused reveals -------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_reveal_that_came_too_late_is_made_in_the_extension(
    ledger, organisation, tmp_path
) -> None:
    """Its upload takes until the period is over; the same block's close extends the round."""
    lines: list[str] = []
    late = {"left": 1}

    def answer(request: httpx.Request) -> httpx.Response:
        reply = ledger.answer(request)
        if request.method == "PUT" and has_committed(ledger) and late["left"]:
            late["left"] -= 1
            ledger.now = ledger.tasks[1].rounds[1].reveal_ends
            ledger.mine()
        return reply

    terms = {"on_failed_quorum": "extend", "max_extensions": 3}
    task = organisation.publish(make_task(**terms)).number
    with open_account(Client, ledger, HOSPITAL, tmp_path / "s", answer, lines.append) as client:
        client.train(train)
        summary = client.run(task, samples=50)
        labels = [entry.label for entry in client.journal.get_entries(f"task/{task}/round/1/rev")]
    assert late["left"] == 0
    assert (summary.submitted, summary.stake) == (1, 1000)
    assert labels == [f"task/{task}/round/1/reveal", f"task/{task}/round/1/reveal/1"]
    assert not any("another journal" in line for line in lines)
    assert count_nonces_once(ledger)


@pytest.mark.parametrize(
    "reason", ["rounds: commit period is running", "rounds: too few commitments"]
)
def test_a_reveal_that_came_too_early_is_made_again(
    ledger, organisation, hospital, lines, reason: str
) -> None:
    task = organisation.publish(make_task()).number
    refuse_reveals(ledger, [reason, reason])
    assert hospital.run(task, samples=50).stake == 1000
    assert len(find_calls(ledger, "reveal")) == 3
    assert len([line for line in lines if "tried again" in line]) == 2


def test_an_update_that_the_chain_can_never_take_is_shown_once(
    ledger, organisation, hospital, lines
) -> None:
    """Neither again in its round nor late in the next one, for another bond."""
    task = organisation.publish(make_task(rounds=2, max_staleness=2, base_stake=5000)).number
    refuse_reveals(ledger, ["fedavg: update_norm"])
    be_slow_in(ledger, hospital, {2})
    hospital.run(task, samples=50)
    assert [call["round"] for call in find_calls(ledger, "reveal")] == [1]
    assert [call["round"] for call in find_calls(ledger, "commit")] == [1]
    assert any("reveal refused: fedavg: update_norm" in line for line in lines)


def test_a_kill_after_a_refused_reveal_does_not_lose_the_update(
    ledger, organisation, tmp_path
) -> None:
    task = organisation.publish(make_task()).number
    refuse_reveals(ledger, ["rounds: commit period is running"])

    def die(line: str) -> None:
        if "tried again" in line:
            raise KeyboardInterrupt

    def live() -> None:
        with open_account(Client, ledger, HOSPITAL, tmp_path / "s", report=die) as client:
            client.train(train)
            client.run(task, samples=50)

    with pytest.raises(KeyboardInterrupt):
        live()
    live()
    assert ledger.tasks[task].members[HOSPITAL_ADDRESS].stake == 1000
    assert len(find_calls(ledger, "reveal")) == 2
    assert count_nonces_once(ledger)


HOSPITAL_ADDRESS = bytes.fromhex(HOSPITAL.address[2:])


def test_a_commitment_that_came_too_late_is_made_in_the_extension(
    ledger, organisation, hospital
) -> None:
    """It failed in the block that extended the round; nothing is trained twice."""
    terms = {"on_failed_quorum": "extend", "max_extensions": 3}
    task = organisation.publish(make_task(**terms)).number
    trained = []

    @hospital.train
    def count(model, ctx):
        trained.append(ctx.round)
        return train(model, ctx)

    send = ledger.eth_sendRawTransaction

    def send_late(raw: str) -> str:
        answer = send(raw)
        current = ledger.tasks[task].rounds.get(1)
        if current is not None and current.extensions == 0 and not current.done:
            ledger.now = current.commit_ends
        return answer

    ledger.eth_sendRawTransaction = send_late
    summary = hospital.run(task, samples=50)
    assert (summary.submitted, summary.stake, trained) == (1, 1000, [1])
    labels = [entry.label for entry in hospital.journal.get_entries(f"task/{task}/round/1/commit")]
    assert labels == [f"task/{task}/round/1/commit", f"task/{task}/round/1/commit/1"]


# -- false clocks ----------------------------------------------------------------------------------
def change_heads(ledger: Ledger, lie: dict[str, int], seconds: int) -> Answer:
    """A node that names a later time, as often as `left` says, once something is committed."""

    def answer(request: httpx.Request) -> httpx.Response:
        reply = ledger.answer(request)
        body = json.loads(request.read()) if request.method == "POST" else None
        is_head = isinstance(body, dict) and body["params"][:1] == ["latest"]
        if is_head and lie["left"] and has_committed(ledger):
            lie["left"] -= 1
            told = json.loads(reply.read())
            told["result"]["timestamp"] = hex(int(told["result"]["timestamp"], 16) + seconds)
            return httpx.Response(200, json=told)
        return reply

    return answer


@pytest.mark.slow
def test_one_false_timestamp_does_not_cost_the_bond(ledger, organisation, tmp_path) -> None:
    task = organisation.publish(make_task(max_clients=2, round_seconds=60)).number
    join_somebody(ledger, task, tmp_path / "other")
    lie = {"left": 1}
    answer = change_heads(ledger, lie, 50)
    with open_account(Client, ledger, HOSPITAL, tmp_path / "s", answer) as client:
        client.train(train)
        summary = client.run(task, samples=50)
    assert lie["left"] == 0
    assert (summary.submitted, summary.stake) == (1, 1000)
    assert len(find_calls(ledger, "reveal")) == 2, "one too early, and no more"


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "reveals"), [(7, 1), (46, 2), (10**6, 1)])
def test_a_node_that_always_names_a_false_time_does_not_cost_the_bond(
    ledger, organisation, tmp_path, seconds: int, reveals: int
) -> None:
    """The other node's word counts in the first half of the period, and after a refusal."""
    task = organisation.publish(make_task(max_clients=2, round_seconds=60)).number
    join_somebody(ledger, task, tmp_path / "other")
    lie = {"left": 10**6}
    liar = change_heads(ledger, lie, seconds)

    def answer(request: httpx.Request) -> httpx.Response:
        return (liar if request.url.host == "liar.test" else ledger.answer)(request)

    rpc = Rpc(["http://liar.test", URL], transport=httpx.MockTransport(answer), sleep=ledger.sleep)
    clock = Clock(lambda: ledger.now, ledger.sleep)
    with Client(rpc, HOSPITAL, state=tmp_path / "s", report=str, clock=clock) as client:
        client.train(train)
        summary = client.run(task, samples=50)
    assert lie["left"] < 10**6
    assert (summary.submitted, summary.stake) == (1, 1000)
    assert len(find_calls(ledger, "reveal")) == reveals


def test_a_later_head_takes_a_false_time_back() -> None:
    now = {"now": 0.0}
    clock = ChainClock(lambda: now["now"])
    clock.observe(100, 5)
    clock.observe(3_700, 6)
    assert clock.get_seconds() == 3_700
    now["now"] = 2.0
    clock.observe(102, 6)
    assert clock.get_seconds() == 3_702, "a node that is behind contradicts nobody"
    clock.observe(102, 7)
    assert clock.get_seconds() == 102


# -- evaluation ------------------------------------------------------------------------------------
@pytest.mark.slow
def test_nothing_is_evaluated_between_a_commitment_and_its_reveal(
    ledger, organisation, hospital, tmp_path
) -> None:
    """It would take longer than the reveal period."""
    task = organisation.publish(make_task(rounds=2, max_clients=2, evaluate_every=0)).number
    join_somebody(ledger, task, tmp_path / "other")
    evaluated: list[int] = []

    @hospital.evaluate
    def evaluate(model, ctx):
        evaluated.append(ctx.round)
        for _ in range(40):
            ledger.sleep(1)
        return Result(samples=5, metrics={"loss": 1.0})

    keep, asked = ledger.agreement.keep, []

    def ask_once_committed() -> None:
        keep()
        if has_committed(ledger, 2) and not asked:
            asked.append(2)
            ledger.agreement._ask_for_reports(task, ledger.tasks[task], 1)

    ledger.agreement.keep = ask_once_committed
    summary = hospital.run(task, samples=50)
    assert (summary.submitted, summary.stake, asked) == (2, 1000, [2])


def test_requests_are_looked_for_from_the_publication_on(ledger) -> None:
    """The ledger names the same time for all heights; a chain makes a block a second."""
    ledger.eth_getBlockByNumber = lambda tag, full: {"timestamp": hex(1_000 + int(tag, 16))}
    found = [find_height(open_heights(ledger), at, 50_000) for at in (0, 1_000, 31_234, 99_999)]
    assert found == [0, 0, 30_234, 50_000]
    ledger.eth_getBlockByNumber = lambda tag, full: None
    with pytest.raises(NodeRefused) as caught:
        find_height(open_heights(ledger), 5, 9)
    assert caught.value.code == "rpc_answer"


def open_heights(ledger: Ledger) -> Rpc:
    rpc = open_rpc(ledger)
    rpc._check_node = lambda url: None
    return rpc


def test_a_model_that_is_none_costs_the_report_only(ledger, organisation, hospital, lines) -> None:
    """A node can invent a request."""

    @hospital.evaluate
    def evaluate(model, ctx):
        raise AssertionError("there is no model")

    name = ledger.add_blob(b"no model at all")
    ask = ledger.agreement._ask_for_reports

    def ask_for_garbage(number, state, which):
        state.rounds[which].model = name
        ask(number, state, which)

    ledger.agreement._ask_for_reports = ask_for_garbage
    summary = hospital.run(organisation.publish(make_task(rounds=2)).number, samples=50)
    assert summary.submitted == 2
    assert any("no model to evaluate" in line for line in lines)


# -- busy and refusing nodes -----------------------------------------------------------------------
def is_task(body: dict[str, list[dict[str, str]]]) -> bool:
    """Whether it is asked for the task: that is answered, then the round is not."""
    selector = get_contract("Tasks").encode_call("get_task", 1)[:4]
    return body["params"][0].get("data", "").startswith("0x" + selector.hex())


def refuse_calls(ledger: Ledger, error: dict[str, object], is_on: Callable[[], bool]) -> Answer:
    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.read()) if request.method == "POST" else None
        is_read = isinstance(body, dict) and body["method"] == "eth_call"
        if is_read and not is_task(body) and is_on():
            return httpx.Response(200, json={"jsonrpc": "2.0", "id": body["id"], "error": error})
        return ledger.answer(request)

    return answer


BUSY = {"code": -32005, "message": "busy: jobs already wait", "data": {"code": "busy"}}
LIMITED = {"code": -32005, "message": "a batch may have 100 calls", "data": None}


def test_a_busy_node_counts_as_silent(ledger) -> None:
    rpc = open_rpc(ledger, refuse_calls(ledger, BUSY, lambda: True))
    with pytest.raises(NodeUnreachable, match="too much to do"):
        rpc.call("eth_call", {}, "latest")


@pytest.mark.slow
@pytest.mark.parametrize("error", [BUSY, LIMITED])
def test_refused_reads_do_not_end_a_bound_run(ledger, organisation, tmp_path, error) -> None:
    task = organisation.publish(make_task(max_clients=2, round_seconds=60)).number
    join_somebody(ledger, task, tmp_path / "other")
    refused = {"left": 5}

    def is_on() -> bool:
        is_due = has_committed(ledger) and refused["left"] > 0
        refused["left"] -= is_due
        return is_due

    answer = refuse_calls(ledger, error, is_on)
    with open_account(Client, ledger, HOSPITAL, tmp_path / "s", answer) as client:
        client.train(train)
        summary = client.run(task, samples=50)
    assert refused["left"] == 0
    assert (summary.submitted, summary.stake) == (1, 1000)


@pytest.mark.slow
def test_a_bound_run_outlasts_its_patience(ledger, organisation, tmp_path) -> None:
    task = organisation.publish(make_task(max_clients=2, round_seconds=4_000)).number
    join_somebody(ledger, task, tmp_path / "other")
    since: list[float] = []

    def is_on() -> bool:
        if has_committed(ledger):
            since.append(ledger.now)
        return bool(since) and ledger.now - since[0] < 2 * PATIENCE_SECONDS

    answer = refuse_calls(ledger, LIMITED, is_on)
    with open_account(Client, ledger, HOSPITAL, tmp_path / "s", answer) as client:
        client.poll_seconds = 100
        client.train(train)
        assert client.run(task, samples=50).submitted == 1


def test_a_node_that_keeps_refusing_ends_a_run_without_a_commitment(
    ledger, organisation, tmp_path
) -> None:
    task = organisation.publish(make_task(max_clients=2)).number
    join_somebody(ledger, task, tmp_path / "other")
    with open_account(Client, ledger, HOSPITAL, tmp_path / "s") as client:
        client.join(task, 50)
    started = ledger.now
    answer = refuse_calls(ledger, LIMITED, lambda: True)
    with open_account(Client, ledger, HOSPITAL, tmp_path / "s", answer) as client:
        client.poll_seconds = 50
        client.train(train)
        with pytest.raises(NodeRefused, match="100 calls"):
            client.run(task)
    assert ledger.now - started >= PATIENCE_SECONDS


def test_a_node_that_is_behind_does_not_end_the_run(
    ledger, organisation, hospital, monkeypatch
) -> None:
    """It does not know of the joining yet."""
    task = organisation.publish(make_task(rounds=2)).number
    real, times = hospital.tasks.get_participant, []

    def be_behind(number, who):
        times.append(number)
        return real(number, b"\x00" * 20 if len(times) in (4, 6) else who)

    monkeypatch.setattr(hospital.tasks, "get_participant", be_behind)
    summary = hospital.run(task, samples=50)
    assert (summary.state, summary.submitted) == (TaskState.FINISHED, 2)


# -- nonces and metrics ----------------------------------------------------------------------------
def test_a_nonce_that_never_comes_is_not_signed(ledger, organisation, hospital) -> None:
    task = organisation.publish(make_task(max_clients=2)).number
    real, ahead = ledger.eth_getTransactionCount, {"pending": MAX_NONCES_AHEAD + 1}
    ledger.eth_getTransactionCount = lambda who, tag: hex(
        int(real(who, tag), 16) + ahead.get(tag, 0)
    )
    with pytest.raises(ClientError) as caught:
        hospital.join(task, 50)
    assert caught.value.code == "nonce_implausible"
    assert hospital.journal.get_entries() == []
    ahead["pending"] = 0
    assert hospital.join(task, 50).status


def test_metrics_that_are_no_numbers_cost_only_themselves(
    ledger, organisation, hospital, lines
) -> None:
    @hospital.train
    def boast(model, ctx):
        return Result(train(model, ctx).arrays, samples=30, metrics={"loss": "n/a"})

    task = organisation.publish(make_task()).number
    assert hospital.run(task, samples=50).submitted == 1
    assert hospital.journal.get_submission(task, 1).metrics == {}
    assert any("metrics must be numbers" in line for line in lines)


def test_a_failed_training_lets_an_older_update_go_in(ledger, organisation, hospital) -> None:
    task = organisation.publish(make_task(rounds=2, max_staleness=2)).number
    real = ledger.agreement.do_commit

    def refuse_the_first_round(sender, value, **arguments):
        if arguments["round"] == 1:
            raise TasksRefusal("rounds: commit period is over")
        real(sender, value, **arguments)

    @hospital.train
    def fail_in_the_second(model, ctx):
        if ctx.round == 2:
            raise RuntimeError("no memory")
        return train(model, ctx)

    ledger.agreement.do_commit = refuse_the_first_round
    hospital.run(task, samples=50)
    shown = [(call["round"], call["origin"]) for call in find_calls(ledger, "reveal")]
    assert shown == [(2, 1)]

"""What else could cost a bond: an empty purse, a full disk, nodes that stand still or lie."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from steelyard.client import doctor
from steelyard.client.contracts import get_contract
from steelyard.client.drafting import check_task
from steelyard.client.errors import ClientError, NodeRefused
from steelyard.client.outbox import Clock
from steelyard.client.participant import Client
from steelyard.client.records import TaskState
from steelyard.client.rounds import compute_last_end
from steelyard.client.rpc import EACH_TIMEOUT_SECONDS, Rpc
from steelyard.client.transactions import Call

from .agreement import TasksRefusal
from .conftest import HOSPITAL, URL, open_account, open_rpc, train
from .ledger import Ledger
from .test_bonds import HOSPITAL_ADDRESS, has_committed, join_somebody, make_task
from .test_drawing import be_slow_in, find_calls

LIAR = "http://liar.test"
Reply = Callable[[dict[str, object]], dict[str, object] | None]
"""What a lying node answers to one call; None for the truth."""


def open_client(
    ledger: Ledger, state: Path, reply: Reply, report=str, *, loses_files: bool = True
) -> Client:
    """A client with two nodes, of which the first lies, and may lose every file."""

    def answer(request: httpx.Request) -> httpx.Response:
        if loses_files and request.url.host == "liar.test" and request.method == "PUT":
            return httpx.Response(201)
        if request.url.host != "liar.test" or request.method != "POST":
            return ledger.answer(request)
        body = json.loads(request.read())
        calls = body if isinstance(body, list) else [body]
        told = [reply(call) or ledger._answer_call(call) for call in calls]
        return httpx.Response(200, json=told if isinstance(body, list) else told[0])

    rpc = Rpc([LIAR, URL], transport=httpx.MockTransport(answer), sleep=ledger.sleep)
    clock = Clock(lambda: ledger.now, ledger.sleep)
    client = Client(rpc, HOSPITAL, state=state, report=report, clock=clock)
    client.train(train)
    return client


def say(call: dict[str, object], result: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": call["id"], "result": result}


# -- purse and disk --------------------------------------------------------------------------------
def test_nothing_is_committed_to_that_the_balance_cannot_reveal(
    ledger, organisation, hospital
) -> None:
    """A reveal needs more gas than its commitment: a purse that runs low fails there first."""
    task = organisation.publish(make_task(max_clients=2)).number
    hospital.join(task, 50)
    ledger.balances[HOSPITAL_ADDRESS] = 60_000_000
    with pytest.raises(ClientError) as caught:
        hospital.run(task)
    assert caught.value.code == "balance_low"
    assert ledger.tasks[task].members[HOSPITAL_ADDRESS].stake == 1000
    assert find_calls(ledger, "commit") == []


@pytest.mark.slow
def test_a_full_disk_is_waited_for_between_commitment_and_reveal(
    ledger, organisation, tmp_path
) -> None:
    task = organisation.publish(make_task(max_clients=2, round_seconds=60)).number
    join_somebody(ledger, task, tmp_path / "other")
    lines: list[str] = []
    with open_account(Client, ledger, HOSPITAL, tmp_path / "s", report=lines.append) as client:
        client.train(train)
        real, refused = client.journal.add_entry, []

        def refuse_to_write(entry, data) -> None:
            is_full = entry.label.endswith("reveal") and len(refused) < 3
            client.journal._db.execute(f"PRAGMA query_only = {int(is_full)}")
            refused.extend([entry] * is_full)
            real(entry, data)

        client.journal.add_entry = refuse_to_write
        summary = client.run(task, samples=50)
    assert len(refused) == 3
    assert (summary.submitted, summary.stake) == (1, 1000)
    assert any("cannot be written" in line for line in lines)


# -- nodes -----------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_node_that_keeps_transactions_to_itself_does_not_cost_the_bond(
    ledger, organisation, tmp_path
) -> None:
    task = organisation.publish(make_task(max_clients=2, round_seconds=400)).number
    join_somebody(ledger, task, tmp_path / "other")

    swallowed: list[object] = []

    def swallow(call):
        if call["method"] != "eth_sendRawTransaction" or not has_committed(ledger):
            return None
        swallowed.append(call["params"])
        return say(call, "0x" + bytes(32).hex())

    with open_client(ledger, tmp_path / "s", swallow) as client:
        client.poll_seconds = 5
        summary = client.run(task, samples=50)
    assert swallowed
    assert (summary.submitted, summary.stake) == (1, 1000)


@pytest.mark.slow
def test_a_node_that_stands_still_does_not_cost_the_bond(ledger, organisation, tmp_path) -> None:
    """It answers, but no longer follows the chain: that reveals have begun is not seen there."""
    task = organisation.publish(make_task(max_clients=2, round_seconds=4000)).number
    join_somebody(ledger, task, tmp_path / "other")
    known: dict[str, object] = {}

    def stand_still(call):
        key = json.dumps([call["method"], call["params"]])
        if not has_committed(ledger):
            known[key] = ledger._answer_call(dict(call))["result"]
            return None
        open_reveals()
        return say(call, known[key]) if key in known else None

    def open_reveals() -> None:
        current = ledger.tasks[task].rounds[1]
        if ledger.timestamp < current.commit_ends - 10:
            current.commit_ends = ledger.timestamp
            current.reveal_ends = ledger.timestamp + 1000

    with open_client(ledger, tmp_path / "s", stand_still) as client:
        client.poll_seconds = 5
        summary = client.run(task, samples=50)
    assert (summary.submitted, summary.stake) == (1, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("head", [None, "0x1", {}])
def test_a_head_that_is_none_does_not_end_a_bound_run(
    ledger, organisation, tmp_path, head: object
) -> None:
    task = organisation.publish(make_task(max_clients=2)).number
    join_somebody(ledger, task, tmp_path / "other")
    lies = {"left": 3}

    def garble(call):
        is_head = call["method"] == "eth_getBlockByNumber" and call["params"][0] == "latest"
        if not is_head or not has_committed(ledger) or not lies["left"]:
            return None
        lies["left"] -= 1
        return say(call, head)

    with open_client(ledger, tmp_path / "s", garble) as client:
        summary = client.run(task, samples=50)
    assert lies["left"] < 3
    assert (summary.submitted, summary.stake) == (1, 1000)


@pytest.mark.slow
def test_one_node_alone_cannot_have_an_update_thrown_away(ledger, organisation, tmp_path) -> None:
    """It refuses the transaction in the words of the contract; no block knows of that."""
    task = organisation.publish(make_task(max_clients=2, round_seconds=60)).number
    join_somebody(ledger, task, tmp_path / "other")

    def refuse(call):
        if call["method"] != "eth_sendRawTransaction" or not has_committed(ledger):
            return None
        error = {"code": 3, "message": "execution reverted: fedavg: update_norm"}
        return {"jsonrpc": "2.0", "id": call["id"], "error": error}

    with open_client(ledger, tmp_path / "s", refuse) as client:
        summary = client.run(task, samples=50)
    assert (summary.submitted, summary.stake) == (1, 1000)


def test_a_nonce_is_not_signed_that_other_nodes_know_nothing_of(
    ledger, organisation, tmp_path
) -> None:
    """A node may lie of the nonce in blocks as of the pending one; nothing after it could leave."""
    task = organisation.publish(make_task(max_clients=2)).number

    def jump(call):
        return say(call, hex(10**6)) if call["method"] == "eth_getTransactionCount" else None

    with open_client(ledger, tmp_path / "s", jump) as client:
        with pytest.raises(NodeRefused) as caught:
            client.join(task, 50)
        assert caught.value.code == "nonce_implausible"
        assert client.journal.get_entries() == []
        client.rpc.move_on()
        assert client.join(task, 50).status


# -- coming back -----------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_bundle_that_no_node_keeps_any_more_holds_up_neither_reveal_nor_pay(
    ledger, organisation, tmp_path
) -> None:
    task = organisation.publish(make_task(max_clients=2, round_seconds=60)).number
    join_somebody(ledger, task, tmp_path / "other")

    def die(line: str) -> None:
        if "commit is final" in line:
            raise KeyboardInterrupt

    with open_account(Client, ledger, HOSPITAL, tmp_path / "s", report=die) as client:
        client.train(train)
        with pytest.raises(KeyboardInterrupt):
            client.run(task, samples=50)
    ledger.blobs.pop(ledger.tasks[task].bundle)
    with open_account(Client, ledger, HOSPITAL, tmp_path / "s") as client:
        client.train(train)
        summary = client.run(task)
    assert (summary.submitted, summary.stake, summary.claimed) == (1, 1000, 1000)


@pytest.mark.slow
def test_an_update_that_is_ready_goes_in_before_an_older_one(
    ledger, organisation, hospital
) -> None:
    """Training took longer than the extension lasts; but it need not be done again."""
    terms = {"on_failed_quorum": "extend", "max_extensions": 2, "max_staleness": 2}
    task = organisation.publish(make_task(rounds=2, **terms)).number
    be_slow_in(ledger, hospital, {2})
    real, refused = ledger.agreement.do_commit, []

    def refuse_the_first_round(sender, value, **arguments):
        if arguments["round"] == 1 or not refused:
            refused.extend([2] * (arguments["round"] == 2))
            raise TasksRefusal("rounds: commit period is over")
        real(sender, value, **arguments)

    ledger.agreement.do_commit = refuse_the_first_round
    hospital.run(task, samples=50)
    shown = [(call["round"], call["origin"]) for call in find_calls(ledger, "reveal")]
    assert shown == [(2, 2)]


def test_a_round_that_is_closed_late_binds_as_long_as_it_may_be_extended(
    ledger, organisation
) -> None:
    terms = {"on_failed_quorum": "extend", "max_extensions": 1}
    task = organisation.publish(make_task(**terms))
    info, state = task.get_info(), organisation.rounds.get_round(task.number, 1)
    assert compute_last_end(info, replace(state, reveal_ends=100)) == 100 + 20 + 86_400
    assert compute_last_end(info, replace(state, reveal_ends=100, extensions=1)) == 100


# -- words against the journal's -------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("lie", ["over", "later", "uncommitted"])
def test_a_node_that_contradicts_the_journal_does_not_cost_the_bond(
    ledger, organisation, tmp_path, lie: str
) -> None:
    task = organisation.publish(make_task(max_clients=2, round_seconds=60, rounds=3)).number
    join_somebody(ledger, task, tmp_path / "other")
    stranger = "0x" + get_contract("Rounds").encode_call("get_submission", 1, 1, bytes(20)).hex()
    over = "0x" + get_contract("Tasks").encode_call("get_task", 1).hex()
    selector = (stranger if lie == "uncommitted" else over)[:10]
    lies: list[object] = []

    def contradict(call):
        is_read = call["method"] == "eth_call" and call["params"][0]["data"].startswith(selector)
        if not is_read or not has_committed(ledger):
            return None
        lies.append(call)
        if lie == "uncommitted":
            call = {**call, "params": [{**call["params"][0], "data": stranger}, "latest"]}
            return ledger._answer_call(call)
        changed = ledger.tasks[task]
        known = changed.state, changed.round
        changed.state, changed.round = (TaskState.FINISHED, 1) if lie == "over" else (known[0], 3)
        told = ledger._answer_call(call)
        changed.state, changed.round = known
        return told

    with open_client(ledger, tmp_path / "s", contradict) as client:
        summary = client.run(task, samples=50)
    assert lies
    assert (summary.submitted, summary.stake) == (3, 1000)


@pytest.mark.slow
def test_a_task_that_is_over_while_a_commitment_is_open_ends_the_run(
    ledger, organisation, tmp_path
) -> None:
    """Every node says so."""
    task = organisation.publish(make_task(max_clients=2, round_seconds=60)).number
    join_somebody(ledger, task, tmp_path / "other")
    keep = ledger.agreement.keep

    def abort_once_committed() -> None:
        keep()
        if has_committed(ledger) and ledger.tasks[task].state == TaskState.RUNNING:
            ledger.agreement._abort(task, ledger.tasks[task])

    ledger.agreement.keep = abort_once_committed
    with open_client(ledger, tmp_path / "s", lambda call: None) as client:
        assert client.run(task, samples=50).state == TaskState.ABORTED


@pytest.mark.slow
def test_a_restart_bears_a_node_that_does_not_know_the_task_yet(
    ledger, organisation, tmp_path
) -> None:
    task = organisation.publish(make_task(max_clients=2, round_seconds=60)).number
    join_somebody(ledger, task, tmp_path / "other")
    selector = "0x" + get_contract("Tasks").encode_call("get_task", 1)[:4].hex()

    def die(line: str) -> None:
        if "commit is final" in line:
            raise KeyboardInterrupt

    def be_behind(call):
        is_read = call["method"] == "eth_call" and call["params"][0]["data"].startswith(selector)
        if not is_read or not has_committed(ledger):
            return None
        unknown = get_contract("Tasks").encode_call("get_task", 77)
        call = {**call, "params": [{**call["params"][0], "data": "0x" + unknown.hex()}, "latest"]}
        return ledger._answer_call(call)

    client = open_client(ledger, tmp_path / "s", be_behind, die)
    with client, pytest.raises(KeyboardInterrupt):
        client.run(task, samples=50)
    with open_client(ledger, tmp_path / "s", be_behind) as client:
        summary = client.run(task)
    assert (summary.submitted, summary.stake) == (1, 1000)


def test_where_every_node_is_asked_none_may_take_long(ledger) -> None:
    """A reveal waits for what all of them say."""
    patience: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        patience.append(request.extensions["timeout"]["read"])
        return ledger.answer(request)

    open_rpc(ledger, answer).call_each("eth_chainId")
    assert patience == [EACH_TIMEOUT_SECONDS]


@pytest.mark.parametrize("head", [None, {"number": "0x1"}])
def test_a_node_without_a_head_is_told_of(ledger, head: object) -> None:
    real = ledger.eth_getBlockByNumber
    ledger.eth_getBlockByNumber = lambda tag, full: head if tag == "latest" else real(tag, full)
    (finding,) = doctor.examine_nodes(open_rpc(ledger))
    assert (finding.name, finding.is_good) == (f"node {URL}", False)
    with pytest.raises(NodeRefused) as caught:
        check_task(open_rpc(ledger), make_task())
    assert caught.value.code == "rpc_answer"


def test_an_update_is_kept_until_the_chain_took_a_later_commitment(
    ledger, organisation, hospital
) -> None:
    """That a later round has begun is a node's word before that."""
    task = organisation.publish(make_task(rounds=2, bond=0)).number
    real, kept = ledger.agreement.do_commit, []

    def refuse_the_second_round(sender, value, **arguments):
        if arguments["round"] == 2:
            shown = hospital.journal.get_submission(task, 1)
            kept.append(hospital.journal.get_blob(shown.update))
            raise TasksRefusal("rounds: not the current round")
        real(sender, value, **arguments)

    def refuse(sender, value, **arguments):
        raise TasksRefusal("rounds: reveal period is over")

    ledger.agreement.do_commit = refuse_the_second_round
    ledger.agreement.do_reveal = refuse
    hospital.run(task, samples=50)
    assert kept
    assert None not in kept


@pytest.mark.slow
def test_a_receipt_that_is_made_up_does_not_cost_the_bond(ledger, organisation, tmp_path) -> None:
    """The transaction was never sent on; the file is kept, and its bytes go to the other node."""
    task = organisation.publish(make_task(max_clients=2, round_seconds=200)).number
    join_somebody(ledger, task, tmp_path / "other")
    made_up: list[object] = []

    def make_up(call):
        if not has_committed(ledger) or call["method"] not in (
            "eth_sendRawTransaction",
            "eth_getTransactionReceipt",
        ):
            return None
        told = call["params"][0]
        if call["method"] == "eth_sendRawTransaction":
            return say(call, "0x" + bytes(32).hex())
        if bytes.fromhex(told[2:]) in ledger.receipts:
            return None
        made_up.append(told)
        receipt = {"transactionHash": told, "blockNumber": "0x9", "blockHash": "0x" + "11" * 32}
        numbers = {"status": "0x1", "gasUsed": "0x9", "effectiveGasPrice": "0x9"}
        return say(call, {**receipt, **numbers, "logs": []})

    with open_client(ledger, tmp_path / "s", make_up) as client:
        summary = client.run(task, samples=50)
        shown = client.journal.get_submission(task, 1)
        assert shown is not None
        assert client.journal.get_blob(shown.update) is None, "the task is over"
    assert made_up
    assert summary.stake == 1000


@pytest.mark.slow
def test_a_refused_reveal_that_a_node_calls_done_is_made_again(
    ledger, organisation, tmp_path
) -> None:
    """The receipt is real but for its status: another node says that the chain refused it."""
    task = organisation.publish(make_task(max_clients=2, round_seconds=60)).number
    join_somebody(ledger, task, tmp_path / "other")
    real, refused = ledger.agreement.do_reveal, []

    def refuse_once(sender, value, **arguments):
        if sender == HOSPITAL_ADDRESS and not refused:
            refused.append(sender)
            raise TasksRefusal("rounds: reveals have not begun")
        real(sender, value, **arguments)

    def call_it_done(call):
        if call["method"] != "eth_getTransactionReceipt":
            return None
        receipt = ledger.eth_getTransactionReceipt(*call["params"])
        return say(call, receipt and {**receipt, "status": "0x1"})

    ledger.agreement.do_reveal = refuse_once
    with open_client(ledger, tmp_path / "s", call_it_done, loses_files=False) as client:
        summary = client.run(task, samples=50)
    assert refused
    assert (summary.submitted, summary.stake) == (1, 1000)


def test_what_was_in_a_block_is_waited_for_where_it_is_not_yet(
    ledger, organisation, hospital
) -> None:
    """Its files are no longer in the journal; a node that is behind gets them from others."""
    task = organisation.publish(make_task(max_clients=2, admission="applicants")).number
    receipt = hospital.apply(task, "St. Mary's")
    (entry,) = hospital.journal.get_entries()
    real, asked = ledger.eth_getTransactionReceipt, []

    def be_behind(text: str) -> object:
        asked.append(text)
        return real(text) if len(asked) > 2 else None

    ledger.eth_getTransactionReceipt = be_behind
    ledger.eth_getTransactionCount = lambda who, tag: "0x0"
    assert hospital.outbox.send(entry.label, Call(hospital.address, b"")) == receipt

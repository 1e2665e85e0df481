"""One transaction to its end: waiting, sending again, nonces that others take, refusals."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from steelyard.chain.params import TASKS_ADDRESS
from steelyard.chain.transactions import decode_transaction
from steelyard.chain.types import Address
from steelyard.client.account import Account
from steelyard.client.contracts import get_contract
from steelyard.client.errors import (
    ClientError,
    NodeRefused,
    NodeUnreachable,
    Reverted,
    TransactionPending,
)
from steelyard.client.outbox import MAX_SIGNED, WAIT_SECONDS, Clock
from steelyard.client.participant import Client
from steelyard.client.rpc import EACH_TIMEOUT_SECONDS, Rpc
from steelyard.client.state import Status
from steelyard.client.stillness import Stillness
from steelyard.client.transactions import Call, Fees, sign_call

from .conftest import HOSPITAL, make_task, open_account
from .ledger import CHAIN_ID, Ledger, Refused


@pytest.fixture
def account(ledger: Ledger, tmp_path: Path):
    with open_account(Account, ledger, HOSPITAL, tmp_path) as opened:
        yield opened


@pytest.fixture
def task(organisation) -> int:
    return organisation.publish(make_task(max_clients=5, min_clients=2)).number


def replace(ledger: Ledger, method: str, function: Callable[..., object]) -> None:
    setattr(ledger, method, function)


def fill_pool(ledger: Ledger, times: int) -> list[str]:
    """Have the pool full so often; returns what it is sent, as it comes."""
    real, calls = ledger.eth_sendRawTransaction, []

    def be_full(raw: str) -> str:
        calls.append(raw)
        if len(calls) <= times:
            raise Refused(-32005, "tx_pool_full: try later", {"code": "tx_pool_full"})
        return real(raw)

    replace(ledger, "eth_sendRawTransaction", be_full)
    return calls


def test_a_label_is_sent_once_however_often_it_is_asked_for(ledger, account, task) -> None:
    first = account.send("join", "join", task, 5)
    assert account.send("join", "join", task, 5) == first
    assert len(ledger.included) == 2


def test_what_waits_too_long_is_sent_again_as_it_was(ledger, account, task) -> None:
    sent: list[str] = []
    real = ledger.eth_sendRawTransaction

    def forget(raw: str) -> str:
        sent.append(raw)
        if len(sent) < 4:
            return "0x" + bytes(32).hex()
        return real(raw)

    replace(ledger, "eth_sendRawTransaction", forget)
    account.send("join", "join", task, 5)
    assert len(sent) == 4
    assert len(set(sent)) == 1


def test_a_refusal_that_time_cures_is_waited_for(ledger, account, task) -> None:
    calls = fill_pool(ledger, 2)
    assert account.send("join", "join", task, 5).status
    assert len(set(calls)) == 1


def test_a_transaction_that_is_never_included_says_how_to_go_on(ledger, account, task) -> None:
    started = ledger.now
    ledger.is_mining = False
    with pytest.raises(TransactionPending, match="same bytes"):
        account.send("join", "join", task, 5)
    assert ledger.now - started >= WAIT_SECONDS
    ledger.is_mining = True
    assert account.send("join", "join", task, 5).status
    assert len(ledger.seen) == 2, "one publication and one joining"


def send_from_elsewhere(ledger: Ledger, nonce: int) -> None:
    """Another program with the same key."""
    call = Call(Address(TASKS_ADDRESS), get_contract("Tasks").encode_call("claim", 1))
    signed = sign_call(
        HOSPITAL, call, chain_id=CHAIN_ID, nonce=nonce, gas=100_000, fees=Fees(100, 1)
    )
    ledger.pool[signed.hash] = decode_transaction(signed.raw)
    ledger.mine()


def test_a_nonce_that_another_program_took_is_replaced(ledger, account, task) -> None:
    real, done = ledger.eth_sendRawTransaction, []

    def be_late(raw: str) -> str:
        if not done:
            done.append(raw)
            send_from_elsewhere(ledger, 0)
        return real(raw)

    replace(ledger, "eth_sendRawTransaction", be_late)
    assert account.send("join", "join", task, 5).status
    entries = account.journal.get_entries("join")
    assert [(e.nonce, e.status) for e in entries] == [(0, Status.REPLACED), (1, Status.INCLUDED)]


def test_nothing_is_signed_over_a_transaction_that_may_have_left(ledger, account, task) -> None:
    """A crash after signing leaves an entry; the next call sends it before its own."""
    real = ledger.eth_sendRawTransaction

    def die(raw: str) -> str:
        raise KeyboardInterrupt

    replace(ledger, "eth_sendRawTransaction", die)
    with pytest.raises(KeyboardInterrupt):
        account.send("join", "join", task, 5)
    replace(ledger, "eth_sendRawTransaction", real)
    with pytest.raises(Reverted, match="already joined"):
        account.send("another", "join", task, 6)
    assert [t.nonce for t in ledger.included if t.sender == account.address] == [0]


def test_a_revert_is_told_with_its_reason_and_costs_no_second_try(ledger, account, task) -> None:
    account.send("join", "join", task, 5)
    data = account.tasks.encode("join", task, 5)
    call = Call(Address(TASKS_ADDRESS), data, gas=100_000)
    for _ in range(2):
        with pytest.raises(Reverted, match="already joined"):
            account.outbox.send("again", call)
    assert len([t for t in ledger.included if t.sender == account.address]) == 2
    assert account.journal.get_entry("again").status is Status.FAILED


def test_an_estimate_that_reverts_signs_nothing(ledger, account, task) -> None:
    with pytest.raises(Reverted, match="nothing to claim"):
        account.send("claim", "claim", task)
    assert account.journal.get_entries() == []


def test_too_little_money_is_said_before_signing(ledger, account, task) -> None:
    ledger.balances[account.address] = 10
    with pytest.raises(ClientError, match="send coins") as caught:
        account.send("join", "join", task, 5)
    assert caught.value.code == "balance_low"
    assert f"{HOSPITAL.address} has 0.00000000000000001 coins and " in caught.value.message
    assert "wei" not in caught.value.message
    assert account.journal.get_entries() == []


def test_bytes_that_can_never_be_included_give_their_nonce_back(ledger, account, task) -> None:
    def refuse(raw: str) -> str:
        raise Refused(-32000, "tx_gas_limit: too much", {"code": "tx_gas_limit"})

    real = ledger.eth_sendRawTransaction
    replace(ledger, "eth_sendRawTransaction", refuse)
    with pytest.raises(NodeRefused, match="too much"):
        account.send("join", "join", task, 5)
    replace(ledger, "eth_sendRawTransaction", real)
    assert account.send("join", "join", task, 5).status
    assert [t.nonce for t in ledger.included if t.sender == account.address] == [0]


def test_nodes_that_are_away_are_waited_for(ledger, tmp_path, task) -> None:
    outage = {"left": 0}

    def answer(request: httpx.Request) -> httpx.Response:
        if outage["left"]:
            outage["left"] -= 1
            raise httpx.ConnectError("refused")
        return ledger.answer(request)

    lines: list[str] = []
    with open_account(Account, ledger, HOSPITAL, tmp_path, answer, lines.append) as account:
        real = ledger.eth_sendRawTransaction

        def go_away(raw: str) -> str:
            outage["left"] = 200
            ledger.eth_sendRawTransaction = real
            return real(raw)

        replace(ledger, "eth_sendRawTransaction", go_away)
        assert account.send("join", "join", task, 5).status
    assert any("no node answered" in line for line in lines)


def test_a_finalized_receipt_that_a_node_lacks_is_not_sent_again(ledger, account, task) -> None:
    account.send("join", "join", task, 5)
    replace(ledger, "eth_getTransactionReceipt", lambda text: None)
    with pytest.raises(NodeRefused, match="another node") as caught:
        account.send("join", "join", task, 5)
    assert caught.value.code == "receipt_missing"
    assert account.journal.get_entry("join").status is Status.INCLUDED


def test_no_node_at_all_ends_as_pending_not_as_lost(ledger, tmp_path, task) -> None:
    away = {"now": False}

    def answer(request: httpx.Request) -> httpx.Response:
        if away["now"]:
            raise httpx.ConnectError("refused")
        return ledger.answer(request)

    with open_account(Account, ledger, HOSPITAL, tmp_path, answer) as account:
        real = account.journal.add_entry

        def sign_then_lose(*arguments: object) -> None:
            real(*arguments)
            away["now"] = True

        account.journal.add_entry = sign_then_lose
        with pytest.raises((TransactionPending, NodeUnreachable), match=r"run again|no node"):
            account.send("join", "join", task, 5)
        away["now"] = False
        assert account.send("join", "join", task, 5).status


@pytest.mark.parametrize("price", ["tip", "base fee"])
def test_a_node_cannot_name_any_price(ledger, account, task, price: str) -> None:
    """The tip goes to whoever makes the block: perhaps the very node that suggests it."""
    if price == "tip":
        replace(ledger, "eth_maxPriorityFeePerGas", lambda: hex(10**15))
    else:
        real = ledger.eth_getBlockByNumber
        high = {"baseFeePerGas": hex(10**15)}
        replace(ledger, "eth_getBlockByNumber", lambda *given: real(*given) | high)
    included = len(ledger.included)
    with pytest.raises(ClientError, match=f"fee_high: the node names a {price}"):
        account.send("join", "join", task, 5)
    assert len(ledger.included) == included
    assert account.journal.get_entry("join") is None


# -- nodes that are slow ---------------------------------------------------------------------------
def test_an_account_with_many_transactions_can_send_by_a_node_that_is_slow(
    ledger, tmp_path, task
) -> None:
    """Where all are asked for the nonce there is less patience. Silence contradicts nothing."""

    def be_slow(request: httpx.Request) -> httpx.Response:
        if request.extensions["timeout"]["read"] == EACH_TIMEOUT_SECONDS:
            raise httpx.ReadTimeout("slow", request=request)
        return ledger.answer(request)

    ledger.nonces[bytes.fromhex(HOSPITAL.address[2:])] = 5_000
    with open_account(Account, ledger, HOSPITAL, tmp_path, be_slow) as account:
        assert account.send("join", "join", task, 5).status


def test_a_file_that_takes_long_to_upload_is_given_to_one_node_only(
    ledger, organisation, tmp_path
) -> None:
    """The node has it; until a block takes it there is nothing more to do, and no line to fill."""
    task = organisation.publish(make_task(max_clients=2, admission="applicants")).number
    uploads: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "HEAD":
            return httpx.Response(200 if request.url.host in uploads else 404)
        if request.method == "PUT":
            uploads.append(request.url.host)
            ledger.now += 100
            ledger.is_mining = False
        return ledger.answer(request)

    def sleep(seconds: float) -> None:
        ledger.now += seconds
        ledger.is_mining = ledger.is_mining or ledger.now > started + 105
        ledger.mine()

    urls = ["http://one.test", "http://two.test", "http://three.test"]
    rpc = Rpc(urls, transport=httpx.MockTransport(answer), sleep=sleep)
    clock = Clock(lambda: ledger.now, sleep)
    with Client(rpc, HOSPITAL, state=tmp_path / "s", clock=clock) as client:
        started = ledger.now
        client.apply(task, "St. Mary's")
    assert uploads == ["one.test"]


def test_what_a_young_node_has_no_receipt_of_is_not_done_twice(ledger, tmp_path, task) -> None:
    """It began at a checkpoint: it knows the nonce, and not which transaction had it."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host != "young.test":
            return ledger.answer(request)
        known, ledger.receipts = ledger.receipts, {}
        told = ledger.answer(request)
        ledger.receipts = known
        return told

    rpc = Rpc(["http://young.test", "http://old.test"], transport=httpx.MockTransport(answer))
    clock = Clock(lambda: ledger.now, ledger.sleep)
    with Account(rpc, HOSPITAL, state=tmp_path, clock=clock) as account:
        receipt = account.send("fund", "fund", task, value=5)
        assert account.journal.get_entry("fund").status is Status.INCLUDED
    assert receipt.status
    assert ledger.nonces[bytes.fromhex(HOSPITAL.address[2:])] == 1


# -- a chain that stands still ---------------------------------------------------------------------
def test_a_chain_that_stands_still_is_told_once_with_its_height(ledger, tmp_path, task) -> None:
    lines: list[tuple[float, str]] = []
    started = ledger.now

    def sleep(seconds: float) -> None:
        ledger.is_mining = ledger.now > started + 100
        ledger.sleep(seconds)

    with open_account(Account, ledger, HOSPITAL, tmp_path) as account:
        account.clock = account.outbox.clock = Clock(lambda: ledger.now, sleep)
        account.outbox._report = lambda line: lines.append((ledger.now - started, line))
        ledger.is_mining, head = False, ledger.height
        assert account.send("join", "join", task, 5).status
    (at, line), *rest = lines
    assert line.startswith(f"the chain stands still: no block after {head} since ")
    assert line.endswith(
        "join waits for the next one. Stopping here and running the same again "
        "later is safe: nothing is sent twice"
    )
    assert 15 <= at < 20
    assert rest == []


def test_a_chain_that_goes_on_without_ours_is_told(ledger) -> None:
    stillness = Stillness("join")
    assert [stillness.observe(*seen) for seen in [(7, 0), (7, 14.9), (6, 14.9)]] == ["", "", ""]
    assert "no block after 7 since" in stillness.observe(6, 15)
    assert stillness.observe(7, 90) == ""
    assert stillness.observe(8, 91) == "blocks come again: the head is 8"
    assert stillness.observe(8, 105) == ""


# -- threads ---------------------------------------------------------------------------------------
def test_an_account_works_in_another_thread_than_it_was_opened_in(ledger, tmp_path, task) -> None:
    account = open_account(Client, ledger, HOSPITAL, tmp_path)
    with ThreadPoolExecutor(1) as pool:
        receipt = pool.submit(account.join, task, 5).result(60)
        assert receipt is not None
        assert account.leave(task) == 0
        pool.submit(account.close).result(60)
    with open_account(Client, ledger, HOSPITAL, tmp_path) as again:
        assert again.journal.get_entries()


def test_threads_that_share_an_account_send_one_after_the_other(ledger, account, task) -> None:
    """Both would choose the same nonce: one transaction would be thrown away."""
    real, others = ledger.eth_maxPriorityFeePerGas, []

    def send(label: str) -> None:
        account.send(label, "fund", task, value=5)

    def let_the_other_try() -> str:
        """The nonce is chosen, and nothing signed: the other has the time to do all of its own."""
        if not others:
            others.append(threading.Thread(target=send, args=("two",)))
            others[0].start()
            others[0].join(0.2)
        return real()

    replace(ledger, "eth_maxPriorityFeePerGas", let_the_other_try)
    send("one")
    others[0].join(60)
    found = [(entry.label, entry.nonce) for entry in account.journal.get_entries()]
    assert found == [("one", 0), ("two", 1)]


def test_what_a_transaction_waits_for_is_told_once(ledger, tmp_path, task) -> None:
    lines: list[str] = []
    fill_pool(ledger, 7)
    with open_account(Account, ledger, HOSPITAL, tmp_path, report=lines.append) as account:
        assert account.send("join", "join", task, 5).status
    assert [line.split(":")[0] for line in lines] == ["still waiting for join"]


def test_what_does_no_harm_twice_is_not_signed_for_ever(ledger, organisation) -> None:
    """Each costs gas, and a node without receipts would have one after the other."""
    published = organisation.publish(make_task(admission="invited", max_clients=5))

    def answer(name: str) -> None:
        assert len(ledger.included) < 10, "the same was signed again and again"

    ledger.eth_getTransactionReceipt = answer
    with pytest.raises(ClientError) as caught:
        published.invite(HOSPITAL.address)
    assert caught.value.code == "sending_unclear"
    assert len(ledger.included) == 1 + MAX_SIGNED

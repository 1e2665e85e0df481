"""Coins are added to a reward, a stake or a sponsorship once, however often a run is killed.

Kills between any two steps are in test_kills.py, the commands in test_sending.py.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from steelyard.client.errors import ClientError, NodeRefused, Reverted, TransactionPending
from steelyard.client.organisation import Organisation, PublishedTask
from steelyard.client.state import Journal, Status

from .agreement import TasksRefusal
from .conftest import HOSPITAL, ORGANISATION, make_task, open_account
from .ledger import Ledger, Refused
from .test_kills import Fuse, Killed, live

SITE = bytes.fromhex(HOSPITAL.address[2:])
OTHER = "0x" + "77" * 20
SENT = "eth_sendRawTransaction"


@pytest.fixture
def task(organisation, hospital) -> PublishedTask:
    """Published, with the hospital in it, and not started."""
    published = organisation.publish(make_task(base_stake=50, max_clients=3))
    hospital.join(published.number, 5)
    return published


def get_stake(ledger: Ledger) -> int:
    return ledger.tasks[1].members[SITE].stake


def test_the_same_can_be_added_again_once_it_was_told(ledger, task, hospital) -> None:
    before = ledger.tasks[1].reward_left
    assert task.fund(5).hash != task.fund(5).hash
    assert ledger.tasks[1].reward_left == before + 10
    assert hospital.add_stake(1, 7) == hospital.add_stake(1, 7) == 7
    assert get_stake(ledger) == 64
    task.sponsor(OTHER, stake=3, gas=2)
    task.sponsor(OTHER, stake=3, gas=2)
    assert ledger.tasks[1].sponsorships == {bytes.fromhex(OTHER[2:]): 6}


def in_two_threads(ledger: Ledger, method: str, act: Callable[[], object]) -> list[object]:
    """What both got, where the second begins when the first has its first answer to `method`."""
    real, others, got = getattr(ledger, method), [], []

    def let_the_other_try(*words: object, **more: object) -> object:
        answer = real(*words, **more)
        if not others:
            others.append(threading.Thread(target=lambda: got.append(act())))
            others[0].start()
            others[0].join(0.1)
        return answer

    setattr(ledger, method, let_the_other_try)
    got.append(act())
    others[0].join(60)
    setattr(ledger, method, real)
    return got


def test_two_threads_add_coins_of_their_own(ledger, task, hospital) -> None:
    before = ledger.tasks[1].reward_left
    first, second = in_two_threads(ledger, SENT, lambda: task.fund(5))
    assert first.hash != second.hash
    assert ledger.tasks[1].reward_left == before + 10
    assert in_two_threads(ledger, SENT, lambda: hospital.add_stake(1, 7)) == [7, 7]
    assert get_stake(ledger) == 64


def test_two_threads_fill_a_stake_up_once(ledger, task, hospital) -> None:
    ledger.tasks[1].members[SITE].stake -= 20
    assert sorted(in_two_threads(ledger, "eth_call", lambda: hospital.add_stake(1))) == [0, 20]
    assert get_stake(ledger) == 50


def lose_receipts(ledger: Ledger) -> None:
    """As a node that began after their blocks. A client that signs for ever is stopped."""
    most = len(ledger.included) + 5

    def answer(name: str) -> None:
        assert len(ledger.included) < most, "the same was signed again and again"

    ledger.eth_getTransactionReceipt = answer


def test_coins_whose_receipt_is_lost_are_not_added_twice(ledger, task, hospital) -> None:
    before = ledger.tasks[1].reward_left
    real = ledger.eth_getTransactionReceipt
    lose_receipts(ledger)
    for act in (lambda: task.fund(5), lambda: hospital.add_stake(1, 7)):
        with pytest.raises(ClientError) as caught:
            act()
        assert caught.value.code == "sending_unclear"
    assert (ledger.tasks[1].reward_left, get_stake(ledger)) == (before + 5, 57)
    ledger.eth_getTransactionReceipt = real
    task.fund(5)
    assert ledger.tasks[1].reward_left == before + 10, "whoever was told may send again"


def test_no_node_can_say_in_our_words_that_coins_are_unclear(ledger, task) -> None:
    """It has them, and says otherwise: whoever believed it would send them twice."""
    before = ledger.tasks[1].reward_left
    real = ledger.eth_sendRawTransaction

    def take_and_deny(raw: str) -> None:
        real(raw)
        raise Refused(-32000, "sending_unclear: lost", {"code": "sending_unclear"})

    ledger.eth_sendRawTransaction = take_and_deny
    with pytest.raises(NodeRefused, match="sending_unclear"):
        task.fund(5)
    ledger.eth_sendRawTransaction = real
    task.fund(5)
    assert ledger.tasks[1].reward_left == before + 5


def refuse_for_ever(ledger: Ledger, *, is_taken: bool) -> None:
    """The next transaction, in the node's words; whether it keeps and spreads it all the same."""
    real = ledger.eth_sendRawTransaction

    def refuse(raw: str) -> None:
        ledger.eth_sendRawTransaction = real
        if is_taken:
            real(raw)
        raise Refused(-32000, "tx_signature: no", {"code": "tx_signature"})

    ledger.eth_sendRawTransaction = refuse


@pytest.mark.parametrize("has_other_price", [False, True])
def test_a_node_that_refuses_and_passes_on_all_the_same_has_no_coins_sent_twice(
    ledger, task, monkeypatch, has_other_price: bool
) -> None:
    before = ledger.tasks[1].reward_left
    refuse_for_ever(ledger, is_taken=True)
    with pytest.raises(NodeRefused, match="tx_signature"):
        task.fund(5)
    with monkeypatch.context() as patch:
        if has_other_price:  # then it is another transaction
            patch.setattr(ledger, "eth_maxPriorityFeePerGas", lambda: hex(2))
        with suppress(ClientError):
            task.fund(5)
    assert ledger.tasks[1].reward_left == before + 5


def test_what_was_refused_for_ever_is_sent_anew_with_its_nonce(ledger, task) -> None:
    before = ledger.tasks[1].reward_left
    refuse_for_ever(ledger, is_taken=False)
    with pytest.raises(NodeRefused, match="tx_signature"):
        task.fund(5)
    task.fund(5)
    assert ledger.tasks[1].reward_left == before + 5
    first, second = task.organisation.journal.get_entries("once/")
    assert (first.nonce, first.attempt) == (second.nonce, second.attempt - 1)
    task.fund(5)
    assert ledger.tasks[1].reward_left == before + 10


def test_what_was_refused_for_ever_is_sent_after_others_that_took_its_nonce(ledger, task) -> None:
    before = ledger.tasks[1].reward_left
    refuse_for_ever(ledger, is_taken=False)
    with pytest.raises(NodeRefused, match="tx_signature"):
        task.fund(5)
    task.fund(7)
    task.fund(5)
    assert ledger.tasks[1].reward_left == before + 12


def test_what_was_refused_for_ever_is_unclear_where_nobody_knows_who_took_its_nonce(
    ledger, task, tmp_path
) -> None:
    before = ledger.tasks[1].reward_left
    refuse_for_ever(ledger, is_taken=False)
    with pytest.raises(NodeRefused, match="tx_signature"):
        task.fund(5)
    with open_account(Organisation, ledger, ORGANISATION, tmp_path / "elsewhere") as other:
        other.get_task(1).fund(7)
    with pytest.raises(ClientError, match="sending_unclear"):
        task.fund(5)
    task.fund(5)
    assert ledger.tasks[1].reward_left == before + 12


def test_that_coins_are_unclear_is_said_before_the_same_sends_anew(
    ledger, task, monkeypatch
) -> None:
    """A command that is killed right after that has said nothing else."""
    lines, real = [], Journal.set_told

    def record_and_die(*words: object) -> None:
        real(*words)
        raise Killed

    task.organisation.report = lines.append
    lose_receipts(ledger)
    monkeypatch.setattr(Journal, "set_told", record_and_die)
    with pytest.raises(Killed):
        task.fund(5)
    assert any("no node has the receipt" in line for line in lines)


def test_a_stake_is_not_filled_up_twice_where_a_receipt_is_lost(ledger, task, hospital) -> None:
    ledger.tasks[1].members[SITE].stake -= 20
    lose_receipts(ledger)
    with pytest.raises(ClientError, match="sending_unclear"):
        hospital.add_stake(1)
    assert hospital.add_stake(1) == 0
    assert get_stake(ledger) == 50


def test_a_stake_is_not_filled_up_on_the_word_of_a_node_that_is_behind(
    ledger, task, hospital
) -> None:
    ledger.tasks[1].members[SITE].stake -= 20
    assert hospital.add_stake(1) == 20
    ledger.tasks[1].members[SITE].stake -= 20
    count = ledger.nonces[SITE]
    ledger.eth_getTransactionCount = lambda address, tag: hex(count - 1)
    with pytest.raises(NodeRefused) as caught:
        hospital.add_stake(1)
    assert caught.value.code == "node_behind"
    assert get_stake(ledger) == 30


def test_a_stake_whose_receipt_is_lost_is_not_filled_up_by_a_node_that_is_behind(
    ledger, task, hospital
) -> None:
    """It has ours in its pool still: another one would be carried out after it."""
    ledger.tasks[1].members[SITE].stake -= 20
    lose_receipts(ledger)
    with pytest.raises(ClientError, match="sending_unclear"):
        hospital.add_stake(1)
    count = ledger.nonces[SITE]
    ledger.tasks[1].members[SITE].stake -= 20  # as that node has it
    ledger.eth_getTransactionCount = lambda address, tag: hex(count - (tag == "latest"))
    with pytest.raises(NodeRefused) as caught:
        hospital.add_stake(1)
    assert caught.value.code == "node_behind"
    assert ledger.nonces[SITE] == count


def test_a_task_whose_receipt_is_lost_is_not_published_twice(ledger, organisation) -> None:
    real = ledger.eth_getTransactionReceipt
    lose_receipts(ledger)
    with pytest.raises(ClientError, match="sending_unclear"):
        organisation.publish(make_task())
    ledger.eth_getTransactionReceipt = real
    assert len(ledger.tasks) == 1
    assert organisation.publish(make_task()).number == 2, "whoever was told may publish anew"
    assert organisation.publish(make_task()).number == 2


def test_sponsorships_of_a_new_task_whose_receipt_is_lost_are_not_given_twice(
    ledger, organisation
) -> None:
    described = make_task(
        allow=[OTHER], base_stake=40, stake_per_sample=2, sponsor_samples=30, max_clients=2
    )
    real = ledger.eth_getTransactionReceipt

    def answer(name: str) -> object:
        assert len(ledger.included) < 5, "the same was signed again and again"
        return real(name) if len(ledger.included) == 1 else None

    ledger.eth_getTransactionReceipt = answer
    with pytest.raises(ClientError, match="sending_unclear"):
        organisation.publish(described)
    assert ledger.tasks[1].sponsorships == {bytes.fromhex(OTHER[2:]): 100}


def refuse_in_block(ledger: Ledger, patch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object, **more: object) -> None:
        raise TasksRefusal("tasks: last round is running")

    patch.setattr(ledger.agreement, "do_fund", refuse)
    patch.setattr(ledger, "eth_estimateGas", lambda call: hex(200_000), raising=False)


def test_what_was_refused_in_its_block_is_a_new_order_next_time(ledger, task, monkeypatch) -> None:
    before = ledger.tasks[1].reward_left
    with monkeypatch.context() as patch:
        refuse_in_block(ledger, patch)
        with pytest.raises(Reverted):
            task.fund(5)
    task.fund(5)
    assert ledger.tasks[1].reward_left == before + 5


def test_who_has_left_is_told_of_the_stake_and_adds_no_more(ledger, task, hospital) -> None:
    with suppress(Killed), hospital.telling():
        hospital.add_stake(1, 7)
        raise Killed
    hospital.leave(1)
    assert hospital.add_stake(1, 7) == 7
    with pytest.raises(ClientError, match="not_joined"):
        hospital.add_stake(1, 7)


# -- when it counts as told ------------------------------------------------------------------------
def test_what_a_program_could_not_write_down_is_told_again(ledger, task) -> None:
    before = ledger.tasks[1].reward_left
    with suppress(Killed), task.organisation.telling():
        first = task.fund(5)
        raise Killed
    assert task.fund(5) == first
    assert task.fund(5) != first
    assert ledger.tasks[1].reward_left == before + 10


def test_one_who_asks_twice_before_writing_down_has_asked_twice(ledger, task) -> None:
    before = ledger.tasks[1].reward_left
    with suppress(Killed), task.organisation.telling():
        hashes = [task.fund(5).hash, task.fund(5).hash]
        raise Killed
    with task.organisation.telling():
        assert [task.fund(5).hash, task.fund(5).hash] == hashes
    assert ledger.tasks[1].reward_left == before + 10


def test_what_one_block_tells_is_told_at_once_or_not_at_all(ledger, task, tmp_path) -> None:
    """Else a run that is killed between two would send the first anew, and the second not."""
    before, fuse = ledger.tasks[1].reward_left, Fuse(None, after=False)

    def fund_twice(account: Organisation) -> None:
        with account.telling():
            account.get_task(1).fund(5)
            account.get_task(1).fund(7)

    live(ledger, tmp_path / "count", fuse, fund_twice, Organisation)
    assert ledger.tasks[1].reward_left == before + 12
    for step, after in ((fuse.count, False), (fuse.count, True), (fuse.count - 1, True)):
        before, state = ledger.tasks[1].reward_left, tmp_path / f"{step}-{after}"
        with pytest.raises(Killed):
            live(ledger, state, Fuse(step, after=after), fund_twice, Organisation)
        live(ledger, state, Fuse(None, after=False), fund_twice, Organisation)
        added = ledger.tasks[1].reward_left - before
        assert added == (24 if (step, after) == (fuse.count, True) else 12)


def test_a_block_in_a_block_ends_with_the_outer_one(ledger, task) -> None:
    with suppress(Killed), task.organisation.telling():
        with task.organisation.telling():
            first = task.fund(5)
        raise Killed
    assert task.fund(5) == first


def test_what_failed_after_it_was_sent_is_told_again_though_the_program_went_on(
    ledger, task
) -> None:
    account = task.organisation
    with account.telling():
        with suppress(Killed), account.telling():
            first = task.fund(5)
            raise Killed
        second = task.fund(7)
    assert task.fund(5) == first
    assert task.fund(7) != second


# -- journals of older versions --------------------------------------------------------------------
def fund_as_before(task: PublishedTask) -> None:
    """As a version that kept no orders."""
    account = task.organisation
    label = account.get_label(task._describe("fund", value=5))
    account.send(label, "fund", task.number, value=5)


def test_what_an_older_version_sent_is_not_taken_for_what_is_asked_now(
    ledger, task, hospital
) -> None:
    """It kept no record of who was told: its fund counts as told, or none could ever follow."""
    before = ledger.tasks[1].reward_left
    fund_as_before(task)
    hospital.send("task/1/stake/7/1", "add_stake", 1, value=7)
    task.fund(5)
    hospital.add_stake(1, 7)
    assert (ledger.tasks[1].reward_left, get_stake(ledger)) == (before + 10, 64)


@pytest.mark.parametrize("is_killed_again", [False, True])
def test_what_an_older_version_left_on_its_way_is_not_sent_twice(
    ledger, task, is_killed_again: bool
) -> None:
    before = ledger.tasks[1].reward_left
    ledger.is_mining = False
    with pytest.raises(TransactionPending):
        fund_as_before(task)
    ledger.is_mining = True
    if is_killed_again:
        with suppress(Killed), task.organisation.telling():
            task.fund(5)
            raise Killed
    task.fund(5)
    assert ledger.tasks[1].reward_left == before + 5
    task.fund(5)
    assert ledger.tasks[1].reward_left == before + 10


def test_what_an_older_version_signed_anew_ends_with_its_last_attempt(
    ledger, task, monkeypatch
) -> None:
    """The first lost its nonce and the second is refused: nothing is left to wait for."""
    before, journal = ledger.tasks[1].reward_left, task.organisation.journal
    with monkeypatch.context() as patch:
        refuse_in_block(ledger, patch)
        ledger.is_mining = False
        with pytest.raises(TransactionPending):
            fund_as_before(task)
        ledger.is_mining = True
        (entry,) = [one for one in journal.get_entries() if "/fund/" in one.label]
        lost = replace(entry, attempt=-1, nonce=entry.nonce - 1, status=Status.REPLACED)
        journal.add_entry(lost, {})
        with pytest.raises(Reverted):
            task.fund(5)
    task.fund(5)
    assert ledger.tasks[1].reward_left == before + 5

"""Coins go to another account once, however often the one who sends them is killed."""

import functools
import importlib
import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steelyard.chain.errors import SteelyardError
from steelyard.chain.types import Address
from steelyard.client.account import Account
from steelyard.client.amounts import coins
from steelyard.client.commands import keyfiles, options
from steelyard.client.errors import ClientError, InvalidState, Reverted
from steelyard.client.keys import create_key
from steelyard.client.organisation import Organisation
from steelyard.client.outbox import Clock
from steelyard.client.participant import Client
from steelyard.client.state import Journal

from .conftest import HOSPITAL, ORGANISATION, make_task, open_account, open_rpc
from .ledger import RICH, Ledger
from .test_kills import Fuse, Killed, live
from .test_orders import SENT, in_two_threads

TO, OTHER = HOSPITAL.address, "0x" + "77" * 20
ORGANISATION_BYTES = bytes.fromhex(ORGANISATION.address[2:])
RECEIVER = Address(bytes.fromhex(TO[2:]))
FEE = 21_000
"""At one wei a gas."""
PASSWORD = "correct horse"


@pytest.fixture
def account(ledger: Ledger, tmp_path: Path):
    with open_account(Account, ledger, ORGANISATION, tmp_path / "state") as opened:
        yield opened


def count_sent(ledger: Ledger) -> int:
    return len([one for one in ledger.included if one.to == RECEIVER])


def test_coins_arrive_and_the_sender_is_told_what_it_cost(ledger, account) -> None:
    done = account.send_coins(TO, coins("2.5"))
    assert ledger.get_balance(RECEIVER) == RICH + coins("2.5")
    assert (done.amount, done.fee, done.left) == (coins("2.5"), FEE, RICH - coins("2.5") - FEE)
    assert ledger.receipts[done.hash]["blockNumber"] == hex(done.height)


def test_coins_need_no_more_than_their_gas_beside_them(ledger, account) -> None:
    """A margin would have to be on the account, too."""
    account.send_coins(TO, 5)
    assert ledger.included[-1].gas == FEE


def test_the_same_coins_can_be_sent_again_once_they_have_arrived(ledger, account) -> None:
    first, second = account.send_coins(TO, 5), account.send_coins(RECEIVER, 5)
    assert first.hash != second.hash
    assert ledger.get_balance(RECEIVER) == RICH + 10


@pytest.mark.parametrize(
    ("to", "amount", "code"),
    [
        ("0x12", 5, "account_malformed"),
        (TO.swapcase().replace("0X", "0x"), 5, "account_malformed"),
        ("0x" + "00" * 20, 5, "account_malformed"),
        (TO, 0, "amount"),
        (TO, -1, "amount"),
        (TO, RICH + 1, "balance_low"),
        (TO, RICH, "balance_low"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_it_is_signed(
    account, to: str, amount: int, code: str
) -> None:
    with pytest.raises(ClientError) as caught:
        account.send_coins(to, amount)
    assert caught.value.code == code
    assert account.journal.get_entries() == []


def test_a_contract_that_takes_no_coins_gets_none(ledger, account) -> None:
    def refuse(call: dict) -> str:
        raise Reverted("no")

    ledger.eth_estimateGas = refuse
    with pytest.raises(Reverted):
        account.send_coins(TO, 5)
    assert account.journal.get_entries() == []


def send(account: Account) -> None:
    account.send_coins(TO, 5)


@pytest.mark.slow
@pytest.mark.parametrize("is_other_between", [False, True])
def test_a_kill_at_any_step_sends_nothing_twice(tmp_path: Path, is_other_between: bool) -> None:
    """Also where another command of the same key has brought the first to its end meanwhile."""
    fuse = Fuse(None, after=False)
    live(Ledger(), tmp_path / "count", fuse, send)
    assert fuse.count > 5
    for step in range(1, fuse.count + 1):
        ledger, state = Ledger(), tmp_path / str(step)
        with pytest.raises(Killed):
            live(ledger, state, Fuse(step, after=False), send)
        if is_other_between:
            live(ledger, state, Fuse(None, False), lambda account: account.outbox.flush())
        live(ledger, state, Fuse(None, False), send)
        assert (count_sent(ledger), ledger.get_balance(RECEIVER)) == (1, RICH + 5), step


def test_two_threads_send_the_same_coins_twice(ledger, account) -> None:
    """Each asked for coins of its own: neither is told of the other's."""
    first, second = in_two_threads(ledger, SENT, lambda: account.send_coins(TO, 5))
    assert first.hash != second.hash
    assert ledger.get_balance(RECEIVER) == RICH + 10


def test_a_journal_from_before_coins_could_be_sent_opens(ledger, tmp_path: Path) -> None:
    with open_account(Account, ledger, ORGANISATION, tmp_path) as account:
        account.journal._db.execute("DROP TABLE told")
    with open_account(Account, ledger, ORGANISATION, tmp_path) as account:
        account.send_coins(TO, 5)
    assert ledger.get_balance(RECEIVER) == RICH + 5


@pytest.mark.parametrize("is_other_between", [False, True])
def test_coins_that_a_node_lacks_the_receipt_of_are_not_signed_again(
    ledger, tmp_path: Path, is_other_between: bool
) -> None:
    """It may have begun after their block: that the nonce is gone may be their own doing."""

    def die(*words: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "set_status", die)
        with pytest.raises(Killed):
            live(ledger, tmp_path, Fuse(None, False), send)
    assert count_sent(ledger) == 1
    ledger.receipts.clear()
    if is_other_between:
        live(ledger, tmp_path, Fuse(None, False), lambda account: account.outbox.flush())
    with pytest.raises(ClientError) as caught:
        live(ledger, tmp_path, Fuse(None, False), send)
    assert caught.value.code == "sending_unclear"
    assert count_sent(ledger) == 1
    live(ledger, tmp_path, Fuse(None, False), send)
    assert count_sent(ledger) == 2, "whoever was told may send again"


# -- the commands ----------------------------------------------------------------------------------
@pytest.fixture
def run(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    create_key(tmp_path / "org.key", PASSWORD, bytes(ORGANISATION.key), scrypt_n=2**4)
    monkeypatch.setenv("STEELYARD_PASSWORD", PASSWORD)
    clock = Clock(lambda: ledger.now, ledger.sleep)
    monkeypatch.setattr(options, "Rpc", lambda nodes: open_rpc(ledger))
    for kind in (Account, Client, Organisation):
        monkeypatch.setattr(options, kind.__name__, functools.partial(kind, clock=clock))

    def run(*words: str, of: str = "keys"):
        app = getattr(importlib.import_module("steelyard.client.commands"), of)
        done = CliRunner().invoke(app, list(words))
        if isinstance(done.exception, SteelyardError):
            raise done.exception
        return done

    return run


def test_a_command_sends_coins_and_says_what_came_of_it(run, ledger, tmp_path: Path) -> None:
    key = ["--key", str(tmp_path / "org.key"), "--state", str(tmp_path / "state")]
    done = run("send", TO, "2.5", *key)
    assert done.exit_code == 0
    assert done.stdout.startswith(f"sent 2.5 coins to {TO}\nin block ")
    assert "for 0.000000000000021 coins; 999997.499999999999979 are left\n" in done.stdout
    told = json.loads(run("send", TO, "2.5", "--json", *key).stdout)
    assert (told["amount"], told["fee"]) == (str(coins("2.5")), str(FEE))
    assert ledger.get_balance(RECEIVER) == RICH + coins(5), "once for each command"


def test_a_command_killed_before_it_could_say_so_sends_nothing_twice(
    run, ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ["--key", str(tmp_path / "org.key"), "--state", str(tmp_path / "state")]

    def die(*words: object) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(keyfiles, "tell", die)
        assert run("send", TO, "2.5", *key).exit_code == 9
    done = run("send", TO, "2.5", *key)
    assert "sent 2.5 coins" in done.stdout
    assert "not sent twice" in done.stderr
    assert ledger.get_balance(RECEIVER) == RICH + coins("2.5")


@pytest.mark.parametrize(
    ("of", "words", "more"),
    [
        ("tasks", "fund 1 2.5", {"reward": coins("2.5")}),
        ("tasks", f"sponsor 1 {OTHER} --stake 2 --gas 0.5", {"sponsored": coins("2.5")}),
        ("clients", "stake 1 2.5", {"stake": coins("2.5")}),
    ],
)
def test_a_command_that_adds_coins_and_could_not_say_so_adds_no_more(
    run, ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of, words, more
) -> None:
    def count() -> Counter:
        task, other = ledger.tasks[1], bytes.fromhex(OTHER[2:])
        return Counter(
            reward=task.reward_left,
            sponsored=task.sponsorships.get(other, 0) + ledger.get_balance(other),
            stake=task.members[ORGANISATION_BYTES].stake,
        )

    def die(*words: object) -> None:
        raise SystemExit(9)

    with open_account(Organisation, ledger, ORGANISATION, tmp_path / "state") as organisation:
        organisation.publish(make_task(base_stake=50, max_clients=3))
    with open_account(Client, ledger, ORGANISATION, tmp_path / "state") as client:
        client.join(1, 5)
    call = [*words.split(), "--key", str(tmp_path / "org.key"), "--state", str(tmp_path / "state")]
    before = count()
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module(f"steelyard.client.commands.{of}"), "tell", die)
        assert run(*call, of=of[:-1]).exit_code == 9
    done = run(*call, of=of[:-1])
    assert (done.exit_code, "not sent twice" in done.stderr) == (0, True)
    assert count() - before == more
    done = run(*call, of=of[:-1])
    assert (done.exit_code, "not sent twice" in done.stderr) == (0, False)
    assert count() - before == {name: 2 * amount for name, amount in more.items()}


def test_a_balance_is_shown_by_address_and_by_key_file(run, ledger, tmp_path: Path) -> None:
    ledger.balances[RECEIVER] = 0
    assert run("balance", TO).stdout == f"0 coins on {TO}\n"
    told = json.loads(run("balance", str(tmp_path / "org.key"), "--json").stdout)
    assert told == {"address": ORGANISATION.address, "balance": str(RICH)}
    with pytest.raises(ClientError, match="account_malformed"):
        run("balance", "nobody.key")
    with pytest.raises(ClientError, match="account_malformed"):
        run("balance", "x" * 300)


def test_an_organisation_and_a_client_send_coins_too(organisation, hospital) -> None:
    organisation.publish(make_task())
    assert organisation.send_coins(hospital.address, 7).amount == 7
    assert hospital.send_coins(organisation.address, 7).amount == 7


# -- two commands at once --------------------------------------------------------------------------
def test_a_command_waits_for_another_with_the_same_key(
    run, ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_account(Account, ledger, ORGANISATION, tmp_path / "state")
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            first.close()

    monkeypatch.setattr(options.time, "sleep", wait)
    key = ["--key", str(tmp_path / "org.key"), "--state", str(tmp_path / "state")]
    done = run("send", TO, "2.5", *key)
    assert (done.exit_code, len(waited)) == (0, 3)
    assert done.stderr.count("another command uses this key") == 1, "said once"


def test_a_command_does_not_wait_for_ever(
    run, account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(options.time, "sleep", waited.append)
    with pytest.raises(InvalidState) as caught:
        run("send", TO, "2.5", "--key", str(tmp_path / "org.key"), "--state", str(account.state))
    assert caught.value.code == "state_in_use"
    assert sum(waited) == 10

"""`steelyard node deposit` puts coins in once, whatever is killed, lost or refused meanwhile."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from click.testing import Result
from eth_abi.abi import encode
from eth_account import Account
from typer.testing import CliRunner

from steelyard.chain.errors import SteelyardError
from steelyard.chain.transactions import Transaction, decode_transaction
from steelyard.node import staking, staking_commands
from steelyard.node.alarms import State
from steelyard.node.sent import DEPOSIT_FILE, MAX_FILE_BYTES, SentFile
from steelyard.node.staking import StakingAccount, encode_call
from steelyard.node.staking_commands import add_commands

from .world import CHAIN_ID, COIN, SECRETS, sign_transaction

GENESIS_HASH = "0x" + "07" * 32
VALIDATOR = "(address,bytes,bytes32,string,address,uint256)"
STANDING = "(uint8,uint256,uint256,uint256)"
WHO = "0x" + SECRETS.address.hex()
ADD_STAKE, ENTER = (bytes.fromhex(encode_call(name)[2:]) for name in ("add_stake()", "enter()"))
APP = typer.Typer()
add_commands(APP)


class Killed(BaseException):
    """The process ends here."""


@dataclass
class Chain:
    """A node and its contract Staking, as far as the command asks them. Each poll makes a block."""

    state: State = State.ACTIVE
    stake: int = 0
    pool: list[Transaction] = field(default_factory=list)
    receipts: dict[str, Any] = field(default_factory=dict)
    nonce: int = 0
    steps_left: int = -1
    """So many questions and changes of files are left before the process is killed; -1: enough."""
    refusals: dict[str, Any] = field(default_factory=dict)
    """A method and the answers that it gives next, instead of doing anything."""
    is_mining: bool = True
    may_enter: bool = True

    def step(self) -> None:
        if self.steps_left == 0:
            raise Killed
        self.steps_left -= 1

    def post(self, _url: str, *, json: dict[str, Any], timeout: float) -> httpx.Response:
        del timeout
        self.step()
        method, params = json["method"], json["params"]
        refusal = self.refusals.pop(method, None)
        if refusal is not None:
            return httpx.Response(200, json=refusal)
        answer = getattr(self, method.removeprefix("eth_"))(*params)
        self.step()  # what it asked for is done, and the answer never comes
        return httpx.Response(200, json=answer if "error" in answer else {"result": answer["is"]})

    def call(self, call: dict[str, str], _block: str) -> dict[str, Any]:
        word = {encode_call(f"{name}(address)", WHO): name for name in ("get_standing", "banned")}
        name = word.get(call["data"], "get_validator")
        if name == "banned":
            output = bytes(32)
        elif name == "get_standing":
            output = encode([STANDING], [(self.state, 0, 0, 0)])
        else:
            output = encode([VALIDATOR], [(WHO, b"", bytes(32), "a:1", WHO, self.stake)])
        return {"is": "0x" + output.hex()}

    def getBalance(self, *_: str) -> dict[str, Any]:
        return {"is": hex(COIN)}

    def gasPrice(self) -> dict[str, Any]:
        return {"is": hex(10**9)}

    def estimateGas(self, call: dict[str, str]) -> dict[str, Any]:
        if bytes.fromhex(call["data"][2:]) == ENTER and not self.may_enter:
            return {"error": {"code": 3, "message": "staking: the set is full"}}
        return {"is": hex(100_000)}

    def getTransactionCount(self, _who: str, block: str) -> dict[str, Any]:
        return {"is": hex(self.nonce + (len(self.pool) if block == "pending" else 0))}

    def sendRawTransaction(self, raw: str) -> dict[str, Any]:
        sent = decode_transaction(bytes.fromhex(raw[2:]))
        if sent.nonce < self.nonce:
            return {"error": {"code": -32000, "message": "used", "data": {"code": "tx_nonce_low"}}}
        if sent not in self.pool:
            self.pool.append(sent)
        return {"is": "0x" + sent.hash.hex()}

    def getTransactionReceipt(self, name: str) -> dict[str, Any]:
        found = self.receipts.get(name)
        if self.is_mining:
            self.mine()
        return {"is": found}

    def mine(self) -> None:
        for sent in self.pool:
            assert sent.nonce == self.nonce, "the command signs each nonce once"
            self.nonce += 1
            self.receipts["0x" + sent.hash.hex()] = {"status": "0x1"}
            self.stake += sent.value
            if sent.data != ADD_STAKE:  # `enter` or `deposit`
                self.state = State.ACTIVE
        self.pool.clear()


class Desk:
    """An operator at a terminal, with a validator's directory."""

    def __init__(self, chain: Chain, directory: Path) -> None:
        self.chain, self.directory = chain, directory
        self.file = SentFile(directory, SECRETS.address, GENESIS_HASH)
        self.seconds = 0.0

    def open_account(self, *_: object) -> tuple[StakingAccount, Any]:
        account = StakingAccount(
            "http://node",
            SECRETS.account,
            CHAIN_ID,
            GENESIS_HASH,
            self.file,
            lambda: self.seconds,
            self.sleep,
        )
        return account, SECRETS

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def run(self, coins: str = "5") -> Result:
        line = ["deposit", str(self.directory), "--stake", coins, "--endpoint", "a.example:1"]
        return CliRunner().invoke(APP, [*line, "--json"])

    def is_killed(self, steps: int) -> bool:
        """Run it for so many steps, and return whether that was before its end."""
        self.chain.steps_left = steps
        try:
            result = self.run()
        except Killed:
            return True
        finally:
            self.chain.steps_left = -1
        assert result.exit_code == 0, result.exception
        return False

    def fail(self, coins: str = "5") -> str:
        """Run it, and return the code of what goes wrong."""
        error = self.run(coins).exception
        assert isinstance(error, SteelyardError), error
        return error.code


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    chain = Chain()
    desk = Desk(chain, tmp_path)

    def replace(*arguments: Any) -> None:
        chain.step()
        os_replace(*arguments)
        chain.step()

    def remove(file: SentFile) -> None:
        chain.step()
        sent_file_remove(file)

    os_replace, sent_file_remove = os.replace, SentFile.remove
    with monkeypatch.context() as patch:
        patch.setattr(staking.httpx, "post", chain.post)
        patch.setattr(staking_commands, "open_account", desk.open_account)
        patch.setattr(os, "replace", replace)
        patch.setattr(SentFile, "remove", remove)
        yield desk


# -- kills -----------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("state", [State.NOBODY, State.ACTIVE, State.WAITING])
def test_killed_at_any_step_and_run_again_it_puts_in_coins_once(desk: Desk, state: State) -> None:
    for steps in range(200):
        desk.chain.state, desk.chain.stake = state, 0
        is_killed = desk.is_killed(steps)
        if is_killed:
            assert not desk.is_killed(-1)
        assert desk.chain.stake == 5 * COIN, f"killed after {steps} steps"
        assert desk.chain.state == State.ACTIVE
        assert list(desk.directory.iterdir()) == []
        if not is_killed:
            break
    assert 20 < steps < 199


def test_once_it_has_said_so_the_same_adds_as_much_again(desk: Desk) -> None:
    first, second = (json.loads(desk.run().stdout) for _ in range(2))
    assert (first["stake"], second["stake"]) == (str(5 * COIN), str(10 * COIN))
    assert first["transaction"] != second["transaction"]
    assert [path.name for path in desk.directory.iterdir()] == []


def test_another_amount_is_told_of_the_first_and_is_put_in_beside_it(desk: Desk) -> None:
    desk.chain.is_mining = False
    assert desk.fail("5") == "transaction_pending"
    desk.chain.is_mining = True
    result = desk.run("7")
    assert "an earlier run put in 5 coins: 0x" in result.stderr
    assert desk.chain.stake == 12 * COIN


# -- what nodes do ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "answer",
    [
        {"error": {"code": -32000, "message": "poor", "data": {"code": "tx_balance"}}},
        {"error": {"code": -32603, "message": "something else"}},
        {"nothing": 1},
    ],
)
def test_what_a_node_did_not_take_is_sent_by_the_next_run(desk: Desk, answer: Any) -> None:
    desk.chain.refusals["eth_sendRawTransaction"] = answer
    code = desk.fail()
    assert desk.file.path.exists() == (code != "tx_balance"), "a refusal is clear, the rest is not"
    assert desk.run().exit_code == 0
    assert desk.chain.stake == 5 * COIN


def test_coins_whose_nonce_another_took_are_unclear_once(desk: Desk) -> None:
    desk.chain.is_mining = False
    assert desk.fail() == "transaction_pending"
    desk.chain.pool.clear()
    desk.chain.nonce, desk.chain.is_mining = 1, True  # the keeper's, and ours is gone
    assert desk.fail() == "sending_unclear"
    assert desk.run().exit_code == 0
    assert desk.chain.stake == 5 * COIN


def test_that_coins_are_unclear_is_said_before_the_same_sends_anew(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that is killed right after that has said nothing else."""
    desk.chain.is_mining = False
    assert desk.fail() == "transaction_pending"
    desk.chain.pool.clear()
    desk.chain.nonce = 1
    real = SentFile.remove

    def remove_and_die(file: SentFile) -> None:
        real(file)
        raise SystemExit(9)

    monkeypatch.setattr(SentFile, "remove", remove_and_die)
    result = desk.run()
    assert result.exit_code == 9
    assert "has no receipt" in result.stderr


def test_no_node_can_say_in_our_words_that_coins_are_unclear(desk: Desk) -> None:
    desk.chain.is_mining = False
    assert desk.fail() == "transaction_pending"
    refusal = {"error": {"code": -32000, "message": "", "data": {"code": "sending_unclear"}}}
    desk.chain.refusals["eth_sendRawTransaction"] = refusal
    assert desk.fail() == "sending_unclear"
    desk.chain.is_mining = True
    assert desk.run().exit_code == 0
    assert desk.chain.stake == 5 * COIN


def test_what_is_in_a_block_by_the_time_of_a_refusal_is_not_unclear(desk: Desk) -> None:
    desk.chain.is_mining = False
    assert desk.fail() == "transaction_pending"
    desk.chain.mine()
    desk.chain.refusals["eth_getTransactionReceipt"] = {"result": None}
    assert desk.run().exit_code == 0
    assert desk.chain.stake == 5 * COIN


def test_while_its_nonce_is_free_nothing_else_is_signed(desk: Desk) -> None:
    desk.chain.is_mining = False
    assert desk.fail() == "transaction_pending"
    kept = desk.file.path.read_bytes()
    refusal = {"error": {"code": -32000, "message": "", "data": {"code": "tx_pool_full"}}}
    for coins in ("5", "7"):
        desk.chain.refusals["eth_sendRawTransaction"] = refusal
        assert desk.fail(coins) == "tx_pool_full"
    assert desk.file.path.read_bytes() == kept


def test_what_failed_in_its_block_moved_no_coins_and_is_forgotten(desk: Desk) -> None:
    desk.chain.refusals["eth_getTransactionReceipt"] = {"result": {"status": "0x0"}}
    assert desk.fail() == "reverted"
    assert not desk.file.path.exists()


def test_coins_that_win_no_place_are_in_all_the_same(desk: Desk) -> None:
    desk.chain.state, desk.chain.may_enter = State.WAITING, False
    result = desk.run()
    assert isinstance(result.exception, SteelyardError)
    assert result.exception.code == "reverted"
    assert "5 coins were put in: 0x" in result.stderr
    assert desk.run().exception is not None
    assert desk.chain.stake == 10 * COIN


def test_a_place_that_was_not_asked_for_yet_is_asked_for_by_the_next_run(desk: Desk) -> None:
    desk.chain.state = State.WAITING
    ask = desk.chain.estimateGas

    def be_silent_about_enter(call: dict[str, str]) -> dict[str, Any]:
        return {"error": "?"} if bytes.fromhex(call["data"][2:]) == ENTER else ask(call)

    desk.chain.estimateGas = be_silent_about_enter  # type: ignore[method-assign]
    assert desk.fail() == "rpc_error"
    desk.chain.estimateGas = ask  # type: ignore[method-assign]
    assert desk.run().exit_code == 0
    assert (desk.chain.stake, desk.chain.state) == (5 * COIN, State.ACTIVE)


# -- the file --------------------------------------------------------------------------------------
def get_code(act: Callable[[], object]) -> str:
    with pytest.raises(SteelyardError) as caught:
        act()
    return caught.value.code


def sign(secret: bytes) -> bytes:
    return sign_transaction(Account.from_key(secret), 7, value=5 * COIN)


RAW = sign(SECRETS.account.to_bytes())


def test_what_is_kept_is_for_its_owner_only(tmp_path: Path) -> None:
    file = SentFile(tmp_path, SECRETS.address, GENESIS_HASH)
    assert file.read() is None
    file.write(RAW)
    assert file.read() == decode_transaction(RAW)
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [DEPOSIT_FILE]
    file.remove()
    file.remove()
    assert file.read() is None


def test_a_second_run_beside_the_first_is_refused_and_forgets_nothing_of_it(desk: Desk) -> None:
    """It would tell of the first one's coins, and have them forgotten before their end."""
    with desk.file.hold():
        for coins in ("5", "7"):
            assert desk.fail(coins) == "deposit_busy"
    assert (desk.chain.pool, desk.chain.stake) == ([], 0)
    assert desk.run().exit_code == 0


def test_what_a_kill_left_half_written_is_replaced(desk: Desk) -> None:
    desk.file.path.with_name(f"{DEPOSIT_FILE}.new").write_bytes(b"{" * 9_999)
    assert desk.run().exit_code == 0
    assert list(desk.directory.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "other"},
        {"version": 2},
        {"genesis_hash": "0x" + "08" * 32},
        {"more": 1},
        {"raw": "0x" + sign(b"\x09" * 32).hex()},
        {"raw": "0x" + RAW[:-1].hex()},
        {"raw": "0xzz"},
        {"raw": "0x"},
        {"raw": None},
        {"raw": 5},
        {"raw": "0x" + "00" * MAX_FILE_BYTES},
    ],
)
def test_a_file_that_is_not_this_accounts_is_refused_and_nothing_sent(
    desk: Desk, changes: dict[str, Any]
) -> None:
    desk.file.write(RAW)
    document = json.loads(desk.file.path.read_text()) | changes
    desk.file.path.write_text(json.dumps(document))
    assert desk.fail() == "deposit_file"
    assert (desk.chain.pool, desk.chain.stake) == ([], 0)


@pytest.mark.parametrize("data", [b"", b"[]", b"7", b"{", b"\xff", b"[" * MAX_FILE_BYTES, b"{}"])
def test_a_damaged_file_is_refused_and_nothing_sent(desk: Desk, data: bytes) -> None:
    desk.file.path.write_bytes(data)
    assert desk.fail() == "deposit_file"
    assert (desk.chain.pool, desk.chain.stake) == ([], 0)


def test_without_a_place_to_write_nothing_is_sent(desk: Desk) -> None:
    desk.file.path = desk.directory / "missing" / DEPOSIT_FILE
    assert desk.fail() == "deposit_file"
    assert (desk.chain.pool, desk.chain.stake) == ([], 0)
    assert get_code(lambda: desk.file.write(RAW)) == "deposit_file"
    desk.file.path.parent.write_bytes(b"")
    assert get_code(desk.file.read) == "deposit_file"
    assert get_code(desk.file.remove) == "deposit_file"

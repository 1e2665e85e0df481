"""A validator's calls to Staking: what a node answers is checked, what it refuses is shown."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_abi.abi import encode
from eth_utils.abi import function_signature_to_4byte_selector
from typer.testing import CliRunner

from steelyard.chain.errors import SteelyardError
from steelyard.node import staking
from steelyard.node.alarms import State
from steelyard.node.commands import app
from steelyard.node.entries import ENTRY_FILE, encode_entry, make_entry
from steelyard.node.localnet import PASSWORD_FILE, Localnet
from steelyard.node.sent import DEPOSIT_FILE, SentFile
from steelyard.node.staking import FINAL_SECONDS, StakingAccount, encode_call
from steelyard.node.staking_commands import choose_entry, show_coins

from .world import CHAIN_ID, COIN, SECRETS, make_foundation

GENESIS_HASH = "0x" + "07" * 32
Answer = Callable[[str, list[Any]], Any]


def get_code(act: Callable[[], object]) -> str:
    with pytest.raises(SteelyardError) as caught:
        act()
    return caught.value.code


class FakeNode:
    """Answers as a node that is in good order does, except where told otherwise."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "eth_getBlockByNumber": {"hash": GENESIS_HASH},
            "eth_estimateGas": hex(100_000),
            "eth_gasPrice": hex(10**9),
            "eth_getTransactionCount": "0x7",
            "eth_sendRawTransaction": "0x",
            "eth_getTransactionReceipt": {"status": "0x1"},
            "eth_call": None,
        }
        self.asked: list[tuple[str, list[Any]]] = []
        self.seconds = 0.0

    def post(self, _url: str, *, json: dict[str, Any], timeout: float) -> httpx.Response:
        self.asked.append((json["method"], list(json["params"])))
        answer = self.answers[json["method"]]
        body = answer if isinstance(answer, dict) and "error" in answer else {"result": answer}
        return httpx.Response(200, json=body)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    node = FakeNode()
    monkeypatch.setattr(staking.httpx, "post", node.post)
    return node


def open_account(node: FakeNode) -> StakingAccount:
    """One that sends no coins: where it would keep what does is no directory."""
    return StakingAccount(
        "http://node",
        SECRETS.account,
        CHAIN_ID,
        GENESIS_HASH,
        SentFile(Path("missing"), SECRETS.address, GENESIS_HASH),
        lambda: node.seconds,
        node.sleep,
    )


def test_a_node_of_another_chain_gets_nothing(node: FakeNode) -> None:
    open_account(node).check_chain()
    for wrong in ({"hash": "0x" + "08" * 32}, None, [], {"hash": None}):
        node.answers["eth_getBlockByNumber"] = wrong
        assert get_code(open_account(node).check_chain) == "wrong_chain"


def test_a_call_is_signed_sent_and_waited_for(node: FakeNode) -> None:
    sent = open_account(node).act("unjail")
    methods = [method for method, _ in node.asked]
    assert methods[-2:] == ["eth_sendRawTransaction", "eth_getTransactionReceipt"]
    assert node.asked[-1][1] == [sent]
    assert (
        node.asked[0][1][0]["data"] == "0x" + function_signature_to_4byte_selector("unjail()").hex()
    )


@pytest.mark.parametrize(
    ("method", "answer", "code"),
    [
        ("eth_estimateGas", {"error": {"code": 3, "message": "staking: not jailed"}}, "reverted"),
        ("eth_estimateGas", {"error": {"code": -32000, "message": "?"}}, "rpc_error"),
        ("eth_estimateGas", {"error": "?"}, "rpc_error"),
        ("eth_estimateGas", None, "rpc_answer"),
        ("eth_estimateGas", "many", "rpc_answer"),
        ("eth_gasPrice", hex(10**15), "fee_high"),
        ("eth_getTransactionReceipt", {"status": "0x0"}, "reverted"),
        ("eth_getTransactionReceipt", None, "transaction_pending"),
    ],
)
def test_what_goes_wrong_has_a_code(node: FakeNode, method: str, answer: Any, code: str) -> None:
    node.answers[method] = answer
    assert get_code(lambda: open_account(node).act("withdraw")) == code
    sent = [one for one, _ in node.asked if one == "eth_sendRawTransaction"]
    assert len(sent) == (method == "eth_getTransactionReceipt")


def test_who_withdraws_too_early_learns_when_it_is_time(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = {"error": {"code": 3, "message": "staking: still unbonding"}}
    node.answers["eth_estimateGas"] = refusal
    row = (State.LEAVING, 3, 4, 1_800_000_000)
    words = encode(["(uint8,uint256,uint256,uint256)"], [row])
    validator = encode(
        ["(address,bytes,bytes32,string,address,uint256)"],
        [("0x" + "11" * 20, b"", bytes(32), "a:1", "0x" + "11" * 20, COIN)],
    )

    views = iter([words, bytes(32), validator])
    ask = StakingAccount._ask

    def answer(account: StakingAccount, method: str, *params: Any) -> Any:
        return "0x" + next(views).hex() if method == "eth_call" else ask(account, method, *params)

    with monkeypatch.context() as patch:
        patch.setattr(StakingAccount, "_ask", answer)
        with pytest.raises(SteelyardError, match="from 2027-01-15 08:00:00Z on") as caught:
            open_account(node).act("withdraw")
    assert caught.value.code == "reverted"
    node.answers["eth_call"] = "0x" + encode(["(uint8,uint256,uint256,uint256)"], [(0,) * 4]).hex()
    with pytest.raises(SteelyardError, match="node exit DIR"):
        open_account(node).act("withdraw")
    node.answers["eth_call"] = {"error": "?"}
    with pytest.raises(SteelyardError, match=r"still unbonding$"):
        open_account(node).act("withdraw")


def test_a_refusal_of_the_pool_keeps_its_code(node: FakeNode) -> None:
    data = {"code": "tx_balance"}
    node.answers["eth_sendRawTransaction"] = {"error": {"code": -32000, "data": data}}
    assert get_code(lambda: open_account(node).act("withdraw")) == "tx_balance"


def test_waiting_ends(node: FakeNode) -> None:
    node.answers["eth_getTransactionReceipt"] = None
    assert get_code(lambda: open_account(node).act("withdraw")) == "transaction_pending"
    assert node.seconds >= FINAL_SECONDS


def test_a_node_that_does_not_answer_as_one_is_named(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("", "[]", "{}", "hello"):
        monkeypatch.setattr(
            staking.httpx, "post", lambda *_, text=text, **__: httpx.Response(200, text=text)
        )
        assert get_code(open_account(node).check_chain) == "rpc_answer"

    def refuse(*_: object, **__: object) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(staking.httpx, "post", refuse)
    assert get_code(open_account(node).check_chain) == "node_unreachable"


def test_views_that_do_not_decode_are_refused(node: FakeNode) -> None:
    for output in ("0x", "0x" + "ff" * 32, "zz", 7):
        node.answers["eth_call"] = output
        assert get_code(open_account(node).read) == "rpc_answer"
    node.answers["eth_call"] = "0x" + encode(["(uint8,uint256,uint256,uint256)"], [(0,) * 4]).hex()
    assert open_account(node).read().state == State.NOBODY


def test_calls_are_encoded_as_the_contract_takes_them() -> None:
    assert len(encode_call("withdraw()")) == 2 + 8
    assert encode_call("set_endpoint(string)", "a:1").endswith(b"a:1".hex().ljust(64, "0"))


# -- what is deposited -----------------------------------------------------------------------------
def test_a_deposit_takes_what_the_entry_says_unless_told_otherwise(tmp_path: Path) -> None:
    def choose(endpoint: str | None = None) -> str:
        return choose_entry(tmp_path, SECRETS, 5 * COIN, endpoint, None).endpoint

    assert get_code(choose) == "entry_endpoint"
    assert choose("b:2") == "b:2"
    (tmp_path / ENTRY_FILE).write_bytes(encode_entry(make_entry(SECRETS, "a:1", COIN)))
    assert choose() == "a:1"
    assert choose("b:2") == "b:2"
    entry = choose_entry(tmp_path, SECRETS, 5 * COIN, None, None)
    assert (entry.stake, entry.bls_key) == (5 * COIN, make_entry(SECRETS, "a:1", 1).bls_key)


def test_an_entry_of_other_keys_is_not_deposited(tmp_path: Path) -> None:
    net = Localnet.create(tmp_path / "net", make_foundation(), validators=1)
    assert (
        get_code(lambda: choose_entry(net.get_directory(1), SECRETS, COIN, None, None))
        == "entry_differs"
    )


@pytest.mark.parametrize(
    ("wei", "text"), [(0, "0"), (1, "0." + "0" * 17 + "1"), (15 * 10**17, "1.5"), (10**20, "100")]
)
def test_coins_are_shown_exactly(wei: int, text: str) -> None:
    assert show_coins(wei, as_json=False) == text
    assert show_coins(wei, as_json=True) == str(wei)


# -- with a node that runs -------------------------------------------------------------------------
@pytest.mark.e2e
def test_a_validator_adds_to_its_stake_moves_and_may_not_leave_alone(tmp_path: Path) -> None:
    foundation = make_foundation(heartbeat_ms=200)
    net = Localnet.create(tmp_path / "net", foundation, validators=1)
    home, password = net.get_directory(1), net.directory / PASSWORD_FILE

    def invoke(*words: str) -> dict[str, Any]:
        line = [words[0], str(home), *words[1:], "--json", "--password-file", str(password)]
        result = CliRunner().invoke(app, line)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    try:
        net.start(1)
        net.wait_answer([1])
        shown = CliRunner().invoke(app, ["standing", str(home), "--json"])  # without the password
        assert json.loads(shown.stdout)["state"] == "active"
        assert int(invoke("deposit", "--stake", "5")["stake"]) == 37 * COIN
        assert not (home / DEPOSIT_FILE).exists()
        assert invoke("move", "--endpoint", "v.example:9000")["endpoint"] == "v.example:9000"
        assert get_code(lambda: invoke("exit")) == "reverted"
        assert get_code(lambda: invoke("move", "--endpoint", "x")) == "entry_endpoint"
    finally:
        net.stop()

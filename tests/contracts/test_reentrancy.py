"""A contract wallet that calls back at every place where ether leaves.

Tasks pays by a call that passes all gas on, so that contract wallets can be paid. Whoever is called
can do nothing there meanwhile, not even read half-written books; and a wallet that refuses its
money keeps nobody else from theirs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import vyper
from eth_abi.abi import decode, encode
from eth_hash.auto import keccak

from steelyard.chain.model import encode_model
from steelyard.chain.params import ROUNDS_ADDRESS, TASKS_ADDRESS
from steelyard.chain.types import Address

from .agreement import ONE
from .arena import ZERO, Arena, get_codes
from .player import MANIFEST, VALUES, as_tuple, encode_terms
from .referee import CLIENTS, KEEPER, NO_BLOB, PEOPLE, PUBLISHERS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
CODES = get_codes()
WALLET = Address(b"\x77" * 20)
MONEY = 10**9
ALICE, PUBLISHER = CLIENTS[0], PUBLISHERS[0]
SOURCE = """
struct Attempt:
    target: address
    amount: uint256
    data: Bytes[1024]

attempts: DynArray[Attempt, 24]
refuses: bool
taken: public(DynArray[uint256, 24])
tried: public(uint256)

@external
@payable
def execute(target: address, data: Bytes[4096]):
    raw_call(target, data, value=msg.value)

@external
def arm(refuses: bool, attempts: DynArray[Attempt, 24]):
    self.refuses = refuses
    self.attempts = attempts

@external
@payable
def attempt():
    self._attempt()

@external
@payable
def __default__():
    assert not self.refuses, "wallet: no, thank you"
    self._attempt()

@external
@view
def get_result() -> (uint256, DynArray[uint256, 24]):
    return self.tried, self.taken

@internal
def _attempt():
    self.tried = len(self.attempts)
    self.taken = []
    index: uint256 = 0
    for attempt: Attempt in self.attempts:
        if raw_call(
            attempt.target, attempt.data, value=attempt.amount, revert_on_failure=False
        ):
            self.taken.append(index)
        index += 1
"""
TERMS = {
    "rule": {"kind": 0, "bound": 0, "max_share": ONE, "server_lr": 4_096, "momentum": 0},
    "weighting": 2, "bits": 8, "rounds": 3, "min_clients": 1, "max_clients": 3,
    "fraction_fit": ONE, "spare_clients": 0, "max_staleness": 0, "staleness_discount": 0,
    "on_failed_quorum": 0, "max_extensions": 0, "max_saturated": 0, "evaluate_every": 0,
    "join_seconds": 100, "commit_seconds": 50, "reveal_seconds": 50, "base_stake": 0,
    "stake_per_sample": 1, "bond": 0, "admission": 0, "min_reputation": 0,
    "admission_norm2": 2**200, "reward": 10**6, "close_reserve": 10**8, "close_bounty": 10**5,
    "platform": ZERO, "platform_share": 0,
}  # fmt: skip


def encode_call(signature: str, *values: Any) -> bytes:
    """Return the data of a call with flat arguments."""
    inner = signature[signature.index("(") + 1 : -1]
    types = inner.split(",") if inner else []
    return keccak(signature.encode())[:4] + encode(types, values)


class Stage:
    """A task, and a wallet that can act and attack."""

    def __init__(self, runtime: bytes) -> None:
        self.arena = Arena(PEOPLE, CODES)
        self.arena.install(WALLET, runtime, balance=MONEY)

    def act(self, contract: str, name: str, *arguments: Any, value: int = 0) -> str | None:
        """Have the wallet call a contract; return why it failed."""
        data = self.arena.contracts[contract].encode_call(name, *arguments)
        target = TASKS_ADDRESS if contract == "Tasks" else ROUNDS_ADDRESS
        call = encode_call("execute(address,bytes)", target, data)
        return self.send(call, value)

    def send(self, data: bytes, value: int = 0) -> str | None:
        return self.arena.send_data(KEEPER, WALLET, data, value).error

    def publish(self, publisher: Address | None) -> None:
        """Publish a task from an account, or from the wallet."""
        model = self.arena.put(encode_model(MANIFEST, np.zeros(VALUES, np.int32)))
        arguments = (
            "heart", encode_terms(self.arena, TERMS), as_tuple(model), as_tuple(NO_BLOB), [],
        )  # fmt: skip
        value = TERMS["reward"] + TERMS["rounds"] * TERMS["close_reserve"]
        if publisher is None:
            self.arena.send(ALICE, "Tasks", "fund", 0, blobs=[model])
            assert self.act("Tasks", "publish", *arguments, value=value) is None
        else:
            done = self.arena.send(
                publisher, "Tasks", "publish", *arguments, value=value, blobs=[model]
            )
            assert done.reason is None

    def arm(self, *, refuses: bool = False) -> Sequence[str]:
        """Have the wallet try all of these when it is paid; return their names."""
        contracts = self.arena.contracts
        calls = {
            "fund": (TASKS_ADDRESS, 1, contracts["Tasks"].encode_call("fund", 2)),
            "read the books": (TASKS_ADDRESS, 0, contracts["Tasks"].encode_call("get_account", 1)),
            "read a credit": (
                TASKS_ADDRESS,
                0,
                contracts["Tasks"].encode_call("claimable", 1, WALLET),
            ),
            "join": (TASKS_ADDRESS, 5, contracts["Tasks"].encode_call("join", 2, 5)),
            "claim": (TASKS_ADDRESS, 0, contracts["Tasks"].encode_call("claim", 1)),
            "leave": (TASKS_ADDRESS, 0, contracts["Tasks"].encode_call("leave", 1)),
            "refund": (TASKS_ADDRESS, 0, contracts["Tasks"].encode_call("refund", 1)),
            "unsponsor": (TASKS_ADDRESS, 0, contracts["Tasks"].encode_call("unsponsor", 1, ALICE)),
            "release": (TASKS_ADDRESS, 0, contracts["Tasks"].encode_call("release", 1, WALLET)),
            "cancel": (TASKS_ADDRESS, 0, contracts["Tasks"].encode_call("cancel", 1)),
            "close": (ROUNDS_ADDRESS, 0, contracts["Rounds"].encode_call("close", 1, 1)),
            "ask who is drawn": (
                ROUNDS_ADDRESS,
                0,
                contracts["Rounds"].encode_call("is_drawn", 1, 1, WALLET),
            ),
        }
        attempts = [list(call) for call in calls.values()]
        data = keccak(b"arm(bool,(address,uint256,bytes)[])")[:4]
        data += encode(["bool", "(address,uint256,bytes)[]"], [refuses, attempts])
        assert self.send(data) is None
        return list(calls)

    def get_taken(self, names: Sequence[str]) -> list[str]:
        """Return what the wallet could do the last time."""
        result = self.arena.send_data(KEEPER, WALLET, encode_call("get_result()"))
        tried, taken = decode(["uint256", "uint256[]"], result.output)
        assert tried == len(names), "it was not called"
        return [names[index] for index in taken]

    @property
    def money(self) -> int:
        return self.arena.get_balance(WALLET)


@pytest.fixture(scope="module")
def runtime() -> bytes:
    compiled = vyper.compile_code(SOURCE, output_formats=["bytecode_runtime"])
    return bytes.fromhex(compiled["bytecode_runtime"][2:])


@pytest.fixture
def stage(runtime: bytes) -> Stage:
    return Stage(runtime)


def prepare_claim(stage: Stage) -> tuple[int, Callable[[], str | None]]:
    """The wallet has closed a round."""
    stage.publish(PUBLISHER)
    assert stage.arena.send(ALICE, "Tasks", "join", 1, 5, value=5).reason is None
    assert stage.arena.send(PUBLISHER, "Tasks", "start", 1).reason is None
    stage.arena.advance(60)
    assert stage.act("Rounds", "close", 1, 1) is None
    return stage.arena.ask("Tasks", "claimable", 1, WALLET), lambda: stage.act("Tasks", "claim", 1)


def prepare_leave(stage: Stage) -> tuple[int, Callable[[], str | None]]:
    """The wallet has a stake."""
    stage.publish(PUBLISHER)
    assert stage.act("Tasks", "join", 1, 5, value=12_345) is None
    return 12_345, lambda: stage.act("Tasks", "leave", 1)


def prepare_refund(stage: Stage) -> tuple[int, Callable[[], str | None]]:
    """The wallet has cancelled its task."""
    stage.publish(None)
    assert stage.act("Tasks", "cancel", 1) is None
    return 10**6 + 3 * 10**8, lambda: stage.act("Tasks", "refund", 1)


def prepare_unsponsor(stage: Stage) -> tuple[int, Callable[[], str | None]]:
    """The wallet has sponsored somebody."""
    stage.publish(None)
    assert stage.act("Tasks", "sponsor", 1, ALICE, 0, value=777) is None
    return 777, lambda: stage.act("Tasks", "unsponsor", 1, ALICE)


def prepare_sponsor(stage: Stage) -> tuple[int, Callable[[], str | None]]:
    """The wallet is to be given gas."""
    stage.publish(PUBLISHER)

    def sponsor() -> str | None:
        done = stage.arena.send(PUBLISHER, "Tasks", "sponsor", 1, WALLET, 55, value=100)
        return done.reason

    return 55, sponsor


EXITS = [prepare_claim, prepare_leave, prepare_refund, prepare_unsponsor, prepare_sponsor]


@pytest.mark.parametrize("prepare", EXITS)
def test_whoever_is_paid_can_do_nothing_there_meanwhile(
    stage: Stage, prepare: Callable[[Stage], tuple[int, Callable[[], str | None]]]
) -> None:
    amount, pay = prepare(stage)
    stage.publish(PUBLISHER)
    names = stage.arm()
    before = stage.money
    assert pay() is None
    assert stage.get_taken(names) == []
    assert stage.money == before + amount
    assert stage.arena.count_ether() == stage.arena.supply


@pytest.mark.parametrize("prepare", EXITS)
def test_a_wallet_that_refuses_its_money_loses_none(
    stage: Stage, prepare: Callable[[Stage], tuple[int, Callable[[], str | None]]]
) -> None:
    amount, pay = prepare(stage)
    held = stage.arena.get_balance(Address(TASKS_ADDRESS))
    before = stage.money
    stage.arm(refuses=True)
    assert pay() is not None
    assert stage.arena.get_balance(Address(TASKS_ADDRESS)) == held
    names = stage.arm()
    assert pay() is None
    assert stage.get_taken(names) == []
    assert stage.money == before + amount


def test_the_same_wallet_can_do_all_that_outside_a_payment(stage: Stage) -> None:
    """So it was the lock that kept it from funding, joining and reading."""
    stage.publish(PUBLISHER)
    stage.publish(PUBLISHER)
    names = stage.arm()
    assert stage.send(encode_call("attempt()"), value=10) is None
    taken = {"fund", "read the books", "read a credit", "join", "ask who is drawn"}
    assert set(stage.get_taken(names)) == taken

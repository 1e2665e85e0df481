"""What stands for a node and its contracts in tests of the keeper: it has no chain, only prices."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

from eth_abi.abi import decode, encode
from eth_utils.abi import function_signature_to_4byte_selector

from steelyard.chain.calls import CallRequest, CallResult
from steelyard.chain.errors import SteelyardError
from steelyard.chain.params import ROUNDS_ADDRESS, STAKING_ADDRESS, TASKS_ADDRESS
from steelyard.chain.receipts import Log
from steelyard.chain.transactions import Transaction, decode_transaction
from steelyard.chain.types import Address, Hash
from steelyard.node.config import KeeperConfig, MempoolConfig
from steelyard.node.keeper import ROUND_TYPES, Keeper
from steelyard.node.steps import CLOSE_PAID, PAY_CLOSER, SETTLED, Step
from steelyard.node.wallet import Wallet

from .world import CHAIN_ID, SECRETS

GWEI, TIP = 10**9, 10**6
GAS_USED, METERED_GAS, UNMETERED_GAS = 200_000, 150_000, 80_000
"""Of any call; what `close` meters of it, and what it is paid for the rest."""
GAS = GAS_USED * 130 // 100 + 50_000
"""The limit of a transaction that was tried out."""
TASKS = Address(TASKS_ADDRESS)
SELECTORS = {
    function_signature_to_4byte_selector(signature): signature.partition("(")[0]
    for signature in (
        "task_count()",
        "next_action(uint256)",
        "get_task(uint256)",
        "get_round(uint256,uint256)",
        "get_plan(uint256)",
        "claimable(uint256,address)",
        "start(uint256)",
        "close(uint256,uint256)",
        "abort(uint256)",
        "claim(uint256)",
        PAY_CLOSER,
    )
}
RUNNING, FINISHED, PAUSED = 2, 3, 5
NO_BLOB = (bytes(32), 0)
OF_ROUNDS = ("close", "get_round", "get_plan")
"""Calls of the contract Rounds; all others are of Tasks."""


@dataclass
class Contract:
    """Stands for Tasks and Rounds: what is due, who owes, and which steps would revert."""

    due: dict[int, tuple[Step, int]] = field(default_factory=dict)
    states: dict[int, int] = field(default_factory=dict)
    owed: dict[int, int] = field(default_factory=dict)
    pages: dict[int, int] = field(default_factory=dict)
    splits: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    failing: int = 0
    extensions: int = 0
    reverts: bool = False
    count: int = 0
    reserve: int = 10**18
    bounty: int = 0
    metered: int = METERED_GAS
    is_last: bool = True
    read_base_fee: Callable[[], int] = lambda: GWEI
    looks: list[int] = field(default_factory=list)

    def call(self, to: Address | None, data: bytes) -> tuple[bytes, bool]:
        name, task = SELECTORS[data[:4]], int.from_bytes(data[4:36], "big")
        assert to == (ROUNDS_ADDRESS if name in OF_ROUNDS else TASKS_ADDRESS)
        if name == "task_count":
            return encode(["uint256"], [self.count]), False
        if name == "next_action":
            if task == self.failing:
                return b"", True
            self.looks.append(task)
            step, number = self.due.get(task, (Step.WAIT, 0))
            return encode(["uint8", "uint256"], [step, number]), False
        if name == "get_task":
            state = self.states.get(task, RUNNING)
            return encode(["(string,address,uint8)"], [("name", "0x" + "11" * 20, state)]), False
        if name == "get_round":
            pages = self.pages.get(task, 0)
            times = (0, 0, 0, 0, 0, self.extensions)
            words = (4, NO_BLOB, NO_BLOB, 0, bytes(32), *times, NO_BLOB, 0, pages)
            return encode([ROUND_TYPES], [words]), False
        if name == "get_plan":
            return bytes(18 * 32) + encode(["uint256"] * 3, self.splits.get(task, (0, 1, 9))), False
        if name == "claimable":
            return encode(["uint256"], [self.owed.get(task, 0)]), False
        if self.reverts and name != "pay_closer":
            selector = function_signature_to_4byte_selector("Error(string)")
            return selector + encode(["string"], ["tasks: not due"]), True
        return b"", False

    def pay(self, gas: int, *, is_last: bool) -> int:
        """What Tasks' `pay_closer` would credit."""
        fee = (gas + UNMETERED_GAS) * self.read_base_fee()
        return min(fee + self.bounty if is_last else fee, self.get_left(is_last=is_last))

    def get_left(self, *, is_last: bool) -> int:
        return self.reserve if is_last else self.reserve - self.bounty

    def list_logs(self, data: bytes) -> tuple[Log, ...]:
        """What a close, or the question for its pay, leaves in the log."""
        name, logs = SELECTORS[data[:4]], []
        if name == "close":
            fee = self.pay(self.metered, is_last=self.is_last)
            logs = [Log(TASKS, (Hash(CLOSE_PAID),), encode(["uint256"], [fee]))]
            if self.is_last:
                logs.insert(0, Log(TASKS, (Hash(SETTLED),), bytes(128)))
        if name == "pay_closer":
            _, _, _, gas, is_last = decode(
                ["uint256", "uint256", "address", "uint256", "bool"], data[4:]
            )
            fee = self.pay(gas, is_last=is_last)
            logs = [Log(TASKS, (Hash(CLOSE_PAID),), encode(["uint256"], [fee]))]
        return tuple(logs)


@dataclass
class NodeDouble:
    """The part of a node that the keeper uses."""

    contract: Contract
    config: SimpleNamespace
    base_fee: int = GWEI
    now: float = 0.0
    rank: int = 0
    height: int = 1
    age_seconds: float = 0.0
    ahead_seconds: float | None = None
    is_validator: bool = False
    refusal: SteelyardError | None = None
    sent: list[Transaction] = field(default_factory=list)
    final: int = 0
    keeps_final: bool = False
    """Has the pool not heard of the last block yet?"""
    balance: int = 10**18
    tip: int = TIP
    tried: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rules = SimpleNamespace(chain_id=CHAIN_ID, gas_limit=12_000_000)
        consensus = SimpleNamespace(heartbeat_ms=5_000, timeout_ms=10_000)
        self.genesis = SimpleNamespace(consensus=consensus)
        self.clock = SimpleNamespace(
            get_seconds=lambda: self.now, get_unix_seconds=lambda: 1_000 + self.age_seconds
        )
        clocks = SimpleNamespace(estimate=lambda: self.ahead_seconds)
        self.driver = SimpleNamespace(
            get_rank=lambda: self.rank,
            is_validator=lambda: self.is_validator,
            progress=SimpleNamespace(clocks=clocks),
        )
        self.mempool = SimpleNamespace(get_next_nonce=self.get_free, get_all=self.list_pending)

    def get_head(self) -> SimpleNamespace:
        return SimpleNamespace(height=self.height, timestamp=1_000)

    def get_free(self, _address: Address) -> int | None:
        return len(self.sent) if self.list_pending() else None

    def list_pending(self) -> list[Transaction]:
        return self.sent if self.keeps_final else self.sent[self.final :]

    def get_balance(self, _address: Address) -> int:
        return self.balance

    def get_nonce(self, _address: Address, *, pending: bool) -> int:
        return len(self.sent) if pending else self.final

    def get_suggested_tip(self) -> int:
        return self.tip

    def get_next_base_fee(self) -> int:
        return self.base_fee

    def call(self, request: CallRequest) -> CallResult:
        if request.to == STAKING_ADDRESS:
            return CallResult(b"", GAS_USED, 0, None, False, (), None)
        output, failed = self.contract.call(request.to, request.data)
        error = "reverted" if failed else None
        if request.sender == SECRETS.address:
            self.tried.append(SELECTORS[request.data[:4]])
        logs = self.contract.list_logs(request.data)
        assert not logs or (SELECTORS[request.data[:4]] == "close") == (
            request.sender == SECRETS.address
        ), "only Rounds may ask what it pays"
        return CallResult(output, GAS_USED, 0, error, failed, logs, None)

    def submit_transaction(self, raw: bytes) -> Hash:
        if self.refusal is not None:
            raise self.refusal
        self.sent.append(decode_transaction(raw))
        return self.sent[-1].hash


def build(contract: Contract, **config: object) -> tuple[NodeDouble, Keeper]:
    settings = KeeperConfig(**config)  # type: ignore[arg-type]
    node = NodeDouble(contract, SimpleNamespace(keeper=settings, mempool=MempoolConfig()))
    contract.read_base_fee = lambda: node.base_fee
    return node, Keeper(node, Wallet(node, SECRETS.account))  # type: ignore[arg-type]

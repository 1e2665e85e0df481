"""Chains of real validator processes on this machine, for benchmarks; stopped whatever happens."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import httpx
from eth_account import Account as KeyMaker
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address
from websockets.sync.client import ClientConnection, connect

from steelyard.chain.genesis import GenesisValidator, parse_genesis
from steelyard.chain.params import STAKING_ADDRESS
from steelyard.chain.types import Address
from steelyard.client.evidence import SLASHED
from steelyard.client.rpc import Rpc, as_hex
from steelyard.node.config import NodeConfig, load_config
from steelyard.node.founding import Foundation
from steelyard.node.localnet import LOG_FILE, Localnet

COIN = 10**18
CHAIN_ID = 7700
PATIENCE_SECONDS = 120.0
LOOK_SECONDS = 0.02
LOGS = Path(__file__).resolve().parents[2] / "build" / "bench-logs"
"""Of the last chain that ran."""


def make_account(number: int) -> LocalAccount:
    """Return the same account for the same number."""
    account: LocalAccount = KeyMaker.from_key((1_000_000 + number).to_bytes(32, "big"))
    return account


def get_address(account: LocalAccount) -> Address:
    return Address(bytes.fromhex(account.address[2:]))


def make_foundation(accounts: int, **changes: Any) -> Foundation:
    """Return the choices for a chain on which that many accounts are rich."""
    plan = Foundation(
        chain_id=CHAIN_ID,
        name="bench",
        timestamp=int(time.time()),
        stake=32 * COIN,
        validator_balance=100 * COIN,
        funds={get_address(make_account(number)): 100_000 * COIN for number in range(accounts)},
        heartbeat_ms=1_000,
        timeout_ms=3_000,
        gas_limit=30_000_000,
        blob_retention_seconds=30 * 86_400,
    )
    return replace(plan, **changes)


@contextmanager
def run_cluster(
    *,
    validators: int = 4,
    accounts: int = 8,
    config: NodeConfig | None = None,
    prepare: Callable[[Localnet], None] = lambda _net: None,
    start: Callable[[Localnet, int], object] = Localnet.start,
    **changes: Any,
) -> Iterator[Localnet]:
    """Found a chain, start every validator, wait for its first blocks; end and delete it after.

    `prepare` may change directories before the start, and `start` is how a validator is started;
    `changes` are fields of the foundation.
    """
    with tempfile.TemporaryDirectory(prefix="steelyard-bench-") as temporary:
        net = Localnet.create(
            Path(temporary) / "net",
            make_foundation(accounts, **changes),
            validators=validators,
            config=config,
        )
        prepare(net)
        try:
            for number in net.numbers:
                start(net, number)
            net.wait_final(2, net.numbers, PATIENCE_SECONDS)
            yield net
        finally:
            net.stop()
            keep_logs(net)


def keep_logs(net: Localnet) -> None:
    """Leave what the validators said where the report is, for whoever wonders."""
    LOGS.mkdir(parents=True, exist_ok=True)
    for number in net.numbers:
        shutil.copy(net.get_directory(number) / LOG_FILE, LOGS / f"validator-{number}.log")


@dataclass
class Wallet:
    """An account that sends plain transfers to one validator and hears of its blocks."""

    account: LocalAccount
    url: str
    http: httpx.Client
    socket: ClientConnection
    nonce: int = 0

    @classmethod
    def open(cls, account: LocalAccount, url: str) -> Self:
        """Connect and subscribe to new heads."""
        socket = connect(url.replace("http", "ws"), max_size=None)
        wallet = cls(account, url, httpx.Client(timeout=30), socket)
        socket.send('{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}')
        socket.recv(timeout=30)
        wallet.nonce = int(wallet.call("eth_getTransactionCount", account.address, "latest"), 16)
        return wallet

    def call(self, method: str, *params: object) -> Any:
        """Return the result of a JSON-RPC call."""
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
        answer = self.http.post(self.url, json=body).json()
        assert "result" in answer, answer
        return answer["result"]

    def sign_transfer(self) -> bytes:
        """Return the next transfer of one wei to itself."""
        return self._sign({"to": self.account.address, "value": 1, "gas": 21_000})

    def sign_call(self, contract: Address, data: bytes, gas: int) -> bytes:
        """Return the next call of a contract."""
        return self._sign({"to": to_checksum_address(contract), "data": data, "gas": gas})

    def _sign(self, fields: dict[str, Any]) -> bytes:
        fields |= {
            "type": 2,
            "chainId": CHAIN_ID,
            "nonce": self.nonce,
            "maxFeePerGas": 10**11,
            "maxPriorityFeePerGas": 10**7,
        }
        self.nonce += 1
        return bytes(self.account.sign_transaction(fields).raw_transaction)

    def hand_in(self, raw: bytes) -> float:
        """Send and return the seconds until the same node says that it is final."""
        self._forget_heads()
        started = time.perf_counter()
        name = self.call("eth_sendRawTransaction", "0x" + raw.hex())
        while self.call("eth_getTransactionReceipt", name) is None:
            self.socket.recv(timeout=PATIENCE_SECONDS)
        return time.perf_counter() - started

    def _forget_heads(self) -> None:
        try:
            while True:
                self.socket.recv(timeout=0)
        except TimeoutError:
            return

    def close(self) -> None:
        self.socket.close()
        self.http.close()


def wait_until(
    condition: Callable[[], bool], what: str, patience: float = PATIENCE_SECONDS
) -> float:
    """Return the seconds until it holds. Raises TimeoutError."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > patience:
            raise TimeoutError(f"{what}: not within {patience:.0f} s")
        time.sleep(LOOK_SECONDS)
    return time.monotonic() - started


def get_height(net: Localnet, number: int) -> int:
    """Return the height that a validator says is final, -1 if it says nothing."""
    height = net.report(number).height
    return -1 if height is None else height


def is_voting(net: Localnet, number: int) -> bool:
    """Does it take part in consensus, or only answer so far?"""
    try:
        facts = httpx.get(f"{net.urls[number]}/health", timeout=30, verify=False).json()
    except httpx.HTTPError:
        return False
    return bool(facts["is_validator"])


def is_in_one(net: Localnet, numbers: Sequence[int]) -> bool:
    """Have these the same block, and so the same state, at the height that all have?"""
    reports = [net.report(number) for number in numbers]
    return all(one.height is not None for one in reports) and net.agree(reports)[1]


def find_validators(net: Localnet) -> dict[int, GenesisValidator]:
    """Return each number's validator: the genesis document has them in another order."""
    document = parse_genesis((net.directory / "genesis.json").read_bytes())
    found = {validator.endpoint: validator for validator in document.validators}
    return {
        number: found[load_config(net.get_directory(number)).network.listen]
        for number in net.numbers
    }


def count_events(net: Localnet, words: str) -> int:
    """Return how many lines of the validators' logs have this event, and fields if given."""
    count = 0
    for number in net.numbers:
        text = (net.get_directory(number) / LOG_FILE).read_text("utf-8", "replace")
        count += sum(f" {words} " in f"{line} " for line in text.splitlines())
    return count


def count_slashed(net: Localnet) -> int:
    """Return how many penalties Staking has recorded since genesis."""
    return len(find_penalties(Rpc(net.urls[net.numbers[0]])))


def find_penalties(rpc: Rpc) -> list[dict[str, Any]]:
    """Return the logs of all penalties."""
    query = {"address": as_hex(STAKING_ADDRESS), "topics": [as_hex(SLASHED)], "fromBlock": "0x0"}
    found: list[dict[str, Any]] = rpc.call("eth_getLogs", query)
    return found


def say(line: str) -> None:
    """Tell whoever watches a long run how it goes."""
    print(f"    {time.strftime('%H:%M:%S')} {line}", flush=True)

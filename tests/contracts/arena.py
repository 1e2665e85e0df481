"""The contracts on our own engine, without nodes or signatures: some hundred calls a second.

An `Arena` is one state with Tasks and Rounds at their addresses and money in a few accounts. Each
transaction is charged as the chain would charge it, so that all the ether there is can be counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eth_abi.abi import decode
from eth_hash.auto import keccak

from steelyard.chain.artifacts import get_artifact
from steelyard.chain.block import Rules
from steelyard.chain.cid import compute_blob_name
from steelyard.chain.environment import Environment
from steelyard.chain.errors import UnavailableBlob
from steelyard.chain.evm import REVERT_SELECTOR, BlockState, Execution, Result
from steelyard.chain.genesis import GUARD_CODE
from steelyard.chain.params import (
    FEDAVG_ADDRESS,
    REGISTRY_ADDRESS,
    ROUNDS_ADDRESS,
    STAKING_ADDRESS,
    TASKS_ADDRESS,
)
from steelyard.chain.trie import EMPTY_ROOT
from steelyard.chain.types import Address, BlobName, Domain, Hash, Height
from steelyard.client.abi import Contract, Event, Log

CHAIN_ID = 7
BASE_FEE, TIP = 7, 2
"""Wei a gas."""
GAS = 30_000_000
INTRINSIC_GAS = 21_000
RETENTION_SECONDS = 40 * 86_400
WEALTH = 2**110
"""Wei of each account at the beginning."""
MINER = Address(b"\xc0" * 20)
ZERO = Address(bytes(20))
ADDRESSES = {"Tasks": Address(TASKS_ADDRESS), "Rounds": Address(ROUNDS_ADDRESS)}
MORE_ADDRESSES = {"Registry": Address(REGISTRY_ADDRESS), "Staking": Address(STAKING_ADDRESS)}
"""Of contracts that are in an arena where somebody deploys them."""
DEPLOY_GAS = 100_000_000


@dataclass(frozen=True, slots=True)
class Code:
    """A compiled contract."""

    runtime: bytes
    abi: Sequence[Mapping[str, Any]]


def get_codes() -> dict[str, Code]:
    """Return the contracts that genesis deploys."""
    artifacts = {name: get_artifact(name) for name in ADDRESSES}
    return {name: Code(found.runtime_code, found.abi) for name, found in artifacts.items()}


class Shelf:
    """Every blob that was ever declared or made here."""

    def __init__(self) -> None:
        self.held: dict[BlobName, bytes] = {}

    def read(self, name: BlobName) -> bytes:
        if name not in self.held:
            raise UnavailableBlob("blob_unavailable", name.digest.hex())
        return self.held[name]


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a transaction: its events, or the reason why it was refused."""

    reason: str | None
    events: tuple[Event, ...]
    fee: int
    """Wei that the sender paid for gas."""
    gas_used: int

    def find(self, name: str) -> list[Event]:
        """Return the events of one name."""
        return [event for event in self.events if event.name == name]


class Arena:
    """One state of the chain, and what was paid for gas so far."""

    def __init__(
        self, people: Sequence[Address], codes: Mapping[str, Code], gas_limit: int = GAS
    ) -> None:
        self.people = [*people, MINER, ZERO, *ADDRESSES.values()]
        self.contracts = {
            name: Contract(address, codes[name].abi) for name, address in ADDRESSES.items()
        }
        self.rules = Rules(CHAIN_ID, Domain(bytes(32)), gas_limit, 1, RETENTION_SECONDS)
        self.shelf = Shelf()
        self.expiry: dict[BlobName, int] = {}
        self.burned = 0
        """Base fees, in wei."""
        self.now, self.height = 1_000_000, 1
        self._nodes: dict[bytes, bytes] = {}
        self._root = EMPTY_ROOT
        self._state = self._begin_block()
        for name, address in ADDRESSES.items():
            self._state.process_account(address, balance=0, nonce=1, code=codes[name].runtime)
        precompile = Address(FEDAVG_ADDRESS)
        self._state.process_account(precompile, balance=0, nonce=1, code=GUARD_CODE)
        for person in people:
            self._state.process_account(person, balance=WEALTH, nonce=0, code=b"")
        self.supply = self.count_ether()

    # -- time ------------------------------------------------------------------------------------
    def advance(self, seconds: int) -> None:
        """End the block; the next one is `seconds` later."""
        self._keep_made()
        self._root, nodes = self._state.finish()
        self._nodes.update(nodes)
        self.now += seconds
        self.height += 1
        self._state = self._begin_block()

    def get_parent_hash(self) -> Hash:
        """Return what the contracts take for the hash of the block before this one."""
        return Hash(keccak(self.height.to_bytes(8, "big")))

    def _begin_block(self) -> BlockState:
        environment = Environment(
            height=Height(self.height),
            timestamp=self.now,
            coinbase=MINER,
            base_fee=BASE_FEE,
            prev_randao=Hash(bytes(32)),
            parent_hash=self.get_parent_hash(),
            parent_beacon_block_root=Hash(bytes(32)),
            ancestors=(self.get_parent_hash(),),
        )
        return BlockState(self._nodes, self.shelf, self.rules, self._root, environment)

    # -- transactions ----------------------------------------------------------------------------
    def put(self, data: bytes) -> BlobName:
        """Name a blob and keep it; a transaction must declare it still."""
        name = compute_blob_name(data)
        self.shelf.held[name] = data
        return name

    def send(
        self,
        sender: Address,
        contract: str,
        name: str,
        *arguments: Any,
        value: int = 0,
        blobs: Sequence[BlobName] = (),
    ) -> Done:
        """Send a transaction that declares `blobs`."""
        data = self.contracts[contract].encode_call(name, *arguments)
        result = self.send_data(sender, self.contracts[contract].address, data, value, tuple(blobs))
        events = [] if result.error else [self._decode(entry) for entry in result.logs]
        return Done(
            reason=None if result.error is None else read_reason(result),
            events=tuple(event for event in events if event is not None),
            fee=result.gas_used * (BASE_FEE + TIP),
            gas_used=result.gas_used,
        )

    def send_data(
        self,
        sender: Address,
        to: Address,
        data: bytes,
        value: int = 0,
        blobs: tuple[BlobName, ...] = (),
    ) -> Result:
        """Send the bytes of a call."""
        result = self._state.process_transaction(
            Execution(
                sender=sender,
                to=to,
                value=value,
                data=data,
                gas=GAS,
                gas_price=BASE_FEE + TIP,
                tip=TIP,
                access_list=(),
                blobs=blobs,
                intrinsic_gas=INTRINSIC_GAS,
                floor_gas=INTRINSIC_GAS,
            )
        )
        self.burned += result.gas_used * BASE_FEE
        for blob in blobs:
            self.expiry[blob] = self.now + RETENTION_SECONDS
        self._keep_made()
        return result

    def ask(self, contract: str, name: str, *arguments: Any) -> Any:
        """Call a view: its only answer, or all of them."""
        result = self._state.process_call(
            Execution(
                sender=ZERO,
                to=self.contracts[contract].address,
                value=0,
                data=self.contracts[contract].encode_call(name, *arguments),
                gas=GAS,
                gas_price=0,
                tip=0,
                access_list=(),
                blobs=(),
                intrinsic_gas=0,
                floor_gas=0,
            )
        )
        assert result.error is None, (name, arguments, read_reason(result))
        answers = self.contracts[contract].decode_output(name, result.output)
        return answers[0] if len(answers) == 1 else answers

    def install(self, address: Address, runtime: bytes, balance: int) -> None:
        """Put another contract here, with money that comes into being."""
        self._state.process_account(address, balance=balance, nonce=1, code=runtime)
        self.people.append(address)
        self.supply += balance

    def deploy(self, name: str, arguments: bytes = b"", value: int = 0) -> None:
        """Deploy another contract with money that comes into being, as genesis does."""
        artifact, address = get_artifact(name), MORE_ADDRESSES[name]
        error = self._state.process_deployment(
            address, artifact.init_code + arguments, value=value, gas=DEPLOY_GAS
        )
        assert error is None, (name, error)
        self.contracts[name] = Contract(address, artifact.abi)
        self.people.append(address)
        self.supply += value

    # -- money -----------------------------------------------------------------------------------
    def get_balances(self) -> dict[Address, int]:
        """Return what everybody has, in wei."""
        return {person: self._state.get_balance(person) for person in self.people}

    def get_balance(self, person: Address) -> int:
        """Return what one account has, in wei."""
        return self._state.get_balance(person)

    def count_ether(self) -> int:
        """Return all the ether there is, and what was burned as base fees, in wei."""
        return sum(self.get_balances().values()) + self.burned

    # -- inside ----------------------------------------------------------------------------------
    def _keep_made(self) -> None:
        for name, data in self._state.list_made_blobs().items():
            self.shelf.held[name] = data
            self.expiry[name] = self.now + RETENTION_SECONDS

    def _decode(self, entry: Any) -> Event | None:
        log = Log(entry.address, entry.topics, entry.data, self.height, Hash(bytes(32)), 0)
        for contract in self.contracts.values():
            event = contract.decode_event(log)
            if event is not None:
                return event
        return None


def read_reason(result: Result) -> str:
    """Return why a call failed: a contract's own words, or the engine's."""
    if result.is_revert and result.output[:4] == REVERT_SELECTOR:
        reason: str = decode(["string"], result.output[4:])[0]
        return reason
    return f"engine: {result.error}"

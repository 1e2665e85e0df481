"""A real chain without processes: blocks that a test makes, certified, and served as a node does.

The engine, the contracts, the signatures and the JSON-RPC methods are the genuine ones; only the
clock, the network and the disk are left out, so that a day costs nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import numpy as np
from eth_hash.auto import keccak

from steelyard.chain import proofs
from steelyard.chain.block import Block, Header, encode_block
from steelyard.chain.cid import compute_blob_name
from steelyard.chain.consensus.certificates import encode_certificate
from steelyard.chain.epochs import encode_epoch_set
from steelyard.chain.execute import CallRequest, CallResult
from steelyard.chain.genesis import encode_genesis
from steelyard.chain.model import encode_model
from steelyard.chain.receipts import Receipt
from steelyard.chain.types import Address, BlobName, Hash, TaskId
from steelyard.chain.types import Round as RoundNumber
from steelyard.chain.update import Mode, UpdateHeader, encode_update
from steelyard.client.abi import Event
from steelyard.client.contracts import compute_commitment, encode_name, get_contract
from steelyard.client.errors import NodeRefused, NodeUnreachable
from steelyard.client.events import get_contracts
from steelyard.client.finalized import decode_chain_log
from steelyard.client.rpc import Json, Rpc, read_result
from steelyard.node.log_index import is_match
from steelyard.node.records import LogEntry, LogQuery
from steelyard.node.rpc.dispatcher import Caller
from steelyard.node.rpc.errors import RpcError
from steelyard.node.rpc.methods import build_methods
from tests.chain.evm_kit import (
    ADDRESSES,
    CHAIN_ID,
    GWEI,
    KEYS,
    Chain,
    Draft,
    declare,
    get_genesis_state,
    sign,
)
from tests.chain.following_kit import certify
from tests.contracts.player import MANIFEST, VALUES

NEVER, ONE = 2**256 - 1, 2**20
NO_FILE = (bytes(32), 0)
SALT = b"s" * 32
GAS, CLOSE_GAS = 1_000_000, 4_000_000
PUBLISHER, KEEPER = 8, 9
"""Numbers of accounts; 0 to 7 are clients."""
PLATFORM = Address(b"\xd1" * 20)
TERMS: Mapping[str, Any] = {
    "rule": (0, 0, ONE, 4_096, 0), "weighting": 0, "bits": 8, "rounds": 3, "min_clients": 2,
    "max_clients": 8, "fraction_fit": ONE, "spare_clients": 0, "max_staleness": 0,
    "staleness_discount": ONE, "on_failed_quorum": 0, "max_extensions": 0, "max_saturated": NEVER,
    "evaluate_every": 0, "join_seconds": 1_000, "commit_seconds": 100, "reveal_seconds": 100,
    "base_stake": 10_000, "stake_per_sample": 10, "bond": 600, "admission": 0,
    "min_reputation": 0, "admission_norm2": 2**60, "reward": 10**9 + 7,
    "close_reserve": 10**17, "close_bounty": 1_000, "platform": bytes(20), "platform_share": 0,
}  # fmt: skip
"""In the order of the contract. Wei, seconds, units of 2**-20."""


class QuietNode:
    """What the JSON-RPC methods ask a node for."""

    def __init__(self, chain: Chain) -> None:
        self.chain, self.rules = chain, chain.genesis.rules
        self.blocks: dict[int, Block] = {}
        self.receipts: dict[Hash, tuple[Receipt, ...]] = {}

    def get_head(self) -> Header:
        return self.chain.head

    def get_hash(self, height: int) -> Hash | None:
        return self.blocks[height].hash if height in self.blocks else None

    def get_block(self, block_hash: Hash) -> Block | None:
        return next((one for one in self.blocks.values() if one.hash == block_hash), None)

    def get_header(self, block_hash: Hash) -> Header | None:
        block = self.get_block(block_hash)
        return None if block is None else block.header

    def get_receipts(self, block_hash: Hash) -> tuple[Receipt, ...]:
        return self.receipts[block_hash]

    def get_logs(self, query: LogQuery, limit: int) -> tuple[LogEntry, ...]:
        found = []
        for height in range(query.from_height, query.to_height + 1):
            for entry in self.list_logs(height):
                if is_match(query, entry.log):
                    found.append(entry)
        return tuple(found)

    def list_logs(self, height: int) -> list[LogEntry]:
        if height not in self.blocks:
            return []
        block, found = self.blocks[height], []
        for place, receipt in enumerate(self.receipts[block.hash]):
            sent = Hash(keccak(block.transactions[place]))
            for log in receipt.logs:
                entry = LogEntry(log, block.height, block.hash, sent, place, len(found))
                found.append(entry)
        return found

    def get_proof(
        self, address: Address, slots: Sequence[int], height: int | None = None
    ) -> proofs.AccountProof:
        header = self.chain.headers[-1 if height is None else height]
        return proofs.get_proof(self.chain.nodes, header.state_root, address, slots)

    def call(self, request: CallRequest, height: int | None = None) -> CallResult:
        return self.chain.call(request)


def refuse(request: httpx.Request) -> httpx.Response:
    """Nothing here goes over HTTP."""
    raise AssertionError(request.url)


class QuietRpc(Rpc):
    """An auditor's way to the node. `lies` change its answers: by method or by kind of file, what
    to make of (the arguments or the path, the true answer).
    """

    def __init__(self, node: QuietNode, lies: Mapping[str, Callable[[Any, Any], Any]]) -> None:
        super().__init__("http://node.test", transport=httpx.MockTransport(refuse))
        self._node, self._lies = node, lies
        self._methods = build_methods(node, "0")  # type: ignore[arg-type]

    def call(self, method: str, *arguments: Json) -> Json:
        try:
            answer = self._methods[method].handler(list(arguments), Caller("test"))
        except RpcError as error:
            answer = read_result({"error": {"code": error.code, "message": str(error)}})
        return self._lies[method](arguments, answer) if method in self._lies else answer

    def call_together(self, calls: Sequence[tuple[str, tuple[Json, ...]]]) -> list[Json]:
        return [self.call(method, *arguments) for method, arguments in calls]

    def get_bytes(self, path: str, limit: int = 2**26) -> bytes:
        kind = path.split("/")[2]
        data = self._read(kind, path)
        return self._lies[kind](path, data) if kind in self._lies else data

    def _read(self, kind: str, path: str) -> bytes:
        chain = self._node.chain
        if kind == "genesis":
            return encode_genesis(chain.genesis)
        number = int(path.split("/")[3])
        if kind == "validators":
            return encode_epoch_set(chain.current)
        block = self._node.blocks.get(number)
        if block is None:
            raise NodeRefused("unknown_block", f"no {path} at this node")
        if kind == "blocks":
            return encode_block(block)
        certificate = certify(
            block.hash, (0,), current=chain.current, numbers=(0,), domain=chain.genesis.domain
        )
        return encode_certificate(certificate)

    def get_blob(self, name: BlobName) -> bytes:
        data = self._node.chain.blobs.held.get(name)
        if data is None:
            raise NodeUnreachable({self.url: "it does not serve the blob"})
        return self._lies["blob"](name, data) if "blob" in self._lies else data


class QuietChain:
    """The chain, and what people do on it. Everybody waits in `waiting` for the next block."""

    def __init__(self) -> None:
        self.chain = Chain()
        self.node = QuietNode(self.chain)
        genesis = get_genesis_state().block
        self.node.blocks[0], self.node.receipts[genesis.hash] = genesis, ()
        self.waiting: list[bytes] = []
        self.nonces = dict.fromkeys(range(len(ADDRESSES)), 0)
        self.updates: dict[tuple[int, int, int], tuple[int, BlobName, int]] = {}
        """(task, round, client): origin, update, samples."""

    # -- blocks ------------------------------------------------------------------------------------
    def send(
        self,
        who: int,
        contract: str,
        name: str,
        *arguments: Any,
        value: int = 0,
        blobs: Sequence[BlobName] = (),
        gas: int = GAS,
    ) -> None:
        """Have somebody send a call in the next block."""
        found = get_contract(contract)
        gas += sum(40_000 + blob.size // 16 for blob in blobs)
        draft = Draft(
            nonce=self.nonces[who], to=found.address, value=value, gas=gas, max_fee=10 * GWEI,
            data=found.encode_call(name, *arguments), access_list=declare(*blobs) if blobs else (),
        )  # fmt: skip
        self.nonces[who] += 1
        self.waiting.append(sign(draft, KEYS[who]))

    def mine(self, seconds: int = 1) -> list[Event]:
        """Make a block of all that waits, so many seconds after the last; return the events of
        its tasks."""
        raw, self.waiting = self.waiting, []
        proposal = self.chain.propose(self.chain.head.timestamp + seconds)
        built = self.chain.build(*raw, proposal=proposal)
        block, outcome = built.block, built.outcome
        assert not outcome.refused, outcome.refused
        assert all(receipt.status for receipt in outcome.receipts), "a call was refused"
        self.chain.nodes.update(outcome.nodes)
        self.chain.blobs.held.update(outcome.blobs)
        self.chain.headers.append(block.header)
        self.node.blocks[block.height], self.node.receipts[block.hash] = block, outcome.receipts
        logs = [log for receipt in outcome.receipts for log in receipt.logs]
        mine = [log for log in logs if log.address in get_contracts()]
        return [decode_chain_log(log, block.height, place) for place, log in enumerate(mine)]

    def open_rpc(self, **lies: Callable[[Any, Any], Any]) -> QuietRpc:
        """Return a way to the node, which may lie."""
        return QuietRpc(self.node, lies)

    def get_round(self, task: int, number: int) -> Mapping[str, Any]:
        """Return a round as the contract has it."""
        contract = get_contract("Rounds")
        request = CallRequest(
            sender=ADDRESSES[0],
            to=contract.address,
            data=contract.encode_call("get_round", task, number),
        )
        (found,) = contract.decode_output("get_round", self.chain.call(request).output)
        return found

    # -- tasks -------------------------------------------------------------------------------------
    def put(self, data: bytes) -> BlobName:
        """Let the node hold these bytes."""
        name = compute_blob_name(data)
        self.chain.blobs.held[name] = data
        return name

    def publish(
        self,
        task: int,
        *clients: int,
        model: BlobName | None = None,
        sponsored: Mapping[int, int] | None = None,
        **terms: Any,
    ) -> None:
        """Publish a task, have these clients join, each with ten samples more, and start it.

        `sponsored`: what the publisher gives of a client's stake.
        """
        found = {**TERMS, **terms}
        if model is None:
            model = self.put(encode_model(MANIFEST, np.arange(VALUES, dtype=np.int32) + task))
        escrow = found["reward"] + found["rounds"] * found["close_reserve"]
        self.send(
            PUBLISHER, "Tasks", "publish", "heart", tuple(found.values()), encode_name(model),
            NO_FILE, [], value=escrow, blobs=[model], gas=CLOSE_GAS,
        )  # fmt: skip
        gifts = sponsored or {}
        for client, gift in gifts.items():
            self.send(PUBLISHER, "Tasks", "sponsor", task, ADDRESSES[client], 0, value=gift)
        for client in clients:
            samples = 10 * (client + 1)
            stake = found["base_stake"] + samples * found["stake_per_sample"] + 600
            value = stake - gifts.get(client, 0)
            self.send(client, "Tasks", "join", task, samples, value=value)
        self.send(PUBLISHER, "Tasks", "start", task, gas=CLOSE_GAS)

    def commit(
        self, task: int, number: int, client: int, values: Sequence[int], origin: int | None = None
    ) -> None:
        """Commit to an update that moves each parameter by these many steps."""
        origin = number if origin is None else origin
        base = self.get_round(task, origin)["base"]
        header = UpdateHeader(
            mode=Mode.OPEN, bits=8, round=RoundNumber(origin), chain_id=CHAIN_ID,
            task=TaskId(task), values=VALUES, exponents=3, base=base, sender=ADDRESSES[client],
        )  # fmt: skip
        data = encode_update(header, np.full(3, -20, np.int8), np.array(values, np.int8))
        update, samples = self.put(data), 10 * (client + 1)
        self.updates[task, number, client] = origin, update, samples
        commitment = compute_commitment(
            CHAIN_ID, task, number, origin, ADDRESSES[client], update, samples, SALT
        )
        self.send(client, "Rounds", "commit", task, number, origin, commitment)

    def reveal(self, task: int, number: int, *clients: int) -> None:
        """Show what was committed to."""
        for client in clients:
            origin, update, samples = self.updates[task, number, client]
            arguments = (task, number, origin, encode_name(update), samples, SALT)
            self.send(client, "Rounds", "reveal", *arguments, blobs=[update])

    def close(self, task: int, number: int) -> None:
        """Have the keeper close a round, or do its next page."""
        self.send(KEEPER, "Rounds", "close", task, number, gas=CLOSE_GAS)

    def play(self, task: int, number: int, updates: Mapping[int, Sequence[int]]) -> None:
        """Play a round that everybody drawn takes part in: commit and reveal in one block."""
        for client, values in updates.items():
            self.commit(task, number, client, values)
        self.reveal(task, number, *updates)
        self.mine()
        self.close(task, number)
        self.mine()

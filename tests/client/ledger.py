"""A chain in memory that speaks JSON-RPC: what the client's tests talk to instead of a node.

It takes real signed transactions, keeps nonces and balances, wants blobs before it includes what
declares them, and answers in the contracts' ABI (agreement.py). Time stands still until `sleep` is
called.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import httpx
from eth_hash.auto import keccak

from steelyard.chain.block import ZERO_HASH, Block, Extension, Header, encode_block
from steelyard.chain.cid import compute_blob_name, decode_cid, is_named
from steelyard.chain.genesis import Genesis, GenesisValidator, create_genesis, encode_genesis
from steelyard.chain.params import FEDAVG_ADDRESS
from steelyard.chain.transactions import Transaction, decode_transaction
from steelyard.chain.types import Address, BlobName, Digest, Epoch, Height, View

from .agreement import CHAIN_ID, Agreement, TasksRefusal
from .books import TaskState

GAS_LIMIT = 60_000_000
VALIDATOR = GenesisValidator(
    address=Address(b"\xaa" * 20),
    bls_key=bytes(48),
    proof_of_possession=bytes(96),
    network_key=bytes(32),
    endpoint="node.test:9000",
    fee_recipient=Address(b"\xaa" * 20),
    stake=10**18,
)
RICH = 10**24


class Refused(Exception):
    """A JSON-RPC error to answer with."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message, "data": data}


class Ledger:
    """The chain and the node in one. `requests` counts everything that arrived."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.height = 0
        self.timestamp = 1_000_000
        self.nonces: dict[bytes, int] = {}
        self.balances: dict[bytes, int] = {}
        self.pool: dict[bytes, Transaction] = {}
        self.blobs: dict[BlobName, bytes] = {}
        self.retention_seconds = 30 * 86_400
        self.receipts: dict[bytes, dict[str, object]] = {}
        self.logs: list[dict[str, object]] = []
        self.included: list[Transaction] = []
        self.seen: set[bytes] = set()
        self.methods: list[str] = []
        self.uploads: list[BlobName] = []
        self.agreement = Agreement(lambda: self.timestamp, self._write_log, self._pay)
        self.is_mining = True
        self.get_chain_id: Callable[[], int] = lambda: CHAIN_ID
        self.extra: dict[str, bytes] = {}

    # -- genesis ---------------------------------------------------------------------------------
    @cached_property
    def genesis(self) -> Genesis:
        """The document that a node would serve."""
        return create_genesis(
            chain_id=CHAIN_ID,
            name="double",
            timestamp=0,
            validators=(VALIDATOR,),
            alloc={},
            gas_limit=GAS_LIMIT,
            blob_retention_seconds=self.retention_seconds,
        )

    @cached_property
    def first_block(self) -> Block:
        """Block 0, which names the document; behind its other roots is nothing."""
        zeros = {"state_root": ZERO_HASH, "transactions_root": ZERO_HASH}
        zeros |= {"receipts_root": ZERO_HASH, "prev_randao": ZERO_HASH}
        zeros |= {"withdrawals_root": ZERO_HASH, "parent_beacon_block_root": ZERO_HASH}
        header = Header(
            parent_hash=ZERO_HASH,
            coinbase=Address(bytes(20)),
            bloom=bytes(256),
            height=Height(0),
            gas_limit=GAS_LIMIT,
            gas_used=0,
            timestamp=0,
            base_fee=7,
            extra_data=self.genesis.hash,
            **zeros,
        )
        return Block(header, Extension(Epoch(0), View(0), Address(bytes(20)), ZERO_HASH))

    # -- time ------------------------------------------------------------------------------------
    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.mine()

    def mine(self) -> None:
        """One block: everything whose nonce is next and whose blobs are here; then the keeper."""
        if not self.is_mining:
            return
        self.height += 1
        self.timestamp = max(self.timestamp, int(self.now))
        for transaction in sorted(self.pool.values(), key=lambda t: t.nonce):
            held = all(name in self.blobs for name in transaction.blobs)
            if held and transaction.nonce == self.nonces.get(transaction.sender, 0):
                del self.pool[transaction.hash]
                self._include(transaction)
        self.agreement.keep()
        for name, ends in self.agreement.expiries.items():
            if ends < self.timestamp:
                self.blobs.pop(name, None)

    # -- blocks ----------------------------------------------------------------------------------
    def _include(self, transaction: Transaction) -> None:
        self.nonces[transaction.sender] = transaction.nonce + 1
        self.included.append(transaction)
        first_log, status, reason = len(self.logs), 1, ""
        gas = 21_000
        for name in transaction.blobs:
            self.agreement.expiries[name] = self.timestamp + self.retention_seconds
        self.balances[transaction.sender] = self.get_balance(transaction.sender) - gas
        try:
            if transaction.to in self.agreement.contracts:
                self.agreement.run(
                    transaction.sender, transaction.to, transaction.data, transaction.value
                )
                self.balances[transaction.sender] -= transaction.value
            elif not transaction.data:
                self._pay(transaction.sender, -transaction.value)
                self._pay(transaction.to, transaction.value)
        except TasksRefusal as refusal:
            status, reason = 0, str(refusal)
            del self.logs[first_log:]
        for index in range(first_log, len(self.logs)):
            self.logs[index]["transactionHash"] = "0x" + transaction.hash.hex()
        self.receipts[transaction.hash] = {
            "transactionHash": "0x" + transaction.hash.hex(),
            "blockNumber": hex(self.height),
            "blockHash": "0x" + keccak(self.height.to_bytes(8, "big")).hex(),
            "status": hex(status),
            "gasUsed": hex(gas),
            "effectiveGasPrice": "0x1",
            "logs": self.logs[first_log:],
            "reason": reason,
        }

    def get_balance(self, address: bytes) -> int:
        return self.balances.get(address, RICH)

    def _write_log(self, address: bytes, topics: list[bytes], data: bytes) -> None:
        self.logs.append(
            {
                "address": "0x" + address.hex(),
                "topics": ["0x" + topic.hex() for topic in topics],
                "data": "0x" + data.hex(),
                "blockNumber": hex(self.height),
                "transactionHash": "0x" + bytes(32).hex(),
                "logIndex": hex(len(self.logs)),
            }
        )

    def _pay(self, address: bytes, amount: int) -> None:
        self.balances[address] = self.get_balance(address) + amount

    # -- JSON-RPC --------------------------------------------------------------------------------
    def answer(self, request: httpx.Request) -> httpx.Response:
        """What a node would answer to one HTTP request."""
        path = request.url.path
        if path.startswith("/blobs/"):
            return self._answer_blob(request, path.removeprefix("/blobs/"))
        if path in self.extra:
            return httpx.Response(200, content=self.extra[path])
        if path == "/chain/genesis":
            return httpx.Response(200, content=encode_genesis(self.genesis))
        if path == "/chain/blocks/0":
            return httpx.Response(200, content=encode_block(self.first_block))
        if request.method != "POST":
            return httpx.Response(404, json={"code": "unknown", "message": path})
        body = json.loads(request.read())
        answers = [self._answer_call(call) for call in (body if isinstance(body, list) else [body])]
        return httpx.Response(200, json=answers if isinstance(body, list) else answers[0])

    def _answer_call(self, call: dict[str, object]) -> dict[str, object]:
        self.methods.append(call["method"])
        try:
            result = getattr(self, call["method"])(*call["params"])
        except Refused as refused:
            return {"jsonrpc": "2.0", "id": call["id"], "error": refused.error}
        return {"jsonrpc": "2.0", "id": call["id"], "result": result}

    def _answer_blob(self, request: httpx.Request, text: str) -> httpx.Response:
        cid = decode_cid(text)
        held = next((name for name in self.blobs if is_named(name, cid)), None)
        if request.method == "HEAD":
            return httpx.Response(200 if held else 404)
        if request.method == "GET":
            if held is None:
                return httpx.Response(404, json={"code": "blob_missing", "message": "no"})
            start = int(request.headers.get("range", "bytes=0-")[6:-1])
            return httpx.Response(206 if start else 200, content=self.blobs[held][start:])
        data = request.read()
        name = compute_blob_name(data)
        declared = {n for t in self.pool.values() for n in t.blobs}
        if name not in declared:
            body = {"code": "blob_undeclared", "message": "nobody declared it"}
            return httpx.Response(403, json=body)
        self.blobs[name] = data
        self.uploads.append(name)
        return httpx.Response(201)

    def eth_chainId(self):
        return hex(self.get_chain_id())

    def eth_blockNumber(self):
        return hex(self.height)

    def eth_getBlockByNumber(self, tag, full):
        number = self.height if tag == "latest" else int(tag, 16)
        block_hash = keccak(number.to_bytes(8, "big")) if number else self.first_block.hash
        return {
            "hash": "0x" + block_hash.hex(),
            "number": hex(number),
            "timestamp": hex(self.timestamp),
            "baseFeePerGas": "0x7",
            "gasLimit": hex(GAS_LIMIT),
        }

    def eth_getTransactionCount(self, address, tag):
        sender = bytes.fromhex(address[2:])
        count = self.nonces.get(sender, 0)
        if tag == "pending":
            pending = {t.nonce for t in self.pool.values() if t.sender == sender}
            while count in pending:
                count += 1
        return hex(count)

    def eth_getBalance(self, address, tag):
        return hex(self.get_balance(bytes.fromhex(address[2:])))

    def eth_maxPriorityFeePerGas(self):
        return "0x1"

    def eth_estimateGas(self, call):
        if bytes.fromhex(call["to"][2:]) not in self.agreement.contracts and call["data"] == "0x":
            return hex(21_000)
        self.eth_call(call, "latest", dry=True)
        return hex(200_000)

    def eth_call(self, call, tag, dry=False):
        data = bytes.fromhex(call["data"][2:])
        to = bytes.fromhex(call["to"][2:])
        if to == FEDAVG_ADDRESS:
            return self._answer_info(data)
        name, arguments = self.agreement.contracts[to].decode_call(data)
        if self.agreement.is_call(name):
            sender, value = bytes.fromhex(call["from"][2:]), int(call["value"], 16)
            reason = self._try(sender, to, data, value, read_declared(call))
            if reason:
                raise Refused(3, f"execution reverted: {reason}", "0x")
            return "0x"
        return "0x" + self.agreement.answer(to, name, arguments).hex()

    def _answer_info(self, data: bytes) -> str:
        """What the precompile says of a blob: size, height, expiry."""
        assert data[:4] == keccak(b"info((bytes32,uint256))")[:4]
        name = BlobName(Digest(data[4:36]), int.from_bytes(data[36:], "big"))
        ends = self.agreement.expiries.get(name)
        words = (0, 0, 0) if ends is None else (name.size, 1, ends)
        return "0x" + b"".join(word.to_bytes(32, "big") for word in words).hex()

    def _try(
        self, sender: bytes, to: bytes, data: bytes, value: int, declared: Sequence[BlobName] = ()
    ) -> str:
        """What would stop the call; nothing of it stays. Raises Refused for blobs that are not
        here, unless the contract objects before it looks into them."""
        agreement = self.agreement
        saved, logs = copy.deepcopy(agreement.tasks), list(self.logs)
        reputations = dict(agreement.reputations)
        balances, expiries = dict(self.balances), dict(agreement.expiries)
        agreement.expiries |= dict.fromkeys(declared, self.timestamp + self.retention_seconds)
        try:
            agreement.run(sender, to, data, value)
        except TasksRefusal as refusal:
            if str(refusal).startswith("tasks: "):
                return str(refusal)
            reason = str(refusal)
        else:
            reason = ""
        finally:
            agreement.tasks, self.logs, self.balances = saved, logs, balances
            agreement.expiries, agreement.reputations = expiries, reputations
        if any(name not in self.blobs for name in declared):
            raise Refused(-32000, "blob_unavailable: not here", {"code": "blob_unavailable"})
        return reason

    @property
    def tasks(self) -> dict[int, TaskState]:
        """What the contract knows of each task."""
        return self.agreement.tasks

    def eth_sendRawTransaction(self, raw):
        transaction = decode_transaction(bytes.fromhex(raw[2:]))
        self.seen.add(transaction.raw)
        if transaction.nonce < self.nonces.get(transaction.sender, 0):
            raise Refused(-32000, "tx_nonce_low: used", {"code": "tx_nonce_low"})
        self.pool[transaction.hash] = transaction
        return "0x" + transaction.hash.hex()

    def eth_getTransactionReceipt(self, text):
        return self.receipts.get(bytes.fromhex(text[2:]))

    def eth_getBlockReceipts(self, number):
        found = {t.hash: t for t in self.included}
        return [
            {**receipt, "to": "0x" + found[name].to.hex()}
            for name, receipt in self.receipts.items()
            if receipt["blockNumber"] == number
        ]

    def eth_getTransactionByHash(self, text):
        (found,) = [t for t in self.included if t.hash == bytes.fromhex(text[2:])]
        sent = {"input": found.data, "from": found.sender}
        return {name: "0x" + data.hex() for name, data in sent.items()} | {"value": "0x0"}

    def eth_getLogs(self, query):
        first, last = int(query["fromBlock"], 16), int(query["toBlock"], 16)
        return [
            log
            for log in self.logs
            if first <= int(log["blockNumber"], 16) <= last
            and all(
                wanted is None
                or (
                    len(log["topics"]) > place
                    and log["topics"][place] in (wanted if isinstance(wanted, list) else [wanted])
                )
                for place, wanted in enumerate(query["topics"])
            )
        ]

    def add_blob(self, data: bytes) -> BlobName:
        """Have a blob without a transaction."""
        name = compute_blob_name(data)
        self.blobs[name] = data
        return name


def read_declared(call: Mapping[str, object]) -> list[BlobName]:
    """The blobs in a call's access list: pairs of keys, digest and size."""
    keys = [
        bytes.fromhex(key[2:]) for one in call.get("accessList", ()) for key in one["storageKeys"]
    ]
    pairs = zip(keys[::2], keys[1::2], strict=True)
    return [BlobName(Digest(digest), int.from_bytes(size, "big")) for digest, size in pairs]


def make_blob_name(text: bytes) -> BlobName:
    """A name of nothing, for tests."""
    return BlobName(Digest(keccak(text)), 100)

"""A chain in memory that speaks JSON-RPC: what the client's tests talk to instead of a node.

It takes real signed transactions, keeps nonces and balances, wants blobs before it includes what
declares them, and answers in the contract's ABI. Tasks follows docs/tasks.md as far as one client
sees it; the model never changes. Time stands still until `sleep` is called.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
from eth_abi.abi import encode
from eth_hash.auto import keccak

from steelyard.chain.artifacts import get_artifact
from steelyard.chain.cid import compute_blob_name, decode_cid, is_named
from steelyard.chain.params import TASKS_ADDRESS
from steelyard.chain.transactions import Transaction, decode_transaction
from steelyard.chain.types import Address, BlobName, Digest
from steelyard.client.abi import Contract, compute_signature, format_type
from steelyard.client.contracts import compute_commitment
from steelyard.client.records import NO_BLOB

CHAIN_ID = 4242
GENESIS_HASH = keccak(b"genesis of the double")
RICH = 10**24


class Refused(Exception):
    """A JSON-RPC error to answer with."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message, "data": data}


class TasksRefusal(Exception):
    """A revert with a reason."""


@dataclass
class Round:
    base: BlobName
    commit_ends: int
    reveal_ends: int
    state: int = 1
    model: BlobName = NO_BLOB
    commitments: dict[bytes, bytes] = field(default_factory=dict)
    updates: dict[bytes, tuple[BlobName, int]] = field(default_factory=dict)
    reports: dict[bytes, tuple[int, list[int]]] = field(default_factory=dict)


@dataclass
class TaskState:
    name: str
    publisher: bytes
    parameters: dict[str, object]
    model: BlobName
    bundle: BlobName
    join_ends: int
    invited: set[bytes]
    state: int = 1
    round: int = 0
    stakes: dict[bytes, tuple[int, int, int]] = field(default_factory=dict)
    rounds: dict[int, Round] = field(default_factory=dict)
    claimable: dict[bytes, int] = field(default_factory=dict)
    left: int = 0


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
        self.receipts: dict[bytes, dict[str, object]] = {}
        self.logs: list[dict[str, object]] = []
        self.tasks: dict[int, TaskState] = {}
        self.included: list[Transaction] = []
        self.seen: set[bytes] = set()
        self.methods: list[str] = []
        self.uploads: list[BlobName] = []
        self.contract = Contract(Address(TASKS_ADDRESS), get_artifact("Tasks").abi)
        self.abi = {e["name"]: e for e in get_artifact("Tasks").abi if "name" in e}
        self.is_mining = True
        self.get_chain_id: Callable[[], int] = lambda: CHAIN_ID
        self.extra: dict[str, bytes] = {}

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
        for number, task in self.tasks.items():
            self._keep(number, task)

    def _keep(self, number: int, task: TaskState) -> None:
        if task.state == 1 and self.timestamp >= task.join_ends and task.stakes:
            self._start(number, task)
        if task.state != 2:
            return
        current = task.rounds[task.round]
        least = task.parameters["min_clients"]
        due = current.reveal_ends if len(current.commitments) >= least else current.commit_ends
        if self.timestamp < due and len(current.updates) < len(task.stakes):
            return
        if len(current.updates) >= least:
            current.state, current.model = 2, current.base
            pool = task.parameters["reward"] // task.parameters["rounds"]
            for client in current.updates:
                task.claimable[client] = task.claimable.get(client, 0) + pool // len(
                    current.updates
                )
                task.left -= pool // len(current.updates)
            self._log_aggregated(number, task, current)
        else:
            current.state = 3
            counts = [len(current.commitments), len(current.updates)]
            self._log("RoundSkipped", [number, task.round], counts)
        if task.round < task.parameters["rounds"]:
            self._open(number, task)
        else:
            task.state = 3
            self._log("Finished", [number], [(task.model.digest, task.model.size)])

    # -- blocks ----------------------------------------------------------------------------------
    def _include(self, transaction: Transaction) -> None:
        self.nonces[transaction.sender] = transaction.nonce + 1
        self.included.append(transaction)
        first_log, status, reason = len(self.logs), 1, ""
        gas = 21_000
        self.balances[transaction.sender] = self.get_balance(transaction.sender) - gas
        try:
            if transaction.to == TASKS_ADDRESS:
                self._run(transaction.sender, transaction.data, transaction.value)
                self.balances[transaction.sender] -= transaction.value
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

    def _run(self, sender: bytes, data: bytes, value: int) -> None:
        call = self.contract.decode_call(data)
        assert call is not None, "the client sent a call that Tasks lacks"
        name, arguments = call
        getattr(self, f"_do_{name}")(sender, value, **arguments)

    def _log(self, name: str, indexed: list[object], values: list[object]) -> None:
        entry = self.abi[name]
        plain = [format_type(item) for item in entry["inputs"] if not item["indexed"]]
        topics = [keccak(compute_signature(entry).encode())]
        for value in indexed:
            topics.append(
                value.rjust(32, b"\0") if isinstance(value, bytes) else value.to_bytes(32, "big")
            )
        self.logs.append(
            {
                "address": "0x" + TASKS_ADDRESS.hex(),
                "topics": ["0x" + topic.hex() for topic in topics],
                "data": "0x" + encode(plain, values).hex(),
                "blockNumber": hex(self.height),
                "transactionHash": "0x" + bytes(32).hex(),
                "logIndex": hex(len(self.logs)),
            }
        )

    def _log_aggregated(self, number: int, task: TaskState, current: Round) -> None:
        clients = list(current.updates)
        names = [(current.updates[c][0].digest, current.updates[c][0].size) for c in clients]
        weights = [current.updates[c][1] for c in clients]
        base = (current.base.digest, current.base.size)
        rule = tuple(task.parameters["rule"].values())
        shares = [2**20 // len(clients)] * len(clients)
        zeros = [0] * len(clients)
        values = [rule, base, clients, names, weights, shares, zeros, zeros, base, 0]
        self._log("Aggregated", [number, task.round], values)

    # -- the contract ----------------------------------------------------------------------------
    def _do_publish(self, sender, value, name, parameters, model, bundle, allowlist):
        escrow = parameters["reward"] + parameters["rounds"] * parameters["close_reserve"]
        if value != escrow:
            raise TasksRefusal("tasks: escrow differs from reward and reserves")
        number = len(self.tasks) + 1
        join_ends = self.timestamp + parameters["join_seconds"]
        self.tasks[number] = TaskState(
            name, sender, parameters, model, bundle, join_ends, set(allowlist), left=value
        )
        flat = tuple(
            tuple(item.values()) if isinstance(item, dict) else item for item in parameters.values()
        )
        names = [(model.digest, model.size), (bundle.digest, bundle.size)]
        self._log("Published", [number, sender], [name, flat, *names, allowlist, join_ends])

    def _do_join(self, sender, value, task, samples):
        state = self.tasks[task]
        if sender in state.stakes:
            raise TasksRefusal("tasks: already joined")
        if state.invited and sender not in state.invited:
            raise TasksRefusal("tasks: not invited")
        state.stakes[sender] = (value, samples, state.round + 1)
        self._log("Joined", [task, sender], [samples, value, state.round + 1])
        if state.state == 1 and len(state.stakes) == state.parameters["max_clients"]:
            self._start(task, state)

    def _start(self, number: int, task: TaskState) -> None:
        task.state = 2
        self._log("Started", [number], [len(task.stakes)])
        self._open(number, task)

    def _do_start(self, sender, value, task):
        self._start(task, self.tasks[task])

    def _open(self, number: int, task: TaskState) -> None:
        task.round += 1
        commit_ends = self.timestamp + task.parameters["commit_seconds"]
        reveal_ends = commit_ends + task.parameters["reveal_seconds"]
        task.rounds[task.round] = Round(task.model, commit_ends, reveal_ends)
        base = (task.model.digest, task.model.size)
        self._log("RoundOpened", [number, task.round], [base, commit_ends, reveal_ends])

    def _get_open(self, task: int, number: int) -> Round:
        state = self.tasks[task]
        if state.state != 2:
            raise TasksRefusal("tasks: not running")
        if state.round != number:
            raise TasksRefusal("tasks: not the current round")
        return state.rounds[number]

    def _do_commit(self, sender, value, task, round, commitment):
        current = self._get_open(task, round)
        if sender in current.commitments:
            raise TasksRefusal("tasks: already committed")
        if self.timestamp >= current.commit_ends:
            raise TasksRefusal("tasks: commit period is over")
        current.commitments[sender] = commitment
        self._log("Committed", [task, round, sender], [commitment])
        if len(current.commitments) == len(self.tasks[task].stakes):
            current.commit_ends = self.timestamp
            current.reveal_ends = self.timestamp + self.tasks[task].parameters["reveal_seconds"]

    def _do_reveal(self, sender, value, task, round, update, samples, salt):
        current = self._get_open(task, round)
        if sender not in current.commitments:
            raise TasksRefusal("tasks: no commitment")
        if sender in current.updates:
            raise TasksRefusal("tasks: already revealed")
        if self.timestamp < current.commit_ends:
            raise TasksRefusal("tasks: commit period is running")
        if self.timestamp >= current.reveal_ends:
            raise TasksRefusal("tasks: reveal period is over")
        expected = compute_commitment(CHAIN_ID, task, round, Address(sender), update, samples, salt)
        if expected != current.commitments[sender]:
            raise TasksRefusal("tasks: differs from the commitment")
        assert update in self.blobs
        current.updates[sender] = (update, samples)
        self._log("Revealed", [task, round, sender], [(update.digest, update.size), samples, 1])

    def _do_report(self, sender, value, task, round, samples, values):
        current = self.tasks[task].rounds[round]
        if sender in current.reports:
            raise TasksRefusal("tasks: already reported")
        current.reports[sender] = (samples, values)
        self._log("Reported", [task, round, sender], [samples, values])

    def _do_claim(self, sender, value, task):
        amount = self.tasks[task].claimable.pop(sender, 0)
        if not amount:
            raise TasksRefusal("tasks: nothing to claim")
        self.balances[sender] = self.get_balance(sender) + amount
        self._log("Claimed", [task, sender], [amount])

    def _do_leave(self, sender, value, task):
        stake, _, _ = self.tasks[task].stakes.pop(sender)
        self.balances[sender] = self.get_balance(sender) + stake
        self._log("Left", [task, sender], [stake])

    def _do_refund(self, sender, value, task):
        amount, self.tasks[task].left = self.tasks[task].left, 0
        self.balances[sender] = self.get_balance(sender) + amount
        self._log("Refunded", [task, sender], [amount])

    # -- views -----------------------------------------------------------------------------------
    def _view(  # noqa: C901 - one line for each view
        self, name: str, arguments: dict[str, object]
    ) -> list[object]:
        blob = lambda n: (n.digest, n.size)  # noqa: E731
        number = arguments.get("task")
        task = self.tasks.get(number)
        if name == "task_count":
            return [len(self.tasks)]
        if name == "get_task":
            if task is None:
                parameters = ((0, 0), *[0] * 14)
                empty = blob(NO_BLOB)
                return [("", bytes(20), 0, False, parameters, empty, empty, 0, 0, 0)]
            flat = tuple(
                tuple(item.values()) if isinstance(item, dict) else item
                for item in task.parameters.values()
            )
            return [
                (
                    task.name,
                    task.publisher,
                    task.state,
                    bool(task.invited),
                    flat,
                    blob(task.bundle),
                    blob(task.model),
                    task.join_ends,
                    task.round,
                    0,
                )
            ]
        if name == "get_participants":
            return [list(task.stakes)]
        who = arguments.get("participant") or arguments.get("owner")
        if name == "get_participant":
            stake, samples, active = task.stakes.get(who, (0, 0, 0))
            return [(stake, samples, active, int(who in task.stakes))]
        if name == "claimable":
            return [task.claimable.get(who, 0)]
        if name == "is_invited":
            return [not task.invited or who in task.invited]
        if name == "get_account":
            return [(task.left, task.left, 0, 0, 0)]
        current = task.rounds.get(arguments["round"])
        if name == "get_round":
            if current is None:
                return [(0, blob(NO_BLOB), 0, 0, 0, 0, 0, blob(NO_BLOB), 0)]
            counts = (len(task.stakes), len(current.commitments), len(current.updates))
            ends = (current.commit_ends, current.reveal_ends)
            return [(current.state, blob(current.base), *ends, *counts, blob(current.model), 0)]
        if name == "get_submission":
            update, samples = current.updates.get(who, (NO_BLOB, 0))
            return [(current.commitments.get(who, bytes(32)), blob(update), samples)]
        if name == "has_reported":
            return [who in current.reports]
        if name == "get_metrics":
            reports = list(current.reports.values())
            samples = [sum(n for n, v in reports if len(v) > i) for i in range(8)]
            sums = [sum(n * v[i] for n, v in reports if len(v) > i) for i in range(8)]
            means = [s // n if n else 0 for s, n in zip(sums, samples, strict=True)]
            return [(len(reports), samples, sums), means]
        raise AssertionError(name)

    # -- JSON-RPC --------------------------------------------------------------------------------
    def answer(self, request: httpx.Request) -> httpx.Response:
        """What a node would answer to one HTTP request."""
        path = request.url.path
        if path.startswith("/blobs/"):
            return self._answer_blob(request, path.removeprefix("/blobs/"))
        if path in self.extra:
            return httpx.Response(200, content=self.extra[path])
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
        block_hash = GENESIS_HASH if number == 0 else keccak(number.to_bytes(8, "big"))
        return {
            "hash": "0x" + block_hash.hex(),
            "number": hex(number),
            "timestamp": hex(self.timestamp),
            "baseFeePerGas": "0x7",
            "gasLimit": hex(60_000_000),
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
        self.eth_call(call, "latest", dry=True)
        return hex(200_000)

    def eth_call(self, call, tag, dry=False):
        data = bytes.fromhex(call["data"][2:])
        name, arguments = self.contract.decode_call(data)
        if f"_do_{name}" in dir(self):
            reason = self._try(bytes.fromhex(call["from"][2:]), data, int(call["value"], 16))
            if reason:
                raise Refused(3, f"execution reverted: {reason}", "0x")
            return "0x"
        outputs = [format_type(item) for item in self.abi[name]["outputs"]]
        return "0x" + encode(outputs, self._view(name, arguments)).hex()

    def _try(self, sender: bytes, data: bytes, value: int) -> str:
        import copy

        saved, logs = copy.deepcopy(self.tasks), list(self.logs)
        balances = dict(self.balances)
        try:
            self._run(sender, data, value)
        except TasksRefusal as refusal:
            return str(refusal)
        finally:
            self.tasks, self.logs, self.balances = saved, logs, balances
        return ""

    def eth_sendRawTransaction(self, raw):
        transaction = decode_transaction(bytes.fromhex(raw[2:]))
        self.seen.add(transaction.raw)
        if transaction.nonce < self.nonces.get(transaction.sender, 0):
            raise Refused(-32000, "tx_nonce_low: used", {"code": "tx_nonce_low"})
        self.pool[transaction.hash] = transaction
        return "0x" + transaction.hash.hex()

    def eth_getTransactionReceipt(self, text):
        return self.receipts.get(bytes.fromhex(text[2:]))

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


def make_blob_name(text: bytes) -> BlobName:
    """A name of nothing, for tests."""
    return BlobName(Digest(keccak(text)), 100)

"""Contracts through their ABI, and `Tasks` as records (docs/tasks.md).

Answers come from an untrusted node: they are decoded strictly, and a malformed one raises
NodeRefused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_hash.auto import keccak

from steelyard.chain.artifacts import get_artifact
from steelyard.chain.params import TASKS_ADDRESS
from steelyard.chain.receipts import Log as ChainLog
from steelyard.chain.types import Address, BlobName, Digest, Hash

from .errors import ClientError, NodeRefused, NodeUnreachable
from .rpc import Json, Rpc, as_bytes, as_hex, as_int

NO_BLOB: Final = BlobName(Digest(bytes(32)), 0)
METRIC_UNIT: Final = 2**20
"""Metrics on chain are integers in units of 1/METRIC_UNIT."""
MAX_METRICS: Final = 8
MAX_LOG_BLOCKS: Final = 2_000
"""Heights in one eth_getLogs."""


class TaskState(IntEnum):
    """Where a task stands."""

    LOBBY = 1
    RUNNING = 2
    FINISHED = 3
    ABORTED = 4


class RoundState(IntEnum):
    """Where a round stands; 0 means that it was never opened."""

    NONE = 0
    OPEN = 1
    AGGREGATED = 2
    SKIPPED = 3


@dataclass(frozen=True, slots=True)
class Log:
    """One event of the chain, with where it stands."""

    address: Address
    topics: tuple[bytes, ...]
    data: bytes
    height: int
    transaction: Hash
    index: int


@dataclass(frozen=True, slots=True)
class Event:
    """A decoded event. Values: int, bool, str, bytes (addresses too), BlobName, lists of these."""

    name: str
    values: Mapping[str, Any]
    height: int
    transaction: Hash
    index: int


class Contract:
    """One contract's ABI: encodes calls, decodes answers and events."""

    def __init__(self, address: Address, abi: Sequence[Mapping[str, Any]]) -> None:
        self.address = address
        self._functions = {entry["name"]: entry for entry in abi if entry["type"] == "function"}
        self._events = {
            keccak(compute_signature(entry).encode()): entry
            for entry in abi
            if entry["type"] == "event"
        }

    def encode_call(self, name: str, *arguments: Any) -> bytes:
        """Return the data of a call. A value that does not fit its type is our own mistake."""
        function = self._functions[name]
        types = [format_type(entry) for entry in function["inputs"]]
        return keccak(compute_signature(function).encode())[:4] + encode(types, arguments)

    def decode_call(self, data: bytes) -> tuple[str, dict[str, Any]] | None:
        """Return a call's function and arguments by name; None if it is not one of ours."""
        for name, function in self._functions.items():
            if keccak(compute_signature(function).encode())[:4] == data[:4]:
                try:
                    return name, decode_values(function["inputs"], data[4:])
                except NodeRefused:
                    return None
        return None

    def decode_output(self, name: str, data: bytes) -> list[Any]:
        """Return what a call answered, structs as dictionaries. Raises NodeRefused."""
        outputs = self._functions[name]["outputs"]
        named = [dict(entry, name=str(index)) for index, entry in enumerate(outputs)]
        return list(decode_values(named, data).values())

    def get_topic(self, name: str) -> bytes:
        """Return an event's first topic."""
        return next(topic for topic, entry in self._events.items() if entry["name"] == name)

    def decode_event(self, log: Log) -> Event | None:
        """Return the event in a log; None for another contract's. Raises NodeRefused."""
        entry = self._events.get(log.topics[0]) if log.topics else None
        if entry is None or log.address != self.address:
            return None
        indexed = [item for item in entry["inputs"] if item["indexed"]]
        plain = [item for item in entry["inputs"] if not item["indexed"]]
        if len(log.topics) != 1 + len(indexed):
            raise NodeRefused("rpc_answer", f"an event {entry['name']} has missing topics")
        values = decode_values(plain, log.data)
        for item, topic in zip(indexed, log.topics[1:], strict=True):
            values |= decode_values([item], topic)
        return Event(entry["name"], values, log.height, log.transaction, log.index)


def format_type(entry: Mapping[str, Any]) -> str:
    """Return an ABI entry's type with its tuples spelled out."""
    kind: str = entry["type"]
    if not kind.startswith("tuple"):
        return kind
    inner = ",".join(format_type(item) for item in entry["components"])
    return f"({inner}){kind.removeprefix('tuple')}"


def compute_signature(entry: Mapping[str, Any]) -> str:
    """Return the canonical signature of a function or event."""
    return f"{entry['name']}({','.join(format_type(item) for item in entry['inputs'])})"


def decode_values(entries: Sequence[Mapping[str, Any]], data: bytes) -> dict[str, Any]:
    """Return ABI values by name. Raises NodeRefused `rpc_answer`."""
    try:
        values = decode([format_type(entry) for entry in entries], data)
    except (DecodingError, OverflowError, ValueError) as error:
        raise NodeRefused(
            "rpc_answer", f"the contract's answer does not decode ({error}); is this our chain?"
        ) from None
    return {
        entry["name"]: convert(entry, value) for entry, value in zip(entries, values, strict=True)
    }


def convert(entry: Mapping[str, Any], value: Any) -> Any:
    """Return one ABI value in our own types: addresses as bytes, structs by name, blobs named."""
    kind: str = entry["type"]
    if kind.endswith("]"):
        item = dict(entry, type=kind[: kind.rindex("[")])
        return [convert(item, element) for element in value]
    if kind == "address":
        return Address(bytes.fromhex(value[2:]))
    if kind == "tuple":
        names = [item["name"] for item in entry["components"]]
        fields = {
            item["name"]: convert(item, element)
            for item, element in zip(entry["components"], value, strict=True)
        }
        if names == ["digest", "size"]:
            return BlobName(Digest(fields["digest"]), fields["size"])
        return fields
    return value


@dataclass(frozen=True, slots=True)
class Parameters:
    """A task's frozen parameters, in the order of the contract: wei and seconds."""

    rule: tuple[int, int]
    """Kind and bound (units of 2**-24)."""
    weighting: int
    bits: int
    rounds: int
    min_clients: int
    max_clients: int
    join_seconds: int
    commit_seconds: int
    reveal_seconds: int
    base_stake: int
    stake_per_sample: int
    admission_norm2: int
    """Units of 2**-48."""
    reward: int
    close_reserve: int
    close_bounty: int

    @property
    def escrow(self) -> int:
        """What publishing deposits."""
        return self.reward + self.rounds * self.close_reserve

    def encode(self) -> tuple[Any, ...]:
        """Return the ABI tuple."""
        return tuple(getattr(self, name) for name in self.__slots__)


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """One task, as `get_task` has it."""

    number: int
    name: str
    publisher: Address
    state: TaskState
    invited_only: bool
    parameters: Parameters
    bundle: BlobName
    model: BlobName
    """The newest model."""
    join_ends: int
    round: int
    skips: int

    @property
    def is_over(self) -> bool:
        """Whether no further round will come."""
        return self.state in (TaskState.FINISHED, TaskState.ABORTED)


@dataclass(frozen=True, slots=True)
class RoundInfo:
    """One round, as `get_round` has it. `committed` and `revealed` are counts."""

    state: RoundState
    base: BlobName
    commit_ends: int
    reveal_ends: int
    active: int
    committed: int
    revealed: int
    model: BlobName
    saturated: int


@dataclass(frozen=True, slots=True)
class ParticipantInfo:
    """One participant; `position` 0 means a stranger."""

    stake: int
    samples: int
    active_from: int
    position: int


@dataclass(frozen=True, slots=True)
class SubmissionInfo:
    """What one participant has done in a round; `update.size` is 0 until it is revealed."""

    commitment: bytes
    update: BlobName
    samples: int


@dataclass(frozen=True, slots=True)
class AccountInfo:
    """A task's money, in wei: deposited = left + paid + fees + refunded."""

    deposited: int
    left: int
    paid: int
    fees: int
    refunded: int


@dataclass(frozen=True, slots=True)
class MetricsInfo:
    """Self-reported evaluation of a round's model. `means`: one per metric that was reported."""

    reports: int
    means: tuple[float, ...]


class Tasks:
    """The contract `Tasks` at its fixed address, read through nodes."""

    def __init__(self, rpc: Rpc) -> None:
        self.rpc = rpc
        self.contract = Contract(Address(TASKS_ADDRESS), get_artifact("Tasks").abi)

    def encode(self, name: str, *arguments: Any) -> bytes:
        """Return the data of a call."""
        return self.contract.encode_call(name, *arguments)

    def read(self, name: str, *arguments: Any) -> Any:
        """Return what a view answers at the newest finalized block."""
        (output,) = self.read_all(name, *arguments)
        return output

    def read_all(self, name: str, *arguments: Any) -> list[Any]:
        """Return all outputs of a view."""
        call = {"to": as_hex(self.contract.address), "data": as_hex(self.encode(name, *arguments))}
        return self.contract.decode_output(
            name, as_bytes(self.rpc.call("eth_call", call, "latest"))
        )

    def get_count(self) -> int:
        """Return the number of tasks so far; the newest has this number."""
        count: int = self.read("task_count")
        return count

    def get_task(self, task: int) -> TaskInfo:
        """Return a task. Raises ClientError `task_unknown`."""
        fields = self.read("get_task", task)
        if fields["state"] not in tuple(TaskState):
            raise ClientError(
                "task_unknown", f"there is no task {task} on this chain; see `steelyard task list`"
            )
        parameters = fields["parameters"]
        rule = parameters.pop("rule")
        return TaskInfo(
            number=task,
            parameters=Parameters(rule=(rule["kind"], rule["bound"]), **parameters),
            state=TaskState(fields["state"]),
            **{k: v for k, v in fields.items() if k not in ("parameters", "state")},
        )

    def get_round(self, task: int, round_number: int) -> RoundInfo:
        """Return a round; its state is NONE if it was never opened."""
        fields = self.read("get_round", task, round_number)
        return RoundInfo(**fields | {"state": RoundState(fields["state"])})

    def get_participants(self, task: int) -> list[Address]:
        """Return who takes part."""
        members: list[Address] = self.read("get_participants", task)
        return members

    def get_participant(self, task: int, who: Address) -> ParticipantInfo:
        """Return one participant."""
        return ParticipantInfo(**self.read("get_participant", task, who))

    def get_submission(self, task: int, round_number: int, who: Address) -> SubmissionInfo:
        """Return what `who` has done in a round."""
        return SubmissionInfo(**self.read("get_submission", task, round_number, who))

    def get_account(self, task: int) -> AccountInfo:
        """Return a task's money."""
        return AccountInfo(**self.read("get_account", task))

    def get_claimable(self, task: int, who: Address) -> int:
        """Return what `who` may claim now, in wei."""
        amount: int = self.read("claimable", task, who)
        return amount

    def get_metrics(self, task: int, round_number: int) -> MetricsInfo:
        """Return the self-reported metrics of a round's model."""
        totals, means = self.read_all("get_metrics", task, round_number)
        known = [mean / METRIC_UNIT for mean, n in zip(means, totals["samples"], strict=True) if n]
        return MetricsInfo(totals["reports"], tuple(known))

    def has_reported(self, task: int, round_number: int, who: Address) -> bool:
        """Whether `who` has reported metrics of a round's model."""
        answer: bool = self.read("has_reported", task, round_number, who)
        return answer

    def is_invited(self, task: int, who: Address) -> bool:
        """Whether `who` may join."""
        answer: bool = self.read("is_invited", task, who)
        return answer

    def get_events(
        self,
        task: int,
        names: Sequence[str] = (),
        *,
        round_number: int | None = None,
        first_height: int = 0,
        last_height: int | None = None,
    ) -> list[Event]:
        """Return a task's finalized events in the order of the chain."""
        head = as_int(self.rpc.call("eth_blockNumber"))
        last = head if last_height is None else min(head, last_height)
        topics: list[Json] = [
            [as_hex(self.contract.get_topic(name)) for name in names] or None,
            as_hex(task.to_bytes(32, "big")),
        ]
        if round_number is not None:
            topics.append(as_hex(round_number.to_bytes(32, "big")))
        events: list[Event] = []
        for start in range(first_height, last + 1, MAX_LOG_BLOCKS):
            query = {
                "address": as_hex(self.contract.address),
                "topics": topics,
                "fromBlock": hex(start),
                "toBlock": hex(min(start + MAX_LOG_BLOCKS - 1, last)),
            }
            # From one node: another may be behind, and its silence would look like no events.
            now, found = self.rpc.call_together(
                [("eth_blockNumber", ()), ("eth_getLogs", (query,))]
            )
            if as_int(now) < as_int(query["toBlock"]):
                raise NodeUnreachable({self.rpc.url: f"it is only at height {as_int(now)}"})
            for value in found:
                event = self.contract.decode_event(decode_log(value))
                if event is not None and (not names or event.name in names):
                    events.append(event)
        return events

    def decode_chain_log(self, log: ChainLog) -> Event:
        """Return the event in a log of a proven receipt; its place is not filled in.

        Raises: NodeRefused rpc_answer; a block that is not final may hold any log.
        """
        event = self.contract.decode_event(
            Log(log.address, tuple(log.topics), log.data, 0, Hash(bytes(32)), 0)
        )
        if event is None:
            raise NodeRefused("rpc_answer", "Tasks makes no such log; ask another node")
        return event

    def decode_logs(self, logs: Sequence[Log]) -> list[Event]:
        """Return our events among the logs of a receipt."""
        decoded = (self.contract.decode_event(log) for log in logs)
        return [event for event in decoded if event is not None]


def decode_log(value: Json) -> Log:
    """Return one JSON-RPC log. Raises NodeRefused `rpc_answer`."""
    try:
        return Log(
            Address(as_bytes(value["address"], 20)),
            tuple(as_bytes(topic, 32) for topic in value["topics"]),
            as_bytes(value["data"]),
            as_int(value["blockNumber"]),
            Hash(as_bytes(value["transactionHash"], 32)),
            as_int(value["logIndex"]),
        )
    except (KeyError, TypeError):
        raise NodeRefused("rpc_answer", "the node's log is malformed") from None


def compute_commitment(
    chain_id: int,
    task: int,
    round_number: int,
    sender: Address,
    update: BlobName,
    samples: int,
    salt: bytes,
) -> bytes:
    """Return the hash that hides an update and binds its sender (docs/tasks.md, "Commitment")."""
    types = ["uint256", "address", "uint256", "uint256", "address", "bytes32", "uint256"]
    values = [chain_id, TASKS_ADDRESS, task, round_number, sender, update.digest, update.size]
    return keccak(encode([*types, "uint256", "bytes32"], [*values, samples, salt]))

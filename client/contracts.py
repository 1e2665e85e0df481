"""The contracts at their fixed addresses, read through nodes that nobody trusts (docs/tasks.md)."""

from collections.abc import Sequence
from typing import Any, Final

from eth_abi.abi import encode
from eth_hash.auto import keccak

from steelyard.chain.artifacts import get_artifact
from steelyard.chain.params import TASKS_ADDRESS
from steelyard.chain.receipts import Log as ChainLog
from steelyard.chain.types import Address, BlobName, Hash

from .abi import Contract, Event, Log, decode_log
from .errors import ClientError, NodeRefused, NodeUnreachable
from .records import (
    METRIC_UNIT,
    AccountInfo,
    MetricsInfo,
    Parameters,
    ParticipantInfo,
    RoundInfo,
    RoundState,
    SubmissionInfo,
    TaskInfo,
    TaskState,
)
from .rpc import Json, Rpc, as_bytes, as_hex, as_int

MAX_LOG_BLOCKS: Final = 2_000
"""Heights in one eth_getLogs."""


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

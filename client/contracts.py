"""The contracts at their fixed addresses, read through nodes that nobody trusts (docs/tasks.md).

`Tasks` holds the agreement and all money, `Rounds` what happens in a round. Views are asked at the
newest finalized block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import IntEnum
from functools import cache
from typing import Any, Final, TypeVar

from eth_abi.abi import encode
from eth_hash.auto import keccak

from steelyard.chain.artifacts import get_artifact
from steelyard.chain.params import REGISTRY_ADDRESS, ROUNDS_ADDRESS, TASKS_ADDRESS
from steelyard.chain.types import Address, BlobName

from .abi import Contract, Event, Log
from .errors import ClientError, NodeRefused
from .records import (
    MAX_ROUNDS,
    METRIC_UNIT,
    AccountInfo,
    Action,
    MetricsInfo,
    Parameters,
    ParticipantInfo,
    RoundInfo,
    RoundState,
    RuleTerms,
    SubmissionInfo,
    TaskInfo,
    TaskState,
    Wish,
)
from .rpc import Rpc, as_bytes, as_hex

Record = TypeVar("Record")
Kind = TypeVar("Kind", bound=IntEnum)

ADDRESSES: Final = {
    "Registry": REGISTRY_ADDRESS,
    "Rounds": ROUNDS_ADDRESS,
    "Tasks": TASKS_ADDRESS,
}


@cache
def get_contract(name: str) -> Contract:
    """Return the ABI of a contract that genesis deploys. Read when it is first needed."""
    return Contract(Address(ADDRESSES[name]), get_artifact(name).abi)


class Deployed:
    """One of the contracts that genesis deploys, read through nodes."""

    def __init__(self, rpc: Rpc, name: str) -> None:
        self.rpc, self.contract = rpc, get_contract(name)

    @property
    def address(self) -> Address:
        """Where it stands."""
        return self.contract.address

    def encode(self, name: str, *arguments: Any) -> bytes:
        """Return the data of a call."""
        return self.contract.encode_call(name, *arguments)

    def read(self, name: str, *arguments: Any) -> Any:
        """Return what a view answers at the newest finalized block."""
        (output,) = self.read_all(name, *arguments)
        return output

    def read_all(self, name: str, *arguments: Any) -> list[Any]:
        """Return all outputs of a view."""
        call = {"to": as_hex(self.address), "data": as_hex(self.encode(name, *arguments))}
        return self.contract.decode_output(
            name, as_bytes(self.rpc.call("eth_call", call, "latest"))
        )

    def read_each(self, name: str, *arguments: Any) -> dict[str, Any]:
        """Return what a view answers at each node; those without an answer are left out."""
        call = {"to": as_hex(self.address), "data": as_hex(self.encode(name, *arguments))}
        found = {}
        for url, answer in self.rpc.call_each("eth_call", call, "latest").items():
            try:
                (found[url],) = self.contract.decode_output(name, as_bytes(answer))
            except NodeRefused:
                continue
        return found

    def decode_logs(self, logs: Sequence[Log]) -> list[Event]:
        """Return this contract's events among the logs of a receipt."""
        decoded = (self.contract.decode_event(log) for log in logs)
        return [event for event in decoded if event is not None]


class Tasks(Deployed):
    """The contract `Tasks`: terms, members, money, reputation."""

    def __init__(self, rpc: Rpc) -> None:
        super().__init__(rpc, "Tasks")

    def get_count(self) -> int:
        """Return the number of tasks so far; the newest has this number."""
        count: int = self.read("task_count")
        return count

    def get_task(self, task: int) -> TaskInfo:
        """Return a task. Raises ClientError `task_unknown`."""
        return build_task(task, self.read("get_task", task))

    def get_task_each(self, task: int) -> dict[str, TaskInfo]:
        """Return a task as each node shows it; those that show none are left out."""
        found = {}
        for url, answer in self.read_each("get_task", task).items():
            try:
                found[url] = build_task(task, answer)
            except ClientError:
                continue
        return found

    def get_next_action(self, task: int) -> tuple[Action, int]:
        """Return what is due now, and in which round; unlike `get_task`, of any number."""
        action, number = self.read_all("next_action", task)
        return build_kind(Action, action), number

    def get_participants(self, task: int) -> list[Address]:
        """Return who takes part."""
        members: list[Address] = self.read("get_participants", task)
        return members

    def get_participant(self, task: int, who: Address) -> ParticipantInfo:
        """Return one participant."""
        return build_record(ParticipantInfo, self.read("get_participant", task, who))

    def get_account(self, task: int) -> AccountInfo:
        """Return a task's money."""
        return build_record(AccountInfo, self.read("get_account", task))

    def get_claimable(self, task: int, who: Address) -> int:
        """Return what `who` may claim now, in wei."""
        amount: int = self.read("claimable", task, who)
        return amount

    def get_sponsorship(self, task: int, who: Address) -> int:
        """Return the stake that the publisher keeps for `who` until it joins, in wei."""
        amount: int = self.read("get_sponsorship", task, who)
        return amount

    def get_reputation(self, publisher: Address, who: Address) -> int:
        """Return what rounds for `publisher` have made of `who`, in units of 2**-20."""
        reputation: int = self.read("get_reputation", publisher, who)
        return reputation

    def has_applied(self, task: int, who: Address) -> bool:
        """Whether `who` has asked to be invited."""
        answer: bool = self.read("has_applied", task, who)
        return answer

    def is_invited(self, task: int, who: Address) -> bool:
        """Whether `who` may join, as far as invitations go."""
        answer: bool = self.read("is_invited", task, who)
        return answer


class Rounds(Deployed):
    """The contract `Rounds`: who was drawn, has committed, has revealed, and what came of it."""

    def __init__(self, rpc: Rpc) -> None:
        super().__init__(rpc, "Rounds")

    def get_round(self, task: int, round_number: int) -> RoundInfo:
        """Return a round; its state is NONE if it was never opened."""
        return build_round(self.read("get_round", task, round_number))

    def get_round_each(self, task: int, round_number: int) -> dict[str, RoundInfo]:
        """Return a round as each node shows it; those that show none are left out."""
        found = {}
        for url, answer in self.read_each("get_round", task, round_number).items():
            try:
                found[url] = build_round(answer)
            except NodeRefused:
                continue
        return found

    def get_submission(self, task: int, round_number: int, who: Address) -> SubmissionInfo:
        """Return what `who` has done in a round."""
        return build_record(SubmissionInfo, self.read("get_submission", task, round_number, who))

    def get_metrics(self, task: int, round_number: int) -> MetricsInfo:
        """Return the self-reported metrics of a round's model."""
        totals, means = self.read_all("get_metrics", task, round_number)
        known = [mean / METRIC_UNIT for mean, n in zip(means, totals["samples"], strict=True) if n]
        return MetricsInfo(totals["reports"], tuple(known))

    def get_due(self, task: int) -> int:
        """Return from when on the round in progress may be closed, as things stand."""
        due: int = self.read("get_due", task)
        return due

    def is_paged(self, task: int) -> bool:
        """Whether a round of the task takes more than one call to close."""
        _, split = self.read_all("get_plan", task)
        return bool(split["measures"] > 0 or split["combines"] > 1)

    def get_velocity(self, task: int) -> BlobName:
        """Return what momentum has gathered so far; of size 0 without momentum."""
        name: BlobName = self.read("get_velocity", task)
        return name

    def has_reported(self, task: int, round_number: int, who: Address) -> bool:
        """Whether `who` has reported metrics of a round's model."""
        answer: bool = self.read("has_reported", task, round_number, who)
        return answer


def build_task(task: int, answer: Mapping[str, Any]) -> TaskInfo:
    """Return a task from the contract's answer.

    Raises ClientError `task_unknown`; NodeRefused `rpc_answer`.
    """
    if answer["state"] not in tuple(TaskState):
        raise ClientError(
            "task_unknown", f"there is no task {task} on this chain; see `steelyard task list`"
        )
    if answer["round"] > answer["parameters"]["rounds"] or answer["round"] > MAX_ROUNDS:
        raise NodeRefused("rpc_answer", f"the node names round {answer['round']:.3e} of a task")
    return build_record(
        TaskInfo,
        dict(answer)
        | {
            "number": task,
            "parameters": build_parameters(answer["parameters"]),
            "state": TaskState(answer["state"]),
            "wish": build_kind(Wish, answer["wish"]),
        },
    )


def build_round(answer: Mapping[str, Any]) -> RoundInfo:
    """Return a round from the contract's answer. Raises NodeRefused `rpc_answer`."""
    state = {"state": build_kind(RoundState, answer["state"])}
    return build_record(RoundInfo, dict(answer) | state)


def build_kind(kind: type[Kind], number: int) -> Kind:
    """Return one of the contract's enumerations. Raises NodeRefused `rpc_answer`."""
    if number not in tuple(kind):
        raise NodeRefused("rpc_answer", f"the contract knows no {kind.__name__} {number}")
    return kind(number)


def build_parameters(answer: Mapping[str, Any]) -> Parameters:
    """Return a task's parameters from the contract's answer."""
    rule = build_record(RuleTerms, answer["rule"])
    return build_record(Parameters, dict(answer) | {"rule": rule})


def build_record(kind: type[Record], answer: Mapping[str, Any]) -> Record:
    """Return a record from a struct of the contract; the record may want fewer fields."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    assert all(name in answer for name in names), f"the ABI lacks a field of {kind.__name__}"
    return kind(**{name: answer[name] for name in names})


def compute_commitment(
    chain_id: int,
    task: int,
    round_number: int,
    origin: int,
    sender: Address,
    update: BlobName,
    samples: int,
    salt: bytes,
) -> bytes:
    """Return the hash that hides an update and binds its sender (docs/tasks.md, "Commitment")."""
    types = ["uint256", "address", "uint256", "uint256", "uint256", "address", "bytes32", "uint256"]
    values = [chain_id, ROUNDS_ADDRESS, task, round_number, origin, sender, *encode_name(update)]
    return keccak(encode([*types, "uint256", "bytes32"], [*values, samples, salt]))


def encode_name(name: BlobName) -> tuple[bytes, int]:
    """Return a blob's name as the contracts take it."""
    return name.digest, name.size

"""What is on a chain, and where an account stands in a task: for lists, without a key.

A node may name any number of tasks: only so many are ever asked for.
"""

from dataclasses import dataclass
from typing import Final

from steelyard.chain.types import Address

from .contracts import Rounds, Tasks
from .records import FRACTION_UNIT, Admission, RoundInfo, TaskInfo, TaskState
from .rpc import Rpc

MOST_TASKS: Final = 100
"""Of the newest ones, unless more are asked for: each costs a request or more."""


@dataclass(frozen=True, slots=True)
class OpenTask:
    """A task that an account may join, may apply to, or is in."""

    info: TaskInfo
    is_joined: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an account stands in a task. Amounts in wei."""

    task: int
    state: TaskState
    round: int
    """0 in a lobby."""
    joined: bool
    invited: bool
    """Or it needs no invitation."""
    applied: bool
    reputation: float
    """With the task's publisher, 0 to 1."""
    samples: int
    """The most rows that it may claim in a round."""
    stake: int
    sponsored: int
    """What of the stake the publisher gave, or has put down until it joins."""
    claimable: int
    drawn: bool | None = None
    """In the round in progress, as the next two; None without a round, or without a place."""
    committed: bool | None = None
    revealed: bool | None = None


def list_newest(count: int, most: int) -> range:
    """Return the numbers of the newest tasks, the newest first; a node may name any count."""
    return range(count, max(0, count - most), -1)


def list_tasks(rpc: Rpc, most: int = MOST_TASKS) -> list[TaskInfo]:
    """Return the newest tasks of the chain, the newest first. Raises NodeUnreachable."""
    tasks = Tasks(rpc)
    return [tasks.get_task(number) for number in list_newest(tasks.get_count(), most)]


def list_open_tasks(rpc: Rpc, address: Address, most: int = MOST_TASKS) -> list[OpenTask]:
    """Return those of the newest tasks that an account may join, may apply to, or is in."""
    tasks, found = Tasks(rpc), []
    for info in list_tasks(rpc, most):
        is_joined = bool(tasks.get_participant(info.number, address).position)
        may_apply = info.parameters.admission == Admission.APPLICANTS
        is_open = may_apply or tasks.is_invited(info.number, address)
        if is_joined or (is_open and not info.is_over):
            found.append(OpenTask(info, is_joined))
    return found


def list_rounds(rpc: Rpc, task: int) -> list[RoundInfo]:
    """Return a task's rounds so far, round 1 first. Raises ClientError `task_unknown`."""
    rounds = Rounds(rpc)
    count = Tasks(rpc).get_task(task).round
    return [rounds.get_round(task, number) for number in range(1, count + 1)]


def get_standing(rpc: Rpc, task: int, address: Address) -> Standing:
    """Return where an account stands in a task. Raises ClientError `task_unknown`."""
    tasks, rounds = Tasks(rpc), Rounds(rpc)
    info, member = tasks.get_task(task), tasks.get_participant(task, address)
    drawn = committed = revealed = None
    if info.round and member.position:
        done = rounds.get_submission(task, info.round, address)
        drawn = rounds.get_round(task, info.round).is_drawn(member.seat)
        committed, revealed = done.is_committed, done.update.size > 0
    return Standing(
        task=task,
        state=info.state,
        round=info.round,
        joined=bool(member.position),
        invited=tasks.is_invited(task, address),
        applied=tasks.has_applied(task, address),
        reputation=tasks.get_reputation(info.publisher, address) / FRACTION_UNIT,
        samples=member.samples,
        stake=member.stake,
        sponsored=member.sponsored or tasks.get_sponsorship(task, address),
        claimable=tasks.get_claimable(task, address),
        drawn=drawn,
        committed=committed,
        revealed=revealed,
    )

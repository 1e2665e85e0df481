"""What the contracts answer, as records (docs/tasks.md): amounts in wei, times in seconds."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from steelyard.chain.types import Address, BlobName, Digest

NO_BLOB: Final = BlobName(Digest(bytes(32)), 0)
METRIC_UNIT: Final = 2**20
"""Metrics on chain are integers in units of 1/METRIC_UNIT."""
MAX_METRICS: Final = 8


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

"""What the contracts answer, as records (docs/tasks.md): amounts in wei, times in seconds."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from steelyard.chain.types import Address, BlobName, Digest

NO_BLOB: Final = BlobName(Digest(bytes(32)), 0)
METRIC_UNIT: Final = 2**20
"""Metrics on chain are integers in units of 1/METRIC_UNIT."""
MAX_METRICS: Final = 8
FRACTION_UNIT: Final = 2**20
"""Fractions on chain are integers in units of 1/FRACTION_UNIT."""


MAX_ROUNDS: Final = 10_000
MAX_STALENESS: Final = 8
"""Rounds that an update may be late at most."""
MAX_REPUTATION: Final = FRACTION_UNIT - 15
"""Where a reputation stops: it grows by a sixteenth, rounded down, of what it lacks to 1."""
CLOSE_TIMEOUT_SECONDS: Final = 86_400
"""After a round is due, how long its files stay readable, and when anybody may give up on it."""


class TaskState(IntEnum):
    """Where a task stands."""

    LOBBY = 1
    RUNNING = 2
    FINISHED = 3
    ABORTED = 4
    PAUSED = 5


class RoundState(IntEnum):
    """Where a round stands; 0 means that it was never opened."""

    NONE = 0
    OPEN = 1
    AGGREGATED = 2
    SKIPPED = 3
    CLOSING = 4
    """Some pages of its aggregation are made, not all."""
    STOPPED = 5
    """Its task ended before it did."""


class Wish(IntEnum):
    """What the publisher wants to happen when the round in progress has ended."""

    NOTHING = 0
    PAUSE = 1
    CANCEL = 2


class Action(IntEnum):
    """What anybody may do about a task now, as `next_action` has it."""

    WAIT = 0
    START = 1
    CLOSE = 2
    ABORT = 3


class Admission(IntEnum):
    """Who may join."""

    OPEN = 0
    INVITED = 1
    APPLICANTS = 2
    """Anybody may apply; who is invited may join."""


class OnFailedQuorum(IntEnum):
    """What follows a round with too few updates."""

    SKIP = 0
    EXTEND = 1
    REFUND = 2


@dataclass(frozen=True, slots=True)
class RuleTerms:
    """How a task aggregates, as its publisher fixed it (docs/tasks.md, "Parameters")."""

    kind: int
    bound: int
    """Clipped: norm in units of 2**-24. Trimmed, Multi-Krum: the number of dishonest clients."""
    max_share: int
    """The most of one update's share, 2**-20."""
    server_lr: int
    """2**-12."""
    momentum: int
    """2**-12."""

    def encode(self) -> tuple[int, ...]:
        """Return the ABI tuple."""
        return tuple(getattr(self, name) for name in self.__slots__)


@dataclass(frozen=True, slots=True)
class Parameters:
    """A task's frozen parameters, in the order of the contract: wei, seconds, units of 2**-20."""

    rule: RuleTerms
    weighting: int
    bits: int
    rounds: int
    min_clients: int
    max_clients: int
    fraction_fit: int
    spare_clients: int
    max_staleness: int
    staleness_discount: int
    on_failed_quorum: int
    max_extensions: int
    max_saturated: int
    evaluate_every: int
    join_seconds: int
    commit_seconds: int
    reveal_seconds: int
    base_stake: int
    stake_per_sample: int
    bond: int
    admission: int
    min_reputation: int
    admission_norm2: int
    """Units of 2**-48."""
    reward: int
    close_reserve: int
    close_bounty: int
    platform: Address
    platform_share: int

    @property
    def escrow(self) -> int:
        """What publishing deposits."""
        return self.reward + self.rounds * self.close_reserve

    def compute_stake(self, samples: int) -> int:
        """Return the least stake for updates of up to `samples` rows."""
        return self.base_stake + samples * self.stake_per_sample

    def compute_drawn(self, active: int) -> int:
        """Return how many of `active` participants a round draws."""
        least = max(self.min_clients, -(-active * self.fraction_fit // FRACTION_UNIT))
        return min(active, least + self.spare_clients)

    def encode(self) -> tuple[Any, ...]:
        """Return the ABI tuple."""
        others = (getattr(self, name) for name in self.__slots__[1:])
        return (self.rule.encode(), *others)


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """One task, as `get_task` has it."""

    number: int
    name: str
    publisher: Address
    state: TaskState
    parameters: Parameters
    bundle: BlobName
    model: BlobName
    """The newest model."""
    join_ends: int
    round: int
    pool: int
    """What the round in progress may pay out."""
    wish: Wish
    pause_ends: int
    """In a pause: when anybody may abort the task."""

    @property
    def is_over(self) -> bool:
        """Whether no further round will come."""
        return self.state in (TaskState.FINISHED, TaskState.ABORTED)


@dataclass(frozen=True, slots=True)
class RoundInfo:
    """One round, as `get_round` has it. `drawn`, `committed` and `revealed` are sets of seats."""

    state: RoundState
    base: BlobName
    velocity: BlobName
    """What momentum had gathered before the round; nothing without momentum."""
    pool: int
    seed: bytes
    drawn: int
    committed: int
    revealed: int
    commit_ends: int
    reveal_ends: int
    extensions: int
    model: BlobName
    saturated: int
    pages: int

    def is_drawn(self, seat: int) -> bool:
        """Whether whoever sits there may commit to an update of this round."""
        return bool(self.drawn >> seat & 1)

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many were drawn, have committed, have revealed."""
        return self.drawn.bit_count(), self.committed.bit_count(), self.revealed.bit_count()


@dataclass(frozen=True, slots=True)
class ParticipantInfo:
    """One participant; `position` 0 means a stranger, otherwise it is the seat plus one."""

    stake: int
    """All of it, what a publisher gave included."""
    sponsored: int
    samples: int
    active_from: int
    position: int

    @property
    def seat(self) -> int:
        """Its place in the sets of a round."""
        assert self.position, "a stranger has no seat"
        return self.position - 1


@dataclass(frozen=True, slots=True)
class SubmissionInfo:
    """What one participant has done in a round; `update.size` is 0 until it is revealed."""

    commitment: bytes
    origin: int
    """The round that the update was made for: an earlier one if it came late."""
    update: BlobName
    samples: int
    stake: int
    """At the time of the commitment, in wei."""

    @property
    def is_committed(self) -> bool:
        """Whether there is a commitment."""
        return any(self.commitment)


@dataclass(frozen=True, slots=True)
class AccountInfo:
    """A task's money, in wei: deposited = left + paid + fees + platform + refunded."""

    deposited: int
    left: int
    reward_left: int
    """The part of `left` that later rounds share out."""
    paid: int
    fees: int
    platform: int
    refunded: int
    stakes: int
    sponsorships: int
    burned: int


@dataclass(frozen=True, slots=True)
class MetricsInfo:
    """Self-reported evaluation of a round's model. `means`: one per metric that was reported."""

    reports: int
    means: tuple[float, ...]

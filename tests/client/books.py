"""What the double of the contracts (agreement.py) remembers of a task."""

from dataclasses import dataclass, field

from steelyard.chain.types import BlobName
from steelyard.client.records import NO_BLOB

LOBBY, OPEN, NOTHING = 1, 1, 0
"""How a task, a round and a publisher's wish begin."""


@dataclass
class Member:
    stake: int
    sponsored: int
    samples: int
    active_from: int
    seat: int


@dataclass
class Submitted:
    commitment: bytes
    origin: int
    update: BlobName = NO_BLOB
    samples: int = 0
    stake: int = 0


@dataclass
class Round:
    base: BlobName
    velocity: BlobName
    pool: int
    drawn: set[int]
    commit_ends: int
    reveal_ends: int
    state: int = OPEN
    model: BlobName = NO_BLOB
    extensions: int = 0
    done: dict[bytes, Submitted] = field(default_factory=dict)
    reports: dict[bytes, tuple[int, list[int]]] = field(default_factory=dict)
    evaluation_ends: int = 0

    @property
    def revealed(self) -> list[bytes]:
        return [client for client, done in self.done.items() if done.update.size]


@dataclass
class TaskState:
    name: str
    publisher: bytes
    parameters: dict[str, object]
    model: BlobName
    bundle: BlobName
    join_ends: int
    invited: set[bytes]
    left: int
    reward_left: int
    state: int = LOBBY
    round: int = 0
    pool: int = 0
    wish: int = NOTHING
    velocity: BlobName = NO_BLOB
    burned: int = 0
    members: dict[bytes, Member] = field(default_factory=dict)
    rounds: dict[int, Round] = field(default_factory=dict)
    claimable: dict[bytes, int] = field(default_factory=dict)
    sponsorships: dict[bytes, int] = field(default_factory=dict)
    applied: set[bytes] = field(default_factory=set)

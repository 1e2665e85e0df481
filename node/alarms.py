"""What a person must know of, decided from plain facts: `find_alarms(facts)` is all the rules.

An alarm is there as long as its cause is; its message says what to do. `AlarmBoard` tells the log
when one comes and when it goes, once each. Gathering the facts is `watcher.py`.
"""

import statistics
import threading
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from .logs import log_alarm, log_event
from .records import Alarm

STALL_INTERVALS: Final = 3
MIN_STALL_SECONDS: Final = 15.0
GRACE_SECONDS: Final = 30.0
"""After a start, connections have this long to come up."""
SKEW_SECONDS: Final = 2.0
"""Validators do not vote for a block that is a second ahead of their clock."""
LOW_DISK_FACTOR: Final = 4
"""Nearly full: less than this many times the space below which production stops."""
LOW_BALANCE_WEI: Final = 10**16
"""A check-in and evidence cost far less than a hundredth of a coin."""
SAMPLES: Final = 8
MIN_SAMPLES: Final = 3
"""Of a leader: the first after a start, or a stall, may be a proposal of long ago, sent again."""
MAX_SOURCES: Final = 128
HALF_SECOND: Final = 0.5
"""Timestamps are whole seconds, cut off: on average they are this much late."""


class State(IntEnum):
    """What Staking says of an account, as in the contract."""

    NOBODY = 0
    ACTIVE = 1
    WAITING = 2
    JAILED = 3
    LEAVING = 4


@dataclass(frozen=True, slots=True)
class Standing:
    """Our account in Staking; `balance` in wei is what it can pay transactions with."""

    state: State
    is_banned: bool
    balance: int


@dataclass(frozen=True, slots=True)
class Reach:
    """Power of the current set: ours and that of the peers we reach, and all."""

    power: int
    total: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known at one instant. None: it does not apply, or is not known.

    `stopped` is why the driver stands still; `reach` is there for a member of the current set;
    `has_voted` means that this key was a validator once; `set_error` says why the set of the next
    epoch is the old one; `follow_refusal` is the code of why the nodes to follow are not followed;
    `skew_seconds` is how far our clock is ahead of the other leaders'.
    """

    uptime_seconds: float
    since_final_seconds: float
    stall_seconds: float
    free_bytes: int
    min_free_bytes: int
    stopped: Alarm | None = None
    reach: Reach | None = None
    standing: Standing | None = None
    has_voted: bool = False
    is_signer_outdated: bool = False
    set_error: str | None = None
    follow_refusal: str | None = None
    skew_seconds: float | None = None


def compute_stall_seconds(heartbeat_ms: int, timeout_ms: int) -> float:
    """How long no block may become final before it is an alarm.

    An idle chain has a block each heartbeat; a leader that is down costs a timeout more. Three such
    gaps in a row take more than one validator.
    """
    return max(MIN_STALL_SECONDS, STALL_INTERVALS * (heartbeat_ms + timeout_ms) / 1000)


def find_alarms(facts: Facts) -> tuple[Alarm, ...]:
    """Every alarm that these facts call for, the gravest first."""
    found = [] if facts.stopped is None else [facts.stopped]
    found += _find_signing(facts)
    found += _find_finality(facts)
    found += _find_machine(facts)
    return tuple(found)


def _find_finality(facts: Facts) -> Iterable[Alarm]:
    if facts.since_final_seconds > facts.stall_seconds:
        yield Alarm(
            "finality_stalled",
            f"no block came or became final for {facts.since_final_seconds:.0f} s; see which "
            "validators are down (peers in /health of each) and bring them back: more than two "
            "thirds of the power must run and reach each other",
        )
    reach = facts.reach
    is_settled = facts.uptime_seconds > GRACE_SECONDS
    if reach is not None and is_settled and 3 * reach.power <= 2 * reach.total:
        percent = 100 * reach.power // reach.total
        yield Alarm(
            "peers_lost",
            f"this validator reaches {percent} % of the power, itself included, and needs more "
            "than two thirds; check its network and the endpoints of the others; if it was down "
            "for long it may be jailed, and only [follow] nodes in config.toml tell it so",
        )
    if facts.follow_refusal is not None:
        yield Alarm(
            "follow_refused",
            f"this node does not follow the chain: {facts.follow_refusal}; see that code, and the "
            "log's following_refused",
        )
    if facts.set_error is not None:
        yield Alarm(
            "set_unreadable",
            f"Staking did not give a usable set for the next epoch ({facts.set_error}); the old "
            "validators go on; report it with the log",
        )


def _find_signing(facts: Facts) -> Iterable[Alarm]:
    if facts.is_signer_outdated:
        yield Alarm(
            "signer_outdated",
            "this key voted without this signer/: another machine runs with it, or an old backup "
            "was restored; stop one of them at once",
        )
    if facts.standing is None:
        return
    state = facts.standing.state
    if facts.standing.is_banned:
        yield Alarm(
            "validator_slashed",
            "this validator contradicted itself and may never come back with this account; find "
            "out how two processes came to use its keys",
        )
    elif state == State.JAILED:
        yield Alarm(
            "validator_jailed",
            "Staking took this validator out for not checking in; the keeper brings it back in the "
            "next epoch if it is enabled and can pay, else: steelyard node unjail DIR",
        )
    elif state == State.WAITING:
        yield Alarm(
            "validator_displaced",
            "higher stakes took all places; the keeper enters again when there is one for this "
            "stake; add to it: steelyard node deposit DIR --stake MORE, or leave: steelyard node "
            "exit DIR",
        )
    elif state == State.NOBODY and facts.has_voted:
        yield Alarm(
            "validator_absent",
            "this key voted and has no stake any more; stop the node, or deposit again: steelyard "
            "node deposit DIR --stake N",
        )
    if state in (State.ACTIVE, State.JAILED) and facts.standing.balance < LOW_BALANCE_WEI:
        yield Alarm(
            "account_low",
            f"the validator's account has {facts.standing.balance} wei left; send coins to it, or "
            "it cannot check in and is jailed",
        )


def _find_machine(facts: Facts) -> Iterable[Alarm]:
    skew = facts.skew_seconds
    if skew is not None and abs(skew) > SKEW_SECONDS:
        direction = "ahead of" if skew > 0 else "behind"
        yield Alarm(
            "clock_skew",
            f"this machine's clock is about {abs(skew):.0f} s {direction} the median of the other "
            "leaders'; synchronise it (chronyc tracking, timedatectl)",
        )
    if facts.free_bytes < LOW_DISK_FACTOR * facts.min_free_bytes:
        yield Alarm(
            "disk_low",
            f"{facts.free_bytes >> 20} MiB are free, and production stops below "
            f"{facts.min_free_bytes >> 20}; free some space, or prune old states",
        )


class AlarmBoard:
    """What is wrong now. Thread-safe; the log hears of each alarm when it comes and goes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._alarms: dict[str, Alarm] = {}

    def update(self, alarms: Iterable[Alarm]) -> None:
        """These and no others are wrong now."""
        found = {alarm.code: alarm for alarm in alarms}
        with self._lock:
            before, self._alarms = self._alarms, found
        for code, alarm in found.items():
            if code not in before:
                log_alarm("alarm_raised", code=code, message=alarm.message)
        for code in before.keys() - found:
            log_event("alarm_cleared", code=code)

    def get(self) -> tuple[Alarm, ...]:
        """The gravest first."""
        with self._lock:
            return tuple(self._alarms.values())


@dataclass
class ClockWatch:
    """Our clock against the others', from the timestamps of blocks that came from their leaders.

    A block's timestamp is its leader's clock in whole seconds; it arrives later by the time that
    building and sending took. Of the last few of each leader the least late tells most, and of all
    leaders the median: neither a slow network nor a few wrong clocks make us doubt ours. Only
    blocks that arrive when they are proposed may be given, not those fetched later.
    """

    samples: dict[Hashable, deque[float]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def observe(self, leader: Hashable, timestamp: int, now: float) -> None:
        """A leader's block came; `now` is our clock in seconds."""
        with self.lock:
            if leader not in self.samples and len(self.samples) >= MAX_SOURCES:
                self.samples.pop(next(iter(self.samples)))
            self.samples.setdefault(leader, deque(maxlen=SAMPLES)).append(now - timestamp)

    def estimate(self) -> float | None:
        """Seconds that we are ahead; None before anybody was heard."""
        with self.lock:
            least = [min(late) for late in self.samples.values() if len(late) >= MIN_SAMPLES]
        return statistics.median(least) - HALF_SECOND if least else None

"""One turn of a participant: a look at the chain, and the one thing that is due.

What a turn does, first match: reveal what was committed; submit an update that is ready and came
too late for its own round; train and commit, if this account was drawn; evaluate a model and
report, where the task asks for it, but never between a commitment and its reveal.
"""

import time
from collections.abc import Callable
from typing import Final

from steelyard.chain.types import BlobName

from .account import Account
from .amounts import format_coins
from .errors import ClientError, NodeRefused
from .evaluating import Evaluator
from .reckoning import compute_due
from .records import (
    Parameters,
    ParticipantInfo,
    RoundInfo,
    RoundState,
    SubmissionInfo,
    TaskInfo,
    TaskState,
)
from .renewing import compute_readable_until
from .rpc import Json, as_int, as_object
from .steps import FetchConfig, Steps
from .submitting import Submitter
from .training import Prepared, Result, Trainer

STILL_SECONDS: Final = 30.0
"""A chain makes blocks when nobody sends anything, too: a few heartbeats."""
DUE_SECONDS: Final = 30
"""Keepers close within a few blocks: a round that waits for so long has none."""


class ChainClock:
    """A lower bound of the validators' clock, from the timestamps of new heads.

    A head's timestamp is never ahead of the clock that made it (by more than a second), so the
    largest difference to our own clock that was seen bounds theirs from below. Acting by it is
    never too early, even when this machine's clock is wrong, as long as nodes tell the truth. One
    that named a false time is found out by the next head that is higher and not later, or by a
    refusal of the chain: then nothing counts but what is seen from there on.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._offset: float | None = None
        self._latest = (0, 0)
        """The latest timestamp that counts, and the height that it came with."""
        self._is_false = False

    def observe(self, timestamp: int, height: int) -> None:
        """Take note of the newest head's timestamp, in seconds, and of its height."""
        latest, at = self._latest
        if self._is_false or (height > at and timestamp < latest):
            self._offset, self._latest, self._is_false = None, (0, 0), False
        offset = timestamp - self._now()
        self._offset = offset if self._offset is None else max(self._offset, offset)
        self._latest = max(self._latest, (timestamp, height))

    def forget(self) -> None:
        """Let the next head alone say what time it is: the chain went by another time than this."""
        self._is_false = True

    @property
    def is_set(self) -> bool:
        """Whether a head was observed."""
        return self._offset is not None

    def get_seconds(self) -> int:
        """Return the time on chain, in whole seconds, or a little less."""
        assert self._offset is not None, "a head is observed before time is asked for"
        return int(self._now() + self._offset)


class Turn:
    """The body of a participant's loop. Holds nothing that a crash may not lose."""

    def __init__(
        self,
        account: Account,
        task: int,
        train: Trainer,
        evaluate: Trainer | None,
        fetch_config: FetchConfig,
    ) -> None:
        self._account, self._task = account, task
        self._steps = Steps(account, task, fetch_config)
        self._submitter = Submitter(self._steps, train)
        self._evaluator = Evaluator(self._steps, evaluate)
        self._clock = ChainClock(account.clock.now)
        self._period = (0, 0)
        """The round that was seen last, and how often it was extended."""
        self._last_end: int | None = None
        """When the reveals of the round in progress end, however often it is extended."""
        self._seen: tuple[object, int] | None = None
        self._reveal_ends = 0
        """When its reveals end, as things stand."""
        self._newest = (-1, 0.0)
        """The newest height, and when, by our own clock, it was seen first."""
        self._mark = ((0, 0, 0), 0)
        """The round, its extensions and its pages, and since when, on chain, it is at that."""
        self.is_over = False
        account.outbox.flush()

    @property
    def is_bound(self) -> bool:
        """Whether an end of the run now may cost the bond of a commitment, as the journal knows."""
        ends, number = self._last_end, self._period[0]
        if ends is None or not self._steps.is_committed(number):
            return False
        return not self._clock.is_set or self._clock.get_seconds() < ends

    @property
    def submitted(self) -> int:
        """Updates revealed so far."""
        return self._submitter.submitted

    def prepare(self, info: TaskInfo, round_number: int, base: BlobName) -> tuple[Result, Prepared]:
        """Train on a model and prepare the update, without sending anything."""
        return self._submitter.prepare(info, round_number, base)

    def say(self, line: str) -> None:
        """Report a state that lasts, once."""
        self._steps.say(line)

    def take(self) -> None:
        """Do what is due. Raises NodeUnreachable; then the same is due again.

        Nothing can be due that was not, while no block and no second has passed.
        """
        head = as_object(self._account.rpc.call("eth_getBlockByNumber", "latest", False))
        height = as_int(head.get("number"))
        self._clock.observe(as_int(head.get("timestamp")), height)
        self._leave_behind(height)
        seen = (head.get("hash"), self._clock.get_seconds())
        if seen == self._seen:
            return
        self._look(height)
        self._seen = seen

    def _leave_behind(self, height: int) -> None:
        """Ask another node next if this one has shown no new head for long: it may stand still."""
        now, (newest, since) = self._account.clock.now(), self._newest
        if height > newest:
            self._newest = (height, now)
        elif now - since >= STILL_SECONDS:
            self._newest = (height, now)
            self._account.rpc.move_on()

    def _look(self, head: int) -> None:
        """Read where the task stands and do the first thing that is due."""
        info = self._account.tasks.get_task(self._task)
        if self._is_contradicted(info):
            self.say(f"round {self._period[0]}: a node says that it is over; asking another")
            self._account.rpc.move_on()
            return
        if info.state is not TaskState.RUNNING:
            self._last_end = None
        match info.state:
            case TaskState.LOBBY:
                members = len(self._account.tasks.get_participants(self._task))
                self.say(f"lobby: {members}/{info.parameters.min_clients} participants")
            case TaskState.RUNNING:
                state = self._account.rounds.get_round(self._task, info.round)
                if self._period != (info.round, state.extensions):
                    self._steps.reopen(info.round)
                    self._period = (info.round, state.extensions)
                self._last_end = compute_last_end(info, state)
                self._reveal_ends = state.reveal_ends
                if not self._submit(info, state, head) and not self._steps.is_committed(info.round):
                    self._report(info, head)
                self._tell_due(info, state)
            case TaskState.PAUSED:
                self._report(info, head)
                self.say(f"paused by the organisation after round {info.round}: waiting")
            case _:
                self._report(info, head)
                self.is_over = True

    def _is_contradicted(self, info: TaskInfo) -> bool:
        """Whether any node still shows the round of an open commitment, where this one does not.

        A false word for its end would keep the update unrevealed, and train for another round.
        """
        number, rpc = self._period[0], self._account.rpc
        is_same = info.state is TaskState.RUNNING and info.round == number
        if is_same or len(rpc.urls) == 1 or not self.is_bound:
            return False
        if self._clock.get_seconds() >= self._reveal_ends:
            return False
        shown = self._account.tasks.get_task_each(self._task).values()
        return any(one.state is TaskState.RUNNING and one.round == number for one in shown)

    def _report(self, info: TaskInfo, head: int) -> None:
        self._evaluator.report(info, head, self._clock.get_seconds())

    def _tell_due(self, info: TaskInfo, state: RoundInfo) -> None:
        """Say once that a round waits to be closed, if for long nobody has made a page of it."""
        now, mark = self._clock.get_seconds(), (info.round, state.extensions, state.pages)
        if mark != self._mark[0]:
            self._mark = (mark, now)
        due = compute_due(info.parameters, state)
        if now - max(due, self._mark[1]) >= DUE_SECONDS:
            since = time.strftime("%H:%M:%S", time.localtime(due))
            self._steps.say(
                f"round {info.round}: due since {since} and nobody closes it; anybody may: "
                f"`steelyard round close {self._task}`",
                topic="due",
            )

    # -- submitting --------------------------------------------------------------------------------
    def _submit(self, info: TaskInfo, state: RoundInfo, head: int) -> bool:
        """Reveal or commit if it is due. Returns whether the chain changed."""
        account, number, now = self._account, info.round, self._clock.get_seconds()
        member = account.tasks.get_participant(self._task, account.address)
        if not member.position:
            raise ClientError(
                "not_joined", f"this account is no longer in task {self._task}; join it again"
            )
        done = account.rounds.get_submission(self._task, number, account.address)
        drawn, committed, revealed = state.counts
        if not done.is_committed and self._steps.has_committed(number):
            self.say(f"round {number}: {account.rpc.url} does not know of our commitment yet")
            account.rpc.move_on()
        elif done.update.size:
            self.say(f"round {number}: submitted, {revealed}/{committed} in")
        elif done.is_committed:
            if now < state.commit_ends:
                self.say(f"round {number}: committed, {committed}/{drawn}")
            elif committed < info.parameters.min_clients:
                self.say(f"round {number}: only {committed} committed, too few to go on")
            else:
                return self._reveal(info, state, done)
        elif member.active_from > number:
            self.say(f"waiting for round {member.active_from}")
        elif state.state is not RoundState.OPEN or now >= state.commit_ends:
            self.say(f"round {number}: too late to commit; waiting for the next round")
        else:
            return self._commit(info, state, member, head)
        return False

    def _reveal(self, info: TaskInfo, state: RoundInfo, done: SubmissionInfo) -> bool:
        """Reveal, unless another node knows that it is too early. Whether the chain changed.

        After a refusal, and when it seems too late, the next node is asked where the round stands.
        """
        if self._submitter.is_resting:
            return False
        now = self._clock.get_seconds()
        if 2 * now < state.commit_ends + state.reveal_ends and self._is_doubted(info.round):
            self.say(f"round {info.round}: a node says that it is too early to reveal")
            return False
        if now < state.reveal_ends and self._submitter.reveal(info, state, done, now):
            return True
        self._clock.forget()
        self._account.rpc.move_on()
        return False

    def _is_doubted(self, number: int) -> bool:
        """Whether any node says that the reveal period has not begun: the most careful one decides.

        Only for the first half of the period: a false word for too early costs gas, and one for too
        late the bond.
        """
        rpc, rounds = self._account.rpc, self._account.rounds
        if len(rpc.urls) == 1:
            return False
        heads = rpc.call_each("eth_getBlockByNumber", "latest", False)
        for url, state in rounds.get_round_each(self._task, number).items():
            head = heads[url]
            if isinstance(head, dict) and is_before(head.get("timestamp"), state.commit_ends):
                return True
        return False

    def _commit(self, info: TaskInfo, state: RoundInfo, member: ParticipantInfo, head: int) -> bool:
        """Commit to what is ready, or train and commit. Returns whether the chain changed."""
        number, left = info.round, state.commit_ends - self._clock.get_seconds()
        covered = self._compute_covered(info, member)
        if not covered:
            return False
        is_drawn = state.is_drawn(member.seat)
        is_failed = self._steps.is_missed(number, "commit")
        takes = 0.0 if self._submitter.is_trained(number) else self._submitter.training_seconds
        has_time = is_drawn and not is_failed and takes <= left
        late = self._submitter.find_late(info, member, covered)
        if late is not None and not has_time:
            return self._submitter.commit_late(info, state, late)
        if not is_drawn:
            self.say(f"round {number}: not drawn this round, waiting; that costs nothing")
            return False
        if 2 * left > info.parameters.commit_seconds:
            self._report(info, head)
        return self._submitter.commit(info, state, covered)

    def _compute_covered(self, info: TaskInfo, member: ParticipantInfo) -> int:
        """Return how many rows the stake covers; 0 after telling what is missing of it."""
        terms = info.parameters
        missing = terms.compute_stake(member.samples) - member.stake
        if missing <= 0:
            return member.samples
        covered = compute_covered(terms, member)
        self._steps.say(
            f"the stake is {format_coins(missing)} coins short, as a bond was lost: it covers "
            f"{covered} of {member.samples} rows. `steelyard client stake {self._task} "
            f"{format_coins(missing)}` adds what is missing; nothing is spent without it",
            topic="stake",
        )
        return covered


def compute_covered(terms: Parameters, member: ParticipantInfo) -> int:
    """Return how many rows a stake covers, never more than were promised."""
    if member.stake >= terms.compute_stake(member.samples):
        return member.samples
    spare = max(0, member.stake - terms.base_stake)
    covered = spare // terms.stake_per_sample if terms.stake_per_sample else 0
    return 0 if member.stake < terms.base_stake else min(covered, member.samples)


def compute_last_end(info: TaskInfo, state: RoundInfo) -> int:
    """Return when a round's reveals end at the latest: extended as often as it may be, and late."""
    if state.extensions == info.parameters.max_extensions:
        return state.reveal_ends
    return compute_readable_until(info.parameters, state.reveal_ends, state.extensions)


def is_before(timestamp: Json, ends: int) -> bool:
    """Whether a node's head is of before; what is no time says nothing."""
    try:
        return as_int(timestamp) < ends
    except NodeRefused:
        return False

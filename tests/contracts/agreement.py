"""What Tasks should do, written a second time: plain Python, no storage layout, no limits of code.

Each method of `Ledger` answers a `Verdict` on one call: every reason for which the contract may
refuse it (it must refuse if there is one), and what it changes if it is taken. Amounts are wei,
bitmaps of seats are integers, fractions are in units of 2**-20.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eth_hash.auto import keccak

from steelyard.chain.types import Address, BlobName, Digest
from steelyard.client.abi import Event

from .arena import ZERO

ONE = 2**20
LOBBY, RUNNING, FINISHED, ABORTED, PAUSED = 1, 2, 3, 4, 5
NO_WISH, PAUSE, CANCEL = 0, 1, 2
TRIMMED_MEAN = 2
OPEN, AGGREGATED, SKIPPED, CLOSING, STOPPED = 1, 2, 3, 4, 5
MADE, NOT_MADE, FAILED = 1, 2, 3
"""Outcomes of a round."""
MAX_WEI = 2**100
MAX_SAMPLES = 2**64 - 1
CLOSE_TIMEOUT_SECONDS = 86_400
MAX_PAUSE_SECONDS = 30 * 86_400
FLOOR = 2**17

NO_BLOB = BlobName(Digest(bytes(32)), 0)

Terms = Mapping[str, Any]
Transfers = Mapping[Address, int]
"""Wei that the contract sends, by recipient."""
Effect = Callable[[Sequence[Event]], Transfers]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a call may be refused; what it does if it is not. `effect` reads the call's events."""

    reasons: frozenset[str]
    effect: Effect


@dataclass(slots=True)
class Member:
    """A participant. `stake` includes what is `sponsored`."""

    stake: int
    sponsored: int
    samples: int
    active_from: int
    seat: int


@dataclass(slots=True)
class Submission:
    """What one participant said in one round; `update` None until it is revealed."""

    origin: int
    commitment: bytes
    update: BlobName | None = None
    samples: int = 0
    stake: int = 0


@dataclass(slots=True)
class Round:
    """One round, as Rounds has it."""

    base: BlobName
    velocity: BlobName
    pool: int
    drawn: int
    commit_ends: int
    reveal_ends: int
    state: int = OPEN
    committed: int = 0
    revealed: int = 0
    extensions: int = 0
    pages: int = 0
    saturated: int = 0
    model: BlobName | None = None
    made: list[BlobName] = field(default_factory=list)
    submissions: dict[Address, Submission] = field(default_factory=dict)


@dataclass(slots=True)
class Task:
    """One task, in both contracts."""

    publisher: Address = ZERO
    terms: Terms = field(default_factory=dict)
    state: int = 0
    model: BlobName | None = None
    velocity: BlobName = NO_BLOB
    join_ends: int = 0
    number: int = 0
    """Of the current round."""
    wish: int = NO_WISH
    pause_ends: int = 0
    members: dict[Address, Member] = field(default_factory=dict)
    invited: set[Address] = field(default_factory=set)
    applied: set[Address] = field(default_factory=set)
    sponsorships: Counter[Address] = field(default_factory=Counter)
    claimable: Counter[Address] = field(default_factory=Counter)
    books: Counter[str] = field(default_factory=Counter)
    """deposited, reward_left, paid, fees, platform, refunded, burned."""
    spent: Counter[int] = field(default_factory=Counter)
    """Closing fees, by round."""
    rounds: dict[int, Round] = field(default_factory=dict)
    answered: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    pages: int = 0
    """Into which an aggregation is divided; 0 is none."""
    aggregations: int = 0
    evaluations: dict[int, int] = field(default_factory=dict)
    reported: set[tuple[int, Address]] = field(default_factory=set)

    @property
    def is_open(self) -> bool:
        """Whether it exists and is not over."""
        return self.state in {LOBBY, RUNNING, PAUSED}

    @property
    def round(self) -> Round:
        """The current round."""
        return self.rounds[self.number]

    @property
    def left(self) -> int:
        """What the escrow still holds: by the law of docs/tasks.md, not by a book of its own."""
        spent = ("paid", "fees", "platform", "refunded")
        return self.books["deposited"] - sum(self.books[name] for name in spent)

    @property
    def held(self) -> int:
        """What the contract must have for this task."""
        stakes = sum(member.stake for member in self.members.values())
        return self.left + stakes + self.sponsorships.total() + self.claimable.total()

    def list_ready(self) -> int:
        """Return the seats that can be drawn."""
        base_stake = self.terms["base_stake"]
        return sum(1 << m.seat for m in self.members.values() if m.stake >= base_stake)

    def find_at(self, seat: int) -> Address:
        """Return who sits there."""
        return next(who for who, member in self.members.items() if member.seat == seat)


def draw(seed: bytes, ready: int, terms: Terms) -> int:
    """Return the bitmap of the drawn seats: a Fisher-Yates shuffle, as docs/tasks.md has it."""
    order = list_seats(ready)
    wanted = -(-len(order) * terms["fraction_fit"] // ONE)
    target = min(len(order), max(terms["min_clients"], wanted) + terms["spare_clients"])
    for index in range(target if target < len(order) else 0):
        number = int.from_bytes(keccak(seed + index.to_bytes(32, "big")), "big")
        other = index + number % (len(order) - index)
        order[index], order[other] = order[other], order[index]
    return sum(1 << seat for seat in order[:target])


def list_seats(bitmap: int) -> list[int]:
    """Return the seats of a bitmap, in ascending order."""
    return [seat for seat in range(bitmap.bit_length()) if bitmap >> seat & 1]


def collect(**reasons: bool) -> frozenset[str]:
    """Return the names that are true, as the words of Tasks: underscores are spaces."""
    return frozenset(f"tasks: {name.replace('_', ' ')}" for name, is_so in reasons.items() if is_so)


class Ledger:
    """All tasks, and what publishers think of participants."""

    def __init__(self) -> None:
        self.tasks: dict[int, Task] = {}
        self.reputations: dict[tuple[Address, Address], int] = {}

    def get(self, number: int) -> Task:
        """Return a task; an empty one if there is none of that number."""
        return self.tasks.get(number) or Task()

    def get_reputation(self, publisher: Address, who: Address) -> int:
        """Return a reputation; everybody begins at the floor."""
        return self.reputations.get((publisher, who), FLOOR)

    # -- the organisation ------------------------------------------------------------------------
    def publish(
        self,
        now: int,
        sender: Address,
        value: int,
        terms: Terms,
        model: BlobName,
        invited: Sequence[Address],
    ) -> Verdict:
        """A task; docs/tasks.md lists the other unsound terms, ape tests them."""
        escrow = terms["reward"] + terms["rounds"] * terms["close_reserve"]
        is_unpaid = terms["max_staleness"] > 0 and terms["staleness_discount"] == 0
        reasons = collect(
            open_to_everybody=bool(invited) and terms["admission"] == 0,
            escrow_differs_from_reward_and_reserves=value != escrow,
            late_updates_would_count_unpaid=is_unpaid and terms["rule"]["kind"] == TRIMMED_MEAN,
        )

        def effect(events: Sequence[Event]) -> Transfers:
            task = Task(publisher=sender, terms=terms, state=LOBBY, model=model)
            task.join_ends = now + terms["join_seconds"]
            task.invited = set(invited)
            task.books.update(deposited=value, reward_left=terms["reward"])
            self.tasks[len(self.tasks) + 1] = task
            return {}

        return Verdict(reasons, effect)

    def fund(self, task: Task, value: int) -> Verdict:
        """Anybody adds to the reward."""
        reasons = collect(
            not_open=not task.is_open,
            last_round_is_running=task.is_open and task.number >= task.terms["rounds"],
            amount_out_of_range=not 0 < value <= MAX_WEI,
        )

        def effect(events: Sequence[Event]) -> Transfers:
            task.books.update(deposited=value, reward_left=value)
            return {}

        return Verdict(reasons, effect)

    def invite(self, task: Task, sender: Address, people: Sequence[Address]) -> Verdict:
        """The publisher invites."""
        reasons = collect(
            not_the_publisher=sender != task.publisher,
            not_open=not task.is_open,
            open_to_everybody=task.is_open and task.terms["admission"] == 0,
        )

        def effect(events: Sequence[Event]) -> Transfers:
            task.invited.update(people)
            return {}

        return Verdict(reasons, effect)

    def uninvite(self, task: Task, sender: Address, who: Address) -> Verdict:
        """The publisher takes an invitation back."""
        reasons = collect(
            not_the_publisher=sender != task.publisher, not_invited=who not in task.invited
        )

        def effect(events: Sequence[Event]) -> Transfers:
            task.invited.discard(who)
            return {}

        return Verdict(reasons, effect)

    def sponsor(
        self, task: Task, sender: Address, who: Address, value: int, gas_wei: int
    ) -> Verdict:
        """The publisher pays somebody's gas and puts down its stake."""
        reasons = collect(
            not_the_publisher=sender != task.publisher,
            not_open=not task.is_open,
            already_joined=who in task.members,
            amount_out_of_range=not 0 < value <= MAX_WEI,
            more_gas_than_value=gas_wei > value,
        )

        def effect(events: Sequence[Event]) -> Transfers:
            task.sponsorships[who] += value - gas_wei
            return {who: gas_wei}

        return Verdict(reasons, effect)

    def unsponsor(self, task: Task, sender: Address, who: Address) -> Verdict:
        """The publisher takes back what was not used."""
        amount = task.sponsorships[who]
        reasons = collect(not_the_publisher=sender != task.publisher, nothing_sponsored=amount == 0)

        def effect(events: Sequence[Event]) -> Transfers:
            task.sponsorships[who] = 0
            return {sender: amount}

        return Verdict(reasons, effect)

    def pause(self, task: Task, sender: Address) -> Verdict:
        """The publisher asks to hold the task when the round has ended."""
        reasons = collect(
            not_the_publisher=sender != task.publisher,
            not_running=task.state != RUNNING,
            already_ending=task.wish != NO_WISH,
        )
        return Verdict(reasons, lambda events: self._wish(task, PAUSE))

    def resume(self, now: int, task: Task, sender: Address) -> Verdict:
        """The publisher goes on, or takes back a pause that has not begun."""
        reasons = collect(
            not_the_publisher=sender != task.publisher,
            not_paused=task.state != PAUSED and (task.state, task.wish) != (RUNNING, PAUSE),
        )

        def effect(events: Sequence[Event]) -> Transfers:
            if task.state == PAUSED:
                task.state = RUNNING
                self._open_round(now, task, events)
            else:
                task.wish = NO_WISH
            return {}

        return Verdict(reasons, effect)

    def cancel(self, task: Task, sender: Address) -> Verdict:
        """The publisher ends the task, after the round if somebody has committed in it."""
        is_waiting = task.state == RUNNING and task.round.committed != 0
        reasons = collect(
            not_the_publisher=sender != task.publisher,
            not_open=not task.is_open,
            already_ending=is_waiting and task.wish == CANCEL,
        )

        def effect(events: Sequence[Event]) -> Transfers:
            if is_waiting:
                return self._wish(task, CANCEL)
            return self._abort(task)

        return Verdict(reasons, effect)

    def refund(self, task: Task, sender: Address) -> Verdict:
        """The publisher takes what nobody earned."""
        amount = task.left
        reasons = collect(
            not_the_publisher=sender != task.publisher,
            not_over=task.state not in {FINISHED, ABORTED},
            nothing_to_refund=amount == 0,
        )

        def effect(events: Sequence[Event]) -> Transfers:
            task.books["refunded"] += amount
            task.books["reward_left"] = 0
            return {sender: amount}

        return Verdict(reasons, effect)

    # -- participants ----------------------------------------------------------------------------
    def apply(self, task: Task, sender: Address) -> Verdict:
        """Somebody asks to be invited."""
        reasons = collect(
            not_open=not task.is_open,
            takes_no_applicants=task.is_open and task.terms["admission"] != 2,
            already_applied=sender in task.applied,
        )

        def effect(events: Sequence[Event]) -> Transfers:
            task.applied.add(sender)
            return {}

        return Verdict(reasons, effect)

    def join(self, now: int, task: Task, sender: Address, value: int, samples: int) -> Verdict:
        """Somebody takes a seat."""
        if not task.is_open:
            return Verdict(collect(not_open=True), lambda events: {})
        terms = task.terms
        sponsored = task.sponsorships[sender]
        stake = value + sponsored
        reputation = self.get_reputation(task.publisher, sender)
        reasons = collect(
            not_invited=terms["admission"] != 0 and sender not in task.invited,
            lobby_is_over=task.state == LOBBY and now >= task.join_ends,
            last_round_is_running=task.number >= terms["rounds"],
            already_joined=sender in task.members,
            full=len(task.members) >= terms["max_clients"],
            samples_out_of_range=not 0 < samples <= MAX_SAMPLES,
            reputation_too_low=reputation < terms["min_reputation"],
            stake_out_of_range=stake > MAX_WEI,
            samples_not_covered_by_stake=stake
            < terms["base_stake"] + samples * terms["stake_per_sample"],
        )

        def effect(events: Sequence[Event]) -> Transfers:
            taken = {member.seat for member in task.members.values()}
            seat = min(set(range(len(taken) + 1)) - taken)
            task.sponsorships[sender] = 0
            task.members[sender] = Member(stake, sponsored, samples, task.number + 1, seat)
            if task.state == LOBBY and len(task.members) == terms["max_clients"]:
                task.state = RUNNING
                self._open_round(now, task, events)
            return {}

        return Verdict(reasons, effect)

    def add_stake(self, task: Task, sender: Address, value: int) -> Verdict:
        """A participant adds to its stake."""
        member = task.members.get(sender)
        reasons = collect(
            not_open=not task.is_open,
            amount_out_of_range=not 0 < value <= MAX_WEI,
            not_a_participant=member is None,
            stake_out_of_range=member is not None and member.stake + value > MAX_WEI,
        )

        def effect(events: Sequence[Event]) -> Transfers:
            task.members[sender].stake += value
            return {}

        return Verdict(reasons, effect)

    def claim(self, task: Task, sender: Address) -> Verdict:
        """Somebody takes what it earned."""
        amount = task.claimable[sender]

        def effect(events: Sequence[Event]) -> Transfers:
            task.claimable[sender] = 0
            return {sender: amount}

        return Verdict(collect(nothing_to_claim=amount == 0), effect)

    def leave(self, now: int, task: Task, sender: Address) -> Verdict:
        """A participant gives up its seat."""
        member = task.members.get(sender)
        if member is None:
            return Verdict(collect(not_a_participant=True), lambda events: {})
        bit = 1 << member.seat
        is_bound = task.state == RUNNING and bool(task.round.committed & bit)

        def effect(events: Sequence[Event]) -> Transfers:
            del task.members[sender]
            task.claimable[task.publisher] += member.sponsored
            if task.state == RUNNING and member.active_from <= task.number:
                task.round.drawn &= ~bit
                if now < task.round.commit_ends:
                    self.open_reveals(now, task)
            return {sender: member.stake - member.sponsored}

        bound = frozenset({"rounds: bound by a commitment"}) if is_bound else frozenset()
        return Verdict(bound, effect)

    # -- anybody ---------------------------------------------------------------------------------
    def start(self, now: int, task: Task, sender: Address) -> Verdict:
        """The lobby ends."""
        if task.state != LOBBY:
            return Verdict(collect(not_in_the_lobby=True), lambda events: {})
        reasons = collect(
            too_few_participants=len(task.members) < task.terms["min_clients"],
            not_due=sender != task.publisher and now < task.join_ends,
        )

        def effect(events: Sequence[Event]) -> Transfers:
            task.state = RUNNING
            self._open_round(now, task, events)
            return {}

        return Verdict(reasons, effect)

    def release(self, task: Task, who: Address) -> Verdict:
        """Anybody takes a participant out of a task that is over; it claims its stake."""
        member = task.members.get(who)
        reasons = collect(
            not_over=task.state not in {FINISHED, ABORTED}, not_a_participant=member is None
        )

        def effect(events: Sequence[Event]) -> Transfers:
            gone = task.members.pop(who)
            task.claimable[task.publisher] += gone.sponsored
            task.claimable[who] += gone.stake - gone.sponsored
            return {}

        return Verdict(reasons, effect)

    def abort(self, now: int, task: Task) -> Verdict:
        """Anybody ends what cannot go on."""
        if not task.is_open:
            return Verdict(collect(not_open=True), lambda events: {})
        if task.state == RUNNING:
            is_stale = now >= self.get_due(task) + CLOSE_TIMEOUT_SECONDS
        else:
            is_stale = self.is_stale(now, task)
        return Verdict(collect(too_early_to_abort=not is_stale), lambda events: self._abort(task))

    def compute_next_action(self, now: int, task: Task) -> tuple[int, int]:
        """What a keeper may do."""
        if self.is_stale(now, task):
            return 3, task.number
        if task.state == LOBBY and now >= task.join_ends:
            return 1, task.number
        if task.state == RUNNING and now >= self.get_due(task):
            return 2, task.number
        return 0, task.number

    # -- how a round ends ------------------------------------------------------------------------
    def settle(
        self,
        now: int,
        task: Task,
        outcome: int,
        shares: Mapping[Address, int],
        silent: int,
        events: Sequence[Event],
    ) -> Transfers:
        """Pay who has a share, burn the bonds of the silent, and move on.

        Only a round that made a model pays the platform and raises reputations.
        """
        terms, round_ = task.terms, task.round
        platform = round_.pool * terms["platform_share"] // ONE if outcome == MADE else 0
        task.claimable[terms["platform"]] += platform
        task.books.update(platform=platform, reward_left=-platform)
        for who, share in shares.items():
            pay = (round_.pool - platform) * share // ONE
            task.claimable[who] += pay
            task.books.update(paid=pay, reward_left=-pay)
            if share and outcome == MADE:
                before = self.get_reputation(task.publisher, who)
                self.reputations[task.publisher, who] = before + (ONE - before) // 16
        burned = 0
        for seat in list_seats(silent):
            who = task.find_at(seat)
            member = task.members[who]
            lost = min(terms["bond"], member.stake)
            member.sponsored -= max(0, lost - (member.stake - member.sponsored))
            member.stake -= lost
            burned += lost
            halved = self.get_reputation(task.publisher, who) // 2
            self.reputations[task.publisher, who] = max(FLOOR, halved)
        task.books["burned"] += burned
        self._move_on(now, task, outcome, events)
        return {ZERO: burned}

    def _move_on(self, now: int, task: Task, outcome: int, events: Sequence[Event]) -> None:
        saturated = task.round.saturated if outcome == MADE else 0
        if outcome == FAILED or task.wish == CANCEL:
            task.state = ABORTED
        elif task.number == task.terms["rounds"]:
            task.state = FINISHED
        elif task.wish == PAUSE or saturated > task.terms["max_saturated"]:
            task.state, task.wish = PAUSED, NO_WISH
            task.pause_ends = now + MAX_PAUSE_SECONDS
        else:
            self._open_round(now, task, events)

    # -- inside ----------------------------------------------------------------------------------
    def is_stale(self, now: int, task: Task) -> bool:
        """Whether a lobby or a pause has outlived its time."""
        if task.state == PAUSED:
            return now >= task.pause_ends
        is_short = task.state == LOBBY and len(task.members) < task.terms["min_clients"]
        return is_short and now >= task.join_ends

    def get_due(self, task: Task) -> int:
        """Return from when the current round may be closed."""
        is_short = task.round.committed.bit_count() < task.terms["min_clients"]
        return task.round.commit_ends if is_short else task.round.reveal_ends

    def open_reveals(self, now: int, task: Task) -> None:
        """End the commit period if nobody is missing and they are enough."""
        round_ = task.round
        is_short = round_.committed.bit_count() < task.terms["min_clients"]
        if not round_.drawn & ~round_.committed and not is_short:
            round_.commit_ends = now
            round_.reveal_ends = now + task.terms["reveal_seconds"]

    def _wish(self, task: Task, wish: int) -> Transfers:
        task.wish = wish
        return {}

    def _abort(self, task: Task) -> Transfers:
        if task.state == RUNNING:
            task.round.state = STOPPED
        task.state = ABORTED
        return {}

    def _open_round(self, now: int, task: Task, events: Sequence[Event]) -> None:
        """Draw with the seed of the event; `Referee` checks the seed."""
        terms = task.terms
        task.number += 1
        (opened,) = [event for event in events if event.name == "RoundOpened"]
        ready = task.list_ready()
        seed = opened.values["seed"]
        assert opened.values["seats"] == ready, "drawn from other seats"
        assert task.model is not None
        commit_ends = now + terms["commit_seconds"]
        task.rounds[task.number] = Round(
            base=task.model,
            velocity=task.velocity,
            pool=task.books["reward_left"] // (terms["rounds"] - task.number + 1),
            drawn=draw(seed, ready, terms),
            commit_ends=commit_ends,
            reveal_ends=commit_ends + terms["reveal_seconds"],
        )

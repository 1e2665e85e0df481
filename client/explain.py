"""What happened in a round, and why: per participant, from the chain's own events and refusals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt
from typing import Any, Final

from steelyard.chain.cid import encode_cid
from steelyard.chain.params import STEP_UNIT, WEIGHT_BITS
from steelyard.chain.rules import Flag
from steelyard.chain.types import Address, BlobName

from .abi import Event
from .amounts import format_coins
from .contracts import Rounds, Tasks
from .errors import ClientError, NodeRefused
from .events import get_events, get_head
from .keys import format_address
from .reckoning import compute_weight, list_seats, weigh_silent
from .records import FRACTION_UNIT, OnFailedQuorum, RoundInfo, RoundState, SubmissionInfo, TaskInfo
from .refusals import find_refusals
from .rpc import Rpc
from .weighing import (
    Payment,
    Weighing,
    check_record,
    compute_payment,
    describe_compensated,
    describe_weighing,
    weigh,
    weigh_compensated,
)

NORM_UNIT: Final = 2**24


@dataclass(frozen=True, slots=True)
class Part:
    """One participant's part in a round. Amounts in wei; None where it does not apply."""

    address: Address
    outcome: str
    drawn: bool = False
    update: BlobName | None = None
    samples: int | None = None
    norm: float | None = None
    weighing: Weighing | None = None
    burned: int = 0
    """Lost of the stake, for a commitment that was never revealed."""
    steps: tuple[str, ...] = ()
    """From samples to wei, in words."""
    refusals: tuple[str, ...] = ()

    @property
    def paid(self) -> int | None:
        """What the round credited to it."""
        return None if self.weighing is None else self.weighing.paid


@dataclass(frozen=True, slots=True)
class Explanation:
    """A round, told."""

    task: int
    round: int
    state: RoundState
    summary: str
    consequence: str
    """What followed from too few updates; empty if there were enough."""
    model: BlobName | None
    saturated: int
    metrics: tuple[float, ...]
    payment: Payment | None
    steps: tuple[str, ...]
    """What holds for all: draw, pool, platform, the server's step."""
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Seated:
    """Where somebody sits, and how many rows it has covered with stake."""

    seat: int
    samples: int


def explain_round(rpc: Rpc, task: int, round_number: int) -> Explanation:
    """Return what happened in a round. Raises ClientError `task_unknown`, `round_unknown`."""
    tasks, rounds = Tasks(rpc), Rounds(rpc)
    info, state = tasks.get_task(task), rounds.get_round(task, round_number)
    if state.state is RoundState.NONE:
        raise ClientError(
            "round_unknown", f"round {round_number} of task {task} was never opened; it is in round"
            f" {info.round}"
        )  # fmt: skip
    events = get_events(rpc, task, round_number=round_number)
    opened = next((event for event in events if event.name == "RoundOpened"), None)
    if opened is None:
        raise NodeRefused("rpc_answer", "the node lacks the event that opened the round")
    ended = next((e for e in events if e.name in ("Aggregated", "RoundSkipped")), None)
    last = get_head(rpc) if ended is None else ended.height
    refusals = find_refusals(rpc, task, round_number, range(opened.height, last + 1))
    members = read_members(rpc, task, opened)
    record = next((event.values for event in events if event.name == "Aggregated"), None)
    if record is not None:
        check_record(record, round_number)
    known = [e.values["participant"] for e in events if "participant" in e.values]
    addresses = dict.fromkeys([*members, *known, *refusals])
    story = Story(rounds, info, round_number, state, events, opened, record)
    rewarded = find_compensation(story, rpc, ended)
    payment = None if record is None else compute_payment(record, info.parameters)
    return Explanation(
        task,
        round_number,
        state.state,
        summarize(state),
        tell_consequence(info, round_number, state, events),
        state.model if state.model.size else None,
        state.saturated,
        rounds.get_metrics(task, round_number).means,
        payment if rewarded is None else rewarded.payment,
        list_steps(story),
        tuple(
            explain_part(
                story, address, members.get(address), tuple(refusals.get(address, ())), rewarded
            )
            for address in addresses
        ),
    )


def read_members(rpc: Rpc, task: int, until: Event) -> dict[Address, Seated]:
    """Return who took part, where and with what, right before an event."""
    members: dict[Address, Seated] = {}
    for event in get_events(rpc, task, ["Joined", "Left"], last_height=until.height):
        if (event.height, event.index) > (until.height, until.index):
            break
        values, who = event.values, event.values["participant"]
        if event.name == "Joined":
            members[who] = Seated(values["seat"], values["samples"])
        else:
            members.pop(who, None)
    return dict(sorted(members.items(), key=lambda item: item[1].seat))


@dataclass(frozen=True, slots=True)
class Story:
    """What is known of a round, for telling each participant's part. `record`: if it was made."""

    rounds: Rounds
    info: TaskInfo
    round: int
    state: RoundInfo
    events: Sequence[Event]
    opened: Event
    record: Mapping[str, Any] | None

    def get_submission(self, who: Address) -> SubmissionInfo:
        """Return what a participant has shown."""
        return self.rounds.get_submission(self.info.number, self.round, who)


@dataclass(frozen=True, slots=True)
class Compensation:
    """What a round that the silence of others failed paid, by participant."""

    payment: Payment
    parts: Mapping[Address, tuple[Weighing, tuple[str, ...]]] = field(default_factory=dict)


def find_compensation(story: Story, rpc: Rpc, ended: Event | None) -> Compensation | None:
    """Return what those who revealed in a failed round got, None where nobody did.

    Raises: NodeRefused `rpc_answer`.
    """
    event = next((e for e in story.events if e.name == "Compensated"), None)
    if event is None or ended is None:
        return None
    clients, terms = event.values["clients"], story.info.parameters
    if not clients or len(clients) != len(event.values["shares"]):
        raise NodeRefused("rpc_answer", "the lists of a failed round are empty or differ in length")
    members = read_members(rpc, story.info.number, ended)
    silent = [
        weigh_silent(terms, one.samples, story.get_submission(who), story.round)
        for who, one in members.items()
        if who not in clients and story.state.committed >> one.seat & 1
    ]
    shown = [story.get_submission(who) for who in clients]
    weights = [*(compute_weight(terms, one, story.round) for one in shown), *silent]
    origins = [one.origin for one in shown]
    rows = weigh_compensated(event.values["shares"], story.state.pool, origins, weights, terms)
    payment = Payment(story.state.pool, 0, sum(row.paid for row in rows))
    return Compensation(
        payment,
        {
            who: (row, describe_compensated(row, payment, terms, story.round, done))
            for who, row, done in zip(clients, rows, shown, strict=True)
        },
    )


def explain_part(
    story: Story,
    address: Address,
    member: Seated | None,
    refusals: tuple[str, ...],
    rewarded: Compensation | None,
) -> Part:
    """Return one participant's part, from the round's events."""
    mine = {e.name: e.values for e in story.events if e.values.get("participant") == address}
    drawn = member is not None and story.state.is_drawn(member.seat)
    if "Revealed" not in mine:
        return explain_absence(story, address, mine, drawn, refusals)
    shown = mine["Revealed"]
    norm = isqrt(shown["norm2"]) / NORM_UNIT
    outcome, weighing = "revealed", None
    steps: tuple[str, ...] = ()
    if story.record is not None and address in story.record["clients"]:
        place = story.record["clients"].index(address)
        terms = story.info.parameters
        weighing = weigh(story.record, terms)[place]
        payment = compute_payment(story.record, terms)
        done = story.get_submission(address)
        steps = describe_weighing(weighing, payment, terms, story.round, done, shown["norm2"])
        outcome = describe_outcome(weighing, story.round)
    elif rewarded is not None and address in rewarded.parts:
        weighing, steps = rewarded.parts[address]
        outcome = "revealed, others did not"
    return Part(
        address,
        outcome,
        drawn,
        shown["update"],
        shown["samples"],
        norm,
        weighing,
        steps=steps,
        refusals=refusals,
    )


def explain_absence(
    story: Story,
    address: Address,
    mine: Mapping[str, Mapping[str, Any]],
    drawn: bool,
    refusals: tuple[str, ...],
) -> Part:
    """Return the part of somebody who showed no update."""
    burned = mine.get("Slashed", {}).get("amount", 0)
    state = story.state
    is_short = state.counts[1] < story.info.parameters.min_clients
    if "Committed" in mine and is_short and state.state is not RoundState.OPEN:
        outcome = "committed, too few others did"
    elif "Committed" in mine:
        outcome = "committed, never revealed"
        outcome += f", lost {format_coins(burned)} coins" if burned else ""
    else:
        outcome = "drawn, did not commit" if drawn else "not drawn"
    return Part(address, outcome, drawn, burned=burned, refusals=refusals)


def describe_outcome(weighing: Weighing, round_number: int) -> str:
    """Return what became of a revealed update."""
    if weighing.flags & Flag.DUPLICATE:
        return "left out: a copy"
    if weighing.flags & Flag.EXCLUDED:
        return "left out by the rule"
    late = round_number - weighing.origin
    return f"in the mean, {late} late" if late else "in the mean"


def list_steps(story: Story) -> tuple[str, ...]:
    """Return the arithmetic that holds for everybody in the round, one line each."""
    terms, rule, pool = story.info.parameters, story.info.parameters.rule, story.state.pool
    left = terms.rounds - story.round + 1
    steps = [
        f"draw    {describe_draw(story)}",
        f"pool    {pool} wei = what was left of the reward // {left}, the rounds from this one on",
    ]
    if terms.platform_share and story.record is not None:
        fee = pool * terms.platform_share >> WEIGHT_BITS
        steps.append(
            f"fee     {pool} * {terms.platform_share} >> {WEIGHT_BITS} = {fee} wei "
            f"to the platform {format_address(terms.platform)}"
        )
    if story.record is not None and (rule.server_lr, rule.momentum) != (STEP_UNIT, 0):
        before = story.record["velocity_before"]
        steps.append(
            f"step    v = mean + {rule.momentum}/{STEP_UNIT} * v before "
            f"({encode_cid(before) if before.size else 'none'}); "
            f"model = base + {rule.server_lr}/{STEP_UNIT} * v"
        )
    return tuple(steps)


def describe_draw(story: Story) -> str:
    """Return how many were drawn of those who were ready, and from what."""
    terms, drawn = story.info.parameters, story.state.drawn
    ready = story.opened.values["seats"].bit_count()
    if drawn == story.opened.values["seats"]:
        return f"all {ready} who were ready"
    part = -(-ready * terms.fraction_fit // FRACTION_UNIT)
    return (
        f"{drawn.bit_count()} of {ready} who were ready: max({terms.min_clients}, "
        f"ceil({ready} * {terms.fraction_fit} / {FRACTION_UNIT}) = {part}) + "
        f"{terms.spare_clients} to spare; seed 0x{story.state.seed.hex()}, "
        f"seats {' '.join(map(str, list_seats(drawn)))}"
    )


def summarize(state: RoundInfo) -> str:
    """Return the round's outcome in one line."""
    drawn, committed, revealed = state.counts
    counts = f"{drawn} drawn, {committed} committed, {revealed} revealed"
    match state.state:
        case RoundState.AGGREGATED:
            return f"aggregated: {counts}; model {encode_cid(state.model)}"
        case RoundState.SKIPPED:
            return f"skipped: {counts}; the base stays"
        case RoundState.STOPPED:
            return f"ended with the task: {counts}; nobody is bound or paid"
        case RoundState.CLOSING:
            return f"closing: {counts}; {state.pages} pages made"
        case _:
            return f"open: {counts}"


def tell_consequence(
    info: TaskInfo, round_number: int, state: RoundInfo, events: Sequence[Event]
) -> str:
    """Return what followed from too few updates."""
    terms = info.parameters
    told = [
        f"too few updates at height {event.height}: the round was extended"
        for event in events
        if event.name == "RoundExtended"
    ]
    if state.state is RoundState.SKIPPED:
        told.append(f"{terms.min_clients} updates were needed")
        if terms.on_failed_quorum == OnFailedQuorum.REFUND:
            told.append("the task ended, and what was not paid goes back to the publisher")
        elif round_number == terms.rounds:
            told.append(
                "it was the last round; what its pool did not pay goes back to the publisher"
            )
        else:
            told.append(f"what its pool of {format_coins(state.pool)} coins did not pay stays")
        if any(event.name == "Compensated" for event in events):
            told.append("those who revealed are paid, as others who had committed did not")
    return "; ".join(told)

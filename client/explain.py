"""What happened in a round, and why: per participant, from the chain's own events and refusals.

A refused commit or reveal leaves no event. Its transaction does: the blocks of the round are
searched for failed calls of the contracts, and each one is asked for again at its block to learn
why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, Final

from steelyard.chain.cid import encode_cid
from steelyard.chain.rules import Flag
from steelyard.chain.types import Address, BlobName

from .abi import Event
from .amounts import format_coins
from .contracts import Rounds, Tasks
from .errors import ClientError, NodeRefused, Reverted
from .events import get_contracts, get_events
from .records import OnFailedQuorum, RoundInfo, RoundState, TaskInfo
from .rpc import Rpc, as_bytes, as_hex, as_int
from .weighing import Payment, Weighing, compute_payment, describe_weighing, weigh

MAX_SEARCHED_BLOCKS: Final = 2_000
NORM_UNIT: Final = 2**24

HINTS: Final = {
    "fedavg: update_norm": "the delta is longer than the task admits; lower the learning rate",
    "fedavg: update_base": "it was trained on another model than the round's base",
    "fedavg: update_round": "it was made for another round",
    "fedavg: update_sender": "it was made by another account",
    "rounds: commit period is over": "training took too long, or the client was started late",
    "rounds: reveal period is over": "the client was away during the reveal period",
    "rounds: differs from the commitment": "the update is not the one that was committed to",
    "rounds: samples not covered by stake": "join with more samples, or train on fewer rows",
    "rounds: not drawn": "only those who were drawn may commit; waiting costs nothing",
}
"""What a refusal means for the one who got it."""


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
    parts: tuple[Part, ...]


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
    opened = next(event for event in events if event.name == "RoundOpened")
    ends = [e.height for e in events if e.name in ("Aggregated", "RoundSkipped")]
    last = ends[0] if ends else as_int(rpc.call("eth_blockNumber"))
    refusals = find_refusals(rpc, task, round_number, range(opened.height, last + 1))
    seats = read_seats(rpc, task, opened)
    record = next((event.values for event in events if event.name == "Aggregated"), None)
    known = [e.values["participant"] for e in events if "participant" in e.values]
    addresses = dict.fromkeys([*seats, *known, *refusals])
    story = Story(rounds, info, round_number, state, events, record)
    return Explanation(
        task,
        round_number,
        state.state,
        summarize(state),
        tell_consequence(info, round_number, state, events),
        state.model if state.model.size else None,
        state.saturated,
        rounds.get_metrics(task, round_number).means,
        None if record is None else compute_payment(record, info.parameters),
        tuple(
            explain_part(story, address, seats.get(address), tuple(refusals.get(address, ())))
            for address in addresses
        ),
    )


def read_seats(rpc: Rpc, task: int, opened: Event) -> dict[Address, int]:
    """Return who sat where when a round was opened."""
    seats: dict[Address, int] = {}
    events = get_events(rpc, task, ["Joined", "Left"], last_height=opened.height)
    for event in events:
        if (event.height, event.index) > (opened.height, opened.index):
            break
        if event.name == "Joined":
            seats[event.values["participant"]] = event.values["seat"]
        else:
            seats.pop(event.values["participant"], None)
    return dict(sorted(seats.items(), key=lambda item: item[1]))


@dataclass(frozen=True, slots=True)
class Story:
    """What is known of a round, for telling each participant's part. `record`: if it was made."""

    rounds: Rounds
    info: TaskInfo
    round: int
    state: RoundInfo
    events: Sequence[Event]
    record: Mapping[str, Any] | None


def explain_part(
    story: Story, address: Address, seat: int | None, refusals: tuple[str, ...]
) -> Part:
    """Return one participant's part, from the round's events."""
    mine = {e.name: e.values for e in story.events if e.values.get("participant") == address}
    drawn = seat is not None and story.state.is_drawn(seat)
    if "Revealed" not in mine:
        return explain_absence(address, mine, drawn, refusals)
    shown = mine["Revealed"]
    norm = isqrt(shown["norm2"]) / NORM_UNIT
    outcome, weighing = "revealed", None
    steps: tuple[str, ...] = ()
    if story.record is not None and address in story.record["clients"]:
        place = story.record["clients"].index(address)
        terms = story.info.parameters
        weighing = weigh(story.record, terms)[place]
        payment = compute_payment(story.record, terms)
        done = story.rounds.get_submission(story.info.number, story.round, address)
        steps = describe_weighing(weighing, payment, terms, story.round, done)
        outcome = describe_outcome(weighing, story.round)
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
    address: Address,
    mine: Mapping[str, Mapping[str, Any]],
    drawn: bool,
    refusals: tuple[str, ...],
) -> Part:
    """Return the part of somebody who showed no update."""
    burned = mine.get("Slashed", {}).get("amount", 0)
    if "Committed" in mine:
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
            told.append("the task ended, and its money goes back to the publisher")
        elif round_number == terms.rounds:
            told.append("it was the last round; its pool goes back to the publisher")
        else:
            told.append(f"its pool of {format_coins(state.pool)} coins stays for later rounds")
    return "; ".join(told)


def find_refusals(
    rpc: Rpc, task: int, round_number: int, heights: range
) -> dict[Address, list[str]]:
    """Return why calls about this round failed, by sender; searches the newest blocks first."""
    found: dict[Address, list[str]] = {}
    for height in reversed(heights[-MAX_SEARCHED_BLOCKS:]):
        receipts = rpc.call("eth_getBlockReceipts", hex(height))
        for receipt in receipts or ():
            if receipt.get("status") != "0x0" or receipt.get("to") is None:
                continue
            if as_bytes(receipt["to"]) not in get_contracts():
                continue
            sender, reason = explain_failure(rpc, receipt, task, round_number, height)
            if reason:
                found.setdefault(sender, []).append(reason)
    return found


def explain_failure(
    rpc: Rpc, receipt: Mapping[str, Any], task: int, round_number: int, height: int
) -> tuple[Address, str]:
    """Return the sender of a failed transaction and why it failed; "" if it is another round's."""
    sent = rpc.call("eth_getTransactionByHash", receipt["transactionHash"])
    data, sender = as_bytes(sent["input"]), Address(as_bytes(sent["from"], 20))
    contract = get_contracts()[Address(as_bytes(receipt["to"], 20))]
    call = contract.decode_call(data)
    if call is None or (call[1].get("task"), call[1].get("round")) != (task, round_number):
        return sender, ""
    request = {
        "from": as_hex(sender),
        "to": as_hex(contract.address),
        "value": sent["value"],
        "data": as_hex(data),
    }
    try:
        rpc.call("eth_call", request, hex(height))
    except Reverted as error:
        hint = HINTS.get(error.reason, "")
        return sender, f"{call[0]} refused: {error.reason}" + (f" ({hint})" if hint else "")
    except NodeRefused as error:
        return sender, f"{call[0]} failed: {error.message}"
    return sender, f"{call[0]} failed in block {height} (too late, or out of gas)"

"""What a game has reached: a list of all that can become of tasks, rounds, updates and stakes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from steelyard.chain.rules import Flag
from steelyard.client.abi import Event

from .agreement import CANCEL, FAILED, LOBBY, PAUSE, PAUSED, RUNNING, Task

STATES = (
    "aggregated", "aggregated in pages", "momentum", "late", "clipped", "capped", "excluded",
    "duplicate", "without a share", "skipped", "skipped without weight", "extended commits",
    "extended reveals", "compensated", "given up", "reveals opened early", "slashed",
    "sponsor slashed", "platform paid", "paused", "paused by saturation", "resumed",
    "cancelled lobby", "cancelled round", "cancelled pause", "cancelled after the round",
    "aborted lobby", "aborted round", "aborted pause", "finished", "joined a running task",
    "left a running task", "released", "refunded", "claimed", "evaluated",
)  # fmt: skip
PERIODS = {LOBBY: "lobby", RUNNING: "round", PAUSED: "pause"}
FLAGS = {
    Flag.CLIPPED: "clipped",
    Flag.CAPPED: "capped",
    Flag.EXCLUDED: "excluded",
    Flag.DUPLICATE: "duplicate",
    Flag.ZERO_SHARE: "without a share",
}
BY_EVENT = {
    "RevealOpened": "reveals opened early",
    "Resumed": "resumed",
    "Finished": "finished",
    "Refunded": "refunded",
    "Claimed": "claimed",
    "Reported": "evaluated",
    "Compensated": "compensated",
}
MOVES = {("Joined", "join"): "joined a running task", ("Left", "leave"): "left a running task"}


def list_reached(
    call: str, state: int, wish: int, task: Task, events: Sequence[Event]
) -> Iterator[str]:
    """Yield what a call that was taken has reached; `state` and `wish` are those before it."""
    for event in events:
        if event.name in BY_EVENT:
            yield BY_EVENT[event.name]
        elif event.name == "Aggregated":
            yield from list_aggregated(event.values, task)
        elif event.name in {"RoundSkipped", "RoundExtended", "Settled", "Slashed"}:
            yield from list_ended(event.name, event.values, task)
        elif event.name == "Paused":
            yield "paused" if wish == PAUSE else "paused by saturation"
        elif event.name == "Aborted":
            yield from list_aborted(call, state, wish)
        elif state == RUNNING and (event.name, call) in MOVES:
            yield MOVES[event.name, call]
        elif call == "release":
            yield "released"


def list_aggregated(made: Mapping[str, Any], task: Task) -> Iterator[str]:
    """Yield what became of the updates of one round."""
    yield "aggregated"
    yield from ["aggregated in pages"] * (task.pages > 0)
    yield from ["momentum"] * (made["velocity_before"].size > 0)
    yield from ["late"] * sum(origin < made["round"] for origin in made["origins"])
    for flags in made["flags"]:
        yield from (name for flag, name in FLAGS.items() if flags & flag)


def list_ended(name: str, values: Mapping[str, Any], task: Task) -> Iterator[str]:
    """Yield what became of a round, by one event of its end."""
    needed = task.terms["min_clients"]
    if name == "RoundSkipped":
        yield "skipped without weight" if values["revealed"] >= needed else "skipped"
    elif name == "RoundExtended":
        is_short = task.rounds[values["round"]].committed.bit_count() < needed
        yield "extended commits" if is_short else "extended reveals"
    elif name == "Slashed":
        yield from ["slashed"] * (values["amount"] > 0)
        yield from ["sponsor slashed"] * (values["sponsored"] > 0)
    else:
        yield from ["platform paid"] * (values["platform"] > 0)
        yield from ["given up"] * (values["outcome"] == FAILED)


def list_aborted(call: str, state: int, wish: int) -> Iterator[str]:
    """Yield how a task was ended before its time; giving up is told by the end of its round."""
    if call != "close":
        yield f"{'cancelled' if call == 'cancel' else 'aborted'} {PERIODS[state]}"
    elif wish == CANCEL:
        yield "cancelled after the round"

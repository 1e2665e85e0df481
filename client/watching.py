"""Following a task by its events: complete from the beginning, in the order of the chain."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .abi import Event
from .amounts import format_coins
from .errors import NodeUnreachable
from .events import get_events, get_head
from .keys import format_address
from .records import METRIC_UNIT, Wish
from .rpc import Rpc

LAST_EVENTS: Final = frozenset({"Finished", "Aborted"})
MONEY_FIELDS: Final = ("amount", "fee", "stake", "pool")
WISHES: Final = {
    Wish.NOTHING: "goes on: a pause was taken back",
    Wish.PAUSE: "pauses after this round",
    Wish.CANCEL: "ends after this round",
}
"""What its publisher wants, in words."""
PEOPLE_FIELDS: Final = ("participant", "applicant", "owner", "closer", "funder")


@dataclass(frozen=True)
class TaskEvent:
    """One event, with where the task's round stands after it."""

    kind: str
    """The event's name: Published, Joined, RoundOpened, Revealed, Aggregated, Reported, …"""
    round: int
    """0 in the lobby. A report is about the model that this round made."""
    submitted: int
    """Updates revealed in this round so far."""
    metrics: tuple[float, ...]
    """Means that participants report of this round's model, by samples. Self-reported."""
    height: int
    values: Mapping[str, Any]

    def __str__(self) -> str:
        parts = [f"{self.height:>6} {self.kind:<19} round {self.round}"]
        if self.kind in ("Revealed", "Aggregated"):
            parts.append(f"{self.submitted} in")
        parts += [
            format_address(self.values[name]) for name in PEOPLE_FIELDS if name in self.values
        ]
        parts += [
            f"{name} {format_coins(self.values[name])}"
            for name in MONEY_FIELDS
            if name in self.values
        ]
        if "wish" in self.values:
            parts.append(WISHES.get(self.values["wish"], f"wish {self.values['wish']}"))
        if self.metrics and self.kind == "Reported":
            parts.append(" ".join(f"{value:.4f}" for value in self.metrics))
        return "  ".join(parts)


class Progress:
    """What the events so far add up to."""

    def __init__(self) -> None:
        self._round = 0
        self._submitted: dict[int, int] = {}
        self._reports: dict[int, list[tuple[int, list[int]]]] = {}

    def add(self, event: Event) -> TaskEvent:
        """Take one event, in the order of the chain."""
        values = event.values
        about = values.get("round", self._round)
        if event.name == "RoundOpened":
            self._round = about
        elif event.name == "Revealed":
            self._submitted[about] = self._submitted.get(about, 0) + 1
        elif event.name == "Reported":
            self._reports.setdefault(about, []).append((values["samples"], values["metrics"]))
        return TaskEvent(
            event.name,
            about,
            self._submitted.get(about, 0),
            compute_means(self._reports.get(about, [])),
            event.height,
            values,
        )


def compute_means(reports: list[tuple[int, list[int]]]) -> tuple[float, ...]:
    """Return the mean of each metric, weighted by samples."""
    places = max((len(metrics) for _, metrics in reports), default=0)
    means = []
    for place in range(places):
        known = [(n, metrics[place]) for n, metrics in reports if len(metrics) > place]
        total = sum(n for n, _ in known)
        # No contract takes a report of no samples; a node may still show one.
        means.append(sum(n * value for n, value in known) / max(1, total) / METRIC_UNIT)
    return tuple(means)


def watch_task(rpc: Rpc, task: int, pause: Callable[[], None]) -> Iterator[TaskEvent]:
    """Yield a task's events from the beginning until it is over. Waits for nodes that are away."""
    progress = Progress()
    first_height = 0
    while True:
        try:
            head = get_head(rpc)
            events = get_events(rpc, task, first_height=first_height, last_height=head)
        except NodeUnreachable:
            pause()
            continue
        first_height = max(first_height, head + 1)
        for event in events:
            yield progress.add(event)
        if any(event.name in LAST_EVENTS for event in events):
            return
        pause()

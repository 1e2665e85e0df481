"""`steelyard round`: what happened in a round, and why; closing one oneself."""

from typing import Any, Final

from steelyard.chain.params import WEIGHT_TOTAL

from .. import listing
from ..amounts import format_coins
from ..closing import ClosedRound, Ending
from ..explain import Explanation, Part, explain_round
from ..keys import format_address
from .options import (
    KEY,
    NO,
    STATE,
    YES,
    Json,
    Key,
    Nodes,
    PasswordFile,
    RoundNumber,
    State,
    TaskNumber,
    format_table,
    leave,
    new_app,
    open_client,
    open_nodes,
    tell,
    to_json,
)

COUNTS: Final = ("drawn", "committed", "revealed")
"""In place of the sets of seats."""

app = new_app("What happened in a round, and why.")


@app.command("list")
def list_rounds(task: TaskNumber, node: Nodes = None, json: Json = False) -> None:
    """List a task's rounds."""
    rounds = listing.list_rounds(open_nodes(node), task)
    rows: list[list[Any]] = [["round", "state", "in", "saturated", "model"]]
    for number, info in enumerate(rounds, 1):
        model = to_json(info.model)
        drawn, _, revealed = info.counts
        submitted = f"{revealed}/{drawn}"
        rows.append([number, info.state.name.lower(), submitted, info.saturated, model])
    document = [
        {"round": number, **to_json(info)} | dict(zip(COUNTS, info.counts, strict=True))
        for number, info in enumerate(rounds, 1)
    ]
    tell(document, format_table(rows), json)
    leave(YES)


@app.command()
def show(task: TaskNumber, number: RoundNumber, node: Nodes = None, json: Json = False) -> None:
    """Show one round: who is in, with what weight."""
    told = explain_round(open_nodes(node), task, number)
    tell(told, format_explanation(told, details=False), json)
    leave(YES)


@app.command()
def explain(task: TaskNumber, number: RoundNumber, node: Nodes = None, json: Json = False) -> None:
    """Explain one round: norms, flags, payments, and why something was refused."""
    told = explain_round(open_nodes(node), task, number)
    tell(told, format_explanation(told, details=True), json)
    leave(YES)


@app.command()
def close(
    task: TaskNumber,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Close the round in progress when it is due, with all its pages; anybody may. 1: not yet."""
    with open_client(node, key, password_file, state) as client:
        closed = client.close_round(task)
    tell(closed, format_closed(closed), json)
    leave(NO if closed.ending in (Ending.NOT_DUE, Ending.UNFINISHED) else YES)


def format_closed(closed: ClosedRound) -> str:
    """Return what closing a round came to, as text."""
    if closed.ending is Ending.NOT_DUE:
        return closed.reason
    told = {
        Ending.AGGREGATED: f"aggregated, model {to_json(closed.model)}",
        Ending.SKIPPED: "skipped: there were too few updates, or none that counted",
        Ending.EXTENDED: "extended: there were too few updates",
        Ending.UNFINISHED: "not closed yet: more pages are to be made, run this again",
        Ending.STOPPED: "stopped: its task has ended",
    }
    lines = [f"round {closed.round} of task {closed.task} is {told[closed.ending]}"]
    if closed.reason:
        lines.append(f"  {closed.reason}")
    calls = f"{closed.calls} call{'' if closed.calls == 1 else 's'}"
    lines.append(
        f"  {calls}, {closed.gas} gas for {format_coins(closed.cost)} coins; "
        f"{format_coins(closed.credited)} coins are credited"
    )
    if closed.credited:
        lines.append(f"  `steelyard client claim {closed.task}` fetches them")
    return "\n".join(lines)


def format_explanation(told: Explanation, *, details: bool) -> str:
    """Return a round as text."""
    lines = [f"task {told.task} round {told.round}: {told.summary}"]
    if told.consequence:
        lines.append(f"  {told.consequence}")
    if told.saturated:
        lines.append(
            f"  {told.saturated} model values are saturated: the model needs a wider range"
        )
    if told.metrics:
        shown = " ".join(f"{value:.4f}" for value in told.metrics)
        lines.append(f"  self-reported metrics of this model: {shown}")
    rows: list[list[Any]] = [
        ["participant", "outcome", "samples", "norm", "share", "score", "flags", "paid (coins)"]
    ]
    rows += [format_part(part) for part in told.parts]
    lines.append(format_table(rows))
    if details:
        lines += list_details(told)
    return "\n".join(lines)


def list_details(told: Explanation) -> list[str]:
    """Return the arithmetic of a round, and why something was refused."""
    lines = [f"  {step}" for step in told.steps]
    for part in told.parts:
        whose = f"  {format_address(part.address)}: "
        lines += [whose + step for step in part.steps]
        lines += [whose + reason for reason in part.refusals]
    if told.payment is not None:
        pay = told.payment
        lines.append(
            f"  pool {pay.pool} = platform {pay.platform} + paid {pay.paid} + dust {pay.dust} wei; "
            "dust stays for later rounds"
        )
    lines.append("  scores are diagnostics and are never paid; payment is by weight")
    return lines


def format_part(part: Part) -> list[Any]:
    """Return one participant's row."""
    weighing = part.weighing
    row: list[Any] = [
        format_address(part.address),
        part.outcome + (" (refused)" if part.refusals else ""),
        part.samples,
        None if part.norm is None else f"{part.norm:.4g}",
    ]
    if weighing is None:
        return [*row, None, None, None, None]
    return [
        *row,
        f"{weighing.share / WEIGHT_TOTAL:.4f}",
        None if weighing.score is None else f"{weighing.score / WEIGHT_TOTAL:.4f}",
        " ".join(weighing.flag_names).lower(),
        format_coins(weighing.paid),
    ]

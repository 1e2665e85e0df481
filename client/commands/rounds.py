"""`steelyard round`: what happened in a round, and why."""

from typing import Any

from ..amounts import format_coins
from ..contracts import Tasks
from ..explain import Explanation, Part, explain_round
from ..keys import format_address
from ..records import RoundState
from .options import (
    NO,
    YES,
    Json,
    Nodes,
    RoundNumber,
    TaskNumber,
    format_table,
    leave,
    new_app,
    open_nodes,
    tell,
    to_json,
)

app = new_app("What happened in a round, and why.")


@app.command("list")
def list_rounds(task: TaskNumber, node: Nodes = None, json: Json = False) -> None:
    """List a task's rounds."""
    tasks = Tasks(open_nodes(node))
    rounds = [tasks.get_round(task, n + 1) for n in range(tasks.get_task(task).round)]
    rows: list[list[Any]] = [["round", "state", "in", "saturated", "model"]]
    for number, info in enumerate(rounds, 1):
        model = to_json(info.model)
        submitted = f"{info.revealed}/{info.active}"
        rows.append([number, info.state.name.lower(), submitted, info.saturated, model])
    document = [{"round": number, **to_json(info)} for number, info in enumerate(rounds, 1)]
    tell(document, format_table(rows), json)
    leave(YES)


@app.command()
def show(task: TaskNumber, number: RoundNumber, node: Nodes = None, json: Json = False) -> None:
    """Show one round: who is in, with what weight."""
    told = explain_round(open_nodes(node), task, number)
    tell(told, format_explanation(told, details=False), json)
    leave(YES if told.state is RoundState.AGGREGATED else NO)


@app.command()
def explain(task: TaskNumber, number: RoundNumber, node: Nodes = None, json: Json = False) -> None:
    """Explain one round: norms, flags, payments, and why something was refused."""
    told = explain_round(open_nodes(node), task, number)
    tell(told, format_explanation(told, details=True), json)
    leave(YES if told.state is RoundState.AGGREGATED else NO)


def format_explanation(told: Explanation, *, details: bool) -> str:
    """Return a round as text."""
    lines = [f"task {told.task} round {told.round}: {told.summary}"]
    if told.saturated:
        lines.append(
            f"  {told.saturated} model values are saturated: the model needs a wider range"
        )
    if told.metrics:
        shown = " ".join(f"{value:.4f}" for value in told.metrics)
        lines.append(f"  self-reported metrics of this model: {shown}")
    rows: list[list[Any]] = [
        ["participant", "outcome", "samples", "norm", "weight", "score", "flags", "paid (coins)"]
    ]
    rows += [format_part(part) for part in told.parts]
    lines.append(format_table(rows))
    if details:
        for part in told.parts:
            lines += [f"  {format_address(part.address)}: {reason}" for reason in part.refusals]
        lines.append("  scores are diagnostics and are never paid; payment is by weight")
    return "\n".join(lines)


def format_part(part: Part) -> list[Any]:
    """Return one participant's row."""

    def show_number(value: float | None) -> str | None:
        return None if value is None else f"{value:.4f}"

    return [
        format_address(part.address),
        part.outcome + (" (refused)" if part.refusals else ""),
        part.samples,
        show_number(part.norm),
        show_number(part.share),
        show_number(part.score),
        " ".join(part.flags),
        None if part.paid is None else format_coins(part.paid),
    ]

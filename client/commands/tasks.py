"""`steelyard task`: publish a training task and follow it."""

import tomllib
from dataclasses import fields
from math import isqrt
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from steelyard.chain.errors import InvalidModel

from ..amounts import coins, format_coins
from ..contracts import Tasks
from ..errors import ClientError, InvalidTask
from ..loading import read_model_file
from ..organisation import WEIGHTINGS, Draft, PublishedTask, Task, check_task
from ..published import PublishedModel
from ..records import TaskState
from ..training import NORM_UNIT
from ..watching import watch_task
from .options import (
    AMOUNTS,
    KEY,
    NO,
    STATE,
    YES,
    Json,
    Key,
    Nodes,
    PasswordFile,
    State,
    TaskNumber,
    format_table,
    leave,
    new_app,
    open_nodes,
    open_organisation,
    tell,
    to_json,
)

app = new_app("Publish a training task and follow it.")
TaskFile = Annotated[Path, typer.Argument(metavar="FILE", help="the task, as TOML")]
COIN_FIELDS: Final = ("reward", "base_stake", "stake_per_sample", "close_reserve", "close_bounty")
"""Amounts in a task file are decimal coins, as strings."""


@app.command()
def check(file: TaskFile, node: Nodes = None, json: Json = False) -> None:
    """Check a task against the chain and show what it costs; needs no key and sends nothing."""
    try:
        draft = check_task(open_nodes(node), read_task_file(file))
    except (InvalidTask, InvalidModel) as error:
        tell({"ok": False, "error": error.code, "message": error.message}, str(error), json)
        leave(NO)
    tell(describe_draft(draft), format_draft(draft), json)
    leave(YES)


@app.command()
def publish(
    file: TaskFile,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Publish a task and deposit its escrow. Run again after a failure: it is published once."""
    with open_organisation(node, key, password_file, state) as organisation:
        task = organisation.publish(read_task_file(file))
        tell({"task": task.number}, f"task {task.number}", json)
    leave(YES)


@app.command("list")
def list_tasks(node: Nodes = None, json: Json = False) -> None:
    """List the tasks of the chain, the newest first."""
    tasks = Tasks(open_nodes(node))
    infos = [tasks.get_task(number) for number in range(tasks.get_count(), 0, -1)]
    rows: list[list[Any]] = [["task", "state", "round", "pool (coins)", "name"]]
    for info in infos:
        progress = f"{info.round}/{info.parameters.rounds}"
        pool = format_coins(info.parameters.reward)
        rows.append([info.number, info.state.name.lower(), progress, pool, ascii(info.name)])
    tell(infos, format_table(rows), json)
    leave(YES)


@app.command()
def show(task: TaskNumber, node: Nodes = None, json: Json = False) -> None:
    """Show a task: its parameters, participants and money."""
    tasks = Tasks(open_nodes(node))
    document = to_json(tasks.get_task(task))
    document["account"] = to_json(tasks.get_account(task))
    document["participants"] = to_json(tasks.get_participants(task))
    tell(document, format_task(document), json)
    leave(YES)


@app.command()
def watch(task: TaskNumber, node: Nodes = None, json: Json = False) -> None:
    """Follow a task from its beginning until it is over. 0: finished, 1: aborted."""
    import time

    tasks = Tasks(open_nodes(node))
    tasks.get_task(task)
    for event in watch_task(tasks, task, lambda: time.sleep(1.0)):
        document = {"kind": event.kind, "round": event.round, "submitted": event.submitted}
        document |= {"metrics": event.metrics, "height": event.height, "values": event.values}
        tell(document, str(event), json)
    leave(YES if tasks.get_task(task).state is TaskState.FINISHED else NO)


@app.command()
def model(
    task: TaskNumber,
    output: Annotated[Path, typer.Option("--output", "-o", help="file to write")],
    number: Annotated[int | None, typer.Option("--round", help="else the newest")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="the chain's own integers")] = False,
    node: Nodes = None,
    json: Json = False,
) -> None:
    """Fetch a task's model, check it against its name and save it as safetensors."""
    rpc = open_nodes(node)
    tasks = Tasks(rpc)
    name = tasks.get_task(task).model if number is None else tasks.get_round(task, number).model
    if not name.size:
        raise ClientError("model_unknown", f"round {number} of task {task} has made no model")
    found = PublishedModel(name, rpc.get_blob(name))
    path = found.save_exact(output) if exact else found.save(output)
    tell({"path": path, "cid": found.cid}, f"{found.cid}  {path}", json)
    leave(YES)


def act(name: str, summary: str) -> None:
    """Add a command that sends one transaction about a task."""

    @app.command(name, help=summary)
    def run(
        task: TaskNumber,
        node: Nodes = None,
        key: Key = KEY,
        password_file: PasswordFile = None,
        state: State = STATE,
        json: Json = False,
    ) -> None:
        with open_organisation(node, key, password_file, state) as organisation:
            result = getattr(PublishedTask(organisation, task), name)()
        amount = result if isinstance(result, int) else None
        text = f"{name}: done" if amount is None else f"{name}: {format_coins(amount)} coins"
        tell({"task": task, name: True if amount is None else str(amount)}, text, json)
        leave(NO if amount == 0 else YES)


act("start", "End the lobby now; it needs the least number of participants.")
act("abort", "End a task early, where the contract allows it.")
act("refund", "Fetch what nobody earned from a task that is over. 1: nothing left.")


def read_task_file(path: Path) -> Task:
    """Return the task in a TOML file; paths in it are relative to it. Raises InvalidTask."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidTask("task_file", f"cannot read {path}: {error}") from None
    known = {field.name for field in fields(Task)}
    if unknown := sorted(set(document) - known):
        raise InvalidTask("task_file", f"{path} has an unknown entry {unknown[0]!r}")
    for name in ("name", "model"):
        if not isinstance(document.get(name), str):
            raise InvalidTask("task_file", f'{path} needs {name} = "…"')
    document["model"] = read_model_file(path.parent / document["model"])
    if "bundle" in document:
        document["bundle"] = path.parent / str(document["bundle"])
    for name in COIN_FIELDS:
        if name in document:
            document[name] = coins(document[name])
    try:
        return Task(**document)
    except TypeError as error:
        raise InvalidTask("task_file", f"{path}: {error}") from None


def describe_draft(draft: Draft) -> dict[str, Any]:
    """Return a checked task for JSON."""
    return {
        "ok": True,
        "name": draft.name,
        "parameters": to_json(draft.parameters),
        "escrow": str(draft.parameters.escrow),
        "close_gas": draft.close_gas,
        "model_bytes": len(draft.model),
        "bundle_bytes": len(draft.bundle),
        "invited": len(draft.allow),
    }


def format_task(document: dict[str, Any]) -> str:
    """Return a task as text: what JSON has, one value a line, amounts in coins."""
    flat = dict(document)
    people = flat.pop("participants")
    flat |= flat.pop("parameters") | flat.pop("account")
    flat["name"] = ascii(flat["name"])
    kind, bound = flat["rule"]
    flat["rule"] = "clipped" if kind else "fedavg"
    flat["clip_norm"] = int(bound) / NORM_UNIT if kind else None
    flat["weighting"] = list(WEIGHTINGS)[flat["weighting"]]
    flat["admission_norm"] = isqrt(int(flat.pop("admission_norm2"))) / NORM_UNIT
    rows: list[list[Any]] = [
        [name, f"{format_coins(int(value))} coins" if name in AMOUNTS else value]
        for name, value in flat.items()
        if value is not None
    ]
    rows += [["participant", address] for address in people]
    return format_table(rows)


def format_draft(draft: Draft) -> str:
    """Return a checked task as text."""
    parameters = draft.parameters
    rows: list[list[Any]] = [
        ["name", ascii(draft.name)],
        ["rounds", parameters.rounds],
        ["clients", f"{parameters.min_clients} to {parameters.max_clients}"],
        ["round", f"{parameters.commit_seconds} s commit, {parameters.reveal_seconds} s reveal"],
        ["reward", f"{format_coins(parameters.reward)} coins"],
        ["escrow", f"{format_coins(parameters.escrow)} coins; what is left over returns"],
        ["close", f"{draft.close_gas} gas a round"],
        ["model", f"{len(draft.model)} bytes"],
        ["bundle", f"{len(draft.bundle)} bytes"],
        ["mode", "open: updates are PUBLIC"],
    ]
    return format_table(rows)

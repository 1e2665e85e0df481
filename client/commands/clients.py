"""`steelyard client`: train on your own data, get paid."""

from pathlib import Path
from typing import Annotated, Any

import typer

from steelyard.chain.errors import clean

from ..amounts import coins, format_coins
from ..bundle import decode_bundle, unpack_bundle
from ..contracts import Tasks
from ..doctor import examine
from ..errors import ClientError
from ..keys import read_key_address
from ..listing import get_standing, list_open_tasks
from ..records import NO_BLOB, TaskState
from .options import (
    AMOUNTS,
    DEFAULT_NODE,
    KEY,
    MOST,
    NO,
    STATE,
    UNKNOWN,
    YES,
    Json,
    Key,
    Most,
    Nodes,
    PasswordFile,
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

app = new_app("Train on your own data, get paid. Rows never leave this machine.")
AppFile = Annotated[
    Path, typer.Option("--app", help="your Python file, or module:name of Flower code")
]
Samples = Annotated[int | None, typer.Option("--samples", min=1, help="most rows in a round")]
APP = Path("client.py")


@app.command()
def doctor(
    node: Nodes = None,
    key: Key = KEY,
    state: State = STATE,
    task: Annotated[int | None, typer.Option("--task", min=1)] = None,
    json: Json = False,
) -> None:
    """Check nodes, clock, key, money, disk and, if one is named, the task."""
    findings = examine(node or [DEFAULT_NODE], key, state, task)
    words = {True: "ok", False: "WRONG", None: "?"}
    rows = [[words[finding.is_good], finding.name, finding.detail] for finding in findings]
    tell(findings, format_table(rows), json)
    verdicts = {finding.is_good for finding in findings}
    leave(NO if False in verdicts else UNKNOWN if None in verdicts else YES)


@app.command("list")
def list_open(most: Most = MOST, node: Nodes = None, key: Key = KEY, json: Json = False) -> None:
    """List the tasks that this account may join, may apply to, or is in."""
    found = list_open_tasks(open_nodes(node), read_key_address(key), most)
    rows: list[list[Any]] = [["task", "state", "joined", "stake per sample", "name"]]
    for one in found:
        info, stake = one.info, format_coins(one.info.parameters.stake_per_sample)
        rows.append([info.number, info.state.name.lower(), one.is_joined, stake, ascii(info.name)])
    documents = [{**to_json(one.info), "joined": one.is_joined} for one in found]
    tell(documents, format_table(rows), json)
    leave(YES if found else NO)


@app.command()
def join(
    task: TaskNumber,
    samples: Annotated[int, typer.Option("--samples", min=1, help="most rows in a round")],
    stake: Annotated[str | None, typer.Option("--stake", help="in coins; else the least")] = None,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Join a task with a stake."""
    with open_client(node, key, password_file, state) as client:
        client.join(task, samples, None if stake is None else coins(stake))
        tell({"task": task, "joined": True}, f"in task {task}", json)
    leave(YES)


@app.command("apply")
def ask(
    task: TaskNumber,
    statement: Annotated[
        Path | None, typer.Option("--statement", help="text file, public: who you are")
    ] = None,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Ask to be invited to a task that takes applicants."""
    try:
        text = "" if statement is None else statement.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ClientError("statement_file", f"cannot read {statement}: {error}") from None
    with open_client(node, key, password_file, state) as client:
        client.apply(task, text)
        tell({"task": task, "applied": True}, f"applied to task {task}", json)
    leave(YES)


@app.command("stake")
def add_stake(
    task: TaskNumber,
    amount: Annotated[
        str | None, typer.Argument(metavar="COINS", help="else what is missing")
    ] = None,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Add to the stake, for instance after a bond was lost. 1: nothing was missing.

    Run again after a failure: COINS are added once. Once it has said so, the same adds more.
    """
    with open_client(node, key, password_file, state) as client, client.telling():
        added = client.add_stake(task, None if amount is None else coins(amount))
        say(task, "added", added, json)
    leave(YES if added else NO)


@app.command("dry-run")
def dry_run(
    task: TaskNumber,
    app_file: AppFile = APP,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Train one round on the newest model and send nothing. 1: `run` would not send it either."""
    with open_client(node, key, password_file, state) as client:
        trial = client.dry_run(task, app_file)
    text = (
        f"{trial.samples} samples in {trial.seconds:.1f} s, delta norm {trial.norm:.4g}, "
        f"update {trial.update_bytes} bytes {trial.update_cid}; nothing was sent"
    )
    if trial.scale < 1:
        text += (
            f"\nthe delta is above the task's admission norm {trial.limit:.4g}: "
            f"it would be scaled by {trial.scale:.3g}"
        )
    if trial.refusal:
        text += f"\nrun would not send this: {trial.refusal}"
    tell(trial, text, json)
    leave(NO if trial.refusal else YES)


@app.command()
def run(
    task: TaskNumber,
    app_file: AppFile = APP,
    samples: Samples = None,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Take part until the task ends, then claim. Start it again after any interruption."""
    with open_client(node, key, password_file, state) as client:
        summary = client.run(task, samples, app_file)
    text = f"{summary.submitted} updates, {format_coins(summary.claimed)} coins claimed"
    tell(summary, text, json)
    leave(YES if summary.state is TaskState.FINISHED else NO)


@app.command()
def status(task: TaskNumber, node: Nodes = None, key: Key = KEY, json: Json = False) -> None:
    """Show where this account stands in a task; needs no password."""
    standing = get_standing(open_nodes(node), task, read_key_address(key))
    document = {name: value for name, value in to_json(standing).items() if value is not None}
    rows = [
        [name, f"{format_coins(int(value))} coins" if name in AMOUNTS else value]
        for name, value in document.items()
    ]
    tell(document, format_table(rows), json)
    leave(YES if standing.joined else NO)


@app.command()
def claim(
    task: TaskNumber,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Fetch what this account earned. 1: nothing to claim."""
    with open_client(node, key, password_file, state) as client:
        finish(task, "claimed", client.claim(task), json)


@app.command("leave")
def give_up(
    task: TaskNumber,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Leave a task and take the stake back. 1: there was none."""
    with open_client(node, key, password_file, state) as client:
        finish(task, "returned", client.leave(task), json)


@app.command()
def bundle(
    task: TaskNumber,
    output: Annotated[Path, typer.Option("--output", "-o", help="new directory")],
    node: Nodes = None,
    json: Json = False,
) -> None:
    """Fetch a task's bundle, check it against its name and unpack it; nothing in it is run.

    Code that you unpack yourself is your own from then on: --app runs it without asking. To run it
    only with consent, and only unchanged, use `client inspect` and `client approve` instead.
    """
    rpc = open_nodes(node)
    name = Tasks(rpc).get_task(task).bundle
    if name == NO_BLOB:
        raise ClientError("bundle_missing", f"task {task} has no bundle")
    files = decode_bundle(rpc.get_blob(name))
    unpack_bundle(files, output)
    tell({"cid": name, "files": sorted(files)}, "\n".join(map(clean, sorted(files))), json)
    leave(YES)


def finish(task: int, what: str, amount: int, as_json: bool) -> None:
    """Say what came in and leave with yes or no."""
    say(task, what, amount, as_json)
    leave(YES if amount else NO)


def say(task: int, what: str, amount: int, as_json: bool) -> None:
    """Say how many coins came in, or went out."""
    tell({"task": task, what: str(amount)}, f"{what} {format_coins(amount)} coins", as_json)


from . import consents  # noqa: E402, F401 - its commands join these

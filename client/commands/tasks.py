"""`steelyard task`: publish a training task, run it, follow it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from steelyard.chain.errors import SteelyardError, clean_lines

from .. import listing
from ..amounts import coins, format_coins
from ..contracts import Rounds, Tasks
from ..drafting import draft_task, fetch_conditions
from ..errors import ClientError
from ..keys import format_address
from ..organisation import Applicant, PublishedTask, list_applicants
from ..published import PublishedModel
from ..records import MAX_ROUNDS, TaskState
from ..terms import check_task_terms
from ..watching import watch_task
from .options import (
    KEY,
    MOST,
    NO,
    STATE,
    YES,
    Json,
    Key,
    Most,
    Nodes,
    PasswordFile,
    RoundNumber,
    State,
    TaskNumber,
    check_directory,
    format_table,
    leave,
    new_app,
    open_nodes,
    open_organisation,
    tell,
    to_json,
)
from .taskfiles import describe_draft, format_draft, list_terms, read_task_file

app = new_app("Publish a training task, run it, follow it.")
TaskFile = Annotated[Path, typer.Argument(metavar="FILE", help="the task, as TOML")]
Person = Annotated[str, typer.Argument(metavar="ADDRESS", help="an account")]
People = Annotated[list[str], typer.Argument(metavar="ADDRESS...", help="accounts")]
Coins = Annotated[str, typer.Argument(metavar="COINS", help="decimal coins")]


# -- before it is published ------------------------------------------------------------------------
@app.command()
def check(file: TaskFile, node: Nodes = None, json: Json = False) -> None:
    """Check a task against the chain: its terms, escrow and worst cost. Sends nothing, no key.

    0: the chain would take it. 1: it would not, or the files are wrong. 2: no node could tell.
    """
    with saying_no(json):
        task = read_task_file(file)
        check_task_terms(task)
    now = fetch_conditions(open_nodes(node))
    with saying_no(json):
        draft = draft_task(task, now.gas_limit, now.base_fee, now.tip, now.retention_seconds)
    tell(describe_draft(draft), format_draft(draft), json)
    leave(YES)


@contextmanager
def saying_no(as_json: bool) -> Iterator[None]:
    """Turn whatever is wrong with a task into the answer no: 2 is for what a node left open."""
    try:
        yield
    except SteelyardError as error:
        if as_json:
            tell({"ok": False, "error": error.code, "message": error.message}, "", as_json)
        typer.echo(f"steelyard: {clean_lines(f'{error.code}: {error.message}')}", err=True)
        leave(NO)


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


# -- looking ---------------------------------------------------------------------------------------
@app.command("list")
def list_tasks(most: Most = MOST, node: Nodes = None, json: Json = False) -> None:
    """List the tasks of the chain, the newest first."""
    infos = listing.list_tasks(open_nodes(node), most)
    rows: list[list[Any]] = [["task", "state", "round", "reward (coins)", "name"]]
    for info in infos:
        progress = f"{info.round}/{info.parameters.rounds}"
        reward = format_coins(info.parameters.reward)
        rows.append([info.number, info.state.name.lower(), progress, reward, ascii(info.name)])
    tell(infos, format_table(rows), json)
    leave(YES)


@app.command()
def show(task: TaskNumber, node: Nodes = None, json: Json = False) -> None:
    """Show a task: its terms, participants and money."""
    tasks = Tasks(open_nodes(node))
    info, account = tasks.get_task(task), to_json(tasks.get_account(task))
    people = tasks.get_participants(task)
    document = to_json(info) | {"account": account, "participants": to_json(people)}
    rows: list[list[Any]] = [
        ["name", ascii(info.name)],
        ["publisher", format_address(info.publisher)],
        ["state", info.state.name.lower()],
        ["round", f"{info.round} of {info.parameters.rounds}"],
        *([["then", f"{info.wish.name.lower()}, when this round has ended"]] if info.wish else []),
        *list_terms(info.parameters),
        ["bundle", to_json(info.bundle)],
        ["model", to_json(info.model)],
    ]
    rows += [[name, f"{format_coins(int(value))} coins"] for name, value in account.items()]
    rows += [["participant", format_address(address)] for address in people]
    tell(document, format_table(rows), json)
    leave(YES)


@app.command()
def watch(task: TaskNumber, node: Nodes = None, json: Json = False) -> None:
    """Follow a task from its beginning until it is over. 0: finished, 1: aborted."""
    rpc = open_nodes(node)
    tasks = Tasks(rpc)
    tasks.get_task(task)
    for event in watch_task(rpc, task, lambda: time.sleep(1.0)):
        document = {"kind": event.kind, "round": event.round, "submitted": event.submitted}
        document |= {"metrics": event.metrics, "height": event.height, "values": event.values}
        tell(document, str(event), json)
    leave(YES if tasks.get_task(task).state is TaskState.FINISHED else NO)


@app.command()
def model(
    task: TaskNumber,
    output: Annotated[Path, typer.Option("--output", "-o", help="file to write")],
    number: Annotated[
        int | None, typer.Option("--round", min=1, max=MAX_ROUNDS, help="else the newest")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="the chain's own integers")] = False,
    node: Nodes = None,
    json: Json = False,
) -> None:
    """Fetch a task's model, check it against its name and save it as safetensors."""
    check_directory(output)
    rpc = open_nodes(node)
    info = Tasks(rpc).get_task(task)
    name = info.model if number is None else Rounds(rpc).get_round(task, number).model
    if not name.size:
        raise ClientError("model_unknown", f"round {number} of task {task} has made no model")
    found = PublishedModel(name, rpc.get_blob(name))
    path = found.save_exact(output) if exact else found.save(output)
    tell({"path": path, "cid": found.cid}, f"{found.cid}  {path}", json)
    leave(YES)


@app.command()
def applicants(task: TaskNumber, node: Nodes = None, json: Json = False) -> None:
    """List who asked to be invited, with statement and reputation. 1: nobody."""
    found = list_applicants(open_nodes(node), task)
    tell(found, format_applicants(found), json)
    leave(YES if found else NO)


def format_applicants(found: list[Applicant]) -> str:
    """Return applicants as text. What strangers wrote is escaped."""
    rows: list[list[Any]] = [["applicant", "reputation", "stands", "statement"]]
    for one in found:
        stands = "joined" if one.is_joined else "invited" if one.is_invited else "waits"
        text = None if one.text is None else ascii(one.text)
        rows.append([format_address(one.address), f"{one.reputation:.3f}", stands, text])
    return format_table(rows)


# -- people ----------------------------------------------------------------------------------------
@app.command()
def invite(
    task: TaskNumber,
    people: People,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Let accounts join a task that is not open to everybody."""
    with open_organisation(node, key, password_file, state) as organisation:
        PublishedTask(organisation, task).invite(*people)
        tell({"task": task, "invited": people}, f"invited {len(people)}", json)
    leave(YES)


@app.command()
def uninvite(
    task: TaskNumber,
    person: Person,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Take an invitation back; who has joined stays."""
    with open_organisation(node, key, password_file, state) as organisation:
        PublishedTask(organisation, task).uninvite(person)
        tell({"task": task, "uninvited": person}, f"uninvited {person}", json)
    leave(YES)


@app.command()
def sponsor(
    task: TaskNumber,
    person: Person,
    stake: Annotated[str | None, typer.Option("--stake", help="in coins")] = None,
    samples: Annotated[int | None, typer.Option("--samples", help="else stake for so many")] = None,
    gas: Annotated[str, typer.Option("--gas", help="coins that are sent at once")] = "0",
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Put down a stake for somebody who is to join, and send it coins for gas.

    Run again after a failure: it is put down once. Once it has said so, the same command adds more.
    """
    if (stake is None) == (samples is None):
        raise ClientError("sponsor_stake", "give either --stake COINS or --samples N")
    with open_organisation(node, key, password_file, state) as organisation, organisation.telling():
        published = PublishedTask(organisation, task)
        terms = published.get_info().parameters
        amount = terms.compute_stake(samples or 0) if stake is None else coins(stake)
        published.sponsor(person, amount, coins(gas))
        document = {"task": task, "participant": person, "stake": str(amount)}
        tell(document, f"sponsored {person} with {format_coins(amount)} coins", json)
    leave(YES)


@app.command()
def unsponsor(
    task: TaskNumber,
    person: Person,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Take back a stake that was not used. 1: there was none."""
    with open_organisation(node, key, password_file, state) as organisation:
        amount = PublishedTask(organisation, task).unsponsor(person)
    document = {"task": task, "participant": person, "returned": str(amount)}
    tell(document, f"{format_coins(amount)} coins returned", json)
    leave(YES if amount else NO)


@app.command()
def release(
    task: TaskNumber,
    person: Person,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Free the stake of somebody who never left a task that is over; anybody may. 1: none there."""
    with open_organisation(node, key, password_file, state) as organisation:
        freed = PublishedTask(organisation, task).release(person)
    document = {"task": task, "participant": person}
    document |= {"own": str(freed.own), "sponsored": str(freed.sponsored)}
    text = f"{format_coins(freed.own)} coins for {person} to claim"
    if freed.sponsored:
        text += f", {format_coins(freed.sponsored)} for the publisher"
    tell(document, text, json)
    leave(YES if freed.stake else NO)


# -- the course of the task ------------------------------------------------------------------------
@app.command()
def fund(
    task: TaskNumber,
    amount: Coins,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Add coins to a task's reward: the pools of later rounds grow. Anybody may.

    Run again after a failure: they are added once. Once it has said so, the same command adds more.
    """
    with open_organisation(node, key, password_file, state) as organisation, organisation.telling():
        PublishedTask(organisation, task).fund(coins(amount))
        tell({"task": task, "funded": str(coins(amount))}, f"added {amount} coins", json)
    leave(YES)


@app.command()
def evaluate(
    task: TaskNumber,
    number: RoundNumber,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Ask the participants to evaluate the model that a round made."""
    with open_organisation(node, key, password_file, state) as organisation:
        PublishedTask(organisation, task).request_evaluation(number)
        tell({"task": task, "round": number, "evaluate": True}, "evaluate: asked for", json)
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
act("pause", "Hold a task when the round in progress has ended.")
act("resume", "Open the next round of a paused task, or take a pause back.")
act("cancel", "End a task: at once, or when a round with commitments has ended and is paid.")
act("abort", "End a task that cannot go on; anybody may, where the contract allows it.")
act("refund", "Fetch what nobody earned from a task that is over. 1: nothing left.")
act("claim", "Fetch sponsored stakes that came back, and fees. 1: nothing to claim.")

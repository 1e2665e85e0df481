"""`steelyard client inspect|approve|withdraw`: look into a bundle, consent to run it."""

from typing import Annotated, Any

import typer

from ..consents import (
    Inspection,
    approve_bundle,
    fetch_bundle,
    inspect_bundle,
    withdraw_approval,
)
from .clients import app
from .options import NO, STATE, YES, Json, Nodes, State, format_table, leave, open_nodes, tell

BundleName = Annotated[str, typer.Argument(metavar="CID", help="of the bundle; `task show TASK`")]


@app.command()
def inspect(cid: BundleName, node: Nodes = None, state: State = STATE, json: Json = False) -> None:
    """Show what is in a bundle without running it. 0: it is approved here, 1: it is not."""
    found = inspect_bundle(fetch_bundle(open_nodes(node), cid), state)
    tell(found, format_inspection(found), json)
    leave(YES if found.is_approved else NO)


@app.command()
def approve(cid: BundleName, node: Nodes = None, state: State = STATE, json: Json = False) -> None:
    """Consent to run exactly this bundle, and unpack it. Inspect it first."""
    bundle = fetch_bundle(open_nodes(node), cid)
    found = inspect_bundle(bundle, state)
    directory = approve_bundle(bundle, state)
    entries = [directory / name for name in found.entries]
    lines = [f"approved {bundle.cid}", f"unpacked in {directory}"]
    lines += [f"run it with --app {format_names([str(path)])}" for path in entries]
    tell({"cid": bundle.cid, "directory": directory, "entries": entries}, "\n".join(lines), json)
    leave(YES)


@app.command()
def withdraw(cid: BundleName, state: State = STATE, json: Json = False) -> None:
    """Take consent to a bundle back and delete what was unpacked. 1: there was none."""
    done = withdraw_approval(state, cid)
    text = f"withdrew {cid}" if done else f"{cid} was not approved"
    tell({"cid": cid, "withdrawn": done}, text, json)
    leave(YES if done else NO)


def format_inspection(found: Inspection) -> str:
    """Return a bundle's inspection as text. What strangers wrote is escaped."""
    rows: list[list[Any]] = [[part.kind, part.size, ascii(part.name)] for part in found.files]
    compiled = [ascii(part.name) for part in found.files if part.kind == "compiled"]
    facts: list[list[Any]] = [
        ["bundle", found.cid],
        ["bytes", found.size],
        ["approved here", "yes" if found.is_approved else "no"],
        ["can be run", format_names(found.entries)],
        ["imports", format_names(found.imports)],
        ["of Python's own", format_names(found.system)],
        ["also uses", format_names(found.calls)],
        ["settings", ascii(found.config) if found.config else "none"],
    ]
    lines = [format_table(facts), "", format_table([["kind", "bytes", "file"], *rows])]
    if compiled:
        lines += ["", f"WARNING: nobody can read what {', '.join(compiled)} does"]
    lines += [
        "",
        "Run, it has your rights: it can read what you can read and send it anywhere. Approve only "
        "what you have read, or whose author you trust.",
    ]
    return "\n".join(lines)


def format_names(names: list[str]) -> str:
    """Return names from a stranger's file, escaped."""
    return (
        ", ".join(name if name.isascii() and name.isprintable() else ascii(name) for name in names)
        or "-"
    )

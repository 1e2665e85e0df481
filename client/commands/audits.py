"""`steelyard audit`: prove or refute, from a node that nobody trusts."""

from collections.abc import Sequence
from pathlib import Path
from string import hexdigits
from typing import Annotated, Any, Final

import typer

from steelyard.chain.errors import clean
from steelyard.chain.following import parse_checkpoint
from steelyard.chain.types import Hash

from ..audit import audit_replay, audit_round
from ..errors import ClientError
from ..verdicts import Report, Verdict
from .options import (
    NO,
    UNKNOWN,
    YES,
    Json,
    Nodes,
    RoundNumber,
    TaskNumber,
    leave,
    new_app,
    open_nodes,
    tell,
)

app = new_app("Prove or refute what a node serves: YES (0), REFUTED (1), UNKNOWN (2).")
GenesisFile = Annotated[
    Path | None,
    typer.Option(
        "--genesis", exists=True, dir_okay=False, help="the genesis document that you trust"
    ),
]
TrustedBlock = Annotated[
    str | None,
    typer.Option(
        "--checkpoint", metavar="HEIGHT:HASH", help="a recent block's hash that you trust"
    ),
]
HASH_DIGITS: Final = 64
MAX_DIGITS: Final = 18
"""Of a height."""
CODES = {Verdict.YES: YES, Verdict.REFUTED: NO, Verdict.UNKNOWN: UNKNOWN}


@app.command("round")
def check_round(
    task: TaskNumber,
    number: RoundNumber,
    node: Nodes = None,
    genesis: GenesisFile = None,
    checkpoint: TrustedBlock = None,
    json: Json = False,
) -> None:
    """Recompute one round with plain integers and compare everything with the record."""
    trusted = None if genesis is None else genesis.read_bytes()
    start = None if checkpoint is None else parse_checkpoint(checkpoint)
    nodes = open_nodes(node)
    finish(audit_round(nodes, task, number, genesis=trusted, checkpoint=start), json)


@app.command("model")
def check_model(
    model: Annotated[str, typer.Argument(metavar="CID", help="the model's name")],
    node: Nodes = None,
    genesis: GenesisFile = None,
    checkpoint: TrustedBlock = None,
    depth: Annotated[int, typer.Option("--depth", min=1, help="how many rounds back")] = 1,
    everything: Annotated[bool, typer.Option("--all", help="back to the beginning")] = False,
    json: Json = False,
) -> None:
    """Find the round that made a model, audit it, and follow where the model comes from."""
    from ..ancestry import audit_model  # late: the others need nothing of it

    report = audit_model(
        open_nodes(node),
        model,
        depth=None if everything else depth,
        genesis=None if genesis is None else genesis.read_bytes(),
        checkpoint=None if checkpoint is None else parse_checkpoint(checkpoint),
        progress=lambda line: typer.echo(clean(line), err=True),
    )
    finish(report, json, report.rounds)


@app.command("replay")
def check_replay(
    node: Nodes = None,
    genesis: GenesisFile = None,
    checkpoint: TrustedBlock = None,
    until: Annotated[int | None, typer.Option("--until", help="last height")] = None,
    upgrade: Annotated[
        list[str] | None,
        typer.Option("--upgrade", metavar="NAME=HEIGHT", help="a rule change after genesis"),
    ] = None,
    json: Json = False,
) -> None:
    """Re-execute every block from genesis; name the first height that differs."""
    trusted = None if genesis is None else genesis.read_bytes()
    report = audit_replay(
        open_nodes(node),
        genesis=trusted,
        last_height=until,
        checkpoint=None if checkpoint is None else parse_checkpoint(checkpoint),
        upgrades=parse_upgrades(upgrade or []),
    )
    finish(report, json)


@app.command("evidence")
def check_evidence(
    transaction: Annotated[str, typer.Argument(metavar="TX", help="hash of a report to Staking")],
    node: Nodes = None,
    genesis: GenesisFile = None,
    checkpoint: TrustedBlock = None,
    json: Json = False,
) -> None:
    """Check that whom a report slashed really signed what nobody may sign."""
    from ..evidence import audit_evidence  # late: rounds and replays need nothing of it

    trusted = None if genesis is None else genesis.read_bytes()
    start = None if checkpoint is None else parse_checkpoint(checkpoint)
    transaction_hash = parse_hash(transaction)
    report = audit_evidence(open_nodes(node), transaction_hash, genesis=trusted, checkpoint=start)
    finish(report, json)


def parse_hash(text: str) -> Hash:
    """Return a transaction's hash. Raises ClientError hash_malformed."""
    digits = text.removeprefix("0x")
    if len(digits) != HASH_DIGITS or not set(digits) <= set(hexdigits):
        raise ClientError("hash_malformed", f"{text!r:.100} is not 0x and {HASH_DIGITS} hex digits")
    return Hash(bytes.fromhex(digits))


def parse_upgrades(texts: list[str]) -> dict[str, int]:
    """Return heights by name. Raises ClientError upgrade_malformed."""
    upgrades = {}
    for text in texts:
        name, _, height = text.partition("=")
        if not name or not height.isascii() or not height.isdecimal() or len(height) > MAX_DIGITS:
            raise ClientError("upgrade_malformed", f"{text!r:.100} is not NAME=HEIGHT")
        upgrades[name] = int(height)
    return upgrades


def finish(report: Report, as_json: bool, parts: Sequence[Report] = ()) -> None:
    """Print a report and leave with its exit code. `parts`: reports that it rests on, each a line
    of it; in full where they are not all YES."""
    told = [format_report(part) for part in parts if part.verdict is not Verdict.YES]
    document = describe_report(report)
    if parts:
        document["rounds"] = [describe_report(part) for part in parts]
    try:
        tell(document, "\n\n".join([*told, format_report(report)]), as_json)
    except BrokenPipeError:  # typer would end with 1, which says REFUTED
        leave(UNKNOWN)
    leave(CODES[report.verdict])


def format_report(report: Report) -> str:
    """Return a report for people, a line for each link."""
    lines = [f"  {check.name:<10} {check.verdict:<8} {check.detail}" for check in report.checks]
    condition = report.condition if report.verdict is Verdict.YES else ""
    last = f"{report.verdict} {condition}".rstrip()
    return "\n".join([report.subject, *lines, last])


def describe_report(report: Report) -> dict[str, Any]:
    """Return a report for programs."""
    return {
        "subject": report.subject,
        "verdict": str(report.verdict),
        "summary": report.summary,
        "condition": report.condition or None,
        "checks": [
            {"name": c.name, "verdict": str(c.verdict), "detail": c.detail} for c in report.checks
        ],
    }

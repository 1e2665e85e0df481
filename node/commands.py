"""`steelyard node …`: make a data directory, run a validator, ask how it is, show its keys.

Exit codes: 0 yes, 1 no, 2 could not tell. Faults go to stderr and say what to do next.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import httpx
import typer

from steelyard.chain.errors import InvalidGenesis, SteelyardError
from steelyard.chain.genesis import DEFAULT_GAS_LIMIT
from steelyard.chain.types import Address

from .config import NodeConfig, load_config
from .directory import ENDPOINT, KEYS
from .founding import (
    Foundation,
    init_directory,
    is_validator,
    parse_amount,
    parse_fund,
    set_address,
)
from .keyfiles import describe_keys, read_secrets
from .logs import configure_logs
from .store import CorruptData

PASSWORD_VARIABLE = "STEELYARD_PASSWORD"  # noqa: S105
YES, NO, UNKNOWN = 0, 1, 2
STATUS_SECONDS = 5.0
DAY_SECONDS = 86_400
MAX_PACE_SECONDS = 3_600
"""As in a genesis document: heartbeat and timeout last a millisecond to an hour."""

app = typer.Typer(help="Run a validator.", no_args_is_help=True, pretty_exceptions_enable=False)

Directory = Annotated[Path, typer.Argument(help="The node's data directory.")]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        help=f"File with the password of the keys; else ${PASSWORD_VARIABLE}, else asked."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer with one line of JSON.")]
Host = Annotated[str | None, typer.Option(help="Address to listen on; default from config.toml.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; 0 takes any free one.")]


@app.command()
def init(
    directory: Directory,
    fund: Annotated[
        list[str] | None,
        typer.Option(
            help="ADDRESS=AMOUNT in coins (or 5wei) at the start of the chain; repeatable."
        ),
    ] = None,
    genesis: Annotated[
        Path | None, typer.Option(help="Use this document instead of starting a new chain.")
    ] = None,
    keys_from: Annotated[
        Path | None,
        typer.Option("--keys", help="Copy the key files of this directory; else new ones."),
    ] = None,
    chain_id: Annotated[int, typer.Option(help="Of the new chain.")] = 7700,
    name: Annotated[str, typer.Option(help="Of the new chain.")] = "steelyard",
    stake: Annotated[str, typer.Option(help="Coins that the validator has at stake.")] = "32",
    balance: Annotated[str, typer.Option(help="Coins of the validator, for its keeper.")] = "100",
    heartbeat: Annotated[float, typer.Option(help="Seconds between blocks of an idle chain.")] = 5,
    timeout: Annotated[float, typer.Option(help="Seconds until a view is given up.")] = 10,
    gas_limit: Annotated[int, typer.Option(help="Gas of a block.")] = DEFAULT_GAS_LIMIT,
    retention_days: Annotated[int, typer.Option(help="How long blobs are kept.")] = 30,
    host: Host = None,
    port: Port = None,
    password_file: PasswordFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a data directory: encrypted keys, a genesis with this one validator, settings."""
    plan = (
        read_document(genesis)
        if genesis is not None
        else Foundation(
            chain_id=chain_id,
            name=name,
            timestamp=int(time.time()),
            stake=parse_amount(stake),
            validator_balance=parse_amount(balance),
            funds=merge_funds(fund or []),
            heartbeat_ms=parse_pace("--heartbeat", heartbeat),
            timeout_ms=parse_pace("--timeout", timeout),
            gas_limit=gas_limit,
            blob_retention_seconds=retention_days * DAY_SECONDS,
        )
    )
    config = set_address(NodeConfig(), host, port)
    password = get_password(password_file, is_new=keys_from is None)
    document, secrets = init_directory(directory, password, plan, config, keys=keys_from)
    facts = {"directory": str(directory), "chain_id": str(document.chain_id)}
    answer(facts | describe_keys(directory / KEYS), as_json)
    if as_json:
        return
    if is_validator(secrets, document):
        typer.echo(f"Back up {directory / KEYS}, then start it: steelyard node run {directory}")
    else:
        typer.echo(
            "These keys are new, and of no validator in the document: `steelyard node run` will "
            f"refuse them. Replace {directory / KEYS} by a validator's keys/, or run this with "
            "--keys DIR, which copies them."
        )


@app.command()
def run(
    directory: Directory,
    host: Host = None,
    port: Port = None,
    password_file: PasswordFile = None,
    log: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run the validator until it is interrupted; events go to stderr, the URL to stdout."""
    from .service import run_service

    config = set_address(load_config(directory), host, port)
    secrets = read_secrets(directory / KEYS, get_password(password_file, is_new=False))
    configure_logs(log)
    try:
        run_service(directory, secrets, config, lambda url: typer.echo(f"listening on {url}"))
    except CorruptData as error:
        raise SteelyardError(error.code, error.message) from error


@app.command()
def status(
    directory: Annotated[
        Path | None, typer.Argument(help="Data directory of a node on this machine.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Ask this node instead.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a running node how it is: 0 healthy, 1 it needs you, 2 no answer."""
    base = find_url(directory, url)
    try:
        reply = httpx.get(f"{base}/health", timeout=STATUS_SECONDS)
        facts = reply.json()
    except (httpx.HTTPError, ValueError) as error:
        raise SteelyardError("node_unreachable", f"no answer from {base}: {error}") from None
    answer(facts, as_json)
    raise typer.Exit(YES if reply.status_code == httpx.codes.OK else NO)


@app.command()
def keys(directory: Directory, as_json: AsJson = False) -> None:
    """Show the validator's address and public keys; needs no password."""
    answer(describe_keys(directory / KEYS), as_json)


def read_document(path: Path) -> bytes:
    """A genesis document. Raises SteelyardError genesis_missing."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SteelyardError(
            "genesis_missing", f"{path}: {error.strerror}; name the chain's document"
        ) from None


def parse_pace(option: str, seconds: float) -> int:
    """Milliseconds of a heartbeat or timeout. Raises InvalidGenesis genesis_range."""
    if not 0.001 <= seconds <= MAX_PACE_SECONDS:  # false for nan, too
        raise InvalidGenesis(
            "genesis_range", f"{option} {seconds} is not in 0.001 to {MAX_PACE_SECONDS} seconds"
        )
    return round(seconds * 1000)


def merge_funds(texts: list[str]) -> dict[Address, int]:
    funds: dict[Address, int] = {}
    for text in texts:
        address, amount = parse_fund(text)
        funds[address] = funds.get(address, 0) + amount
    return {address: amount for address, amount in funds.items() if amount}


def get_password(path: Path | None, *, is_new: bool) -> str:
    """From the file, the environment, or a prompt. Raises SteelyardError password_missing."""
    if path is not None:
        try:
            password = path.read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            raise SteelyardError("password_missing", f"{path}: {error.strerror}") from None
    elif PASSWORD_VARIABLE in os.environ:
        password = os.environ[PASSWORD_VARIABLE]
    elif sys.stdin.isatty():
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=is_new)
    else:
        password = ""
    if not password:
        raise SteelyardError(
            "password_missing", f"set {PASSWORD_VARIABLE} or give --password-file; it is not empty"
        )
    return password


def find_url(directory: Path | None, url: str | None) -> str:
    """The node to ask: given, left behind by a running node, or the default one."""
    if url is not None:
        return url.rstrip("/")
    if directory is None:
        http = NodeConfig().http
        return f"http://{http.host}:{http.port}"
    try:
        return (directory / ENDPOINT).read_text(encoding="utf-8").strip()
    except OSError:
        raise SteelyardError(
            "node_stopped", f"no node runs on {directory}; start it: steelyard node run {directory}"
        ) from None


def answer(facts: Mapping[str, object], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts))
        return
    width = max(map(len, facts), default=0)
    for key, value in facts.items():
        shown = "none" if value is None else f"{value:.1f}" if isinstance(value, float) else value
        typer.echo(f"{key:<{width}}  {shown}")

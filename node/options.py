"""What the `steelyard node` and `steelyard localnet` commands share: options, passwords, answers.

Exit codes: 0 yes, 1 no, 2 could not tell. Faults go to stderr and say what to do next.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from steelyard.chain.errors import InvalidGenesis, SteelyardError
from steelyard.chain.types import Address

from .config import NodeConfig
from .directory import ENDPOINT
from .founding import WEI_PER_GWEI, Foundation, parse_amount, parse_fund

PASSWORD_VARIABLE = "STEELYARD_PASSWORD"  # noqa: S105
YES, NO, UNKNOWN = 0, 1, 2
DAY_SECONDS = 86_400
MAX_PACE_SECONDS = 3_600
"""As in a genesis document: heartbeat and timeout last a millisecond to an hour."""

Directory = Annotated[Path, typer.Argument(help="The node's data directory.")]
PasswordFile = Annotated[
    Path | None,
    typer.Option(
        help=f"File with the password of the keys; else ${PASSWORD_VARIABLE}, else asked."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer with one line of JSON.")]
Funds = Annotated[
    list[str] | None,
    typer.Option(
        "--fund", help="ADDRESS=AMOUNT in coins (or 5wei) at the start of the chain; repeatable."
    ),
]
ChainId = Annotated[int, typer.Option(help="Of the new chain.")]
ChainName = Annotated[str, typer.Option("--name", help="Of the new chain.")]
Balance = Annotated[str, typer.Option(help="Coins of each validator, for its keeper.")]
Heartbeat = Annotated[float, typer.Option(help="Seconds between blocks of an idle chain.")]
Timeout = Annotated[float, typer.Option(help="Seconds until a view is given up.")]
GasLimit = Annotated[int, typer.Option(help="Gas of a block.")]
RetentionDays = Annotated[int, typer.Option(help="How long blobs are kept.")]
EpochBlocks = Annotated[
    int, typer.Option(help="Blocks of an epoch: how often the set of validators changes.")
]
Issuance = Annotated[str, typer.Option(help="Coins that each epoch pays to its validators.")]
UnbondingDays = Annotated[
    float, typer.Option(help="How long a stake waits after its validator left.")
]
MinStake = Annotated[str, typer.Option(help="Coins that a validator has at stake at least.")]
Url = Annotated[str | None, typer.Option(help="Ask this node instead.")]


def new_app(summary: str) -> typer.Typer:
    """An app whose errors are ours: no decorated tracebacks, help on nothing."""
    return typer.Typer(
        help=summary, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
    )


def parse_pace(option: str, seconds: float) -> int:
    """Milliseconds of a heartbeat or timeout. Raises InvalidGenesis genesis_range."""
    if not 0.001 <= seconds <= MAX_PACE_SECONDS:  # false for nan, too
        raise InvalidGenesis(
            "genesis_range", f"{option} {seconds} is not in 0.001 to {MAX_PACE_SECONDS} seconds"
        )
    return round(seconds * 1000)


def read_choices(
    *,
    chain_id: int,
    name: str,
    balance: str,
    fund: list[str] | None,
    heartbeat: float,
    timeout: float,
    gas_limit: int,
    retention_days: int,
    epoch_blocks: int,
    issuance: str,
    unbonding_days: float,
    min_stake: str,
    stake: str = "0",
) -> Foundation:
    """The options that say what a new chain is like. Raises SteelyardError, InvalidGenesis."""
    if not 0 < unbonding_days < 2**32 / DAY_SECONDS:
        raise InvalidGenesis("genesis_range", f"--unbonding-days {unbonding_days}: 0 to 136 years")
    return Foundation(
        chain_id=chain_id,
        name=name,
        timestamp=int(time.time()),
        stake=parse_amount(stake),
        validator_balance=parse_amount(balance),
        funds=merge_funds(fund),
        heartbeat_ms=parse_pace("--heartbeat", heartbeat),
        timeout_ms=parse_pace("--timeout", timeout),
        gas_limit=gas_limit,
        blob_retention_seconds=retention_days * DAY_SECONDS,
        epoch_blocks=epoch_blocks,
        issuance_gwei=parse_amount(issuance) // WEI_PER_GWEI,
        unbonding_seconds=round(unbonding_days * DAY_SECONDS),
        min_stake=parse_amount(min_stake),
    )


def merge_funds(texts: list[str] | None) -> dict[Address, int]:
    """Wei of each address of repeated `--fund`. Raises SteelyardError."""
    funds: dict[Address, int] = {}
    for text in texts or ():
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


def explain_silence(url: str, error: Exception) -> str:
    """The message of `node_unreachable`."""
    return (
        f"no answer from {url}: {error}; does that node run (steelyard node run DIR)? Another one "
        "is asked with --url URL"
    )


def answer(facts: Mapping[str, object], as_json: bool) -> None:
    """One line of JSON, or a table of two columns, where what is in a group is `group.name`."""
    if as_json:
        typer.echo(json.dumps(facts))
        return
    rows = dict(list_rows(facts))
    width = max(map(len, rows), default=0)
    for key, shown in rows.items():
        typer.echo(f"{key:<{width}}  {shown}")


def list_rows(facts: Mapping[str, object], group: str = "") -> Iterator[tuple[str, str]]:
    """The rows of that table."""
    for key, value in facts.items():
        if isinstance(value, Mapping) and value:
            yield from list_rows(value, f"{group}{key}.")
        else:
            yield f"{group}{key}", show_value(value)


def show_value(value: object) -> str:
    """One value, for people."""
    if value is None or (isinstance(value, Mapping | list | tuple) and not value):
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.1f}" if isinstance(value, float) else str(value)

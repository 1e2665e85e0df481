"""What the commands share: options, output and exit codes (0 yes, 1 no, 2 could not tell)."""

import dataclasses
import enum
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

import typer

from steelyard.chain.cid import encode_cid
from steelyard.chain.errors import clean, clean_lines
from steelyard.chain.types import BlobName

from ..account import DEFAULT_STATE, Account, print_progress
from ..errors import ClientError, InvalidState
from ..keys import format_address, load_key
from ..listing import MOST_TASKS
from ..organisation import Organisation
from ..participant import Client
from ..records import MAX_ROUNDS
from ..registry import Registry
from ..rpc import Rpc

YES, NO, UNKNOWN = 0, 1, 2
DEFAULT_NODE: Final = "http://127.0.0.1:8545"
ADDRESS_BYTES: Final = 20
MAX_EXACT: Final = 2**53
"""JSON readers keep integers exactly up to here; larger ones are written as strings."""
MAX_TASK: Final = 2**64 - 1
"""Updates name their task in eight bytes."""

IN_USE_SECONDS: Final = 0.5
IN_USE_ATTEMPTS: Final = 20
"""A command waits so often for another one with the same journal, which may be done soon."""

Opened = TypeVar("Opened")
Nodes = Annotated[
    list[str] | None, typer.Option("--node", help="a node's address; repeat for failover")
]
Key = Annotated[Path, typer.Option("--key", help="encrypted key file")]
PasswordFile = Annotated[
    Path | None, typer.Option("--password-file", help="else STEELYARD_PASSWORD, else a prompt")
]
State = Annotated[Path, typer.Option("--state", help="directory of the journal")]
Json = Annotated[bool, typer.Option("--json", help="one line of JSON")]
TaskNumber = Annotated[int, typer.Argument(metavar="TASK", min=1, max=MAX_TASK)]
Most = Annotated[int, typer.Option("--most", min=1, help="of the newest tasks only so many")]
RoundNumber = Annotated[int, typer.Argument(metavar="ROUND", min=1, max=MAX_ROUNDS)]

# fmt: off
AMOUNTS: Final = frozenset((
    "deposited", "left", "reward_left", "paid", "fees", "platform", "refunded", "stakes",
    "sponsorships", "burned", "reward", "base_stake", "stake_per_sample", "bond", "close_reserve",
    "close_bounty", "stake", "sponsored", "claimed", "claimable", "pool", "cost", "credited",
))
# fmt: on
"""Fields in wei: strings in JSON, coins in text, however small."""

MOST = MOST_TASKS
KEY = Path("site.key")
STATE = Path(DEFAULT_STATE)


def new_app(summary: str) -> typer.Typer:
    """Return an app whose errors are ours: no decorated tracebacks, help on nothing."""
    return typer.Typer(
        help=summary, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
    )


def open_nodes(nodes: list[str] | None) -> Rpc:
    """Return the nodes that were named, or the local one."""
    return Rpc(nodes or [DEFAULT_NODE])


def open_patiently(opener: Callable[[], Opened]) -> Opened:
    """Return what `opener` opens, after a while if another command has its journal.

    Raises: InvalidState `state_in_use` where that one takes longer.
    """
    for attempt in range(IN_USE_ATTEMPTS):
        try:
            return opener()
        except InvalidState as error:
            if error.code != "state_in_use":
                raise
            if not attempt:
                seconds = IN_USE_ATTEMPTS * IN_USE_SECONDS
                print_progress(f"another command uses this key and journal: waiting {seconds:g} s")
            time.sleep(IN_USE_SECONDS)
    return opener()


def open_account(
    nodes: list[str] | None, key: Path, password_file: Path | None, state: Path
) -> Account:
    """Return an account for what everybody may do."""
    signer = load_key(key, password_file=password_file)
    rpc = open_nodes(nodes)
    return open_patiently(lambda: Account(rpc, signer, state=state))


def open_client(
    nodes: list[str] | None, key: Path, password_file: Path | None, state: Path
) -> Client:
    """Return a participant's account."""
    signer = load_key(key, password_file=password_file)
    rpc = open_nodes(nodes)
    return open_patiently(lambda: Client(rpc, signer, state=state))


def open_organisation(
    nodes: list[str] | None, key: Path, password_file: Path | None, state: Path
) -> Organisation:
    """Return an organisation's account."""
    signer = load_key(key, password_file=password_file)
    rpc = open_nodes(nodes)
    return open_patiently(lambda: Organisation(rpc, signer, state=state))


def open_registry(
    nodes: list[str] | None, key: Path, password_file: Path | None, state: Path
) -> Registry:
    """Return an account that speaks in the registry."""
    signer = load_key(key, password_file=password_file)
    rpc = open_nodes(nodes)
    return open_patiently(lambda: Registry(rpc, signer, state=state))


def tell(document: Any, text: str, as_json: bool) -> None:
    """Print one line of JSON, or the text; a terminal obeys nothing that strangers wrote in it."""
    typer.echo(json.dumps(to_json(document), allow_nan=False) if as_json else clean_lines(text))


def format_time(seconds: int) -> str:
    """Return a time of the chain for people, in UTC; empty for 0, which is never."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds)) if seconds else ""


def check_directory(path: Path) -> Path:
    """Raises ClientError `file_write` where a file cannot be made: directories are not."""
    if not path.absolute().parent.is_dir():
        raise ClientError("file_write", f"there is no directory {path.parent}; make it first")
    return path


def leave(code: int) -> NoReturn:
    """End the command with an exit code."""
    raise typer.Exit(code)


def to_json(value: Any) -> Any:  # noqa: C901, PLR0911 - one line for each kind
    """Return `value` as JSON: CIDs for blobs, 0x for bytes, names for states, strings for wei.

    A list of names for flags, and null for what is no number: JSON has neither NaN nor infinity.
    Twenty bytes are an address here, written with its checksum (EIP-55).
    """
    match value:
        case BlobName():
            return encode_cid(value) if value.size else None
        case enum.Flag():
            return [flag.name.lower() for flag in type(value) if flag in value and flag.name]
        case enum.Enum():
            return value.name.lower()
        case float():
            return value if math.isfinite(value) else None
        case bool() | None | str():
            return value
        case int():
            return value if abs(value) < MAX_EXACT else str(value)
        case bytes():
            return format_address(value) if len(value) == ADDRESS_BYTES else "0x" + value.hex()
        case Mapping():
            return {str(key): to_json(item) for key, item in value.items()}
        case list() | tuple() | set():
            return [to_json(item) for item in value]
        case Path():
            return str(value)
    if dataclasses.is_dataclass(value):
        found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {
            name: str(item) if name in AMOUNTS and isinstance(item, int) else to_json(item)
            for name, item in found.items()
        }
    return str(value)


def format_table(rows: list[list[Any]]) -> str:
    """Return rows as aligned columns, each row in one line whatever strangers wrote in it."""
    texts = [["" if cell is None else clean(str(cell)) for cell in row] for row in rows]
    widths = [max(len(row[place]) for row in texts) for place in range(len(texts[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in texts
    )

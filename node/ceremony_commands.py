"""`steelyard node keys …` and `steelyard node genesis`: how n operators begin a chain together.

each operator     steelyard node keys new DIR --endpoint HOST:PORT    → DIR/entry.json
one coordinator   steelyard node genesis entry-1.json …               → genesis.json, its hash
each operator     steelyard node init DIR --genesis genesis.json      → the same hash
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from steelyard.chain.errors import SteelyardError
from steelyard.chain.genesis import (
    DEFAULT_GAS_LIMIT,
    Genesis,
    build_genesis,
    encode_genesis,
)
from steelyard.chain.genesis_document import encode_hex

from .directory import KEYS
from .entries import ENTRY_FILE, parse_address, read_entry
from .founding import (
    DEFAULT_EPOCH_BLOCKS,
    create_entry,
    create_shared_document,
    parse_amount,
    write_new,
)
from .interchange import Votes, export_votes, import_votes
from .keyfiles import describe_keys, read_secrets
from .options import (
    AsJson,
    Balance,
    ChainId,
    ChainName,
    Directory,
    EpochBlocks,
    Funds,
    GasLimit,
    Heartbeat,
    Issuance,
    MinStake,
    PasswordFile,
    RetentionDays,
    Timeout,
    UnbondingDays,
    answer,
    get_password,
    read_choices,
)

SHOW = "show"
VotesFile = Annotated[Path, typer.Argument(help="JSON in the form of docs/operating.md.")]


class KeysGroup(TyperGroup):
    """`keys DIR` is short for `keys show DIR`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = args and (args[0] in self.commands or args[0].startswith("-"))
        return super().resolve_command(ctx, args if known else [SHOW, *args])


keys_app = typer.Typer(
    cls=KeysGroup,
    help="Make and show a validator's keys, and move its votes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@keys_app.command(SHOW)
def show_keys(directory: Directory, as_json: AsJson = False) -> None:
    """Show the validator's address and public keys; needs no password."""
    answer(describe_keys(directory / KEYS), as_json)


@keys_app.command("new")
def make_keys(
    directory: Directory,
    endpoint: Annotated[
        str,
        typer.Option(help="HOST:PORT where the others reach this validator; PORT + 1 is used too."),
    ],
    stake: Annotated[str, typer.Option(help="Coins that the validator has at stake.")] = "32",
    fee_recipient: Annotated[
        str | None, typer.Option(help="Account that gets the fees; default the validator's own.")
    ] = None,
    password_file: PasswordFile = None,
    as_json: AsJson = False,
) -> None:
    """Make encrypted keys and a public entry to send to whoever makes the genesis."""
    recipient = None if fee_recipient is None else parse_address(fee_recipient)
    wei = parse_amount(stake)
    if not wei:
        raise SteelyardError("amount_malformed", "a validator has a stake above 0")
    password = get_password(password_file, is_new=True)
    create_entry(directory, password, endpoint, wei, recipient)
    entry = directory / ENTRY_FILE
    answer(describe_keys(directory / KEYS) | {"entry": str(entry)}, as_json)
    if not as_json:
        typer.echo(
            f"Back up {directory / KEYS}. Send {entry} to the coordinator; it is public. Then: "
            f"steelyard node init {directory} --genesis genesis.json"
        )


@keys_app.command("export-votes")
def export(
    directory: Directory,
    file: VotesFile,
    retire: Annotated[
        bool, typer.Option("--retire", help="Never sign anything in this directory again.")
    ] = False,
    password_file: PasswordFile = None,
    as_json: AsJson = False,
) -> None:
    """Write what this validator's key has voted for, to take to another machine."""
    secrets = read_secrets(directory / KEYS, get_password(password_file, is_new=False))
    votes = export_votes(directory, secrets, file, retire=retire)
    answer(describe_votes(votes) | {"retired": retire}, as_json)


@keys_app.command("import-votes")
def import_(
    directory: Directory,
    file: VotesFile,
    password_file: PasswordFile = None,
    as_json: AsJson = False,
) -> None:
    """Take over what the same key has voted for on another machine; only ever forbids more."""
    secrets = read_secrets(directory / KEYS, get_password(password_file, is_new=False))
    answer(describe_votes(import_votes(directory, secrets, file)), as_json)


def describe_votes(votes: Votes) -> dict[str, object]:
    """What a file of votes holds."""
    epoch, view = votes.floor
    return {
        "bls_key": encode_hex(votes.bls_key),
        "genesis_hash": encode_hex(votes.genesis_hash),
        "floor": f"epoch {epoch}, view {view}",
        "statements": len(votes.statements),
    }


def make_genesis(
    entries: Annotated[list[Path], typer.Argument(help="Every validator's entry.json.")],
    out: Annotated[Path, typer.Option(help="Where the document goes.")] = Path("genesis.json"),
    fund: Funds = None,
    chain_id: ChainId = 7700,
    name: ChainName = "steelyard",
    balance: Balance = "100",
    heartbeat: Heartbeat = 5,
    timeout: Timeout = 10,
    gas_limit: GasLimit = DEFAULT_GAS_LIMIT,
    retention_days: RetentionDays = 30,
    epoch_blocks: EpochBlocks = DEFAULT_EPOCH_BLOCKS,
    issuance: Issuance = "0",
    unbonding_days: UnbondingDays = 14,
    min_stake: MinStake = "1",
    as_json: AsJson = False,
) -> None:
    """Make the genesis document of a new chain from its validators' entries."""
    foundation = read_choices(
        chain_id=chain_id,
        name=name,
        balance=balance,
        fund=fund,
        heartbeat=heartbeat,
        timeout=timeout,
        gas_limit=gas_limit,
        retention_days=retention_days,
        epoch_blocks=epoch_blocks,
        issuance=issuance,
        unbonding_days=unbonding_days,
        min_stake=min_stake,
    )
    genesis = create_shared_document(foundation, [read_entry(path) for path in entries])
    chain_hash = compute_chain_hash(genesis)
    try:
        write_new(out, encode_genesis(genesis))
    except FileExistsError:
        raise SteelyardError("data_exists", f"{out} exists; name another file") from None
    except OSError as error:
        raise SteelyardError("file_write", f"{out}: {error.strerror}") from None
    facts: dict[str, object] = {"document": str(out), "chain_id": str(chain_id)}
    if not as_json:
        for place, one in enumerate(genesis.validators):
            facts[f"validator {place}"] = f"{encode_hex(one.address)} {one.endpoint}"
    answer(facts | {"genesis_hash": chain_hash}, as_json)
    if not as_json:
        typer.echo(
            "Send the document to every operator; each compares genesis_hash with the others, "
            "over another channel, before starting. Tell them some HTTP addresses, too, for "
            "steelyard node init DIR --genesis genesis.json --follow http://HOST:PORT: whoever is "
            "jailed while it is down learns so from there."
        )


def compute_chain_hash(genesis: Genesis) -> str:
    """The hash of block 0, which a node shows as `genesis_hash`. Raises InvalidGenesis."""
    return encode_hex(build_genesis(genesis).block.hash)


def read_document(path: Path) -> bytes:
    """A genesis document. Raises SteelyardError genesis_missing."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SteelyardError(
            "genesis_missing", f"{path}: {error.strerror}; name the chain's document"
        ) from None

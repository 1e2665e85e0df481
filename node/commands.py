"""`steelyard node …`: make a data directory, run a validator, ask how it is, show its keys.

Exit codes: 0 yes, 1 no, 2 could not tell. Faults go to stderr and say what to do next.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import httpx
import typer

from steelyard import __version__
from steelyard.chain.errors import SteelyardError
from steelyard.chain.genesis import DEFAULT_GAS_LIMIT, Genesis

from .ceremony_commands import compute_chain_hash, keys_app, make_genesis, read_document
from .clock import Clock
from .config import CONFIG_FILE, NodeConfig, load_config
from .directory import KEYS, parse_document
from .following.starting import begin_at_checkpoint, check_start, set_sources
from .founding import (
    DEFAULT_EPOCH_BLOCKS,
    init_directory,
    is_validator,
    set_address,
)
from .keyfiles import Secrets, describe_keys, read_secrets
from .logs import configure_logs, log_event
from .options import (
    NO,
    YES,
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
    Url,
    answer,
    explain_silence,
    find_url,
    get_password,
    new_app,
    read_choices,
)
from .pruning import KEPT_STATES, prune_directory
from .staking_commands import add_commands
from .store import CorruptData

STATUS_SECONDS = 5.0
FOLLOW_HINT = (
    "Set [follow] nodes in {config} to the HTTP addresses of two or three others, none of which is "
    "trusted: if this validator is down for so long that it is jailed, the others no longer talk "
    "to it, and only through these it learns so and comes back."
)

app = new_app("Run a validator.")
app.add_typer(keys_app, name="keys")

Host = Annotated[str | None, typer.Option(help="Address to listen on; default from config.toml.")]
Document = Annotated[
    Path | None,
    typer.Option("--genesis", help="Use this document instead of starting a new chain."),
]
KeysFrom = Annotated[
    Path | None,
    typer.Option("--keys", help="Copy the key files of this directory; else new ones."),
]
Follow = Annotated[
    list[str] | None,
    typer.Option(
        help="Follow the chain from this node, http://HOST:PORT; repeatable. The keys need not be "
        "in the document."
    ),
]
Checkpoint = Annotated[
    str | None, typer.Option(help="HEIGHT:0xHASH to begin at, from whom you trust.")
]
TrustGenesis = Annotated[
    bool, typer.Option("--trust-genesis", help="Follow from a genesis of long ago.")
]
Stake = Annotated[str, typer.Option(help="Coins that the validator has at stake.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; 0 takes any free one.")]


@app.command()
def init(
    directory: Directory,
    fund: Funds = None,
    genesis: Document = None,
    keys_from: KeysFrom = None,
    follow: Follow = None,
    checkpoint: Checkpoint = None,
    trust_genesis: TrustGenesis = False,
    chain_id: ChainId = 7700,
    name: ChainName = "steelyard",
    stake: Stake = "32",
    balance: Balance = "100",
    heartbeat: Heartbeat = 5,
    timeout: Timeout = 10,
    gas_limit: GasLimit = DEFAULT_GAS_LIMIT,
    retention_days: RetentionDays = 30,
    epoch_blocks: EpochBlocks = DEFAULT_EPOCH_BLOCKS,
    issuance: Issuance = "0",
    unbonding_days: UnbondingDays = 14,
    min_stake: MinStake = "1",
    host: Host = None,
    port: Port = None,
    password_file: PasswordFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a data directory: encrypted keys, settings, and a genesis with this one validator.

    Or the document of a chain (--genesis), with the keys that `keys new` made there.
    """
    config = set_address(NodeConfig(), host, port)
    config = set_sources(config, follow or (), checkpoint, trust_genesis=trust_genesis)
    if follow and genesis is None:
        raise SteelyardError(
            "genesis_missing", "--follow joins a chain: name its document, --genesis FILE"
        )
    plan = (
        read_document(genesis)
        if genesis is not None
        else read_choices(
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
            stake=stake,
        )
    )
    if isinstance(plan, bytes):
        assert genesis is not None, "the plan is this file's"
        check_start(parse_document(plan, genesis), config, Clock())
    has_keys = keys_from is not None or (directory / KEYS).exists()
    password = get_password(password_file, is_new=not has_keys)
    document, secrets = init_directory(
        directory, password, plan, config, keys=keys_from, is_joining=bool(follow)
    )
    show_directory(directory, document, secrets, as_json, is_following=bool(follow))


def show_directory(
    directory: Path, document: Genesis, secrets: Secrets, as_json: bool, *, is_following: bool
) -> None:
    """What was made, and what to do next."""
    facts = {
        "directory": str(directory),
        "chain_id": str(document.chain_id),
        "genesis_hash": compute_chain_hash(document),
    }
    answer(facts | describe_keys(directory / KEYS), as_json)
    if as_json:
        return
    if is_validator(secrets, document):
        if len(document.validators) > 1 and not is_following:
            typer.echo(FOLLOW_HINT.format(config=directory / CONFIG_FILE))
        typer.echo(f"Back up {directory / KEYS}, then start it: steelyard node run {directory}")
    else:
        typer.echo(
            "These keys are of no validator in the document: this node follows the chain from the "
            "nodes in [follow] of config.toml (--follow URL) and votes once they have a stake. "
            f"Start it: steelyard node run {directory}. To run a validator of the document, "
            f"replace {directory / KEYS} by its keys/, or run this with --keys DIR."
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
    config = set_address(load_config(directory), host, port)
    secrets = read_secrets(directory / KEYS, get_password(password_file, is_new=False))
    configure_logs(log)
    log_event(
        "node_starting",
        version=__version__,
        doing="loading the kernels; the first start of an installation compiles them",
    )
    from .service import run_service  # late: it loads them, and says nothing meanwhile

    try:
        begin_at_checkpoint(directory, config, lambda text: typer.echo(text, err=True))
        run_service(directory, secrets, config, lambda url: typer.echo(f"listening on {url}"))
    except CorruptData as error:
        raise SteelyardError(error.code, error.message) from error


@app.command()
def prune(
    directory: Directory,
    keep: Annotated[
        int, typer.Option(help="States of the last so many blocks stay; blocks all stay.")
    ] = KEPT_STATES,
    as_json: AsJson = False,
) -> None:
    """Let go of old states of a stopped node, to free disk."""
    try:
        pruned = prune_directory(directory, keep, lambda text: typer.echo(text, err=True))
    except CorruptData as error:
        raise SteelyardError(error.code, error.message) from error
    answer(dataclasses.asdict(pruned), as_json)


@app.command()
def status(
    directory: Annotated[
        Path | None, typer.Argument(help="Data directory of a node on this machine.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Ask a running node how it is: 0 healthy, 1 it needs you, 2 no answer."""
    base = find_url(directory, url)
    try:
        reply = httpx.get(f"{base}/health", timeout=STATUS_SECONDS)
        facts = reply.json()
    except (httpx.HTTPError, ValueError) as error:
        raise SteelyardError("node_unreachable", explain_silence(base, error)) from None
    if not isinstance(facts, dict):
        raise SteelyardError("node_unreachable", f"{base} answers, and is no node of ours")
    alarms = [] if as_json else facts.pop("alarms", [])
    if not as_json and isinstance(facts.get("network"), dict):
        facts["network"] = drop_zeros(facts["network"])
    if alarms:  # they name what these two would, and "alarm none" above them would mislead
        facts = {name: fact for name, fact in facts.items() if not name.startswith("alarm")}
    answer(facts, as_json)
    for alarm in alarms:
        typer.echo(f"ALARM {alarm['code']}: {alarm['message']}")
    raise typer.Exit(YES if reply.status_code == httpx.codes.OK else NO)


def drop_zeros(counts: dict[str, object]) -> dict[str, object]:
    """What a person wants to see of counters, which may be in groups."""
    shown = {
        name: drop_zeros(count) if isinstance(count, dict) else count
        for name, count in counts.items()
    }
    return {name: count for name, count in shown.items() if count}


app.command("genesis")(make_genesis)
add_commands(app)

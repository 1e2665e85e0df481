"""`steelyard node standing|deposit|exit|unjail|withdraw|move`: a validator and its stake.

Each signs with the validator's account key and sends through a node: the one that runs on DIR, or
--url. What they call is described in docs/staking.md.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from eth_utils.address import to_canonical_address

from steelyard.chain.errors import SteelyardError
from steelyard.chain.genesis import GenesisValidator
from steelyard.chain.types import Address

from .alarms import State
from .ceremony_commands import compute_chain_hash
from .directory import KEYS, read_genesis
from .entries import ENTRY_FILE, check_reachable, make_entry, parse_address, read_entry
from .founding import WEI_PER_COIN, parse_amount
from .keyfiles import Secrets, describe_keys, read_secrets
from .options import NO, YES, AsJson, Directory, PasswordFile, Url, answer, find_url, get_password
from .sent import SendingUnclear, SentFile
from .staking import StakingAccount, StakingView, Validator, show_time

Stake = Annotated[str, typer.Option(help="Coins to put at stake, or to add to the stake.")]
EndpointOption = Annotated[
    str | None, typer.Option(help="HOST:PORT where the others reach it; default from entry.json.")
]


def open_account(
    directory: Path, url: str | None, password_file: Path | None
) -> tuple[StakingAccount, Secrets]:
    """The validator's account, and the node to go through, on the chain of its document."""
    node = find_url(directory, url)
    genesis = read_genesis(directory)
    secrets = read_secrets(directory / KEYS, get_password(password_file, is_new=False))
    chain_hash = compute_chain_hash(genesis)
    sent = SentFile(directory, secrets.address, chain_hash)
    account = StakingAccount(node, secrets.account, genesis.chain_id, chain_hash, sent)
    account.check_chain()
    return account, secrets


def open_view(directory: Path, url: str | None) -> StakingView:
    """The same to look at: the address stands in the key file, which needs no password for it."""
    node = find_url(directory, url)
    chain_hash = compute_chain_hash(read_genesis(directory))
    address = Address(to_canonical_address(describe_keys(directory / KEYS)["address"]))
    account = StakingView(node, address, chain_hash)
    account.check_chain()
    return account


def standing(directory: Directory, url: Url = None, as_json: AsJson = False) -> None:
    """Show where this validator stands in Staking: 0 active, 1 not. Needs no password."""
    account = open_view(directory, url)
    found = account.read()
    report(account, found, None, as_json)
    raise typer.Exit(YES if found.state == State.ACTIVE else NO)


def deposit(
    directory: Directory,
    stake: Stake,
    endpoint: EndpointOption = None,
    fee_recipient: Annotated[
        str | None, typer.Option(help="Account that gets the fees; default from entry.json.")
    ] = None,
    url: Url = None,
    password_file: PasswordFile = None,
    as_json: AsJson = False,
) -> None:
    """Become a validator from the next epoch on, or add to the stake of one.

    Run again after a failure: it is put in once. Once it has said so, the same command adds more.
    """
    account, secrets = open_account(directory, url, password_file)
    amount = parse_amount(stake)
    with account.hold():
        sent = find_earlier(account, amount)
        if sent is None and account.read().state == State.NOBODY:
            recipient = None if fee_recipient is None else parse_address(fee_recipient)
            sent = account.deposit(choose_entry(directory, secrets, amount, endpoint, recipient))
        elif sent is None:
            sent = account.add_stake(amount)
        if account.read().state == State.WAITING:
            sent = enter(account, sent, amount)
        report(account, account.read(), sent, as_json)
        account.forget()


def find_earlier(account: StakingAccount, amount: int) -> str | None:
    """The transaction of an earlier run that put in as much and was killed before it said so."""
    try:
        earlier = account.settle()
    except SendingUnclear as error:
        typer.echo(error.message, err=True)  # before it is forgotten: a kill may come next
        account.forget()
        raise
    if earlier is None:
        return None
    coins, name = show_coins(earlier.value, as_json=False), "0x" + earlier.hash.hex()
    typer.echo(f"an earlier run put in {coins} coins: {name}", err=True)
    if earlier.value == amount:
        return name
    account.forget()
    return None


def enter(account: StakingAccount, put_in: str, amount: int) -> str:
    """Take a place again. If it is refused, the coins are in all the same, and that is said."""
    try:
        return account.act("enter")
    except SteelyardError as error:
        if error.code == "reverted":
            coins = show_coins(amount, as_json=False)
            typer.echo(f"{coins} coins were put in: {put_in}", err=True)
            account.forget()
        raise


def choose_entry(
    directory: Path,
    secrets: Secrets,
    stake: int,
    endpoint: str | None,
    fee_recipient: Address | None,
) -> GenesisValidator:
    """The entry beside the keys, with what was given instead. Raises SteelyardError."""
    path = directory / ENTRY_FILE
    entry = read_entry(path) if path.exists() else None
    if entry is not None and entry.address != secrets.address:
        raise SteelyardError("entry_differs", f"{path} is of other keys than {directory / KEYS}")
    if endpoint is None and entry is None:
        raise SteelyardError("entry_endpoint", f"there is no {path}: give --endpoint HOST:PORT")
    place = endpoint if endpoint is not None or entry is None else entry.endpoint
    assert place is not None
    if fee_recipient is None and entry is not None:
        fee_recipient = entry.fee_recipient
    return make_entry(secrets, place, stake, fee_recipient)


def move(
    directory: Directory,
    endpoint: Annotated[str, typer.Option(help="HOST:PORT where the others will reach it.")],
    url: Url = None,
    password_file: PasswordFile = None,
    as_json: AsJson = False,
) -> None:
    """Be found at another endpoint from the next epoch on."""
    check_reachable(endpoint)
    account, _ = open_account(directory, url, password_file)
    sent = account.move(endpoint)
    report(account, account.read(), sent, as_json)


def create_command(call: str, summary: str) -> Any:
    """A command that makes one call without arguments."""

    def command(
        directory: Directory,
        url: Url = None,
        password_file: PasswordFile = None,
        as_json: AsJson = False,
    ) -> None:
        account, _ = open_account(directory, url, password_file)
        sent = account.act(call)
        report(account, account.read(), sent, as_json)

    command.__doc__ = summary
    return command


def report(account: StakingView, found: Validator, sent: str | None, as_json: bool) -> None:
    """What Staking says now."""
    facts: dict[str, object] = {
        "address": "0x" + account.address.hex(),
        "state": found.state.name.lower(),
        "stake": show_coins(found.stake, as_json),
        "balance": show_coins(account.get_balance(), as_json),
        "endpoint": found.endpoint or None,
        "banned": found.is_banned,
        "unlocks_at": show_time(found.unlocks_at) if found.state == State.LEAVING else None,
    }
    answer(facts if sent is None else {"transaction": sent, **facts}, as_json)


def show_coins(wei: int, as_json: bool) -> str:
    """Wei for programs, coins for people; exact."""
    if as_json:
        return str(wei)
    whole, rest = divmod(wei, WEI_PER_COIN)
    return f"{whole}.{rest:018}".rstrip("0").rstrip(".")


def add_commands(app: typer.Typer) -> None:
    """Put them beside the other commands of `steelyard node`."""
    app.command("standing")(standing)
    app.command("deposit")(deposit)
    app.command("move")(move)
    for name, call, summary in (
        ("exit", "request_exit", "Leave from the next epoch on; the stake waits, then `withdraw`."),
        ("unjail", "unjail", "Take a place again after being jailed."),
        ("withdraw", "withdraw", "Have the stake paid out, once it has waited."),
    ):
        app.command(name)(create_command(call, summary))

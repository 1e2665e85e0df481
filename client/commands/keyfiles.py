"""`steelyard keys`: encrypted key files, and the coins of their accounts."""

import os
from pathlib import Path
from typing import Annotated

import typer

from steelyard.chain.types import Address

from ..amounts import coins, format_coins
from ..keys import choose_password, create_key, format_address, load_key, read_key_address
from ..registered import parse_account
from ..sending import get_balance
from .options import (
    KEY,
    STATE,
    YES,
    Json,
    Key,
    Nodes,
    PasswordFile,
    State,
    leave,
    new_app,
    open_account,
    open_nodes,
    tell,
)

app = new_app("Make and show encrypted key files; see and send the coins of their accounts.")
KeyPath = Annotated[Path, typer.Argument(metavar="FILE")]
Holder = Annotated[str, typer.Argument(metavar="ADDRESS|FILE", help="an account, or its key file")]
Coins = Annotated[str, typer.Argument(metavar="COINS", help="decimal coins")]


@app.command("new")
def make(path: KeyPath, password_file: PasswordFile = None, json: Json = False) -> None:
    """Make a new key, encrypted with a password. Keys are never overwritten."""
    address = create_key(path, choose_password(path, password_file))
    tell({"path": path, "address": address}, f"{format_address(address)}  {path}", json)
    leave(YES)


@app.command()
def show(path: KeyPath, json: Json = False) -> None:
    """Show a key file's address; needs no password."""
    address = read_key_address(path)
    tell({"path": path, "address": address}, format_address(address), json)
    leave(YES)


@app.command()
def check(path: KeyPath, password_file: PasswordFile = None, json: Json = False) -> None:
    """Check that the password opens the key."""
    signer = load_key(path, password_file=password_file)
    tell({"path": path, "address": signer.address}, f"{signer.address} opens", json)
    leave(YES)


@app.command()
def balance(holder: Holder, node: Nodes = None, json: Json = False) -> None:
    """Show how many coins an account has; needs no password. 0 coins are an answer, too."""
    who = parse_holder(holder)
    amount = get_balance(open_nodes(node), who)
    text = f"{format_coins(amount)} coins on {format_address(who)}"
    tell({"address": who, "balance": str(amount)}, text, json)
    leave(YES)


@app.command()
def send(
    to: Holder,
    amount: Coins,
    node: Nodes = None,
    key: Key = KEY,
    password_file: PasswordFile = None,
    state: State = STATE,
    json: Json = False,
) -> None:
    """Send coins to an account. Run again after a failure: they are sent once.

    Once it has said that they were sent, the same command sends as many again.
    """
    receiver, wei = parse_holder(to), coins(amount)
    with open_account(node, key, password_file, state) as account, account.telling():
        done = account.send_coins(receiver, wei)
        document = {
            "to": done.to,
            "amount": str(done.amount),
            "hash": done.hash,
            "height": done.height,
            "fee": str(done.fee),
            "left": str(done.left),
        }
        text = (
            f"sent {format_coins(done.amount)} coins to {format_address(done.to)}\n"
            f"in block {done.height}, transaction 0x{done.hash.hex()}, "
            f"for {format_coins(done.fee)} coins; {format_coins(done.left)} are left"
        )
        tell(document, text, json)
    leave(YES)


def parse_holder(text: str) -> Address:
    """Return the account that an address or a key file names. Raises ClientError, InvalidKey."""
    return read_key_address(Path(text)) if os.path.isfile(text) else parse_account(text)

"""`steelyard keys`: encrypted key files."""

from pathlib import Path
from typing import Annotated

import typer

from ..keys import choose_password, create_key, format_address, load_key, read_key_address
from .options import YES, Json, PasswordFile, leave, new_app, tell

app = new_app("Make and show encrypted key files.")
KeyPath = Annotated[Path, typer.Argument(metavar="FILE")]


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

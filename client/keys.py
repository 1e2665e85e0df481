"""Encrypted key files: Web3 Secret Storage (keystore version 3), as wallets and geth read them.

The password comes from STEELYARD_PASSWORD, from a file, or from a prompt: never from a command
line, where other users of the machine could read it.
"""

import getpass
import json
import os
import sys
from pathlib import Path
from typing import Any, Final

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from steelyard.chain.errors import InvalidKey
from steelyard.chain.types import Address

PASSWORD_VARIABLE: Final = "STEELYARD_PASSWORD"  # noqa: S105 - a name, not a password
MAX_KEY_FILE_BYTES: Final = 65_536
MIN_PASSWORD_CHARACTERS: Final = 8
SCRYPT_N: Final = 2**18
"""A second of work and 256 MB for each guess at a password that a person chose."""


def get_password(path: Path, password_file: Path | None = None) -> str:
    """Return the password of the key file `path`. Raises InvalidKey `key_password`."""
    if password_file is not None:
        try:
            return password_file.read_text("utf-8").rstrip("\r\n")
        except OSError as error:
            raise InvalidKey("key_password", f"cannot read the password file: {error}") from None
    if (password := os.environ.get(PASSWORD_VARIABLE)) is not None:
        return password
    if not sys.stdin.isatty():
        raise InvalidKey(
            "key_password",
            f"no password for {path}: set {PASSWORD_VARIABLE} or give a password file",
        )
    return getpass.getpass(f"password of {path}: ")


def choose_password(path: Path, password_file: Path | None = None) -> str:
    """Return the password for a new key file; typed twice, because nobody can recover it.

    Raises InvalidKey `key_password`.
    """
    password = get_password(path, password_file)
    is_typed = password_file is None and PASSWORD_VARIABLE not in os.environ
    if is_typed and getpass.getpass("once more: ") != password:
        raise InvalidKey("key_password", "the two passwords differ; run again")
    return password


def create_key(
    path: Path, password: str, private_key: bytes | None = None, *, scrypt_n: int = SCRYPT_N
) -> Address:
    """Write a new encrypted key file, readable by its owner only, and return its address.

    A smaller `scrypt_n`, a power of two, is for random passwords, which nobody can guess.
    Raises: InvalidKey `key_exists`, `key_password` (too short), `key_file` (cannot write).
    """
    if len(password) < MIN_PASSWORD_CHARACTERS:
        raise InvalidKey(
            "key_password", f"choose a password of at least {MIN_PASSWORD_CHARACTERS} characters"
        )
    account = Account.create() if private_key is None else Account.from_key(private_key)
    keystore = Account.encrypt(account.key, password, kdf="scrypt", iterations=scrypt_n)
    text = json.dumps(keystore, sort_keys=True, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except FileExistsError:
        raise InvalidKey("key_exists", f"{path} exists; keys are never overwritten") from None
    except OSError as error:
        raise InvalidKey("key_file", f"cannot write {path}: {error}") from None
    return Address(bytes.fromhex(account.address[2:]))


def read_keystore(path: Path) -> dict[str, Any]:
    """Return what is in a key file, still encrypted. Raises InvalidKey `key_file`."""
    try:
        if path.stat().st_size > MAX_KEY_FILE_BYTES:
            raise InvalidKey("key_file", f"{path} is too large to be a key file")
        keystore = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InvalidKey(
            "key_file", f"{path} does not exist; make one with `steelyard keys new {path}`"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidKey("key_file", f"{path} is not a key file: {error}") from None
    if not isinstance(keystore, dict):
        raise InvalidKey("key_file", f"{path} is not a key file: it holds no JSON object")
    return keystore


def load_key(
    path: Path, password: str | None = None, *, password_file: Path | None = None
) -> LocalAccount:
    """Decrypt a key file. Raises InvalidKey `key_file`, `key_password`."""
    keystore = read_keystore(path)
    if keystore.get("version") != 3:
        raise InvalidKey("key_file", f"{path} is not a version 3 keystore")
    if password is None:
        password = get_password(path, password_file)
    try:
        secret = Account.decrypt(keystore, password)
    except ValueError:
        raise InvalidKey("key_password", f"wrong password for {path}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidKey("key_file", f"{path} is damaged: {error!r}") from None
    account: LocalAccount = Account.from_key(secret)
    stated = str(keystore.get("address", "")).lower().removeprefix("0x")
    if stated and stated != account.address[2:].lower():
        raise InvalidKey("key_file", f"{path} states another address than its key has")
    return account


def format_address(address: bytes) -> str:
    """Return an address as wallets and web3.py take it, with the checksum of EIP-55."""
    return str(to_checksum_address(address))


def read_key_address(path: Path) -> Address:
    """Return the address that a key file states, without its password. Raises InvalidKey."""
    try:
        address = bytes.fromhex(str(read_keystore(path).get("address")).removeprefix("0x"))
    except ValueError:
        address = b""
    if len(address) != 20:
        raise InvalidKey("key_file", f"{path} does not state an address")
    return Address(address)

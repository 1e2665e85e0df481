"""The validator's three secrets, each in its own encrypted file under `keys/`.

`account.json` (Ethereum keystore V3) pays for the keeper's transactions and names the validator;
`voting.json` (EIP-2335, BLS12-381) signs votes; `network.json` (the same form, X25519) will
encrypt connections between validators. One password opens all three.
"""

import hashlib
import json
import os
import secrets
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from Crypto.Cipher import AES
from Crypto.PublicKey import ECC
from eth_keyfile.keyfile import create_keyfile_json, decode_keyfile_json
from eth_keys.datatypes import PrivateKey
from eth_utils.address import to_checksum_address
from eth_utils.conversions import to_hex

from steelyard.chain.bls import (
    SecretKey,
    compute_public_key,
    decode_secret_key,
    derive_secret_key,
    encode_secret_key,
)
from steelyard.chain.errors import InvalidKey
from steelyard.chain.types import Address

ACCOUNT, VOTING, NETWORK = "account.json", "voting.json", "network.json"
SCRYPT_N = 2**17
"""OWASP's floor: 128 MiB and about a third of a second."""
SCRYPT_R, SCRYPT_P, KEY_BYTES = 8, 1, 32


@dataclass(frozen=True, slots=True)
class Secrets:
    """What a validator must never show."""

    account: PrivateKey
    voting: SecretKey
    network: bytes

    @property
    def address(self) -> Address:
        return Address(self.account.public_key.to_canonical_address())

    def __repr__(self) -> str:
        return f"Secrets(0x{self.address.hex()})"


def create_secrets() -> Secrets:
    """Fresh keys from the system's random source."""
    account = PrivateKey(secrets.token_bytes(32))
    return Secrets(account, derive_secret_key(secrets.token_bytes(32)), secrets.token_bytes(32))


def compute_network_key(secret: bytes) -> bytes:
    """The X25519 public key, 32 bytes, as CURVE uses it."""
    key = ECC.construct(curve="Curve25519", seed=secret)  # type: ignore[arg-type]
    return bytes(key.public_key().export_key(format="raw"))


def write_secrets(directory: Path, keys: Secrets, password: str, scrypt_n: int = SCRYPT_N) -> None:
    """Encrypt and write the three files, readable by their owner only. Raises FileExistsError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    account = create_keyfile_json(
        keys.account.to_bytes(), password, kdf="scrypt", iterations=scrypt_n
    )
    voting = encrypt_key(
        encode_secret_key(keys.voting),
        compute_public_key(keys.voting),
        password,
        "BLS12-381 voting key",
        scrypt_n,
    )
    network = encrypt_key(
        keys.network, compute_network_key(keys.network), password, "X25519 network key", scrypt_n
    )
    for name, document in ((ACCOUNT, account), (VOTING, voting), (NETWORK, network)):
        write_key_file(directory / name, json.dumps(document, indent=1).encode())


def copy_secrets(source: Path, directory: Path) -> None:
    """Copy the three files as they are, still encrypted. Raises FileExistsError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in (ACCOUNT, VOTING, NETWORK):
        write_key_file(directory / name, (source / name).read_bytes())


def write_key_file(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def encrypt_key(
    secret: bytes, public: bytes, password: str, description: str, scrypt_n: int
) -> dict[str, Any]:
    """An EIP-2335 document (version 4)."""
    salt = secrets.token_bytes(32)
    derived = hashlib.scrypt(
        password.encode(),
        salt=salt,
        n=scrypt_n,
        r=SCRYPT_R,
        p=SCRYPT_P,
        dklen=KEY_BYTES,
        maxmem=256 * scrypt_n * SCRYPT_R,
    )
    iv = secrets.token_bytes(16)
    cipher = AES.new(derived[:16], AES.MODE_CTR, nonce=b"", initial_value=iv)
    message = cipher.encrypt(secret)
    return {
        "version": 4,
        "uuid": str(uuid.uuid4()),
        "path": "",
        "description": description,
        "pubkey": public.hex(),
        "crypto": {
            "kdf": {
                "function": "scrypt",
                "params": {
                    "dklen": KEY_BYTES,
                    "n": scrypt_n,
                    "r": SCRYPT_R,
                    "p": SCRYPT_P,
                    "salt": salt.hex(),
                },
                "message": "",
            },
            "checksum": {
                "function": "sha256",
                "params": {},
                "message": hashlib.sha256(derived[16:32] + message).hexdigest(),
            },
            "cipher": {
                "function": "aes-128-ctr",
                "params": {"iv": iv.hex()},
                "message": message.hex(),
            },
        },
    }


def read_secrets(directory: Path, password: str) -> Secrets:
    """Decrypt the three files. Raises InvalidKey key_missing, key_password, key_malformed."""
    account = decrypt_file(directory / ACCOUNT, password)
    voting = decrypt_file(directory / VOTING, password)
    network = decrypt_file(directory / NETWORK, password)
    return Secrets(PrivateKey(account), decode_secret_key(voting), network)


def decrypt_file(path: Path, password: str) -> bytes:
    document = read_key_document(path)
    try:
        secret = bytes(decode_keyfile_json(document, password))
    except ValueError as error:
        if "mismatch" in str(error):
            raise InvalidKey("key_password", f"the password does not open {path}") from None
        raise InvalidKey("key_malformed", f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError, NotImplementedError) as error:
        raise InvalidKey("key_malformed", f"{path} is not a keystore: {error!r}") from None
    if len(secret) != KEY_BYTES:
        raise InvalidKey("key_malformed", f"{path} does not hold {KEY_BYTES} bytes")
    return secret


def read_key_document(path: Path) -> dict[str, Any]:
    """The JSON of a key file; its public parts need no password."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidKey(
            "key_missing", f"{path} does not exist; restore it from your backup of keys/"
        ) from None
    except ValueError as error:
        raise InvalidKey("key_malformed", f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidKey("key_malformed", f"{path} is not a JSON object")
    return document


def describe_keys(directory: Path) -> dict[str, str]:
    """Address and public keys, which need no password. Raises InvalidKey."""
    documents = {name: read_key_document(directory / name) for name in (ACCOUNT, VOTING, NETWORK)}
    try:
        return {
            "address": to_checksum_address(documents[ACCOUNT]["address"]),
            "bls_key": to_hex(hexstr=documents[VOTING]["pubkey"]),
            "network_key": to_hex(hexstr=documents[NETWORK]["pubkey"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidKey("key_malformed", f"{directory}: a field lacks: {error!r}") from None

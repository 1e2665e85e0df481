"""Key files: encrypted, owner-only, readable by other tools, and every fault is named."""

import json
import stat
from pathlib import Path

import pytest
from eth_account import Account
from eth_utils.address import to_checksum_address

from steelyard.chain.bls import compute_public_key
from steelyard.chain.errors import InvalidKey
from steelyard.node.keyfiles import (
    ACCOUNT,
    NETWORK,
    VOTING,
    compute_network_key,
    create_secrets,
    describe_keys,
    read_secrets,
    write_secrets,
)

from .world import SECRETS

LIGHT = 2**10
PASSWORD = "correct horse"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    write_secrets(tmp_path / "keys", SECRETS, PASSWORD, LIGHT)
    return tmp_path / "keys"


def test_secrets_are_read_back(keys: Path) -> None:
    assert read_secrets(keys, PASSWORD) == SECRETS


def test_files_are_for_their_owner_only(keys: Path) -> None:
    for name in (ACCOUNT, VOTING, NETWORK):
        assert stat.S_IMODE((keys / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700


def test_wallets_open_the_account(keys: Path) -> None:
    secret = Account.decrypt((keys / ACCOUNT).read_text(), PASSWORD)
    assert bytes(secret) == SECRETS.account.to_bytes()


def test_public_parts_need_no_password(keys: Path) -> None:
    assert describe_keys(keys) == {
        "address": to_checksum_address(SECRETS.address),
        "bls_key": "0x" + compute_public_key(SECRETS.voting).hex(),
        "network_key": "0x" + compute_network_key(SECRETS.network).hex(),
    }


def test_keys_are_never_overwritten(keys: Path) -> None:
    with pytest.raises(FileExistsError):
        write_secrets(keys, create_secrets(), PASSWORD, LIGHT)
    assert read_secrets(keys, PASSWORD) == SECRETS


def test_fresh_keys_differ() -> None:
    assert create_secrets() != create_secrets()


def test_secrets_do_not_show_in_text() -> None:
    assert SECRETS.account.to_hex()[2:] not in f"{SECRETS!r}{SECRETS}"


@pytest.mark.parametrize("name", [ACCOUNT, VOTING, NETWORK])
def test_a_missing_file_is_named(keys: Path, name: str) -> None:
    (keys / name).unlink()
    with pytest.raises(InvalidKey, match=name) as caught:
        read_secrets(keys, PASSWORD)
    assert caught.value.code == "key_missing"


def test_a_wrong_password_is_told_apart(keys: Path) -> None:
    with pytest.raises(InvalidKey) as caught:
        read_secrets(keys, "wrong")
    assert caught.value.code == "key_password"


@pytest.mark.parametrize("name", [ACCOUNT, VOTING, NETWORK])
def test_an_altered_secret_is_refused(keys: Path, name: str) -> None:
    document = json.loads((keys / name).read_text())
    crypto = document["crypto"]
    holder, key = (crypto, "ciphertext") if name == ACCOUNT else (crypto["cipher"], "message")
    holder[key] = ("0" if holder[key][0] != "0" else "1") + holder[key][1:]
    (keys / name).write_text(json.dumps(document))
    with pytest.raises(InvalidKey) as caught:
        read_secrets(keys, PASSWORD)
    assert caught.value.code == "key_password"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 9}', '{"version": 3, "crypto": 1}'])
def test_what_is_no_keystore_is_refused(keys: Path, text: str) -> None:
    (keys / VOTING).write_text(text)
    with pytest.raises(InvalidKey) as caught:
        read_secrets(keys, PASSWORD)
    assert caught.value.code == "key_malformed"
    with pytest.raises(InvalidKey) as caught:
        describe_keys(keys)
    assert caught.value.code == "key_malformed"

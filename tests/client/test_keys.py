"""Key files: encrypted, private, never overwritten; every mistake has its code."""

import io
import json
import os
import stat
from pathlib import Path

import pytest
from eth_account import Account

from steelyard.chain.errors import InvalidKey
from steelyard.client import keys
from steelyard.client.keys import (
    choose_password,
    create_key,
    get_password,
    load_key,
    read_key_address,
)

PASSWORD = "correct horse"
SECRET = b"\x11" * 32
QUICK = 2**12


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "site.key"
    create_key(path, PASSWORD, SECRET, scrypt_n=QUICK)
    return path


def test_a_key_comes_back_with_its_password(key_file: Path) -> None:
    signer = load_key(key_file, PASSWORD)
    assert signer.key == SECRET
    assert bytes.fromhex(signer.address[2:]) == read_key_address(key_file)


def test_wallets_can_read_the_file(key_file: Path) -> None:
    assert Account.decrypt(json.loads(key_file.read_text()), PASSWORD) == SECRET


@pytest.mark.slow
def test_guessing_a_password_takes_much_work_unless_less_is_asked_for(
    key_file: Path, tmp_path: Path
) -> None:
    create_key(tmp_path / "site.key", PASSWORD)
    made = [json.loads(path.read_text())["crypto"] for path in (tmp_path / "site.key", key_file)]
    assert [one["kdf"] for one in made] == ["scrypt"] * 2
    assert [one["kdfparams"]["n"] for one in made] == [2**18, QUICK]


def test_only_the_owner_can_read_the_file(key_file: Path) -> None:
    assert stat.S_IMODE(os.stat(key_file).st_mode) == 0o600
    assert SECRET.hex() not in key_file.read_text()


def test_a_key_is_never_overwritten(key_file: Path) -> None:
    before = key_file.read_bytes()
    with pytest.raises(InvalidKey) as caught:
        create_key(key_file, PASSWORD, scrypt_n=QUICK)
    assert caught.value.code == "key_exists"
    assert key_file.read_bytes() == before


def test_a_wrong_password_is_told_from_a_damaged_file(key_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidKey) as caught:
        load_key(key_file, "wrong password")
    assert caught.value.code == "key_password"
    for content in ("", "[]", "{}", '{"version": 3}', '{"version": 3, "crypto": 5}', "\x00"):
        damaged = tmp_path / "damaged.key"
        damaged.write_text(content)
        with pytest.raises(InvalidKey) as caught:
            load_key(damaged, PASSWORD)
        assert caught.value.code == "key_file"


def test_a_missing_key_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidKey, match="steelyard keys new") as caught:
        load_key(tmp_path / "none.key", PASSWORD)
    assert caught.value.code == "key_file"
    with pytest.raises(InvalidKey, match=r"none\.key does not exist.*steelyard keys new") as caught:
        read_key_address(tmp_path / "none.key")
    assert caught.value.code == "key_file"


@pytest.mark.parametrize(
    "content", ["", "[]", "5", "{}", '{"address": "0x12"}', "\x00", " " * 70_000, "[" * 60_000]
)
def test_a_file_without_an_address_is_no_key_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.key").write_text(content)
    with pytest.raises(InvalidKey) as caught:
        read_key_address(tmp_path / "x.key")
    assert caught.value.code == "key_file"
    assert "Error(" not in caught.value.message, "no Python in what a person reads"


def test_a_file_that_states_another_address_is_refused(key_file: Path, tmp_path: Path) -> None:
    keystore = json.loads(key_file.read_text())
    keystore["address"] = "00" * 20
    swapped = tmp_path / "swapped.key"
    swapped.write_text(json.dumps(keystore))
    with pytest.raises(InvalidKey, match="another address"):
        load_key(swapped, PASSWORD)


def test_a_short_password_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidKey) as caught:
        create_key(tmp_path / "new.key", "short")
    assert caught.value.code == "key_password"
    assert not (tmp_path / "new.key").exists()


def test_the_password_comes_from_file_then_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "password"
    file.write_text("from the file\n")
    monkeypatch.setenv(keys.PASSWORD_VARIABLE, "from the environment")
    assert get_password(tmp_path / "key", file) == "from the file"
    assert get_password(tmp_path / "key") == "from the environment"


def test_without_a_terminal_a_missing_password_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(keys.PASSWORD_VARIABLE, raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(InvalidKey, match=keys.PASSWORD_VARIABLE):
        get_password(tmp_path / "key")


def test_a_typed_password_is_asked_for_twice(tmp_path: Path, monkeypatch) -> None:
    typed = iter(["password one", "password two", "password one", "password one"])
    monkeypatch.delenv("STEELYARD_PASSWORD", raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(typed))
    with pytest.raises(InvalidKey, match="differ"):
        choose_password(tmp_path / "new.key")
    assert choose_password(tmp_path / "new.key") == "password one"


def test_a_missing_key_file_is_missed_before_its_password(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("STEELYARD_PASSWORD", raising=False)
    with pytest.raises(InvalidKey, match="steelyard keys new"):
        load_key(tmp_path / "none.key")

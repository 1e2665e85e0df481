"""The genesis ceremony: entries that prove themselves, one document of all, checked by each."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from eth_keys.datatypes import PrivateKey
from typer.testing import CliRunner

from steelyard.chain.bls import derive_secret_key
from steelyard.chain.errors import InvalidKey, SteelyardError
from steelyard.chain.genesis import encode_genesis, parse_genesis
from steelyard.chain.types import Address
from steelyard.node import ceremony_commands, founding
from steelyard.node.commands import app
from steelyard.node.config import NodeConfig
from steelyard.node.directory import KEYS
from steelyard.node.entries import (
    ENTRY_FILE,
    MAX_ENTRY_BYTES,
    InvalidEntry,
    check_distinct,
    check_listed,
    check_reachable,
    encode_entry,
    make_entry,
    parse_address,
    parse_entry,
    read_entry,
)
from steelyard.node.founding import create_entry, create_shared_document, init_directory
from steelyard.node.keyfiles import Secrets
from steelyard.node.options import PASSWORD_VARIABLE

from .world import COIN, make_foundation

SCRYPT_N = 2**4
PASSWORD = "correct horse"


def make_secrets(number: int) -> Secrets:
    seed = bytes([number]) * 32
    return Secrets(PrivateKey(seed), derive_secret_key(seed), seed)


ENTRIES = [make_entry(make_secrets(i), f"10.0.0.{i}:8546", 32 * COIN) for i in range(1, 5)]


def get_code(act: Callable[[], object]) -> str:
    with pytest.raises(SteelyardError) as caught:
        act()
    return caught.value.code


def change(**fields: object) -> bytes:
    return json.dumps({**json.loads(encode_entry(ENTRIES[0])), **fields}).encode()


# -- entries ---------------------------------------------------------------------------------------
def test_an_entry_reads_back_as_it_was_written() -> None:
    assert [parse_entry(encode_entry(entry)) for entry in ENTRIES] == ENTRIES


def test_fees_go_to_the_validators_own_account_unless_told_otherwise() -> None:
    other = Address(b"\x77" * 20)
    assert ENTRIES[0].fee_recipient == ENTRIES[0].address
    assert make_entry(make_secrets(1), "a:1", 1, other).fee_recipient == other


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "entry_malformed"),
        (b"[]", "entry_malformed"),
        (b"{}", "entry_malformed"),
        (b"\xff\xfe", "entry_malformed"),
        (b"[" * 10_000, "entry_malformed"),
        (b" " * (MAX_ENTRY_BYTES + 1), "entry_malformed"),
        (change(format="something"), "entry_malformed"),
        (change(version=2), "entry_version"),
        (change(version=True), "entry_version"),
        (change(version="1"), "entry_version"),
        (change(more=1), "entry_malformed"),
        (change(stake=32), "entry_malformed"),
        (change(stake="0"), "entry_malformed"),
        (change(stake="-1"), "entry_malformed"),
        (change(stake="1\n"), "entry_malformed"),
        (change(stake="9" * 40), "entry_malformed"),
        (change(address="0x" + "1" * 39), "entry_malformed"),
        (change(address=None), "entry_malformed"),
        (change(fee_recipient="0x" + "0" * 40), "entry_malformed"),
        (change(network_key="0x" + "AB" * 32), "entry_malformed"),
        (change(bls_key="0x" + "ab" * 47), "entry_malformed"),
        (change(endpoint=7), "entry_malformed"),
        (change(endpoint="10.0.0.1"), "entry_endpoint"),
        (change(bls_key="0x" + ENTRIES[1].bls_key.hex()), "entry_possession"),
        (change(bls_key="0xc0" + "00" * 47), "entry_possession"),
        (change(proof_of_possession="0x" + "00" * 96), "entry_possession"),
    ],
)
def test_a_bad_entry_is_refused_by_name(data: bytes, code: str) -> None:
    assert get_code(lambda: parse_entry(data)) == code


def test_an_entry_that_proves_nothing_says_whom_to_ask() -> None:
    with pytest.raises(InvalidEntry, match="ask its operator for the file"):
        parse_entry(change(proof_of_possession="0x" + "00" * 96))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert get_code(lambda: read_entry(tmp_path / "missing")) == "entry_file"
    assert get_code(lambda: read_entry(tmp_path)) == "entry_file"
    (tmp_path / "bad.json").write_bytes(b"{}")
    with pytest.raises(InvalidEntry, match=r"bad\.json: "):
        read_entry(tmp_path / "bad.json")


@pytest.mark.parametrize(
    "text",
    [
        *("", ":1", "a", "a:", "a:0", "a:65535", "a:99999", "a:+1", "a:1 ", "a b:1", "tcp://a:1"),
        *("::1:1", "a." * 31 + "aa:1", "0.0.0.0:8546", "[::]:8546", "[::0]:8546", "a:1\n"),
    ],
)
def test_endpoints_that_nobody_could_reach_are_refused(text: str) -> None:
    assert get_code(lambda: check_reachable(text)) == "entry_endpoint"


@pytest.mark.parametrize(
    "text",
    ["", "0x12", "0x" + "0" * 38 + "01", "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d35A", "x" * 42],
)
def test_addresses_that_nobody_has_or_that_are_mistyped_are_refused(text: str) -> None:
    assert get_code(lambda: parse_address(text)) == "address_malformed"


# -- the document ----------------------------------------------------------------------------------
def test_the_document_does_not_depend_on_the_order_of_the_entries() -> None:
    documents = {
        encode_genesis(create_shared_document(make_foundation(), entries))
        for entries in (ENTRIES, ENTRIES[::-1])
    }
    assert len(documents) == 1
    genesis = parse_genesis(documents.pop())
    assert sorted(one.address for one in ENTRIES) == [one.address for one in genesis.validators]
    assert all(dict(genesis.alloc)[one.address] == 100 * COIN for one in ENTRIES)


@pytest.mark.parametrize(
    "changes",
    [
        {"address": ENTRIES[0].address},
        {"bls_key": ENTRIES[0].bls_key},
        {"network_key": ENTRIES[0].network_key},
        {"endpoint": "10.0.0.1:8546"},
        {"endpoint": "10.0.0.1:8547"},
        {"endpoint": "10.0.0.1:8545"},
        {"endpoint": "10.0.0.1:9000/8546"},
    ],
)
def test_entries_that_share_something_are_refused(changes: dict[str, Any]) -> None:
    check_distinct(ENTRIES)
    entries = [ENTRIES[0], replace(ENTRIES[1], **changes)]
    foundation = make_foundation()
    assert get_code(lambda: create_shared_document(foundation, entries)) == "entry_repeated"


@pytest.mark.parametrize(
    "changes",
    [
        {"endpoint": "10.0.0.9:8546"},
        {"stake": 1},
        {"fee_recipient": ENTRIES[1].address},
        {"bls_key": ENTRIES[1].bls_key},
    ],
)
def test_an_operator_sees_when_the_document_changed_its_entry(changes: dict[str, Any]) -> None:
    genesis = create_shared_document(make_foundation(), ENTRIES[:1])
    check_listed(ENTRIES[0], genesis)
    with pytest.raises(InvalidEntry, match=next(iter(changes))) as caught:
        check_listed(replace(ENTRIES[0], **changes), genesis)
    assert caught.value.code == "entry_differs"


def test_an_operator_sees_when_its_entry_was_left_out() -> None:
    genesis = create_shared_document(make_foundation(), ENTRIES[1:])
    assert get_code(lambda: check_listed(ENTRIES[0], genesis)) == "entry_differs"


# -- directories -----------------------------------------------------------------------------------
def prepare(directory: Path, number: int) -> Path:
    create_entry(directory, PASSWORD, f"10.0.0.{number}:8546", 32 * COIN, scrypt_n=SCRYPT_N)
    return directory


def test_four_directories_end_with_one_document_and_their_own_keys(tmp_path: Path) -> None:
    homes = [prepare(tmp_path / f"v{number}", number) for number in range(1, 5)]
    entries = [read_entry(home / ENTRY_FILE) for home in homes]
    document = encode_genesis(create_shared_document(make_foundation(), entries))
    for home, entry in zip(homes, entries, strict=True):
        genesis, secrets = init_directory(home, PASSWORD, document, NodeConfig())
        assert (home / "genesis.json").read_bytes() == document
        assert secrets.address == entry.address
        assert len(genesis.validators) == 4
        assert get_code(lambda home=home: prepare(home, 9)) == "data_exists"


def test_init_refuses_a_document_without_these_keys_unless_they_join_later(tmp_path: Path) -> None:
    home, document = (
        tmp_path / "v",
        encode_genesis(create_shared_document(make_foundation(), ENTRIES)),
    )
    prepare(home, 9)

    def init(**options: Any) -> object:
        return init_directory(home, PASSWORD, document, NodeConfig(), **options)

    assert get_code(init) == "entry_differs"
    (home / ENTRY_FILE).unlink()
    with pytest.raises(InvalidKey) as caught:
        init()
    assert caught.value.code == "key_validator"
    assert sorted(one.name for one in home.iterdir()) == [KEYS]
    init(is_joining=True)
    assert get_code(init) == "data_exists"


def test_a_validator_that_follows_still_checks_its_entry(tmp_path: Path) -> None:
    home = prepare(tmp_path / "v", 1)
    entry = replace(read_entry(home / ENTRY_FILE), endpoint="10.0.0.9:1")
    document = encode_genesis(create_shared_document(make_foundation(), [entry]))

    def init() -> object:
        return init_directory(home, PASSWORD, document, NodeConfig(), is_joining=True)

    assert get_code(init) == "entry_differs"


def test_keys_are_made_only_in_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert get_code(lambda: prepare(tmp_path, 1)) == "data_exists"
    assert get_code(lambda: prepare(tmp_path / "file" / "below", 1)) == "file_write"


# -- commands --------------------------------------------------------------------------------------
def invoke(*words: object) -> str:
    result = CliRunner().invoke(
        app, [str(word) for word in words], env={PASSWORD_VARIABLE: PASSWORD}
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_the_commands_of_the_ceremony_agree_on_one_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = partial(founding.create_entry, scrypt_n=SCRYPT_N)
    monkeypatch.setattr(ceremony_commands, "create_entry", quick)
    homes = [tmp_path / "v1", tmp_path / "v2"]
    for place, home in enumerate(homes, 1):
        invoke("keys", "new", home, "--endpoint", f"10.0.0.{place}:8546", "--stake", place)
    out = tmp_path / "genesis.json"
    words = ("genesis", *[home / ENTRY_FILE for home in homes], "--out", out, "--json")
    made = json.loads(invoke(*words))
    said = [json.loads(invoke("init", home, "--genesis", out, "--json")) for home in homes]
    assert {one["genesis_hash"] for one in said} == {made["genesis_hash"]}
    assert said[0]["address"] == json.loads(invoke("keys", homes[0], "--json"))["address"]
    assert get_code(lambda: invoke(*words)) == "data_exists"


def test_who_makes_or_starts_a_chain_of_several_is_told_to_name_nodes_to_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = partial(founding.create_entry, scrypt_n=SCRYPT_N)
    monkeypatch.setattr(ceremony_commands, "create_entry", quick)
    homes = [tmp_path / "v1", tmp_path / "v2"]
    for place, home in enumerate(homes, 1):
        invoke("keys", "new", home, "--endpoint", f"10.0.0.{place}:8546")
    out, rows = tmp_path / "genesis.json", [home / ENTRY_FILE for home in homes]
    assert "--follow http://HOST:PORT" in invoke("genesis", *rows, "--out", out)
    assert "Set [follow] nodes" in invoke("init", homes[0], "--genesis", out)
    said = invoke("init", homes[1], "--genesis", out, "--follow", "http://one:8545")
    assert "Set [follow] nodes" not in said
    assert "node run" in said


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--endpoint", "nowhere"), "entry_endpoint"),
        (("--endpoint", "a:1", "--stake", "0"), "amount_malformed"),
        (("--endpoint", "a:1", "--fee-recipient", "0x1"), "address_malformed"),
    ],
)
def test_keys_new_refuses_what_no_validator_can_say(
    tmp_path: Path, words: tuple[str, ...], code: str
) -> None:
    assert get_code(lambda: invoke("keys", "new", tmp_path / "v", *words)) == code
    assert not (tmp_path / "v").exists()

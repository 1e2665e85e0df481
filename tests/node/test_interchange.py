"""Votes move to another machine in a file, and reading one only ever forbids."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from eth_keys.datatypes import PrivateKey

from steelyard.chain.bls import compute_public_key, derive_secret_key
from steelyard.chain.consensus.votes import NO_HASH, Kind, Statement
from steelyard.chain.errors import SteelyardError
from steelyard.chain.types import Epoch, Hash, View
from steelyard.node.directory import DirectoryLock
from steelyard.node.interchange import (
    MAX_FILE_BYTES,
    Votes,
    encode_votes,
    export_votes,
    import_votes,
    open_signer,
    parse_votes,
    write_file,
)
from steelyard.node.keyfiles import Secrets
from steelyard.node.node import Node
from steelyard.node.signer import ConflictingVote

from .world import CONFIG, SECRETS, found

OTHER = Secrets(PrivateKey(b"\x21" * 32), derive_secret_key(b"\x23" * 32), b"\x24" * 32)


def say(view: int, kind: Kind = Kind.NOTARIZE, mark: int = 1) -> Statement:
    block = NO_HASH if kind == Kind.NULLIFY else Hash(bytes([mark]) * 32)
    return Statement(Epoch(0), View(view), kind, block)


VOTES = Votes(
    Hash(b"\x07" * 32),
    bytes(compute_public_key(SECRETS.voting)),
    (0, 3),
    (say(4), say(5, Kind.NULLIFY), say(6, Kind.FINALIZE)),
)


def get_code(act: Callable[[], object]) -> str:
    with pytest.raises(SteelyardError) as caught:
        act()
    return caught.value.code


def change(**fields: object) -> bytes:
    return json.dumps({**json.loads(encode_votes(VOTES)), **fields}).encode()


def change_row(**fields: object) -> bytes:
    row = json.loads(encode_votes(VOTES))["statements"][0]
    return change(statements=[{**row, **fields}])


# -- the file --------------------------------------------------------------------------------------
def test_a_file_reads_back_as_it_was_written() -> None:
    assert parse_votes(encode_votes(VOTES)) == VOTES


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "votes_malformed"),
        (b"[]", "votes_malformed"),
        (b"[" * 10_000, "votes_malformed"),
        (b" " * (MAX_FILE_BYTES + 1), "votes_malformed"),
        (encode_votes(VOTES)[:-20], "votes_malformed"),
        (change(format="other"), "votes_malformed"),
        (change(version=2), "votes_version"),
        (change(version=True), "votes_version"),
        (change(more=1), "votes_malformed"),
        (change(genesis_hash="0x"), "votes_malformed"),
        (change(bls_key=None), "votes_malformed"),
        (change(floor="0"), "votes_malformed"),
        (change(floor={"epoch": 0, "view": "1"}), "votes_malformed"),
        (change(floor={"epoch": "0", "view": "-1"}), "votes_malformed"),
        (change(floor={"epoch": "0", "view": "01"}), "votes_malformed"),
        (change(floor={"epoch": "0", "view": str(2**64)}), "votes_malformed"),
        (change(statements={}), "votes_malformed"),
        (change(statements=[None]), "votes_malformed"),
        (change_row(kind="notarise"), "votes_malformed"),
        (change_row(kind=[]), "votes_malformed"),
        (change_row(view="0"), "votes_malformed"),
        (change_row(hash="0x" + "00" * 32), "votes_malformed"),
        (change_row(kind="nullify"), "votes_malformed"),
        (change_row(more=1), "votes_malformed"),
    ],
)
def test_a_bad_file_is_refused_by_name(data: bytes, code: str) -> None:
    assert get_code(lambda: parse_votes(data)) == code


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    write_file(tmp_path / "votes.json", b"1")
    assert get_code(lambda: write_file(tmp_path / "votes.json", b"2")) == "data_exists"
    assert (tmp_path / "votes.json").read_bytes() == b"1"
    assert get_code(lambda: write_file(tmp_path / "none" / "votes.json", b"2")) == "file_write"


# -- directories -----------------------------------------------------------------------------------
def vote(directory: Path, *statements: Statement) -> None:
    with open_signer(directory, SECRETS) as (signer, _):
        for statement in statements:
            signer.sign_vote(statement, 0)


def test_what_was_signed_on_one_machine_is_refused_on_the_next(tmp_path: Path) -> None:
    old, new, file = found(tmp_path / "old"), found(tmp_path / "new"), tmp_path / "votes.json"
    vote(old, say(4), say(5, Kind.NULLIFY))
    export_votes(old, SECRETS, file, retire=False)
    import_votes(new, SECRETS, file)
    vote(new, say(4), say(6))
    with pytest.raises(ConflictingVote):
        vote(new, say(4, mark=2))
    with pytest.raises(ConflictingVote):
        vote(new, say(5, Kind.FINALIZE))


def test_the_floor_moves_along_and_never_down(tmp_path: Path) -> None:
    old, new, file = found(tmp_path / "old"), found(tmp_path / "new"), tmp_path / "votes.json"
    with open_signer(old, SECRETS) as (signer, _):
        signer.raise_floor(0, 9)
    export_votes(old, SECRETS, file, retire=False)
    vote(new, say(4), say(12))
    import_votes(new, SECRETS, file)
    import_votes(new, SECRETS, file)
    with open_signer(new, SECRETS) as (signer, _):
        assert signer.get_floor() == (0, 9)
        assert signer.get_statements() == (say(12),)
        signer.raise_floor(0, 20)
    import_votes(new, SECRETS, file)
    with open_signer(new, SECRETS) as (signer, _):
        assert signer.get_floor() == (0, 20)


def test_a_retired_directory_signs_nothing_and_is_exported_once(tmp_path: Path) -> None:
    home = found(tmp_path / "node")
    vote(home, say(4))
    votes = export_votes(home, SECRETS, tmp_path / "votes.json", retire=True)
    assert votes.statements == (say(4),)
    for statement in (say(4, mark=2), say(2**63)):
        with pytest.raises(ConflictingVote):
            vote(home, statement)
    assert get_code(lambda: Node.open(home, SECRETS, CONFIG)) == "votes_retired"
    again = tmp_path / "again.json"
    assert get_code(lambda: export_votes(home, SECRETS, again, retire=True)) == "votes_retired"
    assert not again.exists()


def test_votes_of_another_key_or_chain_are_refused(tmp_path: Path) -> None:
    home, other = found(tmp_path / "node"), found(tmp_path / "other", chain_id=7701)
    file = tmp_path / "votes.json"
    export_votes(home, SECRETS, file, retire=False)
    assert get_code(lambda: import_votes(other, SECRETS, file)) == "votes_chain"
    assert get_code(lambda: import_votes(home, OTHER, file)) == "votes_key"
    assert get_code(lambda: import_votes(home, SECRETS, tmp_path / "none")) == "votes_file"


def test_votes_move_only_while_the_node_is_stopped(tmp_path: Path) -> None:
    home, file = found(tmp_path / "node"), tmp_path / "votes.json"
    file.write_bytes(encode_votes(VOTES))
    lock = DirectoryLock(home)
    try:
        assert get_code(lambda: import_votes(home, SECRETS, file)) == "data_locked"
        out = tmp_path / "out.json"
        assert get_code(lambda: export_votes(home, SECRETS, out, retire=True)) == "data_locked"
    finally:
        lock.release()

"""The journal: atomic, private, for one process, one chain and one account."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from steelyard.chain.cid import compute_blob_name
from steelyard.chain.types import Address, Hash
from steelyard.client.errors import InvalidState
from steelyard.client.rpc import Network
from steelyard.client.state import Entry, Journal, Status, Submission

NETWORK = Network(4242, bytes(range(32)))
ADDRESS = Address(b"\x05" * 20)


@pytest.fixture
def journal(tmp_path: Path):
    opened = Journal(tmp_path, NETWORK, ADDRESS)
    yield opened
    opened.close()


def make_submission(number: int, data: bytes = b"update") -> Submission:
    base, update = compute_blob_name(b"base"), compute_blob_name(data)
    return Submission(7, number, base, update, b"s" * 32, 30, {"loss": 0.25})


def make_entry(label: str, nonce: int, *data: bytes) -> Entry:
    names = tuple(compute_blob_name(item) for item in data)
    digest = Hash(nonce.to_bytes(32, "big"))
    return Entry(label, 0, nonce, digest, b"raw", names, Status.SIGNED, None)


def test_what_was_written_is_there_after_opening_again(tmp_path: Path, journal) -> None:
    submission = make_submission(1)
    journal.add_submission(submission, b"update", b"personal")
    journal.add_entry(make_entry("a", 3), {})
    journal.close()
    again = Journal(tmp_path, NETWORK, ADDRESS)
    assert again.get_submission(7, 1) == submission
    assert again.get_blob(submission.update) == b"update"
    assert again.get_personal(7) == b"personal"
    assert again.get_next_nonce() == 4
    again.close()


def test_every_change_waits_for_the_disk(journal) -> None:
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_second_submission_for_a_round_is_impossible(journal) -> None:
    journal.add_submission(make_submission(1), b"update", None)
    with pytest.raises(sqlite3.IntegrityError):
        journal.add_submission(make_submission(1, b"fresh noise"), b"fresh noise", b"new")
    assert journal.get_submission(7, 1) == make_submission(1)
    assert journal.get_blob(compute_blob_name(b"fresh noise")) is None
    assert journal.get_personal(7) is None


def test_a_second_process_is_turned_away(tmp_path: Path, journal) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from steelyard.client.state import Journal; from steelyard.client.rpc import Network\n"
        "from steelyard.client.errors import InvalidState\n"
        "try: Journal(Path(sys.argv[1]), Network(4242, bytes(range(32))), b'\\x05' * 20)\n"
        "except InvalidState as error: print(error.code)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == "state_in_use\n"


def test_each_chain_and_account_has_its_own_journal(tmp_path: Path, journal) -> None:
    other = Journal(tmp_path, Network(4242, b"\x09" * 32), ADDRESS)
    stranger = Journal(tmp_path, NETWORK, Address(b"\x06" * 20))
    assert len({journal.directory, other.directory, stranger.directory}) == 3
    other.close()
    stranger.close()


def test_a_journal_moved_to_another_chain_is_refused(tmp_path: Path, journal) -> None:
    journal.close()
    other = Network(4242, b"\x09" * 32)
    journal.directory.rename(tmp_path / f"{other.genesis_hash[:4].hex()}-{ADDRESS.hex()}")
    with pytest.raises(InvalidState) as caught:
        Journal(tmp_path, other, ADDRESS)
    assert caught.value.code == "state_mismatch"


def test_a_damaged_journal_is_refused_and_kept(tmp_path: Path, journal) -> None:
    journal.close()
    path = journal.directory / "journal.db"
    for rest in journal.directory.glob("journal.db-*"):
        rest.unlink()
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(InvalidState, match="restore it") as caught:
        Journal(tmp_path, NETWORK, ADDRESS)
    assert caught.value.code == "state_damaged"
    assert path.read_bytes().startswith(b"not a database")


def test_a_state_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(InvalidState) as caught:
        Journal(path, NETWORK, ADDRESS)
    assert caught.value.code == "state_directory"


def test_nobody_else_can_read_the_journal(journal) -> None:
    assert os.stat(journal.directory).st_mode & 0o077 == 0
    assert os.stat(journal.directory / "journal.db").st_mode & 0o077 == 0


def test_blobs_stay_while_a_transaction_on_its_way_declares_them(journal) -> None:
    shared, own = b"shared", b"own"
    first, second = make_entry("a", 0, shared, own), make_entry("b", 1, shared)
    journal.add_entry(first, {compute_blob_name(item): item for item in (shared, own)})
    journal.add_entry(second, {})
    journal.set_status(first, Status.INCLUDED, 5)
    assert journal.get_blob(compute_blob_name(own)) is None
    assert journal.get_blob(compute_blob_name(shared)) == shared
    journal.set_status(second, Status.FAILED, 6)
    assert journal.get_blob(compute_blob_name(shared)) is None


def test_updates_of_rounds_that_are_over_are_dropped(journal) -> None:
    for number in (1, 2):
        data = b"update %d" % number
        journal.add_submission(make_submission(number, data), data, None)
    journal.drop_updates(7, 2)
    assert journal.get_blob(compute_blob_name(b"update 1")) is None
    assert journal.get_blob(compute_blob_name(b"update 2")) == b"update 2"
    assert journal.get_submission(7, 1) == make_submission(1, b"update 1")


def test_void_transactions_do_not_hold_their_nonce(journal) -> None:
    entry = make_entry("a", 5)
    journal.add_entry(entry, {})
    journal.set_status(entry, Status.REPLACED)
    assert journal.get_next_nonce() == 0

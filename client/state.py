"""The journal: everything that must be the same after a crash, on disk before it leaves.

One SQLite file per chain and account, with a commit that waits for the disk (`synchronous=FULL`).
It holds each round's update file and salt, and each signed transaction under a label such as
`task/7/round/3/commit`. Sending always takes the bytes from here, so a client that is killed
between any two steps resends identical bytes: never fresh noise, never a second submission.

The journal holds secrets until they are revealed (salts, personal tensors): its directory is
readable by its owner only. It holds no key.
"""

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from steelyard.chain.types import Address, BlobName, Digest, Hash

from .errors import InvalidState
from .rpc import Network

SCHEMA_VERSION: Final = "1"
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS submissions (
    task INTEGER NOT NULL, round INTEGER NOT NULL,
    base_digest BLOB NOT NULL, base_size INTEGER NOT NULL,
    update_digest BLOB NOT NULL, update_size INTEGER NOT NULL,
    salt BLOB NOT NULL, samples INTEGER NOT NULL, metrics TEXT NOT NULL,
    PRIMARY KEY (task, round));
CREATE TABLE IF NOT EXISTS evaluations (
    task INTEGER NOT NULL, round INTEGER NOT NULL, samples INTEGER NOT NULL,
    metrics TEXT NOT NULL, PRIMARY KEY (task, round));
CREATE TABLE IF NOT EXISTS personal (task INTEGER PRIMARY KEY, tensors BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS transactions (
    label TEXT NOT NULL, attempt INTEGER NOT NULL, nonce INTEGER NOT NULL,
    hash BLOB NOT NULL, raw BLOB NOT NULL, blobs TEXT NOT NULL, status TEXT NOT NULL,
    height INTEGER, PRIMARY KEY (label, attempt));
CREATE TABLE IF NOT EXISTS told (label TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS blobs (digest BLOB NOT NULL, size INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (digest, size));
"""


class Status(StrEnum):
    """Where a journalled transaction stands."""

    SIGNED = "signed"
    INCLUDED = "included"
    FAILED = "failed"
    """In a block, and reverted there."""
    REPLACED = "replaced"
    """Another transaction of this account took its nonce: it can never be included."""
    REFUSED = "refused"
    """Invalid in itself: it can never be included."""


@dataclass(frozen=True, slots=True)
class Submission:
    """One round's update as it will be, or was, revealed."""

    task: int
    round: int
    base: BlobName
    update: BlobName
    salt: bytes
    samples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Entry:
    """One signed transaction."""

    label: str
    attempt: int
    nonce: int
    hash: Hash
    raw: bytes
    blobs: tuple[BlobName, ...]
    status: Status
    height: int | None


class Journal:
    """The open journal of one account on one chain. One process at a time, any of its threads."""

    def __init__(
        self, directory: Path, network: Network, address: Address, *, exclusive: bool = True
    ) -> None:
        """Open or create.

        Raises InvalidState `state_in_use`, `state_damaged`, `state_directory`, `state_mismatch`.
        """
        self.directory = directory / f"{network.genesis_hash[:4].hex()}-{address.hex()}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = hold_lock(self.directory / "lock.db") if exclusive else None
            self._db = sqlite3.connect(
                self.directory / "journal.db", isolation_level=None, check_same_thread=False
            )
            self._turn = threading.RLock()
            os.chmod(self.directory / "journal.db", 0o600)
            self._prepare(network, address)
        except sqlite3.DatabaseError as error:
            raise InvalidState(
                "state_damaged",
                f"the journal in {self.directory} is damaged ({error}); restore it from a copy. "
                "Without it a committed update cannot be revealed; the next round can be joined "
                "with an empty directory",
            ) from None
        except OSError as error:
            raise InvalidState(
                "state_directory", f"cannot use {self.directory}: {error}; choose another"
            ) from None

    def close(self) -> None:
        """Close the files and let another process in."""
        self._db.close()
        if self._lock is not None:
            self._lock.close()

    def _prepare(self, network: Network, address: Address) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(SCHEMA)
        expected = {
            "version": SCHEMA_VERSION,
            "chain_id": str(network.chain_id),
            "genesis": network.genesis_hash.hex(),
            "address": address.hex(),
        }
        for key, value in expected.items():
            self._db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, value))
            (found,) = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
            if found != value:
                raise InvalidState(
                    "state_mismatch",
                    f"the journal in {self.directory} has {key} {found}, not {value}; "
                    "choose another state directory",
                )

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One atomic change, on disk when the block ends. Raises InvalidState `state_unwritable`.

        Then nothing has changed, and the same may be tried again.
        """
        with self._turn:
            yield from self._change()

    def _change(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if not isinstance(error, sqlite3.OperationalError):
                raise
            raise InvalidState(
                "state_unwritable",
                f"the journal in {self.directory} cannot be written ({error}); make room on its "
                "disk. What was committed to is revealed from this journal only",
            ) from None

    # -- rounds ------------------------------------------------------------------------------------
    def get_submission(self, task: int, round_number: int) -> Submission | None:
        """Return what was prepared for a round."""
        row = self._db.execute(
            "SELECT base_digest, base_size, update_digest, update_size, salt, samples, metrics"
            " FROM submissions WHERE task = ? AND round = ?",
            (task, round_number),
        ).fetchone()
        if row is None:
            return None
        return Submission(
            task,
            round_number,
            BlobName(Digest(row[0]), row[1]),
            BlobName(Digest(row[2]), row[3]),
            row[4],
            row[5],
            json.loads(row[6]),
        )

    def add_submission(self, submission: Submission, update: bytes, personal: bytes | None) -> None:
        """Record a round's update, its salt and the personal tensors, at once or not at all."""
        with self._writing() as db:
            add_blob(db, submission.update, update)
            db.execute(
                "INSERT INTO submissions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    submission.task,
                    submission.round,
                    submission.base.digest,
                    submission.base.size,
                    submission.update.digest,
                    submission.update.size,
                    submission.salt,
                    submission.samples,
                    json.dumps(dict(submission.metrics)),
                ),
            )
            if personal is not None:
                db.execute(
                    "INSERT OR REPLACE INTO personal VALUES (?, ?)", (submission.task, personal)
                )

    def drop_updates(self, task: int, before_round: int) -> None:
        """Forget the files of rounds that are over; names and salts stay."""
        with self._writing() as db:
            rows = db.execute(
                "SELECT update_digest, update_size FROM submissions WHERE task = ? AND round < ?",
                (task, before_round),
            ).fetchall()
            self._drop_blobs({BlobName(Digest(digest), size) for digest, size in rows})

    def drop_update(self, update: BlobName) -> None:
        """Forget the file of an update that the chain will never take; its name stays."""
        with self._writing():
            self._drop_blobs({update})

    def _is_update(self, name: BlobName) -> bool:
        row = self._db.execute(
            "SELECT 1 FROM submissions WHERE update_digest = ? AND update_size = ?",
            (name.digest, name.size),
        ).fetchone()
        return row is not None

    def get_personal(self, task: int) -> bytes | None:
        """Return the tensors that never leave this client, as they were stored."""
        row = self._db.execute("SELECT tensors FROM personal WHERE task = ?", (task,)).fetchone()
        return None if row is None else row[0]

    def get_evaluation(self, task: int, round_number: int) -> tuple[int, dict[str, float]] | None:
        """Return samples and metrics of a round's model, if it was evaluated here."""
        row = self._db.execute(
            "SELECT samples, metrics FROM evaluations WHERE task = ? AND round = ?",
            (task, round_number),
        ).fetchone()
        return None if row is None else (row[0], json.loads(row[1]))

    def add_evaluation(
        self, task: int, round_number: int, samples: int, metrics: Mapping[str, float]
    ) -> None:
        """Record an evaluation before it is reported."""
        with self._writing() as db:
            db.execute(
                "INSERT INTO evaluations VALUES (?, ?, ?, ?)",
                (task, round_number, samples, json.dumps(dict(metrics))),
            )

    # -- transactions ------------------------------------------------------------------------------
    def get_entry(self, label: str) -> Entry | None:
        """Return the latest attempt under a label."""
        row = self._db.execute(
            "SELECT label, attempt, nonce, hash, raw, blobs, status, height FROM transactions"
            " WHERE label = ? ORDER BY attempt DESC LIMIT 1",
            (label,),
        ).fetchone()
        return None if row is None else decode_entry(row)

    def get_entries(self, prefix: str = "") -> list[Entry]:
        """Return all attempts whose label starts with `prefix`, in the order of their nonces."""
        rows = self._db.execute(
            "SELECT label, attempt, nonce, hash, raw, blobs, status, height FROM transactions"
            " WHERE substr(label, 1, ?) = ? ORDER BY nonce, attempt",
            (len(prefix), prefix),
        )
        return [decode_entry(row) for row in rows]

    def get_next_nonce(self) -> int:
        """Return one more than the highest nonce of a transaction that counts, or 0."""
        (nonce,) = self._db.execute(
            "SELECT max(nonce) FROM transactions WHERE status NOT IN (?, ?)",
            (Status.REPLACED, Status.REFUSED),
        ).fetchone()
        return 0 if nonce is None else nonce + 1

    def has_used(self, nonce: int) -> bool:
        """Whether one of these transactions is in a block with that nonce."""
        row = self._db.execute(
            "SELECT 1 FROM transactions WHERE nonce = ? AND status IN (?, ?)",
            (nonce, Status.INCLUDED, Status.FAILED),
        ).fetchone()
        return row is not None

    def count_passed(self) -> int:
        """Return how many transactions of the account are in blocks, as a node has shown.

        Whoever's they are: a nonce that is gone to another one is gone.
        """
        (nonce,) = self._db.execute(
            "SELECT max(nonce) FROM transactions WHERE status NOT IN (?, ?)",
            (Status.SIGNED, Status.REFUSED),
        ).fetchone()
        return 0 if nonce is None else nonce + 1

    def add_entry(self, entry: Entry, data: Mapping[BlobName, bytes]) -> None:
        """Record a signed transaction and the bytes of the blobs that it declares."""
        blobs = json.dumps([[name.digest.hex(), name.size] for name in entry.blobs])
        with self._writing() as db:
            for name, content in data.items():
                add_blob(db, name, content)
            db.execute(
                "INSERT INTO transactions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    entry.label,
                    entry.attempt,
                    entry.nonce,
                    entry.hash,
                    entry.raw,
                    blobs,
                    entry.status,
                    entry.height,
                ),
            )

    def set_status(self, entry: Entry, status: Status, height: int | None = None) -> None:
        """Record what became of a transaction, and drop the blobs that only it needed.

        An update stays: after a failure it may still be shown, in an extension or late; and that
        a transaction is in a block is a node's word.
        """
        with self._writing() as db:
            db.execute(
                "UPDATE transactions SET status = ?, height = ? WHERE label = ? AND attempt = ?",
                (status, height, entry.label, entry.attempt),
            )
            if status in (Status.INCLUDED, Status.FAILED):
                self._drop_blobs({name for name in entry.blobs if not self._is_update(name)})

    def rename(self, label: str, to: str) -> None:
        """Label a transaction anew, with all its attempts."""
        with self._writing() as db:
            db.execute("UPDATE transactions SET label = ? WHERE label = ?", (to, label))

    def is_told(self, label: str) -> bool:
        """Whether who asked for a transaction has been told what became of it."""
        row = self._db.execute("SELECT 1 FROM told WHERE label = ?", (label,)).fetchone()
        return row is not None

    def set_told(self, *labels: str) -> None:
        """Record that who asked for these transactions knows what became of all of them."""
        with self._writing() as db:
            db.executemany("INSERT OR IGNORE INTO told VALUES (?)", [(one,) for one in labels])

    def get_blob(self, name: BlobName) -> bytes | None:
        """Return the bytes of an update, or of a blob that a pending transaction declares."""
        row = self._db.execute(
            "SELECT data FROM blobs WHERE digest = ? AND size = ?", (name.digest, name.size)
        ).fetchone()
        return None if row is None else row[0]

    def _drop_blobs(self, names: set[BlobName]) -> None:
        """Forget bytes that no transaction on its way declares."""
        names = names - {
            name
            for entry in self.get_entries()
            if entry.status is Status.SIGNED
            for name in entry.blobs
        }
        self._db.executemany(
            "DELETE FROM blobs WHERE digest = ? AND size = ?",
            [(name.digest, name.size) for name in names],
        )


def add_blob(db: sqlite3.Connection, name: BlobName, data: bytes) -> None:
    """Store bytes under their name, once."""
    db.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?, ?)", (name.digest, name.size, data))


def decode_entry(row: tuple[str, int, int, bytes, bytes, str, str, int | None]) -> Entry:
    """Return one row of `transactions`."""
    label, attempt, nonce, digest, raw, blobs, status, height = row
    names = tuple(BlobName(Digest(bytes.fromhex(d)), size) for d, size in json.loads(blobs))
    return Entry(label, attempt, nonce, Hash(digest), raw, names, Status(status), height)


def hold_lock(path: Path) -> sqlite3.Connection:
    """Hold a lock that ends with this process, on every system that SQLite knows."""
    lock = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        lock.close()
        raise InvalidState(
            "state_in_use",
            f"another process uses {path.parent}; stop it, or wait until it is done",
        ) from None
    return lock

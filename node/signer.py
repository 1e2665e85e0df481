"""The validator's voting key, behind a database that remembers every vote before it exists.

`sign_vote` writes and fsyncs the statement first. Two processes, a restored backup of the chain or
a bug elsewhere cannot make this key say two things in one view: the database refuses. It is small
and separate from the chain, because it is the one thing that must move with the key.

Nothing is signed at or below the *floor*, a view that is decided without us: what was said there
may have been forgotten, or said by an older life of this key whose database is lost.
"""

from collections.abc import Iterable
from pathlib import Path

from steelyard.chain.bls import SecretKey, compute_public_key, sign
from steelyard.chain.consensus.votes import (
    MAX_NUMBER,
    Kind,
    Statement,
    Vote,
    check_signable,
    compute_signing_root,
    find_offence,
)
from steelyard.chain.errors import InvalidVote, SteelyardError
from steelyard.chain.types import Domain, Epoch, Hash, View

from .store import CorruptData, Database, Writer

SIGNER_MAP_BYTES = 2**30
FLOOR = b"floor"
QUIET = b"quiet"
IDENTITY = b"identity"
NEVER = (MAX_NUMBER, MAX_NUMBER)
"""The floor of a retired key: above every view."""


class ConflictingVote(SteelyardError):
    """This key already said something else in that view, or may have."""


class Signer:
    """Signs votes of one validator on one chain."""

    def __init__(self, path: Path, secret: SecretKey, domain: Domain, genesis_hash: Hash) -> None:
        """Raises SteelyardError signer_mismatch, CorruptData."""
        self._secret, self._domain = secret, domain
        self._path = path
        self._database = Database(path, ("votes", "meta"), SIGNER_MAP_BYTES)
        self._check_identity(compute_public_key(secret) + genesis_hash)
        self._floor, self._quiet = self._read_place(FLOOR), self._read_place(QUIET)

    def _check_identity(self, identity: bytes) -> None:
        held = self._database.get("meta", IDENTITY)
        if held is None:
            with self._database.write() as writer:
                writer.put("meta", IDENTITY, identity)
        elif held != identity:
            raise SteelyardError(
                "signer_mismatch",
                f"{self._path} belongs to another key or chain; each has its own directory",
            )

    def _read_place(self, name: bytes) -> tuple[int, int]:
        value = self._database.get("meta", name)
        return (0, 0) if value is None else decode_place(value)

    def is_new(self) -> bool:
        """Has this key never voted here?"""
        return self._floor == (0, 0) and not self._database.scan("votes", b"", 1)

    def is_retired(self) -> bool:
        """Did this key move to another directory, for good?"""
        return self._floor == NEVER

    def get_floor(self) -> tuple[int, int]:
        """Epoch and view up to which nothing is signed any more; (0, 0) at first."""
        return self._floor

    def get_quiet(self) -> tuple[int, int]:
        """Epoch and view up to which only nullify votes are to be asked for; (0, 0) at first."""
        return self._quiet

    def raise_quiet(self, epoch: int, view: int) -> None:
        """Remember that over restarts. Never lowers; it is `voting` that keeps to it."""
        quiet = max(self._quiet, (epoch, view))
        with self._database.write() as writer:
            writer.put("meta", QUIET, encode_place(*quiet))
        self._quiet = quiet

    def get_last(self) -> tuple[int, int]:
        """Epoch and view past which this key has certainly signed nothing here."""
        return max((self._floor, *((said.epoch, said.view) for said in self.get_statements())))

    def has_said(self, statement: Statement) -> bool:
        """Was this signed, or is its view so old that it may have been?"""
        if (statement.epoch, statement.view) <= self._floor:
            return True
        return self._database.get("votes", encode_key(statement)) == statement.hash

    def get_statements(self) -> tuple[Statement, ...]:
        """Everything said above the floor, in order."""
        found = self._database.scan("votes", b"", 2**31)
        try:
            return tuple(decode_statement(key, value) for key, value in found)
        except ValueError as error:
            raise CorruptData(self._path, f"a vote cannot be read: {error}") from error

    def sign_vote(self, statement: Statement, place: int) -> Vote:
        """Remember, fsync, sign. The same statement again is fine. Raises ConflictingVote.

        `place` is ours in the set of the statement's epoch.
        """
        key = encode_key(statement)
        if self._database.get("votes", key) != statement.hash:
            if (statement.epoch, statement.view) <= self._floor:
                raise ConflictingVote("vote_too_old", f"view {statement.view} is decided")
            with self._database.write() as writer:
                self._check_signable(writer, statement)
                writer.put("votes", key, statement.hash)
        root = compute_signing_root(statement, self._domain)
        return Vote(statement, place, sign(self._secret, root))

    def _check_signable(self, writer: Writer, statement: Statement) -> None:
        place = encode_place(statement.epoch, statement.view)
        keys = [place + bytes([kind]) for kind in Kind]
        held = [(key, writer.get("votes", key)) for key in keys]
        try:
            check_signable(statement, [decode_statement(k, v) for k, v in held if v is not None])
        except InvalidVote as error:
            raise ConflictingVote("vote_conflict", f"refused to sign: {error.message}") from None

    def raise_floor(self, epoch: int, view: int) -> None:
        """Sign nothing up to this view any more, and forget what was said there. Never lowers."""
        self.merge((), (epoch, view))

    def merge(self, statements: Iterable[Statement], floor: tuple[int, int]) -> None:
        """Take over what this key said elsewhere, in one transaction: its statements, its floor.

        A view in which both say something that no validator may say together ends up below the
        floor, and so does every view before it.
        """
        ours, theirs = self.get_statements(), tuple(statements)
        clashes = [(a.epoch, a.view) for a in ours for b in theirs if find_offence(a, b)]
        held = {encode_key(said): said.hash for said in ours}
        found = {encode_key(said): said.hash for said in theirs}
        floor = max((self._floor, floor, *clashes))
        kept = {key: said for key, said in {**found, **held}.items() if decode_place(key) > floor}
        if floor == self._floor and kept.keys() == held.keys():
            return
        with self._database.write() as writer:
            writer.put("meta", FLOOR, encode_place(*floor))
            for key in held.keys() - kept:
                writer.delete("votes", key)
            for key in sorted(kept.keys() - held):
                writer.put("votes", key, kept[key])
        self._floor = floor

    def close(self) -> None:
        self._database.close()


def encode_place(epoch: int, view: int) -> bytes:
    return epoch.to_bytes(8, "big") + view.to_bytes(8, "big")


def decode_place(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[:8], "big"), int.from_bytes(data[8:16], "big")


def encode_key(statement: Statement) -> bytes:
    return encode_place(statement.epoch, statement.view) + bytes([statement.kind])


def decode_statement(key: bytes, value: bytes) -> Statement:
    epoch, view = decode_place(key)
    return Statement(Epoch(epoch), View(view), Kind(key[16]), Hash(value))

"""Moving what a key has voted for: a file in the spirit of EIP-3076, for another machine's signer.

    {"format": "steelyard-votes", "version": 1, "genesis_hash": "0x…", "bls_key": "0x…",
     "floor": {"epoch": "0", "view": "41"},
     "statements": [{"epoch": "0", "view": "42", "kind": "notarize", "hash": "0x…"}]}

Numbers are decimal strings, as JSON readers lose digits. Reading one only ever forbids: floors go
up, statements are added, nothing that was refused becomes allowed. So it is safe to read the same
file twice, or an old one after a new one.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from steelyard.chain.bls import PUBLIC_KEY_BYTES, compute_public_key
from steelyard.chain.consensus.votes import MAX_NUMBER, Kind, Statement
from steelyard.chain.errors import InvalidVote, SteelyardError
from steelyard.chain.genesis import build_genesis
from steelyard.chain.types import Epoch, Hash, View

from .blobs import sync_directory
from .directory import SIGNER, DirectoryLock, read_genesis
from .keyfiles import Secrets
from .signer import NEVER, Signer

FORMAT: Final = "steelyard-votes"
VERSION: Final = 1
MAX_FILE_BYTES: Final = 64 * 2**20
MAX_STATEMENTS: Final = 100_000
"""A signer keeps those above the last finalized view: a few, a few thousand in a long stall."""
HASH_BYTES: Final = 32
FIELDS: Final = {"format", "version", "genesis_hash", "bls_key", "floor", "statements"}
KINDS: Final = {kind.name.lower(): kind for kind in Kind}


class InvalidVotes(SteelyardError):
    """A file of votes that cannot be taken over."""


@dataclass(frozen=True, slots=True)
class Votes:
    """What one key has said on one chain; `floor` is an epoch and a view."""

    genesis_hash: Hash
    bls_key: bytes
    floor: tuple[int, int]
    statements: tuple[Statement, ...]


# -- codec -----------------------------------------------------------------------------------------
def encode_votes(votes: Votes) -> bytes:
    """The file's bytes; `parse_votes` reads them back."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "genesis_hash": "0x" + votes.genesis_hash.hex(),
        "bls_key": "0x" + votes.bls_key.hex(),
        "floor": {"epoch": str(votes.floor[0]), "view": str(votes.floor[1])},
        "statements": [
            {
                "epoch": str(said.epoch),
                "view": str(said.view),
                "kind": said.kind.name.lower(),
                "hash": "0x" + said.hash.hex(),
            }
            for said in votes.statements
        ],
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def parse_votes(data: bytes) -> Votes:
    """What is in a file. Raises InvalidVotes votes_malformed, votes_version."""
    if len(data) > MAX_FILE_BYTES:
        raise InvalidVotes("votes_malformed", f"above {MAX_FILE_BYTES} bytes")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidVotes("votes_malformed", f"not JSON: {error}") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise InvalidVotes("votes_malformed", f"not a file of the format {FORMAT}")
    if fields.get("version") != VERSION or isinstance(fields["version"], bool):
        raise InvalidVotes(
            "votes_version", f"version {fields.get('version')!r}, and this release knows {VERSION}"
        )
    _check_keys(fields, FIELDS, "the file")
    rows, floor = fields["statements"], fields["floor"]
    if not isinstance(rows, list) or len(rows) > MAX_STATEMENTS:
        raise InvalidVotes("votes_malformed", f"statements: a list of up to {MAX_STATEMENTS}")
    _check_keys(floor, {"epoch", "view"}, "floor")
    return Votes(
        Hash(_read_hex(fields, "genesis_hash", HASH_BYTES)),
        _read_hex(fields, "bls_key", PUBLIC_KEY_BYTES),
        (_read_number(floor, "epoch"), _read_number(floor, "view")),
        tuple(_read_statement(row) for row in rows),
    )


def _read_statement(row: Any) -> Statement:
    _check_keys(row, {"epoch", "view", "kind", "hash"}, "a statement")
    kind = KINDS.get(row["kind"]) if isinstance(row["kind"], str) else None
    if kind is None:
        raise InvalidVotes("votes_malformed", f"kind is none of {', '.join(KINDS)}")
    try:
        return Statement(
            Epoch(_read_number(row, "epoch")),
            View(_read_number(row, "view")),
            kind,
            Hash(_read_hex(row, "hash", HASH_BYTES)),
        )
    except InvalidVote as error:
        raise InvalidVotes("votes_malformed", error.message) from None


def _check_keys(value: Any, keys: set[str], where: str) -> None:
    if not isinstance(value, dict) or set(value) != keys:
        raise InvalidVotes("votes_malformed", f"{where} is not an object of {sorted(keys)}")


def _read_number(fields: dict[str, Any], name: str) -> int:
    value = fields[name]
    if not isinstance(value, str) or not re.fullmatch(r"0|[1-9][0-9]{0,19}", value, re.ASCII):
        raise InvalidVotes("votes_malformed", f"{name} is not a decimal string")
    if int(value) > MAX_NUMBER:
        raise InvalidVotes("votes_malformed", f"{name} is above 2**64 - 1")
    return int(value)


def _read_hex(fields: dict[str, Any], name: str, size: int) -> bytes:
    value = fields[name]
    if isinstance(value, str) and re.fullmatch(rf"0x[0-9a-f]{{{2 * size}}}", value, re.ASCII):
        return bytes.fromhex(value[2:])
    raise InvalidVotes("votes_malformed", f"{name} is not {size} bytes of lower-case hex")


# -- directories -----------------------------------------------------------------------------------
@contextmanager
def open_signer(directory: Path, secrets: Secrets) -> Iterator[tuple[Signer, Hash]]:
    """The signer of a stopped node, and block 0's hash.

    Raises SteelyardError data_missing, data_locked, genesis_missing, signer_mismatch; CorruptData.
    """
    lock = DirectoryLock(directory)
    try:
        genesis = read_genesis(directory)
        genesis_hash = build_genesis(genesis).block.hash
        signer = Signer(directory / SIGNER, secrets.voting, genesis.domain, genesis_hash)
        try:
            yield signer, genesis_hash
        finally:
            signer.close()
    finally:
        lock.release()


def export_votes(directory: Path, secrets: Secrets, path: Path, *, retire: bool) -> Votes:
    """Write what this directory's key has said; with `retire`, it never signs here again.

    The file is on disk before that. Raises SteelyardError data_exists, file_write, and what
    `open_signer` raises.
    """
    with open_signer(directory, secrets) as (signer, genesis_hash):
        if signer.is_retired():
            raise InvalidVotes(
                "votes_retired",
                f"{directory} was retired: what its key said is in the file that was written then",
            )
        votes = Votes(
            genesis_hash,
            compute_public_key(secrets.voting),
            max(signer.get_floor(), signer.get_quiet()),
            signer.get_statements(),
        )
        write_file(path, encode_votes(votes))
        if retire:
            signer.raise_floor(*NEVER)
    return votes


def import_votes(directory: Path, secrets: Secrets, path: Path) -> Votes:
    """Take over what the same key said on another machine, all of it or nothing.

    Raises InvalidVotes, and what `open_signer` raises.
    """
    votes = parse_votes(read_file(path))
    if votes.bls_key != compute_public_key(secrets.voting):
        raise InvalidVotes("votes_key", f"{path} is of another key than {directory}")
    with open_signer(directory, secrets) as (signer, genesis_hash):
        if votes.genesis_hash != genesis_hash:
            raise InvalidVotes("votes_chain", f"{path} is of another chain than {directory}")
        signer.merge(votes.statements, votes.floor)
    return votes


def read_file(path: Path) -> bytes:
    """Up to one byte more than is allowed. Raises InvalidVotes votes_file."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidVotes("votes_file", f"{path}: {error.strerror}") from None


def write_file(path: Path, data: bytes) -> None:
    """A new file, for its owner only, on disk afterwards. Raises SteelyardError.

    What a kill leaves half written is no JSON, and is refused.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path.parent)
    except FileExistsError:
        raise SteelyardError("data_exists", f"{path} exists; name another file") from None
    except OSError as error:
        raise SteelyardError("file_write", f"{path}: {error.strerror}") from None

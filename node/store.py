"""The finalized chain on disk: LMDB, one synchronous write transaction for each finalization.

LMDB commits are atomic and fsynced: after a kill at any instant the database is the one before or
the one after a commit. Blob files are written (and fsynced) before the commit that records them.

Only the driver writes. Any thread reads; each read is a snapshot. A value that does not match
its hash raises CorruptData, which is neither a SteelyardError nor an ArithmeticError on purpose: no
code between the store and the driver may take a broken disk for somebody's bad input.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
from eth_utils.crypto import keccak

from steelyard.chain.block import (
    Block,
    Header,
    decode_block,
    decode_header,
    encode_block,
    encode_header,
)
from steelyard.chain.consensus.certificates import (
    Certificate,
    decode_certificate,
    encode_certificate,
)
from steelyard.chain.epochs import EpochSet, decode_epoch_set, encode_epoch_set
from steelyard.chain.errors import SteelyardError
from steelyard.chain.receipts import Receipt, decode_receipts, encode_receipts
from steelyard.chain.types import BlobName, Digest, Hash, Height

from .records import Inclusion

SCHEMA = b"2"
TABLES = (
    "meta",
    "hashes",
    "heights",
    "headers",
    "blocks",
    "receipts",
    "blooms",
    "certificates",
    "sets",
    "transactions",
    "nodes",
    "marks",
    "blobs",
    "expiries",
    "journal",
)
MAX_READERS = 512
CHECKED_BLOCKS = 16
"""Blocks below the head whose links are checked when a store opens."""
RECOVERY = (
    "stop the node, keep a copy of the directory, and restore the whole directory from one backup "
    "(never chain/ or signer/ alone), or start a new chain with `steelyard node init`; never copy "
    "signer/ to a second machine"
)


class CorruptData(RuntimeError):
    """The data directory does not hold what this node wrote."""

    code = "data_corrupt"

    def __init__(self, path: Path, what: str, advice: str = RECOVERY) -> None:
        self.message = f"{path}: {what}; {advice}"
        super().__init__(f"{self.code}: {self.message}")


class StorageFull(SteelyardError):
    """No space for a write; nothing of it was kept."""


@dataclass(frozen=True, slots=True)
class FinalBlock:
    """A block with everything that its execution made."""

    block: Block
    receipts: tuple[Receipt, ...]
    nodes: Mapping[bytes, bytes]
    expiries: tuple[tuple[BlobName, int], ...]
    """Blobs that it admitted or made, with the second until which they may be read."""
    next_set: EpochSet | None = None
    """The validators of the epoch that begins after it: of genesis and of boundary blocks."""


class Database:
    """One LMDB environment with named tables, opened so that a broken file is refused."""

    def __init__(self, path: Path, tables: Sequence[str], map_bytes: int) -> None:
        """Raises CorruptData, StorageFull."""
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        with storage_errors(path):
            self.env = lmdb.open(
                str(path),
                map_size=map_bytes,
                max_dbs=len(tables),
                max_readers=MAX_READERS,
            )
            self._check_length()
            self.tables = {name: self.env.open_db(name.encode()) for name in tables}

    def _check_length(self) -> None:
        """A truncated file would kill the process with SIGBUS at the first read past its end."""
        needed = (self.env.info()["last_pgno"] + 1) * self.env.stat()["psize"]
        held = (self.path / "data.mdb").stat().st_size
        if held < needed and self.env.info()["last_txnid"] > 0:
            raise CorruptData(self.path, f"data.mdb has {held} bytes of at least {needed}")

    def get(self, table: str, key: bytes) -> bytes | None:
        with storage_errors(self.path), self.env.begin() as transaction:
            value: bytes | None = transaction.get(key, db=self.tables[table])
            return value

    def scan(self, table: str, start: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """At most `limit` pairs with keys >= start, in order."""
        found: list[tuple[bytes, bytes]] = []
        with storage_errors(self.path), self.env.begin() as transaction:
            cursor = transaction.cursor(db=self.tables[table])
            if not cursor.set_range(start):
                return found
            for key, value in cursor.iternext(keys=True, values=True):
                if len(found) >= limit:
                    break
                found.append((key, value))
        return found

    @contextmanager
    def write(self) -> Iterator["Writer"]:
        """One atomic, fsynced transaction. Raises CorruptData, StorageFull."""
        with storage_errors(self.path), self.env.begin(write=True) as transaction:
            yield Writer(transaction, self.tables)

    def close(self) -> None:
        self.env.close()


class Writer:
    """The write side of one transaction."""

    def __init__(self, transaction: lmdb.Transaction, tables: Mapping[str, Any]) -> None:
        self.transaction, self.tables = transaction, tables

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self.transaction.put(key, value, db=self.tables[table])

    def get(self, table: str, key: bytes) -> bytes | None:
        value = self.transaction.get(key, db=self.tables[table])
        return None if value is None else bytes(value)

    def delete(self, table: str, key: bytes) -> None:
        self.transaction.delete(key, db=self.tables[table])

    def clear(self, table: str) -> None:
        self.transaction.drop(self.tables[table], delete=False)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """LMDB's errors as ours: what a person must do differs between a full and a broken disk."""
    try:
        yield
    except lmdb.MapFullError as error:
        raise StorageFull(
            "disk_full",
            f"{path} has reached its largest size; raise storage.map_bytes in config.toml and "
            "restart the node",
        ) from error
    except lmdb.PanicError as error:
        raise StorageFull(
            "disk_full", f"{path} could not be written and is closed; restart the node"
        ) from error
    except lmdb.DiskError as error:
        raise StorageFull("disk_full", f"{path}: {error}; free some space") from error
    except lmdb.LockError as error:
        raise SteelyardError("data_locked", f"{path} is in use: {error}") from error
    except lmdb.Error as error:
        reason = str(error).removeprefix(f"{path}: ")
        # LMDB reports a write that a full disk cut short as an input/output error.
        if any(sign in reason for sign in ("No space left", "Input/output error")):
            raise StorageFull(
                "disk_full", f"{path}: {reason}; free some space, or replace the disk"
            ) from error
        raise CorruptData(path, reason) from error


def encode_height(height: int) -> bytes:
    """Big-endian, so that LMDB's key order is the order of heights and times."""
    return height.to_bytes(8, "big")


def encode_blob_key(name: BlobName) -> bytes:
    return name.digest + name.size.to_bytes(8, "big")


def decode_blob_key(key: bytes) -> BlobName:
    return BlobName(Digest(key[:32]), int.from_bytes(key[32:40], "big"))


class ChainStore:
    """Finalized blocks, receipts, state, certificates and the indices over them."""

    def __init__(self, path: Path, map_bytes: int) -> None:
        self.database = Database(path, TABLES, map_bytes)
        self.path = path

    # -- opening -----------------------------------------------------------------------------------
    def is_empty(self) -> bool:
        return self.database.get("meta", b"head") is None

    def check(self, genesis_hash: Hash) -> None:
        """Refuse another chain's directory, and one that is not what a commit left.

        Raises SteelyardError (genesis_mismatch), CorruptData.
        """
        schema = self.database.get("meta", b"schema")
        if schema != SCHEMA:
            raise SteelyardError(
                "data_schema",
                f"{self.path} has format {schema!r}, this release reads {SCHEMA!r}; go on with the "
                "release that wrote it, or start from an empty directory",
            )
        held = self.get_hash(0)
        if held != genesis_hash:
            raise SteelyardError(
                "genesis_mismatch",
                f"{self.path} holds the chain with genesis 0x{(held or b'').hex()}, the document "
                f"makes 0x{genesis_hash.hex()}; use the document that the directory began with",
            )
        head = self.get_head()
        if self.get_node(head.state_root) is None:
            raise CorruptData(self.path, f"the state of block {head.height} is missing")
        for height in range(max(1, head.height - CHECKED_BLOCKS), head.height + 1):
            self._check_link(height)

    def check_upgrades(self, forks: Sequence[tuple[str, int]]) -> None:
        """Refuse rule changes that came, or went, after blocks were executed that they decide.

        `forks` are names and heights. Remembers them. Raises SteelyardError upgrade_late.
        """
        held = self.database.get("meta", b"forks")
        before = set() if held is None else {tuple(row) for row in json.loads(held)}
        head = self.get_head().height
        late = [(name, height) for name, height in before ^ set(forks) if height <= head]
        if late and (held is not None or head > 0):
            name, height = min(late, key=lambda one: one[1])
            raise SteelyardError(
                "upgrade_late",
                f"block {head} is final here, and the rule change {name!r} of height {height} was "
                "not in config.toml, or was another, when its blocks were executed; put back what "
                "was there, or start from an empty directory and sync anew",
            )
        with self.database.write() as writer:
            writer.put("meta", b"forks", json.dumps(sorted(forks)).encode())

    def _check_link(self, height: int) -> None:
        header = self._get_header_at(height)
        block = self.database.get("blocks", encode_height(height))
        if header.parent_hash != self.get_hash(height - 1) or block is None:
            raise CorruptData(self.path, f"block {height} does not follow block {height - 1}")
        if decode_block(block).header.hash != header.hash:
            raise CorruptData(self.path, f"block {height} has another header")

    # -- writing (driver only) ---------------------------------------------------------------------
    def commit(
        self,
        blocks: Sequence[FinalBlock],
        certificate: Certificate | None,
        journal: Mapping[bytes, bytes | None],
    ) -> None:
        """Make blocks final, oldest first, with the certificate of the last, in one transaction.

        `journal` entries are written (None deletes) with them. Raises StorageFull, CorruptData.
        """
        with self.database.write() as writer:
            for one in blocks:
                self._put_block(writer, one)
            last = blocks[-1].block.header
            if certificate is not None:
                writer.put(
                    "certificates", encode_height(last.height), encode_certificate(certificate)
                )
            writer.put("meta", b"schema", SCHEMA)
            writer.put("meta", b"head", encode_height(last.height))
            put_journal(writer, journal)

    def _put_block(self, writer: Writer, final: FinalBlock) -> None:
        header, key = final.block.header, encode_height(final.block.header.height)
        writer.put("hashes", key, header.hash)
        writer.put("heights", header.hash, key)
        writer.put("headers", key, encode_header(header))
        writer.put("blocks", key, encode_block(final.block))
        writer.put("receipts", key, encode_receipts(final.receipts))
        if final.receipts:
            writer.put("blooms", key, header.bloom)
        for index, raw in enumerate(final.block.transactions):
            writer.put("transactions", keccak(raw), key + index.to_bytes(4, "big"))
        for node in sorted(final.nodes):
            writer.put("nodes", node, final.nodes[node])
        for name, expires_at in final.expiries:
            put_expiry(writer, name, expires_at)
        if final.next_set is not None:
            epoch = encode_height(final.next_set.epoch)
            writer.put("sets", epoch, encode_epoch_set(final.next_set))

    def write_journal(self, entries: Mapping[bytes, bytes | None]) -> None:
        """Consensus messages that must survive a kill before anything built on them leaves."""
        with self.database.write() as writer:
            put_journal(writer, entries)

    def forget_blobs(self, names: Iterable[BlobName]) -> None:
        """Drop the records of blobs whose files are gone."""
        with self.database.write() as writer:
            for name in names:
                key = encode_blob_key(name)
                expires_at = writer.get("blobs", key)
                if expires_at is not None:
                    writer.delete("expiries", expires_at + key)
                    writer.delete("blobs", key)

    # -- reading -----------------------------------------------------------------------------------
    def read_journal(self) -> list[tuple[bytes, bytes]]:
        return self.database.scan("journal", b"", 2**62)

    def get_head(self) -> Header:
        height = self.database.get("meta", b"head")
        assert height is not None, "a store is initialised before it is read"
        return self._get_header_at(int.from_bytes(height, "big"))

    def get_hash(self, height: int) -> Hash | None:
        if not 0 <= height < 2**64:
            return None
        value = self.database.get("hashes", encode_height(height))
        return None if value is None else Hash(value)

    def get_height(self, block_hash: Hash) -> Height | None:
        value = self.database.get("heights", block_hash) if len(block_hash) == 32 else None
        return None if value is None else Height(int.from_bytes(value, "big"))

    def _get_header_at(self, height: int) -> Header:
        data, block_hash = (
            self.database.get("headers", encode_height(height)),
            self.get_hash(height),
        )
        if data is None or block_hash is None or keccak(data) != block_hash:
            raise CorruptData(self.path, f"the header of block {height} is missing or altered")
        return decode_header(data)

    def get_header(self, block_hash: Hash) -> Header | None:
        height = self.get_height(block_hash)
        return None if height is None else self._get_header_at(height)

    def get_block(self, block_hash: Hash) -> Block | None:
        height = self.get_height(block_hash)
        data = None if height is None else self.database.get("blocks", encode_height(height))
        return None if data is None else decode_block(data)

    def get_receipts(self, block_hash: Hash) -> tuple[Receipt, ...]:
        height = self.get_height(block_hash)
        data = None if height is None else self.database.get("receipts", encode_height(height))
        return () if data is None else decode_receipts(data)

    def get_certificate(self, height: int) -> Certificate | None:
        """The finalization of the block, or of its first descendant that has one."""
        found = self.database.scan("certificates", encode_height(height), 1)
        return decode_certificate(found[0][1]) if found else None

    def get_epoch_set(self, epoch: int) -> EpochSet:
        """The validators of an epoch that has begun, or begins next. Raises CorruptData."""
        epoch_set = self.find_epoch_set(epoch)
        if epoch_set is None:
            raise CorruptData(self.path, f"the validators of epoch {epoch} are missing")
        return epoch_set

    def find_epoch_set(self, epoch: int) -> EpochSet | None:
        """The validators of an epoch, or None if it is not known who they are."""
        if not 0 <= epoch < 2**64:
            return None
        value = self.database.get("sets", encode_height(epoch))
        if value is None:
            return None
        try:
            return decode_epoch_set(value)
        except SteelyardError as error:
            raise CorruptData(self.path, f"epoch {epoch}: {error.message}") from error

    def find_transaction(self, transaction_hash: Hash) -> Inclusion | None:
        value = self.database.get("transactions", transaction_hash) if transaction_hash else None
        if value is None:
            return None
        height = int.from_bytes(value[:8], "big")
        block_hash = self.get_hash(height)
        assert block_hash is not None, "an indexed transaction stands in a finalized block"
        return Inclusion(block_hash, Height(height), int.from_bytes(value[8:], "big"))

    def scan_blooms(self, from_height: int, limit: int) -> list[tuple[int, bytes]]:
        """(height, bloom) of the next blocks that have receipts."""
        found = self.database.scan("blooms", encode_height(from_height), limit)
        return [(int.from_bytes(key, "big"), value) for key, value in found]

    def get_recent_hashes(self, height: int, count: int) -> tuple[Hash, ...]:
        """Hashes of the finalized block at `height` and those before it, newest first."""
        first = max(0, height - count + 1)
        found = self.database.scan("hashes", encode_height(first), height - first + 1)
        return tuple(Hash(value) for _, value in reversed(found))

    def get_node(self, key: bytes) -> bytes | None:
        """A trie node or code by its keccak-256, which is checked. Raises CorruptData."""
        value = self.database.get("nodes", key)
        if value is not None and keccak(value) != key:
            raise CorruptData(self.path, f"state node 0x{key.hex()} was altered")
        return value

    def get(self, key: bytes, /) -> bytes | None:
        """The state transition's source of nodes (`execute.NodeSource`)."""
        return self.get_node(key)

    def get_blob_expiry(self, name: BlobName) -> int | None:
        value = self.database.get("blobs", encode_blob_key(name))
        return None if value is None else int.from_bytes(value, "big")

    def scan_expired(self, before: int, limit: int) -> list[BlobName]:
        """Blobs whose last second of life is before that second."""
        found = self.database.scan("expiries", b"", limit)
        return [
            decode_blob_key(key[8:]) for key, _ in found if int.from_bytes(key[:8], "big") < before
        ]

    def close(self) -> None:
        self.database.close()


def put_journal(writer: Writer, entries: Mapping[bytes, bytes | None]) -> None:
    for key, value in entries.items():
        if value is None:
            writer.delete("journal", key)
        else:
            writer.put("journal", key, value)


def put_expiry(writer: Writer, name: BlobName, expires_at: int) -> None:
    """A second admission extends a blob's life; the block with the later time wins."""
    key, value = encode_blob_key(name), encode_height(expires_at)
    old = writer.get("blobs", key)
    if old is not None and old >= value:
        return
    if old is not None:
        writer.delete("expiries", old + key)
    writer.put("blobs", key, value)
    writer.put("expiries", value + key, b"")

"""Blob files: `blobs/<last two letters>/<CID>`, complete and fsynced, or not there at all.

Bytes arrive in `uploads/` and are renamed into place once their name is right, so a kill leaves
only files that the next start sweeps away. A file's contents are checked against its CID once in
each process before they are first used: a flipped bit becomes a missing blob, never a wrong model.

Thread-safe. Which blobs may come is decided by the caller (`node.py`: declared by a pending
transaction), how many bytes may wait is decided here.
"""

import errno
import mmap
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from steelyard.chain.cid import (
    BlobHasher,
    Cid,
    compute_blob_name,
    decode_cid,
    encode_cid,
    get_blob_cid,
    is_named,
)
from steelyard.chain.errors import SteelyardError, UnavailableBlob
from steelyard.chain.types import BlobName

from .config import BlobsConfig
from .logs import log_alarm
from .records import BlobFile
from .store import StorageFull

MAPPED_BYTES = 64 * 1024
"""Larger files are mapped, smaller ones read: a mapping costs more than a small copy."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors that say nothing against a file: too much is open at once."""


class BlobStore:
    """Every blob that this machine holds."""

    def __init__(self, directory: Path, config: BlobsConfig) -> None:
        """Open the store and drop what a kill left half done. Raises StorageFull."""
        self._files, self._uploads = directory / "blobs", directory / "uploads"
        self._config = config
        self._lock = threading.Lock()
        self._held: dict[BlobName, Path] = {}
        self._checked: set[BlobName] = set()
        self._waiting: dict[BlobName, None] = {}
        self._open: dict[BlobUpload, None] = {}
        self._needed: dict[BlobUpload, None] = {}
        self._bytes = 0
        self.on_arrival: Callable[[BlobName], None] = lambda _: None
        """Learns what an upload completed, on the thread that did."""
        with disk_errors(directory):
            shutil.rmtree(self._uploads, ignore_errors=True)
            self._uploads.mkdir(parents=True)
            self._files.mkdir(parents=True, exist_ok=True)
            self._scan()

    def _scan(self) -> None:
        for path in sorted(self._files.glob("??/*")):
            name = self._read_name(path)
            if name is None:
                log_alarm("blob_file_ignored", path=path)
            else:
                self._held[name] = path
                self._bytes += name.size

    def _read_name(self, path: Path) -> BlobName | None:
        """The name that a file's CID and size make, or None if they do not fit."""
        try:
            cid = decode_cid(path.name)
        except SteelyardError:
            return None
        name = BlobName(cid.digest, path.stat().st_size)
        return name if is_named(name, cid) else None

    # -- reading -----------------------------------------------------------------------------------
    def has(self, name: BlobName) -> bool:
        return name in self._held

    def get_names(self) -> tuple[BlobName, ...]:
        with self._lock:
            return tuple(self._held)

    def get_size(self) -> tuple[int, int]:
        """Files, bytes."""
        with self._lock:
            return len(self._held), self._bytes

    def find(self, cid: Cid) -> BlobFile | None:
        """The file of a CID. A CID determines the bytes, so there is at most one."""
        path = self._get_path(cid)
        try:
            name = BlobName(cid.digest, path.stat().st_size)
        except OSError:
            return None
        return BlobFile(name, str(path)) if name in self._held else None

    def read(self, name: BlobName, /) -> bytes | memoryview:
        """The bytes (read-only). Raises UnavailableBlob."""
        path = self._held.get(name)
        if path is None:
            raise UnavailableBlob("blob_unavailable", f"{encode_cid(name)} is not on this machine")
        try:
            data = read_file(path, name.size)
        except OSError as error:
            if error.errno not in EXHAUSTED:
                self._lose(name, path)
            raise UnavailableBlob("blob_unavailable", f"{path}: {error}") from error
        if name not in self._checked:
            if len(data) != name.size or compute_blob_name(data) != name:
                self._lose(name, path)
                raise UnavailableBlob("blob_unavailable", f"{path} was altered and is set aside")
            self._checked.add(name)
        return data

    def _lose(self, name: BlobName, path: Path) -> None:
        """Set a bad file aside; it can be uploaded again."""
        log_alarm("blob_lost", path=path)
        with self._lock:
            if self._held.pop(name, None) is not None:
                self._bytes -= name.size
            if path.exists():
                path.replace(path.with_name(path.name + ".bad"))

    # -- writing -----------------------------------------------------------------------------------
    def put(self, name: BlobName, data: bytes) -> None:
        """Keep a blob that a block made. Raises StorageFull."""
        if self.has(name):
            return
        temporary = self._uploads / f"{encode_cid(name)}.{threading.get_ident()}"
        try:
            with disk_errors(temporary), temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._keep(name, temporary)
        finally:
            temporary.unlink(missing_ok=True)

    def open_upload(self, name: BlobName, is_wanted: Callable[[BlobName], bool]) -> "BlobUpload":
        """Start receiving a blob. Raises SteelyardError blob_held, blob_quota; StorageFull."""
        with self._lock:
            if self.has(name):
                raise SteelyardError("blob_held", f"{encode_cid(name)} is already here")
            while (refusal := self._check_quota(name)) is not None:
                if not self._drop_slowest(name):
                    raise refusal
            upload = BlobUpload(self, name, self._uploads, is_wanted)
            self._open[upload] = None
            return upload

    def open_needed(self, name: BlobName, is_wanted: Callable[[BlobName], bool]) -> "BlobUpload":
        """The same for a blob that a block carries: consensus bounds those, so there is no quota.

        Raises SteelyardError blob_held; StorageFull.
        """
        with self._lock:
            if self.has(name):
                raise SteelyardError("blob_held", f"{encode_cid(name)} is already here")
            upload = BlobUpload(self, name, self._uploads, is_wanted)
            self._needed[upload] = None
            return upload

    def _check_quota(self, name: BlobName) -> SteelyardError | None:
        waiting = sum(one.name.size for one in self._open) + sum(one.size for one in self._waiting)
        if len(self._open) >= self._config.max_uploads:
            return SteelyardError("blob_quota", "too many uploads at once; try again shortly")
        if waiting + name.size > self._config.max_pending_bytes:
            return SteelyardError(
                "blob_quota", f"{waiting} bytes already wait for a block; try again later"
            )
        return None

    def _drop_slowest(self, name: BlobName) -> bool:
        """Make room: of uploads that others repeat, end the oldest of those that got least far.

        Else whoever has one pending transaction could occupy every place with its one blob.
        """
        uploads = Counter((name, *(one.name for one in self._open)))
        repeated = [one for one in self._open if uploads[one.name] > 1]
        slowest = min(repeated, key=lambda one: one.received, default=None)
        if slowest is not None:
            slowest.is_dropped = True
            del self._open[slowest]
        return slowest is not None

    def count_incoming(self) -> int:
        """Bytes that uploads under way may still write."""
        with self._lock:
            return sum(one.name.size - one.received for one in (*self._open, *self._needed))

    def _keep(self, name: BlobName, temporary: Path) -> None:
        """Rename a complete, fsynced file into place, durably."""
        path = self._get_path(get_blob_cid(name))
        with disk_errors(path):
            if not path.parent.exists():
                path.parent.mkdir(exist_ok=True)
                sync_directory(self._files)
            temporary.replace(path)
            sync_directory(path.parent)
        with self._lock:
            if name not in self._held:
                self._bytes += name.size
            self._held[name] = path
            self._checked.add(name)

    def _get_path(self, cid: Cid) -> Path:
        text = encode_cid(cid)
        return self._files / text[-2:] / text

    # -- what waits, and what goes -----------------------------------------------------------------
    def set_admitted(self, names: Iterable[BlobName]) -> None:
        """A finalized block recorded them: they no longer count as waiting."""
        with self._lock:
            for name in names:
                self._waiting.pop(name, None)

    def get_waiting(self) -> tuple[BlobName, ...]:
        """Uploaded since the start, and in no finalized block yet."""
        with self._lock:
            return tuple(self._waiting)

    def delete(
        self, names: Iterable[BlobName], is_unwanted: Callable[[BlobName], bool]
    ) -> tuple[BlobName, ...]:
        """Remove the files of names that are unwanted, and return those names.

        That is asked under the lock which `open_upload` takes before it says "already here": so
        nobody is told so of a blob that goes. Readers that mapped a file keep their bytes.
        """
        with self._lock:
            gone = tuple(name for name in names if is_unwanted(name))
            for name in gone:
                self._waiting.pop(name, None)
                self._checked.discard(name)
                path = self._held.pop(name, None)
                if path is not None:
                    self._bytes -= name.size
                    path.unlink(missing_ok=True)
        return gone


class BlobUpload:
    """One blob on its way in: `write` its bytes, then `commit`; or `abort`."""

    def __init__(
        self,
        store: BlobStore,
        name: BlobName,
        directory: Path,
        is_wanted: Callable[[BlobName], bool],
    ) -> None:
        self.name = name
        self._store, self._is_wanted = store, is_wanted
        self._path = directory / f"{encode_cid(name)}.{id(self)}"
        self._hasher = BlobHasher()
        self.received = 0
        self.is_dropped = False
        """Its place was given to another upload."""
        with disk_errors(self._path):
            self._file = self._path.open("xb")

    def write(self, chunk: bytes) -> None:
        """Append. Raises SteelyardError blob_size, blob_quota; StorageFull. Then `abort`."""
        if self.is_dropped:
            raise SteelyardError(
                "blob_quota", "a faster upload of the same blob took this one's place"
            )
        self.received += len(chunk)
        if self.received > self.name.size:
            raise SteelyardError("blob_size", f"more than the declared {self.name.size} bytes")
        self._hasher.update(chunk)
        with disk_errors(self._path):
            self._file.write(chunk)

    def commit(self) -> None:
        """Keep the blob, fsynced. Raises SteelyardError blob_size, blob_mismatch, blob_too_late."""
        try:
            if self.received != self.name.size:
                raise SteelyardError(
                    "blob_size", f"{self.received} bytes came; {self.name.size} were declared"
                )
            actual = self._hasher.finish()
            if actual != self.name:
                raise SteelyardError("blob_mismatch", f"these bytes are {encode_cid(actual)}")
            if not self._is_wanted(self.name):
                raise SteelyardError(
                    "blob_too_late",
                    "the transaction that declared it has left the pool; send it again",
                )
            with disk_errors(self._path):
                self._file.flush()
                os.fsync(self._file.fileno())
            self._store._keep(self.name, self._path)
            with self._store._lock:
                self._store._waiting[self.name] = None
            self._store.on_arrival(self.name)
        finally:
            self.abort()

    def abort(self) -> None:
        """Give up, or clean up after `commit`. May be called twice."""
        with self._store._lock:
            self._store._open.pop(self, None)
            self._store._needed.pop(self, None)
        try:
            self._file.close()
        except OSError as error:  # the buffer could not be flushed: the file goes anyway
            log_alarm("upload_close_failed", path=self._path, error=error)
        self._path.unlink(missing_ok=True)


def read_file(path: Path, size: int) -> bytes | memoryview:
    with path.open("rb") as file:
        if size < MAPPED_BYTES or os.fstat(file.fileno()).st_size != size:
            return file.read(size + 1)
        try:
            return memoryview(mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ))
        except OSError:  # a mapping keeps a file open, and there is a limit to those
            return file.read(size + 1)


def sync_directory(path: Path) -> None:
    """A rename is durable only once its directory is."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """No space, or too much open, becomes StorageFull; any other OSError passes."""
    try:
        yield
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise StorageFull("disk_full", f"{path}: {error.strerror}; try again") from error
        if error.errno in FULL:
            raise StorageFull("disk_full", f"{path}: {error.strerror}; free some space") from error
        raise

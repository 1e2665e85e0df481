"""Where bundles and exported models go in IPFS: one seam, two stores.

`EmbeddedStore` is a directory of blocks with kubo's exact CIDs; it needs no daemon. `DaemonStore`
talks to a configured kubo or js-ipfs daemon through ipfshttpclient and requires the CID that the
daemon returns to equal the one computed here.

Facts that shaped this: `ipfshttpclient.connect` refuses daemons newer than 0.8, so the client is
built directly; `add` sends `raw-leaves=False` unless told otherwise; there is no call for remote
pinning services.
"""

import hashlib
import io
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol

from steelyard.chain.cid import (
    DAG_PB,
    RAW,
    Cid,
    NodeKind,
    compute_blob_name,
    compute_directory,
    decode_cid,
    decode_node,
    encode_cid,
    get_blob_cid,
    iter_blocks,
)
from steelyard.chain.types import Digest

from .errors import ClientError

MAX_FILE_BYTES: Final = 512 * 2**20
MAX_BLOCK_BYTES: Final = 2 * 2**20
MAX_DEPTH: Final = 16


class Store(Protocol):
    """Files by content. CIDs are text; every method raises ClientError with an `ipfs_` code."""

    def add(self, data: bytes) -> str:
        """Store and pin a file; return its CID."""

    def add_directory(self, files: Mapping[str, bytes]) -> str:
        """Store and pin a tree of files by relative name; return the directory's CID."""

    def get(self, cid: str) -> bytes:
        """Return a file."""

    def has(self, cid: str) -> bool:
        """Whether the root block is stored here."""

    def list_pins(self) -> list[str]:
        """Return the CIDs that are kept."""

    def unpin(self, cid: str) -> None:
        """Stop keeping a file or directory."""


class EmbeddedStore:
    """A directory of blocks, one file each, named by CID. Blocks are checked when read."""

    def __init__(self, directory: Path) -> None:
        self._blocks, self._pins = directory / "blocks", directory / "pins"
        for path in (self._blocks, self._pins):
            path.mkdir(parents=True, exist_ok=True)

    def add(self, data: bytes) -> str:
        """Store and pin a file; return its CID."""
        root = encode_cid(self._put_file(data))
        self._pin(root)
        return root

    def add_directory(self, files: Mapping[str, bytes]) -> str:
        """Store and pin a tree of files by relative name; return the directory's CID."""
        root = encode_cid(self._put_tree(build_tree(files))[0])
        self._pin(root)
        return root

    def get(self, cid: str) -> bytes:
        """Return a file. Raises ClientError `ipfs_missing`, `ipfs_damaged`, `ipfs_directory`."""
        data = bytearray()
        for chunk in self._iter_file(decode_cid(cid), 0):
            data += chunk
            if len(data) > MAX_FILE_BYTES:
                raise ClientError("ipfs_too_large", f"{cid} is larger than {MAX_FILE_BYTES} bytes")
        return bytes(data)

    def get_directory(self, cid: str) -> dict[str, Cid]:
        """Return the entries of a directory by name."""
        node = decode_node(self.get_block(decode_cid(cid)))
        return {link.name: link.cid for link in node.links}

    def has(self, cid: str) -> bool:
        """Whether the root block is stored here."""
        return self._path(decode_cid(cid)).exists()

    def list_pins(self) -> list[str]:
        """Return the CIDs that are kept."""
        return sorted(path.name for path in self._pins.iterdir())

    def unpin(self, cid: str) -> None:
        """Stop keeping a file, and delete the blocks that no other pin needs."""
        (self._pins / encode_cid(decode_cid(cid))).unlink(missing_ok=True)
        kept = {path for pin in self.list_pins() for path in self._iter_paths(decode_cid(pin), 0)}
        for path in self._blocks.glob("*/*"):
            if path not in kept:
                path.unlink()

    def get_block(self, cid: Cid) -> bytes:
        """Return one block, checked. Raises ClientError `ipfs_missing`, `ipfs_damaged`."""
        path = self._path(cid)
        try:
            if path.stat().st_size > MAX_BLOCK_BYTES:
                raise ClientError("ipfs_damaged", f"the block {path} is too large; delete it")
            data = path.read_bytes()
        except FileNotFoundError:
            raise ClientError("ipfs_missing", f"{encode_cid(cid)} is not stored here") from None
        if compute_block_digest(data) != cid.digest:
            raise ClientError("ipfs_damaged", f"the block {path} is damaged; delete it, add again")
        return data

    def _put_file(self, data: bytes) -> Cid:
        root = None
        for cid, block in iter_blocks(data):
            self._put_block(cid, block)
            root = cid
        assert root is not None, "every file has a root block"
        return root

    def _put_tree(self, tree: "Tree") -> tuple[Cid, int]:
        """Store a directory; return its CID and cumulative size."""
        entries: dict[str, tuple[Cid, int]] = {}
        for name, child in tree.items():
            if isinstance(child, bytes):
                blocks = list(iter_blocks(child))
                for cid, block in blocks:
                    self._put_block(cid, block)
                entries[name] = (blocks[-1][0], sum(len(block) for _, block in blocks))
            else:
                entries[name] = self._put_tree(child)
        cid, size, block = compute_directory(entries)
        self._put_block(cid, block)
        return cid, size

    def _put_block(self, cid: Cid, block: bytes) -> None:
        path = self._path(cid)
        if path.exists():
            return
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.new")
        try:
            with temporary.open("wb") as stream:
                stream.write(block)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise ClientError("ipfs_write", f"cannot store {path}: {error}") from None

    def _path(self, cid: Cid) -> Path:
        """Blocks are kept by multihash, under the raw CID, as kubo's flatfs does."""
        name = encode_cid(Cid(RAW, cid.digest))
        return self._blocks / name[-3:-1] / name

    def _pin(self, cid: str) -> None:
        (self._pins / cid).touch()

    def _iter_file(self, cid: Cid, depth: int) -> Iterator[bytes]:
        if depth > MAX_DEPTH:
            raise ClientError("ipfs_damaged", "the file's tree is too deep")
        block = self.get_block(cid)
        if cid.codec == RAW:
            yield block
            return
        node = decode_node(block)
        if node.kind is NodeKind.DIRECTORY:
            raise ClientError("ipfs_directory", f"{encode_cid(cid)} is a directory")
        if node.data:
            yield bytes(node.data)
        for link in node.links:
            yield from self._iter_file(link.cid, depth + 1)

    def _iter_paths(self, cid: Cid, depth: int) -> Iterator[Path]:
        """The files of all blocks below a root that are stored here."""
        path = self._path(cid)
        if depth > MAX_DEPTH or not path.exists():
            return
        yield path
        if cid.codec == DAG_PB:
            for link in decode_node(self.get_block(cid)).links:
                yield from self._iter_paths(link.cid, depth + 1)


class DaemonStore:
    """A kubo or js-ipfs daemon at a multiaddr such as /ip4/127.0.0.1/tcp/5001."""

    def __init__(self, address: str, timeout_seconds: float = 60.0) -> None:
        import ipfshttpclient

        self._errors = (ipfshttpclient.exceptions.Error, OSError)
        try:
            self._client = ipfshttpclient.Client(address, session=True, timeout=timeout_seconds)
        except (*self._errors, ValueError) as error:
            raise ClientError("ipfs_address", f"{address!r} is not a multiaddr: {error}") from None

    def add(self, data: bytes) -> str:
        """Store and pin a file; return its CID. Raises ClientError `ipfs_mismatch`."""
        expected = encode_cid(get_blob_cid(compute_blob_name(data)))
        answer = self._ask(
            "add",
            io.BytesIO(data),
            cid_version=1,
            raw_leaves=True,
            chunker="size-262144",
            pin=True,
        )
        found = answer["Hash"]
        if found != expected:
            raise ClientError(
                "ipfs_mismatch",
                f"the daemon names the file {found}, not {expected}; it uses other chunks",
            )
        return expected

    def add_directory(self, files: Mapping[str, bytes]) -> str:
        """Store and pin a tree of files; return the CID of the directory."""
        expected = encode_cid(compute_tree(build_tree(files))[0])
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory) / "bundle"
            for name, content in files.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(content)
            answer = self._ask(
                "add",
                str(root),
                recursive=True,
                cid_version=1,
                raw_leaves=True,
                chunker="size-262144",
                pin=True,
            )
        found = {entry["Name"]: entry["Hash"] for entry in answer}.get("bundle")
        if found != expected:
            raise ClientError("ipfs_mismatch", f"the daemon names it {found}, not {expected}")
        return expected

    def get(self, cid: str) -> bytes:
        """Return a file, checked against its CID."""
        data: bytes = self._ask("cat", cid)
        if get_blob_cid(compute_blob_name(data)) != decode_cid(cid):
            raise ClientError("ipfs_mismatch", f"the daemon sent other bytes than {cid}")
        return data

    def has(self, cid: str) -> bool:
        """Whether the daemon keeps the file."""
        return cid in self.list_pins()

    def list_pins(self) -> list[str]:
        """Return the CIDs that the daemon keeps recursively."""
        return sorted(self._ask("pin.ls", type="recursive")["Keys"])

    def unpin(self, cid: str) -> None:
        """Stop keeping a file or directory."""
        self._ask("pin.rm", cid)

    def _ask(self, name: str, *arguments: object, **options: object):  # type: ignore[no-untyped-def]
        """Call ipfshttpclient, which has no types, and give its errors a code."""
        method = self._client
        for part in name.split("."):
            method = getattr(method, part)
        try:
            # ipfshttpclient 0.7.0 passes urllib3 a parameter that it has stopped to need.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                return method(*arguments, **options)
        except self._errors as error:
            raise ClientError("ipfs_daemon", f"the IPFS daemon failed: {error}") from None


Tree = dict[str, "bytes | Tree"]


def build_tree(files: Mapping[str, bytes]) -> Tree:
    """Return nested directories for relative names with slashes."""
    tree: Tree = {}
    for name, content in files.items():
        *parents, leaf = name.split("/")
        here = tree
        for part in parents:
            child = here.setdefault(part, {})
            assert isinstance(child, dict), "a name is a file or a directory"
            here = child
        here[leaf] = content
    return tree


def compute_tree(tree: Tree) -> tuple[Cid, int]:
    """Return the CID and the cumulative size of a directory, storing nothing."""
    entries: dict[str, tuple[Cid, int]] = {}
    for name, child in tree.items():
        if isinstance(child, bytes):
            blocks = list(iter_blocks(child))
            entries[name] = (blocks[-1][0], sum(len(block) for _, block in blocks))
        else:
            entries[name] = compute_tree(child)
    cid, size, _ = compute_directory(entries)
    return cid, size


def compute_block_digest(block: bytes) -> Digest:
    """Return the SHA-256 of one block."""
    return Digest(hashlib.sha256(block).digest())


def open_store(directory: Path, daemon: str | None = None) -> Store:
    """Return the configured daemon's store, or the embedded one below `directory`."""
    return EmbeddedStore(directory) if daemon is None else DaemonStore(daemon)

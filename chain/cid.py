"""Blob names: the SHA-256 of a file's IPFS root block, and its size (docs/protocol.md, "Blobs").

A file of at most CHUNK_BYTES is one raw block. A longer one is cut into raw leaves under a balanced
tree of dag-pb nodes with DAG_WIDTH links each, exactly as kubo's `add --cid-version=1 --raw-leaves`
makes it, so any IPFS node or gateway serves our blobs under the names that the chain knows.

Sources: the dag-pb and UnixFS specifications (https://ipld.io/specs/codecs/dag-pb/spec/ and
https://specs.ipfs.tech/unixfs/), and CIDs compared with kubo's and js-ipfs' own (tests/data).
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from .errors import InvalidBlobName
from .params import CHUNK_BYTES, DAG_WIDTH
from .types import BlobName, Buffer, Digest

RAW: Final = 0x55
DAG_PB: Final = 0x70
MAX_NODE_BYTES: Final = 2**20
"""A block that other IPFS nodes still exchange."""
MAX_DIRECTORY_BYTES: Final = 262_144
"""Names and CIDs of one directory node; kubo shards larger directories into another structure."""
_CID_TEXT_CHARACTERS: Final = 59
_SHA2_256: Final = b"\x12\x20"


@dataclass(frozen=True, slots=True, order=True)
class Cid:
    """A CIDv1 with SHA2-256: the name of one IPFS block. `codec` is RAW or DAG_PB."""

    codec: int
    digest: Digest


class NodeKind(IntEnum):
    """What a UnixFS node stands for; the other kinds of the specification are refused."""

    RAW = 0
    DIRECTORY = 1
    FILE = 2


@dataclass(frozen=True, slots=True)
class Link:
    """A child of a node. `size` is what its publisher says that the whole subtree takes."""

    cid: Cid
    name: str
    size: int


@dataclass(frozen=True, slots=True)
class DagNode:
    """A decoded dag-pb block; `file_size` counts the bytes of the file below it (0: directory)."""

    links: tuple[Link, ...]
    kind: NodeKind
    data: bytes
    file_size: int


# -- names -----------------------------------------------------------------------------------------


def compute_blob_name(data: Buffer) -> BlobName:
    """Return the name of a whole blob in memory."""
    hasher = BlobHasher()
    hasher.update(data)
    return hasher.finish()


class BlobHasher:
    """Names a blob that arrives in pieces; keeps one chunk and at most DAG_WIDTH links a level."""

    def __init__(self) -> None:
        self._tree = _Tree()
        self._pending = bytearray()
        self._size = 0
        self._finished = False

    def update(self, chunk: Buffer) -> None:
        """Add the next bytes; pieces may have any length."""
        assert not self._finished
        view = memoryview(chunk)
        assert view.ndim == 1, view.ndim
        assert view.itemsize == 1, view.itemsize
        self._size += len(view)
        if self._pending:
            missing = CHUNK_BYTES - len(self._pending)
            self._pending += view[:missing]
            view = view[missing:]
            if len(self._pending) < CHUNK_BYTES:
                return
            self._tree.add(_make_leaf(self._pending))
            self._pending.clear()
        whole = len(view) - len(view) % CHUNK_BYTES
        for start in range(0, whole, CHUNK_BYTES):
            self._tree.add(_make_leaf(view[start : start + CHUNK_BYTES]))
        self._pending += view[whole:]

    def finish(self) -> BlobName:
        """Return the name. Nothing may be added afterwards."""
        assert not self._finished
        self._finished = True
        if self._pending or self._size == 0:
            self._tree.add(_make_leaf(self._pending))
        self._tree.finish()
        name = BlobName(self._tree.get_root().digest, self._size)
        assert get_blob_cid(name) == self._tree.get_root()
        return name


def get_blob_cid(name: BlobName) -> Cid:
    """Return the CID under which IPFS knows a blob: the codec follows from the size."""
    return Cid(RAW if name.size <= CHUNK_BYTES else DAG_PB, name.digest)


def is_named(name: BlobName, cid: Cid) -> bool:
    """Whether the CID is that of the blob."""
    return get_blob_cid(name) == cid


def encode_cid(cid: Cid | BlobName) -> str:
    """Return the text form: `b` and lower-case base32 without padding."""
    if isinstance(cid, BlobName):
        cid = get_blob_cid(cid)
    return "b" + base64.b32encode(_encode_binary(cid)).decode("ascii").lower().rstrip("=")


def decode_cid(text: str) -> Cid:
    """Return the CID of a text form, of which there is exactly one. Raises InvalidBlobName."""
    if len(text) != _CID_TEXT_CHARACTERS or not text.isascii() or text[0] != "b":
        raise InvalidBlobName(
            "cid_malformed",
            f"{text[:64]!a} is not a CIDv1 in base32: 59 characters from b; "
            "`ipfs cid format -v 1 -b base32` converts others",
        )
    try:
        binary = base64.b32decode(text[1:].upper() + "======")
    except ValueError as error:
        raise InvalidBlobName("cid_malformed", f"{text!a} is not base32") from error
    cid = _decode_binary(binary)
    if encode_cid(cid) != text:
        raise InvalidBlobName("cid_malformed", f"{text!a} is not in the canonical form")
    return cid


def _encode_binary(cid: Cid) -> bytes:
    assert cid.codec in (RAW, DAG_PB), cid.codec
    assert len(cid.digest) == 32, len(cid.digest)
    return bytes((1, cid.codec)) + _SHA2_256 + cid.digest


def _decode_binary(binary: bytes) -> Cid:
    """Read a binary CIDv1, or a CIDv0, which means the same as a CIDv1 of a dag-pb node."""
    if len(binary) == 34 and binary[:2] == _SHA2_256:
        return Cid(DAG_PB, Digest(binary[2:]))
    if len(binary) != 36 or binary[0] != 1 or binary[2:4] != _SHA2_256:
        raise InvalidBlobName("cid_hash", "a CID of ours is a CIDv1 with a SHA2-256 of 32 bytes")
    if binary[1] not in (RAW, DAG_PB):
        raise InvalidBlobName("cid_codec", f"codec 0x{binary[1]:02x} is neither raw nor dag-pb")
    return Cid(binary[1], Digest(binary[4:]))


# -- blocks ----------------------------------------------------------------------------------------


def iter_blocks(data: Buffer) -> Iterator[tuple[Cid, bytes]]:
    """Yield every IPFS block of a file, children before their parents, the root last."""
    view = memoryview(data)
    tree = _Tree()
    for start in range(0, max(len(view), 1), CHUNK_BYTES):
        chunk = bytes(view[start : start + CHUNK_BYTES])
        leaf = _make_leaf(chunk)
        yield leaf.cid, chunk
        yield from tree.add(leaf)
    yield from tree.finish()


def compute_directory(entries: Mapping[str, tuple[Cid, int]]) -> tuple[Cid, int, bytes]:
    """Return (CID, cumulative size, block) of the UnixFS directory that kubo makes of `entries`.

    Each entry maps a name to its CID and cumulative size: what IPFS calls Tsize, the bytes of all
    blocks below. Raises InvalidBlobName for names that are no file names, and for directories so
    large that kubo would shard them.
    """
    for name in entries:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise InvalidBlobName("directory_name", f"{name!a} cannot be the name of a file")
    try:
        children = sorted((name.encode(), child) for name, child in entries.items())
    except UnicodeEncodeError as error:
        raise InvalidBlobName("directory_name", "a file name is not Unicode text") from error
    links = [_Link(cid, name, size, 0) for name, (cid, size) in children]
    if sum(36 + len(link.name) for link in links) >= MAX_DIRECTORY_BYTES:
        raise InvalidBlobName(
            "directory_too_large", f"{len(links)} entries; put them into several directories"
        )
    block = _encode_node(links, _number_field(1, NodeKind.DIRECTORY))
    cid = Cid(DAG_PB, Digest(hashlib.sha256(block).digest()))
    return cid, len(block) + sum(link.tree_size for link in links), block


@dataclass(frozen=True, slots=True)
class _Link:
    cid: Cid
    name: bytes
    tree_size: int
    file_size: int


def _make_leaf(chunk: Buffer) -> _Link:
    return _Link(Cid(RAW, Digest(hashlib.sha256(chunk).digest())), b"", len(chunk), len(chunk))


class _Tree:
    """A balanced tree that grows from the left; `add` and `finish` return the nodes made."""

    def __init__(self) -> None:
        self._levels: list[list[_Link]] = [[]]

    def add(self, link: _Link, level: int = 0) -> list[tuple[Cid, bytes]]:
        made = self._close(level) if len(self._levels[level]) == DAG_WIDTH else []
        self._levels[level].append(link)
        return made

    def _close(self, level: int) -> list[tuple[Cid, bytes]]:
        """Put a node above the open links of a level."""
        children = self._levels[level]
        file_size = sum(child.file_size for child in children)
        unixfs = _number_field(1, NodeKind.FILE) + _number_field(3, file_size)
        unixfs += b"".join(_number_field(4, child.file_size) for child in children)
        block = _encode_node(children, unixfs)
        cid = Cid(DAG_PB, Digest(hashlib.sha256(block).digest()))
        tree_size = len(block) + sum(child.tree_size for child in children)
        self._levels[level] = []
        if level + 1 == len(self._levels):
            self._levels.append([])
        return [(cid, block), *self.add(_Link(cid, b"", tree_size, file_size), level + 1)]

    def finish(self) -> list[tuple[Cid, bytes]]:
        made: list[tuple[Cid, bytes]] = []
        level = 0
        while level + 1 < len(self._levels) or len(self._levels[level]) > 1:
            made += self._close(level)
            level += 1
        return made

    def get_root(self) -> Cid:
        (root,) = self._levels[-1]
        return root.cid


def _encode_node(links: list[_Link], unixfs: bytes) -> bytes:
    """Encode a dag-pb node: links first, although their field number is the higher one."""
    return b"".join(
        _bytes_field(
            2,
            _bytes_field(1, _encode_binary(link.cid))
            + _bytes_field(2, link.name)
            + _number_field(3, link.tree_size),
        )
        for link in links
    ) + _bytes_field(1, unixfs)


def _encode_varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _number_field(field: int, number: int) -> bytes:
    return _encode_varint(field << 3) + _encode_varint(number)


def _bytes_field(field: int, value: bytes) -> bytes:
    return _encode_varint(field << 3 | 2) + _encode_varint(len(value)) + value


# -- decoding nodes --------------------------------------------------------------------------------


def decode_node(block: bytes) -> DagNode:
    """Return the UnixFS node in a dag-pb block, from whomever. Raises InvalidBlobName."""
    if len(block) > MAX_NODE_BYTES:
        raise _malformed(f"{len(block)} bytes, the most is {MAX_NODE_BYTES}")
    links: list[Link] = []
    unixfs: bytes | None = None
    for field, value in _iter_fields(block):
        if field == 2 and isinstance(value, bytes):
            links.append(_decode_link(value))
        elif field == 1 and isinstance(value, bytes) and unixfs is None:
            unixfs = value
        else:
            raise _malformed(f"unexpected field {field}")
    if unixfs is None:
        raise _malformed("no UnixFS data")
    return _decode_unixfs(tuple(links), unixfs)


def _malformed(problem: str) -> InvalidBlobName:
    return InvalidBlobName("node_malformed", f"not a dag-pb node: {problem}")


def _decode_link(encoded: bytes) -> Link:
    cid: Cid | None = None
    name = ""
    size = 0
    last = 0
    for field, value in _iter_fields(encoded):
        if field <= last:
            raise _malformed("the fields of a link are repeated or out of order")
        last = field
        if field == 1 and isinstance(value, bytes):
            cid = _decode_binary(value)
        elif field == 2 and isinstance(value, bytes):
            try:
                name = value.decode()
            except UnicodeDecodeError as error:
                raise _malformed("the name of a link is not UTF-8") from error
        elif field == 3 and isinstance(value, int):
            size = value
        else:
            raise _malformed(f"unexpected field {field} in a link")
    if cid is None:
        raise _malformed("a link without a CID")
    return Link(cid, name, size)


def _decode_unixfs(links: tuple[Link, ...], encoded: bytes) -> DagNode:
    numbers: dict[int, int] = {}
    data: bytes | None = None
    block_sizes: list[int] = []
    for field, value in _iter_fields(encoded):
        if field == 2 and isinstance(value, bytes) and data is None:
            data = value
        elif field == 4 and isinstance(value, int):
            block_sizes.append(value)
        elif field in (1, 3) and isinstance(value, int) and field not in numbers:
            numbers[field] = value
        elif field <= 4:
            raise _malformed(f"field {field} of the UnixFS data is repeated or of another type")
    try:
        kind = NodeKind(numbers.get(1, -1))
    except ValueError as error:
        raise InvalidBlobName(
            "node_kind", "a node that is neither a file nor a plain directory"
        ) from error
    data = data or b""
    if kind is not NodeKind.DIRECTORY and len(block_sizes) != len(links):
        raise _malformed(f"{len(links)} links, but {len(block_sizes)} block sizes")
    file_size = len(data) + sum(block_sizes)
    if numbers.get(3, file_size) != file_size:
        raise _malformed("the file size is not the sum of its parts")
    return DagNode(links, kind, data, file_size)


def _iter_fields(encoded: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of a protobuf message; only varints and byte strings occur."""
    position = 0
    while position < len(encoded):
        key, position = _decode_varint(encoded, position)
        field, wire_type = key >> 3, key & 7
        if field == 0 or wire_type not in (0, 2):
            raise _malformed(f"field {field} of wire type {wire_type}")
        number, position = _decode_varint(encoded, position)
        if wire_type == 0:
            yield field, number
            continue
        if number > len(encoded) - position:
            raise _malformed(f"field {field} is cut off")
        yield field, encoded[position : position + number]
        position += number


def _decode_varint(encoded: bytes, position: int) -> tuple[int, int]:
    number = 0
    for index, byte in enumerate(encoded[position : position + 10]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if number >= 2**64 or (byte == 0 and index > 0):
                raise _malformed("a number that is too large or padded")
            return number, position + index + 1
    raise _malformed("a number without an end")

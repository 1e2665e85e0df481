"""Blobs over HTTP: upload of declared ones, and a read-only IPFS gateway for all that is here.

Every blob is an IPFS file, so its CID is its address under both `/blobs/` and `/ipfs/`. The gateway
answers for whole files: the bytes, their root block (`?format=raw`) or all their blocks as a CAR
(`?format=car`, CARv1 in depth-first order), each of which a client can verify against the CID.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from steelyard.chain.cid import DAG_PB, RAW, Cid, decode_cid, decode_node, encode_cid, iter_blocks
from steelyard.chain.errors import SteelyardError
from steelyard.chain.params import CHUNK_BYTES, MAX_BLOB_BYTES

from .metrics import Metrics
from .records import BlobFile
from .responses import StreamedResponse, answer_error, answer_json, drain, iter_body, parse_range
from .workers import WorkerPool

if TYPE_CHECKING:
    from .blobs import BlobUpload
    from .node import Node

WRITE_BYTES: Final = 2**20
"""Chunks of an upload are gathered to this size before a thread writes them."""
UPLOAD_IDLE_SECONDS: Final = 30.0
UPLOAD_SECONDS: Final = 60.0
MIN_UPLOAD_RATE: Final = 32 * 2**10
"""Bytes a second: an upload of n bytes may take UPLOAD_SECONDS + n / MIN_UPLOAD_RATE."""
STATUSES: Final = {
    "blob_undeclared": 403,
    "blob_size": 400,
    "blob_mismatch": 422,
    "blob_too_late": 410,
    "blob_quota": 429,
    "busy": 503,
    "disk_full": 507,
    "body_timeout": 408,
    "body_too_large": 413,
    "length_required": 411,
    "blob_too_large": 413,
    "blob_missing": 404,
    "bad_range": 416,
    "bad_format": 400,
}
"""HTTP statuses of our codes; 400 for the others."""
IMMUTABLE: Final = "public, max-age=31536000, immutable"
CAR_TYPE: Final = "application/vnd.ipld.car; version=1; order=dfs; dups=n"
RAW_TYPE: Final = "application/vnd.ipld.raw"


class Gateway:
    """PUT, GET and HEAD of /blobs/{cid}; GET and HEAD of /ipfs/{cid}."""

    def __init__(self, node: "Node", pool: WorkerPool, metrics: Metrics) -> None:
        self.node, self.pool, self.metrics = node, pool, metrics

    async def put_blob(self, request: Request) -> Response:
        """Store a blob that a pending transaction declares. 201 stored, 200 already here."""
        try:
            cid = decode_cid(request.path_params["cid"])
            size = parse_length(request.headers.get("content-length"))
            await self._receive(request, cid, size)
        except SteelyardError as error:
            self.metrics.uploads.labels(error.code).inc()
            await drain(request)
            if error.code == "blob_held":
                return answer_json({"cid": encode_cid(cid), "size": size})
            return answer_error(error, STATUSES.get(error.code, 400))
        except ClientDisconnect:
            self.metrics.uploads.labels("disconnected").inc()
            return Response(status_code=400)
        self.metrics.uploads.labels("stored").inc()
        return answer_json({"cid": encode_cid(cid), "size": size}, 201)

    async def _receive(self, request: Request, cid: Cid, size: int) -> None:
        upload = await self.pool.run(lambda: self.node.open_blob_upload(cid, size))
        try:
            await self._write_body(request, upload, size)
            await self.pool.run(upload.commit)
        except BaseException:
            upload.abort()  # not on the pool: a full pool or a cancelled task must not leak it
            raise

    async def _write_body(self, request: Request, upload: "BlobUpload", size: int) -> None:
        seconds = UPLOAD_SECONDS + size / MIN_UPLOAD_RATE
        buffer = bytearray()
        async for chunk in iter_body(request, seconds, UPLOAD_IDLE_SECONDS):
            buffer += chunk
            if len(buffer) >= WRITE_BYTES:
                full = bytes(buffer)
                buffer.clear()
                await self.pool.run(lambda full=full: upload.write(full))  # type: ignore[misc]
        if buffer:
            await self.pool.run(lambda: upload.write(bytes(buffer)))

    async def get_blob(self, request: Request) -> Response:
        """The bytes, whole or one range of them."""
        return await self._answer(request, "file")

    async def get_ipfs(self, request: Request) -> Response:
        """The bytes, the root block or a CAR, by `?format=` or the Accept header."""
        try:
            return await self._answer(request, get_format(request))
        except SteelyardError as error:
            return answer_error(error, STATUSES.get(error.code, 400))

    async def _answer(self, request: Request, form: str) -> Response:
        try:
            cid = decode_cid(request.path_params["cid"])
            blob, data = await self.pool.run(lambda: open_blob(self.node, cid))
            headers = get_headers(cid, form)
            if request.headers.get("if-none-match") == headers["etag"]:
                return Response(status_code=304, headers=headers)
            if form == "file":
                return self._answer_file(request, blob, data, headers)
            steps = iter_root(cid, data) if form == "raw" else iter_car(data)
            return self._stream(request, steps, 200, headers)
        except SteelyardError as error:
            return answer_error(error, STATUSES.get(error.code, 400))

    def _answer_file(
        self, request: Request, blob: BlobFile, data: mmap.mmap, headers: dict[str, str]
    ) -> Response:
        size = blob.name.size
        asked = request.headers.get("range")
        if request.headers.get("if-range", headers["etag"]) != headers["etag"]:
            asked = None
        start, stop, status = 0, size, 200
        headers["accept-ranges"] = "bytes"
        try:
            if (part := parse_range(asked, size)) is not None:
                (start, stop), status = part, 206
                headers["content-range"] = f"bytes {start}-{stop - 1}/{size}"
        except SteelyardError as error:
            response = answer_error(error, 416)
            response.headers["content-range"] = f"bytes */{size}"
            return response
        headers["content-length"] = str(stop - start)
        return self._stream(request, iter_file(data, start, stop), status, headers)

    def _stream(
        self, request: Request, steps: Iterator[bytes], status: int, headers: dict[str, str]
    ) -> Response:
        if request.method == "HEAD":
            return StreamedResponse(self.pool, iter(()), status, headers)
        return StreamedResponse(self.pool, steps, status, headers)


def parse_length(value: str | None) -> int:
    """The size of an upload, known before its first byte. Raises SteelyardError."""
    if value is None or not value.isascii() or not value.isdigit():
        raise SteelyardError("length_required", "send Content-Length: the size names the blob")
    size = int(value[:20])
    if not 1 <= size <= MAX_BLOB_BYTES:
        raise SteelyardError("blob_too_large", f"{size} bytes; a blob has 1 to {MAX_BLOB_BYTES}")
    return size


def get_format(request: Request) -> str:
    """`file`, `raw` or `car`: `?format=` first, then the Accept header."""
    form = request.query_params.get("format")
    if form is None:
        accept = request.headers.get("accept", "")
        by_accept = {"application/vnd.ipld.raw": "raw", "application/vnd.ipld.car": "car"}
        kinds = [one.split(";")[0].strip() for one in accept.split(",")]
        return next((by_accept[kind] for kind in kinds if kind in by_accept), "file")
    if form not in ("raw", "car"):
        raise SteelyardError("bad_format", "formats are raw and car; without one, the file's bytes")
    return form


def open_blob(node: "Node", cid: Cid) -> tuple[BlobFile, mmap.mmap]:
    """The blob and its bytes, mapped: they stay readable even if the file is deleted meanwhile."""
    blob = node.open_blob(cid)
    if blob is not None:
        try:
            with Path(blob.path).open("rb") as file:
                return blob, mmap.mmap(file.fileno(), blob.name.size, access=mmap.ACCESS_READ)
        except (FileNotFoundError, ValueError):
            pass  # it expired between the two steps, or is being replaced
    raise SteelyardError("blob_missing", f"{encode_cid(cid)} is not on this node; ask another")


def get_headers(cid: Cid, form: str) -> dict[str, str]:
    """What every form has: content that can never change, and is never a web page."""
    text = encode_cid(cid)
    types = {"file": "application/octet-stream", "raw": RAW_TYPE, "car": CAR_TYPE}
    tag = text if form == "file" else f"{text}.{form}"
    return {
        "content-type": types[form],
        "etag": f'"{tag}"',
        "cache-control": IMMUTABLE,
        "x-content-type-options": "nosniff",
        "x-ipfs-path": f"/ipfs/{text}",
        "x-ipfs-roots": text,
        "vary": "Accept",
    }


def iter_file(data: mmap.mmap, start: int, stop: int) -> Iterator[bytes]:
    for offset in range(start, stop, CHUNK_BYTES):
        yield data[offset : min(stop, offset + CHUNK_BYTES)]


def iter_root(cid: Cid, data: mmap.mmap) -> Iterator[bytes]:
    """The one block that the CID hashes to."""
    if cid.codec == RAW:
        yield data[:]
        return
    *_, (_, root) = (one for one in iter_blocks(memoryview(data)) if one[0].codec == DAG_PB)
    yield bytes(root)


def iter_car(data: mmap.mmap) -> Iterator[bytes]:
    """CARv1: a header that names the root, then each block once, parents before children."""
    nodes: dict[Cid, bytes] = {}
    leaves: dict[Cid, int] = {}
    offset, root = 0, None
    for cid, block in iter_blocks(memoryview(data)):
        root = cid
        if cid.codec == DAG_PB:
            nodes[cid] = bytes(block)
        else:
            leaves.setdefault(cid, offset)
            offset += CHUNK_BYTES
    assert root is not None
    name = encode_binary_cid(root)
    header = (
        b"\xa2\x65roots\x81\xd8\x2a\x58"
        + bytes([len(name) + 1])
        + b"\0"
        + name
        + b"\x67version\x01"
    )
    yield encode_varint(len(header)) + header
    written: set[Cid] = set()
    stack = [root]
    while stack:
        cid = stack.pop()
        if cid in written:
            continue
        written.add(cid)
        if cid in nodes:
            block = nodes[cid]
            stack.extend(link.cid for link in reversed(decode_node(block).links))
        else:
            block = data[leaves[cid] : leaves[cid] + CHUNK_BYTES]
        name = encode_binary_cid(cid)
        yield encode_varint(len(name) + len(block)) + name + block


def encode_binary_cid(cid: Cid) -> bytes:
    """Version, codec, then the multihash: sha2-256, 32 bytes."""
    return bytes([1, cid.codec, 0x12, 32]) + cid.digest


def encode_varint(number: int) -> bytes:
    """Unsigned LEB128."""
    groups = []
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])

"""Blobs go up only as declared and come back bit for bit, whole, in part, or as IPFS blocks."""

import hashlib
import socket
from collections.abc import Iterator

import httpx
import pytest

from steelyard.chain.cid import Cid, compute_blob_name, decode_cid, decode_node, encode_cid
from steelyard.chain.errors import SteelyardError
from steelyard.chain.params import CHUNK_BYTES, MAX_BLOB_BYTES
from steelyard.node.http import HttpServer
from steelyard.node.responses import parse_range

from .conftest import PATIENCE_SECONDS, Rpc, wait_until
from .double import DoubleNode, Upload

SMALL = b"small blob " * 10
LARGE = b"".join(hashlib.sha256(bytes([i % 251, i // 251])).digest() * 1024 for i in range(90))
"""Twelve chunks: a dag-pb tree."""


@pytest.fixture(scope="module")
def http(rpc: Rpc) -> httpx.Client:
    return rpc.http


@pytest.fixture(scope="module", params=["small", "large"])
def blob(request: pytest.FixtureRequest, node: DoubleNode) -> tuple[Cid, bytes]:
    data = {"small": SMALL, "large": LARGE}[request.param]
    return node.add_blob(data), data


def declare(node: DoubleNode, data: bytes, size: int | None = None) -> str:
    name = compute_blob_name(data)
    text = encode_cid(name)
    node.declared[decode_cid(text)] = len(data) if size is None else size
    return text


# -- up --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [1, 100_000, 3_000_000])
def test_a_declared_blob_is_stored_and_comes_back(
    http: httpx.Client, node: DoubleNode, size: int
) -> None:
    data = bytes([size % 256]) * size
    cid = declare(node, data)
    response = http.put(f"/blobs/{cid}", content=data)
    assert (response.status_code, response.json()) == (201, {"cid": cid, "size": size})
    assert http.get(f"/blobs/{cid}").content == data
    again = http.put(f"/blobs/{cid}", content=data)
    assert (again.status_code, again.json()) == (200, {"cid": cid, "size": size})


def refuse(response: httpx.Response, status: int, code: str) -> None:
    assert (response.status_code, response.json()["error"]) == (status, code)


def test_a_blob_that_nobody_declared_is_refused(http: httpx.Client) -> None:
    cid = encode_cid(compute_blob_name(b"nobody asked"))
    refuse(http.put(f"/blobs/{cid}", content=b"nobody asked"), 403, "blob_undeclared")


def test_a_large_refused_body_still_gets_its_reason(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steelyard.node.responses.DRAIN_SECONDS", PATIENCE_SECONDS)
    data = bytes(8_000_000)
    cid = encode_cid(compute_blob_name(data))
    refuse(http.put(f"/blobs/{cid}", content=data), 403, "blob_undeclared")


def test_other_bytes_than_named_are_refused_and_thrown_away(
    http: httpx.Client, node: DoubleNode
) -> None:
    cid = declare(node, b"what was promised")
    refuse(http.put(f"/blobs/{cid}", content=b"what is delivered"), 422, "blob_mismatch")
    assert not node.uploads[-1].is_open
    assert http.get(f"/blobs/{cid}").status_code == 404


def test_another_size_than_declared_is_refused(http: httpx.Client, node: DoubleNode) -> None:
    cid = declare(node, b"twelve bytes", size=13)
    refuse(http.put(f"/blobs/{cid}", content=b"twelve bytes"), 400, "blob_size")


def test_an_upload_must_say_its_length(http: httpx.Client, node: DoubleNode) -> None:
    cid = declare(node, b"no length")
    refuse(http.put(f"/blobs/{cid}", content=iter([b"no length"])), 411, "length_required")


@pytest.mark.parametrize("size", [0, MAX_BLOB_BYTES + 1])
def test_a_size_out_of_range_is_refused_before_a_byte_is_stored(
    server: HttpServer, node: DoubleNode, size: int
) -> None:
    cid = declare(node, b"any")
    head = f"PUT /blobs/{cid} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as one:
        one.sendall(f"{head}Expect: 100-continue\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: one.recv(65_536), b""))
    assert b"413" in answer.split(b"\r\n")[0]
    assert b'"blob_too_large"' in answer


def test_an_upload_that_is_cut_off_is_aborted(server: HttpServer, node: DoubleNode) -> None:
    data = b"half of this never arrives"
    cid = declare(node, data)
    before = len(node.aborted)
    head = f"PUT /blobs/{cid} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as one:
        one.sendall(head.encode() + data[:4])
        wait_until(lambda: bool(node.uploads) and node.uploads[-1].cid == decode_cid(cid))
    wait_until(lambda: len(node.aborted) > before)
    assert not node.uploads[-1].is_open


def test_an_upload_that_comes_too_slowly_is_aborted(
    server: HttpServer, node: DoubleNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steelyard.node.gateway.UPLOAD_IDLE_SECONDS", 0.05)
    monkeypatch.setattr("steelyard.node.responses.DRAIN_SECONDS", 0.05)
    data = b"never in full"
    cid = declare(node, data)
    head = f"PUT /blobs/{cid} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\nnev"
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as one:
        one.sendall(head.encode())
        assert b"408" in one.recv(65_536)
    assert not node.uploads[-1].is_open


@pytest.mark.parametrize(
    ("code", "status"),
    [("disk_full", 507), ("blob_quota", 429), ("blob_too_late", 410), ("blob_size", 400)],
)
def test_every_refusal_has_its_status(
    http: httpx.Client,
    node: DoubleNode,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    status: int,
) -> None:
    def refuse_commit(_self: Upload) -> None:
        raise SteelyardError(code, "no")

    monkeypatch.setattr(Upload, "commit", refuse_commit)
    data = f"refused with {code}".encode()
    refuse(http.put(f"/blobs/{declare(node, data)}", content=data), status, code)
    assert not node.uploads[-1].is_open


@pytest.mark.parametrize("cid", ["x", "Qm" + "1" * 44, "b", "bafkrei", "b" + "a" * 500, "%00", "é"])
@pytest.mark.parametrize(("method", "path"), [("PUT", "blobs"), ("GET", "blobs"), ("GET", "ipfs")])
def test_what_is_no_cid_is_refused(http: httpx.Client, cid: str, method: str, path: str) -> None:
    response = http.request(method, f"/{path}/{cid}", content=b"x" if method == "PUT" else None)
    assert response.status_code == 400
    assert response.json()["error"].startswith("cid_")


# -- down ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", ["blobs", "ipfs"])
def test_the_bytes_come_back_and_may_be_cached_for_ever(
    http: httpx.Client, blob: tuple[Cid, bytes], path: str
) -> None:
    cid, data = encode_cid(blob[0]), blob[1]
    response = http.get(f"/{path}/{cid}")
    assert response.content == data
    assert response.headers["content-length"] == str(len(data))
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "immutable" in response.headers["cache-control"]
    tag = response.headers["etag"]
    assert http.get(f"/{path}/{cid}", headers={"if-none-match": tag}).status_code == 304
    head = http.head(f"/{path}/{cid}")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(data))


def test_a_blob_that_is_not_here_is_404(http: httpx.Client) -> None:
    cid = encode_cid(compute_blob_name(b"elsewhere"))
    for path in ("blobs", "ipfs"):
        refuse(http.get(f"/{path}/{cid}"), 404, "blob_missing")
        assert http.head(f"/{path}/{cid}").status_code == 404


def test_a_blob_deleted_between_index_and_file_is_404(http: httpx.Client, node: DoubleNode) -> None:
    cid = node.add_blob(b"about to expire")
    node.files[compute_blob_name(b"about to expire")].unlink()
    refuse(http.get(f"/blobs/{encode_cid(cid)}"), 404, "blob_missing")


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=5-", slice(5, None)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=10-19", slice(10, 20)),
        ("bytes=100-99999999999", slice(100, None)),
    ],
)
def test_a_range_is_answered_with_206(
    http: httpx.Client, blob: tuple[Cid, bytes], asked: str, part: slice
) -> None:
    response = http.get(f"/blobs/{encode_cid(blob[0])}", headers={"range": asked})
    assert (response.status_code, response.content) == (206, blob[1][part])
    start = range(len(blob[1]))[part][0]
    expected = f"bytes {start}-{start + len(response.content) - 1}/{len(blob[1])}"
    assert response.headers["content-range"] == expected


@pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=-0"])
def test_a_range_outside_the_blob_is_416(
    http: httpx.Client, blob: tuple[Cid, bytes], asked: str
) -> None:
    response = http.get(f"/blobs/{encode_cid(blob[0])}", headers={"range": asked})
    refuse(response, 416, "bad_range")
    assert response.headers["content-range"] == f"bytes */{len(blob[1])}"


@pytest.mark.parametrize(
    "asked", ["bytes=", "bytes=-", "lines=1-2", "bytes=0-1,4-5", "bytes=9-3", "x"]
)
def test_a_range_that_means_nothing_gets_the_whole(asked: str) -> None:
    assert parse_range(asked, 100) is None


def test_a_range_of_another_version_gets_the_whole(
    http: httpx.Client, blob: tuple[Cid, bytes]
) -> None:
    headers = {"range": "bytes=0-0", "if-range": '"other"'}
    response = http.get(f"/blobs/{encode_cid(blob[0])}", headers=headers)
    assert (response.status_code, response.content) == (200, blob[1])


def test_the_raw_block_hashes_to_the_cid(http: httpx.Client, blob: tuple[Cid, bytes]) -> None:
    cid = encode_cid(blob[0])
    response = http.get(f"/ipfs/{cid}?format=raw")
    assert response.headers["content-type"] == "application/vnd.ipld.raw"
    assert hashlib.sha256(response.content).digest() == blob[0].digest
    accept = {"accept": "application/vnd.ipld.raw"}
    assert http.get(f"/ipfs/{cid}", headers=accept).content == response.content


def read_varint(data: bytes, offset: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (data[offset] & 0x7F) << shift
        offset, shift = offset + 1, shift + 7
        if data[offset - 1] < 0x80:
            return number, offset


def iter_car_blocks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (binary CID, block); the first pair is (b"", header)."""
    size, offset = read_varint(data, 0)
    yield b"", data[offset : offset + size]
    offset += size
    while offset < len(data):
        size, offset = read_varint(data, offset)
        yield data[offset : offset + 36], data[offset + 36 : offset + size]
        offset += size


def test_a_car_holds_every_block_after_its_parent(
    http: httpx.Client, blob: tuple[Cid, bytes]
) -> None:
    cid, data = blob
    response = http.get(f"/ipfs/{encode_cid(cid)}?format=car")
    assert response.headers["content-type"].startswith("application/vnd.ipld.car; version=1")
    (_, header), *blocks = iter_car_blocks(response.content)
    binary = bytes([1, cid.codec, 0x12, 32]) + cid.digest
    assert header == b"\xa2eroots\x81\xd8\x2a\x58\x25\x00" + binary + b"gversion\x01"
    assert blocks[0][0] == binary
    for name, block in blocks:
        assert hashlib.sha256(block).digest() == name[4:]
    assert len({name for name, _ in blocks}) == len(blocks)
    by_digest = {name[4:]: block for name, block in blocks}
    if cid.codec == 0x70:
        links = decode_node(blocks[0][1]).links
        assert b"".join(by_digest[link.cid.digest] for link in links) == data
    else:
        assert blocks[0][1] == data


def test_a_car_of_repeated_chunks_holds_each_once(http: httpx.Client, node: DoubleNode) -> None:
    cid = node.add_blob(bytes(3 * CHUNK_BYTES) + b"end")
    _, *blocks = iter_car_blocks(http.get(f"/ipfs/{encode_cid(cid)}?format=car").content)
    assert [len(block) for _, block in blocks[1:]] == [CHUNK_BYTES, 3]


def test_an_unknown_format_is_refused(http: httpx.Client, blob: tuple[Cid, bytes]) -> None:
    refuse(http.get(f"/ipfs/{encode_cid(blob[0])}?format=tar"), 400, "bad_format")


def test_a_reader_that_leaves_early_harms_nobody(
    http: httpx.Client, server: HttpServer, node: DoubleNode
) -> None:
    cid = encode_cid(node.add_blob(bytes(20_000_000)))
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS) as one:
        one.sendall(f"GET /blobs/{cid} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b"200" in one.recv(1_000)
    assert http.get("/health").status_code == 200

"""Blob names: equal to what other IPFS implementations compute, and hostile input refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.chain import cid as module
from steelyard.chain.cid import (
    DAG_PB,
    MAX_NODE_BYTES,
    RAW,
    BlobHasher,
    Cid,
    NodeKind,
    compute_blob_name,
    compute_directory,
    decode_cid,
    decode_node,
    encode_cid,
    get_blob_cid,
    is_named,
    iter_blocks,
)
from steelyard.chain.errors import InvalidBlobName
from steelyard.chain.params import CHUNK_BYTES
from steelyard.chain.types import BlobName, Digest

GOLDENS = json.loads((Path(__file__).parents[1] / "data" / "cid_goldens.json").read_text())
DIGEST = Digest(bytes(range(32)))


def make_bytes(seed: str, size: int) -> bytes:
    return hashlib.shake_256(seed.encode()).digest(size)


def refuse(code: str, call: Any, *arguments: Any) -> None:
    with pytest.raises(InvalidBlobName) as caught:
        call(*arguments)
    assert caught.value.code == code


@pytest.mark.parametrize("case", GOLDENS["files"], ids=lambda case: case["seed"])
def test_a_file_has_the_cid_that_other_implementations_compute(case: dict[str, Any]) -> None:
    name = compute_blob_name(make_bytes(case["seed"], case["size"]))
    assert encode_cid(name) == case["cid"]
    assert name.size == case["size"]
    assert is_named(name, decode_cid(case["cid"]))


def test_a_directory_has_the_cid_that_other_implementations_compute() -> None:
    def add(prefix: str) -> tuple[Cid, int]:
        children: dict[str, tuple[Cid, int]] = {}
        for entry in GOLDENS["directory"]["entries"]:
            path = str(entry["path"])
            if not path.startswith(prefix):
                continue
            head, _, rest = path.removeprefix(prefix).partition("/")
            if rest:
                children[head] = add(f"{prefix}{head}/")
            else:
                blocks = list(iter_blocks(make_bytes(entry["seed"], entry["size"])))
                children[head] = blocks[-1][0], sum(len(block) for _, block in blocks)
        cid, size, _ = compute_directory(children)
        return cid, size

    assert encode_cid(add("")[0]) == GOLDENS["directory"]["cid"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 175 * CHUNK_BYTES + 3])
def test_the_blocks_of_a_file_reproduce_it_from_its_root(size: int) -> None:
    data = make_bytes("blocks", size)
    blocks = dict(iter_blocks(data))
    root = list(iter_blocks(data))[-1][0]
    assert root == get_blob_cid(compute_blob_name(data))
    for cid, block in blocks.items():
        assert hashlib.sha256(block).digest() == cid.digest

    def read(cid: Cid) -> bytes:
        if cid.codec == RAW:
            return blocks[cid]
        node = decode_node(blocks[cid])
        assert node.kind is NodeKind.FILE
        content = node.data + b"".join(read(link.cid) for link in node.links)
        assert node.file_size == len(content)
        return content

    assert read(root) == data


def test_children_come_before_their_parents() -> None:
    seen: set[Cid] = set()
    for cid, block in iter_blocks(make_bytes("order", 175 * CHUNK_BYTES)):
        if cid.codec == DAG_PB:
            assert {link.cid for link in decode_node(block).links} <= seen
        seen.add(cid)


@given(st.lists(st.integers(0, 3 * CHUNK_BYTES), max_size=6))
@settings(max_examples=30, deadline=None)
def test_the_name_does_not_depend_on_how_the_bytes_arrive(pieces: list[int]) -> None:
    data = make_bytes("pieces", sum(pieces))
    hasher = BlobHasher()
    position = 0
    for piece in pieces:
        hasher.update(memoryview(data)[position : position + piece])
        position += piece
    assert hasher.finish() == compute_blob_name(data)


def test_any_kind_of_buffer_has_the_same_name() -> None:
    data = make_bytes("buffers", 300_000)
    name = compute_blob_name(data)
    array = np.frombuffer(data, dtype=np.uint8)
    for buffer in (bytearray(data), memoryview(data), array):
        assert compute_blob_name(buffer) == name  # type: ignore[arg-type]


def test_a_hasher_keeps_no_more_than_a_chunk_and_its_open_links() -> None:
    hasher = BlobHasher()
    for _ in range(400):
        hasher.update(bytes(CHUNK_BYTES - 1))
        assert len(hasher._pending) < CHUNK_BYTES
        assert all(len(level) <= module.DAG_WIDTH for level in hasher._tree._levels)


def test_a_root_node_stored_raw_shares_its_files_digest_but_not_its_name() -> None:
    data = make_bytes("twins", 300_000)
    root, block = list(iter_blocks(data))[-1]
    twin = compute_blob_name(block)
    assert twin.digest == root.digest
    assert twin != compute_blob_name(data)
    assert encode_cid(twin) != encode_cid(root)


@given(st.sampled_from([RAW, DAG_PB]), st.binary(min_size=32, max_size=32))
def test_text_and_cid_are_inverses(codec: int, digest: bytes) -> None:
    cid = Cid(codec, Digest(digest))
    assert decode_cid(encode_cid(cid)) == cid


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnSS7j",
        encode_cid(Cid(RAW, DIGEST)).upper(),
        encode_cid(Cid(RAW, DIGEST)) + "a",
        encode_cid(Cid(RAW, DIGEST))[:-1],
        encode_cid(Cid(RAW, DIGEST))[:-1] + "1",
        "b" + encode_cid(Cid(RAW, DIGEST))[1:].upper(),
        "b" + "é" * 58,
        "b" * 10**6,
    ],
)
def test_text_that_is_no_cid_of_ours_is_refused(text: str) -> None:
    refuse("cid_malformed", decode_cid, text)


def test_stray_bits_at_the_end_of_the_text_are_refused() -> None:
    text = encode_cid(Cid(RAW, DIGEST))
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"
    # 36 bytes are 288 bits, so the last of the 58 characters carries two bits of padding.
    assert alphabet.index(text[-1]) % 4 == 0
    for stray in range(1, 4):
        refuse("cid_malformed", decode_cid, text[:-1] + alphabet[alphabet.index(text[-1]) + stray])


def encode_any(binary: bytes) -> str:
    import base64

    return "b" + base64.b32encode(binary).decode().lower().rstrip("=")


def test_another_codec_is_refused() -> None:
    refuse("cid_codec", decode_cid, encode_any(bytes((1, 0x71, 0x12, 0x20)) + DIGEST))


def test_another_hash_or_version_is_refused() -> None:
    refuse("cid_hash", decode_cid, encode_any(bytes((1, RAW, 0x13, 0x20)) + DIGEST))
    refuse("cid_hash", decode_cid, encode_any(bytes((2, RAW, 0x12, 0x20)) + DIGEST))


def test_the_codec_follows_from_the_size() -> None:
    assert get_blob_cid(BlobName(DIGEST, CHUNK_BYTES)).codec == RAW
    assert get_blob_cid(BlobName(DIGEST, CHUNK_BYTES + 1)).codec == DAG_PB
    assert not is_named(BlobName(DIGEST, 1), Cid(DAG_PB, DIGEST))


# -- nodes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "\ud800"])
def test_a_directory_refuses_what_is_no_file_name(name: str) -> None:
    refuse("directory_name", compute_directory, {name: (Cid(RAW, DIGEST), 1)})


def test_a_directory_that_kubo_would_shard_is_refused() -> None:
    entries = {f"{index:0>200}": (Cid(RAW, DIGEST), 1) for index in range(1200)}
    refuse("directory_too_large", compute_directory, entries)


def test_a_directory_decodes_to_its_entries() -> None:
    child = Cid(RAW, DIGEST)
    cid, size, block = compute_directory({"é": (child, 7), "b": (child, 2**60)})
    node = decode_node(block)
    assert node.kind is NodeKind.DIRECTORY
    assert [(link.name, link.size) for link in node.links] == [("b", 2**60), ("é", 7)]
    assert (cid.codec, cid.digest) == (DAG_PB, hashlib.sha256(block).digest())
    assert size == len(block) + 7 + 2**60


def test_links_may_name_their_children_by_the_older_cid() -> None:
    link = module._bytes_field(1, b"\x12\x20" + DIGEST)
    block = module._bytes_field(2, link) + module._bytes_field(1, b"\x08\x01")
    assert decode_node(block).links[0].cid == Cid(DAG_PB, DIGEST)


GOOD = compute_directory({"name": (Cid(RAW, DIGEST), 5)})[2]
DATA = module._bytes_field(1, b"\x08\x01")


@pytest.mark.parametrize(
    "block",
    [
        b"",
        bytes(MAX_NODE_BYTES + 1),
        GOOD[:-1],
        GOOD + DATA,
        GOOD + b"\x1a\x00",
        GOOD + b"\x80",
        b"\xff" * 11,
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0a" + b"\x82\x00" + b"\x08\x01",
        b"\x08\x01",
        b"\x0b",
        module._bytes_field(1, b"\x08\x01\x08\x01"),
        module._bytes_field(1, b"\x0a\x01a"),
        module._bytes_field(2, b"") + DATA,
        module._bytes_field(2, b"\x18\x01" + b"\x0a\x00") + DATA,
        module._bytes_field(2, module._bytes_field(2, b"\xff")) + DATA,
        module._bytes_field(2, module._number_field(1, 1)) + DATA,
        module._bytes_field(1, b"\x08\x02\x18\x05"),
        module._bytes_field(1, b"\x08\x02\x20\x05"),
    ],
    ids=range(19),
)
def test_a_malformed_node_is_refused(block: bytes) -> None:
    refuse("node_malformed", decode_node, block)


@pytest.mark.parametrize("kind", [3, 4, 5, 6])
def test_metadata_links_and_shards_are_refused(kind: int) -> None:
    refuse("node_kind", decode_node, module._bytes_field(1, module._number_field(1, kind)))


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_no_bytes_make_the_node_decoder_fail_otherwise(block: bytes) -> None:
    try:
        node = decode_node(block)
    except InvalidBlobName:
        return
    assert node.file_size >= 0


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
@settings(max_examples=300)
def test_no_damage_makes_the_node_decoder_fail_otherwise(position: int, byte: int) -> None:
    block = bytearray(GOOD)
    block[position] = byte
    try:
        decode_node(bytes(block))
    except InvalidBlobName:
        return

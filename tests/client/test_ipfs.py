"""IPFS stores: kubo's CIDs, checked blocks, pins that share blocks, a daemon's answers."""

import hashlib
import json
from pathlib import Path

import pytest

from steelyard.chain.cid import CHUNK_BYTES, compute_blob_name, encode_cid
from steelyard.client.errors import ClientError
from steelyard.client.ipfs import DaemonStore, EmbeddedStore, open_store

from .daemon import serve_daemon

SIZES = [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7]


def make_bytes(size: int) -> bytes:
    return (b"steelyard " * (size // 10 + 1))[:size]


@pytest.fixture
def store(tmp_path: Path) -> EmbeddedStore:
    return EmbeddedStore(tmp_path / "ipfs")


@pytest.mark.parametrize("size", SIZES)
def test_a_file_comes_back_under_the_name_it_has_on_chain(store, size: int) -> None:
    data = make_bytes(size)
    cid = store.add(data)
    assert cid == encode_cid(compute_blob_name(data))
    assert store.get(cid) == data
    assert store.has(cid)
    assert store.list_pins() == [cid]


def test_a_directory_lists_its_files_and_their_trees(store) -> None:
    large = make_bytes(2 * CHUNK_BYTES)
    cid = store.add_directory({"a.txt": b"hello", "sub/b.bin": large})
    entries = store.get_directory(cid)
    assert sorted(entries) == ["a.txt", "sub"]
    assert store.get(encode_cid(entries["a.txt"])) == b"hello"
    inner = store.get_directory(encode_cid(entries["sub"]))
    assert store.get(encode_cid(inner["b.bin"])) == large
    with pytest.raises(ClientError) as caught:
        store.get(cid)
    assert caught.value.code == "ipfs_directory"


def test_a_damaged_block_is_never_returned(store, tmp_path: Path) -> None:
    cid = store.add(make_bytes(2 * CHUNK_BYTES))
    victim = max((tmp_path / "ipfs" / "blocks").glob("*/*"), key=lambda p: p.stat().st_size)
    victim.write_bytes(b"x" + victim.read_bytes()[1:])
    with pytest.raises(ClientError) as caught:
        store.get(cid)
    assert caught.value.code == "ipfs_damaged"


def test_what_is_not_stored_is_missing(store) -> None:
    cid = encode_cid(compute_blob_name(b"elsewhere"))
    assert not store.has(cid)
    with pytest.raises(ClientError) as caught:
        store.get(cid)
    assert caught.value.code == "ipfs_missing"


def test_unpinning_keeps_blocks_that_another_pin_needs(store, tmp_path: Path) -> None:
    shared = make_bytes(CHUNK_BYTES)
    first = store.add(shared + b"one")
    second = store.add(shared + b"two")
    store.unpin(first)
    assert store.get(second) == shared + b"two"
    assert not store.has(first)
    store.unpin(second)
    assert not [path for path in (tmp_path / "ipfs" / "blocks").glob("*/*")]


def test_a_daemon_is_asked_for_our_parameters_and_must_agree() -> None:
    with serve_daemon() as daemon:
        store = open_store(Path(), daemon.address)
        assert isinstance(store, DaemonStore)
        data = make_bytes(2 * CHUNK_BYTES + 5)
        cid = store.add(data)
        assert cid == encode_cid(compute_blob_name(data))
        assert daemon.parameters["cid-version"] == "1"
        assert daemon.parameters["raw-leaves"].lower() == "true"
        assert daemon.parameters["chunker"] == "size-262144"
        assert store.get(cid) == data
        assert store.has(cid)
        store.unpin(cid)
        assert not store.has(cid)


def test_a_daemon_that_names_a_file_otherwise_is_not_believed() -> None:
    with serve_daemon() as daemon:
        store = DaemonStore(daemon.address)
        daemon.named = encode_cid(compute_blob_name(b"something else"))
        with pytest.raises(ClientError) as caught:
            store.add(b"hello")
        assert caught.value.code == "ipfs_mismatch"


def test_a_daemon_that_sends_other_bytes_is_not_believed() -> None:
    with serve_daemon() as daemon:
        store = DaemonStore(daemon.address)
        cid = store.add(b"hello")
        daemon.files[cid] = b"jello"
        with pytest.raises(ClientError) as caught:
            store.get(cid)
        assert caught.value.code == "ipfs_mismatch"


def test_an_absent_daemon_and_a_wrong_address_have_codes() -> None:
    with pytest.raises(ClientError) as caught:
        DaemonStore("/ip4/127.0.0.1/tcp/1", timeout_seconds=2).add(b"hello")
    assert caught.value.code == "ipfs_daemon"
    with pytest.raises(ClientError) as caught:
        DaemonStore("http//nonsense")
    assert caught.value.code == "ipfs_address"


def test_directories_have_the_cids_of_the_oracles(store) -> None:
    path = Path(__file__).parent.parent / "data" / "cid_goldens.json"
    golden = json.loads(path.read_text())["directory"]
    files = {
        entry["path"]: hashlib.shake_256(entry["seed"].encode()).digest(entry["size"])
        for entry in golden["entries"]
    }
    assert store.add_directory(files) == golden["cid"]

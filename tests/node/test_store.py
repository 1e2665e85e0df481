"""The chain on disk: one commit a block, and a broken directory is refused, never guessed about."""

import os
from dataclasses import replace
from pathlib import Path

import lmdb
import pytest

from steelyard.chain.errors import SteelyardError
from steelyard.chain.genesis import build_genesis, parse_genesis
from steelyard.chain.types import Epoch, Hash, Height
from steelyard.node.directory import GENESIS_FILE
from steelyard.node.store import (
    ChainStore,
    CorruptData,
    Database,
    FinalBlock,
    StorageFull,
    encode_height,
)

from .world import found, make_blob

MAP_BYTES = 2**26
FIRST, _ = make_blob(10)
SECOND, _ = make_blob(20)


@pytest.fixture(scope="module")
def genesis(tmp_path_factory: pytest.TempPathFactory) -> FinalBlock:
    directory = found(tmp_path_factory.mktemp("store") / "node")
    state = build_genesis(parse_genesis((directory / GENESIS_FILE).read_bytes()))
    return FinalBlock(state.block, (), state.nodes, (), state.epoch_set)


@pytest.fixture
def store(tmp_path: Path, genesis: FinalBlock) -> ChainStore:
    store = ChainStore(tmp_path / "chain", MAP_BYTES)
    store.commit([genesis], None, {})
    return store


def test_a_committed_block_is_found_by_hash_and_height(
    store: ChainStore, genesis: FinalBlock
) -> None:
    block = genesis.block
    assert store.get_head() == block.header
    assert store.get_hash(0) == block.hash
    assert store.get_height(block.hash) == 0
    assert store.get_header(block.hash) == block.header
    assert store.get_block(block.hash) == block
    assert store.get_receipts(block.hash) == ()
    assert store.get_node(block.header.state_root) is not None
    store.check(block.hash)


def test_what_is_not_there_is_none(store: ChainStore) -> None:
    unknown = Hash(b"\x77" * 32)
    assert store.get_hash(1) is None
    assert store.get_hash(-1) is None
    assert store.get_hash(2**64) is None
    assert store.get_header(unknown) is None
    assert store.get_header(Hash(b"")) is None
    assert store.get_block(unknown) is None
    assert store.get_receipts(unknown) == ()
    assert store.get_certificate(0) is None
    assert store.find_transaction(unknown) is None
    assert store.find_transaction(Hash(b"")) is None
    assert store.get_node(b"\x77" * 32) is None


def test_the_later_expiry_of_a_blob_wins(store: ChainStore, genesis: FinalBlock) -> None:
    expiries = ((FIRST, 100), (SECOND, 50), (FIRST, 200), (FIRST, 150))
    store.commit([FinalBlock(genesis.block, (), {}, expiries)], None, {})
    assert store.get_blob_expiry(FIRST) == 200
    assert store.scan_expired(50, 10) == []
    assert store.scan_expired(51, 10) == [SECOND]
    assert store.scan_expired(201, 10) == [SECOND, FIRST]
    store.forget_blobs([SECOND, SECOND])
    assert store.get_blob_expiry(SECOND) is None
    assert store.scan_expired(201, 10) == [FIRST]


def test_the_journal_is_written_read_and_dropped(store: ChainStore, genesis: FinalBlock) -> None:
    store.write_journal({b"a": b"1", b"b": b"2"})
    store.commit([genesis], None, {b"a": None, b"c": b"3"})
    assert store.read_journal() == [(b"b", b"2"), (b"c", b"3")]


# -- broken directories ----------------------------------------------------------------------------
def tamper(store: ChainStore, table: str, key: bytes, value: bytes | None) -> None:
    with store.database.write() as writer:
        if value is None:
            writer.delete(table, key)
        else:
            writer.put(table, key, value)


def test_another_genesis_is_refused(store: ChainStore) -> None:
    with pytest.raises(SteelyardError) as caught:
        store.check(Hash(b"\x01" * 32))
    assert caught.value.code == "genesis_mismatch"


def test_another_format_is_refused(store: ChainStore, genesis: FinalBlock) -> None:
    tamper(store, "meta", b"schema", b"0")
    with pytest.raises(SteelyardError) as caught:
        store.check(genesis.block.hash)
    assert caught.value.code == "data_schema"


def test_an_altered_header_is_refused(store: ChainStore, genesis: FinalBlock) -> None:
    tamper(store, "headers", encode_height(0), b"\xc0")
    with pytest.raises(CorruptData, match="node init"):
        store.check(genesis.block.hash)


def test_a_missing_state_is_refused(store: ChainStore, genesis: FinalBlock) -> None:
    tamper(store, "nodes", genesis.block.header.state_root, None)
    with pytest.raises(CorruptData, match="state"):
        store.check(genesis.block.hash)


def test_an_altered_state_node_is_never_returned(store: ChainStore, genesis: FinalBlock) -> None:
    tamper(store, "nodes", genesis.block.header.state_root, b"\x80")
    with pytest.raises(CorruptData, match="altered"):
        store.get_node(genesis.block.header.state_root)


def test_a_truncated_file_is_refused_before_it_can_kill_the_process(store: ChainStore) -> None:
    store.close()
    os.truncate(store.path / "data.mdb", 3 * 4096)
    with pytest.raises(CorruptData, match=r"data\.mdb"):
        ChainStore(store.path, MAP_BYTES)


@pytest.mark.parametrize("content", [b"", b"\x00" * 4096, b"\xff" * 8192, os.urandom(100_000)])
def test_garbage_in_place_of_the_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "chain"
    path.mkdir()
    (path / "data.mdb").write_bytes(content)
    if not content:
        assert ChainStore(path, MAP_BYTES).is_empty()
        return
    with pytest.raises(CorruptData):
        ChainStore(path, MAP_BYTES)


# -- full disks ------------------------------------------------------------------------------------
def test_a_full_map_is_told_apart_and_keeps_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "small", ("one",), 2**16)
    with database.write() as writer:
        writer.put("one", b"kept", b"1")
    with pytest.raises(StorageFull) as caught, database.write() as writer:
        writer.put("one", b"new", b"2" * 10**6)
    assert caught.value.code == "disk_full"
    assert database.get("one", b"new") is None
    assert database.get("one", b"kept") == b"1"
    database.close()


@pytest.mark.parametrize(
    "error",
    [
        lmdb.DiskError("x"),
        lmdb.PanicError("x"),
        lmdb.Error("mdb_txn_commit: No space left on device"),
        lmdb.Error("mdb_txn_commit: Input/output error"),  # what a full tmpfs gives
    ],
)
def test_a_full_disk_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: lmdb.Error
) -> None:
    from steelyard.node import store as module

    with pytest.raises(StorageFull), module.storage_errors(tmp_path):
        raise error


def test_an_error_of_our_own_leaves_a_write_undone(store: ChainStore) -> None:
    with pytest.raises(ZeroDivisionError), store.database.write() as writer:  # noqa: PT012
        writer.put("journal", b"x", b"1")
        raise ZeroDivisionError
    assert store.read_journal() == []


# -- the validators of the epochs ------------------------------------------------------------------
def test_genesis_begins_epoch_0_and_a_boundary_block_the_next(
    store: ChainStore, genesis: FinalBlock
) -> None:
    assert genesis.next_set is not None
    assert store.get_epoch_set(0) == genesis.next_set
    assert store.find_epoch_set(1) is None
    following = replace(genesis.next_set, epoch=Epoch(1))
    store.commit([replace(genesis, next_set=following)], None, {})
    assert store.get_epoch_set(1) == following
    assert store.get_epoch_set(0) == genesis.next_set


def test_the_validators_of_an_epoch_that_is_not_here_are_missing_data(store: ChainStore) -> None:
    for epoch in (1, -1, 2**64):
        assert store.find_epoch_set(epoch) is None
        with pytest.raises(CorruptData, match="missing"):
            store.get_epoch_set(epoch)


def test_validators_that_were_altered_on_disk_are_not_believed(store: ChainStore) -> None:
    with store.database.write() as writer:
        writer.put("sets", encode_height(0), b"\xc0")
    with pytest.raises(CorruptData):
        store.get_epoch_set(0)


# -- rule changes ----------------------------------------------------------------------------------
def test_a_rule_change_is_scheduled_before_its_height(
    store: ChainStore, genesis: FinalBlock
) -> None:
    store.check_upgrades(())
    store.check_upgrades((("fork", 2),))
    store.check_upgrades((("fork", 3),))
    block = genesis.block
    header = replace(block.header, height=Height(3), parent_hash=block.hash)
    store.commit([FinalBlock(replace(block, header=header), (), {}, ())], None, {})
    store.check_upgrades((("fork", 3),))
    store.check_upgrades((("fork", 3), ("later", 4)))
    for forks in ((), (("fork", 2),), (("fork", 4),), (("fork", 3), ("other", 3))):
        with pytest.raises(SteelyardError) as caught:
            store.check_upgrades(forks)
        assert caught.value.code == "upgrade_late"


def test_a_rule_change_of_genesis_is_no_late_one(store: ChainStore) -> None:
    store.check_upgrades((("fork", 0),))
    store.check_upgrades((("fork", 0),))
    with pytest.raises(SteelyardError):
        store.check_upgrades(())

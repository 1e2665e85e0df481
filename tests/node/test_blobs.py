"""Blob files: named by what they hold, complete or absent, never silently wrong."""

import errno
import mmap
import os
from pathlib import Path

import pytest

from steelyard.chain.cid import encode_cid, get_blob_cid
from steelyard.chain.errors import SteelyardError, UnavailableBlob
from steelyard.node.blobs import BlobStore
from steelyard.node.config import BlobsConfig
from steelyard.node.store import StorageFull

from .world import make_blob

SMALL, SMALL_DATA = make_blob(1_000)
LARGE, LARGE_DATA = make_blob(600_000)
LARGE_2, _ = make_blob(600_000, 1)


def receive(store: BlobStore, data: bytes, name: object = SMALL) -> None:
    upload = store.open_upload(name, lambda _: True)  # type: ignore[arg-type]
    upload.write(data)
    upload.commit()


@pytest.mark.parametrize(("name", "data"), [(SMALL, SMALL_DATA), (LARGE, LARGE_DATA)])
def test_an_uploaded_blob_can_be_read_and_found_after_a_restart(
    tmp_path: Path, name: object, data: bytes
) -> None:
    receive(BlobStore(tmp_path, BlobsConfig()), data, name)
    store = BlobStore(tmp_path, BlobsConfig())
    assert bytes(store.read(name)) == data  # type: ignore[arg-type]
    found = store.find(get_blob_cid(name))  # type: ignore[arg-type]
    assert found is not None
    assert found.name == name
    assert Path(found.path).read_bytes() == data
    assert store.get_size() == (1, len(data))


def test_a_made_blob_is_kept(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, BlobsConfig())
    store.put(LARGE, LARGE_DATA)
    store.put(LARGE, LARGE_DATA)
    assert bytes(store.read(LARGE)) == LARGE_DATA
    assert store.get_size() == (1, 600_000)
    assert store.get_waiting() == ()


def test_reading_what_is_not_here_says_so(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, BlobsConfig())
    with pytest.raises(UnavailableBlob):
        store.read(SMALL)
    assert store.find(get_blob_cid(SMALL)) is None


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (SMALL_DATA[:-1], "blob_size"),
        (SMALL_DATA + b"\0", "blob_size"),
        (SMALL_DATA[:-1] + b"\0", "blob_mismatch"),
    ],
)
def test_wrong_bytes_leave_nothing_behind(tmp_path: Path, data: bytes, code: str) -> None:
    store = BlobStore(tmp_path, BlobsConfig(max_uploads=1))
    upload = store.open_upload(SMALL, lambda _: True)
    with pytest.raises(SteelyardError) as caught:  # noqa: PT012
        upload.write(data)
        upload.commit()
    upload.abort()
    assert caught.value.code == code
    assert not store.has(SMALL)
    assert list((tmp_path / "uploads").iterdir()) == []
    receive(store, SMALL_DATA)


def test_a_blob_whose_transaction_left_comes_too_late(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, BlobsConfig())
    upload = store.open_upload(SMALL, lambda _: False)
    upload.write(SMALL_DATA)
    with pytest.raises(SteelyardError) as caught:
        upload.commit()
    assert caught.value.code == "blob_too_late"
    assert not store.has(SMALL)


def test_a_held_blob_is_not_taken_again(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, BlobsConfig())
    receive(store, SMALL_DATA)
    with pytest.raises(SteelyardError) as caught:
        store.open_upload(SMALL, lambda _: True)
    assert caught.value.code == "blob_held"


def test_waiting_bytes_are_limited_until_a_block_takes_them(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, BlobsConfig(max_pending_bytes=600_500))
    receive(store, SMALL_DATA)
    with pytest.raises(SteelyardError) as caught:
        store.open_upload(LARGE, lambda _: True)
    assert caught.value.code == "blob_quota"
    store.set_admitted([SMALL])
    receive(store, LARGE_DATA, LARGE)


def test_open_uploads_are_limited(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, BlobsConfig(max_uploads=1))
    upload = store.open_upload(SMALL, lambda _: True)
    with pytest.raises(SteelyardError) as caught:
        store.open_upload(LARGE, lambda _: True)
    assert caught.value.code == "blob_quota"
    upload.abort()
    store.open_upload(LARGE, lambda _: True).abort()


def test_slow_uploads_of_one_blob_make_room_for_others(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, BlobsConfig(max_uploads=3))
    slow, slower, good = (store.open_upload(SMALL, lambda _: True) for _ in range(3))
    slow.write(SMALL_DATA[:1])
    good.write(SMALL_DATA[:500])
    receive(store, LARGE_DATA, LARGE)
    last = store.open_upload(LARGE_2, lambda _: True)
    with pytest.raises(SteelyardError) as caught:
        slower.write(SMALL_DATA)
    assert caught.value.code == "blob_quota"
    good.write(SMALL_DATA[500:])
    good.commit()
    assert store.has(SMALL)
    assert store.count_incoming() == LARGE_2.size + SMALL.size - 1
    for upload in (slow, slower, last):
        upload.abort()
    assert store.count_incoming() == 0


def test_too_many_open_files_are_not_a_lost_blob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(tmp_path, BlobsConfig())
    receive(store, LARGE_DATA, LARGE)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", fail)
        assert bytes(store.read(LARGE)) == LARGE_DATA
        patch.setattr(Path, "open", fail)
        with pytest.raises(UnavailableBlob):
            store.read(LARGE)
        with pytest.raises(StorageFull):
            store.put(SMALL, SMALL_DATA)
    assert bytes(store.read(LARGE)) == LARGE_DATA


def test_two_uploads_of_one_blob_may_both_end(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, BlobsConfig())
    first, second = (store.open_upload(SMALL, lambda _: True) for _ in range(2))
    for upload in (first, second):
        upload.write(SMALL_DATA)
        upload.commit()
    assert store.get_size() == (1, 1_000)


def test_half_an_upload_is_swept_at_the_next_start(tmp_path: Path) -> None:
    BlobStore(tmp_path, BlobsConfig())
    (tmp_path / "uploads" / encode_cid(SMALL)).write_bytes(SMALL_DATA[:10])
    store = BlobStore(tmp_path, BlobsConfig())
    assert list((tmp_path / "uploads").iterdir()) == []
    assert store.get_size() == (0, 0)


@pytest.mark.parametrize("name_and_data", [(SMALL, SMALL_DATA), (LARGE, LARGE_DATA)])
def test_an_altered_file_is_set_aside_and_can_be_sent_again(
    tmp_path: Path, name_and_data: tuple[object, bytes]
) -> None:
    name, data = name_and_data
    receive(BlobStore(tmp_path, BlobsConfig()), data, name)
    path = next((tmp_path / "blobs").glob("??/*"))
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    store = BlobStore(tmp_path, BlobsConfig())
    with pytest.raises(UnavailableBlob):
        store.read(name)  # type: ignore[arg-type]
    assert not store.has(name)  # type: ignore[arg-type]
    receive(store, data, name)
    assert bytes(store.read(name)) == data  # type: ignore[arg-type]


def test_a_truncated_file_is_not_that_blob(tmp_path: Path) -> None:
    receive(BlobStore(tmp_path, BlobsConfig()), LARGE_DATA, LARGE)
    os.truncate(next((tmp_path / "blobs").glob("??/*")), 1_000)
    store = BlobStore(tmp_path, BlobsConfig())
    with pytest.raises(UnavailableBlob):
        store.read(LARGE)


def test_a_file_that_vanishes_becomes_unavailable(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, BlobsConfig())
    receive(store, SMALL_DATA)
    next((tmp_path / "blobs").glob("??/*")).unlink()
    with pytest.raises(UnavailableBlob):
        store.read(SMALL)
    assert not store.has(SMALL)


def test_strange_files_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "blobs" / "aa").mkdir(parents=True)
    (tmp_path / "blobs" / "aa" / "notes.txt").write_text("mine")
    assert BlobStore(tmp_path, BlobsConfig()).get_size() == (0, 0)


def test_a_deleted_blob_is_gone_and_its_readers_keep_their_bytes(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, BlobsConfig())
    receive(store, LARGE_DATA, LARGE)
    data = store.read(LARGE)
    assert store.delete([LARGE, SMALL], lambda name: name == SMALL) == (SMALL,)
    assert store.has(LARGE)
    store.delete([LARGE], lambda _: True)
    assert not (tmp_path / "blobs" / encode_cid(LARGE)[-2:] / encode_cid(LARGE)).exists()
    assert bytes(data) == LARGE_DATA
    assert store.get_size() == (0, 0)


def test_a_full_disk_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlobStore(tmp_path, BlobsConfig())

    def fail(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageFull) as caught:
        receive(store, SMALL_DATA)
    assert caught.value.code == "disk_full"
    with pytest.raises(StorageFull):
        store.put(SMALL, SMALL_DATA)
    monkeypatch.undo()
    assert not store.has(SMALL)
    assert list((tmp_path / "uploads").iterdir()) == []
    store.put(SMALL, SMALL_DATA)
    store.put(LARGE, LARGE_DATA)


# -- what a block needs ----------------------------------------------------------------------------
def test_what_a_block_needs_is_not_held_up_by_the_quota_of_uploads(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, BlobsConfig(max_uploads=0, max_pending_bytes=0))
    with pytest.raises(SteelyardError) as caught:
        store.open_upload(SMALL, lambda _: True)
    assert caught.value.code == "blob_quota"
    arrived: list[object] = []
    store.on_arrival = arrived.append
    upload = store.open_needed(SMALL, lambda _: True)
    assert store.count_incoming() == SMALL.size
    upload.write(SMALL_DATA)
    upload.commit()
    assert (store.has(SMALL), arrived, store.count_incoming()) == (True, [SMALL], 0)
    with pytest.raises(SteelyardError) as caught:
        store.open_needed(SMALL, lambda _: True)
    assert caught.value.code == "blob_held"

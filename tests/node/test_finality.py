"""What is cleaned up behind finality, and what is not."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from steelyard.chain.types import BlobName
from steelyard.node.blobs import BlobStore
from steelyard.node.config import BlobsConfig
from steelyard.node.finality import Finalizer

from .world import make_blob


def test_an_expired_blob_stays_while_an_unfinalized_block_declares_it_again(tmp_path: Path) -> None:
    name, data = make_blob(1_000)
    blobs = BlobStore(tmp_path, BlobsConfig())
    blobs.put(name, data)
    forgotten: list[BlobName] = []
    store = SimpleNamespace(scan_expired=lambda _at, _n: [name], forget_blobs=forgotten.extend)
    pool = SimpleNamespace(expire=tuple, is_declared=lambda _: False)
    declared = {name}
    tree = SimpleNamespace(
        root=SimpleNamespace(timestamp=9), get_declared=lambda: frozenset(declared)
    )
    parts = cast(Any, (store, blobs, pool, None, None))
    finalizer = Finalizer(*parts, archive=False)
    finalizer.keep_house(cast(Any, tree))
    assert blobs.has(name)
    declared.clear()
    finalizer.keep_house(cast(Any, tree))
    assert not blobs.has(name)
    assert forgotten == [name]


def test_an_upload_that_ends_after_its_block_waits_for_nothing(tmp_path: Path) -> None:
    name, data = make_blob(1_000)
    blobs = BlobStore(tmp_path, BlobsConfig(max_pending_bytes=2_000))
    uploads = [blobs.open_upload(name, lambda _: True) for _ in range(2)]
    for upload in uploads:
        upload.write(data)
    uploads[0].commit()
    blobs.set_admitted([name])  # its block is final
    uploads[1].commit()
    store = SimpleNamespace(get_blob_expiry={name: 99}.get, scan_expired=lambda _at, _n: [])
    pool = SimpleNamespace(expire=tuple, is_declared=lambda _: False)
    tree = SimpleNamespace(root=SimpleNamespace(timestamp=9), get_declared=frozenset)
    finalizer = Finalizer(*cast(Any, (store, blobs, pool, None, None)), archive=False)
    finalizer.keep_house(cast(Any, tree))
    assert blobs.get_waiting() == ()
    assert blobs.has(name)

"""A node that begins at a checkpoint trusts the operator's hash, and nothing else it is told."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from eth_utils.crypto import keccak

from steelyard.chain.block import MAX_ANCESTORS, encode_block
from steelyard.chain.epochs import EpochSet, encode_epoch_set
from steelyard.chain.errors import SteelyardError
from steelyard.chain.following import Checkpoint
from steelyard.chain.proofs import Account, encode_account
from steelyard.chain.rlp import decode_rlp, encode_rlp
from steelyard.chain.segments import InvalidSegment
from steelyard.chain.trie import build_trie
from steelyard.chain.types import Hash, Height
from steelyard.node.following import checkpoint, download
from steelyard.node.following import sources as sources_module
from steelyard.node.following.checkpoint import CheckpointStart
from steelyard.node.following.download import StateDownload
from steelyard.node.following.fetcher import Fetcher
from steelyard.node.following.sources import Sources
from steelyard.node.history import (
    HistoryMissing,
    StatePruned,
    check_history,
    check_state,
    get_first_executed,
)
from steelyard.node.store import StorageFull, Writer

from .follow_kit import BEGAN, Chain, Lie, SourceServer, serve
from .test_pruning import walk
from .world import ALICE, sign_transaction

NOW = BEGAN + 1_000
LAST = 11


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    one = Chain(tmp_path_factory.mktemp("chain"))
    for nonce in range(LAST):
        one.grow(1, [sign_transaction(ALICE, nonce, to=bytes([nonce + 1]) * 20)])
    yield one
    one.close()


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Chain]:
    one = Chain(tmp_path)
    yield one
    one.close()


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources that fail are given up at once."""
    monkeypatch.setattr(sources_module, "SILENT_SECONDS", 0.001)
    monkeypatch.setattr(download, "WAIT_SECONDS", 0.001)
    monkeypatch.setattr(download, "ROUNDS", 3)


def get_checkpoint(chain: Chain, height: int) -> Checkpoint:
    block_hash = chain.store.get_hash(height)
    assert block_hash is not None
    return Checkpoint(Height(height), block_hash)


def begin(copy: Chain, checkpoint: Checkpoint, *urls: str, now: int = NOW) -> Sources:
    fetcher = Fetcher()
    try:
        sources = Sources(urls, fetcher, copy.state.block.hash, time.monotonic)
        start = CheckpointStart(
            copy.store, copy.genesis, copy.state, sources, fetcher, lambda _: None
        )
        start.run(checkpoint, now)
        return sources
    finally:
        fetcher.close()


@pytest.mark.parametrize("height", [1, 2, 4, 5, 8, 10])
def test_the_store_begins_there_and_goes_on(height: int, chain: Chain, copy: Chain) -> None:
    with serve(chain) as source:
        begin(copy, get_checkpoint(chain, height), source.url)
    assert copy.head == chain.store.get_header(get_checkpoint(chain, height).hash)
    walk(copy.store, copy.head.state_root)
    copy.store.check(copy.state.block.hash)
    assert copy.store.get_recent_hashes(height, MAX_ANCESTORS) == chain.store.get_recent_hashes(
        height, MAX_ANCESTORS
    )
    for epoch in range(height // 4 + 1):
        assert copy.store.get_epoch_set(epoch) == chain.store.get_epoch_set(epoch)
        if epoch:
            assert copy.store.get_certificate(4 * epoch) == chain.store.get_certificate(4 * epoch)
    ours = copy.grow(1, [sign_transaction(ALICE, height, to=bytes([height + 1]) * 20)])[0]
    assert ours.hash == chain.store.get_hash(height + 1)


def test_what_lies_before_it_has_typed_errors(chain: Chain, copy: Chain) -> None:
    with serve(chain) as source:
        begin(copy, get_checkpoint(chain, 6), source.url)
    check_state(copy.store, 6)
    with pytest.raises(StatePruned):
        check_state(copy.store, 5)
    assert get_first_executed(copy.store) == 7
    with pytest.raises(HistoryMissing):
        check_history(copy.store, 6)


def test_a_download_that_was_killed_fetches_nothing_twice(
    chain: Chain, copy: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "BUNDLE", 4)
    asked: list[bytes] = []
    answered: list[int] = []

    def watch(path: str, body: bytes) -> tuple[int, bytes] | None:
        if "nodes" in path:
            if len(asked) > 12 and not answered:
                answered.append(len(asked))
                return 500, b""  # gone, as far as this run is concerned
            asked.extend(body[at : at + 32] for at in range(0, len(body), 32))
        return None

    monkeypatch.setattr(download, "ROUNDS", 1)
    with serve(chain, watch) as source:
        with pytest.raises(SteelyardError):
            begin(copy, get_checkpoint(chain, 6), source.url)
        assert copy.head.height == 0
        begin(copy, get_checkpoint(chain, 6), source.url)
    assert copy.head.height == 6
    assert 12 < answered[0] < len(asked) == len(set(asked))


@pytest.mark.parametrize("first", [b"a", b"b"])
def test_a_code_with_the_bytes_of_a_node_does_not_hide_what_is_below_the_node(
    first: bytes, chain: Chain, copy: Chain
) -> None:
    """Found in the same bundle, in either order."""
    storage, below = build_trie({keccak(bytes([n])): encode_rlp(b"x" * 32) for n in range(40)})
    code = Account(nonce=1, code_hash=storage)
    store = Account(nonce=1, storage_root=storage)
    last = b"a" if first == b"b" else b"b"
    accounts = {keccak(first): encode_account(store), keccak(last): encode_account(code)}
    root, above = build_trie(accounts)
    with chain.store.database.write() as writer:
        for key, data in (above | below).items():
            writer.put("nodes", key, data)
    fetcher = Fetcher()
    try:
        with serve(chain) as source:
            sources = Sources([source.url], fetcher, copy.state.block.hash, time.monotonic)
            StateDownload(copy.store, sources, fetcher.wait, lambda _: None).run(root)
    finally:
        fetcher.close()
    assert walk(copy.store, root) == above.keys() | below.keys()


def test_a_second_run_does_nothing(chain: Chain, copy: Chain) -> None:
    with serve(chain) as source:
        begin(copy, get_checkpoint(chain, 3), source.url)
        count = len(source.asked)
        begin(copy, get_checkpoint(chain, 9), source.url)
        assert len(source.asked) == count
    assert copy.head.height == 3


@pytest.mark.parametrize("by", [1, -1])
def test_an_old_checkpoint_is_refused(by: int, chain: Chain, copy: Chain) -> None:
    limit = copy.genesis.unbonding_seconds // 2
    with serve(chain) as source:
        now = BEGAN + 6 + limit + by
        if by < 0:
            begin(copy, get_checkpoint(chain, 6), source.url, now=now)
            return
        with pytest.raises(InvalidSegment) as caught:
            begin(copy, get_checkpoint(chain, 6), source.url, now=now)
    assert caught.value.code == "checkpoint_too_old"
    assert copy.head.height == 0


def test_a_hash_that_the_chain_does_not_have_is_refused(chain: Chain, copy: Chain) -> None:
    with serve(chain) as source, pytest.raises(SteelyardError, match="checkpoint_mismatch"):
        begin(copy, Checkpoint(Height(6), Hash(b"\x11" * 32)), source.url)
    assert copy.head.height == 0


def tell(chain: Chain, part: str, data: bytes) -> Lie:
    """The same bytes wherever the path contains `part`."""
    return lambda path, _: (200, data) if part in path else None


def spoil(chain: Chain) -> Lie:
    """Flip a bit in the last of the nodes asked for."""

    def lie(path: str, body: bytes) -> tuple[int, bytes] | None:
        if "nodes" not in path:
            return None
        _, data = SourceServer(chain).tell(path, body)
        *rows, last = decode_rlp(data)
        assert isinstance(last, bytes)
        return 200, encode_rlp([*rows, last[:-1] + bytes([last[-1] ^ 1])])

    return lie


def repeat(chain: Chain) -> Lie:
    """One node for all."""
    node = chain.store.get_node(chain.head.state_root)
    assert node is not None
    return tell(chain, "nodes", encode_rlp([node]))


LIES: dict[str, Callable[[Chain], Lie]] = {
    "another block": lambda c: tell(c, "blocks", encode_block(c.state.block)),
    "no block": lambda c: tell(c, "blocks", b"\x00" * 100),
    "other validators": lambda c: tell(
        c, "validators", encode_epoch_set(c.store.get_epoch_set(0))[:-1] + b"\x99"
    ),
    "no certificate": lambda c: tell(c, "certificates", b"\xc0"),
    "wrong nodes": spoil,
    "one node for all": repeat,
    "no nodes": lambda c: tell(c, "nodes", b"\xc0"),
    "nodes that do not decode": lambda c: tell(c, "nodes", b"\xff" * 99),
}


@pytest.mark.parametrize("name", LIES)
def test_a_source_that_lies_is_set_aside(name: str, chain: Chain, copy: Chain) -> None:
    with serve(chain, LIES[name](chain)) as liar, serve(chain) as honest:
        sources = begin(copy, get_checkpoint(chain, 6), liar.url, honest.url)
        assert sources.all[0].trouble
        assert not sources.all[1].trouble
    assert copy.head.height == 6
    walk(copy.store, copy.head.state_root)


@pytest.mark.parametrize("name", LIES)
def test_a_lie_alone_leaves_the_store_at_block_0(name: str, chain: Chain, copy: Chain) -> None:
    with serve(chain, LIES[name](chain)) as liar, pytest.raises(SteelyardError) as caught:
        begin(copy, get_checkpoint(chain, 6), liar.url)
    assert caught.value.code in {"sources_exhausted", "state_unavailable"}
    assert copy.head.height == 0


def test_a_certificate_of_a_later_block_is_no_proof(chain: Chain, copy: Chain) -> None:
    later = SourceServer(chain).tell("/chain/certificates/7", b"")[1]
    with (
        serve(chain, tell(chain, "certificates", later)) as source,
        pytest.raises(SteelyardError, match="checkpoint_unsealed"),
    ):
        begin(copy, get_checkpoint(chain, 6), source.url)


def test_sources_without_the_first_epochs_are_good_enough(chain: Chain, copy: Chain) -> None:
    lacking: Lie = lambda path, _: (404, b"") if "segments" in path else None  # noqa: E731
    with serve(chain, lacking) as source:
        begin(copy, get_checkpoint(chain, 10), source.url)
    assert copy.head.height == 10
    assert copy.store.find_epoch_set(1) is None
    assert copy.store.find_epoch_set(2) is not None


def test_a_full_disk_is_not_taken_for_sources_without_the_first_epochs(
    chain: Chain, copy: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = checkpoint.put_set, [0]

    def fail_once(writer: Writer, epoch_set: EpochSet) -> None:
        calls[0] += 1
        if calls[0] == 1:
            raise StorageFull("disk_full", "no space")
        original(writer, epoch_set)

    monkeypatch.setattr(checkpoint, "put_set", fail_once)
    with serve(chain) as source:
        with pytest.raises(StorageFull):
            begin(copy, get_checkpoint(chain, 10), source.url)
        begin(copy, get_checkpoint(chain, 10), source.url)
    assert copy.store.find_epoch_set(1) == chain.store.get_epoch_set(1)


def test_a_checkpoint_of_another_chain_is_refused(
    chain: Chain, copy: Chain, tmp_path: Path
) -> None:
    other = Chain(tmp_path / "other", "another")
    try:
        other.grow(2)
        with serve(other) as source, pytest.raises(SteelyardError) as caught:
            begin(copy, get_checkpoint(other, 2), source.url)
        assert caught.value.code == "genesis_mismatch"
    finally:
        other.close()

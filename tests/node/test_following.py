"""A node that follows over HTTP believes nobody, and gets there as long as one source is honest."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from steelyard.chain.block import decode_block, encode_block
from steelyard.chain.consensus.certificates import encode_certificate
from steelyard.chain.segments import FinalBlocks, decode_segment, encode_final_blocks
from steelyard.node.clock import Clock
from steelyard.node.config import FollowConfig
from steelyard.node.following import fetcher as fetcher_module
from steelyard.node.following import sources as sources_module
from steelyard.node.following import sync, together
from steelyard.node.following.sync import Follower, FollowerParts
from steelyard.node.store import encode_height
from tests.chain.evm_kit import OTHER_DOMAIN

from .follow_kit import Chain, Lie, SourceServer, seal, serve
from .world import ALICE, make_blob, sign_transaction, wait_until

LAST = 10
"""Height of the chain that is followed: two epochs are over."""


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No source is slow because this machine is busy."""
    monkeypatch.setattr(sources_module, "SLOW_SECONDS", 3_600.0)
    monkeypatch.setattr(sources_module, "HEAD_SECONDS", 60.0)
    monkeypatch.setattr(fetcher_module, "CONNECT_SECONDS", 60.0)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    one = Chain(tmp_path_factory.mktemp("chain"))
    one.grow(1, [sign_transaction(ALICE, 0)])
    one.grow(LAST - 1)
    yield one
    one.close()


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Chain]:
    one = Chain(tmp_path)
    yield one
    one.close()


@contextmanager
def follow(
    copy: Chain, *urls: str, is_member: bool = False, **changes: object
) -> Iterator[Follower]:
    """A follower of these sources that hands over to `copy`."""
    config = FollowConfig(nodes=urls, interval_seconds=0.01, trust_old_head=True)
    follower = Follower(
        FollowerParts(
            genesis=copy.genesis,
            config=replace(config, **changes),  # type: ignore[arg-type]
            store=copy.store,
            blobs=copy.blobs,
            deliver=copy.take,
            wake=lambda: None,
            is_member=lambda: is_member,
            clock=Clock(),
        )
    )
    follower.start()
    try:
        yield follower
    finally:
        follower.stop()


def answer(part: str, body: bytes | Callable[[], Iterator[bytes]]) -> Lie:
    """Say this wherever the path contains `part`."""
    return lambda path, _: (
        (200, body if isinstance(body, bytes) else body()) if part in path else None
    )


def forge(chain: Chain, change: Callable[[FinalBlocks], FinalBlocks]) -> Lie:
    """Change what the segments say."""
    source = SourceServer(chain)

    def lie(path: str, body: bytes) -> tuple[int, bytes] | None:
        if "segments" not in path:
            return None
        _, data = source.tell(path, body)
        return 200, encode_final_blocks(change(decode_segment(data)))

    return lie


def rob(segment: FinalBlocks) -> FinalBlocks:
    """Leave the first block's transactions out; its header still names them."""
    first, *rest = segment.blocks
    return replace(segment, blocks=(replace(first, transactions=(b"\x01",)), *rest))


def reseal(segment: FinalBlocks) -> FinalBlocks:
    """A certificate by the right validator under another genesis."""
    return replace(segment, certificate=seal(segment.blocks[-1], domain=OTHER_DOMAIN))


def skip(segment: FinalBlocks) -> FinalBlocks:
    return replace(segment, blocks=segment.blocks[1:])


def flood() -> Iterator[bytes]:
    while True:
        yield bytes(2**16)


def test_a_full_node_reaches_the_head_over_several_epochs(chain: Chain, copy: Chain) -> None:
    with serve(chain) as source, follow(copy, source.url) as follower:
        wait_until(lambda: copy.head.height == LAST)
        assert copy.head.hash == chain.head.hash
        assert copy.store.get_epoch_set(2) == chain.store.get_epoch_set(2)
        chain_status = follower.get_status()
        assert (chain_status.target, chain_status.behind, chain_status.refusal) == (LAST, 0, None)
        segments = [path for path in source.asked if "segments" in path]
        assert segments[:3] == [f"/chain/segments/{height}" for height in (1, 5, 9)]


# -- more than one answer holds --------------------------------------------------------------------
TOO_LARGE = b'{"error": "segment_too_large", "message": ""}'


@pytest.fixture(scope="module")
def lump(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """A chain whose blocks 5 to 7 became final together, and block 8 for itself."""
    one = Chain(tmp_path_factory.mktemp("lump"))
    one.grow(9)
    with one.store.database.write() as writer:
        for height in (5, 6):
            writer.delete("certificates", encode_height(height))
    yield one
    one.close()


def refuse(path: str, _body: bytes) -> tuple[int, bytes] | None:
    return (503, TOO_LARGE) if path == "/chain/segments/5" else None


def test_blocks_that_fit_into_no_segment_are_fetched_one_by_one(lump: Chain, copy: Chain) -> None:
    with serve(lump, refuse) as source, follow(copy, source.url) as follower:
        wait_until(lambda: copy.head.hash == lump.head.hash)
        assert follower.get_status().sources[source.url] == "9"
        blocks = [path for path in source.asked if "blocks" in path]
        assert blocks == [f"/chain/blocks/{height}" for height in (7, 6, 5)]


def give_another_block(chain: Chain, path: str) -> bytes | None:
    return SourceServer(chain).tell("/chain/blocks/4", b"")[1] if path.endswith("/6") else None


def give_another_body(chain: Chain, path: str) -> bytes | None:
    if not path.endswith("blocks/6"):
        return None
    block = decode_block(SourceServer(chain).tell(path, b"")[1])
    return encode_block(replace(block, transactions=(b"\x01",)))


def give_a_forged_certificate(chain: Chain, path: str) -> bytes | None:
    if "certificates" not in path:
        return None
    block = chain.store.get_block(chain.head.hash)
    assert block is not None
    return encode_certificate(seal(block, domain=OTHER_DOMAIN))


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        (give_another_block, "checkpoint_mismatch"),
        (give_another_body, "segment_body"),
        (give_a_forged_certificate, "segment_certificate"),
    ],
)
def test_a_lie_about_one_of_them_is_seen_at_once(
    lie: Callable[[Chain, str], bytes | None], code: str, lump: Chain, copy: Chain
) -> None:
    def tell(path: str, body: bytes) -> tuple[int, bytes] | None:
        data = lie(lump, path)
        return refuse(path, body) if data is None else (200, data)

    with serve(lump, tell) as liar, follow(copy, liar.url) as follower:
        wait_until(lambda: follower.get_status().sources[liar.url].startswith(code))
        assert copy.head.height == 4


def test_more_than_memory_may_hold_is_not_fetched(
    lump: Chain, copy: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "MAX_TOGETHER_BYTES", 1_000)
    with serve(lump, refuse) as source, follow(copy, source.url) as follower:
        wait_until(lambda: "source_block" in follower.get_status().sources[source.url])


# -- lies ------------------------------------------------------------------------------------------
LIES: dict[str, tuple[Callable[[Chain], Lie], str]] = {
    "a block without its transactions": (lambda c: forge(c, rob), "segment_body"),
    "a certificate of another chain": (lambda c: forge(c, reseal), "segment_certificate"),
    "a block left out": (lambda c: forge(c, skip), "segment_link"),
    "bytes cut off": (
        lambda c: (
            lambda path, body: (
                (200, SourceServer(c).tell(path, body)[1][:-1]) if "segments" in path else None
            )
        ),
        "segment_malformed",
    ),
    "no bytes": (lambda _: answer("segments", b""), "segment_malformed"),
    "a bare block": (
        lambda c: answer("segments", encode_block(c.state.block)),
        "segment_malformed",
    ),
    "a head of another chain": (
        lambda c: answer("head", SourceServer(c).tell_head(genesis_hash="0x" + "11" * 32)),
        "source_chain",
    ),
    "a head that is no JSON": (lambda _: answer("head", b"<html>"), "source_malformed"),
    "a head of nested lists": (lambda _: answer("head", b"[" * 4_000), "source_malformed"),
    "a height that is no number": (
        lambda c: answer("head", SourceServer(c).tell_head(height=True)),
        "source_malformed",
    ),
    "a head without end": (lambda _: answer("head", flood), "follow_too_large"),
    "a height that nobody reached": (
        lambda c: (
            lambda path, _: (
                (200, SourceServer(c).tell_head(height=2**40))
                if "head" in path
                else (404, b"")
                if "segments" in path
                else None
            )
        ),
        "source_lacks",
    ),
    "an error": (lambda _: lambda _path, _body: (500, b""), "follow_unreachable"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_source_that_lies_is_set_aside_and_another_one_used(
    name: str, chain: Chain, copy: Chain
) -> None:
    lie, code = LIES[name]
    with (
        serve(chain, lie(chain)) as liar,
        serve(chain) as honest,
        follow(copy, liar.url, honest.url) as follower,
    ):
        wait_until(lambda: copy.head.hash == chain.head.hash)
        # The honest source may have been first by chance of timing; the liar is asked in the end.
        wait_until(lambda: follower.get_status().sources[liar.url].startswith(code))


def test_with_liars_only_nothing_is_taken(chain: Chain, copy: Chain) -> None:
    with (
        serve(chain, forge(chain, reseal)) as liar,
        follow(copy, liar.url) as follower,
    ):
        wait_until(lambda: "segment_certificate" in follower.get_status().sources[liar.url])
        assert copy.head.height == 0


def test_a_segment_too_large_is_not_read_to_its_end(
    chain: Chain, copy: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "MAX_SEGMENT_BYTES", 2**17)
    with serve(chain, answer("segments", flood)) as liar, follow(copy, liar.url) as follower:
        wait_until(lambda: "follow_too_large" in follower.get_status().sources[liar.url])


def test_a_source_that_sends_a_byte_now_and_then_is_given_up(
    chain: Chain, copy: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "HEAD_SECONDS", 0.05)
    over = threading.Event()

    def drip() -> Iterator[bytes]:
        while not over.wait(0.01):
            yield b" "

    with serve(chain, answer("head", drip)) as liar, follow(copy, liar.url) as follower:
        wait_until(lambda: "follow_timeout" in follower.get_status().sources[liar.url])
        over.set()


def test_a_stop_does_not_wait_for_a_slow_source(chain: Chain, copy: Chain) -> None:
    over, has_answered = threading.Event(), threading.Event()

    def hang() -> Iterator[bytes]:
        over.wait(30)
        has_answered.set()
        yield b""

    with serve(chain, answer("head", hang)) as source:
        with follow(copy, source.url):
            wait_until(lambda: source.asked)
        assert not has_answered.is_set()
        over.set()


def test_an_unreachable_source_is_said_to_be_so(chain: Chain, copy: Chain) -> None:
    with socket.socket() as held:  # nobody else gets this port, and nobody listens on it
        held.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{held.getsockname()[1]}"
        with follow(copy, gone) as follower:
            wait_until(lambda: "follow_unreachable" in follower.get_status().sources[gone])


def test_a_head_that_validators_may_have_left_is_not_followed_from(
    chain: Chain, copy: Chain
) -> None:
    with serve(chain) as source, follow(copy, source.url, trust_old_head=False) as follower:
        wait_until(lambda: follower.get_status().refusal == "checkpoint_too_old")
        assert source.asked == []
        assert copy.head.height == 0


def test_a_validator_is_helped_only_when_its_own_head_stands_still(
    chain: Chain, copy: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "PATIENCE_SECONDS", 3_600.0)
    with serve(chain) as source, follow(copy, source.url, is_member=True) as follower:
        wait_until(lambda: source.asked.count("/chain/head") > 2)
        assert follower.get_status().target == LAST
        assert copy.head.height == 0
        monkeypatch.setattr(sync, "PATIENCE_SECONDS", 0.0)
        wait_until(lambda: copy.head.height == LAST)


# -- blobs -----------------------------------------------------------------------------------------
@pytest.fixture
def loaded(tmp_path: Path) -> Iterator[tuple[Chain, bytes]]:
    """A chain whose first block carries a blob."""
    name, data = make_blob(300_000)
    one = Chain(tmp_path / "loaded")
    one.blobs.put(name, data)
    one.grow(1, [sign_transaction(ALICE, 0, blobs=(name,))])
    yield one, data
    one.close()


def test_the_blobs_that_blocks_carry_come_along(loaded: tuple[Chain, bytes], copy: Chain) -> None:
    chain, data = loaded
    with serve(chain) as source, follow(copy, source.url):
        wait_until(lambda: copy.head.height == 1)
    (name,) = copy.blobs.get_names()
    assert copy.blobs.read(name) == data


@pytest.mark.parametrize("wrong", [b"", b"x" * 300_000, b"x" * 400_000])
def test_a_source_with_wrong_blobs_is_set_aside(
    wrong: bytes, loaded: tuple[Chain, bytes], copy: Chain
) -> None:
    chain, data = loaded
    with (
        serve(chain, answer("blobs", wrong)) as liar,
        serve(chain) as honest,
        follow(copy, liar.url, honest.url) as follower,
    ):
        wait_until(lambda: copy.head.height == 1)
        (name,) = chain.blobs.get_names()
        follower.fetch_blobs((name,))
        wait_until(lambda: copy.blobs.has(name))
        assert copy.blobs.read(name) == data


def test_a_blob_that_nobody_has_any_more_does_not_stop_the_chain(
    loaded: tuple[Chain, bytes], copy: Chain
) -> None:
    chain, _ = loaded
    gone: Lie = lambda path, _: (404, b"") if "blobs" in path else None  # noqa: E731
    with serve(chain, gone) as source, follow(copy, source.url):
        wait_until(lambda: copy.head.height == 1)
    assert copy.blobs.get_names() == ()

"""Final blocks for validators that are behind: whole, certified, of one epoch, and bounded."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from steelyard.chain.block import Block, Header
from steelyard.chain.epochs import EpochSet
from steelyard.chain.following import check_segment
from steelyard.chain.types import Height
from steelyard.node.network import serving
from steelyard.node.network.serving import MAX_SERVED_BLOCKS, build_segment
from steelyard.node.network.wire import (
    Absent,
    CertificateMessage,
    SegmentAnswer,
    SegmentRequest,
    encode_message,
)
from steelyard.node.store import ChainStore, FinalBlock
from tests.chain.evm_kit import DOMAIN
from tests.chain.following_kit import FOUR, OTHERS, ROOT, certify, make_blocks, make_child

CHAIN = make_blocks(7)
CHAIN.append(make_child(CHAIN[-1].header, FOUR, OTHERS))
"""Heights 1 to 8; the last one hands over."""
NEXT = make_blocks(MAX_SERVED_BLOCKS + 5, OTHERS, CHAIN[-1].header)
NEW = (4, 5, 6, 7)


def commit(store: ChainStore, *blocks: Block, current: EpochSet = FOUR) -> None:
    numbers = (0, 1, 2, 3) if current is FOUR else NEW
    certificate = certify(blocks[-1].hash, current=current, numbers=numbers)
    store.commit([FinalBlock(block, (), {}, ()) for block in blocks], certificate, {})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChainStore]:
    """Finalized together: 1 and 2 | 3 | 4 to 7 | 8 | 9 | 10, ….

    Block 8 ends its epoch.
    """
    store = ChainStore(tmp_path_factory.mktemp("serving") / "chain", 2**26)
    genesis = Block(ROOT, CHAIN[0].extension)
    store.commit([FinalBlock(genesis, (), {}, ())], None, {})
    commit(store, *CHAIN[:2])
    commit(store, CHAIN[2])
    commit(store, *CHAIN[3:7])
    commit(store, CHAIN[7])
    for block in NEXT:
        commit(store, block, current=OTHERS)
    yield store
    store.close()


def serve(store: ChainStore, height: int) -> SegmentAnswer:
    answer = build_segment(store, height)
    assert isinstance(answer, SegmentAnswer)
    encode_message(answer)
    return answer


def check(answer: SegmentAnswer, head: Header, current: EpochSet) -> None:
    check_segment(head, answer.blocks, answer.certificate, current, DOMAIN)


def test_a_segment_reaches_to_the_end_of_the_epoch_and_no_further(store: ChainStore) -> None:
    answer = serve(store, 1)
    assert answer.blocks == tuple(CHAIN)
    check(answer, ROOT, FOUR)


def test_a_segment_may_begin_inside_of_what_was_finalized_together(store: ChainStore) -> None:
    answer = serve(store, 5)
    assert answer.blocks == tuple(CHAIN[4:])
    check(answer, CHAIN[3].header, FOUR)


def test_a_segment_has_a_largest_number_of_blocks(store: ChainStore) -> None:
    answer = serve(store, 9)
    assert answer.blocks == tuple(NEXT[:MAX_SERVED_BLOCKS])
    check(answer, CHAIN[-1].header, OTHERS)


def test_a_segment_has_a_largest_size_and_ends_with_a_certificate(
    store: ChainStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = len(encode_message(serve(store, 1)))
    monkeypatch.setattr(serving, "MAX_SEGMENT_BYTES", whole // 2)
    answer = serve(store, 1)
    assert answer.blocks == tuple(CHAIN[:3])
    check(answer, ROOT, FOUR)


def test_where_more_was_finalized_together_than_fits_the_certificate_alone_is_sent(
    store: ChainStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MAX_SEGMENT_BYTES", 1_500)
    assert build_segment(store, 4) == CertificateMessage(certify(CHAIN[6].hash))


def test_what_is_not_there_is_absent(store: ChainStore) -> None:
    for height in (0, 9 + len(NEXT), 2**64 - 1):
        assert build_segment(store, height) == Absent(SegmentRequest(height))  # type: ignore[arg-type]


def test_what_came_before_a_checkpoint_is_absent(tmp_path: Path) -> None:
    """A node that began at one has a boundary block alone, or without its certificate."""
    begun = ChainStore(tmp_path / "chain", 2**26)
    try:
        commit(begun, CHAIN[2])
        begun.commit([FinalBlock(CHAIN[7], (), {}, ())], None, {})
        commit(begun, NEXT[0], current=OTHERS)
        for height in (1, 2, 7, 8):
            assert build_segment(begun, height) == Absent(SegmentRequest(Height(height)))
        assert serve(begun, 3).blocks == (CHAIN[2],)
        assert serve(begun, 9).blocks == (NEXT[0],)
        commit(begun, CHAIN[7])
        assert serve(begun, 3).blocks == (CHAIN[2],)
    finally:
        begun.close()

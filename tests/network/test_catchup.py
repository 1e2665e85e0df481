"""Catching up: from whoever is ahead, verified before the driver sees it, liars left alone."""

from collections.abc import Sequence
from dataclasses import replace

from steelyard.chain.block import Block
from steelyard.chain.consensus.certificates import Certificate
from steelyard.chain.consensus.votes import Kind
from steelyard.chain.epochs import EpochSet
from steelyard.chain.types import Address, Hash
from steelyard.node.inbox import Segment
from steelyard.node.network.catchup import (
    ANSWER_SECONDS,
    IMPORT_SECONDS,
    LAG_SECONDS,
    LIAR_SECONDS,
    CatchUp,
)
from steelyard.node.network.wire import SegmentAnswer, SegmentRequest
from tests.chain.evm_kit import DOMAIN
from tests.chain.following_kit import FOUR, OTHERS, ROOT, certify, make_blocks, make_child

from .blob_kit import ANN, BEN, CAT

EPOCH_BLOCKS = 8
CHAIN = make_blocks(7)
CHAIN.append(make_child(CHAIN[-1].header, FOUR, OTHERS))
"""Heights 1 to 8; the last one hands over."""
NEXT = make_blocks(2, OTHERS, CHAIN[-1].header)


class Chase:
    """A node at block 0 that hears of others, with a clock."""

    def __init__(self, peers: Sequence[Address] = (ANN, BEN, CAT)) -> None:
        self.blamed: list[tuple[Address, str]] = []
        self.catch_up = CatchUp(
            DOMAIN, EPOCH_BLOCKS, lambda peer, code: self.blamed.append((peer, code))
        )
        self.now = 50.0
        self.catch_up.set_peers(peers)
        for peer in peers:
            self.catch_up.set_connected(peer, is_connected=True)
        self.reach(ROOT)

    def reach(self, header: object, *sets: EpochSet) -> None:
        self.catch_up.set_place(header, sets or (FOUR,), self.now)  # type: ignore[arg-type]

    def tick(self, seconds: float = 0.1) -> list[tuple[Address | None, int]]:
        """Of whom segments are asked, and from which height."""
        self.now += seconds
        asked = self.catch_up.tick(self.now)
        return [(peer, one.height) for peer, one in asked if isinstance(one, SegmentRequest)]

    def fall_behind(self, height: int, *peers: Address) -> list[tuple[Address | None, int]]:
        for peer in peers:
            self.catch_up.on_status(peer, height)
        self.tick()
        return self.tick(LAG_SECONDS)

    def answer(
        self, peer: Address, blocks: Sequence[Block], certificate: Certificate | None = None
    ) -> Segment | None:
        certificate = certificate or certify(blocks[-1].hash)
        self.catch_up.on_segment(peer, SegmentAnswer(tuple(blocks), certificate), self.now)
        return self.catch_up.take_segment(self.now)


# -- when ------------------------------------------------------------------------------------------
def test_a_height_that_we_do_not_reach_in_time_is_caught_up_with() -> None:
    chase = Chase()
    chase.catch_up.on_status(ANN, 5)
    assert chase.tick() == []
    assert chase.catch_up.target is None
    assert chase.tick(LAG_SECONDS) == [(ANN, 1)]
    assert chase.catch_up.target == 5


def test_consensus_that_keeps_up_is_left_alone() -> None:
    chase = Chase()
    for height in range(1, 8):
        chase.catch_up.on_status(ANN, height)
        assert chase.tick(LAG_SECONDS / 2) == []
        chase.reach(CHAIN[height - 1].header)
    assert chase.catch_up.target is None


def test_nobody_is_asked_while_nobody_is_ahead() -> None:
    chase = Chase()
    chase.reach(CHAIN[4].header)
    assert chase.fall_behind(5, ANN, BEN) == []
    assert chase.catch_up.target is None


def test_who_is_not_connected_is_not_asked() -> None:
    chase = Chase()
    chase.catch_up.set_connected(ANN, is_connected=False)
    assert chase.fall_behind(5, ANN) == []
    assert chase.fall_behind(5, BEN) == [(BEN, 1)]


# -- the good case ---------------------------------------------------------------------------------
def test_a_verified_segment_goes_to_the_driver_and_the_next_is_fetched_meanwhile() -> None:
    chase = Chase()
    chase.fall_behind(7, ANN)
    given = chase.answer(ANN, CHAIN[:3])
    assert given is not None
    assert (given.blocks, given.source) == (tuple(CHAIN[:3]), "0x" + ANN.hex())
    assert chase.tick() == [(ANN, 4)]
    assert chase.answer(ANN, CHAIN[3:5]) is None, "the driver has the one before"
    assert chase.tick() == [], "one is kept ready, no more"
    chase.reach(CHAIN[2].header)
    ready = chase.catch_up.take_segment(chase.now)
    assert ready is not None
    assert ready.blocks == tuple(CHAIN[3:5])
    assert chase.tick() == [(ANN, 6)]


def test_it_works_when_all_but_one_are_gone() -> None:
    chase = Chase([ANN])
    assert chase.fall_behind(7, ANN) == [(ANN, 1)]
    for start in range(0, 7, 2):
        blocks = CHAIN[start : min(start + 2, 7)]
        assert chase.answer(ANN, blocks) is not None
        chase.reach(blocks[-1].header)
        chase.tick()
    assert chase.catch_up.target is None


def test_segments_stop_at_the_end_of_an_epoch_until_its_successor_is_known() -> None:
    chase = Chase()
    chase.fall_behind(10, ANN)
    assert chase.answer(ANN, CHAIN) is not None
    assert chase.tick() == []
    chase.reach(CHAIN[-1].header, OTHERS, FOUR)
    assert chase.tick() == [(ANN, 9)]
    certificate = certify(NEXT[-1].hash, current=OTHERS, numbers=(4, 5, 6, 7))
    assert chase.answer(ANN, NEXT, certificate) is not None


def test_far_behind_it_goes_on_without_another_pause() -> None:
    chase = Chase()
    chase.fall_behind(3, ANN)
    chase.catch_up.on_status(ANN, 7)
    assert chase.answer(ANN, CHAIN[:3]) is not None
    chase.reach(CHAIN[2].header)
    assert chase.tick() == [(ANN, 4)]


# -- silence ---------------------------------------------------------------------------------------
def test_who_does_not_answer_is_passed_over_for_the_next() -> None:
    chase = Chase()
    assert chase.fall_behind(5, ANN, BEN) == [(ANN, 1)]
    assert chase.tick(ANSWER_SECONDS / 2) == []
    assert chase.tick(ANSWER_SECONDS) == [(BEN, 1)]
    assert chase.catch_up.counters.segment_timeouts == 1


def test_who_lacks_what_it_promised_is_left_alone_for_a_while_then_asked_again() -> None:
    chase = Chase()
    chase.fall_behind(5, ANN)
    chase.catch_up.on_absent(ANN, 1, chase.now)
    assert chase.tick() == []
    assert chase.catch_up.target is None
    chase.tick(1.0)
    assert chase.tick(LAG_SECONDS) == [(ANN, 1)]


def test_an_absent_of_another_validator_or_height_changes_nothing() -> None:
    chase = Chase()
    chase.fall_behind(5, ANN)
    chase.catch_up.on_absent(BEN, 1, chase.now)
    chase.catch_up.on_absent(ANN, 2, chase.now)
    assert chase.answer(ANN, CHAIN[:1]) is not None


def test_an_invented_height_costs_one_question_now_and_then() -> None:
    chase = Chase()
    chase.catch_up.on_status(CAT, 2**60)
    asked = sum(len(chase.tick(0.5)) for _ in range(600))
    assert asked < 10


def test_a_liar_about_its_height_does_not_keep_us_from_those_who_serve() -> None:
    chase = Chase()
    chase.catch_up.on_status(ANN, 2**60)
    assert chase.fall_behind(5, ANN, BEN) == [(ANN, 1)]
    assert chase.tick(ANSWER_SECONDS + 1) == [(BEN, 1)]
    assert chase.answer(BEN, CHAIN[:5]) is not None


def test_what_the_driver_does_not_make_final_is_fetched_again() -> None:
    chase = Chase()
    chase.fall_behind(5, ANN)
    chase.answer(ANN, CHAIN[:5])
    assert chase.tick(IMPORT_SECONDS / 2) == []
    assert chase.tick(IMPORT_SECONDS) == [(ANN, 1)]


def test_who_left_is_not_waited_for() -> None:
    chase = Chase()
    assert chase.fall_behind(5, ANN, BEN) == [(ANN, 1)]
    chase.catch_up.set_peers([BEN])
    assert chase.tick() == [(BEN, 1)]


# -- lies ------------------------------------------------------------------------------------------
def check_refused(blocks: Sequence[Block], certificate: Certificate) -> None:
    """The segment is dropped, its sender blamed and left alone, the next one asked."""
    chase = Chase()
    chase.fall_behind(5, ANN, BEN)
    assert chase.answer(ANN, blocks, certificate) is None
    assert chase.blamed == [(ANN, "segment_wrong")]
    assert chase.catch_up.counters.segments_wrong == 1
    assert chase.tick() == [(BEN, 1)]
    assert chase.answer(BEN, CHAIN[:5]) is not None
    chase.reach(CHAIN[4].header)
    assert chase.fall_behind(7, ANN) == []
    chase.now += LIAR_SECONDS
    chase.tick()
    assert chase.tick(LAG_SECONDS) == [(ANN, 6)]


def test_a_segment_with_a_forged_certificate_is_refused() -> None:
    certificate = certify(CHAIN[2].hash)
    check_refused(CHAIN[:3], replace(certificate, signature=certify(CHAIN[3].hash).signature))


def test_a_segment_that_too_few_signed_is_refused() -> None:
    check_refused(CHAIN[:3], certify(CHAIN[2].hash, (0, 1)))


def test_a_segment_with_the_certificate_of_another_block_is_refused() -> None:
    check_refused(CHAIN[:3], certify(CHAIN[3].hash))


def test_a_notarization_finalizes_nothing() -> None:
    check_refused(CHAIN[:3], certify(CHAIN[2].hash, kind=Kind.NOTARIZE))


def test_a_segment_with_a_gap_is_refused() -> None:
    check_refused([CHAIN[0], CHAIN[2]], certify(CHAIN[2].hash))


def test_a_segment_that_nobody_asked_for_is_dropped_and_blames_nobody() -> None:
    chase = Chase()
    assert chase.answer(ANN, CHAIN[:3]) is None
    chase.fall_behind(5, ANN)
    assert chase.answer(BEN, CHAIN[:3]) is None
    assert chase.answer(ANN, CHAIN[1:3]) is None
    assert chase.catch_up.counters.segments_unasked == 3
    assert chase.blamed == []
    assert chase.answer(ANN, CHAIN[:3]) is not None


def test_consensus_may_overtake_an_answer() -> None:
    chase = Chase()
    chase.fall_behind(5, ANN)
    chase.reach(CHAIN[1].header)
    assert chase.answer(ANN, CHAIN[:3]) is None
    assert chase.blamed == []
    assert chase.tick() == [(ANN, 3)]


def test_a_segment_on_another_chain_is_refused() -> None:
    foreign = make_blocks(3, head=replace(ROOT, parent_hash=Hash(b"\x07" * 32)))
    check_refused(foreign, certify(foreign[-1].hash))


def test_one_answer_to_a_question_is_read_and_no_other() -> None:
    chase = Chase()
    assert not chase.catch_up.has_expected(ANN)
    ((asked, _),) = chase.fall_behind(6, ANN, BEN)
    assert asked is not None
    assert [chase.catch_up.has_expected(one) for one in (CAT, asked, asked)] == [False, True, False]


def test_who_is_slow_is_asked_after_the_others() -> None:
    chase = Chase()
    ((slow, _),) = chase.fall_behind(6, ANN, BEN, CAT)
    assert slow is not None
    chase.now += ANSWER_SECONDS - 1
    chase.answer(slow, CHAIN[:1])
    for height in range(1, 6):
        chase.reach(CHAIN[height - 1].header)
        ((asked, _),) = chase.tick()
        assert asked is not None
        assert asked != slow
        chase.answer(asked, CHAIN[height : height + 1])

"""Fetching blobs: from whom, how much at once, and what becomes of those that do not serve."""

from collections import deque
from pathlib import Path

import pytest

from steelyard.chain.errors import SteelyardError
from steelyard.chain.types import BlobName, Digest
from steelyard.node.config import BlobsConfig
from steelyard.node.network.fetcher import (
    MAX_ASKED,
    MAX_ASKED_TOTAL,
    MAX_NEEDED,
    MAX_SOURCES,
    NEEDED_SECONDS,
    NO_SPACE_SECONDS,
)
from steelyard.node.network.fetching import GRACE_SECONDS, SILENT_SECONDS, WINDOW
from steelyard.node.network.wire import CHUNK_BYTES, BlobChunk
from steelyard.node.store import StorageFull
from tests.node.world import make_blob

from .blob_kit import (
    ANN,
    BEN,
    CAT,
    LARGE,
    LARGE_DATA,
    OTHER,
    OTHER_DATA,
    OTHERS,
    SMALL,
    SMALL_DATA,
    Desk,
    list_requests,
)

WRONG_DATA = LARGE_DATA[:-1] + b"\xff"
LATE = SILENT_SECONDS + 0.1


def make_name(number: int, pieces: int) -> BlobName:
    return BlobName(Digest(number.to_bytes(32, "big")), pieces * CHUNK_BYTES)


# -- the good case ---------------------------------------------------------------------------------
def test_all_pieces_are_asked_for_at_once_of_one_announcer_and_the_blob_is_kept(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path, [LARGE])
    requests = desk.announce(ANN, LARGE)
    assert list_requests(requests) == [(ANN, 0), (ANN, CHUNK_BYTES), (ANN, 2 * CHUNK_BYTES)]
    assert desk.announce(BEN, LARGE) == []
    assert desk.serve(requests, LARGE_DATA) == []
    assert bytes(desk.blobs.read(LARGE)) == LARGE_DATA
    counters = desk.exchange.counters
    assert (counters.blobs_fetched, counters.bytes_fetched) == (1, LARGE.size)
    assert desk.exchange.count_waiting() == 0


def test_a_fetched_blob_is_announced_too(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL])
    desk.serve(desk.announce(ANN, SMALL), SMALL_DATA)
    announced = [message for _, message in desk.tick()]
    assert [getattr(one, "names", None) for one in announced] == [(SMALL,)]


def test_pieces_may_come_in_any_order(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [LARGE])
    desk.serve(reversed(desk.announce(ANN, LARGE)), LARGE_DATA)
    assert desk.blobs.has(LARGE)


def test_different_blobs_are_asked_of_those_that_owe_least(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL, OTHER])
    first = desk.announce(ANN, SMALL)
    desk.exchange.partners[BEN].remember([OTHER])
    second = desk.announce(ANN, OTHER)
    assert [peer for peer, _ in list_requests(first + second)] == [ANN, BEN]


# -- bounds ----------------------------------------------------------------------------------------
def test_what_is_asked_for_is_bounded_for_a_blob_for_a_validator_and_altogether(
    tmp_path: Path,
) -> None:
    names = [make_name(number, 10) for number in range(20)]
    desk = Desk(tmp_path, names)
    of_one = list_requests(desk.announce(ANN, names[0]))
    assert len(of_one) == WINDOW
    of_ann = of_one + list_requests(desk.announce(ANN, *names[1:]))
    assert len(of_ann) == MAX_ASKED
    everything = of_ann + list_requests(desk.announce(BEN, *names))
    everything += list_requests(desk.announce(CAT, *names))
    assert len(everything) == min(MAX_ASKED_TOTAL, 3 * MAX_ASKED)


def test_only_so_many_uploads_are_open_for_declared_blobs(tmp_path: Path) -> None:
    names = [make_name(number, 1) for number in range(2 * MAX_SOURCES)]
    desk = Desk(tmp_path, names)
    asked = [list_requests(desk.announce(peer, *names)) for peer in OTHERS]
    assert sum(map(len, asked)) <= MAX_SOURCES


def test_no_more_is_asked_for_than_the_validator_may_send(tmp_path: Path) -> None:
    names = [make_name(number, 4) for number in range(8)]
    desk = Desk(tmp_path, names, bytes_per_second=2 * CHUNK_BYTES)
    requests = desk.announce(ANN, *names)
    for _ in range(3):
        zeros = bytes(4 * CHUNK_BYTES)
        requests = desk.serve(requests[:1], zeros)
    assert requests == []
    assert len(list_requests(desk.tick(1.0))) == 1


def test_a_piece_that_was_not_asked_for_is_dropped_and_counted(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [LARGE])
    desk.announce(ANN, LARGE)
    piece = LARGE_DATA[:CHUNK_BYTES]
    desk.exchange.on_chunk(BEN, BlobChunk(LARGE, 0, piece), desk.now)
    desk.exchange.on_chunk(ANN, BlobChunk(OTHER, 0, OTHER_DATA), desk.now)
    desk.exchange.on_chunk(ANN, BlobChunk(LARGE, 0, piece), desk.now)
    desk.exchange.on_chunk(ANN, BlobChunk(LARGE, 0, piece), desk.now)
    assert desk.exchange.counters.chunks_unasked == 3
    desk.exchange.close()
    assert list((tmp_path / "uploads").iterdir()) == []
    assert not desk.blobs.has(OTHER)


# -- announcers that do not serve ------------------------------------------------------------------
def test_whoever_announces_and_never_serves_is_passed_over_for_the_next(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [LARGE])
    desk.announce(ANN, LARGE)
    desk.announce(BEN, LARGE)
    assert desk.tick(SILENT_SECONDS / 2) == []
    requests = desk.tick(LATE)
    assert {peer for peer, _ in list_requests(requests)} == {BEN}
    desk.serve(requests, LARGE_DATA)
    assert desk.blobs.has(LARGE)
    assert desk.exchange.partners[ANN].timeouts == desk.exchange.counters.chunk_timeouts == 1


def test_its_word_still_counts_for_availability(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL])
    desk.announce(ANN, SMALL)
    desk.announce(BEN, SMALL)
    desk.serve(desk.tick(LATE), SMALL_DATA)
    assert desk.exchange.partners[ANN].timeouts == 1
    assert desk.exchange.is_available(SMALL)


def test_it_is_asked_last_for_other_blobs_until_it_serves_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL, OTHER])
    desk.announce(ANN, SMALL)
    desk.tick(LATE)
    desk.exchange.partners[ANN].remember([OTHER])
    assert list_requests(desk.announce(BEN, OTHER))[0][0] == BEN


def test_the_only_announcer_is_asked_again_after_a_rest(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL])
    desk.announce(ANN, SMALL)
    assert desk.tick(LATE) == []
    again = list_requests(desk.tick(1.5))
    assert again == [(ANN, 0)]


def test_another_one_goes_on_where_the_first_fell_silent(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [LARGE])
    requests = desk.announce(ANN, LARGE)
    desk.announce(BEN, LARGE)
    desk.serve(requests[:1], LARGE_DATA)
    rest = desk.tick(LATE)
    assert list_requests(rest) == [(BEN, CHUNK_BYTES), (BEN, 2 * CHUNK_BYTES)]
    desk.serve(rest, LARGE_DATA)
    assert bytes(desk.blobs.read(LARGE)) == LARGE_DATA


def test_whoever_serves_one_blob_slowly_is_not_silent_about_the_next_in_line(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path, [LARGE, SMALL])
    requests = desk.announce(ANN, LARGE)
    desk.announce(ANN, SMALL)
    desk.tick(SILENT_SECONDS - 0.5)
    desk.serve(requests[:1], LARGE_DATA)
    assert desk.tick(1.0) == []
    assert desk.exchange.counters.chunk_timeouts == 0


def test_whoever_serves_everything_but_one_blob_is_given_up_for_that(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL])
    desk.announce(ANN, SMALL)
    for _ in range(6):
        desk.exchange.partners[ANN].heard_at = desk.now
        desk.tick(SILENT_SECONDS - 0.1)
    assert desk.now - 100.0 > GRACE_SECONDS
    assert desk.exchange.counters.chunk_timeouts == 1


def test_a_lost_connection_is_not_waited_for(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL])
    desk.announce(ANN, SMALL)
    desk.announce(BEN, SMALL)
    moved = desk.exchange.set_connected(ANN, desk.now, is_connected=False)
    assert list_requests(moved) == [(BEN, 0)]


def test_who_left_the_sets_is_not_waited_for(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL])
    desk.announce(ANN, SMALL)
    desk.announce(BEN, SMALL)
    moved = desk.exchange.set_members({BEN: 1}, [BEN], desk.now)
    assert list_requests(moved) == [(BEN, 0)]


def test_whoever_says_that_it_lacks_the_blob_is_passed_over_at_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL])
    desk.announce(ANN, SMALL)
    desk.announce(BEN, SMALL)
    assert list_requests(desk.exchange.on_absent(ANN, SMALL, desk.now)) == [(BEN, 0)]
    assert desk.exchange.on_absent(CAT, SMALL, desk.now) == []


# -- wrong bytes -----------------------------------------------------------------------------------
def test_whoever_serves_wrong_bytes_is_struck_off_for_this_blob_and_blamed(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path, [LARGE])
    requests = desk.announce(ANN, LARGE)
    again = desk.serve(requests, WRONG_DATA)
    assert again == []
    assert not desk.blobs.has(LARGE)
    assert list((tmp_path / "uploads").iterdir()) == []
    assert desk.blamed == [(ANN, "blob_wrong")]
    assert desk.exchange.partners[ANN].wrong_blobs == desk.exchange.counters.wrong_blobs == 1
    assert list_requests(desk.tick(60.0)) == []
    desk.serve(desk.announce(BEN, LARGE), LARGE_DATA)
    assert desk.blobs.has(LARGE)


def test_it_may_still_serve_other_blobs(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [LARGE, SMALL])
    desk.serve(desk.announce(ANN, LARGE), WRONG_DATA)
    assert list_requests(desk.announce(ANN, SMALL)) == [(ANN, 0)]


def test_pieces_of_two_validators_that_do_not_fit_blame_neither_and_the_next_try_is_of_one(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path, [LARGE])
    requests = desk.announce(ANN, LARGE)
    desk.announce(BEN, LARGE)
    desk.serve(requests[:1], bytes(LARGE.size))
    anew = desk.serve(desk.tick(LATE), LARGE_DATA)
    assert desk.blamed == []
    assert list_requests(anew)[0] == (BEN, 0)
    desk.serve(anew[:2], LARGE_DATA)
    other = desk.tick(2 * LATE)
    assert list_requests(other)[0] == (ANN, 0), "no piece of another validator is kept"
    desk.serve(other, WRONG_DATA)
    assert desk.blamed == [(ANN, "blob_wrong")]


def test_a_piece_that_is_too_long_is_wrong(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL])
    desk.serve(desk.announce(ANN, SMALL), SMALL_DATA + b"\0")
    assert desk.blamed == [(ANN, "blob_wrong")]


# -- what a block needs ----------------------------------------------------------------------------
def test_what_a_block_needs_is_asked_of_its_holders_first_then_of_anybody(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert list_requests(desk.exchange.fetch_blobs([SMALL], [BEN], desk.now)) == [(BEN, 0)]
    first = list_requests(desk.exchange.on_absent(BEN, SMALL, desk.now))
    second = list_requests(desk.exchange.on_absent(ANN, SMALL, desk.now))
    assert (first, second) == ([(ANN, 0)], [(CAT, 0)])


def test_what_a_block_needs_goes_before_what_transactions_declare_and_around_their_quota(
    tmp_path: Path,
) -> None:
    names = [make_name(number, 1) for number in range(MAX_SOURCES)]
    desk = Desk(tmp_path, names, BlobsConfig(max_uploads=0))
    desk.announce(ANN, *names)
    desk.announce(BEN, *names)
    desk.announce(CAT, *names)
    desk.serve(desk.exchange.fetch_blobs([SMALL], [], desk.now), SMALL_DATA)
    assert desk.blobs.has(SMALL)


def test_a_need_is_forgotten_unless_it_is_repeated(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.exchange.fetch_blobs([SMALL, OTHER], [], desk.now)
    desk.now += NEEDED_SECONDS - 1
    desk.exchange.fetch_blobs([OTHER], [], desk.now)
    desk.tick(2.0)
    assert desk.exchange.count_waiting() == 1


def test_a_needed_blob_that_is_here_is_not_fetched_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.keep(SMALL, SMALL_DATA)
    assert desk.exchange.fetch_blobs([SMALL], OTHERS, desk.now) == []
    assert desk.exchange.count_waiting() == 0


@pytest.mark.slow
def test_needs_are_bounded(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    names = [make_name(number, 1) for number in range(MAX_NEEDED + 10)]
    desk.exchange.fetch_blobs(names, [], desk.now)
    assert desk.exchange.count_waiting() == MAX_NEEDED


# -- no room here ----------------------------------------------------------------------------------
def test_a_used_up_quota_pauses_and_blames_nobody(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL], BlobsConfig(max_pending_bytes=0))
    assert desk.serve(desk.announce(ANN, SMALL), SMALL_DATA) == []
    assert desk.blamed == []
    assert desk.tick(NO_SPACE_SECONDS / 2) == []
    assert list_requests(desk.tick(NO_SPACE_SECONDS)) == [(ANN, 0)]


def test_a_used_up_quota_does_not_pause_what_a_block_needs(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL], BlobsConfig(max_pending_bytes=0))
    desk.serve(desk.announce(ANN, SMALL), SMALL_DATA)
    asked = desk.exchange.fetch_blobs([OTHER], [BEN], desk.now)
    assert list_requests(asked) == [(BEN, 0)]


@pytest.mark.parametrize("error", [StorageFull("disk_full", "full"), OSError(5, "broken")])
def test_a_disk_that_takes_nothing_pauses_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    desk = Desk(tmp_path, [SMALL])

    def refuse(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("steelyard.node.blobs.BlobUpload.write", refuse)
        desk.serve(desk.announce(ANN, SMALL), SMALL_DATA)
    assert list((tmp_path / "uploads").iterdir()) == []
    desk.serve(desk.tick(NO_SPACE_SECONDS), SMALL_DATA)
    assert desk.blobs.has(SMALL)


def test_over_a_slow_line_of_our_own_a_blob_comes_in_the_end(tmp_path: Path) -> None:
    blob, data = make_blob(8 * CHUNK_BYTES)
    desk = Desk(tmp_path, [blob])
    line = deque(desk.announce(ANN, blob) + desk.announce(BEN, blob) + desk.announce(CAT, blob))
    for _ in range(80):  # a piece in three and a half seconds, whoever sends it
        for _ in range(7):
            line += desk.tick(0.5)
        if line:
            line += desk.serve([line.popleft()], data)
    assert desk.blobs.has(blob)


def test_no_room_on_the_disk_is_seen_before_anything_is_written(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL])

    def refuse(_: int) -> None:
        raise StorageFull("disk_full", "full")

    desk.exchange._fetcher._check_space = refuse
    desk.serve(desk.announce(ANN, SMALL), SMALL_DATA)
    assert desk.exchange.partners[ANN].asked == 0
    with pytest.raises(SteelyardError):
        desk.blobs.read(SMALL)
    assert list((tmp_path / "uploads").iterdir()) == []

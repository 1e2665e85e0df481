"""Blobs among validators: announced, available, served; and fetched only if they are wanted."""

from pathlib import Path

import pytest

from steelyard.chain.types import BlobName, Digest
from steelyard.node.network.exchange import REPEAT_SECONDS, SERVED_FACTOR
from steelyard.node.network.fetcher import MAX_ASKED
from steelyard.node.network.partners import MAX_REMEMBERED
from steelyard.node.network.wire import (
    CHUNK_BYTES,
    MAX_ANNOUNCED,
    Absent,
    Announcement,
    BlobChunk,
    BlobRequest,
)

from .blob_kit import (
    ANN,
    BEN,
    CAT,
    LARGE,
    LARGE_DATA,
    ME,
    OTHER,
    OTHERS,
    SMALL,
    SMALL_DATA,
    Desk,
    get_messages,
    list_announced,
    list_requests,
)


def make_name(number: int) -> BlobName:
    return BlobName(Digest(number.to_bytes(32, "big")), 1)


# -- announcing ------------------------------------------------------------------------------------
def test_a_declared_blob_is_announced_to_all_at_the_turn_after_it_came(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL])
    assert desk.tick() == []
    desk.keep(SMALL, SMALL_DATA)
    assert desk.tick() == [(None, Announcement((SMALL,)))]
    assert desk.tick() == []


def test_a_blob_that_nobody_declares_is_not_announced(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.keep(SMALL, SMALL_DATA)
    assert desk.tick() == []
    assert desk.tick(REPEAT_SECONDS) == []


def test_a_held_blob_is_announced_when_a_transaction_declares_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.keep(SMALL, SMALL_DATA)
    desk.declared[SMALL] = None
    assert desk.exchange.on_declared([SMALL], desk.now) == []
    assert desk.tick() == [(None, Announcement((SMALL,)))]


def test_held_blobs_are_announced_again_as_long_as_they_are_pending(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL])
    desk.keep(SMALL, SMALL_DATA)
    desk.tick()
    assert list_announced(desk.tick(REPEAT_SECONDS)) == [(None, SMALL)]
    del desk.declared[SMALL]
    assert desk.tick(REPEAT_SECONDS) == []


def test_who_connects_learns_what_is_held_and_nobody_is_told_twice(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL])
    desk.keep(SMALL, SMALL_DATA)
    desk.tick()
    assert desk.exchange.set_connected(ANN, desk.now, is_connected=True) == []
    assert desk.exchange.set_connected(ANN, desk.now, is_connected=False) == []
    again = desk.exchange.set_connected(ANN, desk.now, is_connected=True)
    assert again == [(ANN, Announcement((SMALL,)))]


def test_many_blobs_are_announced_in_messages_of_the_largest_size(tmp_path: Path) -> None:
    names = [make_name(number) for number in range(MAX_ANNOUNCED + 1)]
    desk = Desk(tmp_path, names)
    desk.blobs._held.update((name, tmp_path) for name in names)
    announced = get_messages(desk.exchange.announce_held(None))
    assert [len(one.names) for one in announced if isinstance(one, Announcement)] == [256, 1]


# -- availability ----------------------------------------------------------------------------------
def test_a_blob_is_available_when_more_than_two_thirds_with_us_announced_it(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path, [SMALL])
    desk.keep(SMALL, SMALL_DATA)
    desk.announce(ANN, SMALL)
    assert not desk.exchange.is_available(SMALL)
    told = desk.available
    desk.announce(BEN, SMALL)
    assert desk.exchange.is_available(SMALL)
    assert desk.available == told + 1


def test_exactly_two_thirds_of_the_power_are_not_enough(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL])
    desk.keep(SMALL, SMALL_DATA)
    desk.announce(ANN, SMALL)
    desk.exchange.set_members({ME: 1, ANN: 1, BEN: 1}, OTHERS, desk.now)
    assert not desk.exchange.is_available(SMALL)
    desk.exchange.set_members({ME: 2, ANN: 1, BEN: 1}, OTHERS, desk.now)
    assert desk.exchange.is_available(SMALL)


def test_what_is_not_held_here_is_not_available_whoever_announced_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for peer in OTHERS:
        desk.announce(peer, SMALL)
    assert not desk.exchange.is_available(SMALL)


def test_who_is_in_no_set_does_not_count(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL])
    desk.keep(SMALL, SMALL_DATA)
    for peer in (ANN, BEN):
        desk.announce(peer, SMALL)
    desk.exchange.set_members(dict.fromkeys((ME, ANN, CAT), 1), OTHERS, desk.now)
    assert not desk.exchange.is_available(SMALL)


def test_before_the_set_is_known_nothing_is_available(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL])
    desk.keep(SMALL, SMALL_DATA)
    desk.exchange.set_members({}, OTHERS, desk.now)
    assert not desk.exchange.is_available(SMALL)


def test_whoever_withdraws_its_word_does_not_count_any_more(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL])
    desk.keep(SMALL, SMALL_DATA)
    for peer in (ANN, BEN):
        desk.announce(peer, SMALL)
    desk.exchange.on_absent(BEN, SMALL, desk.now)
    assert not desk.exchange.is_available(SMALL)


# -- what is wanted --------------------------------------------------------------------------------
def test_an_announced_blob_is_fetched_only_if_it_is_declared(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL])
    assert list_requests(desk.announce(ANN, SMALL, OTHER)) == [(ANN, 0)]
    assert desk.exchange.count_waiting() == 1


def test_an_announcement_before_its_transaction_is_remembered(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert desk.announce(ANN, SMALL) == []
    desk.declared[SMALL] = None
    assert list_requests(desk.exchange.on_declared([SMALL], desk.now)) == [(ANN, 0)]


def test_a_declared_blob_that_nobody_announced_is_not_asked_for(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL])
    assert desk.exchange.on_declared([SMALL], desk.now) == []
    assert desk.exchange.count_waiting() == 0


def test_a_flood_of_announcements_stays_bounded_and_costs_only_its_sender(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.announce(BEN, SMALL)
    for start in range(0, 2 * MAX_REMEMBERED, MAX_ANNOUNCED):
        desk.announce(ANN, *(make_name(start + i) for i in range(MAX_ANNOUNCED)))
    assert len(desk.exchange.partners[ANN].announced) == MAX_REMEMBERED
    assert SMALL in desk.exchange.partners[BEN].announced
    assert desk.exchange.count_waiting() == 0


def test_a_stranger_announces_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL])
    assert desk.announce(ME, SMALL) == []
    assert desk.exchange.count_waiting() == 0


def test_what_came_another_way_is_not_fetched_any_more(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [SMALL])
    requests = desk.announce(ANN, SMALL)
    desk.keep(SMALL, SMALL_DATA)
    desk.tick()
    assert desk.exchange.count_waiting() == 0
    desk.serve(requests, SMALL_DATA)
    assert desk.exchange.counters.chunks_unasked == 1


def test_a_blob_whose_transaction_left_is_given_up_and_not_stored(tmp_path: Path) -> None:
    desk = Desk(tmp_path, [LARGE])
    requests = desk.announce(ANN, LARGE)
    desk.serve(requests[:1], LARGE_DATA)
    desk.declared.clear()
    desk.serve(requests[1:], LARGE_DATA)
    desk.tick()
    assert desk.exchange.count_waiting() == 0
    assert not desk.blobs.has(LARGE)
    assert list((tmp_path / "uploads").iterdir()) == []


# -- serving ---------------------------------------------------------------------------------------
def test_any_held_blob_is_served_piece_by_piece(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.keep(LARGE, LARGE_DATA)
    offsets = range(0, LARGE.size, CHUNK_BYTES)
    requests = [BlobRequest(LARGE, offset) for offset in offsets]
    answers = [desk.exchange.on_request(ANN, one, desk.now) for one in requests]
    chunks = [message for ((_, message),) in answers if isinstance(message, BlobChunk)]
    assert [one.offset for one in chunks] == list(offsets)
    assert b"".join(one.data for one in chunks) == LARGE_DATA


@pytest.mark.parametrize("is_altered", [False, True])
def test_what_is_not_here_or_was_altered_is_said_to_be_absent(
    tmp_path: Path, is_altered: bool
) -> None:
    if is_altered:
        Desk(tmp_path).keep(SMALL, SMALL_DATA)
        (path,) = (tmp_path / "blobs").glob("??/*")
        path.write_bytes(bytes(SMALL.size))
    desk = Desk(tmp_path)
    request = BlobRequest(SMALL, 0)
    assert desk.exchange.on_request(ANN, request, desk.now) == [(ANN, Absent(request))]
    assert desk.exchange.requests_absent == 1


def test_only_so_many_pieces_a_second_are_served_to_one_validator_and_none_to_strangers(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path, bytes_per_second=2 * CHUNK_BYTES)
    desk.keep(SMALL, SMALL_DATA)
    request = BlobRequest(SMALL, 0)
    served = [desk.exchange.on_request(ANN, request, desk.now) for _ in range(100)]
    most = SERVED_FACTOR * MAX_ASKED
    assert (served.count([]), desk.exchange.requests_dropped) == (100 - most, 100 - most)
    assert desk.exchange.on_request(BEN, request, desk.now) != []
    assert desk.exchange.on_request(ANN, request, desk.now + 1.0) != []
    assert desk.exchange.on_request(ME, request, desk.now) == []

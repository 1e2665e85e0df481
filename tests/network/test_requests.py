"""Blocks and certificates that consensus misses: asked of few at a time, and of all in turn."""

from steelyard.chain.types import Address, Epoch, Hash, View
from steelyard.node.network.outgoing import Outgoing
from steelyard.node.network.requests import (
    GIVE_UP_SECONDS,
    MAX_BLOCKS,
    NEXT_SECONDS,
    Requests,
)
from steelyard.node.network.wire import BlockRequest, CertificatesRequest

from .blob_kit import ANN, BEN, CAT, ME

BLOCK = Hash(b"\x01" * 32)


def make_requests(*peers: Address) -> Requests:
    requests = Requests()
    requests.set_peers(peers or (ANN, BEN, CAT))
    return requests


def list_asked(sending: list[Outgoing]) -> list[Address | None]:
    assert all(message == BlockRequest(BLOCK) for _, message in sending)
    return [peer for peer, _ in sending]


def test_the_holders_of_a_block_are_asked_one_after_the_other_then_all_others() -> None:
    requests = make_requests()
    asked = list_asked(requests.fetch_block(BLOCK, [CAT, BEN], 0.0))
    assert requests.tick(NEXT_SECONDS / 2) == []
    for turn in range(1, 4):
        asked += list_asked(requests.tick(turn * NEXT_SECONDS))
    assert asked == [BEN, CAT, ANN, BEN]


def test_the_holder_that_is_likeliest_to_answer_is_asked_first() -> None:
    requests = make_requests(CAT, BEN, ANN)
    assert list_asked(requests.fetch_block(BLOCK, [ANN, BEN, CAT], 0.0)) == [CAT]


def test_who_is_no_peer_is_not_asked_for_a_block() -> None:
    requests = make_requests(BEN)
    assert list_asked(requests.fetch_block(BLOCK, [CAT, ME, BEN], 0.0)) == [BEN]
    requests.set_peers([])
    assert requests.tick(NEXT_SECONDS) == []
    requests.set_peers([CAT])
    assert list_asked(requests.tick(2 * NEXT_SECONDS)) == [CAT]


def test_a_block_that_came_is_not_asked_for_any_more() -> None:
    requests = make_requests()
    requests.fetch_block(BLOCK, [ANN], 0.0)
    assert requests.is_expected(BLOCK)
    requests.on_block(BLOCK)
    requests.on_block(BLOCK)
    assert not requests.is_expected(BLOCK)
    assert requests.tick(NEXT_SECONDS) == []


def test_asking_again_goes_on_with_the_next_holder_and_does_not_hurry() -> None:
    requests = make_requests()
    requests.fetch_block(BLOCK, [ANN, BEN], 0.0)
    assert requests.fetch_block(BLOCK, [ANN, BEN], 0.1) == []
    assert list_asked(requests.fetch_block(BLOCK, [ANN, BEN], NEXT_SECONDS)) == [BEN]


def test_questions_end_and_their_number_is_bounded() -> None:
    requests = make_requests()
    for number in range(MAX_BLOCKS + 5):
        requests.fetch_block(Hash(number.to_bytes(32, "big")), [ANN], 0.0)
    assert not requests.is_expected(Hash((4).to_bytes(32, "big")))
    assert len(requests.tick(NEXT_SECONDS)) == MAX_BLOCKS
    assert requests.tick(GIVE_UP_SECONDS) == []


def test_certificates_are_asked_of_some_and_of_others_the_next_time() -> None:
    peers = [Address(bytes([number]) * 20) for number in range(10, 15)]
    requests = make_requests(*peers)
    question = CertificatesRequest(Epoch(0), View(7))
    first, second = (requests.fetch_certificates(Epoch(0), View(7)) for _ in range(2))
    assert first == [(peer, question) for peer in peers[:3]]
    assert [peer for peer, _ in second] == [peers[3], peers[4], peers[0]]


def test_nobody_is_asked_for_certificates_while_there_is_nobody() -> None:
    assert Requests().fetch_certificates(Epoch(0), View(7)) == []
    assert len(make_requests(ANN).fetch_certificates(Epoch(0), View(7))) == 1

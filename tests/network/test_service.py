"""Four networks together: what is handed to one soon is everywhere, whoever lies or sleeps."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from steelyard.chain.bls import Signature
from steelyard.chain.consensus.messages import (
    Candidate,
    CertificateReceived,
    Proposal,
    VoteReceived,
)
from steelyard.chain.consensus.votes import Kind, Statement, Vote
from steelyard.chain.types import Address, Epoch, Hash, Height, View
from steelyard.node.inbox import (
    Arrival,
    BlockAnswered,
    BlockWanted,
    CertificatesWanted,
    PlaceHeard,
    Segment,
)
from steelyard.node.network.gossip import REPEAT_SECONDS
from steelyard.node.network.mesh import Peer, PeerStatus
from steelyard.node.network.service import rank_peer
from steelyard.node.network.wire import (
    CHUNK_BYTES,
    Announcement,
    BlobChunk,
    BlobRequest,
    BlockAnswer,
    Message,
    SegmentAnswer,
    SegmentRequest,
    Status,
    TransactionMessage,
    VoteMessage,
)
from tests.chain.following_kit import FOUR, ROOT, certify, make_blocks
from tests.node.world import ALICE, BOB, make_blob, sign_transaction

from .web import Web

FIRST = sign_transaction(ALICE, 0)
BLOB, DATA = make_blob(3 * CHUNK_BYTES + 7)
BLOB_TRANSACTION = sign_transaction(BOB, 0, blobs=(BLOB,))
CHAIN = make_blocks(6)
VOTE = Vote(Statement(Epoch(0), View(1), Kind.NOTARIZE, CHAIN[0].hash), 0, Signature(b"\x05" * 96))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    web = Web(tmp_path)
    yield web
    web.close()


# -- transactions and blobs ------------------------------------------------------------------------
def test_a_transaction_handed_to_one_is_soon_pending_everywhere_and_sent_once(web: Web) -> None:
    web.spots[0].pool.add(FIRST)
    web.run(0.1)
    assert all(spot.has(FIRST) for spot in web.spots)
    assert web.sent["TransactionMessage"] == 3
    assert all(spot.woken for spot in web.spots)


def test_a_blob_uploaded_to_one_is_soon_held_and_available_everywhere(web: Web) -> None:
    web.spots[0].pool.add(BLOB_TRANSACTION)
    web.run(0.1)
    assert [spot.count_eligible() for spot in web.spots] == [0, 0, 0, 0]
    web.spots[0].upload(DATA)
    web.run(0.2)
    assert [spot.count_eligible() for spot in web.spots] == [1, 1, 1, 1]
    assert all(bytes(spot.blobs.read(BLOB)) == DATA for spot in web.spots)
    assert web.sent["BlobChunk"] == 3 * 4


def test_a_blob_is_fetched_though_its_announcement_came_first(web: Web) -> None:
    def delay(_sender: Address, _to: Address, message: Message) -> Message | None:
        return None if isinstance(message, TransactionMessage) else message

    web.change = delay
    web.spots[0].pool.add(BLOB_TRANSACTION)
    web.spots[0].upload(DATA)
    web.run(0.2)
    assert not web.spots[1].blobs.has(BLOB)
    web.spots[1].pool.add(BLOB_TRANSACTION)
    web.run(0.2)
    assert web.spots[1].blobs.has(BLOB)


def test_who_was_away_gets_what_is_pending_when_it_comes_back(web: Web) -> None:
    web.cut = {web.spots[3].address}
    web.run(0.5)
    web.spots[0].pool.add(FIRST)
    web.spots[1].pool.add(BLOB_TRANSACTION)
    web.spots[1].upload(DATA)
    web.run(1.0)
    assert not web.spots[3].has(FIRST)
    assert web.spots[0].count_eligible() == 2, "three of four are enough"
    web.cut = set()
    web.run(1.0)
    assert web.spots[3].has(FIRST)
    assert web.spots[3].count_eligible() == 2


def test_what_was_lost_is_sent_again(web: Web) -> None:
    web.change = lambda *_: None
    web.spots[0].pool.add(BLOB_TRANSACTION)
    web.spots[0].upload(DATA)
    web.run(0.2)
    web.change = lambda _sender, _to, message: message
    web.run(2 * REPEAT_SECONDS)
    assert [spot.count_eligible() for spot in web.spots] == [1, 1, 1, 1]


def test_one_that_announces_and_never_serves_and_one_that_serves_wrong_bytes_stop_nobody(
    web: Web,
) -> None:
    silent, liar = web.spots[0].address, web.spots[1].address

    def misbehave(sender: Address, _to: Address, message: Message) -> Message | None:
        if isinstance(message, BlobChunk) and sender == silent:
            return None
        if isinstance(message, BlobChunk) and sender == liar:
            return replace(message, data=bytes(len(message.data)))
        return message

    for spot in web.spots[:3]:
        spot.pool.add(BLOB_TRANSACTION)
        spot.upload(DATA)
    web.change = misbehave
    web.spots[3].pool.add(BLOB_TRANSACTION)
    web.run(30.0)
    assert web.spots[3].count_eligible() == 1
    partners = web.spots[3].network.exchange.partners
    assert (partners[silent].timeouts, partners[liar].wrong_blobs) == (1, 1)
    assert web.wires[3].refused == [(liar, "blob_wrong")]
    totals = web.spots[3].network.get_totals()
    assert (totals.work["wrong_blobs"], totals.work["chunk_timeouts"]) == (1, 1)
    assert totals.refused == {"blob_wrong": 1}
    assert sum(one.network.get_totals().work["chunks_served"] for one in web.spots) >= 4


def test_what_a_block_needs_is_fetched_without_a_transaction(web: Web) -> None:
    web.spots[2].blobs.put(BLOB, DATA)
    web.spots[0].network.fetch_blobs((BLOB,), (web.spots[1].address,))
    web.run(0.3)
    assert web.spots[0].blobs.has(BLOB)
    assert not web.spots[1].blobs.has(BLOB)
    assert web.spots[0].woken


def test_a_large_flood_from_one_validator_is_dropped_and_the_others_are_served(web: Web) -> None:
    network = web.spots[0].network
    ann, ben = (web.wires[0].peers[spot.address] for spot in web.spots[1:3])
    for number in range(10_000):
        network.on_message(ann, Announcement((replace(BLOB, size=number + 1),)))
        network.on_message(ann, TransactionMessage(number.to_bytes(4, "big")))
    network.on_message(ben, TransactionMessage(FIRST))
    assert network.loop.dropped > 9_000
    assert network.bulk.dropped > 9_000
    dropped = network.get_totals().dropped
    assert (dropped["network"], dropped["blobs"]) == (network.loop.dropped, network.bulk.dropped)
    web.run(0.1)
    assert web.spots[0].has(FIRST)


# -- consensus -------------------------------------------------------------------------------------
def test_votes_certificates_and_proposals_reach_the_other_drivers(web: Web) -> None:
    network, block = web.spots[0].network, CHAIN[0]
    candidate = Candidate(
        block.hash, ROOT.hash, Height(1), Epoch(0), View(1), block.extension.proposer
    )
    certificate = certify(block.hash)
    network.broadcast(VOTE, None)
    network.broadcast(certificate, None)
    network.broadcast(Proposal(candidate, VOTE), block)
    web.run(0.1)
    expected = [VoteReceived(VOTE), CertificateReceived(certificate), Arrival(block, VOTE)]
    for spot in web.spots[1:]:
        assert [one for one in spot.incoming if not isinstance(one, PlaceHeard)] == expected
    assert all(isinstance(one, PlaceHeard) for one in web.spots[0].incoming)


def test_a_vote_relayed_for_another_validator_is_dropped_and_held_against_the_relay(
    web: Web,
) -> None:
    relay = web.spots[1].address
    web.wires[1].broadcast(VoteMessage(VOTE))
    web.run(0.1)
    assert VoteReceived(VOTE) not in web.spots[2].incoming
    assert web.wires[2].refused == [(relay, "vote_relayed")]
    assert web.spots[2].network.get_status().dropped["vote_relayed"] == 1


def test_a_block_is_fetched_from_a_holder_and_only_then_taken(web: Web) -> None:
    me, holder = web.spots[0], web.spots[2]
    block = CHAIN[0]
    holder.network.send_block(me.address, block)
    web.run(0.1)
    assert BlockAnswered(block) not in me.incoming
    me.network.fetch_block(block.hash, (holder.address,))
    web.run(0.1)
    assert BlockWanted(block.hash, me.address) in holder.incoming
    holder.network.send_block(me.address, block)
    web.run(0.1)
    assert BlockAnswered(block) in me.incoming


def test_those_that_we_hear_and_that_hear_us_are_asked_first() -> None:
    peer = Peer(CHAIN[0].extension.proposer, bytes(32), "")
    rows = [
        PeerStatus(peer, is_connected, False, seen_at, 0, 0, 0, 0, 0, {})
        for seen_at in (None, 1.0, 99.0)
        for is_connected in (False, True)
    ]
    ranked = sorted(rows, key=lambda one: rank_peer(one, 100.0))
    assert [(one.seen_at, one.is_connected) for one in ranked] == [
        (99.0, True),
        (99.0, False),
        (None, True),
        (1.0, True),
        (None, False),
        (1.0, False),
    ]


def test_certificates_are_asked_for_and_sent(web: Web) -> None:
    me, other = web.spots[0], web.spots[1]
    me.network.fetch_certificates(Epoch(0), View(3))
    web.run(0.1)
    assert CertificatesWanted(Epoch(0), View(3), me.address) in other.incoming
    certificates = [certify(CHAIN[0].hash), certify(CHAIN[1].hash)]
    other.network.send_certificates(me.address, certificates)
    web.run(0.1)
    assert [one for one in me.incoming if isinstance(one, CertificateReceived)] == [
        CertificateReceived(one) for one in certificates
    ]


# -- catching up -----------------------------------------------------------------------------------
def test_who_fell_behind_catches_up_from_the_only_one_that_is_left(web: Web) -> None:
    certificate = certify(CHAIN[5].hash)
    web.spots[1].finalize(CHAIN, certificate)
    web.cut = {web.spots[2].address, web.spots[3].address}
    web.run(1.0)
    assert web.spots[0].store.get_head().height == 0
    web.run(3.0)
    assert web.spots[0].store.get_head() == CHAIN[5].header
    segments = [one for one in web.spots[0].incoming if isinstance(one, Segment)]
    assert segments == [Segment(tuple(CHAIN), certificate, "0x" + web.spots[1].address.hex())]
    assert not web.spots[0].network.get_status().is_catching_up


def test_a_segment_with_a_forged_certificate_never_reaches_the_driver(web: Web) -> None:
    liar, honest = web.spots[1], web.spots[2]
    forged = certify(CHAIN[5].hash, (0, 1))

    def forge(sender: Address, _to: Address, message: Message) -> Message | None:
        if isinstance(message, SegmentAnswer) and sender == liar.address:
            return replace(message, certificate=forged)
        return message

    web.change = forge
    for spot in (liar, honest):
        spot.finalize(CHAIN, certify(CHAIN[5].hash))
    web.run(15.0)
    for place in (0, 3):
        spot = web.spots[place]
        assert spot.store.get_head() == CHAIN[5].header
        segments = [one for one in spot.incoming if isinstance(one, Segment)]
        assert [one.source for one in segments] == ["0x" + honest.address.hex()]
        assert web.wires[place].refused == [(liar.address, "segment_wrong")]


def test_who_caught_up_is_told_again_what_is_pending(web: Web) -> None:
    late = web.spots[3]

    def delay(_sender: Address, to: Address, message: Message) -> Message | None:
        is_lost = isinstance(message, TransactionMessage | SegmentAnswer) and to == late.address
        return None if is_lost else message

    web.change = delay
    for spot in web.spots[:3]:
        spot.finalize(CHAIN, certify(CHAIN[5].hash))
    web.spots[0].pool.add(FIRST)
    web.run(3.0)
    web.change = lambda _sender, _to, message: message
    late.finalize(CHAIN, certify(CHAIN[5].hash))
    web.run(0.5)
    assert late.has(FIRST)


def test_only_so_many_segments_are_served_to_one_validator(web: Web) -> None:
    web.spots[0].finalize(CHAIN, certify(CHAIN[5].hash))
    web.run(0.1)
    network, peer = web.spots[0].network, web.wires[0].peers[web.spots[1].address]
    for _ in range(50):
        network.on_message(peer, SegmentRequest(Height(1)))
    before = web.sent["SegmentAnswer"]
    web.run(0.0)
    assert web.sent["SegmentAnswer"] - before < 12
    assert network.get_status().dropped["segments"] > 38


# -- what it tells ---------------------------------------------------------------------------------
def test_the_status_says_where_the_others_are(web: Web) -> None:
    web.spots[1].finalize(CHAIN, certify(CHAIN[5].hash))
    web.cut = {web.spots[3].address}
    web.run(0.5)
    status = web.spots[0].network.get_status()
    peers = {one.address: one for one in status.peers}
    assert peers[web.spots[1].address].height == 6
    assert [peers[spot.address].is_connected for spot in web.spots[1:]] == [True, True, False]
    assert peers[web.spots[1].address].endpoint == FOUR.members[1].endpoint
    assert (status.is_catching_up, status.target_height) == (False, None)


def test_the_status_says_how_far_there_is_to_go(web: Web) -> None:
    web.change = lambda _sender, _to, message: (
        None if isinstance(message, SegmentAnswer) else message
    )
    web.spots[1].finalize(CHAIN, certify(CHAIN[5].hash))
    web.spots[0].network.fetch_blobs((BLOB,), ())
    web.run(2.5)
    status = web.spots[0].network.get_status()
    assert (status.is_catching_up, status.target_height) == (True, 6)
    assert status.waiting_blobs == 1


def test_a_validator_of_another_chain_is_not_listened_to_and_reported(web: Web) -> None:
    foreign = web.spots[2].address

    def lie(sender: Address, _to: Address, message: Message) -> Message | None:
        if isinstance(message, Status) and sender == foreign:
            return replace(message, genesis_hash=Hash(b"\x01" * 32))
        return message

    web.change = lie
    web.run(3.0)
    web.spots[2].pool.add(FIRST)
    web.run(0.2)
    assert not web.spots[0].has(FIRST)
    reports = {one.address: one for one in web.spots[0].network.get_status().peers}
    assert reports[foreign].muted == "genesis"
    assert web.spots[0].network.get_totals().muted == 1
    assert reports[web.spots[1].address].muted is None


def test_who_left_the_sets_is_nobody_any_more(web: Web) -> None:
    gone = web.spots[3]
    three = replace(FOUR, epoch=Epoch(1), members=FOUR.members[:3])
    for spot in web.spots[:3]:
        spot.epoch_sets = (three,)
        spot.set_place()
    gone.pool.add(FIRST)
    web.run(0.5)
    assert not web.spots[0].has(FIRST)
    assert gone.address not in {one.address for one in web.spots[0].network.get_status().peers}


def test_who_connects_while_the_peers_change_is_known_to_every_part(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    spot, late = web.spots[0], web.spots[3].address
    spot.epoch_sets = (replace(FOUR, epoch=Epoch(1), members=FOUR.members[:3]),)
    spot.set_place()
    web.run(0.5)
    set_peers = web.wires[0].set_peers

    def be_quick(peers: Iterable[Peer]) -> None:
        set_peers(peers)
        for loop in (spot.network.loop, spot.network.bulk):
            loop.post(lambda: setattr(spot.network, "_look_at", 0.0))
            loop.run_once()

    monkeypatch.setattr(web.wires[0], "set_peers", be_quick)
    spot.epoch_sets = (FOUR,)
    spot.set_place()
    web.run(0.5)
    assert spot.network.exchange.partners[late].is_connected
    assert spot.network.catch_up._sources[late].is_connected


def test_blocks_and_segments_that_nobody_asked_for_are_not_even_decoded(web: Web) -> None:
    wire, spot = web.wires[0], web.spots[0]
    peer = wire.peers[web.spots[1].address]
    assert not wire.admits(peer, SegmentAnswer)
    assert not wire.admits(peer, BlockAnswer)
    assert wire.admits(peer, VoteMessage)
    spot.network.fetch_block(CHAIN[0].hash, ())
    spot.network.loop.run_once()
    assert wire.admits(peer, BlockAnswer)


def test_a_fault_of_ours_in_one_message_does_not_end_the_thread(
    web: Web, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("ours")

    web.spots[0].network.loop.post(fail)
    web.spots[1].pool.add(FIRST)
    web.run(0.1)
    assert "message_failed" in caplog.text
    assert web.spots[0].has(FIRST)


def test_a_request_for_a_blob_is_answered_with_the_blob_or_its_absence(web: Web) -> None:
    web.spots[0].blobs.put(BLOB, DATA)
    for place in (0, 1):
        web.wires[2].send(web.spots[place].address, BlobRequest(BLOB, CHUNK_BYTES))
    web.run(0.1)
    assert (web.sent["BlobChunk"], web.sent["Absent"]) == (1, 1)
    assert web.spots[2].network.exchange.counters.chunks_unasked == 1


def test_the_driver_learns_who_sent_a_message_and_can_have_it_held_against_that_one(
    web: Web,
) -> None:
    web.run(0.1)
    sender = web.spots[0].address
    web.spots[1].incoming.clear()
    web.spots[1].senders.clear()
    web.spots[0].network.broadcast(VOTE, None)
    web.run(0.1)
    heard = dict(zip(web.spots[1].incoming, web.spots[1].senders, strict=True))
    assert heard[VoteReceived(VOTE)] == sender
    web.spots[1].network.refuse(sender, "vote_signature")
    assert web.wires[1].refused == [(sender, "vote_signature")]

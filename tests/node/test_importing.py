"""Blocks that others made final: taken if they prove it, waited for, never believed."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from steelyard.chain.block import Block
from steelyard.chain.bls import Signature, sign
from steelyard.chain.consensus.certificates import Certificate, build_certificate, encode_bitmap
from steelyard.chain.consensus.messages import (
    CertificateReceived,
    Effect,
    ReportConflict,
    ReportOffence,
    VoteReceived,
)
from steelyard.chain.consensus.votes import Kind, Statement, Vote, compute_signing_root
from steelyard.chain.epochs import EpochSet
from steelyard.chain.errors import UnavailableBlob
from steelyard.chain.types import Address, Epoch, Hash, View
from steelyard.node.inbox import ROOM, Arrival, BlockAnswered, Delivery, Inbox, Segment
from steelyard.node.tree import BlockTree

from .cluster import Cluster, make_document
from .test_cluster import finalize, get_block


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Four nodes, two blocks; the last node has none of them and hears nothing."""
    cluster = Cluster(tmp_path / "nodes", make_document((10, 10, 10, 10)), 4)
    cluster.start(0, 1, 2)
    finalize(cluster, 0, 1)
    cluster.part({0, 1, 2}, {3})
    cluster.start(3)
    cluster.rest(0.1)
    yield cluster
    cluster.close()


def get_segment(cluster: Cluster, last: int) -> Segment:
    node = cluster.nodes[0]
    certificate = node.get_certificate(last)
    assert certificate is not None
    height = node.store.get_height(certificate.hash)
    assert height is not None
    return Segment(tuple(get_block(node, one) for one in range(1, height + 1)), certificate, "test")


def certify(cluster: Cluster, said: Statement, places: Sequence[int]) -> Certificate:
    votes = [sign_vote(cluster, said, place) for place in places]
    return build_certificate(votes, cluster.nodes[0].get_epoch_set().validators)


def sign_vote(cluster: Cluster, said: Statement, place: int) -> Vote:
    root = compute_signing_root(said, cluster.nodes[0].rules.domain)
    return Vote(said, place, sign(cluster.secrets[place].voting, root))


@pytest.mark.slow
def test_a_segment_is_executed_and_final(cluster: Cluster) -> None:
    node, segment = cluster.nodes[3], get_segment(cluster, 1)
    node.driver.deliver(segment)
    cluster.run(lambda: node.get_head().height == segment.blocks[-1].height)
    assert node.get_certificate(segment.blocks[-1].height) == segment.certificate
    cluster.part()
    cluster.run(lambda: node.driver.is_validator() and node.get_head().height >= 2)
    assert node._signer.get_floor() >= (0, segment.certificate.view)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["signature", "body", "gap"])
def test_a_segment_that_proves_nothing_changes_nothing(cluster: Cluster, fault: str) -> None:
    node, segment = cluster.nodes[3], get_segment(cluster, 1)
    certificate, blocks = segment.certificate, segment.blocks
    wrong = {
        "signature": replace(segment, certificate=replace(certificate, signature=b"\0" * 96)),
        "body": replace(
            segment, blocks=(replace(blocks[0], transactions=(b"\x02junk",)), *blocks[1:])
        ),
        "gap": replace(segment, blocks=blocks[1:]),
    }[fault]
    node.driver.deliver(wrong)
    cluster.rest(1)
    assert node.get_head().height == 0
    assert node.driver.alarm is None
    node.driver.deliver(segment)
    cluster.run(lambda: node.get_head().height == blocks[-1].height)


@pytest.mark.slow
def test_a_final_block_that_breaks_a_rule_is_an_alarm_and_ends_our_votes(cluster: Cluster) -> None:
    node, block = cluster.nodes[3], get_block(cluster.nodes[0], 1)
    wrong = replace(block, header=replace(block.header, state_root=Hash(b"\x01" * 32)))
    said = Statement(Epoch(0), wrong.extension.view, Kind.FINALIZE, wrong.hash)
    node.driver.deliver(Segment((wrong,), certify(cluster, said, (0, 1, 2)), "test"))
    cluster.run(lambda: node.driver.alarm is not None)
    assert node.driver.alarm is not None
    assert node.driver.alarm.code == "fork_or_bug"
    cluster.part()
    cluster.rest(5)
    assert cluster.said[node.address] == []
    assert node.get_head().height == 0


@pytest.mark.slow
def test_a_final_block_waits_for_its_blobs_and_reads_go_on(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, segment = cluster.nodes[3], get_segment(cluster, 1)
    execute, missing = BlockTree.execute, [True]

    def lack(tree: BlockTree, block_hash: Hash) -> object:
        if missing:
            raise UnavailableBlob("blob_unavailable", "not here")
        return execute(tree, block_hash)

    monkeypatch.setattr(BlockTree, "execute", lack)
    node.driver.deliver(segment)
    cluster.run(lambda: node.driver.alarm is not None)
    assert node.driver.alarm is not None
    assert node.driver.alarm.code == "blob_unavailable"
    assert node.get_head().height == 0
    missing.clear()
    node.driver.wake_for_blob()
    cluster.run(lambda: node.get_head().height == segment.blocks[-1].height)
    cluster.rest(0.1)
    assert node.driver.alarm is None


# -- blocks ----------------------------------------------------------------------------------------
def swap_body(block: Block) -> Block:
    return replace(block, transactions=(b"\x02junk",))


def count_known(cluster: Cluster) -> int:
    session = cluster.nodes[3].driver._session
    assert session is not None
    return len(session.tree._branches)


@pytest.mark.slow
def test_a_block_that_nobody_asked_for_is_not_kept(cluster: Cluster) -> None:
    node = cluster.nodes[3]
    node.driver.deliver(BlockAnswered(get_block(cluster.nodes[0], 1)))
    cluster.rest(1)
    assert count_known(cluster) == 0


@pytest.mark.slow
def test_a_leaders_block_with_another_body_is_not_kept(cluster: Cluster) -> None:
    node, block = cluster.nodes[3], get_block(cluster.nodes[0], 1)
    said = Statement(Epoch(0), block.extension.view, Kind.NOTARIZE, block.hash)
    leader = node.get_epoch_set().validators.get_leader(Epoch(0), said.view)
    vote = sign_vote(cluster, said, leader)
    node.driver.deliver(Arrival(swap_body(block), vote))
    cluster.rest(0.1)
    assert count_known(cluster) == 0
    node.driver.deliver(Arrival(block, replace(vote, signature=b"\0" * 96)))  # type: ignore[arg-type]
    cluster.rest(0.1)
    assert count_known(cluster) == 0
    node.driver.deliver(Arrival(block, vote))
    cluster.rest(0.1)
    assert count_known(cluster) == 1


@pytest.mark.slow
def test_a_leader_fills_one_place_a_view_and_none_far_ahead(cluster: Cluster) -> None:
    node, block = cluster.nodes[3], get_block(cluster.nodes[0], 1)
    validators = node.get_epoch_set().validators

    def propose(view: int, extra: bytes) -> None:
        extension = replace(block.extension, view=View(view))
        leader = validators.get_leader(Epoch(0), View(view))
        extension = replace(extension, proposer=cluster.addresses[leader])
        made = seal(replace(block, extension=extension), extra)
        said = Statement(Epoch(0), View(view), Kind.NOTARIZE, made.hash)
        vote = sign_vote(cluster, said, leader)
        node.driver.deliver(Arrival(made, vote))

    propose(5, b"a")
    propose(5, b"b")
    propose(500, b"c")
    cluster.rest(0.1)
    assert count_known(cluster) == 1


def seal(block: Block, extra: bytes) -> Block:
    from steelyard.chain.block import compute_extension_hash

    header = replace(
        block.header,
        extra_data=extra,
        parent_beacon_block_root=compute_extension_hash(block.extension),
    )
    return replace(block, header=header)


# -- cheats ----------------------------------------------------------------------------------------
class Court:
    """Notes what the driver reports."""

    def __init__(self) -> None:
        self.reports: list[tuple[Effect, EpochSet]] = []

    def report(self, evidence: ReportOffence | ReportConflict, epoch_set: EpochSet) -> None:
        self.reports.append((evidence, epoch_set))


@pytest.mark.slow
def test_two_votes_of_one_validator_in_one_view_are_reported(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, make_document((10, 10, 10, 10)), 4)
    cluster.start()
    node, court = cluster.nodes[0], Court()
    node.driver.duties = court
    cluster.run(node.driver.is_validator)
    for block in (b"\x01" * 32, b"\x02" * 32):
        said = Statement(Epoch(0), View(3), Kind.NOTARIZE, Hash(block))
        vote = sign_vote(cluster, said, 2)
        node.driver.deliver(VoteReceived(vote))
    cluster.run(lambda: court.reports)
    (evidence, epoch_set), *_ = court.reports
    assert isinstance(evidence, ReportOffence)
    assert evidence.first.signer == evidence.second.signer == 2
    assert epoch_set == node.get_epoch_set()
    cluster.close()


@pytest.mark.slow
# -- who answers for it ----------------------------------------------------------------------------
def test_whoever_sends_what_it_did_not_sign_or_what_proves_nothing_is_refused(
    cluster: Cluster,
) -> None:
    node, block = cluster.nodes[3], get_block(cluster.nodes[0], 1)
    forged = Signature(b"\0" * 96)
    said = Statement(Epoch(0), block.extension.view, Kind.NOTARIZE, block.hash)
    leader = node.get_epoch_set().validators.get_leader(Epoch(0), said.view)
    proven = certify(cluster, said, (0, 1, 2))
    wrong = {
        "vote_signature": VoteReceived(Vote(said, 1, forged)),
        "proposal_vote": Arrival(block, Vote(replace(said, hash=Hash(b"\1" * 32)), leader, forged)),
        "certificate_signature": CertificateReceived(replace(proven, signature=forged)),
        "certificate_quorum": CertificateReceived(replace(proven, bitmap=encode_bitmap((0, 1), 4))),
    }
    for code, message in wrong.items():
        node.driver.deliver(message, cluster.addresses[1])
        node.driver.deliver(message)
        cluster.rest(0.1)
        assert cluster.refused == [(node.address, cluster.addresses[1], code)]
        cluster.refused.clear()
    assert node.driver.get_view() == 1
    node.driver.deliver(CertificateReceived(proven), cluster.addresses[2])
    cluster.run(lambda: node.driver.get_view() > 1)
    assert cluster.refused == []


@pytest.mark.slow
def test_whoever_sends_a_block_with_another_body_is_refused(cluster: Cluster) -> None:
    node, block = cluster.nodes[3], get_block(cluster.nodes[0], 1)
    said = Statement(Epoch(0), block.extension.view, Kind.NOTARIZE, block.hash)
    leader = node.get_epoch_set().validators.get_leader(Epoch(0), said.view)
    author = cluster.addresses[leader]
    node.driver.deliver(Arrival(swap_body(block), sign_vote(cluster, said, leader)), author)
    cluster.rest(0.1)
    node.driver.deliver(CertificateReceived(certify(cluster, said, (0, 1, 2))), author)
    cluster.rest(0.1)  # now the block is asked for
    asked: list[tuple[Hash, tuple[Address, ...]]] = []
    session = node.driver._session
    assert session is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session._outbox, "fetch_block", lambda *asking: asked.append(asking))
        node.driver.deliver(BlockAnswered(swap_body(block)), cluster.addresses[0])
        cluster.rest(0.1)
    assert asked == [(block.hash, (cluster.addresses[1], cluster.addresses[2]))]
    expected = [(author, "segment_body"), (cluster.addresses[0], "segment_body")]
    assert [(peer, code) for _, peer, code in cluster.refused] == expected
    assert count_known(cluster) == 0


@pytest.mark.slow
# -- floods ----------------------------------------------------------------------------------------
def test_a_flood_of_votes_takes_no_room_of_other_messages(cluster: Cluster) -> None:
    said = Statement(Epoch(0), View(3), Kind.NULLIFY, Hash(bytes(32)))
    inbox, room = Inbox(), ROOM[VoteReceived]
    for _ in range(room + 7):
        inbox.put(VoteReceived(Vote(said, 0, b"")))  # type: ignore[arg-type]
    segment = get_segment(cluster, 1)
    for _ in range(ROOM[Segment] + 1):
        inbox.put(segment)
    assert inbox.dropped == {"VoteReceived": 7, "Segment": 1}
    taken = [inbox.take() for _ in range(room + ROOM[Segment])]
    assert taken[-1] == Delivery(segment)
    assert inbox.is_empty()
    inbox.put(segment, cluster.addresses[1])
    assert inbox.take() == Delivery(segment, cluster.addresses[1])

"""No life of a key contradicts another one, whatever backup it was restored from."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from steelyard.chain.bls import sign
from steelyard.chain.consensus.certificates import build_certificate
from steelyard.chain.consensus.messages import CertificateReceived
from steelyard.chain.consensus.votes import NO_HASH, Kind, Statement, Vote, compute_signing_root
from steelyard.chain.epochs import get_genesis_set
from steelyard.chain.genesis import parse_genesis
from steelyard.chain.types import Epoch, Hash, Height, View
from steelyard.node.inbox import PlaceHeard
from steelyard.node.signer import Signer
from steelyard.node.store import CorruptData
from steelyard.node.voting import NEAR_BLOCKS, QUIET_VIEWS, Voter

from .cluster import Cluster, make_document, make_secrets
from .test_cluster import A, finalize
from .world import CHAIN_ID

LAST = 3


@pytest.fixture
def signer(tmp_path: Path) -> Iterator[Signer]:
    """The database of the last node, which voted in view 5."""
    signer = Signer(tmp_path, make_secrets(LAST).voting, CHAIN_ID, Hash(b"\x01" * 32))
    signer.sign_vote(say(5, Kind.NOTARIZE), 0)
    yield signer
    signer.close()


def say(view: int, kind: Kind) -> Statement:
    block = NO_HASH if kind == Kind.NULLIFY else Hash(b"\xaa" * 32)
    return Statement(Epoch(0), View(view), kind, block)


def test_after_others_went_on_a_key_gives_views_up_before_it_votes_for_blocks(
    signer: Signer,
) -> None:
    voter = Voter(signer, make_secrets(LAST).address, CHAIN_ID)
    voter.wake((0, 9), Epoch(0), was_member=True)
    for view in (9, 10, 9 + QUIET_VIEWS):
        assert voter.sign(say(view, Kind.NOTARIZE), LAST) is None
        assert voter.sign(say(view, Kind.FINALIZE), LAST) is None
    assert voter.sign(say(9, Kind.NULLIFY), LAST) is None
    assert voter.sign(say(10, Kind.NULLIFY), LAST) is not None
    assert voter.sign(say(10 + QUIET_VIEWS, Kind.NOTARIZE), LAST) is not None


def test_the_first_views_of_the_next_epoch_are_given_up_as_well(signer: Signer) -> None:
    voter = Voter(signer, make_secrets(LAST).address, CHAIN_ID)
    voter.wake((0, 9), Epoch(1), was_member=True)
    for view, is_withheld in ((1, True), (QUIET_VIEWS, True), (QUIET_VIEWS + 1, False)):
        vote = voter.sign(replace(say(view, Kind.NOTARIZE), epoch=Epoch(1)), LAST)
        assert (vote is None) == is_withheld


def test_a_newcomer_and_the_newest_signer_vote_at_once(signer: Signer) -> None:
    voter = Voter(signer, make_secrets(LAST).address, CHAIN_ID)
    voter.wake((0, 5), Epoch(0), was_member=True)
    assert voter.sign(say(5, Kind.FINALIZE), LAST) is not None
    voter = Voter(signer, make_secrets(LAST).address, CHAIN_ID)
    voter.wake((0, 9), Epoch(0), was_member=False)
    assert voter.sign(say(9, Kind.NOTARIZE), LAST) is None
    assert voter.sign(say(10, Kind.NOTARIZE), LAST) is not None


def test_blocks_of_others_raise_the_floor_only_of_one_who_is_awake(signer: Signer) -> None:
    epoch_set = get_genesis_set(parse_genesis(make_document((10, 10, 10, 10))))
    voter = Voter(signer, make_secrets(LAST).address, CHAIN_ID)
    voter.follow((0, 9))
    assert signer.get_floor() == (0, 0)
    for place in range(2):
        assert not voter.may_vote(epoch_set, 0)
        voter.hear(make_secrets(place).address, Height(0))
    assert voter.may_vote(epoch_set, 0)
    voter.follow((0, 9))
    assert signer.get_floor() == (0, 9)


def test_who_is_further_behind_than_a_third_says_follows_first(signer: Signer) -> None:
    epoch_set = get_genesis_set(parse_genesis(make_document((10, 10, 10, 10))))
    voter = Voter(signer, make_secrets(LAST).address, CHAIN_ID)
    for place in range(2):
        voter.hear(make_secrets(place).address, Height(100))
    assert not voter.may_vote(epoch_set, 99 - NEAR_BLOCKS)
    assert voter.may_vote(epoch_set, 100 - NEAR_BLOCKS)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path / "nodes", make_document((10, 10, 10, 10)), 4)
    cluster.start()
    yield cluster
    cluster.close()


@pytest.fixture
def backup(cluster: Cluster, tmp_path: Path) -> Path:
    """What the last node's directory was a block later; then it goes on for three more."""
    finalize(cluster, 0)
    cluster.kill(LAST)
    copy = Path(shutil.copytree(cluster.get_home(LAST), tmp_path / "backup"))
    cluster.start(LAST)
    finalize(cluster, 1, 2, 3)
    cluster.kill(LAST)
    return copy


def restore(cluster: Cluster, backup: Path, *names: str) -> None:
    for name in names:
        shutil.rmtree(cluster.get_home(LAST) / name)
        shutil.copytree(backup / name, cluster.get_home(LAST) / name)


@pytest.mark.slow
def test_a_restored_backup_says_nothing_until_it_has_heard_a_quorum(
    cluster: Cluster, backup: Path
) -> None:
    restore(cluster, backup, "chain", "signer", "blobs")
    said = len(cluster.said[cluster.addresses[LAST]])
    cluster.part({0, 1, 2}, {LAST})
    cluster.start(LAST)
    cluster.rest(20)
    assert len(cluster.said[cluster.addresses[LAST]]) == said
    assert not cluster.nodes[LAST].driver.is_validator()


@pytest.mark.slow
def test_a_restored_backup_contradicts_nothing_and_votes_again(
    cluster: Cluster, backup: Path
) -> None:
    restore(cluster, backup, "chain", "signer", "blobs")
    cluster.start(LAST)
    finalize(cluster, *range(4, 9))
    cluster.check_honesty()
    cluster.check_agreement()
    views = [said.view for said in cluster.said[cluster.addresses[LAST]]]
    assert cluster.nodes[LAST].get_head().height > 8
    assert views[-1] > views[0] + 5


@pytest.mark.slow
def test_a_signer_of_an_old_backup_is_refused_beside_a_newer_chain(
    cluster: Cluster, backup: Path
) -> None:
    restore(cluster, backup, "signer")
    with pytest.raises(CorruptData, match="older than chain/"):
        cluster.start(LAST)


@pytest.mark.slow
def test_a_chain_of_an_old_backup_catches_up_beside_a_newer_signer(
    cluster: Cluster, backup: Path
) -> None:
    restore(cluster, backup, "chain")
    cluster.start(LAST)
    finalize(cluster, 4, 5)
    cluster.check_honesty()
    cluster.check_agreement()


@pytest.mark.slow
def test_a_signer_without_a_chain_starts_over_and_catches_up(cluster: Cluster) -> None:
    finalize(cluster, 0, 1, 2)
    cluster.kill(LAST)
    shutil.rmtree(cluster.get_home(LAST) / "chain")
    cluster.start(LAST)
    cluster.run(lambda: cluster.nodes[LAST].get_nonce(A, pending=False) == 3)
    finalize(cluster, 3)
    cluster.check_honesty()


@pytest.mark.slow
def test_our_signature_under_what_the_signer_does_not_know_is_an_alarm(cluster: Cluster) -> None:
    finalize(cluster, 0)
    node = cluster.nodes[LAST]
    validators = node.get_epoch_set().validators
    view = View(node.driver.get_view() + 3)
    said = Statement(Epoch(0), view, Kind.NULLIFY, NO_HASH)
    root = compute_signing_root(said, CHAIN_ID)
    votes = [Vote(said, place, sign(cluster.secrets[place].voting, root)) for place in (0, 1, LAST)]
    genuine = build_certificate(votes, validators)
    forged = replace(genuine, signature=votes[0].signature)
    node.driver.deliver(CertificateReceived(forged))
    cluster.rest(1)
    assert not node.driver.is_outdated()
    node.driver.deliver(CertificateReceived(genuine))
    cluster.run(node.driver.is_outdated)
    assert node._signer.get_floor() >= (0, view)


@pytest.mark.slow
def test_nobody_is_believed_alone_to_be_further(cluster: Cluster) -> None:
    """One validator that claims a height keeps nobody from voting."""
    finalize(cluster, 0)
    cluster.kill(LAST)
    cluster.start(LAST)
    liar = cluster.addresses[0]
    cluster.filter = lambda place, message: (
        not (isinstance(message, PlaceHeard) and message.address == liar)
    )
    cluster.nodes[LAST].driver.deliver(PlaceHeard(liar, 10**9))
    cluster.run(cluster.nodes[LAST].driver.is_validator)

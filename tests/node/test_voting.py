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
from steelyard.node.journal import CERTIFICATE
from steelyard.node.signer import Signer, encode_place
from steelyard.node.store import CorruptData
from steelyard.node.voting import NEAR_BLOCKS, QUIET_VIEWS, Voter

from .cluster import Cluster, make_document, make_secrets
from .test_cluster import A, finalize
from .world import BOB, sign_transaction

LAST = 3
GENESIS = parse_genesis(make_document((10, 10, 10, 10)))
FOUR = get_genesis_set(GENESIS)


@pytest.fixture
def signer(tmp_path: Path) -> Iterator[Signer]:
    """The database of the last node, which voted in view 5."""
    signer = Signer(tmp_path, make_secrets(LAST).voting, GENESIS.domain, Hash(b"\x01" * 32))
    signer.sign_vote(say(5, Kind.NOTARIZE), 0)
    yield signer
    signer.close()


def say(view: int, kind: Kind) -> Statement:
    block = NO_HASH if kind == Kind.NULLIFY else Hash(b"\xaa" * 32)
    return Statement(Epoch(0), View(view), kind, block)


def test_after_others_went_on_a_key_gives_views_up_before_it_votes_for_blocks(
    signer: Signer,
) -> None:
    voter = Voter(signer, make_secrets(LAST).address, GENESIS.domain)
    voter.wake((0, 9), FOUR, was_member=True)
    for view in (9, 10, 9 + QUIET_VIEWS):
        assert voter.sign(say(view, Kind.NOTARIZE), LAST) is None
        assert voter.sign(say(view, Kind.FINALIZE), LAST) is None
    assert voter.sign(say(9, Kind.NULLIFY), LAST) is None
    assert voter.sign(say(10, Kind.NULLIFY), LAST) is not None
    assert voter.sign(say(10 + QUIET_VIEWS, Kind.NOTARIZE), LAST) is not None


def test_the_first_views_of_the_next_epoch_are_given_up_as_well(signer: Signer) -> None:
    voter = Voter(signer, make_secrets(LAST).address, GENESIS.domain)
    voter.wake((0, 9), replace(FOUR, epoch=Epoch(1)), was_member=True)
    for view, is_withheld in ((1, True), (QUIET_VIEWS, True), (QUIET_VIEWS + 1, False)):
        vote = voter.sign(replace(say(view, Kind.NOTARIZE), epoch=Epoch(1)), LAST)
        assert (vote is None) == is_withheld


def test_a_newcomer_and_the_newest_signer_vote_at_once(signer: Signer) -> None:
    voter = Voter(signer, make_secrets(LAST).address, GENESIS.domain)
    voter.wake((0, 5), FOUR, was_member=True)
    assert voter.sign(say(5, Kind.FINALIZE), LAST) is not None
    voter = Voter(signer, make_secrets(LAST).address, GENESIS.domain)
    voter.wake((0, 9), FOUR, was_member=False)
    assert voter.sign(say(9, Kind.NOTARIZE), LAST) is None
    assert voter.sign(say(10, Kind.NOTARIZE), LAST) is not None


def test_where_more_than_a_third_is_counts_as_certified_up_to_there(signer: Signer) -> None:
    voter = Voter(signer, make_secrets(LAST).address, GENESIS.domain)
    for place, view in enumerate((99, 9, 4)):
        voter.hear(make_secrets(place).address, Height(0), (0, view))
    voter.wake((0, 5), FOUR, was_member=True)
    assert signer.get_floor() == (0, 8)
    assert signer.get_quiet() == (0, 8 + QUIET_VIEWS)


def test_where_others_are_is_no_news_to_who_voted_in_the_view_before(signer: Signer) -> None:
    voter = Voter(signer, make_secrets(LAST).address, GENESIS.domain)
    for place in range(2):
        voter.hear(make_secrets(place).address, Height(0), (0, 6))
    voter.wake((0, 4), FOUR, was_member=True)
    assert voter.sign(say(6, Kind.NOTARIZE), LAST) is not None


def test_a_restart_does_not_shorten_the_views_without_votes_for_blocks(signer: Signer) -> None:
    voter = Voter(signer, make_secrets(LAST).address, GENESIS.domain)
    voter.wake((0, 9), FOUR, was_member=True)
    voter = Voter(signer, make_secrets(LAST).address, GENESIS.domain)
    voter.wake((0, 9), FOUR, was_member=True)
    assert voter.sign(say(10, Kind.NOTARIZE), LAST) is None


def test_blocks_of_others_raise_the_floor_only_of_one_who_is_awake(signer: Signer) -> None:
    voter = Voter(signer, make_secrets(LAST).address, GENESIS.domain)
    voter.follow((0, 9))
    assert signer.get_floor() == (0, 0)
    for place in range(2):
        assert not voter.may_vote(FOUR, 0)
        voter.hear(make_secrets(place).address, Height(0), (0, 1))
    assert voter.may_vote(FOUR, 0)
    voter.follow((0, 9))
    assert signer.get_floor() == (0, 9)


def test_who_is_further_behind_than_a_third_says_follows_first(signer: Signer) -> None:
    voter = Voter(signer, make_secrets(LAST).address, GENESIS.domain)
    for place in range(2):
        voter.hear(make_secrets(place).address, Height(100), (0, 1))
    assert not voter.may_vote(FOUR, 99 - NEAR_BLOCKS)
    assert voter.may_vote(FOUR, 100 - NEAR_BLOCKS)


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
    root = compute_signing_root(said, GENESIS.domain)
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
def test_among_several_a_notarization_is_on_disk_before_a_vote_to_finalize(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one of its signers could, after a kill, keep us from ever leaving that view."""
    sign_vote, seen = Signer.sign_vote, list[bool]()
    stores = {id(node._signer): node.store for node in cluster.nodes.values()}

    def look_and_sign(signer: Signer, statement: Statement, place: int) -> Vote:
        if statement.kind == Kind.FINALIZE:
            key = CERTIFICATE + encode_place(statement.epoch, statement.view)
            held = dict(stores[id(signer)].read_journal())
            seen.append(key + bytes([Kind.NOTARIZE]) in held)
        return sign_vote(signer, statement, place)

    monkeypatch.setattr(Signer, "sign_vote", look_and_sign)
    finalize(cluster, 0)
    assert seen
    assert all(seen)


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
    cluster.nodes[LAST].driver.deliver(PlaceHeard(liar, Height(10**9), Epoch(9), View(9)))
    cluster.run(cluster.nodes[LAST].driver.is_validator)


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Cluster]:
    """A chain that makes no block for a minute if there is no work."""
    cluster = Cluster(tmp_path / "idle", make_document((10,) * 4, heartbeat_ms=60_000), 4)
    cluster.start()
    yield cluster
    cluster.close()


@pytest.mark.slow
def test_a_backup_that_is_one_block_old_does_not_propose_again(
    idle: Cluster, tmp_path: Path
) -> None:
    """Too near to follow first, and it knows no certificate that is news to its signer."""
    validators = idle.nodes[LAST].get_epoch_set().validators
    view = next(one for one in range(3, 99) if validators.get_leader(Epoch(0), View(one)) == LAST)
    finalize(idle, *range(view - 1))
    idle.run(lambda: {one.driver.get_view() for one in idle.nodes.values()} == {view})
    idle.kill(LAST)
    copy = Path(shutil.copytree(idle.get_home(LAST), tmp_path / "backup"))
    idle.start(LAST)
    idle.run(idle.nodes[LAST].driver.is_validator)
    finalize(idle, view - 1)
    said = idle.said[idle.addresses[LAST]]
    assert (view, Kind.FINALIZE) in [(one.view, one.kind) for one in said]
    idle.kill(LAST)
    restore(idle, copy, "chain", "signer", "blobs")
    idle.rest(1)
    idle.start(LAST)
    idle.run(idle.nodes[LAST].driver.is_validator)
    sent = idle.submit(sign_transaction(BOB, 0))  # work even for who lacks Alice's last one
    idle.run(lambda: all(one.find_transaction(sent) for one in idle.nodes.values()))
    finalize(idle, *range(view, view + 4))
    idle.check_honesty()
    assert said[-1].view > view + QUIET_VIEWS

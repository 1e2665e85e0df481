"""One machine, event by event: recovery, persistence, offences, limits, signatures (rules 9 to 12).

In this epoch validators 3, 0, 2, 2, 1 lead views 1 to 5.
"""

from dataclasses import replace

import pytest

from steelyard.chain import bls
from steelyard.chain.consensus.certificates import build_certificate, check_certificate
from steelyard.chain.consensus.messages import (
    BlockBuilt,
    BlockFetched,
    BlockValidated,
    Broadcast,
    CertificateReceived,
    Effect,
    Event,
    FetchBlock,
    FetchCertificates,
    Finalize,
    Propose,
    ReportConflict,
    ReportOffence,
    SetTimer,
    SignVote,
    Started,
    TimerFired,
    Validate,
    VoteReceived,
    VoteSigned,
    WorkArrived,
)
from steelyard.chain.consensus.simplex import Settings, Simplex
from steelyard.chain.consensus.validators import Validator, ValidatorSet
from steelyard.chain.consensus.votes import (
    NO_HASH,
    Kind,
    Statement,
    Vote,
    compute_signing_root,
)
from steelyard.chain.errors import InvalidVote
from steelyard.chain.params import MAX_LOOKAHEAD_VIEWS, MAX_LOOKBEHIND_VIEWS
from steelyard.chain.types import Domain, Hash
from tests.consensus.makers import (
    BACKEND,
    DOMAIN,
    EPOCH,
    ROOT,
    TIMEOUT_MS,
    make_block,
    make_proposal,
    make_settings,
    make_vote,
)
from tests.consensus.simplex_kit import (
    B1,
    B1_TWIN,
    B2,
    FINALIZE_B1,
    HEARTBEAT_MS,
    NOTARIZE_B1,
    SET,
    Bench,
    certify,
    get_said,
    pick,
    received,
)


# -- rule 9: when nothing moves --------------------------------------------------------------------
def test_a_stuck_validator_repeats_itself_and_asks() -> None:
    bench = Bench()
    entry = certify(Kind.NULLIFY, 1)
    bench.step(CertificateReceived(entry))
    bench.step(TimerFired(), TIMEOUT_MS)
    effects = bench.step(TimerFired(), TIMEOUT_MS)
    assert Broadcast(make_vote(1, 2, Kind.NULLIFY)) in effects
    assert Broadcast(entry) in effects
    assert FetchCertificates(2) in effects
    assert pick(effects, SetTimer) == [SetTimer(bench.now + TIMEOUT_MS)]


def test_missing_blocks_are_asked_for_again_with_every_view() -> None:
    bench = Bench()
    bench.step(received(Kind.NOTARIZE, 1, B1.hash))
    assert FetchBlock(B1.hash, (0, 2, 3)) in bench.step(received(Kind.NULLIFY, 2))


def test_blocks_below_the_final_one_are_asked_for_no_more() -> None:
    bench = Bench()
    assert FetchBlock(B1_TWIN.hash, (0, 2, 3)) in bench.step(
        received(Kind.NOTARIZE, 1, B1_TWIN.hash)
    )
    bench.step(received(Kind.FINALIZE, 1, B1.hash))
    assert pick(bench.step(BlockFetched(B1)), Finalize)
    assert not pick(bench.step(received(Kind.NULLIFY, 2)), FetchBlock)


def test_the_newest_finalization_is_repeated_and_served() -> None:
    bench = Bench()
    bench.propose(B1)
    bench.step(received(Kind.NOTARIZE, 1, B1.hash))
    final = certify(Kind.FINALIZE, 1, B1.hash)
    bench.step(CertificateReceived(final))
    assert Broadcast(final) in bench.step(TimerFired(), 10 * HEARTBEAT_MS)
    assert bench.machine.get_certificates(1) == (final,)


# -- rule 10: nothing leaves before it is on disk --------------------------------------------------
def test_a_vote_is_sent_only_after_it_was_signed() -> None:
    bench = Bench()
    bench.propose(B1)
    effects = bench.machine.step(BlockValidated(B1.hash), 0)
    assert get_said(list(effects)) == [NOTARIZE_B1]
    assert not pick(list(effects), Broadcast)
    vote = make_vote(1, 1, Kind.NOTARIZE, B1.hash)
    assert Broadcast(vote) in bench.machine.step(VoteSigned(vote), 0)


def test_a_proposal_is_sent_with_the_leaders_vote() -> None:
    bench = Bench(me=3)
    bench.step(WorkArrived())
    effects = bench.step(BlockBuilt(B1))
    assert pick(effects, Broadcast) == [Broadcast(make_proposal(SET, B1))]


def test_a_vote_that_was_not_asked_for_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="without being asked"):
        Bench().step(VoteSigned(make_vote(1, 1, Kind.NOTARIZE, B1.hash)))
    with pytest.raises(AssertionError, match="not our vote"):
        Bench().step(VoteSigned(make_vote(2, 1, Kind.NOTARIZE, B1.hash)))


def test_a_restarted_validator_says_the_same_again_and_nothing_else() -> None:
    said = [Statement(EPOCH, 1, Kind.NOTARIZE, B1.hash)]
    bench = Bench(statements=said, candidates=[B1])
    assert get_said(bench.started) == [NOTARIZE_B1]
    assert get_said(bench.accept(B1_TWIN) + bench.step(WorkArrived())) == []


def test_a_restarted_leader_repeats_its_proposal_and_builds_no_other() -> None:
    said = [Statement(EPOCH, 1, Kind.NOTARIZE, B1.hash)]
    bench = Bench(me=3, statements=said, candidates=[B1])
    assert Broadcast(make_proposal(SET, B1)) in bench.started
    assert not pick(bench.step(WorkArrived()), Propose)
    assert get_said(bench.step(BlockBuilt(B1_TWIN))) == []


def test_a_restarted_validator_goes_on_where_its_certificates_end() -> None:
    bench = Bench(certificates=[certify(Kind.NOTARIZE, 1, B1.hash)], candidates=[B1])
    assert bench.machine.view == 2
    assert get_said(bench.started) == [FINALIZE_B1]


# -- rule 11: offences -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((Kind.NOTARIZE, B1.hash), (Kind.NOTARIZE, B1_TWIN.hash)),
        ((Kind.FINALIZE, B1.hash), (Kind.FINALIZE, B1_TWIN.hash)),
        ((Kind.NULLIFY, NO_HASH), (Kind.FINALIZE, B1.hash)),
        ((Kind.NOTARIZE, B1.hash), (Kind.FINALIZE, B1_TWIN.hash)),
    ],
)
def test_an_offence_is_reported_once(first: tuple, second: tuple) -> None:
    bench = Bench()
    one, two = make_vote(2, 1, *first), make_vote(2, 1, *second)
    assert not pick(bench.step(VoteReceived(one)), ReportOffence)
    assert pick(bench.step(VoteReceived(two)), ReportOffence) == [ReportOffence(one, two)]
    assert not pick(bench.step(VoteReceived(two)), ReportOffence)
    third = make_vote(2, 1, Kind.NOTARIZE, b"\x03" * 32)
    assert not pick(bench.step(VoteReceived(third)), ReportOffence)


def test_two_proposals_of_one_view_are_an_offence() -> None:
    bench = Bench()
    bench.propose(B1)
    one, two = make_proposal(SET, B1).vote, make_proposal(SET, B1_TWIN).vote
    assert pick(bench.propose(B1_TWIN), ReportOffence) == [ReportOffence(one, two)]


def test_a_forged_vote_is_no_evidence() -> None:
    bench = Bench()
    bench.hear(Kind.NOTARIZE, 1, B1.hash, 2)
    forged = replace(make_vote(3, 1, Kind.NOTARIZE, B1_TWIN.hash), signer=2)
    with pytest.raises(InvalidVote, match="vote_signature"):
        bench.step(VoteReceived(forged))


@pytest.mark.parametrize(
    ("kind", "block"),
    [(Kind.NULLIFY, NO_HASH), (Kind.FINALIZE, B1_TWIN.hash), (Kind.NOTARIZE, B1_TWIN.hash)],
)
def test_a_certificate_against_the_last_final_block_is_reported_once(
    kind: Kind, block: bytes
) -> None:
    bench = Bench()
    bench.propose(B1)
    final, other = certify(Kind.FINALIZE, 1, B1.hash), certify(kind, 1, block)
    assert pick(bench.step(CertificateReceived(final)), Finalize)
    assert bench.step(CertificateReceived(other)) == [ReportConflict(final, other)]
    assert bench.step(CertificateReceived(other)) == []
    assert bench.machine.root == B1


def test_a_forged_certificate_against_the_last_final_block_is_refused() -> None:
    bench = Bench()
    bench.propose(B1)
    bench.step(received(Kind.FINALIZE, 1, B1.hash))
    forged = replace(certify(Kind.NULLIFY, 1), signature=b"\x01" * 96)
    with pytest.raises(InvalidVote, match="certificate_signature"):
        bench.step(CertificateReceived(forged))


def test_votes_and_certificates_under_another_genesis_move_nothing() -> None:
    """Those of an old chain with the same chain id, keys, epoch and view."""
    bench, old = Bench(), Domain(b"\x08" * 32)
    votes = [make_vote(signer, 1, Kind.NULLIFY, domain=old) for signer in (0, 2, 3)]
    for vote in votes[1:]:
        with pytest.raises(InvalidVote, match="vote_signature"):
            bench.step(VoteReceived(vote))
    with pytest.raises(InvalidVote, match="certificate_signature"):
        bench.step(CertificateReceived(build_certificate(votes, SET, BACKEND)))
    assert bench.machine.view == 1


# -- rule 12, and limits ---------------------------------------------------------------------------
def test_messages_of_another_epoch_are_refused() -> None:
    bench = Bench()
    vote = make_vote(2, 1, Kind.NOTARIZE, B1.hash)
    other = replace(vote, statement=replace(vote.statement, epoch=EPOCH - 1))
    with pytest.raises(InvalidVote, match="vote_epoch"):
        bench.step(VoteReceived(other))
    old = replace(certify(Kind.NULLIFY, 1), statement=replace(vote.statement, epoch=EPOCH + 1))
    with pytest.raises(InvalidVote, match="vote_epoch"):
        bench.step(CertificateReceived(old))


def test_statements_and_certificates_of_another_epoch_are_not_recovered() -> None:
    bench = Bench(
        statements=[Statement(EPOCH - 1, 1, Kind.NOTARIZE, B1.hash)],
        certificates=[replace(certify(Kind.NULLIFY, 4), statement=Statement(2, 4, 2, NO_HASH))],
        candidates=[replace(B1, epoch=EPOCH - 1)],
    )
    assert bench.machine.view == 1
    assert bench.started == [SetTimer(HEARTBEAT_MS + TIMEOUT_MS)]


@pytest.mark.parametrize("signer", [-1, 4, 10**6])
def test_votes_of_strangers_are_refused(signer: int) -> None:
    with pytest.raises(InvalidVote, match="vote_signer"):
        Bench().step(VoteReceived(replace(make_vote(2, 1, Kind.NULLIFY), signer=signer)))


def test_views_far_ahead_cannot_fill_the_memory() -> None:
    bench = Bench()
    for view in range(1, 200):
        bench.hear(Kind.NULLIFY, view, NO_HASH, 2)
        bench.propose(make_block(SET, ROOT, view))
    assert len(bench.machine._views.get_open()) <= MAX_LOOKAHEAD_VIEWS + 1
    assert len(bench.machine._views.candidates) <= MAX_LOOKAHEAD_VIEWS + 2


def test_votes_that_came_to_nothing_are_forgotten_though_nothing_is_final() -> None:
    bench = Bench()
    for view in range(1, 300):
        bench.hear(Kind.NULLIFY, view, NO_HASH, 0, 2, 3)
    assert bench.machine.view == 300
    kept = [state.view for state in bench.machine._views.get_open() if state.votes]
    assert min(kept) >= 300 - MAX_LOOKBEHIND_VIEWS


def test_certificates_far_ahead_are_taken() -> None:
    bench = Bench()
    bench.step(received(Kind.NULLIFY, 5000))
    assert bench.machine.view == 5001


def test_what_is_final_is_forgotten() -> None:
    bench = Bench()
    parent = ROOT
    for view in range(1, 300):
        block = make_block(SET, parent, view)
        bench.propose(block)
        bench.step(received(Kind.NOTARIZE, view, block.hash))
        bench.step(received(Kind.FINALIZE, view, block.hash))
        parent = block
    views = bench.machine._views
    assert (views.get_open(), set(views.candidates)) == ([views.open(300)], {parent.hash})
    assert bench.machine._wanted == {}


def test_late_messages_about_final_views_change_nothing() -> None:
    bench = Bench()
    bench.propose(B1)
    bench.step(received(Kind.FINALIZE, 1, B1.hash))
    late = bench.hear(Kind.NOTARIZE, 1, B1_TWIN.hash, 0, 2, 3) + bench.propose(B1_TWIN)
    late += bench.step(received(Kind.NOTARIZE, 1, B1.hash))
    assert late == []


def test_a_machine_is_started_once_and_first() -> None:
    settings = make_settings(me=1)
    with pytest.raises(AssertionError, match="Started"):
        Simplex(settings, ROOT).step(TimerFired(), 0)
    machine = Simplex(settings, ROOT)
    machine.step(Started(), 0)
    with pytest.raises(AssertionError, match="Started"):
        machine.step(Started(), 0)


@pytest.mark.parametrize(
    "wrong", [{"me": 4}, {"me": -1}, {"timeout_ms": 0}, {"heartbeat_ms": 0}], ids=str
)
def test_settings_that_make_no_sense_are_our_own_mistake(wrong: dict[str, int]) -> None:
    with pytest.raises(AssertionError):
        Simplex(make_settings(**wrong), ROOT)


def test_time_does_not_go_back() -> None:
    bench = Bench()
    bench.step(TimerFired(), 10)
    with pytest.raises(AssertionError, match="clock"):
        bench.machine.step(TimerFired(), 9)


def test_a_follower_finalizes_and_says_nothing() -> None:
    bench = Bench(me=None)
    bench.propose(B1)
    bench.step(received(Kind.NOTARIZE, 1, B1.hash))
    bench.step(received(Kind.FINALIZE, 1, B1.hash))
    bench.step(TimerFired(), 10 * HEARTBEAT_MS)
    assert pick(bench.all, Finalize)[0].blocks == (B1,)
    assert not pick(bench.all, SignVote) + pick(bench.all, Broadcast) + pick(bench.all, Validate)


def test_hashes_are_what_ties_votes_to_blocks() -> None:
    bench = Bench()
    bench.propose(B1)
    bench.step(received(Kind.NOTARIZE, 1, Hash(b"\x99" * 32)))
    assert not pick(bench.propose(B2), Validate)


# -- with real signatures --------------------------------------------------------------------------
def test_one_validator_finalizes_with_a_certificate_that_anybody_can_check() -> None:
    secret = bls.derive_secret_key(b"\x05" * 32)
    alone = ValidatorSet((Validator(bytes(20), bls.compute_public_key(secret), 7),))
    machine = Simplex(Settings(DOMAIN, 0, 99, alone, 0, timeout_ms=1000, heartbeat_ms=9000), ROOT)
    block = replace(make_block(SET, ROOT, 1), epoch=0, proposer=bytes(20))
    events: list[Event] = [Started(), WorkArrived()]
    final: list[Effect] = []
    while events:
        for effect in machine.step(events.pop(0), 0):
            match effect:
                case Propose(0, 1, parent) if parent == ROOT:
                    events.append(BlockBuilt(block))
                case SignVote(said):
                    signature = bls.sign(secret, compute_signing_root(said, DOMAIN))
                    events.append(VoteSigned(Vote(said, 0, signature)))
                case Finalize():
                    final.append(effect)
    assert [effect.blocks for effect in final] == [(block,)]
    check_certificate(final[0].certificate, alone, DOMAIN)
    assert final[0].certificate.hash == block.hash
    assert machine.view == 2

"""One machine, event by event: each rule of facts/consensus.md and what must not happen.

In this epoch validators 3, 0, 2, 2, 1 lead views 1 to 5.
"""

from dataclasses import replace
from typing import TypeVar

import pytest

from steelyard.chain import bls
from steelyard.chain.consensus.certificates import (
    Certificate,
    build_certificate,
    check_certificate,
)
from steelyard.chain.consensus.messages import (
    BlockBuilt,
    BlockFetched,
    BlockRejected,
    BlockValidated,
    Broadcast,
    Candidate,
    CertificateReceived,
    Effect,
    Event,
    FetchBlock,
    FetchCertificates,
    Finalize,
    PersistCertificate,
    Proposal,
    ProposalReceived,
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
from steelyard.chain.types import Hash
from tests.consensus.simulation import (
    BACKEND,
    EPOCH,
    ROOT,
    TIMEOUT_MS,
    make_block,
    make_proposal,
    make_settings,
    make_validators,
    make_vote,
)

SET = make_validators([1] * 4)
HEARTBEAT_MS = 5000
B1 = make_block(SET, ROOT, 1)
B1_TWIN = make_block(SET, ROOT, 1, b"twin")
B2 = make_block(SET, B1, 2)
E = TypeVar("E", bound=Effect)


class Bench:
    """A started machine with its own signer, and what it said so far."""

    def __init__(self, me: int | None = 1, **recovered: object) -> None:
        self.me, self.now = me, 0
        stored = {"finalization": None, "statements": (), "certificates": (), "candidates": ()}
        settings = make_settings(me=me, heartbeat_ms=HEARTBEAT_MS)
        self.machine = Simplex.recover(settings, ROOT, **(stored | recovered))
        self.all: list[Effect] = []
        self.started = self.step(Started())

    def step(self, event: Event, wait_ms: int = 0) -> list[Effect]:
        """Take an event; sign what is asked for, as a driver would."""
        self.now += wait_ms
        effects = list(self.machine.step(event, self.now))
        for effect in tuple(effects):
            if isinstance(effect, SignVote):
                said = effect.statement
                vote = make_vote(self.me, said.view, said.kind, said.hash)
                effects += self.step(VoteSigned(vote))
        self.all += effects
        return effects

    def hear(self, kind: Kind, view: int, block: bytes, *signers: int) -> list[Effect]:
        votes = [VoteReceived(make_vote(signer, view, kind, block)) for signer in signers]
        return [effect for vote in votes for effect in self.step(vote)]

    def propose(self, block: Candidate) -> list[Effect]:
        return self.step(ProposalReceived(make_proposal(SET, block)))

    def accept(self, block: Candidate) -> list[Effect]:
        return self.propose(block) + self.step(BlockValidated(block.hash))


def certify(kind: Kind, view: int, block: bytes = NO_HASH) -> Certificate:
    votes = [make_vote(signer, view, kind, block) for signer in (0, 2, 3)]
    return build_certificate(votes, SET, BACKEND)


def received(kind: Kind, view: int, block: bytes = NO_HASH) -> CertificateReceived:
    return CertificateReceived(certify(kind, view, block))


def pick(effects: list[Effect], kind: type[E]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


def get_said(effects: list[Effect]) -> list[tuple[int, Kind, bytes]]:
    said = [effect.statement for effect in pick(effects, SignVote)]
    return [(statement.view, statement.kind, statement.hash) for statement in said]


NOTARIZE_B1 = (1, Kind.NOTARIZE, B1.hash)
FINALIZE_B1 = (1, Kind.FINALIZE, B1.hash)
NULLIFY_1 = (1, Kind.NULLIFY, NO_HASH)


# -- rule 1: what a proposal carries ---------------------------------------------------------------
@pytest.mark.parametrize(
    ("proposal", "code"),
    [
        (make_proposal(SET, replace(B1, epoch=EPOCH + 1)), "proposal_epoch"),
        (make_proposal(SET, replace(B1, proposer=SET[0].address)), "proposal_leader"),
        (Proposal(B1, make_vote(0, 1, Kind.NOTARIZE, B1.hash)), "proposal_leader"),
        (Proposal(B1, make_vote(3, 1, Kind.NOTARIZE, B1_TWIN.hash)), "proposal_vote"),
        (Proposal(replace(B1, view=0), make_proposal(SET, B1).vote), "vote_number"),
        (Proposal(replace(B1, view=2**64), make_proposal(SET, B1).vote), "vote_number"),
        (Proposal(replace(B1, hash=NO_HASH), make_proposal(SET, B1).vote), "vote_hash"),
        (Proposal(B1, make_vote(3, 2, Kind.NOTARIZE, B1.hash)), "proposal_vote"),
        (Proposal(B1, make_vote(3, 1, Kind.FINALIZE, B1.hash)), "proposal_vote"),
        (
            Proposal(B1, replace(make_vote(3, 1, Kind.NOTARIZE, B1.hash), signature=bytes(96))),
            "vote_signature",
        ),
    ],
)
def test_a_proposal_that_is_not_the_leaders_is_refused(proposal: Proposal, code: str) -> None:
    bench = Bench()
    with pytest.raises(InvalidVote, match=code):
        bench.step(ProposalReceived(proposal))
    assert get_said(bench.accept(B1)) == [NOTARIZE_B1], "the machine is as it was"


# -- rule 2: entering a view, timers, leaders ------------------------------------------------------
def test_a_view_starts_with_a_timer() -> None:
    bench = Bench()
    assert bench.machine.view == 1
    assert bench.started == [SetTimer(HEARTBEAT_MS + TIMEOUT_MS)]


def test_an_idle_leader_waits_for_the_heartbeat() -> None:
    bench = Bench(me=3)
    assert bench.started == [SetTimer(HEARTBEAT_MS)]
    assert not pick(bench.step(TimerFired(), HEARTBEAT_MS - 1), Propose)
    assert pick(bench.step(TimerFired(), 1), Propose) == [Propose(EPOCH, 1, ROOT)]


def test_a_timer_that_fires_early_is_set_again() -> None:
    bench = Bench(me=3)
    assert bench.step(TimerFired(), 10) == [SetTimer(HEARTBEAT_MS)]


def test_work_makes_the_leader_propose_at_once_and_once() -> None:
    bench = Bench(me=3)
    assert pick(bench.step(WorkArrived()), Propose) == [Propose(EPOCH, 1, ROOT)]
    assert not pick(bench.step(WorkArrived()) + bench.step(TimerFired(), 10), Propose)


def test_work_shortens_the_patience_of_the_others() -> None:
    bench = Bench()
    assert bench.step(WorkArrived(), 100) == [SetTimer(100 + TIMEOUT_MS)]


def test_who_does_not_lead_never_proposes() -> None:
    bench = Bench(me=0)
    assert not pick(bench.step(WorkArrived()), Propose)
    assert get_said(bench.step(BlockBuilt(make_block(SET, ROOT, 1)))) == []


def test_the_view_after_a_dead_one_is_due_at_once() -> None:
    bench = Bench(me=0)
    bench.step(received(Kind.NULLIFY, 1))
    assert pick(bench.all, Propose) == [Propose(EPOCH, 2, ROOT)]


def test_the_timeout_doubles_while_nothing_is_finalized_and_no_further() -> None:
    bench = Bench()
    waits = []
    for view in range(1, 10):
        effects = bench.step(received(Kind.NULLIFY, view))
        waits.append(pick(effects, SetTimer)[-1].at_ms if pick(effects, SetTimer) else waits[-1])
    times = [wait // TIMEOUT_MS for wait in waits]
    assert times == [1, 2, 4, 8, 16, 32, 32, 32, 32]


# -- rule 3: the parent ----------------------------------------------------------------------------
def test_the_leader_extends_the_highest_notarized_block() -> None:
    bench = Bench(me=0)
    bench.propose(B1)
    bench.step(received(Kind.NOTARIZE, 1, B1.hash))
    assert pick(bench.step(WorkArrived()), Propose) == [Propose(EPOCH, 2, B1)]


def test_the_leader_does_not_propose_over_a_gap_without_nullification() -> None:
    bench = Bench(me=2)
    effects = bench.step(received(Kind.NULLIFY, 2))
    assert bench.machine.view == 3
    assert not pick(effects, Propose)
    assert pick(effects, FetchCertificates) == [FetchCertificates(1)]
    assert pick(bench.step(received(Kind.NULLIFY, 1)), Propose) == [Propose(EPOCH, 3, ROOT)]


def test_the_leader_does_not_propose_on_a_block_that_it_lacks() -> None:
    bench = Bench(me=0)
    effects = bench.step(received(Kind.NOTARIZE, 1, B1.hash)) + bench.step(WorkArrived())
    assert pick(effects, FetchBlock) == [FetchBlock(B1.hash, (0, 2, 3))]
    assert not pick(effects, Propose)
    assert pick(bench.step(BlockFetched(B1)), Propose) == [Propose(EPOCH, 2, B1)]


# -- rule 4: notarize ------------------------------------------------------------------------------
def test_a_valid_proposal_gets_a_vote_only_after_it_was_validated() -> None:
    bench = Bench()
    effects = bench.propose(B1)
    assert pick(effects, Validate) == [Validate(B1)]
    assert get_said(effects) == []
    assert get_said(bench.step(BlockValidated(B1.hash))) == [NOTARIZE_B1]


def test_a_second_block_of_a_view_gets_no_vote() -> None:
    bench = Bench()
    bench.accept(B1)
    assert get_said(bench.accept(B1_TWIN)) == []


def test_a_block_that_was_never_proposed_gets_no_vote() -> None:
    bench = Bench()
    bench.propose(B1)
    assert get_said(bench.step(BlockValidated(B1_TWIN.hash))) == []


def test_a_block_of_a_past_view_gets_no_vote() -> None:
    bench = Bench()
    bench.propose(B1)
    bench.step(received(Kind.NULLIFY, 1))
    assert get_said(bench.step(BlockValidated(B1.hash))) == []


def test_a_block_of_a_coming_view_waits_for_it() -> None:
    bench = Bench()
    later = make_block(SET, ROOT, 2)
    assert not pick(bench.propose(later), Validate)
    assert pick(bench.step(received(Kind.NULLIFY, 1)), Validate) == [Validate(later)]


def test_a_view_that_was_given_up_gets_no_vote() -> None:
    bench = Bench()
    bench.propose(B1)
    assert get_said(bench.step(TimerFired(), HEARTBEAT_MS + TIMEOUT_MS)) == [NULLIFY_1]
    assert get_said(bench.step(BlockValidated(B1.hash))) == []


def test_a_broken_block_makes_the_view_be_given_up_at_once() -> None:
    bench = Bench()
    bench.propose(B1)
    assert get_said(bench.step(BlockRejected(B1.hash))) == [NULLIFY_1]
    assert get_said(bench.step(BlockRejected(B1.hash))) == []


def test_a_parent_that_nobody_notarized_is_not_extended() -> None:
    bench = Bench()
    bench.propose(B1)
    bench.step(received(Kind.NULLIFY, 1))
    assert not pick(bench.propose(B2), Validate)
    assert get_said(bench.step(BlockValidated(B2.hash))) == []


def test_a_gap_without_nullification_is_not_jumped() -> None:
    """The mutant without this check breaks safety."""
    bench = Bench()
    bench.propose(B1)
    bench.step(received(Kind.NOTARIZE, 1, B1.hash))
    around = make_block(SET, ROOT, 2, b"around B1")
    effects = bench.propose(around)
    assert not pick(effects, Validate)
    assert pick(effects, FetchCertificates) == [FetchCertificates(1)]
    assert get_said(bench.step(BlockValidated(around.hash))) == []


def test_a_gap_with_both_certificates_may_be_jumped() -> None:
    bench = Bench()
    bench.step(received(Kind.NOTARIZE, 1, B1.hash))
    bench.step(received(Kind.NULLIFY, 1))
    around = make_block(SET, ROOT, 2, b"around B1")
    assert pick(bench.propose(around), Validate) == [Validate(around)]


def test_a_block_of_a_wrong_height_is_not_extended() -> None:
    bench = Bench()
    assert not pick(bench.propose(replace(B1, height=B1.height + 1)), Validate)


# -- rules 5 and 6: finalize and nullify -----------------------------------------------------------
def test_a_quorum_notarizes_finalizes_and_enters_the_next_view() -> None:
    bench = Bench()
    bench.accept(B1)
    effects = bench.hear(Kind.NOTARIZE, 1, B1.hash, 0)
    assert get_said(effects) == [FINALIZE_B1]
    stored = pick(effects, PersistCertificate)
    assert [c.certificate.kind for c in stored] == [Kind.NOTARIZE]
    assert Broadcast(stored[0].certificate) in effects
    assert bench.machine.view == 2


def test_less_than_a_quorum_does_nothing() -> None:
    bench = Bench()
    bench.propose(B1)
    assert not pick(bench.hear(Kind.NOTARIZE, 1, B1.hash, 0, 0, 3), PersistCertificate)
    assert bench.machine.view == 1


def test_votes_for_two_blocks_make_no_quorum_together() -> None:
    bench = Bench()
    bench.hear(Kind.NOTARIZE, 1, B1.hash, 0, 2)
    assert not pick(bench.hear(Kind.NOTARIZE, 1, B1_TWIN.hash, 3, 1), PersistCertificate)


def test_who_gave_a_view_up_does_not_finalize_it() -> None:
    bench = Bench()
    bench.step(TimerFired(), HEARTBEAT_MS + TIMEOUT_MS)
    assert get_said(bench.step(received(Kind.NOTARIZE, 1, B1.hash))) == []
    assert bench.machine.view == 2


def test_who_notarized_another_block_does_not_finalize() -> None:
    bench = Bench()
    bench.accept(B1_TWIN)
    assert get_said(bench.step(received(Kind.NOTARIZE, 1, B1.hash))) == []


def test_a_view_that_others_gave_up_is_still_finalized_by_who_did_not() -> None:
    bench = Bench()
    bench.step(received(Kind.NULLIFY, 1))
    assert get_said(bench.step(received(Kind.NOTARIZE, 1, B1.hash))) == [FINALIZE_B1]


def test_who_finalized_a_view_does_not_give_it_up() -> None:
    said = [Statement(EPOCH, 1, Kind.FINALIZE, B1.hash)]
    bench = Bench(statements=said)
    assert get_said(bench.step(TimerFired(), 10 * HEARTBEAT_MS)) == []
    assert get_said(bench.propose(B1) + bench.step(BlockRejected(B1.hash))) == []


def test_a_view_ends_when_its_timer_does() -> None:
    bench = Bench()
    assert get_said(bench.step(TimerFired(), HEARTBEAT_MS + TIMEOUT_MS - 1)) == []
    assert get_said(bench.step(TimerFired(), 1)) == [NULLIFY_1]
    assert bench.machine.view == 1
    bench.hear(Kind.NULLIFY, 1, NO_HASH, 0, 3)
    assert bench.machine.view == 2


# -- rules 7 and 8: certificates -------------------------------------------------------------------
def test_a_view_keeps_both_kinds_of_certificate() -> None:
    bench = Bench()
    both = {certify(Kind.NOTARIZE, 1, B1.hash), certify(Kind.NULLIFY, 1)}
    for certificate in both:
        bench.step(CertificateReceived(certificate))
    assert set(bench.machine.get_certificates(1)) == both


def test_a_finalization_finalizes_the_block_and_its_ancestors() -> None:
    bench = Bench()
    for block in (B1, B2):
        bench.propose(block)
        bench.step(received(Kind.NOTARIZE, block.view, block.hash))
    effects = bench.step(received(Kind.FINALIZE, 2, B2.hash))
    assert pick(effects, Finalize) == [Finalize((B1, B2), certify(Kind.FINALIZE, 2, B2.hash))]
    assert bench.machine.root == B2
    assert bench.machine.get_certificates(1) == (bench.machine.finalization,)


def test_a_finalization_waits_for_missing_blocks() -> None:
    bench = Bench()
    effects = bench.step(received(Kind.FINALIZE, 2, B2.hash))
    assert bench.machine.view == 3
    assert pick(effects, FetchBlock)[0] == FetchBlock(B2.hash, (0, 2, 3))
    effects = bench.step(BlockFetched(B2))
    assert pick(effects, FetchBlock) == [FetchBlock(B1.hash, (0, 2, 3))]
    assert not pick(effects, Finalize)
    assert pick(bench.step(BlockFetched(B1)), Finalize)[0].blocks == (B1, B2)


def test_a_block_that_nobody_asked_for_is_not_kept() -> None:
    bench = Bench()
    bench.step(BlockFetched(B2))
    bench.step(received(Kind.FINALIZE, 2, B2.hash))
    assert bench.machine.root == ROOT


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"bitmap": b"\x05"}, "certificate_quorum"),
        ({"bitmap": b"\x0e"}, "certificate_signature"),
        ({"signature": bytes(96)}, "certificate_signature"),
    ],
)
def test_a_bad_certificate_is_refused_and_changes_nothing(change: dict, code: str) -> None:
    bench = Bench()
    bad = replace(certify(Kind.NULLIFY, 1), **change)
    with pytest.raises(InvalidVote, match=code):
        bench.step(CertificateReceived(bad))
    assert bench.machine.view == 1
    assert bench.machine.get_certificates(1) == ()


def test_two_certificates_that_exclude_each_other_raise_an_alarm() -> None:
    bench = Bench()
    first, second = certify(Kind.NOTARIZE, 1, B1.hash), certify(Kind.NOTARIZE, 1, B1_TWIN.hash)
    bench.step(CertificateReceived(first))
    assert bench.step(CertificateReceived(second)) == [ReportConflict(first, second)]
    assert bench.machine.get_certificates(1) == (first,)


def test_a_finalization_beside_a_nullification_raises_an_alarm() -> None:
    bench = Bench()
    first, second = certify(Kind.NULLIFY, 1), certify(Kind.FINALIZE, 1, B1.hash)
    bench.step(CertificateReceived(first))
    assert ReportConflict(first, second) in bench.step(CertificateReceived(second))


@pytest.mark.parametrize("length", [1, 2], ids=["as high", "higher"])
def test_a_final_block_off_the_final_chain_is_not_finalized_and_raises_an_alarm(
    length: int,
) -> None:
    bench = Bench()
    bench.propose(B1)
    first = certify(Kind.FINALIZE, 1, B1.hash)
    bench.step(CertificateReceived(first))
    fork = ROOT
    for view in range(2, 2 + length):
        fork = make_block(SET, fork, view, b"fork")
        bench.propose(fork)
        bench.step(received(Kind.NOTARIZE, view, fork.hash))
    second = certify(Kind.FINALIZE, fork.view, fork.hash)
    effects = bench.step(CertificateReceived(second))
    assert ReportConflict(first, second) in effects
    assert not pick(effects, Finalize)
    assert bench.machine.root == B1
    later = bench.step(received(Kind.NULLIFY, 9))
    assert not pick(later, ReportConflict), "once is enough"


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
    orphan = make_block(SET, replace(B1, hash=Hash(b"\x77" * 32)), 1)
    assert FetchBlock(orphan.parent, (3,)) in bench.propose(orphan)
    bench.propose(B1)
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
    late += bench.step(received(Kind.NULLIFY, 1))
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
    machine = Simplex(Settings(11, 0, alone, 0, timeout_ms=1000, heartbeat_ms=9000), ROOT)
    block = replace(make_block(SET, ROOT, 1), epoch=0, proposer=bytes(20))
    events: list[Event] = [Started(), WorkArrived()]
    final: list[Effect] = []
    while events:
        for effect in machine.step(events.pop(0), 0):
            match effect:
                case Propose(0, 1, parent) if parent == ROOT:
                    events.append(BlockBuilt(block))
                case SignVote(said):
                    signature = bls.sign(secret, compute_signing_root(said, 11))
                    events.append(VoteSigned(Vote(said, 0, signature)))
                case Finalize():
                    final.append(effect)
    assert [effect.blocks for effect in final] == [(block,)]
    check_certificate(final[0].certificate, alone, 11)
    assert final[0].certificate.hash == block.hash
    assert machine.view == 2

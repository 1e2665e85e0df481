"""One machine, event by event: rules 1 to 8 of Simplex and what must not happen.

In this epoch validators 3, 0, 2, 2, 1 lead views 1 to 5.
"""

from dataclasses import replace

import pytest

from steelyard.chain.consensus.messages import (
    BlockBuilt,
    BlockFetched,
    BlockRejected,
    BlockValidated,
    Broadcast,
    CertificateReceived,
    FetchBlock,
    FetchCertificates,
    Finalize,
    PersistCertificate,
    Proposal,
    ProposalReceived,
    Propose,
    ReportConflict,
    SetTimer,
    TimerFired,
    Validate,
    WorkArrived,
)
from steelyard.chain.consensus.votes import (
    NO_HASH,
    Kind,
    Statement,
)
from steelyard.chain.errors import InvalidVote
from tests.consensus.makers import (
    EPOCH,
    ROOT,
    TIMEOUT_MS,
    make_block,
    make_proposal,
    make_vote,
)
from tests.consensus.simplex_kit import (
    B1,
    B1_TWIN,
    B2,
    FINALIZE_B1,
    HEARTBEAT_MS,
    NOTARIZE_B1,
    NULLIFY_1,
    SET,
    Bench,
    certify,
    get_said,
    pick,
    received,
)


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
    assert pick(effects, Validate) == [Validate(1, B1)]
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
    assert pick(bench.step(received(Kind.NULLIFY, 1)), Validate) == [Validate(2, later)]


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
    assert pick(bench.propose(around), Validate) == [Validate(2, around)]


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

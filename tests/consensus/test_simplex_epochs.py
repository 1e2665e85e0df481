"""One machine at the end of its epoch (rule 12): here the boundary is the first block's height.

In this epoch validators 3, 0, 2, 2, 1 lead views 1 to 5. B1 and B1_TWIN are boundary blocks of view
1; what is above them may not exist.
"""

from dataclasses import replace

import pytest

from steelyard.chain.consensus.messages import (
    BlockBuilt,
    BlockFetched,
    BlockRejected,
    BlockValidated,
    Broadcast,
    Candidate,
    Effect,
    FetchBlock,
    FetchCertificates,
    Finalize,
    Proposal,
    ProposalReceived,
    Propose,
    ReportConflict,
    ReportOffence,
    TimerFired,
    Validate,
    WorkArrived,
)
from steelyard.chain.consensus.votes import Kind, Statement
from steelyard.chain.errors import InvalidVote
from tests.consensus.makers import EPOCH, ROOT, TIMEOUT_MS, make_block, make_vote
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

LEADERS = {1: 3, 2: 0, 3: 2, 4: 2, 5: 1}
AGAIN = (2, Kind.NOTARIZE, B1.hash)


def make_bench(me: int | None = 1, **recovered: object) -> Bench:
    return Bench(me, last_height=B1.height, **recovered)


def propose_again(bench: Bench, view: int, block: Candidate = B1) -> list[Effect]:
    vote = make_vote(LEADERS[view], view, Kind.NOTARIZE, block.hash)
    return bench.step(ProposalReceived(Proposal(block, vote)))


# -- what may be proposed --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("proposal", "code"),
    [
        (Proposal(B2, make_vote(0, 2, Kind.NOTARIZE, B2.hash)), "proposal_height"),
        (Proposal(B1, make_vote(2, 2, Kind.NOTARIZE, B1.hash)), "proposal_leader"),
        (
            Proposal(replace(B1, proposer=SET[0].address), make_vote(0, 2, Kind.NOTARIZE, B1.hash)),
            "proposal_leader",
        ),
        (
            Proposal(
                make_block(SET, ROOT, 2),
                make_vote(3, 1, Kind.NOTARIZE, make_block(SET, ROOT, 2).hash),
            ),
            "proposal_vote",
        ),
        (Proposal(B1, make_vote(0, 2, Kind.NOTARIZE, B1_TWIN.hash)), "proposal_vote"),
        (Proposal(B1, make_vote(0, 2, Kind.FINALIZE, B1.hash)), "proposal_vote"),
    ],
    ids=["above", "not the leader", "not its maker", "too early", "another block", "another kind"],
)
def test_what_may_not_be_proposed_at_the_boundary_is_refused(proposal: Proposal, code: str) -> None:
    bench = make_bench()
    with pytest.raises(InvalidVote, match=code):
        bench.step(ProposalReceived(proposal))
    assert get_said(bench.accept(B1)) == [NOTARIZE_B1], "the machine is as it was"


def test_a_block_below_the_boundary_is_not_proposed_again() -> None:
    bench = Bench(last_height=B2.height)
    bench.propose(B1)
    bench.step(received(Kind.NOTARIZE, 1, B1.hash))
    with pytest.raises(InvalidVote, match="proposal_vote"):
        propose_again(bench, 2)


def test_our_own_block_above_the_boundary_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="after the boundary"):
        make_bench(me=0).step(BlockBuilt(B2))


# -- the leader ------------------------------------------------------------------------------------
def test_a_leader_proposes_a_certified_boundary_block_again_and_no_child_of_it() -> None:
    bench = make_bench(me=0)
    bench.accept(B1)
    bench.step(received(Kind.NOTARIZE, 1, B1.hash))
    effects = bench.step(WorkArrived())
    vote = make_vote(0, 2, Kind.NOTARIZE, B1.hash)
    assert get_said(effects) == [AGAIN]
    assert pick(effects, Broadcast) == [Broadcast(Proposal(B1, vote))]
    assert not pick(effects, Propose) + pick(effects, Validate), "it voted for it before"


def test_without_work_it_waits_for_the_finalization_first() -> None:
    bench = make_bench(me=0)
    bench.accept(B1)
    assert get_said(bench.step(received(Kind.NOTARIZE, 1, B1.hash))) == [FINALIZE_B1]
    assert get_said(bench.step(TimerFired(), TIMEOUT_MS)) == [AGAIN]


def test_a_leader_has_the_block_validated_if_it_never_voted_for_it() -> None:
    bench = make_bench(me=0)
    bench.propose(B1)
    bench.step(received(Kind.NOTARIZE, 1, B1.hash))
    effects = bench.step(WorkArrived())
    assert pick(effects, Validate) == [Validate(2, B1)]
    assert get_said(effects) == []
    assert get_said(bench.step(BlockValidated(B1.hash))) == [AGAIN]


def test_a_leader_fetches_the_block_that_it_has_to_propose_again() -> None:
    bench = make_bench(me=0)
    effects = bench.step(received(Kind.NOTARIZE, 1, B1.hash)) + bench.step(WorkArrived())
    assert pick(effects, FetchBlock) == [FetchBlock(B1.hash, (0, 2, 3))]
    assert pick(bench.step(BlockFetched(B1)), Validate) == [Validate(2, B1)]


def test_a_leader_whose_driver_rejects_the_block_gives_the_view_up() -> None:
    bench = make_bench(me=0)
    bench.propose(B1)
    bench.step(received(Kind.NOTARIZE, 1, B1.hash))
    bench.step(WorkArrived())
    assert [kind for _, kind, _ in get_said(bench.step(BlockRejected(B1.hash)))] == [Kind.NULLIFY]


def test_a_leader_repeats_its_proposal_once_before_it_gives_the_view_up() -> None:
    bench = make_bench(me=0)
    bench.accept(B1)
    bench.step(received(Kind.NOTARIZE, 1, B1.hash))
    bench.step(WorkArrived())
    proposal = Broadcast(Proposal(B1, make_vote(0, 2, Kind.NOTARIZE, B1.hash)))
    assert proposal in bench.step(TimerFired(), TIMEOUT_MS)
    assert proposal not in bench.step(TimerFired(), TIMEOUT_MS)


# -- the others ------------------------------------------------------------------------------------
def test_a_certified_boundary_block_is_voted_for_in_every_view() -> None:
    bench = make_bench()
    bench.accept(B1)
    bench.step(received(Kind.NOTARIZE, 1, B1.hash))
    assert get_said(propose_again(bench, 2)) == [AGAIN]
    bench.step(received(Kind.NOTARIZE, 2, B1.hash))
    assert get_said(propose_again(bench, 3)) == [(3, Kind.NOTARIZE, B1.hash)]
    assert not pick(bench.all, ReportOffence)


def test_who_never_voted_for_it_has_it_validated() -> None:
    bench = make_bench()
    bench.propose(B1)
    bench.step(received(Kind.NOTARIZE, 1, B1.hash))
    effects = propose_again(bench, 2)
    assert pick(effects, Validate) == [Validate(2, B1)]
    assert get_said(bench.step(BlockValidated(B1.hash))) == [AGAIN]


def test_a_boundary_block_that_no_view_certified_is_not_voted_for_again() -> None:
    """The mutant without this check breaks safety."""
    bench = make_bench()
    bench.accept(B1)
    bench.step(received(Kind.NULLIFY, 1))
    effects = propose_again(bench, 2)
    assert FetchCertificates(1) in effects
    assert get_said(effects + bench.step(BlockValidated(B1.hash))) == []
    assert get_said(bench.step(received(Kind.NOTARIZE, 1, B1.hash)))[-1] == AGAIN


def test_a_view_that_is_not_nullified_is_not_jumped() -> None:
    """The mutant without this check breaks safety."""
    bench = make_bench()
    bench.accept(B1)
    bench.step(received(Kind.NOTARIZE, 1, B1.hash))
    bench.step(received(Kind.NULLIFY, 3))
    effects = propose_again(bench, 4)
    assert FetchCertificates(2) in effects
    assert get_said(effects + bench.step(BlockValidated(B1.hash))) == []
    assert get_said(bench.step(received(Kind.NULLIFY, 2))) == [(4, Kind.NOTARIZE, B1.hash)]


def test_of_two_certified_boundary_blocks_only_the_later_one_is_proposed_again() -> None:
    bench, later = make_bench(), make_block(SET, ROOT, 2)
    bench.accept(B1)
    for certificate in (received(Kind.NOTARIZE, 1, B1.hash), received(Kind.NULLIFY, 1)):
        bench.step(certificate)
    assert get_said(bench.accept(later)) == [(2, Kind.NOTARIZE, later.hash)]
    bench.step(received(Kind.NOTARIZE, 2, later.hash))
    assert get_said(propose_again(bench, 3)) == []
    bench.step(received(Kind.NULLIFY, 3))
    assert get_said(propose_again(bench, 4, later)) == [(4, Kind.NOTARIZE, later.hash)]


def test_a_later_certificate_of_the_same_block_closes_the_gap() -> None:
    bench = make_bench()
    bench.accept(B1)
    bench.step(received(Kind.NOTARIZE, 2, B1.hash))
    assert get_said(propose_again(bench, 3)) == [(3, Kind.NOTARIZE, B1.hash)]


def test_a_second_proposal_of_the_view_gets_no_vote_and_is_an_offence() -> None:
    bench, other = make_bench(), make_block(SET, ROOT, 2)
    bench.accept(B1)
    bench.step(received(Kind.NOTARIZE, 1, B1.hash))
    bench.step(received(Kind.NULLIFY, 1))
    propose_again(bench, 2)
    effects = bench.accept(other)
    assert get_said(effects) == []
    assert len(pick(effects, ReportOffence)) == 1


def test_a_certificate_that_lacks_is_asked_for_although_its_view_was_given_up() -> None:
    bench = Bench()
    bench.propose(B1)
    bench.step(received(Kind.NULLIFY, 1))
    assert FetchCertificates(1) in bench.propose(B2)


# -- the end ---------------------------------------------------------------------------------------
def test_a_finalization_of_any_view_ends_the_epoch() -> None:
    bench = make_bench()
    bench.accept(B1)
    bench.step(received(Kind.NOTARIZE, 1, B1.hash))
    propose_again(bench, 2)
    assert not bench.machine.is_over
    final = certify(Kind.FINALIZE, 2, B1.hash)
    effects = bench.step(received(Kind.FINALIZE, 2, B1.hash))
    assert effects[-2:] == [Broadcast(final), Finalize((B1,), final)]
    assert bench.machine.is_over
    assert bench.step(TimerFired(), 9 * HEARTBEAT_MS) + bench.hear(Kind.NULLIFY, 3, bytes(32)) == []
    assert bench.machine.get_certificates(1) == (final,)


def test_two_finalizations_of_the_block_are_no_conflict() -> None:
    bench = make_bench()
    first = certify(Kind.FINALIZE, 1, B1.hash)
    for view in (2, 1):
        bench.step(received(Kind.FINALIZE, view, B1.hash))
    assert pick(bench.step(BlockFetched(B1)), Finalize) == [Finalize((B1,), first)]
    assert not pick(bench.all, ReportConflict)


def test_a_block_that_comes_with_the_vote_that_ends_the_epoch_is_no_conflict() -> None:
    """Both finalizations wait for the block; its second proposal brings it and a last vote."""
    bench = make_bench()
    for view in (2, 1):
        bench.step(received(Kind.FINALIZE, view, B1.hash))
    bench.hear(Kind.NOTARIZE, 2, B1.hash, 2, 3)
    assert pick(propose_again(bench, 2), Finalize) == [
        Finalize((B1,), certify(Kind.FINALIZE, 1, B1.hash))
    ]
    assert not pick(bench.all, ReportConflict)


def test_a_machine_on_a_final_boundary_is_over_and_says_nothing() -> None:
    final = certify(Kind.FINALIZE, 2, B1.hash)
    bench = make_bench(root=B1, finalization=final, statements=[Statement(EPOCH, 3, *AGAIN[1:])])
    assert bench.machine.is_over
    assert bench.started + bench.step(WorkArrived()) == []
    assert bench.machine.get_certificates(1) == (final,)


def test_a_leader_that_comes_back_proposes_again_what_it_voted_for() -> None:
    bench = make_bench(
        me=0,
        statements=[Statement(EPOCH, *AGAIN)],
        certificates=[certify(Kind.NOTARIZE, 1, B1.hash)],
        candidates=[B1],
    )
    vote = make_vote(0, 2, Kind.NOTARIZE, B1.hash)
    assert Broadcast(Proposal(B1, vote)) in bench.started


def test_the_certificate_of_the_epoch_before_is_not_passed_on() -> None:
    bench = make_bench(finalization=certify(Kind.FINALIZE, 9, ROOT.hash))
    assert bench.machine.get_certificates(1) == ()

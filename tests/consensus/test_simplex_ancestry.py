"""One machine that lacks blocks: it builds on nothing it cannot execute, and asks who can help.

Two of the rules were found broken by the simulator of validators that lose messages and blocks.
"""

from steelyard.chain.consensus.messages import (
    BlockFetched,
    FetchBlock,
    FetchCertificates,
    Proposal,
    ProposalReceived,
    Propose,
    Validate,
    WorkArrived,
)
from steelyard.chain.consensus.votes import Kind
from tests.consensus.makers import make_block, make_vote
from tests.consensus.simplex_kit import B1, B2, SET, Bench, pick, received

B3 = make_block(SET, B2, 3)
LEADER_OF_3 = 2


def test_a_proposal_waits_for_every_ancestor_not_only_for_its_parent() -> None:
    bench = Bench(me=1)
    bench.step(received(Kind.NULLIFY, 1))
    bench.step(received(Kind.NOTARIZE, 2, B2.hash))
    bench.step(BlockFetched(B2))
    effects = bench.propose(B3)
    assert not pick(effects, Validate)
    assert FetchBlock(B1.hash, (LEADER_OF_3,)) in effects
    assert Validate(3, B3) in bench.step(BlockFetched(B1))


def test_a_leader_builds_on_nothing_whose_ancestors_it_lacks() -> None:
    bench = Bench(me=LEADER_OF_3)
    bench.step(received(Kind.NOTARIZE, 1, B1.hash))
    bench.step(received(Kind.NOTARIZE, 2, B2.hash))
    bench.step(BlockFetched(B2))
    effects = bench.step(WorkArrived())
    assert not pick(effects, Propose)
    assert pick(effects, FetchCertificates)
    assert [p.parent for p in pick(bench.step(BlockFetched(B1)), Propose)] == [B2]


def test_a_leader_asks_the_signers_for_an_ancestor_it_never_heard_of() -> None:
    bench = Bench(me=LEADER_OF_3)
    bench.step(received(Kind.NOTARIZE, 2, B2.hash))
    bench.step(BlockFetched(B2))
    assert FetchBlock(B1.hash, (0, 2, 3)) in bench.step(WorkArrived())


def test_no_leader_alone_makes_us_fetch_ancestors() -> None:
    bench = Bench(me=1)
    bench.step(received(Kind.NULLIFY, 1))
    bench.step(received(Kind.NULLIFY, 2))
    effects = bench.propose(B3)
    assert not pick(effects, FetchBlock)
    assert FetchCertificates(1) in effects
    assert FetchBlock(B2.hash, (0, 2, 3)) in bench.step(received(Kind.NOTARIZE, 2, B2.hash))


def test_an_uncertified_boundary_block_that_is_proposed_again_brings_no_ancestors() -> None:
    bench = Bench(me=1, last_height=B2.height)
    bench.step(received(Kind.NULLIFY, 1))
    bench.step(received(Kind.NULLIFY, 2))
    vote = make_vote(LEADER_OF_3, 3, Kind.NOTARIZE, B2.hash)
    effects = bench.step(ProposalReceived(Proposal(B2, vote)))
    assert not pick(effects, FetchBlock)
    assert pick(effects, FetchCertificates)


def test_a_leader_that_serves_nothing_does_not_keep_us_from_asking_others() -> None:
    bench = Bench(me=1)
    bench.step(received(Kind.NULLIFY, 1))
    bench.step(received(Kind.NOTARIZE, 2, B2.hash))
    bench.step(BlockFetched(B2))
    assert FetchBlock(B1.hash, (LEADER_OF_3,)) in bench.propose(B3)
    effects = bench.step(received(Kind.NOTARIZE, 1, B1.hash))
    assert FetchBlock(B1.hash, (0, 2, 3)) in effects

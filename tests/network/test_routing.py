"""What reaches the driver: votes from their signers only, of this epoch, of this chain."""

import logging
from dataclasses import replace

import pytest

from steelyard.chain.bls import Signature
from steelyard.chain.consensus.messages import CertificateReceived, VoteReceived
from steelyard.chain.consensus.votes import Kind, Statement, Vote
from steelyard.chain.types import Address, Epoch, Hash, Height, View
from steelyard.node.inbox import (
    Arrival,
    BlockAnswered,
    BlockWanted,
    CertificatesWanted,
    Incoming,
    PlaceHeard,
)
from steelyard.node.network.routing import (
    MAX_EARLY,
    MAX_EARLY_PROPOSALS,
    MAX_REQUESTS,
    REQUESTS_PER_SECOND,
    Routed,
    Router,
)
from steelyard.node.network.wire import (
    VERSION,
    BlockAnswer,
    BlockRequest,
    CertificateMessage,
    CertificatesRequest,
    ProposalMessage,
    Status,
    VoteMessage,
)
from tests.chain.following_kit import FOUR, OTHERS, ROOT, certify, make_blocks

GENESIS, BLOCK_HASH = ROOT.hash, Hash(b"\x09" * 32)
FIRST, SECOND, THIRD = (member.address for member in FOUR.members[:3])
NEWCOMER = OTHERS.members[0].address
(BLOCK,) = make_blocks(1)
STATUS = Status(VERSION, GENESIS, Epoch(0), View(3), Height(2), BLOCK.hash)


def make_vote(signer: int, epoch: int = 0) -> Vote:
    statement = Statement(Epoch(epoch), View(1), Kind.NOTARIZE, BLOCK.hash)
    return Vote(statement, signer, Signature(bytes(96)))


class Gate:
    """A router at epoch 0 that expects one block."""

    def __init__(self) -> None:
        self.blamed: list[tuple[Address, str]] = []
        self.expected = {BLOCK.hash}
        self.router = Router(
            GENESIS,
            lambda block_hash: block_hash in self.expected,
            lambda peer, code: self.blamed.append((peer, code)),
        )
        self.router.set_current(FOUR)

    def route(self, peer: Address, message: Routed, now: float = 0.0) -> Incoming | None:
        return self.router.route(peer, message, now)


# -- signers ---------------------------------------------------------------------------------------
def test_a_vote_and_a_proposal_are_taken_from_who_signed_them() -> None:
    gate = Gate()
    assert gate.route(SECOND, VoteMessage(make_vote(1))) == VoteReceived(make_vote(1))
    arrival = gate.route(SECOND, ProposalMessage(BLOCK, make_vote(1)))
    assert arrival == Arrival(BLOCK, make_vote(1))
    assert not gate.router.dropped


def test_votes_and_proposals_relayed_for_another_validator_are_dropped_and_blamed() -> None:
    gate = Gate()
    assert gate.route(FIRST, VoteMessage(make_vote(1))) is None
    assert gate.route(FIRST, VoteMessage(make_vote(99))) is None
    assert gate.route(FIRST, ProposalMessage(BLOCK, make_vote(1))) is None
    assert gate.router.dropped == {"vote_relayed": 2, "proposal_relayed": 1}
    assert gate.blamed == [(FIRST, "vote_relayed")] * 2 + [(FIRST, "proposal_relayed")]


def test_who_is_not_in_the_set_of_the_epoch_votes_in_vain() -> None:
    gate = Gate()
    assert gate.route(NEWCOMER, VoteMessage(make_vote(0))) is None


def test_a_block_may_be_proposed_again_by_another_leader_than_the_one_who_made_it() -> None:
    gate = Gate()
    assert BLOCK.extension.proposer != THIRD
    again = gate.route(THIRD, ProposalMessage(BLOCK, make_vote(2)))
    assert again == Arrival(BLOCK, make_vote(2))


def test_certificates_are_taken_from_anybody() -> None:
    gate, certificate = Gate(), certify(BLOCK.hash)
    taken = gate.route(NEWCOMER, CertificateMessage(certificate))
    assert taken == CertificateReceived(certificate)


# -- epochs ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("epoch", [2, 2**64 - 1])
def test_messages_of_other_epochs_are_dropped(epoch: int) -> None:
    gate = Gate()
    assert gate.route(FIRST, VoteMessage(make_vote(0, epoch))) is None
    assert gate.router.set_current(OTHERS) == []
    assert gate.route(FIRST, VoteMessage(make_vote(0))) is None
    assert gate.route(FIRST, CertificateMessage(certify(BLOCK.hash))) is None
    assert gate.router.dropped == {"epoch": 3}
    assert gate.blamed == [], "whoever is late is not a liar"


def test_messages_of_the_next_epoch_wait_for_it_and_are_checked_then() -> None:
    gate = Gate()
    certificate = certify(BLOCK.hash, current=OTHERS, numbers=(4, 5, 6, 7))
    vote, block_vote = make_vote(0, 1), make_vote(1, 1)
    sent: list[tuple[Address, Routed]] = [
        (NEWCOMER, VoteMessage(vote)),
        (FIRST, VoteMessage(vote)),
        (FIRST, CertificateMessage(certificate)),
        (OTHERS.members[1].address, ProposalMessage(BLOCK, block_vote)),
    ]
    assert [gate.route(peer, message) for peer, message in sent] == [None] * 4
    assert gate.router.set_current(FOUR) == []
    early = gate.router.set_current(OTHERS)
    assert early == [
        (NEWCOMER, VoteReceived(vote)),
        (FIRST, CertificateReceived(certificate)),
        (OTHERS.members[1].address, Arrival(BLOCK, block_vote)),
    ]
    assert gate.router.dropped == {"vote_relayed": 1}
    assert gate.router.set_current(replace(OTHERS, epoch=Epoch(2))) == []


def test_what_waits_for_the_next_epoch_is_bounded() -> None:
    gate = Gate()
    for _ in range(2 * MAX_EARLY):
        gate.route(NEWCOMER, VoteMessage(make_vote(0, 1)))
        gate.route(NEWCOMER, ProposalMessage(BLOCK, make_vote(0, 1)))
    assert len(gate.router.set_current(OTHERS)) == MAX_EARLY + MAX_EARLY_PROPOSALS


def test_before_the_driver_says_where_we_are_nothing_is_taken() -> None:
    router = Router(GENESIS, lambda _: True, lambda *_: None)
    assert router.route(FIRST, VoteMessage(make_vote(0)), 0.0) is None


# -- requests and answers --------------------------------------------------------------------------
def test_a_block_is_taken_only_if_it_was_asked_for() -> None:
    gate = Gate()
    assert gate.route(FIRST, BlockAnswer(BLOCK)) == BlockAnswered(BLOCK)
    gate.expected.clear()
    assert gate.route(FIRST, BlockAnswer(BLOCK)) is None
    assert gate.router.dropped == {"block_unasked": 1}


def test_requests_name_who_asks() -> None:
    gate = Gate()
    assert gate.route(FIRST, BlockRequest(BLOCK_HASH)) == BlockWanted(BLOCK_HASH, FIRST)
    wanted = gate.route(SECOND, CertificatesRequest(Epoch(0), View(4)))
    assert wanted == CertificatesWanted(Epoch(0), View(4), SECOND)


def test_too_many_requests_of_one_validator_do_not_use_up_those_of_another() -> None:
    gate = Gate()
    request = BlockRequest(BLOCK_HASH)
    taken = [gate.route(FIRST, request) for _ in range(int(MAX_REQUESTS) + 10)]
    assert taken.count(None) == 10
    assert gate.route(SECOND, CertificatesRequest(Epoch(0), View(1))) is not None
    assert gate.route(FIRST, request, 2 / REQUESTS_PER_SECOND) is not None


# -- other chains ----------------------------------------------------------------------------------
def test_a_status_says_where_a_validator_is() -> None:
    assert Gate().route(FIRST, STATUS) == PlaceHeard(FIRST, Height(2), Epoch(0), View(3))


@pytest.mark.parametrize("foreign", [{"genesis_hash": BLOCK_HASH}, {"version": VERSION + 1}])
def test_a_validator_of_another_chain_is_muted_with_one_alarm_until_it_says_otherwise(
    foreign: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    wrong = replace(STATUS, **foreign)  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR, "steelyard.node"):
        for _ in range(3):
            assert gate.route(FIRST, wrong) is None
    assert caplog.text.count("peer_of_another_chain") == 1
    assert gate.route(FIRST, VoteMessage(make_vote(0))) is None
    assert gate.route(SECOND, VoteMessage(make_vote(1))) is not None
    assert gate.router.dropped["muted"] == 1
    assert gate.route(FIRST, STATUS) is not None
    assert gate.route(FIRST, VoteMessage(make_vote(0))) is not None

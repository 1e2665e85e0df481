"""A bench for one machine: it signs what the machine asks for and keeps what it said.

In this epoch validators 3, 0, 2, 2, 1 lead views 1 to 5.
"""

from typing import TypeVar

from steelyard.chain.consensus.certificates import (
    Certificate,
    build_certificate,
)
from steelyard.chain.consensus.messages import (
    BlockValidated,
    Candidate,
    CertificateReceived,
    Effect,
    Event,
    ProposalReceived,
    SignVote,
    Started,
    VoteReceived,
    VoteSigned,
)
from steelyard.chain.consensus.simplex import Simplex
from steelyard.chain.consensus.votes import (
    NO_HASH,
    Kind,
)
from tests.consensus.makers import (
    BACKEND,
    NO_END,
    ROOT,
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

    def __init__(
        self,
        me: int | None = 1,
        *,
        root: Candidate = ROOT,
        last_height: int = NO_END,
        **recovered: object,
    ) -> None:
        self.me, self.now = me, 0
        stored = {"finalization": None, "statements": (), "certificates": (), "candidates": ()}
        settings = make_settings(me=me, heartbeat_ms=HEARTBEAT_MS, last_height=last_height)
        self.machine = Simplex.recover(settings, root, **(stored | recovered))
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

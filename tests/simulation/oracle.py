"""What must hold in every run. It judges from outside: no rule of the core is used to judge it."""

from steelyard.chain.consensus.certificates import Certificate, decode_bitmap
from steelyard.chain.consensus.messages import Candidate, Event, ProposalReceived, VoteReceived
from steelyard.chain.consensus.votes import Kind, Statement, Vote, compute_signing_root
from tests.consensus.simulation import BACKEND, CHAIN_ID, EPOCH, ROOT

OPEN_OFFENCES = 12
"""Conflicting votes of one cheat delivered to one validator in time: somebody must have noticed."""


class Violation(Exception):
    """A run broke a promise; `kind` says which."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


def check_clean(condition: bool, kind: str, detail: str) -> None:
    if not condition:
        raise Violation(kind, detail)


def is_forbidden(first: Statement, second: Statement) -> bool:
    """May no honest validator say both? Rules 4, 5, 6 and 11, written down a second time."""
    if (first.epoch, first.view) != (second.epoch, second.view):
        return False
    kinds = {first.kind, second.kind}
    if kinds == {Kind.FINALIZE, Kind.NULLIFY}:
        return True
    return Kind.NULLIFY not in kinds and first.hash != second.hash


class Oracle:
    """The one chain that is final, everything that honest validators said, and what is wrong."""

    def __init__(self, world) -> None:  # type: ignore[no-untyped-def]
        self.world = world
        self.ledger: list[Candidate] = []
        self.invalid: set[bytes] = set()
        self.said: dict[tuple[int, int], list[Statement]] = {}
        self.proposed_at: dict[bytes, int] = {}
        self.delays_ms: list[int] = []
        self.heard: dict[tuple[int, int, int, int], list[Statement]] = {}
        self.offences: dict[tuple[int, int], int] = {}
        self.accused: set[int] = set()

    # -- votes -------------------------------------------------------------------------------------
    def witness(self, host, statement: Statement) -> None:  # type: ignore[no-untyped-def]
        """An honest validator signs: nothing that conflicts, no block that its disk could lose."""
        said = self.said.setdefault((host.me, statement.view), [])
        if statement in said:
            return
        for before in said:
            check_clean(
                not is_forbidden(before, statement),
                "double_vote",
                f"{host.me} signed {before} and {statement}",
            )
            check_clean(
                (before.kind, statement.kind) != (Kind.NULLIFY, Kind.NOTARIZE),
                "late_vote",
                f"{host.me} notarized view {statement.view} after giving it up",
            )
        said.append(statement)
        if statement.kind == Kind.NOTARIZE:
            is_held = any(b.hash == statement.hash for b in reversed(host.disk.blocks.durable))
            check_clean(is_held, "unavailable", f"{host.me} notarized what it could lose")
            check_clean(
                statement.hash not in self.invalid, "invalid_block", f"{host.me} notarized it"
            )

    def check_ancestry(self, host, candidate: Candidate) -> None:  # type: ignore[no-untyped-def]
        """`Validate` promises that every ancestor back to the finalized one is at hand."""
        block = candidate
        while block.parent != host.tip.hash and block.height > host.tip.height:
            parent = host.disk.index.get(block.parent)
            check_clean(parent is not None, "no_ancestor", f"{host.me} validates {candidate}")
            assert parent is not None
            block = parent

    def delivered(self, host, event: Event) -> None:  # type: ignore[no-untyped-def]
        """Count the offences that an honest validator had under its eyes in time."""
        match event:
            case VoteReceived(vote):
                pass
            case ProposalReceived(proposal):
                vote = proposal.vote
            case _:
                return
        said, view = vote.statement, vote.statement.view
        if self.world.is_honest(vote.signer) or not host.is_honest:
            return
        if said.epoch != EPOCH or not host.machine.view <= view <= host.machine.view + 8:
            return
        heard = self.heard.setdefault((host.slot, host.life, view, vote.signer), [])
        if said not in heard:
            if any(is_forbidden(before, said) for before in heard):
                key = (host.slot, vote.signer)
                self.offences[key] = self.offences.get(key, 0) + 1
            heard.append(said)

    def check_report(self, first: Vote, second: Vote) -> None:
        check_clean(
            first.signer == second.signer and is_forbidden(first.statement, second.statement),
            "false_report",
            f"{first} and {second} are no offence",
        )
        check_clean(not self.world.is_honest(first.signer), "honest_accused", f"{first.signer}")
        self.accused.add(first.signer)

    def check_reports(self) -> None:
        for (_, signer), count in self.offences.items():
            check_clean(
                count < OPEN_OFFENCES or signer in self.accused,
                "unreported",
                f"{signer} cheated {count} times in the open",
            )

    # -- finality ----------------------------------------------------------------------------------
    def proposed(self, block: Candidate) -> None:
        self.proposed_at[block.hash] = self.world.now

    def check_final(self, host, blocks: tuple[Candidate, ...], certificate: Certificate) -> None:  # type: ignore[no-untyped-def]
        """One chain, without a gap, of valid blocks by their leaders, under a true quorum."""
        parent = host.tip
        for block in blocks:
            check_clean(
                (block.parent, block.height) == (parent.hash, parent.height + 1),
                "broken_chain",
                f"{host.me} finalized {block} on {parent}",
            )
            self._check_block(block)
            parent = block
        self._check_certificate(certificate, blocks[-1])
        made = self.proposed_at.get(blocks[-1].hash)
        if made is not None:
            self.delays_ms.append(self.world.now - made)

    def _check_block(self, block: Candidate) -> None:
        place = block.height - ROOT.height - 1
        if place == len(self.ledger):
            self.ledger.append(block)
        known = self.ledger[place] if 0 <= place < len(self.ledger) else None
        check_clean(known == block, "conflicting_finalizations", f"{block} against {known}")
        check_clean(block.hash not in self.invalid, "invalid_block", f"{block} is final")
        validators = self.world.validators
        leader = validators[validators.get_leader(EPOCH, block.view)].address
        check_clean(block.proposer == leader and block.epoch == EPOCH, "not_the_leader", f"{block}")

    def _check_certificate(self, certificate: Certificate, block: Candidate) -> None:
        powers = self.world.powers
        expected = Statement(EPOCH, block.view, Kind.FINALIZE, block.hash)
        signers = decode_bitmap(certificate.bitmap, len(powers))
        is_quorum = 3 * sum(powers[i] for i in signers) > 2 * sum(powers)
        keys = [self.world.validators[i].key for i in signers]
        root = compute_signing_root(expected, CHAIN_ID)
        is_signed = BACKEND.verify(keys, root, certificate.signature, b"")
        is_true = certificate.statement == expected and is_quorum and is_signed
        check_clean(is_true, "false_certificate", f"{certificate} for {block}")

"""What must hold in every run. It judges from outside: no rule of the core is used to judge it."""

from steelyard.chain.consensus.certificates import Certificate, decode_bitmap
from steelyard.chain.consensus.messages import Candidate, Event, ProposalReceived, VoteReceived
from steelyard.chain.consensus.votes import NO_HASH, Kind, Statement, Vote, compute_signing_root
from tests.consensus.makers import BACKEND, DOMAIN, EPOCH, ROOT

from .disk import Segment
from .epochs import CachedSet, get_account

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
        self.decided: list[tuple[int, int]] = []
        """Epoch and view of the lowest certificate that made each block of the ledger final."""
        self.sets: dict[int, CachedSet] = {EPOCH: world.epochs.first}
        """Who votes in the epochs that have begun: the block before them is final."""
        self.invalid: set[bytes] = set()
        self.said: dict[tuple[int, int, int], list[Statement]] = {}
        self.signers: dict[tuple[int, int, Kind, bytes], set[int]] = {}
        """The honest validators that said something."""
        self.proposed_at: dict[bytes, int] = {}
        self.delays_ms: list[int] = []
        self.heard: dict[tuple[int, int, int, int], list[Statement]] = {}
        self.offences: dict[tuple[int, int], int] = {}
        self.accused: set[int] = set()

    # -- votes -------------------------------------------------------------------------------------
    def witness(self, host, statement: Statement) -> None:  # type: ignore[no-untyped-def]
        """An honest validator signs: nothing that conflicts, no block that its disk could lose."""
        said = self.said.setdefault((host.me, statement.epoch, statement.view), [])
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
        what = (statement.epoch, statement.view, statement.kind, statement.hash)
        self.signers.setdefault(what, set()).add(host.me)
        check_clean(
            statement.epoch in self.sets, "early_epoch", f"{host.me} signed {statement} too early"
        )
        if statement.kind == Kind.NOTARIZE:
            self._check_notarized(host, statement)

    def _check_notarized(self, host, statement: Statement) -> None:  # type: ignore[no-untyped-def]
        """It is on disk and valid, in this epoch, and not beside a block that is final already."""
        held = [b for b in reversed(host.disk.blocks.durable) if b.hash == statement.hash]
        check_clean(bool(held), "unavailable", f"{host.me} notarized what it could lose")
        check_clean(statement.hash not in self.invalid, "invalid_block", f"{host.me} notarized it")
        block = held[0]
        self._check_justified(host, block, statement)
        is_inside = self.world.epochs.compute_epoch(block.height) == statement.epoch
        check_clean(is_inside, "past_boundary", f"{host.me} notarized {block}")
        place = block.height - ROOT.height - 1
        if place < len(self.ledger):
            final, decided = self.ledger[place], self.decided[place]
            is_late = (statement.epoch, statement.view) > decided
            is_beside = is_late and final != block
            check_clean(not is_beside, "beside_final", f"{host.me} notarized {block}, not {final}")

    def _check_justified(self, host, block: Candidate, said: Statement) -> None:  # type: ignore[no-untyped-def]
        """What it rests on can be certified, and every view since be nullified.

        That is: by what honest validators signed so far, were all cheats to sign it too.
        """
        is_again = said.view > block.view
        base = block if is_again else host.disk.index.get(block.parent, host.tip)
        lowest = base.view if base.epoch == said.epoch else 0
        for view in range(said.view - 1, lowest - 1, -1):
            if view == 0 or self._is_possible(said.epoch, view, Kind.NOTARIZE, base.hash):
                return
            if not self._is_possible(said.epoch, view, Kind.NULLIFY, NO_HASH):
                break
        raise Violation("unjustified", f"{host.me} signed {said} of {block} on {base}")

    def _is_possible(self, epoch: int, view: int, kind: Kind, block: bytes) -> bool:
        """Can there be such a certificate?"""
        validators = self.sets[epoch].validators
        signers = self.signers.get((epoch, view, kind, block), set())
        power = sum(
            validator.power
            for validator in validators
            if get_account(validator) in signers or not self.world.is_honest(get_account(validator))
        )
        return 3 * power > 2 * sum(validator.power for validator in validators)

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
        validators = host.settings.validators
        if not host.is_honest or not 0 <= vote.signer < len(validators):
            return
        account = get_account(validators[vote.signer])
        if self.world.is_honest(account) or said.epoch != host.epoch:
            return
        if not host.machine.view <= view <= host.machine.view + 8:
            return
        heard = self.heard.setdefault((host.slot, host.life, view, account), [])
        if said not in heard:
            if any(is_forbidden(before, said) for before in heard):
                key = (host.slot, account)
                self.offences[key] = self.offences.get(key, 0) + 1
            heard.append(said)

    def check_report(self, host, first: Vote, second: Vote) -> None:  # type: ignore[no-untyped-def]
        check_clean(
            first.signer == second.signer and is_forbidden(first.statement, second.statement),
            "false_report",
            f"{first} and {second} are no offence",
        )
        account = get_account(host.settings.validators[first.signer])
        check_clean(not self.world.is_honest(account), "honest_accused", f"{account}")
        self.accused.add(account)

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

    def check_final(self, host, segment: Segment) -> None:  # type: ignore[no-untyped-def]
        """One chain, without a gap, of valid blocks by their leaders, under a true quorum."""
        parent, last = host.tip, segment.blocks[-1]
        for block in segment.blocks:
            check_clean(
                (block.parent, block.height) == (parent.hash, parent.height + 1),
                "broken_chain",
                f"{host.me} finalized {block} on {parent}",
            )
            self._check_block(block, segment.certificate)
            parent = block
        self._check_certificate(segment.certificate, last)
        made = self.proposed_at.get(last.hash)
        if made is not None:
            self.delays_ms.append(self.world.now - made)

    def _check_block(self, block: Candidate, certificate: Certificate) -> None:
        place = block.height - ROOT.height - 1
        decided = (certificate.epoch, certificate.view)
        if place == len(self.ledger):
            self.ledger.append(block)
            self.decided.append(decided)
        known = self.ledger[place] if 0 <= place < len(self.ledger) else None
        check_clean(known == block, "conflicting_finalizations", f"{block} against {known}")
        self.decided[place] = min(self.decided[place], decided)
        check_clean(block.hash not in self.invalid, "invalid_block", f"{block} is final")
        epoch = self.world.epochs.compute_epoch(block.height)
        check_clean(block.epoch == epoch, "past_boundary", f"{block} belongs to epoch {epoch}")
        validators = self.sets[epoch]
        leader = validators[validators.get_leader(epoch, block.view)].address
        check_clean(block.proposer == leader, "not_the_leader", f"{block}")

    def _check_certificate(self, certificate: Certificate, block: Candidate) -> None:
        """A boundary block may be certified in a later view than its own, no other block."""
        validators, is_last = self.sets[block.epoch], self.world.epochs.is_last(block)
        expected = Statement(block.epoch, certificate.view, Kind.FINALIZE, block.hash)
        is_in_time = certificate.view == block.view or (is_last and certificate.view > block.view)
        signers = decode_bitmap(certificate.bitmap, len(validators))
        powers = [validator.power for validator in validators.validators]
        is_quorum = 3 * sum(powers[i] for i in signers) > 2 * sum(powers)
        keys = [validators[i].key for i in signers]
        root = compute_signing_root(expected, DOMAIN)
        is_signed = BACKEND.verify(keys, root, certificate.signature, b"")
        is_true = certificate.statement == expected and is_in_time and is_quorum and is_signed
        check_clean(is_true, "false_certificate", f"{certificate} for {block}")
        if is_last and block.epoch + 1 not in self.sets:
            self.sets[block.epoch + 1] = self.world.epochs.get_next(block)

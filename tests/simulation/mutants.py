"""One mutant per rule of the protocol: the core, or its driver, with exactly one rule broken.

Numbers are those of facts/consensus.md. A mutant lives inside `with mutant.applied()`; its patches
hold for cheats too, which follow the chain with the same core. `KILLS` in the test pins a seed for
each that kills it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

from steelyard.chain.consensus import certificates, pacing, simplex, validators, views, votes
from steelyard.chain.consensus.certificates import Certificate
from steelyard.chain.consensus.messages import (
    BlockRejected,
    BlockValidated,
    Effect,
    Event,
    Finalize,
    PersistCertificate,
    Proposal,
)
from steelyard.chain.consensus.simplex import Settings, Simplex
from steelyard.chain.consensus.validators import ValidatorSet
from steelyard.chain.consensus.views import Views, ViewState
from steelyard.chain.consensus.votes import Kind, Offence, Statement
from steelyard.chain.errors import InvalidVote

from . import host
from .disk import Segment
from .host import SimulatedHost

Patch = tuple[object, str, object]


@dataclass(frozen=True)
class Mutant:
    """`patches` replace attributes of the core; `host` is a driver that breaks its own promise."""

    rule: int
    name: str
    breaks: str
    patches: tuple[Patch, ...] = ()
    host: type[SimulatedHost] = SimulatedHost

    @contextmanager
    def applied(self) -> Iterator[type[SimulatedHost]]:
        with ExitStack() as stack:
            for target, name, replacement in self.patches:
                stack.enter_context(patch.object(target, name, replacement))
            yield self.host


# -- rule 1: what a block carries ------------------------------------------------------------------
def _check_no_leader(proposal: Proposal, validators: ValidatorSet, *_: int) -> None:
    """Anybody proposes, in any view."""


def _get_any_parent(self: Views, view: int, candidate):  # type: ignore[no-untyped-def]
    return candidate if view > candidate.view else self.candidates.get(candidate.parent)


# -- rule 2: timers and leaders --------------------------------------------------------------------
def _never_back_off(base_ms: int, unfinalized_views: int) -> int:
    return base_ms


# -- rule 3: the leader extends the highest --------------------------------------------------------
def _find_root(self: Views, view: int):  # type: ignore[no-untyped-def]
    return self.root


# -- rule 4: when to notarize ----------------------------------------------------------------------
def _notarize_again(state: ViewState) -> bool:
    """Forgets its own notarize vote, and the first proposal with it."""
    if Kind.NULLIFY in state.signed:
        return False
    state.signed.pop(Kind.NOTARIZE, None)
    return True


def _process_every_proposal(self: Simplex, proposal: Proposal) -> None:
    """Takes a second proposal of the same view for a new one."""
    state = self._views.get(proposal.candidate.view)
    if state.proposal is not None and state.proposal != proposal.candidate:
        state.proposal, state.is_requested = None, False
        state.signed.pop(Kind.NOTARIZE, None)
    _PROCESS_PROPOSAL(self, proposal)


def _notarize_late(state: ViewState) -> bool:
    return Kind.NOTARIZE not in state.signed


def _find_own_view(self: Views, block, view: int) -> int:  # type: ignore[no-untyped-def]
    """No ancestry check: what is extended need not be certified."""
    known = _FIND_CERTIFIED_VIEW(self, block, view)
    return block.view if known is None else known


def _find_no_gap(self: Views, parent_view: int, view: int) -> None:
    """Every view between counts as nullified."""


def _extends_over_gaps(self: Views, view: int, candidate) -> bool:  # type: ignore[no-untyped-def]
    with patch.object(Views, "find_gap", _find_no_gap):
        return _IS_EXTENDABLE(self, view, candidate)


def _extends_without_ancestors(self: Views, view: int, candidate) -> bool:  # type: ignore[no-untyped-def]
    with patch.object(Views, "find_branch", lambda self, tip: ([], None)):
        return _IS_EXTENDABLE(self, view, candidate)


def _vote_unvalidated(self: Simplex) -> None:
    """Notarizes a proposal without asking whether it is valid, or at hand."""
    state = self._views.open(self._view)
    if state.proposal is not None and self._views.is_extendable(self._view, state.proposal):
        self._process_validated(state.proposal.hash)
    _REQUEST_BLOCK(self)


class HastyHost(SimulatedHost):
    """Says that a block is fsynced before it is."""

    def validate(self, candidate) -> Event:  # type: ignore[no-untyped-def]
        if candidate.hash in self.world.oracle.invalid:
            return BlockRejected(candidate.hash)
        self.disk.put_block(candidate)
        return BlockValidated(candidate.hash)


# -- rules 5 and 6: finalize or nullify, never both ------------------------------------------------
def _finalize_after_nullify(state: ViewState, block: bytes) -> bool:
    own = state.signed.get(Kind.NOTARIZE)
    return (own is None or own.hash == block) and Kind.FINALIZE not in state.signed


def _finalize_another(state: ViewState, block: bytes) -> bool:
    return Kind.NULLIFY not in state.signed and Kind.FINALIZE not in state.signed


def _never_finalize(state: ViewState, block: bytes) -> bool:
    return False


def _nullify_after_finalize(state: ViewState) -> bool:
    return Kind.NULLIFY not in state.signed


def _never_nullify(state: ViewState) -> bool:
    return False


# -- rules 5, 7 and 8: what a certificate does -----------------------------------------------------
def _keep_one_certificate(self: Simplex, certificate) -> None:  # type: ignore[no-untyped-def]
    state = self._views.open(certificate.view)
    kinds = {Kind.NOTARIZE, Kind.NULLIFY}
    if certificate.kind in kinds and kinds & set(state.certificates):
        return
    _ADD(self, certificate)


def _enter_only_after_blocks(self: Simplex, certificate) -> None:  # type: ignore[no-untyped-def]
    """A nullification is stored, but leads nowhere."""
    if certificate.kind == Kind.NULLIFY:
        with patch.object(Simplex, "_enter", lambda self, view: None):
            _ADD(self, certificate)
    else:
        _ADD(self, certificate)


def _finalize_notarized(self: Simplex, certificate) -> None:  # type: ignore[no-untyped-def]
    """A notarized block is taken for final."""
    state = self._views.open(certificate.view)
    if certificate.kind == Kind.NOTARIZE:
        state.certificates.setdefault(Kind.FINALIZE, certificate)
    _ADD(self, certificate)


def _finalize_alone(self: Simplex) -> None:
    """Only the certified block is final, not its ancestors."""
    with patch.object(simplex, "Finalize", lambda b, c: Finalize(b[-1:], c)):
        _FINALIZE(self)


# -- rule 9: when stuck ----------------------------------------------------------------------------
def _stay_silent(self: Simplex, state: ViewState) -> None:
    """Neither repeats nor asks when the timer ends."""


def _ask_for_no_block(self: Simplex, *_: object) -> None:
    """Never fetches a block that it lacks."""


def _ask_first_holder_only(self: Simplex, block, view, holders) -> None:  # type: ignore[no-untyped-def]
    if block not in self._wanted:
        _WANT(self, block, view, holders[:1])


# -- rule 10: what survives a crash ----------------------------------------------------------------
def _recover_without_votes(cls, settings, root, **stored):  # type: ignore[no-untyped-def]
    return _RECOVER(cls, settings, root, **(stored | {"statements": ()}))


class EagerHost(SimulatedHost):
    """Sends a vote that is written but not fsynced."""

    def sign(self, statement: Statement):  # type: ignore[no-untyped-def]
        self.disk.statements.write(statement)
        self.world.oracle.witness(self, statement)
        return self.make_vote(statement)


# -- rule 11: offences -----------------------------------------------------------------------------
def _see_no_offence(self: ViewState, vote) -> None:  # type: ignore[no-untyped-def]
    """Equivocation goes unreported."""


def _accuse_the_late(first: Statement, second: Statement) -> Offence | None:
    """Takes notarize and nullify in one view, which is honest, for an offence."""
    kinds = {first.kind, second.kind}
    if first.view == second.view and kinds == {Kind.NOTARIZE, Kind.NULLIFY}:
        return Offence.FINALIZED_AND_NULLIFIED
    return votes.find_offence(first, second)


# -- rule 12: epochs -------------------------------------------------------------------------------
def _accept_every_epoch(self: Simplex, epoch: int) -> None:
    """Votes and certificates of the epoch before count."""


def _check_no_height(  # type: ignore[no-untyped-def]
    proposal: Proposal, members: ValidatorSet, epoch: int, last_height: int
) -> None:
    """A block after the boundary is taken for one of the epoch."""
    candidate = proposal.candidate
    if candidate.height > last_height:
        last_height = candidate.height
    _CHECK_PROPOSAL(proposal, members, epoch, last_height)


def _find_last_anyway(self: Views, block, view: int):  # type: ignore[no-untyped-def]
    """A boundary block is proposed again although no view certified it."""
    known = _FIND_CERTIFIED_VIEW(self, block, view)
    is_uncertified = known is None and self.is_last(block) and self.root_view < block.view < view
    return block.view if is_uncertified else known


def _extends_last_over_gaps(self: Views, view: int, candidate) -> bool:  # type: ignore[no-untyped-def]
    """A boundary block is proposed again although a view since is not nullified."""
    extends = _extends_over_gaps if view > candidate.view else _IS_EXTENDABLE
    return extends(self, view, candidate)


def _never_propose_again(self: Simplex) -> None:
    """A leader that finds a boundary block certified proposes nothing."""
    views = self._views
    parent = views.find_parent(self._view)
    if views.get(self._view).proposal or parent is None or not views.is_last(parent):
        _REQUEST_BLOCK(self)


class ImpatientHost(SimulatedHost):
    """Takes a boundary block for final when it is notarized, and goes on in the next epoch."""

    seen: Certificate | None = None

    def perform(self, effect: Effect) -> None:
        super().perform(effect)
        if isinstance(effect, PersistCertificate) and effect.certificate.kind == Kind.NOTARIZE:
            self.seen = effect.certificate

    def take(self, event: Event, is_trusted: bool) -> None:
        super().take(event, is_trusted)
        certificate, self.seen = self.seen, None
        block = None if certificate is None else self.disk.index.get(certificate.hash)
        if certificate is None or block is None or block.parent != self.tip.hash:
            return
        if self.world.epochs.is_last(block):
            self.commit(Segment((block,), certificate))
            self.run_machine()


class NostalgicHost(SimulatedHost):
    """Keeps the first set, with its quorum, in every epoch."""

    def compute_settings(self) -> Settings:
        epoch = self.world.epochs.compute_epoch(self.tip.height + 1)
        return self.world.make_settings(self.me, epoch, self.world.epochs.first)


class TrustingHost(SimulatedHost):
    """Takes final blocks from others without looking at their certificate."""

    def check_segment(self, segment: Segment) -> None:
        with patch.object(host, "check_certificate", _check_no_certificate):
            super().check_segment(segment)


class HomelyHost(SimulatedHost):
    """Never asks for what became final in an epoch that the others have left."""

    def ask_for_segment(self, sender: SimulatedHost) -> None:
        pass


# -- rule 13: certificates -------------------------------------------------------------------------
def _check_no_certificate(*_: object) -> None:
    """Believes what a certificate says."""


def _check_only_the_quorum(certificate, validators, domain, backend) -> None:  # type: ignore[no-untyped-def]
    signers = certificates.decode_bitmap(certificate.bitmap, len(validators))
    if not validators.has_quorum(signers):
        raise InvalidVote("certificate_quorum", "too few")


def _check_only_the_signature(certificate, validators, domain, backend) -> None:  # type: ignore[no-untyped-def]
    with patch.object(ValidatorSet, "has_quorum", lambda self, signers: True):
        _CHECK_CERTIFICATE(certificate, validators, domain, backend)


def _check_no_vote(*_: object) -> None:
    """Votes are counted without looking at the signature."""


# -- the quorum ------------------------------------------------------------------------------------
def _half(power: int, total_power: int) -> bool:
    return 2 * power > total_power


_ADD, _FINALIZE, _WANT = Simplex._add, Simplex._finalize, Simplex._want
_REQUEST_BLOCK, _PROCESS_PROPOSAL = Simplex._request_block, Simplex._process_proposal
_RECOVER: Callable = Simplex.recover.__func__  # type: ignore[attr-defined, type-arg]
_IS_EXTENDABLE, _FIND_CERTIFIED_VIEW = Views.is_extendable, Views.find_certified_view
_CHECK_PROPOSAL = views.check_proposal
_CHECK_CERTIFICATE = certificates.check_certificate

MUTANTS = (
    Mutant(
        1, "any_leader", "anybody may propose", ((simplex, "check_proposal", _check_no_leader),)
    ),
    Mutant(
        1,
        "any_height",
        "a block's height need not follow its parent's",
        ((Views, "get_base", _get_any_parent),),
    ),
    Mutant(
        2,
        "no_backoff",
        "the timeout never grows",
        ((pacing, "compute_timeout_ms", _never_back_off),),
    ),
    Mutant(
        3,
        "old_parent",
        "the leader extends the last final block, not the highest notarized",
        ((Views, "find_parent", _find_root),),
    ),
    Mutant(
        4,
        "notarize_twice",
        "a second proposal of a view is voted for as well",
        (
            (simplex, "may_notarize", _notarize_again),
            (Simplex, "_process_proposal", _process_every_proposal),
        ),
    ),
    Mutant(
        4,
        "notarize_late",
        "notarize after giving the view up",
        ((simplex, "may_notarize", _notarize_late),),
    ),
    Mutant(
        4,
        "no_ancestry",
        "the parent need not be certified",
        ((Views, "find_certified_view", _find_own_view),),
    ),
    Mutant(
        4,
        "no_gap_check",
        "views are skipped without nullifications",
        ((Views, "is_extendable", _extends_over_gaps),),
    ),
    Mutant(
        4,
        "no_ancestors",
        "validate on a parent whose ancestors are missing",
        ((Views, "is_extendable", _extends_without_ancestors),),
    ),
    Mutant(
        4,
        "unvalidated",
        "notarize without validating",
        ((Simplex, "_request_block", _vote_unvalidated),),
    ),
    Mutant(4, "unsynced_block", "notarize before the block is fsynced", host=HastyHost),
    Mutant(
        5,
        "finalize_after_nullify",
        "finalize a view that one gave up",
        ((simplex, "may_finalize", _finalize_after_nullify),),
    ),
    Mutant(
        5,
        "finalize_another",
        "finalize a block although one notarized another",
        ((simplex, "may_finalize", _finalize_another),),
    ),
    Mutant(5, "never_finalize", "no finalize votes", ((simplex, "may_finalize", _never_finalize),)),
    Mutant(
        6,
        "nullify_after_finalize",
        "give up a view that one voted to finalize",
        ((simplex, "may_nullify", _nullify_after_finalize),),
    ),
    Mutant(6, "never_nullify", "no view is given up", ((simplex, "may_nullify", _never_nullify),)),
    Mutant(
        7,
        "one_certificate",
        "of a notarization and a nullification only the first is kept",
        ((Simplex, "_add", _keep_one_certificate),),
    ),
    Mutant(
        7,
        "stay_after_nullification",
        "a nullification does not lead to the next view",
        ((Simplex, "_add", _enter_only_after_blocks),),
    ),
    Mutant(
        8,
        "final_when_notarized",
        "a notarized block is final",
        ((Simplex, "_add", _finalize_notarized),),
    ),
    Mutant(
        8,
        "final_alone",
        "a final block does not make its ancestors final",
        ((Simplex, "_finalize", _finalize_alone),),
    ),
    Mutant(
        9,
        "silent_when_stuck",
        "nothing is repeated or asked for when the timer ends",
        ((Simplex, "_rebroadcast", _stay_silent),),
    ),
    Mutant(
        9,
        "no_fetch",
        "missing blocks are not asked for",
        ((Simplex, "_want", _ask_for_no_block),),
    ),
    Mutant(
        9,
        "first_holder_only",
        "a missing block is only asked of whoever was named first",
        ((Simplex, "_want", _ask_first_holder_only),),
    ),
    Mutant(
        10,
        "forgets_votes",
        "the votes of before a crash are not read back",
        ((Simplex, "recover", classmethod(_recover_without_votes)),),
    ),
    Mutant(10, "unsynced_vote", "a vote is sent before it is fsynced", host=EagerHost),
    Mutant(
        11,
        "no_reports",
        "offences are not noticed",
        ((ViewState, "find_conflicting", _see_no_offence),),
    ),
    Mutant(
        11,
        "false_reports",
        "notarize and nullify of one view count as an offence",
        ((views, "find_offence", _accuse_the_late),),
    ),
    Mutant(
        12,
        "any_epoch",
        "votes and certificates of another epoch count",
        ((Simplex, "_check_epoch", _accept_every_epoch),),
    ),
    Mutant(
        12,
        "block_past_boundary",
        "a block after the boundary is voted for",
        ((simplex, "check_proposal", _check_no_height),),
    ),
    Mutant(
        12,
        "repropose_uncertified",
        "a boundary block that no view certified is proposed again",
        ((Views, "find_certified_view", _find_last_anyway),),
    ),
    Mutant(
        12,
        "repropose_without_gap_check",
        "a boundary block is proposed again over views that are not nullified",
        ((Views, "is_extendable", _extends_last_over_gaps),),
    ),
    Mutant(
        12,
        "no_reproposal",
        "nobody proposes a boundary block again",
        ((Simplex, "_request_block", _never_propose_again),),
    ),
    Mutant(
        12,
        "next_epoch_when_notarized",
        "the next epoch begins when the boundary block is notarized",
        host=ImpatientHost,
    ),
    Mutant(12, "old_set", "the first set votes in every epoch", host=NostalgicHost),
    Mutant(12, "no_catching_up", "nobody asks for what other epochs made final", host=HomelyHost),
    Mutant(
        13,
        "unchecked_certificate",
        "certificates are believed",
        ((simplex, "check_certificate", _check_no_certificate),),
    ),
    Mutant(
        13,
        "unsigned_certificate",
        "a certificate's signature is not checked",
        ((simplex, "check_certificate", _check_only_the_quorum),),
    ),
    Mutant(
        13,
        "small_certificate",
        "a certificate's power is not checked",
        ((simplex, "check_certificate", _check_only_the_signature),),
    ),
    Mutant(
        13,
        "unchecked_segment",
        "blocks that others call final are taken without their certificate",
        host=TrustingHost,
    ),
    Mutant(13, "half_quorum", "more than half is a quorum", ((validators, "has_quorum", _half),)),
)

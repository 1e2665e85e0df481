"""Simplex consensus as a machine without input or output: `step(event, now_ms)` returns effects.

After Chan and Pass, "Simplex Consensus" (eprint 2023/463). Time is cut into *views*; each has one
leader, which proposes one block. In a view a validator votes at most once for a block:

    propose     the leader extends the highest notarized block it knows and votes for its own block
    notarize    a validator that holds the block and found it valid, in time
    nullify     a validator whose timer ran out: "I give this view up"
    finalize    a validator that saw a quorum notarize a block, and never gave the view up

A quorum is more than two thirds of the power, so any two quorums share an honest validator when
less than a third is dishonest. A quorum of notarize votes or one of nullify votes lets everybody
enter the next view. A quorum of finalize votes makes the block final, with everything before it.

**Why two final blocks never conflict.** Let b be final in view v. A quorum voted finalize, so no
quorum voted nullify in v (nobody honest does both), and no other block was notarized in v (nobody
honest notarizes twice). A block of a later view has a notarized ancestor line, and skips a view
only with that view's nullification. View v has none, so the line goes through v, and there
through b. That argument is the reason for each check in `views`.

**Why it gets on.** Certificates are passed on, so when one validator enters a view, all do one
message later. An honest leader then proposes, and its block is notarized and final two messages
after. Whoever hears nothing gives up when the timer ends; the timeout doubles while nothing
is finalized. Whoever missed something asks for it and repeats its own last words (rule 9).

**When there is nothing to do.** A leader waits for work, or for the heartbeat, and the others'
timers count from there. A block that is notarized but not final is work as well, after a pause: its
finalization usually arrives by itself. One validator alone runs the same code: its own vote is a
quorum.

**After a crash.** `recover` takes what is on disk: the statements that were signed, certificates,
blocks. Because a vote leaves only after it is on disk, no conflicting one can follow. Forgotten
certificates cost time only. Votes that were signed are signed again, with the same bytes.

**Epochs.** Votes name their epoch, so those of another are refused. A machine lives for one epoch,
which ends with the block at `last_height`, the *boundary block*, once that is final: the driver
then makes a new machine with the next set and that block as its root, and views start again at 1.
Nobody builds on a boundary block before. If one is certified but not final, the leaders of later
views propose *that same block again*: a notarize vote for (later view, same hash), which the others
join if the block was certified in an earlier view and every view since is nullified. So in the
argument above "descends from b" becomes "is b or descends from b", and at the boundary's height
only b itself is left. docs/decisions/0008.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ..bls import DEFAULT, Backend
from ..errors import InvalidVote
from ..params import MAX_LOOKBEHIND_VIEWS
from ..types import Domain, Epoch, Hash, Height, View
from .certificates import Certificate, build_certificate, check_certificate, decode_bitmap
from .messages import (
    Answer,
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
    Message,
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
from .pacing import Pacing
from .validators import ValidatorSet
from .views import (
    Views,
    ViewState,
    check_proposal,
    find_conflict,
    get_base_hash,
    may_finalize,
    may_notarize,
    may_nullify,
)
from .votes import NO_HASH, Kind, Statement, Vote, check_vote


@dataclass(frozen=True, slots=True)
class Settings:
    """Who takes part and how patient it is. `me` is our place in the set; None only follows.

    `domain`: what votes are signed for, `Genesis.domain`.
    `last_height`: of the boundary block, with which the epoch ends.
    `timeout_ms`: from a proposal to its certificate, three message delays and the execution.
    `heartbeat_ms`: how long an idle chain goes without a block, more than 0.
    """

    domain: Domain
    epoch: Epoch
    last_height: Height
    validators: ValidatorSet
    me: int | None
    timeout_ms: int
    heartbeat_ms: int
    backend: Backend = DEFAULT


class Simplex:
    """One validator in one epoch. The module says why it is safe, `messages` how to drive it."""

    def __init__(self, settings: Settings, root: Candidate) -> None:
        """`root` is the last final block: genesis, or the last block of the epoch before."""
        assert settings.me is None or 0 <= settings.me < len(settings.validators)
        self._settings = settings
        self._views = Views(settings.epoch, root, settings.last_height)
        self._pacing = Pacing(settings.timeout_ms, settings.heartbeat_ms, self._views)
        self._view = View(0)
        self._now = 0
        self._timer_at: int | None = None
        self._told_forks: set[bool] = set()
        self._wanted: dict[Hash, tuple[View, tuple[int, ...]]] = {}
        self._effects: list[Effect] = []

    @classmethod
    def recover(
        cls,
        settings: Settings,
        root: Candidate,
        *,
        finalization: Certificate | None,
        statements: Iterable[Statement],
        certificates: Iterable[Certificate],
        candidates: Iterable[Candidate],
    ) -> "Simplex":
        """Return a machine that goes on where another stopped; send it `Started`.

        `root` and `finalization` are the last final block and its certificate, `statements` all
        that was signed since (more does no harm), `certificates` and `candidates` what was stored.
        All of it comes from our own disk, so signatures are not checked again.
        """
        machine = cls(settings, root)
        views = machine._views
        views.finalization = finalization if root.epoch == settings.epoch else None
        for candidate in candidates:
            if candidate.epoch == settings.epoch and candidate.view > views.root_view:
                views.candidates[candidate.hash] = candidate
        for statement in statements:
            if statement.epoch == settings.epoch and statement.view > views.root_view:
                views.open(statement.view).signed[statement.kind] = statement
        for certificate in certificates:
            if certificate.epoch == settings.epoch and certificate.view > views.root_view:
                views.open(certificate.view).certificates[certificate.kind] = certificate
        return machine

    @property
    def view(self) -> View:
        """The view we are in; 0 before `Started`."""
        return self._view

    @property
    def root(self) -> Candidate:
        """The last final block."""
        return self._views.root

    @property
    def finalization(self) -> Certificate | None:
        """The certificate of the last final block; None for the root of an epoch."""
        return self._views.finalization

    @property
    def is_over(self) -> bool:
        """Is the boundary block final? Then nothing is left to do in this epoch (rule 12)."""
        return self._views.is_last(self._views.root)

    def is_leader(self, view: View) -> bool:
        """Do we propose in this view?"""
        return self._settings.me == self._settings.validators.get_leader(self._epoch, view)

    def get_certificates(self, view: View) -> tuple[Certificate, ...]:
        """Return the newest finalization and what we hold of `view` and later, at most
        `MAX_LOOKBEHIND_VIEWS` views: the answer to somebody's `FetchCertificates`.
        """
        states = [state for state in self._views.get_open() if state.view >= view]
        newest = [] if self._views.finalization is None else [self._views.finalization]
        return (*newest, *(c for s in states[:MAX_LOOKBEHIND_VIEWS] for c in _get_sorted(s)))

    def step(self, event: Event, now_ms: int) -> tuple[Effect, ...]:
        """Take one event, return what to do about it, in order.

        Raises InvalidVote for a message that breaks a rule, and is then unchanged.
        """
        if self.is_over:
            return ()
        assert now_ms >= self._now, "the clock went back"
        assert (self._view == 0) == isinstance(event, Started), "Started comes first, and once"
        self._now = now_ms
        self._effects = []
        self._process(event)
        if not self.is_over:
            self._request_block()
            self._process_deadlines()
            self._set_timer()
        return tuple(self._effects)

    def _process(self, event: Event) -> None:
        match event:
            case Started():
                self._process_start()
            case WorkArrived():
                self._pacing.hurry(self._now)
            case TimerFired():
                self._timer_at = None  # deadlines are looked at after every event
            case ProposalReceived(proposal):
                self._process_proposal(proposal)
            case VoteReceived(vote):
                self._process_vote(vote)
            case CertificateReceived(certificate):
                self._process_certificate(certificate)
            case _:
                self._process_answer(event)

    def _process_answer(self, answer: Answer) -> None:
        match answer:
            case BlockBuilt(candidate):
                self._process_built(candidate)
            case BlockValidated(block):
                self._process_validated(block)
            case BlockRejected(block):
                self._process_rejected(block)
            case BlockFetched(candidate):
                self._process_fetched(candidate)
            case VoteSigned(vote):
                self._process_signed(vote)

    # -- entering a view ---------------------------------------------------------------------------
    def _process_start(self) -> None:
        """Enter the view after the highest certificate; say again what was said before."""
        entered = self._views.root_view
        for state in self._views.get_open():
            for kind in sorted(state.signed):
                self._effects.append(SignVote(state.signed[kind]))
            for certificate in _get_sorted(state):
                self._want_block_of(certificate)
                self._vote_to_finalize(state, certificate)
            entered = state.view if state.certificates else entered
        self._enter(View(entered + 1))
        self._finalize()

    def _enter(self, view: View) -> None:
        """Rule 2: enter a view and start its timer. Rules 5, 7 and 8 lead here."""
        assert view > self._view
        self._view = view
        self._pacing.enter(view, self._now)
        self._views.forget_votes(view)
        self._fetch_blocks()

    # -- proposing and notarizing ------------------------------------------------------------------
    def _request_block(self) -> None:
        """Rules 3 and 4: ask for a block to propose, or for the proposal to be validated."""
        state = self._views.open(self._view)
        if state.is_requested or state.signed or self._settings.me is None:
            return
        if state.proposal is None:
            self._request_proposal(state)
        elif self._views.is_extendable(self._view, state.proposal):
            self._request_validation(state, state.proposal)
        else:
            self._fetch_ancestry(state, state.proposal)

    def _request_proposal(self, state: ViewState) -> None:
        if not self.is_leader(self._view) or self._now < self._pacing.due_at:
            return
        parent = self._views.find_parent(self._view)
        if parent is None:
            self._want_branch(self._views.get_parent_view(self._view))
            if not state.is_fetching:
                state.is_fetching = True
                self._fetch_certificates()
            return
        self._pacing.expect(self._now)
        if self._views.is_last(parent):
            state.proposal = parent
            self._request_validation(state, parent)
        else:
            state.is_requested = True
            self._effects.append(Propose(self._epoch, self._view, parent))

    def _request_validation(self, state: ViewState, proposal: Candidate) -> None:
        """Have it executed, unless it is a boundary block that we voted for in an earlier view."""
        state.is_requested = True
        if self._views.has_notarized(proposal):
            self._process_validated(proposal.hash)
        else:
            self._effects.append(Validate(state.view, proposal))

    def _fetch_ancestry(self, state: ViewState, proposal: Candidate) -> None:
        """Ask for what the proposal needs: the parent's certificate, the gap's; and ancestors, but
        only below a certificate: one leader alone could name some without end.
        """
        base = get_base_hash(state.view, proposal)
        _, missing = self._views.find_branch(base)
        if missing is not None and self._views.is_certified(base):
            self._want(missing, state.view, (self._get_leader(state.view),))
        if not state.is_fetching:
            state.is_fetching = True
            self._fetch_certificates()

    def _process_built(self, candidate: Candidate) -> None:
        """Our own block is ready: to propose it is to vote for it (`Proposal`)."""
        assert candidate.epoch == self._epoch, "a block of another epoch"
        assert candidate.height <= self._settings.last_height, "a block after the boundary"
        if candidate.view != self._view or not self.is_leader(self._view):
            return
        state = self._views.open(self._view)
        if may_notarize(state) and self._views.is_extendable(self._view, candidate):
            self._views.candidates[candidate.hash] = candidate
            state.proposal = candidate
            self._sign(state, Kind.NOTARIZE, candidate.hash)
            self._pacing.restart(self._now)

    def _process_validated(self, block: Hash) -> None:
        """Rule 4: notarize, only in the current view, at most once, never after giving up."""
        state = self._views.open(self._view)
        candidate = state.proposal
        if candidate is None or candidate.hash != block:
            return
        if may_notarize(state) and self._views.is_extendable(self._view, candidate):
            self._sign(state, Kind.NOTARIZE, block)
            self._pacing.restart(self._now)

    def _process_rejected(self, block: Hash) -> None:
        """A broken block will never be notarized here: give the view up before the timer does."""
        state = self._views.open(self._view)
        if state.proposal is not None and state.proposal.hash == block and may_nullify(state):
            self._sign(state, Kind.NULLIFY, NO_HASH)

    def _process_proposal(self, proposal: Proposal) -> None:
        """Keep the leader's first proposal of a view; a second one is an offence of its votes."""
        candidate, vote, settings = proposal.candidate, proposal.vote, self._settings
        check_proposal(proposal, settings.validators, self._epoch, settings.last_height)
        if not self._views.is_relevant(proposal.view, self._view):
            return
        state = self._views.get(proposal.view)
        if state.votes.get((Kind.NOTARIZE, vote.signer)) != vote:
            check_vote(vote, settings.validators, settings.domain, settings.backend)
        state = self._views.open(proposal.view)
        if state.proposal is None:
            state.proposal = candidate
            self._views.candidates[candidate.hash] = candidate
        if proposal.view == self._view:
            self._pacing.expect(self._now)
        self._count(vote)
        self._process_fetched(candidate)

    # -- votes and certificates --------------------------------------------------------------------
    def _sign(self, state: ViewState, kind: Kind, block: Hash) -> None:
        """Rule 10: remember the vote before it can leave; the driver makes it durable."""
        if self._settings.me is None:
            return
        assert kind not in state.signed, "the rules in `views` let a second vote through"
        statement = Statement(self._epoch, state.view, kind, block)
        state.signed[kind] = statement
        self._effects.append(SignVote(statement))

    def _process_signed(self, vote: Vote) -> None:
        """Our own vote is on disk: send it and count it."""
        assert vote.signer == self._settings.me, "not our vote"
        statement = vote.statement
        if statement.view <= self._views.root_view:
            return
        state = self._views.open(statement.view)
        assert state.signed.get(statement.kind) == statement, "signed without being asked"
        self._broadcast_vote(vote)
        self._count(vote)

    def _broadcast_vote(self, vote: Vote) -> None:
        """Send our vote; with the block if it is how we propose."""
        said = vote.statement
        candidate = self._views.candidates.get(said.hash)
        is_proposal = said.kind == Kind.NOTARIZE and self.is_leader(said.view)
        self._broadcast(Proposal(candidate, vote) if is_proposal and candidate else vote)

    def _process_vote(self, vote: Vote) -> None:
        """Check a vote, cheap things first, and count it. Duplicates cost no signature check."""
        statement = vote.statement
        self._check_epoch(statement.epoch)
        if not self._views.is_relevant(statement.view, self._view):
            return
        state = self._views.get(statement.view)
        known = state.votes.get((statement.kind, vote.signer))
        certificate = state.certificates.get(statement.kind)
        if known == vote or (certificate is not None and certificate.statement == statement):
            return
        if known is not None and vote.signer in state.offenders:
            return  # one proof is enough; more would only cost signature checks
        settings = self._settings
        check_vote(vote, settings.validators, settings.domain, settings.backend)
        self._count(vote)

    def _count(self, vote: Vote) -> None:
        """Keep a checked vote, report it if it is an offence, certify if it completes a quorum."""
        statement = vote.statement
        if statement.view <= self._views.root_view:
            return
        state = self._views.open(statement.view)
        earlier = state.find_conflicting(vote)
        if earlier is not None and vote.signer not in state.offenders:
            state.offenders.add(vote.signer)
            self._effects.append(ReportOffence(earlier, vote))
        state.votes.setdefault((statement.kind, vote.signer), vote)
        votes = state.get_votes(statement)
        validators = self._settings.validators
        if statement.kind in state.certificates:
            return
        if validators.has_quorum(vote.signer for vote in votes):
            self._add(build_certificate(votes, validators, self._settings.backend))

    def _process_certificate(self, certificate: Certificate) -> None:
        """Check a certificate that came in, unless we hold it or are past it."""
        self._check_epoch(certificate.epoch)
        known = self._views.get(certificate.view).certificates.get(certificate.kind)
        is_past = certificate.view <= self._views.root_view
        if is_past and not self._views.contradicts_final(certificate):
            return
        if known is not None and known.statement == certificate.statement:
            return
        settings = self._settings
        check_certificate(certificate, settings.validators, settings.domain, settings.backend)
        (self._report_fork if is_past else self._add)(certificate)

    def _add(self, certificate: Certificate) -> None:
        """Rules 5, 7 and 8: store, pass on, vote to finalize, enter the next view, finalize."""
        state = self._views.open(certificate.view)
        for held in _get_sorted(state):
            if find_conflict(held, certificate) is not None:
                self._effects.append(ReportConflict(held, certificate))
        if certificate.kind in state.certificates:
            return
        state.certificates[certificate.kind] = certificate
        self._effects.append(PersistCertificate(certificate))
        self._vote_to_finalize(state, certificate)
        self._broadcast(certificate)
        if certificate.view >= self._view:
            self._enter(View(certificate.view + 1))
        self._want_block_of(certificate)
        self._finalize()

    def _vote_to_finalize(self, state: ViewState, certificate: Certificate) -> None:
        """Rule 5: a notarization that we did not give up on makes us vote to finalize."""
        if certificate.kind == Kind.NOTARIZE and may_finalize(state, certificate.hash):
            self._sign(state, Kind.FINALIZE, certificate.hash)

    # -- finalizing --------------------------------------------------------------------------------
    def _finalize(self) -> None:
        """Rule 8: finalize every certified block whose ancestors are all at hand."""
        for state in self._views.get_open():
            certificate = state.certificates.get(Kind.FINALIZE)
            if certificate is None or self.is_over:
                continue  # a boundary block may be final in two views: that is no fork
            branch, missing = self._views.find_branch(certificate.hash)
            if missing is not None:
                self._want(missing, state.view, self._get_signers(certificate))
                return
            if not branch or branch[0].parent != self._views.root.hash:
                self._report_fork(certificate)
                return
            self._views.finalize(branch[-1], certificate)
            self._effects.append(Finalize(tuple(branch), certificate))
            self._forget_wanted()
            self._relax()

    def _report_fork(self, certificate: Certificate) -> None:
        """A third of the power cheated. Told once; and once more with the proof, of one view."""
        ours, is_proof = self._views.finalization, self._views.contradicts_final(certificate)
        if ours is not None and is_proof not in self._told_forks:
            self._told_forks.add(is_proof)
            self._effects.append(ReportConflict(ours, certificate))

    def _relax(self) -> None:
        """If nothing has begun in this view, there may be no hurry any more."""
        state = self._views.get(self._view)
        is_idle = state.proposal is None and not state.is_requested and not state.signed
        if is_idle and self._now < self._pacing.expires_at:
            self._pacing.relax(self._now)

    # -- when nothing moves ------------------------------------------------------------------------
    def _process_deadlines(self) -> None:
        """Rule 6: give the view up when its time is over. Rule 9: then keep asking and telling."""
        if self._now < self._pacing.expires_at:
            return
        state = self._views.open(self._view)
        self._rebroadcast(state)
        if may_nullify(state):
            self._sign(state, Kind.NULLIFY, NO_HASH)
        self._pacing.restart(self._now)

    def _rebroadcast(self, state: ViewState) -> None:
        """Rule 9: our votes here, what brought us here, what is final; and ask for what lacks."""
        for kind in sorted(state.signed):
            vote = None if self._settings.me is None else state.votes.get((kind, self._settings.me))
            if vote is not None and Kind.NULLIFY in state.signed:
                self._broadcast(vote)
            elif vote is not None:
                self._broadcast_vote(vote)
        for certificate in _get_sorted(self._views.get(View(self._view - 1))):
            self._broadcast(certificate)
        if self._views.finalization is not None:
            self._broadcast(self._views.finalization)
        self._fetch_blocks()
        self._fetch_certificates()

    def _fetch_blocks(self) -> None:
        """Ask again for every missing block: with every view, and when nothing moves."""
        for block, (_, holders) in self._wanted.items():
            self._effects.append(FetchBlock(block, holders))

    def _fetch_certificates(self) -> None:
        self._effects.append(FetchCertificates(self._views.find_lack(self._view)))

    def _process_fetched(self, candidate: Candidate) -> None:
        """A block that was missing is stored."""
        if self._wanted.pop(candidate.hash, None) is None:
            return
        self._views.candidates[candidate.hash] = candidate
        self._finalize()

    def _want_block_of(self, certificate: Certificate) -> None:
        if certificate.kind != Kind.NULLIFY:
            self._want(certificate.hash, certificate.view, self._get_signers(certificate))

    def _want_branch(self, view: View) -> None:
        """Ask who certified the block of `view` for it, or for the ancestor of it that lacks."""
        for certificate in _get_sorted(self._views.get(view)):
            _, missing = self._views.find_branch(certificate.hash)
            if certificate.kind != Kind.NULLIFY and missing is not None:
                self._want(missing, view, self._get_signers(certificate))

    def _want(self, block: Hash, view: View, holders: tuple[int, ...]) -> None:
        """Ask for a block that a certificate or a proposal of `view` needs, unless we have it.

        Whoever else turns out to hold it is asked too: the first may be one that never answers.
        """
        known_view, known = self._wanted.get(block, (view, ()))
        if block in self._views.candidates or (known and set(holders) <= set(known)):
            return
        self._wanted[block] = max(known_view, view), tuple(sorted({*known, *holders}))
        self._effects.append(FetchBlock(block, holders))

    def _forget_wanted(self) -> None:
        root_view = self._views.root_view
        self._wanted = {b: wanted for b, wanted in self._wanted.items() if wanted[0] > root_view}

    # -- small things ------------------------------------------------------------------------------
    @property
    def _epoch(self) -> Epoch:
        return self._settings.epoch

    def _get_leader(self, view: View) -> int:
        return self._settings.validators.get_leader(self._epoch, view)

    def _get_signers(self, certificate: Certificate) -> tuple[int, ...]:
        return decode_bitmap(certificate.bitmap, len(self._settings.validators))

    def _check_epoch(self, epoch: Epoch) -> None:
        """Rule 12: votes and certificates of another epoch mean nothing here."""
        if epoch != self._epoch:
            raise InvalidVote("vote_epoch", f"of epoch {epoch}; this one is {self._epoch}")

    def _broadcast(self, message: Message) -> None:
        if self._settings.me is not None:
            self._effects.append(Broadcast(message))

    def _set_timer(self) -> None:
        state = self._views.get(self._view)
        is_waiting = self.is_leader(self._view) and not state.is_requested and not state.signed
        wake_at = self._pacing.expires_at
        if is_waiting and self._now < self._pacing.due_at:
            wake_at = min(wake_at, self._pacing.due_at)
        if wake_at != self._timer_at:
            self._timer_at = wake_at
            self._effects.append(SetTimer(wake_at))


def _get_sorted(state: ViewState) -> list[Certificate]:
    return [state.certificates[kind] for kind in sorted(state.certificates)]

"""What the machine remembers: one `ViewState` per open view, and the blocks above the final one.

The rules that decide are here, as functions of this memory alone; `simplex` decides when to ask
them. Numbers are those of facts/consensus.md, after Chan and Pass, eprint 2023/463, section 2.
Everything at or below the last final view is forgotten, so that memory stays small.
"""

from dataclasses import dataclass, field, replace

from ..errors import InvalidVote
from ..params import MAX_LOOKAHEAD_VIEWS, MAX_LOOKBEHIND_VIEWS
from ..types import Epoch, Hash, Height, View
from .certificates import Certificate
from .messages import Candidate, Proposal
from .validators import ValidatorSet
from .votes import Kind, Offence, Statement, Vote, find_offence

BLOCK_KINDS = (Kind.FINALIZE, Kind.NOTARIZE)


@dataclass(slots=True)
class ViewState:
    """One view: the leader's first proposal, everybody's votes, our own, and the certificates.

    A view may end with a notarization *and* a nullification; both are kept (rule 7).
    """

    view: View
    proposal: Candidate | None = None
    is_requested: bool = False
    """`Propose` or `Validate` went out."""
    is_fetching: bool = False
    votes: dict[tuple[Kind, int], Vote] = field(default_factory=dict)
    signed: dict[Kind, Statement] = field(default_factory=dict)
    certificates: dict[Kind, Certificate] = field(default_factory=dict)
    offenders: set[int] = field(default_factory=set)

    def get_certified_hash(self) -> Hash | None:
        """Return the block that this view notarized or finalized."""
        for kind in BLOCK_KINDS:
            if kind in self.certificates:
                return self.certificates[kind].hash
        return None

    def get_certified_hashes(self) -> set[Hash]:
        """Return the blocks that this view notarized or finalized: one, if few enough cheat."""
        return {self.certificates[kind].hash for kind in BLOCK_KINDS if kind in self.certificates}

    def get_votes(self, statement: Statement) -> list[Vote]:
        """Return the votes that say exactly this, in the order they came."""
        return [vote for vote in self.votes.values() if vote.statement == statement]

    def find_conflicting(self, vote: Vote) -> Vote | None:
        """Return an earlier vote of the same signer that it may not stand beside (rule 11)."""
        for kind in Kind:
            earlier = self.votes.get((kind, vote.signer))
            if earlier is not None and find_offence(earlier.statement, vote.statement):
                return earlier
        return None


def may_notarize(state: ViewState) -> bool:
    """Rule 4, the part about our own votes: once per view, and never after giving it up.

    That the parent is certified and the gap nullified is `Views.is_extendable`'s; that the block is
    valid and at hand is `BlockValidated`'s.
    """
    return not state.signed


def may_finalize(state: ViewState, block: Hash) -> bool:
    """Rule 5: not if we gave the view up, and not if we notarized another block in it."""
    own = state.signed.get(Kind.NOTARIZE)
    is_ours = own is None or own.hash == block
    return is_ours and Kind.NULLIFY not in state.signed and Kind.FINALIZE not in state.signed


def may_nullify(state: ViewState) -> bool:
    """Rule 6: never together with a finalize vote in the same view."""
    return Kind.FINALIZE not in state.signed and Kind.NULLIFY not in state.signed


def find_conflict(first: Certificate, second: Certificate) -> Offence | None:
    """Return what a third of the power did if both exist, or None. Same rule as for votes."""
    return find_offence(first.statement, second.statement)


def check_proposal(
    proposal: Proposal, validators: ValidatorSet, epoch: Epoch, last_height: Height
) -> None:
    """Rule 1, as far as consensus sees a block: it is the leader's, for that view, and signed.

    Rule 12: no block above the boundary, and only the boundary block is proposed again. The vote's
    signature is checked apart. Raises InvalidVote.
    """
    candidate, vote = proposal.candidate, proposal.vote
    if candidate.epoch != epoch:
        raise InvalidVote("proposal_epoch", f"a block of epoch {candidate.epoch}, not {epoch}")
    if candidate.height > last_height:
        raise InvalidVote("proposal_height", f"epoch {epoch} ends with block {last_height}")
    own = Statement(epoch, candidate.view, Kind.NOTARIZE, candidate.hash)
    is_again = candidate.height == last_height and proposal.view > candidate.view
    if vote.statement != (replace(own, view=proposal.view) if is_again else own):
        raise InvalidVote("proposal_vote", "the leader's vote is for something else")
    leader = validators.get_leader(epoch, proposal.view)
    maker = validators[validators.get_leader(epoch, candidate.view)].address
    if (vote.signer, candidate.proposer) != (leader, maker):
        raise InvalidVote("proposal_leader", f"validator {leader} leads view {proposal.view}")


def get_base_hash(view: View, candidate: Candidate) -> Hash:
    """Return what a proposal in `view` rests on: its parent, or itself if it is proposed again."""
    return candidate.hash if view > candidate.view else candidate.parent


class Views:
    """The open views and the blocks in them, above `root`, the last final block."""

    def __init__(self, epoch: Epoch, root: Candidate, last_height: Height) -> None:
        assert root.height <= last_height, "the epoch ended before its root"
        self.epoch, self.last_height = epoch, last_height
        self.root = root
        self.finalization: Certificate | None = None
        self.candidates: dict[Hash, Candidate] = {root.hash: root}
        self._states: dict[View, ViewState] = {}

    @property
    def root_view(self) -> View:
        """The view of the last final block, 0 if that block belongs to an earlier epoch."""
        return self.root.view if self.root.epoch == self.epoch else View(0)

    def is_last(self, block: Candidate) -> bool:
        """Is this a boundary block: one that ends the epoch once it is final?"""
        return block.height == self.last_height

    def open(self, view: View) -> ViewState:
        """Return the state of a view above the root, made if there was none."""
        assert view > self.root_view, "that view is closed"
        return self._states.setdefault(view, ViewState(view))

    def get(self, view: View) -> ViewState:
        """Return the state of a view, an empty one if nothing is known. Changes nothing."""
        return self._states.get(view) or ViewState(view)

    def get_open(self) -> list[ViewState]:
        """Return the open views, ascending."""
        return [self._states[view] for view in sorted(self._states)]

    def is_relevant(self, view: View, current: View) -> bool:
        """Are votes and proposals of this view worth keeping? Bounds what strangers can fill."""
        first = max(self.root_view + 1, current - MAX_LOOKBEHIND_VIEWS)
        return first <= view <= current + MAX_LOOKAHEAD_VIEWS

    def forget_votes(self, current: View) -> None:
        """Drop votes too old to complete anything, should nothing be finalized for long."""
        for state in self._states.values():
            if state.view < current - MAX_LOOKBEHIND_VIEWS:
                state.votes.clear()

    def find_gap(self, parent_view: int, view: View) -> View | None:
        """Rule 3: return the first view strictly between that has no nullification, or None."""
        for between in range(parent_view + 1, view):
            if Kind.NULLIFY not in self.get(View(between)).certificates:
                return View(between)
        return None

    def get_parent_view(self, view: View) -> View:
        """Return the highest view below `view` that certified a block, the root's at least."""
        certified = (s.view for s in self._states.values() if s.get_certified_hash() is not None)
        return max((below for below in certified if below < view), default=self.root_view)

    def find_parent(self, view: View) -> Candidate | None:
        """Rule 3: return the highest certified block below `view`, or None.

        None if a nullification between is missing, or the block itself or an ancestor of it is.
        """
        parent_view = self.get_parent_view(view)
        if self.find_gap(parent_view, view) is not None:
            return None
        certified = self.get(parent_view).get_certified_hash()
        if certified is None:
            return self.root
        _, missing = self.find_branch(certified)
        return self.candidates[certified] if missing is None else None

    def find_certified_view(self, block: Candidate, view: View) -> View | None:
        """Return the highest view below `view` that notarized or finalized this block, or None.

        A boundary block may be certified in several views, every other one only in its own.
        """
        if block.hash == self.root.hash:
            return self.root_view
        highest = view - 1 if self.is_last(block) else min(block.view, view - 1)
        lowest = max(block.view, self.root_view + 1)
        for below in range(highest, lowest - 1, -1):
            if block.hash in self.get(View(below)).get_certified_hashes():
                return View(below)
        return None

    def is_certified(self, block: Hash) -> bool:
        """Did an open view notarize or finalize this block? Then a quorum held all before it."""
        return any(block in state.get_certified_hashes() for state in self._states.values())

    def get_base(self, view: View, candidate: Candidate) -> Candidate | None:
        """Return what a proposal in `view` rests on: its parent, if that is at hand and one lower,
        or the boundary block itself if it is proposed again.
        """
        if view > candidate.view:
            return candidate if self.is_last(candidate) else None
        parent = self.candidates.get(candidate.parent)
        return parent if parent and candidate.height == parent.height + 1 else None

    def is_extendable(self, view: View, candidate: Candidate) -> bool:
        """Rule 4: what it rests on is certified and at hand with all before it, and every view
        between is nullified.

        Without this check a leader could fork off an old block: the mutant that lacks it
        breaks safety (facts/consensus.md, "Simulator").
        """
        base = self.get_base(view, candidate)
        if base is None:
            return False
        base_view = self.find_certified_view(base, view)
        if base_view is None or self.find_gap(base_view, view) is not None:
            return False
        _, missing = self.find_branch(base.hash)
        return missing is None

    def find_lack(self, view: View) -> View:
        """Return the first view that we lack a certificate of: that of what the proposal rests on,
        or a nullification above it. If none, `view` itself; if what it rests on is unknown, the
        first above the root.
        """
        known, lacking = self.get_parent_view(view), [view]
        proposal = self.get(view).proposal
        base = None if proposal is None else self.get_base(view, proposal)
        if proposal is not None and base is None:
            is_known = self.is_certified(get_base_hash(view, proposal))
            lacking += [] if is_known else [View(self.root_view + 1)]
        if base is not None:
            certified = self.find_certified_view(base, view)
            known = known if certified is None else min(known, certified)
            lacking += [base.view] if certified is None else []
        gap = self.find_gap(known, view)
        return min(lacking if gap is None else [gap, *lacking])

    def has_notarized(self, block: Candidate) -> bool:
        """Did we vote for this block, in whichever view? Then it was valid and is on disk."""
        own = (state.signed.get(Kind.NOTARIZE) for state in self._states.values())
        return any(said is not None and said.hash == block.hash for said in own)

    def contradicts_final(self, certificate: Certificate) -> bool:
        """Do this and the last finalization, both of one view, prove that a third cheated?"""
        final = self.finalization
        return final is not None and find_conflict(final, certificate) is not None

    def find_branch(self, tip: Hash) -> tuple[list[Candidate], Hash | None]:
        """Return the known blocks from `tip` down to above the root, oldest first, and the missing
        parent's hash. None missing: the branch reaches the root or a block no higher than it.
        """
        branch: list[Candidate] = []
        while tip != self.root.hash:
            block = self.candidates.get(tip)
            if block is None:
                return branch[::-1], tip
            if block.height <= self.root.height:
                break
            branch.append(block)
            tip = block.parent
        return branch[::-1], None

    def finalize(self, block: Candidate, certificate: Certificate) -> None:
        """Rule 8: move the root to `block` and forget every view up to the certificate's."""
        self.root, self.finalization = block, certificate
        self._states = {v: state for v, state in self._states.items() if v > certificate.view}
        kept = {h: c for h, c in self.candidates.items() if c.view > block.view}
        self.candidates = {block.hash: block, **kept}

"""What the machine remembers: one `ViewState` per open view, and the blocks above the final one.

The rules that decide are here, as functions of this memory alone; `simplex` decides when to ask
them. Numbers are those of facts/consensus.md, after Chan and Pass, eprint 2023/463, section 2.
Everything at or below the last final view is forgotten, so that memory stays small.
"""

from dataclasses import dataclass, field

from ..errors import InvalidVote
from ..params import MAX_LOOKAHEAD_VIEWS, MAX_LOOKBEHIND_VIEWS
from ..types import Epoch, Hash, View
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


def may_notarize(state: ViewState, candidate: Candidate) -> bool:
    """Rule 4, the part about our own votes: once per view, and never after giving it up.

    That the view is the current one, the parent certified and the gap nullified is
    `Views.is_extendable`'s; that the block is valid and at hand is `BlockValidated`'s.
    """
    return candidate.view == state.view and not state.signed


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


def check_proposal(proposal: Proposal, validators: ValidatorSet, epoch: Epoch) -> None:
    """Rule 1, as far as consensus sees a block: it is the leader's, for that view, and signed.

    The vote's signature is checked apart. Raises InvalidVote.
    """
    candidate, vote = proposal.candidate, proposal.vote
    if candidate.epoch != epoch:
        raise InvalidVote("proposal_epoch", f"a block of epoch {candidate.epoch}, not {epoch}")
    if vote.statement != Statement(epoch, candidate.view, Kind.NOTARIZE, candidate.hash):
        raise InvalidVote("proposal_vote", "the leader's vote is for something else")
    leader = validators.get_leader(epoch, candidate.view)
    if (vote.signer, candidate.proposer) != (leader, validators[leader].address):
        raise InvalidVote("proposal_leader", f"validator {leader} leads view {candidate.view}")


class Views:
    """The open views and the blocks in them, above `root`, the last final block."""

    def __init__(self, epoch: Epoch, root: Candidate) -> None:
        self.epoch = epoch
        self.root = root
        self.finalization: Certificate | None = None
        self.candidates: dict[Hash, Candidate] = {root.hash: root}
        self._states: dict[View, ViewState] = {}

    @property
    def root_view(self) -> View:
        """The view of the last final block, 0 if that block belongs to an earlier epoch."""
        return self.root.view if self.root.epoch == self.epoch else View(0)

    def get_view(self, block: Candidate) -> View:
        """Return a block's view in this epoch, 0 if it is the root from the epoch before."""
        return self.root_view if block.hash == self.root.hash else block.view

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

    def is_certified(self, block: Candidate) -> bool:
        """Is this the root, or a block that its view notarized or finalized?"""
        certificates = self.get(block.view).certificates
        hashes = [certificates[kind].hash for kind in BLOCK_KINDS if kind in certificates]
        return block.hash == self.root.hash or block.hash in hashes

    def is_extendable(self, candidate: Candidate) -> bool:
        """Rule 4: its parent is certified, all before it at hand, every view between nullified.

        Without this check a leader could fork off an old block: the mutant that lacks it
        breaks safety (facts/consensus.md, "Simulator").
        """
        parent = self.candidates.get(candidate.parent)
        if parent is None or candidate.height != parent.height + 1:
            return False
        parent_view = self.get_view(parent)
        if not self.root_view <= parent_view < candidate.view:
            return False
        if not self.is_certified(parent) or self.find_gap(parent_view, candidate.view) is not None:
            return False
        _, missing = self.find_branch(candidate.parent)
        return missing is None

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
        """Rule 8: move the root to `block` and forget every view up to its own."""
        self.root, self.finalization = block, certificate
        self._states = {v: state for v, state in self._states.items() if v > block.view}
        kept = {h: c for h, c in self.candidates.items() if c.view > block.view}
        self.candidates = {block.hash: block, **kept}

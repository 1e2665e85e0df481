"""What goes into the consensus machine (events), what comes out of it (effects), and what travels.

The machine never acts: `step(event, now_ms)` returns effects, and the driver performs them *in
order*. This page is the whole contract between the two. A machine lives for one epoch:

    Simplex(Settings(domain, epoch, last_height, validators, me, timeout_ms, heartbeat_ms), root)
    Simplex.recover(settings, root, finalization, statements, certificates, candidates)
    machine.step(event, now_ms) -> tuple[Effect, ...]
    machine.get_certificates(view) -> tuple[Certificate, ...]      # answers FetchCertificates
    machine.view, machine.root                                     # where it is; what is final
    machine.is_over                                                # the last block is final

    driver                                 machine
    ------                                 -------
    Started ------------------------------>  SetTimer, SignVote again for every vote of before
    WorkArrived, TimerFired -------------->  Propose (if it leads this view)
      build, store, BlockBuilt ----------->  SignVote(notarize)
        sign, VoteSigned ----------------->  Broadcast(Proposal)
    ProposalReceived --------------------->  Validate
      execute, fsync, BlockValidated ----->  SignVote(notarize)
        sign, VoteSigned ----------------->  Broadcast(Vote)
    VoteReceived, CertificateReceived ---->  at a quorum: PersistCertificate, SignVote(finalize),
                                             Broadcast(Certificate), SetTimer of the next view
                                         ->  at a quorum of those: Finalize

What the driver promises:

1. **A vote exists only after it is on disk.** `SignVote` names a statement; the signer records it
   (fsync), refuses it if it conflicts with an earlier one (`votes.check_signable`), signs, and the
   driver feeds `VoteSigned` back. Nothing is broadcast before that, so nothing can be unsaid.
   Signing the same statement again is fine and happens after every restart.
2. **A block that gets our vote is on disk.** Before `BlockBuilt` and `BlockValidated` the block and
   every blob it needs are fsynced: so a notarization proves that a quorum holds them.
3. **A `Candidate` is derived from the bytes**: the hash is computed, never believed.
4. `Propose` and `Validate` are requests that may take long. Serve them when no event is waiting,
   answer at most once each, and before a `TimerFired` of the meantime; an answer that comes too
   late is ignored. To decline (no blob, no disk space) is to not answer: the view then times out.
5. One timer: a later `SetTimer` replaces an earlier one. A `TimerFired` too many does no harm.
6. `now_ms` comes from a monotonic clock and never goes back.

`step` raises `InvalidVote` if a message from outside breaks a rule; the machine is then unchanged,
and the driver may hold it against whoever sent it.

The epoch ends with the block at `last_height`, its *boundary block*. Once that is final the machine
`is_over`: `step` does nothing more, `get_certificates` still answers, and the driver makes the
machine of the next epoch with the boundary block as its root. Messages of a later epoch say that
the others are further: fetch the finalized blocks, and recover.
"""

from dataclasses import dataclass

from ..types import Address, Epoch, Hash, Height, View
from .certificates import Certificate
from .votes import Statement, Vote


@dataclass(frozen=True, slots=True)
class Candidate:
    """What consensus needs to know of a block: its place in the tree and who made it."""

    hash: Hash
    parent: Hash
    height: Height
    epoch: Epoch
    view: View
    proposer: Address


@dataclass(frozen=True, slots=True)
class Proposal:
    """A leader's block, signed by being voted for: `vote` is the leader's own notarize vote.

    So two proposals in one view are two notarize votes, which is already an offence. On the wire
    the block itself stands in for the candidate. The vote's view is the block's own, or a later one
    if a boundary block is proposed again (`simplex`, "Epochs").
    """

    @property
    def view(self) -> View:
        """The view that is proposed in."""
        return self.vote.statement.view

    candidate: Candidate
    vote: Vote


Message = Proposal | Vote | Certificate
"""What validators send to each other."""


# -- events: what the driver tells the machine -----------------------------------------------------
@dataclass(frozen=True, slots=True)
class Started:
    """Once, before anything else, on a new or a recovered machine."""


@dataclass(frozen=True, slots=True)
class WorkArrived:
    """The mempool holds transactions that the best notarized chain does not include.

    Repeat it as often as you like, at least after each `Finalize` while it is true. It makes the
    leader propose now instead of at the heartbeat, and the others expect that.
    """


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time of the last `SetTimer` has come."""


@dataclass(frozen=True, slots=True)
class BlockBuilt:
    """The answer to `Propose`: our own block, executed, fsynced with its blobs."""

    candidate: Candidate


@dataclass(frozen=True, slots=True)
class BlockValidated:
    """The answer yes to `Validate`: it obeys every rule; it and its blobs are fsynced."""

    hash: Hash


@dataclass(frozen=True, slots=True)
class BlockRejected:
    """The answer no to `Validate`: a rule is broken for good, not merely a blob missing."""

    hash: Hash


@dataclass(frozen=True, slots=True)
class BlockFetched:
    """The answer to `FetchBlock`: stored, not yet executed."""

    candidate: Candidate


@dataclass(frozen=True, slots=True)
class VoteSigned:
    """The answer to `SignVote`: our own vote, on disk."""

    vote: Vote


@dataclass(frozen=True, slots=True)
class ProposalReceived:
    """A proposal came in and its block is stored, not yet executed."""

    proposal: Proposal


@dataclass(frozen=True, slots=True)
class VoteReceived:
    """Somebody's vote came in."""

    vote: Vote


@dataclass(frozen=True, slots=True)
class CertificateReceived:
    """A certificate came in, broadcast or fetched."""

    certificate: Certificate


Answer = BlockBuilt | BlockValidated | BlockRejected | BlockFetched | VoteSigned
Event = (
    Started
    | WorkArrived
    | TimerFired
    | ProposalReceived
    | VoteReceived
    | CertificateReceived
    | Answer
)


# -- effects: what the machine asks of the driver --------------------------------------------------
@dataclass(frozen=True, slots=True)
class SetTimer:
    """Send `TimerFired` at `at_ms`, and forget the timer before."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class Propose:
    """Build a block of `view` on `parent`, even without transactions; answer `BlockBuilt`."""

    epoch: Epoch
    view: View
    parent: Candidate


@dataclass(frozen=True, slots=True)
class Validate:
    """Execute this block and answer. Every ancestor back to the finalized one is at hand.

    `view` is the one that waits for the answer: later than the block's own if it is a boundary
    block that is proposed again.
    """

    view: View
    candidate: Candidate


@dataclass(frozen=True, slots=True)
class SignVote:
    """Record, fsync, sign, and answer `VoteSigned` (promise 1). Do this without delay."""

    statement: Statement


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Send to every other validator. Losing it is allowed: it is sent again while it matters."""

    message: Message


@dataclass(frozen=True, slots=True)
class PersistCertificate:
    """Store it for `Simplex.recover`. Losing the newest costs time, never safety."""

    certificate: Certificate


@dataclass(frozen=True, slots=True)
class FetchBlock:
    """Ask the validators at these places for the block, and answer `BlockFetched`."""

    hash: Hash
    holders: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FetchCertificates:
    """Ask others for their certificates of `view` and later (they answer `get_certificates`)."""

    view: View


@dataclass(frozen=True, slots=True)
class Finalize:
    """These blocks are final, oldest first; the certificate is the last one's and covers all.

    Each extends the one before, the first the last finalized. Execute those that never were.
    """

    blocks: tuple[Candidate, ...]
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class ReportOffence:
    """A validator signed both: evidence for slashing (rule 11)."""

    first: Vote
    second: Vote


@dataclass(frozen=True, slots=True)
class ReportConflict:
    """Two certificates that cannot both exist unless a third of the power cheated. Alarm."""

    first: Certificate
    second: Certificate


Effect = (
    SetTimer
    | Propose
    | Validate
    | SignVote
    | Broadcast
    | PersistCertificate
    | FetchBlock
    | FetchCertificates
    | Finalize
    | ReportOffence
    | ReportConflict
)

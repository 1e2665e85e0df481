"""One simulated validator: the driver of chain/consensus/messages.py on a disk that loses things.

Every promise of the driver is kept here; `tests.simulation.mutants` breaks them one at a time.
"""

from collections import deque
from dataclasses import dataclass

from steelyard.chain.bls import Signature
from steelyard.chain.consensus.certificates import Certificate, check_certificate
from steelyard.chain.consensus.messages import (
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
)
from steelyard.chain.consensus.simplex import Settings, Simplex
from steelyard.chain.consensus.votes import Kind, Statement, Vote, compute_signing_root
from steelyard.chain.errors import InvalidVote
from steelyard.chain.types import Epoch
from tests.consensus.makers import (
    BACKEND,
    DOMAIN,
    EPOCH,
    ROOT,
    make_block,
    make_secret,
)

from .disk import JournalDisk, Segment
from .epochs import get_account
from .oracle import Violation, check_clean

MAX_EARLY = 200
SEGMENT_PAUSE_MS = 200


class Crash(Exception):
    """The process ended before its next effect."""


def wrap(message: Message) -> Event:
    match message:
        case Proposal():
            return ProposalReceived(message)
        case Vote():
            return VoteReceived(message)
        case Certificate():
            return CertificateReceived(message)


@dataclass(frozen=True, slots=True)
class Status:
    """Somebody says in which epoch it is."""

    epoch: Epoch


Incoming = Event | Segment | Status


def get_epoch(event: Incoming) -> Epoch | None:
    """Return the epoch that a message is about; None if it is none that names one."""
    match event:
        case ProposalReceived(Proposal(_, vote)) | VoteReceived(vote):
            return vote.statement.epoch
        case CertificateReceived(certificate):
            return certificate.epoch
    return None


class SimulatedHost:
    """An honest validator. `slot` is its place among the hosts: twins share `me`, never a slot.

    `me` is its account in every epoch; `place` is its place in the set of this one, or None.
    """

    is_honest = True

    def __init__(self, world, slot: int, me: int) -> None:  # type: ignore[no-untyped-def]
        self.world, self.slot, self.me = world, slot, me
        self.disk = JournalDisk()
        self.life = self.performed = 0
        self.crash_at: int | None = None
        self.is_down = False
        self.timer: tuple[int, int] | None = None
        self.queue: deque[tuple[Event, bool]] = deque()
        self.early: deque[tuple[Event, SimulatedHost]] = deque(maxlen=MAX_EARLY)
        """Messages of the next epoch, which may overtake the end of this one."""
        self.asked_at: dict[int, int] = {}
        self.final: list[Segment] = []
        self.tip, self.settings = ROOT, world.make_settings(me, EPOCH, world.epochs.first)

    @property
    def epoch(self) -> Epoch:
        return self.settings.epoch

    @property
    def place(self) -> int | None:
        return self.settings.me

    # -- life and death ----------------------------------------------------------------------------
    def start(self) -> None:
        self.is_down = False
        self.final = self.disk.finals.read()
        self.tip = self.final[-1].blocks[-1] if self.final else ROOT
        self.run_machine()

    def run_machine(self) -> None:
        """Begin with what is on disk: after a crash, in a new epoch, and after catching up."""
        self.life += 1
        self.queue.clear()
        disk = self.disk
        self.settings = self.compute_settings()
        self.machine = Simplex.recover(
            self.settings,
            self.tip,
            finalization=self.final[-1].certificate if self.final else None,
            statements=disk.statements.read(),
            certificates=disk.certificates.read(),
            candidates=disk.blocks.read(),
        )
        self.feed(Started())
        early = list(self.early)
        self.early.clear()
        for event, sender in early:
            self.receive(event, sender)

    def compute_settings(self) -> Settings:
        """Return those of the epoch of the next block: its set follows from the boundary before."""
        epochs = self.world.epochs
        epoch = epochs.compute_epoch(self.tip.height + 1)
        if epoch == EPOCH:
            return self.world.make_settings(self.me, epoch, epochs.first)
        height = epochs.get_last_height(epoch - 1)
        blocks = (block for segment in reversed(self.final) for block in reversed(segment.blocks))
        boundary = next(block for block in blocks if block.height == height)
        return self.world.make_settings(self.me, epoch, epochs.get_next(boundary))

    def crash(self) -> None:
        self.life += 1
        self.is_down, self.crash_at = True, None
        self.queue.clear()
        self.disk.lose(self.world.random)
        life = self.life
        self.world.at(self.world.get_restart_ms(), lambda: self.life == life and self.start())

    def restore_certificates(self) -> None:
        """Have what a node would not have lost."""
        for certificate in self.disk.restore():
            if certificate.epoch == self.epoch:
                self.feed(CertificateReceived(certificate))

    # -- events and effects ------------------------------------------------------------------------
    def feed(self, event: Event, *, is_trusted: bool = True) -> None:
        """Take an event; `is_trusted`: it comes from ourselves or from an honest validator."""
        if self.is_down:
            return
        self.queue.append((event, is_trusted))
        if len(self.queue) > 1:
            return
        try:
            while self.queue:
                life = self.life
                self.take(*self.queue[0])
                if self.life != life:
                    return
                self.queue.popleft()
        except Crash:
            self.crash()

    def take(self, event: Event, is_trusted: bool) -> None:
        self.world.trace_event(self.slot, event)
        for effect in self.step(event, is_trusted):
            self.performed += 1
            if self.performed == self.crash_at:
                self.tear(effect)
                raise Crash
            self.perform(effect)
        if self.machine.is_over:
            self.run_machine()

    def step(self, event: Event, is_trusted: bool) -> tuple[Effect, ...]:
        try:
            return self.machine.step(event, self.world.now)
        except InvalidVote as error:
            check_clean(not is_trusted, "honest_refused", f"{self.me} refused {event}: {error}")
            return ()
        except AssertionError as error:
            raise Violation("assertion", f"{self.me} at {event}: {error!r}") from error

    def tear(self, effect: Effect) -> None:
        """The crash comes during this effect: written or not, fsynced or not, but never sent."""
        match effect:
            case SignVote(statement):
                step = self.world.random.randrange(3)
                if step > 0:
                    self.disk.statements.write(statement)
                if step > 1:
                    self.disk.statements.sync()
                    self.world.oracle.witness(self, statement)
            case PersistCertificate(certificate):
                self.disk.certificates.write(certificate)

    def perform(self, effect: Effect) -> None:
        match effect:
            case SignVote(statement):
                self.queue.append((VoteSigned(self.sign(statement)), True))
            case Propose(_, view, parent):
                self.answer_later(lambda: self.build(view, parent))
            case Validate(_, candidate):
                self.world.oracle.check_ancestry(self, candidate)
                self.answer_later(lambda: self.validate(candidate))
            case PersistCertificate(certificate):
                self.disk.certificates.write(certificate)
            case Finalize(blocks, certificate):
                self.finalize(Segment(blocks, certificate))
            case SetTimer(at_ms):
                self.set_timer(at_ms)
            case ReportOffence() | ReportConflict():
                self.report(effect)
            case _:
                self.talk(effect)

    def report(self, effect: ReportOffence | ReportConflict) -> None:
        check_clean(
            isinstance(effect, ReportOffence), "conflicting_certificates", f"{self.me}: {effect}"
        )
        self.world.oracle.check_report(self, effect.first, effect.second)

    def talk(self, effect: Effect) -> None:
        match effect:
            case Broadcast(message):
                self.broadcast(message)
            case FetchBlock(block, holders):
                accounts = [get_account(self.settings.validators[place]) for place in holders]
                self.world.request(self.slot, accounts, lambda host: host.serve_block(block))
            case FetchCertificates(view):
                everybody, epoch = range(len(self.world.powers)), self.epoch
                ask = self.world.request
                ask(self.slot, everybody, lambda host: host.serve_certificates(epoch, view))

    def answer_later(self, answer) -> None:  # type: ignore[no-untyped-def]
        life = self.life
        pause = self.world.get_execution_ms()
        self.world.at(pause, lambda: self.life == life and self.feed(answer()))

    def set_timer(self, at_ms: int) -> None:
        timer = self.timer = (at_ms, self.life)
        pause = max(0, at_ms - self.world.now)
        self.world.at(pause, lambda: self.timer == timer and self.fire())

    def fire(self) -> None:
        if not self.is_down and self.timer is not None and self.timer[1] == self.life:
            self.feed(TimerFired())

    def broadcast(self, message: Message) -> None:
        self.world.broadcast(self.slot, message)

    def sign(self, statement: Statement) -> Vote:
        """Rule 10: on disk and fsynced, then signed, then sent."""
        self.disk.statements.write(statement)
        self.disk.statements.sync()
        self.world.oracle.witness(self, statement)
        return self.make_vote(statement)

    def make_vote(self, statement: Statement) -> Vote:
        assert self.place is not None, "only members vote"
        root = compute_signing_root(statement, DOMAIN)
        secret = make_secret(self.me)
        return Vote(statement, self.place, Signature(BACKEND.sign(secret, root, b"")))

    def make_block(self, view: int, parent: Candidate) -> Candidate:
        salt = self.world.make_salt()
        return make_block(self.settings.validators, parent, view, salt, self.epoch)

    def build(self, view: int, parent: Candidate) -> Event:
        block = self.make_block(view, parent)
        self.disk.put_block(block)
        self.disk.sync_store()
        self.world.oracle.proposed(block)
        return BlockBuilt(block)

    def validate(self, candidate: Candidate) -> Event:
        if candidate.hash in self.world.oracle.invalid:
            return BlockRejected(candidate.hash)
        self.disk.put_block(candidate)
        self.disk.sync_store()
        return BlockValidated(candidate.hash)

    def finalize(self, segment: Segment) -> None:
        self.world.oracle.check_final(self, segment)
        self.commit(segment)

    def commit(self, segment: Segment) -> None:
        self.tip = segment.blocks[-1]
        self.final.append(segment)
        self.disk.finals.write(segment)

    # -- from the others ---------------------------------------------------------------------------
    def receive(self, event: Incoming, sender: "SimulatedHost") -> None:
        if self.is_down:
            return
        match event:
            case Segment():
                self.catch_up(event, sender)
            case Status(epoch):
                if epoch > self.epoch:
                    self.ask_for_segment(sender)
            case _:
                self.hear(event, sender)

    def hear(self, event: Event, sender: "SimulatedHost") -> None:
        """Take what is for the machine, in its epoch; keep what is for the next one."""
        epoch = get_epoch(event)
        if epoch is not None and epoch > self.epoch:
            if epoch == self.epoch + 1:
                self.early.append((event, sender))
            self.ask_for_segment(sender)
            return
        match event:  # the disk may still lose the block
            case ProposalReceived(Proposal(candidate, _)) | BlockFetched(candidate):
                self.disk.put_block(candidate)
        self.world.oracle.delivered(self, event)
        self.feed(event, is_trusted=sender.is_honest and epoch in (None, self.epoch))

    def ask_for_segment(self, sender: "SimulatedHost") -> None:
        """Somebody is in a later epoch: ask it for what is final, now and then."""
        if self.asked_at.get(sender.slot, -SEGMENT_PAUSE_MS) + SEGMENT_PAUSE_MS <= self.world.now:
            self.asked_at[sender.slot] = self.world.now
            height = self.tip.height + 1
            self.world.request(self.slot, [sender.me], lambda host: host.serve_segment(height))

    def catch_up(self, segment: Segment, sender: "SimulatedHost") -> None:
        """Take final blocks from somebody, and go on with what comes after them."""
        new = Segment(
            tuple(block for block in segment.blocks if block.height > self.tip.height),
            segment.certificate,
        )
        if not new.blocks or new.blocks[0].height != self.tip.height + 1:
            return
        try:
            self.check_segment(new)
        except InvalidVote as error:
            check_clean(not sender.is_honest, "honest_refused", f"{self.me} refused {new}: {error}")
            return
        self.world.trace_segment(self.slot, new)
        for block in new.blocks:
            self.disk.put_block(block)
        self.finalize(new)
        self.run_machine()
        self.asked_at.clear()
        self.ask_for_segment(sender)

    def check_segment(self, segment: Segment) -> None:
        """Do these blocks follow ours, in this epoch, under a certificate? Raises InvalidVote."""
        parent, certificate = self.tip, segment.certificate
        for block in segment.blocks:
            if (block.parent, block.height, block.epoch) != (
                parent.hash, parent.height + 1, self.epoch,
            ):  # fmt: skip
                raise InvalidVote("segment_link", f"{block} does not follow {parent}")
            parent = block
        said = (certificate.kind, certificate.epoch, certificate.hash)
        if said != (Kind.FINALIZE, self.epoch, parent.hash):
            raise InvalidVote("segment_certificate", f"{certificate} is not about {parent}")
        check_certificate(certificate, self.settings.validators, DOMAIN, BACKEND)

    def is_deaf_to(self, sender: "SimulatedHost") -> bool:
        return False

    def serve_block(self, block: bytes) -> list[Incoming]:
        known = self.disk.index.get(block)
        return [] if known is None or self.is_down else [BlockFetched(known)]

    def serve_certificates(self, epoch: int, view: int) -> list[Incoming]:
        """Return them; to somebody in an epoch that is over, say that it is."""
        if self.is_down or epoch != self.epoch:
            return [] if self.is_down or epoch > self.epoch else [Status(self.epoch)]
        return [CertificateReceived(c) for c in self.machine.get_certificates(view)]

    def serve_segment(self, height: int) -> list[Incoming]:
        """Return the final block of this height and what became final with it."""
        if self.is_down:
            return []
        return [s for s in self.final if s.blocks[0].height <= height <= s.blocks[-1].height]

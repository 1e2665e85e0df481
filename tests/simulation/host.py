"""One simulated validator: the driver of chain/consensus/messages.py on a disk that loses things.

Every promise of the driver is kept here; `tests.simulation.mutants` breaks them one at a time.
"""

from collections import deque

from steelyard.chain.bls import Signature
from steelyard.chain.consensus.certificates import Certificate
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
from steelyard.chain.consensus.simplex import Simplex
from steelyard.chain.consensus.votes import Statement, Vote, compute_signing_root
from steelyard.chain.errors import InvalidVote
from tests.consensus.simulation import BACKEND, CHAIN_ID, Crash, make_block, make_secret

from .disk import JournalDisk
from .oracle import Violation, check_clean


def wrap(message: Message) -> Event:
    match message:
        case Proposal():
            return ProposalReceived(message)
        case Vote():
            return VoteReceived(message)
        case Certificate():
            return CertificateReceived(message)


def make_signature(me: int, statement: Statement) -> Vote:
    root = compute_signing_root(statement, CHAIN_ID)
    return Vote(statement, me, Signature(BACKEND.sign(make_secret(me), root, b"")))


class SimulatedHost:
    """An honest validator. `slot` is its place among the hosts: twins share `me`, never a slot."""

    is_honest = True

    def __init__(self, world, slot: int, me: int) -> None:  # type: ignore[no-untyped-def]
        self.world, self.slot, self.me = world, slot, me
        self.settings = world.make_settings(me)
        self.disk = JournalDisk()
        self.life = self.performed = 0
        self.crash_at: int | None = None
        self.is_down = False
        self.timer: tuple[int, int] | None = None
        self.queue: deque[tuple[Event, bool]] = deque()

    # -- life and death ----------------------------------------------------------------------------
    def start(self) -> None:
        self.life += 1
        self.is_down = False
        disk = self.disk
        self.tip, certificate = disk.get_final()
        self.machine = Simplex.recover(
            self.settings,
            self.tip,
            finalization=certificate,
            statements=disk.statements.read(),
            certificates=disk.certificates.read(),
            candidates=disk.blocks.read(),
        )
        self.feed(Started())

    def crash(self) -> None:
        self.life += 1
        self.is_down, self.crash_at = True, None
        self.queue.clear()
        self.disk.lose(self.world.random)
        life = self.life
        pause = self.world.random.randrange(20, 2_000)
        self.world.at(pause, lambda: self.life == life and self.start())

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
                self.take(*self.queue[0])
                self.queue.popleft()
        except Crash:
            self.crash()

    def take(self, event: Event, is_trusted: bool) -> None:
        self.world.trace_event(self.slot, event)
        try:
            effects = self.machine.step(event, self.world.now)
        except InvalidVote as error:
            check_clean(not is_trusted, "honest_refused", f"{self.me} refused {event}: {error}")
            return
        except AssertionError as error:
            raise Violation("assertion", f"{self.me} at {event}: {error!r}") from error
        for effect in effects:
            self.performed += 1
            if self.performed == self.crash_at:
                self.tear(effect)
                raise Crash
            self.perform(effect)

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
                self.finalize(blocks, certificate)
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
        self.world.oracle.check_report(effect.first, effect.second)

    def talk(self, effect: Effect) -> None:
        match effect:
            case Broadcast(message):
                self.broadcast(message)
            case FetchBlock(block, holders):
                self.world.request(self.slot, holders, lambda host: host.serve_block(block))
            case FetchCertificates(view):
                everybody = range(len(self.world.powers))
                ask = self.world.request
                ask(self.slot, everybody, lambda host: host.serve_certificates(view))

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
        return make_signature(self.me, statement)

    def build(self, view: int, parent: Candidate) -> Event:
        block = make_block(self.settings.validators, parent, view, self.world.make_salt())
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

    def finalize(self, blocks: tuple[Candidate, ...], certificate: Certificate) -> None:
        self.world.oracle.check_final(self, blocks, certificate)
        self.tip = blocks[-1]
        self.disk.finals.write((self.tip, certificate))

    # -- from the others ---------------------------------------------------------------------------
    def receive(self, event: Event, is_trusted: bool) -> None:
        """Store a block before the machine hears of it; the disk may still lose it."""
        if self.is_down:
            return
        match event:
            case ProposalReceived(Proposal(candidate, _)) | BlockFetched(candidate):
                self.disk.put_block(candidate)
        self.world.oracle.delivered(self, event)
        self.feed(event, is_trusted=is_trusted)

    def is_deaf_to(self, sender: "SimulatedHost") -> bool:
        return False

    def serve_block(self, block: bytes) -> list[Event]:
        known = self.disk.index.get(block)
        return [] if known is None or self.is_down else [BlockFetched(known)]

    def serve_certificates(self, view: int) -> list[Event]:
        if self.is_down:
            return []
        return [CertificateReceived(c) for c in self.machine.get_certificates(view)]

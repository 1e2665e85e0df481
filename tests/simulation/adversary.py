"""Validators that cheat. They share what they know: `World.plots`, and which half hears what."""

from dataclasses import replace

from steelyard.chain.consensus.certificates import Certificate, encode_bitmap
from steelyard.chain.consensus.messages import (
    Broadcast,
    Candidate,
    CertificateReceived,
    Effect,
    Event,
    Finalize,
    Message,
    Proposal,
    ProposalReceived,
    Propose,
    ReportConflict,
    ReportOffence,
    SignVote,
    Validate,
    VoteSigned,
)
from steelyard.chain.consensus.votes import NO_HASH, Kind, Statement
from steelyard.chain.errors import InvalidVote
from steelyard.chain.types import Epoch, Hash, Height, View
from tests.consensus.simulation import BACKEND, CHAIN_ID, EPOCH, ROOT, make_block, make_secret

from .host import SimulatedHost, compute_signing_root, make_signature, wrap
from .scenario import Role

PAST = Epoch(EPOCH - 1)


class Adversary(SimulatedHost):
    """Follows the others with a machine of its own, in order to know when to cheat."""

    is_honest = False

    def take(self, event: Event, is_trusted: bool) -> None:
        self.world.trace_event(self.slot, event)
        try:
            effects = self.machine.step(event, self.world.now)
        except (InvalidVote, AssertionError):
            return
        for effect in effects:
            self.perform(effect)

    def perform(self, effect: Effect) -> None:
        match effect:
            case SignVote(statement):
                self.queue.append((VoteSigned(make_signature(self.me, statement)), True))
            case Finalize(blocks, certificate):
                self.tip = blocks[-1]
                self.disk.finals.write((self.tip, certificate))
            case ReportOffence() | ReportConflict():
                pass
            case _:
                super().perform(effect)

    def say(self, to: int, view: int, kind: Kind, block: bytes = NO_HASH) -> None:
        statement = Statement(EPOCH, View(view), kind, Hash(block))
        self.world.send(self.slot, to, wrap(make_signature(self.me, statement)))


class Silent(Adversary):
    """Says nothing and serves nothing."""

    def perform(self, effect: Effect) -> None:
        if not isinstance(effect, Broadcast | Propose | Validate):
            super().perform(effect)

    def serve_block(self, block: bytes) -> list[Event]:
        return []

    def serve_certificates(self, view: int) -> list[Event]:
        return []


class Twin(Adversary):
    """One of two machines with the same key; each hears and talks to one half of the others."""

    def is_deaf_to(self, sender: SimulatedHost) -> bool:
        return self.get_side(sender.me) != self.slot % 2 and self.world.random.random() < 0.8

    def get_side(self, me: int) -> int:
        """The halves change every two seconds."""
        return (me + (self.world.now // 2_000) * (me % 3)) % 2

    def broadcast(self, message: Message) -> None:
        for to in range(len(self.world.powers)):
            if self.get_side(to) == self.slot % 2:
                self.world.send(self.slot, to, wrap(message))

    def build(self, view: int, parent: Candidate) -> Event:
        return super().build(view, parent)


class Equivocator(Adversary):
    """As a leader, shows each half another block; as a voter, votes for all of them and none."""

    rushed = 0

    def perform(self, effect: Effect) -> None:
        match effect:
            case Propose(_, view, parent):
                self.scheme(view, parent)
            case Broadcast(message):
                if isinstance(message, Certificate) and self.world.random.random() < 0.3:
                    self.world.send(self.slot, self.pick_victim(), wrap(message))
            case Validate():
                pass
            case _:
                super().perform(effect)

    def serve_block(self, block: bytes) -> list[Event]:
        """Half of the blocks it never serves."""
        return super().serve_block(block) if block[0] % 2 else []

    def pick_victim(self) -> int:
        return self.world.random.randrange(len(self.world.powers))

    def get_older(self, view: View) -> list[Candidate]:
        """Return the blocks below `view`, from low to high."""
        older = [b for b in self.disk.index.values() if b.view < view and b.epoch == EPOCH]
        return [ROOT, *sorted(older, key=lambda block: block.view)]

    def rush(self) -> None:
        """Propose at once on entering a view, before what is notarized can become final."""
        view = self.machine.view
        if self.machine.is_leader(view) and view > self.rushed:
            self.rushed = view
            if self.world.random.random() < 0.6:
                self.scheme(view, self.get_older(view)[-1])

    def take(self, event: Event, is_trusted: bool) -> None:
        super().take(event, is_trusted)
        self.rush()

    def scheme(self, view: View, parent: Candidate) -> None:
        """Lead: two blocks, one that extends what it may not, or one kept from a victim."""
        random = self.world.random
        older = self.get_older(view)
        on = random.choice([parent, *older[-3:], self.tip]) if random.random() < 0.6 else parent
        odd = self.forge(view, on, is_sound=random.random() < 0.7)
        choice = random.randrange(4)
        even = odd if choice == 0 else self.forge(view, parent, is_sound=True)
        victim = self.pick_victim() if choice == 1 else None
        shown = {to: odd if (to + view) % 2 and choice != 1 else even for to in self.everybody}
        for to, block in shown.items():
            if to != victim:
                self.offer(to, block)
        for to, block in shown.items():
            self.support(to, block)

    @property
    def everybody(self) -> tuple[int, ...]:
        return tuple(range(len(self.world.powers)))

    def forge(self, view: View, parent: Candidate, *, is_sound: bool) -> Candidate:
        """Make a block; an unsound one breaks a rule of execution or has a wrong height."""
        world = self.world
        block = make_block(self.settings.validators, parent, view, world.make_salt())
        if not is_sound:
            if world.random.random() < 0.4:
                block = replace(
                    block, height=Height(block.height + world.random.choice((-1, 1, 7)))
                )
            else:
                world.oracle.invalid.add(block.hash)
        self.disk.put_block(block)
        world.plots.append(block)
        return block

    def offer(self, to: int, block: Candidate) -> None:
        statement = Statement(EPOCH, block.view, Kind.NOTARIZE, block.hash)
        proposal = Proposal(block, make_signature(self.me, statement))
        self.world.send(self.slot, to, ProposalReceived(proposal))

    def support(self, to: int, block: Candidate) -> None:
        """Every cheat votes for it, towards this one validator."""
        for host in self.world.hosts:
            if isinstance(host, Equivocator):
                host.say(to, block.view, Kind.NOTARIZE, block.hash)
                if self.world.random.random() < 0.7:
                    host.say(to, block.view, Kind.FINALIZE, block.hash)

    def receive(self, event: Event, is_trusted: bool) -> None:
        super().receive(event, is_trusted)
        if isinstance(event, ProposalReceived) and is_trusted:
            block, random = event.proposal.candidate, self.world.random
            split = random.random() < 0.5
            for to in self.everybody:
                is_good = to % 2 == block.view % 2 if split else random.random() < 0.6
                if is_good:
                    self.say(to, block.view, Kind.NOTARIZE, block.hash)
                    self.say(to, block.view, Kind.FINALIZE, block.hash)
                elif split or random.random() < 0.5:
                    self.say(to, block.view, Kind.NULLIFY)
            if random.random() < 0.3:
                self.usurp(block)

    def usurp(self, seen: Candidate) -> None:
        """Propose although another one leads."""
        block = self.forge(View(seen.view + 1), seen, is_sound=True)
        block = replace(block, proposer=self.settings.validators[self.me].address)
        self.disk.index[block.hash] = block
        for to in range(len(self.world.powers)):
            self.offer(to, block)
            self.support(to, block)


class Forger(Equivocator):
    """Also sends certificates that prove nothing: of too few, unsigned, or of the epoch before."""

    def receive(self, event: Event, is_trusted: bool) -> None:
        super().receive(event, is_trusted)
        if is_trusted and isinstance(event, CertificateReceived) and not self.is_down:
            view = max(1, self.machine.view - self.world.random.randrange(2))
            block = self.pick_block(view)
            for certificate in (
                self.certify(Statement(EPOCH, View(view), Kind.NULLIFY, NO_HASH), (self.me,)),
                self.inflate(Statement(EPOCH, View(view), Kind.FINALIZE, block)),
                self.certify(Statement(PAST, View(view), Kind.NULLIFY, NO_HASH), self.everybody),
                self.certify(Statement(PAST, View(view), Kind.NOTARIZE, block), self.everybody),
            ):
                if self.world.random.random() < 0.4:
                    self.world.send(self.slot, self.pick_victim(), wrap(certificate))

    def pick_block(self, view: int) -> Hash:
        plots = [block.hash for block in self.world.plots if block.view == view]
        return self.world.random.choice(plots) if plots else Hash(view.to_bytes(32, "big"))

    def certify(self, statement: Statement, signers: tuple[int, ...]) -> Certificate:
        """Everybody did sign such things in the epoch before; in this one only the cheats do."""
        assert statement.epoch == PAST or signers == (self.me,)
        root = compute_signing_root(statement, CHAIN_ID)
        signature = BACKEND.aggregate([BACKEND.sign(make_secret(i), root, b"") for i in signers])
        return Certificate(statement, encode_bitmap(signers, len(self.everybody)), signature)

    def inflate(self, statement: Statement) -> Certificate:
        """Claim that everybody signed what only we did."""
        certificate = self.certify(statement, (self.me,))
        return replace(certificate, bitmap=encode_bitmap(self.everybody, len(self.everybody)))


ADVERSARIES: dict[Role, list[type[Adversary]]] = {
    Role.EQUIVOCATOR: [Equivocator],
    Role.TWINS: [Twin, Twin],
    Role.FORGER: [Forger],
    Role.SILENT: [Silent],
}

"""Validators that cheat. They share what they know: `World.plots`, and which half hears what."""

from dataclasses import replace

from steelyard.chain.consensus.certificates import Certificate, encode_bitmap
from steelyard.chain.consensus.messages import (
    Broadcast,
    Candidate,
    CertificateReceived,
    Effect,
    Event,
    Message,
    Proposal,
    ProposalReceived,
    Propose,
    ReportConflict,
    ReportOffence,
    SignVote,
    Validate,
    VoteReceived,
    VoteSigned,
)
from steelyard.chain.consensus.votes import NO_HASH, Kind, Statement
from steelyard.chain.errors import InvalidVote
from steelyard.chain.types import Epoch, Hash, Height, View
from tests.consensus.makers import BACKEND, DOMAIN, EPOCH, ROOT, make_secret

from .disk import Segment
from .epochs import get_account
from .host import Incoming, SimulatedHost, compute_signing_root, wrap
from .scenario import Role


class Adversary(SimulatedHost):
    """Follows the others with a machine of its own, in order to know when to cheat."""

    is_honest = False

    def step(self, event: Event, is_trusted: bool) -> tuple[Effect, ...]:
        try:
            return self.machine.step(event, self.world.now)
        except (InvalidVote, AssertionError):
            return ()

    def perform(self, effect: Effect) -> None:
        match effect:
            case SignVote(statement):
                self.queue.append((VoteSigned(self.make_vote(statement)), True))
            case ReportOffence() | ReportConflict():
                pass
            case _:
                super().perform(effect)

    def finalize(self, segment: Segment) -> None:
        self.commit(segment)

    def say(self, to: int, view: int, kind: Kind, block: bytes = NO_HASH) -> None:
        """Vote, if this epoch lets us."""
        if self.place is not None:
            statement = Statement(self.epoch, View(view), kind, Hash(block))
            self.world.send(self.slot, to, wrap(self.make_vote(statement)))


class Silent(Adversary):
    """Says nothing and serves nothing."""

    def perform(self, effect: Effect) -> None:
        if not isinstance(effect, Broadcast | Propose | Validate):
            super().perform(effect)

    def serve_block(self, block: bytes) -> list[Incoming]:
        return []

    def serve_certificates(self, epoch: int, view: int) -> list[Incoming]:
        return []

    def serve_segment(self, height: int) -> list[Incoming]:
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

    rushed = (0, 0)

    def perform(self, effect: Effect) -> None:
        match effect:
            case Propose(_, view, parent):
                self.scheme(view, parent)
            case Broadcast(message):
                if isinstance(message, Certificate) and self.world.random.random() < 0.3:
                    self.world.send(self.slot, self.pick_victim(), wrap(message))
            case Validate(view, candidate):
                if self.machine.is_leader(view) and candidate.view < view:
                    self.scheme(view, candidate)
            case _:
                super().perform(effect)

    def serve_block(self, block: bytes) -> list[Incoming]:
        """Half of the blocks it never serves."""
        return super().serve_block(block) if block[0] % 2 else []

    def pick_victim(self) -> int:
        return self.world.random.randrange(len(self.world.powers))

    def get_older(self, view: View) -> list[Candidate]:
        """Return the blocks below `view`, from low to high."""
        older = [b for b in self.disk.index.values() if b.view < view and b.epoch == self.epoch]
        root = ROOT if self.epoch == EPOCH else self.tip
        return [root, *sorted(older, key=lambda block: block.view)]

    def rush(self) -> None:
        """Propose at once on entering a view, before what is notarized can become final."""
        place = (self.epoch, self.machine.view)
        if self.machine.is_leader(self.machine.view) and place > self.rushed:
            self.rushed = place
            if self.world.random.random() < 0.6:
                self.scheme(self.machine.view, self.get_older(self.machine.view)[-1])

    def take(self, event: Event, is_trusted: bool) -> None:
        super().take(event, is_trusted)
        self.rush()

    def scheme(self, view: View, parent: Candidate) -> None:
        """Lead: two blocks, one that extends what it may not, or one kept from a victim."""
        random = self.world.random
        older = self.get_older(view)
        on = random.choice([parent, *older[-3:], self.tip]) if random.random() < 0.6 else parent
        odd = self.make_proposal(view, on, is_sound=random.random() < 0.7)
        choice = random.randrange(4)
        even = odd if choice == 0 else self.make_proposal(view, parent, is_sound=True)
        victim = self.pick_victim() if choice == 1 else None
        shown = {to: odd if (to + view) % 2 and choice != 1 else even for to in self.everybody}
        for to, block in shown.items():
            if to != victim:
                self.offer(to, block, view)
            if block.view < view:
                self.recall(to, block)
        for to, block in shown.items():
            self.support(to, block, view)

    def make_proposal(self, view: View, parent: Candidate, *, is_sound: bool) -> Candidate:
        """Extend a block; at the boundary: its last block again, an older or a new one beside it,
        or what may not follow it.
        """
        epochs, random = self.world.epochs, self.world.random
        if not epochs.is_last(parent) or parent.view == view or parent.epoch != self.epoch:
            return self.forge(view, parent, is_sound=is_sound)
        known = [block for block in self.get_older(view)[1:] if epochs.is_last(block)]
        certified = {certificate.hash for certificate in self.machine.get_certificates(View(1))}
        before = self.disk.index.get(parent.parent, self.tip)
        match random.randrange(5):
            case 0:
                return self.forge(view, parent, is_sound=is_sound)
            case 1:
                return self.forge(view, before, is_sound=is_sound)
            case 2:
                return random.choice([parent, *known])
        return random.choice([block for block in known if block.hash in certified] or [parent])

    def recall(self, to: int, block: Candidate) -> None:
        """Send the certificates that an earlier view gave this block."""
        for certificate in self.machine.get_certificates(block.view):
            if certificate.hash == block.hash:
                self.world.send(self.slot, to, wrap(certificate))

    def get_accomplices(self) -> list["Equivocator"]:
        """Return the cheats that may vote in this epoch, ourselves among them."""
        hosts = [host for host in self.world.hosts if isinstance(host, Equivocator)]
        return [host for host in hosts if host.epoch == self.epoch and host.place is not None]

    @property
    def everybody(self) -> tuple[int, ...]:
        return tuple(range(len(self.world.powers)))

    def forge(self, view: View, parent: Candidate, *, is_sound: bool) -> Candidate:
        """Make a block; an unsound one breaks a rule of execution or has a wrong height."""
        world = self.world
        block = self.make_block(view, parent)
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

    def offer(self, to: int, block: Candidate, view: View) -> None:
        if self.place is not None:
            statement = Statement(self.epoch, view, Kind.NOTARIZE, block.hash)
            proposal = Proposal(block, self.make_vote(statement))
            self.world.send(self.slot, to, ProposalReceived(proposal))

    def support(self, to: int, block: Candidate, view: View) -> None:
        """Every cheat votes for it, towards this one validator."""
        for host in self.get_accomplices():
            host.say(to, view, Kind.NOTARIZE, block.hash)
            if self.world.random.random() < 0.7:
                host.say(to, view, Kind.FINALIZE, block.hash)

    def receive(self, event: Incoming, sender: SimulatedHost) -> None:
        super().receive(event, sender)
        if isinstance(event, ProposalReceived) and sender.is_honest:
            block, view, random = event.proposal.candidate, event.proposal.view, self.world.random
            split = random.random() < 0.5
            for to in self.everybody:
                is_good = to % 2 == view % 2 if split else random.random() < 0.6
                if is_good:
                    self.say(to, view, Kind.NOTARIZE, block.hash)
                    self.say(to, view, Kind.FINALIZE, block.hash)
                elif split or random.random() < 0.5:
                    self.say(to, view, Kind.NULLIFY)
            if random.random() < 0.3 and self.place is not None:
                self.usurp(block, view)

    def usurp(self, seen: Candidate, view: View) -> None:
        """Propose although another one leads."""
        block = self.forge(View(view + 1), seen, is_sound=True)
        block = replace(block, proposer=self.settings.validators[self.place].address)
        self.disk.index[block.hash] = block
        for to in range(len(self.world.powers)):
            self.offer(to, block, block.view)
            self.support(to, block, block.view)


PAST = Epoch(EPOCH - 1)


class Forger(Equivocator):
    """Also sends certificates that prove nothing: of too few, unsigned, of an epoch before."""

    def __init__(self, *place) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*place)
        self.heard: list[Certificate] = []

    def receive(self, event: Incoming, sender: SimulatedHost) -> None:
        super().receive(event, sender)
        if not sender.is_honest or not isinstance(event, CertificateReceived) or self.is_down:
            return
        if self.place is None:
            return
        self.heard.append(event.certificate)
        view = max(1, self.machine.view - self.world.random.randrange(2))
        block = self.pick_block(view)
        for certificate in (
            self.certify(self.epoch, view, Kind.NULLIFY, NO_HASH),
            self.inflate(view, Kind.FINALIZE, block),
            self.certify(PAST, view, Kind.NULLIFY, NO_HASH),
            self.certify(PAST, view, Kind.NOTARIZE, block),
            self.world.random.choice(self.heard),
        ):
            if self.world.random.random() < 0.4:
                self.world.send(self.slot, self.pick_victim(), wrap(certificate))

    def pick_block(self, view: int) -> Hash:
        plots = [block.hash for block in self.world.plots if block.view == view]
        return self.world.random.choice(plots) if plots else Hash(view.to_bytes(32, "big"))

    def serve_segment(self, height: int) -> list[Incoming]:
        """Half of the time: a block of its own, with a certificate that proves nothing."""
        known = super().serve_segment(height - 1)
        if self.place is None or not known or self.world.random.random() < 0.5:
            return super().serve_segment(height)
        parent = next(b for segment in known for b in segment.blocks if b.height == height - 1)
        epoch = self.world.epochs.compute_epoch(height)
        forged = replace(self.make_block(1, parent), epoch=epoch)
        return [Segment((forged,), self.inflate(1, Kind.FINALIZE, forged.hash, epoch))]

    def certify(self, epoch: int, view: int, kind: Kind, block: bytes) -> Certificate:
        """Everybody did sign such things before the run began; in the run only the cheats do."""
        validators = self.settings.validators
        signers = range(len(validators)) if epoch == PAST else (self.place,)
        statement = Statement(Epoch(epoch), View(view), kind, Hash(block))
        root = compute_signing_root(statement, DOMAIN)
        secrets = [make_secret(get_account(validators[i])) for i in signers]
        signature = BACKEND.aggregate([BACKEND.sign(secret, root, b"") for secret in secrets])
        return Certificate(statement, encode_bitmap(signers, len(validators)), signature)

    def inflate(self, view: int, kind: Kind, block: bytes, epoch: int | None = None) -> Certificate:
        """Claim that everybody signed what only we did."""
        certificate = self.certify(self.epoch, view, kind, block)
        said = replace(certificate.statement, epoch=Epoch(epoch or self.epoch))
        count = len(self.settings.validators)
        bitmap = encode_bitmap(range(count), count)
        return replace(certificate, statement=said, bitmap=bitmap)


class Hoarder(Equivocator):
    """Keeps a notarization to itself until the others have given up its view and gone another way;
    then it leads again, shows the certificate, and goes on from there.
    """

    def __init__(self, *place) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*place)
        self.hoard: list[Candidate] = []

    def perform(self, effect: Effect) -> None:
        if not (isinstance(effect, Broadcast) and self.is_hidden(effect.message)):
            super().perform(effect)

    def is_hidden(self, message: Message) -> bool:
        hidden = {block.hash for block in self.hoard}
        return isinstance(message, Certificate) and message.hash in hidden

    def serve_certificates(self, epoch: int, view: int) -> list[Incoming]:
        served = super().serve_certificates(epoch, view)
        return [
            event
            for event in served
            if not (isinstance(event, CertificateReceived) and self.is_hidden(event.certificate))
        ]

    def scheme(self, view: View, parent: Candidate) -> None:
        certified = {certificate.hash for certificate in self.machine.get_certificates(View(1))}
        kept = [block for block in self.hoard if block.hash in certified and block.view < view - 1]
        epochs = self.world.epochs
        if kept:
            last = kept[-1]
            again = last if epochs.is_last(last) else self.forge(view, last, is_sound=True)
            for to in self.everybody:
                self.recall(to, last)
                self.offer(to, again, view)
                self.support(to, again, view)
        elif epochs.is_last(parent) and parent.epoch == self.epoch:
            super().scheme(view, parent)
        else:
            self.keep(self.forge(view, parent, is_sound=True))

    def keep(self, block: Candidate) -> None:
        """Show a block to as few as can notarize it together with the cheats."""
        self.hoard.append(block)
        validators, accomplices = self.settings.validators, self.get_accomplices()
        said = Statement(self.epoch, block.view, Kind.NOTARIZE, block.hash)
        for host in accomplices:
            self.queue.append((VoteReceived(host.make_vote(said)), True))
        signers = {host.place for host in accomplices if host.place is not None}
        others = [place for place in range(len(validators)) if place not in signers]
        self.world.random.shuffle(others)
        while others and not validators.has_quorum(signers):
            signers.add(others[-1])
            self.offer(get_account(validators[others.pop()]), block, block.view)


ADVERSARIES: dict[Role, list[type[Adversary]]] = {
    Role.EQUIVOCATOR: [Equivocator],
    Role.TWINS: [Twin, Twin],
    Role.FORGER: [Forger],
    Role.HOARDER: [Hoarder],
    Role.SILENT: [Silent],
}

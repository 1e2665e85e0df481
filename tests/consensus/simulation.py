"""A deterministic world for the consensus machine: time, network, disks, crashes from one seed."""

import hashlib
import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

from steelyard.chain.bls import PublicKey, SecretKey, Signature
from steelyard.chain.consensus.certificates import Certificate
from steelyard.chain.consensus.messages import (
    BlockBuilt,
    BlockFetched,
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
from steelyard.chain.consensus.simplex import Settings, Simplex
from steelyard.chain.consensus.validators import Validator, ValidatorSet
from steelyard.chain.consensus.votes import (
    NO_HASH,
    Kind,
    Statement,
    Vote,
    check_signable,
    compute_signing_root,
)
from steelyard.chain.types import Address, Epoch, Hash, Height, Power, View

CHAIN_ID = 7
EPOCH = Epoch(3)
TIMEOUT_MS = 1000
NO_END = 10**9
"""Height of a boundary that no run reaches."""


class XorBackend:
    """Signatures that a test can make by the thousand: a hash per key, added up with XOR."""

    def compute_public_key(self, secret: SecretKey) -> bytes:
        return hashlib.sha384(secret.to_bytes(32, "big")).digest()

    def sign(self, secret: SecretKey, message: bytes, tag: bytes) -> bytes:
        return self._expect(self.compute_public_key(secret), message)

    def is_key(self, key: bytes) -> bool:
        return True

    def aggregate(self, signatures: Sequence[bytes]) -> bytes | None:
        total = 0
        for signature in signatures:
            total ^= int.from_bytes(signature, "big")
        return total.to_bytes(96, "big")

    def verify(self, keys: Sequence[bytes], message: bytes, signature: bytes, tag: bytes) -> bool:
        return signature == self.aggregate([self._expect(key, message) for key in keys])

    @staticmethod
    @lru_cache(maxsize=10_000)
    def _expect(key: bytes, message: bytes) -> bytes:
        return hashlib.sha384(b"a" + key + message).digest() + hashlib.sha384(key).digest()


BACKEND = XorBackend()


def make_validator(account: int, power: int) -> Validator:
    key = PublicKey(BACKEND.compute_public_key(make_secret(account)))
    return Validator(Address(bytes([account + 1]) * 20), key, Power(power))


def make_validators(powers: Sequence[int]) -> ValidatorSet:
    return ValidatorSet(tuple(make_validator(*pair) for pair in enumerate(powers)))


def make_secret(index: int) -> SecretKey:
    return SecretKey(1000 + index)


def make_settings(powers: Sequence[int] = (1, 1, 1, 1), me: int | None = 0, **other) -> Settings:  # type: ignore[no-untyped-def]
    values = {"timeout_ms": TIMEOUT_MS, "heartbeat_ms": 100} | other
    return Settings(
        CHAIN_ID,
        EPOCH,
        Height(values.pop("last_height", NO_END)),
        make_validators(powers),
        me,
        backend=BACKEND,
        **values,
    )


ROOT = Candidate(
    Hash(b"\x11" * 32), Hash(bytes(32)), Height(40), Epoch(2), View(99), Address(bytes(20))
)


def make_vote(signer: int, view: int, kind: Kind, block: bytes = NO_HASH) -> Vote:
    statement = Statement(EPOCH, View(view), kind, Hash(block))
    root = compute_signing_root(statement, CHAIN_ID)
    return Vote(statement, signer, Signature(BACKEND.sign(make_secret(signer), root, b"")))


def make_block(
    validators: ValidatorSet,
    parent: Candidate,
    view: int,
    salt: bytes = b"",
    epoch: Epoch = EPOCH,
) -> Candidate:
    proposer = validators[validators.get_leader(epoch, View(view))].address
    digest = hashlib.sha256(parent.hash + view.to_bytes(8, "big") + salt).digest()
    return Candidate(
        Hash(digest), parent.hash, Height(parent.height + 1), epoch, View(view), proposer
    )


def make_proposal(validators: ValidatorSet, block: Candidate) -> Proposal:
    leader = validators.get_leader(EPOCH, block.view)
    return Proposal(block, make_vote(leader, block.view, Kind.NOTARIZE, block.hash))


class Crash(Exception):
    """The process ended before its next effect."""


@dataclass
class Disk:
    """What survives a crash."""

    root: Candidate = ROOT
    finalization: Certificate | None = None
    statements: list[Statement] = field(default_factory=list)
    certificates: list[Certificate] = field(default_factory=list)
    blocks: dict[Hash, Candidate] = field(default_factory=dict)
    chain: list[Candidate] = field(default_factory=list)


class Host:
    """One validator's driver, as `messages` prescribes it."""

    def __init__(self, world: "World", me: int) -> None:
        self.world, self.me, self.disk = world, me, Disk()
        self.settings = world.make_settings(me)
        self.life = 0
        self.performed = 0
        self.crash_at = world.crash_at.get(me)
        self.is_down = False
        self.reports: list[Effect] = []
        self.start()

    def start(self) -> None:
        self.life += 1
        self.is_down = False
        disk = self.disk
        self.machine = Simplex.recover(
            self.settings,
            disk.root,
            finalization=disk.finalization,
            statements=disk.statements,
            certificates=disk.certificates,
            candidates=disk.blocks.values(),
        )
        self.feed(Started())

    def crash(self) -> None:
        self.life += 1
        self.is_down = True
        if self.world.loses_certificates:
            self.disk.certificates.clear()
        life = self.life
        self.world.at(self.world.restart_ms, lambda: self.life == life and self.start())

    def feed(self, event: Event) -> None:
        if self.is_down:
            return
        queue, slow = [event], []
        try:
            while queue or slow:
                event = queue.pop(0) if queue else slow.pop(0)()
                for effect in self.machine.step(event, self.world.now):
                    self.performed += 1
                    if self.performed == self.crash_at:
                        raise Crash
                    self.perform(effect, queue, slow)
        except Crash:
            self.crash()

    def perform(self, effect: Effect, queue: list[Event], slow: list[Callable[[], Event]]) -> None:
        match effect:
            case SignVote(statement):
                queue.append(VoteSigned(self.sign(statement)))
            case Propose(_, view, parent):
                slow.append(lambda: self.build(view, parent))
            case Validate(_, candidate):
                slow.append(lambda: self.validate(candidate))
            case PersistCertificate(certificate):
                self.disk.certificates.append(certificate)
            case Finalize(blocks, certificate):
                self.disk.root, self.disk.finalization = blocks[-1], certificate
                self.disk.chain.extend(blocks)
            case ReportOffence() | ReportConflict():
                self.reports.append(effect)
            case SetTimer(at_ms):
                self.timer_at, life = at_ms, self.life
                self.world.at(max(0, at_ms - self.world.now), lambda: self.fire(at_ms, life))
            case _:
                self.talk(effect)

    def talk(self, effect: Effect) -> None:
        world = self.world
        match effect:
            case Broadcast(message):
                world.broadcast(self.me, message)
            case FetchBlock(block, holders):
                world.request(self.me, holders, lambda host: host.serve_block(block))
            case FetchCertificates(view):
                everybody = range(len(world.hosts))
                world.request(self.me, everybody, lambda host: host.serve_certificates(view))

    def sign(self, statement: Statement) -> Vote:
        """The signer: on disk first, and never against what is there."""
        check_signable(statement, self.disk.statements)
        if statement not in self.disk.statements:
            self.disk.statements.append(statement)
            self.world.witness(self.me, statement)
        root = compute_signing_root(statement, CHAIN_ID)
        return Vote(statement, self.me, Signature(BACKEND.sign(make_secret(self.me), root, b"")))

    def fire(self, at_ms: int, life: int) -> None:
        if (self.timer_at, self.life) == (at_ms, life):
            self.feed(TimerFired())

    def build(self, view: View, parent: Candidate) -> Event:
        self.world.built += 1
        salt = self.world.built.to_bytes(8, "big")
        block = make_block(self.settings.validators, parent, view, salt)
        self.disk.blocks[block.hash] = block
        return BlockBuilt(block)

    def validate(self, candidate: Candidate) -> Event:
        return BlockValidated(candidate.hash)

    def receive(self, message: Message) -> None:
        match message:
            case Proposal(candidate, _):
                self.disk.blocks[candidate.hash] = candidate
                self.feed(ProposalReceived(message))
            case Vote():
                self.feed(VoteReceived(message))
            case Certificate():
                self.feed(CertificateReceived(message))

    def serve_block(self, block: Hash) -> list[Event]:
        known = self.disk.blocks.get(block)
        return [] if known is None else [BlockFetched(known)]

    def serve_certificates(self, view: View) -> list[Event]:
        return [CertificateReceived(c) for c in self.machine.get_certificates(view)]

    def take(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, BlockFetched):
                self.disk.blocks[event.candidate.hash] = event.candidate
            self.feed(event)


class World:
    """Hosts and the messages between them. The same arguments give the same run."""

    def __init__(
        self,
        powers: Sequence[int],
        *,
        seed: int = 0,
        delay_ms: tuple[int, int] = (10, 50),
        loss_percent: int = 0,
        heartbeat_ms: int = 100,
        restart_ms: int = 300,
        loses_certificates: bool = False,
        down: Sequence[int] = (),
        crash_at: dict[int, int] | None = None,
        is_traced: bool = False,
    ) -> None:
        self.random = Random(seed)
        self.powers, self.delay_ms, self.loss_percent = powers, delay_ms, loss_percent
        self.heartbeat_ms, self.restart_ms = heartbeat_ms, restart_ms
        self.loses_certificates = loses_certificates
        self.crash_at = crash_at or {}
        self.is_traced = is_traced
        self.now = self.built = self.sequence = 0
        self.heap: list[tuple[int, int, Callable[[], object]]] = []
        self.said: dict[int, list[Statement]] = {}
        self.trace = hashlib.sha256()
        self.is_cut: Callable[[int, int], bool] = lambda _from, _to: False
        self.hosts: list[Host] = []
        for me in range(len(powers)):
            self.hosts.append(Host(self, me))
            self.hosts[me].is_down = me in down

    def make_settings(self, me: int) -> Settings:
        return make_settings(self.powers, me, heartbeat_ms=self.heartbeat_ms)

    def at(self, delay: int, action: Callable[[], object]) -> None:
        self.sequence += 1
        heapq.heappush(self.heap, (self.now + delay, self.sequence, action))

    def broadcast(self, sender: int, message: Message) -> None:
        if self.is_traced:
            self.trace.update(repr((self.now, sender, message)).encode())
        for to in range(len(self.powers)):
            if to != sender:
                self.send(sender, to, lambda host: host.receive(message))

    def send(self, sender: int, to: int, action: Callable[[Host], object]) -> None:
        if self.random.randrange(100) < self.loss_percent or self.is_cut(sender, to):
            return
        self.at(self.random.randint(*self.delay_ms), lambda: action(self.hosts[to]))

    def request(
        self, sender: int, holders: Iterable[int], ask: Callable[[Host], list[Event]]
    ) -> None:
        def answer(host: Host) -> None:
            if not host.is_down:
                events = ask(host)
                self.send(host.me, sender, lambda asker: asker.take(events))

        for holder in holders:
            if holder != sender:
                self.send(sender, holder, answer)

    def witness(self, me: int, statement: Statement) -> None:
        """Nobody honest ever signs what conflicts with anything it signed before, crash or not."""
        said = self.said.setdefault(me, [])
        check_signable(statement, said)
        said.append(statement)

    def run(self, until_ms: int) -> None:
        while self.heap and self.heap[0][0] <= until_ms:
            self.now, _, action = heapq.heappop(self.heap)
            action()
        self.now = until_ms

    def tell_work(self) -> None:
        for host in self.hosts:
            host.feed(WorkArrived())

    def check_safety(self) -> None:
        """All final chains are prefixes of one, without a gap."""
        longest = max((host.disk.chain for host in self.hosts), key=len)
        for host in self.hosts:
            assert host.disk.chain == longest[: len(host.disk.chain)]
            assert not [r for r in host.reports if isinstance(r, ReportConflict)]
        for parent, block in zip([ROOT, *longest], longest, strict=False):
            assert (block.parent, block.height) == (parent.hash, parent.height + 1)

    def get_heights(self) -> list[int]:
        return [len(host.disk.chain) for host in self.hosts]

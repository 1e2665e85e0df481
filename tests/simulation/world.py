"""The world of one run: time, the network between hosts, and the trace of all that happened."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random

from steelyard.chain.consensus.messages import (
    BlockBuilt,
    BlockFetched,
    BlockRejected,
    BlockValidated,
    Candidate,
    CertificateReceived,
    Event,
    Message,
    Proposal,
    ProposalReceived,
    VoteReceived,
    VoteSigned,
    WorkArrived,
)
from steelyard.chain.consensus.simplex import Settings
from steelyard.chain.consensus.votes import Vote
from steelyard.chain.types import Epoch
from tests.consensus.makers import (
    BACKEND,
    DOMAIN,
    ROOT,
    TIMEOUT_MS,
    make_validator,
)

from .adversary import ADVERSARIES
from .disk import Segment
from .epochs import CachedSet, Epochs
from .host import Incoming, SimulatedHost, wrap
from .oracle import Oracle, Violation, check_clean
from .scenario import Network, Role, Scenario

MAX_EVENTS = 60_000
"""A storm of the adversary's may cost more than it teaches: such a run is counted apart."""
LIVENESS_MS = 300_000
"""Simulated, after GST: the timeouts may have doubled five times before."""
BLOCKS_AFTER_GST = 4
WORK_EVERY_MS = 300


@dataclass(frozen=True)
class Result:
    """How a run ended. `violation` is empty if nothing is wrong."""

    seed: int
    violation: str
    detail: str
    trace: str
    events: int
    heights: tuple[int, ...]
    simulated_ms: int
    is_capped: bool


class Capped(Exception):
    """`MAX_EVENTS` events were not enough."""


def encode_event(event: Event) -> str:
    """Return what tells an event from another, short because it is hashed for every one."""
    match event:
        case VoteReceived(vote) | VoteSigned(vote):
            return f"v{_encode_vote(vote)}"
        case CertificateReceived(certificate):
            said = certificate.statement
            what = f"{said.epoch},{said.view},{said.kind.name},{said.hash.hex()}"
            return f"c{what},{certificate.bitmap.hex()}"
        case ProposalReceived(Proposal(candidate, vote)):
            return f"p{candidate.hash.hex()},{_encode_vote(vote)}"
        case BlockBuilt(candidate) | BlockFetched(candidate):
            return f"b{candidate.hash.hex()}"
        case BlockValidated(block) | BlockRejected(block):
            return f"{type(event).__name__}{block.hex()}"
    return type(event).__name__


def _encode_vote(vote: Vote) -> str:
    said = vote.statement
    return f"{said.epoch},{said.view},{said.kind.name},{said.hash.hex()},{vote.signer}"


class World:
    """Hosts, and the messages between them. The same scenario gives the same run, bit for bit."""

    def __init__(self, scenario: Scenario, host: type[SimulatedHost] = SimulatedHost) -> None:
        self.scenario, self.powers = scenario, scenario.powers
        self.random = Random(f"world {scenario.seed}")
        self.network: Network = scenario.wild
        self.timeout_ms, self.max_events = TIMEOUT_MS, MAX_EVENTS
        self.epochs = Epochs(scenario)
        self.now = self.sequence = self.events = self.salts = 0
        self.heap: list[tuple[int, int, Callable[[], object]]] = []
        self.trace = hashlib.sha256()
        self.oracle = Oracle(self)
        self.plots: list[Candidate] = []
        """The adversary's own blocks."""
        self.hosts: list[SimulatedHost] = []
        self.slots: list[tuple[SimulatedHost, ...]] = []
        self._add_hosts(host)

    def _add_hosts(self, honest: type[SimulatedHost]) -> None:
        for me, role in enumerate(self.scenario.roles):
            kinds = [honest] if role == Role.HONEST else ADVERSARIES[role]
            hosts = []
            for kind in kinds:
                hosts.append(kind(self, len(self.hosts), me))
                self.hosts.append(hosts[-1])
            self.slots.append(tuple(hosts))
        self.honest = [host for host in self.hosts if host.is_honest]

    def is_honest(self, me: int) -> bool:
        return self.scenario.roles[me] == Role.HONEST

    def make_settings(self, me: int, epoch: Epoch, validators: CachedSet) -> Settings:
        last_height = self.epochs.get_last_height(epoch)
        place = validators.find(make_validator(me, 1).address)
        return Settings(
            DOMAIN, epoch, last_height, validators, place, self.timeout_ms,
            self.scenario.heartbeat_ms, BACKEND,
        )  # fmt: skip

    def make_salt(self) -> bytes:
        self.salts += 1
        return self.salts.to_bytes(8, "big")

    # -- time --------------------------------------------------------------------------------------
    def at(self, delay: int, action: Callable[[], object]) -> None:
        self.sequence += 1
        heappush(self.heap, (self.now + delay, self.sequence, action))

    def run_until(self, end_ms: int) -> None:
        while self.heap and self.heap[0][0] <= end_ms:
            self.now, _, action = heappop(self.heap)
            action()
        self.now = end_ms

    def trace_event(self, slot: int, event: Event) -> None:
        self.events += 1
        if self.events > self.max_events:
            raise Capped
        self.trace.update(f"{self.now} {slot} {encode_event(event)}\n".encode())

    def trace_segment(self, slot: int, segment: Segment) -> None:
        self.trace_event(slot, CertificateReceived(segment.certificate))

    # -- the network -------------------------------------------------------------------------------
    def broadcast(self, slot: int, message: Message) -> None:
        for to in range(len(self.powers)):
            self.send(slot, to, wrap(message))

    def send(self, slot: int, to: int, event: Event) -> None:
        """Send to validator `to`, which is two machines if it is twins."""
        sender = self.hosts[slot]
        for host in self.slots[to]:
            if host.me != sender.me and not host.is_deaf_to(sender):
                self._carry(sender, host, lambda host=host: host.receive(event, sender))

    def _carry(self, sender: SimulatedHost, host: SimulatedHost, action) -> None:  # type: ignore[no-untyped-def]
        random, network = self.random, self.network
        if self.is_cut(sender.me, host.me) or random.randrange(100) < network.loss_percent:
            return
        self.at(self.get_delay(sender, host), action)
        if random.randrange(100) < network.duplicate_percent:
            self.at(self.get_delay(sender, host), action)

    def get_delay(self, sender: SimulatedHost, host: SimulatedHost) -> int:
        return self.random.randint(*self.network.delay_ms)

    def get_execution_ms(self) -> int:
        """Return how long building or validating takes: now and then too long, before GST."""
        is_slow = self.now < self.scenario.gst_ms and self.random.randrange(10) == 0
        return self.random.randint(0, 1_500 if is_slow else 20)

    def get_restart_ms(self) -> int:
        return self.random.randrange(20, 2_000)

    def is_cut(self, a: int, b: int) -> bool:
        return any(
            cut.start_ms <= self.now < cut.end_ms and (a in cut.side) != (b in cut.side)
            for cut in self.scenario.cuts
        )

    def request(
        self,
        slot: int,
        holders: Iterable[int],
        ask: Callable[[SimulatedHost], Sequence[Incoming]],
    ) -> None:
        """Ask these validators; what they answer is received."""
        asker = self.hosts[slot]

        def answer(host: SimulatedHost) -> None:
            for event in ask(host):
                self._carry(host, asker, lambda event=event: asker.receive(event, host))

        for holder in holders:
            for host in self.slots[holder]:
                if host.me != asker.me:
                    self._carry(asker, host, lambda host=host: answer(host))

    # -- a run -------------------------------------------------------------------------------------
    def start(self) -> None:
        for host in self.hosts:
            host.start()
        self._tell_work()
        if self.scenario.crash_every_ms:
            self._crash_somebody()

    def _tell_work(self) -> None:
        for host in self.hosts:
            host.feed(WorkArrived())
        self.at(WORK_EVERY_MS, self._tell_work)

    def _crash_somebody(self) -> None:
        if self.now < self.scenario.gst_ms:
            victim = self.random.choice(self.honest)
            victim.crash_at = victim.performed + self.random.randrange(1, 40)
            self.at(self.scenario.crash_every_ms, self._crash_somebody)

    def simulate(self) -> None:
        """Chaos, then calm until everybody honest has finalized new blocks. Raises Violation."""
        scenario = self.scenario
        self.start()
        self.run_until(scenario.gst_ms)
        self.network = scenario.calm
        for host in self.honest:
            host.crash_at = None
            host.restore_certificates()
        goal = len(self.oracle.ledger) + BLOCKS_AFTER_GST
        while min(self.get_heights()) < goal:
            self.run_until(self.now + 1_000)
            check_clean(
                self.now < scenario.gst_ms + LIVENESS_MS,
                "stuck",
                f"heights {self.get_heights()}, {goal} wanted",
            )
        self.oracle.check_reports()

    def get_heights(self) -> list[int]:
        """Return how many blocks each honest validator finalized; one that is down has none."""
        return [0 if h.is_down else h.tip.height - ROOT.height for h in self.honest]

    def get_result(self, violation: Violation | None, is_capped: bool) -> Result:
        return Result(
            self.scenario.seed,
            "" if violation is None else violation.kind,
            "" if violation is None else str(violation),
            self.trace.hexdigest(),
            self.events,
            tuple(self.get_heights()),
            self.now,
            is_capped,
        )


def run_seed(
    seed: int, host: type[SimulatedHost] = SimulatedHost, kind: type[World] = World
) -> Result:
    """Run the scenario of a seed to its end, to a violation, or to the cap."""
    world = kind(Scenario.draw(seed), host)
    try:
        world.simulate()
    except Violation as violation:
        return world.get_result(violation, False)
    except Capped:
        return world.get_result(None, True)
    return world.get_result(None, False)

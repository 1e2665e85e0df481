"""Several machines and a network: the chains agree, and get on while a quorum is there."""

from collections.abc import Callable

import pytest

from steelyard.chain.consensus.messages import (
    Broadcast,
    Candidate,
    Effect,
    Event,
    Message,
    Propose,
    ReportOffence,
    Validate,
)
from steelyard.chain.consensus.votes import NO_HASH, Kind
from steelyard.chain.types import View
from tests.consensus.simulation import (
    Host,
    World,
    make_block,
    make_proposal,
    make_vote,
)

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))]


@pytest.mark.parametrize("powers", [[1], [1] * 4, [1] * 7, [5, 1, 2, 3]], ids=str)
def test_everybody_finalizes_the_same_blocks(powers: list[int]) -> None:
    world = World(powers)
    world.run(5_000)
    world.check_safety()
    assert min(world.get_heights()) >= 25
    assert max(world.get_heights()) - min(world.get_heights()) <= 1


@pytest.mark.parametrize("size", [4, 7])
def test_one_dead_validator_of_many_stops_nothing(size: int) -> None:
    world = World([1] * size, down=[0])
    world.run(60_000)
    world.check_safety()
    assert min(world.get_heights()[1:]) >= 50


def test_without_a_quorum_nothing_is_final_and_with_it_again_it_goes_on() -> None:
    world = World([1] * 4, down=[0, 1])
    world.run(60_000)
    assert world.get_heights() == [0, 0, 0, 0]
    world.hosts[0].start()
    world.run(180_000)
    world.check_safety()
    assert min(world.get_heights()[2:]) > 20


def test_who_was_away_catches_up() -> None:
    world = World([1] * 4, down=[2])
    world.run(5_000)
    world.hosts[2].start()
    world.run(10_000)
    world.check_safety()
    assert min(world.get_heights()) >= max(world.get_heights()) - 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_bad_network_costs_time_and_never_agreement(seed: int) -> None:
    world = World([1, 2, 1, 2, 1], seed=seed, loss_percent=25, delay_ms=(1, 900))
    world.run(60_000)
    world.check_safety()
    assert min(world.get_heights()) > 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_network_that_was_cut_heals(seed: int) -> None:
    world = World([1] * 5, seed=seed)
    for _ in range(10):
        half = set(world.random.sample(range(5), 2))
        world.is_cut = lambda a, b, half=half: (a in half) != (b in half)
        world.run(world.now + 3_000)
    world.is_cut = lambda a, b: False
    before = max(world.get_heights())
    world.run(world.now + 60_000)
    world.check_safety()
    assert min(world.get_heights()) > before + 5


def test_two_halves_finalize_nothing() -> None:
    world = World([1] * 4)
    world.is_cut = lambda a, b: (a < 2) != (b < 2)
    world.run(60_000)
    assert world.get_heights() == [0, 0, 0, 0]


def test_an_idle_chain_makes_a_block_a_heartbeat_and_gives_up_no_view() -> None:
    world = World([1] * 4, heartbeat_ms=4_000)
    world.run(41_000)
    world.check_safety()
    assert min(world.get_heights()) in (9, 10)
    assert {s.kind for said in world.said.values() for s in said} == {Kind.NOTARIZE, Kind.FINALIZE}


def test_work_is_final_long_before_the_heartbeat() -> None:
    world = World([1] * 4, heartbeat_ms=60_000)
    world.run(1_000)
    assert world.get_heights() == [0] * 4
    world.tell_work()
    world.run(1_200)
    assert world.get_heights() == [1] * 4


def test_one_validator_finalizes_its_block_in_the_same_instant() -> None:
    world = World([1], heartbeat_ms=60_000)
    world.run(500)
    world.tell_work()
    assert world.get_heights() == [1]
    assert world.hosts[0].machine.view == 2


def test_the_same_seed_gives_the_same_run() -> None:
    def trace(seed: int) -> str:
        world = World([1, 2, 3, 1], seed=seed, loss_percent=10, is_traced=True)
        world.run(5_000)
        return world.trace.hexdigest()

    assert trace(1) == trace(1)
    assert trace(1) != trace(2)


class Traitor(Host):
    """Proposes two blocks, tells each half another one, and votes for everything at random."""

    def perform(self, effect: Effect, queue: list[Event], slow: list[Callable[[], Event]]) -> None:
        match effect:
            case Propose(_, view, parent):
                self.propose_twice(view, parent)
            case Broadcast() | Validate():
                pass
            case _:
                super().perform(effect, queue, slow)

    def propose_twice(self, view: View, parent: Candidate) -> None:
        older = [block for block in self.disk.blocks.values() if block.view < view]
        for side in range(2):
            on = self.world.random.choice([parent, *older]) if side else parent
            block = make_block(self.settings.validators, on, view, bytes([side]))
            self.disk.blocks[block.hash] = block
            for to in range(side, len(self.world.powers), 2):
                self.tell(to, make_proposal(self.settings.validators, block))

    def tell(self, to: int, message: Message) -> None:
        if to != self.me:
            self.world.send(self.me, to, lambda host: host.receive(message))

    def sign(self, statement):  # type: ignore[no-untyped-def]
        return make_vote(self.me, statement.view, statement.kind, statement.hash)

    def receive(self, message: Message) -> None:
        super().receive(message)
        block = getattr(message, "candidate", None)
        if block is None:
            return
        choice = self.world.random
        for to in range(len(self.world.powers)):
            for kind in (Kind.NOTARIZE, Kind.FINALIZE):
                if choice.random() < 0.6:
                    self.tell(to, make_vote(self.me, block.view, kind, block.hash))
            if choice.random() < 0.3:
                self.tell(to, make_vote(self.me, block.view, Kind.NULLIFY, NO_HASH))


def run_with_traitors(seed: int, powers: list[int], traitors: list[int]) -> World:
    world = World(powers, seed=seed, loss_percent=10, delay_ms=(5, 600))
    for me in traitors:
        world.hosts[me].is_down = True
        world.hosts[me] = Traitor(world, me)
    world.run(20_000)
    world.loss_percent = 0
    world.delay_ms = (5, 100)
    world.run(50_000)
    world.hosts = [host for host in world.hosts if host.me not in traitors]
    return world


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("powers", "traitors"), [([1] * 4, [1]), ([1] * 7, [0, 5]), ([3, 3, 2, 2], [0])], ids=str
)
def test_less_than_a_third_of_traitors_break_nothing(
    seed: int, powers: list[int], traitors: list[int]
) -> None:
    world = run_with_traitors(seed, powers, traitors)
    world.check_safety()
    assert min(world.get_heights()) > 5
    reports = [r for host in world.hosts for r in host.reports if isinstance(r, ReportOffence)]
    assert {report.first.signer for report in reports} == set(traitors)

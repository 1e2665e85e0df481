"""Several machines and a network: the chains agree, and get on while a quorum is there."""

import pytest

from steelyard.chain.consensus.votes import Kind
from tests.consensus.network import SmallNetwork
from tests.simulation.scenario import Network

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))]


@pytest.mark.parametrize("powers", [[1], [1] * 4, [1] * 7, [5, 1, 2, 3]], ids=str)
def test_everybody_finalizes_the_same_blocks(powers: list[int]) -> None:
    world = SmallNetwork(powers)
    world.run_until(5_000)
    assert min(world.get_heights()) >= 25
    assert max(world.get_heights()) - min(world.get_heights()) <= 1


@pytest.mark.parametrize("size", [4, pytest.param(7, marks=pytest.mark.slow)])
def test_one_dead_validator_of_many_stops_nothing(size: int) -> None:
    world = SmallNetwork([1] * size, down=[0])
    world.run_until(60_000)
    assert min(world.get_heights()[1:]) >= 50


@pytest.mark.slow
def test_without_a_quorum_nothing_is_final_and_with_it_again_it_goes_on() -> None:
    world = SmallNetwork([1] * 4, down=[0, 1])
    world.run_until(60_000)
    assert world.get_heights() == [0, 0, 0, 0]
    world.hosts[0].start()
    world.run_until(180_000)
    assert min(world.get_heights()[2:]) > 20


def test_who_was_away_catches_up() -> None:
    world = SmallNetwork([1] * 4, down=[2])
    world.run_until(5_000)
    world.hosts[2].start()
    world.run_until(10_000)
    assert min(world.get_heights()) >= max(world.get_heights()) - 1


@pytest.mark.slow
def test_epochs_with_changing_sets_follow_each_other() -> None:
    world = SmallNetwork([1, 2, 1, 2], epoch_blocks=2)
    world.run_until(3_000)
    assert min(world.get_heights()) >= 12
    assert len(world.oracle.sets) >= 6
    assert len({members.validators for members in world.oracle.sets.values()}) >= 6


def test_who_was_away_for_some_epochs_catches_up() -> None:
    world = SmallNetwork([1] * 4, epoch_blocks=2, down=[2], seed=2)
    world.run_until(30_000)
    assert min(world.hosts[i].epoch for i in (0, 1, 3)) > world.hosts[2].epoch
    world.hosts[2].start()
    world.run_until(40_000)
    assert min(world.get_heights()) >= max(world.get_heights()) - 2


@pytest.mark.parametrize("seed", SEEDS)
def test_a_bad_network_costs_time_and_never_agreement(seed: int) -> None:
    world = SmallNetwork([1, 2, 1, 2, 1], seed=seed, loss_percent=25, delay_ms=(1, 900))
    world.run_until(60_000)
    assert min(world.get_heights()) > 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_network_that_was_cut_heals(seed: int) -> None:
    world = SmallNetwork([1] * 5, seed=seed)
    for _ in range(10):
        half = set(world.random.sample(range(5), 2))
        world.is_cut = lambda a, b, half=half: (a in half) != (b in half)
        world.run_until(world.now + 3_000)
    world.is_cut = lambda a, b: False
    before = max(world.get_heights())
    world.run_until(world.now + 60_000)
    assert min(world.get_heights()) > before + 5


def test_two_halves_finalize_nothing() -> None:
    world = SmallNetwork([1] * 4)
    world.is_cut = lambda a, b: (a < 2) != (b < 2)  # type: ignore[method-assign]
    world.run_until(60_000)
    assert world.get_heights() == [0, 0, 0, 0]


def test_an_idle_chain_makes_a_block_a_heartbeat_and_gives_up_no_view() -> None:
    world = SmallNetwork([1] * 4, heartbeat_ms=4_000)
    world.run_until(41_000)
    assert min(world.get_heights()) in (9, 10)
    assert {kind for _, _, kind, _ in world.oracle.signers} == {Kind.NOTARIZE, Kind.FINALIZE}


def test_work_is_final_long_before_the_heartbeat() -> None:
    world = SmallNetwork([1] * 4, heartbeat_ms=60_000)
    world.run_until(1_000)
    assert world.get_heights() == [0] * 4
    world.tell_work()
    world.run_until(1_200)
    assert world.get_heights() == [1] * 4


def test_one_validator_finalizes_its_block_in_the_same_instant() -> None:
    world = SmallNetwork([1], heartbeat_ms=60_000)
    world.run_until(500)
    world.tell_work()
    world.run_until(500)
    assert world.get_heights() == [1]
    assert world.hosts[0].machine.view == 2


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("powers", "traitors"),
    [
        ([1] * 4, [1]),
        pytest.param([3, 3, 2, 2], [0], marks=pytest.mark.slow),
        pytest.param([1] * 7, [0, 5], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_less_than_a_third_of_traitors_break_nothing(
    seed: int, powers: list[int], traitors: list[int]
) -> None:
    world = SmallNetwork(powers, seed=seed, loss_percent=10, delay_ms=(5, 600), cheats=traitors)
    world.run_until(20_000)
    world.network = Network((5, 100))
    world.run_until(50_000)
    assert min(world.get_heights()) > 5
    assert world.oracle.accused == set(traitors)

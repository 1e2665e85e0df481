"""Crashes: whatever was signed stays true, whenever the process dies. the oracle checks it."""

import pytest

from tests.consensus.network import ForgetfulHost, SmallNetwork
from tests.simulation.host import SimulatedHost
from tests.simulation.scenario import Network

HOSTS = [SimulatedHost, ForgetfulHost]
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 3))]


def run(
    powers: list[int], crash_at: int | None, until_ms: int, host: type[SimulatedHost]
) -> SmallNetwork:
    world = SmallNetwork(powers, host=host, crash_at={} if crash_at is None else {0: crash_at})
    world.run_until(until_ms)
    return world


@pytest.mark.parametrize("host", HOSTS, ids=["some certificates lost", "all certificates lost"])
@pytest.mark.parametrize(
    ("powers", "until_ms", "least"),
    [
        pytest.param([1], 1500, 9, id="alone"),
        pytest.param([1] * 4, 1600, 3, id="of four", marks=pytest.mark.slow),
    ],
)
def test_a_crash_before_any_effect_leads_to_no_conflicting_vote(
    powers: list[int], until_ms: int, least: int, host: type[SimulatedHost]
) -> None:
    """The process dies before its first effect, its second, and so on; it always gets on."""
    effects = run(powers, None, until_ms, host).hosts[0].performed
    assert effects > 90
    for crash_at in range(1, effects + 1):
        world = run(powers, crash_at, until_ms + 600, host)
        assert world.hosts[0].life == 3
        assert min(world.get_heights()) >= least


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS, ids=["some certificates lost", "all certificates lost"])
@pytest.mark.parametrize("seed", SEEDS)
def test_validators_that_crash_again_and_again_stay_safe_and_get_on(
    seed: int, host: type[SimulatedHost]
) -> None:
    world = SmallNetwork([1, 1, 2, 3, 1], seed=seed, loss_percent=5, host=host)
    for _ in range(40):
        world.run_until(world.now + 400)
        victim = world.random.choice(world.hosts)
        victim.crash_at = victim.performed + world.random.randrange(1, 40)
    world.network = Network((10, 50))
    for validator in world.hosts:
        validator.crash_at = None
    before = max(world.get_heights())
    world.run_until(world.now + 40_000)
    assert min(world.get_heights()) > before

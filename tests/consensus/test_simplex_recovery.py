"""Crashes: whatever was signed stays true, whenever the process dies. `World.witness` checks it."""

import pytest

from tests.consensus.simulation import World

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 3))]


def run(powers: list[int], crash_at: int | None, until_ms: int, *, loses: bool) -> World:
    world = World(
        powers, loses_certificates=loses, crash_at={} if crash_at is None else {0: crash_at}
    )
    world.run(until_ms)
    world.check_safety()
    return world


@pytest.mark.parametrize("loses", [False, True], ids=["certificates kept", "certificates lost"])
@pytest.mark.parametrize(
    ("powers", "until_ms", "least"),
    [
        pytest.param([1], 1500, 9, id="alone"),
        pytest.param([1] * 4, 1600, 3, id="of four", marks=pytest.mark.slow),
    ],
)
def test_a_crash_before_any_effect_leads_to_no_conflicting_vote(
    powers: list[int], until_ms: int, least: int, loses: bool
) -> None:
    """The process dies before its first effect, its second, and so on; it always gets on."""
    effects = run(powers, None, until_ms, loses=loses).hosts[0].performed
    assert effects > 90
    for crash_at in range(1, effects + 1):
        world = run(powers, crash_at, until_ms + 600, loses=loses)
        assert world.hosts[0].life == 3
        assert min(world.get_heights()) >= least


@pytest.mark.slow
@pytest.mark.parametrize("loses", [False, True], ids=["certificates kept", "certificates lost"])
@pytest.mark.parametrize("seed", SEEDS)
def test_validators_that_crash_again_and_again_stay_safe_and_get_on(seed: int, loses: bool) -> None:
    world = World([1, 1, 2, 3, 1], seed=seed, loss_percent=5, loses_certificates=loses)
    for _ in range(40):
        world.run(world.now + 400)
        victim = world.random.choice(world.hosts)
        victim.crash_at = victim.performed + world.random.randrange(1, 40)
    world.loss_percent = 0
    for host in world.hosts:
        host.crash_at = None
    before = max(world.get_heights())
    world.run(world.now + 40_000)
    world.check_safety()
    assert min(world.get_heights()) > before

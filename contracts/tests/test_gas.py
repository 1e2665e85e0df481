"""What `close` costs besides the precompile: the constants that `publish` relies on."""

import re
from pathlib import Path

TERMS = (Path(__file__).resolve().parents[1] / "terms.vy").read_text()
ALLOWANCE = 1.25
"""The constants must exceed what is measured by a quarter."""


def read_constant(name):
    (value,) = re.findall(rf"^{name}: constant\(uint256\) = ([0-9_]+)$", TERMS, re.MULTILINE)
    return int(value)


def measure_close(world, count):
    """Gas of closing a first round, when every storage slot that it credits is still empty."""
    task = world.publish(max_clients=count, min_clients=count)
    for hospital in world.hospitals[:count]:
        world.join(task, hospital)
    receipt = world.play_round(task, 1, world.hospitals[:count])
    model = world.tasks.get_round(task, 1).base
    return receipt.gas_used - world.quote((0, 0), tuple(model), count, 8)


def test_a_close_stays_below_what_publish_allows_for(world):
    few, many = measure_close(world, 2), measure_close(world, 8)
    each = (many - few) / 6
    fixed = few - 2 * each
    assert each * ALLOWANCE <= read_constant("CLOSE_GAS_PER_CLIENT")
    assert fixed * ALLOWANCE <= read_constant("CLOSE_GAS")

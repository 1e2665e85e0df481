"""What `close` costs besides the precompile: the constants that `publish` relies on.

A quarter of the block stays free on top of them. Measured on our own engine in a first round, when
every slot is still empty: 0.92 Mgas with 4 clients, 2.70 with 32, 7.02 with 100, 8.79 with 128;
later rounds cost half of that.
"""

import re
from pathlib import Path

from world import PARAMETERS

CAPACITY = (Path(__file__).resolve().parents[1] / "capacity.vy").read_text()


def read_constant(name):
    (value,) = re.findall(rf"^{name}: constant\(uint256\) = ([0-9_]+)$", CAPACITY, re.MULTILINE)
    return int(value)


def measure_close(world, count):
    """Gas of closing a first round, when every storage slot that it credits is still empty."""
    task = world.publish(max_clients=count, min_clients=count)
    for hospital in world.hospitals[:count]:
        world.join(task, hospital)
    receipt = world.play_round(task, 1, world.hospitals[:count])
    model = world.rounds.get_round(task, 1).base
    return receipt.gas_used - world.quote(PARAMETERS["rule"], tuple(model), count, 8)


def test_a_close_stays_below_what_publish_allows_for(world):
    few, many = measure_close(world, 2), measure_close(world, 8)
    each = (many - few) / 6
    fixed = few - 2 * each
    assert each <= read_constant("CLOSE_GAS_PER_CLIENT")
    assert fixed <= read_constant("CLOSE_GAS")

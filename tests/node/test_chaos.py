"""Kills, partitions and lost messages at random: nobody contradicts itself, all agree, all heal."""

from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from steelyard.chain.errors import SteelyardError

from .cluster import Cluster, make_document
from .test_cluster import A
from .world import ALICE, sign_transaction

STEPS = 12
COUNT = 4


def disturb(cluster: Cluster, random: Random) -> None:
    """One thing that goes wrong, or gets well again."""
    down = [place for place in range(COUNT) if place not in cluster.nodes]
    match random.choice(("kill", "kill", "start", "part", "heal")):
        case "kill" if len(cluster.nodes) > 2:
            cluster.kill(random.choice(list(cluster.nodes)))
        case "start" if down:
            cluster.start(random.choice(down))
        case "part":
            places = random.sample(range(COUNT), COUNT)
            split = random.choice((1, 2))
            cluster.part(set(places[:split]), set(places[split:]))
        case "heal":
            cluster.part()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 8])
def test_whatever_happens_they_agree_and_heal(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    cluster = Cluster(tmp_path, make_document((10,) * COUNT, epoch_blocks=random.choice((3, 5))), 4)
    cluster.start()
    loss = 0.0
    cluster.filter = lambda _place, _message: random.random() >= loss
    for _ in range(STEPS):
        disturb(cluster, random)
        loss = random.choice((0.0, 0.0, 0.1, 0.3))
        for node in cluster.nodes.values():
            with suppress(SteelyardError):
                node.submit_transaction(sign_transaction(ALICE, node.get_nonce(A, pending=True)))
        cluster.rest(random.choice((0.05, 0.5, 2.0, 6.0)))
    cluster.part()
    loss = 0.0
    for place in range(COUNT):
        if place not in cluster.nodes:
            cluster.start(place)
    target = max(node.get_head().height for node in cluster.nodes.values()) + 2
    cluster.run(lambda: cluster.get_height() >= target, 400)
    cluster.check_agreement()
    cluster.check_honesty()
    assert {node.driver.alarm for node in cluster.nodes.values()} == {None}
    cluster.close()

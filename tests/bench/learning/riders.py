"""Who takes part without training: a free rider who replays the last aggregate, and a copycat.

Both send what was public when they had to commit: the difference between the last two models, or
the update that the largest site revealed in the round before. In the first round neither exists,
and they send noise. They claim as many rows as the fifth site of the heart data, which they are
in the place of, and cover them by stake as everybody must.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from steelyard.chain.rules import Flag

from .attacks import compute_delta
from .chain import ChainServer, run_validator
from .data import Split
from .scenes import SCENES, Scene, train_sites
from .servers import make_deal
from .training import Arrays, build_arrays, score

DISHONEST: Final = 1
NOISE: Final = 1e-3
UNPAID: Final = Flag.EXCLUDED | Flag.DUPLICATE | Flag.ZERO_SHARE


class Rider(StrEnum):
    """What the last participant sends."""

    FREE_RIDER = "free_rider"
    COPYCAT = "copycat"


@dataclass(frozen=True, slots=True)
class Ride:
    """The last participant's part of all pay and of all accepted weight; the final accuracy."""

    share: float
    weight_share: float
    accuracy: float


class Stranger:
    """Remembers what was public, and makes of it what the last participant sends."""

    def __init__(self, rider: Rider, scene: Scene, split: Split, seed: int) -> None:
        self._rider, self._scene = rider, scene
        self._honest = Split(split.sites[:-1], split.test, split.classes)
        self._seed = seed
        self._largest = int(np.argmax([len(site) for site in self._honest.sites]))
        self._models: list[Arrays] = []
        self._revealed: Arrays | None = None

    def make_deltas(self, base: Arrays, number: int) -> list[Arrays]:
        """Return everybody's deltas for a round."""
        self._models.append(base)
        last = self._replay(base)
        deltas = train_sites(self._scene.recipe, base, self._honest, [self._seed, number])
        self._revealed = deltas[self._largest]
        return [*deltas, last]

    def _replay(self, base: Arrays) -> Arrays:
        if self._revealed is None:
            generator = np.random.default_rng(self._seed)
            return {
                name: generator.normal(0, NOISE, array.shape).astype(np.float32)
                for name, array in base.items()
            }
        if self._rider is Rider.COPYCAT:
            return self._revealed
        return compute_delta(self._models[-2], self._models[-1])


def ride(rider: Rider, rule: str, seed: int, rounds: int) -> Ride:
    """Play the heart scene on a chain with the rider in the fifth site's place."""
    scene = SCENES["heart"]
    split = scene.split(seed)
    deal = make_deal(rule, DISHONEST, scene.norm, [len(site) for site in split.sites])
    stranger = Stranger(rider, scene, split, seed)
    with run_validator(len(split.sites)) as node:
        server = ChainServer(node, build_arrays(scene.recipe, seed), deal, rounds)
        for number in range(1, rounds + 1):
            server.play(dict(enumerate(stranger.make_deltas(server.arrays, number))))
        pay = server.get_pay()
    return Ride(
        share=pay[-1] / sum(pay),
        weight_share=compute_weight_share(server),
        accuracy=score(scene.recipe, server.arrays, split.test),
    )


def compute_weight_share(server: ChainServer) -> float:
    """Return the mean over the rounds of the last participant's part of the accepted rows."""
    claimed = dict(zip(server.addresses, server.deal.weights, strict=True))
    parts = []
    for played in server.rounds:
        accepted = {who: claimed[who] for who, flag in played.flags.items() if not flag & UNPAID}
        parts.append(accepted.get(server.addresses[-1], 0) / sum(accepted.values()))
    return float(np.mean(parts))

"""The scenes of the tables: whose data, which network, which threats, and how a run goes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from steelyard.client.demo.heart import FEATURES

from .attacks import Attack, attack, train_honestly
from .data import CLASSES, PIXELS, Split, split_digits, split_heart
from .servers import Server
from .training import Arrays, Recipe, score

HEART_RECIPE: Final = Recipe(FEATURES, 2, hidden=(), epochs=3, batch=16, rate=0.05)
DIGITS_RECIPE: Final = Recipe(PIXELS, CLASSES, hidden=(32,), epochs=2, batch=16, rate=0.25)
CONCENTRATION: Final = 0.3
DIGIT_SITES: Final = 20


@dataclass(frozen=True, slots=True)
class Threat:
    """How many attackers do what, and how many the robust rules were told to withstand.

    The attackers are the last sites. Without an attack they are honest. Accuracies are means over
    the seeds.
    """

    name: str
    attack: Attack
    attackers: int
    told: int
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """A split of data with its training and its threats. `norm`: what the clipped mean clips to,
    about the median of honest first updates."""

    name: str
    recipe: Recipe
    rounds: int
    norm: float
    threats: tuple[Threat, ...]

    def split(self, seed: int) -> Split:
        """Return the data, dealt by the seed."""
        match self.name:
            case "heart":
                return split_heart(seed)
            case "digits_iid":
                return split_digits(DIGIT_SITES, seed)
            case _:
                return split_digits(DIGIT_SITES, seed, CONCENTRATION)


def make_threats(attackers: int, *seeds: int) -> tuple[Threat, ...]:
    """Return the threats of the table, foreseen in their number."""
    return tuple(
        Threat(kind, kind, attackers, attackers, seeds)
        for kind in (Attack.NONE, Attack.SIGN_FLIP, Attack.LABEL_FLIP)
    )


UNFORESEEN: Final = (
    Threat("sign_flip_told_1", Attack.SIGN_FLIP, 4, 1, (1,)),
    Threat("sign_flip_by_8", Attack.SIGN_FLIP, 8, 4, (1,)),
    Threat("inside", Attack.INSIDE, 4, 4, (1,)),
)
"""What robust rules do not promise to withstand."""
SCENES: Final = {
    scene.name: scene
    for scene in (
        Scene("heart", HEART_RECIPE, 8, 0.6, make_threats(1, 1, 2, 3, 4, 5)),
        Scene("digits_iid", DIGITS_RECIPE, 30, 1.0, make_threats(4, 1)),
        Scene("digits_dirichlet", DIGITS_RECIPE, 30, 1.4, (*make_threats(4, 1, 2), *UNFORESEEN)),
    )
}


def learn(
    scene: Scene, threat: Threat, split: Split, server: Server, seed: int, rounds: int
) -> Iterator[float]:
    """Play rounds under a threat and yield the accuracy after each."""
    honest = len(split.sites) - threat.attackers
    for number in range(1, rounds + 1):
        base = server.arrays
        seeds = [[seed, number, place] for place in range(len(split.sites))]
        deltas = attack(Attack.NONE, scene.recipe, base, split.sites[:honest], seeds[:honest])
        deltas += attack(threat.attack, scene.recipe, base, split.sites[honest:], seeds[honest:])
        server.play(dict(enumerate(deltas)))
        yield score(scene.recipe, server.arrays, split.test)


def count_rounds(
    recipe: Recipe, split: Split, server: Server, *, target: float, most: int, seed: int
) -> int | None:
    """Return the first round whose model reaches the target; None if none of `most` does."""
    for number in range(1, most + 1):
        base = server.arrays
        server.play(
            {
                place: train_honestly(recipe, base, split.sites[place], [seed, number, place])
                for place in server.get_drawn()
            }
        )
        if score(recipe, server.arrays, split.test) >= target:
            return number
    return None


def train_sites(recipe: Recipe, base: Arrays, split: Split, seed: Sequence[int]) -> list[Arrays]:
    """Return what every site's honest training changes."""
    return [
        train_honestly(recipe, base, rows, [*seed, place]) for place, rows in enumerate(split.sites)
    ]

"""What dishonest participants send instead of their training, as deltas against the base.

They know all that is public: the base, the models before it and every revealed update of earlier
rounds. Commitments keep this round's updates from them until they are bound themselves, so whoever
wants to hide among the honest must guess their spread.
"""

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .data import Rows
from .training import Arrays, Recipe, train

FLIP_SCALE: Final = 4.0
"""Four of twenty attackers, or one of five, then cancel what the honest ones learnt."""
INSIDE_SPREADS: Final = 1.5
"""How many standard deviations from the mean an attacker inside the crowd stays."""


class Attack(StrEnum):
    """The attacks of the table."""

    NONE = "none"
    SIGN_FLIP = "sign_flip"
    LABEL_FLIP = "label_flip"
    INSIDE = "inside"
    """All send the same small step back: Baruch et al., arXiv:1902.06156."""


def compute_delta(base: Arrays, trained: Arrays) -> Arrays:
    return {name: trained[name] - array for name, array in base.items()}


def flip_labels(rows: Rows, classes: int) -> Rows:
    """Return the rows with class k called `classes - 1 - k`: consistent, so it can be learnt."""
    labels: NDArray[np.int64] = classes - 1 - rows.labels
    return replace(rows, labels=labels)


def train_honestly(recipe: Recipe, base: Arrays, rows: Rows, seed: Sequence[int]) -> Arrays:
    """Return what an honest site's training changes."""
    return compute_delta(base, train(recipe, base, rows, seed))


def attack(
    kind: Attack,
    recipe: Recipe,
    base: Arrays,
    sites: Sequence[Rows],
    seeds: Sequence[Sequence[int]],
) -> list[Arrays]:
    """Return the deltas that attackers with these rows send."""
    if kind is Attack.LABEL_FLIP:
        sites = [flip_labels(rows, recipe.classes) for rows in sites]
    deltas = [
        train_honestly(recipe, base, rows, seed) for rows, seed in zip(sites, seeds, strict=True)
    ]
    if kind is Attack.SIGN_FLIP:
        return [
            {name: np.float32(-FLIP_SCALE) * array for name, array in delta.items()}
            for delta in deltas
        ]
    if kind is Attack.INSIDE:
        return [step_back(deltas)] * len(deltas)
    return deltas


def step_back(deltas: Sequence[Arrays]) -> Arrays:
    """Return the mean less INSIDE_SPREADS standard deviations, value by value."""
    back: Arrays = {}
    for name in deltas[0]:
        values = np.stack([delta[name] for delta in deltas])
        back[name] = values.mean(axis=0) - np.float32(INSIDE_SPREADS) * values.std(axis=0)
    return back

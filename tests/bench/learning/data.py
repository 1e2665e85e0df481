"""Who holds which rows: heart patients of four hospitals and a fifth site, digits of many sites.

Every split depends on its seed only. The fifth site of the heart data holds a random fifth of every
hospital's training rows, so that an attacker has data like everybody else, and the run without an
attack has the same five sites.
"""

from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelyard.chain.errors import SteelyardError
from steelyard.client.demo.heart import HOSPITALS, encode_rows, read_rows, split_rows

FIFTH_SHARE = 0.2
TEST_DIGITS = 360
DIGIT_LEVELS = 16.0
FEWEST_DIGITS = 8
"""A site with fewer rows is no site: the split is drawn again."""
CLASSES = 10
PIXELS = 64


@dataclass(frozen=True, slots=True)
class Rows:
    """Features (rows, width) float32 and labels (rows,) int64."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: NDArray[np.int64]) -> "Rows":
        return Rows(self.features[places], self.labels[places])


@dataclass(frozen=True, slots=True)
class Split:
    """The sites' training rows and the rows that nobody trains on."""

    sites: tuple[Rows, ...]
    test: Rows
    classes: int


def join_rows(parts: list[Rows]) -> Rows:
    return Rows(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def split_heart(seed: int) -> Split:
    """Return the four hospitals, in the order of HOSPITALS, and the fifth site after them."""
    parts = split_rows(read_rows(), seed)
    generator = np.random.default_rng([seed, 5])
    sites, fifth, tests = [], [], []
    for hospital in HOSPITALS:
        training, test = (
            Rows(patients.features, patients.labels)
            for patients in map(encode_rows, parts[hospital])
        )
        order = generator.permutation(len(training))
        cut = round(len(training) * FIFTH_SHARE)
        fifth.append(training.take(order[:cut]))
        sites.append(training.take(order[cut:]))
        tests.append(test)
    return Split((*sites, join_rows(fifth)), join_rows(tests), 2)


@cache
def read_digits() -> Rows:
    """Return the 1797 digits of 8 x 8 pixels that come with scikit-learn, scaled to 0..1."""
    from sklearn.datasets import load_digits  # takes a second, and `make check` needs none

    bunch = load_digits()
    return Rows(
        (bunch.data / DIGIT_LEVELS).astype(np.float32), np.asarray(bunch.target, dtype=np.int64)
    )


def split_digits(sites: int, seed: int, concentration: float | None = None) -> Split:
    """Return digits dealt evenly, or each class by a Dirichlet distribution over the sites.

    Source: Hsu et al., arXiv:1909.06335, section 3.
    """
    generator = np.random.default_rng([seed, sites])
    rows = read_digits()
    order = generator.permutation(len(rows))
    training = rows.take(order[TEST_DIGITS:])
    if concentration is None:
        parts = np.array_split(generator.permutation(len(training)), sites)
    else:
        parts = deal_by_class(training.labels, sites, concentration, generator)
    return Split(
        tuple(training.take(part) for part in parts), rows.take(order[:TEST_DIGITS]), CLASSES
    )


def deal_by_class(
    labels: NDArray[np.int64], sites: int, concentration: float, generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Return each site's places; drawn again until every site has FEWEST_DIGITS."""
    while True:
        parts: list[list[NDArray[np.int64]]] = [[] for _ in range(sites)]
        for label in range(CLASSES):
            places = generator.permutation(np.flatnonzero(labels == label))
            portions = generator.dirichlet(np.full(sites, concentration))
            cuts = (np.cumsum(portions)[:-1] * len(places)).astype(np.int64)
            for part, chosen in zip(parts, np.split(places, cuts), strict=True):
                part.append(chosen)
        dealt = [np.concatenate(part) for part in parts]
        if min(map(len, dealt)) >= FEWEST_DIGITS:
            return dealt


def read_idx(path: Path, magic: int, dimensions: int) -> NDArray[np.uint8]:
    """Return one IDX file. Raises SteelyardError if it is another kind of file."""
    data, words = path.read_bytes(), 1 + dimensions
    header = [int.from_bytes(data[4 * i : 4 * i + 4], "big") for i in range(words)]
    if len(data) != 4 * words + prod(header[1:]) or header[0] != magic:
        raise SteelyardError("data_value", f"{path} is no IDX file of kind {magic}")
    return np.frombuffer(data, np.uint8, offset=4 * words).reshape(header[1:])

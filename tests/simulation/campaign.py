"""Runs over many seeds: is the core clean, and which seed kills which mutant?"""

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from steelyard.chain import consensus

from .mutants import Mutant
from .world import Result, run_seed

SEED_BUDGET = 450
"""Every mutant dies within the seeds 0 to here."""
NEW_SEEDS = 2**32
"""New seeds are drawn above the fixed ones, and small enough to type."""
SOURCES = (Path(consensus.__file__).parent, Path(__file__).parent)
"""What a run depends on: the core and its simulator."""


@dataclass(frozen=True)
class Campaign:
    """What the unmutated core did over some seeds. Capped runs were not brought to their end."""

    seeds: tuple[int, ...]
    broken: tuple[Result, ...]
    capped: tuple[int, ...]
    events: int


def run_campaign(seeds: Iterable[int]) -> Campaign:
    """Run the core as it is over these seeds."""
    results = [run_seed(seed) for seed in seeds]
    return Campaign(
        tuple(result.seed for result in results),
        tuple(result for result in results if result.violation),
        tuple(result.seed for result in results if result.is_capped),
        sum(result.events for result in results),
    )


def draw_new_seeds(count: int) -> list[int]:
    """Return seeds that nobody has tried; whoever runs them prints them."""
    return [SEED_BUDGET + secrets.randbelow(NEW_SEEDS) for _ in range(count)]


def derive_new_seeds(count: int) -> list[int]:
    """Return seeds that are new with every change of the sources, and the same in every run.

    So a version that has passed passes elsewhere too, and each change tries others.
    """
    digest = hashlib.sha256()
    for path in (one for folder in SOURCES for one in sorted(folder.glob("*.py"))):
        digest.update(path.read_bytes())
    random = Random(digest.digest())
    return [SEED_BUDGET + random.randrange(NEW_SEEDS) for _ in range(count)]


def hunt(mutant: Mutant, seeds: Sequence[int] = range(SEED_BUDGET)) -> Result | None:
    """Return the first run that shows what the mutant breaks, or None."""
    with mutant.applied() as host:
        for seed in seeds:
            result = run_seed(seed, host)
            if result.violation:
                return result
    return None

"""Money under random calls: Tasks and Rounds against a second implementation, for 100,000 steps.

Each step is one call, mostly one that can be taken, judged as `tests/contracts/player.py` says:
taken or refused for the model's reasons, the balances of all accounts to the wei, ether conserved
with what gas burned. Every game ends with everybody taking out what is theirs, and with empty
contracts. STEELYARD_CONSERVATION_STEPS makes it shorter.
"""

import os
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from random import Random
from time import perf_counter

from tests.contracts.arena import get_codes
from tests.contracts.player import Player, act

from .timing import Measurement

STEPS = 100_000
STEPS_PER_GAME = 500
EVENTS = ("Aggregated", "RoundSkipped", "RoundExtended", "PageMade", "Slashed", "Paused", "Aborted")


@dataclass(frozen=True)
class Game:
    """One game: how many steps it had, its events, and what was violated."""

    seed: int
    steps: int
    events: Counter[str]
    violation: str | None


def play(seed: int, steps: int = STEPS_PER_GAME) -> Game:
    """Play until the last step or the first violation, and take everything out."""
    random, player = Random(seed), Player(get_codes())
    done = 0
    try:
        while done < steps:
            act(player, random)
            done += 1
        player.finish()
    except Exception:
        return Game(seed, done, player.events, traceback.format_exc(limit=-4))
    return Game(seed, done, player.events, None)


def play_all(steps: int) -> Iterator[Game]:
    """Play one game a seed, on all processors."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(play, range(steps // STEPS_PER_GAME))


def run() -> list[Measurement]:
    """Return one row; print what was violated, with the seed of its game."""
    asked = int(os.environ.get("STEELYARD_CONSERVATION_STEPS", STEPS))
    start = perf_counter()
    steps, violations, events = 0, 0, Counter[str]()
    for game in play_all(asked):
        steps += game.steps
        events += game.events
        if game.violation is not None:
            violations += 1
            print(f"  seed {game.seed}, step {game.steps}: {game.violation}")
    seconds = perf_counter() - start
    return [
        Measurement(
            f"{steps:,} random steps",
            f"{violations} violations",
            seconds,
            1.0,
            {"steps/s": steps / seconds} | {name: float(events[name]) for name in EVENTS},
            {"conservation_steps": steps, "conservation_violations": violations},
        )
    ]

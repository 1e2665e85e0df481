"""Money under random calls: Tasks and Rounds against a second implementation, for 100,000 steps.

Each step is one call, mostly one that can be taken, judged as `tests/contracts/player.py` says:
taken or refused for the model's reasons, the balances of all accounts to the wei, ether conserved
with what gas burned. Every game ends with everybody taking out what is theirs, and with empty
contracts. How often each call was taken and refused is counted, and how often the games reached
what `tests/contracts/reached.py` lists. STEELYARD_CONSERVATION_STEPS makes it shorter.
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
from tests.contracts.reached import STATES

from .timing import Measurement

STEPS = 100_000
STEPS_PER_GAME = 500


@dataclass(frozen=True)
class Game:
    """One game: how many steps it had, what came of its calls, and what was violated."""

    seed: int
    steps: int
    taken: Counter[str]
    refused: Counter[str]
    reached: Counter[str]
    violation: str | None


def play(seed: int, steps: int = STEPS_PER_GAME) -> Game:
    """Play until the last step or the first violation, and take everything out."""
    random, player = Random(seed), Player(get_codes())
    done, violation = 0, None
    try:
        while done < steps:
            act(player, random)
            done += 1
        player.finish()
    except Exception:
        violation = traceback.format_exc(limit=-4)
    taken, refused = Counter[str](), Counter[str]()
    for call, times in player.calls.items():
        name, outcome = call.split(": ", 1)
        (taken if outcome == "taken" else refused)[name] += times
    return Game(seed, done, taken, refused, player.reached, violation)


def play_all(steps: int) -> Iterator[Game]:
    """Play one game a seed, on all processors."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(play, range(steps // STEPS_PER_GAME))


def run() -> list[Measurement]:
    """Return one row; print what was violated, with the seed of its game."""
    asked = int(os.environ.get("STEELYARD_CONSERVATION_STEPS", STEPS))
    start = perf_counter()
    steps, violations = 0, 0
    taken, refused = Counter[str](), Counter[str]()
    reached = Counter(dict.fromkeys(STATES, 0))
    for game in play_all(asked):
        steps += game.steps
        taken += game.taken
        refused += game.refused
        reached.update(game.reached)
        if game.violation is not None:
            violations += 1
            print(f"  seed {game.seed}, step {game.steps}: {game.violation}")
    seconds = perf_counter() - start
    figures = {
        "conservation_steps": steps,
        "conservation_violations": violations,
        "conservation_calls_taken": taken.total(),
        "conservation_calls_refused": refused.total(),
        "conservation_states_never_reached": sum(not times for times in reached.values()),
    }
    case, speed = f"{steps:,} random steps", {"steps/s": steps / seconds}
    return [
        Measurement(case, f"{violations} violations", seconds, 1.0, speed, figures),
        Measurement("calls", "taken", 0.0, 1.0, as_notes(taken)),
        Measurement("calls", "refused", 0.0, 1.0, as_notes(refused)),
        Measurement("calls", "reached", 0.0, 1.0, as_notes(reached)),
    ]


def as_notes(counts: Counter[str]) -> dict[str, float]:
    """Return counts as a row shows them."""
    return {name: float(times) for name, times in sorted(counts.items())}

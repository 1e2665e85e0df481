"""What attacks do to a federation's model and who is paid, through a real chain.

Each cell of the table is a task of its own on a validator in this process: signed transactions,
blobs, commitments, reveals, and rounds that the contracts close with the rule. The training is
simulated, in numpy. Two processes share the cells. STEELYARD_LEARNING_ROUNDS caps every run's
rounds, for a short look.

The figures are those of docs/economics.md.
"""

import os
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from math import isfinite
from multiprocessing import get_context
from statistics import mean, median
from typing import Final

from ..cluster import say
from ..timing import Measurement
from . import draws, mnist
from .cells import TARGET, play_cell, reach_target
from .crowd import CROWD, Crowd, gather
from .draws import compute_capture
from .riders import Ride, Rider, ride
from .scenes import SCENES, Scene, Threat
from .servers import RULES

PROCESSES: Final = 2
TARGET_SEEDS: Final = (1, 2, 3, 4, 5)
TARGET_ROUNDS: Final = 80
CROWD_ROUNDS: Final = 5
RIDER_ROUNDS: Final = 8
RIDER_SEED: Final = 1
PAID_RULES: Final = ("fedavg", "multi_krum")
"""The rules under which riders and crowds are looked at; figures without a rule's name are the
first one's."""


@dataclass(frozen=True)
class Row(Measurement):
    """A line of a table without a time: what was measured is in the notes."""

    @property
    def line(self) -> str:
        notes = "".join(f"  {key} {value:<9.5g}" for key, value in self.notes.items())
        return f"  {self.case:18} {self.name:24}{notes}"


def run() -> list[Measurement]:
    """Return the rows of attacks, riders, targets and draws."""
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        targets = submit_targets(pool)
        cells = {
            (name, threat.name): submit_cells(pool, scene, threat)
            for name, scene in reversed(SCENES.items())
            for threat in scene.threats
        }
        rides = {
            (rider, rule): pool.submit(ride, rider, rule, RIDER_SEED, cap_rounds(RIDER_ROUNDS))
            for rider in Rider
            for rule in PAID_RULES
        }
        rows: list[Measurement] = [make_target_row(name, ones) for name, ones in targets.items()]
        rows += [make_attack_row(*key, futures) for key, futures in cells.items()]
        rows += [make_ride_row(*key, future.result()) for key, future in rides.items()]
    return [*rows, make_draw_row()]


def run_crowd() -> list[Measurement]:
    """Return the rows of a hundred clients; by themselves, because their seconds count."""
    return [make_crowd_row(rule, gather(rule, cap_rounds(CROWD_ROUNDS))) for rule in PAID_RULES]


def cap_rounds(rounds: int) -> int:
    """Return how many of `rounds` to play."""
    return min(rounds, int(os.environ.get("STEELYARD_LEARNING_ROUNDS", rounds)))


def submit_targets(pool: ProcessPoolExecutor) -> dict[str, list["Future[tuple[float, float]]"]]:
    """Start the runs to a target accuracy; MNIST's where its files are."""
    most = cap_rounds(TARGET_ROUNDS)
    targets = {
        f"{TARGET * 100:.0f}_digits": [
            pool.submit(reach_target, seed, most) for seed in TARGET_SEEDS
        ]
    }
    directory = mnist.find_mnist()
    if directory is None:
        say("MNIST is left out: STEELYARD_MNIST does not name the directory of its files")
        return targets
    targets[f"{mnist.TARGET * 100:.0f}_mnist"] = [
        pool.submit(mnist.reach_mnist, directory, seed, most) for seed in TARGET_SEEDS
    ]
    return targets


def submit_cells(
    pool: ProcessPoolExecutor, scene: Scene, threat: Threat
) -> dict[str, list["Future[float]"]]:
    """Start a scene under a threat, for every rule and seed."""
    rounds = cap_rounds(scene.rounds)
    return {
        rule: [
            pool.submit(play_cell, scene.name, threat, rule, seed, rounds) for seed in threat.seeds
        ]
        for rule in RULES
    }


def make_row(case: str, name: str, notes: dict[str, float], figures: dict[str, float]) -> Row:
    row = Row(case, name, 0.0, 1.0, notes, figures)
    say(row.line.strip())
    return row


def make_attack_row(name: str, threat: str, futures: dict[str, list["Future[float]"]]) -> Row:
    """Return the mean accuracies over the seeds, one for each rule."""
    accuracies = {
        rule: round(mean(one.result() for one in ones), 4) for rule, ones in futures.items()
    }
    figures = {f"attack_{name}_{threat}_{rule}": value for rule, value in accuracies.items()}
    return make_row(name, threat, accuracies, figures)


def make_target_row(name: str, futures: list["Future[tuple[float, float]]"]) -> Row:
    """Return the median rounds to the target, on a chain and in float; no figure without one."""
    on_chain, in_float = zip(*(one.result() for one in futures), strict=True)
    medians = {"chain": float(median(on_chain)), "float": float(median(in_float))}
    figures = {
        f"rounds_to_{name}_{where}": rounds for where, rounds in medians.items() if isfinite(rounds)
    }
    return make_row(f"rounds to {name}", f"median of {len(futures)} seeds", medians, figures)


def make_ride_row(rider: Rider, rule: str, result: Ride) -> Row:
    """Return what the rider was paid beside what it weighed."""
    prefix = rider if rule == PAID_RULES[0] else f"{rider}_{rule}"
    notes = {
        "paid": result.share,
        "accepted weight": result.weight_share,
        "accuracy": result.accuracy,
    }
    figures = {
        f"{prefix}_share": round(result.share, 6),
        f"{prefix}_weight_share": round(result.weight_share, 6),
    }
    return make_row(rider, rule, notes, figures)


def make_crowd_row(rule: str, crowd: Crowd) -> Row:
    """Return what an update costs where a hundred come in a round."""
    suffix = "" if rule == PAID_RULES[0] else f"_{rule}"
    notes = {
        "rounds closed": float(crowd.rounds_closed),
        "gas an update": crowd.gas_per_update,
        "of it commitment": crowd.commit_gas,
        "reveal": crowd.reveal_gas,
        "bytes an update": crowd.bytes_per_update,
        "seconds a round": crowd.round_seconds,
    }
    figures = {
        f"clients_{CROWD}{suffix}_gas_per_update": round(crowd.gas_per_update),
        f"clients_{CROWD}{suffix}_bytes_per_update": round(crowd.bytes_per_update),
        f"clients_{CROWD}{suffix}_round_seconds": round(crowd.round_seconds, 3),
    }
    return make_row(f"{CROWD} clients", rule, notes, figures)


def make_draw_row() -> Row:
    """Return how likely attackers hold more places of a draw than the rule withstands."""
    chances = {
        tries: compute_capture(draws.SEATS, draws.DRAWN, draws.OWN, draws.WITHSTOOD, tries)
        for tries in draws.TRIES
    }
    case = f"{draws.DRAWN} of {draws.SEATS} drawn"
    name = f"{draws.OWN} own, over {draws.WITHSTOOD} drawn"
    notes = {f"in {tries} tries": chance for tries, chance in chances.items()}
    figures = {f"draw_captured_in_{tries}": round(chance, 4) for tries, chance in chances.items()}
    return make_row(case, name, notes, figures)

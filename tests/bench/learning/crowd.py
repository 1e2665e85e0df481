"""A hundred clients in one task: what each of them costs the chain and its sender, per round."""

import time
from dataclasses import dataclass
from statistics import median
from typing import Final

from .chain import ChainServer, run_validator
from .data import split_digits
from .scenes import DIGITS_RECIPE, train_sites
from .servers import make_deal
from .training import build_arrays

CROWD: Final = 100
SEED: Final = 1


@dataclass(frozen=True, slots=True)
class Crowd:
    """Medians over the rounds. Gas: all that the round's blocks used, by updates; of it the
    commitment and the reveal. Bytes: an update and its two transactions. Seconds: from the trained
    deltas to the model, signatures included."""

    gas_per_update: float
    commit_gas: float
    reveal_gas: float
    bytes_per_update: float
    round_seconds: float
    rounds_closed: int


def gather(rule: str, rounds: int) -> Crowd:
    """Play rounds of a hundred sites of digits on a chain; each must close with all of them."""
    split = split_digits(CROWD, SEED)
    deal = make_deal(rule, CROWD // 5, 1.0, [len(site) for site in split.sites])
    seconds = []
    with run_validator(CROWD) as node:
        server = ChainServer(node, build_arrays(DIGITS_RECIPE, SEED), deal, rounds)
        for number in range(1, rounds + 1):
            deltas = train_sites(DIGITS_RECIPE, server.arrays, split, [SEED, number])
            started = time.perf_counter()
            server.play(dict(enumerate(deltas)))
            seconds.append(time.perf_counter() - started)
    assert all(len(played.shares) == CROWD for played in server.rounds)
    return Crowd(
        median(played.gas / CROWD for played in server.rounds),
        median(played.commits.gas / CROWD for played in server.rounds),
        median(played.reveals.gas / CROWD for played in server.rounds),
        median(played.bytes_sent / CROWD for played in server.rounds),
        median(seconds),
        len(server.rounds),
    )

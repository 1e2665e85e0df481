"""The jobs of the benchmark: functions of plain values, so that processes can share them."""

from math import inf
from typing import Final

from .chain import ChainServer, run_validator
from .data import split_digits
from .scenes import CONCENTRATION, DIGITS_RECIPE, SCENES, Threat, count_rounds, learn
from .servers import FloatServer, make_deal
from .training import build_arrays

TARGET: Final = 0.95
TARGET_SITES: Final = 10


def play_cell(scene_name: str, threat: Threat, rule: str, seed: int, rounds: int) -> float:
    """Return the accuracy after that many rounds of a scene on a chain of its own."""
    scene = SCENES[scene_name]
    split = scene.split(seed)
    deal = make_deal(rule, threat.told, scene.norm, [len(site) for site in split.sites])
    with run_validator(len(split.sites)) as node:
        server = ChainServer(node, build_arrays(scene.recipe, seed), deal, rounds)
        *_, accuracy = learn(scene, threat, split, server, seed, rounds)
    return accuracy


def reach_target(seed: int, most: int) -> tuple[float, float]:
    """Return after how many rounds FedAvg labels TARGET of the digits: on a chain and in float.

    Infinity for a run that does not get there in `most` rounds.
    """
    split = split_digits(TARGET_SITES, seed, CONCENTRATION)
    weights = [len(site) for site in split.sites]
    first = build_arrays(DIGITS_RECIPE, seed)
    with run_validator(TARGET_SITES) as node:
        server = ChainServer(node, first, make_deal("fedavg", 0, 0.0, weights), most)
        on_chain = count_rounds(DIGITS_RECIPE, split, server, target=TARGET, most=most, seed=seed)
    in_float = count_rounds(
        DIGITS_RECIPE, split, FloatServer(first, weights), target=TARGET, most=most, seed=seed
    )
    return on_chain or inf, in_float or inf

"""The draw is a rule of the chain: its numbers are written down here, so that nobody moves it.

Three codes must agree with each vector: the auditor's, the few lines below that were written after
docs/tasks.md and share nothing with it, and (for the last one) the contract itself.
"""

import numpy as np
import pytest
from eth_hash.auto import keccak

from steelyard.chain.model import encode_model
from steelyard.chain.types import Address, Hash
from steelyard.client.reckoning import compute_draw, compute_seed
from tests.contracts.arena import Arena, get_codes
from tests.contracts.player import MANIFEST, VALUES, as_tuple, encode_terms

PUBLISHER = Address(b"\xa0" * 20)
CLIENTS = [Address(bytes([n]) * 20) for n in range(1, 9)]
NEVER, ONE = 2**256 - 1, 2**20
PARENT = Hash(bytes(range(32)))
SEED = bytes.fromhex("f223109873de5489fbd43103cbf7b1bf84839228253f4a355d0c6f3b368594c7")
"""Of round 3 of task 7, opened by a child of PARENT."""
DRAWS = [
    (0b1011_0110, 3, 0b1010_0010),
    (0b1101_1011, 3, 0b1100_1000),
    (0b1101_1011, 6, 0b1101_1011),
    (2**128 - 1, 5, 0x140000000000000000404000008000),
    (1 << 127, 1, 1 << 127),
    (0, 0, 0),
]
"""Seats, how many of them are drawn, and which."""
OPENED_SEATS, OPENED_DRAWN = 0b1101_1011, 0b0101_0001
OPENED_SEED = bytes.fromhex("0507b6123c3660a3da1ff191cdf4372a4117283dfd49c8224e24f2166bdd4fd2")
"""Of round 1 of task 1 in the arena below."""


def write_word(number: int) -> bytes:
    return number.to_bytes(32, "big")


def draw_by_hand(seed: bytes, seats: int, target: int) -> int:
    """Shuffle the seats in ascending order, and keep the first `target`."""
    order = [seat for seat in range(128) if seats & 1 << seat]
    if target == len(order):
        return seats
    for place in range(target):
        number = int.from_bytes(keccak(seed + write_word(place)), "big")
        other = place + number % (len(order) - place)
        order[place], order[other] = order[other], order[place]
    return sum(1 << seat for seat in order[:target])


def test_the_seed_of_a_round_does_not_move() -> None:
    assert keccak(PARENT + write_word(7) + write_word(3)) == SEED
    assert compute_seed(PARENT, 7, 3) == SEED
    assert compute_seed(PARENT, 3, 7) != SEED


@pytest.mark.parametrize(("seats", "target", "drawn"), DRAWS)
def test_the_draw_from_a_seed_does_not_move(seats: int, target: int, drawn: int) -> None:
    assert draw_by_hand(SEED, seats, target) == drawn
    assert compute_draw(SEED, seats, target) == drawn


def make_terms() -> dict[str, object]:
    """Eight members, half of whom are drawn."""
    rule = {"kind": 0, "bound": 0, "max_share": ONE, "server_lr": 4_096, "momentum": 0}
    terms: dict[str, object] = {
        "rule": rule, "weighting": 2, "bits": 8, "rounds": 2, "min_clients": 2, "max_clients": 9,
        "fraction_fit": ONE // 2, "spare_clients": 0, "max_staleness": 0, "staleness_discount": 0,
        "on_failed_quorum": 0, "max_extensions": 0, "max_saturated": NEVER, "evaluate_every": 0,
        "join_seconds": 100, "commit_seconds": 10, "reveal_seconds": 10, "base_stake": 0,
        "stake_per_sample": 0, "bond": 0, "admission": 0, "min_reputation": 0,
        "admission_norm2": 2**200, "reward": 7, "close_reserve": 0, "close_bounty": 0,
        "platform": bytes(20), "platform_share": 0,
    }  # fmt: skip
    return terms


def test_the_contract_draws_the_seats_that_are_written_here() -> None:
    """Seats 2 and 5 are given up before the start, so there are gaps in the list."""
    arena = Arena([PUBLISHER, *CLIENTS], get_codes())
    model = arena.put(encode_model(MANIFEST, np.zeros(VALUES, np.int32)))
    arguments = ("heart", encode_terms(arena, make_terms()), as_tuple(model), (bytes(32), 0), [])
    done = arena.send(PUBLISHER, "Tasks", "publish", *arguments, value=7, blobs=[model])
    assert done.reason is None
    for client in CLIENTS:
        assert arena.send(client, "Tasks", "join", 1, 5).reason is None
    for seat in (2, 5):
        assert arena.send(CLIENTS[seat], "Tasks", "leave", 1).reason is None
    arena.advance(1)
    (opened,) = arena.send(PUBLISHER, "Tasks", "start", 1).find("RoundOpened")
    assert opened.values["seed"] == OPENED_SEED == compute_seed(arena.get_parent_hash(), 1, 1)
    assert opened.values["seats"] == OPENED_SEATS
    assert opened.values["drawn"] == OPENED_DRAWN == compute_draw(OPENED_SEED, OPENED_SEATS, 3)
    assert draw_by_hand(OPENED_SEED, OPENED_SEATS, 3) == OPENED_DRAWN

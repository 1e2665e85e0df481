"""Any sequence of calls: the contracts do what the model does, and money is conserved to the wei.

`tests.bench conservation` plays 100,000 steps of the same game.
"""

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from .arena import get_codes
from .player import ACTIONS, Player, act
from .reached import STATES

pytestmark = pytest.mark.slow
CODES = get_codes()
RANDOMS = st.randoms(use_true_random=False)


class Sequences(RuleBasedStateMachine):
    """Hypothesis chooses what is done; `Player` checks after each step, and at the end that nobody
    is stuck."""

    def __init__(self) -> None:
        super().__init__()
        self.player = Player(CODES)

    @rule(random=RANDOMS)
    def lead(self, random: Random) -> None:
        act(self.player, random)

    @precondition(lambda self: self.player.model.tasks)
    @rule(random=RANDOMS, name=st.sampled_from(sorted(ACTIONS)))
    def do(self, random: Random, name: str) -> None:
        self.player.focus = 0
        getattr(self.player, name)(random)

    def teardown(self) -> None:
        self.player.finish()


TestSequences = Sequences.TestCase
TestSequences.settings = settings(
    max_examples=8, stateful_step_count=30, deadline=None, derandomize=True, database=None
)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_long_game_ends_with_nothing_left_behind(seed: int) -> None:
    random, player = Random(seed), Player(CODES)
    for _ in range(200):
        act(player, random)
    player.finish()
    assert {"aggregated", "claimed", "refunded"} <= set(player.reached) <= set(STATES)


@pytest.mark.parametrize("name", ["paid", "burned", "deposited"])
def test_a_single_wei_in_the_books_is_missed(name: str) -> None:
    random, player = Random(3), Player(CODES)
    while not player.model.tasks:
        act(player, random)
    player.model.tasks[1].books[name] += 1
    with pytest.raises(AssertionError):
        player.check_books(1)

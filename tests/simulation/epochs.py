"""Which epoch a block belongs to, and who votes in it: a function of the chain alone.

As in the node, the boundary block's parent decides the next set. Here it does so as a seed: some
validators leave, others come back, powers and the order change. Of each set less than a third
cheats.
"""

from functools import lru_cache
from random import Random

from steelyard.chain.consensus.messages import Candidate
from steelyard.chain.consensus.validators import Validator, ValidatorSet
from steelyard.chain.types import Epoch, Height, View
from tests.consensus.makers import EPOCH, ROOT, make_validator

from .scenario import Role, Scenario

ABSENT_PERCENT = 25


class CachedSet(ValidatorSet):
    """Who leads is asked several times an event."""

    def get_leader(self, epoch: Epoch, view: View) -> int:
        return _get_leader(self, epoch, view)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


@lru_cache(maxsize=4096)
def _get_leader(validators: CachedSet, epoch: Epoch, view: View) -> int:
    return ValidatorSet.get_leader(validators, epoch, view)


class Epochs:
    """The epochs of one run; the first is `EPOCH`, on `ROOT`, of everybody."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        powers = dict(enumerate(scenario.powers))
        self.first = _make_set([make_validator(me, power) for me, power in powers.items()])
        self._sets: dict[tuple[int, bytes], CachedSet] = {}

    def compute_epoch(self, height: int) -> Epoch:
        return Epoch(EPOCH + (height - ROOT.height - 1) // self._scenario.epoch_blocks)

    def get_last_height(self, epoch: int) -> Height:
        return Height(ROOT.height + (epoch - EPOCH + 1) * self._scenario.epoch_blocks)

    def is_last(self, block: Candidate) -> bool:
        """Is this a boundary block?"""
        return block.height == self.get_last_height(self.compute_epoch(block.height))

    def get_next(self, boundary: Candidate) -> CachedSet:
        """Return who votes in the epoch after this boundary block."""
        place = (boundary.epoch + 1, boundary.parent)
        if place not in self._sets:
            self._sets[place] = self._draw(Random(f"{self._scenario.seed} {place}"))
        return self._sets[place]

    def _draw(self, random: Random) -> CachedSet:
        scenario = self._scenario
        powers = {
            me: power if random.random() < 0.5 else random.randint(1, 4)
            for me, power in enumerate(scenario.powers)
            if random.randrange(100) >= ABSENT_PERCENT
        }
        cheats = [me for me in powers if scenario.roles[me] != Role.HONEST]
        while 3 * sum(powers[me] for me in cheats) >= sum(powers.values()) and cheats:
            del powers[cheats.pop()]
        if not powers:
            powers[scenario.roles.index(Role.HONEST)] = 1
        members = list(powers.items())
        random.shuffle(members)
        return _make_set([make_validator(me, power) for me, power in members])


def _make_set(validators: list[Validator]) -> CachedSet:
    return CachedSet(tuple(validators))


def get_account(validator: Validator) -> int:
    """Return the place of a validator among all of a run, as `make_validator` numbered it."""
    return validator.address[0] - 1

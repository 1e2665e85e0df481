"""What the exchange of blobs remembers of each other validator, all of it bounded."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from steelyard.chain.consensus.validators import has_quorum
from steelyard.chain.types import Address, BlobName

from .quota import Bucket

MAX_REMEMBERED = 4_096
"""Announced names kept for each validator; its oldest go first, so a flood costs only itself."""


@dataclass(slots=True)
class Partner:
    """One other validator. `asked` counts the pieces that it still owes us, `pace` bounds how
    many it is asked for in a second, `served` how many it gets."""

    pace: Bucket
    served: Bucket
    announced: OrderedDict[BlobName, None] = field(default_factory=OrderedDict)
    is_connected: bool = False
    asked: int = 0
    heard_at: float = float("-inf")
    """The second at which its last piece of any blob came."""
    misses: int = 0
    """Blobs that it owed and did not serve in time, since it last served a piece."""
    timeouts: int = 0
    wrong_blobs: int = 0

    def remember(self, names: Iterable[BlobName]) -> None:
        """Note what it announced, the latest last."""
        for name in names:
            self.announced[name] = None
            self.announced.move_to_end(name)
        while len(self.announced) > MAX_REMEMBERED:
            self.announced.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Electorate:
    """Who counts for availability in this epoch; replaced as a whole, so any thread may read it."""

    own_power: int = 0
    total_power: int = 0
    others: tuple[tuple[Partner, int], ...] = ()

    def has_announced(self, name: BlobName) -> bool:
        """Do we, who hold it, and those that announced it have more than two thirds?"""
        power = sum(power for partner, power in self.others if name in partner.announced)
        return has_quorum(self.own_power + power, self.total_power)


def create_electorate(
    powers: Mapping[Address, int], me: Address, partners: Mapping[Address, Partner]
) -> Electorate:
    """The voters of a set; those that are no partners of ours (any more) cannot announce."""
    others = tuple(
        (partners[address], power) for address, power in powers.items() if address in partners
    )
    return Electorate(powers.get(me, 0), sum(powers.values()), others)

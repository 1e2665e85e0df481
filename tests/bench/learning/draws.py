"""How likely a draw gives attackers more places than the robust rules were told to withstand."""

from math import comb
from typing import Final

SEATS: Final = 100
DRAWN: Final = 20
OWN: Final = 10
WITHSTOOD: Final = 4
TRIES: Final = (1, 60)
"""An honest draw; one try with every block of a minute."""


def compute_capture(seats: int, drawn: int, own: int, withstood: int, tries: int) -> float:
    """Return the chance that at least one of `tries` draws without replacement has more than
    `withstood` of the attacker's `own` seats."""
    assert 0 <= withstood < own <= seats >= drawn
    ways = sum(
        comb(own, taken) * comb(seats - own, drawn - taken)
        for taken in range(withstood + 1, min(own, drawn) + 1)
    )
    return 1 - (1 - ways / comb(seats, drawn)) ** tries

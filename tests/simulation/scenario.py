"""What a seed means: who takes part, who cheats, how bad network and disks are, until when."""

from dataclasses import dataclass
from enum import StrEnum
from random import Random

from tests.consensus.makers import NO_END


class Role(StrEnum):
    """HONEST follows the rules; the others are the adversary's, and know of each other."""

    HONEST = "honest"
    EQUIVOCATOR = "equivocator"
    TWINS = "twins"
    FORGER = "forger"
    HOARDER = "hoarder"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Network:
    """One stretch of time: how long a message takes, and how many are lost or come twice."""

    delay_ms: tuple[int, int]
    loss_percent: int = 0
    duplicate_percent: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """From `start_ms` to `end_ms`, `side` and the others do not hear each other."""

    start_ms: int
    end_ms: int
    side: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run. Before `gst_ms` anything goes; after it the network is `calm`, nobody crashes."""

    seed: int
    powers: tuple[int, ...]
    roles: tuple[Role, ...]
    wild: Network
    calm: Network
    cuts: tuple[Cut, ...]
    crash_every_ms: int
    """0: nobody crashes."""
    gst_ms: int
    heartbeat_ms: int
    epoch_blocks: int

    @classmethod
    def draw(cls, seed: int) -> "Scenario":
        """Return the scenario of a seed; the same on every machine and in every process."""
        random = Random(seed)
        count = random.choice((4, 5, 5, 6, 7))
        is_even = random.random() < 0.7
        powers = tuple(1 if is_even else random.randint(1, 4) for _ in range(count))
        roles = _draw_roles(random, powers)
        gst_ms = random.randrange(6_000, 10_000)
        return cls(
            seed=seed,
            powers=powers,
            roles=roles,
            wild=Network(
                random.choice(((5, 60), (5, 400), (5, 400), (1, 900), (200, 1500))),
                loss_percent=random.choice((0, 5, 10, 25)),
                duplicate_percent=random.choice((0, 5, 20)),
            ),
            calm=Network(
                random.choice(((5, 50), (50, 150), (1, 300), (1100, 1500))),
                duplicate_percent=random.choice((0, 5)),
            ),
            cuts=_draw_cuts(random, count, gst_ms),
            crash_every_ms=random.choice((0, 300, 900)),
            gst_ms=gst_ms,
            heartbeat_ms=random.choice((50, 100, 400)),
            epoch_blocks=random.choice((1, 1, 1, 2, 3, NO_END)),
        )


def _draw_roles(random: Random, powers: tuple[int, ...]) -> tuple[Role, ...]:
    """Corrupt as much as stays below a third of the power, in most scenarios."""
    roles = [Role.HONEST] * len(powers)
    if random.random() < 0.1:
        return tuple(roles)
    cheats = (*(role for role in Role if role != Role.HONEST), Role.EQUIVOCATOR, Role.HOARDER)
    corrupted = 0
    for place in random.sample(range(len(powers)), len(powers)):
        if 3 * (corrupted + powers[place]) < sum(powers):
            corrupted += powers[place]
            roles[place] = random.choice(cheats)
    return tuple(roles)


def _draw_cuts(random: Random, count: int, gst_ms: int) -> tuple[Cut, ...]:
    cuts = []
    for _ in range(random.choice((0, 1, 2, 4))):
        start = random.randrange(gst_ms)
        side = tuple(sorted(random.sample(range(count), random.randrange(1, count))))
        cuts.append(Cut(start, min(gst_ms, start + random.randrange(300, 4_000)), side))
    return tuple(cuts)

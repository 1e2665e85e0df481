"""Finality over a wide-area network, counted in message delays.

Everybody is honest and nobody crashes. Each pair of validators has its own one-way latency, drawn
from 50 to 150 ms, and each message up to a tenth more. One message delay is the mean of what the
messages really took. A block's finality is counted from the moment the leader has built it to the
moment a validator finalizes it, and the figure is the median over all blocks and validators.
"""

from dataclasses import dataclass
from statistics import fmean, median, quantiles

from .host import SimulatedHost
from .scenario import Network, Role, Scenario
from .world import World

LATENCY_MS = (50, 150)
JITTER_PERCENT = 10


@dataclass(frozen=True)
class Finality:
    """What a run took, in message delays; `delay_ms` is one."""

    validators: int
    blocks: int
    delay_ms: float
    median_delays: float
    p90_delays: float
    events: int


class WideAreaWorld(World):
    """Pairs with fixed latencies. `taken` are those of all messages."""

    def __init__(self, count: int, seed: int) -> None:
        calm = Network(LATENCY_MS)
        super().__init__(
            Scenario(
                seed=seed,
                powers=(1,) * count,
                roles=(Role.HONEST,) * count,
                wild=calm,
                calm=calm,
                cuts=(),
                crash_every_ms=0,
                gst_ms=0,
                heartbeat_ms=200,
                epoch_blocks=10**6,
            )
        )
        self.max_events = 10**9
        self.taken: list[int] = []
        self.base = [[self.random.randint(*LATENCY_MS) for _ in self.powers] for _ in self.powers]

    def get_delay(self, sender: SimulatedHost, host: SimulatedHost) -> int:
        base = self.base[min(sender.me, host.me)][max(sender.me, host.me)]
        delay = base + self.random.randint(0, base * JITTER_PERCENT // 100)
        self.taken.append(delay)
        return delay

    def get_execution_ms(self) -> int:
        return 0


def measure_finality(count: int, blocks: int, seed: int = 1) -> Finality:
    """Run `count` validators until each has finalized `blocks` blocks."""
    world = WideAreaWorld(count, seed)
    world.start()
    while min(world.get_heights()) < blocks:
        world.run_until(world.now + 500)
        assert world.now < 60_000 + 2_000 * blocks, "nothing is finalized"
    delay = fmean(world.taken)
    delays = [taken / delay for taken in world.oracle.delays_ms]
    return Finality(
        count,
        len(world.oracle.ledger),
        delay,
        median(delays),
        quantiles(delays, n=10)[-1],
        world.events,
    )

"""A small world for tests with a claim: the simulator's hosts and judge, nothing left to chance.

Every run is judged as it goes, by `tests.simulation.oracle`: a broken promise raises `Violation`.
"""

from collections.abc import Sequence

from steelyard.chain.consensus.messages import WorkArrived
from tests.consensus.makers import NO_END
from tests.simulation.host import SimulatedHost
from tests.simulation.scenario import Network, Role, Scenario
from tests.simulation.world import World


class ForgetfulHost(SimulatedHost):
    """A crash costs it every certificate."""

    def crash(self) -> None:
        super().crash()
        self.disk.certificates.durable.clear()


class SmallNetwork(World):
    """Validators on one network, without work until `tell_work`, without end of the epoch."""

    def __init__(
        self,
        powers: Sequence[int],
        *,
        seed: int = 0,
        delay_ms: tuple[int, int] = (10, 50),
        loss_percent: int = 0,
        heartbeat_ms: int = 100,
        restart_ms: int = 300,
        epoch_blocks: int = NO_END,
        host: type[SimulatedHost] = SimulatedHost,
        cheats: Sequence[int] = (),
        down: Sequence[int] = (),
        crash_at: dict[int, int] | None = None,
    ) -> None:
        places = range(len(powers))
        network = Network(delay_ms, loss_percent)
        scenario = Scenario(
            seed=seed,
            powers=tuple(powers),
            roles=tuple(Role.EQUIVOCATOR if i in cheats else Role.HONEST for i in places),
            wild=network,
            calm=network,
            cuts=(),
            crash_every_ms=0,
            gst_ms=0,
            heartbeat_ms=heartbeat_ms,
            epoch_blocks=epoch_blocks,
        )
        super().__init__(scenario, host)
        self.restart_ms, self.max_events = restart_ms, 10**9
        for me, effects in (crash_at or {}).items():
            self.hosts[me].crash_at = effects
        self.start()
        for me in down:
            self.hosts[me].is_down = True

    def get_execution_ms(self) -> int:
        return 0

    def get_restart_ms(self) -> int:
        return self.restart_ms

    def _tell_work(self) -> None:
        """There is none by itself."""

    def tell_work(self) -> None:
        for host in self.hosts:
            host.feed(WorkArrived())

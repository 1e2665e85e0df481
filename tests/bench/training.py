"""A training run in the background: four clients on threads, until the chain is gone."""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelyard.client import Client, Organisation, Result, Task, coins
from steelyard.client.outbox import Clock
from steelyard.client.records import RoundState
from steelyard.node.localnet import Localnet

from .cluster import make_account, wait_until
from .finality import open_organisation

CLIENTS = 4
MANY_ROUNDS = 10_000
PARAMETERS = 20_000
"""A model that fits no single message, so that kills hit updates on their way as well."""
Arrays = dict[str, NDArray[np.float32]]


class Ended(BaseException):
    """The run is over; the client that hears this takes part no more."""


@dataclass
class Training:
    """Clients that take part, each on a thread of its own, until the task is over."""

    organisation: Organisation
    task: int
    urls: list[str]
    directory: Path
    threads: list[threading.Thread] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    """What ended a client before its time; while it is empty all four take part."""
    is_over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        for place in range(CLIENTS):
            thread = threading.Thread(target=self._take_part, args=(place,), daemon=True)
            thread.start()
            self.threads.append(thread)

    def _sleep(self, seconds: float) -> None:
        if self.is_over.wait(seconds):
            raise Ended

    def stop(self) -> None:
        """Let no client go on, nor write where soon nothing is."""
        self.is_over.set()
        for thread in self.threads:
            thread.join()

    def _take_part(self, place: int) -> None:
        """Train until the task is over or the chain is gone; begin with another node each."""
        generator = np.random.default_rng(place)
        turn = place % len(self.urls)
        client = Client(
            self.urls[turn:] + self.urls[:turn],
            key=make_account(1 + place),
            state=self.directory / f"site-{place}",
            report=partial(self._note, place),
            clock=Clock(sleep=self._sleep),
            poll_seconds=0.1,
        )

        @client.train
        def train(model: Arrays, _context: object) -> Result:
            changed = {
                name: values + generator.normal(0, 0.01, values.shape).astype(np.float32)
                for name, values in model.items()
            }
            return Result(changed, samples=10, metrics={})

        try:
            client.run(self.task, samples=10)
        except Ended:
            pass
        except BaseException as error:
            self.failures.append(error)

    def _note(self, place: int, line: str) -> None:
        """Keep what a client says, for whoever wonders what it waits for."""
        with (self.directory / f"site-{place}.log").open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%H:%M:%S')} {line}\n")

    def get_round(self) -> int:
        return self.organisation.tasks.get_task(self.task).round

    def count_incomplete(self) -> int:
        """Return how many rounds before the present one were not made of every client's update."""
        rounds = self.organisation.rounds
        states = [rounds.get_round(self.task, number) for number in range(1, self.get_round())]
        return sum(
            state.state is not RoundState.AGGREGATED or state.counts[2] != CLIENTS
            for state in states
        )


@contextmanager
def train_on(net: Localnet) -> Iterator[Training]:
    """Publish a task and let four clients take part, each knowing all validators."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as opened:
        organisation = opened.enter_context(open_organisation(net, Path(temporary)))
        published = organisation.publish(
            Task(
                name="background",
                model={"weights": np.zeros(PARAMETERS, np.float32)},
                rounds=MANY_ROUNDS,
                min_clients=CLIENTS,
                max_clients=CLIENTS,
                join_seconds=600,
                round_seconds=600,
                reward=coins(1_000),
                admission_norm=100.0,
                stake_per_sample=coins("0.01"),
            )
        )
        urls = [net.urls[number] for number in net.numbers]
        training = Training(organisation, published.number, urls, Path(temporary))
        training.start()
        opened.callback(training.stop)
        wait_until(lambda: training.get_round() >= 1, "training begins")
        yield training

"""Four real validators under kill -9 and partition, with a training run going on.

Nothing is simulated: processes, disks and sockets are what operators have. A partition is made by
cutting the TCP relays through which each validator reaches each other one.
"""

import random
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelyard.client import Client, Organisation, Result, Task, coins
from steelyard.client.contracts import RoundState
from steelyard.node.config import CONFIG_FILE, encode_config, load_config
from steelyard.node.localnet import Localnet

from .cluster import (
    count_events,
    get_height,
    is_in_one,
    make_account,
    run_cluster,
    wait_until,
)
from .finality import open_organisation
from .relays import Relays
from .timing import Measurement

KILLS = 50
CLIENTS = 4
MANY_ROUNDS = 10_000
PARTITION_SECONDS = 60.0
MAX_DOWN_SECONDS = 2.0
MAX_UP_SECONDS = 3.0
Arrays = dict[str, NDArray[np.float32]]


def run() -> list[Measurement]:
    """Return a row for the kills and one for each partition."""
    return [measure_kills(), *measure_partitions()]


# -- a training run in the background --------------------------------------------------------------
@dataclass
class Training:
    """Clients that take part, each on a thread of its own, until the task is over."""

    organisation: Organisation
    task: int
    urls: list[str]
    directory: Path
    threads: list[threading.Thread] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def start(self) -> None:
        for place in range(CLIENTS):
            thread = threading.Thread(target=self._take_part, args=(place,), daemon=True)
            thread.start()
            self.threads.append(thread)

    def _take_part(self, place: int) -> None:
        """Train until the task is over or the chain is gone; begin with another node each."""
        generator = np.random.default_rng(place)
        turn = place % len(self.urls)
        client = Client(
            self.urls[turn:] + self.urls[:turn],
            key=make_account(1 + place),
            state=self.directory / f"site-{place}",
            report=lambda _line: None,
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
        except BaseException as error:
            self.failures.append(error)

    def get_round(self) -> int:
        return self.organisation.tasks.get_task(self.task).round

    def count_incomplete(self) -> int:
        """Return how many rounds before the present one were not made of every client's update."""
        tasks = self.organisation.tasks
        states = [tasks.get_round(self.task, number) for number in range(1, self.get_round())]
        return sum(
            state.state is not RoundState.AGGREGATED or state.revealed != CLIENTS
            for state in states
        )


@contextmanager
def train_on(net: Localnet) -> Iterator[Training]:
    """Publish a task and let four clients take part, each knowing all validators."""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as opened:
        organisation = opened.enter_context(open_organisation(net, Path(temporary)))
        published = organisation.publish(
            Task(
                name="faults",
                model={"weights": np.zeros(62, np.float32)},
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
        wait_until(lambda: training.get_round() >= 1, "training begins")
        yield training


# -- kill -9 ---------------------------------------------------------------------------------------
def measure_kills() -> Measurement:
    """Kill one validator after the other at random instants; nothing may be lost."""
    seen: dict[tuple[int, int], str] = {}
    draw = random.Random()
    started = time.monotonic()
    with run_cluster(accounts=CLIENTS + 1) as net, train_on(net) as training:
        for _ in range(KILLS):
            time.sleep(draw.uniform(0, MAX_UP_SECONDS))
            number = draw.choice(net.numbers)
            remember(net, number, seen)
            net.kill(number)
            time.sleep(draw.uniform(0, MAX_DOWN_SECONDS))
            net.start(number)
            net.wait_answer([number])
            target = max(get_height(net, other) for other in net.numbers)
            net.wait_final(target, [number])
        rounds = training.get_round()
        wait_until(lambda: training.get_round() > rounds, "one more round after the last kill")
        lost = sum(net.get_hash(number, height) != name for (number, height), name in seen.items())
        doubles = count_events(net, "validators_misbehave") + count_events(net, "vote_refused")
        incomplete = training.count_incomplete()
        agree = is_in_one(net, net.numbers)
        failures = len(training.failures)
    return Measurement(
        "4 validators, training",
        f"kill -9 ({KILLS})",
        (time.monotonic() - started) / KILLS,
        1.0,
        {"rounds": rounds, "incomplete": incomplete, "clients failed": failures},
        {
            "kill9_runs": KILLS,
            "kill9_lost_blocks": lost,
            "kill9_double_votes": doubles,
            "kill9_rounds": rounds,
            "kill9_incomplete_rounds": incomplete,
            "kill9_roots_equal": agree,
        },
    )


def remember(net: Localnet, number: int, seen: dict[tuple[int, int], str]) -> None:
    """Note what a validator says is final, to ask again at the end."""
    height = get_height(net, number)
    name = net.get_hash(number, height) if height >= 0 else None
    if name is not None:
        seen[number, height] = name


# -- partitions ------------------------------------------------------------------------------------
def measure_partitions() -> list[Measurement]:
    """Cut two from two, then one from three, and let them heal by themselves."""
    relays = Relays()
    try:
        with run_cluster(accounts=CLIENTS + 1, prepare=lambda net: reroute(net, relays)) as net:
            halves = cut_in_halves(net, relays)
            lone = cut_one_off(net, relays)
    finally:
        relays.close()
    return [halves, lone]


def reroute(net: Localnet, relays: Relays) -> None:
    """Let each validator reach each other one through a relay of their own, both lanes."""
    from steelyard.chain.genesis import parse_genesis

    validators = parse_genesis((net.directory / "genesis.json").read_bytes()).validators
    for number in net.numbers:
        peers = []
        for other, validator in zip(net.numbers, validators, strict=True):
            if other != number:
                port = int(validator.endpoint.rpartition(":")[2])
                entry = relays.open_pair((number, other), port)
                peers.append(f"0x{validator.address.hex()}=127.0.0.1:{entry}")
        directory = net.get_directory(number)
        config = load_config(directory)
        config = replace(config, network=replace(config.network, peers=tuple(peers)))
        (directory / CONFIG_FILE).write_text(encode_config(config))


def cut_in_halves(net: Localnet, relays: Relays) -> Measurement:
    """2|2: nothing may become final; once it heals, all go on by themselves."""
    half = set(net.numbers[: len(net.numbers) // 2])
    relays.cut(lambda pair: (pair[0] in half) != (pair[1] in half))
    time.sleep(2)  # what was on its way when the wires were cut may still arrive
    before = [get_height(net, number) for number in net.numbers]
    time.sleep(PARTITION_SECONDS)
    stood = max(get_height(net, number) for number in net.numbers) <= max(before)
    relays.heal()
    goal = max(before) + 3
    seconds = wait_until(
        lambda: all(get_height(net, number) >= goal for number in net.numbers),
        "all go on after the partition",
    )
    heals = stood and is_in_one(net, net.numbers)
    return Measurement(
        "4 validators",
        f"2|2 for {PARTITION_SECONDS:.0f} s, then on",
        seconds,
        1.0,
        {"stood still": float(stood)},
        {"partition_heals": heals, "partition_heal_seconds": round(seconds, 1)},
    )


def cut_one_off(net: Localnet, relays: Relays) -> Measurement:
    """3|1: three go on, the fourth catches up."""
    lone = net.numbers[-1]
    relays.cut(lambda pair: lone in pair)
    before = get_height(net, lone)
    time.sleep(PARTITION_SECONDS / 4)
    others = [get_height(net, number) for number in net.numbers if number != lone]
    went_on = min(others) > before + 2
    relays.heal()
    goal = max(others)
    seconds = wait_until(lambda: get_height(net, lone) >= goal, "the fourth catches up")
    catches_up = went_on and is_in_one(net, net.numbers)
    return Measurement(
        "4 validators",
        "3|1, then the fourth catches up",
        seconds,
        1.0,
        {"blocks behind": float(goal - before)},
        {"partition_one_catches_up": catches_up},
    )

"""How long a user of four validators waits: one small transaction; four 1 MB updates together.

Real processes with their network on loopback. The clock starts when the bytes are handed to one
validator and ends when the same one says that they are final; upload included.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import TypeVar

import numpy as np
from eth_account.signers.local import LocalAccount
from numpy.typing import NDArray

from steelyard.chain.model import Model, decode_model
from steelyard.chain.types import BlobName
from steelyard.client import Client, Organisation, Result, Task, coins
from steelyard.client.contracts import compute_commitment
from steelyard.client.records import RoundState
from steelyard.client.training import prepare_update
from steelyard.client.transactions import Call, compute_blob_call_gas
from steelyard.node.localnet import Localnet

from .cluster import CHAIN_ID, Wallet, make_account, run_cluster, wait_until
from .timing import Measurement

SMALL = 200
PAUSES = (0.05, 0.31)
"""Seconds between two transactions, in turn: so that they meet the chain's rhythm anywhere."""
ROUNDS = 7
CLIENTS = 4
PARAMETERS = 1_000_000
SALT = bytes(32)
Arrays = dict[str, NDArray[np.float32]]
Found = TypeVar("Found")


def run() -> list[Measurement]:
    """Return a row for the small transactions and one for the updates."""
    with run_cluster(accounts=CLIENTS + 2) as net:
        return [measure_small(net), measure_updates(net)]


def measure_small(net: Localnet) -> Measurement:
    wallets = [
        Wallet.open(make_account(place), net.urls[number])
        for place, number in enumerate(net.numbers)
    ]
    times = []
    try:
        for wallet in wallets:
            wallet.hand_in(wallet.sign_transfer())
        for turn in range(SMALL):
            wallet = wallets[turn % len(wallets)]
            raw = wallet.sign_transfer()
            times.append(wallet.hand_in(raw))
            time.sleep(PAUSES[turn % 2])
    finally:
        for wallet in wallets:
            wallet.close()
    p50, p99 = median(times), quantiles(times, n=100)[98]
    return Measurement(
        "4 validators, idle",
        f"a transfer is final ({SMALL})",
        p50,
        1.0,
        {"ms p99": p99 * 1e3, "ms worst": max(times) * 1e3},
        {
            "finality_small_p50_ms": round(p50 * 1e3, 1),
            "finality_small_p99_ms": round(p99 * 1e3, 1),
        },
    )


# -- four updates at once --------------------------------------------------------------------------
class Site:
    """One client on a thread of its own (as its journal wants), driven step by step."""

    def __init__(self, url: str, account: LocalAccount, state: Path, task: int, seed: int) -> None:
        self.task, self._random = task, np.random.default_rng(seed)
        self._thread = ThreadPoolExecutor(1)
        self.client = self.do(
            lambda: Client(
                url, key=account, state=state, report=lambda _line: None, poll_seconds=0.02
            )
        ).result()

    def do(self, work: Callable[[], Found]) -> "Future[Found]":
        """Run something on the client's thread."""
        return self._thread.submit(work)

    def close(self) -> None:
        self.do(self.client.close).result()
        self._thread.shutdown()

    def prepare(self, number: int, model: Model, base: BlobName) -> None:
        """Make the round's update and commit to it."""
        arrays: Arrays = {
            spec.name: self._random.normal(0, 1e-3, spec.shape).astype(np.float32)
            for spec in model.manifest.updated
        }
        self.update = prepare_update(
            model,
            base,
            Result(arrays, samples=10),
            chain_id=CHAIN_ID,
            task=self.task,
            round_number=number,
            sender=self.client.address,
            bits=8,
            max_norm2=self.client.tasks.get_task(self.task).parameters.admission_norm2,
        )
        commitment = compute_commitment(
            CHAIN_ID, self.task, number, number, self.client.address, self.update.update, 10, SALT
        )
        rounds = self.client.rounds
        words = (self.task, number, number, commitment)
        self.client.send(f"commit/{number}", "commit", *words, contract=rounds)
        self._base = base

    def reveal(self, number: int) -> None:
        """Hand transaction and update to our validator; return when it is final."""
        name = self.update.update
        rounds = self.client.rounds
        data = rounds.encode(
            "reveal", self.task, number, number, (name.digest, name.size), 10, SALT
        )
        gas = compute_blob_call_gas((name,), (name, self._base), name.size)
        call = Call(rounds.address, data, gas=gas, blobs=(name,))
        self.client.outbox.send(f"reveal/{number}", call, {name: self.update.data})


def measure_updates(net: Localnet) -> Measurement:
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as opened:
        organisation = opened.enter_context(open_organisation(net, Path(temporary)))
        rng = np.random.default_rng(1)
        published = organisation.publish(
            Task(
                name="finality",
                model={"weights": rng.normal(0, 0.1, PARAMETERS).astype(np.float32)},
                rounds=ROUNDS,
                min_clients=CLIENTS,
                max_clients=CLIENTS,
                join_seconds=600,
                round_seconds=600,
                reward=coins(10),
                admission_norm=100.0,
                stake_per_sample=coins("0.01"),
            )
        )
        task = published.number
        sites = [
            Site(
                net.urls[number], make_account(number), Path(temporary) / f"{number}", task, number
            )
            for number in net.numbers
        ]
        for site in sites:
            opened.callback(site.close)
        for site in sites:
            site.do(lambda client=site.client: client.join(task, 10)).result()
        times = [time_round(organisation, sites, task, number) for number in range(1, ROUNDS + 1)]
    return Measurement(
        "4 validators, 4 x 1 MB",
        f"all revealed and final ({ROUNDS})",
        median(times),
        1.0,
        {"ms worst": max(times) * 1e3},
        {"finality_4x1mb_p50_ms": round(median(times) * 1e3, 1)},
    )


def time_round(organisation: Organisation, sites: list[Site], task: int, number: int) -> float:
    """Return the seconds from the first update's hand-over to the last one's finality."""
    tasks = organisation.tasks
    wait_until(lambda: tasks.get_task(task).round == number, f"round {number} begins")
    base = organisation.rounds.get_round(task, number).base
    model = decode_model(organisation.rpc.get_blob(base))
    for made in [site.do(partial(site.prepare, number, model, base)) for site in sites]:
        made.result()
    started = time.perf_counter()
    for ended in [site.do(partial(site.reveal, number)) for site in sites]:
        ended.result()
    seconds = time.perf_counter() - started
    wait_until(
        lambda: organisation.rounds.get_round(task, number).state is RoundState.AGGREGATED,
        f"round {number} is aggregated",
    )
    return seconds


@contextmanager
def open_organisation(net: Localnet, directory: Path) -> Iterator[Organisation]:
    """Open the account that publishes; the first rich one."""
    with Organisation(
        [net.urls[number] for number in net.numbers],
        key=make_account(0),
        state=directory / "organisation",
        report=lambda _line: None,
        poll_seconds=0.05,
    ) as organisation:
        yield organisation

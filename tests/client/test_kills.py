"""Kill a client between any two steps: it resends identical bytes and never submits twice.

A step is a request to a node (killed before it leaves, or after it arrived and before the answer)
or a change of the journal (killed before it is on disk, or right after). Between two steps nothing
lasts, so a kill after one is a kill before the next.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest

from steelyard.chain.transactions import decode_transaction
from steelyard.client.organisation import Organisation
from steelyard.client.participant import Client
from steelyard.client.state import Journal
from steelyard.client.training import Result

from .conftest import HOSPITAL, ORGANISATION, make_task, open_account
from .ledger import Ledger


class Killed(BaseException):
    """kill -9 at this very moment."""


class Fuse:
    """Kills at one step, before or after it happens; `None` only counts."""

    def __init__(self, step: int | None, after: bool) -> None:
        self.step, self.after, self.count = step, after, 0

    @contextmanager
    def step_over(self) -> Iterator[None]:
        self.count += 1
        is_now = self.count == self.step
        if is_now and not self.after:
            raise Killed
        yield
        if is_now and self.after:
            raise Killed


def train_with_noise(arrays, context) -> Result:
    """Fresh noise at each call: a second training for a round would show."""
    noise = np.random.default_rng()
    moved = {
        name: (array + noise.normal(0, 0.01, array.shape)).astype(np.float32)
        for name, array in arrays.items()
    }
    return Result(moved, samples=30)


def evaluate(arrays, context) -> Result:
    return Result(samples=10, metrics={"accuracy": 0.75})


def run_once(ledger: Ledger, state: Path, fuse: Fuse, monkeypatch: pytest.MonkeyPatch) -> None:
    """One life of the process; it ends with the task or with Killed."""

    def answer(request: httpx.Request) -> httpx.Response:
        with fuse.step_over():
            return ledger.answer(request)

    writing = Journal._writing

    @contextmanager
    def fused(journal: Journal):
        with fuse.step_over(), writing(journal) as db:
            yield db

    monkeypatch.setattr(Journal, "_writing", fused)
    client = None
    try:
        client = open_account(Client, ledger, HOSPITAL, state, answer)
        client.train(train_with_noise)
        client.evaluate(evaluate)
        client.run(1, samples=50)
        client.leave(1)
    finally:
        monkeypatch.setattr(Journal, "_writing", writing)
        if client is not None:
            client.close()


def publish(ledger: Ledger, directory: Path) -> None:
    with open_account(Organisation, ledger, ORGANISATION, directory / "organisation") as opened:
        opened.publish(make_task(base_stake=7))


def check_once_and_identical(ledger: Ledger) -> None:
    """Each thing was sent in one form, happened once, and was paid once."""
    sent = [decode_transaction(raw) for raw in ledger.seen]
    nonces = Counter((transaction.sender, transaction.nonce) for transaction in sent)
    assert set(nonces.values()) == {1}, "two transactions with one nonce"
    calls = Counter()
    for transaction in sent:
        if transaction.sender.hex() == HOSPITAL.address[2:].lower():
            contract = ledger.agreement.contracts[transaction.to]
            name, arguments = contract.decode_call(transaction.data)
            calls[(name, arguments.get("round"))] += 1
    expected = [(name, n) for name in ("commit", "reveal", "report") for n in (1, 2)]
    expected += [("join", None), ("claim", None), ("leave", None)]
    assert calls == dict.fromkeys(expected, 1)
    assert all(receipt["status"] == "0x1" for receipt in ledger.receipts.values())
    assert len(set(ledger.uploads)) == 2 + 2, "model and bundle, and one update a round"
    assert ledger.tasks[1].state == 3
    assert not ledger.tasks[1].members
    assert not ledger.tasks[1].claimable


def count_steps(directory: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    ledger, fuse = Ledger(), Fuse(None, after=False)
    publish(ledger, directory)
    run_once(ledger, directory / "state", fuse, monkeypatch)
    check_once_and_identical(ledger)
    return fuse.count


@pytest.mark.slow
def test_a_kill_at_any_step_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = count_steps(tmp_path / "count", monkeypatch)
    assert steps > 60
    for step, after in [*((step, False) for step in range(1, steps + 1)), (steps, True)]:
        directory = tmp_path / f"{step}-{after}"
        ledger = Ledger()
        publish(ledger, directory)
        with pytest.raises(Killed):
            run_once(ledger, directory / "state", Fuse(step, after), monkeypatch)
        run_once(ledger, directory / "state", Fuse(None, after), monkeypatch)
        check_once_and_identical(ledger)


@pytest.mark.slow
def test_kills_one_after_another_cost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every life is killed after a few more steps than the last."""
    ledger = Ledger()
    publish(ledger, tmp_path)
    for life in range(200):
        with suppress(Killed):
            run_once(ledger, tmp_path / "state", Fuse(11 + life // 4, life % 2 == 0), monkeypatch)
            break
    else:
        pytest.fail("it never finished")
    assert life > 5
    check_once_and_identical(ledger)


@pytest.mark.slow
def test_a_kill_while_publishing_never_deposits_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(ledger: Ledger, fuse: Fuse) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            with fuse.step_over():
                return ledger.answer(request)

        organisation = open_account(Organisation, ledger, ORGANISATION, state, answer)
        try:
            assert organisation.publish(make_task()).number == 1
        finally:
            organisation.close()

    fuse, state = Fuse(None, after=False), tmp_path / "count"
    run(Ledger(), fuse)
    for step in range(1, 2 * fuse.count + 1):
        ledger, state = Ledger(), tmp_path / str(step)
        with pytest.raises(Killed):
            run(ledger, Fuse(1 + (step - 1) // 2, after=step % 2 == 0))
        run(ledger, Fuse(None, after=False))
        assert len(ledger.tasks) == 1
        assert len(ledger.seen) == 1

"""Kill a client between any two steps: it resends identical bytes and never submits twice.

A step is a request to a node (killed before it leaves, or after it arrived and before the answer)
or a change of the journal (killed before it is on disk, or right after). Between two steps nothing
lasts, so a kill after one is a kill before the next.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from eth_account.signers.local import LocalAccount

from steelyard.chain.transactions import decode_transaction
from steelyard.client.account import Account
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


def live(
    ledger: Ledger,
    state: Path,
    fuse: Fuse,
    act: Callable[[Account], object],
    kind: type[Account] = Account,
    key: LocalAccount = ORGANISATION,
) -> None:
    """One life of a process, which ends with `act` or with Killed."""

    def answer(request: httpx.Request) -> httpx.Response:
        with fuse.step_over():
            return ledger.answer(request)

    writing = Journal._writing

    @contextmanager
    def fused(journal: Journal):
        with fuse.step_over(), writing(journal) as db:
            yield db

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "_writing", fused)
        with open_account(kind, ledger, key, state, answer) as account:
            act(account)


def take_part(client: Client) -> None:
    client.train(train_with_noise)
    client.evaluate(evaluate)
    client.run(1, samples=50)
    client.leave(1)


def run_once(ledger: Ledger, state: Path, fuse: Fuse) -> None:
    """One life of a participant's process; it ends with the task or with Killed."""
    live(ledger, state, fuse, take_part, Client, HOSPITAL)


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


def count_steps(directory: Path) -> int:
    ledger, fuse = Ledger(), Fuse(None, after=False)
    publish(ledger, directory)
    run_once(ledger, directory / "state", fuse)
    check_once_and_identical(ledger)
    return fuse.count


@pytest.mark.slow
def test_a_kill_at_any_step_costs_nothing(tmp_path: Path) -> None:
    steps = count_steps(tmp_path / "count")
    assert steps > 60
    for step, after in [*((step, False) for step in range(1, steps + 1)), (steps, True)]:
        directory = tmp_path / f"{step}-{after}"
        ledger = Ledger()
        publish(ledger, directory)
        with pytest.raises(Killed):
            run_once(ledger, directory / "state", Fuse(step, after))
        run_once(ledger, directory / "state", Fuse(None, after))
        check_once_and_identical(ledger)


@pytest.mark.slow
def test_kills_one_after_another_cost_nothing(tmp_path: Path) -> None:
    """Every life is killed after a few more steps than the last."""
    ledger = Ledger()
    publish(ledger, tmp_path)
    for life in range(200):
        with suppress(Killed):
            run_once(ledger, tmp_path / "state", Fuse(11 + life // 4, life % 2 == 0))
            break
    else:
        pytest.fail("it never finished")
    assert life > 5
    check_once_and_identical(ledger)


@pytest.mark.slow
def test_a_kill_while_publishing_never_deposits_twice(tmp_path: Path) -> None:
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


# -- coins that are added to coins -----------------------------------------------------------------
MISSING = 20
"""Of the stake, in wei, at the beginning."""
HOSPITAL_BYTES = bytes.fromhex(HOSPITAL.address[2:])
RECEIVER = "0x" + "77" * 20


def fund(organisation: Organisation) -> None:
    organisation.get_task(1).fund(5)


def sponsor(organisation: Organisation) -> None:
    organisation.get_task(1).sponsor(RECEIVER, stake=3, gas=2)


def stake(client: Client) -> None:
    client.add_stake(1, 5)


def fill(client: Client) -> None:
    client.add_stake(1)


def count_coins(ledger: Ledger) -> Counter:
    """What a task and its people have, where only coins that came twice could make it more."""
    task, receiver = ledger.tasks[1], bytes.fromhex(RECEIVER[2:])
    return Counter(
        fund=task.reward_left,
        sponsor=task.sponsorships.get(receiver, 0) + ledger.get_balance(receiver),
        stake=task.members[HOSPITAL_BYTES].stake,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "kind", "key", "more"),
    [
        (fund, Organisation, ORGANISATION, {"fund": 5}),
        (sponsor, Organisation, ORGANISATION, {"sponsor": 5}),
        (stake, Client, HOSPITAL, {"stake": 5}),
        (fill, Client, HOSPITAL, {"stake": MISSING}),
    ],
)
def test_a_kill_at_any_step_adds_no_coins_twice(
    tmp_path: Path, act, kind, key, more: dict[str, int]
) -> None:
    ledger, fuse = Ledger(), Fuse(None, after=False)
    join_in_lobby(ledger, tmp_path)
    live(ledger, tmp_path / "count", fuse, act, kind, key)
    assert fuse.count > 5
    for step in range(1, fuse.count + 1):
        state = tmp_path / str(step)
        ledger.tasks[1].members[HOSPITAL_BYTES].stake = 50 - MISSING
        before = count_coins(ledger)
        with pytest.raises(Killed):
            live(ledger, state, Fuse(step, after=False), act, kind, key)
        live(ledger, state, Fuse(None, after=False), act, kind, key)
        assert count_coins(ledger) - before == more, step


def join_in_lobby(ledger: Ledger, directory: Path) -> None:
    """A task that does not start, and the hospital in it."""
    with open_account(Organisation, ledger, ORGANISATION, directory / "organisation") as opened:
        opened.publish(make_task(base_stake=50, max_clients=3))
    with open_account(Client, ledger, HOSPITAL, directory / "hospital") as opened:
        opened.join(1, 5)
    ledger.tasks[1].members[HOSPITAL_BYTES].stake -= MISSING

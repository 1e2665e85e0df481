"""After a long pause on a real node: what the round needs is declared again, and nobody is bound
to a base that expires."""

import threading
import time
from pathlib import Path

import pytest

from steelyard.client import Client, Organisation, Task, coins
from steelyard.client.contracts import get_contract
from steelyard.client.records import TaskState
from steelyard.client.transactions import Call
from steelyard.node.clock import Clock
from steelyard.node.http import HttpServer

from .test_real_chain import FIRST, PUBLISHER, Calendar, found, make_model, make_trainer

DAY = 86_400
PATIENCE_SECONDS = 60.0


def wait_for_state(task, state: TaskState) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while task.get_info().state is not state:
        assert time.monotonic() < deadline, task.get_info()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("who_renews", ["organisation", "participant"])
def test_a_pause_almost_as_long_as_files_are_kept_costs_nobody_a_bond(
    tmp_path: Path, who_renews: str
) -> None:
    calendar, told, paused = Calendar(), list[str](), threading.Event()
    node = found(tmp_path / "validator", Clock(get_unix_seconds=calendar.get_unix_seconds))
    server = HttpServer(node, "127.0.0.1", 0)
    server.start()
    node.start()
    try:
        with Organisation(
            server.url, PUBLISHER, state=tmp_path / "org", report=told.append, poll_seconds=0.1
        ) as organisation:
            terms = Task(
                name="heart",
                model=make_model(),
                rounds=2,
                min_clients=1,
                max_clients=1,
                round_seconds=600,
                reward=1000,
                base_stake=coins(1),
                bond=coins(1),
            )
            task = organisation.publish(terms)

            def train(model, ctx):
                assert paused.wait(PATIENCE_SECONDS)
                return make_trainer(FIRST)(model, ctx)

            def take_part() -> None:
                with Client(
                    server.url, FIRST, state=tmp_path / "site", report=told.append, poll_seconds=0.1
                ) as client:
                    client.train(train)
                    client.run(task.number, 40)

            thread = threading.Thread(target=take_part)
            thread.start()
            wait_for_state(task, TaskState.RUNNING)
            task.pause()
            paused.set()
            wait_for_state(task, TaskState.PAUSED)
            calendar.ahead += 7 * DAY - 3_600
            if who_renews == "organisation":
                task.resume()
            else:
                tasks = get_contract("Tasks")
                data = tasks.encode_call("resume", task.number)
                organisation.outbox.send("resume as it is", Call(tasks.address, data))
            wait_for_state(task, TaskState.FINISHED)
            thread.join()
            account = organisation.tasks.get_account(task.number)
            assert (account.burned, account.paid) == (0, 1000), told
            assert any("again" in line for line in told), told
    finally:
        server.stop()
        node.stop()

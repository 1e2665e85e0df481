"""A thread with bounded work: nobody's messages use up the room of another's."""

import logging
import threading

import pytest

from steelyard.chain.types import Address
from steelyard.node.network.loop import TURN_SECONDS, Loop

from .blob_kit import ANN, BEN, CAT
from .kit import wait_until


def make_loop(turns: list[float] | None = None) -> Loop:
    turns = [] if turns is None else turns
    return Loop("test", turns.append, lambda: 7.0, max_for_peer=3, max_waiting=5)


def test_work_is_done_in_its_order_then_a_turn_is_taken() -> None:
    turns: list[float] = []
    done: list[str] = []
    loop = make_loop(turns)
    for name in "abc":
        loop.post(lambda name=name: done.append(name), ANN)  # type: ignore[misc]
    loop.run_once()
    assert (done, turns) == (["a", "b", "c"], [7.0])


def test_a_validator_has_its_own_room_and_all_have_one_together() -> None:
    done: list[str] = []
    loop = make_loop()
    for peer, name in ((ANN, "a"), (BEN, "b"), (CAT, "c")):
        for _ in range(4):
            loop.post(lambda name=name: done.append(name), peer)  # type: ignore[misc]
    loop.post(lambda: done.append("own"))
    loop.run_once()
    assert done == ["a", "a", "a", "b", "b", "c", "own"], "our own work is never dropped"
    assert loop.dropped == 6
    loop.post(lambda: done.append("again"), ANN)
    loop.run_once()
    assert done[-1] == "again"


def test_those_that_fill_the_list_leave_room_for_each_other_one() -> None:
    done: list[str] = []
    loop = make_loop()
    for number in range(9):
        for _ in range(3):
            loop.post(lambda: None, Address(bytes([100 + number]) * 20))
    loop.post(lambda: done.append("vote of confidence"), ANN)
    loop.run_once()
    assert done


def test_work_without_end_does_not_keep_the_turn_from_coming() -> None:
    now, turns = [0.0], list[float]()

    def work() -> None:
        now[0] += 0.01
        loop.post(work, ANN)

    loop = Loop("test", turns.append, lambda: now[0], 3, 5)
    loop.post(work, ANN)
    loop.run_once()
    assert turns == [pytest.approx(TURN_SECONDS)]


def test_what_fails_is_logged_now_and_then_and_the_rest_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done: list[str] = []
    loop = make_loop()
    with caplog.at_level(logging.ERROR, "steelyard.node"):
        for _ in range(20):
            loop.post(lambda: done.remove("nothing"))
        loop.post(lambda: done.append("after"))
        loop.run_once()
    assert done == ["after"]
    assert loop.failures == 20
    assert caplog.text.count("message_failed") == 5


def test_the_thread_wakes_for_work_and_ends_when_told() -> None:
    did = threading.Event()
    loop = Loop("test", lambda _: None, lambda: 0.0, 1, 1)
    loop.start()
    loop.post(did.set, ANN)
    wait_until(did.is_set)
    loop.stop()
    assert not any(thread.name == "test" for thread in threading.enumerate())

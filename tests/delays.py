"""Random pauses where threads pass something on: `make test-python ARGS="-p tests.delays"`.

A test that asserts what another thread does a moment later passes for months, and fails on a busy
machine. Here that moment is long: a thread starts late, a stored block is late in the pool and at
its listeners. A plugin of pytest, for tests in one process; those with real processes are as ever.
"""

import threading
import time
from collections.abc import Callable, Iterator
from functools import wraps
from random import Random
from typing import Any

import pytest

from steelyard.node.mempool import Mempool
from steelyard.node.node import Node
from steelyard.node.store import ChainStore

CHANCE = 0.5
MAX_SECONDS = 0.25
random = Random()


def pause() -> None:
    """Every second time, for a while."""
    if random.random() < CHANCE:
        time.sleep(random.random() * MAX_SECONDS)


def delay_before(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return the call with a pause before it."""

    @wraps(call)
    def delayed(*arguments: Any, **words: Any) -> Any:
        pause()
        return call(*arguments, **words)

    return delayed


def delay_after(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return the call with a pause behind it."""

    @wraps(call)
    def delayed(*arguments: Any, **words: Any) -> Any:
        answer = call(*arguments, **words)
        pause()
        return answer

    return delayed


def start_late(start: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    """Return `Thread.start`, which returns as ever, and what runs begins later."""

    @wraps(start)
    def started(thread: threading.Thread) -> None:
        thread.run = delay_before(thread.run)  # type: ignore[method-assign]
        start(thread)

    return started


@pytest.fixture(scope="session", autouse=True)
def _pauses() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChainStore, "commit", delay_after(ChainStore.commit))
        patch.setattr(Mempool, "remove_included", delay_before(Mempool.remove_included))
        patch.setattr(Node, "_announce", delay_before(Node._announce))
        patch.setattr(threading.Thread, "start", start_late(threading.Thread.start))
        yield

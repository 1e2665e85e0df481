"""The pool between the event loop and the threads."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from steelyard.chain.errors import SteelyardError
from steelyard.node.workers import WorkerPool


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    one = WorkerPool("test", 1, 2)
    one.start()
    yield one
    one.close()
    one.join(time.monotonic() + 10)


def test_results_and_exceptions_reach_the_caller(pool: WorkerPool) -> None:
    async def scenario() -> None:
        assert await pool.run(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await pool.run(lambda: 1 // 0)
        assert pool.waiting == 0

    asyncio.run(scenario())


def test_more_than_may_wait_is_refused_as_busy(pool: WorkerPool) -> None:
    async def scenario() -> None:
        release = threading.Event()
        waiting = [asyncio.create_task(pool.run(release.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(SteelyardError) as caught:
            await pool.run(lambda: None)
        assert caught.value.code == "busy"
        release.set()
        assert await asyncio.gather(*waiting) == [True, True]
        assert await pool.run(lambda: 7) == 7

    asyncio.run(scenario())


def test_a_job_whose_caller_left_is_skipped_and_frees_its_place(pool: WorkerPool) -> None:
    async def scenario() -> None:
        release, ran = threading.Event(), []
        first = asyncio.create_task(pool.run(release.wait))
        second = asyncio.create_task(pool.run(lambda: ran.append(True)))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        release.set()
        await first
        assert await pool.run(lambda: 7) == 7
        assert ran == []
        assert pool.waiting == 0

    asyncio.run(scenario())


def test_deep_recursion_through_c_frames_does_not_kill_the_process(pool: WorkerPool) -> None:
    """Sorting with a key that sorts: each level has several C frames, as nested EVM calls have."""

    def descend(depth: int) -> int:
        return depth if depth == 0 else sorted([depth], key=lambda one: descend(one - 1))[0]

    async def scenario() -> None:
        assert await pool.run(lambda: descend(2_000)) == 2_000

    asyncio.run(scenario())

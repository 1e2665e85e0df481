"""A bounded set of threads for everything that blocks, awaited from the event loop.

The event loop of the HTTP side never waits for the disk or the EVM: it hands work to a pool and
awaits the answer. The threads have the stack that deep EVM calls need.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from steelyard.chain.errors import SteelyardError

from .calls import start_thread
from .logs import log_alarm

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Job:
    """Work and the future, on its event loop, that waits for the result."""

    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"
    work: Callable[[], Any]


class WorkerPool:
    """`threads` threads, and at most `max_waiting` jobs that have not ended. One event loop."""

    def __init__(self, name: str, threads: int, max_waiting: int) -> None:
        self.name, self.threads, self.max_waiting = name, threads, max_waiting
        self.waiting = 0
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._started: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads."""
        self._started = [
            start_thread(f"{self.name}-{index}", self._work) for index in range(self.threads)
        ]

    def close(self) -> None:
        """Let the threads end after what they are doing."""
        for _ in self._started:
            self._jobs.put(None)

    def join(self, deadline: float) -> None:
        """Wait for the threads until `time.monotonic()` reaches the deadline, then leave them."""
        for thread in self._started:
            thread.join(max(0.0, deadline - time.monotonic()))

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run `work` on one of the threads. Raises SteelyardError "busy" when too much waits."""
        if self.waiting >= self.max_waiting:
            raise SteelyardError(
                "busy", f"{self.waiting} {self.name} jobs already wait; try again later"
            )
        self.waiting += 1
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._jobs.put(Job(loop, future, work))
        return await future

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            result, error = None, None
            if not job.future.cancelled():
                try:
                    result = job.work()
                except BaseException as raised:  # it belongs to whoever awaits the future
                    error = raised
            try:
                job.loop.call_soon_threadsafe(self._settle, job, result, error)
            except RuntimeError:
                log_alarm("answer_dropped", pool=self.name, reason="the event loop has closed")

    def _settle(self, job: Job, result: object, error: BaseException | None) -> None:
        """On the event loop: hand over the result, unless nobody waits any more."""
        self.waiting -= 1
        if job.future.cancelled():
            return
        if error is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)

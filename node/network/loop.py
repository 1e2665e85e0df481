"""A thread with a bounded list of work, which also takes a turn several times a second."""

import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from steelyard.chain.params import MAX_VALIDATORS
from steelyard.chain.types import Address

from ..calls import start_thread
from ..logs import log_alarm

TURN_SECONDS: Final = 0.05


class Loop:
    """Work that other validators cause is bounded for each of them and altogether.

    What does not fit is dropped and counted: senders ask again, or send again.
    """

    def __init__(
        self,
        name: str,
        take_turn: Callable[[float], None],
        clock: Callable[[], float],
        max_for_peer: int,
        max_waiting: int,
    ) -> None:
        """`take_turn(now)` and all work run on one thread. `clock` gives monotonic seconds."""
        self.name, self._take_turn, self._clock = name, take_turn, clock
        self._max_for_peer, self._max_waiting = max_for_peer, max_waiting
        # Others have filled it: what one of so many may have waiting is left to each.
        self._max_when_full = max(1, max_waiting // MAX_VALIDATORS)
        self._condition = threading.Condition()
        self._waiting: deque[tuple[Address | None, Callable[[], None]]] = deque()
        self._waiting_for: Counter[Address] = Counter()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.dropped = self.failures = 0

    def post(self, work: Callable[[], None], peer: Address | None = None) -> None:
        """Have the thread do this soon; `peer` is whose message causes it, None for our own."""
        with self._condition:
            if peer is not None:
                is_full = len(self._waiting) >= self._max_waiting
                limit = self._max_when_full if is_full else self._max_for_peer
                if self._waiting_for[peer] >= limit:
                    self.dropped += 1
                    return
                self._waiting_for[peer] += 1
            self._waiting.append((peer, work))
            self._condition.notify()

    def start(self) -> None:
        self._thread = start_thread(self.name, self._run)

    def stop(self) -> None:
        """End after the work at hand, and wait for it."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread is not None:
            self._thread.join()

    def run_once(self) -> None:
        """Do what waits, but no longer than until the next turn is due, then take that."""
        until = self._clock() + TURN_SECONDS
        while not self._stopping:
            with self._condition:
                if not self._waiting:
                    break
                peer, work = self._waiting.popleft()
                if peer is not None:
                    self._waiting_for[peer] -= 1
            self._guard(work)
            if self._clock() >= until:
                break  # a flood must not keep the turn from coming
        self._guard(lambda: self._take_turn(self._clock()))

    def _guard(self, work: Callable[[], None]) -> None:
        """One message must not end the thread that serves all: what it hit is ours to fix."""
        try:
            work()
        except Exception as error:
            self.failures += 1
            if self.failures.bit_count() == 1:  # the first, second, fourth, eighth … time
                times, reason = self.failures, repr(error)
                log_alarm("message_failed", trace=True, thread=self.name, times=times, error=reason)

    def _run(self) -> None:
        while not self._stopping:
            self.run_once()
            with self._condition:
                if not self._waiting and not self._stopping:
                    self._condition.wait(TURN_SECONDS)

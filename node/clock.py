"""The node's two clocks, so that tests can turn them by hand."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """`get_seconds` never goes back; `get_unix_seconds` is the wall clock, which may."""

    get_seconds: Callable[[], float] = time.monotonic
    get_unix_seconds: Callable[[], float] = time.time

    def get_ms(self) -> int:
        """Monotonic milliseconds, for the consensus machine."""
        return int(self.get_seconds() * 1000)

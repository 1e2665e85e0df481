"""A chain that stands still while a transaction waits for a block: noticed, and told once."""

import time
from typing import Final

STILL_SECONDS: Final = 15.0
"""Whoever has a transaction makes a block of it within a second or two, and of nothing every few
seconds: after this no block is a fault, of the chain or of the node that is asked."""


class Stillness:
    """Watches the head while something is waited for. Times are of the caller's clock."""

    def __init__(self, waiting: str) -> None:
        self._waiting = waiting
        self._height, self._since = -1, 0.0
        self._seen_at = ""
        self._is_told = False

    def observe(self, height: int, now: float) -> str:
        """Return what is to be told about the head, if anything. Nodes may be behind each other."""
        if height > self._height:
            was_told, self._is_told = self._is_told, False
            self._height, self._since = height, now
            self._seen_at = time.strftime("%H:%M:%S")
            return f"blocks come again: the head is {height}" if was_told else ""
        if self._is_told or now - self._since < STILL_SECONDS:
            return ""
        self._is_told = True
        return (
            f"the chain stands still: no block after {self._height} since {self._seen_at}; "
            f"{self._waiting} waits for the next one. Stopping here and running the same again "
            "later is safe: nothing is sent twice"
        )

"""Addresses of host names, looked up in the background.

ZeroMQ would look names up on the thread that moves all its bytes, where one slow name server,
chosen by a hostile validator, would stop everybody. Here each name has at most one lookup under
way, on a thread of its own.
"""

import socket
import threading
import time
from collections.abc import Callable
from typing import Final

LOOKUP_SECONDS: Final = 30.0
"""An answer, or none, is asked for again after this long."""


def look_up(host: str) -> tuple[str, ...]:
    """The host's IPv4 and IPv6 addresses in the system's order; empty if there are none."""
    try:
        rows = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(row[4][0]) for row in rows))


class Names:
    """Thread-safe. Lookups that are under way when nobody asks any more just end."""

    def __init__(
        self,
        look_up: Callable[[str], tuple[str, ...]] = look_up,
        get_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look_up = look_up
        self._get_seconds = get_seconds
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, tuple[str, ...]]] = {}
        self._under_way: set[str] = set()

    def get(self, host: str) -> tuple[str, ...]:
        """What is known by now. Never waits: empty at first, so ask again."""
        with self._lock:
            asked_at, addresses = self._known.get(host, (None, ()))
            is_fresh = asked_at is not None and self._get_seconds() < asked_at + LOOKUP_SECONDS
            if not is_fresh and host not in self._under_way:
                self._under_way.add(host)
                threading.Thread(
                    target=self._run, args=(host,), name="network-name", daemon=True
                ).start()
            return addresses

    def _run(self, host: str) -> None:
        addresses = self._look_up(host)
        with self._lock:
            # A name that stopped resolving keeps its last addresses: an outage of the name
            # server should not part validators that reach each other.
            last = self._known.get(host, (0.0, ()))[1]
            self._known[host] = (self._get_seconds(), addresses or last)
            self._under_way.discard(host)

"""The TCP connections that others opened to one lane, watched for what ZeroMQ leaves unbounded.

ZeroMQ counts whole messages, so a peer could send parts of one message without end and fill the
memory; it has no limit on connections; and it cannot close one. It does say which file descriptors
are its own, so this page asks the kernel how much came in on each since a message was taken from
it, and shuts down those that broke a limit.
"""

import contextlib
import socket
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

RECEIVED_AT: Final = 128
"""Where `struct tcp_info` of Linux has the 64-bit count of the bytes that came in."""
SPARE_CONNECTIONS: Final = 128
"""For handshakes that are under way, honest or not."""
MET_CHECKS: Final = 60
"""Whoever lasts for so many checks, at least a tenth of a second each, completed a handshake."""
CONNECTIONS_PER_PEER: Final = 4
"""One is in use; the others may be old ones that nobody has noticed the end of."""


@dataclass(slots=True)
class Connection:
    """One of them. `key` is empty until its first message; `received` is of the last check.

    `checks`: how many it has seen.
    """

    key: str = ""
    received: int = 0
    delivered_at: int = 0
    is_active: bool = False
    checks: int = 0


@dataclass(slots=True)
class Connections:
    """By file descriptor, oldest first. `max_unread`: bytes that may have come in untaken."""

    port: int
    max_unread: int
    rows: dict[int, Connection] = field(default_factory=dict)
    was_drained: bool = False
    shut: int = 0

    def add(self, descriptor: int, peers: int) -> None:
        """A new one. With too many for this number of peers, the least useful is shut down."""
        self.rows.pop(descriptor, None)
        if len(self.rows) >= CONNECTIONS_PER_PEER * peers + SPARE_CONNECTIONS:
            self.shut_down(self._find_least())
        self.rows[descriptor] = Connection()

    def remove(self, descriptor: int) -> None:
        self.rows.pop(descriptor, None)

    def note(self, descriptor: int, key: str) -> None:
        """A whole message of `key` was taken from this one."""
        row = self.rows.get(descriptor)
        if row is not None:
            row.key, row.is_active = key, True

    def check(self, is_drained: bool) -> None:
        """Shut down those with too much unread; `is_drained`: no whole message is waiting.

        A message taken since the last check, when none was waiting, ended after that check: so
        what had come in by then is no longer in memory.
        """
        for descriptor, row in list(self.rows.items()):
            received = read_received(descriptor)
            if row.is_active and self.was_drained:
                row.delivered_at = row.received
            row.is_active = False
            row.checks += 1
            row.received = received
            if received - row.delivered_at > self.max_unread:
                self.shut_down(descriptor)
        self.was_drained = is_drained

    def shut_down(self, descriptor: int) -> None:
        """End it; ZeroMQ notices and cleans up."""
        self.rows.pop(descriptor, None)
        self.shut += 1
        with contextlib.suppress(OSError), _Borrowed(descriptor) as borrowed:
            # It may have been closed and its number given to something else in the meantime.
            if borrowed.family in {socket.AF_INET, socket.AF_INET6} and (
                borrowed.getsockname()[1] == self.port
            ):
                borrowed.shutdown(socket.SHUT_RDWR)

    def shut_key(self, key: str) -> None:
        """End those that have brought a message of this key."""
        for descriptor in [one for one, row in self.rows.items() if row.key == key]:
            self.shut_down(descriptor)

    def _find_least(self) -> int:
        """The oldest that never brought a message, or of the key that has the most.

        Of the silent ones those go first that may still be in their handshake: ZeroMQ ends
        strangers, so who stayed is a peer that has had nothing to say yet.
        """
        keys = Counter(row.key for row in self.rows.values())
        worst = "" if keys[""] else max(keys, key=keys.__getitem__)
        found = [one for one, row in self.rows.items() if row.key == worst]
        young = (one for one in found if self.rows[one].checks < MET_CHECKS)
        return next(young, found[0]) if worst == "" else found[0]


class _Borrowed:
    """Another owner's socket for a moment; leaving does not close it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __enter__(self) -> socket.socket:
        self.socket = socket.socket(fileno=self.descriptor)
        return self.socket

    def __exit__(self, *_: object) -> None:
        self.socket.detach()


def read_received(descriptor: int) -> int:
    """Bytes that ever came in on a TCP socket; 0 where the kernel does not say."""
    info = getattr(socket, "TCP_INFO", None)
    if info is None:
        return 0
    try:
        with _Borrowed(descriptor) as borrowed:
            answer = borrowed.getsockopt(socket.IPPROTO_TCP, info, RECEIVED_AT + 8)
    except OSError:
        return 0
    if len(answer) < RECEIVED_AT + 8:
        return 0
    return int(struct.unpack_from("=Q", answer, RECEIVED_AT)[0])

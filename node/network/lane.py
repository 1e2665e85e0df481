"""One lane: the thread that alone touches its sockets.

Each lane has a ZeroMQ context of its own, so that encrypting blobs never holds up a vote. Other
threads talk to it through its `Roster`, and wake it with a byte.
"""

import contextlib
import math
import socket as sockets
import threading
from collections.abc import Callable
from typing import Final

import zmq
from zmq.utils.monitor import recv_monitor_message

from steelyard.chain.errors import SteelyardError

from ..clock import Clock
from ..logs import log_alarm, log_event
from .caller import Caller
from .connections import Connections
from .endpoint import get_port
from .links import Link, Peer
from .names import Names
from .roster import Roster
from .sockets import RECEIVE_MESSAGES, ZAP, listen, watch
from .wire import KINDS, MAX_MESSAGE_BYTES, WEIGHTS, InvalidMessage, Lane, Message, decode_message

BATCH: Final = 256
"""Messages, events or handshakes looked at before it is something else's turn."""
CHECK_SECONDS: Final = 0.1
WATCH_SECONDS: Final = 0.2
PAUSE_SECONDS: Final = 1.0
"""After a turn that failed."""
RECALL_SECONDS: Final = 0.25
MAX_RECALL_SECONDS: Final = 2.0
"""The pause after a call that failed, and what it grows to."""
CALL_SECONDS: Final = 1.0
"""A call that takes longer is given up for a new one, once the peer shows that it is there."""
KERNEL_BYTES: Final = 16 * 2**20
"""What Linux may hold back on one connection, generously."""

Handler = Callable[[Peer, Message], None]
Admits = Callable[[Peer, type[Message]], bool]


class LaneThread:
    """`start` and `stop` once each, from outside; `wake` from any thread."""

    def __init__(
        self,
        lane: Lane,
        keys: tuple[bytes, bytes],
        roster: Roster,
        on_message: Handler,
        clock: Clock,
        names: Names,
    ) -> None:
        self.lane, self.roster = lane, roster
        self._keys, self._on_message = keys, on_message
        self._clock, self._names = clock, names
        self._is_inside = False
        self._failures = 0
        self.admits: Admits = lambda *_: True
        self._stopping = threading.Event()
        self._checked_at = self._watched_at = clock.get_seconds()
        self._bell: sockets.socket | None = None

    # -- from outside ------------------------------------------------------------------------------
    def start(self, host: str, port: int) -> int:
        """Listen on an address and start; return the port. Raises port_taken, listen_failed."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        # Before anybody can connect: without an answer from here libzmq lets everybody in.
        self._zap = self._context.socket(zmq.REP)
        self._zap.linger = 0
        self._zap.bind(ZAP)
        try:
            self._inbound, bound = listen(self._context, self._keys[0], self.lane, host, port)
        except SteelyardError:
            self._context.destroy(linger=0)
            raise
        self._monitor = watch(self._context, self._inbound)
        limit = (RECEIVE_MESSAGES + 2) * MAX_MESSAGE_BYTES[self.lane] + KERNEL_BYTES
        self._connections = Connections(bound, limit)
        self._ear, bell = sockets.socketpair()
        self._ear.setblocking(False)
        bell.setblocking(False)
        self._bell = bell
        name = f"network-{self.lane.name.lower()}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        return bound

    def stop(self) -> None:
        """Close everything; returns when the thread has ended."""
        self._stopping.set()
        self.wake()
        self._thread.join()
        for end in (self._ear, self._bell):
            if end is not None:
                end.close()

    def wake(self) -> None:
        """Look at the roster now."""
        if self._bell is not None:
            with contextlib.suppress(OSError):  # full: it is awake already; closed: it has ended
                self._bell.send(b"\0")

    # -- the thread --------------------------------------------------------------------------------
    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except Exception:
                # A bug of ours. The other turns may go well, and silence would cost a validator.
                log_alarm("network_failed", trace=True, lane=self.lane.name)
                self._stopping.wait(PAUSE_SECONDS)
        self._close()

    def _turn(self) -> None:
        now = self._clock.get_seconds()
        self._end_what_is_over()
        if now >= self._watched_at + WATCH_SECONDS:
            self._watched_at = now
            self._watch_links(now)
        self._send_what_waits(now)
        self._wait()
        self._answer_handshakes()
        self._read_events()
        is_drained = self._receive()
        now = self._clock.get_seconds()
        if now >= self._checked_at + CHECK_SECONDS:
            self._checked_at = now
            self._connections.check(is_drained)

    def _wait(self) -> None:
        watched: list[tuple[zmq.Socket[bytes] | sockets.socket | int, int]] = [
            (one, zmq.POLLIN) for one in (self._inbound, self._zap, self._monitor, self._ear)
        ]
        callers: dict[object, Caller] = {}
        for link in self.roster.get_links():
            if link.caller is not None and not link.caller.is_closed:
                callers[link.caller.descriptor] = link.caller
                wanted = zmq.POLLIN | (zmq.POLLOUT if link.caller.has_unsent else 0)
                watched.append((link.caller.descriptor, wanted))
        ready = zmq.zmq_poll(watched, int(CHECK_SECONDS * 1000))
        now = self._clock.get_seconds()
        for one, _ in ready:
            if one in callers:
                callers[one].advance(now)
        with contextlib.suppress(BlockingIOError):
            self._ear.recv(4096)

    def _close(self) -> None:
        closing, *_ = self.roster.take_changes()
        for link in (*closing, *self.roster.get_links()):
            link.close()
        # The monitor ends before its reader, or libzmq's thread might wait for that for ever.
        self._inbound.disable_monitor()
        self._context.destroy(linger=0)

    # -- sending -----------------------------------------------------------------------------------
    def _end_what_is_over(self) -> None:
        closing, ending, is_changed = self.roster.take_changes()
        for link in closing:
            link.close()
        for key in ending:
            self._connections.shut_key(key)
        if is_changed:
            self._watched_at = -math.inf  # connect now

    def _watch_links(self, now: float) -> None:
        for link in self.roster.get_links():
            caller = link.caller
            if caller is None:
                if now >= link.call_at:
                    self._call(link, now)
                continue
            caller.watch(now)
            if caller.is_ready:
                link.failures = 0
            elif caller.is_closed:
                link.close()
                pause = RECALL_SECONDS * 2 ** min(link.failures, 8)
                link.call_at = now + min(pause, MAX_RECALL_SECONDS)
                link.failures += 1

    def _call(self, link: Link, now: float) -> None:
        if link.endpoint is None:
            return
        host = link.endpoint.host
        addresses = (host,) if link.endpoint.is_literal else self._names.get(host)
        if not addresses:
            return
        address = addresses[link.failures % len(addresses)]
        port = get_port(link.endpoint, self.lane)
        try:
            link.caller = Caller(self._keys, link.peer.network_key, address, port, now)
        except OSError as error:
            log_event("peer_unreachable", address=link.peer.address, why=error)
            link.call_at = now + MAX_RECALL_SECONDS

    def _send_what_waits(self, now: float) -> None:
        """Give each connection as much as it has room for."""
        for link in self.roster.list_waiting():
            caller = link.caller
            while caller is not None and caller.has_room:
                waiting = self.roster.take_next(link, now)
                if waiting is None:
                    break
                caller.send(waiting.data, now)
                link.traffic.messages_out += 1
                link.traffic.bytes_out += waiting.size

    # -- receiving ---------------------------------------------------------------------------------
    def _answer_handshakes(self) -> None:
        """Say who may come in (ZeroMQ RFC 27)."""
        for _ in range(BATCH):
            try:
                request = self._zap.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            version, number, *_, mechanism, key = request
            now = self._clock.get_seconds()
            is_welcome = mechanism == b"CURVE" and self.roster.is_welcome(key.hex(), now)
            if is_welcome:
                self._call_back(key.hex(), now)
            verdict = [b"200", b"OK", key.hex().encode()] if is_welcome else [b"400", b"no", b""]
            self._zap.send_multipart([version, number, *verdict, b""])

    def _call_back(self, user: str, now: float) -> None:
        """Whoever calls us is there: call it now, not when the pause after a failure is over."""
        link = self.roster.find(user)
        if link is None or link.is_connected:
            return
        caller = link.caller
        if caller is None or caller.is_closed or now >= caller.called_at + CALL_SECONDS:
            link.close()
            link.call_at = now
            self._watched_at = -math.inf

    def _read_events(self) -> None:
        for _ in range(BATCH):
            try:
                event = recv_monitor_message(self._monitor, zmq.NOBLOCK)
            except zmq.Again:
                return
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._connections.add(event["value"], len(self.roster))
            elif event["event"] == zmq.EVENT_DISCONNECTED:
                self._connections.remove(event["value"])

    def _receive(self) -> bool:
        """Take a batch of messages; whether there are no more."""
        for _ in range(BATCH):
            try:
                frame = self._inbound.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return True
            is_part, self._is_inside = frame.more or self._is_inside, frame.more
            is_last = not frame.more
            user, descriptor = str(frame.get("User-Id")), int(frame.get(zmq.SRCFD))
            if is_last:
                self._connections.note(descriptor, user)
            link = self.roster.find(user)
            if link is None:
                self.roster.add_stranger("message_key")
                self._connections.shut_down(descriptor)
            elif is_part:
                if is_last:
                    self._refuse(link, "message_parts")
            else:
                self._take(link, frame, descriptor)
        return False

    def _take(self, link: Link, frame: zmq.Frame, descriptor: int) -> None:
        """Hold a message against the peer's quota, decode it and hand it on."""
        now, size, traffic = self._clock.get_seconds(), len(frame), link.traffic
        if traffic.quota.is_muted(now):
            self.roster.add_refused(link, "peer_muted")
            self._connections.shut_down(descriptor)
            return
        kind = KINDS.get(frame.buffer[0]) if size else None
        if not traffic.quota.has_room(size, now, WEIGHTS.get(kind, 1)):
            self.roster.add_refused(link, "message_quota")
            return
        traffic.seen_at = now
        traffic.messages_in += 1
        traffic.bytes_in += size
        if kind is not None and not self.admits(link.peer, kind):
            self.roster.add_refused(link, "message_unasked")
            return
        try:
            self._on_message(link.peer, decode_message(frame.bytes, self.lane))
        except InvalidMessage as error:
            self._refuse(link, error.code)
        except Exception:
            # A bug of ours: one message is lost, the others must not be.
            self._failures += 1
            if self._failures.bit_count() == 1:  # the first, second, fourth, eighth … time
                log_alarm("message_failed", trace=True, lane=self.lane.name, times=self._failures)

    def _refuse(self, link: Link, code: str) -> None:
        self.roster.add_fault(link, code, self._clock.get_seconds())

"""Pushing new blocks and logs to WebSockets.

The driver calls back with each finalized header, on its own thread; `Feed` moves that to the event
loop, reads the logs once for all subscribers, and puts messages into each one's bounded queue.
Everything but the callback runs on the event loop. Finalized blocks never change, so nothing is
ever pushed twice or taken back; a subscriber that does not read is disconnected.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from steelyard.chain.block import Header

from ..log_index import is_match
from ..logs import log_alarm
from ..records import LogEntry, LogQuery
from ..workers import WorkerPool
from .dispatcher import Caller, encode_json
from .encoding import encode_header, encode_log
from .errors import UNKNOWN_METHOD, InvalidParameters, Json, LimitExceeded, RpcError
from .limits import (
    MAX_BLOCK_LOGS,
    MAX_QUEUED_BYTES,
    MAX_QUEUED_MESSAGES,
    MAX_SUBSCRIPTIONS,
    MAX_SUBSCRIPTIONS_PER_SOCKET,
)
from .parameters import describe, parse_log_criteria, take

if TYPE_CHECKING:
    from ..node import Node

MAX_WAITING_HEADERS: Final = 10_000
"""Headers that wait for the feed; past this every subscriber is disconnected, with an alarm."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """`query` None means new heads; of a query only the addresses and topics count."""

    query: LogQuery | None


class Subscriber:
    """One WebSocket: its subscriptions, and the messages that wait to be sent on it."""

    def __init__(self, feed: "Feed") -> None:
        self.feed = feed
        self.subscriptions: dict[str, Subscription] = {}
        self.is_over = asyncio.Event()
        """The socket is gone, or its reader fell behind: nothing more is queued or sent."""
        self.has_room = asyncio.Event()
        """Calls are read only while this is set: a fast caller waits for its own reading."""
        self.has_room.set()
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._queued_bytes = 0

    def wants_logs(self) -> bool:
        """Whether any subscription is one of logs."""
        return any(one.query is not None for one in self.subscriptions.values())

    def send(self, message: bytes) -> None:
        """Queue a message; past the limits, end the queue instead."""
        if self.is_over.is_set():
            return
        queued, total = self._queue.qsize(), self._queued_bytes + len(message)
        if queued >= MAX_QUEUED_MESSAGES or (queued and total > MAX_QUEUED_BYTES):
            self.end()
            return
        self._queued_bytes = total
        self._queue.put_nowait(message)
        if queued >= MAX_QUEUED_MESSAGES // 2 or total >= MAX_QUEUED_BYTES // 2:
            self.has_room.clear()

    async def receive(self) -> bytes | None:
        """The next message to send, or None when it is over."""
        message = await self._queue.get()
        if self.is_over.is_set() or message is None:
            return None
        self._queued_bytes -= len(message)
        if self._queue.empty():
            self.has_room.set()
        return message

    def end(self) -> None:
        """Stop sending, and wake up whoever waits."""
        self.is_over.set()
        self._queue.put_nowait(None)
        self.has_room.set()


class Feed:
    """Distributes finalized headers to subscribers."""

    def __init__(self, node: "Node", pool: WorkerPool) -> None:
        self.node, self.pool = node, pool
        self.subscribers: set[Subscriber] = set()
        self.headers: asyncio.Queue[Header] = asyncio.Queue()

    async def run(self) -> None:
        """Follow the node until cancelled."""
        loop = asyncio.get_running_loop()

        def on_header(header: Header) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens any more
                loop.call_soon_threadsafe(self._put, header)

        unsubscribe = self.node.subscribe(on_header)
        try:
            while True:
                await self._deliver(await self.headers.get())
        finally:
            unsubscribe()

    def count_subscriptions(self) -> int:
        return sum(len(subscriber.subscriptions) for subscriber in self.subscribers)

    def _put(self, header: Header) -> None:
        if self.headers.qsize() >= MAX_WAITING_HEADERS:
            log_alarm("feed_behind", height=header.height)
            for subscriber in self.subscribers:
                subscriber.end()
            return
        self.headers.put_nowait(header)

    async def _deliver(self, header: Header) -> None:
        """Push one block to everyone who wants it or one of its logs."""
        followers = [each for each in self.subscribers if each.wants_logs()]
        entries: Sequence[LogEntry] = ()
        if followers:
            try:
                entries = await self.pool.run(lambda: self._read_entries(header))
            except Exception as error:  # a gap must never be silent: they reconnect and ask
                log_alarm("feed_broken", height=header.height, error=repr(error))
                for each in followers:
                    each.end()
        for subscriber in list(self.subscribers):
            for identifier, one in list(subscriber.subscriptions.items()):
                push(subscriber, identifier, one, header, entries)

    def _read_entries(self, header: Header) -> tuple[LogEntry, ...]:
        return self.node.get_logs(LogQuery(header.height, header.height), MAX_BLOCK_LOGS)


def push(
    subscriber: Subscriber,
    identifier: str,
    subscription: Subscription,
    header: Header,
    entries: Sequence[LogEntry],
) -> None:
    """Queue what one subscription wants of one block."""
    query = subscription.query
    if query is None:
        subscriber.send(encode_notification(identifier, encode_header(header)))
        return
    for entry in entries:
        if is_match(query, entry.log):
            subscriber.send(encode_notification(identifier, encode_log(entry)))


def encode_notification(identifier: str, result: Json) -> bytes:
    return encode_json(
        {
            "jsonrpc": "2.0",
            "method": "eth_subscription",
            "params": {"subscription": identifier, "result": result},
        }
    )


class SubscriptionMethods:
    """eth_subscribe and eth_unsubscribe, on WebSockets only."""

    def subscribe(self, params: object, caller: Caller) -> Json:
        kind, value = take(params, 1, 2)
        subscriber = get_subscriber(caller)
        subscription = parse_subscription(kind, value)
        if len(subscriber.subscriptions) >= MAX_SUBSCRIPTIONS_PER_SOCKET:
            raise LimitExceeded(
                f"this connection already has {MAX_SUBSCRIPTIONS_PER_SOCKET} subscriptions"
            )
        if subscriber.feed.count_subscriptions() >= MAX_SUBSCRIPTIONS:
            raise LimitExceeded(f"this node already has {MAX_SUBSCRIPTIONS} subscriptions")
        identifier = "0x" + secrets.token_hex(16)
        subscriber.subscriptions[identifier] = subscription
        return identifier

    def unsubscribe(self, params: object, caller: Caller) -> Json:
        (identifier,) = take(params, 1, 1)
        if not isinstance(identifier, str):
            raise InvalidParameters(f"a subscription id is a string, not {describe(identifier)}")
        return get_subscriber(caller).subscriptions.pop(identifier, None) is not None


def get_subscriber(caller: Caller) -> Subscriber:
    if caller.subscriber is None:
        raise RpcError(
            UNKNOWN_METHOD, "subscriptions need a WebSocket; over HTTP use eth_newFilter and poll"
        )
    return caller.subscriber


def parse_subscription(kind: object, value: object) -> Subscription:
    """`newHeads`, or `logs` with addresses and topics."""
    if kind == "newHeads":
        return Subscription(None)
    if kind != "logs":
        raise InvalidParameters(f"subscriptions are newHeads and logs, not {describe(kind)}")
    criteria = parse_log_criteria({} if value is None else value)
    if criteria.block_hash is not None or not (criteria.start.is_head and criteria.stop.is_head):
        raise InvalidParameters("a subscription follows new blocks: leave the block range out")
    return Subscription(LogQuery(0, 0, criteria.addresses, criteria.topics))

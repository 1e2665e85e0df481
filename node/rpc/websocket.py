"""JSON-RPC over one WebSocket: the same calls, plus subscriptions.

Calls are answered in order, one at a time; pushes join them in one bounded queue, so an answer to
eth_subscribe always comes before the first push of that subscription.
"""

import asyncio
import contextlib
from typing import Final

from starlette.websockets import WebSocket, WebSocketDisconnect

from .dispatcher import Caller, Dispatcher
from .limits import MAX_BODY_BYTES, MAX_SOCKETS
from .subscriptions import Feed, Subscriber

CLOSED_TOO_BIG: Final = 1009
CLOSED_TOO_SLOW: Final = 1008
CLOSED_TRY_LATER: Final = 1013


async def serve_socket(socket: WebSocket, dispatcher: Dispatcher, feed: Feed) -> None:
    """Serve a WebSocket until either side closes it."""
    await socket.accept()
    if len(feed.subscribers) >= MAX_SOCKETS:
        await socket.close(CLOSED_TRY_LATER, f"this node already serves {MAX_SOCKETS} sockets")
        return
    subscriber = Subscriber(feed)
    feed.subscribers.add(subscriber)
    sender = asyncio.create_task(send_messages(socket, subscriber))
    try:
        await answer_messages(socket, dispatcher, subscriber)
    finally:
        feed.subscribers.discard(subscriber)
        sender.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sender


async def answer_messages(
    socket: WebSocket, dispatcher: Dispatcher, subscriber: Subscriber
) -> None:
    """Read calls until the socket closes."""
    caller = Caller(socket.client.host if socket.client else "", subscriber)
    while not subscriber.is_over:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        text = message.get("text")
        body: bytes = (
            message.get("bytes") or b"" if text is None else text.encode("utf-8", "replace")
        )
        if len(body) > MAX_BODY_BYTES:
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                await socket.close(CLOSED_TOO_BIG, f"a message may have {MAX_BODY_BYTES} bytes")
            return
        answer = await dispatcher.answer(body, caller)
        if answer is not None:
            subscriber.send(answer)
        await subscriber.has_room.wait()


async def send_messages(socket: WebSocket, subscriber: Subscriber) -> None:
    """Send what is queued; close the socket of a subscriber that falls behind."""
    try:
        while (message := await subscriber.receive()) is not None:
            await socket.send_text(message.decode("ascii"))
        await socket.close(CLOSED_TOO_SLOW, "too many messages wait to be read")
    except (WebSocketDisconnect, RuntimeError):
        subscriber.end()  # the other side is gone

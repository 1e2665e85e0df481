"""JSON-RPC over one WebSocket: the same calls, plus subscriptions.

Calls are answered in order, one at a time; pushes join them in one bounded queue, so an answer to
eth_subscribe always comes before the first push of that subscription.
"""

import asyncio
from typing import Final

from starlette.websockets import WebSocket, WebSocketDisconnect

from .dispatcher import Caller, Dispatcher, encode_error
from .errors import LIMIT_EXCEEDED, RpcError
from .limits import MAX_BODY_BYTES, MAX_SOCKETS
from .subscriptions import Feed, Subscriber

TOO_LARGE: Final = RpcError(
    LIMIT_EXCEEDED, f"a message may have {MAX_BODY_BYTES} bytes", {"code": "body_too_large"}
)
CLOSE_SECONDS: Final = 1.0
"""For the last message to a reader that may never read it."""
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
    sending = asyncio.create_task(send_messages(socket, subscriber))
    answering = asyncio.create_task(answer_messages(socket, dispatcher, subscriber))
    ended = asyncio.create_task(subscriber.is_over.wait())
    try:
        await asyncio.wait({answering, ended}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        feed.subscribers.discard(subscriber)
        subscriber.end()
        await asyncio.wait({sending}, timeout=CLOSE_SECONDS)
        for task in (sending, answering, ended):
            task.cancel()
        await asyncio.gather(sending, answering, ended, return_exceptions=True)


async def answer_messages(
    socket: WebSocket, dispatcher: Dispatcher, subscriber: Subscriber
) -> None:
    """Read calls until the socket closes."""
    caller = Caller(socket.client.host if socket.client else "", subscriber)
    while not subscriber.is_over.is_set():
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        text = message.get("text")
        body: bytes = (
            message.get("bytes") or b"" if text is None else text.encode("utf-8", "replace")
        )
        if len(body) > MAX_BODY_BYTES:
            answer: bytes | None = encode_error(None, TOO_LARGE)
        else:
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

"""HTTP answers and bodies: JSON errors with codes, streamed bytes with ranges, bounded reading."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from steelyard.chain.errors import SteelyardError

from .workers import WorkerPool

MAX_DRAINED_BYTES: Final = 64 * 2**20
DRAIN_SECONDS: Final = 10.0
"""A refused body is read this far before the answer: closing early resets the connection, and the
client may never see why."""
RANGE: Final = re.compile(r"bytes=(\d{1,18})?-(\d{1,18})?")


def answer_json(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    body = json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
    return Response(body, status, dict(headers or {}), "application/json")


def answer_error(error: SteelyardError, status: int) -> Response:
    """`{"error": code, "message": …}`, as the commands print with --json."""
    return answer_json({"error": error.code, "message": error.message}, status)


async def iter_body(request: Request, seconds: float, idle_seconds: float) -> AsyncIterator[bytes]:
    """The chunks of a body. Raises SteelyardError "body_timeout"; ClientDisconnect."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    chunks = request.stream()
    while True:
        try:
            async with asyncio.timeout_at(min(deadline, loop.time() + idle_seconds)):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise SteelyardError(
                "body_timeout", "the body came too slowly; send it again"
            ) from None
        if chunk is None:
            return
        if chunk:
            yield chunk


async def drain(request: Request) -> None:
    """Read and drop what is left of a refused body, within bounds.

    A client that waits for `100 Continue` has not sent any, and will not after the refusal.
    """
    if request.headers.get("expect", "").lower() == "100-continue":
        return
    left = MAX_DRAINED_BYTES
    try:
        async for chunk in iter_body(request, DRAIN_SECONDS, DRAIN_SECONDS):
            left -= len(chunk)
            if left < 0:
                return
    except (SteelyardError, ClientDisconnect, RuntimeError):
        return  # too slow, gone, or read to its end already


def parse_range(value: str | None, size: int) -> tuple[int, int] | None:
    """The (start, stop) of a single byte range; None for the whole, also for several ranges.

    Raises SteelyardError "bad_range" when no byte of it exists (RFC 9110, section 14).
    """
    match = RANGE.fullmatch(value.strip()) if value else None
    if match is None or match.groups() == (None, None):
        return None
    first, last = (None if one is None else int(one) for one in match.groups())
    if first is None:
        assert last is not None
        start, stop = max(0, size - last), size
    else:
        start, stop = first, size if last is None else min(size, last + 1)
        if last is not None and last < first:
            return None
    if start >= stop:
        raise SteelyardError("bad_range", f"the range lies outside the {size} bytes")
    return start, stop


class StreamedResponse(Response):
    """Bytes produced step by step on a pool: the disk never blocks the event loop."""

    def __init__(
        self, pool: WorkerPool, steps: Iterator[bytes], status: int, headers: Mapping[str, str]
    ) -> None:
        self.pool, self.steps = pool, steps
        self.status_code = status
        self.background = None
        self.init_headers(headers)

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        while (chunk := await self.pool.run(lambda: next(self.steps, None))) is not None:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

"""One HTTP exchange at a time, bounded in bytes and in time, whatever the other side does.

A deadline for the whole exchange needs cancellation, which blocking sockets lack: a server may send
one byte of a header every few seconds for days. So each fetcher runs an event loop of its own, only
while it fetches. Redirects are not followed, nothing is decompressed, proxies are not read from the
environment.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx

from steelyard.chain.errors import SteelyardError

CONNECT_SECONDS: Final = 5.0
WHOLE: Final = frozenset({"", "identity"})
READ_BYTES: Final = 2**18


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, complete."""

    status: int
    body: bytes


class Unreachable(SteelyardError):
    """No usable answer: refused, too slow, too large, or not HTTP."""


class Stopped(Exception):
    """The node stops; whoever fetches gives up."""


def check_url(url: str) -> str:
    """An http(s) address without its trailing slash. Raises SteelyardError follow_url."""
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        is_good = False
    if not is_good or parts.query or parts.fragment:
        raise SteelyardError("follow_url", f"{url!r} is not an http or https address")
    return url.rstrip("/")


class Fetcher:
    """Used by one thread; `stop` may be called from any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[Answer] | None = None
        self._client = httpx.AsyncClient(
            follow_redirects=False, trust_env=False, headers={"accept-encoding": "identity"}
        )

    def get(self, url: str, *, limit: int, seconds: float) -> Answer:
        """Raises Unreachable, Stopped."""
        return self._run(self._client.build_request("GET", url), limit, seconds)

    def post(self, url: str, body: bytes, *, kind: str, limit: int, seconds: float) -> Answer:
        """`kind` is the body's media type. Raises Unreachable, Stopped."""
        request = self._client.build_request(
            "POST", url, content=body, headers={"content-type": kind}
        )
        return self._run(request, limit, seconds)

    def head(self, url: str, *, seconds: float) -> Answer:
        """Raises Unreachable, Stopped."""
        return self._run(self._client.build_request("HEAD", url), 0, seconds)

    def put_file(self, url: str, path: Path, size: int, *, limit: int, seconds: float) -> Answer:
        """Send a file. Raises Unreachable, Stopped; OSError if it cannot be read."""
        request = self._client.build_request(
            "PUT", url, content=read_pieces(path), headers={"content-length": str(size)}
        )
        return self._run(request, limit, seconds)

    def wait(self, seconds: float) -> None:
        """Sleep, unless stopped. Raises Stopped."""
        if self._stopping.wait(seconds):
            raise Stopped

    def check(self) -> None:
        """Raises Stopped if `stop` was called."""
        if self._stopping.is_set():
            raise Stopped

    def stop(self) -> None:
        """Cancel what is under way; every later call raises Stopped."""
        self._stopping.set()
        with self._lock:
            if self._task is not None:
                self._loop.call_soon_threadsafe(self._task.cancel)

    def close(self) -> None:
        """Close the connections; on the thread that used them."""
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._client.aclose())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def _run(self, request: httpx.Request, limit: int, seconds: float) -> Answer:
        request.extensions = {
            "timeout": httpx.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds)).as_dict()
        }
        with self._lock:
            self.check()
            self._task = self._loop.create_task(self._exchange(request, limit, seconds))
        try:
            return self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            raise Stopped from None
        except TimeoutError:
            raise Unreachable("follow_timeout", f"no answer in {seconds:.0f} s") from None
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise Unreachable("follow_unreachable", reason) from None
        finally:
            with self._lock:
                self._task = None

    async def _exchange(self, request: httpx.Request, limit: int, seconds: float) -> Answer:
        async with asyncio.timeout(seconds):
            answer = await self._client.send(request, stream=True)
            try:
                encoding = answer.headers.get("content-encoding", "")
                if encoding not in WHOLE:
                    raise Unreachable("follow_encoding", f"it answers in {encoding[:40]!r}")
                body = bytearray()
                async for chunk in answer.aiter_raw():
                    body += chunk
                    if len(body) > limit:
                        raise Unreachable("follow_too_large", f"more than {limit} bytes")
                return Answer(answer.status_code, bytes(body))
            finally:
                await answer.aclose()


async def read_pieces(path: Path) -> AsyncIterator[bytes]:
    """A file's bytes, piece by piece."""
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            yield piece

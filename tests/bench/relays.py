"""TCP relays that can be cut: how two processes on one machine lose sight of each other."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

HOST = "127.0.0.1"
CHUNK_BYTES = 65_536
TRIES = 200

Pair = tuple[int, int]


@dataclass
class Relay:
    """One listening port that forwards to another, unless it is cut."""

    pair: Pair
    target: int
    is_cut: bool = False
    writers: set[asyncio.StreamWriter] = field(default_factory=set)


class Relays:
    """All relays of one experiment, on a thread of their own."""

    def __init__(self) -> None:
        self._relays: list[Relay] = []
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def open_pair(self, pair: Pair, target: int) -> int:
        """Relay a port and the one above it to `target` and the one above it; return the lower."""
        for _ in range(TRIES):
            with socket.socket() as probe:
                probe.bind((HOST, 0))
                port = int(probe.getsockname()[1])
            try:
                self._do(self._open(pair, port, target))
            except OSError:
                continue
            return port
        raise OSError(f"no two free ports in a row on {HOST}")

    async def _open(self, pair: Pair, port: int, target: int) -> None:
        first = await self._listen(Relay(pair, target), port)
        try:
            second = await self._listen(Relay(pair, target + 1), port + 1)
        except OSError:
            first.close()
            raise
        self._servers += [first, second]

    async def _listen(self, relay: Relay, port: int) -> asyncio.Server:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(relay, reader, writer)

        server = await asyncio.start_server(serve, HOST, port)
        self._relays.append(relay)
        return server

    async def _serve(
        self, relay: Relay, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Forward both ways until either side ends or the relay is cut."""
        ends = {writer}
        relay.writers.add(writer)
        try:
            if relay.is_cut:
                return
            far_reader, far_writer = await asyncio.open_connection(HOST, relay.target)
            ends.add(far_writer)
            relay.writers.add(far_writer)
            await asyncio.gather(forward(reader, far_writer), forward(far_reader, writer))
        except OSError:
            pass  # the validator behind it is down
        finally:
            relay.writers -= ends
            for end in ends:
                end.close()

    def cut(self, is_cut: Callable[[Pair], bool]) -> None:
        """Break the connections of these pairs and refuse new ones."""
        self._do(self._cut(is_cut))

    async def _cut(self, is_cut: Callable[[Pair], bool]) -> None:
        for relay in self._relays:
            if is_cut(relay.pair):
                relay.is_cut = True
                for writer in tuple(relay.writers):
                    writer.transport.abort()

    def heal(self) -> None:
        """Let everybody through again."""
        for relay in self._relays:
            relay.is_cut = False

    def close(self) -> None:
        """End every connection and the thread."""
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        await self._cut(lambda _pair: True)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _do(self, work: "asyncio.Future[None] | object") -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)  # type: ignore[arg-type]


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy bytes until the end of the stream; then pass the end on."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()

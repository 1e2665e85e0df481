"""The HTTP side of a node, on one port: JSON-RPC, blobs, the gateway, followers, health, metrics.

`create_app` builds the ASGI application; `HttpServer` serves it from a thread of its own. The event
loop only parses and forwards: everything that blocks runs on the pools of `workers`.
"""

import asyncio
import contextlib
import dataclasses
import errno
import socket
import threading
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from steelyard import __version__
from steelyard.chain.errors import SteelyardError

from .follow import Follow
from .gateway import STATUSES, Gateway
from .metrics import CONTENT_TYPE, Metrics
from .responses import answer_error, answer_json, drain, iter_body
from .rpc.dispatcher import Caller, Dispatcher, Lane, encode_error
from .rpc.errors import LIMIT_EXCEEDED, RpcError
from .rpc.limits import (
    BODY_SECONDS,
    HEAVY_THREADS,
    HEAVY_WAITING,
    MAX_BODY_BYTES,
    MAX_BUFFERED_BYTES,
    QUICK_THREADS,
    QUICK_WAITING,
    TRANSFER_THREADS,
    TRANSFER_WAITING,
)
from .rpc.methods import build_methods
from .rpc.subscriptions import Feed
from .rpc.websocket import serve_socket
from .workers import WorkerPool

if TYPE_CHECKING:
    from .node import Node

MAX_CONNECTIONS: Final = 1_024
KEEP_ALIVE_SECONDS: Final = 75
STOP_SECONDS: Final = 3
JOIN_SECONDS: Final = 5.0
START_SECONDS: Final = 60.0
RESTART_HELPS: Final = frozenset({"driver_failed"})
"""Alarms that may end with a new process. No restart frees a disk or brings peers back."""
CODE_OF_STATUS: Final = {404: "not_found", 405: "method_not_allowed"}


class Edge:
    """Everything between a node and its HTTP clients."""

    def __init__(self, node: "Node") -> None:
        self.node = node
        self.buffered_bytes = 0
        """Of request bodies being received or answered."""
        self.metrics = Metrics()
        self.quick = WorkerPool("http-quick", QUICK_THREADS, QUICK_WAITING)
        self.heavy = WorkerPool("http-heavy", HEAVY_THREADS, HEAVY_WAITING)
        self.transfer = WorkerPool("http-transfer", TRANSFER_THREADS, TRANSFER_WAITING)
        lanes = {Lane.QUICK: self.quick, Lane.HEAVY: self.heavy}
        methods = build_methods(node, __version__)
        self.dispatcher = Dispatcher(methods, lanes, self.metrics.observe_call)
        self.following = WorkerPool("http-feed", 1, 1)
        self.feed = Feed(node, self.following)
        self.gateway = Gateway(node, self.transfer, self.metrics)
        self.follow = Follow(node, self.quick)

    @contextlib.asynccontextmanager
    async def live(self, _app: Starlette) -> AsyncIterator[None]:
        """The pools and the feed, from the start of the server to its end."""
        pools = (self.quick, self.heavy, self.transfer, self.following)
        for pool in pools:
            pool.start()
        feed = asyncio.create_task(self.feed.run())
        try:
            yield
        finally:
            feed.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feed
            for pool in pools:
                pool.close()
            deadline = time.monotonic() + JOIN_SECONDS
            for pool in pools:
                await asyncio.to_thread(pool.join, deadline)

    async def post_rpc(self, request: Request) -> Response:
        """JSON-RPC over HTTP."""
        body = bytearray()
        try:
            await self._read_body(request, body)
            caller = Caller(request.client.host if request.client else "")
            answer = await self.dispatcher.answer(bytes(body), caller)
            return Response(answer or b"", media_type="application/json")
        except SteelyardError as error:
            await drain(request)
            refusal = RpcError(LIMIT_EXCEEDED, error.message, {"code": error.code})
            status = STATUSES.get(error.code, 400)
            return Response(encode_error(None, refusal), status, media_type="application/json")
        except ClientDisconnect:
            return Response(status_code=400)
        finally:
            self.buffered_bytes -= len(body)

    async def _read_body(self, request: Request, body: bytearray) -> None:
        """Append the body's chunks. Raises SteelyardError: body_too_large, body_timeout, busy."""
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > MAX_BODY_BYTES:
            raise SteelyardError("body_too_large", f"a request may have {MAX_BODY_BYTES} bytes")
        async for chunk in iter_body(request, BODY_SECONDS, BODY_SECONDS):
            body += chunk
            self.buffered_bytes += len(chunk)
            if len(body) > MAX_BODY_BYTES:
                raise SteelyardError("body_too_large", f"a request may have {MAX_BODY_BYTES} bytes")
            if self.buffered_bytes > MAX_BUFFERED_BYTES:
                raise SteelyardError("busy", "too many large requests at once; try again shortly")

    async def serve_socket(self, websocket: WebSocket) -> None:
        """JSON-RPC over WebSocket."""
        await serve_socket(websocket, self.dispatcher, self.feed)

    async def get_root(self, _request: Request) -> Response:
        """What this port is, for a person with a browser."""
        return answer_json(
            {
                "name": "steelyard",
                "version": __version__,
                "chain_id": self.node.rules.chain_id,
                "rpc": "POST / (JSON-RPC, also as WebSocket)",
                "paths": [
                    "/blobs/{cid}",
                    "/ipfs/{cid}",
                    "/chain/genesis",
                    "/health",
                    "/alive",
                    "/metrics",
                ],
            }
        )

    async def get_health(self, _request: Request) -> Response:
        """The node's status: 200, or 503 while it needs a person."""
        status = await self.quick.run(self.node.get_status)
        is_healthy = status.alarm is None and not status.alarms
        body = {"healthy": is_healthy, **dataclasses.asdict(status)}
        return answer_json(body, 200 if is_healthy else 503)

    async def get_alive(self, _request: Request) -> Response:
        """200, or 503 while a restart may help: what a service manager should look at."""
        status = await self.quick.run(self.node.get_status)
        is_alive = status.alarm not in RESTART_HELPS
        return answer_json({"alive": is_alive}, 200 if is_alive else 503)

    async def get_metrics(self, _request: Request) -> Response:
        """Prometheus text."""
        status = await self.quick.run(self.node.get_status)
        text = self.metrics.render(status, len(self.feed.subscribers))
        return Response(text, media_type=CONTENT_TYPE)


def create_app(node: "Node") -> Starlette:
    """The application for one node; its lifespan starts and stops the threads behind it."""
    edge = Edge(node)
    routes = [
        Route("/", edge.post_rpc, methods=["POST"]),
        Route("/", edge.get_root, methods=["GET"]),
        WebSocketRoute("/", edge.serve_socket),
        Route("/blobs/{cid}", edge.gateway.put_blob, methods=["PUT"]),
        Route("/blobs/{cid}", edge.gateway.get_blob, methods=["GET"]),
        Route("/ipfs/{cid}", edge.gateway.get_ipfs, methods=["GET"]),
        Route("/chain/genesis", edge.follow.get_genesis),
        Route("/chain/blocks/{height}", edge.follow.get_block),
        Route("/chain/head", edge.follow.get_head),
        Route("/chain/certificates/{height}", edge.follow.get_certificate),
        Route("/chain/segments/{height}", edge.follow.get_segment),
        Route("/chain/validators/{epoch}", edge.follow.get_validators),
        Route("/chain/nodes", edge.follow.post_nodes, methods=["POST"]),
        Route("/health", edge.get_health),
        Route("/alive", edge.get_alive),
        Route("/metrics", edge.get_metrics),
    ]
    anyone = Middleware(
        CORSMiddleware,
        allow_origins=["*"],
        allow_methods=["GET", "POST", "PUT"],
        allow_headers=["*"],
    )
    handlers = {HTTPException: answer_http_error, SteelyardError: answer_refusal}
    return Starlette(
        routes=routes, middleware=[anyone], lifespan=edge.live, exception_handlers=handlers
    )


async def answer_http_error(_request: Request, error: Exception) -> Response:
    """Unknown paths and methods, as JSON like everything else."""
    assert isinstance(error, HTTPException)
    code = CODE_OF_STATUS.get(error.status_code, "http_error")
    response = answer_error(SteelyardError(code, error.detail), error.status_code)
    response.headers.update(error.headers or {})
    return response


async def answer_refusal(_request: Request, error: Exception) -> Response:
    """A typed error that no route answered itself: too busy, for instance."""
    assert isinstance(error, SteelyardError)
    return answer_error(error, STATUSES.get(error.code, 503))


class HttpServer:
    """Serves a node on one port, from a thread. Port 0 takes any free one."""

    def __init__(self, node: "Node", host: str, port: int) -> None:
        self.host, self.port = host, port
        config = uvicorn.Config(
            create_app(node),
            http="h11",
            ws="websockets-sansio",
            ws_max_size=2 * MAX_BODY_BYTES,
            ws_per_message_deflate=False,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where a client on this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def start(self) -> None:
        """Listen and serve. Raises SteelyardError: port_taken, listen_failed."""
        listener = open_listener(self.host, self.port)
        self.port = listener.getsockname()[1]
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._serve, args=(listener, started), name="http", daemon=True
        )
        self._thread.start()
        if not started.wait(START_SECONDS) or not self._server.started:
            raise RuntimeError("the HTTP server did not start; its log says why")

    def stop(self) -> None:
        """Stop listening, end open connections, and wait for the thread."""
        if self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join()
        self._thread = None

    def _serve(self, listener: socket.socket, started: threading.Event) -> None:
        try:
            asyncio.run(self._run(listener, started))
        finally:
            listener.close()
            started.set()

    async def _run(self, listener: socket.socket, started: threading.Event) -> None:
        serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started and not serving.done():
            await asyncio.sleep(0.005)
        started.set()
        await serving


def open_listener(host: str, port: int) -> socket.socket:
    """A listening socket. Raises SteelyardError port_taken, listen_failed."""
    # asyncio disables Nagle's delay only on sockets that say they are TCP: else 40 ms a call.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(MAX_CONNECTIONS)
    except (OSError, OverflowError) as error:
        listener.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise SteelyardError(
                "port_taken",
                f"{host}:{port} is in use; stop the other program, or set another `port` in the "
                "[http] section of config.toml",
            ) from None
        raise SteelyardError(
            "listen_failed",
            f"cannot listen on {host}:{port}: {error}; check `host` and `port` in the [http] "
            "section of config.toml",
        ) from None
    return listener

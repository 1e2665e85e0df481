"""A server on a free port in front of a chain in memory, and two ways to call it."""

import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest

from steelyard.node.http import HttpServer

from .double import DoubleNode

if TYPE_CHECKING:
    from steelyard.node.node import Node

    from .world import World


PATIENCE_SECONDS = 60.0


def wait_until(is_true: Callable[[], object]) -> None:
    """Poll: what other threads do is done a little later, and on a busy machine much later."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


class Rpc:
    """JSON-RPC calls that return the whole answer."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=PATIENCE_SECONDS)

    def post(self, body: bytes) -> Any:
        return self.http.post("/", content=body).json()

    def send(self, method: str, *params: object) -> Any:
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
        return self.http.post("/", json=request).json()

    def call(self, method: str, *params: object) -> Any:
        answer = self.send(method, *params)
        assert "error" not in answer, answer
        return answer["result"]

    def count_sockets(self) -> int:
        """Open WebSockets, as the node knows it."""
        (line,) = re.findall(r"^steelyard_websockets (.*)$", self.http.get("/metrics").text, re.M)
        return int(float(line))

    def fail(self, method: str, *params: object) -> Any:
        answer = self.send(method, *params)
        assert "result" not in answer, answer
        return answer["error"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> DoubleNode:
    """One chain for each test file: tests add to it and never rely on its height."""
    return DoubleNode(tmp_path_factory.mktemp("blobs"))


@pytest.fixture(scope="module")
def server(node: DoubleNode) -> Iterator[HttpServer]:
    one = HttpServer(cast("Node", node), "127.0.0.1", 0)
    one.start()
    yield one
    one.stop()


@pytest.fixture(scope="module")
def rpc(server: HttpServer) -> Iterator[Rpc]:
    one = Rpc(server.url)
    yield one
    one.http.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator["World"]:
    """A real node, imported only by the tests that need one."""
    from .world import run_world

    with run_world(tmp_path_factory.mktemp("node") / "data") as one:
        yield one

"""Calls and pushes over a WebSocket; what does not belong there; and readers that do not read."""

import asyncio
import contextlib
import json
import socket as socket_module
from collections.abc import Callable, Iterator
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from steelyard.chain.receipts import Log
from steelyard.node.http import HttpServer
from steelyard.node.rpc.limits import MAX_BODY_BYTES
from steelyard.node.rpc.subscriptions import Feed, Subscriber

from .conftest import PATIENCE_SECONDS, Rpc, wait_until
from .double import CONTRACT, OTHER_TOPIC, TOPIC, DoubleNode, sign

LOG = Log(CONTRACT, (TOPIC,), b"\x07")


class Socket:
    """One client connection."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def receive(self) -> Any:
        return json.loads(self.connection.recv(timeout=PATIENCE_SECONDS))

    def send(self, method: str, *params: object) -> Any:
        call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
        self.connection.send(json.dumps(call))
        return self.receive()

    def subscribe(self, *params: object) -> str:
        return cast(str, self.send("eth_subscribe", *params)["result"])


@pytest.fixture
def open_socket(server: HttpServer) -> Iterator[Callable[[], Socket]]:
    opened: list[ClientConnection] = []

    def open_one() -> Socket:
        url = server.url.replace("http", "ws")
        opened.append(connect(url, open_timeout=PATIENCE_SECONDS, compression=None, max_size=None))
        return Socket(opened[-1])

    yield open_one
    for one in opened:
        one.close()


@pytest.fixture
def socket(open_socket: Callable[[], Socket]) -> Socket:
    return open_socket()


def test_calls_and_batches_work_as_over_http(socket: Socket) -> None:
    assert socket.send("eth_chainId")["result"] == "0x1e25"
    socket.connection.send(json.dumps([{"jsonrpc": "2.0", "id": 4, "method": "eth_chainId"}]))
    assert socket.receive()[0]["id"] == 4
    socket.connection.send(b'{"jsonrpc":"2.0","id":5,"method":"eth_chainId"}')
    assert socket.receive()["id"] == 5


@pytest.mark.parametrize(
    ("message", "code"),
    [("{", -32700), ("[" * 100_000, -32700), (b"\xff", -32700), ("[]", -32600), ("7", -32600)],
)
def test_a_malformed_message_gets_an_error_and_the_socket_lives(
    socket: Socket, message: str | bytes, code: int
) -> None:
    socket.connection.send(message)
    assert socket.receive()["error"]["code"] == code
    assert socket.send("eth_chainId")["result"] == "0x1e25"


def test_an_oversized_message_gets_an_error_and_the_socket_lives(socket: Socket) -> None:
    socket.connection.send(" " * (MAX_BODY_BYTES + 1))
    assert socket.receive()["error"]["data"] == {"code": "body_too_large"}
    assert socket.send("eth_chainId")["result"] == "0x1e25"


def test_a_message_of_any_size_harms_no_other_socket(open_socket: Callable[[], Socket]) -> None:
    greedy, other = open_socket(), open_socket()
    with contextlib.suppress(ConnectionClosed):
        greedy.connection.send(" " * (3 * MAX_BODY_BYTES))
    with pytest.raises(ConnectionClosed):
        greedy.receive()
    assert other.send("eth_chainId")["result"] == "0x1e25"


def test_new_heads_are_pushed_with_all_header_fields(socket: Socket, node: DoubleNode) -> None:
    identifier = socket.subscribe("newHeads")
    block = node.add_block(())
    pushed = socket.receive()
    assert pushed["method"] == "eth_subscription"
    assert pushed["params"]["subscription"] == identifier
    assert pushed["params"]["result"]["hash"] == "0x" + block.hash.hex()
    assert "transactions" not in pushed["params"]["result"]


def test_logs_are_pushed_by_address_and_topics(socket: Socket, node: DoubleNode) -> None:
    wanted = socket.subscribe(
        "logs", {"address": "0x" + CONTRACT.hex(), "topics": [["0x" + TOPIC.hex()]]}
    )
    socket.subscribe("logs", {"topics": ["0x" + OTHER_TOPIC.hex()]})
    socket.subscribe("logs", {"address": "0x" + "00" * 20})
    every = socket.subscribe("logs")
    node.add_block([sign(1)], [LOG])
    pushed = [socket.receive()["params"] for _ in range(2)]
    assert {one["subscription"] for one in pushed} == {wanted, every}
    assert pushed[0]["result"] == pushed[1]["result"]
    assert pushed[0]["result"]["data"] == "0x07"
    assert socket.send("eth_chainId")["result"] == "0x1e25"


def test_nothing_is_pushed_after_unsubscribing(
    open_socket: Callable[[], Socket], node: DoubleNode
) -> None:
    socket, other = open_socket(), open_socket()
    identifier = socket.subscribe("newHeads")
    assert socket.send("eth_unsubscribe", identifier)["result"] is True
    assert socket.send("eth_unsubscribe", identifier)["result"] is False
    other.subscribe("newHeads")
    node.add_block(())
    assert other.receive()["method"] == "eth_subscription"  # so the block was pushed
    assert socket.send("eth_chainId")["result"] == "0x1e25"


def test_sockets_do_not_share_subscriptions(
    open_socket: Callable[[], Socket], node: DoubleNode
) -> None:
    first, second = open_socket(), open_socket()
    identifier = first.subscribe("newHeads")
    assert second.send("eth_unsubscribe", identifier)["result"] is False
    node.add_block(())
    assert first.receive()["method"] == "eth_subscription"


@pytest.mark.parametrize(
    "params",
    [
        [],
        ["newPendingTransactions"],
        [7],
        ["logs", "x"],
        ["logs", {"fromBlock": "0x1"}],
        ["logs", {"blockHash": "0x" + "00" * 32}],
        ["logs", {"topics": "x"}],
        ["newHeads", {}, 1],
    ],
)
def test_a_malformed_subscription_is_refused(socket: Socket, params: list[object]) -> None:
    assert socket.send("eth_subscribe", *params)["error"]["code"] == -32602


def test_subscriptions_need_a_websocket(rpc: Rpc) -> None:
    error = rpc.fail("eth_subscribe", "newHeads")
    assert error["code"] == -32601
    assert "eth_newFilter" in error["message"]


def test_subscriptions_are_bounded_per_socket_and_in_all(
    open_socket: Callable[[], Socket], rpc: Rpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_until(lambda: rpc.count_sockets() == 0)  # those of other tests may still be ending
    first, second = open_socket(), open_socket()
    monkeypatch.setattr("steelyard.node.rpc.subscriptions.MAX_SUBSCRIPTIONS_PER_SOCKET", 2)
    monkeypatch.setattr("steelyard.node.rpc.subscriptions.MAX_SUBSCRIPTIONS", 3)
    first.subscribe("newHeads")
    first.subscribe("newHeads")
    assert first.send("eth_subscribe", "newHeads")["error"]["code"] == -32005
    second.subscribe("newHeads")
    assert second.send("eth_subscribe", "newHeads")["error"]["code"] == -32005


def test_sockets_are_bounded(
    open_socket: Callable[[], Socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steelyard.node.rpc.websocket.MAX_SOCKETS", 0)
    with pytest.raises(ConnectionClosed) as caught:
        open_socket().receive()
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1013


def test_a_closed_socket_leaves_nothing_behind(
    open_socket: Callable[[], Socket], rpc: Rpc, node: DoubleNode
) -> None:
    one = open_socket()
    one.subscribe("newHeads")
    assert rpc.count_sockets() > 0
    one.connection.close()
    node.add_block(())
    wait_until(lambda: rpc.count_sockets() == 0)


def test_logs_that_cannot_be_read_end_their_subscribers_only(
    open_socket: Callable[[], Socket], node: DoubleNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(*_: object) -> None:
        raise RuntimeError("the disk is gone")

    logs, heads = open_socket(), open_socket()
    logs.subscribe("logs")
    heads.subscribe("newHeads")
    with monkeypatch.context() as patch:
        patch.setattr(node, "get_logs", break_down)
        node.add_block(())
        assert heads.receive()["method"] == "eth_subscription"
    with pytest.raises(ConnectionClosed):
        logs.receive()
    node.add_block(())
    assert heads.receive()["method"] == "eth_subscription"


def test_many_calls_sent_before_reading_are_all_answered(socket: Socket) -> None:
    count = 3_000
    for number in range(count):
        socket.connection.send(f'{{"jsonrpc":"2.0","id":{number},"method":"eth_chainId"}}')
    assert [socket.receive()["id"] for _ in range(count)] == list(range(count))


def test_a_subscriber_that_falls_behind_is_ended() -> None:
    async def scenario() -> None:
        subscriber = Subscriber(cast(Feed, None))
        for _ in range(1_024):
            subscriber.send(b"x")
        assert not subscriber.has_room.is_set()
        assert not subscriber.is_over.is_set()
        subscriber.send(b"one too many")
        assert subscriber.is_over.is_set()
        assert await subscriber.receive() is None

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_socket_that_is_not_read_is_closed_while_others_are_served(
    server: HttpServer, open_socket: Callable[[], Socket], node: DoubleNode, rpc: Rpc
) -> None:
    data = Log(CONTRACT, (TOPIC,), bytes(900_000))
    subscribe = '{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["logs"]}'
    wait_until(lambda: rpc.count_sockets() == 0)  # those of other tests may still be ending
    reader = open_socket()
    reader.subscribe("newHeads")
    with connect_without_buffer(server) as idle:
        idle.send(subscribe)
        idle.recv(timeout=PATIENCE_SECONDS)
        for nonce in range(1, 65):
            node.add_block([sign(nonce)], [data])
            assert reader.receive()["method"] == "eth_subscription"
            if rpc.count_sockets() == 1:
                break
        else:
            pytest.fail("the node keeps over 100 MB for a reader that does not read")
        assert reader.send("eth_chainId")["result"] == "0x1e25"


def connect_without_buffer(server: HttpServer) -> ClientConnection:
    """Connect with a receive buffer of a fixed size: the kernel's own may grow to 32 MB."""
    url = urlsplit(server.url)
    assert url.hostname is not None
    assert url.port is not None
    raw = socket_module.socket()
    raw.setsockopt(socket_module.SOL_SOCKET, socket_module.SO_RCVBUF, 65_536)
    raw.connect((url.hostname, url.port))
    return connect(
        server.url.replace("http", "ws"),
        sock=raw,
        open_timeout=PATIENCE_SECONDS,
        compression=None,
        max_size=None,
        max_queue=1,
        close_timeout=0.1,
    )


def test_one_large_answer_is_sent_even_if_it_exceeds_the_queue() -> None:
    async def scenario() -> None:
        subscriber = Subscriber(cast(Feed, None))
        subscriber.send(bytes(9 * 2**20))
        assert not subscriber.is_over.is_set()
        subscriber.send(b"x")
        assert subscriber.is_over.is_set()

    asyncio.run(scenario())

"""The server: its ports and paths, followers, health, metrics, and calls that must not block it."""

import contextlib
import dataclasses
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from steelyard.chain.block import decode_block
from steelyard.chain.errors import SteelyardError
from steelyard.node.http import HttpServer
from steelyard.node.records import NetworkTotals

from .conftest import PATIENCE_SECONDS, Rpc, wait_until
from .double import CONTRACT, DoubleNode

if TYPE_CHECKING:
    from steelyard.node.node import Node

TO = "0x" + CONTRACT.hex()


def create_server(directory: Path, host: str, port: int) -> HttpServer:
    return HttpServer(cast("Node", DoubleNode(directory)), host, port)


def test_a_taken_port_is_a_typed_error_that_says_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SteelyardError, match=r"\[http\] section of config.toml") as caught:
            create_server(tmp_path, "127.0.0.1", port).start()
    assert caught.value.code == "port_taken"


@pytest.mark.parametrize(
    ("host", "port"), [("192.0.2.1", 0), ("not..valid", 0), ("127.0.0.1", 70_000)]
)
def test_an_impossible_address_is_a_typed_error(tmp_path: Path, host: str, port: int) -> None:
    with pytest.raises(SteelyardError) as caught:
        create_server(tmp_path, host, port).start()
    assert caught.value.code == "listen_failed"


def test_a_stopped_server_frees_its_threads(tmp_path: Path) -> None:
    before = threading.enumerate()  # those of other tests may still be ending
    first = create_server(tmp_path, "127.0.0.1", 0)
    first.start()
    assert first.url == f"http://127.0.0.1:{first.port}"
    first.stop()
    first.stop()
    wait_until(lambda: set(threading.enumerate()) <= set(before))


def test_a_stopped_server_frees_its_port(tmp_path: Path) -> None:
    def restart() -> bool:
        first = create_server(tmp_path, "127.0.0.1", 0)
        first.start()
        first.stop()
        second = create_server(tmp_path, "127.0.0.1", first.port)
        try:
            second.start()
        except SteelyardError:
            return False
        second.stop()
        return True

    assert any(restart() for _ in range(3)), "another program may have taken one, not each"


def test_stopping_waits_neither_for_calls_nor_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steelyard.node.http.STOP_SECONDS", 0.1)
    monkeypatch.setattr("steelyard.node.http.JOIN_SECONDS", 0.1)
    node, release = DoubleNode(tmp_path), threading.Event()
    entered, has_left = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        release.wait(PATIENCE_SECONDS)
        has_left.set()

    node.on_call = wait
    server = HttpServer(cast("Node", node), "127.0.0.1", 0)
    server.start()
    body = b'{"jsonrpc":"2.0","id":1,"method":"eth_call","params":[{}]}'
    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    url = server.url.replace("http", "ws")
    with socket.create_connection(("127.0.0.1", server.port)) as one, connect(url) as two:
        one.sendall(head + body)
        assert entered.wait(PATIENCE_SECONDS)
        server.stop()
        assert not has_left.is_set()
        with pytest.raises(ConnectionClosed):
            two.recv(timeout=PATIENCE_SECONDS)
    release.set()
    assert node.callbacks == []


def test_bodies_in_memory_are_bounded_together(rpc: Rpc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelyard.node.http.MAX_BUFFERED_BYTES", 10_000)
    for _ in range(3):
        response = rpc.http.post("/", content=b" " * 20_000)
        assert response.status_code == 503
        assert response.json()["error"]["data"] == {"code": "busy"}
    assert rpc.call("eth_chainId") == "0x1e25"


def test_a_slow_call_does_not_delay_reads(
    rpc: Rpc, node: DoubleNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, release = threading.Semaphore(0), threading.Event()

    def wait() -> None:
        entered.release()
        assert release.wait(PATIENCE_SECONDS)

    def call_slowly() -> None:
        one = Rpc(rpc.url)
        one.call("eth_call", {"to": TO})
        one.http.close()

    monkeypatch.setattr(node, "on_call", wait)
    threads = [threading.Thread(target=call_slowly) for _ in range(2)]
    for one in threads:
        one.start()
    for _ in threads:
        assert entered.acquire(timeout=PATIENCE_SECONDS)
    try:
        assert rpc.call("eth_getBalance", TO, "latest") == hex(10**18)
        assert rpc.http.get("/health").status_code == 200
    finally:
        release.set()
        for one in threads:
            one.join()


def test_health_shows_the_status_and_turns_503_with_an_alarm(
    rpc: Rpc, node: DoubleNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    response = rpc.http.get("/health")
    assert response.status_code == 200
    assert response.json()["healthy"] is True
    assert response.json()["height"] == node.get_head().height
    monkeypatch.setattr(node, "alarm", "disk_full")
    response = rpc.http.get("/health")
    assert (response.status_code, response.json()["alarm"]) == (503, "disk_full")
    assert 'steelyard_alarm{code="disk_full"} 1.0' in rpc.http.get("/metrics").text


@pytest.mark.parametrize(
    ("alarm", "code"),
    [(None, 200), ("disk_full", 200), ("fork_or_bug", 200), ("driver_failed", 503)],
)
def test_only_an_alarm_that_a_restart_may_end_asks_for_one(
    rpc: Rpc, node: DoubleNode, monkeypatch: pytest.MonkeyPatch, alarm: str | None, code: int
) -> None:
    monkeypatch.setattr(node, "alarm", alarm)
    response = rpc.http.get("/alive")
    assert (response.status_code, response.json()) == (code, {"alive": code == 200})


def test_metrics_and_health_show_what_the_network_counted(
    rpc: Rpc, node: DoubleNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals = NetworkTotals({"epoch": 3}, {"vote_signature": 17}, {"chunks_served": 5}, muted=1)
    monkeypatch.setattr(node, "network", totals)
    lines = rpc.http.get("/metrics").text.splitlines()
    assert 'steelyard_network_dropped_total{reason="epoch"} 3.0' in lines
    assert 'steelyard_network_refused_total{code="vote_signature"} 17.0' in lines
    assert 'steelyard_network_work_total{what="chunks_served"} 5.0' in lines
    assert "steelyard_peers_muted 1.0" in lines
    assert rpc.http.get("/health").json()["network"] == dataclasses.asdict(totals)


def test_metrics_count_calls_by_known_methods_only(rpc: Rpc) -> None:
    rpc.call("eth_chainId")
    rpc.fail("made_up_by_an_attacker")
    response = rpc.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = response.text
    assert 'steelyard_rpc_calls_total{method="eth_chainId",outcome="ok"}' in text
    assert 'steelyard_rpc_calls_total{method="unknown",outcome="-32601"}' in text
    assert "made_up" not in text
    assert "steelyard_height " in text
    assert "steelyard_alarm{" not in text


def test_followers_get_genesis_and_blocks(rpc: Rpc, node: DoubleNode) -> None:
    assert rpc.http.get("/chain/genesis").content == node.get_genesis_document()
    block = node.add_block(())
    response = rpc.http.get(f"/chain/blocks/{block.height}")
    assert decode_block(response.content) == block
    for path in ("blocks/999999", "certificates/999999"):
        response = rpc.http.get(f"/chain/{path}")
        assert (response.status_code, response.json()["error"]) == (404, "unknown_block")


@pytest.mark.parametrize("height", ["x", "-1", "1.5", "0x1", "9" * 19, "²", "latest"])
def test_a_height_that_is_no_number_is_refused(rpc: Rpc, height: str) -> None:
    response = rpc.http.get(f"/chain/blocks/{height}")
    assert (response.status_code, response.json()["error"]) == (400, "bad_height")


def test_unknown_paths_and_methods_are_json_errors(rpc: Rpc) -> None:
    response = rpc.http.get("/nothing/here")
    assert (response.status_code, response.json()["error"]) == (404, "not_found")
    response = rpc.http.put("/health")
    assert (response.status_code, response.json()["error"]) == (405, "method_not_allowed")
    assert rpc.http.get("/").json()["chain_id"] == 7717


def test_pages_of_other_origins_may_call(rpc: Rpc) -> None:
    response = rpc.http.options(
        "/",
        headers={
            "origin": "https://dapp.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type",
        },
    )
    assert response.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "text", ["nonsense\r\n\r\n", "GET / HTTP/9\r\n\r\n", "GET /" + "x" * 100_000]
)
def test_what_is_not_http_is_refused_and_the_server_lives(rpc: Rpc, text: str) -> None:
    host, port = rpc.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as one:
        with contextlib.suppress(ConnectionError):  # it may have had enough before the end
            one.sendall(text.encode())
        assert b"400" in one.recv(1_000)
    assert rpc.call("eth_chainId") == "0x1e25"


def test_a_body_that_never_comes_is_given_up(rpc: Rpc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelyard.node.http.BODY_SECONDS", 0.05)
    monkeypatch.setattr("steelyard.node.responses.DRAIN_SECONDS", 0.05)
    host, port = rpc.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as one:
        one.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        assert b"408" in one.recv(1_000)

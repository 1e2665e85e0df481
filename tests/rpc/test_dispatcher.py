"""Whatever arrives gets the right JSON-RPC error, and the server answers the next call."""

import json

import pytest

from steelyard.node.rpc.limits import MAX_BATCH_CALLS, MAX_BODY_BYTES, MAX_NESTING

from .conftest import Rpc
from .double import DoubleNode


def test_a_call_is_answered_with_its_id(rpc: Rpc) -> None:
    answer = rpc.post(b'{"jsonrpc":"2.0","id":"x","method":"eth_chainId"}')
    assert answer == {"jsonrpc": "2.0", "id": "x", "result": "0x1e25"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", -32700),
        (b"{", -32700),
        (b"\xff\xfe", -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId"', -32700),
        (b'{"jsonrpc":"2.0","id":NaN,"method":"eth_chainId"}', -32700),
        (b'{"jsonrpc":"2.0","id":1e999,"method":"eth_chainId"}', -32700),
        (b'{"jsonrpc":"2.0","id":' + b"9" * 5_000 + b',"method":"eth_chainId"}', -32700),
        (b"[" * (MAX_NESTING + 1) + b"]" * (MAX_NESTING + 1), -32700),
        (b"[" * 1_000_000, -32700),
        (b'{"a":' * 500_000, -32700),
        (b'"' + b'\\"' * 500_000, -32700),
        (b"3", -32600),
        (b"null", -32600),
        (b'"eth_chainId"', -32600),
        (b"[]", -32600),
        (b"{}", -32600),
        (b'{"jsonrpc":"1.0","id":1,"method":"eth_chainId"}', -32600),
        (b'{"jsonrpc":"2.0","id":{},"method":"eth_chainId"}', -32600),
        (b'{"jsonrpc":"2.0","id":true,"method":"eth_chainId"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":7}', -32600),
        (b'{"jsonrpc":"2.0","id":1}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":{}}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":"x"}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":[1]}', -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"eth_sendTransaction","params":[{}]}', -32601),
        (b'{"jsonrpc":"2.0","id":1,"method":"","params":[]}', -32601),
        (b'{"jsonrpc":"2.0","id":1,"method":"\\ud800"}', -32601),
    ],
)
def test_malformed_requests_get_their_code_and_the_server_lives(
    rpc: Rpc, body: bytes, code: int
) -> None:
    assert rpc.post(body)["error"]["code"] == code
    assert rpc.call("eth_chainId") == "0x1e25"


def test_an_error_keeps_the_id_of_its_call(rpc: Rpc) -> None:
    assert rpc.post(b'{"jsonrpc":"2.0","id":5,"method":"nope"}')["id"] == 5
    assert rpc.post(b'{"jsonrpc":"1.0","id":6,"method":"eth_chainId"}')["id"] == 6
    assert rpc.post(b'{"id":[1],"method":"eth_chainId"}')["id"] is None


@pytest.mark.parametrize("declares_length", [True, False])
def test_an_oversized_body_gets_413_with_an_error_that_says_so(
    rpc: Rpc, declares_length: bool
) -> None:
    body = b" " * (MAX_BODY_BYTES + 1)
    content = body if declares_length else iter([body[:1_000_000], body[1_000_000:]])
    response = rpc.http.post("/", content=content)
    assert response.status_code == 413
    assert response.json()["error"]["data"]["code"] == "body_too_large"
    assert rpc.call("eth_chainId") == "0x1e25"


def test_the_largest_body_is_taken(rpc: Rpc) -> None:
    call = b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}'
    assert rpc.post(call + b" " * (MAX_BODY_BYTES - len(call)))["result"] == "0x1e25"


def test_a_batch_is_answered_in_order_with_errors_in_their_places(rpc: Rpc) -> None:
    calls = [
        {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"},
        {"jsonrpc": "2.0", "id": 2, "method": "nope"},
        7,
        {"jsonrpc": "2.0", "method": "eth_chainId"},
        {"jsonrpc": "2.0", "id": 3, "method": "eth_blockNumber", "params": []},
    ]
    answers = rpc.post(json.dumps(calls).encode())
    assert [answer["id"] for answer in answers] == [1, 2, None, 3]
    assert [answer.get("error", {}).get("code") for answer in answers] == [
        None,
        -32601,
        -32600,
        None,
    ]


def test_a_batch_that_is_too_long_is_refused_whole(rpc: Rpc) -> None:
    calls = [{"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"}] * (MAX_BATCH_CALLS + 1)
    assert rpc.post(json.dumps(calls).encode())["error"]["code"] == -32005


@pytest.mark.parametrize("is_batch", [True, False])
def test_a_notification_gets_no_answer(rpc: Rpc, is_batch: bool) -> None:
    call = b'{"jsonrpc":"2.0","method":"eth_chainId"}'
    response = rpc.http.post("/", content=b"[" + call + b"]" if is_batch else call)
    assert (response.status_code, response.content) == (200, b"")


def test_the_answers_of_a_batch_are_bounded_together(
    rpc: Rpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steelyard.node.rpc.dispatcher.MAX_RESPONSE_BYTES", 100)
    calls = [{"jsonrpc": "2.0", "id": 1, "method": "eth_chainId"}] * 4
    answers = rpc.post(json.dumps(calls).encode())
    assert "result" in answers[0]
    assert answers[-1]["error"]["code"] == -32005


def test_our_own_mistakes_are_internal_errors_without_details(
    rpc: Rpc, node: DoubleNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "get_balance", lambda *_: 1 / 0)
    error = rpc.fail("eth_getBalance", "0x" + "00" * 20, "latest")
    assert error == {"code": -32603, "message": "internal error; the node's log has the details"}
    assert rpc.call("eth_chainId") == "0x1e25"

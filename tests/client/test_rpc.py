"""Nodes: failover, one chain only, bounded and checked answers."""

import json
from collections.abc import Callable

import httpx
import pytest

from steelyard.chain.cid import compute_blob_name
from steelyard.client.errors import ClientError, NodeRefused, NodeUnreachable, Reverted
from steelyard.client.rpc import MAX_WORDS, Rpc, as_bytes, as_int, check_url

from .ledger import Ledger

FIRST, SECOND = "http://first.test", "http://second.test"
Answer = Callable[[httpx.Request], httpx.Response]


def open_two(first: Answer, second: Answer) -> Rpc:
    def answer(request: httpx.Request) -> httpx.Response:
        return (first if request.url.host == "first.test" else second)(request)

    return Rpc([FIRST, SECOND], transport=httpx.MockTransport(answer), sleep=lambda s: None)


def refuse(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused")


def answer_error(error: object) -> Answer:
    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.read())
        if isinstance(body, list):
            return Ledger().answer(request)
        return httpx.Response(200, json={"jsonrpc": "2.0", "id": body["id"], "error": error})

    return answer


def test_the_next_node_answers_when_one_is_silent() -> None:
    rpc = open_two(refuse, Ledger().answer)
    assert rpc.call("eth_blockNumber") == "0x0"
    assert rpc.url == SECOND


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_an_overloaded_node_counts_as_silent(status: int) -> None:
    rpc = open_two(lambda request: httpx.Response(status), Ledger().answer)
    assert rpc.call("eth_blockNumber") == "0x0"


def test_every_silent_node_is_named() -> None:
    with pytest.raises(NodeUnreachable, match=r"first\.test.*second\.test") as caught:
        open_two(refuse, refuse).call("eth_blockNumber")
    assert caught.value.code == "node_unreachable"


def test_a_refusal_is_an_answer_and_is_not_asked_elsewhere() -> None:
    error = {"code": -32000, "message": "tx_gas: too little", "data": {"code": "tx_gas"}}
    rpc = open_two(answer_error(error), Ledger().answer)
    with pytest.raises(NodeRefused, match="too little") as caught:
        rpc.call("eth_sendRawTransaction", "0x")
    assert (caught.value.code, rpc.url) == ("tx_gas", FIRST)


def test_a_revert_carries_its_reason() -> None:
    error = {"code": 3, "message": "execution reverted: tasks: full", "data": "0x"}
    with pytest.raises(Reverted) as caught:
        open_two(answer_error(error), refuse).call("eth_call", {}, "latest")
    assert caught.value.reason == "tasks: full"


EVIL = "no\x1b[2K\r\nYES\u202e" + "x" * 2_000
CLEAN = "no\ufffd[2K\ufffd\ufffdYES\ufffd" + "x" * (MAX_WORDS - len("no.[2K..YES."))


@pytest.mark.parametrize("code", [3, -32000])
def test_a_nodes_words_are_kept_in_one_line_that_a_terminal_only_prints(code: int) -> None:
    reason = {"code": code, "message": EVIL, "data": {"code": "\x1b[2Kevil"}}
    with pytest.raises(ClientError) as caught:
        open_two(answer_error(reason), refuse).call("eth_call")
    words = caught.value.reason if isinstance(caught.value, Reverted) else caught.value.message
    assert words == CLEAN
    assert caught.value.code == ("reverted" if code == 3 else "rpc_error")


def test_a_refusal_over_http_is_kept_in_one_line_too() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/evil":
            return httpx.Response(400, json={"error": "evil", "message": EVIL})
        return Ledger().answer(request)

    with pytest.raises(NodeRefused) as caught:
        open_two(answer, refuse).get_bytes("/evil")
    assert (caught.value.code, caught.value.message) == ("evil", CLEAN)


def test_a_node_of_another_chain_is_never_used() -> None:
    stranger = Ledger()
    stranger.get_chain_id = lambda: 999
    broken = False

    def first(request: httpx.Request) -> httpx.Response:
        return refuse(request) if broken else Ledger().answer(request)

    rpc = open_two(first, stranger.answer)
    assert rpc.network.chain_id == 4242
    broken = True
    with pytest.raises(NodeUnreachable, match="another chain"):
        rpc.call("eth_blockNumber")
    assert stranger.methods == ["eth_chainId", "eth_getBlockByNumber"] * 3


def test_a_node_that_comes_back_with_another_chain_is_refused() -> None:
    before, after = Ledger(), Ledger()
    after.get_chain_id = lambda: 999
    now: list[Answer] = [before.answer]

    def answer(request: httpx.Request) -> httpx.Response:
        return now[0](request)

    rpc = Rpc(FIRST, transport=httpx.MockTransport(answer), sleep=lambda s: None)
    assert rpc.network.chain_id == 4242
    now[0] = refuse
    with pytest.raises(NodeUnreachable):
        rpc.call("eth_blockNumber")
    now[0] = after.answer
    with pytest.raises(ClientError) as caught:
        rpc.call("eth_blockNumber")
    assert caught.value.code == "wrong_chain"


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"7", b'{"id": 1}', b'[{"id": "x"}]', b"\xff"]
)
def test_a_node_that_talks_nonsense_is_no_node(body: bytes) -> None:
    rpc = Rpc(
        FIRST,
        transport=httpx.MockTransport(lambda r: httpx.Response(200, content=body)),
        sleep=lambda s: None,
    )
    with pytest.raises((NodeUnreachable, NodeRefused)):
        rpc.call("eth_blockNumber")


@pytest.mark.parametrize("url", ["", "node.example", "ftp://node", "http://", "file:///etc/passwd"])
def test_only_http_addresses_are_nodes(url: str) -> None:
    with pytest.raises(ClientError) as caught:
        check_url(url)
    assert caught.value.code == "node_url"


@pytest.mark.parametrize("value", [None, 5, "5", "0x", "0xg", "0x" + "0" * 65, [], {}])
def test_a_malformed_quantity_is_refused(value: object) -> None:
    with pytest.raises(NodeRefused) as caught:
        as_int(value)
    assert caught.value.code == "rpc_answer"


@pytest.mark.parametrize("value", [None, 5, "12", "0x1", "0xzz", "0x12 34", "0x1234"])
def test_malformed_data_is_refused(value: object) -> None:
    with pytest.raises(NodeRefused):
        as_bytes(value, 1)


def serve_blob(parts: list[bytes], requests: list[str]) -> Answer:
    """A node that answers each GET of a blob with the next part, whole blobs from 0."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return Ledger().answer(request)
        requests.append(request.headers.get("range", ""))
        status = 206 if "range" in request.headers else 200
        return httpx.Response(status, content=parts.pop(0))

    return answer


def test_an_interrupted_download_is_resumed_where_it_stopped() -> None:
    data, requests = bytes(range(256)) * 8, []
    answer = serve_blob([data[:1000], data[1000:]], requests)
    rpc = Rpc(FIRST, transport=httpx.MockTransport(answer), sleep=lambda s: None)
    assert rpc.get_blob(compute_blob_name(data)) == data
    assert requests == ["", "bytes=1000-"]


@pytest.mark.parametrize("wrong", [b"x" * 2048, b"y" * 4096])
def test_other_bytes_than_the_name_says_are_never_returned(wrong: bytes) -> None:
    data = bytes(range(256)) * 8
    rpc = Rpc(
        FIRST,
        transport=httpx.MockTransport(serve_blob([wrong] * 9, [])),
        sleep=lambda s: None,
    )
    with pytest.raises(ClientError) as caught:
        rpc.get_blob(compute_blob_name(data))
    assert caught.value.code == "blob_mismatch"


def test_a_good_node_makes_up_for_a_lying_one() -> None:
    data = bytes(range(256)) * 8
    honest = Ledger()
    name = honest.add_blob(data)
    rpc = open_two(serve_blob([b"z" * 2048] * 9, []), honest.answer)
    assert rpc.get_blob(name) == data


def test_a_missing_blob_is_no_proof_of_anything() -> None:
    rpc = open_two(Ledger().answer, Ledger().answer)
    with pytest.raises(NodeUnreachable, match="404"):
        rpc.get_blob(compute_blob_name(b"nowhere"))


def test_a_blob_that_a_node_refuses_keeps_the_nodes_code() -> None:
    """As node/responses.py answers; the outbox waits for some codes and gives up on others."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            body = {"error": "blob_undeclared", "message": "no pending transaction declares it"}
            return httpx.Response(403, json=body)
        return Ledger().answer(request)

    data = b"an update"
    with pytest.raises(NodeRefused, match="no pending transaction") as caught:
        open_two(answer, answer).put_blob(compute_blob_name(data), data)
    assert caught.value.code == "blob_undeclared"

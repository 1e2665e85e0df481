"""What clients send to a full node reaches a validator, blobs after their transactions."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from steelyard.chain.cid import encode_cid
from steelyard.node.clock import Clock
from steelyard.node.config import FollowConfig, MempoolConfig
from steelyard.node.following.forwarding import AGAIN_SECONDS, SETTLED, Forwarder, read_refusal
from steelyard.node.following.sync import FollowerParts
from steelyard.node.mempool import Mempool, Sender

from .follow_kit import Chain, Lie, serve
from .world import ALICE, BOB, COIN, make_blob, sign_transaction, wait_until


class Place:
    """A full node as far as forwarding goes; `seconds` is its clock."""

    def __init__(self, directory: Path) -> None:
        self.chain = Chain(directory)
        self.seconds = 0.0
        self.mempool = Mempool(
            self.chain.genesis.rules,
            MempoolConfig(),
            lambda _: Sender(0, 100 * COIN, has_code=False),
            lambda: 1,
            self.chain.blobs.has,
            lambda: self.seconds,
        )

    def make(self, *urls: str, is_member: Callable[[], bool] = lambda: False) -> Forwarder:
        parts = FollowerParts(
            genesis=self.chain.genesis,
            config=FollowConfig(nodes=urls),
            store=self.chain.store,
            blobs=self.chain.blobs,
            deliver=lambda _: None,
            wake=lambda: None,
            is_member=is_member,
            clock=Clock(lambda: self.seconds),
        )
        return Forwarder(parts, self.mempool)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    one = Place(tmp_path)
    yield one
    one.chain.close()


class Taker:
    """A node that takes transactions and blobs; `refusal` is what it answers instead, `code: …`."""

    def __init__(self, refusal: str | None = None) -> None:
        self.refusal, self.raw, self.blobs = refusal, list[bytes](), dict[str, bytes]()
        self.calls = 0

    def __call__(self, path: str, body: bytes) -> tuple[int, bytes]:
        if path == "/":
            call = json.loads(body)
            assert call["method"] == "eth_sendRawTransaction"
            self.calls += 1
            if self.refusal is not None:
                code, _, message = self.refusal.partition(": ")
                error = {"code": -32000, "message": message, "data": {"code": code}}
                return 200, json.dumps({"jsonrpc": "2.0", "id": 1, "error": error}).encode()
            self.raw.append(bytes.fromhex(call["params"][0][2:]))
            return 200, b'{"jsonrpc":"2.0","id":1,"result":"0x"}'
        cid = path.removeprefix("/blobs/")
        if body:
            self.blobs[cid] = body
            return 201, b"{}"
        return (200, b"") if cid in self.blobs else (404, b"")


def test_transactions_arrive_once_and_in_order(place: Place) -> None:
    raws = [sign_transaction(ALICE, 0), sign_transaction(BOB, 0), sign_transaction(ALICE, 1)]
    taker = Taker()
    with serve(place.chain, taker) as source:
        forwarder = place.make(source.url)
        for raw in raws:
            place.mempool.add(raw)
            forwarder.work()
            forwarder.work()
        forwarder.stop()
    assert taker.raw == raws


def test_blobs_follow_their_transaction_once_they_are_whole(place: Place) -> None:
    name, data = make_blob(300_000)
    taker = Taker()
    with serve(place.chain, taker) as source:
        forwarder = place.make(source.url)
        place.mempool.add(sign_transaction(ALICE, 0, blobs=(name,)))
        forwarder.work()
        assert len(taker.raw) == 1
        assert taker.blobs == {}
        place.chain.blobs.put(name, data)
        forwarder.work()
        forwarder.work()
        forwarder.stop()
        assert source.asked.count(f"/blobs/{encode_cid(name)}") == 2  # HEAD, PUT
    assert taker.blobs == {encode_cid(name): data}


def test_what_still_waits_is_sent_again_but_a_blob_that_is_there_is_not(place: Place) -> None:
    name, data = make_blob(1_000)
    place.chain.blobs.put(name, data)
    taker = Taker()
    with serve(place.chain, taker) as source:
        forwarder = place.make(source.url)
        place.mempool.add(sign_transaction(ALICE, 0, blobs=(name,)))
        forwarder.work()
        place.seconds += AGAIN_SECONDS
        forwarder.work()
        forwarder.stop()
        assert source.asked.count(f"/blobs/{encode_cid(name)}") == 3
    assert len(taker.raw) == 2


def broken(_path: str, _body: bytes) -> tuple[int, bytes]:
    return 200, b"[1]"


def down(_path: str, _body: bytes) -> tuple[int, bytes]:
    return 503, b""


@pytest.mark.parametrize("first", [broken, down, Taker("tx_pool_full: the pool is full")])
def test_the_next_source_is_asked_when_one_does_not_take_it(first: Lie, place: Place) -> None:
    taker = Taker()
    with serve(place.chain, first) as bad, serve(place.chain, taker) as good:
        forwarder = place.make(bad.url, good.url)
        place.mempool.add(sign_transaction(ALICE, 0))
        forwarder.work()
        forwarder.stop()
    assert len(taker.raw) == 1


def test_a_source_that_dies_during_an_upload_is_replaced(place: Place) -> None:
    name, data = make_blob(1_000)
    place.chain.blobs.put(name, data)
    dying = Taker()

    def die(path: str, body: bytes) -> tuple[int, bytes]:
        assert path == "/" or not body, "the connection breaks here"
        return dying(path, body)

    taker = Taker()
    with serve(place.chain, die) as first, serve(place.chain, taker) as second:
        forwarder = place.make(first.url, second.url)
        place.mempool.add(sign_transaction(ALICE, 0, blobs=(name,)))
        forwarder.work()
        forwarder.work()
        forwarder.stop()
    assert len(dying.raw) == 1
    assert taker.blobs == {encode_cid(name): data}


def test_a_source_that_took_it_in_vain_is_asked_last(place: Place) -> None:
    """Two full nodes that follow each other must not pass it to and fro for ever."""
    mirror, validator = Taker(), Taker()
    with serve(place.chain, mirror) as first, serve(place.chain, validator) as second:
        forwarder = place.make(first.url, second.url)
        place.mempool.add(sign_transaction(ALICE, 0))
        for _ in range(4):
            forwarder.work()
            place.seconds += AGAIN_SECONDS
        forwarder.stop()
    assert (len(mirror.raw), len(validator.raw)) == (2, 2)


def test_what_the_chain_has_already_is_not_sent_there_again(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    ahead, behind = Taker("tx_nonce_low: nonce too low"), Taker("tx_balance: no money")
    with serve(place.chain, ahead) as first, serve(place.chain, behind) as second:
        forwarder = place.make(first.url, second.url)
        place.mempool.add(sign_transaction(ALICE, 0))
        for _ in range(3):
            forwarder.work()
            place.seconds += AGAIN_SECONDS
        forwarder.stop()
    assert (ahead.calls, behind.calls) == (1, 3), "another one may be on our side of it"
    assert "nonce too low" not in caplog.text


@pytest.mark.parametrize("data", [b"null", b"7", b'"tx_nonce_low"', b'{"code":["tx_nonce_low"]}'])
def test_a_refusal_with_odd_data_is_one_all_the_same(data: bytes) -> None:
    refusal = read_refusal(b'{"error":{"message":"no","data":' + data + b"}}")
    assert refusal is not None
    assert refusal.code != SETTLED
    assert refusal.message == "no"


def test_a_validator_that_votes_forwards_nothing(place: Place) -> None:
    looks: list[bool] = []

    def is_member() -> bool:
        looks.append(True)
        return True

    with serve(place.chain, Taker()) as source:
        forwarder = place.make(source.url, is_member=is_member)
        place.mempool.add(sign_transaction(ALICE, 0))
        forwarder.start()
        for count in range(2):  # when it looks again, it is done with the time before
            forwarder.wake()
            wait_until(lambda count=count: len(looks) > count)
        forwarder.stop()
        assert source.asked == []


def test_a_running_forwarder_sends_when_it_is_woken(place: Place) -> None:
    taker = Taker()
    with serve(place.chain, taker) as source:
        forwarder = place.make(source.url)
        forwarder.start()
        place.mempool.add(sign_transaction(ALICE, 0))
        forwarder.wake()
        wait_until(lambda: taker.raw)
        forwarder.stop()

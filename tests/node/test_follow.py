"""What a node serves to followers: bounded, typed refusals, nothing that needs to be trusted."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import httpx
import pytest

from steelyard.chain.block import Header
from steelyard.chain.consensus.certificates import Certificate, decode_certificate
from steelyard.chain.epochs import decode_epoch_set
from steelyard.chain.errors import SteelyardError
from steelyard.chain.following import check_segment
from steelyard.chain.rlp import decode_rlp
from steelyard.chain.segments import decode_segment
from steelyard.node import follow
from steelyard.node.follow import read_nodes, read_segment
from steelyard.node.http import HttpServer
from steelyard.node.store import ChainStore

from ..rpc.double import DoubleNode
from .follow_kit import EPOCH_BLOCKS, Chain
from .world import CHAIN_ID

if TYPE_CHECKING:
    from steelyard.node.node import Node


class ChainNode(DoubleNode):
    """The facade of the HTTP side over a chain on disk."""

    def __init__(self, directory: Path, chain: Chain) -> None:
        super().__init__(directory)
        self.rules = chain.genesis.rules
        self.store: ChainStore = chain.store

    def get_head(self) -> Header:
        return self.store.get_head()

    def get_certificate(self, height: int) -> Certificate | None:
        return self.store.get_certificate(height)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    one = Chain(tmp_path_factory.mktemp("chain"))
    one.grow(6)
    yield one
    one.close()


@pytest.fixture(scope="module")
def http(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    node = cast("Node", ChainNode(tmp_path_factory.mktemp("double"), chain))
    server = HttpServer(node, "127.0.0.1", 0)
    server.start()
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client
    server.stop()


def test_the_head_says_where_the_node_is(chain: Chain, http: httpx.Client) -> None:
    assert http.get("/chain/head").json() == {
        "chain_id": CHAIN_ID,
        "genesis_hash": "0x" + chain.state.block.hash.hex(),
        "height": 6,
        "hash": "0x" + chain.head.hash.hex(),
        "timestamp": chain.head.timestamp,
        "epoch": 1,
        "oldest_state": 0,
    }


def test_a_segment_proves_itself_and_ends_with_its_epoch(chain: Chain, http: httpx.Client) -> None:
    tip = chain.state.block.header
    for epoch, heights in enumerate(([1, 2, 3, 4], [5, 6])):
        reply = http.get(f"/chain/segments/{heights[0]}")
        segment = decode_segment(reply.content)
        assert [block.height for block in segment.blocks] == heights
        current = decode_epoch_set(http.get(f"/chain/validators/{epoch}").content)
        check_segment(tip, segment.blocks, segment.certificate, current, chain.genesis.domain)
        tip = segment.blocks[-1].header


def test_nodes_come_by_their_hashes(chain: Chain, http: httpx.Client) -> None:
    root = chain.head.state_root
    reply = http.post("/chain/nodes", content=root + b"\x11" * 32)
    assert decode_rlp(reply.content) == [chain.store.get_node(root)]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/chain/segments/0", 404, "unknown_block"),
        ("/chain/segments/7", 404, "unknown_block"),
        ("/chain/segments/x", 400, "bad_height"),
        ("/chain/segments/1" + "0" * 18, 400, "bad_height"),
        ("/chain/validators/9", 404, "unknown_block"),
        ("/chain/validators/-1", 400, "bad_height"),
    ],
)
def test_what_is_not_here_is_said(path: str, status: int, code: str, http: httpx.Client) -> None:
    reply = http.get(path)
    assert (reply.status_code, reply.json()["error"]) == (status, code)


@pytest.mark.parametrize("body", [b"", b"\0" * 31, b"\0" * 33, bytes(257 * 32), bytes(2**20)])
def test_a_body_that_is_no_list_of_hashes_is_refused(body: bytes, http: httpx.Client) -> None:
    reply = http.post("/chain/nodes", content=body)
    assert (reply.status_code, reply.json()["error"]) == (400, "bad_hashes")


def test_a_segment_ends_at_the_first_certificate_past_its_size(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "SEGMENT_BYTES", 1)
    data = read_segment(chain.store, 1, EPOCH_BLOCKS)
    assert data is not None
    assert [block.height for block in decode_segment(data).blocks] == [1]
    with chain.store.database.write() as writer:
        kept = writer.get("certificates", (1).to_bytes(8, "big"))
        assert kept is not None
        writer.delete("certificates", (1).to_bytes(8, "big"))
    try:
        data = read_segment(chain.store, 1, EPOCH_BLOCKS)
        assert data is not None
        assert [block.height for block in decode_segment(data).blocks] == [1, 2]
        monkeypatch.setattr(follow, "MAX_TOGETHER_BLOCKS", 1)
        with pytest.raises(SteelyardError, match="segment_too_large"):
            read_segment(chain.store, 1, EPOCH_BLOCKS)
    finally:
        with chain.store.database.write() as writer:
            writer.put("certificates", (1).to_bytes(8, "big"), kept)


def test_a_certificate_of_a_later_epoch_is_none(chain: Chain, http: httpx.Client) -> None:
    """To an auditor it would look like a forged one."""
    boundary = (4).to_bytes(8, "big")
    with chain.store.database.write() as writer:
        kept = writer.get("certificates", boundary)
        assert kept is not None
        writer.delete("certificates", boundary)
    try:
        assert http.get("/chain/certificates/4").status_code == 404
        reply = http.get("/chain/certificates/5")
        assert decode_certificate(reply.content) == chain.store.get_certificate(5)
    finally:
        with chain.store.database.write() as writer:
            writer.put("certificates", boundary, kept)


def test_an_answer_with_nodes_ends_where_it_is_large_enough(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "NODES_BYTES", 1)
    root = chain.head.state_root
    assert read_nodes(chain.store, [root, root, root]) == [chain.store.get_node(root)]

"""Filters report each thing once, in order, and end when nobody polls them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from steelyard.chain.receipts import Log
from steelyard.chain.transactions import decode_transaction
from steelyard.node.rpc.dispatcher import Caller
from steelyard.node.rpc.errors import LIMIT_EXCEEDED, REFUSED, RpcError
from steelyard.node.rpc.filters import FilterMethods
from steelyard.node.rpc.limits import FILTER_IDLE_SECONDS

from .double import CONTRACT, OTHER_TOPIC, TOPIC, DoubleNode, sign

if TYPE_CHECKING:
    from steelyard.node.node import Node

ALICE, BOB = Caller("10.0.0.1"), Caller("10.0.0.2")
LOG = Log(CONTRACT, (TOPIC,), b"\x07")


class Clock:
    def __init__(self) -> None:
        self.time = 1_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def chain(tmp_path: Path) -> DoubleNode:
    return DoubleNode(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def filters(chain: DoubleNode, clock: Clock) -> FilterMethods:
    return FilterMethods(cast("Node", chain), clock)


def poll(filters: FilterMethods, identifier: object) -> Any:
    return filters.get_changes([identifier], ALICE)


def test_a_log_filter_reports_new_logs_once(filters: FilterMethods, chain: DoubleNode) -> None:
    chain.add_block([sign(1)], [LOG])
    one = filters.create_log_filter([{"address": "0x" + CONTRACT.hex()}], ALICE)
    assert poll(filters, one) == []
    chain.add_block([sign(2)], [LOG])
    chain.add_block([sign(3)], [LOG])
    assert [log["blockNumber"] for log in poll(filters, one)] == ["0x2", "0x3"]
    assert poll(filters, one) == []


def test_a_log_filter_keeps_to_its_range_and_topics(
    filters: FilterMethods, chain: DoubleNode
) -> None:
    ranged = filters.create_log_filter([{"fromBlock": "0x2", "toBlock": "0x2"}], ALICE)
    other = filters.create_log_filter([{"topics": ["0x" + OTHER_TOPIC.hex()]}], ALICE)
    for nonce in range(1, 5):
        chain.add_block([sign(nonce)], [LOG])
    assert [log["blockNumber"] for log in poll(filters, ranged)] == ["0x2"]
    assert poll(filters, ranged) == poll(filters, other) == []


def test_get_filter_logs_reports_the_whole_range_each_time(
    filters: FilterMethods, chain: DoubleNode
) -> None:
    chain.add_block([sign(1)], [LOG])
    one = filters.create_log_filter([{"fromBlock": "earliest"}], ALICE)
    for _ in range(2):
        assert len(cast(list[object], filters.get_logs([one], ALICE))) == 1


def test_a_block_filter_reports_hashes_in_order(filters: FilterMethods, chain: DoubleNode) -> None:
    one = filters.create_block_filter([], ALICE)
    hashes = ["0x" + chain.add_block(()).hash.hex() for _ in range(3)]
    assert poll(filters, one) == hashes
    assert poll(filters, one) == []


def test_a_pending_filter_reports_what_came_even_if_finalized_meanwhile(
    filters: FilterMethods, chain: DoubleNode
) -> None:
    early, late, quick = sign(1), sign(2), sign(3)
    chain.submit_transaction(early)
    one = filters.create_pending_filter([], ALICE)
    chain.submit_transaction(late)
    chain.add_block([early, quick])
    expected = ["0x" + decode_transaction(raw).hash.hex() for raw in (quick, late)]
    assert poll(filters, one) == expected
    chain.add_block([late])
    assert poll(filters, one) == []


def test_an_unknown_or_removed_filter_is_an_error(filters: FilterMethods) -> None:
    one = filters.create_block_filter([], ALICE)
    assert filters.uninstall([one], ALICE) is True
    assert filters.uninstall([one], ALICE) is False
    assert filters.uninstall([7], ALICE) is False
    for identifier in (one, "0x1", ""):
        with pytest.raises(RpcError) as caught:
            poll(filters, identifier)
        assert (caught.value.code, caught.value.data) == (REFUSED, {"code": "unknown_filter"})


@pytest.mark.parametrize("identifier", [None, 7, [], {}])
def test_a_filter_id_must_be_a_string(filters: FilterMethods, identifier: object) -> None:
    with pytest.raises(RpcError, match=r"string|expected 1"):
        poll(filters, identifier)


def test_a_block_filter_has_no_logs(filters: FilterMethods) -> None:
    one = filters.create_block_filter([], ALICE)
    with pytest.raises(RpcError, match="not one of logs"):
        filters.get_logs([one], ALICE)


def test_a_filter_by_block_hash_is_refused(filters: FilterMethods) -> None:
    with pytest.raises(RpcError, match="blockHash"):
        filters.create_log_filter([{"blockHash": "0x" + "00" * 32}], ALICE)


def test_a_filter_that_nobody_polls_ends(filters: FilterMethods, clock: Clock) -> None:
    idle = filters.create_block_filter([], ALICE)
    polled = filters.create_block_filter([], ALICE)
    clock.time += FILTER_IDLE_SECONDS - 1
    poll(filters, polled)
    clock.time += 2
    assert poll(filters, polled) == []
    with pytest.raises(RpcError, match="filter not found"):
        poll(filters, idle)


def test_one_caller_cannot_take_all_filters(
    filters: FilterMethods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steelyard.node.rpc.filters.MAX_FILTERS_PER_CALLER", 2)
    monkeypatch.setattr("steelyard.node.rpc.filters.MAX_FILTERS", 3)
    for _ in range(2):
        filters.create_block_filter([], ALICE)
    with pytest.raises(RpcError, match=r"10\.0\.0\.1 already has 2") as caught:
        filters.create_block_filter([], ALICE)
    assert caught.value.code == LIMIT_EXCEEDED
    filters.create_block_filter([], BOB)
    with pytest.raises(RpcError, match="this node already has 3"):
        filters.create_block_filter([], BOB)


def test_a_range_that_is_too_long_is_reported_piece_by_piece(
    filters: FilterMethods, chain: DoubleNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steelyard.node.rpc.filters.MAX_LOG_BLOCKS", 2)
    logs = filters.create_log_filter([{}], ALICE)
    blocks = filters.create_block_filter([], ALICE)
    for nonce in range(1, 6):
        chain.add_block([sign(nonce)], [LOG])
    assert [len(poll(filters, logs)) for _ in range(4)] == [2, 2, 1, 0]
    assert [len(poll(filters, blocks)) for _ in range(4)] == [2, 2, 1, 0]

"""Arguments are read strictly: each wrong type, shape and size is refused with -32602."""

from collections.abc import Callable

import pytest

from steelyard.node.rpc.errors import INVALID_PARAMETERS, InvalidParameters
from steelyard.node.rpc.limits import MAX_LOG_ADDRESSES
from steelyard.node.rpc.parameters import (
    BlockReference,
    parse_address,
    parse_addresses,
    parse_block,
    parse_data,
    parse_flag,
    parse_hash,
    parse_log_criteria,
    parse_quantity,
    parse_slot,
    parse_topics,
    take,
)
from steelyard.node.rpc.state import parse_call

ADDRESS = "0x" + "ab" * 20
HASH = "0x" + "cd" * 32


def number(value: object) -> int:
    return parse_quantity(value, "number", 2**64 - 1)


def data(value: object) -> bytes:
    return parse_data(value, "data")


def call(value: object) -> object:
    return parse_call(value, 7717)


@pytest.mark.parametrize(
    ("parse", "value"),
    [
        *(
            (number, bad)
            for bad in (None, 1, True, 1.0, "", "1", "0x", "0x01", "0xg", "0x1" + "0" * 16)
        ),
        *(
            (number, bad)
            for bad in ([], {}, "-0x1", "0x-1", "0x 1", "0x1_0", "x1", "0x" + "1" * 99_999)
        ),
        *((data, bad) for bad in (None, 7, "", "00", "0x0", "0xzz", "0x0g", "0x 0", [], {})),
        *(
            (parse_address, bad)
            for bad in (None, "0x", "0x00", ADDRESS + "00", "vitalik.eth", 5, [])
        ),
        *((parse_hash, bad) for bad in (None, "0x", ADDRESS, HASH + "00", 5, [])),
        *((parse_slot, bad) for bad in (None, 0, "0x", "0x" + "0" * 65, "1", "0xg")),
        *((parse_block, bad) for bad in (1, "now", "", "0x", "0x01", "0x" + "1" * 17, [], True)),
        *((parse_block, bad) for bad in ({}, {"blockNumber": 1}, {"x": 1}, {"blockHash": "0x"})),
        (parse_block, {"blockNumber": "0x1", "blockHash": HASH}),
        (parse_block, {"blockHash": HASH, "requireCanonical": "yes"}),
        *((parse_addresses, bad) for bad in (5, {}, ["x"], [None], [[ADDRESS]], "0x")),
        (parse_addresses, [ADDRESS] * (MAX_LOG_ADDRESSES + 1)),
        *(
            (parse_topics, bad)
            for bad in (5, {}, HASH, ["x"], [5], [{}], [[5]], [None] * 5, [ADDRESS])
        ),
        *(
            (parse_log_criteria, bad)
            for bad in (None, [], "x", {"fromBlok": "0x1"}, {"topics": "x"})
        ),
        (parse_log_criteria, {"blockHash": HASH, "fromBlock": "0x1"}),
        (parse_log_criteria, {"fromBlock": -1}),
        *((call, bad) for bad in (None, [], "x", {"too": ADDRESS}, {"to": "0x"}, {"to": 5})),
        *(
            (call, bad)
            for bad in ({"gas": 5}, {"gas": "0x1" + "0" * 16}, {"value": "1"}, {"data": 5})
        ),
        *(
            (call, bad)
            for bad in ({"data": "0x0"}, {"nonce": "x"}, {"chainId": "0x1"}, {"from": ""})
        ),
        (call, {"data": "0x01", "input": "0x02"}),
        (call, {"gasPrice": "0x1", "maxFeePerGas": "0x1"}),
        (call, {"maxFeePerGas": "0x1", "maxPriorityFeePerGas": "0x2"}),
        (call, {"data": "0x" + "00" * 49_153}),
        *(
            (call, {"accessList": bad})
            for bad in (5, {}, [5], [{}], [{"address": ADDRESS, "x": 1}])
        ),
        (call, {"accessList": [{"address": ADDRESS, "storageKeys": ["0x1"]}]}),
        (call, {"accessList": [{"address": ADDRESS, "storageKeys": [HASH] * 10_001}]}),
        (lambda value: parse_flag(value, "flag"), 1),
        (lambda value: parse_flag(value, "flag"), "true"),
        (lambda value: take(value, 0, 1), {}),
        (lambda value: take(value, 0, 1), [1, 2]),
        (lambda value: take(value, 1, 2), None),
        (lambda value: take(value, 1, 2), []),
    ],
)
def test_a_wrong_argument_is_refused(parse: Callable[[object], object], value: object) -> None:
    with pytest.raises(InvalidParameters) as caught:
        parse(value)
    assert caught.value.code == INVALID_PARAMETERS
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("tag", ["latest", "safe", "finalized", "pending", None])
def test_every_tag_of_the_head_is_the_head(tag: str | None) -> None:
    assert parse_block(tag).is_head


def test_blocks_are_named_by_height_or_hash() -> None:
    assert parse_block("earliest") == BlockReference(height=0)
    assert parse_block("0x10") == BlockReference(height=16)
    assert parse_block({"blockNumber": "0x10"}) == BlockReference(height=16)
    by_hash = BlockReference(block_hash=parse_hash(HASH))
    assert parse_block({"blockHash": HASH, "requireCanonical": True}) == by_hash
    assert parse_block(HASH) == by_hash


def test_storage_slots_may_have_leading_zeros_and_odd_length() -> None:
    assert parse_slot("0x0") == parse_slot("0x" + "0" * 64) == 0
    assert parse_slot("0x001") == 1


def test_data_and_input_mean_the_same() -> None:
    for fields in ({"data": "0x01"}, {"input": "0x01"}, {"data": "0x01", "input": "0x01"}):
        assert parse_call(fields, 7717).data == b"\x01"


def test_a_call_without_an_address_creates() -> None:
    assert parse_call({"to": None}, 7717).to is None
    assert parse_call({"to": ADDRESS}, 7717).to == bytes.fromhex("ab" * 20)


def test_an_empty_topic_position_accepts_all() -> None:
    assert parse_topics([None, [], [None, HASH], HASH]) == (
        None,
        None,
        None,
        frozenset({bytes.fromhex("cd" * 32)}),
    )


def test_missing_and_null_trailing_arguments_are_alike() -> None:
    assert take([1], 1, 3) == take([1, None, None, None], 1, 3) == [1, None, None]

"""Receipts: Ethereum's consensus form, our storage form, and the filter."""

import pytest
import rlp
from eth.rlp.logs import Log as ReferenceLog
from eth.rlp.receipts import Receipt as ReferenceReceipt
from hypothesis import given
from hypothesis import strategies as st

from steelyard.chain.receipts import (
    InvalidReceipt,
    Log,
    Receipt,
    compute_bloom,
    compute_receipts_root,
    decode_receipts,
    encode_receipt,
    encode_receipts,
    may_contain,
    merge_blooms,
)
from steelyard.chain.trie import EMPTY_ROOT
from steelyard.chain.types import Address, Hash

logs = st.builds(
    Log,
    address=st.binary(min_size=20, max_size=20).map(Address),
    topics=st.lists(st.binary(min_size=32, max_size=32).map(Hash), max_size=4).map(tuple),
    data=st.binary(max_size=100),
)
receipts = st.builds(
    Receipt,
    type=st.integers(0, 2),
    status=st.integers(0, 1),
    cumulative_gas_used=st.integers(0, 2**40),
    gas_used=st.integers(0, 2**40),
    effective_gas_price=st.integers(0, 2**200),
    logs=st.lists(logs, max_size=4).map(tuple),
    contract_address=st.none() | st.binary(min_size=20, max_size=20).map(Address),
)


@given(receipts)
def test_the_consensus_form_is_that_of_the_reference(receipt: Receipt) -> None:
    reference = ReferenceReceipt(
        state_root=bytes([receipt.status]) if receipt.status else b"",
        gas_used=receipt.cumulative_gas_used,
        logs=[
            ReferenceLog(
                log.address, [int.from_bytes(topic, "big") for topic in log.topics], log.data
            )
            for log in receipt.logs
        ],
    )
    prefix = bytes([receipt.type]) if receipt.type else b""
    assert encode_receipt(receipt) == prefix + rlp.encode(reference)
    assert int.from_bytes(receipt.bloom, "big") == reference.bloom


@given(st.lists(receipts, max_size=4))
def test_the_storage_form_keeps_every_field(items: list[Receipt]) -> None:
    assert decode_receipts(encode_receipts(items)) == tuple(items)


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xc1\xc0", b"\xc1", b"\xff"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidReceipt) as caught:
        decode_receipts(data)
    assert caught.value.code == "receipt"


@given(st.lists(logs, max_size=5))
def test_the_filter_never_misses(items: list[Log]) -> None:
    bloom = merge_blooms([compute_bloom([log]) for log in items])
    assert bloom == compute_bloom(items)
    for log in items:
        assert may_contain(bloom, log.address)
        assert all(may_contain(bloom, topic) for topic in log.topics)


def test_an_empty_filter_holds_nothing() -> None:
    assert not may_contain(compute_bloom([]), b"\1" * 20)
    assert compute_receipts_root([]) == EMPTY_ROOT

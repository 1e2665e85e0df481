"""Headers, extensions, the wire form, and the rules that need no execution."""

from dataclasses import replace

import pytest
import rlp
from eth.vm.forks.london.headers import calculate_expected_base_fee_per_gas
from eth.vm.forks.prague.blocks import PragueBlockHeader
from hypothesis import given
from hypothesis import strategies as st

from steelyard.chain.block import (
    MAX_TRANSACTIONS_BYTES,
    MAX_WITHDRAWALS,
    Block,
    Extension,
    Header,
    Rules,
    Withdrawal,
    check_block,
    check_header,
    compute_base_fee,
    compute_extension_hash,
    compute_prev_randao,
    compute_transactions_root,
    compute_withdrawals_root,
    decode_block,
    decode_extension,
    decode_header,
    encode_block,
    encode_extension,
    encode_header,
)
from steelyard.chain.errors import InvalidBlock
from steelyard.chain.params import MAX_BLOCK_BYTES, MAX_BLOCK_TRANSACTIONS, MAX_EXTRA_DATA_BYTES
from steelyard.chain.rlp import decode_rlp, encode_rlp
from steelyard.chain.types import Epoch, Hash, Height, View

from .evm_kit import ADDRESSES, CHAIN_ID, DOMAIN, GWEI, Chain, Draft, get_genesis_state, sign

RULES = Rules(CHAIN_ID, DOMAIN, 30_000_000, 10**6, 3_600)
PARENT = get_genesis_state().block.header
EXTENSION = Extension(Epoch(0), View(3), ADDRESSES[0], Hash(b"\5" * 32))
WITHDRAWAL = Withdrawal(1, 2, ADDRESSES[3], 4)


def make_block(*withdrawals: Withdrawal, **changes: object) -> Block:
    """Return a block that, without withdrawals, may follow PARENT; with changes to its header."""
    raw = (sign(Draft()), sign(Draft(type=0)))
    header = Header(
        parent_hash=PARENT.hash,
        coinbase=ADDRESSES[0],
        state_root=Hash(b"\1" * 32),
        transactions_root=compute_transactions_root(raw),
        receipts_root=Hash(b"\2" * 32),
        bloom=bytes(256),
        height=Height(1),
        gas_limit=RULES.gas_limit,
        gas_used=42_000,
        timestamp=PARENT.timestamp,
        prev_randao=compute_prev_randao(PARENT, View(3)),
        base_fee=compute_base_fee(PARENT, RULES.min_base_fee),
        withdrawals_root=compute_withdrawals_root(withdrawals),
        parent_beacon_block_root=compute_extension_hash(EXTENSION),
    )
    return Block(replace(header, **changes), EXTENSION, raw, withdrawals)


def test_a_header_is_a_prague_header() -> None:
    header = make_block().header
    reference = rlp.decode(encode_header(header), PragueBlockHeader)
    assert reference.hash == header.hash
    assert reference.block_number == header.height
    assert reference.base_fee_per_gas == header.base_fee
    assert reference.mix_hash == header.prev_randao
    assert decode_header(encode_header(header)) == header


def test_a_block_survives_the_wire() -> None:
    for block in (make_block(), make_block(WITHDRAWAL)):
        assert decode_block(encode_block(block)) == block
    assert decode_extension(encode_extension(EXTENSION)) == EXTENSION
    check_block(PARENT, make_block(), RULES)


@pytest.mark.parametrize(
    "data", [b"", b"\xc0", b"\xc4\xc0\xc0\xc0\xc0", b"\xff" * 40, b"\xc1" * 99]
)
def test_bytes_that_are_no_block_are_refused(data: bytes) -> None:
    for decode in (decode_block, decode_header, decode_extension):
        with pytest.raises(InvalidBlock) as caught:
            decode(data)
        assert caught.value.code == "block_malformed"


@given(st.data())
def test_an_altered_block_never_raises_anything_else(data: st.DataObject) -> None:
    wire = bytearray(encode_block(make_block(WITHDRAWAL)))
    wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    try:
        block = decode_block(bytes(wire))
    except InvalidBlock:
        return
    assert encode_block(block) == wire


def test_a_block_above_the_limits_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(InvalidBlock) as caught:
        decode_block(bytes(MAX_BLOCK_BYTES + 1))
    assert caught.value.code == "block_size"
    parts = decode_rlp(encode_block(make_block()))
    for crowded in (
        [*parts[:2], [b""] * (MAX_BLOCK_TRANSACTIONS + 1), parts[3]],
        [*parts[:3], [[1, 2, ADDRESSES[0], 4]] * (MAX_WITHDRAWALS + 1)],
    ):
        with pytest.raises(InvalidBlock) as caught:
            decode_block(encode_rlp(crowded))
        assert caught.value.code == "block_malformed"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"parent_hash": Hash(bytes(32))}, "block_parent"),
        ({"height": Height(2)}, "block_height"),
        ({"timestamp": PARENT.timestamp - 1}, "block_timestamp"),
        ({"gas_limit": RULES.gas_limit + 1}, "block_gas_limit"),
        ({"gas_used": RULES.gas_limit + 1}, "block_gas_used"),
        ({"base_fee": 1}, "block_base_fee"),
        ({"extra_data": bytes(MAX_EXTRA_DATA_BYTES + 1)}, "block_constant"),
        ({"ommers_hash": Hash(bytes(32))}, "block_constant"),
        ({"difficulty": 1}, "block_constant"),
        ({"nonce": b"\1" * 8}, "block_constant"),
        ({"blob_gas_used": 1}, "block_constant"),
        ({"excess_blob_gas": 1}, "block_constant"),
        ({"requests_hash": Hash(bytes(32))}, "block_constant"),
        ({"parent_beacon_block_root": Hash(bytes(32))}, "block_extension"),
        ({"prev_randao": Hash(bytes(32))}, "block_randao"),
        ({"transactions_root": Hash(bytes(32))}, "block_transactions_root"),
        ({"withdrawals_root": Hash(bytes(32))}, "block_withdrawals_root"),
    ],
)
def test_a_header_that_breaks_a_rule_is_refused(changes: dict[str, object], code: str) -> None:
    with pytest.raises(InvalidBlock) as caught:
        check_block(PARENT, make_block(**changes), RULES)
    assert caught.value.code == code


def test_another_version_of_the_extension_is_refused() -> None:
    extension = replace(EXTENSION, version=2)
    block = make_block(parent_beacon_block_root=compute_extension_hash(extension))
    with pytest.raises(InvalidBlock) as caught:
        check_block(PARENT, replace(block, extension=extension), RULES)
    assert caught.value.code == "block_extension"


def test_too_many_transaction_bytes_are_refused() -> None:
    block = replace(make_block(), transactions=(bytes(MAX_TRANSACTIONS_BYTES + 1),))
    with pytest.raises(InvalidBlock) as caught:
        check_block(PARENT, block, RULES)
    assert caught.value.code == "block_size"


def test_the_view_moves_the_randao() -> None:
    assert compute_prev_randao(PARENT, View(1)) != compute_prev_randao(PARENT, View(2))


@given(
    st.integers(0, 30_000_000),
    st.integers(7, 10**12),
)
def test_the_base_fee_is_that_of_eip_1559(gas_used: int, base_fee: int) -> None:
    parent = replace(PARENT, gas_used=gas_used, base_fee=base_fee)
    reference = rlp.decode(encode_header(parent), PragueBlockHeader)
    expected = calculate_expected_base_fee_per_gas(reference)
    assert compute_base_fee(parent, 0) == expected
    assert compute_base_fee(parent, 10**15) == 10**15


def test_the_base_fee_never_falls_below_the_floor_of_genesis() -> None:
    chain = Chain()
    for _ in range(3):
        chain.add()
    check_header(chain.headers[-2], chain.head, chain.genesis.rules)
    assert chain.genesis.min_base_fee < chain.head.base_fee < GWEI

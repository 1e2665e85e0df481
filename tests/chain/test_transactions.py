"""Transactions: one encoding each, typed refusals, gas."""

from contextlib import suppress
from dataclasses import replace

import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from steelyard.chain.errors import InvalidTransaction
from steelyard.chain.params import (
    BLOB_BYTES_PER_GAS,
    BLOB_DECLARATION_ADDRESS,
    BLOB_GAS_EACH,
    MAX_BLOB_BYTES,
    MAX_BLOBS_PER_TRANSACTION,
    MAX_INITCODE_BYTES,
    MAX_TRANSACTION_BYTES,
)
from steelyard.chain.rlp import decode_rlp, encode_rlp
from steelyard.chain.transactions import (
    NONCE_LIMIT,
    StaleNonce,
    check_fee,
    check_sender,
    check_transaction,
    compute_gas_price,
    decode_transaction,
)
from steelyard.chain.types import BlobName, Digest

from .evm_kit import ADDRESSES, CHAIN_ID, GWEI, KEYS, Draft, declare, name_blob, push, sign

BLOB = name_blob(b"tensor")


def get_code(draft: Draft) -> str:
    """Return the code with which decoding refuses."""
    with pytest.raises(InvalidTransaction) as caught:
        decode_transaction(sign(draft))
    return caught.value.code


def get_rule(draft: Draft, gas_limit: int = 30_000_000) -> str:
    """Return the code with which the stateless rules refuse."""
    with pytest.raises(InvalidTransaction) as caught:
        check_transaction(decode_transaction(sign(draft)), CHAIN_ID, gas_limit)
    return caught.value.code


# -- decoding --------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_signed_transaction_decodes_to_its_fields(kind: int) -> None:
    access = ((ADDRESSES[3], (1, 2)),) if kind else ()
    raw = sign(Draft(5, ADDRESSES[2], 7, b"\0data", access_list=access, type=kind))
    transaction = decode_transaction(raw)
    assert transaction.raw == raw
    assert transaction.type == kind
    assert transaction.sender == ADDRESSES[0]
    assert (transaction.nonce, transaction.to, transaction.value) == (5, ADDRESSES[2], 7)
    assert transaction.access_list == access
    assert transaction.max_priority_fee == (GWEI if kind == 2 else 10 * GWEI)
    assert transaction.intrinsic_gas == 21_000 + 4 * 17 + (2_400 + 2 * 1_900 if kind else 0)
    assert transaction.floor_gas == 21_000 + 10 * 17
    check_transaction(transaction, CHAIN_ID, 30_000_000)


@pytest.mark.parametrize("kind", ["legacy", "access list", "dynamic fee"])
def test_what_a_wallet_signs_has_the_hash_that_the_wallet_says(kind: str) -> None:
    fields = {"nonce": 1, "gas": 90_000, "to": "0x" + "11" * 20, "value": 5, "chainId": CHAIN_ID}
    fees = {"gasPrice": 9} if kind != "dynamic fee" else {"maxFeePerGas": 9}
    if kind == "dynamic fee":
        fees["maxPriorityFeePerGas"] = 2
    if kind == "access list":
        fees["accessList"] = []
    account = Account.from_key(KEYS[0].to_bytes())
    signed = account.sign_transaction({**fields, **fees})
    transaction = decode_transaction(bytes(signed.raw_transaction))
    assert transaction.hash == bytes(signed.hash)
    assert (transaction.v, transaction.r, transaction.s) == (signed.v, signed.r, signed.s)
    assert transaction.sender == ADDRESSES[0]


def test_creating_a_contract_has_no_target_and_pays_for_its_initcode() -> None:
    transaction = decode_transaction(sign(Draft(to=b"", data=b"\1" * 33)))
    assert transaction.to is None
    assert transaction.intrinsic_gas == 53_000 + 16 * 33 + 2 * 2


@pytest.mark.parametrize("number", [3, 4, 5, 0x53, 0x7F, 0x80, 0xBF])
def test_other_types_are_refused(number: int) -> None:
    with pytest.raises(InvalidTransaction) as caught:
        decode_transaction(bytes([number]) + sign(Draft())[1:])
    assert caught.value.code == "tx_type"


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: b"",
        lambda raw: raw[:-1],
        lambda raw: raw + b"\0",
        lambda raw: raw[:1] + encode_rlp([*decode_rlp(raw[1:]), b""]),
        lambda raw: raw[:1] + encode_rlp(decode_rlp(raw[1:])[:-1]),
        lambda raw: raw[:1] + encode_rlp([b"\0\7", *decode_rlp(raw[1:])[1:]]),
        lambda raw: raw[:1] + encode_rlp([[], *decode_rlp(raw[1:])[1:]]),
        lambda raw: (
            raw[:1] + encode_rlp([*decode_rlp(raw[1:])[:5], b"\1" * 19, b"", b"", [], 0, 1, 1])
        ),
        lambda raw: raw[:1] + b"\xf9\x00\x20" + bytes(32),
        lambda raw: raw[:1] + b"\xc1" * 5_000,
    ],
)
def test_bytes_that_are_not_the_one_encoding_are_malformed(change) -> None:
    with pytest.raises(InvalidTransaction) as caught:
        decode_transaction(change(sign(Draft())))
    assert caught.value.code == "tx_malformed"


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for prefix in (b"", b"\1", b"\2"):
        with suppress(InvalidTransaction):
            decode_transaction(prefix + data)


def test_a_transaction_above_the_size_limit_is_refused() -> None:
    assert get_code(Draft(data=bytes(MAX_TRANSACTION_BYTES))) == "tx_size"


def test_a_high_s_is_refused() -> None:
    with pytest.raises(InvalidTransaction) as caught:
        decode_transaction(sign(Draft(), high_s=True))
    assert caught.value.code == "tx_signature"


@pytest.mark.parametrize(
    "signature", [(2, 1, 1), (0, 0, 1), (0, 1, 0), (0, 2**256 - 1, 1), (0, 5, 1)]
)
def test_numbers_that_are_no_signature_are_refused(signature: tuple[int, int, int]) -> None:
    fields = decode_rlp(sign(Draft())[1:])[:-3]
    with pytest.raises(InvalidTransaction) as caught:
        decode_transaction(b"\2" + encode_rlp([*fields, *signature]))
    assert caught.value.code == "tx_signature"


@pytest.mark.parametrize("v", [27, 28, 0, 34])
def test_a_legacy_transaction_without_a_chain_id_is_refused(v: int) -> None:
    fields = decode_rlp(sign(Draft(type=0)))
    with pytest.raises(InvalidTransaction) as caught:
        decode_transaction(encode_rlp([*fields[:6], v, *fields[7:]]))
    assert caught.value.code == "tx_chain_id"


# -- blobs -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [1, 2])
def test_blobs_are_declared_in_the_access_list_and_pay_twice(kind: int) -> None:
    other = name_blob(b"other tensor")
    transaction = decode_transaction(sign(Draft(access_list=declare(BLOB, other), type=kind)))
    assert transaction.blobs == (BLOB, other)
    assert transaction.blob_bytes == BLOB.size + other.size
    gas = 2 * BLOB_GAS_EACH + 2
    assert -(-BLOB.size // BLOB_BYTES_PER_GAS) == 1
    assert transaction.intrinsic_gas == 21_000 + 2_400 + 4 * 1_900 + gas
    assert transaction.floor_gas == 21_000 + gas


def test_declarations_may_be_spread_over_entries() -> None:
    access = (*declare(BLOB), (ADDRESSES[1], ()), *declare(name_blob(b"b")))
    assert len(decode_transaction(sign(Draft(access_list=access))).blobs) == 2


@pytest.mark.parametrize(
    "keys",
    [
        (),
        (1,),
        (1, 6, 2),
        (1, 0),
        (1, MAX_BLOB_BYTES + 1),
        (1, 2**256 - 1),
        (1, 6, 1, 6),
        tuple(key for number in range(MAX_BLOBS_PER_TRANSACTION + 1) for key in (number, 1)),
    ],
)
def test_a_malformed_declaration_is_refused(keys: tuple[int, ...]) -> None:
    assert get_code(Draft(access_list=((BLOB_DECLARATION_ADDRESS, keys),))) == "blob_declaration"


def test_the_largest_declaration_is_accepted() -> None:
    names = [
        BlobName(Digest(bytes([number]) * 32), MAX_BLOB_BYTES)
        for number in range(MAX_BLOBS_PER_TRANSACTION)
    ]
    assert decode_transaction(sign(Draft(access_list=declare(*names)))).blobs == tuple(names)


def test_a_transaction_to_the_declaration_address_is_refused() -> None:
    assert get_code(Draft(to=BLOB_DECLARATION_ADDRESS)) == "blob_declaration"


# -- rules without a state -------------------------------------------------------------------------
def test_another_chain_is_refused() -> None:
    assert get_rule(Draft(chain_id=CHAIN_ID + 1)) == "tx_chain_id"


def test_the_last_nonce_is_refused() -> None:
    assert get_rule(Draft(nonce=NONCE_LIMIT)) == "tx_nonce_high"


def test_a_tip_above_the_fee_cap_is_refused() -> None:
    assert get_rule(Draft(tip=11 * GWEI)) == "tx_tip"


def test_initcode_above_the_limit_is_refused() -> None:
    draft = Draft(to=b"", data=bytes(MAX_INITCODE_BYTES + 1), gas=10_000_000)
    assert get_rule(draft) == "tx_initcode"
    check_transaction(
        decode_transaction(sign(replace(draft, data=bytes(MAX_INITCODE_BYTES)))), CHAIN_ID, 10**9
    )


@pytest.mark.parametrize(
    "draft",
    [
        Draft(),
        Draft(data=b"\1" * 100),
        Draft(to=b"", data=push(1)),
        Draft(access_list=declare(BLOB)),
        Draft(access_list=((ADDRESSES[1], (1,)),)),
    ],
)
def test_gas_below_the_intrinsic_gas_or_the_floor_is_refused(draft: Draft) -> None:
    transaction = decode_transaction(sign(draft))
    needed = max(transaction.intrinsic_gas, transaction.floor_gas)
    assert get_rule(replace(draft, gas=needed - 1)) == "tx_gas"
    enough = decode_transaction(sign(replace(draft, gas=needed)))
    check_transaction(enough, CHAIN_ID, needed)


def test_more_gas_than_a_block_has_is_refused() -> None:
    assert get_rule(Draft(gas=100_001), gas_limit=100_000) == "tx_gas_limit"


# -- rules with a state ----------------------------------------------------------------------------
def test_a_fee_cap_below_the_base_fee_is_refused() -> None:
    transaction = decode_transaction(sign(Draft(max_fee=5, tip=1)))
    check_fee(transaction, 5)
    with pytest.raises(InvalidTransaction) as caught:
        check_fee(transaction, 6)
    assert caught.value.code == "tx_fee_low"


def test_the_price_is_the_base_fee_and_the_tip_up_to_the_cap() -> None:
    transaction = decode_transaction(sign(Draft(max_fee=10, tip=3)))
    assert compute_gas_price(transaction, 5) == 8
    assert compute_gas_price(transaction, 9) == 10


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ({"nonce": 4}, "tx_nonce_low"),
        ({"nonce": 2}, "tx_nonce_high"),
        ({"has_code": True}, "tx_sender_code"),
        ({"balance": 200_000 * 10 * GWEI + 6}, "tx_balance"),
    ],
)
def test_a_sender_who_may_not_send_is_refused(state: dict[str, int], code: str) -> None:
    transaction = decode_transaction(sign(Draft(nonce=3, value=7)))
    fine = {"nonce": 3, "balance": transaction.max_cost, "has_code": False}
    check_sender(transaction, **fine)
    with pytest.raises(InvalidTransaction) as caught:
        check_sender(transaction, **{**fine, **state})
    assert caught.value.code == code


def test_a_stale_nonce_says_what_was_expected() -> None:
    with pytest.raises(StaleNonce) as caught:
        check_sender(decode_transaction(sign(Draft())), nonce=9, balance=10**30, has_code=False)
    assert (caught.value.expected, caught.value.actual) == (9, 0)

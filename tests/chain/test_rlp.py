"""RLP: one encoding per value, and limits."""

import pytest
import rlp
from hypothesis import given
from hypothesis import strategies as st

from steelyard.chain.rlp import (
    MAX_DEPTH,
    InvalidEncoding,
    decode_rlp,
    encode_rlp,
    read_bytes,
    read_int,
    read_list,
)

values = st.recursive(
    st.binary(max_size=70), lambda items: st.lists(items, max_size=5), max_leaves=20
)


def get_depth(value: object) -> int:
    return 1 + max(map(get_depth, value), default=0) if isinstance(value, list) else 0


@given(values)
def test_encoding_is_that_of_the_reference_and_decodes_to_the_value(value: object) -> None:
    data = encode_rlp(value)
    assert data == rlp.encode(value)
    assert decode_rlp(data, max_depth=get_depth(value)) == value


@given(st.integers(min_value=0, max_value=2**256))
def test_integers_are_big_endian_without_zeros(number: int) -> None:
    assert encode_rlp(number) == rlp.encode(number)
    assert read_int(decode_rlp(encode_rlp(number)), 264) == number


@given(st.binary(max_size=100))
def test_whatever_decodes_encodes_to_the_same_bytes(data: bytes) -> None:
    try:
        value = decode_rlp(data)
    except InvalidEncoding:
        return
    assert encode_rlp(value) == data


@pytest.mark.parametrize(
    "data",
    [
        "",
        "8100",
        "817f",
        "b800",
        "b837" + "00" * 55,
        "b90038" + "00" * 56,
        "83aabb",
        "c2",
        "c180" + "00",
        "f800",
        "f90000",
        "c2828080",
        "bfffffffffffffffff",
        "ffffffffffffffffff",
    ],
)
def test_other_encodings_are_refused(data: str) -> None:
    with pytest.raises(InvalidEncoding) as caught:
        decode_rlp(bytes.fromhex(data))
    assert caught.value.code == "rlp"


def test_nesting_is_limited() -> None:
    deep = b"\xc0"
    for _ in range(MAX_DEPTH - 1):
        deep = bytes([0xC0 + len(deep)]) + deep
    decode_rlp(deep)
    with pytest.raises(InvalidEncoding):
        decode_rlp(bytes([0xC0 + len(deep)]) + deep)


@pytest.mark.slow
def test_the_number_of_items_is_limited_on_all_levels_together() -> None:
    assert decode_rlp(encode_rlp([b"a", [b"b", []]]), max_items=5) == [b"a", [b"b", []]]
    for value in ([b"a", [b"b", []]], [b"", b"", b"", b""], [[[[[]]]]]):
        with pytest.raises(InvalidEncoding, match="too many items"):
            decode_rlp(encode_rlp(value), max_items=4)
    with pytest.raises(InvalidEncoding, match="too many items"):
        decode_rlp(
            b"\xf9\xff\xff" + b"\xc3\xc2\xc1\xc0" * 16_383 + b"\xc2\xc1\xc0", max_items=2**15
        )


def test_shapes_are_checked() -> None:
    for read in (
        lambda: read_list(b""),
        lambda: read_list([b""], 2),
        lambda: read_list([b"", b""], limit=1),
        lambda: read_bytes([]),
        lambda: read_bytes(b"ab", 3),
        lambda: read_bytes(b"ab", limit=1),
        lambda: read_int(b"\0\1", 64),
        lambda: read_int(bytes([1] * 9), 64),
    ):
        with pytest.raises(InvalidEncoding):
            read()

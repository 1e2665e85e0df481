"""The update format: exact, zero-copy, and nothing else decodes."""

import dataclasses
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.chain.errors import InvalidUpdate
from steelyard.chain.params import BLOCK_VALUES, MAX_MODEL_PARAMETERS, MAX_MODEL_TENSORS
from steelyard.chain.types import Address, BlobName, Digest, Round, TaskId
from steelyard.chain.update import (
    MAX_UPDATE_BLOCKS,
    Binding,
    Mode,
    UpdateHeader,
    check_binding,
    compute_update_size,
    decode_update,
    decode_update_header,
    encode_update,
)

BASE = BlobName(Digest(bytes(range(32))), 1234)
SENDER = Address(bytes(range(20)))
HEADER = UpdateHeader(
    mode=Mode.OPEN,
    bits=8,
    round=Round(3),
    chain_id=0x1122334455667788,
    task=TaskId(7),
    values=10,
    exponents=3,
    base=BASE,
    sender=SENDER,
)
EXPONENTS = np.array([-24, 0, 30], dtype=np.int8)
VALUES = np.arange(-5, 5, dtype=np.int8)
GOOD = encode_update(HEADER, EXPONENTS, VALUES)
BINDING = Binding(HEADER.chain_id, HEADER.task, HEADER.round, BASE, SENDER)


def damage(offset: int, data: bytes) -> bytes:
    return GOOD[:offset] + data + GOOD[offset + len(data) :]


def refuse(code: str, data: bytes) -> None:
    with pytest.raises(InvalidUpdate) as caught:
        decode_update(data)
    assert caught.value.code == code


def test_every_field_lies_where_the_protocol_says() -> None:
    assert GOOD[:8] == b"STLYUPD\0"
    assert tuple(GOOD[8:12]) == (1, 0, 8, 12)
    assert struct.unpack("<I5Q", GOOD[12:56]) == (3, HEADER.chain_id, 7, 10, 3, 1234)
    assert GOOD[56:88] == BASE.digest
    assert GOOD[88:108] == SENDER
    assert GOOD[108:192] == bytes(84)
    assert GOOD[192:200] == EXPONENTS.tobytes() + bytes(5)
    assert GOOD[200:] == VALUES.tobytes()


@given(
    st.sampled_from([(Mode.OPEN, 8), (Mode.OPEN, 16), (Mode.MASKED, 32)]),
    st.integers(1, 3 * BLOCK_VALUES),
    st.integers(0, 20),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=50, deadline=None)
def test_decoding_gives_back_what_was_encoded(
    kind: tuple[Mode, int], values: int, more: int, seed: int
) -> None:
    mode, bits = kind
    blocks = 1 if mode is Mode.MASKED else min(values, -(-values // BLOCK_VALUES) + more)
    header = dataclasses.replace(HEADER, mode=mode, bits=bits, values=values, exponents=blocks)
    random = np.random.default_rng(seed)
    dtype = {8: np.int8, 16: np.int16, 32: np.uint32}[bits]
    exponents = np.frombuffer(random.bytes(blocks), dtype=np.int8)
    numbers: Any = np.frombuffer(random.bytes(values * bits // 8), dtype=dtype)
    data = encode_update(header, exponents, numbers)
    assert len(data) == compute_update_size(values, blocks, bits)
    update = decode_update(data)
    assert update.header == header == decode_update_header(data)
    assert np.array_equal(update.exponents, exponents)
    assert np.array_equal(update.values, numbers)
    assert update.values.dtype == dtype


def test_the_arrays_are_read_only_views_of_the_bytes() -> None:
    data = bytearray(GOOD)
    update = decode_update(data)
    data[200] = 99
    assert update.values[0] == 99
    for array in (update.values, update.exponents):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_a_numpy_buffer_decodes_as_well() -> None:
    array: Any = np.frombuffer(GOOD, dtype=np.uint8)
    assert decode_update(array).header == HEADER


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("update_magic", damage(0, b"X")),
        ("update_magic", damage(7, b"1")),
        ("update_version", damage(8, b"\0")),
        ("update_version", damage(8, b"\2")),
        ("update_mode", damage(9, b"\2")),
        ("update_bits", damage(10, b"\0")),
        ("update_bits", damage(10, b"\x20")),
        ("update_bits", damage(9, b"\1")),
        ("update_block_size", damage(11, b"\x0b")),
        ("update_padding", damage(108, b"\1")),
        ("update_padding", damage(191, b"\1")),
        ("update_padding", damage(195, b"\1")),
        ("update_padding", damage(199, b"\1")),
        ("update_length", b""),
        ("update_length", GOOD[:191]),
        ("update_length", GOOD[:192]),
        ("update_length", GOOD[:-1]),
        ("update_length", GOOD + b"\0"),
        ("update_length", damage(10, b"\x10")),
        ("update_length", damage(32, struct.pack("<Q", 11))),
        ("update_length", damage(40, struct.pack("<Q", 9))),
        ("update_count", damage(32, struct.pack("<Q", 0))),
        ("update_count", damage(32, struct.pack("<Q", MAX_MODEL_PARAMETERS + 1))),
        ("update_count", damage(32, struct.pack("<Q", 2**64 - 1))),
        ("update_count", damage(40, struct.pack("<Q", 0))),
        ("update_count", damage(40, struct.pack("<Q", 11))),
        ("update_count", damage(40, struct.pack("<Q", 2**64 - 1))),
        ("update_count", damage(32, struct.pack("<2Q", 3 * BLOCK_VALUES + 1, 3))),
        ("update_count", damage(32, struct.pack("<2Q", 10**6, 245 + MAX_MODEL_TENSORS + 1))),
        ("update_count", damage(9, b"\1\x20")),
    ],
)
def test_what_is_not_an_update_is_refused(code: str, data: bytes) -> None:
    refuse(code, data)


def test_the_header_bounds_the_blocks_of_any_model() -> None:
    assert MAX_UPDATE_BLOCKS == -(-MAX_MODEL_PARAMETERS // BLOCK_VALUES) + MAX_MODEL_TENSORS


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
@settings(max_examples=300)
def test_damage_is_refused_or_decodes_to_what_encodes_the_same(position: int, byte: int) -> None:
    data = damage(position, bytes((byte,)))
    try:
        update = decode_update(data)
    except InvalidUpdate:
        return
    assert encode_update(update.header, update.exponents, update.values) == data


@given(st.binary(max_size=400))
def test_no_bytes_make_the_decoder_fail_otherwise(data: bytes) -> None:
    for candidate in (data, GOOD[:12] + data):
        try:
            decode_update(candidate)
        except InvalidUpdate:
            continue


def test_a_header_that_would_not_decode_is_not_encoded() -> None:
    with pytest.raises(InvalidUpdate) as caught:
        encode_update(dataclasses.replace(HEADER, bits=12), EXPONENTS, VALUES)
    assert caught.value.code == "update_bits"
    with pytest.raises(InvalidUpdate) as caught:
        encode_update(dataclasses.replace(HEADER, exponents=0), EXPONENTS, VALUES)
    assert caught.value.code == "update_count"


def test_an_update_made_for_this_place_is_accepted() -> None:
    check_binding(HEADER, BINDING)


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("update_chain", {"chain_id": 1}),
        ("update_task", {"task": TaskId(8)}),
        ("update_round", {"round": Round(2)}),
        ("update_base", {"base": BlobName(BASE.digest, 1235)}),
        ("update_base", {"base": BlobName(Digest(bytes(32)), 1234)}),
        ("update_sender", {"sender": Address(bytes(20))}),
    ],
)
def test_an_update_made_for_another_place_is_refused(code: str, change: dict[str, Any]) -> None:
    with pytest.raises(InvalidUpdate) as caught:
        check_binding(HEADER, dataclasses.replace(BINDING, **change))
    assert caught.value.code == code

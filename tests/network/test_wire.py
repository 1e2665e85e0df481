"""The codec: one encoding of each message, limits before decoding, one error for all the rest."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from steelyard.chain.block import encode_block
from steelyard.chain.params import MAX_BLOB_BYTES
from steelyard.chain.rlp import encode_rlp
from steelyard.chain.types import BlobName, Digest
from steelyard.node.network import wire
from steelyard.node.network.wire import InvalidMessage, Lane, decode_message, encode_message

from .messages import CERTIFICATE, EXAMPLES, HASH, NAME, VOTE, make_block, messages

LANES = st.sampled_from(list(Lane))


def refuse(code: str, data: bytes, lane: Lane = Lane.CONSENSUS) -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode_message(data, lane)
    assert caught.value.code == code


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda one: type(one).__name__)
def test_every_kind_comes_back_as_it_went(message: wire.Message) -> None:
    data = encode_message(message)
    assert decode_message(data, message.lane) == message
    assert len(data) <= message.limit <= wire.MAX_MESSAGE_BYTES[message.lane]


def test_the_examples_cover_every_kind() -> None:
    assert {type(one) for one in EXAMPLES} == set(wire.KINDS.values())


@settings(max_examples=40, deadline=None)
@given(messages)
def test_decoding_is_the_inverse_of_encoding(message: wire.Message) -> None:
    assert decode_message(encode_message(message), message.lane) == message


def check_canonical(data: bytes, lane: Lane) -> None:
    """Nothing but InvalidMessage, and what decodes has these bytes and no others."""
    try:
        message = decode_message(data, lane)
    except InvalidMessage:
        return
    assert encode_message(message) == data


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), LANES)
@example(b"\x25" + encode_rlp([b"\x25\xc0"]), Lane.BULK)
def test_any_bytes_are_a_message_or_invalid(data: bytes, lane: Lane) -> None:
    check_canonical(data, lane)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(EXAMPLES), st.data())
def test_a_changed_message_is_another_or_invalid(
    message: wire.Message, data: st.DataObject
) -> None:
    encoded = bytearray(encode_message(message))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(encoded) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                encoded[place] = data.draw(st.integers(0, 255))
            case 1:
                encoded.insert(place, data.draw(st.integers(0, 255)))
            case 2 if len(encoded) > 1:
                del encoded[place]
    check_canonical(bytes(encoded), message.lane)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda one: type(one).__name__)
def test_every_wrong_length_is_refused(message: wire.Message) -> None:
    data = encode_message(message)
    for size in range(1, min(len(data), 2_000)):
        refuse("message_malformed", data[:size], message.lane)
    refuse("message_malformed", data + b"\0", message.lane)
    refuse("message_empty", b"", message.lane)


@pytest.mark.parametrize("kind", sorted(set(range(256)) - wire.KINDS.keys()))
def test_unknown_kinds_are_refused(kind: int) -> None:
    for lane in Lane:
        refuse("message_kind", bytes([kind]) + b"\xc0", lane)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda one: type(one).__name__)
def test_a_kind_of_the_other_lane_is_refused(message: wire.Message) -> None:
    refuse("message_lane", encode_message(message), Lane(1 - message.lane))


@pytest.mark.parametrize("kind", wire.KINDS.values(), ids=lambda one: one.__name__)
def test_a_message_above_the_limit_of_its_kind_is_not_decoded(kind: type[wire.Message]) -> None:
    refuse("message_size", bytes([kind.kind]) + bytes(kind.limit), kind.lane)


def test_limits_leave_room_for_the_largest_of_each() -> None:
    large = make_block(transactions=(bytes(2**22 - 2_000),))
    largest = BlobName(NAME.digest, MAX_BLOB_BYTES)
    for message in (
        wire.ProposalMessage(large, VOTE),
        wire.BlockAnswer(large),
        wire.SegmentAnswer((large,), CERTIFICATE),
        wire.Announcement((largest,) * wire.MAX_ANNOUNCED),
        wire.BlobChunk(largest, MAX_BLOB_BYTES - 2**20, bytes(2**20)),
        wire.TransactionMessage(bytes(131_072)),
    ):
        assert decode_message(encode_message(message), message.lane) == message


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (wire.Announcement, [[]]),
        (wire.Announcement, [[[NAME.digest, 1]] * (wire.MAX_ANNOUNCED + 1)]),
        (wire.Announcement, [[[NAME.digest, 0]]]),
        (wire.Announcement, [[[NAME.digest, 100 * 2**20 + 1]]]),
        (wire.Announcement, [[[NAME.digest[1:], 1]]]),
        (wire.BlockRequest, [HASH[1:]]),
        (wire.BlockRequest, [HASH, b""]),
        (wire.CertificatesRequest, [2**64, 1]),
        (wire.CertificatesRequest, [b"\0\1", 1]),
        (wire.TransactionMessage, [b""]),
        (wire.BlobRequest, [[NAME.digest, NAME.size], 1]),
        (wire.BlobRequest, [[NAME.digest, 2**20], 2**20]),
        (wire.BlobChunk, [[NAME.digest, NAME.size], 2**20, b"1234"]),
        (wire.BlobChunk, [[NAME.digest, NAME.size], 2**20, b"123456"]),
        (wire.SegmentAnswer, [[], b"\xc0"]),
        (wire.BlockAnswer, [b"\xc0"]),
        (wire.VoteMessage, [b""]),
        (wire.Absent, [encode_message(wire.Absent(wire.BlobRequest(NAME, 0)))]),
        (wire.Absent, [encode_message(wire.BlockRequest(HASH))]),
    ],
)
def test_fields_out_of_bounds_are_refused(kind: type[wire.Message], fields: list[object]) -> None:
    refuse("message_malformed", bytes([kind.kind]) + encode_rlp(fields), kind.lane)  # type: ignore[arg-type]


def test_a_segment_of_too_many_blocks_is_refused() -> None:
    blocks = [encode_block(make_block(transactions=()))] * (wire.MAX_SEGMENT_BLOCKS + 1)
    refuse("message_malformed", bytes([36]) + encode_rlp([blocks, b""]), Lane.BULK)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [wire.BlockAnswer, wire.SegmentAnswer])
def test_megabytes_of_empty_lists_are_given_up_early(kind: type[wire.Message]) -> None:
    empty = b"\xfa\x3f\xff\xf0" + b"\xc0" * 0x3FFFF0
    body = encode_rlp([empty]) if kind is wire.BlockAnswer else empty
    with pytest.raises(InvalidMessage, match="too many items"):
        decode_message(bytes([kind.kind]) + body, kind.lane)


def test_the_last_piece_of_a_blob_is_what_is_left() -> None:
    name = BlobName(Digest(bytes(32)), 2 * wire.CHUNK_BYTES)
    assert wire.compute_chunk_size(name, wire.CHUNK_BYTES) == wire.CHUNK_BYTES
    assert wire.compute_chunk_size(NAME, wire.CHUNK_BYTES) == 5

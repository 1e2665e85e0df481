"""Recursive Length Prefix, strict and bounded: one encoding per value, limits on depth and number.

Decoders that recurse as deep as their input says can be crashed by a few kilobytes; these stop at
`MAX_DEPTH`, which every structure of this chain fits. Each item costs a hundred times its byte, so
they stop at `MAX_ITEMS` too, of which a full block needs a sixth.

Source: Ethereum yellow paper, appendix B.
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

from .errors import SteelyardError

Item: TypeAlias = bytes | list["Item"]
Encodable: TypeAlias = bytes | int | Sequence["Encodable"]

MAX_DEPTH: Final = 8
"""Lists inside lists; a block on the wire needs four."""
MAX_ITEMS: Final = 2**16
"""Byte strings and lists, on all levels together; an access list can need 17,000."""
LONG: Final = 56
"""Payloads from this length on carry their length in bytes of its own."""


class InvalidEncoding(SteelyardError):
    """Bytes that are not the one RLP encoding of the expected shape; code `rlp`."""

    def __init__(self, message: str) -> None:
        super().__init__("rlp", message)


# -- encode ----------------------------------------------------------------------------------------
def encode_rlp(value: Encodable) -> bytes:
    """Return the encoding of bytes, a non-negative integer (big-endian, no zeros) or a sequence."""
    if isinstance(value, int):
        assert value >= 0
        value = value.to_bytes((value.bit_length() + 7) // 8, "big")
    if isinstance(value, bytes):
        if len(value) == 1 and value[0] < 0x80:
            return value
        return _encode_length(len(value), 0x80) + value
    payload = b"".join([encode_rlp(item) for item in value])
    return _encode_length(len(payload), 0xC0) + payload


def _encode_length(length: int, offset: int) -> bytes:
    if length < LONG:
        return bytes([offset + length])
    size = (length.bit_length() + 7) // 8
    return bytes([offset + LONG - 1 + size]) + length.to_bytes(size, "big")


# -- decode ----------------------------------------------------------------------------------------
def decode_rlp(data: bytes, *, max_depth: int = MAX_DEPTH, max_items: int = MAX_ITEMS) -> Item:
    """Return byte strings and lists. Raises InvalidEncoding; trailing bytes are refused."""
    item, end = _decode_item(data, 0, len(data), max_depth, [max_items])
    if end != len(data):
        raise InvalidEncoding("bytes after the end")
    return item


def _decode_item(
    data: bytes, start: int, limit: int, depth: int, left: list[int]
) -> tuple[Item, int]:
    """Return the item at `start` and where it ends; `left` counts down what may still come."""
    if start >= limit:
        raise InvalidEncoding("the data ends early")
    left[0] -= 1
    if left[0] < 0:
        raise InvalidEncoding("too many items")
    first = data[start]
    if first < 0x80:
        return data[start : start + 1], start + 1
    is_list = first >= 0xC0
    begin, end = _decode_length(data, start, limit, 0xC0 if is_list else 0x80)
    if not is_list:
        if end - begin == 1 and data[begin] < 0x80:
            raise InvalidEncoding("a small byte must stand for itself")
        return data[begin:end], end
    if depth == 0:
        raise InvalidEncoding("lists are nested too deeply")
    items: list[Item] = []
    position = begin
    while position < end:
        item, position = _decode_item(data, position, end, depth - 1, left)
        items.append(item)
    return items, end


def _decode_length(data: bytes, start: int, limit: int, offset: int) -> tuple[int, int]:
    """Return where the payload begins and ends."""
    short = data[start] - offset
    begin = start + 1
    if short < LONG:
        length = short
    else:
        size = short - LONG + 1
        digits = data[begin : min(begin + size, limit)]
        begin += size
        length = int.from_bytes(digits, "big")
        if len(digits) != size or digits[0] == 0 or length < LONG:
            raise InvalidEncoding("a length that is not minimal")
    if begin + length > limit:
        raise InvalidEncoding("the data ends early")
    return begin, begin + length


# -- shapes ----------------------------------------------------------------------------------------
def read_list(item: Item, count: int | None = None, *, limit: int | None = None) -> list[Item]:
    """Return the list, of exactly `count` or at most `limit` items. Raises InvalidEncoding."""
    if not isinstance(item, list):
        raise InvalidEncoding("a list was expected")
    if count is not None and len(item) != count:
        raise InvalidEncoding(f"{count} fields were expected, {len(item)} came")
    if limit is not None and len(item) > limit:
        raise InvalidEncoding(f"at most {limit} items were expected, {len(item)} came")
    return item


def read_bytes(item: Item, size: int | None = None, *, limit: int | None = None) -> bytes:
    """Return the bytes, exactly `size` or at most `limit` of them. Raises InvalidEncoding."""
    if not isinstance(item, bytes):
        raise InvalidEncoding("a byte string was expected")
    if size is not None and len(item) != size:
        raise InvalidEncoding(f"{size} bytes were expected, {len(item)} came")
    if limit is not None and len(item) > limit:
        raise InvalidEncoding(f"at most {limit} bytes were expected, {len(item)} came")
    return item


def read_int(item: Item, bits: int) -> int:
    """Return an unsigned integer below 2**bits, without leading zeros. Raises InvalidEncoding."""
    data = read_bytes(item, limit=bits // 8)
    if data[:1] == b"\0":
        raise InvalidEncoding("an integer with leading zeros")
    return int.from_bytes(data, "big")

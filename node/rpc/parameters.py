"""Arguments of RPC calls, read strictly: wrong types and sizes raise InvalidParameters.

Lenient only where clients differ: `data` or `input`, `to: null`, storage slots of any length.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from steelyard.chain.types import Address, Hash

from .errors import InvalidParameters
from .limits import MAX_LOG_ADDRESSES, MAX_TOPIC_VALUES

HEX_DIGITS: Final = frozenset(string.hexdigits)
HEAD_TAGS: Final = frozenset({"latest", "safe", "finalized", "pending"})
"""One finalized chain: all of these are its head."""
MAX_HEIGHT: Final = 2**64 - 1
MAX_WORD: Final = 2**256 - 1
MAX_TOPICS: Final = 4


@dataclass(frozen=True, slots=True)
class BlockReference:
    """A block by height, by hash, or (both None) the head."""

    height: int | None = None
    block_hash: Hash | None = None

    @property
    def is_head(self) -> bool:
        return self.height is None and self.block_hash is None


@dataclass(frozen=True, slots=True)
class LogCriteria:
    """What a caller wants of logs, before heights are known. `block_hash` excludes heights."""

    start: BlockReference
    stop: BlockReference
    block_hash: Hash | None
    addresses: frozenset[Address]
    topics: tuple[frozenset[bytes] | None, ...]


def take(params: object, minimum: int, maximum: int) -> list[object]:
    """Return exactly `maximum` positional arguments, None for those left out."""
    if params is None:
        params = []
    if not isinstance(params, list):
        raise InvalidParameters("params must be an array")
    while len(params) > minimum and params[-1] is None:
        params = params[:-1]
    if not minimum <= len(params) <= maximum:
        expected = str(minimum) if minimum == maximum else f"{minimum} to {maximum}"
        raise InvalidParameters(f"expected {expected} parameters, got {len(params)}")
    return [*params, *([None] * (maximum - len(params)))]


def describe(value: object) -> str:
    """A short form of a bad value for an error message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def parse_digits(value: object, what: str) -> str:
    """The digits of a 0x-prefixed string."""
    if not isinstance(value, str) or value[:2] not in ("0x", "0X"):
        raise InvalidParameters(f"{what} must be a string in 0x form, not {describe(value)}")
    digits = value[2:]
    if not HEX_DIGITS.issuperset(digits):
        raise InvalidParameters(f"{what} has digits that are not hexadecimal: {describe(value)}")
    return digits


def parse_quantity(value: object, what: str, maximum: int = MAX_WORD) -> int:
    """A number as Ethereum writes it: 0x0, or hex digits without leading zeros."""
    digits = parse_digits(value, what)
    if not digits or (digits[0] == "0" and len(digits) > 1):
        raise InvalidParameters(f"{what} must be 0x and no leading zeros: {describe(value)}")
    if len(digits) > 64 or (number := int(digits, 16)) > maximum:
        raise InvalidParameters(f"{what} is too large: {describe(value)}")
    return number


def parse_data(value: object, what: str) -> bytes:
    """Bytes in hex, two digits each."""
    digits = parse_digits(value, what)
    if len(digits) % 2:
        raise InvalidParameters(f"{what} has an odd number of hexadecimal digits")
    return bytes.fromhex(digits)


def parse_fixed(value: object, what: str, size: int) -> bytes:
    """Exactly `size` bytes in hex."""
    data = parse_data(value, what)
    if len(data) != size:
        raise InvalidParameters(f"{what} must have {size} bytes, not {len(data)}")
    return data


def parse_address(value: object, what: str = "address") -> Address:
    return Address(parse_fixed(value, what, 20))


def parse_hash(value: object, what: str = "hash") -> Hash:
    return Hash(parse_fixed(value, what, 32))


def parse_slot(value: object) -> int:
    """A storage slot: hex digits of any number up to 64, leading zeros or not."""
    digits = parse_digits(value, "storage slot")
    if not 1 <= len(digits) <= 64:
        raise InvalidParameters(f"storage slot must have 1 to 64 digits: {describe(value)}")
    return int(digits, 16)


def parse_flag(value: object, what: str) -> bool:
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidParameters(f"{what} must be true or false, not {describe(value)}")
    return value


def parse_object(
    value: object, what: str, allowed: frozenset[str] | None = None
) -> Mapping[str, object]:
    """A JSON object; with `allowed`, one without other keys."""
    if not isinstance(value, dict):
        raise InvalidParameters(f"{what} must be an object, not {describe(value)}")
    unknown = sorted(set(value) - allowed) if allowed is not None else []
    if unknown:
        raise InvalidParameters(f"{what} has an unknown field: {describe(unknown[0])}")
    return value


def parse_list(value: object, what: str, maximum: int) -> Sequence[object]:
    if not isinstance(value, list):
        raise InvalidParameters(f"{what} must be an array, not {describe(value)}")
    if len(value) > maximum:
        raise InvalidParameters(f"{what} may have at most {maximum} entries, not {len(value)}")
    return value


def parse_block(value: object) -> BlockReference:
    """A tag, a height, or the object of EIP-1898. None is the head."""
    if value is None:
        return BlockReference()
    if isinstance(value, str):
        return parse_block_text(value)
    fields = parse_object(
        value, "block", frozenset({"blockNumber", "blockHash", "requireCanonical"})
    )
    parse_flag(fields.get("requireCanonical"), "requireCanonical")
    number, block_hash = fields.get("blockNumber"), fields.get("blockHash")
    if (number is None) == (block_hash is None):
        raise InvalidParameters("block must have either blockNumber or blockHash")
    if block_hash is not None:
        return BlockReference(block_hash=parse_hash(block_hash, "blockHash"))
    if not isinstance(number, str):
        raise InvalidParameters(f"blockNumber must be a string, not {describe(number)}")
    return parse_block_text(number)


def parse_block_text(value: str) -> BlockReference:
    """`latest` and its like, `earliest`, a height, or (as several clients send) a hash."""
    if value in HEAD_TAGS:
        return BlockReference()
    if value == "earliest":
        return BlockReference(height=0)
    if not value.startswith("0x"):
        raise InvalidParameters(
            f"block must be a tag (latest, safe, finalized, pending, earliest) or a number in hex, "
            f"not {describe(value)}"
        )
    if len(value) == 66:
        return BlockReference(block_hash=parse_hash(value, "block"))
    return BlockReference(height=parse_quantity(value, "block", MAX_HEIGHT))


def parse_log_criteria(value: object) -> LogCriteria:
    """The argument of eth_getLogs, eth_newFilter and of the logs subscription."""
    names = frozenset({"fromBlock", "toBlock", "blockHash", "address", "topics"})
    fields = parse_object(value, "filter", names)
    start, stop, block_hash = (fields.get(name) for name in ("fromBlock", "toBlock", "blockHash"))
    if block_hash is not None and (start is not None or stop is not None):
        raise InvalidParameters("filter has blockHash: fromBlock and toBlock must be left out")
    return LogCriteria(
        parse_block(start),
        parse_block(stop),
        None if block_hash is None else parse_hash(block_hash, "blockHash"),
        parse_addresses(fields.get("address")),
        parse_topics(fields.get("topics")),
    )


def parse_addresses(value: object) -> frozenset[Address]:
    """One address, several, or (None, or an empty array) any."""
    if value is None:
        return frozenset()
    if isinstance(value, str):
        return frozenset({parse_address(value)})
    return frozenset(map(parse_address, parse_list(value, "address", MAX_LOG_ADDRESSES)))


def parse_topics(value: object) -> tuple[frozenset[bytes] | None, ...]:
    """One entry a position: None or an empty array accepts all, an array any of its values."""
    if value is None:
        return ()
    return tuple(map(parse_topic, parse_list(value, "topics", MAX_TOPICS)))


def parse_topic(value: object) -> frozenset[bytes] | None:
    if value is None:
        return None
    if isinstance(value, str):
        return frozenset({parse_hash(value, "topic")})
    values = parse_list(value, "topic", MAX_TOPIC_VALUES)
    if not values or any(one is None for one in values):
        return None
    return frozenset(parse_hash(one, "topic") for one in values)

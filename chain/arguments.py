"""Arguments and answers of the aggregation precompile: strict Solidity ABI (docs/protocol.md, 5).

Arguments are read as one sequence of words. Only the canonical layout passes: arrays in order,
directly after the head, and nothing after them. So there is one encoding of a call.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from .errors import InvalidAggregation, InvalidBlobName
from .params import GAS_PER_UPDATE, MAX_BLOB_BYTES, MAX_PAGES, MAX_UPDATES
from .rules import Rule, RuleKind
from .types import BlobName, Digest

WORD: Final = 32
NO_BLOB: Final = BlobName(Digest(bytes(32)), 0)
"""The name that stands for no blob."""


class Meter(Protocol):
    """Whoever pays."""

    def consume_gas(self, amount: int, reason: str) -> None:
        """Charge, or end the call."""


class Arguments:
    """Reads the words of a call in order. Everything raises InvalidAggregation call_encoding."""

    def __init__(self, data: bytes) -> None:
        if len(data) % WORD:
            raise InvalidAggregation(
                "call_encoding", "arguments are not whole words; encode by ABI"
            )
        self._data, self._at = data, 0

    def take_word(self, limit: int = 2**256) -> int:
        """Return the next word, which must be below `limit`."""
        if self._at + WORD > len(self._data):
            raise InvalidAggregation("call_encoding", "arguments are missing; encode by ABI")
        word = int.from_bytes(self._data[self._at : self._at + WORD], "big")
        self._at += WORD
        if word >= limit:
            raise InvalidAggregation("call_encoding", f"an argument is {word}, past its type")
        return word

    def take_blob(self) -> BlobName:
        """Return a blob's name; its size bounds all work that follows from it."""
        digest = self.take_word().to_bytes(WORD, "big")
        size = self.take_word()
        if size > MAX_BLOB_BYTES:
            raise InvalidBlobName("blob_size", f"no blob has {size} bytes")
        return BlobName(Digest(digest), size)

    def take_rule(self) -> Rule:
        """Return a rule of a kind that there is. Its numbers are for `check_rule`."""
        kind, bound = self.take_word(2**8), self.take_word()
        max_share, server_lr, momentum = (self.take_word() for _ in range(3))
        if kind not in tuple(RuleKind):
            raise InvalidAggregation("aggregation_rule", f"there is no rule {kind}")
        return Rule(RuleKind(kind), bound, max_share, server_lr, momentum)

    def take_updates(self, meter: Meter, offset: int) -> list[BlobName]:
        """Return the array of blobs at `offset`; each is paid for before it is read."""
        return self._take_names(meter, offset, MAX_UPDATES)

    def take_pages(self, meter: Meter, offset: int) -> list[BlobName]:
        """Return the array of pages of one phase at `offset`, paid for as updates are."""
        return self._take_names(meter, offset, MAX_PAGES)

    def take_numbers(self, offset: int, expected: int) -> list[int]:
        """Return the array of numbers at `offset`, one for each update."""
        self._check_offset(offset)
        count = self.take_word()
        if count != expected:
            raise InvalidAggregation("aggregation_count", f"{count} numbers for {expected} updates")
        return [self.take_word() for _ in range(count)]

    def finish(self) -> None:
        """Refuse what is left over."""
        if self._at != len(self._data):
            raise InvalidAggregation("call_encoding", "bytes follow the arguments; encode by ABI")

    def _take_names(self, meter: Meter, offset: int, limit: int) -> list[BlobName]:
        self._check_offset(offset)
        count = self.take_word()
        if count > limit:
            raise InvalidAggregation("aggregation_count", f"{count} blobs, past {limit}")
        meter.consume_gas(GAS_PER_UPDATE * count, "fedavg updates")
        return [self.take_blob() for _ in range(count)]

    def _check_offset(self, offset: int) -> None:
        if offset != self._at:
            raise InvalidAggregation("call_encoding", "arrays are not in the canonical places")


def encode_words(*words: int | bytes) -> bytes:
    """Return words one after another; negative numbers in two's complement, bytes as they are."""
    return b"".join(
        word if isinstance(word, bytes) else (word % 2**256).to_bytes(WORD, "big") for word in words
    )


def encode_array(numbers: Sequence[int]) -> bytes:
    """Return the tail of an array of numbers."""
    return encode_words(len(numbers), *numbers)

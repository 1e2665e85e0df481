"""Receipts: what a transaction did. The consensus form is Ethereum's; the storage form adds facts.

Knows no EVM.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from eth_hash.auto import keccak

from .errors import SteelyardError
from .rlp import (
    Encodable,
    InvalidEncoding,
    Item,
    decode_rlp,
    encode_rlp,
    read_bytes,
    read_int,
    read_list,
)
from .trie import compute_list_root
from .types import Address, Hash

BLOOM_BITS: Final = 2048
MAX_TOPICS: Final = 4

MAX_STORED_ITEMS: Final = 2**24
"""In the receipts of a block, which only this machine's own store holds: gas bounds the logs."""


@dataclass(frozen=True, slots=True)
class Log:
    """An event. Topics are 32 bytes each, at most four."""

    address: Address
    topics: tuple[Hash, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Receipt:
    """Status is 1 or 0 (reverted or out of gas). Prices in wei a gas."""

    type: int
    status: int
    cumulative_gas_used: int
    gas_used: int
    effective_gas_price: int
    logs: tuple[Log, ...]
    contract_address: Address | None

    @property
    def bloom(self) -> bytes:
        """The 256-byte filter over the logs' addresses and topics."""
        return compute_bloom(self.logs)


class InvalidReceipt(SteelyardError):
    """Bytes that are not a stored receipt; code `receipt`."""

    def __init__(self, message: str) -> None:
        super().__init__("receipt", message)


# -- bloom -----------------------------------------------------------------------------------------
def compute_bloom(logs: Iterable[Log]) -> bytes:
    """Return the union of the filters of every address and topic."""
    bloom = 0
    for log in logs:
        bloom |= _compute_bloom_bits(log.address)
        for topic in log.topics:
            bloom |= _compute_bloom_bits(topic)
    return bloom.to_bytes(BLOOM_BITS // 8, "big")


def _compute_bloom_bits(value: bytes) -> int:
    """Return the three bits of one value: the low 11 bits of its hash's first three words."""
    digest = keccak(value)
    return sum(
        {1 << (int.from_bytes(digest[i : i + 2], "big") & (BLOOM_BITS - 1)) for i in (0, 2, 4)}
    )


def merge_blooms(blooms: Iterable[bytes]) -> bytes:
    """Return the union, as in a block header."""
    merged = 0
    for bloom in blooms:
        merged |= int.from_bytes(bloom, "big")
    return merged.to_bytes(BLOOM_BITS // 8, "big")


def may_contain(bloom: bytes, value: bytes) -> bool:
    """False means that no log under this filter has `value` as its address or a topic."""
    bits = _compute_bloom_bits(value)
    return int.from_bytes(bloom, "big") & bits == bits


# -- codecs ----------------------------------------------------------------------------------------
def encode_receipt(receipt: Receipt) -> bytes:
    """Return the consensus form, which the receipts root is over (EIP-2718, EIP-658)."""
    payload = encode_rlp(
        [
            receipt.status,
            receipt.cumulative_gas_used,
            receipt.bloom,
            [_list_log(log) for log in receipt.logs],
        ]
    )
    return payload if receipt.type == 0 else bytes([receipt.type]) + payload


def compute_receipts_root(receipts: Sequence[Receipt]) -> Hash:
    """Return the root over the consensus forms."""
    return compute_list_root([encode_receipt(receipt) for receipt in receipts])


def encode_receipts(receipts: Sequence[Receipt]) -> bytes:
    """Return the storage form of one block's receipts: every field, no bloom."""
    return encode_rlp(
        [
            [
                receipt.type,
                receipt.status,
                receipt.cumulative_gas_used,
                receipt.gas_used,
                receipt.effective_gas_price,
                [_list_log(log) for log in receipt.logs],
                receipt.contract_address or b"",
            ]
            for receipt in receipts
        ]
    )


def decode_receipts(data: bytes) -> tuple[Receipt, ...]:
    """Return what `encode_receipts` was given. Raises InvalidReceipt."""
    try:
        rows = read_list(decode_rlp(data, max_items=MAX_STORED_ITEMS))
        return tuple(_read_receipt(item) for item in rows)
    except InvalidEncoding as error:
        raise InvalidReceipt(error.message) from error


def _list_log(log: Log) -> Encodable:
    return [log.address, log.topics, log.data]


def _read_receipt(item: Item) -> Receipt:
    fields = read_list(item, 7)
    contract_address = read_bytes(fields[6], limit=20)
    return Receipt(
        type=read_int(fields[0], 8),
        status=read_int(fields[1], 8),
        cumulative_gas_used=read_int(fields[2], 64),
        gas_used=read_int(fields[3], 64),
        effective_gas_price=read_int(fields[4], 256),
        logs=tuple(_read_log(log) for log in read_list(fields[5])),
        contract_address=Address(contract_address) if contract_address else None,
    )


def _read_log(item: Item) -> Log:
    address, topics, data = read_list(item, 3)
    return Log(
        address=Address(read_bytes(address, 20)),
        topics=tuple(Hash(read_bytes(topic, 32)) for topic in read_list(topics, limit=MAX_TOPICS)),
        data=read_bytes(data),
    )

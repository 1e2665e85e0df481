"""Signed transactions: decoding, and every rule that can be checked before any state is touched.

Types 0 (EIP-155), 1 and 2. Types 3 and 4 are refused: blobs of ours travel otherwise, and EIP-7702
lets one transaction change the nonces of other accounts. Blobs are declared in the access list
(docs/protocol.md, sections 1 and 6); their gas is in the intrinsic gas and in the EIP-7623 floor.

Knows no EVM. The pool, the block builder and the importer use the same functions.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

from eth_hash.auto import keccak
from eth_keys.backends.coincurve import CoinCurveECCBackend
from eth_keys.datatypes import Signature
from eth_keys.exceptions import BadSignature
from eth_utils.exceptions import ValidationError

from .errors import InvalidTransaction
from .params import (
    BLOB_BYTES_PER_GAS,
    BLOB_DECLARATION_ADDRESS,
    BLOB_GAS_EACH,
    MAX_BLOB_BYTES,
    MAX_BLOB_BYTES_PER_BLOCK,
    MAX_BLOBS_PER_TRANSACTION,
    MAX_INITCODE_BYTES,
    MAX_TRANSACTION_BYTES,
)
from .rlp import InvalidEncoding, Item, decode_rlp, encode_rlp, read_bytes, read_int, read_list
from .types import Address, BlobName, Digest, Hash

LEGACY: Final = 0
ACCESS_LIST: Final = 1
DYNAMIC_FEE: Final = 2

GAS_TRANSACTION: Final = 21_000
GAS_CREATE: Final = 32_000
GAS_INITCODE_WORD: Final = 2
GAS_ACCESS_ADDRESS: Final = 2_400
GAS_ACCESS_KEY: Final = 1_900
GAS_TOKEN: Final = 4
"""A zero byte of calldata is one token, any other four (EIP-7623)."""
GAS_TOKEN_FLOOR: Final = 10

NONCE_LIMIT: Final = 2**64 - 1
"""EIP-2681: no transaction may have this nonce."""
SIGNATURE_BACKEND: Final = CoinCurveECCBackend()
"""Named, since eth-keys would choose by an environment variable."""
CURVE_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
MAX_CHAIN_ID: Final = 2**64 - 1

AccessList: TypeAlias = tuple[tuple[Address, tuple[int, ...]], ...]


class StaleNonce(InvalidTransaction):
    """The sender already used this nonce; code `tx_nonce_low`."""

    def __init__(self, *, expected: int, actual: int) -> None:
        super().__init__(
            "tx_nonce_low", f"nonce {actual} was already used; the next one is {expected}"
        )
        self.expected, self.actual = expected, actual


class BlockFull(InvalidTransaction):
    """Nothing wrong with the transaction: this block has no room left for it; `tx_block_full`."""

    def __init__(self, message: str) -> None:
        super().__init__("tx_block_full", message)


@dataclass(frozen=True, slots=True)
class Transaction:
    """A signed transaction in its one encoding. Fees in wei a gas; `to` None creates a contract.

    For types 0 and 1 both fees are the gas price. `blobs` are the declared ones, in order.
    """

    raw: bytes
    hash: Hash
    type: int
    chain_id: int
    nonce: int
    max_priority_fee: int
    max_fee: int
    gas: int
    to: Address | None
    value: int
    data: bytes
    access_list: AccessList
    y_parity: int
    r: int
    s: int
    sender: Address
    blobs: tuple[BlobName, ...]
    intrinsic_gas: int
    floor_gas: int

    @property
    def v(self) -> int:
        """The `v` of JSON-RPC: EIP-155 for type 0, the parity for the others."""
        return self.y_parity + 35 + 2 * self.chain_id if self.type == LEGACY else self.y_parity

    @property
    def blob_bytes(self) -> int:
        """The declared bytes together."""
        return sum(blob.size for blob in self.blobs)

    @property
    def max_cost(self) -> int:
        """What the sender must own, in wei, whatever happens: value + gas x fee cap."""
        return self.value + self.gas * self.max_fee


# -- decode ----------------------------------------------------------------------------------------
def decode_transaction(raw: bytes) -> Transaction:
    """Return the transaction and its recovered sender.

    Raises: InvalidTransaction tx_size, tx_malformed, tx_type, tx_signature, blob_declaration.
    """
    if len(raw) > MAX_TRANSACTION_BYTES:
        raise InvalidTransaction(
            "tx_size", f"{len(raw)} bytes; a transaction has at most {MAX_TRANSACTION_BYTES}"
        )
    if not raw:
        raise InvalidTransaction("tx_malformed", "an empty transaction")
    try:
        if raw[0] >= 0xC0:
            return _decode_legacy(raw)
        if raw[0] == ACCESS_LIST:
            return _decode_access_list(raw)
        if raw[0] == DYNAMIC_FEE:
            return _decode_dynamic_fee(raw)
    except InvalidEncoding as error:
        raise InvalidTransaction("tx_malformed", error.message) from error
    raise InvalidTransaction(
        "tx_type", f"type {raw[0]} is not accepted; send type 0 (EIP-155), 1 or 2"
    )


@dataclass(frozen=True, slots=True)
class _Payload:
    """The signed fields, before the signature is looked at."""

    type: int
    chain_id: int
    nonce: int
    max_priority_fee: int
    max_fee: int
    gas: int
    to: Address | None
    value: int
    data: bytes
    access_list: AccessList


def _decode_legacy(raw: bytes) -> Transaction:
    fields = read_list(decode_rlp(raw), 9)
    v = read_int(fields[6], 256)
    if v < 35:
        raise InvalidTransaction("tx_chain_id", "sign with a chain id (EIP-155)")
    chain_id, y_parity = divmod(v - 35, 2)
    if chain_id > MAX_CHAIN_ID:
        raise InvalidTransaction("tx_chain_id", "a chain id above 64 bits")
    price = read_int(fields[1], 256)
    nonce, gas = read_int(fields[0], 64), read_int(fields[2], 64)
    to, value, data = _read_target(fields[3]), read_int(fields[4], 256), read_bytes(fields[5])
    payload = _Payload(LEGACY, chain_id, nonce, price, price, gas, to, value, data, ())
    signed = encode_rlp([nonce, price, gas, to or b"", value, data, chain_id, 0, 0])
    return _build(raw, payload, keccak(signed), (y_parity, *_read_pair(fields)))


def _decode_access_list(raw: bytes) -> Transaction:
    fields = read_list(decode_rlp(raw[1:]), 11)
    price = read_int(fields[2], 256)
    payload = _Payload(
        ACCESS_LIST,
        read_int(fields[0], 64),
        read_int(fields[1], 64),
        price,
        price,
        read_int(fields[3], 64),
        _read_target(fields[4]),
        read_int(fields[5], 256),
        read_bytes(fields[6]),
        _read_access_list(fields[7]),
    )
    return _build_typed(raw, payload, fields)


def _decode_dynamic_fee(raw: bytes) -> Transaction:
    fields = read_list(decode_rlp(raw[1:]), 12)
    payload = _Payload(
        DYNAMIC_FEE,
        read_int(fields[0], 64),
        read_int(fields[1], 64),
        read_int(fields[2], 256),
        read_int(fields[3], 256),
        read_int(fields[4], 64),
        _read_target(fields[5]),
        read_int(fields[6], 256),
        read_bytes(fields[7]),
        _read_access_list(fields[8]),
    )
    return _build_typed(raw, payload, fields)


def _build_typed(raw: bytes, payload: _Payload, fields: list[Item]) -> Transaction:
    y_parity = read_int(fields[-3], 8)
    if y_parity > 1:
        raise InvalidTransaction("tx_signature", "the parity is 0 or 1")
    signed = raw[:1] + encode_rlp(fields[:-3])
    return _build(raw, payload, keccak(signed), (y_parity, *_read_pair(fields)))


def _read_pair(fields: list[Item]) -> tuple[int, int]:
    return read_int(fields[-2], 256), read_int(fields[-1], 256)


def _build(
    raw: bytes, payload: _Payload, message_hash: bytes, signature: tuple[int, int, int]
) -> Transaction:
    y_parity, r, s = signature
    blobs = read_blobs(payload.access_list)
    if payload.to == BLOB_DECLARATION_ADDRESS:
        raise InvalidTransaction(
            "blob_declaration", f"0x{payload.to.hex()} appears in access lists only"
        )
    return Transaction(
        raw=raw,
        hash=Hash(keccak(raw)),
        type=payload.type,
        chain_id=payload.chain_id,
        nonce=payload.nonce,
        max_priority_fee=payload.max_priority_fee,
        max_fee=payload.max_fee,
        gas=payload.gas,
        to=payload.to,
        value=payload.value,
        data=payload.data,
        access_list=payload.access_list,
        y_parity=y_parity,
        r=r,
        s=s,
        sender=recover_sender(message_hash, y_parity, r, s),
        blobs=blobs,
        intrinsic_gas=compute_intrinsic_gas(payload.to, payload.data, payload.access_list, blobs),
        floor_gas=compute_floor_gas(payload.data, blobs),
    )


def recover_sender(message_hash: bytes, y_parity: int, r: int, s: int) -> Address:
    """Return who signed. Raises InvalidTransaction tx_signature; a high `s` is refused (EIP-2)."""
    if not (0 < r < CURVE_ORDER and 0 < s <= CURVE_ORDER // 2):
        raise InvalidTransaction("tx_signature", "r and s must be in range, and s low")
    try:
        signature = Signature(vrs=(y_parity, r, s), backend=SIGNATURE_BACKEND)
        public_key = signature.recover_public_key_from_msg_hash(message_hash)
    except (BadSignature, ValidationError) as error:
        raise InvalidTransaction("tx_signature", "the signature recovers to no key") from error
    return Address(public_key.to_canonical_address())


def _read_target(item: Item) -> Address | None:
    data = read_bytes(item, limit=20)
    if len(data) not in {0, 20}:
        raise InvalidEncoding("an address has 20 bytes")
    return Address(data) if data else None


def _read_access_list(item: Item) -> AccessList:
    entries = []
    for entry in read_list(item):
        address, keys = read_list(entry, 2)
        slots = [int.from_bytes(read_bytes(key, 32), "big") for key in read_list(keys)]
        entries.append((Address(read_bytes(address, 20)), tuple(slots)))
    return tuple(entries)


def read_blobs(access_list: AccessList) -> tuple[BlobName, ...]:
    """Return what is declared under BLOB_DECLARATION_ADDRESS: pairs of keys, digest and size.

    Raises: InvalidTransaction blob_declaration.
    """
    keys = [
        key
        for address, slots in access_list
        if address == BLOB_DECLARATION_ADDRESS
        for key in slots
    ]
    declares = any(address == BLOB_DECLARATION_ADDRESS for address, _ in access_list)
    if not declares:
        return ()
    if not keys or len(keys) % 2:
        raise InvalidTransaction("blob_declaration", "declare pairs of keys: digest, then size")
    if len(keys) // 2 > MAX_BLOBS_PER_TRANSACTION:
        raise InvalidTransaction(
            "blob_declaration", f"at most {MAX_BLOBS_PER_TRANSACTION} blobs in a transaction"
        )
    blobs = tuple(
        BlobName(Digest(keys[i].to_bytes(32, "big")), keys[i + 1]) for i in range(0, len(keys), 2)
    )
    if len(set(blobs)) != len(blobs):
        raise InvalidTransaction("blob_declaration", "the same blob is declared twice")
    if any(not 1 <= blob.size <= MAX_BLOB_BYTES for blob in blobs):
        raise InvalidTransaction("blob_declaration", f"a blob has 1 to {MAX_BLOB_BYTES} bytes")
    return blobs


# -- gas -------------------------------------------------------------------------------------------
def compute_blob_gas(blobs: tuple[BlobName, ...]) -> int:
    """Return the gas of declaring these blobs; never refunded by the floor rule."""
    return sum(BLOB_GAS_EACH + -(-blob.size // BLOB_BYTES_PER_GAS) for blob in blobs)


def compute_tokens(data: bytes) -> int:
    """Return the calldata's tokens (EIP-7623)."""
    return 4 * len(data) - 3 * data.count(0)


def compute_intrinsic_gas(
    to: Address | None, data: bytes, access_list: AccessList, blobs: tuple[BlobName, ...]
) -> int:
    """Return what is charged before the first instruction (EIP-2028, 2930, 3860; blobs)."""
    gas = GAS_TRANSACTION + GAS_TOKEN * compute_tokens(data) + compute_blob_gas(blobs)
    if to is None:
        gas += GAS_CREATE + GAS_INITCODE_WORD * -(-len(data) // 32)
    for _, keys in access_list:
        gas += GAS_ACCESS_ADDRESS + GAS_ACCESS_KEY * len(keys)
    return gas


def compute_floor_gas(data: bytes, blobs: tuple[BlobName, ...]) -> int:
    """Return the least that is charged in the end (EIP-7623), with the blobs beside it."""
    return GAS_TRANSACTION + GAS_TOKEN_FLOOR * compute_tokens(data) + compute_blob_gas(blobs)


def compute_gas_price(transaction: Transaction, base_fee: int) -> int:
    """Return what one gas costs the sender, in wei, given that the fee cap covers the base fee."""
    return min(transaction.max_fee, base_fee + transaction.max_priority_fee)


# -- rules -----------------------------------------------------------------------------------------
def check_transaction(transaction: Transaction, chain_id: int, gas_limit: int) -> None:
    """Raise InvalidTransaction if no block of this chain, in any state, could hold this."""
    if transaction.chain_id != chain_id:
        raise InvalidTransaction(
            "tx_chain_id", f"signed for chain {transaction.chain_id}; this is chain {chain_id}"
        )
    if transaction.nonce >= NONCE_LIMIT:
        raise InvalidTransaction("tx_nonce_high", "the nonce limit of EIP-2681")
    if transaction.max_priority_fee > transaction.max_fee:
        raise InvalidTransaction("tx_tip", "the tip is above the fee cap")
    if transaction.to is None and len(transaction.data) > MAX_INITCODE_BYTES:
        raise InvalidTransaction("tx_initcode", f"initcode above {MAX_INITCODE_BYTES} bytes")
    needed = max(transaction.intrinsic_gas, transaction.floor_gas)
    if transaction.gas < needed:
        raise InvalidTransaction("tx_gas", f"{transaction.gas} gas; at least {needed} is needed")
    if transaction.blob_bytes > MAX_BLOB_BYTES_PER_BLOCK:
        raise InvalidTransaction(
            "blob_declaration",
            f"{transaction.blob_bytes} bytes; the blobs of a block have at most "
            f"{MAX_BLOB_BYTES_PER_BLOCK}",
        )
    if transaction.gas > gas_limit:
        raise InvalidTransaction(
            "tx_gas_limit", f"{transaction.gas} gas; a block has at most {gas_limit}"
        )


def check_fee(transaction: Transaction, base_fee: int) -> None:
    """Raise InvalidTransaction tx_fee_low if the fee cap is below the block's base fee."""
    if transaction.max_fee < base_fee:
        raise InvalidTransaction(
            "tx_fee_low", f"fee cap {transaction.max_fee} wei; the base fee is {base_fee}"
        )


def check_sender(transaction: Transaction, *, nonce: int, balance: int, has_code: bool) -> None:
    """Raise InvalidTransaction if the sender, as the state has it now, may not send this now."""
    if transaction.nonce < nonce:
        raise StaleNonce(expected=nonce, actual=transaction.nonce)
    if transaction.nonce > nonce:
        raise InvalidTransaction(
            "tx_nonce_high", f"nonce {transaction.nonce} leaves a gap; the next one is {nonce}"
        )
    if has_code:
        raise InvalidTransaction("tx_sender_code", "the sender is a contract (EIP-3607)")
    if balance < transaction.max_cost:
        raise InvalidTransaction(
            "tx_balance", f"{balance} wei; value and gas need {transaction.max_cost}"
        )

"""Blocks: an Ethereum Prague header, a consensus extension, transactions, withdrawals.

The header's `parent_beacon_block_root` is the hash of the extension, so wallets that know Ethereum
need nothing new and the block hash still covers consensus data (docs/protocol.md, section 7).
Nothing in the extension depends on which transactions survived.

Pure; knows no EVM. What a block *does* is in `execute.py`.
"""

from dataclasses import dataclass, field
from typing import Final

from eth_hash.auto import keccak

from .errors import InvalidBlock
from .params import (
    EXTENSION_VERSION,
    MAX_BLOCK_BYTES,
    MAX_BLOCK_TRANSACTIONS,
    MAX_EXTRA_DATA_BYTES,
)
from .rlp import InvalidEncoding, Item, decode_rlp, encode_rlp, read_bytes, read_int, read_list
from .trie import compute_list_root
from .types import Address, Domain, Epoch, Hash, Height, View

EMPTY_OMMERS_HASH: Final = Hash(keccak(encode_rlp([])))
EMPTY_REQUESTS_HASH: Final = Hash(
    bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
)
"""SHA-256 of nothing (EIP-7685): there are no execution requests here."""
ZERO_HASH: Final = Hash(bytes(32))
BLOOM_BYTES: Final = 256
MAX_WITHDRAWALS: Final = 1024
MAX_TRANSACTIONS_BYTES: Final = MAX_BLOCK_BYTES - 128 * 1024
"""The raw transactions of a block together; the rest is for header, withdrawals and lengths."""
ELASTICITY: Final = 2
BASE_FEE_CHANGE_DENOMINATOR: Final = 8
MAX_ANCESTORS: Final = 256
"""Hashes that BLOCKHASH can reach."""

assert MAX_WITHDRAWALS * 48 + 1024 + 5 * MAX_BLOCK_TRANSACTIONS < 128 * 1024


@dataclass(frozen=True, slots=True)
class Rules:
    """What genesis fixes for execution. Wei a gas, seconds; forks are (name, height), by name.

    `epoch_blocks` is the number of blocks of an epoch, `issuance_gwei` what each epoch pays.
    `domain` is what votes are signed for.
    """

    chain_id: int
    domain: Domain
    gas_limit: int
    min_base_fee: int
    blob_retention_seconds: int
    epoch_blocks: int = 1_000
    issuance_gwei: int = 0
    forks: tuple[tuple[str, int], ...] = ()

    def is_active(self, fork: str, height: int) -> bool:
        """Does the rule change `fork` hold for the block at `height`?"""
        return any(name == fork and height >= first for name, first in self.forks)


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """An amount that consensus pays (EIP-4895), in gwei."""

    index: int
    validator_index: int
    address: Address
    amount_gwei: int


@dataclass(frozen=True, slots=True)
class Extension:
    """Consensus data of a block. `proposer` is a validator's account."""

    epoch: Epoch
    view: View
    proposer: Address
    next_validator_set_hash: Hash
    version: int = EXTENSION_VERSION


@dataclass(frozen=True, slots=True)
class Header:
    """The 21 fields of a Prague header, in their order. Its `hash` is the block's."""

    parent_hash: Hash
    coinbase: Address
    state_root: Hash
    transactions_root: Hash
    receipts_root: Hash
    bloom: bytes
    height: Height
    gas_limit: int
    gas_used: int
    timestamp: int
    prev_randao: Hash
    base_fee: int
    withdrawals_root: Hash
    parent_beacon_block_root: Hash
    extra_data: bytes = b""
    ommers_hash: Hash = EMPTY_OMMERS_HASH
    difficulty: int = 0
    nonce: bytes = bytes(8)
    blob_gas_used: int = 0
    excess_blob_gas: int = 0
    requests_hash: Hash = EMPTY_REQUESTS_HASH
    _hash: list[Hash] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def hash(self) -> Hash:
        """The keccak-256 of the encoding, computed once."""
        if not self._hash:
            self._hash.append(Hash(keccak(encode_header(self))))
        return self._hash[0]


@dataclass(frozen=True, slots=True)
class Block:
    """A block as it travels. `transactions` are EIP-2718 bytes."""

    header: Header
    extension: Extension
    transactions: tuple[bytes, ...] = ()
    withdrawals: tuple[Withdrawal, ...] = ()

    @property
    def hash(self) -> Hash:
        """The header's hash."""
        return self.header.hash

    @property
    def height(self) -> Height:
        """The header's height."""
        return self.header.height


# -- codecs ----------------------------------------------------------------------------------------
def encode_header(header: Header) -> bytes:
    """Return the RLP of the 21 fields in Ethereum's order."""
    return encode_rlp(_list_header(header))


def _list_header(header: Header) -> list[bytes | int]:
    return [
        header.parent_hash,
        header.ommers_hash,
        header.coinbase,
        header.state_root,
        header.transactions_root,
        header.receipts_root,
        header.bloom,
        header.difficulty,
        header.height,
        header.gas_limit,
        header.gas_used,
        header.timestamp,
        header.extra_data,
        header.prev_randao,
        header.nonce,
        header.base_fee,
        header.withdrawals_root,
        header.blob_gas_used,
        header.excess_blob_gas,
        header.parent_beacon_block_root,
        header.requests_hash,
    ]


def decode_header(data: bytes) -> Header:
    """Return the header. Raises InvalidBlock block_malformed."""
    try:
        return _read_header(decode_rlp(data))
    except InvalidEncoding as error:
        raise InvalidBlock("block_malformed", error.message) from error


def _read_header(item: Item) -> Header:
    fields = read_list(item, 21)
    return Header(
        parent_hash=_read_hash(fields[0]),
        ommers_hash=_read_hash(fields[1]),
        coinbase=Address(read_bytes(fields[2], 20)),
        state_root=_read_hash(fields[3]),
        transactions_root=_read_hash(fields[4]),
        receipts_root=_read_hash(fields[5]),
        bloom=read_bytes(fields[6], BLOOM_BYTES),
        difficulty=read_int(fields[7], 256),
        height=Height(read_int(fields[8], 64)),
        gas_limit=read_int(fields[9], 64),
        gas_used=read_int(fields[10], 64),
        timestamp=read_int(fields[11], 64),
        extra_data=read_bytes(fields[12], limit=MAX_EXTRA_DATA_BYTES),
        prev_randao=_read_hash(fields[13]),
        nonce=read_bytes(fields[14], 8),
        base_fee=read_int(fields[15], 256),
        withdrawals_root=_read_hash(fields[16]),
        blob_gas_used=read_int(fields[17], 64),
        excess_blob_gas=read_int(fields[18], 64),
        parent_beacon_block_root=_read_hash(fields[19]),
        requests_hash=_read_hash(fields[20]),
    )


def _read_hash(item: Item) -> Hash:
    return Hash(read_bytes(item, 32))


def encode_extension(extension: Extension) -> bytes:
    """Return the RLP of the extension."""
    return encode_rlp(_list_extension(extension))


def _list_extension(extension: Extension) -> list[bytes | int]:
    return [
        extension.version,
        extension.epoch,
        extension.view,
        extension.proposer,
        extension.next_validator_set_hash,
    ]


def decode_extension(data: bytes) -> Extension:
    """Return the extension. Raises InvalidBlock block_malformed."""
    try:
        return _read_extension(decode_rlp(data))
    except InvalidEncoding as error:
        raise InvalidBlock("block_malformed", error.message) from error


def _read_extension(item: Item) -> Extension:
    fields = read_list(item, 5)
    return Extension(
        version=read_int(fields[0], 32),
        epoch=Epoch(read_int(fields[1], 64)),
        view=View(read_int(fields[2], 64)),
        proposer=Address(read_bytes(fields[3], 20)),
        next_validator_set_hash=_read_hash(fields[4]),
    )


def encode_withdrawal(withdrawal: Withdrawal) -> bytes:
    """Return the RLP of a withdrawal, as in the withdrawals trie."""
    return encode_rlp(_list_withdrawal(withdrawal))


def _list_withdrawal(withdrawal: Withdrawal) -> list[bytes | int]:
    return [
        withdrawal.index,
        withdrawal.validator_index,
        withdrawal.address,
        withdrawal.amount_gwei,
    ]


def _read_withdrawal(item: Item) -> Withdrawal:
    fields = read_list(item, 4)
    return Withdrawal(
        index=read_int(fields[0], 64),
        validator_index=read_int(fields[1], 64),
        address=Address(read_bytes(fields[2], 20)),
        amount_gwei=read_int(fields[3], 64),
    )


def encode_block(block: Block) -> bytes:
    """Return the wire form: rlp([header, extension, [transaction bytes], withdrawals])."""
    return encode_rlp(
        [
            _list_header(block.header),
            _list_extension(block.extension),
            block.transactions,
            [_list_withdrawal(withdrawal) for withdrawal in block.withdrawals],
        ]
    )


def decode_block(data: bytes) -> Block:
    """Return the block. Format only. Raises InvalidBlock block_size, block_malformed."""
    if len(data) > MAX_BLOCK_BYTES:
        raise InvalidBlock("block_size", f"{len(data)} bytes; at most {MAX_BLOCK_BYTES}")
    try:
        header, extension, transactions, withdrawals = read_list(decode_rlp(data), 4)
        return Block(
            header=_read_header(header),
            extension=_read_extension(extension),
            transactions=tuple(
                read_bytes(item) for item in read_list(transactions, limit=MAX_BLOCK_TRANSACTIONS)
            ),
            withdrawals=tuple(
                _read_withdrawal(item) for item in read_list(withdrawals, limit=MAX_WITHDRAWALS)
            ),
        )
    except InvalidEncoding as error:
        raise InvalidBlock("block_malformed", error.message) from error


# -- derived values --------------------------------------------------------------------------------
def compute_extension_hash(extension: Extension) -> Hash:
    """Return what the header's parent_beacon_block_root must be."""
    return Hash(keccak(encode_extension(extension)))


def compute_prev_randao(parent: Header, view: View) -> Hash:
    """Return keccak256(parent's prev_randao || u64 view). Not random: the view is a choice."""
    return Hash(keccak(parent.prev_randao + view.to_bytes(8, "big")))


def compute_base_fee(parent: Header, min_base_fee: int) -> int:
    """Return the base fee after `parent` (EIP-1559), in wei, never below `min_base_fee`."""
    target = parent.gas_limit // ELASTICITY
    change = parent.base_fee * abs(parent.gas_used - target) // target
    change //= BASE_FEE_CHANGE_DENOMINATOR
    if parent.gas_used > target:
        return max(parent.base_fee + max(change, 1), min_base_fee)
    return max(parent.base_fee - change, min_base_fee)


def compute_transactions_root(transactions: tuple[bytes, ...]) -> Hash:
    """Return the root over the raw transactions."""
    return compute_list_root(transactions)


def compute_withdrawals_root(withdrawals: tuple[Withdrawal, ...]) -> Hash:
    """Return the root over the encoded withdrawals."""
    return compute_list_root([encode_withdrawal(withdrawal) for withdrawal in withdrawals])


# -- rules -----------------------------------------------------------------------------------------
def check_header(parent: Header, header: Header, rules: Rules) -> None:
    """Raise InvalidBlock if `header` cannot follow `parent`, whatever the transactions do.

    Codes: block_parent, block_height, block_timestamp, block_gas_limit, block_gas_used,
    block_base_fee, block_constant. Clocks are the voter's affair, not the chain's.
    """
    _check_links(parent, header)
    if header.gas_limit != rules.gas_limit:
        raise InvalidBlock("block_gas_limit", f"the gas limit is {rules.gas_limit}")
    if header.gas_used > header.gas_limit:
        raise InvalidBlock("block_gas_used", "more gas used than the limit")
    base_fee = compute_base_fee(parent, rules.min_base_fee)
    if header.base_fee != base_fee:
        raise InvalidBlock("block_base_fee", f"the base fee after this parent is {base_fee}")
    if len(header.extra_data) > MAX_EXTRA_DATA_BYTES:
        raise InvalidBlock("block_constant", f"extra data above {MAX_EXTRA_DATA_BYTES} bytes")
    for name, expected in _CONSTANTS.items():
        if getattr(header, name) != expected:
            raise InvalidBlock("block_constant", f"{name} is fixed on this chain")


_CONSTANTS: Final[dict[str, bytes | int]] = {
    "ommers_hash": EMPTY_OMMERS_HASH,
    "difficulty": 0,
    "nonce": bytes(8),
    "blob_gas_used": 0,
    "excess_blob_gas": 0,
    "requests_hash": EMPTY_REQUESTS_HASH,
}


def _check_links(parent: Header, header: Header) -> None:
    if header.parent_hash != parent.hash:
        raise InvalidBlock("block_parent", "not a child of this parent")
    if header.height != parent.height + 1:
        raise InvalidBlock("block_height", f"the next height is {parent.height + 1}")
    if header.timestamp < parent.timestamp:
        raise InvalidBlock("block_timestamp", "earlier than the parent; equal is allowed")


def check_block(parent: Header, block: Block, rules: Rules) -> None:
    """Raise InvalidBlock if the block cannot follow `parent`; nothing is executed.

    Codes: those of `check_header`, block_extension, block_randao, block_transactions_root,
    block_withdrawals_root, block_size. What depends on the validators is in `epochs.check_place`.
    """
    header, extension = block.header, block.extension
    check_header(parent, header, rules)
    if extension.version != EXTENSION_VERSION:
        raise InvalidBlock("block_extension", f"extension version {EXTENSION_VERSION} is known")
    if header.parent_beacon_block_root != compute_extension_hash(extension):
        raise InvalidBlock("block_extension", "parent_beacon_block_root is not its hash")
    if header.prev_randao != compute_prev_randao(parent, extension.view):
        raise InvalidBlock("block_randao", "prev_randao does not follow the parent and the view")
    if (
        len(block.transactions) > MAX_BLOCK_TRANSACTIONS
        or sum(map(len, block.transactions)) > MAX_TRANSACTIONS_BYTES
    ):
        raise InvalidBlock("block_size", "too many transactions")
    if header.transactions_root != compute_transactions_root(block.transactions):
        raise InvalidBlock("block_transactions_root", "not the root of these transactions")
    if header.withdrawals_root != compute_withdrawals_root(block.withdrawals):
        raise InvalidBlock("block_withdrawals_root", "not the root of these withdrawals")

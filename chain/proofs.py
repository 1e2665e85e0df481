"""Reading the state at a block, and proving what was read, without an engine.

`get_proof` answers eth_getProof; `check_proof` lets an auditor believe a node that it does not
trust, given a state root that it does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from eth_hash.auto import keccak

from .rlp import InvalidEncoding, decode_rlp, encode_rlp, read_bytes, read_int, read_list
from .trie import (
    EMPTY_ROOT,
    InvalidProof,
    MissingState,
    NodeSource,
    check_trie_proof,
    get_trie_proof,
    get_trie_value,
)
from .types import Address, Hash

EMPTY_CODE_HASH: Final = Hash(keccak(b""))


@dataclass(frozen=True, slots=True)
class Account:
    """One account as the state trie has it. Wei."""

    nonce: int = 0
    balance: int = 0
    storage_root: Hash = EMPTY_ROOT
    code_hash: Hash = EMPTY_CODE_HASH


@dataclass(frozen=True, slots=True)
class StorageProof:
    """One slot's value and the nodes from the storage root towards it."""

    slot: int
    value: int
    proof: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class AccountProof:
    """An account, the nodes from the state root towards it, and proofs of some of its slots."""

    address: Address
    account: Account
    proof: tuple[bytes, ...]
    storage: tuple[StorageProof, ...]


# -- read ------------------------------------------------------------------------------------------
def get_account(nodes: NodeSource, state_root: Hash, address: Address) -> Account:
    """Return the account, an empty one if there is none. Raises MissingState."""
    return decode_account(get_trie_value(nodes, state_root, keccak(address)))


def get_code(nodes: NodeSource, state_root: Hash, address: Address) -> bytes:
    """Return the contract's code, empty if there is none. Raises MissingState."""
    code_hash = get_account(nodes, state_root, address).code_hash
    if code_hash == EMPTY_CODE_HASH:
        return b""
    code = nodes.get(code_hash)
    if code is None:
        raise MissingState(code_hash)
    return code


def get_storage(nodes: NodeSource, state_root: Hash, address: Address, slot: int) -> int:
    """Return a storage word, 0 if it was never written. Raises MissingState."""
    storage_root = get_account(nodes, state_root, address).storage_root
    return _decode_word(get_trie_value(nodes, storage_root, _compute_slot_key(slot)))


# -- prove -----------------------------------------------------------------------------------------
def get_proof(
    nodes: NodeSource, state_root: Hash, address: Address, slots: Sequence[int]
) -> AccountProof:
    """Return the account and slots with their proofs (EIP-1186). Raises MissingState."""
    account = get_account(nodes, state_root, address)
    storage = tuple(
        StorageProof(
            slot=slot,
            value=_decode_word(get_trie_value(nodes, account.storage_root, key)),
            proof=get_trie_proof(nodes, account.storage_root, key),
        )
        for slot, key in ((slot, _compute_slot_key(slot)) for slot in slots)
    )
    return AccountProof(
        address, account, get_trie_proof(nodes, state_root, keccak(address)), storage
    )


def check_proof(state_root: Hash, proof: AccountProof) -> None:
    """Raise InvalidProof unless every value in `proof` is the one under `state_root`."""
    value = check_trie_proof(state_root, keccak(proof.address), proof.proof)
    try:
        account = decode_account(value)
    except MissingState as error:
        raise InvalidProof("the leaf is not an account") from error
    if account != proof.account:
        raise InvalidProof("the account differs from the proven one")
    for item in proof.storage:
        leaf = check_trie_proof(account.storage_root, _compute_slot_key(item.slot), item.proof)
        if _decode_word(leaf) != item.value:
            raise InvalidProof(f"the value of slot {item.slot:#x} differs from the proven one")


def encode_account(account: Account) -> bytes:
    """Return the leaf of the state trie."""
    return encode_rlp([account.nonce, account.balance, account.storage_root, account.code_hash])


def _compute_slot_key(slot: int) -> bytes:
    return keccak(slot.to_bytes(32, "big"))


def decode_account(leaf: bytes | None) -> Account:
    """Return what a leaf of the state trie says. Raises MissingState."""
    if leaf is None:
        return Account()
    try:
        fields = read_list(decode_rlp(leaf), 4)
        return Account(
            nonce=read_int(fields[0], 64),
            balance=read_int(fields[1], 256),
            storage_root=Hash(read_bytes(fields[2], 32)),
            code_hash=Hash(read_bytes(fields[3], 32)),
        )
    except InvalidEncoding as error:
        raise MissingState(keccak(leaf)) from error


def _decode_word(leaf: bytes | None) -> int:
    if leaf is None:
        return 0
    try:
        return read_int(decode_rlp(leaf), 256)
    except InvalidEncoding as error:
        raise MissingState(keccak(leaf)) from error

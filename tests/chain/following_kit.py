"""Blocks that nobody executed, of several epochs, and certificates of real validators for them."""

from collections.abc import Iterable
from dataclasses import replace
from functools import cache

from steelyard.chain import bls
from steelyard.chain.block import Block, Extension, Header, compute_extension_hash
from steelyard.chain.consensus.certificates import (
    Certificate,
    build_certificate,
    encode_bitmap,
)
from steelyard.chain.consensus.votes import Kind, Statement, Vote, compute_signing_root
from steelyard.chain.epochs import EpochSet, get_genesis_set
from steelyard.chain.trie import EMPTY_ROOT
from steelyard.chain.types import Address, Domain, Epoch, Hash, Height, View

from .evm_kit import DOMAIN, make_genesis, make_validator

SECRETS = [bls.derive_secret_key(bytes([number + 1]) * 32) for number in range(8)]
ROOT = Header(
    parent_hash=Hash(bytes(32)),
    coinbase=Address(bytes(20)),
    state_root=EMPTY_ROOT,
    transactions_root=EMPTY_ROOT,
    receipts_root=EMPTY_ROOT,
    bloom=bytes(256),
    height=Height(0),
    gas_limit=30_000_000,
    gas_used=0,
    timestamp=1_000,
    prev_randao=Hash(bytes(32)),
    base_fee=10**9,
    withdrawals_root=EMPTY_ROOT,
    parent_beacon_block_root=Hash(bytes(32)),
)


@cache
def make_set(epoch: int, *numbers: int) -> EpochSet:
    """Return the set of an epoch: the validators with these numbers."""
    genesis = make_genesis(validators=tuple(make_validator(number) for number in numbers))
    return replace(get_genesis_set(genesis), epoch=Epoch(epoch))


FOUR = make_set(0, 0, 1, 2, 3)
OTHERS = make_set(1, 4, 5, 6, 7)


def make_child(parent: Header, current: EpochSet, following: EpochSet | None = None) -> Block:
    """Return an empty block after `parent`; `following` is the set that it names."""
    named = (following or current).hash
    extension = Extension(current.epoch, View(parent.height + 1), Address(bytes(20)), named)
    header = replace(
        ROOT,
        parent_hash=parent.hash,
        height=Height(parent.height + 1),
        parent_beacon_block_root=compute_extension_hash(extension),
    )
    return Block(header, extension)


def make_blocks(count: int, current: EpochSet = FOUR, head: Header = ROOT) -> list[Block]:
    blocks: list[Block] = []
    for _ in range(count):
        blocks.append(make_child(blocks[-1].header if blocks else head, current))
    return blocks


def certify(
    block_hash: Hash,
    signers: Iterable[int] = (0, 1, 2),
    *,
    current: EpochSet = FOUR,
    kind: Kind = Kind.FINALIZE,
    domain: Domain = DOMAIN,
    numbers: tuple[int, ...] = (0, 1, 2, 3),
) -> Certificate:
    """Return a certificate by the validators with these numbers, at the places of `signers`.

    With too few signers it has no quorum.
    """
    statement = Statement(current.epoch, View(9), kind, block_hash)
    root = compute_signing_root(statement, domain)
    votes = [Vote(statement, place, bls.sign(SECRETS[numbers[place]], root)) for place in signers]
    if current.validators.has_quorum(vote.signer for vote in votes):
        return build_certificate(votes, current.validators)
    signature = bls.aggregate_signatures([vote.signature for vote in votes])
    bitmap = encode_bitmap([vote.signer for vote in votes], len(current.validators))
    return Certificate(statement, bitmap, signature)

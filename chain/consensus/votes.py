"""Votes: what a validator signs, the bytes of it, and which two votes may never be signed.

A *statement* says what is voted: epoch, view, kind and block hash. Signed, it is a *vote*. The
rule about pairs, `find_offence`, is used three times: by the core before it votes, by the signer's
database before it signs, and by whoever slashes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final, Self

import rlp
from eth_utils.crypto import keccak

from ..bls import DEFAULT, SIGNATURE_BYTES, Backend, Signature, verify
from ..errors import InvalidVote
from ..types import Domain, Epoch, Hash, View
from .validators import ValidatorSet

VOTE_TAG: Final = b"steelyard-vote-1"
NO_HASH: Final = Hash(bytes(32))
MAX_VOTE_BYTES: Final = 192
MAX_NUMBER: Final = 2**64 - 1
HASH_BYTES: Final = 32


class Kind(IntEnum):
    """NOTARIZE: valid, and I have all of it. NULLIFY: give up this view. FINALIZE: keep it."""

    NOTARIZE = 1
    NULLIFY = 2
    FINALIZE = 3


class Offence(StrEnum):
    """Why two votes of one validator in one view prove that it cheated (rule 11)."""

    TWO_NOTARIZATIONS = "two_notarizations"
    TWO_FINALIZATIONS = "two_finalizations"
    FINALIZED_AND_NULLIFIED = "finalized_and_nullified"
    FINALIZED_ANOTHER = "finalized_another"


@dataclass(frozen=True, slots=True, order=True)
class Statement:
    """What a vote says. `hash` is the block's, or `NO_HASH` to nullify. Raises InvalidVote."""

    epoch: Epoch
    view: View
    kind: Kind
    hash: Hash

    def __post_init__(self) -> None:
        if not (0 <= self.epoch <= MAX_NUMBER and 1 <= self.view <= MAX_NUMBER):
            raise InvalidVote("vote_number", "epoch and view are 64-bit, and views start at 1")
        if len(self.hash) != HASH_BYTES:
            raise InvalidVote("vote_hash", f"a block hash has 32 bytes, not {len(self.hash)}")
        if (self.kind == Kind.NULLIFY) != (self.hash == NO_HASH):
            raise InvalidVote("vote_hash", "a vote names a block, except one that nullifies")


@dataclass(frozen=True, slots=True)
class Vote:
    """A statement signed by the validator at place `signer` of the epoch's set."""

    statement: Statement
    signer: int
    signature: Signature


def compute_signing_root(statement: Statement, domain: Domain) -> bytes:
    """Return the 32 bytes that are signed (docs/protocol.md, section 8)."""
    assert len(domain) == HASH_BYTES
    place = b"".join(number.to_bytes(8, "big") for number in (statement.epoch, statement.view))
    kind = int(statement.kind).to_bytes(1, "big")
    return bytes(keccak(VOTE_TAG + domain + place + kind + statement.hash))


def check_vote(
    vote: Vote, validators: ValidatorSet, domain: Domain, backend: Backend = DEFAULT
) -> None:
    """Check the signer's place and signature. Raises InvalidVote.

    `validators` must be the set of the vote's epoch.
    """
    if not 0 <= vote.signer < len(validators):
        raise InvalidVote("vote_signer", f"there is no validator {vote.signer} in this epoch")
    root = compute_signing_root(vote.statement, domain)
    if not verify(validators[vote.signer].key, root, vote.signature, backend):
        raise InvalidVote("vote_signature", f"validator {vote.signer} did not sign this vote")


def find_offence(first: Statement, second: Statement) -> Offence | None:
    """Return why one validator may never sign both, or None. The order does not matter.

    Notarize and nullify in one view are fine: the block was good, its certificate late.
    """
    if (first.epoch, first.view) != (second.epoch, second.view):
        return None
    early, late = sorted((first, second))
    kinds = (early.kind, late.kind)
    if kinds == (Kind.NULLIFY, Kind.FINALIZE):
        return Offence.FINALIZED_AND_NULLIFIED
    if early.hash == late.hash:
        return None
    return {
        (Kind.NOTARIZE, Kind.NOTARIZE): Offence.TWO_NOTARIZATIONS,
        (Kind.FINALIZE, Kind.FINALIZE): Offence.TWO_FINALIZATIONS,
        (Kind.NOTARIZE, Kind.FINALIZE): Offence.FINALIZED_ANOTHER,
    }.get(kinds)


def check_signable(statement: Statement, earlier: Iterable[Statement]) -> None:
    """Check that nothing signed earlier forbids this statement. Raises InvalidVote.

    `earlier` is everything signed in the same epoch and view, or more. Signing the same again is
    allowed; notarizing after giving up is not, though nobody else could prove it (rule 4).
    """
    signed = tuple(earlier)
    if statement in signed:
        return
    for before in signed:
        offence = find_offence(before, statement)
        if offence is not None:
            raise InvalidVote("vote_conflict", f"{offence} in view {statement.view}, refused")
        same_view = (before.epoch, before.view) == (statement.epoch, statement.view)
        if same_view and (before.kind, statement.kind) == (Kind.NULLIFY, Kind.NOTARIZE):
            raise InvalidVote("vote_late", f"view {statement.view} was given up already")


def encode_vote(vote: Vote) -> bytes:
    """Return `rlp([epoch, view, kind, hash, signer, signature])`."""
    said = vote.statement
    row = [said.epoch, said.view, int(said.kind), said.hash, vote.signer, vote.signature]
    return bytes(rlp.encode(row))


def decode_vote(data: bytes) -> Vote:
    """Return the vote in these bytes; its signature is not checked. Raises InvalidVote."""
    fields = Fields.decode(data, 6, MAX_VOTE_BYTES)
    statement = fields.get_statement()
    signature = fields.get_bytes(5)
    if len(signature) != SIGNATURE_BYTES:
        raise InvalidVote("vote_malformed", f"a signature has 96 bytes, not {len(signature)}")
    return Vote(statement, fields.get_number(4), Signature(signature))


@dataclass(frozen=True, slots=True)
class Fields:
    """A bounded RLP list of byte strings, read by place. Everything raises InvalidVote."""

    items: tuple[bytes, ...]

    @classmethod
    def decode(cls, data: bytes, count: int, limit: int) -> Self:
        """Read a list of exactly `count` strings from at most `limit` bytes."""
        if len(data) > limit:
            raise InvalidVote("vote_malformed", f"{len(data)} bytes are more than {limit}")
        try:
            items: object = rlp.decode(bytes(data))
        except rlp.exceptions.RLPException as error:
            raise InvalidVote("vote_malformed", f"not canonical RLP: {error}") from error
        if not isinstance(items, list) or len(items) != count:
            raise InvalidVote("vote_malformed", f"not a list of {count} items")
        if not all(isinstance(item, bytes) for item in items):
            raise InvalidVote("vote_malformed", "an item is a list")
        return cls(tuple(items))

    def get_bytes(self, place: int) -> bytes:
        return self.items[place]

    def get_number(self, place: int) -> int:
        """Return an unsigned 64-bit number, which has no leading zeros."""
        item = self.items[place]
        if len(item) > 8 or item[:1] == b"\0":
            raise InvalidVote("vote_malformed", f"item {place} is not a canonical 64-bit number")
        return int.from_bytes(item, "big")

    def get_statement(self) -> Statement:
        """Return the statement that votes and certificates begin with."""
        epoch, view, kind = (self.get_number(place) for place in range(3))
        if kind not in set(Kind):
            raise InvalidVote("vote_kind", f"{kind} is not a kind of vote")
        return Statement(Epoch(epoch), View(view), Kind(kind), Hash(self.get_bytes(3)))

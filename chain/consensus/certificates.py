"""Certificates: one aggregate signature that a quorum made the same statement.

A *notarization* proves that a quorum held the block and found it valid, a *nullification* that a
quorum gave up the view, a *finalization* that the block and all before it stay. A certificate is
checked against the validator set of its epoch and needs nothing else.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import rlp

from ..bls import (
    DEFAULT,
    SIGNATURE_BYTES,
    Backend,
    Signature,
    aggregate_signatures,
    fast_aggregate_verify,
)
from ..errors import InvalidVote
from ..params import MAX_VALIDATORS
from ..types import Domain, Epoch, Hash, View
from .validators import ValidatorSet
from .votes import Fields, Kind, Statement, Vote, compute_signing_root

MAX_BITMAP_BYTES: Final = (MAX_VALIDATORS + 7) // 8
MAX_CERTIFICATE_BYTES: Final = 192 + MAX_BITMAP_BYTES


@dataclass(frozen=True, slots=True)
class Certificate:
    """A statement, who signed it (bit i%8 of byte i//8 is validator i) and the aggregate."""

    statement: Statement
    bitmap: bytes
    signature: Signature

    @property
    def epoch(self) -> Epoch:
        return self.statement.epoch

    @property
    def view(self) -> View:
        return self.statement.view

    @property
    def kind(self) -> Kind:
        return self.statement.kind

    @property
    def hash(self) -> Hash:
        """The block's hash; zero in a nullification."""
        return self.statement.hash


def encode_bitmap(signers: Iterable[int], count: int) -> bytes:
    """Return the bitmap of `signers` among `count` validators."""
    bits = 0
    for signer in signers:
        assert 0 <= signer < count, "a signer outside the set"
        bits |= 1 << signer
    return bits.to_bytes((count + 7) // 8, "little")


def decode_bitmap(bitmap: bytes, count: int) -> tuple[int, ...]:
    """Return the places of the bits, ascending. Raises InvalidVote if it is not for `count`."""
    bits = int.from_bytes(bitmap, "little")
    if len(bitmap) != (count + 7) // 8 or bits >> count:
        raise InvalidVote("certificate_bitmap", f"the bitmap is not one of {count} validators")
    return tuple(place for place in range(count) if bits >> place & 1)


def build_certificate(
    votes: Iterable[Vote], validators: ValidatorSet, backend: Backend = DEFAULT
) -> Certificate:
    """Return the certificate of checked votes, all with the same statement, that have a quorum.

    The caller checked every vote: only then is the aggregate good.
    """
    by_signer = {vote.signer: vote for vote in votes}
    ordered = [by_signer[signer] for signer in sorted(by_signer)]
    assert validators.has_quorum(by_signer), "a certificate needs a quorum"
    assert len({vote.statement for vote in ordered}) == 1, "votes for different things"
    signature = aggregate_signatures([vote.signature for vote in ordered], backend)
    bitmap = encode_bitmap(by_signer, len(validators))
    return Certificate(ordered[0].statement, bitmap, signature)


def check_certificate(
    certificate: Certificate, validators: ValidatorSet, domain: Domain, backend: Backend = DEFAULT
) -> None:
    """Check bitmap, quorum and aggregate signature. Raises InvalidVote.

    `validators` must be the set of the certificate's epoch, each with a proof of possession.
    """
    signers = decode_bitmap(certificate.bitmap, len(validators))
    if not validators.has_quorum(signers):
        power, needed = validators.get_power(signers), validators.quorum
        raise InvalidVote("certificate_quorum", f"power {power} signed, a quorum is {needed}")
    keys = [validators[signer].key for signer in signers]
    root = compute_signing_root(certificate.statement, domain)
    if not fast_aggregate_verify(keys, root, certificate.signature, backend):
        raise InvalidVote("certificate_signature", "the signers in the bitmap did not sign this")


def encode_certificate(certificate: Certificate) -> bytes:
    """Return `rlp([epoch, view, kind, hash, bitmap, signature])`."""
    said = certificate.statement
    row = [said.epoch, said.view, int(said.kind), said.hash]
    return bytes(rlp.encode([*row, certificate.bitmap, certificate.signature]))


def decode_certificate(data: bytes) -> Certificate:
    """Return the certificate in these bytes; nothing is verified yet. Raises InvalidVote."""
    fields = Fields.decode(data, 6, MAX_CERTIFICATE_BYTES)
    statement = fields.get_statement()
    bitmap, signature = fields.get_bytes(4), fields.get_bytes(5)
    if not 1 <= len(bitmap) <= MAX_BITMAP_BYTES or len(signature) != SIGNATURE_BYTES:
        raise InvalidVote("vote_malformed", "the bitmap or the signature has a wrong length")
    return Certificate(statement, bitmap, Signature(signature))

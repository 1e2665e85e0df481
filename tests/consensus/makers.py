"""What tests of consensus are made of: cheap signatures, validators, votes, blocks."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

from steelyard.chain.bls import PublicKey, SecretKey, Signature
from steelyard.chain.consensus.messages import (
    Candidate,
    Proposal,
)
from steelyard.chain.consensus.simplex import Settings
from steelyard.chain.consensus.validators import Validator, ValidatorSet
from steelyard.chain.consensus.votes import (
    NO_HASH,
    Kind,
    Statement,
    Vote,
    compute_signing_root,
)
from steelyard.chain.types import Address, Domain, Epoch, Hash, Height, Power, View

DOMAIN = Domain(b"\x07" * 32)
EPOCH = Epoch(3)
TIMEOUT_MS = 1000
NO_END = 10**9
"""Height of a boundary that no run reaches."""


class XorBackend:
    """Signatures that a test can make by the thousand: a hash per key, added up with XOR."""

    def compute_public_key(self, secret: SecretKey) -> bytes:
        return hashlib.sha384(secret.to_bytes(32, "big")).digest()

    def sign(self, secret: SecretKey, message: bytes, tag: bytes) -> bytes:
        return self._expect(self.compute_public_key(secret), message)

    def is_key(self, key: bytes) -> bool:
        return True

    def aggregate(self, signatures: Sequence[bytes]) -> bytes | None:
        total = 0
        for signature in signatures:
            total ^= int.from_bytes(signature, "big")
        return total.to_bytes(96, "big")

    def verify(self, keys: Sequence[bytes], message: bytes, signature: bytes, tag: bytes) -> bool:
        return signature == self.aggregate([self._expect(key, message) for key in keys])

    @staticmethod
    @lru_cache(maxsize=10_000)
    def _expect(key: bytes, message: bytes) -> bytes:
        return hashlib.sha384(b"a" + key + message).digest() + hashlib.sha384(key).digest()


BACKEND = XorBackend()


def make_validator(account: int, power: int) -> Validator:
    key = PublicKey(BACKEND.compute_public_key(make_secret(account)))
    return Validator(Address(bytes([account + 1]) * 20), key, Power(power))


def make_validators(powers: Sequence[int]) -> ValidatorSet:
    return ValidatorSet(tuple(make_validator(*pair) for pair in enumerate(powers)))


def make_secret(index: int) -> SecretKey:
    return SecretKey(1000 + index)


def make_settings(powers: Sequence[int] = (1, 1, 1, 1), me: int | None = 0, **other) -> Settings:  # type: ignore[no-untyped-def]
    values = {"timeout_ms": TIMEOUT_MS, "heartbeat_ms": 100} | other
    return Settings(
        DOMAIN,
        EPOCH,
        Height(values.pop("last_height", NO_END)),
        make_validators(powers),
        me,
        backend=BACKEND,
        **values,
    )


ROOT = Candidate(
    Hash(b"\x11" * 32), Hash(bytes(32)), Height(40), Epoch(2), View(99), Address(bytes(20))
)


def make_vote(
    signer: int, view: int, kind: Kind, block: bytes = NO_HASH, domain: Domain = DOMAIN
) -> Vote:
    statement = Statement(EPOCH, View(view), kind, Hash(block))
    root = compute_signing_root(statement, domain)
    return Vote(statement, signer, Signature(BACKEND.sign(make_secret(signer), root, b"")))


def make_block(
    validators: ValidatorSet,
    parent: Candidate,
    view: int,
    salt: bytes = b"",
    epoch: Epoch = EPOCH,
) -> Candidate:
    proposer = validators[validators.get_leader(epoch, View(view))].address
    digest = hashlib.sha256(parent.hash + view.to_bytes(8, "big") + salt).digest()
    return Candidate(
        Hash(digest), parent.hash, Height(parent.height + 1), epoch, View(view), proposer
    )


def make_proposal(validators: ValidatorSet, block: Candidate) -> Proposal:
    leader = validators.get_leader(EPOCH, block.view)
    return Proposal(block, make_vote(leader, block.view, Kind.NOTARIZE, block.hash))

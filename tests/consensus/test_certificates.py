"""Certificates: their bytes, and everything that makes one worthless."""

from dataclasses import replace

import pytest
import rlp
from hypothesis import given
from hypothesis import strategies as st

from steelyard.chain import bls
from steelyard.chain.consensus.certificates import (
    MAX_CERTIFICATE_BYTES,
    Certificate,
    build_certificate,
    check_certificate,
    decode_bitmap,
    decode_certificate,
    encode_bitmap,
    encode_certificate,
)
from steelyard.chain.consensus.validators import Validator, ValidatorSet
from steelyard.chain.consensus.votes import (
    NO_HASH,
    Kind,
    Statement,
    Vote,
    compute_signing_root,
)
from steelyard.chain.errors import InvalidVote
from steelyard.chain.params import MAX_VALIDATORS
from steelyard.chain.types import Domain

DOMAIN, OTHER_DOMAIN = Domain(b"\x09" * 32), Domain(b"\x0a" * 32)
SECRETS = [bls.derive_secret_key(bytes([i + 1]) * 32) for i in range(4)]
SET = ValidatorSet(
    tuple(
        Validator(bytes([i]) * 20, bls.compute_public_key(secret), 1)
        for i, secret in enumerate(SECRETS)
    )
)
BLOCK = b"\xaa" * 32
SAID = Statement(1, 5, Kind.FINALIZE, BLOCK)


def sign(signer: int, statement: Statement = SAID) -> Vote:
    return Vote(
        statement, signer, bls.sign(SECRETS[signer], compute_signing_root(statement, DOMAIN))
    )


GOOD = build_certificate([sign(3), sign(0), sign(2)], SET)


def encode_row(**changes: object) -> bytes:
    row = {"epoch": 1, "view": 5, "kind": 3, "hash": BLOCK, "bits": b"\x0d", "sum": bytes(96)}
    return rlp.encode(list((row | changes).values()))


def test_a_certificate_survives_encoding_and_is_good() -> None:
    assert decode_certificate(encode_certificate(GOOD)) == GOOD
    check_certificate(GOOD, SET, DOMAIN)


def test_a_certificate_does_not_depend_on_the_order_of_the_votes() -> None:
    assert build_certificate([sign(0), sign(2), sign(3)], SET) == GOOD
    assert GOOD.bitmap == b"\x0d"


def test_all_signers_may_be_there() -> None:
    check_certificate(build_certificate([sign(i) for i in range(4)], SET), SET, DOMAIN)


def test_one_validator_is_its_own_quorum() -> None:
    alone = ValidatorSet(SET.validators[:1])
    certificate = build_certificate([sign(0)], alone)
    check_certificate(certificate, alone, DOMAIN)
    assert certificate.signature == sign(0).signature


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"bitmap": b"\x05"}, "certificate_quorum"),
        ({"bitmap": b"\x00"}, "certificate_quorum"),
        ({"bitmap": b"\x1d"}, "certificate_bitmap"),
        ({"bitmap": b"\x0d\x00"}, "certificate_bitmap"),
        ({"bitmap": b""}, "certificate_bitmap"),
        ({"bitmap": b"\x0e"}, "certificate_signature"),
        ({"bitmap": b"\x0f"}, "certificate_signature"),
        ({"signature": sign(0).signature}, "certificate_signature"),
        ({"signature": bls.INFINITY_SIGNATURE}, "certificate_signature"),
        ({"signature": bytes(96)}, "certificate_signature"),
        ({"statement": replace(SAID, epoch=2)}, "certificate_signature"),
        ({"statement": replace(SAID, view=6)}, "certificate_signature"),
        ({"statement": replace(SAID, kind=Kind.NOTARIZE)}, "certificate_signature"),
        ({"statement": replace(SAID, hash=b"\xbb" * 32)}, "certificate_signature"),
    ],
)
def test_a_changed_certificate_is_refused(change: dict, code: str) -> None:
    with pytest.raises(InvalidVote, match=code):
        check_certificate(replace(GOOD, **change), SET, DOMAIN)


def test_a_certificate_under_another_genesis_is_refused() -> None:
    with pytest.raises(InvalidVote, match="certificate_signature"):
        check_certificate(GOOD, SET, OTHER_DOMAIN)


def test_a_certificate_of_another_set_is_refused() -> None:
    other = ValidatorSet((*SET.validators[1:], SET.validators[0]))
    with pytest.raises(InvalidVote, match="certificate_signature"):
        check_certificate(GOOD, other, DOMAIN)


def test_power_that_moved_away_makes_no_quorum() -> None:
    rich = replace(SET.validators[1], power=2)
    heavier = ValidatorSet((SET.validators[0], rich, *SET.validators[2:]))
    with pytest.raises(InvalidVote, match="certificate_quorum"):
        check_certificate(GOOD, heavier, DOMAIN)


def test_too_few_votes_or_votes_for_two_things_are_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="quorum"):
        build_certificate([sign(0), sign(1), sign(1)], SET)
    nullify = Statement(1, 5, Kind.NULLIFY, NO_HASH)
    with pytest.raises(AssertionError, match="different"):
        build_certificate([sign(0), sign(1), sign(2, nullify)], SET)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "vote_malformed"),
        (bytes(MAX_CERTIFICATE_BYTES + 1), "vote_malformed"),
        (encode_row() + b"\0", "vote_malformed"),
        (encode_row(bits=b""), "vote_malformed"),
        (encode_row(bits=bytes(MAX_VALIDATORS // 8 + 1)), "vote_malformed"),
        (encode_row(sum=bytes(95)), "vote_malformed"),
        (encode_row(view=b"\0\1"), "vote_malformed"),
        (encode_row(kind=9), "vote_kind"),
        (encode_row(kind=2), "vote_hash"),
        (encode_row(view=0), "vote_number"),
    ],
)
def test_bytes_that_are_no_certificate_are_refused(data: bytes, code: str) -> None:
    with pytest.raises(InvalidVote, match=code):
        decode_certificate(data)


@given(st.binary(max_size=300))
def test_no_bytes_make_decoding_fail_otherwise(data: bytes) -> None:
    try:
        certificate = decode_certificate(data)
    except InvalidVote:
        return
    assert encode_certificate(certificate) == data


@given(
    st.integers(1, MAX_VALIDATORS).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))
    )
)
def test_bitmaps_survive_encoding(case: tuple[int, set[int]]) -> None:
    count, signers = case
    assert decode_bitmap(encode_bitmap(signers, count), count) == tuple(sorted(signers))


def test_the_largest_certificate_fits() -> None:
    said = Statement(2**64 - 1, 2**64 - 1, Kind.FINALIZE, BLOCK)
    bitmap = b"\xff" * (MAX_VALIDATORS // 8)
    largest = encode_certificate(Certificate(said, bitmap, bls.Signature(bytes(96))))
    assert decode_certificate(largest).bitmap == bitmap

"""Votes: their bytes, what is signed, what is refused, and which pairs are offences."""

from itertools import product

import pytest
import rlp
from eth_utils import keccak
from hypothesis import given
from hypothesis import strategies as st

from steelyard.chain import bls
from steelyard.chain.consensus.validators import Validator, ValidatorSet
from steelyard.chain.consensus.votes import (
    MAX_VOTE_BYTES,
    NO_HASH,
    Kind,
    Offence,
    Statement,
    Vote,
    check_signable,
    check_vote,
    compute_signing_root,
    decode_vote,
    encode_vote,
    find_offence,
)
from steelyard.chain.errors import InvalidVote
from steelyard.chain.types import Domain

DOMAIN, OTHER_DOMAIN = Domain(b"\x07" * 32), Domain(b"\x08" * 32)
SECRETS = [bls.derive_secret_key(bytes([i + 1]) * 32) for i in range(2)]
SET = ValidatorSet(
    tuple(
        Validator(bytes([i]) * 20, bls.compute_public_key(secret), 1)
        for i, secret in enumerate(SECRETS)
    )
)
A, B = b"\xaa" * 32, b"\xbb" * 32
NOTARIZE_A = Statement(1, 5, Kind.NOTARIZE, A)
NOTARIZE_B = Statement(1, 5, Kind.NOTARIZE, B)
NULLIFY = Statement(1, 5, Kind.NULLIFY, NO_HASH)
FINALIZE_A = Statement(1, 5, Kind.FINALIZE, A)
FINALIZE_B = Statement(1, 5, Kind.FINALIZE, B)


def sign(statement: Statement, signer: int = 0, domain: Domain = DOMAIN) -> Vote:
    return Vote(
        statement, signer, bls.sign(SECRETS[signer], compute_signing_root(statement, domain))
    )


def encode_row(**changes: object) -> bytes:
    row = {"epoch": 1, "view": 5, "kind": 1, "hash": A, "signer": 0, "signature": bytes(96)}
    return rlp.encode(list((row | changes).values()))


def test_a_vote_survives_encoding() -> None:
    vote = sign(NOTARIZE_A, 1)
    assert decode_vote(encode_vote(vote)) == vote
    check_vote(decode_vote(encode_vote(vote)), SET, DOMAIN)


def test_what_is_signed_is_what_the_protocol_says() -> None:
    place = (1).to_bytes(8, "big") + (5).to_bytes(8, "big")
    packed = b"steelyard-vote-1" + DOMAIN + place + b"\x01" + A
    assert compute_signing_root(NOTARIZE_A, DOMAIN) == keccak(packed)


def test_a_vote_counts_under_its_own_genesis_only() -> None:
    with pytest.raises(InvalidVote, match="vote_signature"):
        check_vote(sign(NOTARIZE_A, domain=OTHER_DOMAIN), SET, DOMAIN)


@pytest.mark.parametrize(
    "other",
    [
        Statement(2, 5, Kind.NOTARIZE, A),
        Statement(1, 6, Kind.NOTARIZE, A),
        FINALIZE_A,
        NOTARIZE_B,
        NULLIFY,
    ],
)
def test_a_signature_covers_epoch_view_kind_and_hash(other: Statement) -> None:
    with pytest.raises(InvalidVote, match="vote_signature"):
        check_vote(Vote(other, 0, sign(NOTARIZE_A).signature), SET, DOMAIN)


def test_a_vote_under_anothers_name_is_refused() -> None:
    with pytest.raises(InvalidVote, match="vote_signature"):
        check_vote(Vote(NOTARIZE_A, 1, sign(NOTARIZE_A, 0).signature), SET, DOMAIN)


@pytest.mark.parametrize("signer", [-1, 2, 10**9])
def test_a_vote_of_nobody_is_refused(signer: int) -> None:
    with pytest.raises(InvalidVote, match="vote_signer"):
        check_vote(Vote(NOTARIZE_A, signer, sign(NOTARIZE_A).signature), SET, DOMAIN)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "vote_malformed"),
        (b"\xc0", "vote_malformed"),
        (b"\x80", "vote_malformed"),
        (encode_row() + b"\0", "vote_malformed"),
        (encode_row()[:-1], "vote_malformed"),
        (bytes(MAX_VOTE_BYTES + 1), "vote_malformed"),
        (b"\xc1" * MAX_VOTE_BYTES, "vote_malformed"),
        (encode_row(epoch=b"\x00\x01"), "vote_malformed"),
        (encode_row(view=b"\x00"), "vote_malformed"),
        (encode_row(view=2**64), "vote_malformed"),
        (encode_row(signer=[]), "vote_malformed"),
        (encode_row(signature=bytes(95)), "vote_malformed"),
        (encode_row(view=0), "vote_number"),
        (encode_row(kind=0), "vote_kind"),
        (encode_row(kind=4), "vote_kind"),
        (encode_row(hash=bytes(31)), "vote_hash"),
        (encode_row(hash=NO_HASH), "vote_hash"),
        (encode_row(kind=3, hash=NO_HASH), "vote_hash"),
        (encode_row(kind=2), "vote_hash"),
    ],
)
def test_bytes_that_are_no_vote_are_refused(data: bytes, code: str) -> None:
    with pytest.raises(InvalidVote, match=code):
        decode_vote(data)


@given(st.binary(max_size=300))
def test_no_bytes_make_decoding_fail_otherwise(data: bytes) -> None:
    try:
        vote = decode_vote(data)
    except InvalidVote:
        return
    assert encode_vote(vote) == data


@pytest.mark.parametrize(
    ("first", "second", "offence"),
    [
        (NOTARIZE_A, NOTARIZE_B, Offence.TWO_NOTARIZATIONS),
        (FINALIZE_A, FINALIZE_B, Offence.TWO_FINALIZATIONS),
        (FINALIZE_A, NULLIFY, Offence.FINALIZED_AND_NULLIFIED),
        (FINALIZE_A, NOTARIZE_B, Offence.FINALIZED_ANOTHER),
    ],
)
def test_these_pairs_are_offences_in_either_order(
    first: Statement, second: Statement, offence: Offence
) -> None:
    assert find_offence(first, second) == find_offence(second, first) == offence
    for earlier, later in ((first, second), (second, first)):
        with pytest.raises(InvalidVote, match="vote_conflict"):
            check_signable(later, [earlier])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (NOTARIZE_A, NOTARIZE_A),
        (NOTARIZE_A, FINALIZE_A),
        (NOTARIZE_A, NULLIFY),
        (NOTARIZE_A, Statement(1, 6, Kind.NOTARIZE, B)),
        (NOTARIZE_A, Statement(2, 5, Kind.NOTARIZE, B)),
        (FINALIZE_A, Statement(1, 6, Kind.NULLIFY, NO_HASH)),
    ],
)
def test_these_pairs_are_honest(first: Statement, second: Statement) -> None:
    assert find_offence(first, second) is None
    check_signable(second, [first])


def test_every_pair_in_one_view_is_decided() -> None:
    """At most one notarize, one finalize, and never finalize with nullify: all 25 pairs."""
    said = [NOTARIZE_A, NOTARIZE_B, NULLIFY, FINALIZE_A, FINALIZE_B]
    honest = {(a, b) for a, b in product(said, said) if find_offence(a, b) is None}
    same = {(statement, statement) for statement in said}
    fine = {(NOTARIZE_A, FINALIZE_A), (NOTARIZE_B, FINALIZE_B)}
    fine |= {(NOTARIZE_A, NULLIFY), (NOTARIZE_B, NULLIFY)}
    assert honest == same | fine | {(b, a) for a, b in fine}


def test_giving_up_and_then_notarizing_is_refused() -> None:
    with pytest.raises(InvalidVote, match="vote_late"):
        check_signable(NOTARIZE_A, [NULLIFY])


def test_signing_the_same_again_is_allowed_whatever_came_between() -> None:
    check_signable(NOTARIZE_A, [NOTARIZE_A, NULLIFY])

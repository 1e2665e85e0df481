"""BLS: the standard vectors on both backends, and what must never be accepted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.chain import bls
from steelyard.chain.bls import Pyblst, PyEcc
from steelyard.chain.errors import InvalidKey, InvalidVote

VECTORS = json.loads((Path(__file__).parent.parent / "data" / "bls12-381.json").read_text())
FAST, SLOW = Pyblst(), PyEcc()
MESSAGE = b"\x42" * 32
SECRETS = [bls.derive_secret_key(bytes([i]) * 32) for i in range(4)]
KEYS = [bls.compute_public_key(secret) for secret in SECRETS]
SIGNATURES = [bls.sign(secret, MESSAGE) for secret in SECRETS]

# On the curve, canonical, and outside the subgroup: from the deserialization vectors.
G1_OUTSIDE = VECTORS["deserialization_G1"]["deserialization_fails_not_in_G1"]["input"]["pubkey"]
G2_OUTSIDE = VECTORS["deserialization_G2"]["deserialization_fails_not_in_G2"]["input"]["signature"]


def from_hex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def iter_cases(group: str, sample: int | None = None) -> list[object]:
    """The cases for the fast backend, and a sample of them for the slow one."""
    names = sorted(VECTORS[group])
    slow = names if sample is None else names[:: max(1, len(names) // sample)]
    fast_cases = [pytest.param(FAST, VECTORS[group][n], id=f"pyblst-{n}") for n in names]
    slow_cases = [
        pytest.param(SLOW, VECTORS[group][n], id=f"py_ecc-{n}", marks=pytest.mark.slow)
        for n in slow
    ]
    return [*fast_cases, *slow_cases]


@pytest.mark.parametrize(("backend", "case"), iter_cases("sign", 3))
def test_signatures_are_those_of_the_vectors(backend: bls.Backend, case: dict) -> None:
    secret = int.from_bytes(from_hex(case["input"]["privkey"]), "big")
    if case["output"] is None:
        with pytest.raises(InvalidKey, match="bls_secret"):
            bls.sign(secret, from_hex(case["input"]["message"]), backend)
    else:
        signature = bls.sign(secret, from_hex(case["input"]["message"]), backend)
        assert signature == from_hex(case["output"])


@pytest.mark.parametrize(("backend", "case"), iter_cases("verify", 6))
def test_checks_agree_with_the_vectors(backend: bls.Backend, case: dict) -> None:
    given_ = {name: from_hex(text) for name, text in case["input"].items()}
    answer = bls.verify(given_["pubkey"], given_["message"], given_["signature"], backend)
    assert answer is case["output"]


@pytest.mark.parametrize(("backend", "case"), iter_cases("aggregate", 2))
def test_sums_agree_with_the_vectors(backend: bls.Backend, case: dict) -> None:
    signatures = [from_hex(text) for text in case["input"]]
    if case["output"] is None:
        with pytest.raises(InvalidVote, match="bls_empty"):
            bls.aggregate_signatures(signatures, backend)
    else:
        assert bls.aggregate_signatures(signatures, backend) == from_hex(case["output"])


@pytest.mark.parametrize(("backend", "case"), iter_cases("fast_aggregate_verify", 4))
def test_checks_of_sums_agree_with_the_vectors(backend: bls.Backend, case: dict) -> None:
    keys = [from_hex(text) for text in case["input"]["pubkeys"]]
    message, signature = (from_hex(case["input"][name]) for name in ("message", "signature"))
    assert bls.fast_aggregate_verify(keys, message, signature, backend) is case["output"]


@pytest.mark.parametrize(("backend", "case"), iter_cases("deserialization_G1"))
def test_only_canonical_finite_keys_of_the_subgroup_are_keys(
    backend: bls.Backend, case: dict
) -> None:
    key = from_hex(case["input"]["pubkey"])
    if case["output"] and key != bls.INFINITY_KEY:
        bls.check_public_key(key, backend)
    else:
        with pytest.raises(InvalidKey, match="bls_key"):
            bls.check_public_key(key, backend)


@pytest.mark.parametrize(("backend", "case"), iter_cases("deserialization_G2"))
def test_only_canonical_points_of_the_subgroup_are_added_up(
    backend: bls.Backend, case: dict
) -> None:
    signature = from_hex(case["input"]["signature"])
    if case["output"]:
        assert bls.aggregate_signatures([signature], backend) == signature
    else:
        with pytest.raises(InvalidVote, match="bls_signature"):
            bls.aggregate_signatures([signature, SIGNATURES[0]], backend)


@pytest.mark.parametrize("backend", [FAST, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_points_outside_the_subgroup_verify_nothing(backend: bls.Backend) -> None:
    assert not bls.verify(from_hex(G1_OUTSIDE), MESSAGE, SIGNATURES[0], backend)
    assert not bls.verify(KEYS[0], MESSAGE, from_hex(G2_OUTSIDE), backend)


@pytest.mark.slow
@settings(max_examples=2, deadline=None)
@given(st.integers(1, bls.CURVE_ORDER - 1), st.binary(max_size=64))
def test_both_backends_make_the_same_bytes(secret: int, message: bytes) -> None:
    assert bls.compute_public_key(secret, FAST) == bls.compute_public_key(secret, SLOW)
    assert bls.sign(secret, message, FAST) == bls.sign(secret, message, SLOW)
    assert bls.prove_possession(secret, FAST) == bls.prove_possession(secret, SLOW)


@pytest.mark.slow
def test_both_backends_accept_the_same_sum_and_proof() -> None:
    total = bls.aggregate_signatures(SIGNATURES[:2], SLOW)
    assert total == bls.aggregate_signatures(SIGNATURES[:2], FAST)
    assert bls.fast_aggregate_verify(KEYS[:2], MESSAGE, total, SLOW)
    bls.check_possession(KEYS[0], bls.prove_possession(SECRETS[0]), SLOW)


def test_a_sum_verifies_for_all_its_signers_and_for_no_fewer() -> None:
    total = bls.aggregate_signatures(SIGNATURES)
    assert bls.fast_aggregate_verify(KEYS, MESSAGE, total)
    assert not bls.fast_aggregate_verify(KEYS[:3], MESSAGE, total)
    assert not bls.fast_aggregate_verify([*KEYS, KEYS[0]], MESSAGE, total)
    assert not bls.fast_aggregate_verify(KEYS, b"\x43" * 32, total)


def test_an_empty_list_of_keys_verifies_nothing() -> None:
    assert not bls.fast_aggregate_verify([], MESSAGE, bls.INFINITY_SIGNATURE)
    assert not bls.fast_aggregate_verify([], MESSAGE, SIGNATURES[0])


def test_keys_that_cancel_out_verify_nothing() -> None:
    opposite = bls.compute_public_key(bls.SecretKey(bls.CURVE_ORDER - SECRETS[0]))
    assert not bls.fast_aggregate_verify([KEYS[0], opposite], MESSAGE, bls.INFINITY_SIGNATURE)
    assert not bls.fast_aggregate_verify([KEYS[0], opposite], MESSAGE, SIGNATURES[0])


def test_the_infinity_signature_verifies_nothing() -> None:
    assert not bls.verify(KEYS[0], MESSAGE, bls.INFINITY_SIGNATURE)


@pytest.mark.parametrize("length", [0, 47, 49])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    key = (KEYS[0] + b"\0")[:length]
    assert not bls.verify(key, MESSAGE, SIGNATURES[0])
    with pytest.raises(InvalidKey, match="bls_key"):
        bls.check_public_key(key)


@pytest.mark.parametrize("length", [0, 95, 97])
def test_a_signature_of_another_length_is_refused(length: int) -> None:
    signature = (SIGNATURES[0] + b"\0")[:length]
    assert not bls.verify(KEYS[0], MESSAGE, signature)
    with pytest.raises(InvalidVote, match="bls_signature"):
        bls.aggregate_signatures([signature])


@pytest.mark.parametrize("secret", [0, -1, bls.CURVE_ORDER, bls.CURVE_ORDER + 1])
def test_a_secret_out_of_range_is_refused(secret: int) -> None:
    for use in (bls.compute_public_key, bls.prove_possession):
        with pytest.raises(InvalidKey, match="bls_secret"):
            use(bls.SecretKey(secret))
    with pytest.raises(InvalidKey, match="bls_secret"):
        bls.decode_secret_key(max(secret, 0).to_bytes(32, "big"))


def test_secret_keys_survive_encoding_and_other_lengths_are_refused() -> None:
    assert bls.decode_secret_key(bls.encode_secret_key(SECRETS[1])) == SECRETS[1]
    with pytest.raises(InvalidKey, match="bls_secret"):
        bls.decode_secret_key(bytes(30) + b"\x01")


def test_a_seed_makes_the_key_that_the_draft_says() -> None:
    from py_ecc.bls import G2ProofOfPossession

    assert G2ProofOfPossession.KeyGen(b"\x07" * 40) == bls.derive_secret_key(b"\x07" * 40)


def test_a_short_seed_is_refused() -> None:
    with pytest.raises(InvalidKey, match="bls_seed"):
        bls.derive_secret_key(bytes(31))


def test_possession_is_proven_for_ones_own_key_only() -> None:
    proof = bls.prove_possession(SECRETS[0])
    bls.check_possession(KEYS[0], proof)
    with pytest.raises(InvalidKey, match="bls_possession"):
        bls.check_possession(KEYS[1], proof)


def test_a_signature_over_the_key_is_no_proof_of_possession() -> None:
    with pytest.raises(InvalidKey, match="bls_possession"):
        bls.check_possession(KEYS[0], bls.sign(SECRETS[0], KEYS[0]))


def test_possession_of_the_infinity_key_cannot_be_proven() -> None:
    with pytest.raises(InvalidKey, match="bls_key"):
        bls.check_possession(bls.INFINITY_KEY, bls.INFINITY_SIGNATURE)


def test_without_the_fast_backend_the_reference_takes_over() -> None:
    program = (
        "import sys; sys.modules['pyblst'] = None\n"
        "from steelyard.chain import bls\n"
        "assert isinstance(bls.DEFAULT, bls.PyEcc)\n"
        f"print(bls.compute_public_key({SECRETS[0]}).hex())"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert done.stdout.strip() == KEYS[0].hex()

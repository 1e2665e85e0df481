"""The evidence precompile: what proves a cheat, what proves nothing, and what must not harm it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from eth_abi.abi import decode, encode
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.chain import bls, evidence
from steelyard.chain.consensus.votes import (
    NO_HASH,
    Kind,
    Statement,
    compute_signing_root,
    encode_vote,
)
from steelyard.chain.consensus.votes import Vote as SignedVote
from steelyard.chain.errors import SteelyardError
from steelyard.chain.evidence import SignedStatement, decode_statement, encode_statement
from steelyard.chain.execute import CallRequest
from steelyard.chain.params import (
    EVIDENCE_ADDRESS,
    GAS_CALL,
    GAS_PER_KEY,
    GAS_PER_VERIFICATION,
    MAX_EVIDENCE_BYTES,
)
from steelyard.chain.rlp import encode_rlp
from steelyard.chain.types import Address, Domain, Epoch, Hash, View

from .evm_kit import ADDRESSES, DOMAIN, OTHER_DOMAIN, RETURN_ALL, Chain, call_code

SELECTORS = {name: selector for selector, name in evidence.SELECTORS.items()}
TYPES = ["bytes", "(bytes32,bytes16)[]", "bytes"] * 2
SECRETS = [bls.derive_secret_key(bytes([number + 1]) * 32) for number in range(4)]
KEYS = [bytes(bls.compute_public_key(secret)) for secret in SECRETS]
A, B = Hash(b"\xaa" * 32), Hash(b"\xbb" * 32)


def say(kind: Kind, block: Hash = A, *, epoch: int = 3, view: int = 9) -> Statement:
    return Statement(Epoch(epoch), View(view), kind, NO_HASH if kind == Kind.NULLIFY else block)


FIRST, SECOND = say(Kind.NOTARIZE, A), say(Kind.NOTARIZE, B)


def sign(
    statement: Statement, signers: Sequence[int] = (0,), domain: Domain = DOMAIN
) -> SignedStatement:
    root = compute_signing_root(statement, domain)
    signature = bls.aggregate_signatures([bls.sign(SECRETS[one], root) for one in signers])
    return SignedStatement(
        encode_statement(statement), tuple(KEYS[one] for one in signers), bytes(signature)
    )


def split(key: bytes) -> tuple[bytes, bytes]:
    return key[:32], key[32:]


def list_arguments(*signed: SignedStatement) -> list[Any]:
    return [
        argument
        for one in signed
        for argument in (one.statement, [split(key) for key in one.keys], one.signature)
    ]


def encode_evidence(*signed: SignedStatement) -> bytes:
    return SELECTORS["check_evidence"] + encode(TYPES, list_arguments(*signed))


def encode_possession(key: bytes, proof: bytes) -> bytes:
    return SELECTORS["check_possession"] + encode(["bytes", "bytes"], [key, proof])


class OutOfGas(Exception):
    """What the engine raises."""


@dataclass
class Host:
    gas: int = 10**9
    domain: Domain = DOMAIN

    def consume_gas(self, amount: int, reason: str) -> None:
        if amount > self.gas:
            raise OutOfGas(reason)
        self.gas -= amount


def ask(*signed: SignedStatement) -> tuple[int, ...]:
    return decode(["uint256"] * 3, evidence.call(Host(), encode_evidence(*signed)))


def catch_code(data: bytes, host: Host | None = None) -> str:
    with pytest.raises(SteelyardError) as caught:
        evidence.call(host or Host(), data)
    return caught.value.code


def catch_evidence(*signed: SignedStatement) -> str:
    return catch_code(encode_evidence(*signed))


# -- what proves a cheat ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (say(Kind.NOTARIZE, A), say(Kind.NOTARIZE, B), 1),
        (say(Kind.FINALIZE, A), say(Kind.FINALIZE, B), 2),
        (say(Kind.FINALIZE, A), say(Kind.NULLIFY), 3),
        (say(Kind.NOTARIZE, B), say(Kind.FINALIZE, A), 4),
    ],
)
def test_each_offence_is_told_in_either_order(
    first: Statement, second: Statement, code: int
) -> None:
    assert ask(sign(first), sign(second)) == (code, 3, 9)
    assert ask(sign(second), sign(first)) == (code, 3, 9)


def test_certificates_are_evidence_as_votes_are() -> None:
    assert ask(sign(FIRST, (0, 1, 2)), sign(SECOND, (1, 2, 3))) == (1, 3, 9)


def test_a_statement_is_what_a_vote_begins_with() -> None:
    vote = SignedVote(FIRST, 0, bls.sign(SECRETS[0], compute_signing_root(FIRST, DOMAIN)))
    assert encode_vote(vote)[2:].startswith(encode_statement(FIRST)[1:])
    assert decode_statement(encode_statement(FIRST)) == FIRST


def test_known_bytes() -> None:
    assert {name: selector.hex() for name, selector in SELECTORS.items()} == {
        "check_possession": "c90b8c2c",
        "check_evidence": "2be32887",
    }
    assert encode_statement(FIRST).hex() == "e4030901a0" + "aa" * 32
    assert (
        compute_signing_root(FIRST, DOMAIN).hex()
        == "e52354ebef70f1bee0f25b911ffb1e068a68201698d4a576bf7fc851a2d59785"
    )


def test_the_largest_statement_has_room() -> None:
    largest = Statement(Epoch(2**64 - 1), View(2**64 - 1), Kind.FINALIZE, A)
    assert len(encode_statement(largest)) <= evidence.MAX_STATEMENT_BYTES
    assert decode_statement(encode_statement(largest)) == largest


@pytest.mark.slow
def test_the_fast_backend_and_the_reference_agree_about_a_pair() -> None:
    proof = sign(FIRST)
    root = compute_signing_root(FIRST, DOMAIN)
    for keys in (proof.keys, (KEYS[1],)):
        answers = {
            bls.fast_aggregate_verify(keys, root, proof.signature, backend)
            for backend in (bls.DEFAULT, bls.PyEcc())
        }
        assert answers == {keys == proof.keys}


# -- what proves nothing ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (FIRST, FIRST),
        (say(Kind.NOTARIZE, A), say(Kind.FINALIZE, A)),
        (say(Kind.NOTARIZE, A), say(Kind.NULLIFY)),
        (say(Kind.NULLIFY), say(Kind.NULLIFY)),
        (say(Kind.NOTARIZE, A), say(Kind.NOTARIZE, B, view=10)),
        (say(Kind.FINALIZE, A), say(Kind.FINALIZE, B, epoch=4)),
    ],
)
def test_what_one_may_sign_both_is_no_conflict(first: Statement, second: Statement) -> None:
    assert catch_evidence(sign(first), sign(second)) == "evidence_conflict"


def test_signatures_must_fit_keys_statement_and_chain() -> None:
    first, second = sign(FIRST), sign(SECOND)
    swapped = SignedStatement(first.statement, first.keys, second.signature)
    stranger = SignedStatement(first.statement, (KEYS[1],), first.signature)
    missing = SignedStatement(first.statement, (KEYS[0], KEYS[1]), first.signature)
    unsigned = SignedStatement(first.statement, first.keys, bls.INFINITY_SIGNATURE)
    short = SignedStatement(first.statement, first.keys, first.signature[:95])
    elsewhere = sign(FIRST, domain=OTHER_DOMAIN)
    for bad in (swapped, stranger, missing, unsigned, short, elsewhere):
        assert catch_evidence(bad, second) == "evidence_signature"
        assert catch_evidence(second, bad) == "evidence_signature"


@pytest.mark.parametrize("key", [bls.INFINITY_KEY, bytes(48), b"\xff" * 48, KEYS[0][::-1]])
def test_keys_that_are_no_points_sign_nothing(key: bytes) -> None:
    bad = SignedStatement(encode_statement(FIRST), (key,), bls.INFINITY_SIGNATURE)
    assert catch_evidence(bad, sign(SECOND)) == "evidence_signature"
    worse = SignedStatement(encode_statement(FIRST), (KEYS[0], key), sign(FIRST).signature)
    assert catch_evidence(worse, sign(SECOND)) == "evidence_signature"


def test_a_key_counts_once() -> None:
    assert catch_evidence(sign(FIRST, (0, 0)), sign(SECOND)) == "evidence_repeated"


@pytest.mark.parametrize("count", [0, 65])
def test_there_are_1_to_64_keys(count: int) -> None:
    keys = tuple(bytes([number]) * 48 for number in range(count))
    many = SignedStatement(encode_statement(FIRST), keys, sign(FIRST).signature)
    assert catch_evidence(many, sign(SECOND)) == "evidence_count"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "vote_malformed"),
        (b"\x00", "vote_malformed"),
        (b"\xc0" * 64, "vote_malformed"),
        (encode_statement(FIRST) + b"\0", "vote_malformed"),
        (encode_rlp([3, 9, 1, A, b""]), "vote_malformed"),
        (encode_rlp([3, 9, [1], A]), "vote_malformed"),
        (encode_rlp([b"\0\3", 9, 1, A]), "vote_malformed"),
        (encode_rlp([3, 9, 4, A]), "vote_kind"),
        (encode_rlp([3, 0, 1, A]), "vote_number"),
        (encode_rlp([3, 9, 1, A[:31]]), "vote_hash"),
        (encode_rlp([3, 9, 2, A]), "vote_hash"),
    ],
)
def test_what_is_no_statement_is_refused(data: bytes, code: str) -> None:
    bad = SignedStatement(data, (KEYS[0],), sign(FIRST).signature)
    assert catch_evidence(bad, sign(SECOND)) == code
    assert catch_evidence(sign(SECOND), bad) == code


# -- possession ------------------------------------------------------------------------------------
def test_a_proof_of_possession_is_checked() -> None:
    proof = bls.prove_possession(SECRETS[0])
    assert evidence.call(Host(), encode_possession(KEYS[0], proof)) == (1).to_bytes(32, "big")
    assert catch_code(encode_possession(KEYS[1], proof)) == "bls_possession"
    assert catch_code(encode_possession(KEYS[0], proof[:-1])) == "bls_possession"
    assert catch_code(encode_possession(KEYS[0], bls.sign(SECRETS[0], KEYS[0]))) == "bls_possession"
    for key in (bls.INFINITY_KEY, KEYS[0][:-1], b""):
        assert catch_code(encode_possession(key, bls.INFINITY_SIGNATURE)) == "bls_key"


# -- arguments and gas -----------------------------------------------------------------------------
def test_gas_is_charged_for_each_key_and_verification_before_the_work() -> None:
    data = encode_evidence(sign(FIRST, (0, 1)), sign(SECOND))
    price = GAS_CALL + 3 * GAS_PER_KEY + 2 * GAS_PER_VERIFICATION
    host = Host(gas=price)
    evidence.call(host, data)
    assert host.gas == 0
    broken = SignedStatement(b"", (KEYS[0], KEYS[1]), b"")
    with pytest.raises(OutOfGas):
        evidence.call(Host(gas=price - 1), encode_evidence(broken, sign(SECOND)))
    host = Host()
    evidence.call(host, encode_possession(KEYS[0], bls.prove_possession(SECRETS[0])))
    assert 10**9 - host.gas == GAS_CALL + GAS_PER_KEY + GAS_PER_VERIFICATION


def test_only_the_canonical_layout_is_read() -> None:
    good = encode_evidence(sign(FIRST), sign(SECOND))
    assert catch_code(good + bytes(32)) == "call_encoding"
    assert catch_code(good + b"\0") == "call_encoding"
    assert catch_code(good[:-32]) == "call_encoding"
    assert catch_code(good[:4]) == "call_encoding"
    assert catch_code(b"\0\0\0\0" + good[4:]) == "call_unknown"
    assert catch_code(b"") == "call_unknown"
    words = [good[4 + at : 36 + at] for at in range(0, len(good) - 4, 32)]
    for place in range(len(words)):  # offsets, lengths, paddings, contents
        for word in (b"\xff" * 32, bytes(32), (2**255).to_bytes(32, "big")):
            changed = [*words[:place], word, *words[place + 1 :]]
            if word != words[place]:
                catch_code(good[:4] + b"".join(changed))


def test_a_statement_or_signature_past_its_size_is_not_read() -> None:
    long = SignedStatement(bytes(65), (KEYS[0],), bytes(96))
    assert catch_evidence(long, sign(SECOND)) == "call_encoding"
    assert (
        catch_evidence(sign(FIRST), SignedStatement(b"", (KEYS[0],), bytes(97))) == "call_encoding"
    )


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SELECTORS.values())), st.binary(max_size=400), st.booleans())
def test_garbage_is_refused_with_a_code(selector: bytes, garbage: bytes, is_padded: bool) -> None:
    if is_padded:
        garbage = garbage.ljust(-(-len(garbage) // 32) * 32, b"\0")
    assert catch_code(selector + garbage)


# -- in the engine ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def chain() -> Chain:
    return Chain()


def run(chain: Chain, data: bytes, **changes: Any) -> Any:
    request = {"to": Address(EVIDENCE_ADDRESS), "data": data, "gas": 1_000_000} | changes
    return chain.call(CallRequest(**request))


def read_reason(data: bytes) -> str:
    assert data[:4] == bytes.fromhex("08c379a0")
    return str(decode(["string"], data[4:])[0])


def test_the_engine_answers_and_reverts_with_the_code(chain: Chain) -> None:
    domain = chain.genesis.domain
    proof = encode_evidence(sign(FIRST, domain=domain), sign(SECOND, domain=domain))
    good = run(chain, proof)
    assert decode(["uint256"] * 3, good.output) == (1, 3, 9)
    for data, code in (
        (encode_evidence(sign(FIRST), sign(FIRST)), "evidence_conflict"),
        (encode_evidence(sign(FIRST), sign(SECOND)), "evidence_signature"),
        (encode_evidence(SignedStatement(b"", (KEYS[0],), b""), sign(FIRST)), "vote_malformed"),
        (encode_possession(b"", b""), "bls_key"),
        (b"", "call_unknown"),
        (bytes(MAX_EVIDENCE_BYTES + 1), "call_size"),
    ):
        bad = run(chain, data)
        assert bad.is_error
        assert read_reason(bad.revert_data) == f"evidence: {code}"
    assert run(chain, proof, gas=120_000).is_error


def test_static_calls_are_answered_and_delegated_ones_and_money_are_not(chain: Chain) -> None:
    contract = {
        opcode: chain.deploy(call_code(EVIDENCE_ADDRESS, opcode=opcode, value=value) + RETURN_ALL)
        for opcode, value in ((0xFA, 0), (0xF4, 0), (0xF2, 0))
    }
    for opcode, code in (
        (0xFA, "call_unknown"),
        (0xF4, "call_delegated"),
        (0xF2, "call_delegated"),
    ):
        answer = chain.call(CallRequest(to=contract[opcode], data=b""))
        assert read_reason(answer.output) == f"evidence: {code}"
    paid = run(chain, b"", sender=ADDRESSES[0], value=1)
    assert read_reason(paid.revert_data) == "evidence: call_value"

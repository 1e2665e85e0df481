"""The evidence precompile at 0x…0F02: proofs of possession, and proofs that validators cheated.

Two pure calls around `bls.py` and `votes.find_offence` (docs/protocol.md, section 10). A proof that
somebody cheated is two statements that nobody may sign both, each with the keys that signed it and
the aggregate of their signatures. It needs no validator set and no state: who owns the keys, and
that their owners proved possession, is for the contract that calls. A vote is the case of one key.

Gas is charged before the work, from the number of keys. With pyblst a verification takes a
millisecond and a key that is not cached 40 microseconds, so these prices are some 25 times what
that costs at half a microsecond a gas. They are so high for machines that only have py_ecc, with
0.3 seconds a verification and 7 milliseconds a key: a block of 12 Mgas full of such calls takes
them about 80 seconds, and machines with pyblst a quarter of a second.

Refusals are `SteelyardError`s; the engine makes them reverts with Error("evidence: <code>").
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import rlp
from eth_hash.auto import keccak

from .bls import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, check_possession, fast_aggregate_verify
from .consensus.votes import Fields, Offence, Statement, compute_signing_root, find_offence
from .errors import InvalidCall, InvalidEvidence
from .params import GAS_CALL, GAS_PER_KEY, GAS_PER_VERIFICATION, MAX_EVIDENCE_SIGNERS
from .types import Domain

WORD: Final = 32
MAX_STATEMENT_BYTES: Final = 64
"""A list of two 64-bit numbers, a kind and a hash has at most 53."""
OFFENCE_CODES: Final = {
    Offence.TWO_NOTARIZATIONS: 1,
    Offence.TWO_FINALIZATIONS: 2,
    Offence.FINALIZED_AND_NULLIFIED: 3,
    Offence.FINALIZED_ANOTHER: 4,
}
"""What `check_evidence` answers first."""

assert set(OFFENCE_CODES) == set(Offence)


class EvidenceHost(Protocol):
    """What a call may ask of the frame that called it."""

    domain: Domain

    def consume_gas(self, amount: int, reason: str) -> None:
        """Charge the frame, or end it."""


@dataclass(frozen=True, slots=True)
class SignedStatement:
    """What somebody signed: an encoded statement, the signers' keys, their aggregate signature."""

    statement: bytes
    keys: tuple[bytes, ...]
    signature: bytes


# -- statements ------------------------------------------------------------------------------------
def encode_statement(statement: Statement) -> bytes:
    """Return `rlp([epoch, view, kind, hash])`, which votes and certificates begin with."""
    row = [statement.epoch, statement.view, int(statement.kind), statement.hash]
    return bytes(rlp.encode(row))


def decode_statement(data: bytes) -> Statement:
    """Return the statement in these bytes. Raises InvalidVote."""
    return Fields.decode(data, 4, MAX_STATEMENT_BYTES).get_statement()


def check_conflict(
    first: SignedStatement, second: SignedStatement, domain: Domain
) -> tuple[int, Statement]:
    """Return the offence's code and a statement of its epoch and view.

    Raises: InvalidVote for what is no statement; InvalidEvidence evidence_conflict if the two may
    be signed both, evidence_signature if one was not signed by those keys on this chain.
    """
    statements = decode_statement(first.statement), decode_statement(second.statement)
    offence = find_offence(*statements)
    if offence is None:
        raise InvalidEvidence("evidence_conflict", "one validator may sign both of these")
    for statement, signed in zip(statements, (first, second), strict=True):
        root = compute_signing_root(statement, domain)
        if not fast_aggregate_verify(signed.keys, root, signed.signature):
            raise InvalidEvidence("evidence_signature", "these keys did not sign that statement")
    return OFFENCE_CODES[offence], statements[0]


# -- arguments -------------------------------------------------------------------------------------
class Arguments:
    """Reads ABI words in order. Only the canonical layout passes: no gaps, overlaps, leftovers.

    Every argument of these calls has a place in the head that holds where it begins.
    """

    def __init__(self, data: bytes, count: int) -> None:
        if len(data) % WORD:
            raise InvalidCall("call_encoding", "arguments are not whole words; encode by ABI")
        self._data, self._at = data, 0
        self._offsets = [self._take_word() for _ in range(count)]

    def take_bytes(self, limit: int) -> bytes:
        """Return the next argument, of type `bytes`, at most `limit` of them."""
        self._enter()
        size = self._take_word()
        if size > limit:
            raise InvalidCall("call_encoding", f"an argument has {size} bytes, at most {limit}")
        data = self._take(-(-size // WORD) * WORD)
        if any(data[size:]):
            raise InvalidCall("call_encoding", "padding is not zero; encode by ABI")
        return data[:size]

    def take_keys(self) -> tuple[bytes, ...]:
        """Return the next argument, of type `(bytes32,bytes16)[]`: 1 to 64 different keys."""
        self._enter()
        count = self._take_word()
        if not 1 <= count <= MAX_EVIDENCE_SIGNERS:
            raise InvalidEvidence("evidence_count", f"{count} keys, not 1 to 64")
        pairs = [self._take(2 * WORD) for _ in range(count)]
        if any(any(pair[PUBLIC_KEY_BYTES:]) for pair in pairs):
            raise InvalidCall("call_encoding", "padding is not zero; encode by ABI")
        if len(set(pairs)) != count:
            raise InvalidEvidence("evidence_repeated", "a key is there twice")
        return tuple(pair[:PUBLIC_KEY_BYTES] for pair in pairs)

    def take_signed(self) -> SignedStatement:
        """Return the next three arguments."""
        statement, keys = self.take_bytes(MAX_STATEMENT_BYTES), self.take_keys()
        return SignedStatement(statement, keys, self.take_bytes(SIGNATURE_BYTES))

    def finish(self) -> None:
        """Refuse what is left over."""
        if self._at != len(self._data):
            raise InvalidCall("call_encoding", "bytes follow the arguments; encode by ABI")

    def _enter(self) -> None:
        if self._offsets.pop(0) != self._at:
            raise InvalidCall("call_encoding", "an argument is not in its canonical place")

    def _take_word(self) -> int:
        return int.from_bytes(self._take(WORD), "big")

    def _take(self, size: int) -> bytes:
        data = self._data[self._at : self._at + size]
        if len(data) != size:
            raise InvalidCall("call_encoding", "arguments are missing; encode by ABI")
        self._at += size
        return data


def _encode(*words: int) -> bytes:
    return b"".join(word.to_bytes(WORD, "big") for word in words)


# -- calls -----------------------------------------------------------------------------------------
def _check_possession(host: EvidenceHost, data: bytes) -> bytes:
    arguments = Arguments(data, 2)
    key, proof = arguments.take_bytes(PUBLIC_KEY_BYTES), arguments.take_bytes(SIGNATURE_BYTES)
    arguments.finish()
    host.consume_gas(GAS_PER_KEY + GAS_PER_VERIFICATION, "evidence possession")
    check_possession(key, proof)
    return _encode(1)


def _check_evidence(host: EvidenceHost, data: bytes) -> bytes:
    arguments = Arguments(data, 6)
    first, second = arguments.take_signed(), arguments.take_signed()
    arguments.finish()
    keys = len(first.keys) + len(second.keys)
    host.consume_gas(GAS_PER_KEY * keys + 2 * GAS_PER_VERIFICATION, "evidence statements")
    code, statement = check_conflict(first, second, host.domain)
    return _encode(code, statement.epoch, statement.view)


_SIGNED: Final = "bytes,(bytes32,bytes16)[],bytes"
_CALLS: Final[dict[str, Callable[[EvidenceHost, bytes], bytes]]] = {
    "check_possession(bytes,bytes)": _check_possession,
    f"check_evidence({_SIGNED},{_SIGNED})": _check_evidence,
}
SIGNATURES: Final = {keccak(signature.encode())[:4]: signature for signature in _CALLS}
SELECTORS: Final = {
    selector: signature.partition("(")[0] for selector, signature in SIGNATURES.items()
}
"""The first four bytes of a call, and its name."""


def call(host: EvidenceHost, data: bytes) -> bytes:
    """Run one call and return its ABI-encoded answer: a 1, or offence, epoch and view.

    Raises: SteelyardError for what the caller did wrong, and whatever `consume_gas` raises.
    """
    host.consume_gas(GAS_CALL, "evidence call")
    signature = SIGNATURES.get(bytes(data[:4]))
    if signature is None:
        raise InvalidCall("call_unknown", f"no call has the selector 0x{data[:4].hex()}")
    return _CALLS[signature](host, bytes(data[4:]))

"""BLS12-381 signatures: 48-byte keys in G1, 96-byte signatures in G2, proof-of-possession suite.

draft-irtf-cfrg-bls-signature-05, `BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_`, as in Ethereum's
consensus layer. Two backends give the same bytes: pyblst (a wrapper of blst, about a millisecond a
check) and py_ecc (plain Python, hundreds of times slower, the reference). The functions below use
the fast one where it is installed; each takes another `backend`, which is also where a simulator
puts a cheap one.

Aggregation is only sound for keys whose owner proved that it knows the secret: call
`check_possession` before a key enters a validator set, never `fast_aggregate_verify` without.
"""

import hashlib
import hmac
import sys
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Final, NewType, Protocol

from .errors import InvalidKey, InvalidVote

try:
    import pyblst
except ImportError:  # no wheel for this platform: py_ecc is slow, and right
    pyblst = None

if TYPE_CHECKING:
    from py_ecc.bls import G2ProofOfPossession

SecretKey = NewType("SecretKey", int)
PublicKey = NewType("PublicKey", bytes)
Signature = NewType("Signature", bytes)

SECRET_KEY_BYTES: Final = 32
PUBLIC_KEY_BYTES: Final = 48
SIGNATURE_BYTES: Final = 96
MIN_SEED_BYTES: Final = 32
CURVE_ORDER: Final = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
SIGNATURE_TAG: Final = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_"
POSSESSION_TAG: Final = b"BLS_POP_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_"
INFINITY_KEY: Final = b"\xc0" + bytes(PUBLIC_KEY_BYTES - 1)
INFINITY_SIGNATURE: Final = b"\xc0" + bytes(SIGNATURE_BYTES - 1)
GENERATOR: Final = bytes.fromhex(
    "97f1d3a73197d7942695638c4fa9ac0fc3688c4f9774b905a14e3a3f171bac58"
    "6c55e83ff97a1aeffb3af00adb22c6bb"
)
CACHED_KEYS: Final = 1024
"""Decompressing a key costs as much as a third of a check; sets are far smaller than this."""


class Backend(Protocol):
    """Curve arithmetic; the functions of this module check lengths and ranges before."""

    def compute_public_key(self, secret: SecretKey) -> bytes:
        """Return the compressed key."""

    def sign(self, secret: SecretKey, message: bytes, tag: bytes) -> bytes:
        """Return the compressed signature over `message`, hashed to the curve under `tag`."""

    def is_key(self, key: bytes) -> bool:
        """Is it a canonical, finite point of the right subgroup?"""

    def aggregate(self, signatures: Sequence[bytes]) -> bytes | None:
        """Return the sum, or None if one is not a canonical point of the right subgroup."""

    def verify(self, keys: Sequence[bytes], message: bytes, signature: bytes, tag: bytes) -> bool:
        """Did the owners of all `keys` (at least one) sign `message`? False for any bad point."""


class Pyblst:
    """The default. `uncompress` of blst checks the encoding, the curve and the subgroup."""

    def compute_public_key(self, secret: SecretKey) -> bytes:
        return bytes(_decode_blst_key(GENERATOR).scalar_mul(secret).compress())

    def sign(self, secret: SecretKey, message: bytes, tag: bytes) -> bytes:
        point = pyblst.BlstP2Element().hash_to_group(message, tag)
        return bytes(point.scalar_mul(secret).compress())

    def is_key(self, key: bytes) -> bool:
        try:
            _decode_blst_key(key)
        except ValueError:
            return False
        return key != INFINITY_KEY

    def aggregate(self, signatures: Sequence[bytes]) -> bytes | None:
        total = pyblst.BlstP2Element()
        try:
            for signature in signatures:
                total = total + pyblst.BlstP2Element().uncompress(signature)
        except ValueError:
            return None
        return bytes(total.compress())

    def verify(self, keys: Sequence[bytes], message: bytes, signature: bytes, tag: bytes) -> bool:
        if not all(self.is_key(key) for key in keys):
            return False
        try:
            point = pyblst.BlstP2Element().uncompress(signature)
        except ValueError:
            return False
        total = pyblst.BlstP1Element()
        for key in keys:
            total = total + _decode_blst_key(key)
        if bytes(total.compress()) == INFINITY_KEY:
            return False
        hashed = pyblst.BlstP2Element().hash_to_group(message, tag)
        left = pyblst.miller_loop(total, hashed)
        right = pyblst.miller_loop(_decode_blst_key(GENERATOR), point)
        return bool(pyblst.final_verify(left, right))


@lru_cache(maxsize=CACHED_KEYS)
def _decode_blst_key(key: bytes) -> "pyblst.BlstP1Element":
    return pyblst.BlstP1Element().uncompress(key)


class PyEcc:
    """The reference: plain Python integers. Its import is slow, so it happens on first use."""

    def compute_public_key(self, secret: SecretKey) -> bytes:
        suite = _load_suite()

        return bytes(suite.SkToPk(secret))

    def sign(self, secret: SecretKey, message: bytes, tag: bytes) -> bytes:
        suite = _load_suite()

        return bytes(suite._CoreSign(secret, message, tag))

    def is_key(self, key: bytes) -> bool:
        suite = _load_suite()

        return bool(suite.KeyValidate(key))

    def aggregate(self, signatures: Sequence[bytes]) -> bytes | None:
        suite = _load_suite()
        from py_ecc.bls.g2_primitives import signature_to_G2, subgroup_check

        # py_ecc's own Aggregate checks no subgroup.
        try:
            if not all(subgroup_check(signature_to_G2(signature)) for signature in signatures):
                return None
        except (ValueError, AssertionError):
            return None
        return bytes(suite.Aggregate(list(signatures)))

    def verify(self, keys: Sequence[bytes], message: bytes, signature: bytes, tag: bytes) -> bool:
        suite = _load_suite()

        if not all(suite.KeyValidate(key) for key in keys):
            return False
        total = keys[0] if len(keys) == 1 else suite._AggregatePKs(list(keys))
        return bool(suite._CoreVerify(total, message, signature, tag))


@cache
def _load_suite() -> "type[G2ProofOfPossession]":
    """Import py_ecc and undo what that does to the recursion limit.

    At its 100,000, nested JSON from outside would overflow a thread's stack.
    """
    limit = sys.getrecursionlimit()
    from py_ecc import bls

    sys.setrecursionlimit(limit)
    suite: type[G2ProofOfPossession] = bls.G2ProofOfPossession
    return suite


DEFAULT: Final[Backend] = PyEcc() if pyblst is None else Pyblst()


def decode_secret_key(data: bytes) -> SecretKey:
    """Return the secret key of 32 big-endian bytes. Raises InvalidKey if 0 or out of range."""
    secret = int.from_bytes(data, "big")
    if len(data) != SECRET_KEY_BYTES or not 0 < secret < CURVE_ORDER:
        raise InvalidKey("bls_secret", "a BLS secret key is 32 bytes, above 0 and below the order")
    return SecretKey(secret)


def encode_secret_key(secret: SecretKey) -> bytes:
    """Return the 32 big-endian bytes of a secret key."""
    return secret.to_bytes(SECRET_KEY_BYTES, "big")


def derive_secret_key(seed: bytes) -> SecretKey:
    """Return the secret key of a random seed: KeyGen, section 2.3 of the draft.

    Raises: InvalidKey for a seed under 32 bytes.
    """
    if len(seed) < MIN_SEED_BYTES:
        raise InvalidKey("bls_seed", f"a seed has at least {MIN_SEED_BYTES} bytes, not {len(seed)}")
    length = 48  # ceil(1.5 * ceil(log2(CURVE_ORDER)) / 8)
    salt = hashlib.sha256(b"BLS-SIG-KEYGEN-SALT-").digest()
    while True:
        extracted = hmac.digest(salt, seed + b"\x00", "sha256")
        first = hmac.digest(extracted, length.to_bytes(2, "big") + b"\x01", "sha256")
        second = hmac.digest(extracted, first + length.to_bytes(2, "big") + b"\x02", "sha256")
        secret = int.from_bytes((first + second)[:length], "big") % CURVE_ORDER
        if secret:
            return SecretKey(secret)
        salt = hashlib.sha256(salt).digest()


def compute_public_key(secret: SecretKey, backend: Backend = DEFAULT) -> PublicKey:
    """Return the public key of `secret`. Raises InvalidKey for 0 or a value out of range."""
    _check_secret(secret)
    return PublicKey(backend.compute_public_key(secret))


def check_public_key(key: bytes, backend: Backend = DEFAULT) -> None:
    """Check that `key` is a canonical, finite point of the subgroup. Raises InvalidKey."""
    if len(key) != PUBLIC_KEY_BYTES or not backend.is_key(bytes(key)):
        raise InvalidKey("bls_key", f"0x{key[:64].hex()} is not a usable BLS public key")


def sign(secret: SecretKey, message: bytes, backend: Backend = DEFAULT) -> Signature:
    """Return the signature over `message`. Raises InvalidKey for a bad secret."""
    _check_secret(secret)
    return Signature(backend.sign(secret, message, SIGNATURE_TAG))


def verify(key: bytes, message: bytes, signature: bytes, backend: Backend = DEFAULT) -> bool:
    """Did the owner of `key` sign `message`? False for malformed or infinite points."""
    return fast_aggregate_verify((key,), message, signature, backend)


def aggregate_signatures(signatures: Sequence[bytes], backend: Backend = DEFAULT) -> Signature:
    """Return the sum of signatures. Raises InvalidVote for an empty list or a bad point."""
    if not signatures:
        raise InvalidVote("bls_empty", "there is no signature to aggregate")
    well_formed = all(len(signature) == SIGNATURE_BYTES for signature in signatures)
    total = backend.aggregate(signatures) if well_formed else None
    if total is None:
        raise InvalidVote("bls_signature", "one of the signatures is not a point of the subgroup")
    return Signature(total)


def fast_aggregate_verify(
    keys: Sequence[bytes], message: bytes, signature: bytes, backend: Backend = DEFAULT
) -> bool:
    """Did the owners of all `keys` sign `message`, with `signature` the sum of their signatures?

    Every key needs a checked proof of possession. False for an empty list, malformed points, the
    infinity key, keys that cancel out, and the infinity signature.
    """
    if not keys or len(signature) != SIGNATURE_BYTES or signature == INFINITY_SIGNATURE:
        return False
    if any(len(key) != PUBLIC_KEY_BYTES for key in keys):
        return False
    return backend.verify(keys, message, signature, SIGNATURE_TAG)


def prove_possession(secret: SecretKey, backend: Backend = DEFAULT) -> Signature:
    """Return the signature over one's own public key, which allows the key to be aggregated."""
    _check_secret(secret)
    return Signature(backend.sign(secret, backend.compute_public_key(secret), POSSESSION_TAG))


def check_possession(key: bytes, proof: bytes, backend: Backend = DEFAULT) -> None:
    """Check that the owner of `key` knows its secret. Raises InvalidKey."""
    check_public_key(key, backend)
    if len(proof) != SIGNATURE_BYTES or not backend.verify((key,), key, proof, POSSESSION_TAG):
        raise InvalidKey("bls_possession", f"no proof that the secret of 0x{key.hex()} is known")


def _check_secret(secret: SecretKey) -> None:
    if not 0 < secret < CURVE_ORDER:
        raise InvalidKey("bls_secret", "a BLS secret key is above 0 and below the curve order")

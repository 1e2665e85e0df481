"""Encryption of datasets, and their keys wrapped for whoever was granted access.

A dataset's content is encrypted once, with a key of its own. A grant carries that key to one
requester: wrapped with HPKE (RFC 9180, base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256,
ChaCha20-Poly1305) under an ephemeral key, 80 bytes. What is wrapped opens only for the grant that
it was made for: chain, dataset, owner, requester and content are its associated data.

No key is stored. The private half of a request and the key of a content follow from the account's
own key (HKDF, RFC 5869): a lost state directory loses nothing, and the encrypted key file stays the
only secret that must be kept. So whoever steals an account's key reads what the account owns and
what it was granted. Each publication has a random salt, in the clear before the content: the same
data published again has another key, and the owner finds the key again from account and content.

Pure but for the randomness of salts and ephemeral keys. Files: magic, salt, ciphertext, tag.
"""

import secrets
from dataclasses import dataclass
from typing import Final, cast

from Crypto.Cipher import ChaCha20_Poly1305
from Crypto.Hash import SHA256
from Crypto.Protocol import HPKE
from Crypto.Protocol.DH import import_x25519_private_key, import_x25519_public_key
from Crypto.Protocol.KDF import HKDF

from steelyard.chain.params import MAX_BLOB_BYTES, REGISTRY_ADDRESS
from steelyard.chain.types import Address, BlobName

from .errors import InvalidSeal
from .rpc import Network

KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
SALT_BYTES: Final = 32
MAGIC: Final = b"STLYDAT1"
HEADER_BYTES: Final = len(MAGIC) + SALT_BYTES
MAX_DATA_BYTES: Final = MAX_BLOB_BYTES - HEADER_BYTES - TAG_BYTES
"""Of a dataset that the chain carries for a while: one blob."""
WRAPPED_BYTES: Final = KEY_BYTES + KEY_BYTES + TAG_BYTES
NONCE: Final = bytes(12)
"""Each content key encrypts one message, so that one nonce is enough (RFC 8439, section 2.8)."""
DOMAIN: Final = b"steelyard registry 1: "
GRANT_INFO: Final = DOMAIN + b"grant"
WORD_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Grant:
    """What a wrapped key is for. It opens for nothing else."""

    network: Network
    dataset: int
    owner: Address
    requester: Address
    content: BlobName

    def encode(self) -> bytes:
        """Return the associated data: seven words of 32 bytes and the chain's genesis hash."""
        numbers = (self.network.chain_id, self.dataset, self.content.size)
        words = [REGISTRY_ADDRESS, self.owner, self.requester, self.content.digest]
        padded = [bytes(word).rjust(WORD_BYTES, b"\0") for word in words]
        padded += [number.to_bytes(WORD_BYTES, "big") for number in numbers]
        return self.network.genesis_hash + b"".join(padded)


# -- keys ------------------------------------------------------------------------------------------
def derive_key(secret: bytes, salt: bytes, purpose: bytes) -> bytes:
    """Return 32 bytes that follow from `secret` for one purpose (HKDF-SHA256, RFC 5869)."""
    return cast(bytes, HKDF(secret, KEY_BYTES, salt, SHA256, context=purpose))


def derive_exchange_key(secret: bytes, network: Network, dataset: int) -> bytes:
    """Return an account's X25519 private key for its requests of one dataset."""
    purpose = DOMAIN + b"request" + dataset.to_bytes(WORD_BYTES, "big")
    return derive_key(secret, encode_network(network), purpose)


def derive_content_key(secret: bytes, network: Network, salt: bytes) -> bytes:
    """Return the key of a content that the account with this secret has published."""
    return derive_key(secret, salt, DOMAIN + b"content" + encode_network(network))


def encode_network(network: Network) -> bytes:
    """Return which chain, as bytes."""
    return network.chain_id.to_bytes(WORD_BYTES, "big") + network.genesis_hash


def get_public_key(private_key: bytes) -> bytes:
    """Return the public half of an X25519 private key (RFC 7748, section 5), 32 bytes."""
    public = import_x25519_private_key(private_key).public_key()
    return public.export_key(format="raw")


# -- one key for one requester ---------------------------------------------------------------------
def wrap_key(key: bytes, public_key: bytes, grant: Grant) -> bytes:
    """Return `key` wrapped for the holder of `public_key`: ephemeral key, ciphertext, tag.

    Raises: InvalidSeal `public_key`: not 32 bytes, or a point of low order, to which everybody
    knows the shared secret (RFC 7748, section 6.1; RFC 9180, section 7.1.4).
    """
    assert len(key) == KEY_BYTES
    try:
        wrapped = seal_to(public_key, GRANT_INFO, key, grant.encode())
    except ValueError as error:
        raise InvalidSeal(
            "public_key", f"nothing can be sealed to the key 0x{public_key.hex()}: {error}"
        ) from None
    assert len(wrapped) == WRAPPED_BYTES
    return wrapped


def unwrap_key(wrapped: bytes, private_key: bytes, grant: Grant) -> bytes:
    """Return the key that was wrapped for `grant`. Raises InvalidSeal `wrapped_key`."""
    try:
        if len(wrapped) != WRAPPED_BYTES:
            raise ValueError(f"{len(wrapped)} bytes instead of {WRAPPED_BYTES}")
        return open_from(private_key, GRANT_INFO, wrapped, grant.encode())
    except ValueError as error:
        raise InvalidSeal(
            "wrapped_key",
            f"the key that was granted for dataset {grant.dataset} does not open ({error}); "
            "ask the owner to grant it again after a new request",
        ) from None


def seal_to(public_key: bytes, info: bytes, data: bytes, associated: bytes) -> bytes:
    """Return HPKE's encapsulated key and ciphertext (RFC 9180, section 6.1). Raises ValueError."""
    sender = HPKE.new(
        receiver_key=import_x25519_public_key(public_key),
        aead_id=HPKE.AEAD.CHACHA20_POLY1305,
        info=info,
    )
    return cast(bytes, sender.enc + sender.seal(data, associated))


def open_from(private_key: bytes, info: bytes, sealed: bytes, associated: bytes) -> bytes:
    """Return what `seal_to` was given. Raises ValueError."""
    receiver = HPKE.new(
        receiver_key=import_x25519_private_key(private_key),
        aead_id=HPKE.AEAD.CHACHA20_POLY1305,
        enc=sealed[:KEY_BYTES],
        info=info,
    )
    return cast(bytes, receiver.unseal(sealed[KEY_BYTES:], associated))


# -- content ---------------------------------------------------------------------------------------
def seal_content(data: bytes, secret: bytes, network: Network, salt: bytes | None = None) -> bytes:
    """Return `data` encrypted under a fresh key. `salt`: random unless a test gives one.

    Raises: InvalidSeal `dataset_size`.
    """
    check_data_size(len(data))
    header = MAGIC + (salt or secrets.token_bytes(SALT_BYTES))
    key = derive_content_key(secret, network, header[len(MAGIC) :])
    return header + encrypt(key, NONCE, data, header)


def check_data_size(size: int) -> None:
    """Raises InvalidSeal `dataset_size` for data that does not fit into one blob, sealed."""
    if not 0 < size <= MAX_DATA_BYTES:
        raise InvalidSeal(
            "dataset_size",
            f"the chain carries datasets of 1 to {MAX_DATA_BYTES} bytes, this one has {size}; "
            "keep a larger one in a store of your own and publish its description alone, with the "
            "CID in it",
        )


def open_content(content: bytes, key: bytes) -> bytes:
    """Return the data of a content. Raises InvalidSeal `content_malformed`, `content_key`."""
    header = read_header(content)
    try:
        return decrypt(key, NONCE, content[HEADER_BYTES:], header)
    except ValueError:
        raise InvalidSeal(
            "content_key", "the key does not open the content, or the content was altered"
        ) from None


def recover_content_key(content: bytes, secret: bytes, network: Network) -> bytes:
    """Return the key of a content that this account has sealed.

    Raises: InvalidSeal `content_malformed`, `content_key`.
    """
    key = derive_content_key(secret, network, read_header(content)[len(MAGIC) :])
    open_content(content, key)
    return key


def read_header(content: bytes) -> bytes:
    """Return magic and salt. Raises InvalidSeal `content_malformed`."""
    if len(content) <= HEADER_BYTES + TAG_BYTES or not content.startswith(MAGIC):
        raise InvalidSeal(
            "content_malformed", "the content was not encrypted by `steelyard registry`"
        )
    return content[:HEADER_BYTES]


def encrypt(key: bytes, nonce: bytes, data: bytes, associated: bytes) -> bytes:
    """Return ciphertext and tag of ChaCha20-Poly1305 (RFC 8439, section 2.8)."""
    cipher = ChaCha20_Poly1305.new(key=key, nonce=nonce)
    cipher.update(associated)
    ciphertext, tag = cipher.encrypt_and_digest(data)
    return ciphertext + tag


def decrypt(key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
    """Return what `encrypt` was given. Raises ValueError."""
    cipher = ChaCha20_Poly1305.new(key=key, nonce=nonce)
    cipher.update(associated)
    return cipher.decrypt_and_verify(sealed[:-TAG_BYTES], sealed[-TAG_BYTES:])

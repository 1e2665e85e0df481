"""A dataset opens for its owner and for whoever was granted it, and for nobody else."""

from dataclasses import replace

import pytest

from steelyard.chain.types import Address, BlobName, Digest
from steelyard.client import sealing
from steelyard.client.errors import InvalidSeal
from steelyard.client.rpc import Network
from steelyard.client.sealing import (
    HEADER_BYTES,
    KEY_BYTES,
    WRAPPED_BYTES,
    Grant,
    decrypt,
    derive_content_key,
    derive_exchange_key,
    derive_key,
    encrypt,
    get_public_key,
    open_content,
    open_from,
    recover_content_key,
    seal_content,
    unwrap_key,
    wrap_key,
)

NETWORK = Network(4711, b"\x07" * 32)
OWNER, REQUESTER = Address(b"\x01" * 20), Address(b"\x02" * 20)
GRANT = Grant(NETWORK, 3, OWNER, REQUESTER, BlobName(Digest(b"\x09" * 32), 1000))
SECRET, OTHER = b"\x11" * 32, b"\x12" * 32
KEY = b"\x05" * KEY_BYTES
PRIVATE = derive_exchange_key(SECRET, NETWORK, 3)
PRIME = 2**255 - 19
LOW_ORDER = [
    *(number.to_bytes(32, "little") for number in (0, 1, PRIME - 1, PRIME, PRIME + 1)),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]
"""The seven encodings, below 2**255, of points that give everybody the same shared secret."""


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


# -- vectors ---------------------------------------------------------------------------------------
def test_public_keys_are_those_of_rfc_7748_section_6_1() -> None:
    private = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"
    public = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    assert get_public_key(bytes.fromhex(private)).hex() == public


def test_derived_keys_are_those_of_rfc_5869_case_1() -> None:
    derived = derive_key(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)))
    assert derived.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"


def test_encryption_is_that_of_rfc_8439_section_2_8_2() -> None:
    key, nonce = bytes(range(0x80, 0xA0)), bytes.fromhex("070000004041424344454647")
    associated = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    text = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
        b"future, sunscreen would be it."
    )
    sealed = encrypt(key, nonce, text, associated)
    assert sealed[:16].hex() == "d31a8d34648e60db7b86afbc53ef7ec2"
    assert sealed[-16:].hex() == "1ae10b594f09e26a7e902ecbd0600691"
    assert decrypt(key, nonce, sealed, associated) == text


def test_wrapping_is_that_of_rfc_9180_appendix_a_2_1() -> None:
    private = "8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb"
    ephemeral = "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a"
    sealed = (
        "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28"
    )
    opened = open_from(
        bytes.fromhex(private),
        b"Ode on a Grecian Urn",
        bytes.fromhex(ephemeral + sealed),
        b"Count-0",
    )
    assert opened == b"Beauty is truth, truth beauty"


# -- wrapped keys ----------------------------------------------------------------------------------
def test_a_wrapped_key_opens_for_its_requester() -> None:
    wrapped = wrap_key(KEY, get_public_key(PRIVATE), GRANT)
    assert len(wrapped) == WRAPPED_BYTES == 80
    assert unwrap_key(wrapped, PRIVATE, GRANT) == KEY


def test_each_wrapping_has_a_key_of_its_own() -> None:
    first, second = (wrap_key(KEY, get_public_key(PRIVATE), GRANT) for _ in range(2))
    assert first[:KEY_BYTES] != second[:KEY_BYTES]


@pytest.mark.parametrize(
    "change",
    [
        {"network": Network(4712, NETWORK.genesis_hash)},
        {"network": Network(4711, b"\x08" * 32)},
        {"dataset": 4},
        {"owner": REQUESTER},
        {"requester": OWNER},
        {"content": BlobName(Digest(b"\x0a" * 32), 1000)},
        {"content": BlobName(Digest(b"\x09" * 32), 1001)},
    ],
    ids=["chain", "genesis", "dataset", "owner", "requester", "content", "size"],
)
def test_a_wrapped_key_opens_for_no_other_grant(change) -> None:
    wrapped = wrap_key(KEY, get_public_key(PRIVATE), GRANT)
    with pytest.raises(InvalidSeal) as caught:
        unwrap_key(wrapped, PRIVATE, replace(GRANT, **change))
    assert caught.value.code == "wrapped_key"


def test_a_wrapped_key_opens_with_no_other_key() -> None:
    wrapped = wrap_key(KEY, get_public_key(PRIVATE), GRANT)
    with pytest.raises(InvalidSeal, match="wrapped_key"):
        unwrap_key(wrapped, derive_exchange_key(OTHER, NETWORK, 3), GRANT)


@pytest.mark.parametrize("place", [0, KEY_BYTES, WRAPPED_BYTES - 1], ids=["enc", "key", "tag"])
def test_an_altered_wrapped_key_does_not_open(place: int) -> None:
    wrapped = wrap_key(KEY, get_public_key(PRIVATE), GRANT)
    with pytest.raises(InvalidSeal, match="wrapped_key"):
        unwrap_key(flip(wrapped, place), PRIVATE, GRANT)


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: point.hex()[:6])
def test_nothing_is_wrapped_to_a_point_of_low_order(point: bytes) -> None:
    with pytest.raises(InvalidSeal) as caught:
        wrap_key(KEY, point, GRANT)
    assert caught.value.code == "public_key"


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: point.hex()[:6])
def test_a_wrapped_key_with_an_ephemeral_point_of_low_order_does_not_open(point: bytes) -> None:
    with pytest.raises(InvalidSeal, match="wrapped_key"):
        unwrap_key(point + bytes(48), PRIVATE, GRANT)


@pytest.mark.parametrize("size", [0, 31, 32, 79, 81, 128])
def test_a_wrapped_key_of_another_size_does_not_open(size: int) -> None:
    with pytest.raises(InvalidSeal, match="wrapped_key"):
        unwrap_key(b"\x09" * size, PRIVATE, GRANT)


def test_a_public_key_of_another_size_is_refused() -> None:
    with pytest.raises(InvalidSeal, match="public_key"):
        wrap_key(KEY, b"\x09" * 31, GRANT)


# -- content ---------------------------------------------------------------------------------------
def test_the_owner_finds_the_key_of_a_content_again() -> None:
    content = seal_content(b"rows", SECRET, NETWORK)
    assert open_content(content, recover_content_key(content, SECRET, NETWORK)) == b"rows"


def test_the_same_data_published_again_has_another_key() -> None:
    first, second = (seal_content(b"rows", SECRET, NETWORK) for _ in range(2))
    keys = {recover_content_key(content, SECRET, NETWORK) for content in (first, second)}
    assert len(keys) == 2


def test_keys_of_other_accounts_chains_and_purposes_differ() -> None:
    salt = b"\x03" * 32
    keys = [
        derive_content_key(SECRET, NETWORK, salt),
        derive_content_key(OTHER, NETWORK, salt),
        derive_content_key(SECRET, Network(4712, NETWORK.genesis_hash), salt),
        derive_exchange_key(SECRET, NETWORK, 3),
        derive_exchange_key(SECRET, NETWORK, 4),
        derive_exchange_key(SECRET, Network(4711, b"\x08" * 32), 3),
    ]
    assert len(set(keys)) == len(keys)


def test_another_account_does_not_find_the_key() -> None:
    content = seal_content(b"rows", SECRET, NETWORK)
    with pytest.raises(InvalidSeal) as caught:
        recover_content_key(content, OTHER, NETWORK)
    assert caught.value.code == "content_key"


@pytest.mark.parametrize("place", [8, HEADER_BYTES, -1], ids=["salt", "data", "tag"])
def test_an_altered_content_does_not_open(place: int) -> None:
    content = seal_content(b"rows", SECRET, NETWORK)
    key = recover_content_key(content, SECRET, NETWORK)
    with pytest.raises(InvalidSeal, match="content_key"):
        open_content(flip(content, place % len(content)), key)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(100), sealing.MAGIC + bytes(48)])
def test_a_content_of_another_kind_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidSeal) as caught:
        open_content(content, KEY)
    assert caught.value.code == "content_malformed"


def test_data_that_the_chain_cannot_carry_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "MAX_DATA_BYTES", 4)
    assert seal_content(b"rows", SECRET, NETWORK)
    for data in (b"", b"rows!"):
        with pytest.raises(InvalidSeal) as caught:
            seal_content(data, SECRET, NETWORK)
        assert caught.value.code == "dataset_size"
        assert "CID" in caught.value.message

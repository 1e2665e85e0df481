"""What validators say to each other, and the bytes of it.

A message is one byte that names its kind, then an RLP list of its fields; blocks, votes and
certificates inside it are byte strings in their own encoding. There is one way to write each
message: decoding and encoding again gives the same bytes. Every message is one way; an answer is
a message of its own.

Each kind belongs to one of two lanes, so that blobs never hold up votes, and has a largest size,
checked before anything is decoded. What a message claims (signatures, hashes, heights) is checked
by whoever acts on it.

Source: docs/network.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import ClassVar, Final, Self, TypeAlias

from steelyard.chain.block import Block, decode_block, encode_block
from steelyard.chain.consensus.certificates import (
    MAX_CERTIFICATE_BYTES,
    Certificate,
    decode_certificate,
    encode_certificate,
)
from steelyard.chain.consensus.votes import MAX_VOTE_BYTES, Vote, decode_vote, encode_vote
from steelyard.chain.errors import SteelyardError
from steelyard.chain.params import MAX_BLOB_BYTES, MAX_BLOCK_BYTES, MAX_TRANSACTION_BYTES
from steelyard.chain.rlp import (
    Encodable,
    InvalidEncoding,
    Item,
    decode_rlp,
    encode_rlp,
    read_bytes,
    read_int,
    read_list,
)
from steelyard.chain.types import BlobName, Digest, Epoch, Hash, Height, View

VERSION: Final = 1
"""Of this protocol, in every `Status`."""
CHUNK_BYTES: Final = 2**20
"""A blob travels in pieces of this size; the last one is what is left."""
MAX_ANNOUNCED: Final = 256
"""Blobs in one announcement."""
MAX_SEGMENT_BLOCKS: Final = 256
MAX_SEGMENT_BYTES: Final = MAX_BLOCK_BYTES + 2**16
"""The encoded blocks of a segment together; the largest block fits."""
MAX_ITEMS: Final = 1_024
"""RLP items of a message, without those inside its blocks, votes and certificates."""
LENGTHS: Final = 64
"""Room for the kind, and for the RLP lengths around two or three fields."""
NUMBER: Final = 9
"""An encoded 64-bit number."""
NAME: Final = 40
"""An encoded blob name: digest, size below 2**32."""


class Lane(IntEnum):
    """Two connections between each pair: one must never wait for the other."""

    CONSENSUS = 0
    BULK = 1


class InvalidMessage(SteelyardError):
    """Bytes from another validator that are no message of ours."""


# -- the consensus lane ----------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Status:
    """Where a validator is: sent when it connects, moves, and every few seconds."""

    kind: ClassVar[int] = 1
    lane: ClassVar[Lane] = Lane.CONSENSUS
    limit: ClassVar[int] = LENGTHS + 4 * NUMBER + 2 * 33

    version: int
    genesis_hash: Hash
    epoch: Epoch
    view: View
    height: Height
    head_hash: Hash

    def list_fields(self) -> list[Encodable]:
        place: list[Encodable] = [self.epoch, self.view, self.height]
        return [self.version, self.genesis_hash, *place, self.head_hash]

    @classmethod
    def read_fields(cls, items: Sequence[Item]) -> Self:
        return cls(
            read_int(items[0], 32),
            Hash(read_bytes(items[1], 32)),
            Epoch(read_int(items[2], 64)),
            View(read_int(items[3], 64)),
            Height(read_int(items[4], 64)),
            Hash(read_bytes(items[5], 32)),
        )


@dataclass(frozen=True, slots=True)
class VoteMessage:
    """One validator's vote, perhaps passed on by another."""

    kind: ClassVar[int] = 2
    lane: ClassVar[Lane] = Lane.CONSENSUS
    limit: ClassVar[int] = LENGTHS + MAX_VOTE_BYTES

    vote: Vote

    def list_fields(self) -> list[Encodable]:
        return [encode_vote(self.vote)]

    @classmethod
    def read_fields(cls, items: Sequence[Item]) -> Self:
        return cls(decode_vote(read_bytes(items[0])))


@dataclass(frozen=True, slots=True)
class CertificateMessage:
    """A certificate, broadcast or asked for."""

    kind: ClassVar[int] = 3
    lane: ClassVar[Lane] = Lane.CONSENSUS
    limit: ClassVar[int] = LENGTHS + MAX_CERTIFICATE_BYTES

    certificate: Certificate

    def list_fields(self) -> list[Encodable]:
        return [encode_certificate(self.certificate)]

    @classmethod
    def read_fields(cls, items: Sequence[Item]) -> Self:
        return cls(decode_certificate(read_bytes(items[0])))


@dataclass(frozen=True, slots=True)
class ProposalMessage:
    """A leader's block and its own vote to notarize it."""

    kind: ClassVar[int] = 4
    lane: ClassVar[Lane] = Lane.CONSENSUS
    limit: ClassVar[int] = LENGTHS + MAX_BLOCK_BYTES + MAX_VOTE_BYTES

    block: Block
    vote: Vote

    def list_fields(self) -> list[Encodable]:
        return [encode_block(self.block), encode_vote(self.vote)]

    @classmethod
    def read_fields(cls, items: Sequence[Item]) -> Self:
        return cls(decode_block(read_bytes(items[0])), decode_vote(read_bytes(items[1])))


@dataclass(frozen=True, slots=True)
class TransactionMessage:
    """One transaction on its way to the next leaders, as its sender encoded it."""

    kind: ClassVar[int] = 5
    lane: ClassVar[Lane] = Lane.CONSENSUS
    limit: ClassVar[int] = LENGTHS + MAX_TRANSACTION_BYTES

    raw: bytes

    def list_fields(self) -> list[Encodable]:
        return [self.raw]

    @classmethod
    def read_fields(cls, items: Sequence[Item]) -> Self:
        return cls(_read_some(items[0], MAX_TRANSACTION_BYTES))


@dataclass(frozen=True, slots=True)
class Announcement:
    """Blobs that the sender holds on disk, 1 to MAX_ANNOUNCED of them."""

    kind: ClassVar[int] = 6
    lane: ClassVar[Lane] = Lane.CONSENSUS
    limit: ClassVar[int] = LENGTHS + MAX_ANNOUNCED * NAME

    names: tuple[BlobName, ...]

    def list_fields(self) -> list[Encodable]:
        return [[_list_name(name) for name in self.names]]

    @classmethod
    def read_fields(cls, items: Sequence[Item]) -> Self:
        names = read_list(items[0], limit=MAX_ANNOUNCED)
        if not names:
            raise InvalidEncoding("an announcement of nothing")
        return cls(tuple(_read_name(name) for name in names))


@dataclass(frozen=True, slots=True)
class BlockRequest:
    """Asks for the block of this hash; the answer is a `BlockAnswer`, or nothing."""

    kind: ClassVar[int] = 7
    lane: ClassVar[Lane] = Lane.CONSENSUS
    limit: ClassVar[int] = LENGTHS + 33

    hash: Hash

    def list_fields(self) -> list[Encodable]:
        return [self.hash]

    @classmethod
    def read_fields(cls, items: Sequence[Item]) -> Self:
        return cls(Hash(read_bytes(items[0], 32)))


@dataclass(frozen=True, slots=True)
class BlockAnswer:
    """A block that was asked for; whether it is that one, its hash says."""

    kind: ClassVar[int] = 8
    lane: ClassVar[Lane] = Lane.CONSENSUS
    limit: ClassVar[int] = LENGTHS + MAX_BLOCK_BYTES

    block: Block

    def list_fields(self) -> list[Encodable]:
        return [encode_block(self.block)]

    @classmethod
    def read_fields(cls, items: Sequence[Item]) -> Self:
        return cls(decode_block(read_bytes(items[0])))


@dataclass(frozen=True, slots=True)
class CertificatesRequest:
    """Asks for the certificates of `view` and later; the answers are `CertificateMessage`s."""

    kind: ClassVar[int] = 9
    lane: ClassVar[Lane] = Lane.CONSENSUS
    limit: ClassVar[int] = LENGTHS + 2 * NUMBER

    epoch: Epoch
    view: View

    def list_fields(self) -> list[Encodable]:
        return [self.epoch, self.view]

    @classmethod
    def read_fields(cls, items: Sequence[Item]) -> Self:
        return cls(Epoch(read_int(items[0], 64)), View(read_int(items[1], 64)))


# -- the bulk lane ---------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class BlobRequest:
    """Asks for the piece of a blob at `offset`, a multiple of CHUNK_BYTES inside it."""

    kind: ClassVar[int] = 33
    lane: ClassVar[Lane] = Lane.BULK
    limit: ClassVar[int] = LENGTHS + NAME + NUMBER

    name: BlobName
    offset: int

    def list_fields(self) -> list[Encodable]:
        return [_list_name(self.name), self.offset]

    @classmethod
    def read_fields(cls, items: Sequence[Item]) -> Self:
        name = _read_name(items[0])
        return cls(name, _read_offset(items[1], name))


@dataclass(frozen=True, slots=True)
class BlobChunk:
    """The whole piece of a blob at `offset`: `compute_chunk_size` says how long it is."""

    kind: ClassVar[int] = 34
    lane: ClassVar[Lane] = Lane.BULK
    limit: ClassVar[int] = LENGTHS + NAME + NUMBER + CHUNK_BYTES

    name: BlobName
    offset: int
    data: bytes

    def list_fields(self) -> list[Encodable]:
        return [_list_name(self.name), self.offset, self.data]

    @classmethod
    def read_fields(cls, items: Sequence[Item]) -> Self:
        name = _read_name(items[0])
        offset = _read_offset(items[1], name)
        return cls(name, offset, read_bytes(items[2], compute_chunk_size(name, offset)))


@dataclass(frozen=True, slots=True)
class SegmentRequest:
    """Asks for finalized blocks from `height` on."""

    kind: ClassVar[int] = 35
    lane: ClassVar[Lane] = Lane.BULK
    limit: ClassVar[int] = LENGTHS + NUMBER

    height: Height

    def list_fields(self) -> list[Encodable]:
        return [self.height]

    @classmethod
    def read_fields(cls, items: Sequence[Item]) -> Self:
        return cls(Height(read_int(items[0], 64)))


@dataclass(frozen=True, slots=True)
class SegmentAnswer:
    """Finalized blocks, oldest first, and the certificate that finalizes the last of them.

    1 to MAX_SEGMENT_BLOCKS blocks, at most MAX_SEGMENT_BYTES encoded.
    """

    kind: ClassVar[int] = 36
    lane: ClassVar[Lane] = Lane.BULK
    limit: ClassVar[int] = LENGTHS + MAX_SEGMENT_BYTES + MAX_CERTIFICATE_BYTES

    blocks: tuple[Block, ...]
    certificate: Certificate

    def list_fields(self) -> list[Encodable]:
        return [
            [encode_block(block) for block in self.blocks],
            encode_certificate(self.certificate),
        ]

    @classmethod
    def read_fields(cls, items: Sequence[Item]) -> Self:
        blocks = read_list(items[0], limit=MAX_SEGMENT_BLOCKS)
        if not blocks:
            raise InvalidEncoding("a segment without blocks")
        certificate = decode_certificate(read_bytes(items[1]))
        return cls(tuple(decode_block(read_bytes(block)) for block in blocks), certificate)


@dataclass(frozen=True, slots=True)
class Absent:
    """The sender lacks what was asked for: ask somebody else."""

    kind: ClassVar[int] = 37
    lane: ClassVar[Lane] = Lane.BULK
    limit: ClassVar[int] = LENGTHS + BlobRequest.limit

    what: BlobRequest | SegmentRequest

    def list_fields(self) -> list[Encodable]:
        return [encode_message(self.what)]

    @classmethod
    def read_fields(cls, items: Sequence[Item]) -> Self:
        what = decode_message(read_bytes(items[0]), Lane.BULK)
        if not isinstance(what, BlobRequest | SegmentRequest):
            raise InvalidEncoding("only what was asked for can be absent")
        return cls(what)


Message: TypeAlias = (
    Status
    | VoteMessage
    | CertificateMessage
    | ProposalMessage
    | TransactionMessage
    | Announcement
    | BlockRequest
    | BlockAnswer
    | CertificatesRequest
    | BlobRequest
    | BlobChunk
    | SegmentRequest
    | SegmentAnswer
    | Absent
)
KINDS: Final[dict[int, type[Message]]] = {kind.kind: kind for kind in Message.__args__}
MAX_MESSAGE_BYTES: Final = {
    lane: max(kind.limit for kind in KINDS.values() if kind.lane == lane) for lane in Lane
}
"""The largest message of each lane."""

WEIGHTS: Final[dict[type[Message] | None, int]] = {
    VoteMessage: 4,
    CertificateMessage: 4,
    ProposalMessage: 20,
    BlockAnswer: 20,
}
"""So many messages one of these counts as, others as one: each costs a check of a signature, or
some milliseconds to read, and honest validators send few."""

assert len(KINDS) == len(Message.__args__)
assert min(KINDS) > 0
assert max(3 * MAX_ANNOUNCED, MAX_SEGMENT_BLOCKS) + 8 <= MAX_ITEMS
assert max(KINDS) < 2**7
assert MAX_BLOB_BYTES < 2**32


# -- codec -----------------------------------------------------------------------------------------
def encode_message(message: Message) -> bytes:
    """Return the kind's byte and the RLP list of the fields."""
    data = bytes([message.kind]) + encode_rlp(message.list_fields())
    assert len(data) <= message.limit, f"{type(message).__name__} of {len(data)} bytes"
    return data


def decode_message(data: bytes, lane: Lane) -> Message:
    """Return the message that came in on `lane`; nothing it claims is verified.

    Raises InvalidMessage: message_empty, message_kind, message_lane, message_size,
    message_malformed.
    """
    if not data:
        raise InvalidMessage("message_empty", "no bytes at all")
    kind = KINDS.get(data[0])
    if kind is None:
        raise InvalidMessage("message_kind", f"{data[0]} is not a kind of message")
    if kind.lane != lane:
        raise InvalidMessage("message_lane", f"{kind.__name__} does not belong on this lane")
    if len(data) > kind.limit:
        raise InvalidMessage(
            "message_size", f"{kind.__name__} of {len(data)} bytes; at most {kind.limit}"
        )
    try:
        items = decode_rlp(data[1:], max_items=MAX_ITEMS)
        return kind.read_fields(read_list(items, len(fields(kind))))
    except SteelyardError as error:
        raise InvalidMessage("message_malformed", f"{kind.__name__}: {error}") from error


def compute_chunk_size(name: BlobName, offset: int) -> int:
    """Return how many bytes the piece of a blob at `offset` has."""
    return min(CHUNK_BYTES, name.size - offset)


def _read_some(item: Item, limit: int) -> bytes:
    data = read_bytes(item, limit=limit)
    if not data:
        raise InvalidEncoding("an empty byte string")
    return data


def _list_name(name: BlobName) -> list[Encodable]:
    return [name.digest, name.size]


def _read_name(item: Item) -> BlobName:
    digest, size = read_list(item, 2)
    name = BlobName(Digest(read_bytes(digest, 32)), read_int(size, 32))
    if not 1 <= name.size <= MAX_BLOB_BYTES:
        raise InvalidEncoding(f"no blob has {name.size} bytes")
    return name


def _read_offset(item: Item, name: BlobName) -> int:
    offset = read_int(item, 32)
    if offset % CHUNK_BYTES or offset >= name.size:
        raise InvalidEncoding(f"no piece of this blob begins at {offset}")
    return offset

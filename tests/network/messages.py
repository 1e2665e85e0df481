"""One message of each kind, and a strategy for more."""

from hypothesis import strategies as st

from steelyard.chain.block import Block, Extension, Header, Withdrawal
from steelyard.chain.bls import Signature
from steelyard.chain.consensus.certificates import Certificate
from steelyard.chain.consensus.votes import Kind, Statement, Vote
from steelyard.chain.types import Address, BlobName, Digest, Epoch, Hash, Height, View
from steelyard.node.network import wire

HASH = Hash(bytes(range(32)))
NAME = BlobName(Digest(bytes(range(32, 64))), 2**20 + 5)
STATEMENT = Statement(Epoch(3), View(70_000), Kind.NOTARIZE, HASH)
VOTE = Vote(STATEMENT, 5, Signature(bytes(96)))
CERTIFICATE = Certificate(STATEMENT, b"\x0f", Signature(bytes(96)))


def make_block(height: int = 9, transactions: tuple[bytes, ...] = (b"\x02ab",)) -> Block:
    header = Header(
        parent_hash=HASH,
        coinbase=Address(bytes(20)),
        state_root=HASH,
        transactions_root=HASH,
        receipts_root=HASH,
        bloom=bytes(256),
        height=Height(height),
        gas_limit=30_000_000,
        gas_used=21_000,
        timestamp=1_700_000_000,
        prev_randao=HASH,
        base_fee=7,
        withdrawals_root=HASH,
        parent_beacon_block_root=HASH,
    )
    extension = Extension(Epoch(3), View(4), Address(bytes(20)), HASH)
    return Block(header, extension, transactions, (Withdrawal(1, 2, Address(bytes(20)), 3),))


EXAMPLES: tuple[wire.Message, ...] = (
    wire.Status(wire.VERSION, HASH, Epoch(1), View(2), Height(3), HASH),
    wire.VoteMessage(VOTE),
    wire.CertificateMessage(CERTIFICATE),
    wire.ProposalMessage(make_block(), VOTE),
    wire.TransactionMessage(b"\x02raw"),
    wire.Announcement((NAME, BlobName(NAME.digest, 1))),
    wire.BlockRequest(HASH),
    wire.BlockAnswer(make_block()),
    wire.CertificatesRequest(Epoch(0), View(1)),
    wire.BlobRequest(NAME, 2**20),
    wire.BlobChunk(NAME, 2**20, b"12345"),
    wire.SegmentRequest(Height(0)),
    wire.SegmentAnswer((make_block(1), make_block(2)), CERTIFICATE),
    wire.Absent(wire.BlobRequest(NAME, 0)),
    wire.Absent(wire.SegmentRequest(Height(12))),
)

numbers = st.integers(0, 2**64 - 1)
hashes = st.binary(min_size=32, max_size=32).map(Hash)
names = st.builds(BlobName, hashes.map(Digest), st.integers(1, 3 * 2**20))
statements = st.builds(
    Statement,
    numbers.map(Epoch),
    st.integers(1, 2**64 - 1).map(View),
    st.just(Kind.FINALIZE),
    hashes.filter(any),
)
signatures = st.binary(min_size=96, max_size=96).map(Signature)
votes = st.builds(Vote, statements, numbers, signatures)
certificates = st.builds(Certificate, statements, st.binary(min_size=1, max_size=16), signatures)
blocks = st.builds(make_block, numbers, st.lists(st.binary(max_size=40), max_size=3).map(tuple))
requests = names.flatmap(
    lambda name: st.integers(0, (name.size - 1) // wire.CHUNK_BYTES).map(
        lambda piece: wire.BlobRequest(name, piece * wire.CHUNK_BYTES)
    )
)
messages = st.one_of(
    st.builds(
        wire.Status,
        st.integers(0, 2**32 - 1),
        hashes,
        numbers.map(Epoch),
        numbers.map(View),
        numbers.map(Height),
        hashes,
    ),
    st.builds(wire.VoteMessage, votes),
    st.builds(wire.CertificateMessage, certificates),
    st.builds(wire.ProposalMessage, blocks, votes),
    st.builds(wire.TransactionMessage, st.binary(min_size=1, max_size=200)),
    st.builds(wire.Announcement, st.lists(names, min_size=1, max_size=5).map(tuple)),
    st.builds(wire.BlockRequest, hashes),
    st.builds(wire.BlockAnswer, blocks),
    st.builds(wire.CertificatesRequest, numbers.map(Epoch), numbers.map(View)),
    requests,
    st.builds(wire.SegmentRequest, numbers.map(Height)),
    st.builds(
        wire.SegmentAnswer, st.lists(blocks, min_size=1, max_size=3).map(tuple), certificates
    ),
    st.builds(wire.Absent, requests),
)

"""A chain on disk without consensus, a driver without threads, and a server that may lie."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from steelyard.chain import bls
from steelyard.chain.block import MAX_ANCESTORS, Block, Header, encode_block
from steelyard.chain.cid import encode_cid
from steelyard.chain.consensus.certificates import (
    Certificate,
    build_certificate,
    encode_certificate,
)
from steelyard.chain.consensus.votes import Kind, Statement, Vote, compute_signing_root
from steelyard.chain.epochs import compute_epoch, encode_epoch_set
from steelyard.chain.execute import Outcome, Proposal, apply_block, build_block
from steelyard.chain.genesis import Genesis, GenesisState, build_genesis
from steelyard.chain.rlp import encode_rlp
from steelyard.chain.types import Domain, View
from steelyard.node.blobs import BlobStore
from steelyard.node.config import BlobsConfig
from steelyard.node.follow import read_nodes, read_segment
from steelyard.node.founding import Foundation, create_document
from steelyard.node.store import ChainStore, FinalBlock

from .world import ALICE, BOB, CHAIN_ID, COIN, SECRETS, get_address

if TYPE_CHECKING:
    from steelyard.node.inbox import Segment

EPOCH_BLOCKS = 4
BEGAN = 1_700_000_000
Body = bytes | Iterator[bytes]
Lie = Callable[[str, bytes], tuple[int, Body] | None]
"""Path and body of a request to what is answered instead; None: the truth."""


@cache
def make_genesis(name: str = "follow") -> tuple[Genesis, GenesisState]:
    """Four blocks an epoch, one validator."""
    plan = Foundation(
        chain_id=CHAIN_ID,
        name=name,
        timestamp=BEGAN,
        stake=32 * COIN,
        validator_balance=100 * COIN,
        funds={get_address(ALICE): 1000 * COIN, get_address(BOB): 1000 * COIN},
        heartbeat_ms=60_000,
        timeout_ms=10_000,
        gas_limit=30_000_000,
        blob_retention_seconds=3_600,
        epoch_blocks=EPOCH_BLOCKS,
    )
    genesis = create_document(plan, SECRETS)
    return genesis, build_genesis(genesis)


class Chain:
    """A store with a chain in it, and the key that makes its blocks final."""

    def __init__(self, directory: Path, name: str = "follow") -> None:
        self.genesis, self.state = make_genesis(name)
        self.directory = directory
        self.store = ChainStore(directory / "chain", 2**27)
        self.blobs = BlobStore(directory, BlobsConfig())
        first = FinalBlock(self.state.block, (), self.state.nodes, (), self.state.epoch_set)
        self.store.commit([first], None, {})

    @property
    def head(self) -> Header:
        return self.store.get_head()

    def grow(self, count: int = 1, transactions: Sequence[bytes] = ()) -> list[Block]:
        """Make blocks final, the transactions in the first."""
        return [self.add(transactions if place == 0 else ()) for place in range(count)]

    def add(self, transactions: Sequence[bytes] = ()) -> Block:
        parent = self.head
        current = self.store.get_epoch_set(compute_epoch(parent.height + 1, EPOCH_BLOCKS))
        proposal = Proposal(
            View(parent.height % EPOCH_BLOCKS + 1),
            parent.timestamp + 1,
            self.store.get_recent_hashes(parent.height, MAX_ANCESTORS),
        )
        built = build_block(
            self.store, self.blobs, self.genesis.rules, parent, proposal, transactions, current
        )
        assert len(built.block.transactions) == len(transactions)
        self.commit([(built.block, built.outcome)], seal(built.block))
        return built.block

    def commit(self, made: Sequence[tuple[Block, Outcome]], certificate: Certificate) -> None:
        finals = []
        for block, outcome in made:
            expiries = tuple((name, outcome.blobs_expire_at) for name in outcome.declared)
            next_set = None if outcome.next_set is None else outcome.next_set.epoch_set
            finals.append(FinalBlock(block, outcome.receipts, outcome.nodes, expiries, next_set))
        self.store.commit(finals, certificate, {})

    def take(self, segment: "Segment") -> None:
        """What the driver does with a segment, at once."""
        for block in segment.blocks:
            parent = self.head
            current = self.store.get_epoch_set(compute_epoch(block.height, EPOCH_BLOCKS))
            ancestors = self.store.get_recent_hashes(parent.height, MAX_ANCESTORS)
            outcome = apply_block(
                self.store, self.blobs, self.genesis.rules, parent, block, ancestors, current
            )
            self.commit([(block, outcome)], segment.certificate)

    def close(self) -> None:
        self.store.close()


def seal(block: Block, domain: Domain | None = None) -> Certificate:
    """The finalization by the only validator."""
    genesis, state = make_genesis()
    said = block.extension
    statement = Statement(said.epoch, said.view, Kind.FINALIZE, block.hash)
    root = compute_signing_root(statement, domain or genesis.domain)
    signature = bls.sign(SECRETS.voting, root)
    return build_certificate([Vote(statement, 0, signature)], state.validators)


@dataclass
class SourceServer:
    """Serves a chain as `node/follow.py` does, unless `lie` has something else to say."""

    chain: Chain
    lie: Lie = lambda _path, _body: None
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str, body: bytes) -> tuple[int, Body]:
        self.asked.append(path)
        instead = self.lie(path, body)
        return self.tell(path, body) if instead is None else instead

    def tell(self, path: str, body: bytes) -> tuple[int, bytes]:
        """The truth."""
        store = self.chain.store
        _, _, kind, *rest = path.split("/")
        found: bytes | None
        match kind:
            case "head":
                found = self.tell_head()
            case "nodes":
                keys = [body[at : at + 32] for at in range(0, len(body), 32)]
                found = encode_rlp(read_nodes(store, keys))
            case "segments":
                found = read_segment(store, int(rest[0]), EPOCH_BLOCKS)
            case "validators":
                known = store.find_epoch_set(int(rest[0]))
                found = None if known is None else encode_epoch_set(known)
            case "certificates":
                certificate = store.get_certificate(int(rest[0]))
                found = None if certificate is None else encode_certificate(certificate)
            case "blocks":
                block_hash = store.get_hash(int(rest[0]))
                block = None if block_hash is None else store.get_block(block_hash)
                found = None if block is None else encode_block(block)
            case _:
                found = self.read_blob(path.removeprefix("/blobs/"))
        return (404, b"{}") if found is None else (200, found)

    def tell_head(self, **changes: object) -> bytes:
        genesis_hash = self.chain.store.get_hash(0) or b""
        facts = {
            "chain_id": CHAIN_ID,
            "genesis_hash": "0x" + genesis_hash.hex(),
            "height": self.chain.head.height,
            "hash": "0x" + self.chain.head.hash.hex(),
            "timestamp": self.chain.head.timestamp,
            "epoch": 0,
            "oldest_state": 0,
        }
        return json.dumps(facts | changes).encode()

    def read_blob(self, cid: str) -> bytes | None:
        for name in self.chain.blobs.get_names():
            if encode_cid(name) == cid:
                return bytes(self.chain.blobs.read(name))
        return None


@contextmanager
def serve(chain: Chain, lie: Lie = lambda _path, _body: None) -> Iterator[SourceServer]:
    """A source on a free port."""
    source = SourceServer(chain, lie)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            status, answer = source.answer(self.path, body)
            self.send_response(status)
            if isinstance(answer, bytes):
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
                return
            self.send_header("connection", "close")
            self.end_headers()
            self.close_connection = True
            try:
                for piece in answer:
                    self.wfile.write(piece)
            except OSError:
                pass  # whoever asked has had enough

        do_GET = do_POST = do_HEAD = do_PUT = handle_any

        def log_message(self, *_: object) -> None:
            """Be silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    source.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield source
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

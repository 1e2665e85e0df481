"""What full nodes and auditors fetch: the chain, by height; states, by the hashes of their nodes.

Nothing here needs to be trusted: a follower checks hashes and certificates, and executes again.
Blocks, certificates and validator sets are kept for ever; states are not (`pruning.py`).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from steelyard.chain.block import encode_block
from steelyard.chain.consensus.certificates import encode_certificate
from steelyard.chain.epochs import compute_epoch, encode_epoch_set, get_boundary
from steelyard.chain.errors import SteelyardError
from steelyard.chain.rlp import encode_rlp
from steelyard.chain.segments import (
    MAX_SEGMENT_BLOCKS,
    MAX_SEGMENT_BYTES,
    MAX_TOGETHER_BLOCKS,
    SEGMENT_BYTES,
    encode_segment,
)

from .history import get_oldest_state
from .responses import answer_error, answer_json, drain, iter_body
from .store import ChainStore, encode_height
from .workers import WorkerPool

if TYPE_CHECKING:
    from .node import Node

MAX_HEIGHT_DIGITS: Final = 18
MAX_NODES: Final = 256
"""Hashes in one question."""
HASH_BYTES: Final = 32
NODES_BYTES: Final = 2 * 2**20
"""An answer with nodes ends once it is larger; the rest is asked for again."""
BODY_SECONDS: Final = 10.0
RLP_TYPE: Final = "application/octet-stream"
IMMUTABLE: Final = "public, max-age=31536000, immutable"
FRESH: Final = "no-cache"
STATUSES: Final = {"bad_height": 400, "bad_hashes": 400, "body_timeout": 408}
"""HTTP statuses of our codes; 503 for the others."""


class Follow:
    """GET /chain/genesis, head, blocks, certificates, segments, validators; POST /chain/nodes."""

    def __init__(self, node: "Node", pool: WorkerPool) -> None:
        self.node, self.pool = node, pool

    async def get_genesis(self, _request: Request) -> Response:
        """The canonical JSON: its hash is the chain's identity."""
        document = await self.pool.run(self.node.get_genesis_document)
        return Response(
            document, media_type="application/json", headers={"cache-control": IMMUTABLE}
        )

    async def get_head(self, _request: Request) -> Response:
        """Where this node is; a follower believes it only as far as it can check it."""
        facts = await self.pool.run(self._read_head)
        return answer_json(facts, headers={"cache-control": FRESH})

    async def get_block(self, request: Request) -> Response:
        """The RLP wire form of a finalized block."""
        return await self._answer(request, "height", self._read_block, IMMUTABLE)

    async def get_certificate(self, request: Request) -> Response:
        """The RLP of the certificate that finalized a height."""
        return await self._answer(request, "height", self._read_certificate, IMMUTABLE)

    async def get_segment(self, request: Request) -> Response:
        """Finalized blocks from a height on, with the certificate of the last."""
        return await self._answer(request, "height", self._read_segment, FRESH)

    async def get_validators(self, request: Request) -> Response:
        """The RLP of the validator set of an epoch."""
        return await self._answer(request, "epoch", self._read_validators, IMMUTABLE)

    async def post_nodes(self, request: Request) -> Response:
        """Those nodes and codes of states, of up to MAX_NODES asked for, that this node holds."""
        try:
            wanted = await read_hashes(request)
            found = await self.pool.run(lambda: read_nodes(self.node.store, wanted))
        except SteelyardError as error:
            await drain(request)
            return answer_error(error, STATUSES.get(error.code, 503))
        except ClientDisconnect:
            return Response(status_code=400)
        return Response(encode_rlp(found), media_type=RLP_TYPE, headers={"cache-control": FRESH})

    async def _answer(
        self, request: Request, name: str, read: Callable[[int], bytes | None], cache: str
    ) -> Response:
        text = request.path_params[name]
        if not (text.isascii() and text.isdigit() and len(text) <= MAX_HEIGHT_DIGITS):
            error = SteelyardError("bad_height", f"the {name} is a decimal number")
            return answer_error(error, 400)
        try:
            data = await self.pool.run(lambda: read(int(text)))
        except SteelyardError as error:
            return answer_error(error, STATUSES.get(error.code, 503))
        if data is None:
            missing = SteelyardError("unknown_block", f"nothing is kept here for {name} {text}")
            return answer_error(missing, 404)
        return Response(data, media_type=RLP_TYPE, headers={"cache-control": cache})

    def _read_head(self) -> dict[str, object]:
        store, head = self.node.store, self.node.get_head()
        return {
            "chain_id": self.node.rules.chain_id,
            "genesis_hash": "0x" + (store.get_hash(0) or b"").hex(),
            "height": head.height,
            "hash": "0x" + head.hash.hex(),
            "timestamp": head.timestamp,
            "epoch": compute_epoch(head.height, self.node.rules.epoch_blocks),
            "oldest_state": get_oldest_state(store),
        }

    def _read_block(self, height: int) -> bytes | None:
        block_hash = self.node.get_hash(height)
        block = None if block_hash is None else self.node.get_block(block_hash)
        return None if block is None else encode_block(block)

    def _read_certificate(self, height: int) -> bytes | None:
        certificate = self.node.get_certificate(height)
        epoch = compute_epoch(height, self.node.rules.epoch_blocks)
        if certificate is None or certificate.epoch != epoch:
            return None  # one of a later epoch says nothing: that of the boundary is not here
        return encode_certificate(certificate)

    def _read_segment(self, height: int) -> bytes | None:
        return read_segment(self.node.store, height, self.node.rules.epoch_blocks)

    def _read_validators(self, epoch: int) -> bytes | None:
        epoch_set = self.node.store.find_epoch_set(epoch)
        return None if epoch_set is None else encode_epoch_set(epoch_set)


async def read_hashes(request: Request) -> tuple[bytes, ...]:
    """The body as hashes, one after the other. Raises SteelyardError bad_hashes, body_timeout."""
    body = bytearray()
    async for chunk in iter_body(request, BODY_SECONDS, BODY_SECONDS):
        body += chunk
        if len(body) > MAX_NODES * HASH_BYTES:
            raise SteelyardError("bad_hashes", f"at most {MAX_NODES} hashes at once")
    if not body or len(body) % HASH_BYTES:
        raise SteelyardError("bad_hashes", f"the body is hashes of {HASH_BYTES} bytes each")
    return tuple(
        bytes(body[start : start + HASH_BYTES]) for start in range(0, len(body), HASH_BYTES)
    )


def read_nodes(store: ChainStore, wanted: Sequence[bytes]) -> list[bytes]:
    """Those that are here, in the order asked for, until the answer is large enough."""
    found, size = [], 0
    for key in wanted:
        value = store.get_node(key)
        if value is not None:
            found.append(value)
            size += len(value)
        if size > NODES_BYTES:
            break
    return found


def read_segment(store: ChainStore, height: int, epoch_blocks: int) -> bytes | None:
    """Finalized blocks from `height` on, as many as fit, up to one that has a certificate.

    Never across the end of an epoch. None if nothing is final at that height, or it is not kept.
    Raises SteelyardError segment_too_large.
    """
    if height < 1:
        return None
    last = get_boundary(compute_epoch(height, epoch_blocks), epoch_blocks)
    blocks: list[bytes] = []
    size, best, sealed = 0, 0, b""
    while height + len(blocks) <= last:
        at = height + len(blocks)
        block = store.database.get("blocks", encode_height(at))
        if block is None:
            break
        size += len(block)
        if best and (len(blocks) >= MAX_SEGMENT_BLOCKS or size > SEGMENT_BYTES):
            break
        if size > MAX_SEGMENT_BYTES // 2 or len(blocks) == MAX_TOGETHER_BLOCKS:
            raise SteelyardError("segment_too_large", f"the blocks from {height} on, in one answer")
        blocks.append(block)
        certificate = store.database.get("certificates", encode_height(at))
        if certificate is not None:
            best, sealed = len(blocks), certificate
    return encode_segment(blocks[:best], sealed) if best else None

"""What full nodes and auditors fetch: the genesis document, blocks and certificates, by height.

Nothing here needs to be trusted: a follower checks hashes, certificates and executes again.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from starlette.requests import Request
from starlette.responses import Response

from steelyard.chain.block import encode_block
from steelyard.chain.consensus.certificates import encode_certificate
from steelyard.chain.errors import SteelyardError

from .responses import answer_error
from .workers import WorkerPool

if TYPE_CHECKING:
    from .node import Node

MAX_HEIGHT_DIGITS: Final = 18
RLP_TYPE: Final = "application/octet-stream"
IMMUTABLE: Final = "public, max-age=31536000, immutable"


class Follow:
    """GET /chain/genesis, /chain/blocks/{height}, /chain/certificates/{height}."""

    def __init__(self, node: "Node", pool: WorkerPool) -> None:
        self.node, self.pool = node, pool

    async def get_genesis(self, _request: Request) -> Response:
        """The canonical JSON: its hash is the chain's identity."""
        document = await self.pool.run(self.node.get_genesis_document)
        return Response(
            document, media_type="application/json", headers={"cache-control": IMMUTABLE}
        )

    async def get_block(self, request: Request) -> Response:
        """The RLP wire form of a finalized block."""
        return await self._answer(request, self._read_block)

    async def get_certificate(self, request: Request) -> Response:
        """The RLP of the certificate that finalized a height."""
        return await self._answer(request, self._read_certificate)

    async def _answer(self, request: Request, read: Callable[[int], bytes | None]) -> Response:
        text = request.path_params["height"]
        if not (text.isascii() and text.isdigit() and len(text) <= MAX_HEIGHT_DIGITS):
            error = SteelyardError("bad_height", "the height is a decimal number")
            return answer_error(error, 400)
        try:
            data = await self.pool.run(lambda: read(int(text)))
        except SteelyardError as error:
            return answer_error(error, 503)
        if data is None:
            missing = SteelyardError("unknown_block", f"nothing is finalized at height {text}")
            return answer_error(missing, 404)
        return Response(data, media_type=RLP_TYPE, headers={"cache-control": IMMUTABLE})

    def _read_block(self, height: int) -> bytes | None:
        block_hash = self.node.get_hash(height)
        block = None if block_hash is None else self.node.get_block(block_hash)
        return None if block is None else encode_block(block)

    def _read_certificate(self, height: int) -> bytes | None:
        certificate = self.node.get_certificate(height)
        return None if certificate is None else encode_certificate(certificate)

"""Blocks that became final together and do not fit into one segment: fetched one by one.

The certificate of the last of them comes first; below it every block is named by its child, so none
is kept that the validators did not finalize. Where the certificate's block is, nobody says: it is
the highest one for which the source answers with that same certificate.
"""

from typing import Final

from steelyard.chain.block import Block, Header, decode_block
from steelyard.chain.consensus.certificates import (
    MAX_CERTIFICATE_BYTES,
    Certificate,
    decode_certificate,
)
from steelyard.chain.epochs import EpochSet, get_boundary
from steelyard.chain.following import Checkpoint, check_checkpoint, check_finality
from steelyard.chain.genesis import Genesis
from steelyard.chain.params import MAX_BLOCK_BYTES
from steelyard.chain.segments import FinalBlocks, check_body
from steelyard.chain.types import Height

from .sources import Source, SourceLacks, Sources, SourceWrong

MAX_TOGETHER_BYTES: Final = 512 * 2**20
"""They are executed and committed at once, so they must fit into memory."""
SECONDS: Final = 30.0


class TogetherFetch:
    """The blocks after `tip`, from one source, up to the first that has a certificate there."""

    def __init__(self, sources: Sources, source: Source, genesis: Genesis) -> None:
        self._sources, self._source, self._genesis = sources, source, genesis

    def run(self, tip: Header, current: EpochSet) -> FinalBlocks:
        """Verified except for where they begin: check the segment. Raises SteelyardError."""
        certificate = self._fetch_certificate(tip.height + 1)
        check_finality(certificate, certificate.hash, current, self._genesis.domain)
        blocks: list[Block] = []
        size, wanted = 0, certificate.hash
        for height in range(self._find_height(tip, certificate, current), tip.height, -1):
            data = self._sources.get(
                self._source, f"/chain/blocks/{height}", MAX_BLOCK_BYTES, SECONDS
            )
            size += len(data)
            if size > MAX_TOGETHER_BYTES:
                raise SourceWrong("source_block", f"above {MAX_TOGETHER_BYTES} bytes at once")
            block = decode_block(data)
            check_checkpoint(Checkpoint(Height(height), wanted), block.header)
            check_body(block)
            blocks.append(block)
            wanted = block.header.parent_hash
        return FinalBlocks(tuple(reversed(blocks)), certificate)

    def _find_height(self, tip: Header, certificate: Certificate, current: EpochSet) -> int:
        low, high = tip.height + 1, get_boundary(current.epoch, self._genesis.epoch_blocks)
        while low < high:
            middle = (low + high + 1) // 2
            if self._is_same(certificate, middle):
                low = middle
            else:
                high = Height(middle - 1)
        return low

    def _is_same(self, certificate: Certificate, height: int) -> bool:
        try:
            return self._fetch_certificate(height).hash == certificate.hash
        except SourceLacks:
            return False  # above its head

    def _fetch_certificate(self, height: int) -> Certificate:
        path = f"/chain/certificates/{height}"
        return decode_certificate(
            self._sources.get(self._source, path, MAX_CERTIFICATE_BYTES, SECONDS)
        )

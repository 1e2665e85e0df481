"""One validator's exchange of blobs among four, driven by hand: no sockets, no threads."""

from collections.abc import Iterable
from pathlib import Path

from steelyard.chain.types import Address, BlobName
from steelyard.node.blobs import BlobStore
from steelyard.node.config import BlobsConfig
from steelyard.node.network.exchange import Exchange
from steelyard.node.network.outgoing import Outgoing
from steelyard.node.network.wire import (
    CHUNK_BYTES,
    Announcement,
    BlobChunk,
    BlobRequest,
    Message,
)
from tests.node.world import make_blob

ME, ANN, BEN, CAT = (Address(bytes([number]) * 20) for number in range(1, 5))
OTHERS = (ANN, BEN, CAT)
SMALL, SMALL_DATA = make_blob(1_000)
OTHER, OTHER_DATA = make_blob(2_000)
LARGE, LARGE_DATA = make_blob(2 * CHUNK_BYTES + 5)
"""Three pieces."""


OPEN: list["Desk"] = []
"""Closed after each test, by conftest.py."""


class Desk:
    """An exchange with its store, what is declared, and a clock."""

    def __init__(
        self,
        path: Path,
        declared: Iterable[BlobName] = (),
        config: BlobsConfig | None = None,
        bytes_per_second: int = 2**30,
    ) -> None:
        self.declared = dict.fromkeys(declared)
        self.available = 0
        self.blamed: list[tuple[Address, str]] = []
        self.now = 100.0
        self.path = path
        self.blobs = BlobStore(path, config or BlobsConfig())
        self.exchange = Exchange(
            ME,
            self.blobs,
            lambda name: name in self.declared,
            lambda: tuple(self.declared),
            lambda _: None,
            self._count_available,
            lambda peer, code: self.blamed.append((peer, code)),
            bytes_per_second,
        )
        self.blobs.on_arrival = self.exchange.on_arrival
        self.exchange.set_members(dict.fromkeys((ME, *OTHERS), 1), OTHERS, self.now)
        for peer in OTHERS:
            self.exchange.set_connected(peer, self.now, is_connected=True)
        self.exchange.tick(self.now)
        OPEN.append(self)

    def _count_available(self) -> None:
        self.available += 1

    def keep(self, name: BlobName, data: bytes) -> None:
        """A client uploads it."""
        upload = self.blobs.open_upload(name, lambda _: True)
        upload.write(data)
        upload.commit()

    def announce(self, peer: Address, *names: BlobName) -> list[Outgoing]:
        return self.exchange.on_announcement(peer, names, self.now)

    def tick(self, seconds: float = 0.05) -> list[Outgoing]:
        self.now += seconds
        return self.exchange.tick(self.now)

    def serve(self, sending: Iterable[Outgoing], data: bytes) -> list[Outgoing]:
        """Answer every request with pieces of these bytes. Returns what is asked for then."""
        asked: list[Outgoing] = []
        for peer, message in sending:
            if isinstance(message, BlobRequest):
                assert peer is not None
                piece = data[message.offset : message.offset + CHUNK_BYTES]
                chunk = BlobChunk(message.name, message.offset, piece)
                asked += self.exchange.on_chunk(peer, chunk, self.now)
        return asked


def list_requests(sending: Iterable[Outgoing]) -> list[tuple[Address | None, int]]:
    """Of whom pieces are asked, and at which offsets."""
    return [(peer, one.offset) for peer, one in sending if isinstance(one, BlobRequest)]


def list_announced(sending: Iterable[Outgoing]) -> list[tuple[Address | None, BlobName]]:
    return [
        (peer, name) for peer, one in sending if isinstance(one, Announcement) for name in one.names
    ]


def get_messages(sending: Iterable[Outgoing]) -> list[Message]:
    return [message for _, message in sending]

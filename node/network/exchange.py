"""Blobs among validators: who holds what, fetching what is missing, serving what is asked for.

A blob that a pending transaction declares is announced to all as soon as it is complete here, and
again now and then, as messages may be lost. Whoever lacks it asks those that announced it, piece
by piece over the bulk lane. What a block needs is asked of everybody. Nothing else is fetched, so
nothing is stored that nobody declared or asked for.

Available is a blob that we hold and that validators with more than two thirds of the power, we
among them, announced. At least one third of the power is then honest and serves it, whatever the
others do. So an announcer that does not serve is asked last and counted, but its word still counts:
were our own measurements of it part of the rule, a slow link could keep a transaction out.

One thread owns an `Exchange`; only `is_available` and `is_expected` may be called from any. Every
other method returns the messages to send.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from steelyard.chain.errors import UnavailableBlob
from steelyard.chain.types import Address, BlobName

from ..blobs import BlobStore
from .fetcher import MAX_ASKED, Fetcher
from .outgoing import Outgoing
from .partners import Electorate, Partner, create_electorate
from .quota import Bucket
from .wire import (
    CHUNK_BYTES,
    MAX_ANNOUNCED,
    Absent,
    Announcement,
    BlobChunk,
    BlobRequest,
    compute_chunk_size,
)

SERVED_FACTOR: Final = 4
"""Pieces that a validator gets for each one that we would ask it for in the same time."""
REPEAT_SECONDS: Final = 5.0
"""Held blobs of pending transactions are announced again this often."""


class Exchange:
    """See the module. `is_declared`: by a pending transaction of ours; `get_declared`: all those;
    `check_space` raises StorageFull if so many more bytes must not be written; `on_available`
    learns that a declared blob may be in a block now; `blame` who served wrong bytes;
    `bytes_per_second`: what one validator may send us."""

    def __init__(
        self,
        me: Address,
        blobs: BlobStore,
        is_declared: Callable[[BlobName], bool],
        get_declared: Callable[[], tuple[BlobName, ...]],
        check_space: Callable[[int], None],
        on_available: Callable[[], None],
        blame: Callable[[Address, str], None],
        bytes_per_second: int,
    ) -> None:
        self._me, self._blobs = me, blobs
        self._is_declared, self._get_declared = is_declared, get_declared
        self._on_available = on_available
        self._electorate = Electorate()
        self._unannounced: dict[BlobName, None] = {}
        self._repeat_at = float("-inf")
        self._fetcher = Fetcher(blobs, is_declared, check_space, blame)
        self._pieces_per_second = bytes_per_second / CHUNK_BYTES / 2
        self.partners: dict[Address, Partner] = {}
        self.counters = self._fetcher.counters
        self.chunks_served = self.requests_absent = self.requests_dropped = 0

    # -- who there is ------------------------------------------------------------------------------
    def set_members(
        self, powers: Mapping[Address, int], peers: Iterable[Address], now: float
    ) -> list[Outgoing]:
        """The set that votes, and everybody (but us) that the mesh connects."""
        self.partners = {
            address: self.partners.get(address) or self._create_partner(now)
            for address in peers
            if address != self._me
        }
        self._electorate = create_electorate(powers, self._me, self.partners)
        self._fetcher.set_partners(self.partners)
        self._on_available()
        return self._fetcher.pump(now)

    def _create_partner(self, now: float) -> Partner:
        """Half of what it may send us is asked for: nothing that comes should be dropped.

        It gets several times as much: its limits may be others.
        """
        pace = self._pieces_per_second
        burst = max(MAX_ASKED, pace)
        return Partner(
            Bucket.create(pace, burst, now),
            Bucket.create(SERVED_FACTOR * pace, SERVED_FACTOR * burst, now),
        )

    def set_connected(self, peer: Address, now: float, *, is_connected: bool) -> list[Outgoing]:
        """A new connection is told what we hold; one that ended is not waited for."""
        partner = self.partners.get(peer)
        if partner is None or partner.is_connected == is_connected:
            return []
        partner.is_connected = is_connected
        if is_connected:
            return self.announce_held(peer) + self._fetcher.pump(now)
        self._fetcher.on_disconnected(peer, now)
        return self._fetcher.pump(now)

    # -- announcements -----------------------------------------------------------------------------
    def is_available(self, name: BlobName) -> bool:
        """May a block carry it? From any thread."""
        return self._blobs.has(name) and self._electorate.has_announced(name)

    def on_announcement(
        self, peer: Address, names: Iterable[BlobName], now: float
    ) -> list[Outgoing]:
        """Another validator holds these, it says. Unknown ones are remembered, a bounded number."""
        partner = self.partners.get(peer)
        if partner is None:
            return []
        names = tuple(names)
        partner.remember(names)
        for name in names:
            self._fetcher.want(name)
        if any(self._is_declared(name) and self.is_available(name) for name in names):
            self._on_available()
        return self._fetcher.pump(now)

    def on_declared(self, names: Iterable[BlobName], now: float) -> list[Outgoing]:
        """A transaction that declares these is pending now."""
        for name in names:
            if self._blobs.has(name):
                self._unannounced[name] = None
            elif any(name in partner.announced for partner in self.partners.values()):
                self._fetcher.want(name)
        return self._fetcher.pump(now)

    def on_arrival(self, name: BlobName) -> None:
        """A blob is complete here: from a client, or fetched."""
        if self._is_declared(name):
            self._unannounced[name] = None

    def announce_held(self, to: Address | None) -> list[Outgoing]:
        """Every blob that is held and declared, to one validator or to all."""
        return self._announce(self._get_declared(), to)

    def _announce(self, names: Iterable[BlobName], to: Address | None) -> list[Outgoing]:
        held = tuple(name for name in names if self._blobs.has(name))
        starts = range(0, len(held), MAX_ANNOUNCED)
        return [(to, Announcement(held[start : start + MAX_ANNOUNCED])) for start in starts]

    # -- fetching ----------------------------------------------------------------------------------
    def fetch_blobs(
        self, names: Iterable[BlobName], holders: Iterable[Address], now: float
    ) -> list[Outgoing]:
        """The driver cannot go on without these; `holders` should have them, anybody may."""
        self._fetcher.need(names, holders, now)
        return self._fetcher.pump(now)

    def is_expected(self, peer: Address, name: BlobName, offset: int) -> bool:
        """Was this piece asked of this validator? From any thread."""
        return self._fetcher.is_expected(peer, name, offset)

    def on_chunk(self, peer: Address, chunk: BlobChunk, now: float) -> list[Outgoing]:
        """A piece of a blob came."""
        self._fetcher.on_chunk(peer, chunk, now)
        return self._fetcher.pump(now)

    def on_absent(self, peer: Address, name: BlobName, now: float) -> list[Outgoing]:
        """The validator says that it lacks it, so what it announced before is over."""
        partner = self.partners.get(peer)
        if partner is not None:
            partner.announced.pop(name, None)
        self._fetcher.on_absent(peer, name, now)
        return self._fetcher.pump(now)

    def count_waiting(self) -> int:
        """Blobs under way, or waiting for somebody who serves them."""
        return self._fetcher.count()

    def tick(self, now: float) -> list[Outgoing]:
        """Several times a second: announces what came, repeats, gives up on the silent."""
        fresh: Iterable[BlobName] = tuple(self._unannounced)
        self._unannounced.clear()
        if now >= self._repeat_at:
            self._repeat_at = now + REPEAT_SECONDS
            fresh = self._get_declared()
        sending = self._announce(fresh, None)
        self._fetcher.tick(now)
        return sending + self._fetcher.pump(now)

    def close(self) -> None:
        """Throw away what is not complete."""
        self._fetcher.close()

    # -- serving -----------------------------------------------------------------------------------
    def on_request(self, peer: Address, request: BlobRequest, now: float) -> list[Outgoing]:
        """Any validator gets any blob that is held, one piece for each request, so many a second.

        Reading costs us more than asking costs it: what is too much is dropped and counted.
        """
        partner = self.partners.get(peer)
        if partner is None or not partner.served.has_taken(1, now):
            self.requests_dropped += 1
            return []
        name, start = request.name, request.offset
        try:
            data = self._blobs.read(name)
        except UnavailableBlob:
            self.requests_absent += 1
            return [(peer, Absent(request))]
        self.chunks_served += 1
        piece = bytes(data[start : start + compute_chunk_size(name, start)])
        return [(peer, BlobChunk(name, start, piece))]

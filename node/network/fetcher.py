"""Fetching blobs: which to take from whom next, within bounds, until all that is wanted is here.

What a block needs goes first. Of the holders that may be asked the one that served well lately and
owes least is taken. One thread owns a `Fetcher`; methods return the messages to send.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from steelyard.chain.cid import encode_cid
from steelyard.chain.errors import SteelyardError
from steelyard.chain.types import Address, BlobName

from ..blobs import BlobStore, BlobUpload
from ..logs import log_event
from .fetching import Fetch
from .outgoing import Outgoing
from .partners import Partner
from .wire import CHUNK_BYTES, BlobChunk, BlobRequest

MAX_ASKED: Final = 8
"""Pieces that one validator may owe us."""
MAX_ASKED_TOTAL: Final = 32
"""Pieces (of at most CHUNK_BYTES) that all of them together may."""
MAX_SOURCES: Final = 16
"""Declared blobs that are fetched at once: each has an upload open, as clients' ones have."""
NEEDED_SECONDS: Final = 60.0
"""What a block needed is forgotten unless the driver asks again."""
MAX_NEEDED: Final = 4_096
NO_SPACE_SECONDS: Final = 5.0
"""Pause after the disk was full or the quota of uploads used up."""
LOOK_SECONDS: Final = 0.5
WRONG: Final = frozenset({"blob_mismatch", "blob_size"})
OVER: Final = frozenset({"blob_held", "blob_too_late"})
"""It came another way, or nobody wants it any more."""


@dataclass(slots=True)
class FetchCounters:
    """Totals since the start."""

    blobs_fetched: int = 0
    bytes_fetched: int = 0
    chunk_timeouts: int = 0
    wrong_blobs: int = 0
    chunks_unasked: int = 0


class Fetcher:
    """See the module. `is_declared`: by a pending transaction; `check_space` raises StorageFull;
    `blame` learns who served wrong bytes."""

    def __init__(
        self,
        blobs: BlobStore,
        is_declared: Callable[[BlobName], bool],
        check_space: Callable[[int], None],
        blame: Callable[[Address, str], None],
    ) -> None:
        self._blobs, self._is_declared = blobs, is_declared
        self._check_space, self._blame = check_space, blame
        self._fetches: dict[BlobName, Fetch] = {}
        self._needed: dict[BlobName, float] = {}
        self._paused_until = self._declared_paused_until = float("-inf")
        self.partners: Mapping[Address, Partner] = {}
        self.counters = FetchCounters()

    def set_partners(self, partners: Mapping[Address, Partner]) -> None:
        """Who can be asked. Nothing is expected any more from those that left."""
        gone = [one for one in self._fetches.values() if one.source not in partners]
        for fetch in gone:
            fetch.release()
        self.partners = partners

    # -- what is wanted ----------------------------------------------------------------------------
    def is_wanted(self, name: BlobName) -> bool:
        """May it be stored?"""
        return name in self._needed or self._is_declared(name)

    def want(self, name: BlobName, holders: Iterable[Address] = ()) -> None:
        """Somebody has this blob: fetch it if it is wanted and not here."""
        if not self._blobs.has(name) and self.is_wanted(name):
            fetch = self._fetches.setdefault(name, Fetch(name))
            fetch.holders.update(holders)
            fetch.look_at = float("-inf")

    def need(self, names: Iterable[BlobName], holders: Iterable[Address], now: float) -> None:
        """The driver waits for these; `holders` should have them, anybody may."""
        holders = tuple(holders)
        for name in names:
            is_bounded = name in self._needed or len(self._needed) < MAX_NEEDED
            if is_bounded and not self._blobs.has(name):
                self._needed[name] = now + NEEDED_SECONDS
                self.want(name, holders)

    def count(self) -> int:
        """Blobs under way, or waiting for somebody who serves them."""
        return len(self._fetches)

    # -- what comes --------------------------------------------------------------------------------
    def is_expected(self, peer: Address, name: BlobName, offset: int) -> bool:
        """Was this piece asked of this validator? From any thread."""
        fetch = self._fetches.get(name)
        return fetch is not None and fetch.source == peer and offset in fetch.asked

    def on_chunk(self, peer: Address, chunk: BlobChunk, now: float) -> None:
        """A piece came. Whoever sends what was not asked for is only counted."""
        if not self.is_expected(peer, chunk.name, chunk.offset):
            self.counters.chunks_unasked += 1
            return
        fetch, partner = self._fetches[chunk.name], self.partners[peer]
        partner.heard_at, partner.misses = now, 0
        try:
            if fetch.upload is None:
                fetch.upload = self._open_upload(chunk.name)
            partner.asked -= 1
            fetch.take(chunk.offset, chunk.data)
            if fetch.is_complete():
                fetch.upload.commit()
                self.counters.blobs_fetched += 1
                self.counters.bytes_fetched += chunk.name.size
                self._drop(fetch)
        except OSError as error:
            self._stop(fetch, SteelyardError("disk_full", f"{error}"), now)
        except SteelyardError as error:
            self._stop(fetch, error, now)

    def _open_upload(self, name: BlobName) -> BlobUpload:
        self._check_space(name.size)
        if name in self._needed:
            return self._blobs.open_needed(name, self.is_wanted)
        return self._blobs.open_upload(name, self.is_wanted)

    def _stop(self, fetch: Fetch, error: SteelyardError, now: float) -> None:
        """An attempt failed: because of the bytes, the time, or the room for them here."""
        self._release(fetch)
        if error.code in WRONG:
            self.counters.wrong_blobs += 1
            author = fetch.blame()
            log_event("blob_wrong", blob=encode_cid(fetch.name), peer=author or b"")
            if author is not None and author in self.partners:
                self.partners[author].wrong_blobs += 1
                self._blame(author, "blob_wrong")
        elif error.code in OVER:
            self._drop(fetch)
        else:
            fetch.discard()
            self._declared_paused_until = now + NO_SPACE_SECONDS
            if error.code != "blob_quota":  # which what a block needs does not have
                self._paused_until = self._declared_paused_until
            log_event("blob_fetch_paused", code=error.code, message=error.message)

    def on_absent(self, peer: Address, name: BlobName, now: float) -> None:
        """It says that it lacks the blob."""
        fetch = self._fetches.get(name)
        if fetch is not None and fetch.source == peer:
            self._release(fetch)
            fetch.rest(peer, now)

    def on_disconnected(self, peer: Address, now: float) -> None:
        """Do not wait for what it owes."""
        for fetch in self._fetches.values():
            if fetch.source == peer:
                self._release(fetch)
                fetch.rest(peer, now)

    def close(self) -> None:
        """Throw away what is not complete."""
        for fetch in tuple(self._fetches.values()):
            self._drop(fetch)

    # -- turns -------------------------------------------------------------------------------------
    def tick(self, now: float) -> None:
        """Forget what nobody wants any more, give up on the silent."""
        for name in [name for name, until in self._needed.items() if until <= now]:
            del self._needed[name]
        for fetch in tuple(self._fetches.values()):
            if self._blobs.has(fetch.name) or not self.is_wanted(fetch.name):
                self._drop(fetch)
            elif fetch.source is not None:
                self._check_source(fetch, self.partners[fetch.source], now)

    def _check_source(self, fetch: Fetch, partner: Partner, now: float) -> None:
        assert fetch.source is not None
        if fetch.is_overdue(partner.heard_at, now):
            self.counters.chunk_timeouts += 1
            partner.timeouts += 1
            fetch.timeouts += 1
            partner.misses += 1
            fetch.rest(fetch.source, now)
            self._release(fetch)

    def pump(self, now: float) -> list[Outgoing]:
        """Ask for as much as the bounds allow."""
        sending: list[Outgoing] = []
        owed = sum(len(fetch.asked) for fetch in self._fetches.values())
        sources = sum(fetch.source is not None for fetch in self._fetches.values())
        for fetch in sorted(self._fetches.values(), key=lambda one: one.name not in self._needed):
            is_needed = fetch.name in self._needed
            paused_until = self._paused_until if is_needed else self._declared_paused_until
            may_begin = now >= max(fetch.look_at, paused_until)
            if fetch.source is None and may_begin and (is_needed or sources < MAX_SOURCES):
                self._choose_source(fetch, now)
                sources += fetch.source is not None
            if fetch.source is None:
                continue
            partner = self.partners[fetch.source]
            while (
                fetch.can_continue()
                and partner.asked < MAX_ASKED
                and owed < MAX_ASKED_TOTAL
                and partner.pace.has_taken(1, now)
            ):
                request = BlobRequest(fetch.name, fetch.ask(now))
                sending.append((fetch.source, request))
                partner.asked += 1
                owed += 1
        return sending

    def _choose_source(self, fetch: Fetch, now: float) -> None:
        """The best of those that should have it; for a block also the best of all others."""
        is_needed = fetch.name in self._needed
        candidates = [
            (not is_holder, not one.is_connected, one.misses, one.asked, address)
            for address, one in self.partners.items()
            for is_holder in (fetch.name in one.announced or address in fetch.holders,)
            if (is_holder or is_needed) and fetch.can_ask(address, now)
        ]
        if not candidates:
            fetch.look_at = now + LOOK_SECONDS
        free = [one for one in candidates if one[3] < MAX_ASKED]
        if free:
            fetch.begin(min(free)[-1], now)

    def _release(self, fetch: Fetch) -> None:
        partner = None if fetch.source is None else self.partners.get(fetch.source)
        owed = fetch.release()
        if partner is not None:
            partner.asked -= owed

    def _drop(self, fetch: Fetch) -> None:
        self._release(fetch)
        fetch.discard()
        self._needed.pop(fetch.name, None)
        del self._fetches[fetch.name]


assert MAX_ASKED * CHUNK_BYTES <= MAX_ASKED_TOTAL * CHUNK_BYTES <= 64 * 2**20

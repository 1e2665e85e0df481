"""Fetching one blob: which pieces were asked of whom, and what became of them.

All pieces of an attempt come from one validator, so that wrong bytes have an author. When it goes
silent another one continues; if the whole then turns out wrong nobody can tell whose pieces were,
so from then on every attempt starts anew and takes all from one.

Sans-IO but for the upload that the pieces are written to.
"""

from dataclasses import dataclass, field
from typing import Final

from steelyard.chain.types import Address, BlobName

from ..blobs import BlobUpload
from .wire import CHUNK_BYTES

WINDOW: Final = 4
"""Pieces of one blob that are asked for ahead."""
SILENT_SECONDS: Final = 2.0
MAX_SILENT_SECONDS: Final = 16.0
"""Without a piece from it for so long a holder is given up for this blob, for a while. Each time
that happens the next one gets twice as long: perhaps it is our own line that is slow."""
GRACE_SECONDS: Final = 10.0
LEAST_BYTES_PER_SECOND: Final = 256 * 1024
"""An attempt may take GRACE_SECONDS and the time that its bytes need at this rate."""
REST_SECONDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""How long a holder is left alone about this blob after its first, second, … failure."""


@dataclass(slots=True)
class Fetch:
    """A blob on its way here. `holders` are those that the driver named beside announcers."""

    name: BlobName
    holders: set[Address] = field(default_factory=set)
    source: Address | None = None
    upload: BlobUpload | None = None
    asked: dict[int, None] = field(default_factory=dict)
    early: dict[int, bytes] = field(default_factory=dict)
    """Pieces that came before one that was lost; at most WINDOW."""
    next_offset: int = 0
    asked_at: float = 0.0
    source_since: float = 0.0
    contributors: set[Address] = field(default_factory=set)
    struck: set[Address] = field(default_factory=set)
    """They served wrong bytes and are never asked for this blob again."""
    failures: dict[Address, int] = field(default_factory=dict)
    resting: dict[Address, float] = field(default_factory=dict)
    timeouts: int = 0
    is_single_source: bool = False
    look_at: float = float("-inf")
    """Nobody can be asked before: do not look for a source at every turn."""

    @property
    def received(self) -> int:
        """Bytes written so far."""
        return 0 if self.upload is None else self.upload.received

    def is_complete(self) -> bool:
        return self.received == self.name.size

    def can_ask(self, address: Address, now: float) -> bool:
        """Neither struck nor resting."""
        return address not in self.struck and self.resting.get(address, now) <= now

    def begin(self, source: Address, now: float) -> None:
        """Take the rest from `source`, or everything where one must answer for all."""
        if self.is_single_source:
            self.discard()
        self.source, self.source_since = source, now
        self.next_offset = self.received

    def ask(self, now: float) -> int:
        """The offset of the next piece to ask for; see `can_continue`."""
        offset = self.next_offset
        self.asked[offset] = None
        self.next_offset += CHUNK_BYTES
        self.asked_at = now
        return offset

    def can_continue(self) -> bool:
        """Is there another piece to ask for, and room in the window?"""
        held = len(self.asked) + len(self.early)
        return held < WINDOW and self.next_offset < self.name.size

    def take(self, offset: int, data: bytes) -> None:
        """Write a piece that was asked for, as far as there is no hole before it."""
        assert self.upload is not None
        assert self.source is not None
        del self.asked[offset]
        self.contributors.add(self.source)
        self.early[offset] = data
        while (piece := self.early.pop(self.upload.received, None)) is not None:
            self.upload.write(piece)

    def is_overdue(self, heard_at: float, now: float) -> bool:
        """Is the source silent, or slower than anything that is worth waiting for?"""
        if not self.asked:
            return False
        # Pieces come in the order they were asked for: one that came early means one was lost.
        heard_at = self.asked_at if self.early else max(self.asked_at, heard_at)
        allowed = GRACE_SECONDS + self.name.size / LEAST_BYTES_PER_SECOND
        silent = SILENT_SECONDS * 2 ** min(self.timeouts, 8)
        is_silent = now - heard_at > min(silent, MAX_SILENT_SECONDS)
        return is_silent or now - self.source_since > allowed

    def release(self) -> int:
        """Stop asking the source. Returns how many pieces it still owed."""
        owed = len(self.asked)
        self.source = None
        self.asked.clear()
        self.early.clear()
        return owed

    def rest(self, address: Address, now: float) -> None:
        """Leave a holder alone for a while, the longer the more often it failed."""
        failures = self.failures.get(address, 0)
        self.failures[address] = failures + 1
        self.resting[address] = now + REST_SECONDS[min(failures, len(REST_SECONDS) - 1)]

    def blame(self) -> Address | None:
        """The whole is wrong: strike its only author; with several, make the next one single."""
        authors = self.contributors.copy()
        self.discard()
        if len(authors) > 1:
            self.is_single_source = True
            return None
        (author,) = authors
        self.struck.add(author)
        return author

    def discard(self) -> None:
        """Throw away what came."""
        self.contributors.clear()
        if self.upload is not None:
            self.upload.abort()
            self.upload = None


assert MAX_SILENT_SECONDS * LEAST_BYTES_PER_SECOND >= WINDOW * CHUNK_BYTES

"""The peers of now on one lane, shared between its thread and all others.

Every method takes the lock and returns soon. Sockets are not touched here: a link whose peer is
gone waits in `take_changes` for the lane's thread.
"""

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from steelyard.chain.types import Address

from ..config import NetworkConfig
from ..logs import log_event
from .endpoint import InvalidEndpoint, parse_endpoint
from .links import Link, Peer, Traffic, Waiting
from .quota import Bucket, Quota

HANDSHAKES: Final = 8.0
HANDSHAKES_PER_SECOND: Final = 1.0
"""Of one peer. An honest one needs one after each interruption."""
PATIENT_SHARE: Final = 0.75
"""Of what a peer takes from us, for what is patient."""
KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Totals:
    """`dropped`: messages for others that waited in vain. `refused`: of others, by code."""

    dropped: int
    refused: Counter[str]


def _sum_up(before: Totals, rows: Iterable[Traffic]) -> Totals:
    dropped, refused = before.dropped, before.refused.copy()
    for row in rows:
        dropped += row.dropped
        refused.update(row.refused)
    return Totals(dropped, refused)


class Roster:
    """Links by address and by key. `strangers` counts, by code, what came from none of them."""

    def __init__(self, config: NetworkConfig, own_key: bytes) -> None:
        self._config = config
        self._own_key = own_key
        self._lock = threading.Lock()
        self._links: dict[Address, Link] = {}
        self._by_user: dict[str, Link] = {}
        self._waiting: dict[Link, None] = {}
        self._closing: list[Link] = []
        self._ending: set[str] = set()
        self._is_changed = False
        self._strangers: Counter[str] = Counter()
        self._left = Totals(0, Counter())
        """What was counted of those that are no peers any more."""

    def __len__(self) -> int:
        return len(self._links)

    # -- who is a peer -----------------------------------------------------------------------------
    def set_peers(self, peers: Iterable[Peer], now: float) -> None:
        """Exactly these are peers; a link that stays the same keeps its socket and its queue."""
        with self._lock:
            links: dict[Address, Link] = {}
            by_user: dict[str, Link] = {}
            # Those of before first: whoever copies a peer's key must not take its place.
            for peer in sorted(peers, key=self._get_rank):
                if self._is_usable(peer, by_user):
                    link = self._keep_or_make(peer, now)
                    links[peer.address] = by_user[link.user] = link
            for address, link in self._links.items():
                if links.get(address) is not link:
                    self._closing.append(link)
                    self._waiting.pop(link, None)
                    link.clear()
            gone = [self._links[one].traffic for one in self._links.keys() - links.keys()]
            self._left = _sum_up(self._left, gone)
            self._ending |= self._by_user.keys() - by_user.keys()
            self._links, self._by_user, self._is_changed = links, by_user, True

    def _get_rank(self, peer: Peer) -> bool:
        before = self._links.get(peer.address)
        return before is None or before.peer.network_key != peer.network_key

    def _is_usable(self, peer: Peer, by_user: dict[str, Link]) -> bool:
        if len(peer.network_key) != KEY_BYTES or peer.network_key.hex() in by_user:
            log_event("peer_ignored", address=peer.address, key=peer.network_key)
            return False
        return peer.network_key != self._own_key

    def _keep_or_make(self, peer: Peer, now: float) -> Link:
        before = self._links.get(peer.address)
        if before is not None and before.peer == peer:
            return before
        traffic = before.traffic if before is not None else self._make_traffic(now)
        try:
            endpoint = parse_endpoint(peer.endpoint)
        except InvalidEndpoint as error:
            log_event("peer_unreachable", address=peer.address, code=error.code, why=error.message)
            endpoint = None
        return Link(peer, endpoint, traffic)

    def _make_traffic(self, now: float) -> Traffic:
        config = self._config
        quota = Quota.create(config.messages_per_second, config.bytes_per_second, now)
        # It counts what we send as we count what it sends, unless its settings differ.
        messages, size = config.messages_per_second, config.bytes_per_second
        pace = Quota.create(PATIENT_SHARE * messages, PATIENT_SHARE * size, now)
        return Traffic(quota, Bucket.create(HANDSHAKES_PER_SECOND, HANDSHAKES, now), pace)

    def get_links(self) -> tuple[Link, ...]:
        with self._lock:
            return tuple(self._links.values())

    def find(self, user: str) -> Link | None:
        """The link of the peer with this key, in hex."""
        with self._lock:
            return self._by_user.get(user)

    def is_welcome(self, user: str, now: float) -> bool:
        """Whether a connection under this key may be opened."""
        with self._lock:
            link = self._by_user.get(user)
            if link is None:
                self._strangers["handshake_key"] += 1
                return False
            if link.traffic.quota.is_muted(now) or not link.traffic.handshakes.has_taken(1, now):
                link.traffic.refused["handshake_quota"] += 1
                return False
            return True

    # -- what is to be sent ------------------------------------------------------------------------
    def put(
        self, address: Address | None, data: bytes, now: float, *, is_patient: bool = False
    ) -> None:
        """Queue a message for one peer, or for all; see `Waiting`."""
        waiting = Waiting(data, now, is_patient)
        with self._lock:
            links = self._links.values() if address is None else [self._links.get(address)]
            for link in links:
                if link is not None:
                    link.put(waiting, self._config.queue_messages, self._config.queue_bytes)
                    self._waiting[link] = None

    def list_waiting(self) -> tuple[Link, ...]:
        """Those with something to send."""
        with self._lock:
            return tuple(self._waiting)

    def take_next(self, link: Link, now: float) -> Waiting | None:
        """The next message for this peer, taken from its queue."""
        with self._lock:
            waiting = link.get_next(now)
            if waiting is None and not link.patient:
                self._waiting.pop(link, None)
            return waiting

    # -- what is to be ended -----------------------------------------------------------------------
    def add_fault(self, link: Link, code: str, now: float) -> None:
        """Count a broken rule, and mute the peer if it goes on."""
        with self._lock:
            self._count_refused(link, code)
            seconds = self._config.mute_seconds
            if not link.traffic.quota.add_fault(seconds, now):
                return
            self._ending.add(link.user)
        log_event("peer_muted", address=link.peer.address, seconds=seconds, code=code)

    def add_refused(self, link: Link, code: str) -> None:
        """Count what is no fault."""
        with self._lock:
            self._count_refused(link, code)

    def add_stranger(self, code: str) -> None:
        with self._lock:
            self._strangers[code] += 1

    def get_strangers(self) -> Counter[str]:
        with self._lock:
            return Counter(self._strangers)

    def get_totals(self) -> Totals:
        """Since the start, of all that are or were peers, and of strangers."""
        with self._lock:
            totals = _sum_up(self._left, [link.traffic for link in self._links.values()])
            return Totals(totals.dropped, totals.refused + self._strangers)

    def _count_refused(self, link: Link, code: str) -> None:
        refused = link.traffic.refused
        refused[code] += 1
        if refused[code].bit_count() == 1:  # the first, second, fourth, eighth … time
            log_event("message_refused", address=link.peer.address, code=code, times=refused[code])

    def take_changes(self) -> tuple[list[Link], set[str], bool]:
        """Links to close, keys whose connections to us are to end, whether the peers changed."""
        with self._lock:
            changes = self._closing, self._ending, self._is_changed
            self._closing, self._ending, self._is_changed = [], set(), False
            return changes

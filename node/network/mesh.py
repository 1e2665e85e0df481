"""One connection each way and lane between every two validators, encrypted and authenticated.

Who may speak is a set of keys (`set_peers`); an unknown key is refused during the handshake. What
arrives is held against the peer's quota, decoded and handed to `on_message` on the lane's own
thread, which must return soon: the two lanes may call it at the same time. What is sent waits in a
bounded queue for each peer and lane.

Nothing here knows what messages mean. docs/network.md says what can go wrong.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from eth_utils.conversions import to_bytes

from steelyard.chain.errors import SteelyardError
from steelyard.chain.types import Address

from ..clock import Clock
from ..config import InvalidConfig, NetworkConfig
from ..keyfiles import compute_network_key
from .endpoint import Endpoint, InvalidEndpoint, parse_endpoint, parse_listen
from .lane import Admits, LaneThread
from .links import Link, Peer
from .names import Names, look_up
from .roster import Roster, Totals
from .wire import Announcement, Lane, Message, TransactionMessage, encode_message

ADDRESS_BYTES: Final = 20
PATIENT: Final = (TransactionMessage, Announcement)
"""What users cause on the consensus lane; see `links.Waiting`."""

__all__ = ["Mesh", "Peer", "PeerStatus", "compute_listen", "parse_overrides"]


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What is known of a peer, both lanes together.

    `is_connected`: we reach it on both lanes. `seen_at`: monotonic seconds of its last message,
    None before. `dropped`: messages for it that found its queue full or waited too long.
    `refused`: its messages that were not taken, by code.
    """

    peer: Peer
    is_connected: bool
    is_muted: bool
    seen_at: float | None
    messages_in: int
    messages_out: int
    bytes_in: int
    bytes_out: int
    dropped: int
    refused: Mapping[str, int]


class Mesh:
    """The validators' network of one node. Every method may be called from any thread."""

    def __init__(
        self,
        secret: bytes,
        listen: str,
        config: NetworkConfig,
        on_message: Callable[[Peer, Message], None],
        clock: Clock | None = None,
        names: Names | None = None,
    ) -> None:
        """`secret`: our X25519 key, `Secrets.network`; `listen`: `host:port`, port 0 for any.

        Raises InvalidEndpoint, and InvalidConfig for `network.peers`.
        """
        self._listen = parse_listen(listen)
        self._overrides = parse_overrides(config.peers)
        self._clock = clock or Clock()
        self._is_started = False
        keys = (secret, compute_network_key(secret))
        self._lanes = tuple(
            LaneThread(
                lane, keys, Roster(config, keys[1]), on_message, self._clock, names or Names()
            )
            for lane in Lane
        )

    def start(self) -> None:
        """Listen and connect. Raises SteelyardError port_taken, listen_failed.

        Set the peers before: those that call at once would be refused, and wait a few seconds.
        """
        assert not self._is_started
        host = self._listen.host
        addresses = (host,) if self._listen.is_literal else look_up(host)
        if not addresses:
            raise SteelyardError("listen_failed", f"{host} has no address")
        consensus, bulk = self._lanes
        first = consensus.start(addresses[0], self._listen.ports[0])
        try:
            second = bulk.start(addresses[0], self._listen.ports[1])
        except SteelyardError:
            consensus.stop()
            raise
        self._listen = Endpoint(host, (first, second))
        self._is_started = True

    def stop(self) -> None:
        """Close everything and wait for the threads; nothing more is delivered afterwards.

        Never call it from `on_message`.
        """
        if self._is_started:
            self._is_started = False
            for lane in self._lanes:
                lane.stop()

    def set_filter(self, admits: Admits) -> None:
        """Ask `admits(peer, kind)` before a message is decoded: some cost much, and are worth it
        only if they were asked for. It is called on the lanes' threads."""
        for lane in self._lanes:
            lane.admits = admits

    @property
    def endpoint(self) -> str:
        """Where we listen, with the ports that were bound."""
        return str(self._listen)

    def set_peers(self, peers: Iterable[Peer]) -> None:
        """Exactly these may speak and are spoken to from now on; ourselves are left out."""
        wanted = [
            replace(peer, endpoint=self._overrides.get(peer.address, peer.endpoint))
            for peer in peers
        ]
        for lane in self._lanes:
            lane.roster.set_peers(wanted, self._clock.get_seconds())
            lane.wake()

    def broadcast(self, message: Message) -> None:
        """Queue it for every peer."""
        self._put(None, message)

    def send(self, address: Address, message: Message) -> None:
        """Queue it for one peer; nothing happens if it is none."""
        self._put(address, message)

    def _put(self, address: Address | None, message: Message) -> None:
        lane = self._lanes[message.lane]
        now, is_patient = self._clock.get_seconds(), isinstance(message, PATIENT)
        lane.roster.put(address, encode_message(message), now, is_patient=is_patient)
        lane.wake()

    def refuse(self, address: Address, lane: Lane, code: str) -> None:
        """Hold a message against its sender: it decoded, and turned out to be wrong."""
        roster = self._lanes[lane].roster
        for link in roster.get_links():
            if link.peer.address == address:
                roster.add_fault(link, code, self._clock.get_seconds())
        self._lanes[lane].wake()

    def get_peers(self) -> tuple[PeerStatus, ...]:
        """What is known of each peer, in the order of their addresses."""
        consensus, bulk = (
            {link.peer.address: link for link in lane.roster.get_links()} for lane in self._lanes
        )
        now = self._clock.get_seconds()
        both = sorted(consensus.keys() & bulk.keys())
        return tuple(_combine(consensus[one], bulk[one], now) for one in both)

    def get_totals(self) -> Totals:
        """What was dropped and refused since the start, whoever is a peer now."""
        first, second = (lane.roster.get_totals() for lane in self._lanes)
        return Totals(first.dropped + second.dropped, first.refused + second.refused)

    def get_strangers(self) -> Mapping[str, int]:
        """How often something was refused that came from no peer, by code."""
        return sum((lane.roster.get_strangers() for lane in self._lanes), Counter())


def _combine(first: Link, second: Link, now: float) -> PeerStatus:
    links = (first, second)
    rows = [link.traffic for link in links]
    return PeerStatus(
        peer=first.peer,
        is_connected=all(link.is_connected for link in links),
        is_muted=any(row.quota.is_muted(now) for row in rows),
        seen_at=max((row.seen_at for row in rows if row.seen_at is not None), default=None),
        messages_in=sum(row.messages_in for row in rows),
        messages_out=sum(row.messages_out for row in rows),
        bytes_in=sum(row.bytes_in for row in rows),
        bytes_out=sum(row.bytes_out for row in rows),
        dropped=sum(row.dropped for row in rows),
        # Copies: a lane may meet a new code while these are added up.
        refused=sum((Counter(dict(row.refused)) for row in rows), Counter()),
    )


def compute_listen(configured: str, own_endpoint: str) -> str:
    """Where to listen: as configured, or on every interface at the port of our own endpoint.

    Raises InvalidEndpoint.
    """
    if configured:
        return configured
    endpoint = parse_endpoint(own_endpoint)
    host = "::" if ":" in endpoint.host else "0.0.0.0"  # noqa: S104 - validators must reach us
    return str(replace(endpoint, host=host))


def parse_overrides(rows: Iterable[str]) -> dict[Address, str]:
    """Read `network.peers`: endpoints by address. Raises InvalidConfig config_value."""
    overrides: dict[Address, str] = {}
    for row in rows:
        text, _, endpoint = row.partition("=")
        try:
            address = to_bytes(hexstr=text)
            parse_endpoint(endpoint)
        except (ValueError, InvalidEndpoint):
            address = b""
        if len(address) != ADDRESS_BYTES:
            raise InvalidConfig("config_value", f"network.peers: not 0xADDRESS=HOST:PORT: {row!r}")
        overrides[Address(address)] = endpoint
    return overrides

"""One connection each way and lane between every two validators, encrypted and authenticated.

Who may speak is a set of keys (`set_peers`); an unknown key is refused during the handshake. What
arrives is decoded, held against the peer's quota and handed to `on_message` on the lane's own
thread; it must return soon. What is sent waits in a bounded queue for each peer and lane.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from steelyard.chain.types import Address

from .wire import Message


@dataclass(frozen=True, slots=True)
class Peer:
    """Another validator: account, X25519 key (32 bytes) and `host:port`, as Staking has them."""

    address: Address
    network_key: bytes
    endpoint: str


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What is known of a peer, both lanes together.

    `is_connected`: we reach it on both lanes. `seen_at`: monotonic seconds of its last message,
    None before. `dropped`: messages for it that found its queue full or too old. `refused`: its
    messages that were not taken, by code.
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
        on_message: Callable[[Peer, Message], None],
    ) -> None:
        """`secret`: our X25519 key, `Secrets.network`; `listen`: `host:port`, port 0 for any."""

    def start(self) -> None:
        """Listen and connect. Raises SteelyardError port_taken, listen_failed."""

    def stop(self) -> None:
        """Close everything and wait for the threads; nothing more is delivered afterwards."""

    @property
    def endpoint(self) -> str:
        """Where we listen, with the ports that were bound."""
        raise AssertionError

    def set_peers(self, peers: Iterable[Peer]) -> None:
        """Exactly these may speak and are spoken to from now on."""

    def broadcast(self, message: Message) -> None:
        """Send to every peer."""

    def send(self, address: Address, message: Message) -> None:
        """Send to one peer; nothing happens if it is none."""

    def get_peers(self) -> tuple[PeerStatus, ...]:
        """What is known of each peer, in the order of their addresses."""
        raise AssertionError

"""What the network tells of itself: `Network.get_status`."""

from collections.abc import Mapping
from dataclasses import dataclass

from steelyard.chain.types import Address, Epoch, Height, View

from .mesh import PeerStatus
from .wire import Status


@dataclass(frozen=True, slots=True)
class PeerReport:
    """One other validator; where it is, is what it said last, None before it said anything.

    `seen_at`: monotonic seconds of its last message. `muted`: why it is not listened to, if so.
    """

    address: Address
    endpoint: str
    is_connected: bool
    seen_at: float | None
    muted: str | None
    epoch: Epoch | None
    view: View | None
    height: Height | None
    dropped: int
    refused: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class NetworkStatus:
    """All of it. `target_height`: where others are, while we are catching up.

    `waiting_blobs`: under way, or nobody has served them yet. `dropped`: messages by reason.
    """

    peers: tuple[PeerReport, ...]
    waiting_blobs: int
    is_catching_up: bool
    target_height: Height | None
    dropped: Mapping[str, int]


def create_report(peer: PeerStatus, said: Status | None, muted: str | None) -> PeerReport:
    """What the mesh knows of a peer, with what it said of itself."""
    return PeerReport(
        address=peer.peer.address,
        endpoint=peer.peer.endpoint,
        is_connected=peer.is_connected,
        seen_at=peer.seen_at,
        muted="quota" if muted is None and peer.is_muted else muted,
        epoch=None if said is None else said.epoch,
        view=None if said is None else said.view,
        height=None if said is None else said.height,
        dropped=peer.dropped,
        refused=peer.refused,
    )

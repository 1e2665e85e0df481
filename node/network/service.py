"""The validators' network of one node: its messages in and out, and the threads behind them.

    mesh, consensus lane ── Router ──────────────► driver.deliver          votes, blocks, …
             │                └─► "network" thread: Gossip, CatchUp, Requests, our status
    mesh, bulk lane ─────────────► "blobs" thread:   Exchange                hashing, fsync

`Network` is the driver's `Outbox`. What it is asked from other threads is either sent at once (the
mesh never blocks) or left to one of the two threads, each of which owns its part.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final, Protocol, TypeAlias

from steelyard.chain.block import Block, Header
from steelyard.chain.consensus import messages
from steelyard.chain.consensus.certificates import Certificate
from steelyard.chain.consensus.votes import Vote
from steelyard.chain.epochs import EpochSet
from steelyard.chain.transactions import Transaction
from steelyard.chain.types import Address, BlobName, Domain, Epoch, Hash, View

from ..blobs import BlobStore
from ..clock import Clock
from ..config import NetworkConfig
from ..inbox import Incoming
from ..mempool import Mempool
from ..records import NetworkTotals
from ..store import ChainStore
from .catchup import CatchUp
from .exchange import Exchange
from .gossip import Gossip
from .loop import Loop
from .mesh import Peer, PeerStatus
from .outgoing import Outgoing
from .quota import Bucket
from .reports import NetworkStatus, create_report
from .requests import Requests
from .roster import Totals
from .routing import Routed, Router
from .serving import build_segment
from .wire import (
    VERSION,
    Absent,
    Announcement,
    BlobChunk,
    BlobRequest,
    BlockAnswer,
    CertificateMessage,
    Lane,
    Message,
    ProposalMessage,
    SegmentAnswer,
    SegmentRequest,
    Status,
    TransactionMessage,
    VoteMessage,
)

STATUS_SECONDS: Final = 2.0
"""We say where we are this often, and soon after each finalization."""
STATUS_PAUSE_SECONDS: Final = 0.1
HEARD_SECONDS: Final = 2 * STATUS_SECONDS
"""Whoever was heard within this time will be heard when it answers."""
LOOK_SECONDS: Final = 0.25
"""How often the mesh is asked who is connected."""
FAR_BEHIND: Final = 3
"""A validator that lacks more blocks than these does not take in what is pending."""
MAX_FOR_PEER: Final = 256
MAX_BULK_FOR_PEER: Final = 32
MAX_WAITING: Final = 4_096
MAX_BULK_WAITING: Final = 256
"""Messages that wait for a thread, of one validator and of all. A piece of a blob has 1 MiB, but
only those that were asked for get so far."""
SEGMENTS_PER_SECOND: Final = 4.0
MAX_SEGMENTS: Final = 8.0
"""Segments that are served to one validator: at this rate, and at once."""

Deliver: TypeAlias = Callable[[Incoming, Address | None], None]
"""Hands the driver a message, and who answers for it."""
Unrouted: TypeAlias = (
    TransactionMessage
    | Announcement
    | BlobRequest
    | BlobChunk
    | SegmentRequest
    | SegmentAnswer
    | Absent
)


class MeshLike(Protocol):
    """What is used of `mesh.Mesh`."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def set_filter(self, admits: Callable[[Peer, type[Message]], bool]) -> None: ...
    def set_peers(self, peers: Iterable[Peer]) -> None: ...
    def broadcast(self, message: Message) -> None: ...
    def send(self, address: Address, message: Message) -> None: ...
    def refuse(self, address: Address, lane: Lane, code: str) -> None: ...
    def get_peers(self) -> tuple[PeerStatus, ...]: ...
    def get_totals(self) -> Totals: ...


@dataclass(frozen=True, slots=True)
class NetworkParts:
    """What the network works with. `check_space` raises StorageFull if so many more bytes must
    not be written."""

    address: Address
    domain: Domain
    epoch_blocks: int
    genesis_hash: Hash
    store: ChainStore
    mempool: Mempool
    blobs: BlobStore
    check_space: Callable[[int], None]
    clock: Clock
    config: NetworkConfig


@dataclass(frozen=True, slots=True)
class Place:
    """Where we are, as the driver said last."""

    epoch_sets: tuple[EpochSet, ...]
    view: View
    head: Header


class Network:
    """See the module. First `attach`, then `start`, then the driver may use it; then `stop`."""

    def __init__(
        self,
        parts: NetworkParts,
        create_mesh: Callable[[Callable[[Peer, Message], None]], MeshLike],
    ) -> None:
        """`create_mesh(on_message)` makes the mesh that delivers to us."""
        self._parts = parts
        self._get_seconds = parts.clock.get_seconds
        self.mesh = create_mesh(self.on_message)
        self.loop = Loop("network", self._take_turn, self._get_seconds, MAX_FOR_PEER, MAX_WAITING)
        self.bulk = Loop(
            "blobs", self._take_bulk_turn, self._get_seconds, MAX_BULK_FOR_PEER, MAX_BULK_WAITING
        )
        self.requests = Requests()
        self.router = Router(
            parts.genesis_hash, self.requests.is_expected, partial(self._blame, Lane.CONSENSUS)
        )
        self.gossip = Gossip(parts.mempool)
        self.catch_up = CatchUp(parts.domain, parts.epoch_blocks, partial(self._blame, Lane.BULK))
        self.exchange = Exchange(
            parts.address,
            parts.blobs,
            parts.mempool.is_declared,
            parts.mempool.get_declared,
            parts.check_space,
            self._on_available,
            partial(self._blame, Lane.BULK),
            parts.config.bytes_per_second,
        )
        self.mesh.set_filter(self.admits)
        self.statuses: dict[Address, Status] = {}
        """What each validator said of its place; replaced as a whole."""
        self._connected: set[Address] = set()
        self._behind: set[Address] = set()
        self._serving: dict[Address, Bucket] = {}
        self._place: Place | None = None
        self._said: Status | None = None
        self._said_at = self._look_at = float("-inf")
        self._deliver: Deliver = lambda _message, _sender: None
        self._wake: Callable[[], None] = lambda: None

    # -- life --------------------------------------------------------------------------------------
    def attach(self, deliver: Deliver, wake: Callable[[], None]) -> None:
        """Connect the driver's `deliver` and `wake`, the pool and the blobs."""
        self._deliver, self._wake = deliver, wake
        self._parts.mempool.on_added = self.on_added
        self._parts.mempool.is_available = self.exchange.is_available
        self._parts.blobs.on_arrival = self.on_arrival

    def start(self) -> None:
        """Listen, connect, work. Raises SteelyardError port_taken, listen_failed."""
        self.mesh.start()
        self.loop.start()
        self.bulk.start()

    def stop(self) -> None:
        """Close the connections and end the threads."""
        self.mesh.stop()
        self.loop.stop()
        self.bulk.stop()
        self.exchange.close()

    # -- from the pool and the blobs ---------------------------------------------------------------
    def on_added(self, transaction: Transaction, source: Address | None) -> None:
        """A transaction is new in the pool."""
        self._send(self.gossip.on_added(transaction, source))
        if transaction.blobs:
            self._do(self.bulk, lambda now: self.exchange.on_declared(transaction.blobs, now))
        self._wake()

    def on_arrival(self, name: BlobName) -> None:
        """A blob is complete on disk."""
        self.bulk.post(lambda: self.exchange.on_arrival(name))
        self._wake()

    # -- the driver's outbox -----------------------------------------------------------------------
    def broadcast(self, message: messages.Message, block: Block | None) -> None:
        """See `Outbox`."""
        match message:
            case messages.Proposal(_, vote):
                assert block is not None, "a proposal comes with its block"
                self.mesh.broadcast(ProposalMessage(block, vote))
            case Vote():
                self.mesh.broadcast(VoteMessage(message))
            case Certificate():
                self.mesh.broadcast(CertificateMessage(message))

    def fetch_block(self, block_hash: Hash, holders: tuple[Address, ...]) -> None:
        """See `Outbox`. One holder after the other is asked, until it comes."""
        self._do(self.loop, lambda now: self.requests.fetch_block(block_hash, holders, now))

    def fetch_certificates(self, epoch: Epoch, view: View) -> None:
        """See `Outbox`. A few validators are asked, others each time."""
        self._do(self.loop, lambda _: self.requests.fetch_certificates(epoch, view))

    def fetch_blobs(self, names: tuple[BlobName, ...], holders: tuple[Address, ...]) -> None:
        """See `Outbox`. Forgotten after a while unless it is asked for again."""
        self._do(self.bulk, lambda now: self.exchange.fetch_blobs(names, holders, now))

    def send_block(self, address: Address, block: Block) -> None:
        """See `Outbox`."""
        self.mesh.send(address, BlockAnswer(block))

    def send_certificates(self, address: Address, certificates: Iterable[Certificate]) -> None:
        """See `Outbox`."""
        for certificate in certificates:
            self.mesh.send(address, CertificateMessage(certificate))

    def refuse(self, address: Address, code: str) -> None:
        """See `Outbox`."""
        self._blame(Lane.CONSENSUS, address, code)

    def set_place(self, epoch_sets: tuple[EpochSet, ...], view: View, head: Header) -> None:
        """See `Outbox`."""
        before, self._place = self._place, Place(epoch_sets, view, head)
        if before is None or before.epoch_sets != epoch_sets:
            self._set_members(epoch_sets)
        for sender, early in self.router.set_current(epoch_sets[0]):
            self._deliver(early, sender)
        self.loop.post(lambda: self._on_place(epoch_sets, head))

    def _set_members(self, epoch_sets: tuple[EpochSet, ...]) -> None:
        """Connect the members of these sets; what the first says of a member counts."""
        members = {one.address: one for epoch_set in epoch_sets[::-1] for one in epoch_set.members}
        members.pop(self._parts.address, None)
        peers = tuple(members)
        powers = {one.address: int(one.power) for one in epoch_sets[0].members}
        self.loop.post(lambda: self._on_members(peers))
        self._do(self.bulk, lambda now: self.exchange.set_members(powers, peers, now))
        # Last: who is connected before our threads know it would be taken for known by them.
        self.mesh.set_peers(
            Peer(one.address, one.network_key, one.endpoint) for one in members.values()
        )

    # -- from other validators ---------------------------------------------------------------------
    def admits(self, peer: Peer, kind: type[Message]) -> bool:
        """Blocks and segments are decoded only if asked for: a segment may cost a second."""
        if kind is SegmentAnswer:
            return self.catch_up.has_expected(peer.address)
        return kind is not BlockAnswer or self.requests.is_asking()

    def on_message(self, peer: Peer, message: Message) -> None:
        """Called by the mesh on the lane's thread: decides who deals with a message."""
        sender = peer.address
        if isinstance(message, Routed):
            self._on_routed(sender, message)
        elif sender not in self.router.muted:
            self._on_other(sender, message)

    def _on_routed(self, sender: Address, message: Routed) -> None:
        incoming = self.router.route(sender, message, self._get_seconds())
        if incoming is None:
            return
        self._deliver(incoming, sender)
        match message:
            case Status():
                self._do(self.loop, lambda _: self._on_status(sender, message), sender)
            case BlockAnswer(block):
                self.loop.post(lambda: self.requests.on_block(block.hash))

    def _on_other(self, sender: Address, message: Unrouted) -> None:
        exchange, bulk = self.exchange, self.bulk
        match message:
            case TransactionMessage(raw):
                self.loop.post(lambda: self._on_transaction(sender, raw), sender)
            case Announcement(names):
                self._do(bulk, lambda now: exchange.on_announcement(sender, names, now), sender)
            case BlobRequest():
                self._do(bulk, lambda now: exchange.on_request(sender, message, now), sender)
            case BlobChunk(name, offset):
                if exchange.is_expected(sender, name, offset):
                    self._do(bulk, lambda now: exchange.on_chunk(sender, message, now), sender)
                else:
                    exchange.counters.chunks_unasked += 1
            case SegmentRequest(height):
                self._do(self.loop, lambda now: self._serve(sender, height, now), sender)
            case SegmentAnswer():
                self.loop.post(lambda: self._on_segment(sender, message), sender)
            case Absent(BlobRequest(name)):
                self._do(bulk, lambda now: exchange.on_absent(sender, name, now), sender)
            case Absent(SegmentRequest(height)):
                self.loop.post(lambda: self._on_no_segment(sender, height), sender)

    # -- on the "network" thread -------------------------------------------------------------------
    def _on_members(self, peers: tuple[Address, ...]) -> None:
        self.gossip.set_peers(peers, self._get_seconds())
        self.catch_up.set_peers(peers)
        self.statuses = {one: said for one, said in self.statuses.items() if one in peers}
        self._serving = {one: left for one, left in self._serving.items() if one in peers}
        self._behind &= set(peers)
        self._connected &= set(peers)
        self._look_at = float("-inf")

    def _on_place(self, epoch_sets: tuple[EpochSet, ...], head: Header) -> None:
        now = self._get_seconds()
        self.catch_up.set_place(head, epoch_sets, now)
        self.gossip.on_head(now)
        self._give_segment(now)

    def _on_transaction(self, sender: Address, raw: bytes) -> None:
        self.gossip.on_transaction(sender, raw, self._get_seconds())

    def _on_status(self, sender: Address, status: Status) -> list[Outgoing]:
        """Note where it is. Once it has caught up, it can use what is pending here."""
        self.statuses = self.statuses | {sender: status}
        self.catch_up.on_status(sender, status.height)
        place = self._place
        if place is None:
            return []
        if status.height + FAR_BEHIND < place.head.height:
            self._behind.add(sender)
        elif sender in self._behind:
            self._behind.discard(sender)
            return self._tell_pending(sender)
        return []

    def _tell_pending(self, peer: Address) -> list[Outgoing]:
        self._do(self.bulk, lambda _: self.exchange.announce_held(peer))
        return self.gossip.on_connected(peer)

    def _on_segment(self, sender: Address, answer: SegmentAnswer) -> None:
        now = self._get_seconds()
        self.catch_up.on_segment(sender, answer, now)
        self._give_segment(now)

    def _give_segment(self, now: float) -> None:
        segment = self.catch_up.take_segment(now)
        if segment is not None:
            self._deliver(segment, None)  # it names its source, and was checked

    def _on_no_segment(self, sender: Address, height: int) -> None:
        self.catch_up.on_absent(sender, height, self._get_seconds())

    def _serve(self, sender: Address, height: int, now: float) -> list[Outgoing]:
        bucket = self._serving.get(sender)
        if bucket is None:
            bucket = self._serving[sender] = Bucket.create(SEGMENTS_PER_SECOND, MAX_SEGMENTS, now)
        if not bucket.has_taken(1.0, now):
            self.router.dropped["segments"] += 1
            return []
        return [(sender, build_segment(self._parts.store, height))]

    def _take_turn(self, now: float) -> None:
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look(now)
        self._say_place(now)
        self._send(self.gossip.tick(now) + self.catch_up.tick(now) + self.requests.tick(now))
        self._give_segment(now)

    def _look(self, now: float) -> None:
        """See who is connected now, and tell those that newly are what they missed."""
        peers = sorted(self.mesh.get_peers(), key=lambda one: rank_peer(one, now))
        self.requests.set_peers(one.peer.address for one in peers)
        connected = {one.peer.address for one in peers if one.is_connected}
        if connected == self._connected:
            return
        for peer in sorted(connected ^ self._connected):
            is_connected = peer in connected
            self.catch_up.set_connected(peer, is_connected=is_connected)
            self._do(self.bulk, partial(self._set_connected, peer, is_connected))
            if is_connected:
                self._send(self.gossip.on_connected(peer))
                if self._said is not None:
                    self.mesh.send(peer, self._said)
        self._connected = connected

    def _say_place(self, now: float) -> None:
        """Tell everybody where we are, when that has changed and now and then."""
        place = self._place
        if place is None:
            return
        epoch, head = place.epoch_sets[0].epoch, place.head
        genesis = self._parts.genesis_hash
        status = Status(VERSION, genesis, epoch, place.view, head.height, head.hash)
        pause = STATUS_SECONDS if status == self._said else STATUS_PAUSE_SECONDS
        if now >= self._said_at + pause:
            self._said, self._said_at = status, now
            self.mesh.broadcast(status)

    # -- on the "blobs" thread ---------------------------------------------------------------------
    def _set_connected(self, peer: Address, is_connected: bool, now: float) -> list[Outgoing]:
        return self.exchange.set_connected(peer, now, is_connected=is_connected)

    def _on_available(self) -> None:
        self._wake()

    def _take_bulk_turn(self, now: float) -> None:
        self._send(self.exchange.tick(now))

    # -- sending -----------------------------------------------------------------------------------
    def _blame(self, lane: Lane, peer: Address, code: str) -> None:
        """No honest validator does this: whoever goes on is muted on that lane."""
        self.mesh.refuse(peer, lane, code)

    def _do(
        self, loop: Loop, work: Callable[[float], list[Outgoing]], peer: Address | None = None
    ) -> None:
        """Have a thread do this, and send what comes of it; `peer` is whose message causes it."""
        loop.post(lambda: self._send(work(self._get_seconds())), peer)

    def _send(self, sending: Iterable[Outgoing]) -> None:
        for address, message in sending:
            if address is None:
                self.mesh.broadcast(message)
            else:
                self.mesh.send(address, message)

    # -- asking ------------------------------------------------------------------------------------
    def get_status(self) -> NetworkStatus:
        """All of it, for tests and tools in this process. From any thread."""
        statuses, muted = self.statuses, self.router.muted
        peers = tuple(
            create_report(one, statuses.get(one.peer.address), muted.get(one.peer.address))
            for one in self.mesh.get_peers()
        )
        target = self.catch_up.target
        return NetworkStatus(
            peers=peers,
            waiting_blobs=self.exchange.count_waiting(),
            is_catching_up=target is not None,
            target_height=target,
            dropped=self._count_dropped(),
        )

    def get_totals(self) -> NetworkTotals:
        """The counters alone, for /health and /metrics. From any thread."""
        mesh, exchange = self.mesh.get_totals(), self.exchange
        parts = (exchange.counters, self.catch_up.counters, self.gossip.counters)
        work = {name: count for part in parts for name, count in asdict(part).items()}
        served = {
            "chunks_served": exchange.chunks_served,
            "requests_absent": exchange.requests_absent,
            "requests_dropped": exchange.requests_dropped,
        }
        return NetworkTotals(
            dropped=self._count_dropped() | {"queue": mesh.dropped},
            refused=dict(mesh.refused),
            work=work | served,
            muted=sum(
                one.is_muted or one.peer.address in self.router.muted
                for one in self.mesh.get_peers()
            ),
        )

    def _count_dropped(self) -> dict[str, int]:
        """Messages of others that nothing was done with, by reason."""
        own = {"network": self.loop.dropped, "blobs": self.bulk.dropped}
        return dict(self.router.dropped) | own


def rank_peer(peer: PeerStatus, now: float) -> tuple[bool, bool]:
    """Least for those likeliest to answer: we heard them lately, and they hear us."""
    is_heard = peer.seen_at is not None and now - peer.seen_at < HEARD_SECONDS
    return not is_heard, not peer.is_connected

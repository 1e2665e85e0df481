"""Several networks on one thread: real but for the mesh, the driver and the clock.

`Web.run` carries every message, gives every network its turns, and moves the clock.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from steelyard.chain.block import Block, Rules
from steelyard.chain.cid import compute_blob_name
from steelyard.chain.consensus.certificates import Certificate
from steelyard.chain.epochs import EpochSet
from steelyard.chain.types import Address, BlobName, View
from steelyard.node.blobs import BlobStore
from steelyard.node.clock import Clock
from steelyard.node.config import BlobsConfig, MempoolConfig, NetworkConfig
from steelyard.node.inbox import Incoming, Segment
from steelyard.node.mempool import Mempool, Sender
from steelyard.node.network.mesh import Peer, PeerStatus
from steelyard.node.network.roster import Totals
from steelyard.node.network.service import MeshLike, Network, NetworkParts
from steelyard.node.network.wire import KINDS, Lane, Message, decode_message, encode_message
from steelyard.node.store import ChainStore, FinalBlock
from tests.chain.evm_kit import DOMAIN
from tests.chain.following_kit import FOUR, ROOT, make_blocks
from tests.node.world import CHAIN_ID, COIN

EPOCH_BLOCKS = 8
BASE_FEE = 10**9
GENESIS = Block(ROOT, make_blocks(1)[0].extension)
TURN_SECONDS = 0.05
CreateMesh = Callable[[Callable[[Peer, Message], None]], MeshLike]


class Spot:
    """One validator: its stores, its pool, its network; `incoming` is what its driver got."""

    def __init__(
        self, path: Path, place: int, clock: Clock, create_mesh: CreateMesh, config: NetworkConfig
    ) -> None:
        self.address = FOUR.members[place].address
        self.incoming: list[Incoming] = []
        self.senders: list[Address | None] = []
        """Who answers for each."""
        self.woken = 0
        self.store = ChainStore(path / "chain", 2**24)
        self.store.commit([FinalBlock(GENESIS, (), {}, ())], None, {})
        self.blobs = BlobStore(path, BlobsConfig())
        self.pool = Mempool(
            Rules(CHAIN_ID, DOMAIN, 30_000_000, 10**6, 3_600),
            MempoolConfig(),
            lambda _: Sender(nonce=0, balance=1_000 * COIN, has_code=False),
            lambda: BASE_FEE,
            self.blobs.has,
            clock.get_seconds,
        )
        parts = NetworkParts(
            address=self.address,
            domain=DOMAIN,
            epoch_blocks=EPOCH_BLOCKS,
            genesis_hash=ROOT.hash,
            store=self.store,
            mempool=self.pool,
            blobs=self.blobs,
            check_space=lambda _: None,
            clock=clock,
            config=config,
        )
        self.network = Network(parts, create_mesh)
        self.network.attach(self.take, self.wake)
        self.epoch_sets: tuple[EpochSet, ...] = (FOUR,)

    def take(self, incoming: Incoming, sender: Address | None = None) -> None:
        """As the driver does: segments are made final."""
        self.incoming.append(incoming)
        self.senders.append(sender)
        if isinstance(incoming, Segment):
            self.finalize(incoming.blocks, incoming.certificate)

    def wake(self) -> None:
        self.woken += 1

    def finalize(self, blocks: Sequence[Block], certificate: Certificate) -> None:
        self.store.commit([FinalBlock(block, (), {}, ()) for block in blocks], certificate, {})
        self.set_place()

    def set_place(self) -> None:
        self.network.set_place(self.epoch_sets, View(1), self.store.get_head())

    def has(self, raw: bytes) -> bool:
        return any(one.raw == raw for one in self.pool.get_all())

    def count_eligible(self) -> int:
        return len(list(self.pool.iter_eligible(BASE_FEE, {})))

    def upload(self, data: bytes) -> BlobName:
        name = compute_blob_name(data)
        upload = self.blobs.open_upload(name, self.pool.is_declared)
        upload.write(data)
        upload.commit()
        return name

    def close(self) -> None:
        self.network.exchange.close()
        self.store.close()


class Wire:
    """The mesh of one validator in a `Web`."""

    def __init__(self, web: "Web", on_message: Callable[[Peer, Message], None]) -> None:
        self._web, self.on_message = web, on_message
        self.address = Address(b"")
        self.peers: dict[Address, Peer] = {}
        self.refused: list[tuple[Address, str]] = []

    def start(self) -> None:
        pass

    def set_filter(self, admits: Callable[[Peer, type[Message]], bool]) -> None:
        self.admits = admits

    def stop(self) -> None:
        pass

    def set_peers(self, peers: Iterable[Peer]) -> None:
        self.peers = {peer.address: peer for peer in peers}

    def broadcast(self, message: Message) -> None:
        for address in self.peers:
            self.send(address, message)

    def send(self, address: Address, message: Message) -> None:
        if address in self.peers:
            self._web.send(self.address, address, message)

    def refuse(self, address: Address, lane: Lane, code: str) -> None:
        assert lane in Lane
        self.refused.append((address, code))

    def get_totals(self) -> Totals:
        return Totals(0, Counter(code for _, code in self.refused))

    def get_peers(self) -> tuple[PeerStatus, ...]:
        return tuple(
            PeerStatus(
                peer, self._web.is_linked(self.address, address), False, None, 0, 0, 0, 0, 0, {}
            )
            for address, peer in self.peers.items()
        )


class Web:
    """Four validators at block 0. `cut` holds the addresses that nobody reaches."""

    def __init__(self, path: Path, count: int = 4) -> None:
        self.now = 1_000.0
        self.cut: set[Address] = set()
        self.sent: Counter[str] = Counter()
        self.change: Callable[[Address, Address, Message], Message | None] = lambda _a, _b, m: m
        """What becomes of a message from one to another; None: it is lost."""
        self._queue: deque[tuple[Address, Address, bytes, Lane]] = deque()
        self.wires: list[Wire] = []
        clock = Clock(lambda: self.now, lambda: self.now)
        self.spots = [
            Spot(path / str(place), place, clock, self._create_wire, NetworkConfig())
            for place in range(count)
        ]
        for spot, wire in zip(self.spots, self.wires, strict=True):
            wire.address = spot.address
            spot.set_place()
        self.run(1.0)

    def _create_wire(self, on_message: Callable[[Peer, Message], None]) -> Wire:
        self.wires.append(Wire(self, on_message))
        return self.wires[-1]

    def is_linked(self, one: Address, other: Address) -> bool:
        here = {wire.address for wire in self.wires}
        return {one, other} <= here and not {one, other} & self.cut

    def send(self, sender: Address, to: Address, message: Message) -> None:
        changed = self.change(sender, to, message)
        if changed is not None and self.is_linked(sender, to):
            self.sent[type(message).__name__] += 1
            self._queue.append((sender, to, encode_message(changed), changed.lane))

    def run(self, seconds: float) -> None:
        """Let this much time pass."""
        end = self.now + seconds
        while True:
            self._carry()
            if self.now >= end:
                return
            self.now = min(end, self.now + TURN_SECONDS)

    def _carry(self) -> None:
        """Until nothing is on its way."""
        while True:
            for spot in self.spots:
                spot.network.loop.run_once()
                spot.network.bulk.run_once()
            if not self._queue:
                return
            while self._queue:
                sender, to, data, lane = self._queue.popleft()
                wire = next(one for one in self.wires if one.address == to)
                peer = wire.peers.get(sender)
                if peer is not None and wire.admits(peer, KINDS[data[0]]):
                    wire.on_message(peer, decode_message(data, lane))

    def close(self) -> None:
        for spot in self.spots:
            spot.close()

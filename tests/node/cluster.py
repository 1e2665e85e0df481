"""Several whole nodes on one thread: an in-memory network, one clock that a test turns.

Every node is real but for its threads and sockets: `Cluster.run` gives each driver its turns, and
moves the clock to the next instant at which something is due when all of them are idle. Messages
take a fixed time. So a run is the same each time, and minutes of timeouts cost nothing.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from eth_keys.datatypes import PrivateKey

from steelyard.chain.block import Block, Header
from steelyard.chain.bls import compute_public_key, derive_secret_key, prove_possession
from steelyard.chain.consensus.certificates import Certificate
from steelyard.chain.consensus.messages import (
    CertificateReceived,
    Message,
    Proposal,
    VoteReceived,
)
from steelyard.chain.consensus.votes import Statement, Vote, find_offence
from steelyard.chain.epochs import EpochSet
from steelyard.chain.errors import SteelyardError
from steelyard.chain.genesis import (
    ConsensusSettings,
    GenesisValidator,
    create_genesis,
    encode_genesis,
)
from steelyard.chain.types import Address, BlobName, Epoch, Hash, View
from steelyard.node.clock import Clock
from steelyard.node.config import CONFIG_FILE, encode_config
from steelyard.node.directory import GENESIS_FILE
from steelyard.node.inbox import (
    Arrival,
    BlockAnswered,
    BlockWanted,
    CertificatesWanted,
    Incoming,
    PlaceHeard,
    Segment,
)
from steelyard.node.keyfiles import Secrets, compute_network_key
from steelyard.node.network.serving import build_segment
from steelyard.node.network.wire import SegmentAnswer
from steelyard.node.node import Node

from .world import ALICE, BOB, CHAIN_ID, COIN, CONFIG, get_address

GENESIS_SECONDS = 1_700_000_000
DELAY_SECONDS = 0.01
STATUS_SECONDS = 2.0
BEHIND_BLOCKS = 2
MAX_TURNS = 200_000
EPOCH_BLOCKS = 1_000


def make_secrets(place: int) -> Secrets:
    """The keys of the nth validator."""
    seed = bytes([0xA0 + place]) * 32
    return Secrets(PrivateKey(seed), derive_secret_key(seed), seed)


def list_validator(secrets: Secrets, stake: int, endpoint: str) -> GenesisValidator:
    return GenesisValidator(
        address=secrets.address,
        bls_key=compute_public_key(secrets.voting),
        proof_of_possession=prove_possession(secrets.voting),
        network_key=compute_network_key(secrets.network),
        endpoint=endpoint,
        fee_recipient=secrets.address,
        stake=stake,
    )


def make_document(
    stakes: Sequence[int],
    *,
    epoch_blocks: int = EPOCH_BLOCKS,
    first_port: int = 1,
    **changes: object,
) -> bytes:
    """A genesis with validators of these stakes, in coins."""
    consensus = {"timeout_ms": 1_000, "heartbeat_ms": 2_000} | changes
    genesis = create_genesis(
        chain_id=CHAIN_ID,
        name="cluster",
        timestamp=GENESIS_SECONDS,
        validators=tuple(
            list_validator(make_secrets(place), stake * COIN, f"127.0.0.1:{first_port + 2 * place}")
            for place, stake in enumerate(stakes)
        ),
        alloc={get_address(one): 1_000 * COIN for one in (ALICE, BOB)}
        | {make_secrets(place).address: 1_000 * COIN for place in range(8)},
        epoch_blocks=epoch_blocks,
        consensus=ConsensusSettings(**consensus),  # type: ignore[arg-type]
    )
    return encode_genesis(genesis)


@dataclass(order=True)
class Parcel:
    """A message on its way."""

    at: float
    order: int
    to: Address = field(compare=False)
    sender: Address = field(compare=False)
    action: Callable[[Node], None] = field(compare=False)


class Line:
    """One node's outbox."""

    def __init__(self, cluster: "Cluster", address: Address) -> None:
        self._cluster, self._address = cluster, address
        self._place = Epoch(0), View(0)

    def broadcast(self, message: Message, block: Block | None) -> None:
        match message:
            case Proposal(_, vote):
                assert block is not None
                self._cluster.said[self._address].append(vote.statement)
                self._tell(Arrival(block, vote))
            case Vote():
                self._cluster.said[self._address].append(message.statement)
                self._tell(VoteReceived(message))
            case Certificate():
                self._tell(CertificateReceived(message))

    def fetch_block(self, block_hash: Hash, holders: tuple[Address, ...]) -> None:
        assert self._address not in holders
        self._tell(BlockWanted(block_hash, self._address), holders)

    def fetch_certificates(self, epoch: Epoch, view: View) -> None:
        self._tell(CertificatesWanted(epoch, view, self._address))

    def fetch_blobs(self, names: tuple[BlobName, ...], holders: tuple[Address, ...]) -> None:
        for name in names:
            for holder in holders:
                self._cluster.send(self._address, holder, self._make_sender(name))

    def _make_sender(self, name: BlobName) -> Callable[[Node], None]:
        def send(holder: Node) -> None:
            if holder.blobs.has(name) and name not in self._cluster.withheld:
                data = bytes(holder.blobs.read(name))
                self._cluster.send(
                    holder.address, self._address, lambda node: store(node, name, data)
                )

        return send

    def send_block(self, address: Address, block: Block) -> None:
        self._tell(BlockAnswered(block), (address,))

    def send_certificates(self, address: Address, certificates: Iterable[Certificate]) -> None:
        for certificate in certificates:
            self._tell(CertificateReceived(certificate), (address,))

    def refuse(self, address: Address, code: str) -> None:
        self._cluster.refused.append((self._address, address, code))

    def set_place(self, epoch_sets: tuple[EpochSet, ...], view: View, head: Header) -> None:
        self._tell(PlaceHeard(self._address, head.height, epoch_sets[0].epoch, view))
        self._place = epoch_sets[0].epoch, view

    def _tell(self, message: Incoming, to: Iterable[Address] | None = None) -> None:
        cluster = self._cluster
        cluster.counts[type(message).__name__] += 1
        for address in cluster.addresses if to is None else to:
            if address != self._address:
                cluster.send(
                    self._address,
                    address,
                    lambda node: cluster.hand_over(node, message, self._address),
                )


def store(node: Node, name: BlobName, data: bytes) -> None:
    with suppress(SteelyardError):  # it came from another one first
        upload = node.blobs.open_needed(name, lambda _: True)
        upload.write(data)
        upload.commit()


class Cluster:
    """Nodes by place. `down` ones have no process; between `parted` ones nothing passes."""

    def __init__(self, directory: Path, document: bytes, count: int) -> None:
        self.now = 1_000.0
        self.directory = directory
        self.secrets = [make_secrets(place) for place in range(count)]
        self.addresses = [one.address for one in self.secrets]
        self.nodes: dict[int, Node] = {}
        self.parts: list[set[int]] = []
        self.counts: Counter[str] = Counter()
        """Messages sent, by kind."""
        self.said: dict[Address, list[Statement]] = {one: [] for one in self.addresses}
        """Every vote that left a node, over all its lives."""
        self.refused: list[tuple[Address, Address, str]] = []
        """Who holds which broken rule against whom."""
        self.withheld: set[BlobName] = set()
        self.filter: Callable[[int, Incoming], bool] = lambda place, message: True
        """Does this message reach the node at that place?"""
        self._parcels: list[Parcel] = []
        self._order = itertools.count()
        self._status_at = self.now
        for place in range(count):
            home = directory / str(place)
            home.mkdir(parents=True)
            (home / GENESIS_FILE).write_bytes(document)
            (home / CONFIG_FILE).write_text(encode_config(CONFIG))

    # -- nodes -------------------------------------------------------------------------------------
    def start(self, *places: int) -> None:
        for place in places or range(len(self.secrets)):
            clock = Clock(lambda: self.now, lambda: GENESIS_SECONDS + 100 + self.now)
            config = replace(CONFIG, blocks=replace(CONFIG.blocks, build_seconds=1e9))
            node = Node.open(self.directory / str(place), self.secrets[place], config, clock)
            node.driver.outbox = Line(self, self.secrets[place].address)
            self.nodes[place] = node

    def kill(self, *places: int) -> None:
        """Stop a node without any farewell: nothing but its disk is left."""
        for place in places:
            self.nodes.pop(place).stop()

    def close(self) -> None:
        self.kill(*self.nodes)

    def get_home(self, place: int) -> Path:
        """The data directory of a node."""
        return self.directory / str(place)

    def part(self, *groups: set[int]) -> None:
        """Let messages pass within these groups only; none given: everywhere."""
        self.parts = list(groups)

    # -- messages ----------------------------------------------------------------------------------
    def send(self, sender: Address, to: Address, action: Callable[[Node], None]) -> None:
        parcel = Parcel(self.now + DELAY_SECONDS, next(self._order), to, sender, action)
        heapq.heappush(self._parcels, parcel)

    def hand_over(self, node: Node, message: Incoming, sender: Address | None = None) -> None:
        place = self.addresses.index(node.address)
        if not self.filter(place, message):
            return
        node.driver.deliver(message, sender)
        if (
            isinstance(message, PlaceHeard)
            and message.height > node.get_head().height + BEHIND_BLOCKS
        ):
            height = node.get_head().height + 1
            self.send(
                node.address, message.address, lambda peer: self._serve(peer, node.address, height)
            )

    def _serve(self, peer: Node, to: Address, height: int) -> None:
        answer = build_segment(peer.store, height)
        if isinstance(answer, SegmentAnswer):
            segment = Segment(answer.blocks, answer.certificate, peer.address.hex())
            self.send(peer.address, to, lambda node: self.hand_over(node, segment))

    def _has_way(self, parcel: Parcel) -> bool:
        ends = {self.addresses.index(parcel.sender), self.addresses.index(parcel.to)}
        return not self.parts or any(ends <= group for group in self.parts)

    def _deliver_due(self) -> bool:
        if not self._parcels or self._parcels[0].at > self.now:
            return False
        parcel = heapq.heappop(self._parcels)
        node = self.nodes.get(self.addresses.index(parcel.to))
        if node is not None and self._has_way(parcel):
            parcel.action(node)
        return True

    def _tell_status(self) -> None:
        self._status_at = self.now + STATUS_SECONDS
        for node in self.nodes.values():
            line = node.driver.outbox
            assert isinstance(line, Line)
            line._tell(PlaceHeard(node.address, node.get_head().height, *line._place))

    # -- time --------------------------------------------------------------------------------------
    def run(self, is_done: Callable[[], object], seconds: float = 90.0) -> None:
        """Let the nodes work until that is so; fail if it is not within so many seconds."""
        deadline = self.now + seconds
        for _ in range(MAX_TURNS):
            if is_done():
                return
            if not self._take_turns():
                self._move_clock(deadline)
        raise AssertionError("too many turns")

    def rest(self, seconds: float) -> None:
        """Let the nodes work for so long."""
        until = self.now + seconds
        self.run(lambda: self.now >= until, seconds + 1)

    def _take_turns(self) -> bool:
        has_worked = self._deliver_due()
        for node in tuple(self.nodes.values()):
            has_worked |= node.driver.advance()
        return has_worked

    def _move_clock(self, deadline: float) -> None:
        pauses = [max(node.driver.compute_pause(), 1e-4) for node in self.nodes.values()]
        due = [self._status_at, *(self.now + pause for pause in pauses)]
        due += [parcel.at for parcel in self._parcels[:1]]
        self.now = max(self.now, min(due))
        assert self.now < deadline, f"in vain: {self.describe()}"
        if self.now >= self._status_at:
            self._tell_status()

    def describe(self) -> str:
        rows = (
            f"{place}: height {node.get_head().height} view {node.driver.get_view()} "
            f"alarm {node.driver.alarm}"
            for place, node in self.nodes.items()
        )
        return "; ".join(rows)

    # -- what a test asks --------------------------------------------------------------------------
    def get_height(self) -> int:
        """The lowest head."""
        return min(node.get_head().height for node in self.nodes.values())

    def check_agreement(self) -> None:
        """All chains are one, as far as each goes."""
        for height in range(1, self.get_height() + 1):
            assert len({node.get_hash(height) for node in self.nodes.values()}) == 1, height

    def check_honesty(self) -> None:
        """Nobody ever said two things that a validator may not say both, and none is blamed."""
        assert self.refused == []
        for said in self.said.values():
            for first, second in itertools.combinations(set(said), 2):
                assert find_offence(first, second) is None, (first, second)

    def submit(self, raw: bytes) -> Hash:
        """Hand a transaction to every node, as gossip would."""
        hashes = [node.submit_transaction(raw) for node in self.nodes.values()]
        return hashes[0]

"""Everything that a node does with `[follow] nodes`, as one part; nothing if there are none."""

from collections.abc import Iterable

from steelyard.chain.block import Block, Header
from steelyard.chain.consensus.certificates import Certificate
from steelyard.chain.consensus.messages import Message
from steelyard.chain.epochs import EpochSet
from steelyard.chain.types import Address, BlobName, Epoch, Hash, View

from ..mempool import Mempool
from ..outbox import Outbox
from ..records import FollowingStatus
from .forwarding import Forwarder
from .sync import Follower, FollowerParts


class Following:
    """Follows and forwards. `start` once the driver runs, `stop` before it ends."""

    def __init__(self, parts: FollowerParts, mempool: Mempool) -> None:
        """Raises SteelyardError follow_url."""
        is_on = bool(parts.config.nodes)
        self._follower = Follower(parts) if is_on else None
        self._forwarder = Forwarder(parts, mempool) if is_on and parts.config.forward else None

    def start(self) -> None:
        for part in (self._follower, self._forwarder):
            if part is not None:
                part.start()

    def stop(self) -> None:
        """Wait for the threads."""
        for part in (self._forwarder, self._follower):
            if part is not None:
                part.stop()

    def wake(self) -> None:
        """A transaction or a blob came: it may be forwarded."""
        if self._forwarder is not None:
            self._forwarder.wake()

    def on_final(self, header: Header, transactions: int) -> None:
        """A block became final here."""
        if self._follower is not None:
            self._follower.on_final(header, transactions)

    def fetch_blobs(self, names: tuple[BlobName, ...]) -> None:
        """Look for blobs that a block needs; the driver is woken when one is on disk."""
        if self._follower is not None:
            self._follower.fetch_blobs(names)

    def get_status(self) -> FollowingStatus | None:
        """None if this node follows nobody."""
        return None if self._follower is None else self._follower.get_status()


class AssistedOutbox:
    """The driver's way out: the mesh, and for blobs the sources as well."""

    def __init__(self, mesh: Outbox, following: Following) -> None:
        self._mesh, self._following = mesh, following

    def broadcast(self, message: Message, block: Block | None) -> None:
        self._mesh.broadcast(message, block)

    def fetch_block(self, block_hash: Hash, holders: tuple[Address, ...]) -> None:
        self._mesh.fetch_block(block_hash, holders)

    def fetch_certificates(self, epoch: Epoch, view: View) -> None:
        self._mesh.fetch_certificates(epoch, view)

    def fetch_blobs(self, names: tuple[BlobName, ...], holders: tuple[Address, ...]) -> None:
        """Whoever has it first; what the other brings later is the same."""
        self._mesh.fetch_blobs(names, holders)
        self._following.fetch_blobs(names)

    def send_block(self, address: Address, block: Block) -> None:
        self._mesh.send_block(address, block)

    def send_certificates(self, address: Address, certificates: Iterable[Certificate]) -> None:
        self._mesh.send_certificates(address, certificates)

    def refuse(self, address: Address, code: str) -> None:
        self._mesh.refuse(address, code)

    def set_place(self, epoch_sets: tuple[EpochSet, ...], view: View, head: Header) -> None:
        self._mesh.set_place(epoch_sets, view, head)

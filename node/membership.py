"""Being one validator of several: connected to the others for as long as this key is among them.

Whoever is in no set would be refused by every validator, so it does not even try; it follows over
HTTP. The epoch that takes it in is the one whose first block it may propose, so it connects as soon
as the boundary block before that is final here.
"""

from collections.abc import Callable, Iterable

from steelyard.chain.block import Block, Header
from steelyard.chain.consensus.certificates import Certificate
from steelyard.chain.consensus.messages import Message
from steelyard.chain.epochs import EpochSet, Member
from steelyard.chain.errors import SteelyardError
from steelyard.chain.types import Address, BlobName, Epoch, Hash, View

from .logs import log_alarm, log_event
from .network.service import Network
from .outbox import Nobody, Outbox


class Membership:
    """The driver's outbox: a network while there are others and we are one of them, else nobody.

    `connect(member)` starts a network as that member, or raises SteelyardError; `disconnect`
    stops it.
    """

    def __init__(
        self,
        address: Address,
        connect: Callable[[Member], Network],
        disconnect: Callable[[Network], None],
    ) -> None:
        self._address, self._connect, self._disconnect = address, connect, disconnect
        self._nobody = Nobody()
        self._refusal: str | None = None
        self.network: Network | None = None

    def follow(self, epoch_sets: tuple[EpochSet, ...]) -> None:
        """Connect or disconnect, as these sets say. Raises SteelyardError if it cannot listen."""
        member = self._find_ourselves(epoch_sets)
        if member is not None and self.network is None:
            self.network = self._connect(member)
            log_event("network_joined", endpoint=member.endpoint)
        elif member is None and self.network is not None:
            self.stop()
            log_event("network_left")

    def stop(self) -> None:
        """Disconnect."""
        network, self.network = self.network, None
        if network is not None:
            self._disconnect(network)

    def _find_ourselves(self, epoch_sets: tuple[EpochSet, ...]) -> Member | None:
        """Us as one of several, or None."""
        found = (one.find(self._address) for one in epoch_sets if len(one.members) > 1)
        return next((member for member in found if member is not None), None)

    def _get(self) -> Outbox:
        return self._nobody if self.network is None else self.network

    # -- the driver's outbox -----------------------------------------------------------------------
    def broadcast(self, message: Message, block: Block | None) -> None:
        self._get().broadcast(message, block)

    def fetch_block(self, block_hash: Hash, holders: tuple[Address, ...]) -> None:
        self._get().fetch_block(block_hash, holders)

    def fetch_certificates(self, epoch: Epoch, view: View) -> None:
        self._get().fetch_certificates(epoch, view)

    def fetch_blobs(self, names: tuple[BlobName, ...], holders: tuple[Address, ...]) -> None:
        self._get().fetch_blobs(names, holders)

    def send_block(self, address: Address, block: Block) -> None:
        self._get().send_block(address, block)

    def send_certificates(self, address: Address, certificates: Iterable[Certificate]) -> None:
        self._get().send_certificates(address, certificates)

    def refuse(self, address: Address, code: str) -> None:
        self._get().refuse(address, code)

    def set_place(self, epoch_sets: tuple[EpochSet, ...], view: View, head: Header) -> None:
        """Consensus goes on if we cannot listen: others may still connect tomorrow."""
        try:
            self.follow(epoch_sets)
            self._refusal = None
        except SteelyardError as error:
            if self._refusal != error.code:
                log_alarm("network_failed", code=error.code, message=error.message)
            self._refusal = error.code
        self._get().set_place(epoch_sets, view, head)

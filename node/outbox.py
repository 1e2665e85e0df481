"""What the driver asks of the network and of the keeper. Nothing here blocks or raises."""

from collections.abc import Iterable
from typing import Protocol

from steelyard.chain.block import Block, Header
from steelyard.chain.consensus.certificates import Certificate
from steelyard.chain.consensus.messages import Message, ReportConflict, ReportOffence
from steelyard.chain.epochs import EpochSet
from steelyard.chain.types import Address, BlobName, Epoch, Hash, View


class Outbox(Protocol):
    """The way to the other validators. Everything may be lost: what matters is asked again."""

    def broadcast(self, message: Message, block: Block | None) -> None:
        """Send to every other validator; `block` is that of a proposal, None otherwise."""

    def fetch_block(self, block_hash: Hash, holders: tuple[Address, ...]) -> None:
        """Ask these for a block; it comes as `BlockAnswered`."""

    def fetch_certificates(self, epoch: Epoch, view: View) -> None:
        """Ask for the certificates of `view` and later."""

    def fetch_blobs(self, names: tuple[BlobName, ...], holders: tuple[Address, ...]) -> None:
        """Ask for blobs that a block needs; the driver is woken when one is on disk."""

    def send_block(self, address: Address, block: Block) -> None:
        """Answer `BlockWanted`."""

    def send_certificates(self, address: Address, certificates: Iterable[Certificate]) -> None:
        """Answer `CertificatesWanted`."""

    def refuse(self, address: Address, code: str) -> None:
        """What this validator sent breaks a rule: no honest one does that."""

    def set_place(self, epoch_sets: tuple[EpochSet, ...], view: View, head: Header) -> None:
        """Where we are: after the start, every finalization and every epoch.

        `epoch_sets`: the current one first, then the one before, whose members may still ask.
        """


class Nobody:
    """The outbox of a validator alone: a quorum of one has nobody to tell or to ask."""

    def broadcast(self, message: Message, block: Block | None) -> None:
        pass

    def fetch_block(self, block_hash: Hash, holders: tuple[Address, ...]) -> None:
        pass

    def fetch_certificates(self, epoch: Epoch, view: View) -> None:
        pass

    def fetch_blobs(self, names: tuple[BlobName, ...], holders: tuple[Address, ...]) -> None:
        pass

    def send_block(self, address: Address, block: Block) -> None:
        pass

    def send_certificates(self, address: Address, certificates: Iterable[Certificate]) -> None:
        pass

    def refuse(self, address: Address, code: str) -> None:
        pass

    def set_place(self, epoch_sets: tuple[EpochSet, ...], view: View, head: Header) -> None:
        pass


class Duties(Protocol):
    """Who sees to it that a cheat is punished."""

    def report(self, evidence: ReportOffence | ReportConflict, epoch_set: EpochSet) -> None:
        """Keep evidence against validators of that epoch, for the keeper to send."""


class NoDuties:
    """For a node without a keeper."""

    def report(self, evidence: ReportOffence | ReportConflict, epoch_set: EpochSet) -> None:
        pass

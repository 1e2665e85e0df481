"""A disk that keeps what was fsynced, and of the rest whatever it likes."""

from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar

from steelyard.chain.consensus.certificates import Certificate
from steelyard.chain.consensus.messages import Candidate
from steelyard.chain.consensus.votes import Kind, Statement

T = TypeVar("T")


class Journal(Generic[T]):
    """Records in the order of writing. A torn record fails its checksum, so it counts as lost."""

    def __init__(self) -> None:
        self.durable: list[T] = []
        self.pending: list[T] = []

    def write(self, record: T) -> None:
        self.pending.append(record)

    def sync(self) -> None:
        self.durable += self.pending
        self.pending.clear()

    def lose(self, random: Random) -> None:
        """The machine died: any of the records that were not yet fsynced may be gone or torn."""
        self.durable += [record for record in self.pending if random.random() < 0.5]
        self.pending.clear()

    def lose_end(self, random: Random) -> None:
        """The machine died: whatever survives is a beginning, because commits are in order."""
        self.durable += self.pending[: random.randrange(len(self.pending) + 1)]
        self.pending.clear()

    def read(self) -> list[T]:
        return self.durable + self.pending


@dataclass(frozen=True, slots=True)
class Segment:
    """Blocks that became final together, oldest first, and the certificate of the last."""

    blocks: tuple[Candidate, ...]
    certificate: Certificate


class JournalDisk:
    """Votes, certificates, blocks and finalizations of one validator."""

    def __init__(self) -> None:
        self.statements: Journal[Statement] = Journal()
        self.certificates: Journal[Certificate] = Journal()
        self.blocks: Journal[Candidate] = Journal()
        self.finals: Journal[Segment] = Journal()
        self.index: dict[bytes, Candidate] = {}
        """The blocks by hash."""
        self.lost: list[Certificate] = []
        """Those that led to a finalize vote which was kept."""

    def put_block(self, block: Candidate) -> None:
        if block.hash not in self.index:
            self.index[block.hash] = block
            self.blocks.write(block)

    def sync_store(self) -> None:
        """The store is fsynced as a whole; the signer has its own file for statements."""
        for journal in (self.certificates, self.blocks, self.finals):
            journal.sync()

    def lose(self, random: Random) -> None:
        held = self.certificates.read()
        for journal in (self.statements, self.certificates, self.blocks):
            journal.lose(random)
        self.finals.lose_end(random)
        self.index = {block.hash: block for block in self.blocks.durable}
        voted = {(s.epoch, s.view) for s in self.statements.durable if s.kind == Kind.FINALIZE}
        gone = [one for one in held if one not in self.certificates.durable]
        self.lost += [c for c in gone if c.kind == Kind.NOTARIZE and (c.epoch, c.view) in voted]

    def restore(self) -> list[Certificate]:
        """Find again what led to a finalize vote; returns it.

        Nobody is safe by it, so the disk may lose it. But who has voted to finalize may not help to
        give the view up, and if a cheat's vote was in the only copy, all wait for it for ever: the
        node has it on disk before the vote (`Session._sign`).
        """
        found, self.lost = self.lost, []
        self.certificates.durable += found
        return found

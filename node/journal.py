"""What consensus must find again after a kill: blocks above the head, certificates, our last vote.

Entries are gathered in memory and written together before a vote leaves, or with the commit that
makes blocks final, which also deletes those that are over (`finality`).
"""

from steelyard.chain.block import decode_block
from steelyard.chain.consensus.certificates import Certificate, decode_certificate

from .signer import encode_place
from .store import ChainStore
from .tree import BlockTree

BLOCK, CERTIFICATE, VOTED = b"b", b"c", b"v"
"""First byte of a journal key. `VOTED` is a whole key: the place of a late vote of ours, mostly the
last one, by which a signer/ that is older than chain/ is told."""


class Journal:
    """What must be on disk before our next vote leaves, gathered for one write."""

    def __init__(self, store: ChainStore) -> None:
        self._store = store
        self.entries: dict[bytes, bytes | None] = {}

    def flush(self) -> None:
        """Raises StorageFull, CorruptData; nothing is lost then."""
        if self.entries:
            self._store.write_journal(self.entries)
            self.entries = {}


def get_certificate_key(certificate: Certificate) -> bytes:
    """Journal key: one certificate of a kind in a view."""
    return (
        CERTIFICATE + encode_place(certificate.epoch, certificate.view) + bytes([certificate.kind])
    )


def read_journal(store: ChainStore, tree: BlockTree) -> list[Certificate]:
    """What a kill, or a fault, left above the head: adds the blocks, returns the certificates."""
    certificates = []
    for key, value in store.read_journal():
        if key[:1] == BLOCK:
            tree.add(decode_block(value), None)
        elif key[:1] == CERTIFICATE:
            certificates.append(decode_certificate(value))
    return certificates

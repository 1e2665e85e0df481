"""What this store does not hold, and how that is said.

A node keeps all blocks, but states only as far back as it is told to (`pruning.py`); and one that
began at a checkpoint (`following/checkpoint.py`) has neither states nor receipts from before it.
"""

from typing import Final

from steelyard.chain import proofs
from steelyard.chain.admission import compute_admission_slot, decode_admission
from steelyard.chain.errors import SteelyardError
from steelyard.chain.params import FEDAVG_ADDRESS
from steelyard.chain.types import Address, BlobName, Height

from .store import ChainStore, Writer, encode_height, put_expiry

OLDEST_STATE: Final = b"oldest_state"
FIRST_EXECUTED: Final = b"first_executed"
"""Keys in the table `meta`; without them everything is here."""


class StatePruned(SteelyardError):
    """The state of that block was let go, or never was on this machine."""

    code = "state_pruned"

    def __init__(self, height: int, oldest: int) -> None:
        super().__init__(
            self.code,
            f"the state of block {height} is not kept here; the oldest one is of block {oldest}: "
            "ask for a newer block, or a node that keeps all states",
        )


class HistoryMissing(SteelyardError):
    """This node began at a checkpoint after that block."""

    code = "history_missing"

    def __init__(self, height: int, first: int) -> None:
        super().__init__(
            self.code,
            f"receipts and logs of block {height} are not here; this node began at a checkpoint "
            f"and has them from block {first} on: ask a node that has the whole chain",
        )


def get_oldest_state(store: ChainStore) -> Height:
    """The lowest height whose state this store holds."""
    return _read_height(store, OLDEST_STATE)


def get_first_executed(store: ChainStore) -> Height:
    """The lowest height whose receipts and logs this store holds."""
    return _read_height(store, FIRST_EXECUTED)


def set_oldest_state(writer: Writer, height: int) -> None:
    writer.put("meta", OLDEST_STATE, encode_height(height))


def set_first_executed(writer: Writer, height: int) -> None:
    writer.put("meta", FIRST_EXECUTED, encode_height(height))


def check_state(store: ChainStore, height: int) -> None:
    """Refuse a height whose state is not kept. Raises StatePruned."""
    oldest = get_oldest_state(store)
    if height < oldest:
        raise StatePruned(height, oldest)


def check_history(store: ChainStore, height: int) -> None:
    """Refuse a height that was not executed here. Raises HistoryMissing."""
    first = get_first_executed(store)
    if height < first:
        raise HistoryMissing(height, first)


def find_blob_expiry(store: ChainStore, name: BlobName) -> int | None:
    """Until which second a blob may be read, or None if the chain does not know it (any more).

    What was admitted before our checkpoint is in no index here, only in the state.
    Raises MissingState.
    """
    known = store.get_blob_expiry(name)
    if known is not None or get_first_executed(store) == 0:
        return known
    head, slot = store.get_head(), compute_admission_slot(name)
    word = proofs.get_storage(store, head.state_root, Address(FEDAVG_ADDRESS), slot)
    admission = decode_admission(word)
    if admission is None or admission.expires_at < head.timestamp:
        return None
    return admission.expires_at


def is_admitted(store: ChainStore, name: BlobName) -> bool:
    """Does the chain know this blob? Then its expiry is in the index from now on.

    On the driver's thread, as it may write. Raises MissingState, StorageFull.
    """
    if store.get_blob_expiry(name) is not None:
        return True
    expires_at = find_blob_expiry(store, name)
    if expires_at is None:
        return False
    with store.database.write() as writer:
        put_expiry(writer, name, expires_at)
    return True


def _read_height(store: ChainStore, key: bytes) -> Height:
    value = store.database.get("meta", key)
    return Height(0 if value is None else int.from_bytes(value, "big"))

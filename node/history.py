"""What this store does not hold, and how that is said.

A node keeps all blocks, but states only as far back as it is told to (`pruning.py`); and one that
began at a checkpoint (`following/checkpoint.py`) has neither states nor receipts from before it.
"""

from typing import Final

from steelyard.chain.errors import SteelyardError
from steelyard.chain.types import Height

from .store import ChainStore, Writer, encode_height

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


def _read_height(store: ChainStore, key: bytes) -> Height:
    value = store.database.get("meta", key)
    return Height(0 if value is None else int.from_bytes(value, "big"))

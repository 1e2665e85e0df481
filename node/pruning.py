"""Letting go of old states: mark all that the last blocks need, then sweep away the rest.

Blocks, receipts, certificates and validator sets stay for ever; only states go. A node of a state
is shared by all states that agree on it, so nothing says by itself that it is no longer needed:
the walk over the states to keep does.

A mark says that a node *and all below it* stay, so it is written after those of its children. That
makes a kill harmless at any instant: marks that were made are right, and a later run, even after
more blocks, goes on from them. The sweep deletes only what has no mark, in small transactions.
Marks lie in a database of their own, which goes when the sweep is over.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from steelyard.chain.block import Header
from steelyard.chain.errors import SteelyardError
from steelyard.chain.traversal import Reference, list_references, list_roots
from steelyard.chain.trie import MissingState
from steelyard.chain.types import Height

from .config import load_config
from .directory import CHAIN, DirectoryLock
from .history import set_oldest_state
from .store import ChainStore, CorruptData, Database

KEPT_STATES: Final = 1_024
MARKS: Final = "marks"
PRUNING: Final = "pruning"
"""Folder of the marks; there only while a pruning is under way, or was interrupted."""
BATCH: Final = 4_096
"""Nodes in one transaction."""
REPORT_SECONDS: Final = 2.0

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a pruning did. Bytes are those of the nodes; LMDB uses their pages again."""

    oldest_state: Height
    nodes_kept: int
    nodes_deleted: int
    bytes_freed: int


def prune_directory(directory: Path, keep: int, report: Report) -> Pruned:
    """Prune the store of a node that does not run. Raises SteelyardError, CorruptData."""
    lock = DirectoryLock(directory)
    try:
        store = ChainStore(directory / CHAIN, load_config(directory).storage.map_bytes)
        try:
            if store.is_empty():
                raise SteelyardError("chain_empty", f"{directory} holds no chain yet")
            return prune(store, directory / PRUNING, keep, report)
        finally:
            store.close()
    finally:
        lock.release()


def prune(store: ChainStore, path: Path, keep: int, report: Report) -> Pruned:
    """Keep the states of the last `keep` blocks. `path` is where the marks lie meanwhile.

    Raises SteelyardError prune_keep; CorruptData if the head's own state is incomplete;
    StorageFull. Whatever it raises, the chain is as good as before.
    """
    if keep < 1:
        raise SteelyardError("prune_keep", f"{keep} states cannot be kept; at least one stays")
    marks = Database(path, (MARKS,), store.database.env.info()["map_size"])
    try:
        marker = Marker(store, marks, report)
        oldest = marker.mark_states(keep)
        with store.database.write() as writer:
            set_oldest_state(writer, oldest)
        pruned = sweep(store, marks, oldest, report)
    finally:
        marks.close()
    shutil.rmtree(path)
    return pruned


class Marker:
    """Walks states and marks what they are made of."""

    def __init__(self, store: ChainStore, marks: Database, report: Report) -> None:
        self._store, self._marks = store, marks
        self._report = Progress(report)
        self._pending: set[bytes] = set()
        self._marked = 0

    def mark_states(self, keep: int) -> Height:
        """Mark the head's state and those before it. Returns the lowest height that is whole."""
        header = self._store.get_head()
        try:
            self._mark(header)
        except MissingState as error:
            raise CorruptData(self._store.path, f"the head's state: {error.message}") from error
        lowest = max(header.height - keep + 1, 0)
        while header.height > lowest:
            parent = self._store.get_header(header.parent_hash)
            if parent is None:
                break
            try:
                self._mark(parent)
            except MissingState:
                break  # let go by an earlier run, or before the checkpoint
            header = parent
        self._flush()
        return header.height

    def _mark(self, header: Header) -> None:
        """Mark one state, children before parents. Raises MissingState."""
        stack = [(one, False) for one in list_roots(header.state_root)]
        while stack:
            reference, is_expanded = stack.pop()
            if is_expanded:
                self._put(reference)
            elif not self._is_marked(reference):
                stack.append((reference, True))
                stack.extend((one, False) for one in self._expand(reference))
        self._report.tell(f"marked {self._marked} nodes, down to block {header.height}")

    def _expand(self, reference: Reference) -> tuple[Reference, ...]:
        data = self._store.get_node(reference.hash)
        if data is None:
            raise MissingState(reference.hash)
        return list_references(reference.kind, data)

    def _is_marked(self, reference: Reference) -> bool:
        return reference.hash in self._pending or self._marks.get(MARKS, reference.hash) is not None

    def _put(self, reference: Reference) -> None:
        self._pending.add(reference.hash)
        self._marked += 1
        if len(self._pending) >= BATCH:
            self._flush()

    def _flush(self) -> None:
        with self._marks.write() as writer:
            for key in sorted(self._pending):
                writer.put(MARKS, key, b"")
        self._pending.clear()


def sweep(store: ChainStore, marks: Database, oldest: Height, report: Report) -> Pruned:
    """Delete every node without a mark."""
    progress, start = Progress(report), b""
    kept = deleted = freed = 0
    while rows := store.database.scan("nodes", start, BATCH):
        gone = [(key, value) for key, value in rows if marks.get(MARKS, key) is None]
        if gone:
            with store.database.write() as writer:
                for key, _ in gone:
                    writer.delete("nodes", key)
        deleted += len(gone)
        kept += len(rows) - len(gone)
        freed += sum(len(key) + len(value) for key, value in gone)
        start = bytes(rows[-1][0]) + b"\0"
        done = int.from_bytes(start[:2], "big") * 100 >> 16
        progress.tell(f"swept {done} %, {deleted} nodes deleted, {freed} bytes")
    return Pruned(oldest, kept, deleted, freed)


class Progress:
    """Passes on a line every few seconds."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._next = time.monotonic() + REPORT_SECONDS

    def tell(self, line: str) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + REPORT_SECONDS
            self._report(line)

"""Letting go of old states: mark all that the last blocks need, then sweep away the rest.

Blocks, receipts, certificates and validator sets stay for ever; only states go. A node of a state
is shared by all states that agree on it, so nothing says by itself that it is no longer needed:
the walk over the states to keep does.

A mark says that a node *and all below it* stay, so it is written after those of its children. That
makes a kill harmless at any instant: marks that were made are right, and a later run, even after
more blocks, goes on from them. The sweep deletes only what has no mark, in small transactions, and
only while the head's state is marked. Marks name what a thing is as well as its hash: anybody may
deploy a code with the bytes of a node, and below a code there is nothing.

`steelyard node prune` does it at once, on a stopped node; `Pruner` beside the running chain, a
little at a time.
"""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from steelyard.chain.block import Header
from steelyard.chain.errors import SteelyardError
from steelyard.chain.traversal import Kind, Reference, list_references, list_roots
from steelyard.chain.trie import MissingState
from steelyard.chain.types import Hash, Height

from .config import load_config
from .directory import CHAIN, DirectoryLock
from .history import set_oldest_state
from .logs import log_event
from .store import ChainStore, CorruptData

KEPT_STATES: Final = 1_024
MARKS: Final = "marks"
"""Table of the marks, hash then kind; empty unless a pruning is under way, or was interrupted."""
MARKS_AT_ONCE: Final = 4_096
SWEPT_AT_ONCE: Final = 1_024
"""Nodes in one transaction."""
REPORT_SECONDS: Final = 2.0
STEP_SECONDS: Final = 0.05
"""How long the running chain may wait for the pruner at a time."""
STEP_NODES: Final = 64
"""After so many the clock is looked at."""
LEAST_PAUSE: Final = 256
"""Blocks from one pruning beside the chain to the next, or as many as states are kept."""

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
            return prune(store, keep, report)
        finally:
            store.close()
    finally:
        lock.release()


def prune(store: ChainStore, keep: int, report: Report) -> Pruned:
    """Keep the states of the last `keep` blocks, at once.

    Raises SteelyardError prune_keep; CorruptData if the head's own state is incomplete;
    StorageFull. Whatever it raises, the chain is as good as before.
    """
    pruning = Pruning(store, keep)
    progress = Progress(report)
    for line in pruning.run():
        progress.tell(line)
    return pruning.result


class Pruning:
    """One pass over a store, step by step, on the only thread that writes to it."""

    def __init__(self, store: ChainStore, keep: int) -> None:
        """Raises SteelyardError prune_keep."""
        if keep < 1:
            raise SteelyardError("prune_keep", f"{keep} states cannot be kept; at least one stays")
        self._store, self._keep = store, keep
        self._marker = Marker(store)
        self._kept = self._deleted = self._freed = 0
        self._oldest = Height(0)

    @property
    def result(self) -> Pruned:
        """What was done so far."""
        return Pruned(self._oldest, self._kept, self._deleted, self._freed)

    def run(self) -> Iterator[str]:
        """Do it, with a word after each step; blocks may become final between two steps."""
        head = self._store.get_head()
        yield from self._mark_window(head)
        with self._store.database.write() as writer:
            set_oldest_state(writer, self._oldest)
        start: bytes | None = b""
        while start is not None:
            head = yield from self._mark_newer(head)
            start = self._sweep(start)
            yield f"{self._deleted} nodes deleted, {self._freed} bytes; {self._kept} stay"
        with self._store.database.write() as writer:
            writer.clear(MARKS)

    def _mark_window(self, head: Header) -> Iterator[str]:
        """Mark the head's state and those before it, as far as they are whole."""
        try:
            yield from self._marker.mark(head)
        except MissingState as error:
            raise CorruptData(self._store.path, f"the head's state: {error.message}") from error
        header, lowest = head, max(head.height - self._keep + 1, 0)
        while header.height > lowest:
            parent = self._store.get_header(header.parent_hash)
            if parent is None:
                break
            try:
                yield from self._marker.mark(parent)
            except MissingState:
                break  # let go by an earlier run, or before the checkpoint
            header = parent
        self._oldest = header.height

    def _mark_newer(self, marked: Header) -> Generator[str, None, Header]:
        """Mark what became final after `marked`. When it returns, the head is marked."""
        while (head := self._store.get_head()).height > marked.height:
            block_hash = self._store.get_hash(marked.height + 1)
            assert block_hash is not None, "heights up to the head have hashes"
            header = self._store.get_header(block_hash)
            assert header is not None, "a hash has its header"
            yield from self._marker.mark(header)
            marked = header
        return head

    def _sweep(self, start: bytes) -> bytes | None:
        """Delete what has no mark among the next nodes. Returns where to go on."""
        rows = self._store.database.scan("nodes", start, SWEPT_AT_ONCE)
        gone = [(key, value) for key, value in rows if not self._marker.has_any(key)]
        if gone:
            with self._store.database.write() as writer:
                for key, _ in gone:
                    writer.delete("nodes", key)
        self._deleted += len(gone)
        self._kept += len(rows) - len(gone)
        self._freed += sum(len(key) + len(value) for key, value in gone)
        return bytes(rows[-1][0]) + b"\0" if rows else None


class Marker:
    """Walks states and marks what they are made of."""

    def __init__(self, store: ChainStore) -> None:
        self._store = store
        self._pending: set[bytes] = set()
        self._marked = 0

    def mark(self, header: Header) -> Iterator[str]:
        """Mark one state, children before parents. Raises MissingState."""
        stack = [(one, False) for one in list_roots(header.state_root)]
        steps = 0
        while stack:
            reference, is_expanded = stack.pop()
            if is_expanded:
                self._put(encode_mark(reference))
            elif not self._is_marked(reference):
                stack.append((reference, True))
                stack.extend((one, False) for one in self._expand(reference))
            steps += 1
            if steps % STEP_NODES == 0:
                yield f"{self._marked} nodes marked, at block {header.height}"

    def has_any(self, key: bytes) -> bool:
        """Does what has this hash stay, whatever it is?"""
        if any(encode_mark(Reference(kind, Hash(key))) in self._pending for kind in Kind):
            return True
        found = self._store.database.scan(MARKS, key, 1)
        return bool(found) and found[0][0].startswith(key)

    def _is_marked(self, reference: Reference) -> bool:
        """Do this node and all below it stay?"""
        key = encode_mark(reference)
        return key in self._pending or self._store.database.get(MARKS, key) is not None

    def _expand(self, reference: Reference) -> tuple[Reference, ...]:
        data = self._store.get_node(reference.hash)
        if data is None:
            raise MissingState(reference.hash)
        return list_references(reference.kind, data)

    def _put(self, key: bytes) -> None:
        self._pending.add(key)
        self._marked += 1
        if len(self._pending) >= MARKS_AT_ONCE:
            with self._store.database.write() as writer:
                for one in sorted(self._pending):
                    writer.put(MARKS, one, b"")
            self._pending.clear()


def encode_mark(reference: Reference) -> bytes:
    return reference.hash + bytes([reference.kind])


class Pruner:
    """Prunes beside the running chain, on the thread that writes to it: call `work` often."""

    def __init__(self, store: ChainStore, keep: int, clock: Callable[[], float]) -> None:
        """`keep` 0 keeps all states; `clock` gives monotonic seconds."""
        self._store, self._keep, self._clock = store, keep, clock
        self._pruning: Pruning | None = None
        self._steps: Iterator[str] = iter(())
        self._next_height = keep + LEAST_PAUSE

    def work(self) -> None:
        """Go on for STEP_SECONDS, if there is something to do. Raises StorageFull, CorruptData."""
        if self._keep == 0:
            return
        if self._pruning is None:
            height = self._store.get_head().height
            if height < self._next_height:
                return
            self._next_height = height + max(self._keep, LEAST_PAUSE)
            self._pruning = Pruning(self._store, self._keep)
            self._steps = self._pruning.run()
        pruning, until = self._pruning, self._clock() + STEP_SECONDS
        try:
            for _ in self._steps:
                if self._clock() >= until:
                    return
        except Exception:
            self._pruning = None  # whatever it was, the next one goes on from the marks
            raise
        self._pruning = None
        done = pruning.result
        log_event(
            "states_pruned",
            oldest=done.oldest_state,
            deleted=done.nodes_deleted,
            kept=done.nodes_kept,
        )


class Progress:
    """Passes on a line every few seconds."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._next = time.monotonic() + REPORT_SECONDS

    def tell(self, line: str) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + REPORT_SECONDS
            self._report(line)

"""Fetching a whole state by the hashes of its nodes, from sources that nobody trusts.

The root is what an operator vouches for; every node below it is named by its parent, so a wrong
byte shows at once. What is on disk already is walked, not fetched again: a download that was killed
goes on where it was. The walk is depth first, a bundle of nodes at a time, so that what it has to
remember stays small however large the state is.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Final

from eth_utils.crypto import keccak

from steelyard.chain.errors import SteelyardError
from steelyard.chain.rlp import InvalidEncoding, decode_rlp, read_bytes, read_list
from steelyard.chain.traversal import Reference, list_references, list_roots
from steelyard.chain.trie import MissingState
from steelyard.chain.types import Hash

from ..pruning import Progress
from ..store import ChainStore
from .sources import Source, SourceLacks, Sources, SourceWrong

BUNDLE: Final = 256
"""Nodes asked for at once; what one question of /chain/nodes may hold."""
ANSWER_BYTES: Final = 4 * 2**20
ANSWER_SECONDS: Final = 60.0
WAIT_SECONDS: Final = 2.0
ROUNDS: Final = 30
"""Times that all sources may fail in a row, with a pause after each, before the download ends."""


class StateDownload:
    """Brings every node and code under one state root into a store."""

    def __init__(
        self,
        store: ChainStore,
        sources: Sources,
        wait: Callable[[float], None],
        report: Callable[[str], None],
    ) -> None:
        """`wait` sleeps, and may raise Stopped."""
        self._store, self._sources = store, sources
        self._wait, self._progress = wait, Progress(report)
        self.fetched = self.held = self.bytes = 0

    def run(self, state_root: Hash) -> str:
        """Returns what was done, in words.

        Raises SteelyardError state_unavailable, StorageFull, Stopped; CorruptData.
        """
        stack = list(list_roots(state_root))
        while stack:
            bundle: dict[bytes, set[Reference]] = {}
            while stack and len(bundle) < BUNDLE:
                reference = stack.pop()
                data = self._store.get_node(reference.hash)
                if data is None:
                    bundle.setdefault(reference.hash, set()).add(reference)
                else:
                    self.held += 1
                    stack.extend(list_below(reference, data))
            stack.extend(self._fetch(bundle))
            self._progress.tell(self._describe())
        return self._describe()

    def _describe(self) -> str:
        return f"state: {self.fetched} nodes fetched, {self.held} were here, {self.bytes} bytes"

    def _fetch(self, bundle: Mapping[bytes, set[Reference]]) -> list[Reference]:
        """Fetch and store these, however many questions it takes; return what lies below them.

        One hash may stand for two things: anybody may deploy a code with the bytes of a node.
        """
        missing, below, failed = dict(bundle), list[Reference](), 0
        while missing:
            found = self._ask(tuple(missing))
            if not found:
                failed += 1
                if failed >= ROUNDS:
                    raise SteelyardError("state_unavailable", self._explain(missing))
                self._wait(WAIT_SECONDS)
                continue
            failed = 0
            for key, data in found.items():
                for reference in missing.pop(key):
                    below.extend(list_below(reference, data))
            with self._store.database.write() as writer:
                for key in sorted(found):
                    writer.put("nodes", key, found[key])
            self.fetched += len(found)
            self.bytes += sum(map(len, found.values()))
        return below

    def _explain(self, missing: Collection[bytes]) -> str:
        said = "; ".join(f"{one.url}: {one.trouble}" for one in self._sources.all)
        return (
            f"no source has {len(missing)} nodes of this state ({said}). If they let it go, choose "
            "a newer checkpoint; else try again, and what was fetched is not fetched again"
        )

    def _ask(self, wanted: tuple[bytes, ...]) -> dict[bytes, bytes]:
        """What the first source that has any of them gives. Raises Stopped."""
        for source in self._sources.get_available():
            try:
                found = self._ask_one(source, wanted)
            except SteelyardError as error:
                self._sources.set_aside(source, error)
                continue
            self._sources.praise(source)
            return found
        return {}

    def _ask_one(self, source: Source, wanted: tuple[bytes, ...]) -> dict[bytes, bytes]:
        """Raises SteelyardError: Unreachable, SourceLacks, SourceWrong source_node."""
        body = self._sources.post(
            source, "/chain/nodes", b"".join(wanted), ANSWER_BYTES, ANSWER_SECONDS
        )
        try:
            rows = [read_bytes(row) for row in read_list(decode_rlp(body), limit=len(wanted))]
        except InvalidEncoding as error:
            raise SourceWrong("source_malformed", f"/chain/nodes: {error.message}") from None
        found = {keccak(row): row for row in rows}
        if not found.keys() <= set(wanted):
            raise SourceWrong("source_node", "it gave nodes with other hashes than asked for")
        if not found:
            raise SourceLacks("source_lacks", "it does not have this state")
        return found


def list_below(reference: Reference, data: bytes) -> tuple[Reference, ...]:
    """What a node refers to. Raises SteelyardError state_malformed."""
    try:
        return list_references(reference.kind, data)
    except MissingState:
        raise SteelyardError(
            "state_malformed",
            f"0x{reference.hash.hex()} is part of that state and no node: the checkpoint is wrong",
        ) from None

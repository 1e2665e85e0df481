"""Passing on to the sources what this node's own clients send: transactions, then their blobs.

A client may then use a full node alone. A transaction goes to the first source that takes it; its
blobs follow to the same source once they are all here, since only a node that knows the transaction
takes them. What is still pending after a while is sent again, elsewhere if possible: pools are kept
in memory, a source may have restarted, or be a full node that only sends it back. What a source
refuses stays in our own pool until it expires there; the chain will not have it, and the sender
sees that it does not come.
"""

import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from steelyard.chain.cid import encode_cid, get_blob_cid
from steelyard.chain.errors import SteelyardError
from steelyard.chain.transactions import Transaction
from steelyard.chain.types import BlobName, Hash

from ..calls import start_thread
from ..logs import log_alarm, log_event
from ..mempool import Mempool
from .fetcher import Fetcher, Stopped
from .sources import HTTP_OK, Source, Sources, SourceWrong
from .sync import FollowerParts

POLL_SECONDS: Final = 0.25
AGAIN_SECONDS: Final = 20.0
"""Still pending after so long: it is sent again."""
SEND_SECONDS: Final = 15.0
ANSWER_BYTES: Final = 65_536
BLOB_SECONDS: Final = 60.0
BLOB_RATE: Final = 256 * 2**10
"""Bytes a second: a blob of n bytes may take BLOB_SECONDS + n / BLOB_RATE."""
STORED: Final = frozenset({200, 201})
SETTLED: Final = "tx_nonce_low"
"""The code of a refusal for good: the chain has this transaction, or another one in its place."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a source did not take a transaction."""

    code: str
    message: str


@dataclass(slots=True)
class Passage:
    """One transaction on its way. `source` has it; `blobs_sent`: that one has its blobs, too.

    `taken` counts how often each address took it; where it is `settled`, the chain has gone
    past its nonce, so it is not sent there again.
    """

    source: Source | None = None
    blobs_sent: bool = False
    again_at: float = float("-inf")
    taken: Counter[str] = field(default_factory=Counter)
    settled: set[str] = field(default_factory=set)


class Forwarder:
    """A thread of its own: an upload of 48 MB must not keep this node from following."""

    def __init__(self, parts: FollowerParts, mempool: Mempool) -> None:
        """A validator gossips instead while it votes. Raises SteelyardError follow_url."""
        self._mempool, self._blobs, self._is_member = mempool, parts.blobs, parts.is_member
        self._clock, self._fetcher = parts.clock, Fetcher()
        self._sources = Sources(
            parts.config.nodes, self._fetcher, parts.genesis_hash, parts.clock.get_seconds
        )
        self._passages: dict[Hash, Passage] = {}
        self._news = threading.Event()
        self._thread: threading.Thread | None = None

    # -- from other threads ------------------------------------------------------------------------
    def start(self) -> None:
        self._thread = start_thread("forwarder", self._run)

    def stop(self) -> None:
        """End what is under way, and wait for the thread."""
        self._fetcher.stop()
        self._news.set()
        if self._thread is not None:
            self._thread.join()
        else:
            self._fetcher.close()

    def wake(self) -> None:
        """A transaction or a blob came."""
        self._news.set()

    # -- the thread --------------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            while True:
                self._news.wait(POLL_SECONDS)
                self._news.clear()
                self._fetcher.check()
                try:
                    if not self._is_member():
                        self.work()
                except Stopped:
                    raise
                except Exception as error:  # ours to fix; the next transaction may fare better
                    log_alarm("forwarder_failed", trace=True, error=repr(error))
        except Stopped:
            pass
        finally:
            self._fetcher.close()

    def work(self) -> None:
        """Send what is due, in the order in which it came. Raises Stopped."""
        pending = self._mempool.get_all()
        hashes = {one.hash for one in pending}
        self._passages = {key: one for key, one in self._passages.items() if key in hashes}
        for transaction in pending:
            passage = self._passages.setdefault(transaction.hash, Passage())
            self._pass(transaction, passage)

    def _pass(self, transaction: Transaction, passage: Passage) -> None:
        now = self._clock.get_seconds()
        if now >= passage.again_at:
            passage.source, passage.blobs_sent = None, False
            passage.again_at = now + AGAIN_SECONDS
            self._send_transaction(transaction, passage)
        is_complete = all(self._blobs.has(name) for name in transaction.blobs)
        if passage.source is None or passage.blobs_sent or not is_complete:
            return
        passage.blobs_sent = True
        for name in transaction.blobs:
            self._send_blob(passage, name)

    def _send_transaction(self, transaction: Transaction, passage: Passage) -> None:
        """To the first source that takes it. Whoever took it in vain comes last: two full nodes
        that follow each other would else send it to and fro for ever."""
        available = [one for one in self._sources.get_available() if one.url not in passage.settled]
        for source in sorted(available, key=lambda one: passage.taken[one.url]):
            try:
                refusal = self._post(source, transaction.raw)
            except SteelyardError as error:
                self._sources.set_aside(source, error)
                continue
            self._sources.praise(source)
            if refusal is None:
                passage.source = source
                passage.taken[source.url] += 1
                return
            if refusal.code == SETTLED:
                passage.settled.add(source.url)  # our own head is behind: it will leave our pool
                continue
            reason = refusal.message[:200]
            log_event("forwarding_refused", url=source.url, hash=transaction.hash, reason=reason)

    def _post(self, source: Source, raw: bytes) -> Refusal | None:
        """Hand over a transaction. Returns why it was refused, or None. Raises SteelyardError."""
        call = encode_call("eth_sendRawTransaction", "0x" + raw.hex())
        body = self._sources.post(
            source, "/", call, ANSWER_BYTES, SEND_SECONDS, kind="application/json"
        )
        return read_refusal(body)

    def _send_blob(self, passage: Passage, name: BlobName) -> None:
        source, path = passage.source, self._find_path(name)
        if source is None or path is None:
            return
        url = f"{source.url}/blobs/{encode_cid(name)}"
        try:
            if self._fetcher.head(url, seconds=SEND_SECONDS).status == HTTP_OK:
                return
            seconds = BLOB_SECONDS + name.size / BLOB_RATE
            answer = self._fetcher.put_file(
                url, path, name.size, limit=ANSWER_BYTES, seconds=seconds
            )
        except SteelyardError as error:
            self._sources.set_aside(source, error)
            passage.source, passage.again_at = None, float("-inf")  # another source, all anew
            return
        except OSError:
            return  # the file went: its transaction left the pool
        if answer.status not in STORED:
            log_event("forwarding_refused", url=url, reason=answer.body[:200].decode("latin-1"))

    def _find_path(self, name: BlobName) -> Path | None:
        file = self._blobs.find(get_blob_cid(name))
        return None if file is None else Path(file.path)


def encode_call(method: str, *params: str) -> bytes:
    """One JSON-RPC call."""
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()


def read_refusal(body: bytes) -> Refusal | None:
    """The error in a JSON-RPC answer, or None if it has a result. Raises SourceWrong."""
    try:
        answer = json.loads(body)
        if isinstance(answer, dict) and "result" in answer:
            return None
        error = answer["error"]
        data = error.get("data")
        code = data.get("code") if isinstance(data, dict) else None
        return Refusal(str(code), str(error["message"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise SourceWrong("source_malformed", "its answer is not one of JSON-RPC") from None

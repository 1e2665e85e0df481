"""One seam to the nodes: JSON-RPC and blobs over outbound HTTP, with failover between addresses.

A request that any node answers is answered, whatever the answer. Only silence moves on: refused
connections, time-outs, HTTP 429, 502, 503 and 504, and `busy` from a node with too much to do.
Before a node is used, it must be on the same chain as the others (chain id and genesis hash).

What nodes say is untrusted: numbers are parsed strictly, sizes are bounded, blobs are checked
against their names.
"""

import re
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeGuard
from urllib.parse import urlsplit

import httpx

from steelyard.chain import params
from steelyard.chain.cid import BlobHasher, compute_blob_name, decode_cid, encode_cid, is_named
from steelyard.chain.errors import clean
from steelyard.chain.types import BlobName

from .errors import ClientError, NodeRefused, NodeUnreachable, Reverted

Json = Any
"""A decoded JSON value from outside; converted by the functions below before it is used."""

TIMEOUT_SECONDS: Final = 20.0
EACH_TIMEOUT_SECONDS: Final = 4.0
"""Where every node is asked: one that hangs must not take the time that a reveal has."""
BLOB_TIMEOUT_SECONDS: Final = 120.0
PASSES: Final = 3
PAUSE_SECONDS: Final = 0.3
MAX_ANSWER_BYTES: Final = 64 * 2**20
UPLOAD_CHUNK_BYTES: Final = 1 << 20
SILENT_STATUSES: Final = frozenset({429, 502, 503, 504})
STORED_STATUSES: Final = frozenset({200, 201, 202, 204, 409})
"""409: the node holds this blob already."""
MISSING_STATUSES: Final = frozenset({404, 410})
BUSY: Final = "busy"
"""Our nodes' refusal of what they would answer at another time: as good as no answer."""
MISMATCH: Final = "blob_mismatch"
MAX_WORDS: Final = 1_000
"""Characters of what a node says that are kept."""
CODE: Final = re.compile("[a-z0-9_]{1,64}")
MISSING: Final = "blob_missing"
"""Every node answered, and none has the blob: it was dropped, or it has not come yet."""


@dataclass(frozen=True, slots=True)
class Network:
    """Which chain: two nodes are interchangeable only if both values are equal."""

    chain_id: int
    genesis_hash: bytes


class Silence(Exception):
    """One node gave no usable answer; the next one is asked."""

    def __init__(self, reason: str, code: str = "") -> None:
        super().__init__(reason)
        self.reason, self.code = reason, code


class Rpc:
    """The nodes of one chain. Used by one thread at a time."""

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.urls = [check_url(url) for url in ([urls] if isinstance(urls, str) else urls)]
        if not self.urls:
            raise ClientError("node_url", "give the address of at least one node")
        self._http = httpx.Client(transport=transport, timeout=TIMEOUT_SECONDS)
        self._close = weakref.finalize(self, self._http.close)
        self._sleep = sleep
        self._current = 0
        self._request_id = 0
        self._network: Network | None = None
        self._known: set[str] = set()

    def close(self) -> None:
        """Close the connections; also done when this is forgotten."""
        self._close()

    @property
    def url(self) -> str:
        """The node that is asked first."""
        return self.urls[self._current]

    @property
    def network(self) -> Network:
        """The chain of these nodes, learned from the first that answers."""
        if self._network is None:
            self._ask(str)
        assert self._network is not None
        return self._network

    def move_on(self) -> None:
        """Ask the next node first from now on: this one answers, and not well."""
        self._current = (self._current + 1) % len(self.urls)

    # -- JSON-RPC ----------------------------------------------------------------------------------
    def call(self, method: str, *arguments: Json) -> Json:
        """Return the result of one JSON-RPC call.

        Raises: NodeUnreachable; Reverted for code 3; NodeRefused for every other error.
        """
        return read_result(self._ask(lambda url: self._post(url, [(method, arguments)])[0]))

    def call_together(self, calls: Sequence[tuple[str, tuple[Json, ...]]]) -> list[Json]:
        """Return the results of several calls, all answered by the same node."""
        return [read_result(entry) for entry in self._ask(lambda url: self._post(url, calls))]

    def call_each(self, method: str, *arguments: Json) -> dict[str, Json]:
        """Ask every node, and return each one's result or the exception it gave."""
        answers: dict[str, Json] = {}
        for url in self.urls:
            try:
                found = self._post(url, [(method, arguments)], EACH_TIMEOUT_SECONDS)
                answers[url] = read_result(found[0])
            except Silence as silence:
                answers[url] = NodeUnreachable({url: silence.reason})
            except ClientError as error:
                answers[url] = error
        return answers

    # -- blobs and chain data ----------------------------------------------------------------------
    def has_blob(self, name: BlobName) -> bool:
        """Whether the current node holds the blob."""
        path = f"/blobs/{encode_cid(name)}"
        answer: httpx.Response = self._ask(lambda url: self._send("HEAD", url + path))
        return answer.status_code == 200

    def put_blob(self, name: BlobName, data: bytes) -> None:
        """Give the bytes of a declared blob to the current node. Raises NodeRefused."""
        path = f"/blobs/{encode_cid(name)}"

        def chunks() -> Iterator[bytes]:
            for start in range(0, len(data), UPLOAD_CHUNK_BYTES):
                yield data[start : start + UPLOAD_CHUNK_BYTES]

        answer = self._ask(
            lambda url: self._send(
                "PUT", url + path, content=chunks(), length=len(data), timeout=BLOB_TIMEOUT_SECONDS
            )
        )
        if answer.status_code not in STORED_STATUSES:
            raise read_http_refusal(answer, "the node did not take the blob")

    def get_blob(self, name: BlobName) -> bytes:
        """Fetch a blob and check it against its name; an interrupted transfer is resumed.

        Raises: NodeUnreachable if no node serves it; ClientError `blob_mismatch` if every node that
        does serves other bytes than the name says.
        """
        if not 0 < name.size <= params.MAX_BLOB_BYTES:
            raise ClientError("blob_size", f"a blob of {name.size} bytes cannot exist")
        cid, received = encode_cid(name), bytearray()
        try:
            data: bytes = self._ask(
                lambda url: self._fetch_blob(f"{url}/blobs/{cid}", name, received)
            )
        except NodeUnreachable as error:
            if MISMATCH in error.codes.values():
                raise ClientError(
                    MISMATCH, f"{cid} comes with other bytes than its name says; ask another node"
                ) from None
            raise
        return data

    def get_file(self, text: str, limit: int) -> tuple[BlobName, bytes]:
        """Return a blob of at most `limit` bytes by its CID, which does not tell the size.

        Raises: InvalidBlobName; ClientError `blob_mismatch`; NodeRefused; NodeUnreachable.
        """
        cid = decode_cid(text)
        data = self.get_bytes(f"/blobs/{text}", limit)
        name = compute_blob_name(data)
        if not is_named(name, cid):
            raise ClientError(MISMATCH, f"{self.url} sent other bytes than {text}")
        return name, data

    def get_bytes(self, path: str, limit: int = MAX_ANSWER_BYTES) -> bytes:
        """Return the body of GET `path`. Raises NodeRefused for anything but 200."""
        answer = self._ask(lambda url: self._send("GET", url + path, limit=limit))
        if answer.status_code != 200:
            raise read_http_refusal(answer, f"no {path} at this node")
        content: bytes = answer.content
        return content

    # -- one request -------------------------------------------------------------------------------
    def _ask(self, request: Callable[[str], Json]) -> Json:
        """Try the nodes in turn, the last good one first, until one answers."""
        failures: dict[str, str] = {}
        codes: dict[str, str] = {}
        for attempt in range(PASSES):
            for _ in range(len(self.urls)):
                try:
                    self._check_node(self.url)
                    return request(self.url)
                except Silence as silence:
                    failures[self.url], codes[self.url] = silence.reason, silence.code
                    self._known.discard(self.url)  # another node may answer there next time
                    self.move_on()
            if attempt < PASSES - 1:
                self._sleep(PAUSE_SECONDS * 2**attempt)
        raise NodeUnreachable(failures, codes)

    def _check_node(self, url: str) -> None:
        if url in self._known:
            return
        chain, block = self._post(
            url, [("eth_chainId", ()), ("eth_getBlockByNumber", ("0x0", False))]
        )
        genesis = read_result(block)
        if not isinstance(genesis, dict):
            raise Silence("it has no genesis block")
        network = Network(as_int(read_result(chain)), as_bytes(genesis.get("hash"), 32))
        if self._network is not None and network != self._network:
            if len(self.urls) == 1:
                raise ClientError("wrong_chain", f"{url} is on another chain than before")
            raise Silence(f"it is on another chain ({network.chain_id})")
        self._network = network
        self._known.add(url)

    def _post(
        self,
        url: str,
        calls: Sequence[tuple[str, tuple[Json, ...]]],
        timeout: float = TIMEOUT_SECONDS,
    ) -> list[Json]:
        """Send one JSON-RPC body and return the answers in the order of `calls`."""
        bodies = []
        for method, arguments in calls:
            self._request_id += 1
            bodies.append(
                {
                    "jsonrpc": "2.0",
                    "id": self._request_id,
                    "method": method,
                    "params": list(arguments),
                }
            )
        body = bodies[0] if len(bodies) == 1 else bodies
        answer = self._send("POST", url, json=body, timeout=timeout)
        try:
            decoded = answer.json()
        except (ValueError, RecursionError):
            raise Silence(f"HTTP {answer.status_code} without JSON: is this a node?") from None
        entries = decoded if isinstance(decoded, list) else [decoded]
        if any(map(is_busy, entries)):
            raise Silence("it has too much to do")
        by_id = {entry.get("id"): entry for entry in entries if isinstance(entry, dict)}
        if len(entries) == 1 and None in by_id:
            return [by_id[None]] * len(bodies)
        if any(body["id"] not in by_id for body in bodies):
            raise Silence("it did not answer every call of a batch")
        return [by_id[body["id"]] for body in bodies]

    def _send(
        self,
        method: str,
        url: str,
        *,
        json: Json = None,
        content: Iterator[bytes] | None = None,
        length: int | None = None,
        limit: int = MAX_ANSWER_BYTES,
        timeout: float = TIMEOUT_SECONDS,
    ) -> httpx.Response:
        """One HTTP exchange with a bounded answer. Raises Silence."""
        headers = {} if length is None else {"Content-Length": str(length)}
        request = self._http.build_request(
            method, url, json=json, content=content, headers=headers, timeout=timeout
        )
        with self._listen(request) as answer:
            body = bytearray()
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > limit:
                    raise Silence(f"its answer is larger than {limit} bytes")
            return httpx.Response(answer.status_code, content=bytes(body))

    def _fetch_blob(self, url: str, name: BlobName, received: bytearray) -> bytes:
        """Fetch what is missing of a blob. `received` keeps its bytes between attempts."""
        headers = {"Range": f"bytes={len(received)}-"} if received else {}
        request = self._http.build_request(
            "GET", url, headers=headers, timeout=BLOB_TIMEOUT_SECONDS
        )
        with self._listen(request) as answer:
            if answer.status_code not in (200, 206):
                answer.read()
                raise Silence(
                    f"it does not serve the blob (HTTP {answer.status_code})",
                    MISSING if answer.status_code in MISSING_STATUSES else "",
                )
            if answer.status_code == 200:
                received.clear()
            for chunk in answer.iter_bytes():
                received += chunk
                if len(received) > name.size:
                    received.clear()
                    raise Silence("it sent more bytes than the blob has", MISMATCH)
        if len(received) < name.size:
            raise Silence("it stopped in the middle of the blob")
        hasher = BlobHasher()
        data = bytes(received)
        hasher.update(data)
        if hasher.finish() != name:
            received.clear()
            raise Silence("it sent other bytes than the blob's name says", MISMATCH)
        return data

    @contextmanager
    def _listen(self, request: httpx.Request) -> Iterator[httpx.Response]:
        try:
            answer = self._http.send(request, stream=True)
            try:
                if answer.status_code in SILENT_STATUSES:
                    raise Silence(f"HTTP {answer.status_code}")
                yield answer
            finally:
                answer.close()
        except httpx.HTTPError as error:
            raise Silence(quote(str(error)) or type(error).__name__) from None


def check_url(url: str) -> str:
    """Return a node's address without a trailing slash. Raises ClientError `node_url`."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ClientError("node_url", f"{url!r} is not an http or https address")
    return url.rstrip("/")


def is_busy(entry: Json) -> bool:
    """Whether a node says that it has too much to do to answer."""
    error = entry.get("error") if isinstance(entry, dict) else None
    data = error.get("data") if isinstance(error, dict) else None
    return isinstance(data, dict) and data.get("code") == BUSY


def read_result(entry: Json) -> Json:
    """Return the result of one JSON-RPC answer. Raises Reverted or NodeRefused."""
    if not isinstance(entry, dict):
        raise NodeRefused("rpc_answer", "the node's answer is not a JSON-RPC answer")
    error = entry.get("error")
    if error is None:
        return entry.get("result")
    if not isinstance(error, dict):
        raise NodeRefused("rpc_answer", f"the node's answer has a malformed error: {error!r:.80}")
    message, data = quote(str(error.get("message", ""))), error.get("data")
    rpc_code = error.get("code") if isinstance(error.get("code"), int) else 0
    if rpc_code == 3:
        reason = message.removeprefix("execution reverted").lstrip(": ")
        raise Reverted(reason or "without a reason")
    code = data.get("code") if isinstance(data, dict) else None
    if not is_code(code):
        raise NodeRefused("rpc_error", message, rpc_code=rpc_code or 0, data=data)
    text = message.removeprefix(f"{code}: ")
    raise NodeRefused(code, text, rpc_code=rpc_code or 0, data=data)


def is_code(value: Json) -> TypeGuard[str]:
    """Whether a node's answer has a code there, in words that codes are made of."""
    return isinstance(value, str) and CODE.fullmatch(value) is not None


def quote(text: str) -> str:
    """Return so much of a node's words as is kept, in one line that a terminal only prints."""
    return clean(text[:MAX_WORDS])


def read_http_refusal(answer: httpx.Response, what: str) -> NodeRefused:
    """Return the refusal `{"error": code, "message": …}` of a node, or what its status says."""
    try:
        body = answer.json()
    except (ValueError, RecursionError):
        body = {}
    if isinstance(body, dict) and is_code(body.get("error")):
        return NodeRefused(body["error"], quote(str(body.get("message", what))))
    return NodeRefused(f"http_{answer.status_code}", f"{what} (HTTP {answer.status_code})")


def as_object(value: Json) -> Mapping[str, Json]:
    """Return a JSON-RPC object, of which nothing else is known. Raises NodeRefused `rpc_answer`."""
    if isinstance(value, dict):
        return value
    raise NodeRefused("rpc_answer", f"the node answered {value!r:.80} instead of an object")


def as_int(value: Json) -> int:
    """Return a JSON-RPC quantity as an integer. Raises NodeRefused `rpc_answer`."""
    if isinstance(value, str) and value.startswith("0x") and len(value) <= 66:
        try:
            return int(value, 16)
        except ValueError:
            pass
    raise NodeRefused("rpc_answer", f"the node answered {value!r:.80} instead of a quantity")


def as_bytes(value: Json, length: int | None = None) -> bytes:
    """Return JSON-RPC data as bytes. Raises NodeRefused `rpc_answer`."""
    if isinstance(value, str) and value.startswith("0x"):
        try:
            data = bytes.fromhex(value[2:])
        except ValueError:
            data = b""
        if len(data) * 2 == len(value) - 2 and length in (None, len(data)):
            return data
    raise NodeRefused("rpc_answer", f"the node answered {value!r:.80} instead of data")


def as_hex(value: int | bytes) -> str:
    """Return a JSON-RPC quantity or data."""
    return hex(value) if isinstance(value, int) else "0x" + value.hex()

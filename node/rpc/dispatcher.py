"""From the bytes of a request to the bytes of an answer, whatever the bytes are.

JSON-RPC 2.0: single calls, batches, notifications. Every failure becomes a JSON-RPC error; only our
own mistakes become -32603, and they are logged with their trace, never sent.
"""

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, TypeAlias

from steelyard.chain.errors import SteelyardError

from ..logs import LOGGER, log_alarm
from ..workers import WorkerPool
from .errors import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    PARSE_ERROR,
    UNKNOWN_METHOD,
    Json,
    LimitExceeded,
    RpcError,
    encode_refusal,
)
from .limits import MAX_BATCH_CALLS, MAX_NESTING, MAX_RESPONSE_BYTES, SMALL_BODY_BYTES

if TYPE_CHECKING:
    from .subscriptions import Subscriber

TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[{\]}]', re.DOTALL)
"""A string (to the end if it never closes), or a bracket. Linear on any input: no backtracking."""
Observer: TypeAlias = Callable[[str, str, float], None]
"""Called with (method, outcome, seconds) after every call."""


class Lane(Enum):
    """Where a method runs: on the event loop (memory only), or on one of two pools."""

    INLINE = auto()
    QUICK = auto()
    HEAVY = auto()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the IP address, and the WebSocket's subscriber if there is one."""

    host: str
    subscriber: "Subscriber | None" = None


Handler: TypeAlias = Callable[[object, Caller], Json]
"""A method: (params as they came, caller) -> result. Raises RpcError or SteelyardError."""


@dataclass(frozen=True, slots=True)
class Method:
    """One entry of the table."""

    handler: Handler
    lane: Lane


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a body. `has_id` is False for a notification, which gets no answer."""

    method: str
    params: object
    id: Json
    has_id: bool


class Dispatcher:
    """Answers request bodies from a table of methods."""

    def __init__(
        self, methods: Mapping[str, Method], lanes: Mapping[Lane, WorkerPool], observe: Observer
    ) -> None:
        self.methods, self.lanes, self.observe = methods, lanes, observe

    async def answer(self, body: bytes, caller: Caller) -> bytes | None:
        """Return the answer to a body, or None if it holds only notifications. Never raises."""
        try:
            document = await self._parse(body)
            if isinstance(document, list):
                return await self._answer_batch(document, caller)
        except (RpcError, SteelyardError) as error:
            return encode_error(None, to_rpc_error(error))
        return await self._answer_one(document, caller)

    async def _parse(self, body: bytes) -> object:
        """Small bodies at once; large ones where they hold up nobody else."""
        if len(body) <= SMALL_BODY_BYTES:
            return parse_body(body)
        return await self.lanes[Lane.QUICK].run(lambda: parse_body(body))

    async def _answer_batch(self, items: list[object], caller: Caller) -> bytes | None:
        if not items:
            raise RpcError(INVALID_REQUEST, "a batch needs at least one call")
        if len(items) > MAX_BATCH_CALLS:
            raise LimitExceeded(f"a batch may have {MAX_BATCH_CALLS} calls, not {len(items)}")
        answers: list[bytes] = []
        left = MAX_RESPONSE_BYTES
        for item in items:
            answer = await self._answer_one(item, caller, left)
            if answer is not None:
                answers.append(answer)
                left = max(0, left - len(answer))
        return b"[" + b",".join(answers) + b"]" if answers else None

    async def _answer_one(
        self, item: object, caller: Caller, max_bytes: int = MAX_RESPONSE_BYTES
    ) -> bytes | None:
        try:
            request = parse_request(item)
        except RpcError as error:
            return encode_error(get_id(item), error)
        name = request.method if request.method in self.methods else "unknown"
        started = time.monotonic()
        try:
            result = await self._run(request, caller)
            if len(result) > max_bytes:
                raise LimitExceeded(
                    f"the answer has {len(result)} bytes; {max_bytes} are left; ask for less"
                )
            outcome, answer = "ok", encode_result(request.id, result)
        except Exception as error:
            rpc_error = to_rpc_error(error, request.method)
            outcome, answer = str(rpc_error.code), encode_error(request.id, rpc_error)
        self.observe(name, outcome, time.monotonic() - started)
        return answer if request.has_id else None

    async def _run(self, request: Request, caller: Caller) -> bytes:
        """The result as JSON bytes, encoded where the method runs."""
        method = self.methods.get(request.method)
        if method is None:
            raise RpcError(
                UNKNOWN_METHOD,
                f"the method {request.method[:100]!a} does not exist here",
            )

        def work() -> bytes:
            return encode_json(method.handler(request.params, caller))

        if method.lane is Lane.INLINE:
            return work()
        return await self.lanes[method.lane].run(work)


def parse_body(body: bytes) -> object:
    """The JSON document of a body. Raises RpcError: not JSON, or nested too deep."""
    check_nesting(body)
    try:
        return json.loads(
            body.decode("utf-8"), parse_constant=refuse_constant, parse_float=parse_finite
        )
    except ValueError as error:
        raise RpcError(PARSE_ERROR, f"not JSON: {str(error)[:200]}") from None


def check_nesting(body: bytes) -> None:
    """Refuse brackets nested deeper than MAX_NESTING before a recursive parser sees them."""
    depth = 0
    for match in TOKEN.finditer(body):
        first = body[match.start()]
        if first in b"[{":
            depth += 1
            if depth > MAX_NESTING:
                raise RpcError(PARSE_ERROR, f"nested deeper than {MAX_NESTING} levels")
        elif first in b"]}":
            depth -= 1


def refuse_constant(name: str) -> None:
    """`NaN` and `Infinity` are not JSON."""
    raise ValueError(f"{name} is not JSON")


def parse_finite(text: str) -> float:
    """A number that can be written back as JSON."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def parse_request(item: object) -> Request:
    """One call. Raises RpcError -32600."""
    if not isinstance(item, dict):
        raise RpcError(INVALID_REQUEST, "a call must be an object")
    if item.get("jsonrpc", "2.0") != "2.0":
        raise RpcError(INVALID_REQUEST, 'jsonrpc must be "2.0"')
    identifier = item.get("id")
    if isinstance(identifier, bool) or not isinstance(identifier, str | int | float | None):
        raise RpcError(INVALID_REQUEST, "id must be a string, a number or null")
    method = item.get("method")
    if not isinstance(method, str):
        raise RpcError(INVALID_REQUEST, "method must be a string")
    return Request(method, item.get("params"), identifier, "id" in item)


def get_id(item: object) -> Json:
    """The id of a bad call if it is a usable one."""
    identifier = item.get("id") if isinstance(item, dict) else None
    usable = isinstance(identifier, str | int | float) and not isinstance(identifier, bool)
    return identifier if usable else None


def to_rpc_error(error: Exception, method: str = "") -> RpcError:
    """Any exception as an answer; what is our own mistake is logged and kept to ourselves."""
    if isinstance(error, RpcError):
        return error
    if isinstance(error, SteelyardError):
        return encode_refusal(error)
    log_alarm("rpc_fault", method=method[:100], error=type(error).__name__)
    LOGGER.error("rpc_fault_trace", exc_info=error)
    return RpcError(INTERNAL_ERROR, "internal error; the node's log has the details")


def encode_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def encode_result(identifier: Json, result: bytes) -> bytes:
    return b'{"jsonrpc":"2.0","id":' + encode_json(identifier) + b',"result":' + result + b"}"


def encode_error(identifier: Json, error: RpcError) -> bytes:
    body: dict[str, Json] = {"code": error.code, "message": error.message}
    if error.data is not None:
        body["data"] = error.data
    return encode_json({"jsonrpc": "2.0", "id": identifier, "error": body})

"""The keeper starts, closes and aborts tasks when they are due, from the validator's own account.

Nothing on the chain acts by itself: whoever closes a round is paid from the task's reserve. The
keeper looks at open tasks in turn (the view `next_action`), tries the step out, and sends it
once; then it waits. It never has more than a few transactions pending, never pays more than its
cap, and leaves a step that fails alone for longer each time.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_account import Account
from eth_keys.datatypes import PrivateKey
from eth_utils.abi import function_signature_to_4byte_selector

from steelyard.chain.errors import SteelyardError
from steelyard.chain.execute import CallRequest
from steelyard.chain.params import TASKS_ADDRESS
from steelyard.chain.types import Address

from .calls import start_thread
from .logs import log_alarm, log_event
from .store import CorruptData

if TYPE_CHECKING:
    from .node import Node

PAUSE_SECONDS = 0.05
"""Between two looks, however fast blocks come."""
LOOKS_AT_ONCE = 32
"""Tasks looked at in one round of the keeper, so that many tasks cannot occupy a node."""
GAS_MARGIN_PERCENT = 130
GAS_MARGIN = 50_000
MAX_PAUSE_SECONDS = 3_600.0
RANK_SECONDS = 5.0
"""Each rank behind the leader waits this much longer, so that keepers do not race."""
FINISHED = 3


class Step(IntEnum):
    """What `next_action` answers; CLAIM is the keeper's own, after the end."""

    WAIT = 0
    START = 1
    CLOSE = 2
    ABORT = 3
    CLAIM = 4


@dataclass(frozen=True, slots=True)
class Due:
    """One step of one task."""

    task: int
    step: Step
    round: int


@dataclass(slots=True)
class Attempt:
    """Seen first, and not to be touched before `after`; seconds of the monotonic clock."""

    after: float
    failures: int = 0


class Keeper:
    """One thread. `look` is one round of it, for tests to call."""

    def __init__(self, node: "Node", account: PrivateKey) -> None:
        self._node, self._account = node, account
        self._config = node.config.keeper
        self._address = Address(account.public_key.to_canonical_address())
        self._open: deque[int] = deque()
        self._known = 0
        self._attempts: dict[Due, Attempt] = {}
        self._stopping, self._woken = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        self._unsubscribe = self._node.subscribe(lambda _header: self._woken.set())
        self._thread = start_thread("keeper", self._run)

    def stop(self) -> None:
        self._stopping.set()
        self._woken.set()
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        """Look after each block, since it may make something due, and as time passes."""
        while not self._stopping.wait(PAUSE_SECONDS):
            self._woken.wait(self._config.interval_seconds)
            self._woken.clear()
            if self._stopping.is_set():
                break
            try:
                self.look()
            except (SteelyardError, CorruptData) as error:
                log_event("keeper_failed", error=error)
            except Exception as error:  # the keeper is a service: the node goes on without a step
                log_alarm("keeper_failed", trace=True, error=repr(error))

    def look(self) -> None:
        """Look at the next tasks and do what is due."""
        self._find_tasks()
        for _ in range(min(LOOKS_AT_ONCE, len(self._open))):
            task = self._open[0]
            self._open.rotate(-1)  # first, so that a task whose look fails keeps its turn
            if not self._handle(task):
                self._open.pop()

    def _find_tasks(self) -> None:
        (count,) = self._view("task_count()", ("uint256",), (), ())
        self._open.extend(range(self._known + 1, count + 1))
        self._known = count

    def _handle(self, task: int) -> bool:
        """Do what is due for a task; False when it is over."""
        code, number = self._view(
            "next_action(uint256)", ("uint8", "uint256"), ("uint256",), (task,)
        )
        if code in (Step.START, Step.CLOSE, Step.ABORT):
            self._attempt(Due(task, Step(code), number))
            return True
        if self._get_state(task) < FINISHED:
            return True
        (owed,) = self._view(
            "claimable(uint256,address)",
            ("uint256",),
            ("uint256", "address"),
            (task, self._address),
        )
        if owed:
            self._attempt(Due(task, Step.CLAIM, 0))
        else:
            self._attempts = {due: one for due, one in self._attempts.items() if due.task != task}
        return bool(owed)

    def _get_state(self, task: int) -> int:
        """The third word of the tuple that `get_task` returns."""
        output = self._call("get_task(uint256)", ("uint256",), (task,))
        return int(decode(["(uint256,address,uint8)"], output[32:])[0][2]) if output else FINISHED

    # -- sending -----------------------------------------------------------------------------------
    def _attempt(self, due: Due) -> None:
        now = self._node.clock.get_seconds()
        attempt = self._attempts.setdefault(due, Attempt(now + RANK_SECONDS * self._get_rank()))
        if now < attempt.after or self._count_pending() >= self._config.max_in_flight:
            return
        try:
            self._send(due)
            attempt.after = now + self._config.retry_seconds
        except SteelyardError as error:
            pause = self._config.retry_seconds * 2 ** min(attempt.failures, 10)
            attempt.after = now + min(pause, MAX_PAUSE_SECONDS)
            attempt.failures += 1
            log_event(
                "keeper_skipped",
                task=due.task,
                step=due.step.name.lower(),
                round=due.round,
                code=error.code,
                message=error.message,
            )

    def _get_rank(self) -> int:
        """0 for the leader of the view, 1 for the validator after it, and so on."""
        driver = self._node.driver
        return driver.get_rank()

    def _count_pending(self) -> int:
        pool = self._node.mempool
        free, nonce = pool.get_next_nonce(self._address), self._get_nonce()
        return 0 if free is None else free - nonce

    def _get_nonce(self) -> int:
        return self._node.get_nonce(self._address, pending=False)

    def _send(self, due: Due) -> None:
        """Try the step out, then sign and submit it. Raises SteelyardError if it would fail."""
        data = encode_step(due)
        gas = self._estimate(data)
        tip = self._node.get_suggested_tip()
        base_fee = self._node.get_next_base_fee()
        max_fee = min(2 * base_fee + tip, self._config.max_fee_wei)
        if max_fee < base_fee + tip:
            raise SteelyardError(
                "keeper_fee", f"a base fee of {base_fee} wei is more than the keeper may pay"
            )
        transaction = {
            "type": 2,
            "chainId": self._node.rules.chain_id,
            "nonce": self._node.get_nonce(self._address, pending=True),
            "to": bytes(TASKS_ADDRESS),
            "value": 0,
            "data": data,
            "gas": gas,
            "maxFeePerGas": max_fee,
            "maxPriorityFeePerGas": tip,
        }
        signed = Account.sign_transaction(transaction, self._account)
        transaction_hash = self._node.submit_transaction(bytes(signed.raw_transaction))
        log_event(
            "keeper_sent",
            task=due.task,
            step=due.step.name.lower(),
            round=due.round,
            hash=transaction_hash,
        )

    def _estimate(self, data: bytes) -> int:
        """One run and a margin; a finer search would compute an aggregation several times."""
        request = CallRequest(sender=self._address, to=Address(TASKS_ADDRESS), data=data)
        result = self._node.call(request)
        if result.is_error:
            raise SteelyardError(
                "keeper_reverted", describe_revert(result.revert_data, result.error)
            )
        needed = (result.gas_used + result.gas_refund) * GAS_MARGIN_PERCENT // 100 + GAS_MARGIN
        return min(needed, self._node.rules.gas_limit)

    # -- reading -----------------------------------------------------------------------------------
    def _view(
        self,
        signature: str,
        returns: tuple[str, ...],
        types: tuple[str, ...],
        values: tuple[object, ...],
    ) -> tuple[int, ...]:
        output = self._call(signature, types, values)
        return tuple(int(one) for one in decode(list(returns), output))

    def _call(self, signature: str, types: tuple[str, ...], values: tuple[object, ...]) -> bytes:
        selector = function_signature_to_4byte_selector(signature)
        data = selector + encode(list(types), list(values))
        result = self._node.call(CallRequest(to=Address(TASKS_ADDRESS), data=data))
        if result.is_error:
            raise SteelyardError("keeper_view", f"{signature}: {result.error}")
        return result.output


def encode_step(due: Due) -> bytes:
    """The calldata of a step."""
    if due.step == Step.CLOSE:
        selector = function_signature_to_4byte_selector("close(uint256,uint256)")
        return bytes(selector + encode(["uint256", "uint256"], [due.task, due.round]))
    selector = function_signature_to_4byte_selector(f"{due.step.name.lower()}(uint256)")
    return bytes(selector + encode(["uint256"], [due.task]))


def describe_revert(data: bytes, error: str | None) -> str:
    """The text of `Error(string)`, or the machine's own word for what happened."""
    if data[:4] == function_signature_to_4byte_selector("Error(string)"):
        try:
            return str(decode(["string"], data[4:])[0])
        except (DecodingError, ValueError, OverflowError):
            return "a malformed reason"
    return error or "no reason given"

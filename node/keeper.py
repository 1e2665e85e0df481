"""The keeper starts, closes and aborts tasks when they are due, from the validator's own account.

Nothing on the chain acts by itself: whoever closes a round is paid from the task's reserve. The
keeper looks at open tasks in turn (the view `next_action`), tries the step out, and sends it
once; then it waits. A large round closes in pages, one for each call: the next page is another
step, due as soon as the last one is in a block, and so is the end of an extension. What else is
due from this account (`duties.py`) is done on the same thread.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from eth_abi.abi import decode

from steelyard.chain.errors import SteelyardError
from steelyard.chain.params import ROUNDS_ADDRESS, TASKS_ADDRESS
from steelyard.chain.types import Hash

from .alarms import compute_stall_seconds
from .calls import start_thread
from .logs import log_alarm, log_event
from .store import CorruptData
from .wallet import Attempts, Wallet, encode_call

if TYPE_CHECKING:
    from .node import Node

PAUSE_SECONDS = 0.05
"""Between two looks, however fast blocks come."""
LOOKS_AT_ONCE = 32
"""Tasks looked at in one round of the keeper, so that many tasks cannot occupy a node."""
PAGE_GAS_PERCENT = 80
"""Of a block's gas, for a call that makes a page: Rounds plans each for three quarters of it, and a
64th stays behind at each call. Not all of it: such a transaction would have to be first in its
block, and whoever pays a higher tip for a transfer would keep it out."""
RANK_SECONDS = 5.0
"""Each rank behind the leader waits this much longer, so that keepers do not race."""
STATE_INTERVALS = 10
"""Whether a task is over is asked this seldom; it costs more than asking what is due."""
FINISHED, ABORTED = 3, 4
"""States of a task that is over; it may be paused (5) and go on."""
ROUND_TYPES = (
    "(uint8,(bytes32,uint256),(bytes32,uint256),uint256,bytes32,uint256,uint256,uint256,"
    "uint256,uint256,uint256,(bytes32,uint256),uint256,uint256)"
)
"""What `get_round` answers."""
EXTENSIONS, PAGES = 10, 13
"""Where it says how often the round was extended, and how many pages of its end were made."""


class Step(IntEnum):
    """What `next_action` answers; CLAIM is the keeper's own, after the end."""

    WAIT = 0
    START = 1
    CLOSE = 2
    ABORT = 3
    CLAIM = 4


@dataclass(frozen=True, slots=True)
class Due:
    """One step of one task. `calls`: how often the round's close was called before."""

    task: int
    step: Step
    round: int
    calls: int = 0


class Keeper:
    """One thread. `look` is one round of its work for tasks, for tests to call.

    `chores` are done after each look; the failure of one harms no other.
    """

    def __init__(self, node: "Node", wallet: Wallet, *chores: Callable[[], None]) -> None:
        self._node, self._wallet = node, wallet
        self._config = node.config.keeper
        self._chores = (self.look, *chores)
        self._open: deque[int] = deque()
        self._closing: dict[int, None] = {}
        self._known = 0
        self._ask_state_at: dict[int, float] = {}
        self.attempts = Attempts(node)
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
            self.work()

    def work(self) -> None:
        """One round of all chores, if there is any point in it."""
        if not self.is_near_head():
            return
        for chore in self._chores:
            if self._stopping.is_set():
                break
            try:
                chore()
            except (SteelyardError, CorruptData) as error:
                log_event("keeper_failed", error=error)
            except Exception as error:  # the keeper is a service: the node goes on without it
                log_alarm("keeper_failed", trace=True, error=repr(error))

    def is_near_head(self) -> bool:
        """Is our head the chain's, as far as its age tells? While catching up, everything that was
        due once would be sent, and paid for or refused. Nobody can make the head look old by
        claiming to be further, so no liar keeps us from checking in. By how much our clock is ahead
        of the other leaders' is not the head's age.

        The time of genesis says nothing: there a validator is near once it may vote.
        """
        head, consensus = self._node.get_head(), self._node.genesis.consensus
        if head.height == 0:
            return self._node.driver.is_validator()
        ahead_seconds = max(0.0, self._node.driver.progress.clocks.estimate() or 0.0)
        age_seconds = self._node.clock.get_unix_seconds() - ahead_seconds - head.timestamp
        return age_seconds <= compute_stall_seconds(consensus.heartbeat_ms, consensus.timeout_ms)

    def look(self) -> None:
        """Look at the next tasks and do what is due."""
        self._find_tasks()
        for task in tuple(self._closing):  # the next page should not wait for a turn
            self._handle(task)
        for _ in range(min(LOOKS_AT_ONCE, len(self._open))):
            task = self._open[0]
            self._open.rotate(-1)  # first, so that a task whose look fails keeps its turn
            if not self._handle(task):
                self._open.pop()

    def _find_tasks(self) -> None:
        (count,) = decode(["uint256"], self._wallet.ask(TASKS_ADDRESS, "task_count()"))
        self._open.extend(range(self._known + 1, count + 1))
        self._known = count

    def _handle(self, task: int) -> bool:
        """Do what is due for a task; False when it is over."""
        self._closing.pop(task, None)  # first, so that a task whose look fails holds up no other
        output = self._wallet.ask(TASKS_ADDRESS, "next_action(uint256)", task)
        code, number = decode(["uint8", "uint256"], output)
        extensions, pages = self._get_progress(task, number) if code == Step.CLOSE else (0, 0)
        if pages and len(self._closing) < LOOKS_AT_ONCE:
            self._closing[task] = None
        if code in (Step.START, Step.CLOSE, Step.ABORT):
            self._attempt(Due(task, Step(code), number, extensions + pages))
            return True
        now = self._node.clock.get_seconds()
        if now < self._ask_state_at.get(task, now):
            return True
        self._ask_state_at[task] = now + STATE_INTERVALS * self._config.interval_seconds
        if self._get_state(task) not in (FINISHED, ABORTED):
            return True
        signature = "claimable(uint256,address)"
        output = self._wallet.ask(TASKS_ADDRESS, signature, task, self._wallet.address)
        (owed,) = decode(["uint256"], output)
        if owed:
            self._attempt(Due(task, Step.CLAIM, 0))
        else:
            del self._ask_state_at[task]
            self._forget(task)
        return bool(owed)

    def _forget(self, task: int) -> None:
        self.attempts.forget(lambda due: isinstance(due, Due) and due.task == task)

    def _get_progress(self, task: int, number: int) -> tuple[int, int]:
        """How often a round was extended, and how many pages of its end were made."""
        output = self._wallet.ask(ROUNDS_ADDRESS, "get_round(uint256,uint256)", task, number)
        (fields,) = decode([ROUND_TYPES], output)
        return int(fields[EXTENSIONS]), int(fields[PAGES])

    def _get_state(self, task: int) -> int:
        """The third word of the tuple that `get_task` returns."""
        output = self._wallet.ask(TASKS_ADDRESS, "get_task(uint256)", task)
        return int(decode(["(uint256,address,uint8)"], output[32:])[0][2]) if output else FINISHED

    def _attempt(self, due: Due) -> None:
        """Send a step when it is this validator's turn: the leader's first, others by rank."""
        if self._wallet.is_busy():
            return
        if due not in self.attempts.entries:
            self._forget(due.task)
        self.attempts.run(
            due,
            lambda: self._submit(due),
            {"task": due.task, "step": due.step.name.lower(), "round": due.round},
            RANK_SECONDS * self._node.driver.get_rank(),
        )

    def _submit(self, due: Due) -> Hash:
        """`close` names no page: if somebody's close comes first, ours makes another than we tried,
        which may be dearer.
        """
        if due.step is not Step.CLOSE:
            return self._wallet.submit(TASKS_ADDRESS, encode_step(due))
        page_gas = self._node.rules.gas_limit * PAGE_GAS_PERCENT // 100
        wished_gas = page_gas if self._is_paged(due.task) else 0
        return self._wallet.submit(ROUNDS_ADDRESS, encode_step(due), wished_gas)

    def _is_paged(self, task: int) -> bool:
        """Do the task's rounds close in pages? The plan's last words say: phase 1, 2, blocks."""
        output = self._wallet.ask(ROUNDS_ADDRESS, "get_plan(uint256)", task)
        measures, combines, _ = decode(["uint256"] * 3, output[-3 * 32 :])
        return (measures, combines) != (0, 1)


def encode_step(due: Due) -> bytes:
    """The calldata of a step."""
    if due.step is Step.CLOSE:
        return encode_call("close(uint256,uint256)", due.task, due.round)
    return encode_call(f"{due.step.name.lower()}(uint256)", due.task)

"""The keeper starts, closes and aborts tasks when they are due, from the validator's own account.

Nothing on the chain acts by itself: whoever closes a round is paid from the task's reserve. The
keeper looks at open tasks in turn (the view `next_action`), tries the step out, and sends it
once, if the task pays for it (`steps.py`); then it waits. A large round closes in pages, one for
each call: the next page is another step, due as soon as the last one is in a block, and so is the
end of an extension. What else is due from this account (`duties.py`) is done on the same thread,
and first.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from eth_abi.abi import decode

from steelyard.chain.errors import SteelyardError
from steelyard.chain.params import ROUNDS_ADDRESS, TASKS_ADDRESS

from .alarms import compute_stall_seconds
from .calls import start_thread
from .logs import log_alarm, log_event
from .steps import Due, Step, Steps
from .store import CorruptData
from .wallet import Attempts, Wallet

if TYPE_CHECKING:
    from .node import Node

PAUSE_SECONDS = 0.05
"""Between two looks, however fast blocks come."""
LOOKS_AT_ONCE = 32
"""Tasks looked at in one round of the keeper, so that many tasks cannot occupy a node."""
LOOK_SECONDS = 2.0
"""After so long the other tasks wait for the next round: trying closes out takes seconds each, and
a check-in must not wait for all of them."""
RANK_SECONDS = 5.0
"""Each rank behind the leader waits this much longer, so that keepers do not race."""
STATE_INTERVALS = 10
"""Whether a task is over is asked this seldom; it costs more than asking what is due."""
LEFT = ("keeper_unpaid", "keeper_floor")
"""Refusals for which a due round is left to others."""
FINISHED, ABORTED = 3, 4
"""States of a task that is over; it may be paused (5) and go on."""
ROUND_TYPES = (
    "(uint8,(bytes32,uint256),(bytes32,uint256),uint256,bytes32,uint256,uint256,uint256,"
    "uint256,uint256,uint256,(bytes32,uint256),uint256,uint256)"
)
"""What `get_round` answers."""
EXTENSIONS, PAGES = 10, 13
"""Where it says how often the round was extended, and how many pages of its end were made."""


class Keeper:
    """One thread. `look` is one round of its work for tasks, for tests to call.

    `chores` are done before each look, as no number of tasks may take their turn; the failure of
    one harms no other.
    """

    def __init__(self, node: "Node", wallet: Wallet, *chores: Callable[[], None]) -> None:
        self._node, self._wallet = node, wallet
        self._steps = Steps(node, wallet)
        self._config = node.config.keeper
        self._chores = (*chores, self.look)
        self._open: deque[int] = deque()
        self._closing: dict[int, None] = {}
        self._known = 0
        self._ask_state_at: dict[int, float] = {}
        self._left: dict[int, int] = {}
        self.attempts = Attempts(node, wallet.address)
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
        ends = self._node.clock.get_seconds() + LOOK_SECONDS
        self._find_tasks()
        for task in tuple(self._closing):  # the next page should not wait for a turn
            self._handle(task)
            if self._node.clock.get_seconds() >= ends:
                break
        for _ in range(min(LOOKS_AT_ONCE, len(self._open))):
            task = self._open[0]
            self._open.rotate(-1)  # first, so that a task whose look fails keeps its turn
            if not self._handle(task):
                self._open.pop()
            if self._node.clock.get_seconds() >= ends:
                break

    def _find_tasks(self) -> None:
        (count,) = decode(["uint256"], self._wallet.ask(TASKS_ADDRESS, "task_count()"))
        self._open.extend(range(self._known + 1, count + 1))
        self._known = count

    def _handle(self, task: int) -> bool:
        """Do what is due for a task; False when it is over."""
        self._closing.pop(task, None)  # first, so that a task whose look fails holds up no other
        output = self._wallet.ask(TASKS_ADDRESS, "next_action(uint256)", task)
        code, number = decode(["uint8", "uint256"], output)
        if code != Step.CLOSE or self._left.get(task) != number:
            self._left.pop(task, None)
        if code in (Step.START, Step.CLOSE, Step.ABORT):
            extensions, pages = self._get_progress(task, number) if code == Step.CLOSE else (0, 0)
            due = Due(task, Step(code), number, extensions + pages)
            self._attempt(due)
            if pages and len(self._closing) < LOOKS_AT_ONCE and not self.attempts.has_failed(due):
                self._closing[task] = None
        return self._collect(task)

    def _collect(self, task: int) -> bool:
        """Claim, now and then while a task goes on and to the last when it is over; False when
        nothing more can come of it.
        """
        now = self._node.clock.get_seconds()
        if now < self._ask_state_at.get(task, now):
            return True
        self._ask_state_at[task] = now + STATE_INTERVALS * self._config.interval_seconds
        is_over = self._get_state(task) in (FINISHED, ABORTED)
        owed = self._steps.get_owed(task)
        if owed and (is_over or self._steps.is_worth_claiming(owed)):
            self._attempt(Due(task, Step.CLAIM, 0))
        if is_over and not owed:
            del self._ask_state_at[task]
            self._forget(task)
        return bool(owed) or not is_over

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
        if due not in self.attempts.entries and due.step is not Step.CLAIM:
            self._forget(due.task)
        error = self.attempts.run(
            due,
            lambda: self._steps.send(due),
            {"task": due.task, "step": due.step.name.lower(), "round": due.round},
            RANK_SECONDS * self._node.driver.get_rank(),
        )
        if error is not None and error.code in LEFT and due.step is Step.CLOSE:
            self._left[due.task] = due.round
        elif not self.attempts.has_failed(due):
            self._left.pop(due.task, None)

    def count_left(self) -> int:
        """How many due rounds are left unclosed for want of pay, or of money of ours."""
        return len(self._left)

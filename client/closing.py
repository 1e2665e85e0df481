"""Closing a round oneself: what validators' keepers do for the bounty, anybody may do at any time.

One call ends a round, or, where its aggregation does not fit into a block, makes one page of it;
the calls here go on until the round has ended. Each is credited about its gas at the base fee, and
the last one the task's bounty, together at most the round's reserve (docs/tasks.md).
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from steelyard.chain.params import MAX_PAGES
from steelyard.chain.types import BlobName

from .abi import Event
from .account import Account
from .amounts import format_coins
from .contracts import Rounds
from .errors import Reverted
from .outbox import BASE_FEE_HEADROOM, Receipt, decode_receipt
from .records import NO_BLOB, Action, RoundInfo, RoundState, TaskInfo, TaskState
from .retention import format_seconds
from .rpc import as_hex, as_int, as_object
from .state import Status
from .transactions import Call

PAGE_GAS_PERCENT: Final = 80
"""Of a block's gas, for a call that makes a page: if somebody's call comes first, ours makes
another page than was tried out, which may be dearer. Each is planned for 75 % of a block."""
SIGNING_HEADROOM: Final = BASE_FEE_HEADROOM + 1
"""Of the base fee: it rises by an eighth if a full block comes before the call is signed."""
MAX_CALLS: Final = 2 * MAX_PAGES + 1
"""Pages of both phases, and what puts them together."""


class Ending(IntEnum):
    """How a round stands that was to be closed."""

    NOT_DUE = 0
    AGGREGATED = 1
    SKIPPED = 2
    EXTENDED = 3
    """There were too few updates, and its periods have begun again."""
    UNFINISHED = 4
    """Some pages are made."""
    STOPPED = 5
    """Its task was ended before."""


ENDS: Final = {
    "Aggregated": Ending.AGGREGATED,
    "RoundSkipped": Ending.SKIPPED,
    "RoundExtended": Ending.EXTENDED,
}
"""The events of a call that leaves nothing more to do."""
WHERE: Final = {
    TaskState.LOBBY: "in its lobby",
    TaskState.PAUSED: "paused",
    TaskState.FINISHED: "finished",
    TaskState.ABORTED: "aborted",
}


@dataclass(frozen=True, slots=True)
class ClosedRound:
    """What closing a round came to, as far as this account did it. Amounts in wei."""

    task: int
    round: int
    """The round in progress; 0 in a lobby."""
    ending: Ending
    model: BlobName
    """What the round made; of size 0 if nothing."""
    calls: int
    """Of this account; 0 if there was nothing to do, or somebody else was first."""
    gas: int
    cost: int
    """Of all calls, those included that came too late."""
    credited: int
    """Gas at the base fee and bounty: `claim` fetches it."""
    reason: str
    """Why there was nothing to do; empty if there was something."""

    @property
    def is_ended(self) -> bool:
        """Whether the round has come to an end by now, whoever saw to it."""
        return self.ending in (Ending.AGGREGATED, Ending.SKIPPED)


def close_round(account: Account, task: int) -> ClosedRound:
    """Close the round in progress if it is due, with all its pages.

    An interrupted call is brought to its end first. Raises: ClientError `task_unknown`; Reverted
    for a round that cannot be closed; as `Outbox.send`.
    """
    account.outbox.flush()
    info = account.tasks.get_task(task)
    action, number = account.tasks.get_next_action(task)
    if action is not Action.CLOSE or number != info.round:
        reason = tell_reason(account, info, action)
        return ClosedRound(task, info.round, Ending.NOT_DUE, NO_BLOB, 0, 0, 0, 0, reason)
    return Closer(account, task, number).run()


class Closer:
    """Calls `close` for one round until that has come to an end."""

    def __init__(self, account: Account, task: int, number: int) -> None:
        self._account, self._task, self._round = account, task, number
        self._before = account.rounds.get_round(task, number)
        self._is_paged = account.rounds.is_paged(task)
        self._calls = self._gas = self._cost = self._credited = 0

    def run(self) -> ClosedRound:
        """Go on until the round has ended, or somebody else has ended it. Raises Reverted."""
        events: set[str] = set()
        reason = ""
        while not events & ENDS.keys() and self._calls < MAX_CALLS:
            label = self._account.get_label(f"close/{self._task}/{self._round}")
            try:
                receipt = self._send(label)
            except Reverted as error:
                self._note_loss(label)
                if self._is_still_due():
                    raise self._explain(error) from None
                reason = "somebody else was faster"
                break
            events = {event.name for event in self._note(receipt)}
            self._report(events)
        found = self._account.rounds.get_round(self._task, self._round)
        ended = next((ENDS[name] for name in ENDS if name in events), self._judge(found))
        return ClosedRound(
            self._task,
            self._round,
            ended,
            found.model,
            self._calls,
            self._gas,
            self._cost,
            self._credited,
            reason,
        )

    def _send(self, label: str) -> Receipt:
        rounds = self._account.rounds
        call = Call(rounds.address, rounds.encode("close", self._task, self._round))
        return self._account.outbox.send(label, replace(call, gas=self._get_gas(call)))

    def _get_gas(self, call: Call) -> int:
        """Return how much gas a call carries; only what it uses is paid. Raises Reverted."""
        account = self._account
        estimate = account.outbox.estimate_gas(call)
        answer, balance = account.rpc.call_together(
            [
                ("eth_getBlockByNumber", ("latest", False)),
                ("eth_getBalance", (as_hex(account.address), "latest")),
            ]
        )
        block = as_object(answer)
        limit = as_int(block.get("gasLimit"))
        estimate = min(estimate, limit)  # its margin may be more than a small block holds
        if not self._is_paged:
            return estimate
        tip = as_int(account.rpc.call("eth_maxPriorityFeePerGas"))
        price = max(1, SIGNING_HEADROOM * as_int(block.get("baseFeePerGas")) + tip)
        return max(estimate, min(limit * PAGE_GAS_PERCENT // 100, as_int(balance) // price))

    def _note(self, receipt: Receipt) -> list[Event]:
        """Add what a call cost and brought; return the events of Rounds."""
        account = self._account
        self._calls += 1
        self._gas += receipt.gas_used
        self._cost += receipt.gas_used * receipt.gas_price
        self._credited += sum(
            event.values["fee"]
            for event in account.tasks.decode_logs(receipt.logs)
            if event.name == "ClosePaid" and event.values["closer"] == account.address
        )
        return account.rounds.decode_logs(receipt.logs)

    def _note_loss(self, label: str) -> None:
        """Add what a call cost that was refused in its block."""
        entry = self._account.journal.get_entry(label)
        if entry is None or entry.status is not Status.FAILED:
            return
        answer = self._account.rpc.call("eth_getTransactionReceipt", as_hex(entry.hash))
        receipt = decode_receipt(answer, entry.hash)
        self._gas += receipt.gas_used
        self._cost += receipt.gas_used * receipt.gas_price

    def _is_still_due(self) -> bool:
        return self._account.tasks.get_next_action(self._task) == (Action.CLOSE, self._round)

    def _explain(self, error: Reverted) -> Reverted:
        spent = f" (gas for {format_coins(self._cost)} coins is spent)" if self._cost else ""
        return Reverted(
            error.reason,
            f"round {self._round} of task {self._task} cannot be closed: {error.reason}{spent}; "
            "if that stays so, anybody may end the task a day after the round was due: "
            f"`steelyard task abort {self._task}`",
        )

    def _report(self, events: set[str]) -> None:
        if "PageMade" in events:
            self._account.report(f"round {self._round}: page {self._calls} is made")

    def _judge(self, found: RoundInfo) -> Ending:
        """Return how a round stands that others may have closed."""
        match found.state:
            case RoundState.AGGREGATED:
                return Ending.AGGREGATED
            case RoundState.SKIPPED:
                return Ending.SKIPPED
            case RoundState.STOPPED:
                return Ending.STOPPED
        is_extended = found.extensions > self._before.extensions
        return Ending.EXTENDED if is_extended else Ending.UNFINISHED


def tell_reason(account: Account, info: TaskInfo, action: Action) -> str:
    """Return why no round of a task can be closed now, and what can be done."""
    number = info.number
    match action:
        case Action.START:
            return f"task {number} is in its lobby, which may end: `steelyard task start {number}`"
        case Action.ABORT:
            return f"task {number} waits in vain and may be ended: `steelyard task abort {number}`"
    if info.state is not TaskState.RUNNING:
        return f"task {number} is {WHERE[info.state]}: no round is open"
    left = account.rounds.get_due(number) - get_time(account.rounds)
    when = f"in {format_seconds(left)}" if left > 0 else "in a moment"
    return f"round {info.round} of task {number} is not due yet: {when}, or when all have revealed"


def get_time(rounds: Rounds) -> int:
    """Return the time of the newest finalized block, in seconds. Raises NodeRefused."""
    block = as_object(rounds.rpc.call("eth_getBlockByNumber", "latest", False))
    return as_int(block.get("timestamp"))

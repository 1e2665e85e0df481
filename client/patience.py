"""What a run bears: silent nodes for ever, refusing ones for a while, anything while it is bound.

Whoever has committed and not revealed loses a bond by ending, whatever went wrong.
"""

from typing import Final

from steelyard.chain.errors import SteelyardError

from .account import Account
from .errors import NodeRefused, NodeUnreachable, TransactionPending
from .outbox import NEVER_CODES
from .rounds import Turn

PATIENCE_SECONDS: Final = 600.0
"""How long a run goes on while every node that it asks refuses what honest ones answer."""
BEHIND: Final = ("not_joined", "task_unknown")
"""What a node that is behind makes of an account that has joined."""


class Patience:
    """Decides whether a run goes on after an error, and says why it waits."""

    def __init__(self, account: Account, task: int) -> None:
        self._account, self._task = account, task
        self._refused_at: float | None = None
        self._said = ""

    def reset(self) -> None:
        """Take note of a turn without an error."""
        self._refused_at = None

    def bear(self, error: SteelyardError, turn: Turn | None) -> None:
        """Make ready to try again, with another node if this one answered. Raises `error`."""
        if not isinstance(error, NodeUnreachable | TransactionPending):
            now = self._account.clock.now()
            self._refused_at = now if self._refused_at is None else self._refused_at
            is_early = now - self._refused_at < PATIENCE_SECONDS
            is_bound = turn is not None and turn.is_bound
            if not is_bound and not (is_early and is_curable(error, self._has_joined(turn))):
                raise error
            self._account.rpc.move_on()
        if turn is not None:
            turn.say(f"waiting: {error.message}")
        elif error.message != self._said:
            self._account.report(f"waiting: {error.message}")
        self._said = error.message

    def _has_joined(self, turn: Turn | None) -> bool:
        """Whether this account is in the task: the journal knows of rounds before a restart."""
        journal = self._account.journal
        return turn is not None or bool(journal.get_entries(f"task/{self._task}/round/"))


def is_curable(error: SteelyardError, has_joined: bool) -> bool:
    """Whether another node, or this one later, may answer otherwise."""
    if isinstance(error, NodeRefused):
        return error.code not in NEVER_CODES
    return has_joined and error.code in BEHIND

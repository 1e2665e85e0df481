"""What the steps of a round have in common: labels, refusals, models, progress.

A label names one attempt at a step for ever: `task/7/round/3/commit`, and `…/commit/1` when that
one failed in its block. Whatever is sent under it is sent once.
"""

from collections.abc import Callable
from typing import Final

from steelyard.chain.model import Model, decode_model, encode_model
from steelyard.chain.types import BlobName

from .account import Account
from .bundle import Config
from .errors import Reverted
from .outbox import UNEXPLAINED, VOID
from .records import TaskInfo
from .state import Status
from .training import Context

EXTENDED: Final = frozenset(
    {"rounds: commit period is over", "rounds: reveal period is over", UNEXPLAINED}
)
"""Refusals that an extension of the round cures."""


FetchConfig = Callable[[], Config]
"""Returns the settings in the task's bundle. Raises as `Rpc.get_blob`, `bundle.read_config`."""


class Steps:
    """One account's steps in one task. Holds nothing that a crash may not lose."""

    def __init__(self, account: Account, task: int, fetch_config: FetchConfig) -> None:
        self.account, self.task = account, task
        self._fetch_config = fetch_config
        self._missed: set[tuple[int, str]] = set()
        self._put_off: set[tuple[int, str]] = set()
        """Those of them that an extension of their round would bring back."""
        self._said: dict[str, str] = {}
        """The last line under each topic."""
        self._models: dict[BlobName, Model] = {}

    @property
    def config(self) -> Config:
        """The settings in the task's bundle, for training and evaluating.

        Nodes may have dropped it: what was committed to is shown, and what was earned claimed,
        without it. Raises as FetchConfig.
        """
        return self._fetch_config()

    def say(self, line: str, topic: str = "") -> None:
        """Report a state that lasts, once, until there is another to report under its topic."""
        if line != self._said.get(topic):
            self._said[topic] = line
            self.account.report(line)

    def get_label(self, round_number: int, step: str) -> str:
        """Return the name of the next attempt at a step: the one on its way, if there is one.

        The journal alone decides, so after a crash it is the same. What failed in its block is over
        and can never be included again: another attempt is another transaction.
        """
        first = label = f"task/{self.task}/round/{round_number}/{step}"
        failed = 0
        while True:
            entry = self.account.journal.get_entry(label)
            if entry is None or entry.status is not Status.FAILED:
                return label
            failed += 1
            label = f"{first}/{failed}"

    def is_included(self, round_number: int, step: str) -> bool:
        """Whether this step's transaction was carried out in a block, as the journal has it."""
        entry = self.account.journal.get_entry(self.get_label(round_number, step))
        return entry is not None and entry.status is Status.INCLUDED

    def has_committed(self, round_number: int) -> bool:
        """Whether a commitment of this journal was carried out in a block of this round."""
        return any(self.is_included(round_number, step) for step in ("commit", "late"))

    def is_committed(self, round_number: int) -> bool:
        """Whether this journal has a commitment in a round, or on its way, and no reveal of it."""
        return self._is_sent(round_number, "commit", "late") and not self.is_included(
            round_number, "reveal"
        )

    def _is_sent(self, round_number: int, *steps: str) -> bool:
        entries = [self.account.journal.get_entry(self.get_label(round_number, s)) for s in steps]
        return any(entry is not None and entry.status not in VOID for entry in entries)

    def is_missed(self, round_number: int, step: str) -> bool:
        """Whether this step was given up, or is done."""
        return (round_number, step) in self._missed

    def give_up(self, round_number: int, step: str) -> None:
        """Never try this step again."""
        self._missed.add((round_number, step))

    def miss(self, round_number: int, step: str, reason: str) -> None:
        """Give a step up and say why: it costs the round, not the run.

        What came too late is tried again if the round is extended.
        """
        self.give_up(round_number, step)
        if reason in EXTENDED:
            self._put_off.add((round_number, step))
        self.account.report(
            f"round {round_number}: {step} refused: {reason}; waiting for the next round"
        )

    def reopen(self, round_number: int) -> None:
        """Take back what was given up as too late: the round was extended."""
        back = {(number, step) for number, step in self._put_off if number == round_number}
        self._missed -= back
        self._put_off -= back

    def attempt(self, round_number: int, step: str, function: str, *arguments: object) -> bool:
        """Send one step to Rounds. False, and never again, if it was refused."""
        rounds = self.account.rounds
        try:
            self.account.send(
                self.get_label(round_number, step), function, *arguments, contract=rounds
            )
        except Reverted as error:
            self.miss(round_number, step, error.reason)
            return False
        self.account.report(f"round {round_number}: {step} is final")
        return True

    def get_model(self, name: BlobName) -> Model:
        """Return a verified model; the newest one is kept in memory."""
        if name not in self._models:
            self._models = {name: decode_model(self.account.rpc.get_blob(name))}
        return self._models[name]

    def get_file(self, name: BlobName) -> bytes:
        """Return a blob, from the model in memory if it is that. Raises NodeUnreachable."""
        model = self._models.get(name)
        if model is None:
            return self.account.rpc.get_blob(name)
        return encode_model(model.manifest, model.values)

    def get_context(self, info: TaskInfo, round_number: int) -> Context:
        """Return what a training or evaluation function is told."""
        return Context(
            self.task, round_number, info.parameters.rounds, self.config, self.account.address
        )

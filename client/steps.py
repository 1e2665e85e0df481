"""What the steps of a round have in common: labels, refusals, models, progress.

A label names a step for ever: `task/7/round/3/commit`. Whatever is sent under it is sent once.
"""

from typing import Final

from steelyard.chain.model import Model, decode_model, encode_model
from steelyard.chain.types import BlobName

from .account import Account
from .bundle import Config
from .errors import Reverted
from .records import TaskInfo
from .training import Context

REPEAT_SECONDS: Final = 60.0
"""A line of progress that has not changed is not printed again before this."""


class Steps:
    """One account's steps in one task. Holds nothing that a crash may not lose."""

    def __init__(self, account: Account, task: int, config: Config) -> None:
        self.account, self.task, self.config = account, task, config
        self._missed: set[str] = set()
        self._said = ("", 0.0)
        self._models: dict[BlobName, Model] = {}

    def say(self, line: str) -> None:
        """Report a state that lasts, once, and again after a while."""
        said, at = self._said
        if line != said or self.account.clock.now() - at >= REPEAT_SECONDS:
            self._said = (line, self.account.clock.now())
            self.account.report(line)

    def get_label(self, round_number: int, step: str) -> str:
        """Return the name of a step."""
        return f"task/{self.task}/round/{round_number}/{step}"

    def is_missed(self, round_number: int, step: str) -> bool:
        """Whether this step was given up, or is done."""
        return self.get_label(round_number, step) in self._missed

    def give_up(self, round_number: int, step: str) -> None:
        """Never try this step again."""
        self._missed.add(self.get_label(round_number, step))

    def miss(self, round_number: int, step: str, reason: str) -> None:
        """Give a step up and say why: it costs the round, not the run."""
        self.give_up(round_number, step)
        self.account.report(
            f"round {round_number}: {step} refused: {reason}; waiting for the next round"
        )

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

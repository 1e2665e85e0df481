"""One turn of a participant: a look at the chain, and the one thing that is due.

What a turn does, first match: reveal what was committed; evaluate the newest model and report,
while there is time; train and commit. A missed deadline, or training that failed, costs that round
only.
"""

import json
import secrets
from collections.abc import Callable
from typing import Final

from steelyard.chain.errors import SteelyardError
from steelyard.chain.model import Model, decode_model
from steelyard.chain.params import TASKS_ADDRESS
from steelyard.chain.types import Address, BlobName

from .account import Account
from .bundle import Config
from .contracts import compute_commitment
from .errors import ClientError, InvalidTraining, NodeUnreachable, Reverted
from .records import MAX_METRICS, METRIC_UNIT, RoundInfo, RoundState, TaskInfo, TaskState
from .rpc import MISSING, as_int
from .state import Submission
from .training import Context, Prepared, Result, Trainer, build_arrays, prepare_update
from .transactions import Call, compute_blob_call_gas

REPEAT_SECONDS: Final = 60.0
"""A line of progress that has not changed is not printed again before this."""
MAX_FAILURES: Final = 3
"""Rounds in a row whose training may fail before `run` gives up."""
SALT_BYTES: Final = 32
METRICS_SETTING: Final = "metrics"
"""In the bundle: which metric stands at which place on chain."""
DEFAULT_METRICS: Final = ("accuracy", "loss")


class ChainClock:
    """A lower bound of the validators' clock, from the timestamps of new heads.

    A head's timestamp is never ahead of the clock that made it (by more than a second), so the
    largest difference to our own clock that was ever seen bounds theirs from below. Acting by it
    is never too early, even when this machine's clock is wrong.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._offset: float | None = None

    def observe(self, timestamp: int) -> None:
        """Take note of the newest head's timestamp, in seconds."""
        offset = timestamp - self._now()
        self._offset = offset if self._offset is None else max(self._offset, offset)

    def get_seconds(self) -> int:
        """Return the time on chain, in whole seconds, or a little less."""
        assert self._offset is not None, "a head is observed before time is asked for"
        return int(self._now() + self._offset)


class Turn:
    """The body of a participant's loop. Holds nothing that a crash may not lose."""

    def __init__(
        self,
        account: Account,
        task: int,
        train: Trainer,
        evaluate: Trainer | None,
        config: Config,
    ) -> None:
        self._client, self._task = account, task
        self._train, self._evaluate, self._config = train, evaluate, config
        self._clock = ChainClock(account.clock.now)
        self._missed: set[str] = set()
        self._failures = 0
        self._said = ("", 0.0)
        self._seen: tuple[object, int] | None = None
        self._models: dict[BlobName, Model] = {}
        self.is_over = False
        self.submitted = 0
        account.outbox.flush()

    def take(self) -> None:
        """Do what is due. Raises NodeUnreachable; then the same is due again.

        Nothing can be due that was not, while no block and no second has passed.
        """
        client = self._client
        head = client.rpc.call("eth_getBlockByNumber", "latest", False)
        self._clock.observe(as_int(head["timestamp"]))
        seen = (head["hash"], self._clock.get_seconds())
        if seen == self._seen:
            return
        self._look()
        self._seen = seen

    def _look(self) -> None:
        """Read where the task stands and do the first thing that is due."""
        client = self._client
        info = client.tasks.get_task(self._task)
        if info.state is TaskState.LOBBY:
            seats = (
                f"{len(client.tasks.get_participants(self._task))}/{info.parameters.min_clients}"
            )
            self.say(f"lobby: {seats} participants")
            return
        if info.is_over:
            self._report_metrics(info, info.round)
            self.is_over = True
            return
        state = client.tasks.get_round(self._task, info.round)
        if self._submit(info, state):
            return
        if info.round > 1:
            self._report_metrics(info, info.round - 1)

    def say(self, line: str) -> None:
        """Report a state that lasts, once, and again after a while."""
        said, at = self._said
        if line != said or self._client.clock.now() - at >= REPEAT_SECONDS:
            self._said = (line, self._client.clock.now())
            self._client.report(line)

    # -- submitting --------------------------------------------------------------------------------
    def _submit(self, info: TaskInfo, state: RoundInfo) -> bool:
        """Reveal or commit if it is due. Returns whether the chain changed."""
        client, round_number, now = self._client, info.round, self._clock.get_seconds()
        member = client.tasks.get_participant(self._task, client.address)
        if not member.position:
            raise ClientError(
                "not_joined", f"this account is no longer in task {self._task}; join it again"
            )
        if member.active_from > round_number:
            self.say(f"waiting for round {member.active_from}")
            return False
        done = client.tasks.get_submission(self._task, round_number, client.address)
        if done.update.size:
            self.say(f"round {round_number}: submitted, {state.revealed}/{state.active} in")
            return False
        if any(done.commitment):
            if now < state.commit_ends:
                self.say(f"round {round_number}: committed, {state.committed}/{state.active}")
                return False
            return now < state.reveal_ends and self._reveal(info, state, done.commitment)
        if now >= state.commit_ends:
            self.say(f"round {round_number}: too late to commit; waiting for the next round")
            return False
        if 2 * (state.commit_ends - now) > info.parameters.commit_seconds:
            self._report_metrics(info, round_number - 1)
        return self._commit(info, state, member.samples)

    def _commit(self, info: TaskInfo, state: RoundInfo, covered: int) -> bool:
        """Train unless the journal has this round's update, and commit to it."""
        client, round_number = self._client, info.round
        if self._label(round_number, "commit") in self._missed:
            return False
        client.journal.drop_updates(self._task, round_number)
        submission = client.journal.get_submission(self._task, round_number)
        if submission is None:
            submission = self._train_round(info, state, covered)
        if submission is None:
            return False
        commitment = self._compute_commitment(submission)
        return self._attempt(round_number, "commit", self._task, round_number, commitment)

    def _reveal(self, info: TaskInfo, state: RoundInfo, commitment: bytes) -> bool:
        """Show what was committed to, from the journal."""
        client, round_number = self._client, info.round
        submission = client.journal.get_submission(self._task, round_number)
        if submission is None or self._compute_commitment(submission) != commitment:
            self.say(
                f"round {round_number}: committed by another journal than "
                f"{client.journal.directory}; only that one can reveal it"
            )
            return False
        label = self._label(round_number, "reveal")
        if label in self._missed:
            return False
        values = submission.update.size
        call = Call(
            Address(TASKS_ADDRESS),
            client.tasks.encode(
                "reveal",
                self._task,
                round_number,
                (submission.update.digest, submission.update.size),
                submission.samples,
                submission.salt,
            ),
            gas=compute_blob_call_gas(
                (submission.update,), (submission.update, state.base), values
            ),
            blobs=(submission.update,),
        )
        try:
            client.outbox.send(label, call)
        except Reverted as error:
            self._miss(round_number, "reveal", error.reason)
            return False
        self.submitted += 1
        size = submission.update.size
        client.report(f"round {round_number}: revealed {size} bytes, {submission.samples} samples")
        return True

    def _attempt(self, round_number: int, step: str, *arguments: object) -> bool:
        """Send one step of a round; a refusal costs the round, not the run."""
        try:
            self._client.send(self._label(round_number, step), step, *arguments)
        except Reverted as error:
            self._miss(round_number, step, error.reason)
            return False
        self._client.report(f"round {round_number}: {step} is final")
        return True

    def _miss(self, round_number: int, step: str, reason: str) -> None:
        label = self._label(round_number, step)
        self._missed.add(label)
        self._client.report(
            f"round {round_number}: {step} refused: {reason}; waiting for the next round"
        )

    def _label(self, round_number: int, step: str) -> str:
        return f"task/{self._task}/round/{round_number}/{step}"

    def _compute_commitment(self, submission: Submission) -> bytes:
        return compute_commitment(
            self._client.rpc.network.chain_id,
            submission.task,
            submission.round,
            self._client.address,
            submission.update,
            submission.samples,
            submission.salt,
        )

    # -- training ----------------------------------------------------------------------------------
    def _train_round(self, info: TaskInfo, state: RoundInfo, covered: int) -> Submission | None:
        """Train on the round's base; journal the update and its salt. None: training failed."""
        client, round_number = self._client, info.round
        started = client.clock.now()
        client.report(f"round {round_number}: training")
        try:
            result, prepared = self.prepare(info, round_number, state.base)
            if result.samples > covered:
                raise InvalidTraining(
                    "samples_not_covered",
                    f"{result.samples} samples were used and the stake covers {covered}; "
                    "join with more, or train on fewer",
                )
        except NodeUnreachable:
            raise
        except Exception as error:
            self._fail(round_number, error)
            return None
        self._failures = 0
        submission = Submission(
            self._task,
            round_number,
            state.base,
            prepared.update,
            secrets.token_bytes(SALT_BYTES),
            int(result.samples),
            {name: float(value) for name, value in result.metrics.items()},
        )
        client.journal.add_submission(submission, prepared.data, prepared.personal)
        seconds = client.clock.now() - started
        scaled = f", scaled by {prepared.scale:.3f} to fit" if prepared.scale < 1 else ""
        client.report(
            f"round {round_number}: trained in {seconds:.1f} s, delta norm {prepared.norm:.4g}"
            f"{scaled}{format_metrics(submission.metrics)}"
        )
        return submission

    def prepare(self, info: TaskInfo, round_number: int, base: BlobName) -> tuple[Result, Prepared]:
        """Run the training function on a base model and turn the result into an update."""
        client = self._client
        model = self._get_model(base)
        personal = client.journal.get_personal(self._task)
        result = self._train(build_arrays(model, personal), self._get_context(info, round_number))
        prepared = prepare_update(
            model,
            base,
            result,
            chain_id=client.rpc.network.chain_id,
            task=self._task,
            round_number=round_number,
            sender=client.address,
            bits=info.parameters.bits,
            max_norm2=info.parameters.admission_norm2,
        )
        return result, prepared

    def _fail(self, round_number: int, error: Exception) -> None:
        self._failures += 1
        self._missed.add(self._label(round_number, "commit"))
        if self._failures >= MAX_FAILURES:
            if isinstance(error, SteelyardError):
                raise error
            raise InvalidTraining(
                "training_failed", f"the training function failed {MAX_FAILURES} times: {error!r}"
            ) from error
        shown = error.message if isinstance(error, SteelyardError) else repr(error)
        self._client.report(
            f"round {round_number}: training failed ({shown}); waiting for the next round"
        )

    def _get_context(self, info: TaskInfo, round_number: int) -> Context:
        return Context(
            self._task, round_number, info.parameters.rounds, self._config, self._client.address
        )

    def _get_model(self, name: BlobName) -> Model:
        """Return a verified model; the newest one is kept in memory."""
        if name not in self._models:
            self._models = {name: decode_model(self._client.rpc.get_blob(name))}
        return self._models[name]

    # -- evaluating --------------------------------------------------------------------------------
    def _report_metrics(self, info: TaskInfo, round_number: int) -> None:
        """Evaluate the model that a round made and report it, once."""
        client, label = self._client, self._label(round_number, "report")
        if self._evaluate is None or round_number < 1 or label in self._missed:
            return
        if not read_metric_names(self._config):
            return
        state = client.tasks.get_round(self._task, round_number)
        is_member = client.tasks.get_participant(self._task, client.address).position
        if (
            state.state is not RoundState.AGGREGATED
            or not is_member
            or client.tasks.has_reported(self._task, round_number, client.address)
        ):
            self._missed.add(label)
            return
        found = client.journal.get_evaluation(self._task, round_number)
        if found is None:
            found = self._evaluate_model(info, round_number, state.model)
        values = None if found is None else self._encode_metrics(found[1])
        if found is None or not values:
            self._missed.add(label)
            return
        if self._attempt(round_number, "report", self._task, round_number, found[0], values):
            self._missed.add(label)

    def _evaluate_model(
        self, info: TaskInfo, round_number: int, name: BlobName
    ) -> tuple[int, dict[str, float]] | None:
        client = self._client
        assert self._evaluate is not None
        try:
            model = self._get_model(name)
        except NodeUnreachable as error:
            if set(error.codes.values()) != {MISSING}:
                raise
            client.report(f"round {round_number}: no node keeps its model any more; not evaluated")
            return None
        personal = client.journal.get_personal(self._task)
        try:
            result = self._evaluate(
                build_arrays(model, personal), self._get_context(info, round_number)
            )
            metrics = {str(key): float(value) for key, value in result.metrics.items()}
            samples = int(result.samples)
            if samples < 1:
                raise InvalidTraining("training_samples", "an evaluation needs samples >= 1")
        except Exception as error:
            client.report(f"round {round_number}: evaluation failed ({error!r}); not reported")
            return None
        client.journal.add_evaluation(self._task, round_number, samples, metrics)
        client.report(f"round {round_number}: evaluated{format_metrics(metrics)}")
        return samples, metrics

    def _encode_metrics(self, metrics: dict[str, float]) -> list[int]:
        """Return the metrics at the places that the task names, as far as they are known."""
        names = read_metric_names(self._config)
        values: list[int] = []
        for name in names[:MAX_METRICS]:
            value = metrics.get(name)
            if value is None or abs(value) >= 2**63 or value != value:  # noqa: PLR0124 - NaN
                break
            values.append(round(value * METRIC_UNIT))
        return values


def read_metric_names(config: Config) -> tuple[str, ...]:
    """Return which metric stands at which place: the bundle's `metrics`, comma-separated."""
    setting = config.get(METRICS_SETTING)
    if not isinstance(setting, str):
        return DEFAULT_METRICS
    return tuple(name.strip() for name in setting.split(",") if name.strip())


def format_metrics(metrics: dict[str, float] | object) -> str:
    """Return metrics for a line of progress."""
    if not isinstance(metrics, dict) or not metrics:
        return ""
    return ", " + json.dumps({name: round(value, 4) for name, value in metrics.items()})[1:-1]

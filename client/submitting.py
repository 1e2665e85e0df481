"""An update from training to its reveal: trained once, journalled, committed to, shown.

The journal decides: an update that is there is never trained again, and what was committed to is
shown with the same bytes and salt, whatever was killed in between. A missed deadline, or training
that failed, costs that round only; in a task that takes late updates, not even that.
"""

import secrets
from typing import Final

from steelyard.chain.errors import SteelyardError
from steelyard.chain.types import BlobName

from .contracts import compute_commitment, encode_name
from .errors import BlobGone, InvalidTraining, NodeRefused, NodeUnreachable, Reverted
from .faults import describe_fault
from .metrics import format_metrics, read_metrics
from .records import ParticipantInfo, RoundInfo, SubmissionInfo, TaskInfo
from .renewing import compute_readable_until, send_or_renew, send_renewed
from .state import Status, Submission
from .steps import Steps
from .training import Prepared, Result, Trainer, build_arrays, prepare_update
from .transactions import Call, compute_blob_call_gas

MAX_FAILURES: Final = 3
"""Rounds in a row whose training may fail before `run` gives up."""
SALT_BYTES: Final = 32
HOPELESS: Final = ("fedavg: update_", "rounds: differs from", "rounds: samples out of range")
"""Refusals of a reveal that hold for this update whenever it is shown."""
REVEALS_PER_PERIOD: Final = 8
"""Attempts at a reveal while its period lasts; each that fails costs its gas."""
REVEAL_SECONDS: Final = 600
"""A base that expires within this is declared again with the reveal that needs it."""


class Submitter:
    """Trains, commits and reveals for one account in one task."""

    def __init__(self, steps: Steps, train: Trainer) -> None:
        self._steps, self._train = steps, train
        self._failures = 0
        self._reveal_again_at = 0.0
        """After a refusal: before this, by our own clock, the next attempt is not made."""
        self._doomed: dict[int, set[str]] = {}
        """Which nodes say of a round's update that the chain can never take it."""
        self._shown: set[int] = set()
        """Rounds whose update is on the chain, in that round or later."""
        self.training_seconds = 0.0
        """How long the last training took here; 0 before the first."""
        self._revealed: set[int] = set()
        """Rounds in which an update was shown by this object."""

    @property
    def submitted(self) -> int:
        """Updates revealed so far."""
        return len(self._revealed)

    # -- committing --------------------------------------------------------------------------------
    def commit(self, info: TaskInfo, state: RoundInfo, covered: int) -> bool:
        """Train unless the journal has this round's update, and commit to it."""
        steps, number = self._steps, info.round
        if steps.is_missed(number, "commit"):
            return False
        journal = steps.account.journal
        submission = journal.get_submission(steps.task, number)
        if submission is None:
            submission = self._train_round(info, state.base, covered)
        if submission is None:
            return False
        if not self._send_commitment(info, state, submission, "commit"):
            return False
        # Not before: that this round has begun is a node's word until the chain took our call.
        journal.drop_updates(steps.task, number - info.parameters.max_staleness)
        return True

    def commit_late(self, info: TaskInfo, state: RoundInfo, submission: Submission) -> bool:
        """Commit, in this round, to the update of an earlier one."""
        steps, number = self._steps, info.round
        late = number - submission.round
        steps.account.report(
            f"round {number}: the update of round {submission.round} goes in {late} "
            f"round{'s' if late > 1 else ''} late, at a discount"
        )
        return self._send_commitment(info, state, submission, "late")

    def _send_commitment(
        self, info: TaskInfo, state: RoundInfo, submission: Submission, step: str
    ) -> bool:
        """Commit, and keep what the round needs readable. False, for good, if that is refused."""
        steps, number = self._steps, info.round
        account, rounds = steps.account, steps.account.rounds
        commitment = self._compute_commitment(submission, number)
        data = rounds.encode("commit", steps.task, number, submission.round, commitment)
        until = compute_readable_until(info.parameters, state.reveal_ends, state.extensions)
        reveal_gas = compute_reveal_gas(submission)
        try:
            send_or_renew(
                account,
                steps.get_label(number, step),
                Call(rounds.address, data, gas_after=reveal_gas),
                (state.base, submission.base, state.velocity),
                until,
                steps.get_file,
            )
        except Reverted as error:
            steps.miss(number, step, error.reason)
            return False
        except BlobGone as error:
            steps.miss(number, step, error.message)
            return False
        account.report(f"round {number}: {step} is final")
        return True

    def is_trained(self, number: int) -> bool:
        """Whether the journal has the update of a round."""
        return self._steps.account.journal.get_submission(self._steps.task, number) is not None

    def find_late(self, info: TaskInfo, member: ParticipantInfo, covered: int) -> Submission | None:
        """Return the newest update that is ready, was never shown, and may still be."""
        steps, number = self._steps, info.round
        first = max(1, number - info.parameters.max_staleness)
        if steps.is_missed(number, "late"):
            return None
        for origin in range(number - 1, first - 1, -1):
            submission = steps.account.journal.get_submission(steps.task, origin)
            if (
                submission is not None
                and submission.samples <= covered
                and steps.account.journal.get_blob(submission.update) is not None
                and self._may_be_shown(origin, number, member)
            ):
                return submission
        return None

    def _may_be_shown(self, origin: int, number: int, member: ParticipantInfo) -> bool:
        """Whether this account was drawn in `origin` and has not shown that round's update."""
        steps = self._steps
        account, rounds = steps.account, steps.account.rounds
        if origin in self._shown or origin in self._doomed or member.active_from > origin:
            return False
        if not rounds.get_round(steps.task, origin).is_drawn(member.seat):
            return False
        for later in range(origin, number):
            done = rounds.get_submission(steps.task, later, account.address)
            if done.origin == origin and done.update.size:
                self._shown.add(origin)
                return False
        return True

    # -- revealing ---------------------------------------------------------------------------------
    @property
    def is_resting(self) -> bool:
        """Whether a reveal was refused just now, and the next attempt is not made yet."""
        return self._steps.account.clock.now() < self._reveal_again_at

    def reveal(self, info: TaskInfo, state: RoundInfo, done: SubmissionInfo, now: int) -> bool:
        """Show what was committed to, from the journal. False: not yet, or never."""
        steps, number = self._steps, info.round
        account = steps.account
        if steps.is_missed(number, "reveal"):
            return False
        submission = self._find_committed(number, done)
        if submission is None:
            return False
        if steps.is_included(number, "reveal"):
            self._show_again(info, state, submission, now)
            return False
        try:
            self._send_reveal(state, submission, number, now)
        except Reverted as error:
            self._bear_refusal(info, submission, error.reason)
            return False
        except BlobGone as error:
            steps.say(f"round {number}: cannot be revealed: {error.message}")
            return False
        self._revealed.add(number)
        size = submission.update.size
        account.report(f"round {number}: revealed {size} bytes, {submission.samples} samples")
        return True

    def _show_again(
        self, info: TaskInfo, state: RoundInfo, submission: Submission, now: int
    ) -> None:
        """Send the bytes of a reveal that one node had in a block, where another does not show it.

        Either is behind, or says what is not so. Where it is in a block, nothing is sent; where it
        is refused in one, another attempt is due.
        """
        steps, number = self._steps, info.round
        journal = steps.account.journal
        entry = journal.get_entry(steps.get_label(number, "reveal"))
        assert entry is not None, "what is shown again was included"
        steps.say(f"round {number}: revealed; {steps.account.rpc.url} does not show it yet")
        try:
            self._send_reveal(state, submission, number, now)
        except NodeRefused as refusal:
            steps.say(f"round {number}: {refusal.message}")
        except Reverted as error:
            journal.set_status(entry, Status.FAILED, entry.height)
            self._revealed.discard(number)
            self._bear_refusal(info, submission, error.reason)

    def _find_committed(self, number: int, done: SubmissionInfo) -> Submission | None:
        """Return what the chain has a commitment to; None after saying why it cannot be shown."""
        steps = self._steps
        journal = steps.account.journal
        submission = journal.get_submission(steps.task, done.origin)
        if submission is None or self._compute_commitment(submission, number) != done.commitment:
            problem = (
                f"committed by another journal than {journal.directory}; "
                "only that one can reveal it"
            )
        elif journal.get_blob(submission.update) is None:
            problem = f"{journal.directory} lacks the file of the update by now"
        else:
            return submission
        steps.say(f"round {number}: {problem}")
        return None

    def _bear_refusal(self, info: TaskInfo, submission: Submission, reason: str) -> None:
        """Make ready for another attempt, unless the chain can never take this update.

        Sent too early, or too late in a round that is extended: the bond is lost only by giving up.
        One node's word is not enough for that: each is asked for its own, by another attempt.
        """
        steps, rpc = self._steps, self._steps.account.rpc
        if reason.startswith(HOPELESS):
            told = self._doomed.setdefault(submission.round, set())
            told.add(rpc.url)
            if len(told) >= len(set(rpc.urls)):
                steps.miss(info.round, "reveal", reason)
                steps.account.journal.drop_update(submission.update)
                return
        pause = info.parameters.reveal_seconds / REVEALS_PER_PERIOD
        self._reveal_again_at = steps.account.clock.now() + pause
        steps.account.report(
            f"round {info.round}: reveal refused: {reason}; it is tried again while the round lasts"
        )

    def _send_reveal(self, state: RoundInfo, submission: Submission, number: int, now: int) -> None:
        """Show an update; its base, which the chain reads for it, is declared again if need be.

        The commitment made sure of the base for longer than this round may take if all its closes
        together are a day late: only in an extended round there is something to ask.
        """
        steps, account = self._steps, self._steps.account
        update = submission.update
        data = account.rounds.encode(
            "reveal",
            steps.task,
            number,
            submission.round,
            encode_name(update),
            submission.samples,
            submission.salt,
        )
        gas = compute_reveal_gas(submission)
        call = Call(account.rounds.address, data, gas=gas, blobs=(update,))
        read = (submission.base,) if state.extensions else ()
        until, label = now + REVEAL_SECONDS, steps.get_label(number, "reveal")
        send_renewed(account, label, call, read, until, steps.get_file)

    def _compute_commitment(self, submission: Submission, round_number: int) -> bytes:
        account = self._steps.account
        return compute_commitment(
            account.rpc.network.chain_id,
            submission.task,
            round_number,
            submission.round,
            account.address,
            submission.update,
            submission.samples,
            submission.salt,
        )

    # -- training ----------------------------------------------------------------------------------
    def _train_round(self, info: TaskInfo, base: BlobName, covered: int) -> Submission | None:
        """Train on the round's base; journal the update and its salt. None: training failed."""
        steps, number = self._steps, info.round
        account = steps.account
        started = account.clock.now()
        account.report(f"round {number}: training")
        try:
            result, prepared = self.prepare(info, number, base)
            check_covered(steps.task, int(result.samples), covered)
        except NodeUnreachable:
            raise
        except Exception as error:
            self._fail(number, error)
            return None
        self._failures = 0
        submission = Submission(
            steps.task,
            number,
            base,
            prepared.update,
            secrets.token_bytes(SALT_BYTES),
            int(result.samples),
            self._read_metrics(number, result),
        )
        account.journal.add_submission(submission, prepared.data, prepared.personal)
        self.training_seconds = account.clock.now() - started
        scaled = f", scaled by {prepared.scale:.3g} to fit" if prepared.scale < 1 else ""
        account.report(
            f"round {number}: trained in {self.training_seconds:.1f} s, "
            f"delta norm {prepared.norm:.4g}{scaled}{format_metrics(submission.metrics)}"
        )
        return submission

    def _read_metrics(self, number: int, result: Result) -> dict[str, float]:
        """Return what training says of itself; the update does not depend on it."""
        try:
            return read_metrics(result.metrics)
        except InvalidTraining as error:
            self._steps.account.report(f"round {number}: {error.message}; sent without them")
            return {}

    def prepare(self, info: TaskInfo, round_number: int, base: BlobName) -> tuple[Result, Prepared]:
        """Run the training function on a base model and turn the result into an update."""
        steps = self._steps
        account, model = steps.account, steps.get_model(base)
        personal = account.journal.get_personal(steps.task)
        context = steps.get_context(info, round_number)
        try:
            result = self._train(build_arrays(model, personal), context)
        except SteelyardError:
            raise
        except (Exception, SystemExit) as error:
            fault = describe_fault(error, account.journal.directory)
            raise InvalidTraining("training_failed", f"training failed: {fault}") from error
        prepared = prepare_update(
            model,
            base,
            result,
            chain_id=account.rpc.network.chain_id,
            task=steps.task,
            round_number=round_number,
            sender=account.address,
            bits=info.parameters.bits,
            max_norm2=info.parameters.admission_norm2,
        )
        return result, prepared

    def _fail(self, round_number: int, error: Exception) -> None:
        """Give the round up; give the run up if this goes on."""
        self._failures += 1
        self._steps.give_up(round_number, "commit")
        if self._failures >= MAX_FAILURES:
            if isinstance(error, SteelyardError):
                raise error
            fault = describe_fault(error, self._steps.account.journal.directory)
            raise InvalidTraining("training_failed", f"training failed: {fault}") from error
        shown = error.message if isinstance(error, SteelyardError) else repr(error)
        is_told = shown.startswith("training failed")
        failed = shown if is_told else f"training failed ({shown})"
        self._steps.account.report(f"round {round_number}: {failed}; waiting for the next round")


def check_covered(task: int, samples: int, covered: int) -> None:
    """Raises InvalidTraining `samples_not_covered` for an update of more rows than were promised.

    The number is fixed by joining: adding stake fills up what a lost bond took, and no more.
    """
    if samples > covered:
        raise InvalidTraining(
            "samples_not_covered",
            f"{samples} samples were used and the stake covers {covered}; train on at most "
            f"{covered}, or promise more: `steelyard client leave {task}`, then "
            f"`steelyard client join {task} --samples {samples}`",
        )


def compute_reveal_gas(submission: Submission) -> int:
    """Return a gas limit for showing an update."""
    update = submission.update
    return compute_blob_call_gas((update,), (update, submission.base), values=update.size)

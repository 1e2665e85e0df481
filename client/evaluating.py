"""Evaluating models on one's own data, when the task asks for it, and reporting what came out."""

from dataclasses import dataclass

from steelyard.chain.errors import SteelyardError
from steelyard.chain.types import BlobName

from .errors import InvalidTraining, NodeRefused, NodeUnreachable
from .events import MAX_LOG_BLOCKS, check_height, get_events
from .faults import describe_fault
from .metrics import encode_metrics, format_metrics, read_metric_names
from .records import TaskInfo
from .rpc import MISSING, Rpc, as_int
from .steps import Steps
from .training import Trainer, build_arrays

STEP = "report"


@dataclass(frozen=True, slots=True)
class Request:
    """The task asks for reports on the model that a round made, until then."""

    round: int
    model: BlobName
    ends: int


class Evaluator:
    """Follows what a task asks for, evaluates each model once, reports once."""

    def __init__(self, steps: Steps, evaluate: Trainer | None) -> None:
        self._steps, self._evaluate = steps, evaluate
        self._requests: dict[int, Request] = {}
        self._next_height = 0

    def report(self, info: TaskInfo, head: int, now: int) -> None:
        """Report on every model that the task still asks about. `head`: heights up to here."""
        if self._evaluate is None:
            return
        self._follow(info, head)
        for request in list(self._requests.values()):
            if now < request.ends and not self._steps.is_missed(request.round, STEP):
                self._report_one(info, request)
            if self._steps.is_missed(request.round, STEP) or now >= request.ends:
                del self._requests[request.round]

    def _follow(self, info: TaskInfo, head: int) -> None:
        """Take note of what was asked for since the last look, at first since the publication."""
        account, task = self._steps.account, self._steps.task
        if not self._next_height and check_height(account.rpc, head) > MAX_LOG_BLOCKS:
            published = info.join_ends - info.parameters.join_seconds
            self._next_height = find_height(account.rpc, published, head)
        events = get_events(
            account.rpc,
            task,
            ["EvaluationRequested"],
            first_height=self._next_height,
            last_height=head,
        )
        self._next_height = max(self._next_height, head + 1)
        for event in events:
            values = event.values
            self._requests[values["round"]] = Request(
                values["round"], values["model"], values["ends"]
            )

    def _report_one(self, info: TaskInfo, request: Request) -> None:
        """Evaluate one model unless the journal has it, and report."""
        steps, number = self._steps, request.round
        account = steps.account
        member = account.tasks.get_participant(steps.task, account.address)
        if not member.position or account.rounds.has_reported(steps.task, number, account.address):
            steps.give_up(number, STEP)
            return
        names = self._fetch_names(number)
        found = account.journal.get_evaluation(steps.task, number) if names else None
        if names and found is None:
            found = self._evaluate_model(info, request)
        values = [] if found is None else encode_metrics(found[1], names)
        if found is not None and values:
            steps.attempt(number, STEP, "report", steps.task, number, found[0], values)
        steps.give_up(number, STEP)

    def _fetch_names(self, number: int) -> tuple[str, ...]:
        """Return the task's metrics; none if nobody keeps its bundle. Raises NodeUnreachable."""
        try:
            return read_metric_names(self._steps.config)
        except NodeUnreachable as error:
            if not is_missing(error):
                raise
            self._steps.account.report(
                f"round {number}: no node keeps the task's bundle any more; not evaluated"
            )
            return ()

    def _evaluate_model(
        self, info: TaskInfo, request: Request
    ) -> tuple[int, dict[str, float]] | None:
        steps, number = self._steps, request.round
        account = steps.account
        assert self._evaluate is not None
        try:
            model = steps.get_model(request.model)
        except NodeUnreachable as error:
            if not is_missing(error):
                raise
            account.report(f"round {number}: no node keeps its model any more; not evaluated")
            return None
        except SteelyardError as error:  # the request may be a node's invention
            account.report(f"round {number}: no model to evaluate: {error.message}")
            return None
        personal = account.journal.get_personal(steps.task)
        try:
            result = self._evaluate(build_arrays(model, personal), steps.get_context(info, number))
            metrics = {str(key): float(value) for key, value in result.metrics.items()}
            samples = int(result.samples)
            if samples < 1:
                raise InvalidTraining("training_samples", "an evaluation needs samples >= 1")
        except SteelyardError as error:
            account.report(f"round {number}: evaluation failed: {error.message}; not reported")
            return None
        except (Exception, SystemExit) as error:
            fault = describe_fault(error, account.journal.directory)
            account.report(f"round {number}: evaluation failed: {fault}; not reported")
            return None
        account.journal.add_evaluation(steps.task, number, samples, metrics)
        account.report(f"round {number}: evaluated{format_metrics(metrics)}")
        return samples, metrics


def is_missing(error: NodeUnreachable) -> bool:
    """Whether every node answered, and none has the blob."""
    return set(error.codes.values()) == {MISSING}


def find_height(rpc: Rpc, timestamp: int, head: int) -> int:
    """Return the lowest height whose block is not older, `head` if there is none below.

    Raises: NodeRefused `rpc_answer`; NodeUnreachable.
    """
    low, high = 0, head
    while low < high:
        middle = (low + high) // 2
        block = rpc.call("eth_getBlockByNumber", hex(middle), False)
        if not isinstance(block, dict):
            raise NodeRefused("rpc_answer", f"{rpc.url} shows no block {middle} below its head")
        if as_int(block.get("timestamp")) < timestamp:
            low = middle + 1
        else:
            high = middle
    return low

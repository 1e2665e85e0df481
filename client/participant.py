"""The participant: joins a task, trains each round on its own data, submits, evaluates, is paid.

`run` is a loop without memory. Every turn reads the chain, compares it with the journal, does the
one thing that is due and waits. So a process that is killed anywhere continues where the chain
says it stands, with the bytes that the journal holds.
"""

import time
from dataclasses import dataclass, replace
from functools import cache, partial
from math import isqrt
from pathlib import Path
from typing import Final

from steelyard.chain.cid import compute_blob_name, encode_cid
from steelyard.chain.errors import SteelyardError
from steelyard.chain.types import BlobName

from .account import Account
from .amounts import format_coins
from .bundle import Config, decode_bundle, read_config
from .closing import ClosedRound, close_round
from .contracts import encode_name
from .errors import ClientError, InvalidTraining
from .explain import Explanation, explain_round
from .listing import MOST_TASKS, OpenTask, Standing, get_standing, list_open_tasks, list_rounds
from .loading import load_app
from .metrics import read_metrics
from .outbox import Receipt
from .patience import Patience
from .records import (
    FRACTION_UNIT,
    MAX_ROUNDS,
    NO_BLOB,
    ParticipantInfo,
    RoundInfo,
    TaskInfo,
    TaskState,
)
from .rounds import Turn, compute_covered
from .sending import carry_out, check_seen, name_order
from .submitting import check_covered
from .training import NORM_UNIT, Result, Trainer
from .transactions import Call, compute_blob_call_gas

MAX_STATEMENT_BYTES: Final = 65_536
"""Of an application: a longer one is neither sent nor fetched."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What `run` has done. Amounts in wei."""

    task: int
    state: TaskState
    rounds: int
    submitted: int
    claimed: int
    stake: int
    """This account's own, still in the task; `leave` returns it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a dry run found; nothing was sent."""

    samples: int
    metrics: dict[str, float]
    norm: float
    scale: float
    update_bytes: int
    update_cid: str
    seconds: float
    limit: float = 0.0
    """The task's admission norm."""
    refusal: str = ""
    """Why `run` would not send this update, in a round that begins now; empty: it would."""


class Client(Account):
    """A participant. Decorate a function with `train` (and one with `evaluate`), then `run`."""

    _train: Trainer | None = None
    _evaluate: Trainer | None = None

    def train(self, function: Trainer) -> Trainer:
        """Decorate the training function: (arrays, context) -> Result(arrays, samples, metrics)."""
        self._train = function
        return function

    def evaluate(self, function: Trainer) -> Trainer:
        """Decorate the evaluation function: (arrays, context) -> Result(samples=…, metrics=…)."""
        self._evaluate = function
        return function

    def use(self, app: str | Path) -> None:
        """Take the functions from your own code: a Python file, or Flower's `pkg.module:app`.

        Raises: ClientError as `loading.load_app`, which runs that code.
        """
        found = load_app(app)
        if found.train is not None:
            self._train = found.train
        if found.evaluate is not None:
            self._evaluate = found.evaluate

    # -- looking -----------------------------------------------------------------------------------
    def list_tasks(self, most: int = MOST_TASKS) -> list[OpenTask]:
        """Return those of the newest tasks that this account may join, may apply to, or is in."""
        return list_open_tasks(self.rpc, self.address, most)

    def get_status(self, task: int) -> Standing:
        """Return where this account stands in a task. Raises ClientError `task_unknown`."""
        return get_standing(self.rpc, task, self.address)

    def get_rounds(self, task: int) -> list[RoundInfo]:
        """Return a task's rounds so far, round 1 first. Raises ClientError `task_unknown`."""
        return list_rounds(self.rpc, task)

    def explain(self, task: int, round_number: int) -> Explanation:
        """Return what happened in a round, with everybody's arithmetic. Raises: as
        `explain_round`.
        """
        return explain_round(self.rpc, task, round_number)

    # -- joining and leaving -----------------------------------------------------------------------
    def apply(self, task: int, statement: str = "") -> Receipt:
        """Ask to be invited to a task, with a statement that everybody can read.

        Raises: ClientError `statement_size`; Reverted.
        """
        data = statement.encode()
        if len(data) > MAX_STATEMENT_BYTES:
            raise ClientError(
                "statement_size",
                f"a statement has at most {MAX_STATEMENT_BYTES} bytes, this one has {len(data)}",
            )
        label = self.get_label(f"task/{task}/apply")
        if not data:
            return self.send(label, "apply", task, encode_name(NO_BLOB))
        name = compute_blob_name(data)
        call = Call(
            self.tasks.address,
            self.tasks.encode("apply", task, encode_name(name)),
            gas=compute_blob_call_gas((name,), (), values=0),
            blobs=(name,),
        )
        return self.outbox.send(label, call, {name: data})

    def join(self, task: int, samples: int, stake: int | None = None) -> Receipt | None:
        """Join with up to `samples` rows a round, staking `stake` wei or the least for them.

        What the publisher has put down for this account counts and is not sent again. None when
        this account has joined already. Raises: Reverted, ClientError `stake_low`,
        `reputation_low`.
        """
        self.outbox.flush()
        if self.tasks.get_participant(task, self.address).position:
            return None
        info = self.tasks.get_task(task)
        self._check_reputation(info)
        least = info.parameters.compute_stake(samples)
        stake = least if stake is None else stake
        if stake < least:
            raise ClientError(
                "stake_low",
                f"{samples} samples need a stake of {format_coins(least)}; "
                "stake more or claim fewer",
            )
        value = max(0, stake - self.tasks.get_sponsorship(task, self.address))
        label = self.get_label(f"task/{task}/join")
        receipt = self.send(label, "join", task, samples, value=value)
        (event,) = [e for e in self.tasks.decode_logs(receipt.logs) if e.name == "Joined"]
        sponsored = event.values["sponsored"]
        given = f", {format_coins(sponsored)} of it from the publisher" if sponsored else ""
        self.report(
            f"joined task {task} with {samples} samples, "
            f"stake {format_coins(event.values['stake'])}{given}"
        )
        return receipt

    def _check_reputation(self, info: TaskInfo) -> None:
        known = self.tasks.get_reputation(info.publisher, self.address)
        if known < info.parameters.min_reputation:
            raise ClientError(
                "reputation_low",
                f"this account has a reputation of {known / FRACTION_UNIT:.3f} with the publisher, "
                f"and the task wants {info.parameters.min_reputation / FRACTION_UNIT:.3f}; "
                "it rises with each accepted update in the publisher's other tasks",
            )

    def add_stake(self, task: int, amount: int | None = None) -> int:
        """Add `amount` wei to the stake, or what is missing for the rows that were promised.

        Killed before it returns and called again, it adds nothing twice. After that, the same call
        with an `amount` adds as many again. Returns the wei that were added, 0 if nothing was
        missing. Raises: ClientError `not_joined`, `sending_unclear`; NodeRefused `node_behind`;
        Reverted.
        """
        with self.told.hold():
            added = self._fill_stake(task) if amount is None else self._raise_stake(task, amount)
            if added:
                self.report(f"added {format_coins(added)} to the stake in task {task}")
        return added

    def _fill_stake(self, task: int) -> int:
        """Add what the chain shows to be missing; return the wei."""
        self.outbox.flush()
        check_seen(self)
        member = self._get_membership(task)
        terms = self.tasks.get_task(task).parameters
        amount = max(0, terms.compute_stake(member.samples) - member.stake)
        if amount:
            call = self.build_call("add_stake", task, value=amount)
            # Where its receipt is lost, only the chain can say whether it is missing still.
            call = replace(call, is_traceless=True)
            self.outbox.send(self.get_label(f"task/{task}/missing/{amount}"), call)
        return amount

    def _raise_stake(self, task: int, amount: int) -> int:
        """Add wei, whatever is there; return them."""
        if not amount:
            self._get_membership(task)
            return 0
        call = self.build_call("add_stake", task, value=amount)
        order = name_order(f"task/{task}/stake/{amount}")
        carry_out(self, order, call, lambda: self._get_membership(task))
        return amount

    def _get_membership(self, task: int) -> ParticipantInfo:
        member = self.tasks.get_participant(task, self.address)
        if not member.position:
            raise ClientError("not_joined", f"this account is not in task {task}; join it first")
        return member

    def claim(self, task: int) -> int:
        """Fetch what this account earned in a task; return the wei that were paid, 0 for none."""
        self.outbox.flush()
        amount = self.tasks.get_claimable(task, self.address)
        if amount:
            self.send(self.get_label(f"task/{task}/claim"), "claim", task)
            self.report(f"claimed {format_coins(amount)}")
        return amount

    def leave(self, task: int) -> int:
        """Give up the place in a task; return the stake that came back, in wei, 0 for none.

        What the publisher had put down goes back to the publisher.
        """
        self.outbox.flush()
        member = self.tasks.get_participant(task, self.address)
        stake = member.stake - member.sponsored
        if member.position:
            self.send(self.get_label(f"task/{task}/leave"), "leave", task)
            self.report(f"left task {task}, stake {format_coins(stake)} returned")
        return stake

    def close_round(self, task: int) -> ClosedRound:
        """Close the round in progress if it is due, with all its pages; anybody may.

        What that costs is credited, and the task's bounty: `claim` fetches both. Raises: as
        `closing.close_round`.
        """
        return close_round(self, task)

    # -- running -----------------------------------------------------------------------------------
    def run(self, task: int, samples: int | None = None, app: str | Path | None = None) -> Summary:
        """Take part until the task ends, then claim. `samples`: join first if not yet in.

        `app`: as `use`, in place of decorated functions. Raises: ClientError `not_joined`,
        `no_trainer`, as `use`; InvalidTraining after MAX_FAILURES rounds in a row; NodeRefused for
        what PATIENCE_SECONDS of waiting and no other node cured. Unreachable nodes are waited for;
        between a commitment and the end of its reveals, so is everything.
        """
        if app is not None:
            self.use(app)
        if self._train is None:
            raise ClientError("no_trainer", "decorate your training function with @client.train")
        turn: Turn | None = None
        patience = Patience(self, task)
        while True:
            try:
                if turn is None:
                    turn = self._begin(task, samples, self._train)
                elif turn.is_over:
                    return self._conclude(task, turn)
                else:
                    turn.take()
                patience.reset()
            except SteelyardError as error:
                try:
                    patience.bear(error, turn)
                except InvalidTraining:
                    self._tell_stake(task)
                    raise
            self.clock.sleep(self.poll_seconds)

    def _begin(self, task: int, samples: int | None, train: Trainer) -> Turn:
        """Join unless this account is in, say what the task is, and make ready for its rounds."""
        info = self.tasks.get_task(task)
        member = self.tasks.get_participant(task, self.address)
        fetch_config = cache(partial(self._read_config, info.bundle))
        if not info.is_over and not member.position:
            fetch_config()  # no stake for a task whose settings nobody has
            if samples is None:
                raise ClientError(
                    "not_joined",
                    f"this account has not joined task {task}; give run(samples=…), or run "
                    f"`steelyard client join {task} --samples N`",
                )
            self.join(task, samples)
        self.report(
            f"task {info.number} {info.name!r}: {info.parameters.rounds} rounds; "
            "open mode: updates are PUBLIC, rows never leave this machine"
        )
        return Turn(self, task, train, self._evaluate, fetch_config)

    def _conclude(self, task: int, turn: Turn) -> Summary:
        claimed = self.claim(task)
        self.journal.drop_updates(task, MAX_ROUNDS + 1)
        info = self.tasks.get_task(task)
        stake = self._tell_stake(task)
        state = info.state
        self.report(f"task {task} {state.name.lower()} after round {info.round}")
        return Summary(task, state, info.round, turn.submitted, claimed, stake)

    def _tell_stake(self, task: int) -> int:
        """Say what is still in after a run, and return it: a failure, too, leaves it there."""
        member = self.tasks.get_participant(task, self.address)
        stake = member.stake - member.sponsored
        if stake:
            self.report(
                f"stake {format_coins(stake)} is still in task {task}: "
                f"`steelyard client leave {task}` returns it"
            )
        return stake

    def dry_run(self, task: int, app: str | Path | None = None) -> Trial:
        """Train one round on the newest model and prepare the update; send nothing.

        `app`: as in `run`. Raises: ClientError `no_trainer`, as `use`; InvalidTraining.
        """
        if app is not None:
            self.use(app)
        if self._train is None:
            raise ClientError("no_trainer", "decorate your training function with @client.train")
        started = time.monotonic()
        info = self.tasks.get_task(task)
        fetch_config = cache(partial(self._read_config, info.bundle))
        turn = Turn(self, task, self._train, self._evaluate, fetch_config)
        result, prepared = turn.prepare(info, max(info.round, 1), info.model)
        return Trial(
            int(result.samples),
            self._read_metrics(result),
            prepared.norm,
            prepared.scale,
            len(prepared.data),
            encode_cid(prepared.update),
            time.monotonic() - started,
            isqrt(info.parameters.admission_norm2) / NORM_UNIT,
            self._find_refusal(info, int(result.samples)),
        )

    def _read_metrics(self, result: Result) -> dict[str, float]:
        """Return the metrics of a result; without them the update would be sent all the same."""
        try:
            return read_metrics(result.metrics)
        except InvalidTraining as error:
            self.report(error.message)
            return {}

    def _find_refusal(self, info: TaskInfo, samples: int) -> str:
        """Return why an update of so many rows would not be sent; nothing before joining."""
        member = self.tasks.get_participant(info.number, self.address)
        if not member.position:
            return ""
        try:
            check_covered(info.number, samples, compute_covered(info.parameters, member))
        except InvalidTraining as error:
            return str(error)
        return ""

    def _read_config(self, bundle: BlobName) -> Config:
        if bundle == NO_BLOB:
            return {}
        return read_config(decode_bundle(self.rpc.get_blob(bundle)))

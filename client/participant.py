"""The participant: joins a task, trains each round on its own data, submits, evaluates, is paid.

`run` is a loop without memory. Every turn reads the chain, compares it with the journal, does the
one thing that is due and waits. So a process that is killed anywhere continues where the chain
says it stands, with the bytes that the journal holds.
"""

import time
from dataclasses import dataclass

from steelyard.chain.cid import encode_cid
from steelyard.chain.types import BlobName

from .account import Account
from .amounts import format_coins
from .bundle import Config, decode_bundle, read_config
from .errors import ClientError, NodeUnreachable, TransactionPending
from .outbox import Receipt
from .records import NO_BLOB, TaskInfo, TaskState
from .rounds import Turn
from .training import Trainer


@dataclass(frozen=True, slots=True)
class Summary:
    """What `run` has done. Amounts in wei."""

    task: int
    state: TaskState
    rounds: int
    submitted: int
    claimed: int
    stake: int
    """Still in the task; `leave` returns it."""


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

    # -- joining and leaving -----------------------------------------------------------------------
    def join(self, task: int, samples: int, stake: int | None = None) -> Receipt | None:
        """Join with up to `samples` rows a round, staking `stake` wei or the least for them.

        None when this account has joined already. Raises: Reverted, ClientError.
        """
        self.outbox.flush()
        if self.tasks.get_participant(task, self.address).position:
            return None
        parameters = self.tasks.get_task(task).parameters
        least = parameters.base_stake + samples * parameters.stake_per_sample
        stake = least if stake is None else stake
        if stake < least:
            raise ClientError(
                "stake_low",
                f"{samples} samples need a stake of {format_coins(least)}; "
                "stake more or claim fewer",
            )
        label = self.get_label(f"task/{task}/join")
        receipt = self.send(label, "join", task, samples, value=stake)
        self.report(f"joined task {task} with {samples} samples, stake {format_coins(stake)}")
        return receipt

    def claim(self, task: int) -> int:
        """Fetch what this account earned in a task; return the wei that were paid, 0 for none."""
        self.outbox.flush()
        amount = self.tasks.get_claimable(task, self.address)
        if amount:
            self.send(self.get_label(f"task/{task}/claim"), "claim", task)
            self.report(f"claimed {format_coins(amount)}")
        return amount

    def leave(self, task: int) -> int:
        """Give up the place in a task; return the stake that came back, in wei, 0 for none."""
        self.outbox.flush()
        stake = self.tasks.get_participant(task, self.address).stake
        if self.tasks.get_participant(task, self.address).position:
            self.send(self.get_label(f"task/{task}/leave"), "leave", task)
            self.report(f"left task {task}, stake {format_coins(stake)} returned")
        return stake

    # -- running -----------------------------------------------------------------------------------
    def run(self, task: int, samples: int | None = None) -> Summary:
        """Take part until the task ends, then claim. `samples`: join first if not yet in.

        Raises: ClientError `not_joined`, `no_trainer`; InvalidTraining after MAX_FAILURES rounds
        in a row; NodeRefused for what waiting cannot cure. Unreachable nodes are waited for.
        """
        if self._train is None:
            raise ClientError("no_trainer", "decorate your training function with @client.train")
        info = self.tasks.get_task(task)
        member = self.tasks.get_participant(task, self.address)
        if not info.is_over and not member.position:
            if samples is None:
                raise ClientError(
                    "not_joined",
                    f"this account has not joined task {task}; give run(samples=…), or run "
                    f"`steelyard client join {task} --samples N`",
                )
            self.join(task, samples)
        self._warn(info)
        turn = Turn(self, task, self._train, self._evaluate, self._read_config(info.bundle))
        while True:
            try:
                if turn.is_over:
                    return self._conclude(task, turn)
                turn.take()
            except (NodeUnreachable, TransactionPending) as error:
                turn.say(f"waiting: {error.message}")
            self.clock.sleep(self.poll_seconds)

    def _conclude(self, task: int, turn: "Turn") -> Summary:
        claimed = self.claim(task)
        info = self.tasks.get_task(task)
        stake = self.tasks.get_participant(task, self.address).stake
        if stake:
            self.report(f"stake {format_coins(stake)} is still in: client.leave({task}) returns it")
        state = info.state
        self.report(f"task {task} {state.name.lower()} after round {info.round}")
        return Summary(task, state, info.round, turn.submitted, claimed, stake)

    def dry_run(self, task: int) -> Trial:
        """Train one round on the newest model and prepare the update; send nothing."""
        if self._train is None:
            raise ClientError("no_trainer", "decorate your training function with @client.train")
        started = time.monotonic()
        info = self.tasks.get_task(task)
        turn = Turn(self, task, self._train, self._evaluate, self._read_config(info.bundle))
        result, prepared = turn.prepare(info, max(info.round, 1), info.model)
        return Trial(
            int(result.samples),
            dict(result.metrics),
            prepared.norm,
            prepared.scale,
            len(prepared.data),
            encode_cid(prepared.update),
            time.monotonic() - started,
        )

    def _read_config(self, bundle: BlobName) -> Config:
        if bundle == NO_BLOB:
            return {}
        return read_config(decode_bundle(self.rpc.get_blob(bundle)))

    def _warn(self, info: TaskInfo) -> None:
        self.report(
            f"task {info.number} {info.name!r}: {info.parameters.rounds} rounds; "
            "open mode: updates are PUBLIC, rows never leave this machine"
        )

"""The demo's plot: start validators, publish, train in hospitals, kill one, pay, audit, tamper.

Every actor is what a user would run: validators, hospitals and auditors are processes that
share nothing but the nodes' addresses. This program plays the organisation, and as the teller it
knows all rows, to compare with what pooling them would have given.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

import numpy as np
import torch

from steelyard.chain.cid import encode_cid
from steelyard.chain.rules import Flag

from ..amounts import coins
from ..errors import ClientError
from ..events import get_events
from ..keys import create_key
from ..organisation import Organisation, PublishedTask
from ..terms import Task
from ..torch import dump, load
from . import heart, training
from .auditors import audit_all
from .heart import Patients, Row
from .outage import Outage
from .processes import Processes, Running
from .report import Accuracies, Intrusion, Money, Recovery, Story
from .stage import Options, Say, Stage, format_line
from .validators import Validators

TASK_NAME: Final = "heart disease"
INTRUDER: Final = "intruder"
REWARD: Final = coins(500)
FUND_COINS: Final = 10_000
STAKE_PER_SAMPLE: Final = coins("0.01")
ADMISSION_NORM: Final = 16.0
FLIP: Final = 4.0
TASK_SECONDS: Final = 300.0
POLL_SECONDS: Final = 0.2
RULES: Final = ("fedavg", "multi_krum")
"""What the intruder is tried against."""
BYZANTINE: Final = 1
KEY_SCRYPT_N: Final = 2**12
"""The demo's password is random, so each process may spend less than a second on each key."""
BUNDLE_FILES: Final = ("heart.py", "training.py", "hospital.py")


@dataclass(frozen=True, slots=True)
class Ward:
    """One split of the data: each hospital's rows and everybody's held-out patients together."""

    seed: int
    rows: Mapping[str, tuple[list[Row], list[Row]]]
    training: Mapping[str, Patients]
    held_out: Patients


def run_demo(processes: Processes, options: Options, say: Say) -> list[Story]:
    """Run every split and return what happened. Raises ClientError `demo_process`."""
    torch.set_num_threads(1)  # for 62 parameters more threads only wait for each other
    stage = prepare_stage(processes, options, say)
    with stage.organisation:
        stories = []
        for number in range(options.splits):
            if options.splits > 1:
                stage.tell(f"split       {number + 1} of {options.splits}")
            ward = prepare_ward(options.seed + number)
            stories.append(run_split(stage, ward, with_intruder=number == 0))
        return stories


# -- setting the stage -----------------------------------------------------------------------------
def prepare_stage(processes: Processes, options: Options, say: Say) -> Stage:
    """Make keys, start the validators, open the organisation's account."""
    started = time.monotonic()
    names = ["organisation", *heart.HOSPITALS, INTRUDER]
    paths = [processes.directory / "keys" / f"{slug(name)}.json" for name in names]
    made = [create_key(path, processes.password, scrypt_n=KEY_SCRYPT_N) for path in paths]
    addresses = {name: f"0x{raw.hex()}" for name, raw in zip(names, made, strict=True)}
    funds = [f"{raw}={FUND_COINS}" for raw in addresses.values()]
    say(format_line(started, "starting    validators"))
    validators = Validators.start(
        processes,
        funds,
        patience=options.patience,
        tell=lambda line: say(format_line(started, f"            {line}")),
    )
    organisation = Organisation(
        validators.urls,
        key=paths[0],
        state=processes.directory / "organisation",
        password=processes.password,
        report=lambda _line: None,
        poll_seconds=POLL_SECONDS,
    )
    stage = Stage(processes, validators, organisation, addresses, options, say, started)
    count = len(validators.urls)
    stage.tell(
        f"validators  {count}/{count} finalizing, height {validators.height}     "
        f"node {stage.url}/health"
    )
    return stage


def prepare_ward(seed: int) -> Ward:
    """Split the rows of each hospital."""
    rows = heart.split_rows(heart.read_rows(), seed)
    held_out = [heart.encode_rows(test) for _, test in rows.values()]
    return Ward(
        seed,
        rows,
        {name: heart.encode_rows(train) for name, (train, _) in rows.items()},
        Patients(
            np.concatenate([part.features for part in held_out]),
            np.concatenate([part.labels for part in held_out]),
        ),
    )


# -- one split -------------------------------------------------------------------------------------
def run_split(stage: Stage, ward: Ward, *, with_intruder: bool) -> Story:
    """Publish, let the hospitals train, settle, audit; the intruder comes in tasks of its own."""
    hospitals = len(heart.HOSPITALS)
    rounds = stage.options.rounds
    attacked_rounds = max(1, rounds // 2)  # by then the damage is done
    honest = publish(stage, ward, "fedavg", clients=hospitals, rounds=rounds, metrics=("accuracy",))
    attacked = (
        [
            publish(stage, ward, rule, clients=hospitals + 1, rounds=attacked_rounds)
            for rule in RULES
        ]
        if with_intruder
        else []
    )
    tell_task(stage, honest)
    sites = start_hospitals(stage, ward, [honest, *attacked])
    if attacked:
        sites |= start_intruder(stage, ward, attacked)
    recovery = follow(stage, honest, with_kill=with_intruder)
    for task in attacked:
        follow_quietly(stage, task)
    paid = collect_payments(stage, sites, honest)
    verdicts = audit_all(stage, honest)
    story = Story(
        rounds=rounds,
        accuracies=compare(stage, ward, honest),
        money=settle(honest, paid),
        audit=verdicts[0],
        tampered=verdicts[1],
        forged=verdicts[2],
        recovery=recovery,
        intrusion=describe_intrusion(stage, ward, attacked) if attacked else None,
    )
    for task in attacked:
        task.refund()
    return story


def publish(
    stage: Stage,
    ward: Ward,
    rule: str,
    *,
    clients: int,
    rounds: int,
    metrics: Sequence[str] = (),
) -> PublishedTask:
    """Publish one task; the bundle is the program that the hospitals run."""
    bundle = stage.directory / "bundle"
    if not bundle.exists():
        bundle.mkdir()
        for name in BUNDLE_FILES:
            shutil.copy(Path(__file__).with_name(name), bundle / name)
    members = [*heart.HOSPITALS, INTRUDER][:clients]
    return stage.organisation.publish(
        Task(
            name=TASK_NAME,
            model=dump(training.build_net()),
            bundle=bundle,
            config={"local_epochs": training.LOCAL_EPOCHS},
            metrics=metrics,
            rule=rule,
            byzantine=BYZANTINE if rule == "multi_krum" else None,
            rounds=rounds,
            min_clients=clients,
            max_clients=clients,
            join_seconds=int(TASK_SECONDS),
            round_seconds=int(TASK_SECONDS),
            reward=REWARD,
            stake_per_sample=STAKE_PER_SAMPLE,
            admission_norm=ADMISSION_NORM,
            allow=[stage.addresses[name] for name in members],
            reference=f"split {ward.seed}",
        )
    )


def tell_task(stage: Stage, task: PublishedTask) -> None:
    """Say what was published, and what that means for the patients."""
    info = task.get_info()
    parameters = task.model().decoded.manifest.parameters
    stage.tell(
        f"task {task.number:<6} {info.name} · {parameters} parameters · fedavg · "
        f"pool {REWARD // coins(1)} · bundle {encode_cid(info.bundle)}"
    )
    stage.tell(f"hospitals   {', '.join(heart.HOSPITALS)}: a process each, with its own rows only")
    stage.say(
        f"      open mode: updates are PUBLIC; patient rows sent: 0 "
        f"(only {parameters} numbers leave a hospital)"
    )


def start_hospitals(stage: Stage, ward: Ward, tasks: Sequence[PublishedTask]) -> dict[str, Running]:
    """Give each hospital its rows and start its process."""
    return {
        name: start_site(stage, ward, name, index, name, tasks)
        for index, name in enumerate(heart.HOSPITALS)
    }


def start_intruder(stage: Stage, ward: Ward, tasks: Sequence[PublishedTask]) -> dict[str, Running]:
    """Start the fifth client: it has the first hospital's rows and sends its training backwards."""
    index = len(heart.HOSPITALS)
    flip = ("--flip", str(FLIP))
    rows_of = heart.HOSPITALS[0]
    return {INTRUDER: start_site(stage, ward, INTRUDER, index, rows_of, tasks, flip)}


def start_site(
    stage: Stage,
    ward: Ward,
    name: str,
    index: int,
    rows_of: str,
    tasks: Sequence[PublishedTask],
    extra: Sequence[str] = (),
) -> Running:
    """Lay out one site's directory and start its process."""
    site = stage.directory / f"split-{ward.seed}" / slug(name)
    site.mkdir(parents=True)
    for part, rows in zip(("train", "test"), ward.rows[rows_of], strict=True):
        heart.write_rows(site / f"{part}.csv", rows)
    shutil.copy(stage.directory / "keys" / f"{slug(name)}.json", site / "key.json")
    numbers = [word for task in tasks for word in ("--task", str(task.number))]
    return stage.processes.start(
        f"split-{ward.seed}-{slug(name)}",
        [
            *("-m", "steelyard.client.demo.hospital", "--site", str(site)),
            *(word for url in rotate(stage.validators.urls, index) for word in ("--node", url)),
            *("--index", str(index), "--seed", str(ward.seed), *numbers, *extra),
        ],
    )


# -- following ------------------------------------------------------------------------------------
def follow(stage: Stage, task: PublishedTask, *, with_kill: bool) -> Recovery | None:
    """Say one line for each round as its hospitals have evaluated the model it made."""
    stage.say(" round  in   accuracy  saturated  height  model")
    made: dict[int, tuple[str, int]] = {}
    reports: dict[int, int] = {}
    outage = Outage(stage) if with_kill else None

    def tell(number: int) -> None:
        remark = "" if outage is None else outage.process_round(number)
        tell_round(stage, task, number, *made[number], remark)

    for event in task.watch():
        stage.processes.check_alive()
        if event.kind == "Aggregated":
            made[event.round] = (encode_cid(event.values["model"]), event.height)
        elif event.kind == "Reported":
            reports[event.round] = reports.get(event.round, 0) + 1
            if reports[event.round] == len(heart.HOSPITALS):
                tell(event.round)
    number = stage.options.rounds
    wait_for_reports(stage, task, number)
    tell(number)
    recovery = None if outage is None else outage.finish()
    if recovery is not None:
        stage.tell(f"recovery    {recovery.description}")
    return recovery


def wait_for_reports(
    stage: Stage, task: PublishedTask, number: int, seconds: float = TASK_SECONDS
) -> None:
    """Wait until all hospitals have evaluated a round's model.

    Raises: ClientError `demo_process` if one has not in the time that it had, as if it had ended.
    """
    deadline = time.monotonic() + seconds
    while task.organisation.rounds.get_metrics(task.number, number).reports < len(heart.HOSPITALS):
        stage.processes.check_alive()
        if time.monotonic() > deadline:
            raise ClientError(
                "demo_process", f"not all hospitals evaluated round {number} in {seconds:.0f} s"
            )
        time.sleep(POLL_SECONDS)


def tell_round(
    stage: Stage, task: PublishedTask, number: int, cid: str, height: int, remark: str
) -> None:
    """Say how a round went; the accuracy is what the hospitals report of their own patients."""
    rounds = task.organisation.rounds
    state = rounds.get_round(task.number, number)
    (accuracy,) = rounds.get_metrics(task.number, number).means
    drawn, _, revealed = state.counts
    stage.say(
        f" {number:>5}  {revealed}/{drawn}  {accuracy:>7.3f}  {state.saturated:>8}  "
        f"{height:>7}  {cid}{remark}"
    )


def follow_quietly(stage: Stage, task: PublishedTask) -> None:
    """Return when the task is over."""
    for _event in task.watch():
        stage.processes.check_alive()


# -- the end ---------------------------------------------------------------------------------------
def collect_payments(
    stage: Stage, sites: Mapping[str, Running], task: PublishedTask
) -> dict[str, int]:
    """Wait for the sites to end; return what each hospital was paid for the honest task."""
    paid = {}
    for name, running in sites.items():
        lines = stage.processes.finish(running, TASK_SECONDS).splitlines()
        if name != INTRUDER:
            ends = [json.loads(line) for line in lines]
            paid[name] = sum(int(end["paid"]) for end in ends if end["task"] == task.number)
    return paid


def compare(stage: Stage, ward: Ward, task: PublishedTask) -> Accuracies:
    """Measure the chain's model and its alternatives on everybody's held-out patients."""
    parts = list(ward.training.values())
    rounds, seed = stage.options.rounds, ward.seed
    return Accuracies(
        federated=score_task(ward, task),
        pooled=training.score(training.fit_pooled(parts, rounds=rounds, seed=seed), ward.held_out),
        local_only=fmean(
            training.score(training.fit_alone(part, rounds=rounds, seed=seed), ward.held_out)
            for part in parts
        ),
        float_fedavg=training.score(
            training.fit_float_fedavg(parts, rounds=rounds, seed=seed), ward.held_out
        ),
    )


def score_task(ward: Ward, task: PublishedTask) -> float:
    """Return the accuracy of a task's newest model."""
    net = training.build_net()
    load(net, task.model().arrays)
    return training.score(net, ward.held_out)


def settle(task: PublishedTask, by_hospital: Mapping[str, int]) -> Money:
    """Fetch what nobody earned and return the task's books."""
    task.refund()
    account = task.organisation.tasks.get_account(task.number)
    return Money(account.deposited, account.paid, account.fees, account.refunded, by_hospital)


def describe_intrusion(stage: Stage, ward: Ward, tasks: Sequence[PublishedTask]) -> Intrusion:
    """Return what the intruder did under each rule."""
    fedavg, multi_krum = (score_task(ward, task) for task in tasks)
    address = bytes.fromhex(stage.addresses[INTRUDER][2:])
    flagged = sum(
        Flag.EXCLUDED in Flag(event.values["flags"][event.values["clients"].index(address)])
        for event in get_events(stage.organisation.rpc, tasks[1].number, ["Aggregated"])
    )
    return Intrusion(fedavg, multi_krum, flagged, tasks[1].get_info().parameters.rounds)


# -- small things ----------------------------------------------------------------------------------
def rotate(urls: Sequence[str], index: int) -> list[str]:
    """Return all addresses, another one first for each index."""
    turn = index % len(urls)
    return [*urls[turn:], *urls[:turn]]


def slug(name: str) -> str:
    """Return a name as a file's name."""
    return name.lower().replace(" ", "-")

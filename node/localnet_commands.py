"""`steelyard localnet up|status|down`: several validators on this machine."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from steelyard.chain.errors import SteelyardError
from steelyard.chain.genesis import DEFAULT_GAS_LIMIT

from .founding import DEFAULT_EPOCH_BLOCKS
from .localnet import (
    PASSWORD_FILE,
    POLL_SECONDS,
    START_SECONDS,
    Localnet,
    Report,
    Waiting,
    encode_reports,
)
from .options import (
    NO,
    YES,
    AsJson,
    Balance,
    ChainId,
    ChainName,
    EpochBlocks,
    Funds,
    GasLimit,
    Heartbeat,
    Issuance,
    MinStake,
    RetentionDays,
    Timeout,
    UnbondingDays,
    new_app,
    read_choices,
)

FIRST_HTTP_PORT = 8545
app = new_app("Run several validators on this machine.")

Where = Annotated[Path, typer.Argument(metavar="[DIR]", help="Directory of all validators.")]
Only = Annotated[
    list[int] | None, typer.Option("--only", help="Only this validator; repeatable, from 1.")
]


def check_patience(seconds: float) -> float:
    """Raises BadParameter for a time without an end, or before its beginning."""
    if not 0 <= seconds < math.inf:  # also where it is no number
        raise typer.BadParameter(f"{seconds} is no number of seconds from 0 on")
    return seconds


Patience = Annotated[
    float,
    typer.Option(
        help="Seconds that running validators may take to answer, and to finalize.",
        callback=check_patience,
    ),
]


@app.command()
def up(
    directory: Where = Path("localnet"),
    validators: Annotated[
        int | None, typer.Option(help="How many; 4 unless DIR exists.", show_default=False)
    ] = None,
    http_port: Annotated[
        int,
        typer.Option(help="Of validator 1, then 10 above each; 0 takes any free ports."),
    ] = FIRST_HTTP_PORT,
    fund: Funds = None,
    chain_id: ChainId = 7700,
    name: ChainName = "localnet",
    stake: Annotated[str, typer.Option(help="Coins that each has at stake.")] = "32",
    balance: Balance = "100",
    heartbeat: Heartbeat = 2,
    timeout: Timeout = 4,
    gas_limit: GasLimit = DEFAULT_GAS_LIMIT,
    retention_days: RetentionDays = 30,
    epoch_blocks: EpochBlocks = DEFAULT_EPOCH_BLOCKS,
    issuance: Issuance = "0",
    unbonding_days: UnbondingDays = 14,
    min_stake: MinStake = "1",
    only: Only = None,
    patience: Patience = START_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Start what does not run, and wait until it finalizes blocks.

    A new DIR gets keys and a genesis first; with one that exists, choices about the chain are not
    looked at. What it waits for goes to stderr, every ten seconds.
    """
    if (directory / PASSWORD_FILE).exists():
        net = Localnet(directory)
        if validators not in (None, len(net.numbers)):
            raise SteelyardError(
                "data_exists", f"{directory} has {len(net.numbers)} validators; choose another"
            )
    else:
        foundation = read_choices(
            chain_id=chain_id,
            name=name,
            balance=balance,
            fund=fund,
            heartbeat=heartbeat,
            timeout=timeout,
            gas_limit=gas_limit,
            retention_days=retention_days,
            epoch_blocks=epoch_blocks,
            issuance=issuance,
            unbonding_days=unbonding_days,
            min_stake=min_stake,
            stake=stake,
        )
        net = Localnet.create(
            directory,
            foundation,
            validators=4 if validators is None else validators,
            http_port=http_port,
        )
    chosen = only or net.numbers
    if sum(net.find_process(number) is None for number in chosen) > 1:
        compile_kernels(patience)
    with net.busy():
        for number in chosen:
            net.start(number)
    wait_until_final(net, patience)
    show(net, as_json)


def compile_kernels(patience: float) -> None:
    """Let one process compile the kernels, where several would each do all of it at once.

    They are kept for later starts, so it is the first that costs. What is wrong with them is for
    the validators to say.
    """
    waiting = Waiting(patience, say)
    words = [sys.executable, "-m", "steelyard", "selftest"]
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        while process.poll() is None and not waiting.is_over():
            waiting.tell("the kernels to be compiled, once for this installation")
            time.sleep(POLL_SECONDS)
    finally:
        process.kill()
        process.wait()
        signal.signal(signal.SIGTERM, before)


def interrupt(number: int, _frame: object) -> NoReturn:
    """Leave by an exception, so that what was started is ended on the way."""
    raise SystemExit(128 + number)


def say(line: str) -> None:
    """To a person who waits; stdout is for the answer."""
    typer.echo(line, err=True)


def wait_until_final(net: Localnet, patience: float) -> None:
    """Return when all that run have a new block, or answer, if they are too few for one."""
    running = [number for number in net.numbers if net.find_process(number) is not None]
    net.wait_answer(running, patience, say)
    if net.has_quorum(running):
        heights = [report.height or 0 for report in net.get_reports()]
        net.wait_final(max(heights) + 1, running, patience, say)


@app.command()
def status(directory: Where = Path("localnet"), as_json: AsJson = False) -> None:
    """Say how each is: 0 all run, are healthy and agree; 1 not so; 2 there is no localnet."""
    raise typer.Exit(YES if show(Localnet(directory), as_json) else NO)


@app.command()
def down(directory: Where = Path("localnet"), only: Only = None, as_json: AsJson = False) -> None:
    """Stop the processes. Nothing final is lost; `up` goes on where they were."""
    net = Localnet(directory)
    with net.busy():
        running = [one for one in only or net.numbers if net.find_process(one) is not None]
        killed = net.stop(running)
    if as_json:
        typer.echo(json.dumps({"stopped": running, "killed": killed}))
    else:
        late = f", {len(killed)} of them only by force" if killed else ""
        typer.echo(f"stopped {len(running)} of {len(net.numbers)} validators{late}")


def show(net: Localnet, as_json: bool) -> bool:
    """Print a line each. Returns whether all is well."""
    reports = net.get_reports()
    height, is_one_chain = net.agree(reports)
    is_well = is_one_chain and all(one.height is not None and not one.alarms for one in reports)
    if as_json:
        facts = {
            "directory": str(net.directory),
            "healthy": is_well,
            "height": height,
            "agree": is_one_chain,
            "validators": encode_reports(reports),
        }
        typer.echo(json.dumps(facts))
        return is_well
    for report in reports:
        typer.echo(describe(report))
    answering = sum(one.height is not None for one in reports)
    said = "the same" if is_one_chain else "DIFFERENT ONES"
    common = f"; all have block {height}, {said}" if answering else ""
    typer.echo(f"{answering} of {len(reports)} answer{common}")
    return is_well


def describe(report: Report) -> str:
    """One line of `status`."""
    start = f"validator {report.number:<3} {report.url}"
    if report.pid is None:
        return f"{start}  down"
    if report.height is None:
        return f"{start}  pid {report.pid}  no answer; see {report.directory}/log"
    peers = "" if report.peers is None else f"  peers {report.peers}"
    alarms = "".join(f"  ALARM {code}" for code in report.alarms)
    place = f"height {report.height}  view {report.view}"
    return f"{start}  pid {report.pid}  {place}{peers}{alarms}"

"""`steelyard demo`: the main job on this machine, with nothing to set up."""

import math
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from .processes import Processes
from .report import Story, describe_story, encode_stories
from .stage import PATIENCE_SECONDS, Options

YES, NO = 0, 1

app = typer.Typer(
    help="The main job, on this machine.", add_completion=False, pretty_exceptions_enable=False
)


def check_patience(seconds: float) -> float:
    """Raises BadParameter for a time without an end, or before its beginning."""
    if not 0 <= seconds < math.inf:  # also where it is no number
        raise typer.BadParameter(f"{seconds} is no number of seconds from 0 on")
    return seconds


@app.command()
def demo(
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Training rounds.")] = 8,
    splits: Annotated[
        int, typer.Option(min=1, max=50, help="Repeat with that many splits of the data.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the first split and the training.")] = 0,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the validators and all files, to look around.")
    ] = False,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where the files go; a temporary one else.")
    ] = None,
    patience: Annotated[
        float,
        typer.Option(
            help="Seconds that the validators may take to start.",
            callback=check_patience,
        ),
    ] = PATIENCE_SECONDS,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one line of JSON; the story goes to stderr.")
    ] = False,
) -> None:
    """Four hospitals train one model on four validators; an auditor recomputes it.

    Exit code 0 if everything came out as promised, 1 if something did not, 2 if it broke off.
    """
    from .story import run_demo  # late: it needs torch, and --help does not

    started = time.monotonic()
    stream = sys.stderr if as_json else sys.stdout

    def say(line: str) -> None:
        print(line, file=stream, flush=True)

    # Ended politely, it ends its processes too; Ctrl-C does so by itself.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    home = make_directory(directory)
    options = Options(rounds=rounds, splits=splits, seed=seed, keep=keep, patience=patience)
    say("Federated averaging as consensus: four validators, four hospitals, one auditor.")
    is_kept = keep
    try:
        with Processes(home, keep=keep) as processes:
            stories = run_demo(processes, options, say)
            for line in describe_stories(stories):
                say(line)
            if keep:
                for line in describe_remains(processes):
                    say(line)
    except BaseException:
        is_kept = True
        say(f" the files of this run are in {home}")
        raise
    finally:
        if not is_kept and directory is None:
            shutil.rmtree(home, ignore_errors=True)
    if as_json:
        print(encode_stories(stories, time.monotonic() - started))
    raise typer.Exit(YES if all(story.is_good for story in stories) else NO)


def interrupt(number: int, _frame: object) -> NoReturn:
    """Leave by an exception, so that everything is cleaned up on the way."""
    raise SystemExit(128 + number)


def make_directory(directory: Path | None) -> Path:
    """Return an empty directory for the files of this run."""
    if directory is None:
        return Path(tempfile.mkdtemp(prefix="steelyard-demo-"))
    directory = directory.resolve()
    if directory.exists() and any(directory.iterdir()):
        raise typer.BadParameter(f"{directory} is not empty", param_hint="--dir")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def describe_stories(stories: list[Story]) -> list[str]:
    """Return the closing lines: of the only split, or of each."""
    lines = []
    for number, story in enumerate(stories, 1):
        if len(stories) > 1:
            lines.append(f" split {number}")
        lines += describe_story(story)
    return lines


def describe_remains(processes: Processes) -> list[str]:
    """Say what was left running, and how to end it."""
    net = processes.directory / "validators"
    return [
        f" kept        validators and files in {processes.directory}",
        f" look        steelyard localnet status {net}",
        " verify it   steelyard audit round 1 1 --node URL, of any of them",
        f" end it      steelyard localnet down {net}; rm -r {processes.directory}",
    ]

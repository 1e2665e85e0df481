"""The `steelyard` command: one word picks the part, and only that part is imported.

A client install has neither EVM nor BLS, so `steelyard client` must not import `steelyard.node`.
Exit codes everywhere: 0 yes, 1 no, 2 could not tell.
"""

import errno
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NoReturn, TypeGuard

from . import __version__
from .chain.errors import SteelyardError, clean_lines

YES, NO, UNKNOWN = 0, 1, 2
UNEXPECTED: Final = "unexpected"
LOST: Final = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of writing: a closed pipe, a full disk or quota, a broken disk."""
USAGE: Final = "usage"


@dataclass(frozen=True, slots=True)
class Part:
    """Where a command lives, which extra installs it, and what it is for."""

    module: str
    attribute: str
    extra: str
    summary: str


PARTS = {
    "demo": Part("steelyard.client.demo.command", "app", "demo", "the main job, on this machine"),
    "task": Part("steelyard.client.commands", "task", "", "publish a training task and follow it"),
    "client": Part("steelyard.client.commands", "client", "", "train on your own data, get paid"),
    "round": Part("steelyard.client.commands", "round", "", "what happened in a round, and why"),
    "model": Part("steelyard.client.commands", "model", "", "fetch and evaluate a model"),
    "registry": Part(
        "steelyard.client.commands", "registry", "", "identities, statements, models, datasets"
    ),
    "audit": Part("steelyard.client.commands", "audit", "audit", "prove or refute a round"),
    "keys": Part("steelyard.client.commands", "keys", "", "make and show encrypted key files"),
    "new": Part("steelyard.client.commands", "new", "", "a client project to start from"),
    "node": Part("steelyard.node.commands", "app", "node", "run a validator"),
    "localnet": Part(
        "steelyard.node.localnet_commands", "app", "node", "run several validators on this machine"
    ),
    "selftest": Part("steelyard.selftest", "app", "audit", "check this machine's kernels"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code, if what it says can be written.

    What cannot tell its answer ends with 2. Python and typer would make it a 1, which means no.
    """
    try:
        run(arguments)
        sys.stdout.flush()
    except SystemExit as ending:
        if is_output_lost(ending.__context__):
            lose_answer(ending.__context__)
        try:
            sys.stdout.flush()
        except OSError as error:
            lose_answer(error)
        raise
    except OSError as error:
        lose_answer(error)


def run(arguments: Sequence[str] | None) -> None:
    """Run one command."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("--help", "-h", "help"):
        print(describe())
        sys.exit(YES if words else UNKNOWN)
    if words[0] in ("--version", "-V"):
        print(f"steelyard {__version__}")
        sys.exit(YES)
    part = PARTS.get(words[0])
    if part is None:
        fail(f"no command {words[0]!r}; `steelyard --help` lists them")
    run_part(words[0], part, words[1:])


def run_part(name: str, part: Part, words: list[str]) -> None:
    """Import the part and hand it the rest of the line; it may import more when it runs."""
    try:
        command = getattr(importlib.import_module(part.module), part.attribute)
        command(words, prog_name=f"steelyard {name}")
    except SteelyardError as error:
        refuse(words, error.code, error.message)
    except SystemExit as ending:
        # Typer has said on stderr what is wrong with the words, and its exception is behind this.
        if "--json" in words and (tell := getattr(ending.__context__, "format_message", None)):
            print(json.dumps({"error": USAGE, "message": tell()}))
        raise
    except Exception as error:
        missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
        if missing and part.extra and not missing.startswith("steelyard"):
            fail(
                f"`steelyard {name}` needs {missing}, which is not installed: "
                f"pip install 'steelyard[{part.extra}]'"
            )
        if is_output_lost(error):
            raise
        # Python would end with 1, which is an answer: for an audit it says REFUTED.
        print(clean_lines(traceback.format_exc()), file=sys.stderr)
        refuse(words, UNEXPECTED, f"{type(error).__name__} is a fault of this program: report it")


def is_output_lost(error: BaseException | None) -> TypeGuard[OSError]:
    """Is it a stream that takes nothing more? Files that a command opens itself have names."""
    return isinstance(error, OSError) and error.filename is None and error.errno in LOST


def lose_answer(error: OSError) -> NoReturn:
    """Say that nobody has the answer, unless its reader has gone, and exit with 2."""
    # Else Python tries to write the rest once more at its end, and ends with a code of its own.
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # as `head` does when it has enough
        sys.exit(UNKNOWN)
    fail(
        f"output_lost: what this answers cannot be written: {error.strerror}; what it did is done: "
        "make room and ask again"
    )


def refuse(words: Sequence[str], code: str, message: str) -> NoReturn:
    """Say why there is no answer, for programs too if `words` ask for that; exit with 2."""
    if "--json" in words:
        print(json.dumps({"error": code, "message": message}))
    fail(f"{code}: {message}")


def describe() -> str:
    """Return the help text: every command in one line."""
    width = max(map(len, PARTS))
    lines = [f"  {name:<{width}}  {part.summary}" for name, part in PARTS.items()]
    return "\n".join(
        [
            "steelyard: federated averaging as consensus",
            "",
            *lines,
            "",
            "`steelyard COMMAND --help` tells more. Exit codes: 0 yes, 1 no, 2 could not tell.",
        ]
    )


def fail(message: str) -> NoReturn:
    """Say what is wrong on stderr and exit with 2. A node's words may be in it."""
    with suppress(OSError):  # the code says what stderr cannot
        print(f"steelyard: {clean_lines(message)}", file=sys.stderr, flush=True)
    sys.exit(UNKNOWN)


if __name__ == "__main__":
    main()

"""Starting the demo's processes and ending them, whatever happens in between."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ..errors import ClientError

STOP_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.1
LOG_LINES: Final = 25
PROGRESS: Final = "waiting for "
"""So begin the lines in which `steelyard localnet up` says, on stderr, what it waits for."""


@dataclass(frozen=True, slots=True)
class Running:
    """One process and the files of what it says."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path
    log: Path

    def get_last_lines(self) -> str:
        """Return the end of its log, for an error message, without what it waited for."""
        lines = self.log.read_text("utf-8", "replace").splitlines()
        return "\n".join([one for one in lines if not one.startswith(PROGRESS)][-LOG_LINES:])


@dataclass
class Processes:
    """All processes of one demo; on leaving they are stopped, unless `keep` is set."""

    directory: Path
    keep: bool = False
    password: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    running: list[Running] = field(default_factory=list)
    ends: list[Callable[[], None]] = field(default_factory=list)
    """What else has to be ended, after the processes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None or not self.keep:
            self.stop()

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment of every process: one thread each, and the demo's password."""
        return os.environ | {
            "STEELYARD_PASSWORD": self.password,
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, name: str, arguments: Sequence[str]) -> Running:
        """Start `python ARGUMENTS` in its own session, so that only we end it."""
        output, log = self.directory / f"{name}.out", self.directory / f"{name}.log"
        with output.open("wb") as out, log.open("ab") as err:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self.environment,
                start_new_session=True,
            )
        running = Running(name, process, output, log)
        self.running.append(running)
        return running

    def finish(self, running: Running, seconds: float) -> str:
        """Wait for a process and return what it printed. Raises ClientError `demo_process`."""
        try:
            code = running.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise ClientError(
                "demo_process",
                f"{running.name} did not finish in {seconds:.0f} s:\n{running.get_last_lines()}",
            ) from None
        return self._read_output(running, code)

    def follow(self, running: Running, tell: Callable[[str], None]) -> str:
        """Wait for a process as long as it takes, telling what it waits for itself meanwhile.

        Returns what it printed. Raises: ClientError `demo_process`.
        """
        with running.log.open("rb") as log:
            begun = b""
            while True:
                code = running.process.poll()  # first: what it says before it ends is read, too
                *lines, begun = (begun + log.read()).split(b"\n")
                for line in lines:
                    text = line.decode("utf-8", "replace")
                    if text.startswith(PROGRESS):
                        tell(text)
                if code is not None:
                    return self._read_output(running, code)
                time.sleep(POLL_SECONDS)

    def _read_output(self, running: Running, code: int) -> str:
        if code:
            raise ClientError(
                "demo_process", f"{running.name} ended with {code}:\n{running.get_last_lines()}"
            )
        return running.output.read_text("utf-8")

    def run(
        self, arguments: Sequence[str], *, codes: Container[int] = (0,), must_speak: bool = False
    ) -> str:
        """Run `python ARGUMENTS` to its end and return its output.

        Raises: ClientError `demo_process` for another exit code, or for silence if it must speak.
        """
        done = subprocess.run(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.environment,
            check=False,
        )
        if done.returncode not in codes or (must_speak and not done.stdout.strip()):
            raise ClientError(
                "demo_process",
                f"{' '.join(arguments[:4])} ended with {done.returncode}:\n{done.stderr.strip()}",
            )
        return done.stdout

    def check_alive(self) -> None:
        """Raise ClientError `demo_process` if a process has failed."""
        for running in self.running:
            if running.process.poll():
                raise ClientError(
                    "demo_process",
                    f"{running.name} ended with {running.process.returncode}:\n"
                    f"{running.get_last_lines()}",
                )

    def stop(self) -> None:
        """End every process that is still there: politely, then not."""
        for running in self.running:
            running.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for running in self.running:
            try:
                running.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                running.process.kill()
                running.process.wait()
        self.running.clear()
        while self.ends:
            self.ends.pop()()

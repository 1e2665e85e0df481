"""Several validators on this machine: real processes with a directory each, as operators run them.

    DIR/genesis.json  DIR/password  DIR/validator-1/ …  each with `pid` and `log` beside its data

The command `steelyard localnet`, the demo and the benchmarks stand on this. Nothing is kept in
memory that is not on disk, so whoever opens the directory later can go on: processes are found by
their number in `pid` or `LOCK`, and a number counts only while /proc shows that it is this
directory's node.
"""

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import httpx

from steelyard.chain.errors import SteelyardError
from steelyard.chain.genesis import encode_genesis

from .config import FollowConfig, HttpConfig, NetworkConfig, NodeConfig, load_config
from .directory import ENDPOINT, GENESIS_FILE, LOCK
from .founding import (
    Foundation,
    check_empty,
    create_entry,
    create_shared_document,
    init_directory,
    write_new,
)
from .keyfiles import write_key_file
from .ports import HOST, find_ports

PASSWORD_FILE: Final = "password"  # noqa: S105 - a file's name
PID_FILE, LOG_FILE = "pid", "log"
SOURCES: Final = 2
FOLLOW_SECONDS: Final = 2.0
SCRYPT_N: Final = 2**12
"""The password lies beside the keys, so a strong one would only make starting slow."""
MAX_VALIDATORS: Final = 32
START_SECONDS: Final = 600.0
"""For a process that runs: the first start of an installation compiles kernels, on a busy machine
for minutes. One that ended is not waited for at all."""
FINAL_SECONDS: Final = 60.0
PROGRESS_SECONDS: Final = 10.0
STOP_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.1
ANSWER_SECONDS: Final = 5.0
PLAIN: Final = False
"""There is no TLS on loopback, and its set-up takes 70 ms of processor time for each question."""
LOG_LINES, LOG_BYTES = 12, 16_384
Tell = Callable[[str], None]
"""Gets a line now and then: what is waited for."""
CHILDREN: Final[dict[Path, subprocess.Popen[bytes]]] = {}
"""What this process started, by its directory: the system ties them to it, not to an object."""


@dataclass(frozen=True, slots=True)
class Report:
    """One validator as it is now; everything but number, directory and URL None if it is not."""

    number: int
    directory: str
    url: str
    pid: int | None = None
    height: int | None = None
    view: int | None = None
    peers: int | None = None
    block_hash: str | None = None
    alarms: tuple[str, ...] = ()


class Waiting:
    """How long something is waited for, and when a word about it is due."""

    def __init__(self, patience: float, tell: Tell | None = None) -> None:
        self.patience, self._tell = patience, tell
        self._started = self._told_at = time.monotonic()

    def is_over(self) -> bool:
        """Is the patience at its end?"""
        return time.monotonic() >= self._started + self.patience

    def tell(self, what: str, said: str = "") -> None:
        """Say what is waited for, and what it `said` last, unless that was said just now."""
        now = time.monotonic()
        if self._tell is None or now < self._told_at + PROGRESS_SECONDS:
            return
        self._told_at = now
        end = f"; last words: {said}" if said else ""
        self._tell(f"waiting for {what}: {now - self._started:.0f} s of {self.patience:.0f}{end}")


class Localnet:
    """A directory of validators; numbers count from 1. Safe to open twice; `busy` is not."""

    def __init__(self, directory: Path) -> None:
        """Open one that exists. Raises SteelyardError localnet_missing."""
        self.directory = directory.resolve()
        if not (self.directory / PASSWORD_FILE).is_file():
            raise SteelyardError(
                "localnet_missing",
                f"{directory} is no localnet; make one: steelyard localnet up {directory}",
            )
        found = [one for one in self.directory.glob("validator-*") if one.is_dir()]
        self.numbers = tuple(range(1, len(found) + 1))
        self.urls = {number: self._read_url(number) for number in self.numbers}

    @classmethod
    def create(
        cls,
        directory: Path,
        foundation: Foundation,
        *,
        validators: int = 4,
        http_port: int = 0,
        config: NodeConfig | None = None,
    ) -> "Localnet":
        """Hold the ceremony for all validators; complete or not at all.

        `foundation.stake` is each one's. `http_port` 0 takes any free ports; else the first
        validator's. Raises SteelyardError data_exists, localnet_size, port_taken; InvalidGenesis.
        """
        if not 1 <= validators <= MAX_VALIDATORS:
            raise SteelyardError(
                "localnet_size", f"{validators} validators: 1 to {MAX_VALIDATORS} run here"
            )
        check_empty(directory)
        ports = find_ports(validators, http_port)
        password = secrets.token_urlsafe(24)
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{directory.name}.", dir=directory.parent, ignore_cleanup_errors=True
        ) as temporary:
            home = Path(temporary)
            write_key_file(home / PASSWORD_FILE, f"{password}\n".encode())
            homes = [home / f"validator-{place}" for place in range(1, validators + 1)]
            entries = [
                create_entry(
                    one, password, f"{HOST}:{port + 1}", foundation.stake, scrypt_n=SCRYPT_N
                )
                for one, port in zip(homes, ports, strict=True)
            ]
            document = encode_genesis(create_shared_document(foundation, entries))
            write_new(home / GENESIS_FILE, document)
            for one, port in zip(homes, ports, strict=True):
                settings = replace(
                    config or NodeConfig(),
                    http=HttpConfig(HOST, port),
                    network=NetworkConfig(listen=f"{HOST}:{port + 1}"),
                    follow=choose_sources(ports, port),
                )
                init_directory(one, password, document, settings)
            os.rename(home, directory)
        return cls(directory)

    def get_directory(self, number: int) -> Path:
        """A validator's data directory. Raises SteelyardError localnet_number."""
        if number not in self.numbers:
            raise SteelyardError(
                "localnet_number", f"no validator {number}: there are 1 to {len(self.numbers)}"
            )
        return self.directory / f"validator-{number}"

    def _read_url(self, number: int) -> str:
        http = load_config(self.get_directory(number)).http
        return f"http://{http.host}:{http.port}"

    # -- processes ---------------------------------------------------------------------------------
    def start(self, number: int) -> int:
        """Start one, unless it runs. Returns its process's number."""
        directory = self.get_directory(number)
        running = self.find_process(number)
        if running is not None:
            return running
        password_file = str(self.directory / PASSWORD_FILE)
        node = ("node", "run", str(directory), "--password-file", password_file)
        with (directory / LOG_FILE).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "steelyard", *node],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt of the command's terminal is not for it
            )
        CHILDREN[directory] = process
        (directory / PID_FILE).write_text(f"{process.pid}\n")
        return process.pid

    def find_process(self, number: int) -> int | None:
        """The running process of a validator."""
        directory = self.get_directory(number)
        child = CHILDREN.get(directory)
        if child is not None:
            if child.poll() is None:
                return child.pid
            del CHILDREN[directory]
        for name in (PID_FILE, LOCK):
            pid = read_pid(directory / name)
            if pid is not None and is_node(pid, directory):
                return pid
        return None

    def kill(self, number: int) -> None:
        """End one as a power cut would."""
        self._end([number], signal.SIGKILL)

    def stop(self, numbers: Collection[int] | None = None) -> tuple[int, ...]:
        """End some, or all, as a service manager would. Returns those that had to be killed."""
        numbers = self.numbers if numbers is None else numbers
        late = self._end(numbers, signal.SIGTERM)
        if late:
            self._end(late, signal.SIGKILL)
        return late

    def _end(self, numbers: Iterable[int], number: signal.Signals) -> tuple[int, ...]:
        """Signal all and wait. Returns the validators that are still there."""
        left = {one: pid for one in numbers if (pid := self.find_process(one)) is not None}
        for pid in left.values():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue  # it ended by itself meanwhile
        deadline = time.monotonic() + STOP_SECONDS
        while left and time.monotonic() < deadline:
            left = {one: pid for one, pid in left.items() if self.find_process(one) == pid}
            time.sleep(POLL_SECONDS / 4 if left else 0)
        return tuple(left)

    # -- what they say -----------------------------------------------------------------------------
    def report(self, number: int) -> Report:
        """Ask one how it is."""
        pid, url = self.find_process(number), self.urls[number]
        report = Report(number, str(self.get_directory(number)), url, pid)
        if pid is None:
            return report
        try:
            facts = httpx.get(f"{url}/health", timeout=ANSWER_SECONDS, verify=PLAIN).json()
            return replace(
                report,
                height=facts["height"],
                view=facts["view"],
                peers=facts.get("peers"),
                block_hash=facts["block_hash"],
                alarms=tuple(one["code"] for one in facts.get("alarms", ())),
            )
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return report

    def get_reports(self) -> tuple[Report, ...]:
        """All of them, in order."""
        return tuple(self.report(number) for number in self.numbers)

    def get_hash(self, number: int, height: int) -> str | None:
        """The hash of a finalized block, as one validator has it."""
        body = {"jsonrpc": "2.0", "id": 1, "method": "eth_getBlockByNumber"}
        try:
            reply = httpx.post(
                self.urls[number],
                json=body | {"params": [hex(height), False]},
                timeout=ANSWER_SECONDS,
                verify=PLAIN,
            )
            return str(reply.json()["result"]["hash"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return None

    def agree(self, reports: Iterable[Report]) -> tuple[int, bool]:
        """The height that all who answer have, and whether they have one block there.

        A block's hash covers its state root, and all blocks before it. Who does not answer, or has
        no block there any more, contradicts nobody.
        """
        heights = {one.number: one.height for one in reports if one.height is not None}
        height = min(heights.values(), default=0)
        return height, len({self.get_hash(number, height) for number in heights} - {None}) <= 1

    def has_quorum(self, running: Collection[int]) -> bool:
        """Can these finalize without the others? All have the same stake at first."""
        return 3 * len(running) > 2 * len(self.numbers)

    def wait_answer(
        self, numbers: Collection[int], patience: float = START_SECONDS, tell: Tell | None = None
    ) -> None:
        """Return when these answer and are found by their directories.

        Raises SteelyardError localnet_ended, localnet_stalled.
        """

        def is_there(report: Report) -> bool:
            found = (self.get_directory(report.number) / ENDPOINT).exists()
            return report.height is not None and found

        self._wait(numbers, is_there, "answer", Waiting(patience, tell))

    def wait_final(
        self,
        height: int,
        numbers: Collection[int] | None = None,
        patience: float = FINAL_SECONDS,
        tell: Tell | None = None,
    ) -> None:
        """Return when these, or all that run, have finalized a height.

        Raises SteelyardError localnet_ended, localnet_stalled.
        """
        if numbers is None:
            numbers = [one for one in self.numbers if self.find_process(one) is not None]

        def is_there(report: Report) -> bool:
            return report.height is not None and report.height >= height

        self._wait(numbers, is_there, f"finalize block {height}", Waiting(patience, tell))

    def _wait(
        self,
        numbers: Collection[int],
        is_done: Callable[[Report], bool],
        what: str,
        waiting: Waiting,
    ) -> None:
        left = set(numbers)
        while True:
            for number in sorted(left):
                report = self.report(number)
                if report.pid is None:
                    raise SteelyardError(
                        "localnet_ended",
                        f"validator {number} ended; others may run: steelyard localnet down "
                        f"{self.directory}\n{self._explain(number)}",
                    )
                if is_done(report):
                    left.discard(number)
            if not left:
                return
            if waiting.is_over():
                number = min(left)
                raise SteelyardError(
                    "localnet_stalled",
                    f"validator {number} did not {what} within {waiting.patience:.0f} s. The "
                    f"processes still run: steelyard localnet up {self.directory} goes on waiting "
                    f"(longer with --patience SECONDS), steelyard localnet down {self.directory} "
                    f"ends them\n{self._explain(number)}",
                )
            names = ", ".join(map(str, sorted(left)))
            noun = "validator" if len(left) == 1 else "validators"
            waiting.tell(f"{noun} {names} to {what}", self.read_log(min(left), 1))
            time.sleep(POLL_SECONDS)

    def _explain(self, number: int) -> str:
        path, lines = self.get_directory(number) / LOG_FILE, self.read_log(number)
        return f"the end of {path}:\n{lines}" if lines else f"{path} is empty so far"

    def read_log(self, number: int, lines: int = LOG_LINES) -> str:
        """The last lines of a validator's log; empty while it has said nothing."""
        try:
            with (self.get_directory(number) / LOG_FILE).open("rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - LOG_BYTES, 0))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Only one command starts or stops processes. Raises SteelyardError localnet_busy."""
        with (self.directory / LOCK).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise SteelyardError(
                    "localnet_busy", f"another command starts or stops {self.directory}; wait"
                ) from None
            yield

    def remove(self) -> None:
        """Delete everything. Raises SteelyardError localnet_busy while a validator runs."""
        if any(self.find_process(number) is not None for number in self.numbers):
            raise SteelyardError("localnet_busy", f"validators run in {self.directory}")
        shutil.rmtree(self.directory)


def read_pid(path: Path) -> int | None:
    """A process's number in a file."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdecimal() and len(text) < 10 else None


def is_node(pid: int, directory: Path) -> bool:
    """Is this process, which may have inherited a dead one's number, the node of `directory`?"""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    if state.rpartition(")")[2].split()[:1] == ["Z"]:
        return False  # it ended, and nobody has asked how
    return os.fsencode(directory) in words and b"run" in words


def choose_sources(ports: Sequence[int], own: int) -> FollowConfig:
    """The next two validators: whom one follows that was jailed while it was down.

    The others no longer talk to it, and only the blocks that it lacks would tell it so.
    """
    place = ports.index(own)
    others = [port for port in (*ports[place + 1 :], *ports[:place])][:SOURCES]
    return FollowConfig(
        nodes=tuple(f"http://{HOST}:{port}" for port in others),
        interval_seconds=FOLLOW_SECONDS,
    )


def encode_reports(reports: Iterable[Report]) -> list[dict[str, Any]]:
    """For JSON."""
    return [{name: getattr(one, name) for name in Report.__dataclass_fields__} for one in reports]

"""The demo's chain: four validators, as `steelyard localnet` runs them, one of which dies.

up -> urls; kill(number) at once, as a power cut would; bring_back(number); agree; down
"""

import json
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from ..errors import ClientError
from .processes import Processes

VALIDATORS: Final = 4
PID_FILE: Final = "pid"
HEARTBEAT_SECONDS: Final = 1
TIMEOUT_SECONDS: Final = 1
"""Of a view whose leader is gone. Blocks are small here; a public chain leaves more."""


@dataclass
class Validators:
    """A directory of validators, and where they are."""

    processes: Processes
    directory: Path
    patience: float
    """Seconds that they may take to start, and to finalize."""
    tell: Callable[[str], None]
    """Gets what is waited for, every ten seconds."""
    height: int = 0
    """What all had finalized when they were last started."""
    urls: tuple[str, ...] = ()
    homes: tuple[Path, ...] = ()
    """Each one's directory, with the number of its process in `pid`."""

    @classmethod
    def start(
        cls,
        processes: Processes,
        funds: Iterable[str],
        *,
        patience: float,
        tell: Callable[[str], None],
    ) -> Self:
        """Hold the genesis ceremony, start everybody, wait for the first blocks.

        `funds`: ADDRESS=COINS. Raises ClientError `demo_process`.
        """
        net = cls(processes, processes.directory / "validators", patience, tell)
        processes.ends.append(net.stop)
        settings = {
            "--validators": VALIDATORS,
            "--http-port": 0,
            "--heartbeat": HEARTBEAT_SECONDS,
            "--timeout": TIMEOUT_SECONDS,
        }
        words = [str(word) for pair in settings.items() for word in pair]
        words += [word for fund in funds for word in ("--fund", fund)]
        net._up("localnet-up", words)
        return net

    def _up(self, name: str, words: Iterable[str]) -> None:
        arguments = ["-m", "steelyard", "localnet", "up", str(self.directory), "--json"]
        arguments += ["--patience", str(self.patience), *words]
        running = self.processes.start(name, arguments)
        try:
            document = read_document(self.processes.follow(running, self.tell))
        except ClientError as error:
            raise ClientError(
                error.code,
                f"{error.message}\nThe demo ends them now, and leaves their logs: {self.directory}/"
                "validator-*/log. On a busy machine it may need longer: steelyard demo "
                f"--patience SECONDS, above {self.patience:.0f}",
            ) from None
        self.height = document["height"]
        self.urls = tuple(one["url"] for one in document["validators"])
        self.homes = tuple(Path(one["directory"]) for one in document["validators"])

    def get_status(self) -> dict[str, Any]:
        """Return what `steelyard localnet status` says."""
        arguments = ["-m", "steelyard", "localnet", "status", str(self.directory), "--json"]
        return read_document(self.processes.run(arguments, codes=(0, 1)))

    def kill(self, number: int) -> None:
        """End one validator with SIGKILL; it is told nothing. Raises ClientError `demo_process`."""
        kill_node(self.homes[number - 1])

    def bring_back(self, number: int) -> None:
        """Start it again from its directory; return when it finalizes with the others."""
        self._up(f"localnet-up-{number}", ["--only", str(number)])

    def stop(self) -> None:
        """End every validator that is still there."""
        if self.directory.exists():
            arguments = ["-m", "steelyard", "localnet", "down", str(self.directory)]
            self.processes.run(arguments, codes=range(256))


def kill_node(home: Path) -> None:
    """Kill the process that runs the node in `home`, and no other.

    A number may belong to somebody else by now, so the process is held before it is looked at.
    Raises: ClientError `demo_process` if it does not run.
    """
    try:
        pid = int((home / PID_FILE).read_text("ascii"))
        held = os.pidfd_open(pid)
    except (OSError, ValueError):
        raise ClientError("demo_process", f"no process runs {home}") from None
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if os.fsencode(home) not in words or b"run" not in words:
            raise ClientError("demo_process", f"process {pid} is not the one that runs {home}")
        signal.pidfd_send_signal(held, signal.SIGKILL)
    except OSError:
        raise ClientError("demo_process", f"no process runs {home}") from None
    finally:
        os.close(held)


def read_document(output: str) -> dict[str, Any]:
    """Return the last line's JSON."""
    document: dict[str, Any] = json.loads(output.splitlines()[-1])
    return document

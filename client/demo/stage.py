"""What is there while the demo plays: the chain, the organisation's account, everybody's files."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..organisation import Organisation
from .processes import Processes
from .validators import Validators

PATIENCE_SECONDS: Final = 600.0
"""How long validators may take to start: on a fresh, busy machine it is minutes."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line chose."""

    rounds: int = 8
    splits: int = 1
    seed: int = 0
    keep: bool = False
    patience: float = PATIENCE_SECONDS


@dataclass
class Stage:
    """The running chain, the organisation's account and everybody's files."""

    processes: Processes
    validators: Validators
    organisation: Organisation
    addresses: Mapping[str, str]
    options: Options
    say: Say
    started: float = field(default_factory=time.monotonic)

    @property
    def url(self) -> str:
        """The node that auditors ask, and do not trust."""
        return self.validators.urls[0]

    @property
    def directory(self) -> Path:
        """Where everything of this demo is."""
        return self.processes.directory

    def tell(self, line: str) -> None:
        """Say a line with the time since the start."""
        self.say(format_line(self.started, line))


def format_line(started: float, line: str) -> str:
    """Return the line behind the time since `started`, in monotonic seconds."""
    seconds = int(time.monotonic() - started)
    return f"{seconds // 60:2d}:{seconds % 60:02d} {line}"

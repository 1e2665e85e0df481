"""What an auditor says: links of evidence, each with a verdict, and what they add up to."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from steelyard.chain.errors import clean

MAX_DETAIL: Final = 1_000
"""Characters. A node may answer any text; a report quotes this much of it."""


class Verdict(StrEnum):
    """What an auditor may say. Exit codes 0, 1, 2."""

    YES = "YES"
    REFUTED = "REFUTED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Check:
    """One link of the evidence."""

    name: str
    verdict: Verdict
    detail: str


@dataclass
class Report:
    """What an audit found."""

    subject: str
    checks: list[Check] = field(default_factory=list)
    condition: str = ""
    """What has to be so for the verdict to mean anything, and was not checked here."""

    @property
    def verdict(self) -> Verdict:
        """REFUTED if anything is refuted, else UNKNOWN if anything could not be told, else YES."""
        found = {check.verdict for check in self.checks}
        if Verdict.REFUTED in found:
            return Verdict.REFUTED
        return Verdict.UNKNOWN if Verdict.UNKNOWN in found or not found else Verdict.YES

    @property
    def summary(self) -> str:
        """The verdict's reason in one line."""
        decisive = [check for check in self.checks if check.verdict == self.verdict]
        if self.verdict is not Verdict.YES:
            return f"{decisive[0].name}: {decisive[0].detail}" if decisive else "nothing to check"
        return f"{len(decisive)} checks agree"

    def add(self, name: str, verdict: Verdict, detail: str) -> None:
        """Record one link."""
        self.checks.append(Check(name, verdict, clean(detail[:MAX_DETAIL])))


class Stop(Exception):
    """Nothing further can be checked; the report already says why."""

"""What the demo found, as lines for people and as one line of JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ..amounts import format_coins

EXPECTED = ("YES", "REFUTED", "REFUTED")
"""Verdicts on an honest node, a tampered update, a forged certificate."""


@dataclass(frozen=True, slots=True)
class Money:
    """One task's money when it is over, in wei: escrow = paid + fee + refunded."""

    escrow: int
    paid: int
    fee: int
    refunded: int
    by_hospital: Mapping[str, int]

    @property
    def is_conserved(self) -> bool:
        """Whether nothing appeared and nothing vanished, and each hospital got its part."""
        return (
            self.escrow == self.paid + self.fee + self.refunded
            and sum(self.by_hospital.values()) == self.paid
        )


@dataclass(frozen=True, slots=True)
class Accuracies:
    """Shares of all hospitals' held-out patients labelled rightly, 0 to 1."""

    federated: float
    pooled: float
    local_only: float
    float_fedavg: float


@dataclass(frozen=True, slots=True)
class Intrusion:
    """Final accuracies with a fifth, sign-flipping client, by rule; and rounds that left it out."""

    fedavg: float
    multi_krum: float
    flagged: int
    rounds: int

    @property
    def is_good(self) -> bool:
        """Whether Multi-Krum saw through it every time, and was the better for it."""
        return self.flagged == self.rounds and self.multi_krum > self.fedavg


@dataclass(frozen=True, slots=True)
class Recovery:
    """A validator that was killed and came back, as the others see it."""

    validator: int
    has_same_root: bool
    has_voted_twice: bool

    @property
    def is_good(self) -> bool:
        """Whether it lost nothing and contradicted nothing."""
        return self.has_same_root and not self.has_voted_twice

    @property
    def description(self) -> str:
        """One line."""
        root = "same root" if self.has_same_root else "ANOTHER ROOT"
        votes = "SLASHED FOR A DOUBLE VOTE" if self.has_voted_twice else "no double vote"
        return f"validator {self.validator} back, {root}, {votes}"


@dataclass(frozen=True, slots=True)
class Story:
    """One split, from publishing to the audit. Verdicts are YES, REFUTED or UNKNOWN."""

    rounds: int
    accuracies: Accuracies
    money: Money
    audit: str
    tampered: str
    forged: str
    recovery: Recovery | None = None
    intrusion: Intrusion | None = None

    @property
    def is_good(self) -> bool:
        """Whether everything came out as the protocol promises."""
        verdicts = (self.audit, self.tampered, self.forged)
        is_recovered = self.recovery is None or self.recovery.is_good
        is_repelled = self.intrusion is None or self.intrusion.is_good
        return self.money.is_conserved and is_recovered and is_repelled and verdicts == EXPECTED


def encode_stories(stories: Sequence[Story], seconds: float) -> str:
    """Return one line of JSON: means over the splits, the worst of the verdicts.

    Amounts are wei as decimal strings; of several splits the mean, rounded so that they add up.
    """
    document: dict[str, object] = {"seconds": round(seconds, 3), "rounds": stories[0].rounds}
    for name in Accuracies.__slots__:
        document[name] = round(fmean(getattr(story.accuracies, name) for story in stories), 6)
    escrow, paid, fee = (
        sum(getattr(story.money, name) for story in stories) // len(stories)
        for name in ("escrow", "paid", "fee")
    )
    document |= {
        "escrow": str(escrow),
        "paid": str(paid),
        "fee": str(fee),
        "refunded": str(escrow - paid - fee),
        "audit": merge_verdicts([story.audit for story in stories], "YES"),
        "tampered": merge_verdicts([story.tampered for story in stories], "REFUTED"),
        "forged": merge_verdicts([story.forged for story in stories], "REFUTED"),
        "splits": len(stories),
    }
    recoveries = [story.recovery for story in stories if story.recovery]
    if recoveries:
        document["recovered"] = all(recovery.is_good for recovery in recoveries)
    intrusions = [story.intrusion for story in stories if story.intrusion]
    if intrusions:
        document["intruder"] = {
            "fedavg": round(fmean(one.fedavg for one in intrusions), 6),
            "multi_krum": round(fmean(one.multi_krum for one in intrusions), 6),
            "flagged": sum(one.flagged for one in intrusions),
            "rounds": sum(one.rounds for one in intrusions),
        }
    return json.dumps(document)


def merge_verdicts(verdicts: Sequence[str], expected: str) -> str:
    """Return the expected verdict if all agree, else the first that differs."""
    return next((verdict for verdict in verdicts if verdict != expected), expected)


def describe_story(story: Story) -> list[str]:
    """Return the closing lines of one split."""
    found, money = story.accuracies, story.money
    lines = [
        f" result      federated {found.federated:.3f} | pooled {found.pooled:.3f} | "
        f"mean of local-only {found.local_only:.3f}",
        f" float       the same training, averaged in float by a server: {found.float_fedavg:.3f} "
        f"(difference {found.federated - found.float_fedavg:+.3f})",
    ]
    if story.intrusion:
        lines.append(
            f" intruder    fifth client, sign-flip x4: fedavg {story.intrusion.fedavg:.3f} | "
            f"multi_krum {story.intrusion.multi_krum:.3f}, "
            f"flagged {story.intrusion.flagged}/{story.intrusion.rounds}"
        )
    parts = "  ".join(
        f"{name} {float(format_coins(wei)):.2f}" for name, wei in money.by_hospital.items()
    )
    balance = "adds up" if money.is_conserved else "DOES NOT ADD UP"
    lines += [
        f" paid        {parts}",
        f"             escrow {format_coins(money.escrow)} = paid {format_coins(money.paid)} + "
        f"closing fees {format_coins(money.fee)} + "
        f"refunded {format_coins(money.refunded)}: {balance}",
    ]
    return lines

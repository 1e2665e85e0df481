"""Whether a round that has ended paid and punished as it should have.

The shares of its record, or of the work that the silence of others spoilt, are followed to what
everybody can claim before and after the block; and the task's books to what the next round starts
from. The gas in a closer's fee is not recomputed: only that the fees stay within the reserves.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steelyard.chain.types import Address

from .abi import Event
from .finalized import Scene, Trail
from .moments import Moment, compare_moment
from .proven import ProvenTask, Storage
from .reckoning import (
    Settlement,
    compute_compensation,
    compute_credits,
    compute_settlement,
    compute_weight,
    list_seats,
    weigh_silent,
)
from .records import OnFailedQuorum, ParticipantInfo, RoundInfo, SubmissionInfo
from .rpc import Rpc, as_hex

MADE, SKIPPED, FAILED = 1, 2, 3
"""The outcomes in `Settled`; contracts/seam.vy."""
BOOKS = (
    "deposited",
    "paid",
    "platform",
    "fees",
    "refunded",
    "stakes",
    "sponsorships",
    "burned",
)
"""All of a task's, but for what is left: that is the rest."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What storage proves about a round, as it was closed."""

    number: int
    terms: ProvenTask
    rounds: Mapping[int, RoundInfo]
    """This one and the origins of its updates."""
    shown: Mapping[Address, SubmissionInfo]
    """In the order of the seats."""
    hidden: Mapping[Address, SubmissionInfo]
    """Of who committed and did not reveal."""
    before: Moment
    """The task just before the record, with everybody who had committed."""

    @property
    def round(self) -> RoundInfo:
        """The round itself."""
        return self.rounds[self.number]

    @property
    def weights(self) -> list[int]:
        """Raw weights of what was shown."""
        terms = self.terms.parameters
        return [compute_weight(terms, one, self.number) for one in self.shown.values()]

    @property
    def silent(self) -> dict[Address, ParticipantInfo]:
        """Who committed and could have revealed, but did not."""
        found, before = self.round, self.before
        if found.committed.bit_count() < self.terms.parameters.min_clients:
            return {}
        seats = list_seats(found.committed & ~found.revealed)
        return {before.seats[seat]: before.members[before.seats[seat]] for seat in seats}


@dataclass(frozen=True, slots=True)
class Settling:
    """Checks payments for one report."""

    rpc: Rpc
    trail: Trail
    task: int
    round: int

    def check(self, record: Event, scene: Scene, facts: Facts) -> None:
        """Compare what the block paid and burned with what shares and silence come to.

        Raises Stop. Nothing of `facts.before` may be used afterwards.
        """
        terms, is_made = facts.terms.parameters, record.name == "Aggregated"
        mine = [one for one in scene.events if one.values.get("round") == self.round]
        if is_made:
            shares: Sequence[int] = record.values["shares"]
        else:
            shares = self._check_compensated(mine, facts)
        due = compute_settlement(terms, facts.round.pool, shares, facts.silent, is_made=is_made)
        self._check_settled(mine, self._find_outcome(facts, is_made=is_made), facts, due)
        self._check_books(scene, facts)
        told = f"{due.paid} wei credited by the shares"
        told += f", {due.platform} to the platform" if due.platform else ""
        told += f", {due.burned} burned of {len(due.losses)} silent seats" if due.losses else ""
        self.trail.say("payments", f"{told}; proven")

    def _check_compensated(self, mine: Sequence[Event], facts: Facts) -> Sequence[int]:
        """Return the shares of a round without a model, which its event must have."""
        shares: tuple[int, ...] = ()
        if facts.round.revealed.bit_count() < facts.terms.parameters.min_clients:
            terms = facts.terms.parameters
            silent = [
                weigh_silent(terms, member.samples, facts.hidden[who], facts.number)
                for who, member in facts.silent.items()
            ]
            shares = compute_compensation(terms, facts.weights, silent)
        told = [
            (one.values["clients"], one.values["shares"])
            for one in mine
            if one.name == "Compensated"
        ]
        expected = [(list(facts.shown), list(shares))] if shares else []
        self.trail.compare("payments", "recomputed", {"compensation": (told, expected)})
        return shares

    def _find_outcome(self, facts: Facts, *, is_made: bool) -> int:
        if is_made:
            return MADE
        terms = facts.terms.parameters
        is_failed = facts.round.revealed.bit_count() < terms.min_clients
        gives_up = terms.on_failed_quorum == OnFailedQuorum.REFUND
        return FAILED if is_failed and gives_up else SKIPPED

    def _check_settled(
        self, mine: Sequence[Event], outcome: int, facts: Facts, due: Settlement
    ) -> None:
        """Compare Settled and Slashed of this round with what is due."""
        settled = [one.values for one in mine if one.name == "Settled"]
        if len(settled) != 1:
            self.trail.refute("payments", f"the round was settled {len(settled)} times")
        slashed = {
            one.values["participant"]: (one.values["amount"], one.values["sponsored"])
            for one in mine
            if one.name == "Slashed"
        }
        self.trail.compare(
            "payments",
            "recomputed",
            {
                "outcome": (settled[0]["outcome"], outcome),
                "pool": (settled[0]["pool"], facts.round.pool),
                "pay": (settled[0]["paid"], due.paid),
                "platform fee": (settled[0]["platform"], due.platform),
                "bonds": (slashed, dict(due.losses)),
                "burned": (settled[0]["burned"], due.burned),
            },
        )

    def _check_books(self, scene: Scene, facts: Facts) -> None:
        """Compare credits, books and stakes after the block with those before it."""
        terms, publisher = facts.terms.parameters, facts.terms.publisher
        due = compute_credits(scene.events, terms, publisher)
        owners = list(dict.fromkeys([*facts.shown, terms.platform, publisher, *due.owners]))
        fees: Counter[int] = Counter()
        for one in scene.events:
            if one.name == "ClosePaid":
                fees[one.values["round"]] += one.values["fee"]
        with self.trail.proofs("payments"):
            old, new = Storage(self.rpc, scene.parent), Storage(self.rpc, scene.block)
            claims = [one.read_claimable(self.task, owners) for one in (old, new)]
            was, now = old.read_account(self.task), new.read_account(self.task)
            spent = old.read_spent(self.task, fees)
            carried = compare_moment(facts.before, new, self.task, scene)
        for owner, before, after in zip(owners, *claims, strict=True):
            expected = due.owners.get(owner, 0)
            if after - before not in (expected, expected + due.released.get(owner, 0)):
                self.trail.refute(
                    "payments", f"{as_hex(owner)} was credited {after - before} wei, not {expected}"
                )
        books: dict[str, Any] = {
            name: (getattr(now, name) - getattr(was, name), getattr(due, name)) for name in BOOKS
        }
        self.trail.compare("payments", "by the events", books)
        parts = now.left + now.paid + now.fees + now.platform + now.refunded
        self.trail.compare("payments", "in all its parts", {"escrow": (now.deposited, parts)})
        self.trail.compare("payments", "by the events", carried)
        for number, fee in fees.items():
            if fee + spent[number] > terms.close_reserve:
                self.trail.refute(
                    "payments",
                    f"closing round {number} cost {fee + spent[number]} wei, above the reserve",
                )

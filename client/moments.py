"""A task as it stood between two events of one block.

State can be proven as it was before a block and after it, but what happened to a round happened
somewhere inside. So the proven state of the parent is carried forward by the block's own proven
events (docs/tasks.md, "Events"), up to the one that is looked at.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from steelyard.chain.trie import InvalidProof
from steelyard.chain.types import Address, BlobName

from .abi import Event
from .finalized import Scene
from .proven import ProvenTask, Storage
from .records import ParticipantInfo

ROSTER_EVENTS: Final = ("Slashed", "StakeAdded", "Left")
NOBODY: Final = Address(bytes(20))
MAX_SEATS: Final = 128
"""A word of a block that is not final may name any seat, and sets of seats are numbers."""


@dataclass(slots=True)
class Moment:
    """What the contracts held about one task. `seats` and `members`: those that were asked for."""

    base_stake: int
    model: BlobName
    velocity: BlobName
    reward_left: int
    ready: int
    seats: dict[int, Address]
    members: dict[Address, ParticipantInfo]

    def pass_events(self, events: Iterable[Event]) -> None:
        """Carry this forward over events, in their order."""
        for event in events:
            self._pass_money(event)
            self._pass_roster(event)
            if event.name == "Aggregated":
                self.model = event.values["model"]
                if event.values["velocity"].size:
                    self.velocity = event.values["velocity"]

    def _pass_money(self, event: Event) -> None:
        values = event.values
        match event.name:
            case "Published":
                self.model = values["model"]
                self.reward_left = values["parameters"]["reward"]
                self.base_stake = values["parameters"]["base_stake"]
            case "Funded":
                self.reward_left += values["amount"]
            case "Settled":
                self.reward_left -= values["paid"] + values["platform"]
            case "Refunded":
                self.reward_left = 0

    def _pass_roster(self, event: Event) -> None:
        values = event.values
        who: Address = values.get("participant", NOBODY)
        match event.name:
            case "Joined":
                check_seat(values["seat"])
                self.members[who] = ParticipantInfo(
                    values["stake"],
                    values["sponsored"],
                    values["samples"],
                    values["active_from"],
                    values["seat"] + 1,
                )
                self.seats[values["seat"]] = who
                self.ready |= 1 << values["seat"]
            case "StakeAdded" if who in self.members:
                self._set_stake(who, self.members[who].stake + values["amount"], 0)
            case "Slashed" if who in self.members:
                stake = self.members[who].stake - values["amount"]
                self._set_stake(who, stake, values["sponsored"])
            case "Left" if who in self.members:
                seat = self.members.pop(who).seat
                self.seats.pop(seat, None)
                self.ready &= ~(1 << seat)

    def _set_stake(self, who: Address, stake: int, lost: int) -> None:
        """`lost`: of the sponsor's part."""
        member = self.members[who]
        self.members[who] = replace(member, stake=stake, sponsored=member.sponsored - lost)
        bit = 1 << member.seat
        self.ready = self.ready | bit if stake >= self.base_stake else self.ready & ~bit


def check_seat(seat: int) -> None:
    """Raise InvalidProof for a seat that no task has."""
    if seat >= MAX_SEATS:
        raise InvalidProof("a seat that no task has")


def read_moment(
    before: Storage, task: int, terms: ProvenTask, scene: Scene, seats: Iterable[int] = ()
) -> Moment:
    """Return a task as it stood just before the event that a scene looks at.

    `before`: the storage of the scene's parent. `terms`: as they are after the scene's block.
    `seats`: whose owners are wanted, with their stakes. Raises as Storage.
    """
    seated = before.read_seats(task, seats)
    touched = [one.values["participant"] for one in scene.events if one.name in ROSTER_EVENTS]
    members = before.read_participants(task, dict.fromkeys([*seated.values(), *touched]))
    for member in members.values():
        check_seat(member.seat)
    moment = Moment(
        base_stake=terms.parameters.base_stake,
        model=before.read_model(task),
        velocity=before.read_velocity(task),
        reward_left=before.read_account(task).reward_left,
        ready=before.read_ready(task),
        seats=seated,
        members=members,
    )
    moment.pass_events(scene.events[: scene.place])
    return moment


def compare_moment(
    moment: Moment, after: Storage, task: int, scene: Scene
) -> dict[str, tuple[object, object]]:
    """Carry a moment to the end of its block; return pairs of what is stored then and should be."""
    moment.pass_events(scene.events[scene.place :])
    members = after.read_participants(task, list(moment.members))
    return {
        "newest model": (after.read_model(task), moment.model),
        "newest velocity": (after.read_velocity(task), moment.velocity),
        "rest of the reward": (after.read_account(task).reward_left, moment.reward_left),
        "seats to draw from": (after.read_ready(task), moment.ready),
        "stakes": (
            {who: (one.stake, one.sponsored) for who, one in members.items()},
            {who: (one.stake, one.sponsored) for who, one in moment.members.items()},
        ),
    }

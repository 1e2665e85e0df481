"""Calls to Tasks and Rounds, each judged by the model.

A `Referee` sends a call and checks that the contracts took or refused it for the model's reasons,
moved the wei that the model says, and hold the books that the model has. `player` chooses calls.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from steelyard.chain.params import TASKS_ADDRESS
from steelyard.chain.types import Address, BlobName

from .agreement import (
    CLOSE_TIMEOUT_SECONDS,
    FLOOR,
    LOBBY,
    NO_BLOB,
    ONE,
    RUNNING,
    Round,
    Task,
    Verdict,
)
from .arena import GAS, MINER, TIP, Arena, Code, Done
from .course import Course, Reveal
from .reached import list_reached

PUBLISHERS = [Address(bytes([0xA0 + i]) * 20) for i in range(2)]
CLIENTS = [Address(bytes([0xB1 + i]) * 20) for i in range(7)]
KEEPER, PLATFORM = Address(b"\xd0" * 20), Address(b"\xd1" * 20)
PEOPLE = [*PUBLISHERS, *CLIENTS, KEEPER, PLATFORM]


class Referee:
    """One arena and its model, and what participants keep to themselves until they reveal."""

    def __init__(self, codes: Mapping[str, Code], gas_limit: int = GAS) -> None:
        self.arena = Arena(PEOPLE, codes, gas_limit)
        self.model = Course()
        self.sealed: dict[tuple[int, int, Address], Reveal] = {}
        self.calls: Counter[str] = Counter()
        """How often a call ended how: taken, or refused for what."""
        self.reached: Counter[str] = Counter()
        """How often what `reached` lists was reached."""

    # -- doing -----------------------------------------------------------------------------------
    def perform(
        self,
        sender: Address,
        contract: str,
        name: str,
        *arguments: Any,
        verdict: Verdict,
        value: int = 0,
        blobs: Sequence[BlobName] = (),
    ) -> Done:
        """Send a call and check all that came of it."""
        number = arguments[0] if isinstance(arguments[0], int) else 0
        task = self.model.get(number)
        state, wish = task.state, task.wish
        before = self.arena.get_balances()
        done = self.arena.send(sender, contract, name, *arguments, value=value, blobs=blobs)
        expected = Counter(before)
        expected[sender] -= done.fee
        expected[MINER] += done.gas_used * TIP
        if done.reason is None:
            assert not verdict.reasons, f"{name} was taken, although: {sorted(verdict.reasons)}"
            transfers = verdict.effect(done.events)
            tasks = Address(TASKS_ADDRESS)
            expected[sender] -= value
            expected[tasks] += value - sum(transfers.values())
            for who, amount in transfers.items():
                expected[who] += amount
        else:
            is_known = any(done.reason.startswith(reason[:8]) and (
                reason == done.reason or reason.startswith("fedavg")
            ) for reason in verdict.reasons)  # fmt: skip
            assert is_known, f"{name} was refused: {done.reason}, not {sorted(verdict.reasons)}"
        self.calls[f"{name}: {done.reason or 'taken'}"] += 1
        after = self.arena.get_balances()
        assert after == expected, f"{name} moved other wei"
        self.check_money(after)
        self.reached.update(list_reached(name, state, wish, task, done.events))
        if done.reason is None and self.calls.total() % 16 == 0:
            self.check_books(number or 1)
        return done

    def check_money(self, balances: Mapping[Address, int]) -> None:
        """Ether is conserved, and the contracts hold what they owe, to the wei."""
        assert sum(balances.values()) + self.arena.burned == self.arena.supply
        held = sum(task.held for task in self.model.tasks.values())
        assert balances[Address(TASKS_ADDRESS)] == held

    def check_books(self, number: int) -> None:
        """What the contracts answer about a task is what the model has."""
        ask, task = self.arena.ask, self.model.get(number)
        check_account(ask("Tasks", "get_account", number), task)
        stored = ask("Tasks", "get_task", number)
        for name in ("publisher", "state", "model", "join_ends", "wish", "pause_ends"):
            assert stored[name] == getattr(task, name), name
        assert stored["round"] == task.number
        action = tuple(ask("Tasks", "next_action", number))
        assert action == self.model.compute_next_action(self.arena.now, task)
        occupied = sum(1 << member.seat for member in task.members.values())
        assert ask("Tasks", "get_seats", number) == [occupied, task.list_ready()]
        for who in PEOPLE:
            self._check_person(number, task, who)
        for round_ in {task.number, max(task.number - 1, 1)} & set(task.rounds):
            check_round(ask("Rounds", "get_round", number, round_), task.rounds[round_])
            ends = ask("Rounds", "get_evaluation_ends", number, round_)
            assert ends == task.evaluations.get(round_, 0)
        assert ask("Rounds", "get_velocity", number) == task.velocity

    def _check_person(self, number: int, task: Task, who: Address) -> None:
        ask, member = self.arena.ask, task.members.get(who)
        assert ask("Tasks", "claimable", number, who) == task.claimable[who]
        if who not in CLIENTS:
            return
        assert ask("Tasks", "get_sponsorship", number, who) == task.sponsorships[who]
        found = tuple(ask("Tasks", "get_participant", number, who).values())
        expected = (0,) * 5
        if member is not None:
            position = member.seat + 1
            expected = (
                member.stake,
                member.sponsored,
                member.samples,
                member.active_from,
                position,
            )
        assert found == expected
        reputation = ask("Tasks", "get_reputation", task.publisher, who)
        assert reputation == self.model.get_reputation(task.publisher, who)
        assert FLOOR <= reputation <= ONE

    # -- leaving ---------------------------------------------------------------------------------
    def finish(self) -> None:
        """Nobody is stuck: whatever was played, time alone lets everybody take out all it has."""
        while any(task.is_open for task in self.model.tasks.values()):
            for number, task in self.model.tasks.items():
                self._end(number, task)
            self.arena.advance(CLOSE_TIMEOUT_SECONDS)
        for number, task in self.model.tasks.items():
            for who in PEOPLE:
                if who in task.members:
                    self._take(number, who, "leave", self.model.leave(self.arena.now, task, who))
                if task.sponsorships[who]:
                    verdict = self.model.unsponsor(task, task.publisher, who)
                    self._take(number, task.publisher, "unsponsor", verdict, who)
            for who in PEOPLE:
                if task.claimable[who]:
                    self._take(number, who, "claim", self.model.claim(task, who))
            if task.left:
                verdict = self.model.refund(task, task.publisher)
                self._take(number, task.publisher, "refund", verdict)
            self.check_books(number)
        assert self.arena.get_balances()[Address(TASKS_ADDRESS)] == 0

    def _end(self, number: int, task: Task) -> None:
        """Do for one task what anybody may do to end it."""
        now = self.arena.now
        if task.state == RUNNING and now < self.model.get_due(task) + CLOSE_TIMEOUT_SECONDS:
            return
        if task.state == LOBBY and now >= task.join_ends and not self.model.is_stale(now, task):
            self._take(number, KEEPER, "start", self.model.start(now, task, KEEPER))
        elif task.state == RUNNING or self.model.is_stale(now, task):
            self._take(number, KEEPER, "abort", self.model.abort(now, task))

    def _take(
        self, number: int, sender: Address, name: str, verdict: Verdict, *arguments: Any
    ) -> None:
        done = self.perform(sender, "Tasks", name, number, *arguments, verdict=verdict)
        assert done.reason is None, f"{name}: {done.reason}"


def check_account(account: Mapping[str, int], task: Task) -> None:
    """The contract's books obey the law, and are the model's."""
    spent = sum(account[name] for name in ("paid", "fees", "platform", "refunded"))
    assert account["deposited"] == account["left"] + spent
    assert account["reward_left"] <= account["left"]
    stakes = sum(member.stake for member in task.members.values())
    expected = {"left": task.left, "stakes": stakes, "sponsorships": task.sponsorships.total()}
    for name, amount in account.items():
        assert amount == expected.get(name, task.books[name]), name


def check_round(stored: Mapping[str, Any], round_: Round) -> None:
    """A round is stored as the model has it."""
    for name, value in stored.items():
        if name not in {"seed", "model"}:
            assert value == getattr(round_, name), name
    assert stored["model"] == (round_.model or NO_BLOB)

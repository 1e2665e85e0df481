"""Random calls to Tasks and Rounds: most often one that could be taken, now and then any."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from random import Random
from typing import Any

import numpy as np
from eth_abi.abi import encode
from eth_hash.auto import keccak

from steelyard.chain import precompile
from steelyard.chain.model import Manifest, Role, TensorSpec, encode_model
from steelyard.chain.types import Address, BlobName, Digest, TaskId
from steelyard.chain.types import Round as RoundNumber
from steelyard.chain.update import Mode, UpdateHeader, encode_update

from .agreement import (
    ABORTED,
    CLOSE_TIMEOUT_SECONDS,
    FINISHED,
    FLOOR,
    LOBBY,
    ONE,
    PAUSED,
    RUNNING,
    Task,
    Verdict,
)
from .arena import CHAIN_ID, Arena, Done
from .course import Reveal, compute_commitment
from .referee import CLIENTS, KEEPER, NO_BLOB, PEOPLE, PLATFORM, PUBLISHERS, Referee
from .terms import make_terms

MANIFEST = Manifest(tuple(TensorSpec(f"t{i}", (2,), "float32", 24, Role.TRAIN) for i in range(3)))
VALUES = 6
PLAN = keccak(
    b"plan((uint8,uint256,uint256,uint256,uint256),(bytes32,uint256),uint256,uint256,uint256)"
)[:4]
MAX_TASKS = 4
"""Open at a time."""


def as_tuple(name: BlobName) -> tuple[bytes, int]:
    return name.digest, name.size


def encode_terms(arena: Arena, terms: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the parameters of a task in the order of the ABI."""
    function = arena.contracts["Tasks"]._functions["publish"]
    names = [entry["name"] for entry in function["inputs"][1]["components"]]
    rule = tuple(terms["rule"].values())
    return tuple(rule if name == "rule" else terms[name] for name in names)


class Player(Referee):
    """Chooses calls with a `Random` that its user brings."""

    focus = 0
    """The task that the next call is probably about; 0 is none."""

    # -- choosing --------------------------------------------------------------------------------
    def pick_task(self, random: Random, *states: int) -> tuple[int, Task]:
        """Return a task, in one of these states if there is one; now and then any, or none."""
        tasks = self.model.tasks
        if self.focus and random.random() < 0.98:
            return self.focus, tasks[self.focus]
        fitting = [number for number, task in tasks.items() if task.state in states]
        if fitting and random.random() < 0.95:
            number = random.choice(fitting)
        else:
            number = random.randint(0 if not tasks else 1, len(tasks) + (random.random() < 0.1))
        return number, self.model.get(number)

    def pick_client(self, random: Random, fitting: Sequence[Address]) -> Address:
        """Return one of these clients; now and then anybody."""
        if fitting and random.random() < 0.93:
            return random.choice(list(fitting))
        return random.choice(PEOPLE)

    def pick_publisher(self, random: Random, task: Task) -> Address:
        is_fitting = task.state and random.random() < 0.93
        return task.publisher if is_fitting else random.choice(PEOPLE)

    # -- the organisation ------------------------------------------------------------------------
    def publish(self, random: Random) -> None:
        if sum(task.is_open for task in self.model.tasks.values()) >= MAX_TASKS:
            return
        terms = make_terms(random, PLATFORM)
        sender = random.choice(PUBLISHERS)
        value = terms["reward"] + terms["rounds"] * terms["close_reserve"]
        value += random.random() < 0.05
        highest = 2**31 - 1 if random.random() < 0.2 else 1_000
        values = np.full(VALUES, highest, np.int32) - np.arange(VALUES, dtype=np.int32)
        model = self.arena.put(encode_model(MANIFEST, values))
        invited = random.sample(CLIENTS, 4) if terms["admission"] or random.random() < 0.03 else []
        verdict = self.model.publish(self.arena.now, sender, value, terms, model, invited)
        split = pick_split(random, terms["rule"]["kind"])
        with force_split(*split) if any(split) else nullcontext():
            done = self.perform(
                sender, "Tasks", "publish", "heart", encode_terms(self.arena, terms),
                as_tuple(model), as_tuple(NO_BLOB), invited, verdict=verdict, value=value,
                blobs=[model],
            )  # fmt: skip
        if done.reason is None:
            number = len(self.model.tasks)
            self.model.tasks[number].pages = sum(split)

    def fund(self, random: Random) -> None:
        number, task = self.pick_task(random, LOBBY, RUNNING, PAUSED)
        value = random.choice((0, 1, 999, 10**12, 2**100, 2**100 + 1))
        self.perform(
            random.choice(PEOPLE), "Tasks", "fund", number,
            verdict=self.model.fund(task, value), value=value,
        )  # fmt: skip

    def invite(self, random: Random) -> None:
        number, task = self.pick_task(random, LOBBY, RUNNING, PAUSED)
        sender, who = self.pick_publisher(random, task), random.choice(CLIENTS)
        self.perform(
            sender, "Tasks", "invite", number, [who],
            verdict=self.model.invite(task, sender, [who]),
        )  # fmt: skip

    def uninvite(self, random: Random) -> None:
        number, task = self.pick_task(random, LOBBY, RUNNING, PAUSED)
        sender = self.pick_publisher(random, task)
        who = self.pick_client(random, sorted(task.invited))
        self.perform(
            sender, "Tasks", "uninvite", number, who,
            verdict=self.model.uninvite(task, sender, who),
        )  # fmt: skip

    def sponsor(self, random: Random) -> None:
        number, task = self.pick_task(random, LOBBY, RUNNING, PAUSED)
        sender = self.pick_publisher(random, task)
        who = self.pick_client(random, [who for who in CLIENTS if who not in task.members])
        whole = self.compute_stake(task, 5)
        value = random.choice((0, 7, whole // 2, whole, whole, 2**100 + 1))
        gas_wei = random.choice((0, 0, value // 3, value, value + 1))
        self.perform(
            sender, "Tasks", "sponsor", number, who, gas_wei,
            verdict=self.model.sponsor(task, sender, who, value, gas_wei), value=value,
        )  # fmt: skip

    def unsponsor(self, random: Random) -> None:
        number, task = self.pick_task(random, LOBBY, RUNNING, PAUSED)
        sender = self.pick_publisher(random, task)
        who = self.pick_client(random, sorted(+task.sponsorships))
        self.perform(
            sender, "Tasks", "unsponsor", number, who,
            verdict=self.model.unsponsor(task, sender, who),
        )  # fmt: skip

    def pause(self, random: Random) -> None:
        number, task = self.pick_task(random, RUNNING)
        sender = self.pick_publisher(random, task)
        self.perform(sender, "Tasks", "pause", number, verdict=self.model.pause(task, sender))

    def resume(self, random: Random) -> None:
        number, task = self.pick_task(random, PAUSED)
        sender = self.pick_publisher(random, task)
        verdict = self.model.resume(self.arena.now, task, sender)
        self.perform(sender, "Tasks", "resume", number, verdict=verdict)

    def cancel(self, random: Random) -> None:
        number, task = self.pick_task(random, LOBBY, RUNNING, PAUSED)
        sender = self.pick_publisher(random, task)
        self.perform(sender, "Tasks", "cancel", number, verdict=self.model.cancel(task, sender))

    def refund(self, random: Random) -> None:
        number, task = self.pick_task(random, 3, 4)
        sender = self.pick_publisher(random, task)
        self.perform(sender, "Tasks", "refund", number, verdict=self.model.refund(task, sender))

    # -- participants ----------------------------------------------------------------------------
    def compute_stake(self, task: Task, samples: int) -> int:
        """Return what covers so many samples."""
        if not task.terms:
            return 1
        return int(task.terms["base_stake"] + samples * task.terms["stake_per_sample"])

    def apply(self, random: Random) -> None:
        number, task = self.pick_task(random, LOBBY, RUNNING, PAUSED)
        sender = random.choice(CLIENTS)
        self.perform(
            sender, "Tasks", "apply", number, (b"\1" * 32, 9),
            verdict=self.model.apply(task, sender),
        )  # fmt: skip

    def join(self, random: Random) -> None:
        number, task = self.pick_task(random, LOBBY, LOBBY, RUNNING, PAUSED)
        outside = [who for who in CLIENTS if who not in task.members]
        if task.terms and task.terms["admission"]:
            outside = [who for who in outside if who in task.invited] or outside
        sponsored = [who for who in outside if task.sponsorships[who]]
        sender = self.pick_client(random, sponsored or outside)
        samples = random.choice((1, 5, 10, 1_000))
        value = max(0, self.compute_stake(task, samples) - task.sponsorships[sender])
        if random.random() < 0.1:
            samples = random.choice((0, samples + 1, 2**64 - 1, 2**64))
        if random.random() < 0.1:
            value = random.choice((0, max(0, value - 1), value + 3, 2**100, 2**100 + 1))
        verdict = self.model.join(self.arena.now, task, sender, value, samples)
        self.perform(sender, "Tasks", "join", number, samples, verdict=verdict, value=value)

    def add_stake(self, random: Random) -> None:
        number, task = self.pick_task(random, LOBBY, RUNNING, PAUSED)
        sender = self.pick_client(random, sorted(task.members))
        value = random.choice((0, 1, 50, 10**6, 2**100, 2**100 + 1))
        verdict = self.model.add_stake(task, sender, value)
        self.perform(sender, "Tasks", "add_stake", number, verdict=verdict, value=value)

    def commit(self, random: Random) -> None:
        number, task = self.pick_task(random, RUNNING)
        current = task.number
        origin = self._pick_origin(random, task)
        sender = self.pick_client(random, self._list_waiting(task, origin))
        member = task.members.get(sender)
        samples = random.choice((1, member.samples if member else 3))
        if random.random() < 0.03:
            samples = random.choice((0, samples + 1, 2**64))
        if random.random() < 0.03:
            current = random.choice((current - 1, current + 1)) if current else 1
        shown = self._prepare(random, number, task, origin, sender, samples)
        commitment = compute_commitment(number, current, sender, shown)
        if random.random() < 0.02:
            commitment = bytes(32)
        blobs = self._renew(task, origin) if random.random() < 0.3 else []
        verdict = self.model.commit(
            self.arena.now, self._foresee(blobs), task, sender, current, origin, commitment
        )
        done = self.perform(
            sender, "Rounds", "commit", number, current, origin, commitment, verdict=verdict,
            blobs=blobs,
        )  # fmt: skip
        if done.reason is None:
            self.sealed[number, current, sender] = shown

    def _pick_origin(self, random: Random, task: Task) -> int:
        """Return the current round or, if somebody is late for one, an earlier round."""
        number = task.number
        if random.random() < 0.05:
            return max(0, number + random.choice((-3, -2, -1, 1)))
        staleness = int(task.terms.get("max_staleness", 0))
        late = [origin for origin in range(max(1, number - staleness), number)
                if self._list_waiting(task, origin)]  # fmt: skip
        # Where late updates count for nothing, now and then all of them are late.
        eagerness = 0.4 if task.terms.get("staleness_discount") else 0.9
        return random.choice(late) if late and random.random() < eagerness else number

    def _list_waiting(self, task: Task, origin: int) -> list[Address]:
        """Return who may still commit for `origin`."""
        if task.state != RUNNING or origin not in task.rounds:
            return sorted(task.members)
        seats = task.rounds[origin].drawn & ~task.round.committed & ~task.answered[origin]
        return [
            who
            for who, member in sorted(task.members.items())
            if seats >> member.seat & 1 and member.active_from <= origin
        ]

    def _prepare(
        self, random: Random, number: int, task: Task, origin: int, sender: Address, samples: int
    ) -> Reveal:
        """Make an update; now and then one that somebody else made, or for another origin."""
        made = task.rounds.get(origin)
        base = made.base if made else NO_BLOB
        is_valid = random.random() < 0.95
        maker = sender if is_valid else Address(b"\xee" * 20)
        header = UpdateHeader(
            mode=Mode.OPEN, bits=8, round=RoundNumber(max(origin, 1)), chain_id=CHAIN_ID,
            task=TaskId(max(number, 1)), values=VALUES, exponents=3, base=base, sender=maker,
        )  # fmt: skip
        is_copy = random.random() < 0.25
        numbers = [1 if is_copy else random.randint(-3, 3) for _ in range(VALUES)]
        values = np.array(numbers, np.int8)
        data = encode_update(header, np.full(3, -20, np.int8), values)
        salt = keccak(b"salt" + random.randbytes(8))
        is_declared = random.random() < 0.98
        name = self.arena.put(data)
        if not is_declared:
            name = BlobName(Digest(keccak(data)), len(data))
        return Reveal(origin, name, samples, salt, is_valid and is_declared)

    def reveal(self, random: Random) -> None:
        number, task = self.pick_task(random, RUNNING)
        current = task.number
        sender = self.pick_client(random, self.list_sealed(number, task))
        if random.random() < 0.03:
            current = random.choice((current - 1, current + 1)) if current else 1
        shown = self.sealed.get((number, current, sender))
        if shown is None or random.random() < 0.03:
            shown = Reveal(task.number, NO_BLOB, 1, bytes(32), is_valid=False)
        blobs = [name for name in (shown.update,) if name in self.arena.shelf.held]
        if random.random() < 0.3:
            blobs += self._renew(task, shown.origin)
        if random.random() < 0.05:
            blobs = []
        expiry = self._foresee(blobs)
        verdict = self.model.reveal(self.arena.now, expiry, task, sender, current, number, shown)
        self.perform(
            sender, "Rounds", "reveal", number, current, shown.origin, as_tuple(shown.update),
            shown.samples, shown.salt, verdict=verdict, blobs=blobs,
        )  # fmt: skip

    def list_sealed(self, number: int, task: Task) -> list[Address]:
        """Return who can still reveal something sound in the current round."""
        if task.state != RUNNING:
            return []
        found = []
        for who, said in sorted(task.round.submissions.items()):
            shown = self.sealed[number, task.number, who]
            is_covered = self.model.is_covered(task, task.members[who], shown.samples)
            if said.update is None and shown.is_valid and shown.samples and is_covered:
                found.append(who)
        return found

    def _renew(self, task: Task, origin: int) -> list[BlobName]:
        """Return what a transaction declares again so that the round can go on."""
        if task.state != RUNNING:
            return []
        bases = {task.round.base, task.rounds.get(origin, task.round).base, task.round.velocity}
        return sorted((name for name in bases if name.size), key=as_tuple)

    def _foresee(self, blobs: Sequence[BlobName]) -> Any:
        """Return when blobs expire, once a transaction that declares these has begun."""
        declared = self.arena.now + self.arena.rules.blob_retention_seconds
        renewed = dict.fromkeys(blobs, declared)
        return lambda name: renewed.get(name, self.arena.expiry.get(name, 0))

    def report(self, random: Random) -> None:
        number, task = self.pick_task(random, RUNNING, PAUSED, FINISHED)
        evaluated = [each for each, other in self.model.tasks.items() if self.list_evaluated(other)]
        if evaluated and random.random() < 0.8:
            number = random.choice(evaluated)
            task = self.model.get(number)
        round_ = random.choice([*self.list_evaluated(task), *task.evaluations, task.number])
        reported = {who for about, who in task.reported if about == round_}
        sender = self.pick_client(random, sorted(set(task.members) - reported))
        samples = random.choice((1, 500, 2**64 - 1, random.choice((0, 2**64))))
        values = [random.randint(-ONE, ONE)] * random.choice((0, 1, 1, 3, 8))
        verdict = self.model.report(self.arena.now, task, sender, round_, samples, len(values))
        self.perform(sender, "Rounds", "report", number, round_, samples, values, verdict=verdict)

    def list_evaluated(self, task: Task) -> list[int]:
        """Return the rounds about which reports are taken."""
        return [number for number, ends in task.evaluations.items() if self.arena.now < ends]

    def request_evaluation(self, random: Random) -> None:
        number, task = self.pick_task(random, RUNNING, PAUSED, 3)
        sender = self.pick_publisher(random, task)
        round_ = random.randint(0, task.number + 1)
        verdict = self.model.request_evaluation(self.arena.now, task, sender, round_)
        self.perform(sender, "Rounds", "request_evaluation", number, round_, verdict=verdict)

    def claim(self, random: Random) -> None:
        number, task = self.pick_task(random, RUNNING, PAUSED, 3, 4)
        sender = self.pick_client(random, sorted(+task.claimable))
        self.perform(sender, "Tasks", "claim", number, verdict=self.model.claim(task, sender))

    def leave(self, random: Random) -> None:
        number, task = self.pick_task(random, LOBBY, RUNNING, PAUSED, 3, 4)
        sender = self.pick_client(random, sorted(task.members))
        verdict = self.model.leave(self.arena.now, task, sender)
        self.perform(sender, "Tasks", "leave", number, verdict=verdict)

    # -- anybody ---------------------------------------------------------------------------------
    def start(self, random: Random) -> None:
        number, task = self.pick_task(random, LOBBY)
        sender = self.pick_publisher(random, task)
        verdict = self.model.start(self.arena.now, task, sender)
        self.perform(sender, "Tasks", "start", number, verdict=verdict)

    def close(self, random: Random) -> None:
        number, task = self.pick_task(random, RUNNING)
        round_ = task.number
        if random.random() < 0.03:
            round_ = random.choice((round_ + 1, max(round_ - 1, 0)))
        self.close_round(number, round_, random.choice((KEEPER, KEEPER, *PEOPLE)))

    def close_round(self, number: int, round_: int, sender: Address) -> Done:
        task = self.model.get(number)
        verdict = self.model.close(self.arena.now, self._foresee(()), task, sender, round_)
        return self.perform(sender, "Rounds", "close", number, round_, verdict=verdict)

    def abort(self, random: Random) -> None:
        number, task = self.pick_task(random, LOBBY, RUNNING, PAUSED)
        verdict = self.model.abort(self.arena.now, task)
        self.perform(random.choice(PEOPLE), "Tasks", "abort", number, verdict=verdict)

    def release(self, random: Random) -> None:
        number, task = self.pick_task(random, FINISHED, ABORTED)
        who = self.pick_client(random, sorted(task.members))
        verdict = self.model.release(task, who)
        self.perform(random.choice(PEOPLE), "Tasks", "release", number, who, verdict=verdict)

    def intrude(self, random: Random) -> None:
        """Call what only the other contract may call."""
        number, _ = self.pick_task(random, RUNNING)
        sender = random.choice(PEOPLE)
        calls: list[tuple[str, str, tuple[Any, ...]]] = [
            ("Tasks", "pay_closer", (number, 1, sender, 10**6, True)),
            ("Tasks", "settle", ((number, 1, 2, as_tuple(NO_BLOB), 0, [], [], 1),)),
            ("Rounds", "open", (number, 9, as_tuple(NO_BLOB), 1, 1)),
            ("Rounds", "drop", (number, 0)),
            ("Rounds", "stop", (number,)),
        ]
        contract, name, arguments = random.choice(calls)
        other = "Rounds" if contract == "Tasks" else "Tasks"
        reason = f"{contract.lower()}: not the contract {other}"
        verdict = Verdict(frozenset({reason}), lambda events: {})
        self.perform(sender, contract, name, *arguments, verdict=verdict)

    def wait(self, random: Random) -> None:
        """Let time pass: a little, or to just before, at or after something's end."""
        now = self.arena.now
        ends = [now + random.choice((1, 1, 3, 10))]
        for task in self.model.tasks.values():
            if task.state == LOBBY and random.random() < 0.1:
                ends.append(task.join_ends)
            elif task.state == RUNNING:
                ends += [task.round.commit_ends, task.round.reveal_ends] * 2
                if random.random() < 0.05:
                    ends.append(self.model.get_due(task) + CLOSE_TIMEOUT_SECONDS)
            elif task.state == PAUSED and random.random() < 0.2:
                ends.append(task.pause_ends)
        end = random.choice([end for end in ends if end > now - 2])
        self.arena.advance(max(1, end - now + random.choice((-1, 0, 0, 0, 1))))


def pick_split(random: Random, kind: int) -> tuple[int, int]:
    """Return pages for a task with this kind of rule; (0, 0) for an aggregation in one call."""
    if random.random() < 0.6:
        return (0, 0)
    return (
        (0, random.randint(2, 3))
        if kind in {0, 2}
        else (random.randint(1, 2), random.randint(1, 3))
    )


@contextmanager
def force_split(measures: int, combines: int) -> Iterator[None]:
    """Have the precompile plan these pages, which no model as small as ours needs."""
    genuine = precompile.call

    def answer(host: Any, data: bytes) -> bytes:
        output = genuine(host, data)
        if data[:4] == PLAN:
            return encode(["uint256"] * 3, [measures, combines, len(MANIFEST.tensors)])
        return output

    precompile.call = answer
    try:
        yield
    finally:
        precompile.call = genuine


ACTIONS = {
    "wait": 4, "publish": 3, "fund": 1, "invite": 2, "uninvite": 1, "sponsor": 3, "unsponsor": 1,
    "pause": 1, "resume": 1, "cancel": 1, "refund": 1, "apply": 1, "join": 6, "add_stake": 3,
    "commit": 4, "reveal": 3, "report": 2, "request_evaluation": 1, "claim": 2, "leave": 2,
    "start": 1, "close": 2, "abort": 1, "intrude": 1, "release": 1,
}  # fmt: skip
"""Anything that may be done, and how often."""
NAMES, WEIGHTS = list(ACTIONS), list(ACTIONS.values())
RUNNING_NAMES = ("leave", "join", "report", "report", "pause")
PAUSED_NAMES = ("resume", "resume", "resume", "leave", "cancel", "abort", "wait", "wait")
"""What is done to a task meanwhile, beside what leads it on."""


def act(player: Player, random: Random) -> None:
    """Do one thing: mostly what leads some task on, else anything."""
    player.focus = 0
    name = random.choices(NAMES, WEIGHTS)[0]
    tasks = [number for number, task in player.model.tasks.items() if task.is_open]
    if tasks and random.random() < 0.65:
        player.focus = random.choice(tasks)
        name = suggest(player, random, player.model.tasks[player.focus])
    getattr(player, name)(random)


def suggest(player: Player, random: Random, task: Task) -> str:
    """Return what would lead a task on, or now and then something else to do with it."""
    if task.state == LOBBY:
        return suggest_in_lobby(player, random, task)
    if task.state == PAUSED:
        return random.choice(PAUSED_NAMES)
    if random.random() < 0.06:
        return random.choice(RUNNING_NAMES)
    now, round_ = player.arena.now, task.round
    if now >= player.model.get_due(task):
        return "close"
    if now < round_.commit_ends:
        return "commit" if round_.drawn & ~round_.committed else "wait"
    if random.random() < 0.05:
        return "wait"
    return "reveal" if player.list_sealed(player.focus, task) else "wait"


def suggest_in_lobby(player: Player, random: Random, task: Task) -> str:
    """Return what would end a lobby."""
    is_enough = len(task.members) >= task.terms["min_clients"]
    if player.arena.now >= task.join_ends:
        return "start" if is_enough else "abort"
    if not is_enough and task.terms["min_reputation"] > FLOOR:
        return random.choice(("join", "cancel"))
    if task.terms["admission"] and len(task.invited) < task.terms["min_clients"]:
        return "invite"
    if random.random() < 0.1:
        return "sponsor"
    return random.choice(("join", "join", "start")) if is_enough else "join"

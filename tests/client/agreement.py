"""Tasks and Rounds in Python, as far as one client sees them (docs/tasks.md): for the ledger.

The model never changes, a page is never needed, gas is free. Everything that a client reads or may
be refused is here, with the contract's own words.
"""

from collections.abc import Callable

from eth_abi.abi import encode
from eth_hash.auto import keccak

from steelyard.chain.artifacts import get_artifact
from steelyard.chain.types import Address, BlobName
from steelyard.client.abi import compute_signature, format_type
from steelyard.client.contracts import compute_commitment, get_contract
from steelyard.client.records import NO_BLOB

from .books import LOBBY, NOTHING, OPEN, Member, Round, Submitted, TaskState

CHAIN_ID = 4242
ONE = 2**20
FLOOR = 2**17
AGGREGATED, SKIPPED, STOPPED = 2, 3, 5
RUNNING, FINISHED, ABORTED, PAUSED = 2, 3, 4, 5
PAUSE, CANCEL = 1, 2
DAY_SECONDS = 86_400
FOREVER = 2**64


class TasksRefusal(Exception):
    """A revert with a reason."""


def demand(is_good: bool, reason: str) -> None:
    if not is_good:
        raise TasksRefusal(reason)


class Agreement:
    """Both contracts. `choose` says which seats a round draws; everybody unless a test says other.

    `pay` is called with an address and wei that leave the contract.
    """

    def __init__(
        self,
        get_time: Callable[[], int],
        write_log: Callable[[bytes, list[bytes], bytes], None],
        pay: Callable[[bytes, int], None],
    ) -> None:
        self._get_time, self._write_log, self._pay = get_time, write_log, pay
        self.tasks: dict[int, TaskState] = {}
        self.reputations: dict[bytes, int] = {}
        self.expiries: dict[BlobName, int] = {}
        self.is_kept = True
        self.choose: Callable[[int, int, list[int]], list[int]] = lambda task, number, seats: seats
        self.contracts = {
            contract.address: contract for contract in map(get_contract, ("Tasks", "Rounds"))
        }
        self._outputs = {
            (contract.address, entry["name"]): [format_type(item) for item in entry["outputs"]]
            for name in ("Tasks", "Rounds")
            for contract in [get_contract(name)]
            for entry in get_artifact(name).abi
            if entry["type"] == "function"
        }
        self._events = {
            entry["name"]: (contract.address, entry)
            for name in ("Tasks", "Rounds")
            for contract in [get_contract(name)]
            for entry in get_artifact(name).abi
            if entry["type"] == "event"
        }

    # -- calls -----------------------------------------------------------------------------------
    def run(self, sender: bytes, to: bytes, data: bytes, value: int) -> None:
        """Carry out one call. Raises TasksRefusal."""
        call = self.contracts[to].decode_call(data)
        assert call is not None, "the client sent a call that the contract lacks"
        name, arguments = call
        getattr(self, f"do_{name}")(sender, value, **arguments)

    def is_call(self, name: str) -> bool:
        return hasattr(self, f"do_{name}")

    def log(self, name: str, indexed: list[object], values: list[object]) -> None:
        address, entry = self._events[name]
        plain = [format_type(item) for item in entry["inputs"] if not item["indexed"]]
        topics = [keccak(compute_signature(entry).encode())]
        for value in indexed:
            topics.append(
                value.rjust(32, b"\0") if isinstance(value, bytes) else value.to_bytes(32, "big")
            )
        self._write_log(address, topics, encode(plain, values))

    # -- the keeper ------------------------------------------------------------------------------
    def keep(self) -> None:
        """Do what is due, as a validator's keeper would."""
        if not self.is_kept:
            return
        for number, task in self.tasks.items():
            enough = len(task.members) >= task.parameters["min_clients"]
            if task.state == LOBBY and self._get_time() >= task.join_ends and enough:
                self._start(number, task)
            if task.state == RUNNING:
                self._close(number, task, task.rounds[task.round])

    def _get_due(self, task: TaskState, current: Round) -> int:
        is_short = len(current.done) < task.parameters["min_clients"]
        return current.commit_ends if is_short else current.reveal_ends

    def _close(self, number: int, task: TaskState, current: Round) -> None:
        least, now = task.parameters["min_clients"], self._get_time()
        is_short = len(current.done) < least
        if now < self._get_due(task, current):
            return
        if len(current.revealed) >= least:
            self._aggregate(number, task, current)
        elif current.extensions < task.parameters["max_extensions"]:
            current.extensions += 1
            if is_short:
                current.commit_ends = now + task.parameters["commit_seconds"]
            start = current.commit_ends if is_short else now
            current.reveal_ends = start + task.parameters["reveal_seconds"]
            ends = [current.extensions, current.commit_ends, current.reveal_ends]
            self.log("RoundExtended", [number, task.round], ends)
            return
        else:
            current.state = SKIPPED
            counts = [len(current.done), len(current.revealed)]
            self.log("RoundSkipped", [number, task.round], counts)
            if not is_short:
                self._compensate(number, task, current)
        if not is_short:
            self._punish(number, task, current)
        self._move_on(number, task, current)

    def _aggregate(self, number: int, task: TaskState, current: Round) -> None:
        current.state, current.model = AGGREGATED, current.base
        clients = current.revealed
        done = [current.done[client] for client in clients]
        weights = [self._weigh(task, one, one.origin) for one in done]
        shares = [weight * ONE // sum(weights) for weight in weights]
        shares[0] += ONE - sum(shares)
        for client, share in zip(clients, shares, strict=True):
            pay = current.pool * share >> 20
            task.claimable[client] = task.claimable.get(client, 0) + pay
            task.left -= pay
            task.reward_left -= pay
            old = self.reputations.get(client, FLOOR)
            self.reputations[client] = old + (ONE - old) // 16
        zeros, base = [0] * len(clients), (current.base.digest, current.base.size)
        names = [(one.update.digest, one.update.size) for one in done]
        none = (NO_BLOB.digest, NO_BLOB.size)
        rule = tuple(task.parameters["rule"].values())
        values = [rule, base, none, clients, [one.origin for one in done], names, weights, shares]
        values += [zeros, zeros, base, none, 0, current.pool]
        self.log("Aggregated", [number, task.round], values)
        every = task.parameters["evaluate_every"]
        if every and (task.round % every == 0 or task.round == task.parameters["rounds"]):
            self._ask_for_reports(number, task, task.round)

    def _compensate(self, number: int, task: TaskState, current: Round) -> None:
        clients = current.revealed
        weights = [self._weigh(task, one, one.origin) for one in map(current.done.get, clients)]
        silent = [
            Submitted(b"", task.round, samples=task.members[who].samples, stake=done.stake)
            for who, done in current.done.items()
            if who not in clients
        ]
        total = sum(weights) + sum(self._weigh(task, one, task.round) for one in silent)
        cap = max(task.parameters["rule"]["max_share"], ONE // len(current.done))
        shares = [min(cap, weight * ONE // total) for weight in weights]
        for client, share in zip(clients, shares, strict=True):
            pay = current.pool * share >> 20
            task.claimable[client] = task.claimable.get(client, 0) + pay
            task.left -= pay
            task.reward_left -= pay
        if clients:
            self.log("Compensated", [number, task.round], [clients, shares])

    def _weigh(self, task: TaskState, one: Submitted, origin: int) -> int:
        counted = {0: one.samples, 1: one.stake}.get(task.parameters["weighting"], 1)
        weight = counted << 20
        for _ in range(task.round - origin):
            weight = weight * task.parameters["staleness_discount"] >> 20
        return weight

    def _ask_for_reports(self, number: int, task: TaskState, which: int) -> None:
        asked = task.rounds[which]
        periods = task.parameters["commit_seconds"] + task.parameters["reveal_seconds"]
        asked.evaluation_ends = self._get_time() + periods
        model = (asked.model.digest, asked.model.size)
        self.log("EvaluationRequested", [number, which], [model, asked.evaluation_ends])

    def _punish(self, number: int, task: TaskState, current: Round) -> None:
        for client, done in current.done.items():
            if not done.update.size and client in task.members:
                lost = min(task.parameters["bond"], task.members[client].stake)
                task.members[client].stake -= lost
                task.burned += lost
                self.log("Slashed", [number, task.round, client], [lost, 0])

    def _move_on(self, number: int, task: TaskState, current: Round) -> None:
        is_failed = current.state == SKIPPED and task.parameters["on_failed_quorum"] == 2
        if is_failed or task.wish == CANCEL:
            self._abort(number, task)
        elif task.round == task.parameters["rounds"]:
            task.state = FINISHED
            self.log("Finished", [number], [(task.model.digest, task.model.size)])
        elif task.wish == PAUSE:
            task.state, task.wish = PAUSED, NOTHING
            self.log("Paused", [number, task.round], [self._get_time() + 30 * DAY_SECONDS])
        else:
            self._open(number, task)

    def _abort(self, number: int, task: TaskState) -> None:
        task.state = ABORTED
        self.log("Aborted", [number, task.publisher], [task.round])

    def _start(self, number: int, task: TaskState) -> None:
        task.state = RUNNING
        self.log("Started", [number], [len(task.members)])
        self._open(number, task)

    def _open(self, number: int, task: TaskState) -> None:
        task.round += 1
        task.pool = task.reward_left // (task.parameters["rounds"] - task.round + 1)
        base_stake = task.parameters["base_stake"]
        ready = sorted(m.seat for m in task.members.values() if m.stake >= base_stake)
        drawn = set(self.choose(number, task.round, ready))
        commit_ends = self._get_time() + task.parameters["commit_seconds"]
        reveal_ends = commit_ends + task.parameters["reveal_seconds"]
        task.rounds[task.round] = Round(
            task.model, task.velocity, task.pool, drawn, commit_ends, reveal_ends
        )
        base, none = (task.model.digest, task.model.size), (NO_BLOB.digest, NO_BLOB.size)
        values = [base, none, task.pool, bytes(32), pack(ready), pack(drawn)]
        self.log("RoundOpened", [number, task.round], [*values, commit_ends, reveal_ends])

    # -- the organisation ------------------------------------------------------------------------
    def do_publish(self, sender, value, name, parameters, model, bundle, invited):
        escrow = parameters["reward"] + parameters["rounds"] * parameters["close_reserve"]
        demand(value == escrow, "tasks: escrow differs from reward and reserves")
        periods = parameters["commit_seconds"] + parameters["reveal_seconds"]
        needed = parameters["join_seconds"] + (parameters["max_extensions"] + 1) * periods
        is_kept = self._get_expiry(model) >= self._get_time() + needed + DAY_SECONDS
        demand(is_kept, "rounds: model expires too soon")
        number = len(self.tasks) + 1
        join_ends = self._get_time() + parameters["join_seconds"]
        self.tasks[number] = TaskState(
            name,
            sender,
            parameters,
            model,
            bundle,
            join_ends,
            set(invited),
            left=value,
            reward_left=parameters["reward"],
        )
        names = [(model.digest, model.size), (bundle.digest, bundle.size)]
        values = [name, flatten(parameters), *names, invited, join_ends]
        self.log("Published", [number, sender], values)

    def _get_own(self, sender: bytes, number: int) -> TaskState:
        demand(self.tasks[number].publisher == sender, "tasks: not the publisher")
        return self.tasks[number]

    def do_fund(self, sender, value, task):
        self.tasks[task].left += value
        self.tasks[task].reward_left += value
        self.log("Funded", [task, sender], [value])

    def do_invite(self, sender, value, task, participants):
        state = self._get_own(sender, task)
        demand(state.parameters["admission"] != 0, "tasks: open to everybody")
        state.invited |= set(participants)
        self.log("Invited", [task], [participants])

    def do_uninvite(self, sender, value, task, participant):
        state = self._get_own(sender, task)
        demand(participant in state.invited, "tasks: not invited")
        state.invited.discard(participant)
        self.log("Uninvited", [task, participant], [])

    def do_sponsor(self, sender, value, task, participant, gas_wei):
        state = self._get_own(sender, task)
        demand(participant not in state.members, "tasks: already joined")
        stake = value - gas_wei
        state.sponsorships[participant] = state.sponsorships.get(participant, 0) + stake
        self._pay(participant, gas_wei)
        self.log("Sponsored", [task, participant], [gas_wei, stake])

    def do_unsponsor(self, sender, value, task, participant):
        amount = self._get_own(sender, task).sponsorships.pop(participant, 0)
        demand(amount > 0, "tasks: nothing sponsored")
        self._pay(sender, amount)
        self.log("Unsponsored", [task, participant], [amount])

    def do_start(self, sender, value, task):
        state = self._get_own(sender, task)
        enough = len(state.members) >= state.parameters["min_clients"]
        demand(enough, "tasks: too few participants")
        self._start(task, state)

    def do_pause(self, sender, value, task):
        state = self._get_own(sender, task)
        demand(state.state == RUNNING, "tasks: not running")
        state.wish = PAUSE

    def do_resume(self, sender, value, task):
        state = self._get_own(sender, task)
        if state.state == PAUSED:
            state.state = RUNNING
            self.log("Resumed", [task], [])
            self._open(task, state)
            return
        demand(state.wish == PAUSE, "tasks: not paused")
        state.wish = NOTHING

    def do_cancel(self, sender, value, task):
        state = self._get_own(sender, task)
        if state.state == RUNNING and state.rounds[state.round].done:
            state.wish = CANCEL
            return
        if state.state == RUNNING:
            state.rounds[state.round].state = STOPPED
        self._abort(task, state)

    def do_refund(self, sender, value, task):
        amount, self.tasks[task].left = self.tasks[task].left, 0
        self._pay(sender, amount)
        self.log("Refunded", [task, sender], [amount])

    def do_request_evaluation(self, sender, value, task, round):
        state = self._get_own(sender, task)
        demand(state.rounds[round].state == AGGREGATED, "rounds: round made no model")
        self._ask_for_reports(task, state, round)

    # -- participants ----------------------------------------------------------------------------
    def do_apply(self, sender, value, task, statement):
        state = self.tasks[task]
        demand(state.parameters["admission"] == 2, "tasks: takes no applicants")
        demand(sender not in state.applied, "tasks: already applied")
        state.applied.add(sender)
        self.log("Applied", [task, sender], [(statement.digest, statement.size)])

    def do_join(self, sender, value, task, samples):
        state = self.tasks[task]
        demand(sender not in state.members, "tasks: already joined")
        demand(self._is_invited(state, sender), "tasks: not invited")
        sponsored = state.sponsorships.pop(sender, 0)
        stake, parameters = value + sponsored, state.parameters
        least = parameters["base_stake"] + samples * parameters["stake_per_sample"]
        demand(stake >= least, "tasks: samples not covered by stake")
        taken = {member.seat for member in state.members.values()}
        seat = min(set(range(128)) - taken)
        state.members[sender] = Member(stake, sponsored, samples, state.round + 1, seat)
        values = [samples, stake, sponsored, state.round + 1, seat]
        self.log("Joined", [task, sender], values)
        if state.state == LOBBY and len(state.members) == parameters["max_clients"]:
            self._start(task, state)

    def do_add_stake(self, sender, value, task):
        demand(sender in self.tasks[task].members, "tasks: not a participant")
        self.tasks[task].members[sender].stake += value
        self.log("StakeAdded", [task, sender], [value])

    def do_claim(self, sender, value, task):
        amount = self.tasks[task].claimable.pop(sender, 0)
        demand(amount > 0, "tasks: nothing to claim")
        self._pay(sender, amount)
        self.log("Claimed", [task, sender], [amount])

    def do_leave(self, sender, value, task):
        state = self.tasks[task]
        gone = state.members.pop(sender)
        if gone.sponsored:
            earned = state.claimable.get(state.publisher, 0)
            state.claimable[state.publisher] = earned + gone.sponsored
        own = gone.stake - gone.sponsored
        self._pay(sender, own)
        self.log("Left", [task, sender], [own, gone.sponsored])

    def do_release(self, sender, value, task, participant):
        state = self.tasks[task]
        demand(state.state in (FINISHED, ABORTED), "tasks: not over")
        demand(participant in state.members, "tasks: not a participant")
        gone = state.members.pop(participant)
        own = gone.stake - gone.sponsored
        for owner, amount in ((participant, own), (state.publisher, gone.sponsored)):
            if amount:
                state.claimable[owner] = state.claimable.get(owner, 0) + amount
        self.log("Left", [task, participant], [own, gone.sponsored])

    def do_close(self, sender, value, task, round):
        current, state = self._get_open(task, round), self.tasks[task]
        demand(self._get_time() >= self._get_due(state, current), "rounds: not due")
        self._close(task, state, current)
        is_last = current.state != OPEN
        fee = state.parameters["close_bounty"] if is_last else 0
        state.claimable[sender] = state.claimable.get(sender, 0) + fee
        state.left -= fee
        self.log("ClosePaid", [task, round, sender], [fee])

    def _get_open(self, task: int, number: int) -> Round:
        state = self.tasks[task]
        is_open = state.state == RUNNING and state.round == number
        demand(is_open, "rounds: not the current round")
        return state.rounds[number]

    def _get_expiry(self, name: BlobName) -> int:
        return self.expiries.get(name, 0) if name.size else FOREVER

    def do_commit(self, sender, value, task, round, origin, commitment):
        current, state = self._get_open(task, round), self.tasks[task]
        demand(sender in state.members, "rounds: not a participant")
        member, parameters = state.members[sender], state.parameters
        demand(member.active_from <= origin, "rounds: not active in that round")
        demand(member.stake >= parameters["base_stake"], "rounds: stake below the base stake")
        demand(self._get_time() < current.commit_ends, "rounds: commit period is over")
        demand(sender not in current.done, "rounds: already committed")
        is_near = origin <= round <= origin + parameters["max_staleness"]
        demand(is_near, "rounds: origin out of range")
        demand(member.seat in state.rounds[origin].drawn, "rounds: not drawn")
        answered = any(
            sender in one.revealed and one.done[sender].origin == origin
            for one in state.rounds.values()
        )
        demand(not answered, "rounds: already answered")
        periods = parameters["commit_seconds"] + parameters["reveal_seconds"]
        left = (parameters["max_extensions"] - current.extensions) * periods
        for name in (state.rounds[origin].base, current.base, current.velocity):
            what = "model expires too" if name != current.velocity else "velocity expires"
            is_readable = self._get_expiry(name) >= current.reveal_ends + DAY_SECONDS + left
            demand(is_readable, f"rounds: {what} soon")
        current.done[sender] = Submitted(commitment, origin, stake=member.stake)
        self.log("Committed", [task, round, sender], [origin, commitment])
        seats = {state.members[client].seat for client in current.done if client in state.members}
        if current.drawn <= seats and len(current.done) >= parameters["min_clients"]:
            current.commit_ends = self._get_time()
            current.reveal_ends = self._get_time() + parameters["reveal_seconds"]

    def do_reveal(self, sender, value, task, round, origin, update, samples, salt):
        current, state = self._get_open(task, round), self.tasks[task]
        demand(sender in current.done, "rounds: no commitment")
        done = current.done[sender]
        demand(not done.update.size, "rounds: already revealed")
        demand(self._get_time() >= current.commit_ends, "rounds: commit period is running")
        demand(self._get_time() < current.reveal_ends, "rounds: reveal period is over")
        enough = len(current.done) >= state.parameters["min_clients"]
        demand(enough, "rounds: too few commitments")
        about = (CHAIN_ID, task, round, origin, Address(sender), update, samples, salt)
        is_same = done.origin == origin and compute_commitment(*about) == done.commitment
        demand(is_same, "rounds: differs from the commitment")
        is_read = self._get_expiry(state.rounds[origin].base) >= self._get_time()
        demand(is_read, "fedavg: blob_expired")
        done.update, done.samples = update, samples
        values = [origin, (update.digest, update.size), samples, 1]
        self.log("Revealed", [task, round, sender], values)
        if len(current.revealed) == len(current.done):
            current.reveal_ends = self._get_time()

    def do_report(self, sender, value, task, round, samples, values):
        current = self.tasks[task].rounds[round]
        demand(self._get_time() < current.evaluation_ends, "rounds: evaluation is over")
        demand(sender not in current.reports, "rounds: already reported")
        current.reports[sender] = (samples, values)
        self.log("Reported", [task, round, sender], [samples, values])

    # -- views -----------------------------------------------------------------------------------
    def answer(self, to: bytes, name: str, arguments: dict[str, object]) -> bytes:
        """What a view answers."""
        return encode(self._outputs[to, name], getattr(self, f"view_{name}")(**arguments))

    def view_task_count(self):
        return [len(self.tasks)]

    def view_get_task(self, task):
        found = self.tasks.get(task)
        none = (NO_BLOB.digest, NO_BLOB.size)
        if found is None:
            parameters = ((0,) * 5, *[0] * 25, bytes(20), 0)
            return [("", bytes(20), 0, parameters, none, none, 0, 0, 0, 0, 0)]
        names = [(n.digest, n.size) for n in (found.bundle, found.model)]
        head = (found.name, found.publisher, found.state, flatten(found.parameters), *names)
        return [(*head, found.join_ends, found.round, found.pool, found.wish, 0)]

    def view_get_participants(self, task):
        return [list(self.tasks[task].members)]

    def view_get_participant(self, task, participant):
        member = self.tasks[task].members.get(participant)
        if member is None:
            return [(0, 0, 0, 0, 0)]
        seat = member.seat + 1
        return [(member.stake, member.sponsored, member.samples, member.active_from, seat)]

    def view_claimable(self, task, owner):
        return [self.tasks[task].claimable.get(owner, 0)]

    def view_get_sponsorship(self, task, participant):
        return [self.tasks[task].sponsorships.get(participant, 0)]

    def view_get_reputation(self, publisher, participant):
        return [self.reputations.get(participant, FLOOR)]

    def view_is_invited(self, task, participant):
        return [self._is_invited(self.tasks[task], participant)]

    def _is_invited(self, task: TaskState, who: bytes) -> bool:
        return task.parameters["admission"] == 0 or who in task.invited

    def view_has_applied(self, task, applicant):
        return [applicant in self.tasks[task].applied]

    def view_get_account(self, task):
        found = self.tasks[task]
        stakes = sum(member.stake for member in found.members.values())
        kept = sum(found.sponsorships.values())
        return [(found.left, found.left, found.reward_left, 0, 0, 0, 0, stakes, kept, found.burned)]

    def view_get_round(self, task, round):
        none = (NO_BLOB.digest, NO_BLOB.size)
        found = self.tasks[task].rounds.get(round)
        if found is None:
            return [(0, none, none, 0, bytes(32), 0, 0, 0, 0, 0, 0, none, 0, 0)]
        seats = {a: member.seat for a, member in self.tasks[task].members.items()}
        committed = pack({seats[client] for client in found.done if client in seats})
        revealed = pack({seats[client] for client in found.revealed if client in seats})
        names = (found.base, found.velocity, found.model)
        base, velocity, model = ((name.digest, name.size) for name in names)
        sets = (pack(found.drawn), committed, revealed)
        ends = (found.commit_ends, found.reveal_ends, found.extensions)
        return [(found.state, base, velocity, found.pool, bytes(32), *sets, *ends, model, 0, 0)]

    def view_get_submission(self, task, round, participant):
        found = self.tasks[task].rounds[round].done.get(participant)
        done = found or Submitted(bytes(32), 0)
        name = (done.update.digest, done.update.size)
        return [(done.commitment, done.origin, name, done.samples, done.stake)]

    def view_has_reported(self, task, round, participant):
        return [participant in self.tasks[task].rounds[round].reports]

    def view_next_action(self, task):
        state, now = self.tasks[task], self._get_time()
        if state.state == LOBBY and now >= state.join_ends:
            is_full = len(state.members) >= state.parameters["min_clients"]
            return [1 if is_full else 3, 0]
        is_running = state.state == RUNNING
        is_due = is_running and now >= self._get_due(state, state.rounds[state.round])
        return [2 if is_due else 0, state.round]

    def view_get_due(self, task):
        state = self.tasks[task]
        return [self._get_due(state, state.rounds[state.round])]

    def view_get_plan(self, task):
        plan = (bytes(20), (0,) * 5, *[0] * 16)
        return [plan, (0, 1, 1)]

    def view_get_velocity(self, task):
        return [(self.tasks[task].velocity.digest, self.tasks[task].velocity.size)]

    def view_get_metrics(self, task, round):
        reports = list(self.tasks[task].rounds[round].reports.values())
        samples = [sum(n for n, v in reports if len(v) > i) for i in range(8)]
        sums = [sum(n * v[i] for n, v in reports if len(v) > i) for i in range(8)]
        means = [s // n if n else 0 for s, n in zip(sums, samples, strict=True)]
        return [(len(reports), samples, sums), means]


def pack(seats: set[int] | list[int]) -> int:
    """A set of seats as the contract keeps it."""
    return sum(1 << seat for seat in seats)


def flatten(parameters: dict[str, object]) -> tuple[object, ...]:
    """The ABI tuple of decoded parameters."""
    return tuple(
        tuple(item.values()) if isinstance(item, dict) else item for item in parameters.values()
    )

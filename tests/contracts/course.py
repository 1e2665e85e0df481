"""What Rounds should do, written a second time; see `agreement`.

How the precompile computes is not repeated here (chain/reference.py does): the model, the shares
and the saturations of an aggregation are read from its event. Everything around it is computed:
who takes part, with which raw weights, what is due, who is paid and punished, what comes next.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from eth_abi.abi import encode
from eth_hash.auto import keccak

from steelyard.chain.params import ROUNDS_ADDRESS
from steelyard.chain.types import Address, BlobName
from steelyard.client.abi import Event

from .agreement import (
    AGGREGATED,
    CLOSE_TIMEOUT_SECONDS,
    CLOSING,
    FAILED,
    MADE,
    MAX_SAMPLES,
    NOT_MADE,
    ONE,
    OPEN,
    SKIPPED,
    Ledger,
    Member,
    Round,
    Submission,
    Task,
    Transfers,
    Verdict,
    collect,
    list_seats,
)
from .arena import CHAIN_ID

NOTHING: Transfers = {}
Expiry = Callable[[BlobName], int]
"""The last second at which a blob may be read; 0 for one that was never declared."""


@dataclass(frozen=True, slots=True)
class Reveal:
    """What a participant shows. `is_valid`: the update is its own, for that task and origin."""

    origin: int
    update: BlobName
    samples: int
    salt: bytes
    is_valid: bool = True


def refuse(**reasons: bool) -> frozenset[str]:
    """Return the names that are true, as the words of Rounds."""
    return frozenset(reason.replace("tasks: ", "rounds: ") for reason in collect(**reasons))


def compute_commitment(task: int, round: int, who: Address, reveal: Reveal) -> bytes:
    """Return what binds `who` to a reveal, as docs/tasks.md has it."""
    types = ["uint256", "address", *["uint256"] * 3, "address", "bytes32", *["uint256"] * 2]
    update = reveal.update
    values = [CHAIN_ID, ROUNDS_ADDRESS, task, round, reveal.origin, who]
    values += [update.digest, update.size, reveal.samples, reveal.salt]
    return keccak(encode([*types, "bytes32"], values))


class Course(Ledger):
    """Tasks and their rounds."""

    # -- participants ----------------------------------------------------------------------------
    def commit(
        self,
        now: int,
        expiry: Expiry,
        task: Task,
        sender: Address,
        number: int,
        origin: int,
        commitment: bytes,
    ) -> Verdict:
        """Somebody binds itself to an update."""
        if not self._is_current(task, number):
            return Verdict(refuse(not_the_current_round=True), lambda events: NOTHING)
        member = task.members.get(sender)
        if member is None:
            return Verdict(refuse(not_a_participant=True), lambda events: NOTHING)
        round_, bit = task.round, 1 << member.seat
        made = task.rounds.get(origin)
        reasons = refuse(
            not_active_in_that_round=member.active_from > origin,
            stake_below_the_base_stake=member.stake < task.terms["base_stake"],
            commit_period_is_over=now >= round_.commit_ends,
            already_committed=sender in round_.submissions,
            empty_commitment=commitment == bytes(32),
            origin_out_of_range=not 0 <= number - origin <= task.terms["max_staleness"],
            not_drawn=made is None or not made.drawn & bit,
            already_answered=bool(task.answered[origin] & bit),
        )
        reasons |= self._refuse_bases(expiry, task, made or round_)

        def effect(events: Sequence[Event]) -> Transfers:
            round_.committed |= bit
            round_.submissions[sender] = Submission(origin, commitment, stake=member.stake)
            self.open_reveals(now, task)
            return NOTHING

        return Verdict(reasons, effect)

    def reveal(
        self,
        now: int,
        expiry: Expiry,
        task: Task,
        sender: Address,
        number: int,
        key: int,
        shown: Reveal,
    ) -> Verdict:
        """Somebody shows what it committed to. `key` is the number of the task."""
        if not self._is_current(task, number):
            return Verdict(refuse(not_the_current_round=True), lambda events: NOTHING)
        round_ = task.round
        member = task.members.get(sender, Member(0, 0, 0, 0, 0))
        said = round_.submissions.get(sender)
        commitment = compute_commitment(key, number, sender, shown)
        reasons = refuse(
            no_commitment=said is None,
            already_revealed=said is not None and said.update is not None,
            commit_period_is_running=now < round_.commit_ends,
            reveal_period_is_over=now >= round_.reveal_ends,
            too_few_commitments=self._is_short(task),
            differs_from_the_commitment=said is not None and said.commitment != commitment,
            samples_out_of_range=not 0 < shown.samples <= MAX_SAMPLES,
            samples_not_covered_by_stake=not self.is_covered(task, member, shown.samples),
        )
        reasons |= self._refuse_blobs(now, expiry, task, shown)

        def effect(events: Sequence[Event]) -> Transfers:
            bit = 1 << member.seat
            round_.revealed |= bit
            task.answered[shown.origin] |= bit
            round_.submissions[sender] = Submission(
                shown.origin, commitment, shown.update, shown.samples, said.stake
            )
            if round_.revealed == round_.committed:
                round_.reveal_ends = now
            return NOTHING

        return Verdict(reasons, effect)

    def report(
        self, now: int, task: Task, sender: Address, number: int, samples: int, values: int
    ) -> Verdict:
        """A participant reports its own evaluation, of so many `values`."""
        ends = task.evaluations.get(number, 0)
        reasons = refuse(
            not_a_participant=sender not in task.members,
            no_evaluation_requested=ends == 0,
            evaluation_is_over=now >= ends,
            already_reported=(number, sender) in task.reported,
            samples_out_of_range=not 0 < samples <= MAX_SAMPLES,
            no_metrics=values == 0,
        )

        def effect(events: Sequence[Event]) -> Transfers:
            task.reported.add((number, sender))
            return NOTHING

        return Verdict(reasons, effect)

    def request_evaluation(self, now: int, task: Task, sender: Address, number: int) -> Verdict:
        """The publisher asks for an evaluation."""
        made = task.rounds.get(number)
        reasons = refuse(
            not_the_publisher=sender != task.publisher,
            round_made_no_model=made is None or made.state != AGGREGATED,
            evaluation_is_running=now < task.evaluations.get(number, 0),
        )

        def effect(events: Sequence[Event]) -> Transfers:
            self._request(now, task, number)
            return NOTHING

        return Verdict(reasons, effect)

    # -- anybody ---------------------------------------------------------------------------------
    def close(self, now: int, expiry: Expiry, task: Task, sender: Address, number: int) -> Verdict:
        """Anybody ends a round that is due, or does its next page."""
        if task.number != number or number == 0 or task.round.state not in {OPEN, CLOSING}:
            return Verdict(refuse(not_the_current_round=True), lambda events: NOTHING)
        reasons = refuse(not_due=now < self.get_due(task))
        round_ = task.round
        is_enough = round_.revealed.bit_count() >= task.terms["min_clients"]
        weights = self.compute_weights(task) if is_enough else {}
        if sum(weights.values()) and self._has_forgotten(now, expiry, task):
            reasons |= {"fedavg: blob_expired"}

        def effect(events: Sequence[Event]) -> Transfers:
            transfers = NOTHING
            if is_enough and sum(weights.values()):
                is_last = round_.pages == task.pages
                if is_last:
                    transfers = self._aggregate(now, task, number, weights, events)
                else:
                    (page,) = [event for event in events if event.name == "PageMade"]
                    round_.made.append(page.values["made"])
                    round_.pages, round_.state = round_.pages + 1, CLOSING
            elif not is_enough and round_.extensions < task.terms["max_extensions"]:
                is_last = False
                self._extend(now, task)
            else:
                is_last = True
                gives_up = not is_enough and task.terms["on_failed_quorum"] == 2
                round_.state = SKIPPED
                outcome = FAILED if gives_up else NOT_MADE
                shares = {} if is_enough else self._compensate(task, events)
                transfers = self.settle(now, task, outcome, shares, self._list_silent(task), events)
            self._pay_closer(task, sender, number, is_last, events)
            return transfers

        return Verdict(reasons, effect)

    def compute_weights(self, task: Task) -> Mapping[Address, int]:
        """Return the raw weights of what was revealed, in the order of the seats."""
        round_, terms = task.round, task.terms
        weights = {}
        for who in map(task.find_at, list_seats(round_.revealed)):
            said = round_.submissions[who]
            weight = self._weigh(task, said.samples, said.stake)
            for _ in range(task.number - said.origin):
                weight = weight * terms["staleness_discount"] // ONE
            weights[who] = weight
        return weights

    def is_covered(self, task: Task, member: Member, samples: int) -> bool:
        """Whether a participant may claim so many samples."""
        needed = task.terms["base_stake"] + samples * task.terms["stake_per_sample"]
        return samples <= member.samples and needed <= member.stake

    # -- inside ----------------------------------------------------------------------------------
    def _weigh(self, task: Task, samples: int, stake: int) -> int:
        return int((samples, stake, 1)[task.terms["weighting"]] * ONE)

    def _compensate(self, task: Task, events: Sequence[Event]) -> Mapping[Address, int]:
        """Return what those who revealed would have got if the silent had, at their most."""
        away = [task.find_at(seat) for seat in list_seats(self._list_silent(task))]
        silent = [(task.members[who], task.round.submissions[who].stake) for who in away]
        if not silent:
            return {}
        weights = self.compute_weights(task)
        total = sum(weights.values())
        total += sum(self._weigh(task, member.samples, stake) for member, stake in silent)
        cap = max(task.terms["rule"]["max_share"], ONE // (len(weights) + len(silent)))
        shares = {who: min(cap, weight * ONE // total) for who, weight in weights.items()}
        paid = [event.values for event in events if event.name == "Compensated"]
        assert [(item["clients"], item["shares"]) for item in paid] == (
            [(list(shares), list(shares.values()))] if shares else []
        )
        return shares

    def _is_current(self, task: Task, number: int) -> bool:
        return number > 0 and task.number == number and task.round.state == OPEN

    def _is_short(self, task: Task) -> bool:
        return task.round.committed.bit_count() < int(task.terms["min_clients"])

    def _list_silent(self, task: Task) -> int:
        return 0 if self._is_short(task) else task.round.committed & ~task.round.revealed

    def _refuse_blobs(self, now: int, expiry: Expiry, task: Task, shown: Reveal) -> frozenset[str]:
        round_, terms = task.round, task.terms
        origin = task.rounds.get(shown.origin, round_)
        more = (terms["max_extensions"] - round_.extensions) * terms["reveal_seconds"]
        until = round_.reveal_ends + more + CLOSE_TIMEOUT_SECONDS
        reasons = refuse(update_expires_too_soon=expiry(shown.update) < until)
        is_unreadable = min(map(expiry, (shown.update, origin.base))) < now
        if not shown.is_valid or is_unreadable:
            reasons |= {"fedavg: "}
        return reasons

    def _refuse_bases(self, expiry: Expiry, task: Task, origin: Round) -> frozenset[str]:
        round_, terms = task.round, task.terms
        period = terms["commit_seconds"] + terms["reveal_seconds"]
        more = (terms["max_extensions"] - round_.extensions) * period
        until = round_.reveal_ends + more + CLOSE_TIMEOUT_SECONDS
        velocity = expiry(round_.velocity) if round_.velocity.size else until
        return refuse(
            model_expires_too_soon=min(expiry(round_.base), expiry(origin.base)) < until,
            velocity_expires_soon=velocity < until,
        )

    def _has_forgotten(self, now: int, expiry: Expiry, task: Task) -> bool:
        round_ = task.round
        updates = [said.update for said in round_.submissions.values() if said.update]
        needed = [round_.base, *updates, *round_.made]
        if round_.velocity.size:
            needed.append(round_.velocity)
        return any(expiry(name) < now for name in needed)

    def _extend(self, now: int, task: Task) -> None:
        round_, terms = task.round, task.terms
        if self._is_short(task):
            round_.commit_ends = now + terms["commit_seconds"]
            round_.reveal_ends = round_.commit_ends + terms["reveal_seconds"]
        else:
            round_.reveal_ends = now + terms["reveal_seconds"]
        round_.extensions += 1

    def _aggregate(
        self,
        now: int,
        task: Task,
        number: int,
        weights: Mapping[Address, int],
        events: Sequence[Event],
    ) -> Transfers:
        round_ = task.round
        (made,) = [event.values for event in events if event.name == "Aggregated"]
        said = [round_.submissions[who] for who in weights]
        assert made["clients"] == list(weights)
        assert made["raw_weights"] == list(weights.values())
        assert made["updates"] == [submission.update for submission in said]
        assert made["origins"] == [submission.origin for submission in said]
        assert (made["base"], made["velocity_before"]) == (round_.base, round_.velocity)
        assert (made["pool"], made["rule"]) == (round_.pool, task.terms["rule"])
        assert sum(made["shares"]) == ONE
        round_.state, round_.model = AGGREGATED, made["model"]
        round_.saturated, task.model = made["saturated"], made["model"]
        if made["velocity"].size:
            task.velocity = made["velocity"]
        task.aggregations += 1
        every = task.terms["evaluate_every"]
        is_last = number == task.terms["rounds"]
        if every and (is_last or task.aggregations % every == 0):
            self._request(now, task, number)
        shares = dict(zip(weights, made["shares"], strict=True))
        return self.settle(now, task, MADE, shares, self._list_silent(task), events)

    def _request(self, now: int, task: Task, number: int) -> None:
        seconds = task.terms["commit_seconds"] + task.terms["reveal_seconds"]
        task.evaluations[number] = now + seconds

    def _pay_closer(
        self,
        task: Task,
        sender: Address,
        number: int,
        is_last: bool,
        events: Sequence[Event],
    ) -> None:
        """What gas is repaid is read from the event; here are its limits."""
        (paid,) = [event.values for event in events if event.name == "ClosePaid"]
        reserve = task.terms["close_reserve"] - task.spent[number]
        bounty = task.terms["close_bounty"]
        assert paid["closer"] == sender
        if is_last:
            assert min(bounty, reserve) <= paid["fee"] <= reserve
        else:
            assert 0 <= paid["fee"] <= reserve - bounty
        task.spent[number] += paid["fee"]
        task.books["fees"] += paid["fee"]
        task.claimable[sender] += paid["fee"]

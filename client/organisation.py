"""The organisation: publishes a task with its escrow, watches it, fetches the model.

Publishing is idempotent: the same description gives the same task, however often the program is
killed and run again. To publish a second identical task, give it another `reference`.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from steelyard.chain import params
from steelyard.chain.cid import compute_blob_name, encode_cid
from steelyard.chain.types import Address, BlobName

from .account import Account
from .bundle import decode_bundle, describe_files
from .closing import ClosedRound, close_round
from .contracts import Tasks, encode_name
from .drafting import Draft, check_task
from .errors import ClientError, NodeRefused, NodeUnreachable, Reverted
from .events import get_events
from .explain import Explanation, explain_round
from .listing import MOST_TASKS, list_rounds, list_tasks
from .outbox import VOID, Receipt, encode_call
from .participant import MAX_STATEMENT_BYTES
from .published import PublishedModel
from .records import FRACTION_UNIT, NO_BLOB, RoundInfo, TaskInfo, TaskState
from .renewing import compute_readable_until, send_renewed
from .rpc import MISSING, Rpc, as_int, as_object
from .sending import carry_out, get_current_label, name_order, send_for_good
from .terms import Task, parse_allowed
from .transactions import Call
from .watching import TaskEvent, watch_task

CONTRACTS: Final = ("tasks: ", "rounds: ", "fedavg: ")
"""How reasons begin that a contract or the precompile gives."""
OPENING_SECONDS: Final = 3_600
"""What the next round needs stays readable for so much longer than it must: a head may be old."""


@dataclass(frozen=True, slots=True)
class Applicant:
    """Who asked to be invited, and with what. `reputation`: 0 to 1, from this publisher's tasks."""

    address: Address
    statement: BlobName
    text: str | None
    """The statement, if there is one and a node still keeps it. Written by a stranger."""
    reputation: float
    is_invited: bool
    is_joined: bool


@dataclass(frozen=True, slots=True)
class Released:
    """A stake that can be claimed now, in wei; 0 and 0 where there was none."""

    own: int
    """By the participant."""
    sponsored: int
    """By the publisher."""

    @property
    def stake(self) -> int:
        """All of it."""
        return self.own + self.sponsored


class Organisation(Account):
    """An account that publishes tasks."""

    def check(self, task: Task) -> Draft:
        """Return the task as it would be published, checked against this chain.

        Raises: InvalidTask, InvalidModel or SteelyardError from the quantizer, naming the field.
        """
        return check_task(self.rpc, task)

    def publish(self, task: Task) -> "PublishedTask":
        """Publish `task`, deposit its escrow, and carry its model and bundle onto the chain.

        With `sponsor_samples`, everybody in `allow` is sponsored after that. Returns the task.
        What the publisher may regret is reported, once, before anything is sent.
        Raises: as `check`; ClientError `balance_low`, `sending_unclear`; Reverted.
        """
        draft = self.check(task)
        names = [compute_blob_name(draft.model)]
        if draft.bundle:
            names.append(compute_blob_name(draft.bundle))
        data = self.tasks.encode(
            "publish",
            draft.name,
            draft.parameters.encode(),
            encode_name(names[0]),
            encode_name(names[1] if draft.bundle else NO_BLOB),
            draft.allow,
        )
        call = Call(
            Address(params.TASKS_ADDRESS),
            data,
            draft.escrow,
            gas=draft.gas,
            blobs=tuple(dict.fromkeys(names)),
        )
        entry = self.journal.get_entry(get_current_label(self.journal, draft.label))
        if entry is None or entry.status in VOID:
            self._try_out(call)
            for text in draft.warnings:
                self.report(f"warning: {text}")
            packed = describe_files(decode_bundle(draft.bundle))
            self.report(f"public for ever, in the bundle: {packed}")
        self.report(f"publishing {draft.name!r}: model {encode_cid(names[0])}")
        receipt = send_for_good(self, draft.label, call, draft.blobs)
        (event,) = [e for e in self.tasks.decode_logs(receipt.logs) if e.name == "Published"]
        self.report(f"task {event.values['task']} is published")
        published = PublishedTask(self, event.values["task"])
        if draft.sponsorship or draft.sponsored_gas:
            for address in draft.allow:
                given = self.build_call(
                    "sponsor",
                    published.number,
                    address,
                    draft.sponsored_gas,
                    value=draft.sponsorship + draft.sponsored_gas,
                )
                label = f"task/{published.number}/sponsor-at-once/{address.hex()}"
                send_for_good(self, label, given)
        return published

    def _try_out(self, call: Call) -> None:
        """Raises Reverted for what `check` did not foresee, before it costs the gas of the files.

        A node without the model's bytes gives up where the contract looks into it: then the
        reckoning of `check` is all there is. So is it where no reason comes back: that may be a
        limit of the node on what it tries out.
        """
        try:
            self.rpc.call("eth_call", encode_call(self.address, call), "latest")
        except NodeRefused:
            return
        except Reverted as error:
            if error.reason.startswith(CONTRACTS):
                raise

    def get_task(self, task: int) -> "PublishedTask":
        """Return a published task by its number. Raises ClientError `task_unknown`."""
        self.tasks.get_task(task)
        return PublishedTask(self, task)

    def list_tasks(self, most: int = MOST_TASKS) -> list[TaskInfo]:
        """Return the newest tasks of the chain, whoever published them, the newest first."""
        return list_tasks(self.rpc, most)

    def get_reputation(self, who: str | Address) -> float:
        """Return what this publisher's rounds have made of an account, 0 to 1."""
        address = parse_allowed(who)
        return self.tasks.get_reputation(self.address, address) / FRACTION_UNIT


@dataclass(frozen=True)
class PublishedTask:
    """A task on chain, as its organisation handles it."""

    organisation: Organisation = field(repr=False)
    number: int

    # -- looking -----------------------------------------------------------------------------------
    def get_info(self) -> TaskInfo:
        """Return the task as it stands."""
        return self.organisation.tasks.get_task(self.number)

    def watch(self) -> Iterator[TaskEvent]:
        """Yield what happens, from the beginning, until the task is over. Fits a notebook."""
        organisation = self.organisation
        return watch_task(
            organisation.rpc,
            self.number,
            lambda: organisation.clock.sleep(organisation.poll_seconds),
        )

    def model(self, round_number: int | None = None) -> PublishedModel:
        """Return the newest model, or the one that a round made, checked against its name.

        Raises: ClientError `model_unknown`; NodeUnreachable.
        """
        organisation = self.organisation
        name = (
            organisation.tasks.get_task(self.number).model
            if round_number is None
            else organisation.rounds.get_round(self.number, round_number).model
        )
        if not name.size:
            raise ClientError("model_unknown", f"round {round_number} has made no model")
        return PublishedModel(name, organisation.rpc.get_blob(name))

    def get_rounds(self) -> list[RoundInfo]:
        """Return the rounds so far, round 1 first."""
        return list_rounds(self.organisation.rpc, self.number)

    def explain(self, round_number: int) -> Explanation:
        """Return what happened in a round, with everybody's arithmetic. Raises: as
        `explain_round`.
        """
        return explain_round(self.organisation.rpc, self.number, round_number)

    def get_applicants(self) -> list[Applicant]:
        """Return who asked to be invited, the first first."""
        return list_applicants(self.organisation.rpc, self.number)

    # -- people ------------------------------------------------------------------------------------
    def invite(self, *people: str | Address) -> Receipt:
        """Let these accounts join. Raises: InvalidTask `task_allow`; Reverted."""
        return self._send("invite", [parse_allowed(one) for one in people])

    def uninvite(self, who: str | Address) -> Receipt:
        """Take an invitation back; who has joined stays."""
        return self._send("uninvite", parse_allowed(who))

    def sponsor(self, who: str | Address, stake: int, gas: int = 0) -> Receipt:
        """Put down a stake for somebody who is to join, and send it coins for its transactions.

        Both in wei. The stake comes back to this account when the participant leaves; the coins
        for gas are gone at once. Each call adds to what is there; killed before it returns and
        called again, it adds nothing twice.
        """
        address = parse_allowed(who)
        return self._carry_out("sponsor", address, gas, value=stake + gas)

    def unsponsor(self, who: str | Address) -> int:
        """Take back a stake that was not used; return the wei, 0 for none."""
        address = parse_allowed(who)
        self.organisation.outbox.flush()
        amount = self.organisation.tasks.get_sponsorship(self.number, address)
        if amount:
            self._send("unsponsor", address)
        return amount

    def release(self, who: str | Address) -> Released:
        """Let a participant of a task that is over out, in its absence; anybody may.

        Its own stake becomes claimable by it, a sponsor's part by the publisher. Raises: Reverted
        while the task is not over.
        """
        address = parse_allowed(who)
        self.organisation.outbox.flush()
        member = self.organisation.tasks.get_participant(self.number, address)
        if member.position:
            self._send("release", address)
        return Released(member.stake - member.sponsored, member.sponsored)

    # -- the course of the task --------------------------------------------------------------------
    def fund(self, amount: int) -> Receipt:
        """Add wei to the reward: the pools of later rounds grow.

        Killed before it returns and called again, it sends nothing twice. After that, the same call
        adds as many again. Raises: as `sending.carry_out`.
        """
        return self._carry_out("fund", value=amount)

    def start(self) -> Receipt:
        """End the lobby now: allowed with `min_clients` participants."""
        return self._send_opening("start")

    def pause(self) -> Receipt:
        """Hold the task when the round in progress has ended."""
        return self._send("pause")

    def resume(self) -> Receipt:
        """Open the next round of a paused task, or take back a pause that is not in effect yet.

        What expired meanwhile is declared again. Raises: Reverted; BlobGone.
        """
        return self._send_opening("resume")

    def cancel(self) -> Receipt:
        """End the task: at once, or when a round with commitments has ended and is paid."""
        return self._send("cancel")

    def abort(self) -> Receipt:
        """End a task that cannot go on; anybody may, where the contract allows it."""
        return self._send("abort")

    def close_round(self) -> ClosedRound:
        """Close the round in progress if it is due, with all its pages; anybody may.

        Raises: as `closing.close_round`.
        """
        return close_round(self.organisation, self.number)

    def request_evaluation(self, round_number: int) -> Receipt:
        """Ask participants for reports on the model that a round made."""
        organisation = self.organisation
        label = organisation.get_label(f"task/{self.number}/evaluate/{round_number}")
        return organisation.send(
            label, "request_evaluation", self.number, round_number, contract=organisation.rounds
        )

    def refund(self) -> int:
        """Fetch what nobody earned from a task that is over; return the wei, 0 for none."""
        self.organisation.outbox.flush()
        amount = self.organisation.tasks.get_account(self.number).left
        if amount:
            self._send("refund")
        return amount

    def claim(self) -> int:
        """Fetch sponsored stakes that came back, and fees; return the wei, 0 for none."""
        organisation = self.organisation
        organisation.outbox.flush()
        amount = organisation.tasks.get_claimable(self.number, organisation.address)
        if amount:
            self._send("claim")
        return amount

    def _send_opening(self, name: str) -> Receipt:
        """Send a call that opens a round, with the files of that round that would expire too soon.

        Participants would declare them too; but who lets a task rest can pay for what that costs.
        """
        organisation, info = self.organisation, self.get_info()
        if info.state not in (TaskState.LOBBY, TaskState.PAUSED):
            return self._send(name)
        terms = info.parameters
        head = organisation.rpc.call("eth_getBlockByNumber", "latest", False)
        opens = as_int(as_object(head).get("timestamp")) + OPENING_SECONDS
        return send_renewed(
            organisation,
            self._get_label(name),
            Call(organisation.tasks.address, organisation.tasks.encode(name, self.number)),
            (info.model, organisation.rounds.get_velocity(self.number)),
            compute_readable_until(terms, opens + terms.commit_seconds + terms.reveal_seconds),
            organisation.rpc.get_blob,
        )

    def _describe(self, name: str, *arguments: object, value: int = 0) -> str:
        # What is not the same call is another step: its own label, its own transaction.
        content = hashlib.sha256(repr((arguments, value)).encode()).hexdigest()[:16]
        return f"task/{self.number}/{name}/{content}"

    def _get_label(self, name: str, *arguments: object) -> str:
        return self.organisation.get_label(self._describe(name, *arguments))

    def _carry_out(self, name: str, *arguments: object, value: int) -> Receipt:
        organisation = self.organisation
        call = organisation.build_call(name, self.number, *arguments, value=value)
        order = name_order(self._describe(name, *arguments, value=value))
        return carry_out(organisation, order, call)

    def _send(self, name: str, *arguments: object) -> Receipt:
        label = self._get_label(name, *arguments)
        return self.organisation.send(label, name, self.number, *arguments)


def list_applicants(rpc: Rpc, task: int) -> list[Applicant]:
    """Return who asked to be invited to a task, the first first. Needs no key.

    Raises: ClientError `task_unknown`; NodeUnreachable.
    """
    tasks = Tasks(rpc)
    publisher = tasks.get_task(task).publisher
    return [
        Applicant(
            who,
            statement,
            fetch_text(rpc, statement),
            tasks.get_reputation(publisher, who) / FRACTION_UNIT,
            tasks.is_invited(task, who),
            bool(tasks.get_participant(task, who).position),
        )
        for who, statement in (
            (event.values["applicant"], event.values["statement"])
            for event in get_events(rpc, task, ["Applied"])
        )
    ]


def fetch_text(rpc: Rpc, name: BlobName) -> str | None:
    """Return a short text that somebody has put on the chain, None if no node keeps it."""
    if not 0 < name.size <= MAX_STATEMENT_BYTES:
        return None
    try:
        return rpc.get_blob(name).decode("utf-8", "replace")
    except NodeUnreachable as error:
        if set(error.codes.values()) != {MISSING}:
            raise
        return None

"""The auditor: recompute a round, or re-execute the chain, from a node that nobody trusts.

`audit_round` follows one chain of evidence and says at each link YES, REFUTED or UNKNOWN:

    genesis, or a checkpoint -> validator sets -> certificate -> header        (two blocks: the one
    header -> receipts root -> the record (event)                     that opened the round, and the
    header -> state root -> storage of Tasks and Rounds                         one that closed it)
    parent's hash -> seed -> who was drawn; reward left -> the round's pool
    terms, submissions, seats -> raw weights; the state before -> base and velocity
    record -> blobs by name -> updates verified -> aggregate recomputed -> same model, same shares
    storage before and after the block -> everybody was paid what the shares say, who kept silent
    lost its bond, and the next round begins with what this one left (`settling`)

A round that made no model is followed the same way: it must have failed for a reason that is
proven, and whoever had revealed is paid what the silence of others left it.

The recomputation is `chain/reference.py`: plain Python integers, no code shared with the kernels.
A node can withhold (UNKNOWN); it cannot make a wrong round look right. What is not recomputed here
is listed in docs/auditing.md; `audit_replay` re-executes everything.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from steelyard.chain.cid import encode_cid
from steelyard.chain.errors import SteelyardError
from steelyard.chain.following import Checkpoint
from steelyard.chain.types import Address

from .abi import Event
from .contracts import Rounds, Tasks
from .errors import ClientError
from .events import get_events
from .finalized import Scene, Trail
from .moments import read_moment
from .proven import Storage
from .reckoning import compute_draw, compute_due, compute_seed, list_seats
from .recomputing import Fetch, Recomputation
from .records import NO_BLOB, RoundState, SubmissionInfo
from .rpc import Rpc, as_hex
from .settling import Facts, Settling
from .verdicts import Report, Stop, Verdict

RECORDS = {RoundState.AGGREGATED: "Aggregated", RoundState.SKIPPED: "RoundSkipped"}
"""The event that records how a round ended."""


def audit_round(
    rpc: Rpc,
    task: int,
    round_number: int,
    *,
    genesis: bytes | None = None,
    checkpoint: Checkpoint | None = None,
    fetch: Fetch | None = None,
) -> Report:
    """Recompute one round of a task and compare everything with the chain's record.

    `genesis`: the document that the auditor trusts; without it the node's own is used, and the
    report says so. `checkpoint`: a block that the auditor trusts, to follow the validators from
    there. `fetch`: where blobs come from instead of the node; names are checked here.
    """
    report = Report(f"round {round_number} of task {task}")
    with noting(report):
        trail = Trail(rpc, report, genesis, checkpoint)
        RoundAudit(rpc, trail, task, round_number).run(fetch or rpc.get_blob)
    return report


@contextmanager
def noting(report: Report) -> Iterator[None]:
    """Turn what a node withholds, or garbles, into a link of the report."""
    try:
        yield
    except Stop:
        pass
    except SteelyardError as error:
        report.add("node", Verdict.UNKNOWN, f"{error.code}: {error.message}")


class RoundAudit:
    """One audit in progress; every method adds links to the trail's report."""

    def __init__(self, rpc: Rpc, trail: Trail, task: int, round_number: int) -> None:
        self._rpc, self._trail = rpc, trail
        self._task, self._round = task, round_number

    def run(self, fetch: Fetch) -> Event:
        """Follow the evidence to its end; return the record. Raises Stop where it breaks;
        SteelyardError.
        """
        trail = self._trail
        record = self._find_record()
        closing = trail.visit(record, self._task)
        trail.say("receipts", f"root in the header, record and {len(closing.events) - 1} events")
        opened = self._find_event("RoundOpened", "opening")
        opening = trail.visit(opened, self._task, "opening")
        facts = self._read_facts(closing)
        self._check_submissions(facts, closing)
        recomputation = Recomputation(trail.report, fetch, trail.genesis.chain_id, self._task)
        terms = facts.terms.parameters
        if record.name == "Aggregated":
            self._check_record(record.values, facts)
            self._check_opening(opened, opening, facts)
            recomputation.run(record, terms, facts.rounds)
        else:
            self._check_failure(record.values, facts)
            self._check_opening(opened, opening, facts)
            base = facts.round.base
            recomputation.check_shown(terms, facts.rounds, base, facts.shown)
        Settling(self._rpc, trail, self._task, self._round).check(record, closing, facts)
        return record

    # -- records and blocks ------------------------------------------------------------------------
    def _find_record(self) -> Event:
        """Find the event that says how the round ended."""
        info = Tasks(self._rpc).get_task(self._task)
        state = Rounds(self._rpc).get_round(self._task, self._round)
        if state.state is RoundState.NONE:
            self._trail.give_up(
                "record",
                f"round {self._round} was never opened: task {self._task} is in round "
                f"{info.round} of {info.parameters.rounds} ({info.state.name.lower()})",
            )
        if state.state not in RECORDS:
            self._trail.give_up(
                "record",
                f"round {self._round} is {state.state.name.lower()}: it has not come to an end"
                f" (the task is in round {info.round})",
            )
        event = self._find_event(RECORDS[state.state], "record")
        told = "it made no model"
        if event.name == "Aggregated":
            values = event.values
            told = f"{len(values['updates'])} updates, model {encode_cid(values['model'])}"
            if values["model"] != state.model:
                self._trail.refute("record", f"{told}, but the state says {state.model}")
        self._trail.say("record", f"height {event.height}, {told}")
        return event

    def _find_event(self, name: str, link: str) -> Event:
        """Return the only event of its name about the round, as the node shows it."""
        events = get_events(self._rpc, self._task, [name], round_number=self._round)
        if not events:
            self._trail.give_up(link, f"the node shows no {name} of this round; ask another node")
        if len(events) > 1:
            self._trail.refute(link, f"the node shows {len(events)} times {name} of one round")
        return events[0]

    # -- how the round began -----------------------------------------------------------------------
    def _check_opening(self, opened: Event, scene: Scene, facts: Facts) -> None:
        """Draw again, and divide the reward again, as of the block that opened the round."""
        values, found = opened.values, facts.round
        terms = facts.terms.parameters
        if terms.rounds < self._round:
            self._trail.refute("draw", f"the task has {terms.rounds} rounds")
        with self._trail.proofs("draw"):
            then = read_moment(Storage(self._rpc, scene.parent), self._task, facts.terms, scene)
        seats = values["seats"]
        seed = compute_seed(scene.block.header.parent_hash, self._task, self._round)
        drawn = compute_draw(seed, seats, terms.compute_drawn(seats.bit_count()))
        pool = then.reward_left // (terms.rounds - self._round + 1)
        self._trail.compare(
            "draw",
            "recomputed",
            {
                "seats": (seats, then.ready),
                "seed": (values["seed"], seed),
                "draw": (values["drawn"], drawn),
                "pool": (values["pool"], pool),
            },
        )
        self._trail.compare(
            "draw",
            "in storage",
            {
                "seed": (values["seed"], found.seed),
                "pool": (values["pool"], found.pool),
                "base": (values["base"], found.base),
                "velocity": (values["velocity"], found.velocity),
                # Who left the task before committing is no longer drawn.
                "draw": (found.drawn & ~values["drawn"], 0),
            },
        )
        self._trail.say(
            "draw",
            f"{drawn.bit_count()} of {seats.bit_count()} seats by the hash of block "
            f"{scene.parent.height}, a pool of {pool} wei; recomputed",
        )

    # -- storage -----------------------------------------------------------------------------------
    def _read_facts(self, scene: Scene) -> Facts:
        """Read what the contracts store about the round, as it was closed."""
        after, before = Storage(self._rpc, scene.block), Storage(self._rpc, scene.parent)
        with self._trail.proofs("storage"):
            terms = after.read_task(self._task)
            found = after.read_rounds(self._task, [self._round])[self._round]
            seats = list_seats(found.committed | found.revealed)
            moment = read_moment(before, self._task, terms, scene, seats)
            empty = [seat for seat in seats if moment.seats.get(seat) not in moment.members]
            if empty:
                self._trail.refute("storage", f"nobody sat on seat {empty[0]}, which committed")
            clients = [moment.seats[seat] for seat in list_seats(found.revealed)]
            shown = after.read_submissions(self._task, self._round, clients)
            others = [moment.seats[seat] for seat in list_seats(found.committed & ~found.revealed)]
            hidden = after.read_submissions(self._task, self._round, others)
            origins = {one.origin for one in shown}
            if not all(0 < origin <= self._round for origin in origins):
                self._trail.refute("storage", "an update is for a round that has not been")
            rounds = after.read_rounds(self._task, sorted({self._round, *origins}))
        return Facts(
            self._round,
            terms,
            rounds,
            dict(zip(clients, shown, strict=True)),
            dict(zip(others, hidden, strict=True)),
            moment,
        )

    def _check_submissions(self, facts: Facts, scene: Scene) -> None:
        """Check that the round was due, and each update one that it could take."""
        terms, found = facts.terms.parameters, facts.round
        wrong = ""
        if found.revealed & ~found.committed:
            wrong = "somebody revealed without a commitment"
        if scene.block.header.timestamp < compute_due(terms, found):
            wrong = "the round was closed before it was due"
        for client, one in facts.shown.items():
            wrong = wrong or self._judge(client, one, facts)
        for client, one in {**facts.shown, **facts.hidden}.items():
            if not terms.base_stake <= one.stake <= facts.before.members[client].stake:
                wrong = wrong or f"{as_hex(client)} did not commit with that stake"
        if wrong:
            self._trail.refute("storage", wrong)
        after = Storage(self._rpc, scene.block)
        with self._trail.proofs("storage"):
            for client, one in facts.shown.items():
                for earlier in range(one.origin, self._round):
                    (before,) = after.read_submissions(self._task, earlier, [client])
                    if before.update.size and before.origin == one.origin:
                        self._trail.refute(
                            "storage", f"{as_hex(client)} answered round {one.origin} twice"
                        )

    def _judge(self, client: Address, one: SubmissionInfo, facts: Facts) -> str:
        """Return why the round could not take an update; nothing if it could."""
        terms, member = facts.terms.parameters, facts.before.members[client]
        if self._round - one.origin > terms.max_staleness:
            return f"{as_hex(client)} was more than {terms.max_staleness} rounds late"
        if not facts.rounds[one.origin].is_drawn(member.seat) or member.active_from > one.origin:
            return f"{as_hex(client)} was not drawn for round {one.origin}"
        # What is revealed may be covered by stake that was added since the commitment.
        if member.stake < terms.compute_stake(one.samples):
            return f"the samples of {as_hex(client)} are not covered by its stake"
        if one.samples > member.samples or one.stake > member.stake:
            return f"{as_hex(client)} was counted with more than it had promised"
        return ""

    def _check_record(self, values: Mapping[str, Any], facts: Facts) -> None:
        """Compare the record of a model with what the contracts store."""
        found, terms, before = facts.round, facts.terms.parameters, facts.before
        shown = facts.shown.values()
        if found.revealed.bit_count() < terms.min_clients:
            self._trail.refute("storage", f"fewer than {terms.min_clients} updates were revealed")
        self._trail.compare(
            "storage",
            "in storage",
            {
                "state": (RoundState.AGGREGATED, found.state),
                "rule": (tuple(values["rule"].values()), terms.rule.encode()),
                "base": (values["base"], found.base),
                "velocity": (values["velocity_before"], found.velocity),
                "pool": (values["pool"], found.pool),
                "model": (values["model"], found.model),
                "saturated": (values["saturated"], found.saturated),
                "clients": (list(values["clients"]), list(facts.shown)),
                "updates": (list(values["updates"]), [one.update for one in shown]),
                "origins": (list(values["origins"]), [one.origin for one in shown]),
            },
        )
        self._trail.compare(
            "storage",
            "from samples and stakes",
            {"weights": (values["raw_weights"], facts.weights)},
        )
        self._trail.compare(
            "storage",
            "what the rounds before left",
            {
                "base": (values["base"], before.model),
                "velocity": (values["velocity_before"], before.velocity),
            },
        )
        late = sum(one.origin != self._round for one in shown)
        self._trail.say(
            "storage",
            "terms, seats, updates and weights are the contracts', proven"
            + (f"; {late} late" if late else "")
            + (f"; closed in {found.pages} pages" if found.pages else ""),
        )

    def _check_failure(self, values: Mapping[str, Any], facts: Facts) -> None:
        """Check that a round without a model could not have made one."""
        found, terms = facts.round, facts.terms.parameters
        _, committed, revealed = found.counts
        self._trail.compare(
            "storage",
            "in storage",
            {
                "state": (RoundState.SKIPPED, found.state),
                "model": (NO_BLOB, found.model),
                "number of commitments": (values["committed"], committed),
                "number of reveals": (values["revealed"], revealed),
                "base": (facts.before.model, found.base),
            },
        )
        if revealed >= terms.min_clients:
            if sum(facts.weights):
                self._trail.refute("storage", "there were enough updates for a model")
            why = "all updates were late and count for nothing"
        else:
            if found.extensions < terms.max_extensions:
                self._trail.refute("storage", "the round should have been extended")
            why = f"{committed} committed and {revealed} revealed, of at least {terms.min_clients}"
        self._trail.say("storage", f"no model: {why}; proven")


def audit_replay(
    rpc: Rpc,
    *,
    genesis: bytes | None = None,
    last_height: int | None = None,
    progress: Callable[[int], object] = int,
    checkpoint: Checkpoint | None = None,
    upgrades: Mapping[str, int] | None = None,
) -> Report:
    """Re-execute the chain from genesis and name the first height that differs.

    `checkpoint`: a block that must be part of it. `upgrades`: rule changes that the chain's
    operators scheduled after genesis, by name and height. Needs the EVM. Runs in a thread with a
    large stack. Raises: ClientError audit_extra, InvalidGenesis genesis_fork.
    """
    try:
        from .replaying import replay_chain
    except ModuleNotFoundError as error:
        raise ClientError(
            "audit_extra", f"replaying needs {error.name}: pip install 'steelyard[audit]'"
        ) from None

    return replay_chain(rpc, genesis, last_height, progress, checkpoint, upgrades)

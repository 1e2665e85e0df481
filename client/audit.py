"""The auditor: recompute a round, or re-execute the chain, from a node that nobody trusts.

`audit_round` follows one chain of evidence and says at each link YES, REFUTED or UNKNOWN:

    genesis, or a checkpoint -> validator sets -> certificate -> header        (two blocks: the one
    header -> receipts root -> the record (event)                     that opened the round, and the
    header -> state root -> storage of Tasks and Rounds                         one that closed it)
    parent's hash -> seed -> who was drawn; reward left -> the round's pool
    terms, submissions, seats -> raw weights; the state before -> base and velocity
    record -> blobs by name -> updates verified -> aggregate recomputed -> same model, same shares
    storage before and after the block -> everybody was paid what the shares say, and who kept
    silent lost its bond

The recomputation is `chain/reference.py`: plain Python integers, no code shared with the kernels.
A node can withhold (UNKNOWN); it cannot make a wrong round look right. Not recomputed here: the
gas in a closer's fee (only that it stays within the reserves), reputations, the pages on the way;
`audit replay` re-executes everything.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from steelyard.chain.block import Block
from steelyard.chain.cid import encode_cid
from steelyard.chain.errors import SteelyardError
from steelyard.chain.following import Checkpoint
from steelyard.chain.trie import InvalidProof, MissingState
from steelyard.chain.types import Address, BlobName

from .abi import Event
from .contracts import Rounds, Tasks
from .errors import ClientError, NodeUnreachable
from .events import get_events
from .finalized import Trail
from .moments import Moment, read_moment
from .proven import ProvenTask, Storage
from .reckoning import (
    Settlement,
    compute_credits,
    compute_draw,
    compute_seed,
    compute_settlement,
    compute_weight,
    list_seats,
)
from .recomputing import Fetch, Recomputation
from .records import RoundInfo, RoundState, SubmissionInfo
from .rpc import Rpc, as_hex
from .verdicts import Report, Stop, Verdict

SETTLED_AGGREGATED: Final = 1
"""The outcome that `Settled` gives a round with a model; contracts/seam.vy."""
MAX_SHOWN: Final = 200
"""Characters of a value in a report."""


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
        audit = RoundAudit(rpc, trail, report, task, round_number)
        audit.run(fetch or rpc.get_blob)
    return report


@contextmanager
def noting(report: Report) -> Iterator[None]:
    """Turn what a node withholds, or garbles, into a link of the report."""
    try:
        yield
    except Stop:
        pass
    except NodeUnreachable as error:
        report.add("node", Verdict.UNKNOWN, error.message)
    except SteelyardError as error:
        report.add("node", Verdict.UNKNOWN, f"{error.code}: {error.message}")


@dataclass(frozen=True, slots=True)
class Scene:
    """A final block and what happened to the task in it. `place`: of the event looked at."""

    block: Block
    parent: Block
    events: Sequence[Event]
    place: int

    @property
    def earlier(self) -> Sequence[Event]:
        """The task's events before the one looked at."""
        return self.events[: self.place]


@dataclass(frozen=True, slots=True)
class Facts:
    """What storage proves about the round, as it was closed. `rounds`: this one and the origins."""

    terms: ProvenTask
    rounds: Mapping[int, RoundInfo]
    submissions: Sequence[SubmissionInfo]
    before: Moment


class RoundAudit:
    """One audit in progress; every method adds links to the report."""

    def __init__(
        self, rpc: Rpc, trail: Trail, report: Report, task: int, round_number: int
    ) -> None:
        self._rpc, self._trail, self._report = rpc, trail, report
        self._task, self._round = task, round_number

    def run(self, fetch: Fetch) -> None:
        """Follow the evidence to its end. Raises Stop where it breaks; SteelyardError."""
        record = self._find_record()
        closing = self._set_scene(record, "")
        opened = self._find_event("RoundOpened", "opening")
        opening = self._set_scene(opened, "opening")
        facts = self._check_storage(record, closing)
        self._check_opening(opened, opening, facts)
        chain_id = self._trail.genesis.chain_id
        Recomputation(self._report, fetch, chain_id, self._task).run(
            record, facts.terms.parameters, facts.rounds
        )
        self._check_payments(record, closing, facts)

    # -- records and blocks ------------------------------------------------------------------------
    def _find_record(self) -> Event:
        """Find the Aggregated event of the round."""
        info = Tasks(self._rpc).get_task(self._task)
        state = Rounds(self._rpc).get_round(self._task, self._round)
        if state.state is not RoundState.AGGREGATED:
            self._trail.give_up(
                "record",
                f"round {self._round} is {state.state.name.lower()}: it has made no model"
                f" (the task is in round {info.round})",
            )
        event = self._find_event("Aggregated", "record")
        if event.values["model"] != state.model:
            self._trail.refute(
                "record",
                f"model {encode_cid(event.values['model'])}, but the state says "
                f"{encode_cid(state.model)}",
            )
        self._say(
            "record",
            f"height {event.height}, {len(event.values['updates'])} updates, "
            f"model {encode_cid(event.values['model'])}",
        )
        return event

    def _find_event(self, name: str, link: str) -> Event:
        """Return the only event of its name about the round, as the node shows it."""
        events = get_events(self._rpc, self._task, [name], round_number=self._round)
        if not events:
            self._trail.give_up(link, f"the node shows no {name} of this round; ask another node")
        if len(events) > 1:
            self._trail.refute(link, f"the node shows {len(events)} times {name} of one round")
        return events[0]

    def _set_scene(self, event: Event, prefix: str) -> Scene:
        """Follow certificate, header and receipts root down to an event."""
        block = self._trail.fetch_block(event.height, prefix or "header")
        self._trail.check_finality(block, prefix or "finality")
        parent = self._trail.fetch_parent(block, prefix or "header")
        events = self._trail.fetch_events(block, self._task, prefix or "receipts")
        place = self._trail.find(events, event, prefix or "receipts")
        if not prefix:
            self._say("receipts", f"root in the header, record and {len(events) - 1} events inside")
        return Scene(block, parent, events, place)

    # -- how the round began -----------------------------------------------------------------------
    def _check_opening(self, opened: Event, scene: Scene, facts: Facts) -> None:
        """Draw again, and divide the reward again, as of the block that opened the round."""
        values, found = opened.values, facts.rounds[self._round]
        terms = facts.terms.parameters
        with self._proofs("draw"):
            before = Storage(self._rpc, scene.parent)
            then = read_moment(before, self._task, facts.terms, scene.earlier)
        seats = values["seats"]
        seed = compute_seed(scene.block.header.parent_hash, self._task, self._round)
        target = terms.compute_drawn(seats.bit_count())
        drawn = compute_draw(seed, seats, target)
        pool = then.reward_left // (terms.rounds - self._round + 1)
        self._compare(
            "draw",
            "recomputed",
            {
                "seats": (seats, then.ready),
                "seed": (values["seed"], seed),
                "draw": (values["drawn"], drawn),
                "pool": (values["pool"], pool),
            },
        )
        self._compare(
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
        self._say(
            "draw",
            f"{drawn.bit_count()} of {seats.bit_count()} seats by the hash of block "
            f"{scene.parent.height}, a pool of {pool} wei; recomputed",
        )

    # -- storage -----------------------------------------------------------------------------------
    def _check_storage(self, event: Event, scene: Scene) -> Facts:
        """Compare the record with what the contracts store: terms, submissions and weights."""
        values = event.values
        lists = ("clients", "origins", "updates", "raw_weights", "shares", "scores", "flags")
        if len({len(values[name]) for name in lists}) != 1:
            self._trail.refute("storage", "the record's lists differ in length")
        with self._proofs("storage"):
            facts = self._read_facts(values, scene)
        found, terms = facts.rounds[self._round], facts.terms.parameters
        before, origins = facts.before, [one.origin for one in facts.submissions]
        seated = [before.seats.get(seat) for seat in list_seats(found.revealed)]
        self._compare(
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
                "clients": (list(values["clients"]), seated),
                "updates": (list(values["updates"]), [one.update for one in facts.submissions]),
                "origins": (list(values["origins"]), origins),
            },
        )
        self._compare(
            "storage",
            "what the rounds before left",
            {
                "base": (values["base"], before.model),
                "velocity": (values["velocity_before"], before.velocity),
            },
        )
        self._check_submissions(values, facts)
        late = sum(origin != self._round for origin in origins)
        self._say(
            "storage",
            "terms, seats, updates and weights are the contracts', proven"
            + (f"; {late} late" if late else "")
            + (f"; closed in {found.pages} pages" if found.pages else ""),
        )
        return facts

    def _read_facts(self, values: Mapping[str, Any], scene: Scene) -> Facts:
        after, before = Storage(self._rpc, scene.block), Storage(self._rpc, scene.parent)
        terms = after.read_task(self._task)
        if not all(0 < origin <= self._round for origin in values["origins"]):
            self._trail.refute("storage", "the record has an update for a round to come")
        numbers = dict.fromkeys([self._round, *values["origins"]])
        rounds = after.read_rounds(self._task, numbers)
        submissions = after.read_submissions(self._task, self._round, values["clients"])
        seats = list_seats(rounds[self._round].committed)
        moment = read_moment(before, self._task, terms, scene.earlier, seats)
        return Facts(terms, rounds, submissions, moment)

    def _check_submissions(self, values: Mapping[str, Any], facts: Facts) -> None:
        """Compare weights, and check that each update was one that this round could take."""
        terms, found = facts.terms.parameters, facts.rounds[self._round]
        weights = [compute_weight(terms, one, self._round) for one in facts.submissions]
        self._compare(
            "storage",
            "from samples and stakes",
            {"weights": (list(values["raw_weights"]), weights)},
        )
        wrong = ""
        if found.revealed & ~found.committed:
            wrong = "somebody revealed without a commitment"
        if found.revealed.bit_count() < terms.min_clients:
            wrong = f"fewer than {terms.min_clients} updates were revealed"
        seats = list_seats(found.revealed)
        for client, seat, one in zip(values["clients"], seats, facts.submissions, strict=True):
            if self._round - one.origin > terms.max_staleness:
                wrong = f"{as_hex(client)} was more than {terms.max_staleness} rounds late"
            elif not facts.rounds[one.origin].is_drawn(seat):
                wrong = f"{as_hex(client)} was not drawn for round {one.origin}"
            elif one.stake < terms.compute_stake(one.samples):
                wrong = f"the samples of {as_hex(client)} are not covered by its stake"
        if wrong:
            self._trail.refute("storage", wrong)

    # -- money -------------------------------------------------------------------------------------
    def _check_payments(self, event: Event, scene: Scene, facts: Facts) -> None:
        """Compare what the block paid and burned with what shares and silence come to."""
        terms, found = facts.terms.parameters, facts.rounds[self._round]
        silent = self._find_silent(found, facts.before)
        due = compute_settlement(terms, found.pool, event.values["shares"], silent)
        self._check_settled(scene, found, due)
        clients = list(event.values["clients"])
        owners = list(dict.fromkeys([*clients, terms.platform, facts.terms.publisher]))
        with self._proofs("payments"):
            old, new = Storage(self._rpc, scene.parent), Storage(self._rpc, scene.block)
            claims = [one.read_claimable(self._task, owners) for one in (old, new)]
            was, now = old.read_account(self._task), new.read_account(self._task)
        credits = compute_credits(scene.events, terms, facts.terms.publisher)
        for owner, before, after in zip(owners, *claims, strict=True):
            expected = credits.owners.get(owner, 0)
            if after - before not in (expected, expected + credits.released.get(owner, 0)):
                self._trail.refute(
                    "payments", f"{as_hex(owner)} was credited {after - before} wei, not {expected}"
                )
        books = {
            name: (getattr(now, name) - getattr(was, name), getattr(credits, name))
            for name in ("paid", "platform", "fees", "burned")
        }
        self._compare("payments", "by the events", books)
        if credits.fees > terms.close_reserve * max(1, count_closed(scene.events)):
            self._trail.refute("payments", f"closing cost {credits.fees} wei, above the reserve")
        told = f"{due.paid} wei credited by the shares"
        told += f", {due.platform} to the platform" if due.platform else ""
        told += f", {due.burned} burned of {len(due.losses)} silent seats" if due.losses else ""
        self._say("payments", f"{told}; proven")

    def _find_silent(self, found: RoundInfo, before: Moment) -> dict[Address, Any]:
        seats = list_seats(found.committed & ~found.revealed)
        unknown = [seat for seat in seats if before.seats.get(seat) not in before.members]
        if unknown:
            self._trail.refute("payments", f"nobody sat on seat {unknown[0]}, which committed")
        return {before.seats[seat]: before.members[before.seats[seat]] for seat in seats}

    def _check_settled(self, scene: Scene, found: RoundInfo, due: Settlement) -> None:
        """Compare Settled and Slashed of this round with what is due."""
        mine = [one for one in scene.events if one.values.get("round") == self._round]
        settled = [one.values for one in mine if one.name == "Settled"]
        if len(settled) != 1:
            self._trail.refute("payments", f"the round was settled {len(settled)} times")
        slashed = {
            one.values["participant"]: (one.values["amount"], one.values["sponsored"])
            for one in mine
            if one.name == "Slashed"
        }
        self._compare(
            "payments",
            "recomputed",
            {
                "outcome": (settled[0]["outcome"], SETTLED_AGGREGATED),
                "pool": (settled[0]["pool"], found.pool),
                "pay": (settled[0]["paid"], due.paid),
                "platform fee": (settled[0]["platform"], due.platform),
                "bonds": (slashed, dict(due.losses)),
                "burned": (settled[0]["burned"], due.burned),
            },
        )

    # -- saying it ---------------------------------------------------------------------------------
    def _compare(self, link: str, source: str, pairs: Mapping[str, tuple[object, object]]) -> None:
        """Refute the first pair that differs: what the chain recorded, and what it should have."""
        for name, (recorded, expected) in pairs.items():
            if recorded != expected:
                self._trail.refute(
                    link,
                    f"another {name}: the record says {show(recorded)}, {source} {show(expected)}",
                )

    @contextmanager
    def _proofs(self, link: str) -> Iterator[None]:
        """Refute what is not under the state root."""
        try:
            yield
        except (InvalidProof, MissingState) as error:
            self._trail.refute(link, f"{error.code}: {error.message}")

    def _say(self, link: str, detail: str) -> None:
        self._report.add(link, Verdict.YES, detail)


def count_closed(events: Sequence[Event]) -> int:
    """Return how many of a task's rounds were closed, or a page of them, in these events."""
    return len({event.values["round"] for event in events if event.name == "ClosePaid"})


def show(value: object) -> str:
    """Return a value of a record for people, not too long."""
    match value:
        case BlobName():
            return encode_cid(value) if value.size else "none"
        case bytes():
            return as_hex(value)
        case list() | tuple():
            return f"[{', '.join(map(show, value))}]"[:MAX_SHOWN]
        case dict():
            return f"{{{', '.join(f'{show(k)}: {show(v)}' for k, v in value.items())}}}"[:MAX_SHOWN]
    return str(value)[:MAX_SHOWN]


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

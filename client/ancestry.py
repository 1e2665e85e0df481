"""Where a model comes from: the rounds that made it, a task's first model, and the registry.

    CID -> the first round that made it -> audited (`audit`) -> its base -> the round that made that
    -> … -> the model that a task began with: whoever published the task, at which height
    newest final header -> state root -> storage of Registry -> publications, origins, parents

Who made a model is asked of the node and then proven: an answer that cannot be proven refutes, and
silence proves nothing. Of the registry two things are told apart: that a publication says so, which
is proven here, and what it says. Only that a round made a model is checked by the contract; that a
model has a parent is its publisher's word, unless the audited rounds show it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from steelyard.chain.cid import Cid, decode_cid, encode_cid, get_blob_cid, is_named
from steelyard.chain.following import Checkpoint
from steelyard.chain.types import BlobName

from .abi import Event
from .audit import RoundAudit, noting
from .contracts import Rounds, get_contract
from .events import MAX_LOG_BLOCKS, collect_events, get_events, get_head
from .finalized import Trail
from .keys import format_address
from .proven import ProvenPublication, Storage
from .recomputing import Fetch
from .records import RoundState
from .rpc import Rpc, as_hex
from .verdicts import Report, Stop, Verdict

MAKERS: Final = {"Aggregated": "Rounds", "Published": "Tasks", "ModelPublished": "Registry"}
"""The events that name a model, and their contracts."""
MAX_INDEX: Final = 2**64
"""No block has so many logs."""


@dataclass
class ModelReport(Report):
    """What an audit of a model found. `rounds`: the reports of those on the way, newest first."""

    rounds: list[Report] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Maker:
    """A round that made a model, as the node says."""

    task: int
    round: int
    model: BlobName


def audit_model(
    rpc: Rpc,
    cid: str,
    *,
    depth: int | None = 1,
    genesis: bytes | None = None,
    checkpoint: Checkpoint | None = None,
    fetch: Fetch | None = None,
    progress: Callable[[str], object] = str,
) -> ModelReport:
    """Find what made a model, and audit so many rounds of its ancestry; None for all of them.

    `progress` is told what takes long. The rest as `audit_round`. Raises: InvalidBlobName.
    """
    wanted = decode_cid(cid)
    report = ModelReport(f"model {cid}")
    with noting(report):
        trail = Trail(rpc, report, genesis, checkpoint)
        audit = ModelAudit(rpc, trail, report, fetch or rpc.get_blob, progress)
        audit.run(wanted, depth)
    return report


class ModelAudit:
    """One audit in progress."""

    def __init__(
        self,
        rpc: Rpc,
        trail: Trail,
        report: ModelReport,
        fetch: Fetch,
        progress: Callable[[str], object],
    ) -> None:
        self._rpc, self._trail, self._report = rpc, trail, report
        self._fetch, self._progress = fetch, progress
        self._line: list[BlobName] = []
        """Models that were proven to follow from one another, newest first."""

    def run(self, wanted: Cid, depth: int | None) -> None:
        """Follow the ancestry, then the registry. Raises Stop, SteelyardError."""
        head = self._trail.fetch_block(get_head(self._rpc), "head")
        self._trail.check_finality(head, "head")
        found = self._search(wanted, (head.height, MAX_INDEX))
        if not found:
            self._trail.give_up(
                "record",
                "no round made it, no task began with it and nobody has published it, as far as "
                "this node shows; ask another node",
            )
        maker = choose_maker(found)
        self._line = [next(found[kind] for kind in MAKERS if kind in found).values["model"]]
        if maker is not None:
            self._line = [maker.model]
            with noting(self._report):  # what the registry says can be told all the same
                self._follow(maker, depth)
        elif "Published" in found:
            self._check_beginning(found["Published"].values["task"])
        else:
            nobody = "no round made it and no task began with it, as far as this node shows"
            self._report.add("record", Verdict.UNKNOWN, nobody)
        with self._trail.proofs("registry"):
            self._follow_registry(self._line[0], Storage(self._rpc, head), head.height, depth)

    # -- who made it -------------------------------------------------------------------------------
    def _search(self, wanted: Cid, limit: tuple[int, int]) -> dict[str, Event]:
        """Return the first events that name a model, one of each kind, before a place.

        The search begins with the chain and ends with the first round that made it: whoever knows
        a model can found a task of which a later round makes the very same. That takes at most a
        request for every MAX_LOG_BLOCKS blocks of the chain.
        `limit`: height and index of a log that all must come before.
        """
        contracts = [get_contract(one) for one in MAKERS.values()]
        topics = [[as_hex(get_contract(one).get_topic(kind)) for kind, one in MAKERS.items()]]
        found: dict[str, Event] = {}
        for start in range(0, limit[0] + 1, MAX_LOG_BLOCKS):
            stop = min(start + MAX_LOG_BLOCKS - 1, limit[0])
            self._progress(f"looking for {encode_cid(wanted)} in blocks {start} to {stop}")
            events = collect_events(
                self._rpc, {one.address: one for one in contracts}, [*topics], start, stop
            )
            for event in events:
                is_there = (event.height, event.index) < limit
                if is_there and is_named(event.values["model"], wanted):
                    keep_event(found, event)
            if "Aggregated" in found:
                break
        return found

    def _follow(self, maker: Maker | None, depth: int | None) -> None:
        """Audit so many rounds, each of which made the base of the one before. Raises Stop.

        A round that changed nothing is not counted: anybody can found a task that makes a model
        from itself, and would seem to be its origin.
        """
        counted = 0
        while maker is not None:
            self._progress(f"auditing round {maker.round} of task {maker.task}")
            base = self._audit(maker)
            counted += base != maker.model
            self._line.append(base)
            if counted == depth:
                return
            maker = self._find_previous(maker, base)

    def _audit(self, maker: Maker) -> BlobName:
        """Audit one round; return its base. Raises Stop if that cannot be told."""
        report = Report(f"round {maker.round} of task {maker.task}")
        self._report.rounds.append(report)
        record: Event | None = None
        with noting(report):
            trail = self._trail.continue_in(report)
            record = RoundAudit(self._rpc, trail, maker.task, maker.round).run(self._fetch)
            if record.name != "Aggregated" or record.values["model"] != maker.model:
                trail.refute("record", f"the round did not make {encode_cid(maker.model)}")
        told = f"of task {maker.task}: {report.summary}"
        if record is not None and report.verdict is Verdict.YES:
            values = record.values
            told += f"; {len(values['updates'])} updates on {encode_cid(values['base'])}"
            told += ", which changed nothing" * (values["base"] == maker.model)
        self._report.add(f"round {maker.round}", report.verdict, told)
        if record is None or report.verdict is Verdict.REFUTED:
            raise Stop
        base: BlobName = record.values["base"]
        return base

    def _find_previous(self, maker: Maker, base: BlobName) -> Maker | None:
        """Return what made the base of a round, or prove that a task began with it. Raises Stop."""
        rounds = Rounds(self._rpc)
        for number in range(maker.round - 1, 0, -1):
            found = rounds.get_round(maker.task, number)
            if found.state is RoundState.AGGREGATED and found.model == base:
                return Maker(maker.task, number, base)
        began = self._check_beginning(maker.task)
        earlier = self._search(get_blob_cid(base), (began.height, began.index))
        return choose_maker(earlier)

    def _check_beginning(self, task: int) -> Event:
        """Prove that a task began with the oldest model so far. Raises Stop."""
        events = get_events(self._rpc, task, ["Published"])
        name = self._line[-1]
        if len(events) != 1 or events[0].values["model"] != name:
            self._trail.give_up(
                "beginning", f"this node shows nothing that made {encode_cid(name)}; ask another"
            )
        values = events[0].values
        self._trail.visit(events[0], task, "beginning")
        self._trail.say(
            "beginning",
            f"task {task} began with {encode_cid(name)}, published by "
            f"{format_address(values['publisher'])} at height {events[0].height}",
        )
        return events[0]

    # -- what is said about it ---------------------------------------------------------------------
    def _follow_registry(
        self, model: BlobName, storage: Storage, height: int, depth: int | None
    ) -> None:
        """Report the publication that speaks for a model, and its parents. Raises Stop."""
        number = storage.read_leading(model)
        if not number:
            self._trail.say("registry", f"at height {height} nobody had published it; proven")
            return
        child = storage.read_publication(number)
        if child.number != number or child.model != model:
            self._trail.refute("registry", f"publication {number} is of another model")
        steps = 0
        while True:
            steps += 1
            told = describe_origin(child)
            if not child.parent:
                self._trail.say("registry", f"{told}; names no parent")
                return
            if child.parent >= child.number:
                self._trail.refute("registry", f"{told}; its parent came after it")
            parent = storage.read_publication(child.parent)
            self._trail.say("registry", f"{told}; {self._describe_parent(child, parent)}")
            if steps == depth:
                return
            child = parent

    def _describe_parent(self, child: ProvenPublication, parent: ProvenPublication) -> str:
        told = f"parent {encode_cid(parent.model)} (publication {parent.number})"
        if child.model in self._line:
            older = self._line[self._line.index(child.model) + 1 :]
            if parent.model in older:
                return f"{told}: proved by the rounds above"
        return f"{told}: a claim, its publisher's word"


def choose_maker(found: Mapping[str, Event]) -> Maker | None:
    """Return the round that made a model: a publication names one only if the contract agreed."""
    for kind in ("Aggregated", "ModelPublished"):
        if kind in found and found[kind].values["task"]:
            values = found[kind].values
            return Maker(values["task"], values["round"], values["model"])
    return None


def keep_event(found: dict[str, Event], event: Event) -> None:
    """Keep the earliest event of a kind, but rather a publication with an origin than without."""
    known = found.get(event.name)
    is_better = (
        known is None
        or (event.values["task"] and not known.values["task"])
        or (
            bool(event.values["task"]) == bool(known.values["task"])
            and (event.height, event.index) < (known.height, known.index)
        )
    )
    if is_better:
        found[event.name] = event


def describe_origin(publication: ProvenPublication) -> str:
    """Return who says what about a model's origin, and what of it the contract has checked."""
    told = (
        f"{encode_cid(publication.model)} is publication {publication.number}, by "
        f"{format_address(publication.publisher)}"
    )
    if publication.task:
        made = f"round {publication.round} of task {publication.task} made it"
        return f"{told}: {made}, proved by the contract"
    return f"{told}: no round is said to have made it"

"""A task's events from both contracts, in the order of the chain.

A node may name any height as its head. Heights above what a chain reaches are refused before
anything is asked for, and every range of logs comes with the head of the node that served it: the
silence of one that is behind would look like no events.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from steelyard.chain.types import Address

from .abi import Contract, Event, check_number, decode_log
from .contracts import get_contract
from .errors import NodeRefused, NodeUnreachable
from .rpc import Json, Rpc, as_hex, as_int

MAX_LOG_BLOCKS: Final = 10_000
"""Heights in one eth_getLogs, as many as our nodes take."""
MAX_HEIGHT: Final = 400_000_000
"""A chain that makes a block every second gets here in twelve years. Walking there takes as many
requests as this has steps: a node can cost a client that, and no more."""
TOO_MANY: Final = "logs_limit"
PATIENCE: Final = 64
"""Ranges that a node may refuse as too full without anything to show for it."""
MAX_EVENTS: Final = 1_000_000
"""Of one query. Ten thousand rounds of forty clients do not log so many."""
MAX_EVENT_BYTES: Final = 2**29
"""Of one query, of what the events say: ten thousand rounds of 128 clients, each aggregated."""
EVENTS_PER_REFUSAL: Final = 100
"""An honest node refuses ranges of thousands of logs: so many events excuse one refusal more."""


@dataclass(slots=True)
class Budget:
    """What one query may still take into memory: a node may invent events in every range."""

    url: str
    events: int
    size: int

    def spend(self, events: int, size: int) -> None:
        """Take off what a range of heights brought. Raises NodeRefused `events_many`."""
        self.events -= events
        self.size -= size
        if min(self.events, self.size) < 0:
            raise NodeRefused(
                "events_many",
                f"{self.url} answers one question with more than {MAX_EVENTS} events, or more than "
                f"{MAX_EVENT_BYTES} bytes of them; ask another node",
            )


def get_contracts() -> dict[Address, Contract]:
    """Return the contracts that make a task's events, by address."""
    return {contract.address: contract for contract in map(get_contract, ("Tasks", "Rounds"))}


def get_head(rpc: Rpc) -> int:
    """Return the newest finalized height. Raises NodeRefused `height_implausible`."""
    return check_height(rpc, as_int(rpc.call("eth_blockNumber")))


def check_height(rpc: Rpc, height: int) -> int:
    """Return a height that a node named. Raises NodeRefused `height_implausible`."""
    if height > MAX_HEIGHT:
        raise NodeRefused(
            "height_implausible",
            f"{rpc.url} names height {height}, which no chain has reached; ask another node",
        )
    return height


def get_events(
    rpc: Rpc,
    task: int,
    names: Sequence[str] = (),
    *,
    round_number: int | None = None,
    first_height: int = 0,
    last_height: int | None = None,
) -> list[Event]:
    """Return a task's finalized events in the order of the chain.

    `names`: only these; `round_number`: only those about that round; `last_height`: a finalized one
    that a node has named, None asks for the newest. Raises: NodeRefused `height_implausible`,
    `rpc_answer`, `events_many`; NodeUnreachable when a node is behind the one that named the last.
    """
    topics = build_topics(task, names, round_number)
    return collect_events(rpc, get_contracts(), topics, first_height, last_height)


def collect_events(
    rpc: Rpc,
    contracts: Mapping[Address, Contract],
    topics: list[Json],
    first_height: int = 0,
    last_height: int | None = None,
) -> list[Event]:
    """Return the finalized events of `contracts` with these topics. Raises as `get_events`."""
    budget = Budget(rpc.url, MAX_EVENTS, MAX_EVENT_BYTES)
    last = get_head(rpc) if last_height is None else check_height(rpc, last_height)
    events: list[Event] = []
    start, step, refusals = first_height, MAX_LOG_BLOCKS, 0
    while start <= last:
        stop = min(start + step - 1, last)
        try:
            events += read_events(rpc, contracts, topics, start, stop, budget)
        except NodeRefused as refusal:
            refusals += 1
            is_patient = refusals <= PATIENCE + len(events) // EVENTS_PER_REFUSAL
            if refusal.code != TOO_MANY or step == 1 or not is_patient:
                raise
            step //= 2
            continue
        start, step = stop + 1, min(2 * step, MAX_LOG_BLOCKS)
    return events


def build_topics(task: int, names: Sequence[str], round_number: int | None) -> list[Json]:
    """Return what eth_getLogs filters by. Raises ClientError `number_range`."""
    wanted = [
        as_hex(contract.get_topic(name))
        for contract in get_contracts().values()
        for name in names
        if contract.has_event(name)
    ]
    assert bool(wanted) == bool(names), "an event that no contract makes"
    check_number("task", task)
    topics: list[Json] = [wanted or None, as_hex(task.to_bytes(32, "big"))]
    if round_number is not None:
        check_number("round", round_number)
        topics.append(as_hex(round_number.to_bytes(32, "big")))
    return topics


def read_events(
    rpc: Rpc,
    contracts: Mapping[Address, Contract],
    topics: list[Json],
    start: int,
    stop: int,
    budget: Budget,
) -> list[Event]:
    """Return the events of a range of heights, all from one node that has them."""
    query = {
        "address": [as_hex(address) for address in contracts],
        "topics": topics,
        "fromBlock": hex(start),
        "toBlock": hex(stop),
    }
    now, found = rpc.call_together([("eth_blockNumber", ()), ("eth_getLogs", (query,))])
    if as_int(now) < stop:
        raise NodeUnreachable({rpc.url: f"it is only at height {as_int(now)}"})
    if not isinstance(found, list):
        raise NodeRefused("rpc_answer", "the node's logs are malformed")
    logs = sorted(map(decode_log, found), key=lambda log: (log.height, log.index))
    budget.spend(len(logs), sum(len(log.data) for log in logs))
    events = []
    for log in logs:
        contract = contracts.get(log.address)
        event = None if contract is None else contract.decode_event(log)
        if event is not None and is_wanted(log.topics, topics) and start <= log.height <= stop:
            events.append(event)
    return events


def is_wanted(found: Sequence[bytes], topics: Sequence[Json]) -> bool:
    """Whether a log is one that was asked for: a node may add others."""
    for place, wanted in enumerate(topics):
        if wanted is None:
            continue
        allowed = wanted if isinstance(wanted, list) else [wanted]
        if place >= len(found) or as_hex(found[place]) not in allowed:
            return False
    return True

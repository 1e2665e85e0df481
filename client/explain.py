"""What happened in a round, and why: per participant, from the chain's own events and refusals.

A refused commit or reveal leaves no event. Its transaction does: the blocks of the round are
searched for failed calls of Tasks, and each one is asked for again at its block to learn why.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, Final

from steelyard.chain.cid import encode_cid
from steelyard.chain.params import WEIGHT_TOTAL
from steelyard.chain.rules import Flag
from steelyard.chain.types import Address, BlobName

from .abi import Event
from .contracts import Tasks
from .errors import ClientError, NodeRefused, Reverted
from .records import RoundInfo, RoundState, TaskInfo
from .rpc import Rpc, as_bytes, as_hex, as_int

MAX_SEARCHED_BLOCKS: Final = 2_000
NORM_UNIT: Final = 2**24

HINTS: Final = {
    "fedavg: update_norm": "the delta is longer than the task admits; lower the learning rate",
    "fedavg: update_base": "it was trained on another model than the round's base",
    "fedavg: update_round": "it was made for another round",
    "fedavg: update_sender": "it was made by another account",
    "tasks: commit period is over": "training took too long, or the client was started late",
    "tasks: reveal period is over": "the client was away during the reveal period",
    "tasks: differs from the commitment": "the update is not the one that was committed to",
    "tasks: samples not covered by stake": "join with more samples, or train on fewer rows",
}
"""What a refusal means for the one who got it."""


@dataclass(frozen=True, slots=True)
class Part:
    """One participant's part in a round. Amounts in wei; None where it does not apply."""

    address: Address
    outcome: str
    update: BlobName | None = None
    samples: int | None = None
    norm: float | None = None
    share: float | None = None
    score: float | None = None
    flags: tuple[str, ...] = ()
    paid: int | None = None
    refusals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """A round, told."""

    task: int
    round: int
    state: RoundState
    summary: str
    model: BlobName | None
    saturated: int
    metrics: tuple[float, ...]
    parts: tuple[Part, ...]


def explain_round(rpc: Rpc, task: int, round_number: int) -> Explanation:
    """Return what happened in a round. Raises ClientError `task_unknown`, `round_unknown`."""
    tasks = Tasks(rpc)
    info, state = tasks.get_task(task), tasks.get_round(task, round_number)
    if state.state is RoundState.NONE:
        raise ClientError(
            "round_unknown", f"round {round_number} of task {task} was never opened; it is in round"
            f" {info.round}"
        )  # fmt: skip
    events = tasks.get_events(task, round_number=round_number)
    opened = next(event.height for event in events if event.name == "RoundOpened")
    ends = [e.height for e in events if e.name in ("Aggregated", "RoundSkipped")]
    last = ends[0] if ends else as_int(rpc.call("eth_blockNumber"))
    refusals = find_refusals(rpc, tasks, task, round_number, range(opened, last + 1))
    record = next((event for event in events if event.name == "Aggregated"), None)
    members = tasks.get_participants(task)
    known = [e.values["participant"] for e in events if e.name in ("Committed", "Revealed")]
    addresses = dict.fromkeys([*members, *known, *refusals])
    pool = info.parameters.reward // info.parameters.rounds
    parts = [
        explain_part(address, events, record, pool, tuple(refusals.get(address, ())))
        for address in addresses
    ]
    return Explanation(
        task,
        round_number,
        state.state,
        summarize(info, state),
        state.model if state.model.size else None,
        state.saturated,
        tasks.get_metrics(task, round_number).means,
        tuple(parts),
    )


def explain_part(
    address: Address,
    events: list[Event],
    record: Event | None,
    pool: int,
    refusals: tuple[str, ...],
) -> Part:
    """Return one participant's part, from the round's events."""
    mine = {e.name: e for e in events if e.values.get("participant") == address}
    if "Revealed" not in mine:
        outcome = "committed, never revealed" if "Committed" in mine else "did not commit"
        return Part(address, outcome, refusals=refusals)
    values = mine["Revealed"].values
    shown = Part(
        address,
        "revealed",
        update=values["update"],
        samples=values["samples"],
        norm=isqrt(values["norm2"]) / NORM_UNIT,
        refusals=refusals,
    )
    if record is None or address not in record.values["clients"]:
        return shown
    return add_record(shown, record.values, pool)


def add_record(part: Part, record: Mapping[str, Any], pool: int) -> Part:
    """Return a revealed part with what the aggregation made of it."""
    place = record["clients"].index(part.address)
    share, flags = record["shares"][place], Flag(record["flags"][place])
    return Part(
        part.address,
        "in the mean",
        part.update,
        part.samples,
        part.norm,
        share / WEIGHT_TOTAL,
        record["scores"][place] / WEIGHT_TOTAL,
        tuple(flag.name or "" for flag in Flag if flag in flags),
        pool * share // WEIGHT_TOTAL,
        part.refusals,
    )


def summarize(info: TaskInfo, state: RoundInfo) -> str:
    """Return the round's outcome in one line."""
    counts = f"{state.committed} committed, {state.revealed} revealed of {state.active}"
    match state.state:
        case RoundState.AGGREGATED:
            return f"aggregated: {counts}; model {encode_cid(state.model)}"
        case RoundState.SKIPPED:
            least = info.parameters.min_clients
            return f"skipped: {counts}, and {least} updates were needed; the base stays"
        case _:
            return f"open: {counts}"


def find_refusals(
    rpc: Rpc, tasks: Tasks, task: int, round_number: int, heights: range
) -> dict[Address, list[str]]:
    """Return why calls about this round failed, by sender; searches the newest blocks first."""
    found: dict[Address, list[str]] = {}
    for height in reversed(heights[-MAX_SEARCHED_BLOCKS:]):
        receipts = rpc.call("eth_getBlockReceipts", hex(height))
        for receipt in receipts or ():
            if receipt.get("status") != "0x0" or receipt.get("to") is None:
                continue
            if as_bytes(receipt["to"]) != tasks.contract.address:
                continue
            sender, reason = explain_failure(rpc, tasks, receipt, task, round_number, height)
            if reason:
                found.setdefault(sender, []).append(reason)
    return found


def explain_failure(
    rpc: Rpc, tasks: Tasks, receipt: Mapping[str, Any], task: int, round_number: int, height: int
) -> tuple[Address, str]:
    """Return the sender of a failed transaction and why it failed; "" if it is another round's."""
    sent = rpc.call("eth_getTransactionByHash", receipt["transactionHash"])
    data, sender = as_bytes(sent["input"]), Address(as_bytes(sent["from"], 20))
    call = tasks.contract.decode_call(data)
    if call is None or (call[1].get("task"), call[1].get("round")) != (task, round_number):
        return sender, ""
    request = {
        "from": as_hex(sender),
        "to": as_hex(tasks.contract.address),
        "value": sent["value"],
        "data": as_hex(data),
    }
    try:
        rpc.call("eth_call", request, hex(height))
    except Reverted as error:
        hint = HINTS.get(error.reason, "")
        return sender, f"{call[0]} refused: {error.reason}" + (f" ({hint})" if hint else "")
    except NodeRefused as error:
        return sender, f"{call[0]} failed: {error.message}"
    return sender, f"{call[0]} failed in block {height} (too late, or out of gas)"

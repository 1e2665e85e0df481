"""Rounds of every kind on a real chain, each audited: as it was, and with one thing changed.

A node may lie: what it answers is then not what the certificates, roots and names say. Or a quorum
may: then everything is proven, and only the auditor's own arithmetic says that it is wrong. That is
played by changing words and events after their proofs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from steelyard.chain.following import Checkpoint
from steelyard.chain.genesis import encode_genesis
from steelyard.chain.rules import Flag
from steelyard.chain.types import Height
from steelyard.client import audit, finalized
from steelyard.client.abi import Contract, Event
from steelyard.client.audit import audit_round
from steelyard.client.proven import (
    PARAMETERS_OFFSET,
    PUBLISHER_OFFSET,
    RULE_WORDS,
    Storage,
    compute_slot,
)
from steelyard.client.records import NO_BLOB, Parameters
from steelyard.client.verdicts import Report, Verdict
from tests.chain.evm_kit import get_genesis_state

from .quiet import ADDRESSES, KEEPER, ONE, PLATFORM, QuietChain
from .story import AUDITED, STORY, TASKS, tell_story

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chain() -> Iterator[QuietChain]:
    """Block 0 is executed once, and not by each audit."""
    told = tell_story()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finalized, "build_genesis", lambda genesis: get_genesis_state())
        yield told


def look(chain: QuietChain, name: str, **lies: Callable[[Any, Any], Any]) -> Report:
    return audit_round(chain.open_rpc(**lies), TASKS[name], AUDITED[name])


def get_check(report: Report, name: str) -> tuple[Verdict, str]:
    (check,) = [check for check in report.checks if check.name == name]
    return check.verdict, check.detail


# -- as it was -------------------------------------------------------------------------------------
EXPECTED = {
    "late": [("storage", "; 1 late")],
    "paged": [("storage", "; closed in 3 pages")],
    "momentum": [("blobs", "base, velocity and 2"), ("aggregate", ", velocity, shares")],
    "trimmed": [("aggregate", "recomputed")],
    "krum": [("aggregate", "recomputed"), ("blobs", "6 updates")],
    "capped": [("payments", "33333142 to the platform")],
    "silent": [("payments", "600 burned of 1 silent seats")],
    "spoilt": [("storage", "no model: 3 committed and 2 revealed, of at least 3"),
               ("updates", "2 are bound"), ("payments", "600 burned of 1 silent seats")],
    "drawn": [("draw", "3 of 6 seats by the hash of block")],
    "short": [("storage", "no model: 1 committed and 0 revealed, of at least 2")],
    "worthless": [("storage", "no model: all updates were late"),
                  ("payments", "0 wei credited by the shares, 600 burned of 1 silent")],
    "extended": [("storage", "proven")],
    "refunded": [("payments", "0 wei credited by the shares, 1800 burned of 3 silent seats")],
    "hurried": [("receipts", "and 13 events")],
    "newcomer": [("draw", "3 of 3 seats")],
    "staked": [("payments", "600 burned of 1 silent seats")],
    "topped": [("blobs", "3 updates")],
}  # fmt: skip


@pytest.mark.parametrize("name", STORY)
def test_an_honest_round_of_any_kind_is_confirmed(chain: QuietChain, name: str) -> None:
    report = look(chain, name)
    assert report.verdict is Verdict.YES, report.checks
    for link, words in EXPECTED[name]:
        assert words in get_check(report, link)[1]


def test_the_story_is_what_it_says(chain: QuietChain) -> None:
    """Otherwise the audits above would confirm something else."""
    records = {
        name: audit.get_events(chain.open_rpc(), TASKS[name], ["Aggregated"], round_number=number)
        for name, number in AUDITED.items()
    }
    made = {name: found[0].values for name, found in records.items() if found}
    assert set(STORY) - set(made) == {"spoilt", "short", "worthless", "refunded", "staked"}
    assert made["late"]["origins"] == [2, 2, 1]
    assert made["late"]["raw_weights"] == [10 << 20, 20 << 20, 15 << 20]
    flags, shares = made["krum"]["flags"], made["krum"]["shares"]
    assert flags[4] & Flag.EXCLUDED
    assert not shares[4]
    assert [bool(flags[one] & Flag.DUPLICATE) for one in (0, 5)].count(True) == 1
    assert not shares[0] or not shares[5]
    assert made["capped"]["shares"][2] == ONE * 2 // 5
    assert made["momentum"]["velocity_before"].size
    assert made["newcomer"]["clients"] == [ADDRESSES[1], ADDRESSES[2]]
    spoilt = audit.get_events(chain.open_rpc(), TASKS["spoilt"], ["Compensated"])[0].values
    assert spoilt["clients"] == [ADDRESSES[0], ADDRESSES[2]]
    assert spoilt["shares"] == [ONE // 6, ONE // 2]
    staked = audit.get_events(chain.open_rpc(), TASKS["staked"], ["Compensated"])[0].values
    assert staked["shares"] == [10_700 * ONE // 32_400, ONE // 3]
    assert made["topped"]["clients"] == [ADDRESSES[0], ADDRESSES[1], ADDRESSES[2]]


# -- a node that lies ------------------------------------------------------------------------------
def change_record(arguments: Any, logs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Flip a bit in the data of every log that was asked for."""
    return [{**log, "data": log["data"][:-1] + "1"} for log in logs]


def change_proof(arguments: Any, proof: dict[str, Any]) -> dict[str, Any]:
    """Change one of the words in each answer, under the true proof."""
    first, *others = proof["storageProof"]
    changed = {**first, "value": hex(int(first["value"], 16) ^ 1)}
    return {**proof, "storageProof": [changed, *others]}


def flip_last_byte(name: Any, data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


LIES: Mapping[str, tuple[dict[str, Callable[[Any, Any], Any]], set[str]]] = {
    "record": ({"eth_getLogs": change_record}, {"record", "receipts"}),
    "proof": ({"eth_getProof": change_proof}, {"storage"}),
    "blob": ({"blob": flip_last_byte}, {"blobs"}),
    "header": ({"blocks": flip_last_byte}, {"header"}),
    "certificate": ({"certificates": flip_last_byte}, {"finality"}),
}
"""What a node changes, and where that must be noticed."""
WITHOUT_BLOBS = {"short", "refunded"}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("name", STORY)
def test_one_changed_answer_is_refuted_where_it_was_changed(
    chain: QuietChain, name: str, lie: str
) -> None:
    lies, links = LIES[lie]
    report = look(chain, name, **lies)
    if lie == "blob" and name in WITHOUT_BLOBS:
        assert report.verdict is Verdict.YES
        return
    assert report.verdict is Verdict.REFUTED, report.checks
    refuted = [check.name for check in report.checks if check.verdict is Verdict.REFUTED]
    assert set(refuted) <= links, report.checks


@pytest.mark.parametrize("method", ["eth_getLogs", "eth_getBlockReceipts", "eth_getProof"])
@pytest.mark.parametrize("answer", [None, [], {}, "0x", 7, [[]], [{}], {"storageProof": 1}])
def test_an_answer_of_another_shape_is_never_believed(
    chain: QuietChain, method: str, answer: Any
) -> None:
    report = look(chain, "late", **{method: lambda arguments, true: answer})
    assert report.verdict is not Verdict.YES


def test_the_wrong_parent_is_refuted(chain: QuietChain) -> None:
    """The seed of the draw is its hash, and the state before the round is under its root."""
    rpc = chain.open_rpc()
    (opened,) = audit.get_events(rpc, TASKS["drawn"], ["RoundOpened"], round_number=1)
    other = rpc.get_bytes(f"/chain/blocks/{opened.height - 2}")
    path = f"/chain/blocks/{opened.height - 1}"
    report = look(chain, "drawn", blocks=lambda asked, data: other if asked == path else data)
    last = report.checks[-1]
    assert (last.name, last.verdict) == ("opening", Verdict.REFUTED)
    assert last.detail == f"the node sent block {opened.height - 2}"


# -- a quorum that lies ----------------------------------------------------------------------------
TERMS = {name: PARAMETERS_OFFSET + RULE_WORDS + place
         for place, name in enumerate(Parameters.__slots__[1:])}  # fmt: skip
TERMS |= {"bound": 3, "max_share": 4, "momentum": 6}
Change = Callable[[int], int]
Find = Callable[[str], "Word"]
"""Which word, in the task of that name."""


@dataclass(frozen=True)
class Word:
    """A word that a contract stores, and what else it should be."""

    contract: str
    slot: int
    change: Change
    after_only: bool = False
    """Before the block of the record it is as it was."""


def alter_term(name: str, value: int) -> Find:
    def find(story: str) -> Word:
        slot = compute_slot("Tasks", "tasks", TASKS[story]) + PUBLISHER_OFFSET + TERMS[name]
        return Word("Tasks", slot, lambda word: value)

    return find


def alter(
    contract: str,
    name: str,
    *keys: int | bytes,
    offset: int = 0,
    change: Change,
    after_only: bool = False,
) -> Find:
    """Alter an entry of a task in one of a contract's maps."""

    def find(story: str) -> Word:
        slot = compute_slot(contract, name, TASKS[story], *keys) + offset
        return Word(contract, slot, change, after_only)

    return find


def alter_round(number: int, offset: int, change: Change) -> Find:
    return alter("Rounds", "rounds", number, offset=offset, change=change)


def alter_shown(number: int, client: int, change: Change) -> Find:
    """In the packed facts: origin, size << 16, samples << 48, stake << 112."""
    return alter("Rounds", "packed", number, ADDRESSES[client], offset=2, change=change)


def alter_member(client: int, offset: int, change: Change, *, after_only: bool = False) -> Find:
    """Stake, sponsored, samples, active_from, position."""
    return alter(
        "Tasks",
        "participants",
        ADDRESSES[client],
        offset=offset,
        change=change,
        after_only=after_only,
    )


def alter_after(contract: str, name: str, *keys: int | bytes, offset: int = 0) -> Find:
    """One more, after the block of the record."""
    return alter(contract, name, *keys, offset=offset, change=add(1), after_only=True)


@contextmanager
def storing(word: Word, height: int) -> Iterator[None]:
    """Have the chain store something else, under a root that proves it. `height`: the record's."""
    genuine = Storage.read_words

    def read(storage: Storage, contract: str, slots: Sequence[int]) -> list[int]:
        words = genuine(storage, contract, slots)
        if word.after_only and storage._block.height != height:
            return words
        return [
            word.change(value) if (contract, slot) == (word.contract, word.slot) else value
            for slot, value in zip(slots, words, strict=True)
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Storage, "read_words", read)
        yield


def add(number: int) -> Change:
    return lambda word: word + number


def put(number: int) -> Change:
    return lambda word: number


STORED = [
    ("late", alter_term("max_staleness", 0), "storage", "more than 0 rounds late"),
    ("late", alter_term("staleness_discount", ONE), "storage", "another weights"),
    ("late", alter_term("weighting", 2), "storage", "another weights"),
    ("late", alter_term("stake_per_sample", 10**6), "storage", "not covered by its stake"),
    ("late", alter_round(1, 7, lambda word: word & ~4), "storage", "was not drawn for round 1"),
    ("late", alter_member(2, 3, put(2)), "storage", "was not drawn for round 1"),
    ("late", alter_shown(2, 2, add(1)), "storage", "another origins"),
    ("late", alter_shown(2, 2, add(2)), "storage", "a round that has not been"),
    ("late", alter_shown(2, 2, put(0)), "storage", "a round that has not been"),
    ("late", alter_shown(1, 2, put(1 | 9 << 16)), "storage", "answered round 1 twice"),
    ("late", alter_shown(2, 0, add(10**6 << 48)), "storage", "not covered by its stake"),
    ("late", alter_member(0, 2, add(-1)), "storage", "more than it had promised"),
    ("late", alter_member(0, 0, add(-1)), "storage", "more than it had promised"),
    ("late", alter_round(2, 9, add(8)), "storage", "nobody sat on seat 3"),
    ("late", alter_round(2, 8, put(3)), "storage", "without a commitment"),
    ("late", alter_round(2, 11, add(10**6)), "storage", "before it was due"),
    ("late", alter_term("min_clients", 4), "storage", "fewer than 4"),
    ("late", alter_term("rounds", 1), "draw", "the task has 1 rounds"),
    ("late", alter_round(2, 0, put(9)), "storage", "no round is in state 9"),
    ("late", alter_round(2, 0, put(3)), "storage", "another state"),
    ("late", alter_after("Tasks", "claimable", ADDRESSES[2]), "payments", "was credited"),
    ("late", alter_after("Tasks", "claimable", ADDRESSES[KEEPER]), "payments", "was credited"),
    ("late", alter_after("Tasks", "accounts", offset=2), "payments", "another rest of the reward"),
    ("late", alter_after("Tasks", "accounts", offset=3), "payments", "another paid"),
    ("late", alter_after("Tasks", "ready"), "payments", "another seats to draw from"),
    ("late", alter_after("Tasks", "accounts", offset=1), "payments", "another escrow"),
    ("late", alter_after("Tasks", "accounts", offset=0), "payments", "another deposited"),
    ("late", alter_after("Tasks", "accounts", offset=6), "payments", "another refunded"),
    ("silent", alter_after("Tasks", "accounts", offset=7), "payments", "another stakes"),
    ("late", alter_after("Tasks", "accounts", offset=8), "payments", "another sponsorships"),
    ("paged", alter_term("bound", 7), "storage", "another rule"),
    ("paged", alter("Tasks", "spent", 1, change=put(10**17)), "payments", "above the reserve"),
    ("momentum", alter_term("momentum", 0), "storage", "another rule"),
    ("momentum", alter_round(2, 3, add(1)), "storage", "another velocity"),
    ("momentum", alter("Rounds", "velocities", change=add(1)), "storage", "another velocity"),
    ("momentum", alter_after("Rounds", "velocities"), "payments", "another newest velocity"),
    ("trimmed", alter_term("bound", 2), "storage", "another rule"),
    ("krum", alter_round(1, 15, add(1)), "storage", "another saturated"),
    ("capped", alter_term("platform_share", 0), "payments", "another pay"),
    ("capped", alter_round(1, 5, add(-1)), "storage", "another pool"),
    ("capped", alter_after("Tasks", "claimable", PLATFORM), "payments", "was credited"),
    ("capped", alter_after("Tasks", "accounts", offset=5), "payments", "another platform"),
    ("silent", alter_term("bond", 599), "payments", "another bonds"),
    ("silent", alter_member(2, 1, put(0)), "payments", "another bonds"),
    ("silent", alter_member(2, 0, add(600), after_only=True), "payments", "another stakes"),
    ("silent", alter_after("Tasks", "accounts", offset=9), "payments", "another burned"),
    ("spoilt", alter_term("min_clients", 2), "storage", "enough updates for a model"),
    ("spoilt", alter_member(1, 2, add(1)), "payments", "another compensation"),
    ("spoilt", alter_term("on_failed_quorum", 2), "payments", "another outcome"),
    ("spoilt", alter_term("max_extensions", 1), "storage", "should have been extended"),
    ("spoilt", alter_round(1, 14, put(5)), "storage", "another model"),
    ("drawn", alter_term("fraction_fit", ONE), "draw", "another draw"),
    ("drawn", alter_term("spare_clients", 1), "draw", "another draw"),
    ("drawn", alter("Tasks", "ready", change=lambda word: word | 64), "draw", "another seats"),
    ("drawn", alter_round(1, 6, add(1)), "draw", "another seed"),
    ("short", alter_round(1, 10, add(1_000)), "storage", "before it was due"),
    ("worthless", alter_term("staleness_discount", 1), "storage", "enough updates for a model"),
    ("refunded", alter_term("on_failed_quorum", 0), "payments", "another outcome"),
    ("hurried", alter_term("close_reserve", 1), "payments", "above the reserve"),
    ("staked", alter_term("max_share", ONE), "payments", "another compensation"),
    ("staked", alter_term("weighting", 2), "payments", "another compensation"),
    ("staked", alter_shown(1, 1, add(-(1 << 112))), "payments", "another compensation"),
    ("staked", alter_shown(1, 1, add(50_001 << 112)), "storage", "not commit with that stake"),
    ("staked", alter_shown(1, 1, put(1 | 9_999 << 112)), "storage", "not commit with that stake"),
    ("topped", alter_member(2, 0, add(-1)), "storage", "not covered by its stake"),
    ("topped", alter_shown(2, 2, add(101 << 112)), "storage", "more than it had promised"),
    ("topped", alter_shown(2, 2, add(-(301 << 112))), "storage", "not commit with that stake"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "find", "link", "words"), STORED)
def test_what_a_quorum_stored_wrongly_is_named(
    chain: QuietChain, name: str, find: Find, link: str, words: str
) -> None:
    rpc = chain.open_rpc()
    records = audit.get_events(
        rpc, TASKS[name], list(audit.RECORDS.values()), round_number=AUDITED[name]
    )
    with storing(find(name), records[0].height):
        report = look(chain, name)
    assert report.verdict is Verdict.REFUTED, report.checks
    last = report.checks[-1]
    assert (last.name, words in last.detail) == (link, True), last


LOGGED: list[tuple[str, str, str, Callable[[Any], Any], str]] = [
    ("krum", "Aggregated", "flags", lambda flags: [0] * 6, "flags"),
    ("krum", "Aggregated", "scores", lambda scores: scores[::-1], "scores"),
    ("krum", "Aggregated", "shares", lambda shares: [ONE // 6] * 6, "shares"),
    ("capped", "Aggregated", "shares", lambda shares: shares[::-1], "shares"),
    ("trimmed", "Aggregated", "shares", lambda shares: [ONE, 0, 0], "shares"),
    ("momentum", "Aggregated", "velocity", lambda name: NO_BLOB, "velocity"),
    ("late", "Aggregated", "raw_weights", lambda weights: [1, 1, 1], "storage"),
    ("late", "Aggregated", "origins", lambda origins: [2, 2, 2], "storage"),
    ("late", "Aggregated", "clients", lambda clients: clients[:2], "storage"),
    ("late", "Aggregated", "saturated", lambda count: 1, "storage"),
    ("late", "Aggregated", "model", lambda name: NO_BLOB, "record"),
    ("late", "Settled", "outcome", lambda outcome: 2, "payments"),
    ("trimmed", "Settled", "paid", lambda paid: paid - 1, "payments"),
    ("capped", "Settled", "platform", lambda fee: 0, "payments"),
    ("silent", "Settled", "burned", lambda amount: 0, "payments"),
    ("silent", "Slashed", "amount", lambda amount: 0, "payments"),
    ("silent", "Slashed", "sponsored", lambda amount: 600, "payments"),
    ("spoilt", "Compensated", "shares", lambda shares: [ONE // 2, ONE // 2], "payments"),
    ("spoilt", "Compensated", "clients", lambda clients: clients[::-1], "payments"),
    ("staked", "Compensated", "shares", lambda s: [s[0], 10_900 * ONE // 32_400], "payments"),
    ("spoilt", "RoundSkipped", "revealed", lambda count: 3, "storage"),
    ("drawn", "RoundOpened", "drawn", lambda seats: 0b111, "draw"),
    ("drawn", "RoundOpened", "seats", lambda seats: 0b111, "draw"),
    ("drawn", "RoundOpened", "seed", lambda seed: bytes(32), "draw"),
    ("drawn", "RoundOpened", "pool", lambda pool: pool + 1, "draw"),
    ("hurried", "ClosePaid", "fee", lambda fee: fee - 1, "payments"),
    ("hurried", "Funded", "amount", lambda amount: 998, "payments"),
    ("newcomer", "RoundOpened", "drawn", lambda seats: 0, "draw"),
]


@pytest.mark.parametrize(("name", "event", "field", "change", "link"), LOGGED)
def test_what_a_quorum_logged_wrongly_is_named(
    chain: QuietChain,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    event: str,
    field: str,
    change: Callable[[Any], Any],
    link: str,
) -> None:
    genuine = Contract.decode_event

    def decode(contract: Contract, log: Any) -> Event | None:
        found = genuine(contract, log)
        if found is None or found.name != event:
            return found
        return replace(found, values={**found.values, field: change(found.values[field])})

    monkeypatch.setattr(Contract, "decode_event", decode)
    report = look(chain, name)
    assert report.verdict is Verdict.REFUTED, report.checks
    assert link in {one.name for one in report.checks if one.verdict is Verdict.REFUTED}


# -- whose chain -----------------------------------------------------------------------------------
def test_only_what_the_auditor_brings_makes_a_verdict_unconditional(chain: QuietChain) -> None:
    task, number = TASKS["late"], AUDITED["late"]
    rpc = chain.open_rpc()
    assert audit_round(rpc, task, number).condition == finalized.OTHER_CHAIN
    document = encode_genesis(chain.chain.genesis)
    assert audit_round(rpc, task, number, genesis=document).condition == ""
    trusted = Checkpoint(Height(1), chain.node.blocks[1].hash)
    report = audit_round(rpc, task, number, checkpoint=trusted)
    assert (report.verdict, report.condition) == (Verdict.YES, "")

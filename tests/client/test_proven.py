"""Slots as the compiler lays them out; draws, weights and payments reckoned by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from vyper.compiler import compile_from_file_input
from vyper.compiler.input_bundle import FilesystemInputBundle

from steelyard.chain.artifacts import get_artifact
from steelyard.chain.params import TASKS_ADDRESS
from steelyard.chain.receipts import Log
from steelyard.chain.types import Address, Hash
from steelyard.client import proven
from steelyard.client.abi import Event
from steelyard.client.errors import NodeRefused
from steelyard.client.finalized import decode_chain_log
from steelyard.client.proven import SLOTS, read_submission
from steelyard.client.reckoning import (
    compute_credits,
    compute_draw,
    compute_settlement,
    compute_weight,
)
from steelyard.client.records import (
    NO_BLOB,
    Parameters,
    ParticipantInfo,
    RuleTerms,
    SubmissionInfo,
)

CONTRACTS = Path(__file__).parents[2] / "contracts"
ALICE, BOB, KEEPER, PLATFORM, PUBLISHER = (Address(bytes([n]) * 20) for n in range(1, 6))
HALF = 2**19
WORDS = {"string": 3}
"""A String[64] is a length and two words."""


def make_parameters(**changes: object) -> Parameters:
    numbers: dict[str, Any] = dict.fromkeys(Parameters.__slots__, 0)
    numbers |= {"rule": RuleTerms(0, 0, 2**20, 4096, 0), "platform": PLATFORM}
    return Parameters(**numbers | changes)


@pytest.mark.slow
@pytest.mark.parametrize("contract", SLOTS)
def test_the_slots_are_the_compilers(contract: str) -> None:
    bundle = FilesystemInputBundle([CONTRACTS])
    layout = compile_from_file_input(
        bundle.load_file(Path(f"{contract}.vy")), input_bundle=bundle, output_formats=["layout"]
    )["layout"]["storage_layout"]
    found = {}
    for name, entry in layout.items():
        entries = {name: entry} if "slot" in entry else entry
        found |= {key: value["slot"] for key, value in entries.items()}
    assert {name: found[name] for name in SLOTS[contract]} == SLOTS[contract]


def get_struct(contract: str, view: str) -> Sequence[Mapping[str, Any]]:
    """Return the fields of the struct that a view answers with."""
    entry = next(item for item in get_artifact(contract).abi if item.get("name") == view)
    fields: Sequence[Mapping[str, Any]] = entry["outputs"][0]["components"]
    return fields


def count_words(entry: Mapping[str, Any]) -> int:
    if entry["type"] == "tuple":
        return sum(map(count_words, entry["components"]))
    return WORDS.get(entry["type"], 1)


def test_structs_have_the_words_that_are_read() -> None:
    task = get_struct("Tasks", "get_task")
    names = [entry["name"] for entry in task]
    starts = [sum(map(count_words, task[:place])) for place in range(len(task))]
    words = dict(zip(names, starts, strict=True))
    assert words["publisher"] == proven.PUBLISHER_OFFSET
    assert words["parameters"] == proven.PUBLISHER_OFFSET + proven.PARAMETERS_OFFSET
    assert words["join_ends"] == proven.PUBLISHER_OFFSET + proven.TASK_WORDS
    assert words["bundle"] - words["parameters"] == proven.PARAMETERS_WORDS
    for contract, view, expected in (
        ("Tasks", "get_account", proven.ACCOUNT_WORDS),
        ("Tasks", "get_participant", proven.MEMBER_WORDS),
        ("Rounds", "get_round", proven.ROUND_WORDS),
    ):
        assert sum(map(count_words, get_struct(contract, view))) == expected, view


def test_a_packed_submission_is_read_as_the_contract_packs_it() -> None:
    facts = 3 | 700 << 16 | 41 << 48 | 10**20 << 112
    found = read_submission([5, 9, facts])
    assert (found.origin, found.update.size, found.samples, found.stake) == (3, 700, 41, 10**20)
    assert found.update.digest == (9).to_bytes(32, "big")


@pytest.mark.parametrize(("weighting", "weight"), [(0, 30 << 20), (1, 500 << 20), (2, 1 << 20)])
def test_a_weight_follows_the_tasks_terms(weighting: int, weight: int) -> None:
    terms = make_parameters(weighting=weighting, staleness_discount=HALF)
    shown = SubmissionInfo(bytes(32), 4, NO_BLOB, 30, 500)
    assert compute_weight(terms, shown, 4) == weight
    assert compute_weight(terms, shown, 6) == weight // 4


def test_a_draw_is_a_subset_of_the_size_that_was_asked_for() -> None:
    seats = 0b1011_0110
    assert compute_draw(b"s" * 32, seats, seats.bit_count()) == seats
    drawn = {compute_draw(bytes([n]) * 32, seats, 2) for n in range(40)}
    assert all(one & ~seats == 0 and one.bit_count() == 2 for one in drawn)
    assert len(drawn) == 10


def test_silence_costs_the_bond_and_first_of_the_own_stake() -> None:
    """A pool of 100, half a fifth for the platform; Bob owns 3 of his stake of 10."""
    terms = make_parameters(platform_share=2**20 // 10, bond=5)
    silent = {BOB: ParticipantInfo(10, 7, 1, 1, 1), KEEPER: ParticipantInfo(4, 0, 1, 1, 2)}
    due = compute_settlement(terms, 100, [HALF, HALF], silent)
    assert (due.platform, due.pays, due.burned) == (9, (45, 45), 9)
    assert due.losses == {BOB: (5, 2), KEEPER: (4, 0)}


def test_a_block_credits_pay_and_fees_and_takes_claims_off() -> None:
    """Round 1 made a model and pays the platform a tenth; round 2 only paid who had revealed."""
    happened = [
        ("Aggregated", {"round": 1, "clients": [ALICE, BOB], "shares": [3 * 2**18, 2**18]}),
        ("Settled", {"round": 1, "pool": 33}),
        ("ClosePaid", {"closer": BOB, "fee": 7}),
        ("Claimed", {"owner": ALICE, "amount": 20}),
        ("Compensated", {"round": 2, "clients": [ALICE], "shares": [HALF]}),
        ("Slashed", {"amount": 6}),
        ("Settled", {"round": 2, "pool": 10}),
        ("ClosePaid", {"closer": KEEPER, "fee": 1}),
        ("Left", {"participant": ALICE, "stake": 50, "sponsored": 4}),
        ("Finished", {}),
        ("Left", {"participant": BOB, "stake": 60, "sponsored": 0}),
    ]
    events = [Event(name, values, 1, Hash(bytes(32)), 0) for name, values in happened]
    done = compute_credits(events, make_parameters(platform_share=2**20 // 10), PUBLISHER)
    assert (done.paid, done.platform, done.fees, done.burned) == (22 + 7 + 5, 3, 8, 6)
    assert done.owners == {
        ALICE: 22 - 20 + 5, BOB: 7 + 7, KEEPER: 1, PLATFORM: 3, PUBLISHER: 4
    }  # fmt: skip
    assert done.released == {BOB: 60}
    assert done.stakes == -6 - 54 - 60


def test_a_block_books_what_comes_in_and_what_goes_back() -> None:
    happened = [
        ("Published", {}),
        ("Funded", {"amount": 5}),
        ("Sponsored", {"stake": 30}),
        ("Unsponsored", {"amount": 10}),
        ("Joined", {"stake": 100, "sponsored": 20}),
        ("StakeAdded", {"amount": 7}),
        ("Refunded", {"amount": 3}),
    ]
    events = [Event(name, values, 1, Hash(bytes(32)), 0) for name, values in happened]
    terms = make_parameters(reward=1_000, rounds=3, close_reserve=2)
    done = compute_credits(events, terms, PUBLISHER)
    assert (done.deposited, done.refunded) == (1_000 + 3 * 2 + 5, 3)
    assert (done.stakes, done.sponsorships) == (100 + 7, 30 - 10 - 20)


def test_a_log_that_tasks_cannot_make_is_refused() -> None:
    """A liar may put any log under the header of a block that is not final."""
    with pytest.raises(NodeRefused, match="no such log"):
        decode_chain_log(Log(Address(TASKS_ADDRESS), (Hash(b"\1" * 32),), b""), 1, 0)

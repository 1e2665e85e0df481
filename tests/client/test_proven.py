"""Slots as the compiler lays them out, and weights and payments reckoned by hand."""

from pathlib import Path

import pytest
from vyper.compiler import compile_from_file_input
from vyper.compiler.input_bundle import FilesystemInputBundle

from steelyard.chain.params import TASKS_ADDRESS
from steelyard.chain.receipts import Log
from steelyard.chain.types import Address, Hash
from steelyard.client.abi import Event
from steelyard.client.contracts import Tasks
from steelyard.client.errors import NodeRefused
from steelyard.client.proven import SLOTS, ProvenSubmission
from steelyard.client.reckoning import compute_credits, compute_weight
from steelyard.client.records import NO_BLOB, Parameters
from steelyard.client.rpc import Rpc

CONTRACTS = Path(__file__).parents[2] / "contracts"
ALICE, BOB, KEEPER = (Address(bytes([n]) * 20) for n in (1, 2, 3))


def test_the_slots_are_the_compilers() -> None:
    bundle = FilesystemInputBundle([CONTRACTS])
    layout = compile_from_file_input(
        bundle.load_file(Path("Tasks.vy")), input_bundle=bundle, output_formats=["layout"]
    )["layout"]["storage_layout"]
    found = {}
    for name, entry in layout.items():
        entries = {name: entry} if "slot" in entry else entry
        found |= {key: value["slot"] for key, value in entries.items()}
    assert {name: found[name] for name in SLOTS} == SLOTS


@pytest.mark.parametrize(("weighting", "weight"), [(0, 30), (1, 500), (2, 1)])
def test_a_weight_follows_the_tasks_terms(weighting: int, weight: int) -> None:
    assert compute_weight(weighting, ProvenSubmission(NO_BLOB, 30, 499), 500) == weight


def test_a_block_credits_pay_and_fees_and_takes_claims_off() -> None:
    """The pool is 100 // 3 = 33 wei: Alice has three quarters of it, rounded down."""
    parameters = Parameters((0, 0), 0, 8, 3, 1, 2, 1, 1, 1, 0, 0, 1, 100, 0, 0)
    happened = [
        ("Aggregated", {"clients": [ALICE, BOB], "shares": [3 * 2**18, 2**18]}),
        ("ClosePaid", {"closer": BOB, "fee": 7}),
        ("Claimed", {"owner": ALICE, "amount": 20}),
        ("ClosePaid", {"closer": KEEPER, "fee": 1}),
    ]
    events = [Event(name, values, 1, Hash(bytes(32)), 0) for name, values in happened]
    assert compute_credits(events, parameters) == (24 + 8, {ALICE: 4, BOB: 15, KEEPER: 1})


def test_a_log_that_tasks_cannot_make_is_refused() -> None:
    """A liar may put any log under the header of a block that is not final."""
    tasks = Tasks(Rpc("http://nobody"))
    with pytest.raises(NodeRefused, match="no such log"):
        tasks.decode_chain_log(Log(Address(TASKS_ADDRESS), (Hash(b"\1" * 32),), b""))

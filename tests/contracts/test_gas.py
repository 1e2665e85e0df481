"""Gas of each call, as it was when last approved in gas.json: a change is seen in review.

python -m tests.contracts.test_gas     writes the file again
"""

import json
from pathlib import Path

import pytest

from steelyard.chain.artifacts import get_artifact

from .meter import PLAYS

SNAPSHOT = Path(__file__).with_name("gas.json")
TOLERANCE = 0.005
"""Of the snapshot: zero bytes in names and addresses are cheaper than others."""
BETWEEN_CONTRACTS = {
    "Tasks.settle", "Tasks.pay_closer", "Rounds.register", "Rounds.open", "Rounds.drop",
    "Rounds.stop",
}  # fmt: skip
"""Made by the other contract only, inside of `publish`, `start`, `leave`, `close` and so on."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAYS)
def test_every_call_costs_what_was_approved(name: str) -> None:
    approved = json.loads(SNAPSHOT.read_text())[name]
    assert PLAYS[name]().gas == pytest.approx(approved, rel=TOLERANCE)


def test_the_snapshot_holds_every_call_that_somebody_can_make() -> None:
    approved = json.loads(SNAPSHOT.read_text())
    assert list(approved) == list(PLAYS)
    measured = {label.split()[0].rstrip(":") for calls in approved.values() for label in calls}
    changing = {
        f"{contract}.{entry['name']}"
        for contract in ("Tasks", "Rounds", "Registry", "Staking")
        for entry in get_artifact(contract).abi
        if entry["type"] == "function" and entry["stateMutability"] in ("payable", "nonpayable")
    }
    assert measured == changing - BETWEEN_CONTRACTS


if __name__ == "__main__":
    made = {name: dict(sorted(play().gas.items())) for name, play in PLAYS.items()}
    SNAPSHOT.write_text(json.dumps(made, indent=1) + "\n")

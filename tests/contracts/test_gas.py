"""Gas of each call, as it was when last approved in gas.json: a change is seen in review.

python -m tests.contracts.test_gas     writes the file again
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steelyard.chain.model import encode_model
from steelyard.chain.types import Address, Round, TaskId
from steelyard.chain.update import Mode, UpdateHeader, encode_update

from .agreement import ONE
from .arena import CHAIN_ID, ZERO, Arena, get_codes
from .course import Reveal, compute_commitment
from .player import MANIFEST, VALUES, as_tuple, encode_terms
from .referee import KEEPER, NO_BLOB, PUBLISHERS

SNAPSHOT = Path(__file__).with_name("gas.json")
TOLERANCE = 0.005
"""Of the snapshot: zero bytes in names and addresses are cheaper than others."""
PUBLISHER = PUBLISHERS[0]
TERMS = {
    "rule": {"kind": 0, "bound": 0, "max_share": ONE, "server_lr": 4_096, "momentum": 0},
    "weighting": 0, "bits": 8, "rounds": 2, "min_clients": 2, "max_clients": 2,
    "fraction_fit": ONE, "spare_clients": 0, "max_staleness": 0, "staleness_discount": 0,
    "on_failed_quorum": 0, "max_extensions": 0, "max_saturated": 2**256 - 1, "evaluate_every": 1,
    "join_seconds": 100, "commit_seconds": 50, "reveal_seconds": 50, "base_stake": 100,
    "stake_per_sample": 1, "bond": 50, "admission": 0, "min_reputation": 0,
    "admission_norm2": 2**200, "reward": 10**9, "close_reserve": 10**9, "close_bounty": 10**5,
    "platform": ZERO, "platform_share": 0,
}  # fmt: skip


def play(count: int) -> dict[str, int]:
    """Play one task of two rounds with so many clients; return the gas of the last of each call."""
    clients = [Address(bytes([0x10 + i]) * 20) for i in range(count)]
    arena = Arena([PUBLISHER, KEEPER, *clients], get_codes())
    terms = TERMS | {"min_clients": count, "max_clients": count}
    gas: dict[str, int] = {}

    def send(sender: Address, contract: str, name: str, *arguments: Any, **options: Any) -> None:
        done = arena.send(sender, contract, name, *arguments, **options)
        assert done.reason is None, (name, done.reason)
        label = f"{name} {arguments[1]}" if name == "close" else name
        gas.setdefault(label, done.gas_used)

    model = arena.put(encode_model(MANIFEST, np.zeros(VALUES, np.int32)))
    send(
        PUBLISHER, "Tasks", "publish", "heart", encode_terms(arena, terms), as_tuple(model),
        as_tuple(NO_BLOB), [], value=3 * 10**9, blobs=[model],
    )  # fmt: skip
    send(PUBLISHER, "Tasks", "fund", 1, value=1)
    send(PUBLISHER, "Tasks", "sponsor", 1, clients[0], 7, value=200)
    for client in clients:
        send(client, "Tasks", "join", 1, 10, value=110)
    for number in (1, 2):
        play_round(arena, number, clients, send)
        send(clients[0], "Rounds", "report", 1, number, 10, [5, 6])
    for client in clients:
        send(client, "Tasks", "claim", 1)
        send(client, "Tasks", "leave", 1)
    send(PUBLISHER, "Tasks", "refund", 1)
    return dict(sorted(gas.items()))


def play_round(arena: Arena, number: int, clients: list[Address], send: Any) -> None:
    """Commit, reveal and close."""
    base = arena.ask("Rounds", "get_round", 1, number)["base"]
    shown = {}
    for index, client in enumerate(clients):
        header = UpdateHeader(
            mode=Mode.OPEN, bits=8, round=Round(number), chain_id=CHAIN_ID, task=TaskId(1),
            values=VALUES, exponents=3, base=base, sender=client,
        )  # fmt: skip
        values = np.full(VALUES, index + 1, np.int8)
        name = arena.put(encode_update(header, np.full(3, -20, np.int8), values))
        shown[client] = Reveal(number, name, 10, b"\x5a" * 32)
        commitment = compute_commitment(1, number, client, shown[client])
        send(client, "Rounds", "commit", 1, number, number, commitment)
    for client, reveal in shown.items():
        send(
            client, "Rounds", "reveal", 1, number, number, as_tuple(reveal.update), 10,
            reveal.salt, blobs=[reveal.update],
        )  # fmt: skip
    send(KEEPER, "Rounds", "close", 1, number)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 16])
def test_every_call_costs_what_was_approved(count: int) -> None:
    approved = json.loads(SNAPSHOT.read_text())[str(count)]
    assert play(count) == pytest.approx(approved, rel=TOLERANCE)


if __name__ == "__main__":
    made = {str(count): play(count) for count in (2, 16)}
    SNAPSHOT.write_text(json.dumps(made, indent=1) + "\n")

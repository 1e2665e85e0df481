"""Why calls about a round were refused.

A refused commit or reveal leaves no event. Its transaction does: the blocks of the round are
searched for failed calls of the contracts, and each one is asked for again at its block to learn
why. A node decides how much there is to ask for, so both have an end.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from steelyard.chain.types import Address

from .errors import NodeRefused, Reverted
from .events import get_contracts
from .rpc import Rpc, as_bytes, as_hex

MAX_SEARCHED_BLOCKS: Final = 2_000
MAX_SEARCHED_FAILURES: Final = 500
"""Failed calls of the contracts that are looked at; each costs two requests."""
FAILED: Final = "0x0"

EXPIRING: Final = ("rounds: model expires too soon", "rounds: velocity expires soon")
"""Refusals of `commit` that declaring those files again cures (renewing.py)."""
DECLARE_AGAIN: Final = (
    "a file of the round has to be declared again before: `steelyard client run` does it with its "
    "commitment, `steelyard task resume` and `task start` when they open a round"
)

HINTS: Final = {
    **dict.fromkeys(EXPIRING, DECLARE_AGAIN),
    "fedavg: update_norm": "the delta is longer than the task admits; lower the learning rate",
    "fedavg: update_base": "it was trained on another model than the round's base",
    "fedavg: update_round": "it was made for another round",
    "fedavg: update_sender": "it was made by another account",
    "rounds: commit period is over": "training took too long, or the client was started late",
    "rounds: reveal period is over": "the client was away during the reveal period",
    "rounds: differs from the commitment": "the update is not the one that was committed to",
    "rounds: samples not covered by stake": "join with more samples, or train on fewer rows",
    "rounds: not drawn": "only those who were drawn may commit; waiting costs nothing",
}
"""What a refusal means for the one who got it."""


def find_refusals(
    rpc: Rpc, task: int, round_number: int, heights: range
) -> dict[Address, list[str]]:
    """Return why calls about this round failed, by sender; searches the newest blocks first.

    Raises: NodeRefused `rpc_answer`.
    """
    found: dict[Address, list[str]] = {}
    looked = 0
    for height in reversed(heights[-MAX_SEARCHED_BLOCKS:]):
        for receipt in list_failures(rpc, height):
            looked += 1
            if looked > MAX_SEARCHED_FAILURES:
                return found
            sender, reason = explain_failure(rpc, receipt, task, round_number, height)
            if reason:
                found.setdefault(sender, []).append(reason)
    return found


def list_failures(rpc: Rpc, height: int) -> Iterator[Mapping[str, Any]]:
    """Yield the receipts of a block's failed calls of the contracts."""
    receipts = rpc.call("eth_getBlockReceipts", hex(height)) or ()
    if not isinstance(receipts, list | tuple):
        raise NodeRefused("rpc_answer", "the node's receipts are malformed")
    for receipt in receipts:
        if not isinstance(receipt, dict):
            raise NodeRefused("rpc_answer", "the node's receipts are malformed")
        target = receipt.get("to")
        if receipt.get("status") != FAILED or target is None:
            continue
        if as_bytes(target) in get_contracts():
            yield receipt


def explain_failure(
    rpc: Rpc, receipt: Mapping[str, Any], task: int, round_number: int, height: int
) -> tuple[Address, str]:
    """Return the sender of a failed transaction and why it failed; "" if it is another round's."""
    sent = rpc.call("eth_getTransactionByHash", receipt.get("transactionHash"))
    if not isinstance(sent, dict):
        raise NodeRefused("rpc_answer", "the node lacks a transaction that it has a receipt of")
    data, sender = as_bytes(sent.get("input")), Address(as_bytes(sent.get("from"), 20))
    contract = get_contracts()[Address(as_bytes(receipt["to"], 20))]
    call = contract.decode_call(data)
    if call is None or (call[1].get("task"), call[1].get("round")) != (task, round_number):
        return sender, ""
    request = {
        "from": as_hex(sender),
        "to": as_hex(contract.address),
        "value": sent.get("value"),
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

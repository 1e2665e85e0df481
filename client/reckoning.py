"""What the contract should have done with weights and money, reckoned again by an auditor."""

from collections.abc import Sequence
from typing import Final

from steelyard.chain.params import WEIGHT_TOTAL
from steelyard.chain.types import Address

from .abi import Event
from .proven import ProvenSubmission
from .records import Parameters

BY_SAMPLES: Final = 0
BY_STAKE: Final = 1


def compute_weight(weighting: int, submission: ProvenSubmission, stake: int) -> int:
    """Return a client's raw weight, as contracts/terms.vy has it."""
    return {BY_SAMPLES: submission.samples, BY_STAKE: stake}.get(weighting, 1)


def compute_credits(
    events: Sequence[Event], parameters: Parameters
) -> tuple[int, dict[Address, int]]:
    """Return what one block's events of a task pay for updates, and each account's net credit."""
    pool = parameters.reward // parameters.rounds
    paid, credits = 0, dict[Address, int]()
    for event in events:
        values = event.values
        amounts: list[tuple[Address, int]] = []
        match event.name:
            case "Aggregated":
                pays = [pool * share // WEIGHT_TOTAL for share in values["shares"]]
                amounts = list(zip(values["clients"], pays, strict=True))
                paid += sum(pays)
            case "ClosePaid":
                amounts = [(values["closer"], values["fee"])]
            case "Claimed":
                amounts = [(values["owner"], -values["amount"])]
        for address, amount in amounts:
            credits[address] = credits.get(address, 0) + amount
    return paid, credits

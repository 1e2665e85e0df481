"""What the contracts should have done with seats, weights and money, reckoned again by an auditor.

Plain integers, after docs/tasks.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from eth_abi.abi import encode
from eth_hash.auto import keccak

from steelyard.chain.params import WEIGHT_BITS
from steelyard.chain.types import Address, Hash

from .abi import Event
from .records import Parameters, ParticipantInfo, RoundInfo, SubmissionInfo
from .weighing import BY_SAMPLES, BY_STAKE, compute_cap, compute_platform_fee


# -- seats -----------------------------------------------------------------------------------------
def list_seats(bitmap: int) -> list[int]:
    """Return the seats of a set, ascending."""
    return [seat for seat in range(bitmap.bit_length()) if bitmap >> seat & 1]


def compute_seed(parent_hash: Hash, task: int, round_number: int) -> bytes:
    """Return the seed of a round that a child of this block opened."""
    return keccak(
        encode(["bytes32", "uint256", "uint256"], [bytes(parent_hash), task, round_number])
    )


def compute_draw(seed: bytes, seats: int, target: int) -> int:
    """Return the first `target` seats of the shuffle of `seats`, as a set."""
    order = list_seats(seats)
    if target == len(order):
        return seats
    drawn = 0
    for index in range(target):
        number = int.from_bytes(keccak(encode(["bytes32", "uint256"], [seed, index])), "big")
        other = index + number % (len(order) - index)
        order[index], order[other] = order[other], order[index]
        drawn |= 1 << order[index]
    return drawn


def compute_due(parameters: Parameters, found: RoundInfo) -> int:
    """Return from when a round may be closed: with too few commitments nothing can be revealed."""
    is_short = found.committed.bit_count() < parameters.min_clients
    return found.commit_ends if is_short else found.reveal_ends


# -- weights ---------------------------------------------------------------------------------------
def compute_weight(parameters: Parameters, submission: SubmissionInfo, round_number: int) -> int:
    """Return a raw weight, discounted for each round that the update is late."""
    counted = {BY_SAMPLES: submission.samples, BY_STAKE: submission.stake}
    weight = counted.get(parameters.weighting, 1) << WEIGHT_BITS
    for _ in range(round_number - submission.origin):
        weight = weight * parameters.staleness_discount >> WEIGHT_BITS
    return weight


def weigh_silent(
    parameters: Parameters, promised: int, submission: SubmissionInfo, round_number: int
) -> int:
    """Return the raw weight of who committed and showed nothing: the most that it might have
    claimed, of the stake at its commitment, and not discounted. `promised`: samples.
    """
    claimed = replace(submission, samples=promised, origin=round_number)
    return compute_weight(parameters, claimed, round_number)


def compute_compensation(
    parameters: Parameters, weights: Sequence[int], silent: Sequence[int]
) -> tuple[int, ...]:
    """Return the shares of who revealed in a round that the silent ones spoilt.

    `silent`: their raw weights, as high as they might have claimed; see `weigh_silent`.
    """
    total = sum(weights) + sum(silent)
    if not silent or not total:
        return ()
    cap = compute_cap(parameters, len(weights) + len(silent))
    return tuple(min((weight << WEIGHT_BITS) // total, cap) for weight in weights)


# -- money -----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Settlement:
    """What a round pays and takes, in wei."""

    pays: tuple[int, ...]
    """In the order of the clients."""
    platform: int
    losses: Mapping[Address, tuple[int, int]]
    """Of who kept silent: what it loses, and how much of that a sponsor had given."""

    @property
    def paid(self) -> int:
        """All that clients get."""
        return sum(self.pays)

    @property
    def burned(self) -> int:
        """All that is lost by silence."""
        return sum(amount for amount, _ in self.losses.values())


def compute_settlement(
    parameters: Parameters,
    pool: int,
    shares: Iterable[int],
    silent: Mapping[Address, ParticipantInfo],
    *,
    is_made: bool = True,
) -> Settlement:
    """Return what follows from a round's shares. `silent`: as they stood before it was closed.

    A round that made no model (`is_made`) pays no platform.
    """
    fee = compute_platform_fee(pool, parameters) if is_made else 0
    losses = {}
    for who, member in silent.items():
        lost = min(parameters.bond, member.stake)
        losses[who] = (lost, lost - min(lost, member.stake - member.sponsored))
    return Settlement(tuple((pool - fee) * share >> WEIGHT_BITS for share in shares), fee, losses)


@dataclass(slots=True)
class Credits:
    """What one block's events of a task did to what can be claimed, and to its books. Wei."""

    deposited: int = 0
    paid: int = 0
    platform: int = 0
    fees: int = 0
    refunded: int = 0
    stakes: int = 0
    sponsorships: int = 0
    burned: int = 0
    owners: dict[Address, int] = field(default_factory=dict)
    """Net, for each account."""
    released: dict[Address, int] = field(default_factory=dict)
    """Stakes that left after the end of the task: sent, or credited by `release`."""

    def credit(self, owner: Address, amount: int) -> None:
        """Add to what an account can claim."""
        self.owners[owner] = self.owners.get(owner, 0) + amount


def compute_credits(events: Sequence[Event], parameters: Parameters, publisher: Address) -> Credits:
    """Return what one block's events of a task should have credited."""
    pools = {e.values["round"]: e.values["pool"] for e in events if e.name == "Settled"}
    done, is_over = Credits(), False
    for event in events:
        values = event.values
        match event.name:
            case "Aggregated" | "Compensated":
                _credit_round(done, event, parameters, pools.get(values["round"], 0))
            case "ClosePaid":
                done.fees += values["fee"]
                done.credit(values["closer"], values["fee"])
            case "Slashed":
                done.burned += values["amount"]
                done.stakes -= values["amount"]
            case "Claimed":
                done.credit(values["owner"], -values["amount"])
            case "Left":
                done.credit(publisher, values["sponsored"])
                done.stakes -= values["stake"] + values["sponsored"]
                if is_over:
                    done.released[values["participant"]] = values["stake"]
            case "Finished" | "Aborted":
                is_over = True
            case _:
                _book_deposit(done, event, parameters)
    return done


def _book_deposit(done: Credits, event: Event, parameters: Parameters) -> None:
    """What comes into a task's books from outside, or leaves them unspent."""
    values = event.values
    match event.name:
        case "Published":
            done.deposited += parameters.escrow
        case "Funded":
            done.deposited += values["amount"]
        case "Refunded":
            done.refunded += values["amount"]
        case "Sponsored":
            done.sponsorships += values["stake"]
        case "Unsponsored":
            done.sponsorships -= values["amount"]
        case "Joined":
            done.stakes += values["stake"]
            done.sponsorships -= values["sponsored"]
        case "StakeAdded":
            done.stakes += values["amount"]


def _credit_round(done: Credits, event: Event, parameters: Parameters, pool: int) -> None:
    """A round without a model pays no platform. In a final block the lists are of one length."""
    fee = compute_platform_fee(pool, parameters) if event.name == "Aggregated" else 0
    done.platform += fee
    if fee:
        done.credit(parameters.platform, fee)
    for client, share in zip(event.values["clients"], event.values["shares"], strict=False):
        pay = (pool - fee) * share >> WEIGHT_BITS
        done.paid += pay
        done.credit(client, pay)

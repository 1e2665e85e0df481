"""What Tasks stores about one round, read from a node that nobody trusts.

Every word comes with its Merkle-Patricia proof (EIP-1186) against a state root that the caller has
established. The account's code must be the contract that ships with this package: only then do
the slots below mean what they say. Slots follow contracts/*.vy as Vyper lays them out; a test
asks the compiler.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from eth_hash.auto import keccak

from steelyard.chain.artifacts import get_artifact
from steelyard.chain.block import Block
from steelyard.chain.params import TASKS_ADDRESS
from steelyard.chain.proofs import Account, AccountProof, StorageProof, check_proof
from steelyard.chain.types import Address, BlobName, Digest, Hash

from .errors import ClientError, NodeRefused
from .records import Parameters, RoundState
from .rpc import Json, Rpc, as_bytes, as_hex, as_int

SLOTS: Final = {
    "accounts": 0,
    "claimable": 1,
    "participants": 4,
    "rounds": 7,
    "submissions": 8,
    "tasks": 11,
}
"""First slots of the contract's maps."""
PAID_OFFSET: Final = 2
"""Of `paid` in an account of the escrow."""
PARAMETERS_OFFSET: Final = 6
PARAMETERS_WORDS: Final = 16
"""Of `parameters` in a task; the name takes three words."""
ROUND_WORDS: Final = 11
SUBMISSION_WORDS: Final = 4


@dataclass(frozen=True, slots=True)
class ProvenSubmission:
    """One client's update and samples in a round, and its stake; `update.size` 0: none."""

    update: BlobName
    samples: int
    stake: int


@dataclass(frozen=True, slots=True)
class ProvenRound:
    """A round, its task's frozen parameters, and the submissions of the clients asked for."""

    parameters: Parameters
    state: int
    base: BlobName
    revealed: int
    model: BlobName
    saturated: int
    submissions: tuple[ProvenSubmission, ...]

    @property
    def is_aggregated(self) -> bool:
        """Whether the round made a model."""
        return self.state == RoundState.AGGREGATED


@dataclass(frozen=True, slots=True)
class ProvenMoney:
    """What a task has credited for updates, and what each client asked for may claim. Wei."""

    paid: int
    claimable: tuple[int, ...]


def read_round(
    rpc: Rpc, block: Block, task: int, round_number: int, clients: Sequence[Address]
) -> ProvenRound:
    """Return a round as it is after `block`. Raises InvalidProof; NodeRefused; NodeUnreachable."""
    first = compute_slot("tasks", task) + PARAMETERS_OFFSET
    parameters = list(range(first, first + PARAMETERS_WORDS))
    first = compute_slot("rounds", task, round_number)
    whole = list(range(first, first + ROUND_WORDS))
    slots = [*parameters, *whole]
    for client in clients:
        first = compute_slot("submissions", task, round_number, client)
        slots += range(first, first + SUBMISSION_WORDS)
        slots.append(compute_slot("participants", task, client))
    words = read_words(rpc, block, slots)
    kind, bound, *others = words[:PARAMETERS_WORDS]
    row = words[PARAMETERS_WORDS : PARAMETERS_WORDS + ROUND_WORDS]
    rest = words[PARAMETERS_WORDS + ROUND_WORDS :]
    step = SUBMISSION_WORDS + 1
    return ProvenRound(
        Parameters((kind, bound), *others),
        state=row[0],
        base=build_name(row[1], row[2]),
        revealed=row[7],
        model=build_name(row[8], row[9]),
        saturated=row[10],
        submissions=tuple(
            ProvenSubmission(build_name(rest[at + 1], rest[at + 2]), rest[at + 3], rest[at + 4])
            for at in range(0, len(rest), step)
        ),
    )


def read_money(rpc: Rpc, block: Block, task: int, clients: Sequence[Address]) -> ProvenMoney:
    """Return a task's money as it is after `block`. Raises as `read_round`."""
    paid = compute_slot("accounts", task) + PAID_OFFSET
    claimable = [compute_slot("claimable", task, client) for client in clients]
    first, *others = read_words(rpc, block, [paid, *claimable])
    return ProvenMoney(first, tuple(others))


def read_words(rpc: Rpc, block: Block, slots: Sequence[int]) -> list[int]:
    """Return storage words of Tasks after `block`, each proven against the block's state root."""
    keys = [as_hex(slot.to_bytes(32, "big")) for slot in slots]
    answer = rpc.call("eth_getProof", as_hex(TASKS_ADDRESS), keys, hex(block.height))
    proof = decode_proof(answer, slots)
    check_proof(block.header.state_root, proof)
    if proof.account.code_hash != get_artifact("Tasks").runtime_hash:
        raise ClientError(
            "contract_unknown",
            "this chain runs another version of Tasks than this auditor knows; use the release "
            "that the chain was founded with",
        )
    return [item.value for item in proof.storage]


def decode_proof(answer: Json, slots: Sequence[int]) -> AccountProof:
    """Return the proof in an answer of eth_getProof for `slots`. Raises NodeRefused."""
    try:
        account = Account(
            as_int(answer["nonce"]),
            as_int(answer["balance"]),
            Hash(as_bytes(answer["storageHash"], 32)),
            Hash(as_bytes(answer["codeHash"], 32)),
        )
        storage = tuple(
            StorageProof(slot, as_int(item["value"]), tuple(map(as_bytes, item["proof"])))
            for slot, item in zip(slots, answer["storageProof"], strict=True)
        )
        nodes = tuple(as_bytes(node) for node in answer["accountProof"])
    except (KeyError, TypeError, ValueError):
        raise NodeRefused("rpc_answer", "the node's proof is malformed") from None
    return AccountProof(Address(TASKS_ADDRESS), account, nodes, storage)


def compute_slot(name: str, *keys: int | bytes) -> int:
    """Return the slot of an entry in one of the contract's maps; nested maps take several keys."""
    slot = SLOTS[name]
    for key in keys:
        word = key.to_bytes(32, "big") if isinstance(key, int) else key.rjust(32, b"\0")
        slot = int.from_bytes(keccak(slot.to_bytes(32, "big") + word), "big")
    return slot


def build_name(digest: int, size: int) -> BlobName:
    """Return a blob's name from its two words."""
    return BlobName(Digest(digest.to_bytes(32, "big")), size)

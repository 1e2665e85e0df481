"""What Tasks, Rounds and Registry store, read from a node that nobody trusts.

Every word comes with its Merkle-Patricia proof (EIP-1186) against a state root that the caller has
established. The account's code must be the contract that ships with this package: only then do
the slots below mean what they say. Slots follow contracts/*.vy as Vyper lays them out; a test
asks the compiler.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from eth_hash.auto import keccak

from steelyard.chain.artifacts import get_artifact
from steelyard.chain.block import Block
from steelyard.chain.proofs import Account, AccountProof, StorageProof, check_proof
from steelyard.chain.trie import InvalidProof
from steelyard.chain.types import Address, BlobName, Digest, Hash

from .contracts import ADDRESSES
from .errors import ClientError, NodeRefused
from .records import (
    AccountInfo,
    Parameters,
    ParticipantInfo,
    RoundInfo,
    RoundState,
    RuleTerms,
    SubmissionInfo,
)
from .rpc import Json, Rpc, as_bytes, as_hex, as_int

SLOTS: Final[Mapping[str, Mapping[str, int]]] = {
    "Tasks": {
        "accounts": 0,
        "claimable": 1,
        "participants": 6,
        "seats": 7,
        "ready": 9,
        "tasks": 11,
        "spent": 12,
    },
    "Rounds": {"rounds": 4, "packed": 5, "velocities": 10},
    "Registry": {"publications": 6, "leading": 7},
}
"""First slots of the contracts' maps."""
PUBLISHER_OFFSET: Final = 3
"""Of `publisher` in a task: the name takes three words."""
PARAMETERS_OFFSET: Final = 2
"""Of `parameters` after `publisher`."""
PARAMETERS_WORDS: Final = 32
RULE_WORDS: Final = 5
TERMS_WORDS: Final = PARAMETERS_OFFSET + PARAMETERS_WORDS
"""From `publisher` to the last of the parameters."""
TASK_WORDS: Final = TERMS_WORDS + 4
"""From `publisher` to `model`."""
ACCOUNT_WORDS: Final = 10
MEMBER_WORDS: Final = 5
ROUND_WORDS: Final = 17
SUBMISSION_WORDS: Final = 3
PUBLICATION_WORDS: Final = 10
SLOTS_AT_ONCE: Final = 1_000
"""In one eth_getProof; our nodes take 1024."""


@dataclass(frozen=True, slots=True)
class ProvenTask:
    """Who published a task, and on which terms."""

    publisher: Address
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class ProvenPublication:
    """What one account says about one model. `task` and `round` made it, if they are not 0: the
    contract checked that. `parent` is an earlier publication's number, or 0, and its own word.
    """

    number: int
    publisher: Address
    model: BlobName
    task: int
    round: int
    parent: int


class Storage:
    """The contracts' storage after one block. Everything here raises InvalidProof, MissingState;
    NodeRefused; NodeUnreachable; ClientError `contract_unknown`.
    """

    def __init__(self, rpc: Rpc, block: Block) -> None:
        self._rpc, self._block = rpc, block

    def read_task(self, task: int) -> ProvenTask:
        """Return a task."""
        first = compute_slot("Tasks", "tasks", task) + PUBLISHER_OFFSET
        words = self.read_words("Tasks", range(first, first + TERMS_WORDS))
        return ProvenTask(
            publisher=read_address(words[0]),
            parameters=read_parameters(words[PARAMETERS_OFFSET:]),
        )

    def read_model(self, task: int) -> BlobName:
        """Return a task's newest model."""
        end = compute_slot("Tasks", "tasks", task) + PUBLISHER_OFFSET + TASK_WORDS
        return read_name(*self.read_words("Tasks", [end - 2, end - 1]))

    def read_account(self, task: int) -> AccountInfo:
        """Return a task's money."""
        first = compute_slot("Tasks", "accounts", task)
        return AccountInfo(*self.read_words("Tasks", range(first, first + ACCOUNT_WORDS)))

    def read_claimable(self, task: int, owners: Sequence[Address]) -> tuple[int, ...]:
        """Return what each of `owners` may claim, in wei."""
        slots = [compute_slot("Tasks", "claimable", task, owner) for owner in owners]
        return tuple(self.read_words("Tasks", slots))

    def read_spent(self, task: int, rounds: Iterable[int]) -> dict[int, int]:
        """Return what closing rounds has cost so far, in wei, but for the calls that ended them."""
        wanted = list(rounds)
        slots = [compute_slot("Tasks", "spent", task, number) for number in wanted]
        return dict(zip(wanted, self.read_words("Tasks", slots), strict=True))

    def read_ready(self, task: int) -> int:
        """Return the seats that can be drawn from."""
        (ready,) = self.read_words("Tasks", [compute_slot("Tasks", "ready", task)])
        return ready

    def read_seats(self, task: int, seats: Iterable[int]) -> dict[int, Address]:
        """Return who sits on `seats`, without the free ones."""
        wanted = list(seats)
        first = compute_slot("Tasks", "seats", task)
        words = self.read_words("Tasks", [first + seat for seat in wanted])
        return {seat: read_address(word) for seat, word in zip(wanted, words, strict=True) if word}

    def read_participants(
        self, task: int, participants: Iterable[Address]
    ) -> dict[Address, ParticipantInfo]:
        """Return those of `participants` who take part."""
        wanted = list(participants)
        starts = [compute_slot("Tasks", "participants", task, one) for one in wanted]
        rows = self._read_rows("Tasks", starts, MEMBER_WORDS)
        found = [ParticipantInfo(*row) for row in rows]
        return {who: one for who, one in zip(wanted, found, strict=True) if one.position}

    def read_rounds(self, task: int, numbers: Iterable[int]) -> dict[int, RoundInfo]:
        """Return rounds by number."""
        wanted = list(numbers)
        starts = [compute_slot("Rounds", "rounds", task, number) for number in wanted]
        rows = self._read_rows("Rounds", starts, ROUND_WORDS)
        return dict(zip(wanted, map(read_round, rows), strict=True))

    def read_submissions(
        self, task: int, round_number: int, clients: Iterable[Address]
    ) -> tuple[SubmissionInfo, ...]:
        """Return what each of `clients` did in a round."""
        starts = [compute_slot("Rounds", "packed", task, round_number, one) for one in clients]
        return tuple(map(read_submission, self._read_rows("Rounds", starts, SUBMISSION_WORDS)))

    def read_velocity(self, task: int) -> BlobName:
        """Return a task's newest momentum."""
        first = compute_slot("Rounds", "velocities", task)
        return read_name(*self.read_words("Rounds", [first, first + 1]))

    def read_leading(self, model: BlobName) -> int:
        """Return the number of the publication that speaks for a model; 0 if there is none."""
        key = keccak(model.digest + model.size.to_bytes(32, "big"))
        (number,) = self.read_words("Registry", [compute_slot("Registry", "leading", key)])
        return number

    def read_publication(self, number: int) -> ProvenPublication:
        """Return a publication; all of it is 0 if there is none of that number."""
        first = compute_slot("Registry", "publications", number)
        words = self.read_words("Registry", range(first, first + PUBLICATION_WORDS))
        model = read_name(*words[2:4])
        return ProvenPublication(words[0], read_address(words[1]), model, *words[4:7])

    def _read_rows(self, contract: str, starts: Sequence[int], width: int) -> list[list[int]]:
        slots = [start + offset for start in starts for offset in range(width)]
        words = self.read_words(contract, slots)
        return [words[at : at + width] for at in range(0, len(words), width)]

    def read_words(self, contract: str, slots: Sequence[int]) -> list[int]:
        """Return storage words of a contract, each proven against the block's state root."""
        words: list[int] = []
        for at in range(0, len(slots), SLOTS_AT_ONCE):
            words += self._prove(contract, slots[at : at + SLOTS_AT_ONCE])
        return words

    def _prove(self, contract: str, slots: Sequence[int]) -> list[int]:
        address = Address(ADDRESSES[contract])
        keys = [as_hex(slot.to_bytes(32, "big")) for slot in slots]
        answer = self._rpc.call("eth_getProof", as_hex(address), keys, hex(self._block.height))
        proof = decode_proof(answer, address, slots)
        check_proof(self._block.header.state_root, proof)
        if proof.account.code_hash != get_artifact(contract).runtime_hash:
            raise ClientError(
                "contract_unknown",
                f"this chain runs another version of {contract} than this auditor knows; use the "
                "release that the chain was founded with",
            )
        return [item.value for item in proof.storage]


# -- words -----------------------------------------------------------------------------------------
def read_parameters(words: Sequence[int]) -> Parameters:
    """Return a task's parameters from their words."""
    names = Parameters.__slots__[1:]
    numbers: dict[str, Any] = dict(zip(names, words[RULE_WORDS:], strict=True))
    numbers["platform"] = read_address(numbers["platform"])
    return Parameters(RuleTerms(*words[:RULE_WORDS]), **numbers)


def read_round(words: Sequence[int]) -> RoundInfo:
    """Return a round from its words. Raises InvalidProof for a state that no round has."""
    state, *words = words
    if state not in tuple(RoundState):
        raise InvalidProof(f"no round is in state {state}")
    return RoundInfo(
        state=RoundState(state),
        base=read_name(*words[0:2]),
        velocity=read_name(*words[2:4]),
        pool=words[4],
        seed=words[5].to_bytes(32, "big"),
        drawn=words[6],
        committed=words[7],
        revealed=words[8],
        commit_ends=words[9],
        reveal_ends=words[10],
        extensions=words[11],
        model=read_name(*words[12:14]),
        saturated=words[14],
        pages=words[15],
    )


def read_submission(words: Sequence[int]) -> SubmissionInfo:
    """Return a submission from its three words, as contracts/submissions.vy packs it."""
    commitment, digest, facts = words
    return SubmissionInfo(
        commitment=commitment.to_bytes(32, "big"),
        origin=facts & (2**16 - 1),
        update=read_name(digest, facts >> 16 & (2**32 - 1)),
        samples=facts >> 48 & (2**64 - 1),
        stake=facts >> 112,
    )


def read_name(digest: int, size: int) -> BlobName:
    """Return a blob's name from its two words."""
    return BlobName(Digest(digest.to_bytes(32, "big")), size)


def read_address(word: int) -> Address:
    """Return an address from its word."""
    return Address((word & (2**160 - 1)).to_bytes(20, "big"))


def compute_slot(contract: str, name: str, *keys: int | bytes) -> int:
    """Return the slot of an entry in one of a contract's maps; nested maps take several keys."""
    slot = SLOTS[contract][name]
    for key in keys:
        word = key.to_bytes(32, "big") if isinstance(key, int) else key.rjust(32, b"\0")
        slot = int.from_bytes(keccak(slot.to_bytes(32, "big") + word), "big")
    return slot


def decode_proof(answer: Json, address: Address, slots: Sequence[int]) -> AccountProof:
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
    return AccountProof(address, account, nodes, storage)

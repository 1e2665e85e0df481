"""Blocks and logs that an auditor may believe, each followed down from a certificate.

    genesis, or a checkpoint -> validator sets -> certificate -> header -> receipts root -> logs

Every step adds a link to the report; a wrong one ends the audit.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Never

from steelyard.chain.block import Block, decode_block
from steelyard.chain.cid import encode_cid
from steelyard.chain.errors import SteelyardError
from steelyard.chain.following import Checkpoint
from steelyard.chain.genesis import Genesis, build_genesis, parse_genesis
from steelyard.chain.receipts import Log as ChainLog
from steelyard.chain.receipts import Receipt as ChainReceipt
from steelyard.chain.receipts import compute_receipts_root
from steelyard.chain.trie import InvalidProof, MissingState
from steelyard.chain.types import Address, BlobName, Hash

from .abi import Event, Log
from .errors import ClientError, NodeRefused
from .events import get_contracts
from .finality import MAX_BLOCK_ANSWER_BYTES, Follower, can_check_certificates
from .rpc import Json, Rpc, as_bytes, as_hex, as_int
from .verdicts import Report, Stop, Verdict

MAX_GENESIS_BYTES: Final = 16 * 2**20
MAX_TYPE: Final = 0x7F
"""EIP-2718."""
OTHER_CHAIN: Final = (
    "if the genesis document above is that of your chain: anybody can found another; "
    "say --genesis FILE or --checkpoint HEIGHT:HASH"
)
MAX_SHOWN: Final = 200
"""Characters of a value in a report."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A final block and what happened to a task in it. `place`: of the event looked at."""

    block: Block
    parent: Block
    events: Sequence[Event]
    place: int


class Trail:
    """Follows one chain for one report."""

    def __init__(
        self, rpc: Rpc, report: Report, trusted: bytes | None, checkpoint: Checkpoint | None
    ) -> None:
        self._rpc, self._report = rpc, report
        self._trusted, self._checkpoint = trusted, checkpoint
        self._genesis: Genesis | None = None
        self._follower: Follower | None = None

    @property
    def report(self) -> Report:
        """What is written."""
        return self._report

    def continue_in(self, report: Report) -> "Trail":
        """Return a trail that begins where this one is, and writes another report."""
        trail = Trail(self._rpc, report, self._trusted, self._checkpoint)
        trail._genesis, trail._follower = self._genesis, self._follower
        return trail

    @property
    def genesis(self) -> Genesis:
        """Where the evidence starts. Raises Stop, ClientError."""
        if self._genesis is None:
            self._genesis = check_genesis(self._rpc, self._report, self._trusted)
            if self._trusted is None and self._checkpoint is None:
                self._report.condition = OTHER_CHAIN
        return self._genesis

    def fetch_block(self, height: int, link: str) -> Block:
        """Return a block as the node has it; only its height is checked. Raises Stop."""
        data = self._rpc.get_bytes(f"/chain/blocks/{height}", MAX_BLOCK_ANSWER_BYTES)
        try:
            block = decode_block(data)
        except SteelyardError as error:
            self.refute(link, f"the block is malformed: {error.message}")
        if block.height != height:
            self.refute(link, f"the node sent block {block.height}")
        return block

    def fetch_parent(self, block: Block, link: str) -> Block:
        """Return the parent of a block that is final, and so is it. Raises Stop."""
        parent = self.fetch_block(block.height - 1, link)
        if parent.hash != block.header.parent_hash:
            self.refute(link, "the node sent another parent block")
        return parent

    def check_finality(self, block: Block, link: str) -> None:
        """Add whether the validators of its epoch finalized `block`. Raises Stop if others did."""
        if self._follower is None:
            self._follower = Follower(self._rpc, self.genesis, self._checkpoint)
        if can_check_certificates():
            verdict, detail = self._follower.verify(block)
        else:
            verdict = Verdict.UNKNOWN
            detail = "not checked: pip install 'steelyard[audit]' for BLS signatures"
        if verdict is Verdict.REFUTED:
            self.refute(link, detail)
        self._report.add(link, verdict, detail)

    def fetch_events(self, block: Block, task: int, link: str) -> list[Event]:
        """Return a task's events in a block, in their order, proven by the receipts root.

        Raises: Stop; NodeRefused if a block that is not final holds what no contract logs.
        """
        receipts = decode_receipts(self._rpc.call("eth_getBlockReceipts", hex(block.height)))
        if compute_receipts_root(receipts) != block.header.receipts_root:
            self.refute(link, "the receipts do not hash to the header's root")
        logs = [log for receipt in receipts for log in receipt.logs]
        events = [
            decode_chain_log(log, block.height, index)
            for index, log in enumerate(logs)
            if log.address in get_contracts()
        ]
        return [event for event in events if event.values.get("task") == task]

    def find(self, events: Sequence[Event], wanted: Event, link: str) -> int:
        """Return the place of the only event of its name and round. Raises Stop."""
        places = [
            place
            for place, event in enumerate(events)
            if (event.name, event.values.get("round")) == (wanted.name, wanted.values.get("round"))
        ]
        if [events[place].values for place in places] != [wanted.values]:
            self.refute(link, "the record is not in this block")
        return places[0]

    def visit(self, event: Event, task: int, link: str = "") -> Scene:
        """Follow certificate, header and receipts root down to an event of a task. Raises Stop.

        `link`: the one name for all steps; without it, each step has its own.
        """
        block = self.fetch_block(event.height, link or "header")
        self.check_finality(block, link or "finality")
        parent = self.fetch_parent(block, link or "header")
        events = self.fetch_events(block, task, link or "receipts")
        return Scene(block, parent, events, self.find(events, event, link or "receipts"))

    # -- saying it ---------------------------------------------------------------------------------
    def say(self, link: str, detail: str) -> None:
        """Add what holds."""
        self._report.add(link, Verdict.YES, detail)

    def compare(self, link: str, source: str, pairs: Mapping[str, tuple[object, object]]) -> None:
        """Refute the first pair that differs: what the chain recorded, and what it should have."""
        for name, (recorded, expected) in pairs.items():
            if recorded != expected:
                self.refute(
                    link,
                    f"another {name}: the record says {show(recorded)}, {source} {show(expected)}",
                )

    @contextmanager
    def proofs(self, link: str) -> Iterator[None]:
        """Refute what is not under the state root."""
        try:
            yield
        except (InvalidProof, MissingState) as error:
            self.refute(link, f"{error.code}: {error.message}")

    def refute(self, link: str, detail: str) -> Never:
        """Add what is wrong, and end."""
        self._report.add(link, Verdict.REFUTED, detail)
        raise Stop

    def give_up(self, link: str, detail: str) -> Never:
        """Add what is missing, and end."""
        self._report.add(link, Verdict.UNKNOWN, detail)
        raise Stop


def show(value: object) -> str:
    """Return a value of a record for people, not too long."""
    match value:
        case BlobName():
            return encode_cid(value) if value.size else "none"
        case bytes():
            return as_hex(value)
        case list() | tuple():
            return f"[{', '.join(map(show, value))}]"[:MAX_SHOWN]
        case dict():
            return f"{{{', '.join(f'{show(k)}: {show(v)}' for k, v in value.items())}}}"[:MAX_SHOWN]
    return str(value)[:MAX_SHOWN]


def check_genesis(rpc: Rpc, report: Report, trusted: bytes | None) -> Genesis:
    """Return the genesis that the evidence starts from. A trusted one must be a document.

    Raises: Stop, with the reason in the report; ClientError.
    """
    mine = None if trusted is None else parse_genesis(trusted)
    try:
        served = parse_genesis(rpc.get_bytes("/chain/genesis", MAX_GENESIS_BYTES))
    except ClientError:
        raise
    except SteelyardError as error:
        report.add("genesis", Verdict.REFUTED, f"{error.code}: {error.message}")
        raise Stop from None
    if mine is not None and mine.hash != served.hash:
        report.add("genesis", Verdict.REFUTED, "the node serves another genesis document")
        raise Stop
    whose = "yours" if mine is not None else "as this node serves it; compare with --genesis FILE"
    report.add("genesis", Verdict.YES, f"{describe_genesis(served)} ({whose})")
    return served


def describe_genesis(genesis: Genesis) -> str:
    """The chain's name and both its hashes, under the labels of `steelyard node status`.

    Only who has the EVM can compute block 0, whose hash nodes show as genesis_hash.
    """
    text = f"{genesis.name}, genesis_document_hash {as_hex(genesis.hash)}"
    try:
        return f"{text}, genesis_hash {as_hex(build_genesis(genesis).block.hash)}"
    except ModuleNotFoundError:
        return text


def decode_chain_log(log: ChainLog, height: int, index: int) -> Event:
    """Return the event in a log of one of our contracts. Raises NodeRefused `rpc_answer`.

    A block that is not final may hold any log.
    """
    place = Log(log.address, tuple(log.topics), log.data, height, Hash(bytes(32)), index)
    event = get_contracts()[log.address].decode_event(place)
    if event is None:
        raise NodeRefused("rpc_answer", "the contract makes no such log; ask another node")
    return event


def decode_receipts(answer: Json) -> list[ChainReceipt]:
    """Return a block's receipts in the consensus form. Raises NodeRefused `rpc_answer`."""
    try:
        return [
            ChainReceipt(
                type=read_type(value["type"]),
                status=as_int(value["status"]),
                cumulative_gas_used=as_int(value["cumulativeGasUsed"]),
                gas_used=as_int(value["gasUsed"]),
                effective_gas_price=as_int(value["effectiveGasPrice"]),
                logs=tuple(
                    ChainLog(
                        Address(as_bytes(log["address"], 20)),
                        tuple(Hash(as_bytes(topic, 32)) for topic in log["topics"]),
                        as_bytes(log["data"]),
                    )
                    for log in value["logs"]
                ),
                contract_address=None,
            )
            for value in answer
        ]
    except (KeyError, TypeError):
        raise NodeRefused("rpc_answer", "the node's receipts are malformed") from None


def read_type(value: Json) -> int:
    """Return a transaction's type, one byte in its encoding. Raises NodeRefused `rpc_answer`."""
    kind = as_int(value)
    if kind > MAX_TYPE:
        raise NodeRefused("rpc_answer", f"the node's receipt has type {kind}")
    return kind

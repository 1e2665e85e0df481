"""What a validator owes the others: checking in, jailing the absent, having cheats slashed; and
what it owes itself: coming back, from jail or when a place in the set has become free.

Everything is a transaction from the validator's own account, on the keeper's thread. Evidence comes
from the driver and is kept on disk until the chain says that nothing is left to slash, so that a
kill loses none of it. The leader's node sends first, others by rank after a wait. Nobody reports
itself, and only validators pay for jailing others.
"""

import threading
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from eth_abi.abi import decode
from eth_utils.crypto import keccak

from steelyard.chain.consensus.certificates import Certificate, decode_bitmap
from steelyard.chain.consensus.messages import ReportConflict, ReportOffence
from steelyard.chain.consensus.votes import Vote, find_offence
from steelyard.chain.epochs import EpochSet, compute_epoch
from steelyard.chain.errors import SteelyardError
from steelyard.chain.evidence import encode_statement
from steelyard.chain.params import MAX_EVIDENCE_SIGNERS, STAKING_ADDRESS
from steelyard.chain.rlp import InvalidEncoding, decode_rlp, encode_rlp, read_bytes, read_list
from steelyard.chain.types import Address

from .alarms import State
from .keeper import RANK_SECONDS
from .logs import log_alarm, log_event
from .store import CorruptData, Database, StorageFull
from .wallet import Attempts, Wallet, WouldRevert, encode_call

if TYPE_CHECKING:
    from .node import Node

Report: TypeAlias = ReportOffence | ReportConflict

EVIDENCE: Final = "evidence"
"""Where the book is, in the data directory."""
BOOK_MAP_BYTES: Final = 2**26
MAX_EVIDENCE: Final = 256
MAX_EVIDENCE_EACH: Final = 4
"""About the same culprits. One who cheats in every view is slashed for a few of them."""
MAX_JAILED_AT_ONCE: Final = 4
CHECK_IN_QUARTERS: Final = 4
"""Validators check in during the first of so many parts of an epoch, one after the other."""
REPORT_SIGNATURE: Final = "report(bytes,address[],bytes,bytes,address[],bytes)"
SETTLED: Final = ("staking: ", "evidence: ")
"""How a contract's refusal of evidence begins. It will not change its mind."""


# -- evidence --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Signed:
    """An encoded statement, the accounts that signed it, and the sum of their signatures."""

    statement: bytes
    signers: tuple[Address, ...]
    signature: bytes


@dataclass(frozen=True, slots=True)
class Evidence:
    """Two statements that nobody may sign both."""

    first: Signed
    second: Signed

    @property
    def guilty(self) -> frozenset[Address]:
        """Who signed both."""
        return frozenset(self.first.signers) & frozenset(self.second.signers)

    @property
    def name(self) -> bytes:
        """32 bytes: the same evidence has the same name."""
        return keccak(encode_evidence(self))


def build_evidence(report: Report, epoch_set: EpochSet) -> Evidence | None:
    """Return what Staking takes, or None: what contradicts itself across views proves nothing."""
    if find_offence(report.first.statement, report.second.statement) is None:
        return None
    return Evidence(_sign(report.first, epoch_set), _sign(report.second, epoch_set))


def _sign(said: Vote | Certificate, epoch_set: EpochSet) -> Signed:
    members = epoch_set.members
    places: tuple[int, ...] = (
        (said.signer,) if isinstance(said, Vote) else decode_bitmap(said.bitmap, len(members))
    )
    signers = tuple(members[place].address for place in places)
    return Signed(encode_statement(said.statement), signers, said.signature)


def encode_evidence(evidence: Evidence) -> bytes:
    """Return `rlp([[statement, [address, …], signature], …])`."""
    return encode_rlp(
        [[one.statement, one.signers, one.signature] for one in (evidence.first, evidence.second)]
    )


def decode_evidence(data: bytes) -> Evidence:
    """Return what `encode_evidence` was given. Raises InvalidEncoding."""
    first, second = (read_list(item, 3) for item in read_list(decode_rlp(data), 2))
    return Evidence(
        *(
            Signed(
                read_bytes(statement),
                tuple(
                    Address(read_bytes(one, 20))
                    for one in read_list(signers, limit=MAX_EVIDENCE_SIGNERS)
                ),
                read_bytes(signature),
            )
            for statement, signers, signature in (first, second)
        )
    )


def encode_report(evidence: Evidence) -> bytes:
    """The calldata of Staking's `report`."""
    return encode_call(
        REPORT_SIGNATURE,
        *(
            value
            for one in (evidence.first, evidence.second)
            for value in (one.statement, one.signers, one.signature)
        ),
    )


class EvidenceBook:
    """Evidence that is not settled yet: in memory, and on disk before `add` returns."""

    def __init__(self, path: Path) -> None:
        """Raises CorruptData, StorageFull."""
        self._database = Database(path, (EVIDENCE,), BOOK_MAP_BYTES)
        self._lock = threading.Lock()
        self._entries: dict[bytes, Evidence] = {}
        for name, data in self._database.scan(EVIDENCE, b"", MAX_EVIDENCE):
            try:
                self._entries[name] = decode_evidence(data)
            except InvalidEncoding as error:
                raise CorruptData(path, f"{error.message}; delete this folder") from error

    def add(self, evidence: Evidence) -> bool:
        """Keep it, unless it is known or there is enough. Raises StorageFull, CorruptData."""
        name = evidence.name
        with self._lock:
            alike = sum(one.guilty == evidence.guilty for one in self._entries.values())
            is_full = len(self._entries) >= MAX_EVIDENCE or alike >= MAX_EVIDENCE_EACH
            if is_full or name in self._entries:
                return False
            with self._database.write() as writer:
                writer.put(EVIDENCE, name, encode_evidence(evidence))
            self._entries[name] = evidence
            return True

    def remove(self, evidence: Evidence) -> None:
        """Let go of what is settled. Raises StorageFull, CorruptData."""
        name = evidence.name
        with self._lock:
            with self._database.write() as writer:
                writer.delete(EVIDENCE, name)
            self._entries.pop(name, None)

    def list(self) -> tuple[Evidence, ...]:
        """All of it, in no particular order."""
        with self._lock:
            return tuple(self._entries.values())

    def close(self) -> None:
        self._database.close()


# -- duties ----------------------------------------------------------------------------------------
class Task(StrEnum):
    """What this account may have to do."""

    CHECK_IN = "check_in"
    UNJAIL = "unjail"
    ENTER = "enter"
    JAIL = "jail"
    REPORT = "report"


OWN_TASKS: Final = {1: Task.CHECK_IN, 2: Task.UNJAIL}
"""What Staking's `next_duty` answers."""
RETURNS: Final = (Task.UNJAIL, Task.ENTER)
"""Ways back into the set, which `keeper.unjail` allows."""


@dataclass(frozen=True, slots=True)
class Duty:
    """One thing to do: in an epoch; about an account, or evidence of that name."""

    task: Task
    epoch: int
    subject: bytes = b""


class Duties:
    """`report` is called by the driver and `look` by the keeper, each on its thread."""

    def __init__(self, node: "Node", wallet: Wallet, book: EvidenceBook) -> None:
        self._node, self._wallet, self._book = node, wallet, book
        self._may_return = node.config.keeper.unjail
        self.attempts = Attempts(node, wallet.address)
        self._settled_epoch = self._listed_epoch = self._tried_height = -1
        self._list_at = float("-inf")

    def report(self, evidence: Report, epoch_set: EpochSet) -> None:
        """Keep evidence about validators of that epoch. Never raises: the driver goes on."""
        built = build_evidence(evidence, epoch_set)
        if built is None:
            log_event("evidence_unprovable", evidence=evidence)
            return
        if self._wallet.address in built.guilty:
            log_alarm("evidence_against_us", evidence=evidence)
            return
        try:
            self._book.add(built)
        except (CorruptData, StorageFull) as error:
            log_alarm("evidence_lost", error=error)

    def look(self) -> None:
        """Do what is due now."""
        height = self._node.get_head().height + 1
        blocks = self._node.rules.epoch_blocks
        epoch, offset = compute_epoch(height, blocks), (height - 1) % blocks
        current = self._node.get_epoch_set()
        place = current.validators.find(self._wallet.address)
        if offset >= compute_turn(place or 0, len(current.members), blocks):
            self._do_own(epoch)
        if place is not None and offset >= blocks // 2:
            self._jail_absent(epoch)
        self._send_evidence()
        self.attempts.forget(lambda duty: isinstance(duty, Duty) and -1 < duty.epoch < epoch)

    def _do_own(self, epoch: int) -> None:
        """Check in, or come back; ask the chain until it says that nothing is left."""
        if self._settled_epoch == epoch:
            return
        task = self._find_own_task()
        if task is None or (task in RETURNS and not self._may_return):
            self._settled_epoch = epoch
            return
        data = encode_call(f"{task}()")
        if task != Task.ENTER or self._is_place_free(data):
            self._attempt(Duty(task, epoch), data, 0.0)

    def _find_own_task(self) -> Task | None:
        me = self._wallet.address
        (number,) = decode(["uint8"], self._wallet.ask(STAKING_ADDRESS, "next_duty(address)", me))
        if number in OWN_TASKS:
            return OWN_TASKS[number]
        standing = self._wallet.ask(STAKING_ADDRESS, "get_standing(address)", me)
        return Task.ENTER if decode(["uint8"], standing)[0] == State.WAITING else None

    def _is_place_free(self, data: bytes) -> bool:
        """Would `enter` succeed now? Tried out once a block, as only blocks change the answer."""
        height = self._node.get_head().height
        if height == self._tried_height:
            return False
        self._tried_height = height
        return self._wallet.find_refusal(STAKING_ADDRESS, data) is None

    def _jail_absent(self, epoch: int) -> None:
        now = self._node.clock.get_seconds()
        if self._listed_epoch == epoch or now < self._list_at:
            return
        output = self._wallet.ask(STAKING_ADDRESS, "list_absent()")
        absent = [bytes.fromhex(text[2:]) for text in decode(["address[]"], output)[0]]
        others = [account for account in absent if account != self._wallet.address]
        if not others:
            self._listed_epoch = epoch
            return
        self._list_at = now + RANK_SECONDS
        for account in others[:MAX_JAILED_AT_ONCE]:
            duty = Duty(Task.JAIL, epoch, account)
            self._attempt(duty, encode_call("jail(address)", account), self._get_wait())

    def _send_evidence(self) -> None:
        for evidence in self._book.list():
            duty = Duty(Task.REPORT, -1, evidence.name)
            error = self._attempt(duty, encode_report(evidence), self._get_wait())
            if isinstance(error, WouldRevert) and error.message.startswith(SETTLED):
                log_event("evidence_settled", evidence=evidence.name, reason=error.message)
                self._book.remove(evidence)
                self.attempts.entries.pop(duty, None)

    def _attempt(self, duty: Duty, data: bytes, wait_seconds: float) -> SteelyardError | None:
        if self._wallet.is_busy():
            return None
        return self.attempts.run(
            duty,
            lambda: self._wallet.submit(STAKING_ADDRESS, data),
            {"duty": duty.task.value, "epoch": duty.epoch, "subject": duty.subject},
            wait_seconds,
        )

    def _get_wait(self) -> float:
        return RANK_SECONDS * self._node.driver.get_rank()


def compute_turn(place: int, members: int, epoch_blocks: int) -> int:
    """Return the offset in an epoch from which the validator at `place` checks in."""
    return epoch_blocks * place // (CHECK_IN_QUARTERS * members)

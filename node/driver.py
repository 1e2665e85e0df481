"""The node's only loop: take an event, step the consensus machine, persist, perform the effects.

Crash-only. Everything that consensus must remember is on disk before anything is built on it:
blocks and certificates in the journal, votes in the signer's database, finalized blocks in one
commit. So every fault that may pass (a full disk, a lost blob) is handled like a kill: memory is
thrown away and the machine is rebuilt from disk, as at a start. While that lasts production
stops, an alarm is up, and reads go on.
"""

import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from steelyard.chain.block import Block, Rules, compute_base_fee, decode_block, encode_block
from steelyard.chain.consensus.certificates import (
    Certificate,
    decode_certificate,
    encode_certificate,
)
from steelyard.chain.consensus.messages import (
    BlockBuilt,
    BlockRejected,
    BlockValidated,
    Broadcast,
    CertificateReceived,
    Effect,
    Event,
    FetchBlock,
    FetchCertificates,
    Finalize,
    PersistCertificate,
    Proposal,
    ProposalReceived,
    Propose,
    ReportConflict,
    ReportOffence,
    SetTimer,
    SignVote,
    Started,
    TimerFired,
    Validate,
    VoteReceived,
    VoteSigned,
    WorkArrived,
)
from steelyard.chain.consensus.simplex import Settings, Simplex
from steelyard.chain.consensus.votes import Vote
from steelyard.chain.errors import InvalidBlock, InvalidVote, UnavailableBlob
from steelyard.chain.execute import Outcome
from steelyard.chain.params import MAX_CLOCK_LEAD_SECONDS
from steelyard.chain.trie import MissingState

from .blobs import BlobStore
from .builder import Builder
from .calls import start_thread
from .clock import Clock
from .config import NodeConfig
from .directory import check_space
from .finality import BLOCK, Finalizer, get_certificate_key
from .logs import log_alarm, log_event
from .mempool import Mempool
from .signer import ConflictingVote, Signer
from .store import RECOVERY, ChainStore, CorruptData, StorageFull
from .tree import BlockTree, get_candidate

RETRY_SECONDS = 2.0
POLL_SECONDS = 0.5
"""Longest sleep."""
HOUSE_SECONDS = 1.0
"""Expiry of pool entries and of blobs is looked at this often."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Why production stands still."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """A leader's block and its vote for it, from another validator."""

    block: Block
    vote: Vote


@dataclass(frozen=True, slots=True)
class Parts:
    """What the driver works with."""

    directory: Path
    rules: Rules
    settings: Settings
    config: NodeConfig
    store: ChainStore
    blobs: BlobStore
    mempool: Mempool
    signer: Signer
    builder: Builder
    finalizer: Finalizer
    clock: Clock


class Driver:
    """Runs consensus on one thread, the only one that writes to the chain store."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._finalizer = parts, parts.finalizer
        self._condition = threading.Condition()
        self._events: deque[Event | Arrival] = deque()
        self._stopping = self._woken = False
        self._thread: threading.Thread | None = None
        self._request: Propose | Validate | None = None
        self._timer_ms: int | None = None
        self._told_view = 0
        self._last_final_at = self._work_after = self._house_at = float("-inf")
        self._journal: dict[bytes, bytes | None] = {}
        self.alarm: Alarm | None = None
        self.blocks_built = 0
        self.last_block_seconds = 0.0
        self._tree: BlockTree
        self._machine: Simplex

    # -- from other threads ------------------------------------------------------------------------
    def start(self) -> None:
        self._thread = start_thread("driver", self._run)

    def stop(self) -> None:
        """End the loop after the effect at hand, and wait for it."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join()

    def wake(self) -> None:
        """There may be work: a transaction or a blob came."""
        with self._condition:
            self._woken = True
            self._condition.notify_all()

    def deliver(self, event: "VoteReceived | CertificateReceived | Arrival") -> None:
        """A message from another validator."""
        with self._condition:
            self._events.append(event)
            self._condition.notify_all()

    def get_view(self) -> int:
        return self._machine.view if self._machine_is_ready() else 0

    def get_rank(self) -> int:
        """How many validators come before us, counted from the leader of this view."""
        settings = self._parts.settings
        if not self._machine_is_ready() or settings.me is None:
            return 0
        leader = settings.validators.get_leader(settings.epoch, self._machine.view)
        return (settings.me - leader) % len(settings.validators)

    def _machine_is_ready(self) -> bool:
        return hasattr(self, "_machine")

    # -- the loop ----------------------------------------------------------------------------------
    def _run(self) -> None:
        while not self._stopping:
            try:
                self.recover()
                while not self._stopping:
                    self.turn()
            except (StorageFull, UnavailableBlob) as error:
                self._raise_alarm(error.code, error.message)
                self._sleep(RETRY_SECONDS)
            except CorruptData as error:
                self._raise_alarm(error.code, error.message)
                return
            except MissingState as error:
                self._raise_alarm(CorruptData.code, f"{error.message}; {RECOVERY}")
                return
            except Exception as error:
                # Ours to fix. Reads go on; guessing on with consensus would not be safe.
                self._raise_alarm("driver_failed", repr(error), is_bug=True)
                return

    def _raise_alarm(self, code: str, message: str, *, is_bug: bool = False) -> None:
        if self.alarm is None or self.alarm.code != code:
            log_alarm("production_stopped", trace=is_bug, code=code, message=message)
        self.alarm = Alarm(code, message)

    def _sleep(self, seconds: float) -> None:
        with self._condition:
            if not self._stopping:
                self._condition.wait(seconds)

    def sweep(self) -> None:
        """Before anything can declare or send blobs: delete what a kill left over."""
        tree, _ = self._read_journal()
        self._finalizer.sweep(tree)

    def recover(self) -> None:
        """Rebuild tree and machine from disk, and start the machine."""
        parts, store = self._parts, self._parts.store
        self._tree, certificates = self._read_journal()
        self._finalizer.keep_house(self._tree)  # perhaps what nobody needs any more fills the disk
        self._check_space()
        self._request, self._timer_ms, self._journal, self._told_view = None, None, {}, 0
        self._events.clear()
        root = store.get_block(self._tree.root.hash)
        assert root is not None, "the head's body is stored with it"
        self._machine = Simplex.recover(
            parts.settings,
            get_candidate(root),
            finalization=store.get_certificate(root.height),
            statements=parts.signer.get_statements(),
            certificates=certificates,
            candidates=self._tree.get_candidates(),
        )
        self._step(Started())
        log_event("consensus_started", height=root.height, view=self._machine.view)
        if self.alarm is not None:
            log_event("production_resumed", code=self.alarm.code)
            self.alarm = None

    def _read_journal(self) -> tuple[BlockTree, list[Certificate]]:
        parts = self._parts
        tree = BlockTree(parts.rules, parts.store, parts.blobs)
        return tree, read_journal(parts.store, tree)

    def _check_space(self) -> None:
        check_space(self._parts.directory, self._parts.config.storage.min_free_bytes)

    def turn(self) -> None:
        """One turn of the loop: one event, or one wait."""
        event = self._take_event() or self._serve_request()
        if event is not None:
            self._step(event)
        else:
            self._keep_house()
            self._wait()

    def _take_event(self) -> Event | None:
        """The next event that needs no work of ours: queued, timer, or news of work."""
        with self._condition:
            event = self._events.popleft() if self._events else None
        if event is not None:
            return self._store_arrival(event) if isinstance(event, Arrival) else event
        if self._timer_ms is not None and self._parts.clock.get_ms() >= self._timer_ms:
            self._timer_ms = None
            return TimerFired()
        if self._request is None and self._is_work_due():
            self._told_view = self._machine.view
            return WorkArrived()
        return None

    def _store_arrival(self, arrival: Arrival) -> ProposalReceived:
        """Keep the block on disk; it is executed only if consensus asks for that."""
        self._tree.add(arrival.block, None)
        self._journal[BLOCK + arrival.block.hash] = encode_block(arrival.block)
        self._flush_journal()
        return ProposalReceived(Proposal(get_candidate(arrival.block), arrival.vote))

    def _is_work_due(self) -> bool:
        """Tell each view once, after the pause that lets a burst share one block."""
        if self._told_view == self._machine.view:
            return False
        now = self._parts.clock.get_seconds()
        pause = self._last_final_at + self._parts.config.blocks.interval_seconds
        if now < max(pause, self._work_after):
            return False
        parent = self._tree.get_parent(self._tree.get_tip())
        base_fee = compute_base_fee(parent.header, self._parts.rules.min_base_fee)
        return self._parts.mempool.has_eligible(base_fee, parent.nonces)

    def _keep_house(self) -> None:
        now = self._parts.clock.get_seconds()
        if now >= self._house_at:
            self._house_at = now + HOUSE_SECONDS
            self._finalizer.keep_house(self._tree)

    def _wait(self) -> None:
        """Until something comes, the timer ends, or the pause between two blocks does."""
        clock = self._parts.clock
        seconds = POLL_SECONDS
        if self._timer_ms is not None:
            seconds = min(seconds, self._timer_ms / 1000 - clock.get_seconds())
        if self._told_view != self._machine.view:
            pause = self._last_final_at + self._parts.config.blocks.interval_seconds
            left = max(pause, self._work_after) - clock.get_seconds()
            seconds = min(seconds, left) if left > 0 else seconds
        with self._condition:
            if not self._events and not self._stopping and not self._woken and seconds > 0:
                self._condition.wait(seconds)
            self._woken = False

    def _step(self, event: Event) -> None:
        try:
            effects = self._machine.step(event, self._parts.clock.get_ms())
        except InvalidVote as error:
            log_event("message_refused", code=error.code, message=error.message)
            return
        for effect in effects:
            self._perform(effect)

    # -- effects -----------------------------------------------------------------------------------
    def _perform(self, effect: Effect) -> None:
        match effect:
            case SetTimer(at_ms):
                self._timer_ms = at_ms
            case Propose() | Validate():
                self._request = effect
            case SignVote():
                self._sign(effect)
            case PersistCertificate(certificate):
                self._journal[get_certificate_key(certificate)] = encode_certificate(certificate)
            case Finalize():
                journal, self._journal = self._journal, {}
                self._finalizer.finalize(effect, self._tree, journal)
                self._last_final_at = self._parts.clock.get_seconds()
            case Broadcast() | FetchBlock() | FetchCertificates():
                pass  # a quorum of one, which `Node.open` asks for, has nobody to tell or to ask
            case ReportOffence() | ReportConflict():
                log_alarm("validators_misbehave", evidence=effect)

    def _sign(self, effect: SignVote) -> None:
        """Certificates that led here become durable first; then the vote; then it exists."""
        self._flush_journal()
        try:
            vote = self._parts.signer.sign_vote(effect.statement)
        except ConflictingVote as error:
            log_alarm("vote_refused", code=error.code, view=effect.statement.view)
            return
        self._events.append(VoteSigned(vote))

    def _flush_journal(self) -> None:
        if self._journal:
            self._parts.store.write_journal(self._journal)
            self._journal = {}

    def _serve_request(self) -> Event | None:
        """Build or validate, now that no event waits."""
        request, self._request = self._request, None
        match request:
            case Propose():
                return self._propose(request)
            case Validate():
                return self._validate(request)
        return None

    def _propose(self, request: Propose) -> Event | None:
        if request.view != self._machine.view:
            return None
        self._check_space()
        started = self._parts.clock.get_seconds()
        built = self._parts.builder.build(request, self._tree.prepare(request.parent.hash))
        self._keep_block(built.block, built.outcome)
        self.blocks_built += 1
        self.last_block_seconds = self._parts.clock.get_seconds() - started
        if not built.block.transactions and self._told_view == request.view:
            # Work that does not get in must not make a chain of empty blocks.
            pause = self._parts.settings.heartbeat_ms / 1000
            self._work_after = self._parts.clock.get_seconds() + pause
        return BlockBuilt(get_candidate(built.block))

    def _validate(self, request: Validate) -> Event | None:
        block = self._tree.get_block(request.candidate.hash)
        if block is None or request.view != self._machine.view:
            return None
        lead = block.header.timestamp - int(self._parts.clock.get_unix_seconds())
        try:
            if lead > MAX_CLOCK_LEAD_SECONDS:
                raise UnavailableBlob("block_early", f"{lead} seconds ahead of our clock")
            outcome = self._tree.execute(request.candidate.hash)
            for transaction in outcome.transactions:
                for name in transaction.blobs:
                    self._parts.blobs.read(name)
        except InvalidBlock as error:
            log_event("block_rejected", height=block.height, code=error.code, message=error.message)
            return BlockRejected(block.hash)
        except UnavailableBlob:
            self._request = request  # asked again at the next turn, until the view is over
            self._sleep(POLL_SECONDS)
            return None
        self._keep_block(block, outcome)
        return BlockValidated(block.hash)

    def _keep_block(self, block: Block, outcome: Outcome) -> None:
        """Before our vote for it leaves, a block and the blobs that it made are on disk."""
        for name in sorted(outcome.blobs):
            self._parts.blobs.put(name, outcome.blobs[name])
        self._journal[BLOCK + block.hash] = encode_block(block)
        self._flush_journal()
        self._tree.add(block, outcome)


def read_journal(store: ChainStore, tree: BlockTree) -> list[Certificate]:
    """What a kill, or a fault, left above the head: adds the blocks, returns the certificates."""
    certificates = []
    for key, value in store.read_journal():
        if key[:1] == BLOCK:
            tree.add(decode_block(value), None)
        else:
            certificates.append(decode_certificate(value))
    return certificates

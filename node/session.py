"""One consensus machine from its recovery to its end, with everything that lives in memory only.

It steps the machine, persists, performs the effects. A session ends with its epoch, when blocks
came that others made final, when this key may vote at last, or with a fault; then the driver makes
a new one from what is on disk. Nothing here waits: what cannot be done yet, because a blob is not
here or a block is ahead of our clock, is set aside and tried again, and other events go on.

What others send is kept only as far as consensus wants it: one proposal for a view that may still
matter, blocks that were asked for, final blocks that follow ours.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from steelyard.chain.block import Block, compute_base_fee
from steelyard.chain.consensus.certificates import (
    Certificate,
    check_certificate,
    encode_certificate,
)
from steelyard.chain.consensus.messages import (
    BlockBuilt,
    BlockFetched,
    Broadcast,
    CertificateReceived,
    Effect,
    Event,
    FetchBlock,
    FetchCertificates,
    Finalize,
    Message,
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
from steelyard.chain.consensus.votes import Kind
from steelyard.chain.epochs import get_boundary
from steelyard.chain.errors import InvalidVote
from steelyard.chain.segments import InvalidSegment
from steelyard.chain.types import Address, Epoch, Hash, View

from .bodies import Bodies
from .directory import check_space
from .forks import find_contradicted
from .importing import Importer
from .inbox import (
    Arrival,
    BlockAnswered,
    BlockWanted,
    CertificatesWanted,
    Delivery,
    Inbox,
    PlaceHeard,
    Segment,
)
from .journal import VOTED, Journal, get_certificate_key, read_journal
from .logs import log_alarm, log_event
from .outbox import Duties, Outbox
from .parts import Parts
from .records import Alarm
from .requests import Requests
from .signer import encode_place
from .tree import BlockTree, get_candidate
from .voting import Voter, find_place, get_statement

Network: TypeAlias = VoteReceived | CertificateReceived | Arrival
"""What consensus itself is told by others."""

POLL_SECONDS = 0.5
"""Longest sleep, and the pause before a blob or the clock is looked at again."""
HOUSE_SECONDS = 1.0
"""Expiry of pool entries and of blobs is looked at this often."""
MAX_STREAK = 256
"""Messages in a row before a timer, or work that is due, gets its turn."""
MAX_FORKED_VIEWS = 64
"""Contradicted finalizations that are reported. One slashes whoever takes part for all it has."""


class Session:
    """See the module. Used on the driver's thread only."""

    def __init__(
        self, parts: Parts, outbox: Outbox, duties: Duties, voter: Voter, inbox: Inbox, held: Inbox
    ) -> None:
        """Rebuild tree and machine from disk, and start the machine.

        `held` keeps messages for the sessions to come. Raises StorageFull, CorruptData.
        """
        self._parts, self._outbox, self._duties = parts, outbox, duties
        self._voter, self._inbox, self._held = voter, inbox, held
        self.tree = BlockTree(parts.rules, parts.store, parts.blobs)
        certificates = read_journal(parts.store, self.tree)
        parts.finalizer.keep_house(self.tree)  # perhaps what nobody needs any more fills the disk
        check_space(parts.directory, parts.config.storage.min_free_bytes)
        self._journal = Journal(parts.store)
        self._importer = Importer(parts, outbox, voter, self.tree, self._journal)
        self.epoch_set = self.tree.current
        self._answers: deque[Event] = deque()
        self._requests = Requests(parts, outbox, self.tree, self._journal)
        self._timer_ms: int | None = None
        self._bodies = Bodies(self.tree, self._journal)
        self._told_view = self._placed_view = self._streak = 0
        self._house_at = self._work_after = float("-inf")
        self._forked: set[View] = set()
        """Decided views of which a contradiction was reported."""
        place = find_place(self.epoch_set, parts.address, parts.voting_key)
        may_vote = voter.may_vote(self.epoch_set, self.tree.root.height)
        self.is_asleep = place is not None and not may_vote
        """We belong to the validators, but do not know yet whether it is safe to vote."""
        self.me = place if may_vote else None
        if self.me is not None:
            self._wake(certificates)
        self.machine = self._recover(certificates)
        self._step(Started())
        self._tell_place()
        while (early := held.take()) is not None:
            inbox.put(early.message, early.sender)

    def _recover(self, certificates: list[Certificate]) -> Simplex:
        parts, root = self._parts, self.tree.root
        block = parts.store.get_block(root.hash)
        assert block is not None, "the head's body is stored with it"
        candidate, epoch = get_candidate(block), self.epoch_set.epoch
        is_ours = candidate.epoch == epoch and root.height > 0
        return Simplex.recover(
            Settings(
                domain=parts.rules.domain,
                epoch=epoch,
                last_height=get_boundary(epoch, parts.rules.epoch_blocks),
                validators=self.epoch_set.validators,
                me=self.me,
                timeout_ms=parts.consensus.timeout_ms,
                heartbeat_ms=parts.consensus.heartbeat_ms,
            ),
            candidate,
            finalization=parts.store.get_certificate(root.height) if is_ours else None,
            statements=() if self.me is None else parts.signer.get_statements(),
            certificates=certificates,
            candidates=self.tree.get_candidates(),
        )

    def _wake(self, certificates: list[Certificate]) -> None:
        """Hold what the signer knows against what is certified."""
        final = self._parts.store.get_certificate(self.tree.root.height)
        known = [*certificates, *([] if final is None else [final])]
        highest = max(((one.epoch, one.view) for one in known), default=(0, 0))
        epoch_set = self._parts.store.find_epoch_set(highest[0])  # None after a late start
        was_member = epoch_set is None or epoch_set.find(self._parts.address) is not None
        self._voter.wake(highest, self.epoch_set, was_member=was_member)

    def _tell_place(self) -> None:
        before = self._parts.store.find_epoch_set(self.epoch_set.epoch - 1)
        sets = (self.epoch_set,) if before is None else (self.epoch_set, before)
        self._placed_view = self.machine.view
        self._outbox.set_place(sets, self._placed_view, self.tree.root)

    # -- the loop ----------------------------------------------------------------------------------
    def is_over(self) -> bool:
        """Must there be a new session?"""
        if self._importer.has_imported:
            return True
        if self.is_asleep and self._voter.may_vote(self.epoch_set, self.tree.root.height):
            return True
        return self.machine.is_over and not self._importer.is_waiting()

    def close(self) -> None:
        """Leave on disk what the next session should know. Raises StorageFull, CorruptData."""
        self._journal.flush()

    def find_alarm(self) -> Alarm | None:
        """What a person should know although the session goes on."""
        return self._importer.find_alarm()

    def retry(self) -> None:
        """A blob has come: what waits for one is tried at once."""
        self._requests.retry_at = None
        if self._importer.retry_at is not None:
            self._importer.retry_at = float("-inf")

    def advance(self) -> bool:
        """Do the next thing that is due. False if nothing is until `compute_pause`."""
        if self._answers:
            self._step(self._answers.popleft())
            return True
        delivery = self._take_message()
        if delivery is not None:
            self._receive(delivery)
            return True
        event = self._take_due()
        if event is not None:
            self._step(event)
            return True
        if self._importer.retry_at is not None and self._get_now() >= self._importer.retry_at:
            self._make_final(self._importer.work)
            return True
        request = self._requests.take_due()
        if request is not None:
            self._serve(request)
            return True
        self._keep_house()
        return False

    def compute_pause(self) -> float:
        """Seconds until something is due, if nothing comes before."""
        now, until = self._get_now(), [self._house_at]
        if self._timer_ms is not None:
            until.append(self._timer_ms / 1000)
        if self._told_view != self.machine.view:
            until.append(self._get_work_at())
        until += [at for at in (self._requests.retry_at, self._importer.retry_at) if at is not None]
        return min([POLL_SECONDS, *(at - now for at in until if at > now)])

    def _get_now(self) -> float:
        return self._parts.clock.get_seconds()

    def _take_message(self) -> Delivery | None:
        """The next message, unless a flood of them keeps the rest waiting."""
        delivery = self._inbox.take() if self._streak < MAX_STREAK else None
        self._streak = 0 if delivery is None else self._streak + 1
        return delivery

    def _take_due(self) -> Event | None:
        """The timer, or news of work."""
        if self._timer_ms is not None and self._parts.clock.get_ms() >= self._timer_ms:
            self._timer_ms = None
            return TimerFired()
        is_busy = self._requests.has_one(self.machine.view)
        if not is_busy and self.me is not None and self._is_work_due():
            self._told_view = self.machine.view
            return WorkArrived()
        return None

    def _is_work_due(self) -> bool:
        """Tell each view once, after the pause that lets a burst share one block."""
        if self._told_view == self.machine.view or self._get_now() < self._get_work_at():
            return False
        parent = self.tree.get_parent(self.tree.get_tip())
        base_fee = compute_base_fee(parent.header, self._parts.rules.min_base_fee)
        return self._parts.mempool.has_eligible(base_fee, parent.nonces)

    def _get_work_at(self) -> float:
        final_at = self._parts.progress.final_at
        pause = self._parts.config.blocks.interval_seconds
        return self._work_after if final_at is None else max(final_at + pause, self._work_after)

    def _keep_house(self) -> None:
        if self._get_now() >= self._house_at:
            self._house_at = self._get_now() + HOUSE_SECONDS
            self._parts.finalizer.keep_house(self.tree)
            if self.machine.view > self._placed_view:  # views go by, and nothing becomes final
                self._tell_place()

    def _serve(self, request: Propose | Validate) -> None:
        if request.view != self.machine.view:
            return
        answer = self._requests.serve(request)
        is_told = self._told_view == request.view
        if is_told and isinstance(answer, BlockBuilt) and self._requests.has_built_in_vain:
            # Work that does not get in must not make a chain of empty blocks.
            pause = self._parts.consensus.heartbeat_ms / 1000
            self._work_after = self._get_now() + pause
        if answer is not None:
            self._step(answer)

    def _step(self, event: Event) -> None:
        """Step the machine and do what it asks. Raises InvalidVote for a message it refuses."""
        for effect in self.machine.step(event, self._parts.clock.get_ms()):
            self._perform(effect)

    # -- what others send --------------------------------------------------------------------------
    def _receive(self, delivery: Delivery) -> None:
        """Deal with a message. Whoever sends what is wrongly signed, or no block, hears of it."""
        try:
            self._sort(delivery)
        except (InvalidVote, InvalidSegment) as error:
            log_event("message_refused", code=error.code, message=error.message)
            if delivery.sender is not None:
                self._outbox.refuse(delivery.sender, error.code)

    def _sort(self, delivery: Delivery) -> None:
        message = delivery.message
        match message:
            case PlaceHeard(address, height, epoch, view):
                self._voter.hear(address, height, (epoch, view))
            case BlockWanted(block_hash, address):
                block = self._find_block(block_hash)
                if block is not None:
                    self._outbox.send_block(address, block)
            case CertificatesWanted(epoch, view, address):
                self._outbox.send_certificates(address, self._find_certificates(epoch, view))
            case BlockAnswered(block):
                self._receive_block(block, delivery.sender)
            case Segment():
                self._check_own(CertificateReceived(message.certificate))
                self._importer.take(message)
            case _:
                self._receive_vote(message, delivery.sender)

    def _receive_vote(self, message: Network, sender: Address | None) -> None:
        """A vote, a certificate or a proposal; those of the next epoch are for the next session."""
        epoch = get_epoch(message)
        if epoch == self.epoch_set.epoch + 1 or (epoch == self.epoch_set.epoch and self.is_asleep):
            self._held.put(message, sender)
        if epoch != self.epoch_set.epoch:
            return
        if isinstance(message, Arrival):
            self._receive_proposal(message)
        else:
            self._step(message)
            self._check_own(message)
            if isinstance(message, CertificateReceived):
                self._check_past(message.certificate)

    def _check_past(self, certificate: Certificate) -> None:
        """Hold it against what became final before the last: the machine knows that one alone.

        Raises InvalidVote if it would contradict a finalization and is not rightly signed.
        """
        root, epoch = self.machine.root, self.epoch_set.epoch
        is_past = root.epoch == epoch and certificate.view < root.view
        view = certificate.view
        if not is_past or view in self._forked or len(self._forked) >= MAX_FORKED_VIEWS:
            return
        blocks = self._parts.rules.epoch_blocks
        first = get_boundary(epoch, blocks) - blocks + 1
        ours = find_contradicted(self._parts.store, certificate, first, self.tree.root.height)
        if ours is not None:
            check_certificate(certificate, self.epoch_set.validators, self._parts.rules.domain)
            self._forked.add(view)
            self._perform(ReportConflict(ours, certificate))

    def _receive_proposal(self, arrival: Arrival) -> None:
        """Keep the block if it may matter; it is executed only if consensus asks for that."""
        block, vote = arrival.block, arrival.vote
        proposal = Proposal(get_candidate(block), vote)
        is_new = proposal.candidate.view == proposal.view >= self.machine.view
        try:
            is_kept = self._bodies.has_kept(block, proposal.view, self.machine)
        except InvalidSegment:
            self._step(VoteReceived(vote))  # it counts: others may have the block itself
            raise
        if not is_kept and not self.tree.has(block.hash):
            self._step(VoteReceived(vote))  # a second proposal of the leader is an offence still
            return
        try:
            self._step(ProposalReceived(proposal))
        except InvalidVote:
            if is_kept:
                self._bodies.drop(block.hash)
            raise
        self._bodies.set_first(proposal.view, block.hash)
        if is_new:
            self._compare_clocks(block)
        self._check_own(VoteReceived(vote))

    def _compare_clocks(self, block: Block) -> None:
        """The leader's clock said so when it built this."""
        now = self._parts.clock.get_unix_seconds()
        leader = block.extension.proposer
        self._parts.progress.clocks.observe(leader, block.header.timestamp, now)

    def _receive_block(self, block: Block, sender: Address | None) -> None:
        """What we asked for, and nothing else.

        With another body it answers nothing: all others are asked at once, or one liar that is
        asked first in every view could keep the block from us. Raises InvalidSegment then.
        """
        try:
            is_taken = self._bodies.has_taken(block)
        except InvalidSegment:
            known = (sender, self._parts.address)
            others = (one.address for one in self.epoch_set.members if one.address not in known)
            self._outbox.fetch_block(block.hash, tuple(others))
            raise
        if is_taken:
            self._step(BlockFetched(get_candidate(block)))

    def _check_own(self, message: VoteReceived | CertificateReceived) -> None:
        self._voter.check_own(message, self.epoch_set)

    def _find_block(self, block_hash: Hash) -> Block | None:
        return self.tree.get_block(block_hash) or self._parts.store.get_block(block_hash)

    def _find_certificates(self, epoch: Epoch, view: View) -> tuple[Certificate, ...]:
        """What helps somebody on: in an earlier epoch it is what ended it."""
        if epoch == self.epoch_set.epoch:
            return self.machine.get_certificates(view)
        if epoch > self.epoch_set.epoch:
            return ()
        boundary = get_boundary(epoch, self._parts.rules.epoch_blocks)
        final = self._parts.store.get_certificate(boundary)
        return () if final is None else (final,)

    # -- effects -----------------------------------------------------------------------------------
    def _perform(self, effect: Effect) -> None:
        match effect:
            case SetTimer(at_ms):
                self._timer_ms = at_ms
            case Propose() | Validate():
                self._requests.put(effect)
            case SignVote():
                self._sign(effect)
            case PersistCertificate(certificate):
                key = get_certificate_key(certificate)
                self._journal.entries[key] = encode_certificate(certificate)
            case Finalize():
                self._make_final(partial(self._importer.finalize, effect))
            case Broadcast(message):
                self._outbox.broadcast(message, self._find_proposed(message))
            case FetchBlock(block_hash, holders):
                self._fetch_block(block_hash, holders)
            case FetchCertificates(view):
                self._outbox.fetch_certificates(self.epoch_set.epoch, view)
            case ReportOffence() | ReportConflict():
                log_alarm("validators_misbehave", evidence=effect)
                self._duties.report(effect, self.epoch_set)

    def _sign(self, effect: SignVote) -> None:
        """Certificates that led here become durable first; then the vote; then it exists.

        So too before a finalize vote, which only forbids us to give the view up: a dishonest
        signer of the notarization may never repeat its vote, and after a kill we could then
        neither complete the certificate again nor help to nullify the view, for ever. Where we
        alone are a quorum our own vote completes it, and that is on disk: a write less a block.
        """
        assert self.me is not None, "only a validator is asked to vote"
        said = effect.statement
        if said.kind != Kind.FINALIZE or not self.epoch_set.validators.has_quorum((self.me,)):
            self._journal.flush()
        vote = self._voter.sign(said, self.me)
        if vote is not None:
            self._journal.entries[VOTED] = encode_place(said.epoch, said.view)
            self._answers.append(VoteSigned(vote))

    def _make_final(self, work: Callable[[], None]) -> None:
        """Let the importer work, and tell of it if the head moved."""
        before = self.tree.root
        work()
        if self.tree.root != before:
            self._bodies.forget(self.machine.root.view)
            self._tell_place()

    def _find_proposed(self, message: Message) -> Block | None:
        if not isinstance(message, Proposal):
            return None
        block = self._find_block(message.candidate.hash)
        assert block is not None, "what we propose is on disk"
        return block

    def _fetch_block(self, block_hash: Hash, holders: tuple[int, ...]) -> None:
        block = self.tree.get_block(block_hash)
        if block is not None:
            self._answers.append(BlockFetched(get_candidate(block)))
            return
        self._bodies.want(block_hash)
        addresses = (self.epoch_set.members[place].address for place in holders)
        others = tuple(one for one in addresses if one != self._parts.address)
        self._outbox.fetch_block(block_hash, others)


def get_epoch(message: Network) -> Epoch:
    """The epoch that a message belongs to."""
    said = message.vote.statement if isinstance(message, Arrival) else get_statement(message)
    return said.epoch

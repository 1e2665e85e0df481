"""Which messages of other validators reach the driver.

A vote counts only from the validator that signed it: consensus repeats its own votes while they
matter and passes certificates on instead of votes, so a vote from anybody else is noise. The same
holds for proposals. Certificates prove themselves and are taken from anyone, blocks only if asked
for. What the driver could not use (another epoch's messages) stops here; those of the next epoch
are kept, few of them, because we may be the last to learn that it has begun.

Whoever belongs to another chain is not listened to until it says otherwise.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from steelyard.chain.consensus.messages import CertificateReceived, VoteReceived
from steelyard.chain.consensus.votes import Vote
from steelyard.chain.epochs import EpochSet
from steelyard.chain.types import Address, Epoch, Hash

from ..inbox import Arrival, BlockAnswered, BlockWanted, CertificatesWanted, Incoming, PlaceHeard
from ..logs import log_alarm, log_event
from .quota import Bucket
from .wire import (
    VERSION,
    BlockAnswer,
    BlockRequest,
    CertificateMessage,
    CertificatesRequest,
    ProposalMessage,
    Status,
    VoteMessage,
)

MAX_EARLY: Final = 32
"""Votes and certificates of the next epoch that are kept for each validator."""
MAX_EARLY_PROPOSALS: Final = 8
"""Of all validators together: a block is large."""
REQUESTS_PER_SECOND: Final = 32.0
MAX_REQUESTS: Final = 64.0
"""Blocks and certificates that a validator may ask for: at this rate, and at once."""

Signed = VoteMessage | ProposalMessage | CertificateMessage
Routed = Signed | Status | BlockAnswer | BlockRequest | CertificatesRequest


class Router:
    """See the module. `route` is called on one thread, `set_current` on another."""

    def __init__(
        self,
        genesis_hash: Hash,
        is_expected: Callable[[Hash], bool],
        blame: Callable[[Address, str], None],
    ) -> None:
        """`is_expected(hash)`: was that block asked for? `blame` learns who broke a rule."""
        self._genesis_hash, self._is_expected, self._blame = genesis_hash, is_expected, blame
        self._lock = threading.Lock()
        self._current: EpochSet | None = None
        self._early: dict[Address, deque[Signed]] = {}
        self._early_proposals: deque[tuple[Address, Signed]] = deque(maxlen=MAX_EARLY_PROPOSALS)
        self._allowances: dict[Address, Bucket] = {}
        self.muted: dict[Address, str] = {}
        """Validators that are not listened to, and why."""
        self.dropped: Counter[str] = Counter()
        """Messages that did not reach the driver, by reason."""
        self._alarmed: set[Address] = set()

    def set_current(self, current: EpochSet) -> list[tuple[Address, Incoming]]:
        """The epoch whose messages count. Returns what came too early, and from whom."""
        with self._lock:
            if self._current is not None and self._current.epoch == current.epoch:
                return []
            self._current = current
            early = [(peer, one) for peer, messages in self._early.items() for one in messages]
            early += self._early_proposals
            self._early.clear()
            self._early_proposals.clear()
        routed = [(peer, self._route_signed(peer, message)) for peer, message in early]
        return [(peer, one) for peer, one in routed if one is not None]

    def route(self, peer: Address, message: Routed, now: float) -> Incoming | None:
        """What the driver gets of this message, or None."""
        match message:
            case Status():
                return self._route_status(peer, message)
            case _ if peer in self.muted:
                return self._drop("muted")
            case VoteMessage() | ProposalMessage() | CertificateMessage():
                return self._route_signed(peer, message)
            case BlockAnswer(block):
                is_expected = self._is_expected(block.hash)
                return BlockAnswered(block) if is_expected else self._drop("block_unasked")
            case BlockRequest(block_hash):
                may = self._may_request(peer, now)
                return BlockWanted(block_hash, peer) if may else self._drop("requests")
            case CertificatesRequest(epoch, view):
                may = self._may_request(peer, now)
                return CertificatesWanted(epoch, view, peer) if may else self._drop("requests")

    def _drop(self, reason: str) -> Incoming | None:
        self.dropped[reason] += 1
        return None

    def _drop_relayed(self, peer: Address, reason: str) -> Incoming | None:
        self._blame(peer, reason)
        return self._drop(reason)

    def _may_request(self, peer: Address, now: float) -> bool:
        bucket = self._allowances.get(peer)
        if bucket is None:
            bucket = Bucket.create(REQUESTS_PER_SECOND, MAX_REQUESTS, now)
            self._allowances[peer] = bucket
        return bucket.has_taken(1.0, now)

    def _route_status(self, peer: Address, status: Status) -> Incoming | None:
        reason = None
        if status.genesis_hash != self._genesis_hash:
            reason = "genesis"
        elif status.version != VERSION:
            reason = "version"
        if reason is None:
            if self.muted.pop(peer, None) is not None:
                log_event("peer_heard_again", peer=peer)
            return PlaceHeard(peer, status.height, status.epoch, status.view)
        self.muted[peer] = reason
        if peer not in self._alarmed:
            self._alarmed.add(peer)
            log_alarm(
                "peer_of_another_chain",
                peer=peer,
                genesis=status.genesis_hash,
                version=status.version,
            )
        return self._drop(reason)

    def _route_signed(self, peer: Address, message: Signed) -> Incoming | None:
        epoch = get_epoch(message)
        with self._lock:
            current = self._current
            if current is not None and epoch == current.epoch + 1:
                self._keep(peer, message)
                return None
        if current is None or epoch != current.epoch:
            return self._drop("epoch")
        match message:
            case VoteMessage(vote):
                is_own = is_signed_by(vote, peer, current)
                return VoteReceived(vote) if is_own else self._drop_relayed(peer, "vote_relayed")
            case ProposalMessage(block, vote):
                is_own = is_signed_by(vote, peer, current)
                if not is_own:
                    return self._drop_relayed(peer, "proposal_relayed")
                return Arrival(block, vote)
            case CertificateMessage(certificate):
                return CertificateReceived(certificate)

    def _keep(self, peer: Address, message: Signed) -> None:
        if isinstance(message, ProposalMessage):
            self._early_proposals.append((peer, message))
        else:
            self._early.setdefault(peer, deque(maxlen=MAX_EARLY)).append(message)


def get_epoch(message: Signed) -> Epoch:
    """The epoch that a vote, a proposal or a certificate is of."""
    if isinstance(message, CertificateMessage):
        return message.certificate.epoch
    return message.vote.statement.epoch


def is_signed_by(vote: Vote, peer: Address, current: EpochSet) -> bool:
    """Whether the vote names this validator as its signer; its signature is not checked."""
    return current.validators.find(peer) == vote.signer

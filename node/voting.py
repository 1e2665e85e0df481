"""When this key may vote: never before it is known that no older life of it said otherwise.

The signer's database refuses contradictions, as long as it is the newest one of this key. An old
backup of it, or an empty one beside the same key, knows nothing of what was said since. Four things
guard against that, in a set in which we alone are no quorum:

1. *Listen first.* Nothing is signed after a start until validators that are a quorum with us said
   how far they are, and we are about as far. Without a quorum nothing could be certified anyway.
   Until then the node follows.
2. *The floor rises to what is certified.* If the highest certificate that we know, or that more
   than a third of the power must know to be in its views, is past everything the signer knows,
   others went on without this signer: nothing is signed up to that view, and in the next few views
   only that we give them up, which an older life of this key could be contradicted by only if it
   had seen more than all others. The signer remembers that over restarts.
3. *Our own signature.* A vote or certificate that carries our signature over a statement that the
   signer does not know proves that it is not the newest: an alarm, and the floor rises past it.
4. *chain/ remembers* the place of the last vote (`journal.VOTED`): a signer/ restored alone
   is refused at the start (`opening.check_votes`).

What is lost is some votes, for some views. A validator alone never waits and never doubts: nothing
is certified without it, and `check_votes` refuses whatever does not fit.
"""

from steelyard.chain.bls import PublicKey
from steelyard.chain.consensus.certificates import check_certificate, decode_bitmap
from steelyard.chain.consensus.messages import CertificateReceived, VoteReceived
from steelyard.chain.consensus.validators import ValidatorSet
from steelyard.chain.consensus.votes import Kind, Statement, Vote, check_vote
from steelyard.chain.epochs import EpochSet
from steelyard.chain.errors import InvalidKey, InvalidVote
from steelyard.chain.types import Address, Domain, Height

from .logs import log_alarm, log_event
from .signer import ConflictingVote, Signer

NEAR_BLOCKS = 2
"""Whoever is this close to the others gets the rest from consensus itself: they move on, too."""
QUIET_VIEWS = 2
"""Enough for what others do while we come near them. More would hurt where our votes are needed: a
view in which we may not vote for a block then lasts a timeout."""
Place = tuple[int, int]
"""Epoch and view."""


class Voter:
    """Decides for the driver whether to sign. Lives as long as the process."""

    def __init__(self, signer: Signer, address: Address, domain: Domain) -> None:
        self._signer, self._address, self._domain = signer, address, domain
        self._heard: dict[Address, tuple[Height, Place]] = {}
        self._is_awake = self._has_woken = False
        self.is_outdated = False
        """The signer's database was found not to be the newest of this key."""

    def hear(self, address: Address, height: Height, place: Place) -> None:
        """A validator said where it is."""
        if not self._is_awake:
            self._heard[address] = height, place

    def may_vote(self, epoch_set: EpochSet, height: Height) -> bool:
        """Do we know enough of the others? Once true, true until the process ends."""
        validators = epoch_set.validators
        me = validators.find(self._address)
        if self._is_awake or me is None:
            return self._is_awake
        heard = {validators.find(address): far for address, (far, _) in self._heard.items()}
        places = {place: far for place, far in heard.items() if place is not None}
        if validators.has_quorum((me,)):
            self._is_awake = True
        elif validators.has_quorum((me, *places)):
            further = [place for place, far in places.items() if far > height + NEAR_BLOCKS]
            self._is_awake = 3 * validators.get_power(further) <= validators.total_power
        return self._is_awake

    def wake(self, certified: Place, epoch_set: EpochSet, *, was_member: bool) -> None:
        """Before the first vote after a start, which is to be in the epoch of this set.

        `certified` is the highest view that we know a certificate of; `was_member`: did we belong
        to the set of that view?
        """
        is_first, self._has_woken = not self._has_woken, True
        epoch, (others_epoch, others_view) = epoch_set.epoch, self._find_reached(epoch_set)
        is_further = (others_epoch, others_view) > (epoch, 1)
        left = (others_epoch, others_view - 1) if is_further else (0, 0)
        furthest = max(certified, left)
        if not is_first or self._signer.get_last() >= furthest:
            return
        if was_member or left > certified:  # this first: after a kill in between we doubt again
            self._withhold(*max(furthest, (epoch, 0)))
        self._signer.raise_floor(*furthest)

    def _find_reached(self, epoch_set: EpochSet) -> Place:
        """The furthest place at or past which more than a third of the power says to be: an honest
        one of them is, so the view before it has a certificate. (0, 0) if too few said anything.
        """
        validators, power = epoch_set.validators, 0
        for address, (_, place) in sorted(self._heard.items(), key=lambda one: one[1][1])[::-1]:
            found = validators.find(address)
            power += 0 if found is None else validators.get_power((found,))
            if 3 * power > validators.total_power:
                return place
        return (0, 0)

    def _withhold(self, epoch: int, view: int) -> None:
        """In the few views after this one only say that they are given up."""
        self._signer.raise_quiet(epoch, view + QUIET_VIEWS)
        log_event("votes_withheld", epoch=epoch, until_view=view + QUIET_VIEWS)

    def follow(self, certified: Place) -> None:
        """Blocks came that others made final up to this view: it needs no vote of ours any more.

        Before we are awake it says that others went on without this signer: that is for `wake`.
        """
        if self._is_awake and self._signer.get_last() < certified:
            self._signer.raise_floor(*certified)

    def sign(self, statement: Statement, place: int) -> Vote | None:
        """Our vote, on disk; None if it must not be. Raises StorageFull, CorruptData."""
        is_quiet = (statement.epoch, statement.view) <= self._signer.get_quiet()
        if is_quiet and statement.kind != Kind.NULLIFY and not self._signer.has_said(statement):
            return None
        try:
            return self._signer.sign_vote(statement, place)
        except ConflictingVote as error:
            is_conflict = (statement.epoch, statement.view) > self._signer.get_floor()
            tell = log_alarm if is_conflict else log_event  # below the floor nothing is needed
            tell("vote_refused", code=error.code, view=statement.view, kind=statement.kind)
            return None

    def check_own(self, message: VoteReceived | CertificateReceived, epoch_set: EpochSet) -> None:
        """Does somebody show our signature under something that our signer does not know?

        `epoch_set` is the current one; of other epochs nothing can be said.
        """
        said = get_statement(message)
        me = epoch_set.validators.find(self._address)
        if me is None or said.epoch != epoch_set.epoch or self._signer.has_said(said):
            return
        if is_signed_by(message, me, epoch_set.validators, self._domain):
            self._admit(said)

    def _admit(self, statement: Statement) -> None:
        """This key said something, provably, that its database does not know."""
        self.is_outdated = True
        log_alarm(
            "signer_outdated",
            epoch=statement.epoch,
            view=statement.view,
            message="this key voted without this signer/: another machine runs with it, or an old "
            "backup was restored; stop one of them; nothing is signed up to that view",
        )
        self._withhold(statement.epoch, statement.view)
        self._signer.raise_floor(statement.epoch, statement.view)


def get_statement(message: VoteReceived | CertificateReceived) -> Statement:
    """What is said."""
    said = message.vote if isinstance(message, VoteReceived) else message.certificate
    return said.statement


def is_signed_by(
    message: VoteReceived | CertificateReceived, me: int, validators: ValidatorSet, domain: Domain
) -> bool:
    """Did the validator at place `me` sign this? What others signed costs no signature check."""
    try:
        if isinstance(message, VoteReceived):
            if message.vote.signer != me:
                return False
            check_vote(message.vote, validators, domain)
        else:
            if me not in decode_bitmap(message.certificate.bitmap, len(validators)):
                return False
            check_certificate(message.certificate, validators, domain)
    except InvalidVote:
        return False
    return True


def check_key(epoch_set: EpochSet, address: Address, voting_key: PublicKey) -> int | None:
    """The place of account and key among these validators, None if they know neither.

    Raises InvalidKey key_validator if they know one without the other.
    """
    place = epoch_set.validators.find(address)
    if place != epoch_set.validators.find_key(voting_key):
        raise InvalidKey(
            "key_validator",
            f"in epoch {epoch_set.epoch} 0x{address.hex()} and this voting key do not belong "
            "together; use the keys that were registered with each other",
        )
    return place


def find_place(epoch_set: EpochSet, address: Address, voting_key: PublicKey) -> int | None:
    """Our place; None, with an alarm, if these validators know us by another key."""
    try:
        return check_key(epoch_set, address, voting_key)
    except InvalidKey as error:
        log_alarm("validator_key", epoch=epoch_set.epoch, code=error.code, message=error.message)
        return None

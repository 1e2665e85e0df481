# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title Rounds and what is submitted to them: commitments, then reveals
@license Apache-2.0
@notice A period ends at its `ends` second, exclusive, or earlier when nobody is missing. Who may
        take part is the caller's business; what is said, when and once, is this module's.

        An update has an origin: the round whose base it was trained on. It is the round itself, or,
        for a late update, an earlier one for which its maker was drawn and showed nothing.
"""

import bitmaps
import fedavg
import seam

# 0 is a round that has not been opened.
OPEN: constant(uint8) = 1
AGGREGATED: constant(uint8) = 2
SKIPPED: constant(uint8) = 3
# Its aggregation is under way, page by page.
CLOSING: constant(uint8) = 4
# Its task ended before it did.
STOPPED: constant(uint8) = 5


struct Round:
    state: uint8
    base: fedavg.Blob
    velocity: fedavg.Blob
    pool: uint256
    seed: bytes32
    # Bitmaps of seats. Whoever leaves is no longer drawn.
    drawn: uint256
    committed: uint256
    revealed: uint256
    commit_ends: uint256
    reveal_ends: uint256
    extensions: uint256
    model: fedavg.Blob
    saturated: uint256
    # Of the aggregation, done so far.
    pages: uint256


struct Submission:
    commitment: bytes32
    origin: uint256
    update: fedavg.Blob
    samples: uint256
    # At the time of the commitment, in wei: weighting by stake counts what is at risk since then.
    stake: uint256


# A submission in three words. `facts` holds from its lowest bit: origin, 16 bits; the update's
# size, 32; samples, 64; stake, 128.
struct Packed:
    commitment: bytes32
    digest: bytes32
    facts: uint256


event RoundOpened:
    task: indexed(uint256)
    round: indexed(uint256)
    base: fedavg.Blob
    velocity: fedavg.Blob
    pool: uint256
    seed: bytes32
    seats: uint256
    drawn: uint256
    commit_ends: uint256
    reveal_ends: uint256


event Committed:
    task: indexed(uint256)
    round: indexed(uint256)
    participant: indexed(address)
    origin: uint256
    commitment: bytes32


event RevealOpened:
    task: indexed(uint256)
    round: indexed(uint256)
    reveal_ends: uint256


event Revealed:
    task: indexed(uint256)
    round: indexed(uint256)
    participant: indexed(address)
    origin: uint256
    update: fedavg.Blob
    samples: uint256
    norm2: uint256


event RoundExtended:
    task: indexed(uint256)
    round: indexed(uint256)
    extensions: uint256
    commit_ends: uint256
    reveal_ends: uint256


event RoundSkipped:
    task: indexed(uint256)
    round: indexed(uint256)
    committed: uint256
    revealed: uint256


plans: HashMap[uint256, seam.Plan]
rounds: HashMap[uint256, HashMap[uint256, Round]]
packed: HashMap[uint256, HashMap[uint256, HashMap[address, Packed]]]
# Seats that have shown an update of this origin.
answered: HashMap[uint256, HashMap[uint256, uint256]]


@internal
def _commit(
    task: uint256,
    round: uint256,
    seat: uint256,
    participant: address,
    stake: uint256,
    origin: uint256,
    commitment: bytes32,
):
    committed: uint256 = self.rounds[task][round].committed
    assert (
        block.timestamp < self.rounds[task][round].commit_ends
    ), "rounds: commit period is over"
    assert not bitmaps._has(committed, seat), "rounds: already committed"
    assert commitment != empty(bytes32), "rounds: empty commitment"
    assert (
        origin <= round and origin + self.plans[task].max_staleness >= round
    ), "rounds: origin out of range"
    assert bitmaps._has(self.rounds[task][origin].drawn, seat), "rounds: not drawn"
    assert not bitmaps._has(self.answered[task][origin], seat), "rounds: already answered"
    self._check_readable(task, round, origin)

    self.rounds[task][round].committed = committed | (1 << seat)
    self.packed[task][round][participant].commitment = commitment
    self.packed[task][round][participant].facts = origin | (stake << 112)
    log Committed(
        task=task, round=round, participant=participant, origin=origin, commitment=commitment
    )
    self._open_reveals(task, round)


@view
@internal
def _get_last_close(task: uint256, round: uint256, extension_seconds: uint256) -> uint256:
    """
    @notice When the round is closed at the latest, if all its closes together are a day late.
    """
    return (
        self.rounds[task][round].reveal_ends
        + seam.CLOSE_TIMEOUT_SECONDS
        + extension_seconds
        * (self.plans[task].max_extensions - self.rounds[task][round].extensions)
    )


@view
@internal
def _check_readable(task: uint256, round: uint256, origin: uint256):
    """
    @notice Refuse a commitment to a round whose base, velocity or `origin`'s base may expire before
            the last close that extensions can lead to. Whoever is bound can then reveal: a reveal
            is not refused for their sake again.
    """
    readable_until: uint256 = self._get_last_close(
        task, round, self.plans[task].commit_seconds + self.plans[task].reveal_seconds
    )
    for each: uint256 in [origin, round]:
        assert (
            fedavg._get_expiry(self.rounds[task][each].base) >= readable_until
        ), "rounds: model expires too soon"
    velocity: fedavg.Blob = self.rounds[task][round].velocity
    assert (
        velocity.size == 0 or fedavg._get_expiry(velocity) >= readable_until
    ), "rounds: velocity expires soon"


@internal
def _drop(task: uint256, round: uint256, seat: uint256):
    """
    @notice Stop waiting for the commitment of a participant who leaves without one.
    """
    assert not bitmaps._has(
        self.rounds[task][round].committed, seat
    ), "rounds: bound by a commitment"

    self.rounds[task][round].drawn &= ~(1 << seat)
    if block.timestamp < self.rounds[task][round].commit_ends:
        self._open_reveals(task, round)


@internal
def _open_reveals(task: uint256, round: uint256):
    """
    @notice End the commit period now if everybody drawn has committed, and they are enough.
    """
    missing: uint256 = (
        self.rounds[task][round].drawn & ~self.rounds[task][round].committed
    )
    if missing > 0 or self._is_short(task, round):
        return
    reveal_ends: uint256 = block.timestamp + self.plans[task].reveal_seconds
    self.rounds[task][round].commit_ends = block.timestamp
    self.rounds[task][round].reveal_ends = reveal_ends
    log RevealOpened(task=task, round=round, reveal_ends=reveal_ends)


@view
@internal
def _check_reveal(
    task: uint256,
    round: uint256,
    seat: uint256,
    participant: address,
    origin: uint256,
    update: fedavg.Blob,
    samples: uint256,
    salt: bytes32,
):
    commitment: bytes32 = self.packed[task][round][participant].commitment
    assert commitment != empty(bytes32), "rounds: no commitment"
    assert not bitmaps._has(self.rounds[task][round].revealed, seat), "rounds: already revealed"
    assert (
        block.timestamp >= self.rounds[task][round].commit_ends
    ), "rounds: commit period is running"
    assert (
        block.timestamp < self.rounds[task][round].reveal_ends
    ), "rounds: reveal period is over"
    # Otherwise an update could be copied by somebody who commits when the round is extended.
    assert not self._is_short(task, round), "rounds: too few commitments"
    assert (
        self.packed[task][round][participant].facts & (2**16 - 1) == origin
        and commitment
        == self._compute_commitment(task, round, origin, participant, update, samples, salt)
    ), "rounds: differs from the commitment"


@view
@internal
def _verify(
    task: uint256, round: uint256, origin: uint256, participant: address, update: fedavg.Blob
) -> uint256:
    """
    @notice Make sure that `update` cannot make an aggregation fail: neither by its content nor, as
            long as the round may be extended and then closed, by expiring.
    @return Its squared norm.
    """
    norm2: uint256 = staticcall fedavg.Fedavg(fedavg.FEDAVG).verify(
        update,
        task,
        origin,
        self.rounds[task][origin].base,
        participant,
        self.plans[task].admission_norm2,
    )
    assert fedavg._get_expiry(update) >= self._get_last_close(
        task, round, self.plans[task].reveal_seconds
    ), "rounds: update expires too soon"
    return norm2


@internal
def _reveal(
    task: uint256,
    round: uint256,
    seat: uint256,
    participant: address,
    origin: uint256,
    update: fedavg.Blob,
    samples: uint256,
    norm2: uint256,
):
    revealed: uint256 = self.rounds[task][round].revealed | (1 << seat)
    self.rounds[task][round].revealed = revealed
    self.answered[task][origin] |= 1 << seat
    self.packed[task][round][participant].digest = update.digest
    self.packed[task][round][participant].facts |= (update.size << 16) | (samples << 48)
    if revealed == self.rounds[task][round].committed:
        self.rounds[task][round].reveal_ends = block.timestamp
    log Revealed(
        task=task,
        round=round,
        participant=participant,
        origin=origin,
        update=update,
        samples=samples,
        norm2=norm2,
    )


@internal
def _extend(task: uint256, round: uint256):
    """
    @notice Give a failed quorum more time: to commit if there are too few commitments, else to
            reveal.
    """
    commit_ends: uint256 = self.rounds[task][round].commit_ends
    if self._is_short(task, round):
        commit_ends = block.timestamp + self.plans[task].commit_seconds
        self.rounds[task][round].commit_ends = commit_ends
    reveal_ends: uint256 = max(commit_ends, block.timestamp) + self.plans[task].reveal_seconds
    extensions: uint256 = self.rounds[task][round].extensions + 1
    self.rounds[task][round].reveal_ends = reveal_ends
    self.rounds[task][round].extensions = extensions
    log RoundExtended(
        task=task,
        round=round,
        extensions=extensions,
        commit_ends=commit_ends,
        reveal_ends=reveal_ends,
    )


@internal
def _skip(task: uint256, round: uint256):
    self.rounds[task][round].state = SKIPPED
    log RoundSkipped(
        task=task,
        round=round,
        committed=bitmaps._count(self.rounds[task][round].committed),
        revealed=bitmaps._count(self.rounds[task][round].revealed),
    )


@view
@internal
def _is_short(task: uint256, round: uint256) -> bool:
    """
    @notice Whether there are too few commitments for an aggregation.
    """
    return bitmaps._count(self.rounds[task][round].committed) < self.plans[task].min_clients


@view
@internal
def _get_silent(task: uint256, round: uint256) -> uint256:
    """
    @notice Seats that committed and did not reveal, although they could.
    """
    if self._is_short(task, round):
        return 0
    return self.rounds[task][round].committed & ~self.rounds[task][round].revealed


@view
@internal
def _is_open(task: uint256, round: uint256) -> bool:
    state: uint8 = self.rounds[task][round].state
    return state == OPEN or state == CLOSING


@view
@internal
def _get_due(task: uint256, round: uint256) -> uint256:
    """
    @notice When the round may be closed, as things stand: with too few commitments nothing can be
            revealed.
    """
    if self._is_short(task, round):
        return self.rounds[task][round].commit_ends
    return self.rounds[task][round].reveal_ends


@view
@internal
def _get_submission(task: uint256, round: uint256, participant: address) -> Submission:
    found: Packed = self.packed[task][round][participant]
    return Submission(
        commitment=found.commitment,
        origin=found.facts & (2**16 - 1),
        update=fedavg.Blob(digest=found.digest, size=(found.facts >> 16) & (2**32 - 1)),
        samples=(found.facts >> 48) & (2**64 - 1),
        stake=found.facts >> 112,
    )


@view
@internal
def _compute_commitment(
    task: uint256,
    round: uint256,
    origin: uint256,
    participant: address,
    update: fedavg.Blob,
    samples: uint256,
    salt: bytes32,
) -> bytes32:
    return keccak256(
        abi_encode(
            chain.id,
            self,
            task,
            round,
            origin,
            participant,
            update.digest,
            update.size,
            samples,
            salt,
        )
    )

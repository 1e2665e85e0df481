# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title Rounds: commitments, then reveals
@license Apache-2.0
@notice A period ends at its `ends` second, exclusive, or earlier when nobody is missing. Who may
        take part is the caller's business; what is said, when and once, is this module's.
"""

import fedavg

# 0 is a round that has not been opened.
OPEN: constant(uint8) = 1
AGGREGATED: constant(uint8) = 2
SKIPPED: constant(uint8) = 3


struct Round:
    state: uint8
    base: fedavg.Blob
    commit_ends: uint256
    reveal_ends: uint256
    # Participants who may commit.
    active: uint256
    committed: uint256
    revealed: uint256
    model: fedavg.Blob
    saturated: uint256


struct Submission:
    commitment: bytes32
    update: fedavg.Blob
    samples: uint256


event RoundOpened:
    task: indexed(uint256)
    round: indexed(uint256)
    base: fedavg.Blob
    commit_ends: uint256
    reveal_ends: uint256


event Committed:
    task: indexed(uint256)
    round: indexed(uint256)
    participant: indexed(address)
    commitment: bytes32


event RevealOpened:
    task: indexed(uint256)
    round: indexed(uint256)
    reveal_ends: uint256


event Revealed:
    task: indexed(uint256)
    round: indexed(uint256)
    participant: indexed(address)
    update: fedavg.Blob
    samples: uint256
    norm2: uint256


event RoundSkipped:
    task: indexed(uint256)
    round: indexed(uint256)
    committed: uint256
    revealed: uint256


rounds: HashMap[uint256, HashMap[uint256, Round]]
submissions: HashMap[uint256, HashMap[uint256, HashMap[address, Submission]]]
revealers: HashMap[uint256, HashMap[uint256, HashMap[uint256, address]]]


@internal
def _open(
    task: uint256,
    round: uint256,
    base: fedavg.Blob,
    active: uint256,
    commit_seconds: uint256,
    reveal_seconds: uint256,
):
    commit_ends: uint256 = block.timestamp + commit_seconds
    reveal_ends: uint256 = commit_ends + reveal_seconds
    self.rounds[task][round].state = OPEN
    self.rounds[task][round].base = base
    self.rounds[task][round].commit_ends = commit_ends
    self.rounds[task][round].reveal_ends = reveal_ends
    self.rounds[task][round].active = active
    log RoundOpened(
        task=task, round=round, base=base, commit_ends=commit_ends, reveal_ends=reveal_ends
    )


@internal
def _commit(
    task: uint256,
    round: uint256,
    participant: address,
    commitment: bytes32,
    reveal_seconds: uint256,
):
    assert not self._has_committed(task, round, participant), "tasks: already committed"
    assert (
        block.timestamp < self.rounds[task][round].commit_ends
    ), "tasks: commit period is over"
    assert commitment != empty(bytes32), "tasks: empty commitment"

    committed: uint256 = self.rounds[task][round].committed + 1
    self.submissions[task][round][participant].commitment = commitment
    self.rounds[task][round].committed = committed
    log Committed(task=task, round=round, participant=participant, commitment=commitment)
    if committed == self.rounds[task][round].active:
        self._open_reveals(task, round, reveal_seconds)


@internal
def _drop_active(task: uint256, round: uint256, reveal_seconds: uint256):
    """
    @notice Stop waiting for the commitment of a participant who left without one.
    """
    current: Round = self.rounds[task][round]
    self.rounds[task][round].active = current.active - 1
    if (
        block.timestamp < current.commit_ends
        and current.committed > 0
        and current.committed == current.active - 1
    ):
        self._open_reveals(task, round, reveal_seconds)


@internal
def _open_reveals(task: uint256, round: uint256, reveal_seconds: uint256):
    """
    @notice End the commit period now: everybody who could commit has.
    """
    reveal_ends: uint256 = block.timestamp + reveal_seconds
    self.rounds[task][round].commit_ends = block.timestamp
    self.rounds[task][round].reveal_ends = reveal_ends
    log RevealOpened(task=task, round=round, reveal_ends=reveal_ends)


@view
@internal
def _check_reveal(
    task: uint256,
    round: uint256,
    participant: address,
    update: fedavg.Blob,
    samples: uint256,
    salt: bytes32,
):
    submission: Submission = self.submissions[task][round][participant]
    assert submission.commitment != empty(bytes32), "tasks: no commitment"
    assert submission.update.size == 0, "tasks: already revealed"
    assert (
        block.timestamp >= self.rounds[task][round].commit_ends
    ), "tasks: commit period is running"
    assert (
        block.timestamp < self.rounds[task][round].reveal_ends
    ), "tasks: reveal period is over"
    assert submission.commitment == self._compute_commitment(
        task, round, participant, update, samples, salt
    ), "tasks: differs from the commitment"


@view
@internal
def _verify(
    task: uint256,
    round: uint256,
    participant: address,
    update: fedavg.Blob,
    admission_norm2: uint256,
    close_seconds: uint256,
) -> uint256:
    """
    @notice Make sure that `update` cannot make an aggregation fail: neither by its content nor, as
            long as the round may be closed, by expiring.
    @return Its squared norm.
    """
    base: fedavg.Blob = self.rounds[task][round].base
    readable_until: uint256 = self.rounds[task][round].reveal_ends + close_seconds
    norm2: uint256 = staticcall fedavg.Fedavg(fedavg.FEDAVG).verify(
        update, task, round, base, participant, admission_norm2
    )
    assert fedavg._get_expiry(update) >= readable_until, "tasks: update expires too soon"
    assert fedavg._get_expiry(base) >= readable_until, "tasks: model expires too soon"
    return norm2


@internal
def _reveal(
    task: uint256,
    round: uint256,
    participant: address,
    update: fedavg.Blob,
    samples: uint256,
    norm2: uint256,
):
    revealed: uint256 = self.rounds[task][round].revealed
    self.submissions[task][round][participant].update = update
    self.submissions[task][round][participant].samples = samples
    self.revealers[task][round][revealed] = participant
    self.rounds[task][round].revealed = revealed + 1
    if revealed + 1 == self.rounds[task][round].committed:
        self.rounds[task][round].reveal_ends = block.timestamp
    log Revealed(
        task=task,
        round=round,
        participant=participant,
        update=update,
        samples=samples,
        norm2=norm2,
    )


@internal
def _set_aggregated(task: uint256, round: uint256, model: fedavg.Blob, saturated: uint256):
    self.rounds[task][round].state = AGGREGATED
    self.rounds[task][round].model = model
    self.rounds[task][round].saturated = saturated


@internal
def _skip(task: uint256, round: uint256):
    self.rounds[task][round].state = SKIPPED
    log RoundSkipped(
        task=task,
        round=round,
        committed=self.rounds[task][round].committed,
        revealed=self.rounds[task][round].revealed,
    )


@view
@internal
def _has_committed(task: uint256, round: uint256, participant: address) -> bool:
    return self.submissions[task][round][participant].commitment != empty(bytes32)


@view
@internal
def _get_due(task: uint256, round: uint256, min_clients: uint256) -> uint256:
    """
    @notice When the round may be closed, as things stand: with too few commitments nothing that is
            revealed can change the outcome.
    """
    if self.rounds[task][round].committed < min_clients:
        return self.rounds[task][round].commit_ends
    return self.rounds[task][round].reveal_ends


@view
@internal
def _compute_commitment(
    task: uint256,
    round: uint256,
    participant: address,
    update: fedavg.Blob,
    samples: uint256,
    salt: bytes32,
) -> bytes32:
    return keccak256(
        abi_encode(
            chain.id, self, task, round, participant, update.digest, update.size, samples, salt
        )
    )

# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title Who takes part in each task, and with what stake
@license Apache-2.0
@notice The list has no holes: whoever leaves is replaced by the last one.
"""

import fedavg


struct Participant:
    stake: uint256
    samples: uint256
    active_from: uint256
    # One more than the place in the list; 0 for a stranger.
    position: uint256


event Joined:
    task: indexed(uint256)
    participant: indexed(address)
    samples: uint256
    stake: uint256
    active_from: uint256


event Left:
    task: indexed(uint256)
    participant: indexed(address)
    stake: uint256


participants: HashMap[uint256, HashMap[address, Participant]]
members: HashMap[uint256, DynArray[address, fedavg.MAX_CLIENTS]]
invited: HashMap[uint256, HashMap[address, bool]]


@view
@internal
def _count(task: uint256) -> uint256:
    return len(self.members[task])


@view
@internal
def _is_member(task: uint256, participant: address) -> bool:
    return self.participants[task][participant].position > 0


@internal
def _add(
    task: uint256, participant: address, samples: uint256, stake: uint256, active_from: uint256
):
    assert not self._is_member(task, participant), "tasks: already joined"

    self.members[task].append(participant)
    self.participants[task][participant] = Participant(
        stake=stake, samples=samples, active_from=active_from, position=len(self.members[task])
    )
    log Joined(
        task=task, participant=participant, samples=samples, stake=stake, active_from=active_from
    )


@internal
def _remove(task: uint256, participant: address) -> uint256:
    """
    @notice Take `participant` off the list.
    @return The stake that the caller must give back, in wei.
    """
    gone: Participant = self.participants[task][participant]
    assert gone.position > 0, "tasks: not a participant"

    last: address = self.members[task].pop()
    if last != participant:
        self.members[task][gone.position - 1] = last
        self.participants[task][last].position = gone.position
    self.participants[task][participant] = empty(Participant)
    log Left(task=task, participant=participant, stake=gone.stake)
    return gone.stake

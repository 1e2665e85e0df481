# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title Who takes part in each task, on which seat, and with what stake
@license Apache-2.0
@notice A joiner takes the lowest free seat and keeps it until it leaves: nobody is ever moved, so
        that a bitmap of seats means the same accounts for as long as a round lasts.
"""

import bitmaps
import fedavg


struct Participant:
    # Own and sponsored together, in wei.
    stake: uint256
    # The sponsor's part of it.
    sponsored: uint256
    samples: uint256
    active_from: uint256
    # One more than the seat; 0 for a stranger.
    position: uint256


event Joined:
    task: indexed(uint256)
    participant: indexed(address)
    samples: uint256
    stake: uint256
    sponsored: uint256
    active_from: uint256
    seat: uint256


event StakeAdded:
    task: indexed(uint256)
    participant: indexed(address)
    amount: uint256


event Slashed:
    task: indexed(uint256)
    round: indexed(uint256)
    participant: indexed(address)
    amount: uint256
    sponsored: uint256


event Left:
    task: indexed(uint256)
    participant: indexed(address)
    stake: uint256
    sponsored: uint256


participants: HashMap[uint256, HashMap[address, Participant]]
seats: HashMap[uint256, address[fedavg.MAX_CLIENTS]]
occupied: HashMap[uint256, uint256]
# Seats whose stake covers the base stake: they can be drawn.
ready: HashMap[uint256, uint256]


@view
@internal
def _count(task: uint256) -> uint256:
    return bitmaps._count(self.occupied[task])


@view
@internal
def _is_member(task: uint256, participant: address) -> bool:
    return self.participants[task][participant].position > 0


@view
@internal
def _list(task: uint256, seats: uint256) -> DynArray[address, fedavg.MAX_CLIENTS]:
    """
    @notice Who sits on `seats`, in their order.
    """
    found: DynArray[address, fedavg.MAX_CLIENTS] = []
    for seat: uint256 in range(fedavg.MAX_CLIENTS):
        if bitmaps._has(seats, seat):
            found.append(self.seats[task][seat])
    return found


@internal
def _add(
    task: uint256,
    participant: address,
    samples: uint256,
    stake: uint256,
    sponsored: uint256,
    active_from: uint256,
):
    """
    @notice Seat `participant`. The caller has checked that there is a place, and the stake.
    """
    seat: uint256 = bitmaps._find_gap(self.occupied[task])
    self.seats[task][seat] = participant
    self.occupied[task] |= 1 << seat
    self.ready[task] |= 1 << seat
    self.participants[task][participant] = Participant(
        stake=stake,
        sponsored=sponsored,
        samples=samples,
        active_from=active_from,
        position=seat + 1,
    )
    log Joined(
        task=task,
        participant=participant,
        samples=samples,
        stake=stake,
        sponsored=sponsored,
        active_from=active_from,
        seat=seat,
    )


@internal
def _add_stake(
    task: uint256, participant: address, amount: uint256, base_stake: uint256, max_stake: uint256
):
    position: uint256 = self.participants[task][participant].position
    stake: uint256 = self.participants[task][participant].stake + amount
    assert position > 0, "tasks: not a participant"
    assert stake <= max_stake, "tasks: stake out of range"

    self.participants[task][participant].stake = stake
    if stake >= base_stake:
        self.ready[task] |= 1 << (position - 1)
    log StakeAdded(task=task, participant=participant, amount=amount)


@internal
def _slash(
    task: uint256, round: uint256, participant: address, bond: uint256, base_stake: uint256
) -> uint256:
    """
    @notice Take the bond of who kept its commitment shut, its own part of the stake first.
    @return What was taken, in wei.
    """
    silent: Participant = self.participants[task][participant]
    lost: uint256 = min(bond, silent.stake)
    own: uint256 = silent.stake - silent.sponsored
    sponsored: uint256 = lost - min(lost, own)
    self.participants[task][participant].stake = silent.stake - lost
    if sponsored > 0:
        self.participants[task][participant].sponsored = silent.sponsored - sponsored
    if silent.stake - lost < base_stake:
        self.ready[task] &= ~(1 << (silent.position - 1))
    log Slashed(
        task=task, round=round, participant=participant, amount=lost, sponsored=sponsored
    )
    return lost


@internal
def _remove(task: uint256, participant: address) -> Participant:
    """
    @notice Free the seat of `participant`.
    @return What it was; the caller must give back its stake.
    """
    gone: Participant = self.participants[task][participant]
    assert gone.position > 0, "tasks: not a participant"

    seat: uint256 = gone.position - 1
    self.seats[task][seat] = empty(address)
    self.occupied[task] &= ~(1 << seat)
    self.ready[task] &= ~(1 << seat)
    self.participants[task][participant] = empty(Participant)
    log Left(
        task=task,
        participant=participant,
        stake=gone.stake - gone.sponsored,
        sponsored=gone.sponsored,
    )
    return gone

# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title Who is drawn for a round
@license Apache-2.0
@notice The seed is made from the hash of the block before the one that opens the round, so nobody
        who commits can choose it afterwards. It spreads the work; it does not keep out somebody who
        proposes blocks: the proposer of the block before can try many hashes. docs/economics.md
        says what follows from that.
"""

import bitmaps
import fedavg
import seam


@view
@internal
def _make_seed(task: uint256, round: uint256) -> bytes32:
    return keccak256(abi_encode(blockhash(block.number - 1), task, round))


@pure
@internal
def _compute_target(
    active: uint256, min_clients: uint256, fraction_fit: uint256, spare_clients: uint256
) -> uint256:
    """
    @notice How many of `active` participants are drawn: the fraction, rounded up, but at least
            `min_clients`; and the spare ones.
    """
    wanted: uint256 = (active * fraction_fit + seam.ONE - 1) // seam.ONE
    return min(active, max(min_clients, wanted) + spare_clients)


@pure
@internal
def _draw(seed: bytes32, seats: uint256, target: uint256) -> uint256:
    """
    @notice The first `target` seats of a Fisher-Yates shuffle of `seats`, which begins in ascending
            order. The remainder favours small numbers by less than 2**-248.
    """
    order: uint256[fedavg.MAX_CLIENTS] = empty(uint256[fedavg.MAX_CLIENTS])
    active: uint256 = 0
    for seat: uint256 in range(fedavg.MAX_CLIENTS):
        if bitmaps._has(seats, seat):
            order[active] = seat
            active += 1
    if target == active:
        return seats
    drawn: uint256 = 0
    for index: uint256 in range(target, bound=fedavg.MAX_CLIENTS):
        number: uint256 = convert(keccak256(abi_encode(seed, index)), uint256)
        other: uint256 = index + number % (active - index)
        drawn |= 1 << order[other]
        order[other] = order[index]
    return drawn

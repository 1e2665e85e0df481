# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
# pragma nonreentrancy on
"""
@title Who is among the active validators
@license Apache-2.0
@notice At most MAX_VALIDATORS have a place, by stake: whoever has more than the lowest takes its
        place. What an epoch's set had at stake is noted before anything changes it.
"""

MAX_VALIDATORS: constant(uint256) = 64

# An active validator that checked in for the last time in epoch e may be jailed from e + 9 on.
JAIL_EPOCHS: constant(uint256) = 8

# States. WAITING has a stake and no place among the active.
NOBODY: constant(uint8) = 0
ACTIVE: constant(uint8) = 1
WAITING: constant(uint8) = 2
JAILED: constant(uint8) = 3
LEAVING: constant(uint8) = 4


struct Standing:
    state: uint8
    # Epoch of the last check-in; whoever becomes active counts as checked in for the epoch after.
    checked_in: uint256
    # Epoch in which it was jailed or left.
    since: uint256
    # Second from which a leaving stake may be withdrawn.
    unlocks_at: uint256


event Entered:
    account: indexed(address)


event Displaced:
    account: indexed(address)


EPOCH_BLOCKS: public(immutable(uint256))

# Of the active, in wei.
active_stake: public(uint256)
# Of the set of an epoch, by epoch: noted by whatever first happens after that set was read.
powers: HashMap[uint256, uint256]
active: DynArray[address, MAX_VALIDATORS]
standings: HashMap[address, Standing]
stakes: HashMap[address, uint256]


@deploy
def __init__(epoch_blocks: uint256):
    EPOCH_BLOCKS = epoch_blocks


@internal
def _enter(account: address, checked_in: uint256):
    """
    @notice Give the account a place, if need be that of the first with the lowest stake.
    """
    self._note_power()
    stake: uint256 = self.stakes[account]
    if len(self.active) == MAX_VALIDATORS:
        lowest: address = self.active[0]
        for other: address in self.active:
            if self.stakes[other] < self.stakes[lowest]:
                lowest = other
        assert stake > self.stakes[lowest], "staking: the set is full"
        self._remove(lowest, WAITING)
        log Displaced(account=lowest)

    self.active.append(account)
    self.active_stake += stake
    self.standings[account] = Standing(state=ACTIVE, checked_in=checked_in, since=0, unlocks_at=0)
    log Entered(account=account)


@internal
def _remove(account: address, state: uint8):
    """
    @notice Take an active account's place away; the last one moves there.
    """
    self._note_power()
    last: address = self.active.pop()
    if last != account:
        for place: uint256 in range(MAX_VALIDATORS):
            if self.active[place] == account:
                self.active[place] = last
                break
    self.active_stake -= self.stakes[account]
    self.standings[account].state = state


@view
@internal
def _get_power(epoch: uint256) -> uint256:
    """
    @notice What the set of an epoch had at stake; now, if nothing happened in it or it is to come.
    """
    power: uint256 = self.powers[epoch]
    return power if power != 0 else self.active_stake


@internal
def _note_power():
    """
    @notice Remember the active stake before it changes. The set of an epoch was read before the
            last block of the one before, which already counts to it here.
    """
    epoch: uint256 = block.number // EPOCH_BLOCKS
    if self.powers[epoch] == 0:
        self.powers[epoch] = self.active_stake


@view
@internal
def _get_staying(account: address) -> uint8:
    """
    @notice The state of an account that is a validator and is not leaving.
    """
    state: uint8 = self.standings[account].state
    assert state != NOBODY, "staking: not a validator"
    assert state != LEAVING, "staking: already leaving"
    return state


@view
@internal
def _get_epoch() -> uint256:
    """
    @notice Epochs go by height; block 0 belongs to the first.
    """
    return (max(block.number, 1) - 1) // EPOCH_BLOCKS


@view
@internal
def _is_absent(account: address) -> bool:
    return self._get_epoch() > self.standings[account].checked_in + JAIL_EPOCHS


@view
@internal
def _has_witnesses() -> bool:
    """
    @notice Did more than two thirds of the active stake check in in this epoch or the last one?
    """
    present: uint256 = 0
    epoch: uint256 = self._get_epoch()
    for account: address in self.active:
        if self.standings[account].checked_in + 1 >= epoch:
            present += self.stakes[account]
    return present * 3 > self.active_stake * 2

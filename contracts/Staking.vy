# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
# pragma nonreentrancy on
"""
@title The validators of the chain
@license Apache-2.0
@notice Genesis registers the first validators and endows this contract with their stakes; others
        deposit. Consensus reads `get_validators` before the last block of each epoch: that is the
        set of the next one. Whoever leaves stays slashable until its stake is paid out. The balance
        is the sum of all stakes, and what others sent by force: nobody takes that out. Issuance is
        consensus' affair. docs/staking.md
"""

import evidence
import places
import records

initializes: places
initializes: records

exports: (places.EPOCH_BLOCKS, places.active_stake)

# Of the stake: what two conflicting votes cost, and what conflicting certificates cost.
VOTE_PERCENT: constant(uint256) = 10
CERTIFICATE_PERCENT: constant(uint256) = 100
# The reporter's part of what is slashed is one in this many.
REWARD_DIVISOR: constant(uint256) = 10

# What `next_duty` answers.
NOTHING: constant(uint8) = 0
CHECK_IN: constant(uint8) = 1
UNJAIL: constant(uint8) = 2


struct Validator:
    account: address
    # BLS12-381 public key in G1, compressed: verifies this validator's votes.
    bls_key: Bytes[48]
    # Curve25519 public key of its network endpoint.
    network_key: bytes32
    # host:port
    endpoint: String[64]
    fee_recipient: address
    stake: uint256


event Registered:
    account: indexed(address)
    bls_key: Bytes[48]
    network_key: bytes32
    endpoint: String[64]
    fee_recipient: address
    stake: uint256


event StakeAdded:
    account: indexed(address)
    amount: uint256


event CheckedIn:
    account: indexed(address)
    epoch: uint256


event Jailed:
    account: indexed(address)
    epoch: uint256


event Left:
    account: indexed(address)
    stake: uint256
    unlocks_at: uint256


event Withdrawn:
    account: indexed(address)
    amount: uint256


event Slashed:
    account: indexed(address)
    epoch: uint256
    view: uint256
    offence: uint256
    amount: uint256


event Reported:
    reporter: indexed(address)
    epoch: uint256
    view: uint256
    offence: uint256
    slashed: uint256
    reward: uint256


event EndpointSet:
    account: indexed(address)
    endpoint: String[64]


event NetworkKeySet:
    account: indexed(address)
    network_key: bytes32


event FeeRecipientSet:
    account: indexed(address)
    fee_recipient: address


MIN_STAKE: public(immutable(uint256))
UNBONDING_SECONDS: public(immutable(uint256))

# Of everybody, in wei.
total_stake: public(uint256)
# What was slashed. As nobody returns from that, this and the stake are what an account voted with.
losses: HashMap[address, uint256]
banned: public(HashMap[address, bool])
# Percent taken so far, by account, epoch and view.
penalties: HashMap[address, HashMap[uint256, HashMap[uint256, uint256]]]


@deploy
@payable
def __init__(
    validators: DynArray[Validator, places.MAX_VALIDATORS],
    min_stake: uint256,
    unbonding_seconds: uint256,
    epoch_blocks: uint256,
):
    """
    @notice Register the first validators, in the order of the validator set. The value sent must be
            the sum of their stakes, in wei. Genesis checks their keys' proofs of possession.
    """
    assert min_stake > 0, "staking: no minimum stake"
    assert epoch_blocks > 0, "staking: no epoch length"
    MIN_STAKE = min_stake
    UNBONDING_SECONDS = unbonding_seconds
    places.__init__(epoch_blocks)

    assert len(validators) > 0, "staking: no validators"
    for validator: Validator in validators:
        self._register(validator, (max(block.number, 1) - 1) // epoch_blocks)
    assert self.total_stake == msg.value, "staking: value differs from the stakes"
    places.powers[block.number // epoch_blocks] = places.active_stake


# -- reading ---------------------------------------------------------------------------------------
@view
@external
def get_validators() -> DynArray[Validator, places.MAX_VALIDATORS]:
    """
    @notice The active validators: the set of the next epoch, in its order.
    """
    validators: DynArray[Validator, places.MAX_VALIDATORS] = []
    for account: address in places.active:
        validators.append(self._get_validator(account))
    return validators


@view
@external
def get_validator(account: address) -> Validator:
    """
    @notice What an account registered, whatever its state.
    """
    assert places.standings[account].state != places.NOBODY, "staking: not a validator"
    return self._get_validator(account)


@view
@external
def is_validator(account: address) -> bool:
    """
    @notice Is it active?
    """
    return places.standings[account].state == places.ACTIVE


@view
@external
def get_standing(account: address) -> places.Standing:
    return places.standings[account]


@view
@external
def get_penalty(account: address, epoch: uint256, view: uint256) -> uint256:
    """
    @notice Percent of its stake that an account lost for what it signed in a view.
    """
    return self.penalties[account][epoch][view]


@view
@external
def epoch() -> uint256:
    return places._get_epoch()


@view
@external
def next_duty(account: address) -> uint8:
    """
    @notice What the account may do now: 0 nothing, 1 `check_in`, 2 `unjail`.
    """
    standing: places.Standing = places.standings[account]
    epoch: uint256 = places._get_epoch()
    if standing.state == places.ACTIVE and standing.checked_in < epoch:
        return CHECK_IN
    if standing.state == places.JAILED and standing.since < epoch:
        return UNJAIL
    return NOTHING


@view
@external
def list_absent() -> DynArray[address, places.MAX_VALIDATORS]:
    """
    @notice Whom `jail` takes now.
    """
    absent: DynArray[address, places.MAX_VALIDATORS] = []
    if places._has_witnesses():
        for account: address in places.active:
            if places._is_absent(account):
                absent.append(account)
    return absent


# -- joining ---------------------------------------------------------------------------------------
@external
@payable
def deposit(
    bls_key: Bytes[48],
    proof: Bytes[96],
    network_key: bytes32,
    endpoint: String[64],
    fee_recipient: address,
):
    """
    @notice Become a validator from the next epoch on, with the value sent as stake. If all places
            are taken, the lowest stake gives way to a higher one.
    @param proof The proof of possession: a signature of the BLS key over itself.
    """
    assert not self.banned[msg.sender], "staking: banned"
    assert msg.value >= MIN_STAKE, "staking: stake below the minimum"
    evidence._check_possession(bls_key, proof)

    self._register(
        Validator(
            account=msg.sender,
            bls_key=bls_key,
            network_key=network_key,
            endpoint=endpoint,
            fee_recipient=fee_recipient,
            stake=msg.value,
        ),
        places._get_epoch() + 1,
    )


@external
@payable
def add_stake():
    """
    @notice Add the value sent to the caller's stake.
    """
    state: uint8 = places._get_staying(msg.sender)
    assert msg.value > 0, "staking: no stake"

    places._note_power()
    places.stakes[msg.sender] += msg.value
    self.total_stake += msg.value
    if state == places.ACTIVE:
        places.active_stake += msg.value
    log StakeAdded(account=msg.sender, amount=msg.value)


@external
def enter():
    """
    @notice Take a place again, after a higher stake took it.
    """
    assert places.standings[msg.sender].state == places.WAITING, "staking: not waiting"
    places._enter(msg.sender, places._get_epoch() + 1)


@external
def set_endpoint(endpoint: String[64]):
    """
    @notice Be found elsewhere from the next epoch on.
    """
    places._get_staying(msg.sender)
    records._set_endpoint(msg.sender, endpoint)
    log EndpointSet(account=msg.sender, endpoint=endpoint)


@external
def set_network_key(network_key: bytes32):
    """
    @notice Use another network key from the next epoch on. Once an epoch: as a key stays with its
            first account, one validator could else take the keys of all who are about to join.
    """
    places._get_staying(msg.sender)
    epoch: uint256 = places._get_epoch()
    assert records.network_key_epochs[msg.sender] <= epoch, "staking: network key already changed"
    records.network_key_epochs[msg.sender] = epoch + 1
    records._set_network_key(msg.sender, network_key)
    log NetworkKeySet(account=msg.sender, network_key=network_key)


@external
def set_fee_recipient(fee_recipient: address):
    """
    @notice Have fees and issuance paid elsewhere from the next epoch on.
    """
    places._get_staying(msg.sender)
    records._set_fee_recipient(msg.sender, fee_recipient)
    log FeeRecipientSet(account=msg.sender, fee_recipient=fee_recipient)


# -- liveness --------------------------------------------------------------------------------------
@external
def check_in():
    """
    @notice Show that the caller's node works. Once an epoch.
    """
    epoch: uint256 = places._get_epoch()
    assert places.standings[msg.sender].state == places.ACTIVE, "staking: not active"
    assert places.standings[msg.sender].checked_in < epoch, "staking: already checked in"

    places._note_power()
    places.standings[msg.sender].checked_in = epoch
    log CheckedIn(account=msg.sender, epoch=epoch)


@external
def jail(account: address):
    """
    @notice Take a validator that stopped checking in out of the next set. It costs no stake. Not
            while a third of the active stake is missing: then the chain is ill, not the validator.
    """
    assert places.standings[account].state == places.ACTIVE, "staking: not active"
    assert places._is_absent(account), "staking: not absent"
    assert places._has_witnesses(), "staking: too few checked in"

    places._remove(account, places.JAILED)
    places.standings[account].since = places._get_epoch()
    log Jailed(account=account, epoch=places._get_epoch())


@external
def unjail():
    """
    @notice Take a place again, from the epoch after the one in which the caller was jailed.
    """
    assert places.standings[msg.sender].state == places.JAILED, "staking: not jailed"
    assert places.standings[msg.sender].since < places._get_epoch(), "staking: still jailed"
    places._enter(msg.sender, places._get_epoch() + 1)


# -- leaving ---------------------------------------------------------------------------------------
@external
def request_exit():
    """
    @notice Leave from the next epoch on. The stake stays here, and slashable, for the unbonding
            time, and at least for as long as the caller may still be voting.
    """
    state: uint8 = places._get_staying(msg.sender)
    if state == places.ACTIVE:
        assert len(places.active) > 1, "staking: the last validator"
        places._remove(msg.sender, places.WAITING)
    self._leave(msg.sender)


@external
def withdraw():
    """
    @notice Pay the caller's stake out once it has waited.
    """
    standing: places.Standing = places.standings[msg.sender]
    assert standing.state == places.LEAVING, "staking: not leaving"
    assert block.timestamp >= standing.unlocks_at, "staking: still unbonding"
    # The next set is read before the last block of an epoch, which therefore comes too late for it.
    assert places._get_epoch() > standing.since + 1, "staking: still in the set"

    amount: uint256 = places.stakes[msg.sender]
    self.total_stake -= amount
    self._forget(msg.sender)
    log Withdrawn(account=msg.sender, amount=amount)
    self._send(msg.sender, amount)


# -- slashing --------------------------------------------------------------------------------------
@external
def report(
    first_statement: Bytes[evidence.MAX_STATEMENT_BYTES],
    first_signers: DynArray[address, places.MAX_VALIDATORS],
    first_signature: Bytes[96],
    second_statement: Bytes[evidence.MAX_STATEMENT_BYTES],
    second_signers: DynArray[address, places.MAX_VALIDATORS],
    second_signature: Bytes[96],
):
    """
    @notice Slash and ban all who signed both of two statements that nobody may sign both, each
            once per epoch and view. A pair of votes costs a tenth of the stake. If both statements
            are certificates, of several signers with two thirds of the epoch's stake, it is an
            attack on finality and costs all of it, less what the same view cost before. A tenth of
            what is slashed goes to the caller, the rest to the zero address.
    @param first_statement rlp([epoch, view, kind, hash]).
    @param first_signature The sum of the signatures of all its signers.
    """
    offence: uint256 = 0
    epoch: uint256 = 0
    view: uint256 = 0
    offence, epoch, view = evidence._check_conflict(
        first_statement,
        records._list_keys(first_signers),
        first_signature,
        second_statement,
        records._list_keys(second_signers),
        second_signature,
    )

    guilty: DynArray[address, places.MAX_VALIDATORS] = []
    for account: address in second_signers:
        if account in first_signers:
            guilty.append(account)
    percent: uint256 = VOTE_PERCENT
    if self._are_certificates(first_signers, second_signers, guilty, epoch):
        percent = CERTIFICATE_PERCENT

    slashed: uint256 = 0
    for account: address in guilty:
        slashed += self._slash(account, epoch, view, offence, percent)
    assert slashed > 0, "staking: nothing to slash"

    reward: uint256 = slashed // REWARD_DIVISOR
    log Reported(
        reporter=msg.sender,
        epoch=epoch,
        view=view,
        offence=offence,
        slashed=slashed,
        reward=reward,
    )
    self._send(empty(address), slashed - reward)
    self._send(msg.sender, reward)


@internal
def _slash(
    account: address, epoch: uint256, view: uint256, offence: uint256, percent: uint256
) -> uint256:
    """
    @notice Take `percent` of the stake, rounded up, unless the view cost as much already.
    @return The wei taken, which the caller must send away.
    """
    stake: uint256 = places.stakes[account]
    if stake == 0 or self.penalties[account][epoch][view] >= percent:
        return 0

    self.penalties[account][epoch][view] = percent
    self.banned[account] = True
    state: uint8 = places.standings[account].state
    if state == places.ACTIVE:
        places._remove(account, places.WAITING)
    amount: uint256 = (stake * percent + 99) // 100
    places.stakes[account] = stake - amount
    self.losses[account] += amount
    self.total_stake -= amount
    log Slashed(account=account, epoch=epoch, view=view, offence=offence, amount=amount)
    if amount == stake:
        self._forget(account)
    elif state != places.LEAVING:
        self._leave(account)
    return amount


@view
@internal
def _are_certificates(
    first_signers: DynArray[address, places.MAX_VALIDATORS],
    second_signers: DynArray[address, places.MAX_VALIDATORS],
    guilty: DynArray[address, places.MAX_VALIDATORS],
    epoch: uint256,
) -> bool:
    """
    @notice Had several signers of each more than two thirds of the epoch's stake? Then those who
            signed both had a third, unless a stranger to that set is among the signers. Stake that
            came in after an attack does not count to the epoch's.
    """
    power: uint256 = places._get_power(epoch)
    return (
        min(len(first_signers), len(second_signers)) > 1
        and self._sum_stakes(first_signers) * 3 > power * 2
        and self._sum_stakes(second_signers) * 3 > power * 2
        and self._sum_stakes(guilty) * 3 >= power
    )


@view
@internal
def _sum_stakes(accounts: DynArray[address, places.MAX_VALIDATORS]) -> uint256:
    """
    @notice What these accounts had at stake before they were slashed.
    """
    total: uint256 = 0
    for account: address in accounts:
        total += places.stakes[account] + self.losses[account]
    return total


# -- records ---------------------------------------------------------------------------------------
@internal
def _register(validator: Validator, checked_in: uint256):
    account: address = validator.account
    assert account != empty(address), "staking: no account"
    assert validator.stake > 0, "staking: no stake"
    assert places.standings[account].state == places.NOBODY, "staking: already a validator"

    records._set_bls_key(account, validator.bls_key)
    records._set_network_key(account, validator.network_key)
    records._set_endpoint(account, validator.endpoint)
    records._set_fee_recipient(account, validator.fee_recipient)
    places.stakes[account] = validator.stake
    self.total_stake += validator.stake
    log Registered(
        account=account,
        bls_key=validator.bls_key,
        network_key=validator.network_key,
        endpoint=validator.endpoint,
        fee_recipient=validator.fee_recipient,
        stake=validator.stake,
    )
    places._enter(account, checked_in)


@internal
def _leave(account: address):
    """
    @notice Begin the unbonding of an account that has no place.
    """
    unlocks_at: uint256 = block.timestamp + UNBONDING_SECONDS
    places.standings[account] = places.Standing(
        state=places.LEAVING,
        checked_in=places.standings[account].checked_in,
        since=places._get_epoch(),
        unlocks_at=unlocks_at,
    )
    log Left(account=account, stake=places.stakes[account], unlocks_at=unlocks_at)


@internal
def _forget(account: address):
    """
    @notice Clear everything but the keys' owners, penalties, losses and the ban.
    """
    records.network_keys[account] = empty(bytes32)
    records.endpoints[account] = ""
    records.fee_recipients[account] = empty(address)
    places.stakes[account] = 0
    places.standings[account] = empty(places.Standing)


@view
@internal
def _get_validator(account: address) -> Validator:
    return Validator(
        account=account,
        bls_key=evidence._join(records.keys[account]),
        network_key=records.network_keys[account],
        endpoint=records.endpoints[account],
        fee_recipient=records.fee_recipients[account],
        stake=places.stakes[account],
    )


@internal
def _send(owner: address, amount: uint256):
    # The lock and the order of writes guard this; a fixed stipend would exclude contracts.
    raw_call(owner, b"", value=amount)

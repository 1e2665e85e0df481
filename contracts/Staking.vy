# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
# pragma nonreentrancy on
"""
@title The validators of the chain
@license Apache-2.0
@notice Genesis registers the first validators and endows this contract with their stakes. The keys'
        proofs of possession are checked where genesis is read.
"""

MAX_VALIDATORS: constant(uint256) = 64


struct Validator:
    account: address
    # BLS12-381 public key in G1, compressed: verifies this validator's votes.
    bls_key: Bytes[48]
    # Ed25519 public key of its network endpoint.
    network_key: bytes32
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


total_stake: public(uint256)
validators: DynArray[Validator, MAX_VALIDATORS]
# One more than the place in the list; 0 for a stranger.
positions: HashMap[address, uint256]
key_owners: HashMap[bytes32, address]


@deploy
@payable
def __init__(validators: DynArray[Validator, MAX_VALIDATORS]):
    """
    @notice Register the first validators, in the order of the validator set. The value sent must be
            the sum of their stakes, in wei.
    """
    assert len(validators) > 0, "staking: no validators"
    for validator: Validator in validators:
        self._register(validator)
    assert self.total_stake == msg.value, "staking: value differs from the stakes"


@view
@external
def get_validators() -> DynArray[Validator, MAX_VALIDATORS]:
    """
    @notice The validator set of the epoch, in its order.
    """
    return self.validators


@view
@external
def get_validator(account: address) -> Validator:
    position: uint256 = self.positions[account]
    assert position > 0, "staking: not a validator"
    return self.validators[position - 1]


@view
@external
def is_validator(account: address) -> bool:
    return self.positions[account] > 0


@internal
def _register(validator: Validator):
    key_hash: bytes32 = keccak256(validator.bls_key)
    assert validator.account != empty(address), "staking: no account"
    assert validator.fee_recipient != empty(address), "staking: no fee recipient"
    assert len(validator.bls_key) == 48, "staking: BLS key must have 48 bytes"
    assert validator.stake > 0, "staking: no stake"
    assert self.positions[validator.account] == 0, "staking: already a validator"
    assert self.key_owners[key_hash] == empty(address), "staking: BLS key already registered"

    self.validators.append(validator)
    self.positions[validator.account] = len(self.validators)
    self.key_owners[key_hash] = validator.account
    self.total_stake += validator.stake
    log Registered(
        account=validator.account,
        bls_key=validator.bls_key,
        network_key=validator.network_key,
        endpoint=validator.endpoint,
        fee_recipient=validator.fee_recipient,
        stake=validator.stake,
    )

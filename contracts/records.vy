# pragma version ~=0.4.3
# pragma evm-version cancun
# pragma optimize codesize
"""
@title What each validator registered: its keys, its endpoint, who gets its fees
@license Apache-2.0
@notice A key stays with the first account that had it, for ever.
"""

import evidence

# An account has one BLS key for ever, so that evidence of any age finds it.
keys: HashMap[address, evidence.Key]
key_owners: HashMap[bytes32, address]
network_keys: HashMap[address, bytes32]
network_key_owners: HashMap[bytes32, address]
# Epoch after that in which an account last changed its network key.
network_key_epochs: HashMap[address, uint256]
endpoints: HashMap[address, String[64]]
fee_recipients: HashMap[address, address]


@internal
def _set_bls_key(account: address, bls_key: Bytes[48]):
    key: evidence.Key = evidence._split(bls_key)
    key_hash: bytes32 = keccak256(bls_key)
    owner: address = self.key_owners[key_hash]
    if owner == empty(address):
        assert self.keys[account].head == empty(bytes32), "staking: account has another BLS key"
        self.keys[account] = key
        self.key_owners[key_hash] = account
    else:
        assert owner == account, "staking: BLS key already registered"


@internal
def _set_network_key(account: address, network_key: bytes32):
    """
    @notice Two validators with one network key would be taken for each other, even one after the
            other: a key stays with the first account that had it.
    """
    owner: address = self.network_key_owners[network_key]
    if owner == empty(address):
        self.network_key_owners[network_key] = account
    else:
        assert owner == account, "staking: network key already registered"
    self.network_keys[account] = network_key


@internal
def _set_endpoint(account: address, endpoint: String[64]):
    assert len(endpoint) > 0, "staking: no endpoint"
    self.endpoints[account] = endpoint


@internal
def _set_fee_recipient(account: address, fee_recipient: address):
    assert fee_recipient != empty(address), "staking: no fee recipient"
    self.fee_recipients[account] = fee_recipient


@view
@internal
def _list_keys(
    signers: DynArray[address, evidence.MAX_SIGNERS]
) -> DynArray[evidence.Key, evidence.MAX_SIGNERS]:
    keys: DynArray[evidence.Key, evidence.MAX_SIGNERS] = []
    for account: address in signers:
        key: evidence.Key = self.keys[account]
        assert key.head != empty(bytes32), "staking: unknown signer"
        keys.append(key)
    return keys

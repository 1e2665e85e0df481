"""Block 0: accounts, Ethereum's system contracts, and our contracts at their fixed addresses.

Our contracts are deployed by running their init code, as a transaction would. The engine is
imported only for that, so that a thin client can read a document (`genesis_document.py`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .artifacts import get_artifact
from .block import (
    BLOOM_BYTES,
    ZERO_HASH,
    Block,
    Extension,
    Header,
    compute_extension_hash,
)
from .errors import InvalidGenesis
from .genesis_document import (
    CONTRACT_ADDRESSES,
    ConsensusSettings,
    Genesis,
    GenesisContract,
    GenesisValidator,
    encode_genesis,
    encode_hex,
    parse_genesis,
    schedule_forks,
)
from .params import EVIDENCE_ADDRESS, FEDAVG_ADDRESS
from .trie import EMPTY_ROOT
from .types import Address, Epoch, Height, View

if TYPE_CHECKING:
    from .consensus.validators import ValidatorSet
    from .epochs import EpochSet
    from .evm import BlockState

__all__ = [
    "ConsensusSettings",
    "Genesis",
    "GenesisContract",
    "GenesisState",
    "GenesisValidator",
    "build_genesis",
    "create_genesis",
    "encode_genesis",
    "parse_genesis",
    "schedule_forks",
]

DEPLOY_GAS: Final = 2**40
DEFAULT_GAS_LIMIT: Final = 12_000_000
"""About 2 Mgas are executed a second, and a full block has to fit a view (decision 3)."""
GUARD_CODE: Final = bytes.fromhex("60006000fd")
"""PUSH 0, PUSH 0, REVERT: makes EXTCODESIZE say that the precompile is there."""


@dataclass(frozen=True, slots=True)
class GenesisState:
    """Block 0, the state behind it (nodes and codes by hash), and who votes first."""

    block: Block
    nodes: dict[bytes, bytes]
    epoch_set: "EpochSet"

    @property
    def validators(self) -> "ValidatorSet":
        """The voters of epoch 0."""
        return self.epoch_set.validators


# -- make ------------------------------------------------------------------------------------------
def create_genesis(
    *,
    chain_id: int,
    name: str,
    timestamp: int,
    validators: tuple[GenesisValidator, ...],
    alloc: dict[Address, int],
    gas_limit: int = DEFAULT_GAS_LIMIT,
    base_fee: int = 10**9,
    min_base_fee: int = 10**6,
    blob_retention_seconds: int = 30 * 86_400,
    epoch_blocks: int = 1_000,
    issuance_gwei: int = 0,
    unbonding_seconds: int = 14 * 86_400,
    min_stake: int = 10**18,
    consensus: ConsensusSettings | None = None,
) -> Genesis:
    """Return a document with the contracts that this software ships. Raises InvalidGenesis."""
    genesis = Genesis(
        chain_id=chain_id,
        name=name,
        timestamp=timestamp,
        gas_limit=gas_limit,
        base_fee=base_fee,
        min_base_fee=min_base_fee,
        blob_retention_seconds=blob_retention_seconds,
        epoch_blocks=epoch_blocks,
        issuance_gwei=issuance_gwei,
        unbonding_seconds=unbonding_seconds,
        min_stake=min_stake,
        consensus=consensus or ConsensusSettings(),
        forks=(),
        alloc=tuple(sorted(alloc.items())),
        validators=validators,
        contracts=tuple(
            GenesisContract(contract, Address(address), get_artifact(contract).hash)
            for contract, address in sorted(CONTRACT_ADDRESSES.items())
        ),
    )
    return parse_genesis(encode_genesis(genesis))


# -- block 0 ---------------------------------------------------------------------------------------
def build_genesis(genesis: Genesis) -> GenesisState:
    """Return block 0 and its state. Runs the contracts' init code: needs the engine and its stack.

    Raises: InvalidGenesis genesis_contract, and what the validator set raises; InvalidKey
    bls_possession.
    """
    from .environment import Environment
    from .evm import BlockState
    from .replay import NoBlobs

    epoch_set = _build_epoch_set(genesis)
    extension = Extension(Epoch(0), View(0), Address(bytes(20)), epoch_set.hash)
    environment = Environment(
        height=Height(0),
        timestamp=genesis.timestamp,
        coinbase=Address(bytes(20)),
        base_fee=0,
        prev_randao=ZERO_HASH,
        parent_hash=ZERO_HASH,
        parent_beacon_block_root=ZERO_HASH,
    )
    nothing: dict[bytes, bytes] = {}
    state = BlockState(nothing, NoBlobs(), genesis.rules, EMPTY_ROOT, environment)
    state.process_system_contracts()
    for precompile in (FEDAVG_ADDRESS, EVIDENCE_ADDRESS):
        state.process_account(Address(precompile), balance=0, nonce=1, code=GUARD_CODE)
    for address, balance in genesis.alloc:
        if state.get_nonce(address):
            raise InvalidGenesis("genesis_alloc", f"{encode_hex(address)} is a system contract")
        state.process_account(address, balance=balance, nonce=0, code=b"")
    for contract in genesis.contracts:
        _deploy(state, genesis, contract)
    state_root, nodes = state.finish()
    header = Header(
        parent_hash=ZERO_HASH,
        coinbase=Address(bytes(20)),
        state_root=state_root,
        transactions_root=EMPTY_ROOT,
        receipts_root=EMPTY_ROOT,
        bloom=bytes(BLOOM_BYTES),
        height=Height(0),
        gas_limit=genesis.gas_limit,
        gas_used=0,
        timestamp=genesis.timestamp,
        prev_randao=ZERO_HASH,
        base_fee=genesis.base_fee,
        withdrawals_root=EMPTY_ROOT,
        parent_beacon_block_root=compute_extension_hash(extension),
        extra_data=genesis.hash,
    )
    return GenesisState(Block(header, extension), nodes, epoch_set)


def _build_epoch_set(genesis: Genesis) -> "EpochSet":
    from .bls import check_possession
    from .epochs import get_genesis_set

    for validator in genesis.validators:
        check_possession(validator.bls_key, validator.proof_of_possession)
    return get_genesis_set(genesis)


def _deploy(state: "BlockState", genesis: Genesis, contract: GenesisContract) -> None:
    """Run a contract's init code at its address. Stakes come into being here."""
    from eth_abi.abi import encode

    artifact = get_artifact(contract.name)
    if artifact.hash != contract.artifact_hash:
        raise InvalidGenesis(
            "genesis_contract",
            f"{contract.name}: the document names {encode_hex(contract.artifact_hash)}, this "
            f"software ships {encode_hex(artifact.hash)}; use the version that started the chain",
        )
    init_code, value = artifact.init_code, 0
    if contract.name == "Staking":
        rows = [
            (
                encode_hex(item.address),
                item.bls_key,
                item.network_key,
                item.endpoint,
                encode_hex(item.fee_recipient),
                item.stake,
            )
            for item in genesis.validators
        ]
        init_code += encode(
            [_VALIDATORS_ABI, "uint256", "uint256", "uint256"],
            [rows, genesis.min_stake, genesis.unbonding_seconds, genesis.epoch_blocks],
        )
        value = sum(item.stake for item in genesis.validators)
    error = state.process_deployment(contract.address, init_code, value=value, gas=DEPLOY_GAS)
    if error is not None:
        raise InvalidGenesis("genesis_contract", f"{contract.name} could not be deployed: {error}")


_VALIDATORS_ABI: Final = "(address,bytes,bytes32,string,address,uint256)[]"

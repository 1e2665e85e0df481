"""The genesis document: what a chain starts from and what it never changes.

A JSON object. Its hash is the keccak-256 of its canonical encoding (sorted keys, no white space,
ASCII) and stands in the extra data of block 0, so the hash of block 0 covers every parameter.
Amounts are decimal strings in wei; addresses and keys are lower-case hex. Unknown keys are refused.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, TypeAlias

from eth_hash.auto import keccak

from .artifacts import ARTIFACT_NAMES
from .block import Rules
from .errors import InvalidGenesis
from .params import (
    MAX_VALIDATORS,
    REGISTRY_ADDRESS,
    ROUNDS_ADDRESS,
    STAKING_ADDRESS,
    TASKS_ADDRESS,
)
from .types import Address, Domain, Hash

Json: TypeAlias = "bool | int | str | list[Json] | dict[str, Json] | None"

MAX_GENESIS_BYTES: Final = 8 * 2**20
MAX_JSON_DEPTH: Final = 8
MAX_ALLOC: Final = 50_000
MAX_CHAIN_ID: Final = 2**52
"""Wallets compute with it in doubles."""
MAX_NAME_BYTES: Final = 64
MAX_GENESIS_VALIDATORS: Final = 64
"""The contract Staking holds no more."""
MAX_SUPPLY: Final = 2**128
MAX_ISSUANCE_GWEI: Final = 2**53
"""Of one epoch: nine million coins."""
MIN_GAS_LIMIT: Final = 1_000_000
MAX_GAS_LIMIT: Final = 2**40
RESERVED_BELOW: Final = 2**16
"""Addresses of precompiles and of our own contracts."""
KNOWN_FORKS: Final = frozenset[str]()
"""Rule changes this software knows; none yet."""
MAX_FORK_HEIGHT: Final = 2**63
_ADDRESSES: Final = {
    "Registry": REGISTRY_ADDRESS,
    "Rounds": ROUNDS_ADDRESS,
    "Staking": STAKING_ADDRESS,
    "Tasks": TASKS_ADDRESS,
}
CONTRACT_ADDRESSES: Final = {name: _ADDRESSES[name] for name in ARTIFACT_NAMES}
"""Where each contract that this software ships is deployed."""

assert MAX_GENESIS_VALIDATORS <= MAX_VALIDATORS
assert all(int.from_bytes(item, "big") < RESERVED_BELOW for item in CONTRACT_ADDRESSES.values())


@dataclass(frozen=True, slots=True)
class GenesisValidator:
    """A first validator. `stake` in wei is its power; endpoint is host:port."""

    address: Address
    bls_key: bytes
    proof_of_possession: bytes
    network_key: bytes
    endpoint: str
    fee_recipient: Address
    stake: int


@dataclass(frozen=True, slots=True)
class ConsensusSettings:
    """Milliseconds until a view is given up, and between blocks of an idle chain."""

    timeout_ms: int = 10_000
    heartbeat_ms: int = 10_000


@dataclass(frozen=True, slots=True)
class GenesisContract:
    """A contract that genesis deploys; `artifact_hash` is that of its init code."""

    name: str
    address: Address
    artifact_hash: Hash


@dataclass(frozen=True)
class Genesis:
    """A parsed document. `alloc` is sorted by address, `contracts` and `forks` by name.

    `issuance_gwei` is paid each epoch; who leaves waits `unbonding_seconds` for its stake;
    `min_stake` in wei is the least that a validator has at stake.
    """

    chain_id: int
    name: str
    timestamp: int
    gas_limit: int
    base_fee: int
    min_base_fee: int
    blob_retention_seconds: int
    epoch_blocks: int
    issuance_gwei: int
    unbonding_seconds: int
    min_stake: int
    consensus: ConsensusSettings
    forks: tuple[tuple[str, int], ...]
    alloc: tuple[tuple[Address, int], ...]
    validators: tuple[GenesisValidator, ...]
    contracts: tuple[GenesisContract, ...]

    @cached_property
    def hash(self) -> Hash:
        """The keccak-256 of the canonical document."""
        return Hash(keccak(encode_genesis(self)))

    @property
    def domain(self) -> Domain:
        """What the votes of this chain are signed for."""
        return Domain(self.hash)

    @property
    def rules(self) -> Rules:
        """What execution needs to know."""
        return Rules(
            chain_id=self.chain_id,
            domain=self.domain,
            gas_limit=self.gas_limit,
            min_base_fee=self.min_base_fee,
            blob_retention_seconds=self.blob_retention_seconds,
            epoch_blocks=self.epoch_blocks,
            issuance_gwei=self.issuance_gwei,
            forks=self.forks,
        )


# -- codec -----------------------------------------------------------------------------------------
def encode_genesis(genesis: Genesis) -> bytes:
    """Return the canonical document."""
    document: dict[str, Json] = {
        "chain_id": genesis.chain_id,
        "name": genesis.name,
        "timestamp": genesis.timestamp,
        "gas_limit": genesis.gas_limit,
        "base_fee": str(genesis.base_fee),
        "min_base_fee": str(genesis.min_base_fee),
        "blob_retention_seconds": genesis.blob_retention_seconds,
        "epoch_blocks": genesis.epoch_blocks,
        "issuance_gwei": genesis.issuance_gwei,
        "unbonding_seconds": genesis.unbonding_seconds,
        "min_stake": str(genesis.min_stake),
        "consensus": {
            "timeout_ms": genesis.consensus.timeout_ms,
            "heartbeat_ms": genesis.consensus.heartbeat_ms,
        },
        "forks": dict(genesis.forks),
        "alloc": {
            encode_hex(address): {"balance": str(balance)} for address, balance in genesis.alloc
        },
        "validators": [_list_validator(validator) for validator in genesis.validators],
        "contracts": {
            contract.name: {
                "address": encode_hex(contract.address),
                "artifact_hash": encode_hex(contract.artifact_hash),
            }
            for contract in genesis.contracts
        },
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _list_validator(validator: GenesisValidator) -> dict[str, Json]:
    return {
        "address": encode_hex(validator.address),
        "bls_key": encode_hex(validator.bls_key),
        "proof_of_possession": encode_hex(validator.proof_of_possession),
        "network_key": encode_hex(validator.network_key),
        "endpoint": validator.endpoint,
        "fee_recipient": encode_hex(validator.fee_recipient),
        "stake": str(validator.stake),
    }


def encode_hex(data: bytes) -> str:
    """Return 0x and lower-case digits."""
    return "0x" + data.hex()


def parse_genesis(data: bytes) -> Genesis:
    """Return the document. Layout and white space are free; the hash is of the canonical form.

    Raises: InvalidGenesis genesis_malformed, genesis_range, genesis_alloc, genesis_fork,
    genesis_contract, genesis_validators.
    """
    if len(data) > MAX_GENESIS_BYTES:
        raise InvalidGenesis("genesis_malformed", f"above {MAX_GENESIS_BYTES} bytes")
    if _compute_json_depth(data) > MAX_JSON_DEPTH:
        raise InvalidGenesis("genesis_malformed", "nested too deeply")
    try:
        value = json.loads(data, object_pairs_hook=_read_pairs, parse_float=_refuse_number)
    except (ValueError, RecursionError) as error:
        raise InvalidGenesis("genesis_malformed", f"not JSON: {error}") from error
    fields = _read_object(value, "document", _KEYS)
    consensus = _read_object(fields["consensus"], "consensus", {"timeout_ms", "heartbeat_ms"})
    genesis = Genesis(
        chain_id=_read_int(fields, "chain_id", 1, MAX_CHAIN_ID),
        name=_read_text(fields, "name"),
        timestamp=_read_int(fields, "timestamp", 0, 2**48),
        gas_limit=_read_int(fields, "gas_limit", MIN_GAS_LIMIT, MAX_GAS_LIMIT),
        base_fee=_read_wei(fields, "base_fee"),
        min_base_fee=_read_wei(fields, "min_base_fee"),
        blob_retention_seconds=_read_int(fields, "blob_retention_seconds", 1, 2**32),
        epoch_blocks=_read_int(fields, "epoch_blocks", 1, 2**32),
        issuance_gwei=_read_int(fields, "issuance_gwei", 0, MAX_ISSUANCE_GWEI),
        unbonding_seconds=_read_int(fields, "unbonding_seconds", 1, 2**32),
        min_stake=_read_wei(fields, "min_stake"),
        consensus=ConsensusSettings(
            timeout_ms=_read_int(consensus, "timeout_ms", 1, 3_600_000),
            heartbeat_ms=_read_int(consensus, "heartbeat_ms", 1, 3_600_000),
        ),
        forks=_read_forks(fields["forks"]),
        alloc=_read_alloc(fields["alloc"]),
        validators=_read_validators(fields["validators"]),
        contracts=_read_contracts(fields["contracts"]),
    )
    if genesis.base_fee < genesis.min_base_fee:
        raise InvalidGenesis("genesis_range", "base_fee is below min_base_fee")
    if any(validator.stake < genesis.min_stake for validator in genesis.validators):
        raise InvalidGenesis(
            "genesis_validators", f"a validator has at least {genesis.min_stake} wei at stake"
        )
    supply = sum(balance for _, balance in genesis.alloc)
    if supply + sum(validator.stake for validator in genesis.validators) >= MAX_SUPPLY:
        raise InvalidGenesis("genesis_alloc", "balances and stakes together reach 2**128 wei")
    return genesis


_KEYS: Final = frozenset(
    {
        "alloc",
        "base_fee",
        "blob_retention_seconds",
        "chain_id",
        "consensus",
        "contracts",
        "epoch_blocks",
        "forks",
        "gas_limit",
        "issuance_gwei",
        "min_base_fee",
        "min_stake",
        "name",
        "timestamp",
        "unbonding_seconds",
        "validators",
    }
)
_VALIDATOR_KEYS: Final = frozenset(
    {
        "address",
        "bls_key",
        "endpoint",
        "fee_recipient",
        "network_key",
        "proof_of_possession",
        "stake",
    }
)


def _compute_json_depth(data: bytes) -> int:
    """Return how deep brackets nest outside strings: Python's parser recurses as deep, in C."""
    depth = deepest = 0
    for bracket in re.findall(rb"[\[\]{}]", re.sub(rb'"(?:[^"\\]|\\.)*"', b"", data)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _read_pairs(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key is there twice")
    return fields


def _refuse_number(text: str) -> int:
    raise ValueError(f"{text} is not an integer")


def _read_object(value: Json, where: str, keys: frozenset[str] | set[str]) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise InvalidGenesis("genesis_malformed", f"{where} is not an object")
    if set(value) != keys:
        wrong = ", ".join(sorted(set(value) ^ keys))
        raise InvalidGenesis("genesis_malformed", f"{where}: unknown or missing keys: {wrong}")
    return value


def _read_map(value: Json, where: str) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise InvalidGenesis("genesis_malformed", f"{where} is not an object")
    return value


def _read_int(fields: dict[str, Json], key: str, low: int, high: int) -> int:
    value = fields[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidGenesis("genesis_malformed", f"{key} is not an integer")
    if not low <= value <= high:
        raise InvalidGenesis("genesis_range", f"{key} is not in {low} to {high}")
    return value


def _read_wei(fields: dict[str, Json], key: str) -> int:
    value = fields[key]
    if not isinstance(value, str) or not (value.isascii() and value.isdecimal()):
        raise InvalidGenesis("genesis_malformed", f'{key} is not a decimal string, like "1000"')
    if len(value) > 39 or int(value) >= MAX_SUPPLY or str(int(value)) != value:
        raise InvalidGenesis("genesis_range", f"{key} is not below 2**128 without leading zeros")
    return int(value)


def _read_text(fields: dict[str, Json], key: str) -> str:
    value = fields[key]
    if not isinstance(value, str) or not value.isprintable():
        raise InvalidGenesis("genesis_malformed", f"{key} is not printable text")
    if not 1 <= len(value.encode()) <= MAX_NAME_BYTES:
        raise InvalidGenesis("genesis_range", f"{key} has 1 to {MAX_NAME_BYTES} bytes")
    return value


def _read_hex(value: Json, where: str, size: int) -> bytes:
    try:
        if isinstance(value, str) and value == value.lower() and value.startswith("0x"):
            data = bytes.fromhex(value[2:])
            if len(data) == size and len(value) == 2 + 2 * size:
                return data
    except ValueError:
        pass
    raise InvalidGenesis("genesis_malformed", f"{where} is not {size} bytes of lower-case hex")


def schedule_forks(rules: Rules, upgrades: Mapping[str, int]) -> Rules:
    """Return the rules with changes that were agreed upon after genesis, by name and height.

    All nodes need the same ones: from the first height on, they would not agree otherwise.
    Raises: InvalidGenesis genesis_fork, genesis_range.
    """
    forks = dict(rules.forks)
    for name, height in upgrades.items():
        if forks.get(name, height) != height:
            raise InvalidGenesis(
                "genesis_fork", f"genesis activates {name!r} at height {forks[name]}, not {height}"
            )
        if not 1 <= height <= MAX_FORK_HEIGHT:
            raise InvalidGenesis("genesis_range", f"{name} is not in 1 to {MAX_FORK_HEIGHT}")
        forks[name] = height
    _check_known(forks)
    return replace(rules, forks=tuple(sorted(forks.items())))


def _check_known(forks: Iterable[str]) -> None:
    unknown = sorted(set(forks) - KNOWN_FORKS)
    if unknown:
        raise InvalidGenesis(
            "genesis_fork", f"rule changes this software does not know: {unknown}; upgrade it"
        )


def _read_forks(value: Json) -> tuple[tuple[str, int], ...]:
    forks = _read_map(value, "forks")
    _check_known(forks)
    return tuple((name, _read_int(forks, name, 0, MAX_FORK_HEIGHT)) for name in sorted(forks))


def _read_alloc(value: Json) -> tuple[tuple[Address, int], ...]:
    alloc = _read_map(value, "alloc")
    if len(alloc) > MAX_ALLOC:
        raise InvalidGenesis("genesis_alloc", f"above {MAX_ALLOC} accounts")
    accounts = []
    for key in sorted(alloc):
        address = Address(_read_hex(key, "an address of alloc", 20))
        if int.from_bytes(address, "big") < RESERVED_BELOW:
            raise InvalidGenesis("genesis_alloc", f"{key} is reserved")
        balance = _read_wei(_read_object(alloc[key], f"alloc {key}", {"balance"}), "balance")
        if not balance:
            raise InvalidGenesis("genesis_alloc", f"{key} gets nothing: leave it out")
        accounts.append((address, balance))
    return tuple(accounts)


def _read_validators(value: Json) -> tuple[GenesisValidator, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_GENESIS_VALIDATORS:
        raise InvalidGenesis(
            "genesis_validators", f"a list of 1 to {MAX_GENESIS_VALIDATORS} validators"
        )
    validators = []
    for item in value:
        fields = _read_object(item, "a validator", _VALIDATOR_KEYS)
        validators.append(
            GenesisValidator(
                address=Address(_read_hex(fields["address"], "address", 20)),
                bls_key=_read_hex(fields["bls_key"], "bls_key", 48),
                proof_of_possession=_read_hex(
                    fields["proof_of_possession"], "proof_of_possession", 96
                ),
                network_key=_read_hex(fields["network_key"], "network_key", 32),
                endpoint=_read_text(fields, "endpoint"),
                fee_recipient=Address(_read_hex(fields["fee_recipient"], "fee_recipient", 20)),
                stake=_read_wei(fields, "stake"),
            )
        )
    return tuple(validators)


def _read_contracts(value: Json) -> tuple[GenesisContract, ...]:
    contracts = _read_object(value, "contracts", set(CONTRACT_ADDRESSES))
    found = []
    for name, address in sorted(CONTRACT_ADDRESSES.items()):
        fields = _read_object(contracts[name], name, {"address", "artifact_hash"})
        if _read_hex(fields["address"], f"{name}'s address", 20) != address:
            raise InvalidGenesis("genesis_contract", f"{name} belongs at {encode_hex(address)}")
        artifact_hash = Hash(_read_hex(fields["artifact_hash"], f"{name}'s artifact_hash", 32))
        found.append(GenesisContract(name, Address(address), artifact_hash))
    return tuple(found)

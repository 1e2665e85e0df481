"""Making a data directory: keys, a genesis document (or a given one), settings."""

import os
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path

from eth_utils.address import is_address, to_canonical_address

from steelyard.chain.bls import compute_public_key, prove_possession
from steelyard.chain.errors import InvalidKey, SteelyardError
from steelyard.chain.genesis import (
    ConsensusSettings,
    Genesis,
    GenesisValidator,
    create_genesis,
    encode_genesis,
    parse_genesis,
)
from steelyard.chain.types import Address

from .config import CONFIG_FILE, NodeConfig, encode_config
from .directory import GENESIS_FILE, KEYS
from .keyfiles import (
    SCRYPT_N,
    Secrets,
    compute_network_key,
    copy_secrets,
    create_secrets,
    read_secrets,
    write_secrets,
)

WEI_PER_COIN = 10**18
ENDPOINT = "127.0.0.1:8546"
"""Where other validators will reach this one; a set of one has nobody to reach it."""


@dataclass(frozen=True, slots=True)
class Foundation:
    """Choices for a new chain with one validator. Amounts in wei."""

    chain_id: int
    name: str
    timestamp: int
    stake: int
    validator_balance: int
    funds: dict[Address, int]
    heartbeat_ms: int
    timeout_ms: int
    gas_limit: int
    blob_retention_seconds: int


def parse_amount(text: str) -> int:
    """Wei of `12`, `0.5` (coins) or `1000wei`. Raises SteelyardError amount_malformed."""
    is_wei = text.endswith("wei")
    try:
        amount = Decimal(text.removesuffix("wei").replace("_", "")) * (
            1 if is_wei else WEI_PER_COIN
        )
    except InvalidOperation:
        raise SteelyardError("amount_malformed", f"{text!r} is no amount: 12, 0.5, 7wei") from None
    if not amount.is_finite() or amount < 0 or amount != amount.to_integral_value():
        raise SteelyardError("amount_malformed", f"{text!r} is not a whole, positive number of wei")
    return int(amount)


def parse_fund(text: str) -> tuple[Address, int]:
    """`ADDRESS=AMOUNT`. Raises SteelyardError fund_malformed, amount_malformed."""
    address, separator, amount = text.partition("=")
    if not separator or not is_address(address):
        raise SteelyardError(
            "fund_malformed", f"{text!r} is not ADDRESS=AMOUNT, like 0x…=1000 (coins) or 0x…=5wei"
        )
    return Address(to_canonical_address(address)), parse_amount(amount)


def create_document(foundation: Foundation, secrets: Secrets) -> Genesis:
    """A genesis with one validator. Raises InvalidGenesis."""
    funds = dict(foundation.funds)
    if foundation.validator_balance:
        funds[secrets.address] = funds.get(secrets.address, 0) + foundation.validator_balance
    validator = GenesisValidator(
        address=secrets.address,
        bls_key=compute_public_key(secrets.voting),
        proof_of_possession=prove_possession(secrets.voting),
        network_key=compute_network_key(secrets.network),
        endpoint=ENDPOINT,
        fee_recipient=secrets.address,
        stake=foundation.stake,
    )
    return create_genesis(
        chain_id=foundation.chain_id,
        name=foundation.name,
        timestamp=foundation.timestamp,
        validators=(validator,),
        alloc=funds,
        gas_limit=foundation.gas_limit,
        blob_retention_seconds=foundation.blob_retention_seconds,
        consensus=ConsensusSettings(
            timeout_ms=foundation.timeout_ms, heartbeat_ms=foundation.heartbeat_ms
        ),
    )


def init_directory(
    directory: Path,
    password: str,
    plan: Foundation | bytes,
    config: NodeConfig,
    scrypt_n: int = SCRYPT_N,
    keys: Path | None = None,
) -> tuple[Genesis, Secrets]:
    """Fill a new data directory; `plan` makes a genesis, or is the document of an existing chain.

    `keys` is a directory with a validator's key files; without it, keys are made.
    Raises SteelyardError data_exists, file_write; InvalidGenesis, InvalidKey.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise SteelyardError(
            "data_exists",
            f"{directory} is no empty directory; choose a new one, nothing was changed",
        )
    secrets = create_secrets() if keys is None else read_secrets(keys, password)
    genesis = parse_genesis(plan) if isinstance(plan, bytes) else create_document(plan, secrets)
    if keys is not None and not is_validator(secrets, genesis):
        raise InvalidKey("key_validator", f"the keys in {keys} are of no validator in the document")
    document = plan if isinstance(plan, bytes) else encode_genesis(genesis)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SteelyardError(
            "file_write", f"{directory}: {error.strerror}; choose another directory"
        ) from None
    if keys is None:
        write_secrets(directory / KEYS, secrets, password, scrypt_n)
    else:
        copy_secrets(keys, directory / KEYS)
    write_new(directory / GENESIS_FILE, document)
    write_new(directory / CONFIG_FILE, encode_config(config).encode())
    return genesis, secrets


def is_validator(secrets: Secrets, genesis: Genesis) -> bool:
    """Does the document name these keys?"""
    bls_key = compute_public_key(secrets.voting)
    return any(
        (one.address, one.bls_key) == (secrets.address, bls_key) for one in genesis.validators
    )


def write_new(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def set_address(config: NodeConfig, host: str | None, port: int | None) -> NodeConfig:
    """The settings with another place to listen."""
    http = config.http
    http = http if host is None else replace(http, host=host)
    return replace(config, http=http if port is None else replace(http, port=port))

"""Making a data directory: keys, a genesis document (or a given one), settings.

A chain of several validators begins with a ceremony: each operator makes keys and an entry
(`create_entry`), one of them turns all entries into a document (`create_shared_document`), and each
fills its directory with that (`init_directory`), which checks that its own entry is in it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path

from eth_utils.address import is_address, to_canonical_address

from steelyard.chain.bls import compute_public_key
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
from .entries import (
    ENTRY_FILE,
    check_distinct,
    check_listed,
    encode_entry,
    make_entry,
    read_entry,
)
from .keyfiles import (
    SCRYPT_N,
    Secrets,
    copy_secrets,
    create_secrets,
    read_secrets,
    write_secrets,
)

WEI_PER_COIN = 10**18
WEI_PER_GWEI = 10**9
DEFAULT_EPOCH_BLOCKS = 1_000
DEFAULT_UNBONDING_SECONDS = 14 * 86_400
ENDPOINT = "127.0.0.1:8546"
"""Where other validators will reach this one; a set of one has nobody to reach it."""


@dataclass(frozen=True, slots=True)
class Foundation:
    """Choices for a new chain. Amounts in wei; `stake` is that of a first validator alone."""

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
    epoch_blocks: int = DEFAULT_EPOCH_BLOCKS
    issuance_gwei: int = 0
    unbonding_seconds: int = DEFAULT_UNBONDING_SECONDS
    min_stake: int = WEI_PER_COIN


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
    return create_shared_document(foundation, [make_entry(secrets, ENDPOINT, foundation.stake)])


def create_shared_document(foundation: Foundation, entries: Sequence[GenesisValidator]) -> Genesis:
    """A genesis with these validators, in the order of their addresses.

    Whoever has the same entries and choices makes the same document. The foundation's `stake` is
    that of `create_document` only: entries name their own. Raises InvalidGenesis, InvalidEntry.
    """
    check_distinct(entries)
    funds = dict(foundation.funds)
    if foundation.validator_balance:
        for entry in entries:
            funds[entry.address] = funds.get(entry.address, 0) + foundation.validator_balance
    return create_genesis(
        chain_id=foundation.chain_id,
        name=foundation.name,
        timestamp=foundation.timestamp,
        validators=tuple(sorted(entries, key=lambda entry: entry.address)),
        alloc=funds,
        gas_limit=foundation.gas_limit,
        blob_retention_seconds=foundation.blob_retention_seconds,
        epoch_blocks=foundation.epoch_blocks,
        issuance_gwei=foundation.issuance_gwei,
        unbonding_seconds=foundation.unbonding_seconds,
        min_stake=foundation.min_stake,
        consensus=ConsensusSettings(
            timeout_ms=foundation.timeout_ms, heartbeat_ms=foundation.heartbeat_ms
        ),
    )


def create_entry(
    directory: Path,
    password: str,
    endpoint: str,
    stake: int,
    fee_recipient: Address | None = None,
    scrypt_n: int = SCRYPT_N,
) -> GenesisValidator:
    """Make a validator's keys in a new directory, and its entry beside them.

    Raises SteelyardError data_exists, file_write; InvalidEntry.
    """
    check_empty(directory)
    secrets = create_secrets()
    entry = make_entry(secrets, endpoint, stake, fee_recipient)
    make_directory(directory)
    write_secrets(directory / KEYS, secrets, password, scrypt_n)
    write_new(directory / ENTRY_FILE, encode_entry(entry))
    return entry


def init_directory(
    directory: Path,
    password: str,
    plan: Foundation | bytes,
    config: NodeConfig,
    scrypt_n: int = SCRYPT_N,
    keys: Path | None = None,
    *,
    is_joining: bool = False,
) -> tuple[Genesis, Secrets]:
    """Fill a data directory; `plan` makes a genesis, or is the document of an existing chain.

    The keys are those that `create_entry` made there, or copied from the directory `keys`, or new.
    Keys that exist must be in the document, and an entry beside them as it is there, unless this
    node joins a chain that runs already.
    Raises SteelyardError data_exists, file_write; InvalidGenesis, InvalidKey, InvalidEntry.
    """
    is_prepared = keys is None and holds_only_keys(directory)
    if not is_prepared:
        check_empty(directory)
    source = directory / KEYS if is_prepared else keys
    secrets = create_secrets() if source is None else read_secrets(source, password)
    genesis = parse_genesis(plan) if isinstance(plan, bytes) else create_document(plan, secrets)
    if source is not None and not (is_joining and not is_validator(secrets, genesis)):
        check_own(directory, secrets, genesis, source)
    document = plan if isinstance(plan, bytes) else encode_genesis(genesis)
    make_directory(directory)
    if source is None:
        write_secrets(directory / KEYS, secrets, password, scrypt_n)
    elif not is_prepared:
        copy_secrets(source, directory / KEYS)
    write_new(directory / GENESIS_FILE, document)
    write_new(directory / CONFIG_FILE, encode_config(config).encode())
    return genesis, secrets


def check_own(directory: Path, secrets: Secrets, genesis: Genesis, source: Path) -> None:
    """The keys, and the entry beside them if there is one, are those of the document."""
    if (directory / ENTRY_FILE).exists():
        check_listed(read_entry(directory / ENTRY_FILE), genesis)
    if not is_validator(secrets, genesis):
        raise InvalidKey(
            "key_validator", f"the keys in {source} are of no validator in the document"
        )


def holds_only_keys(directory: Path) -> bool:
    """Is it what `create_entry` leaves, perhaps with the password or the document put beside it?"""
    if not directory.is_dir():
        return False
    names = {one.name for one in directory.iterdir()}
    return KEYS in names and names <= {KEYS, ENTRY_FILE}


def check_empty(directory: Path) -> None:
    """Raises SteelyardError data_exists."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise SteelyardError(
            "data_exists",
            f"{directory} is no empty directory; choose a new one, nothing was changed",
        )


def make_directory(directory: Path) -> None:
    """Raises SteelyardError file_write."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SteelyardError(
            "file_write", f"{directory}: {error.strerror}; choose another directory"
        ) from None


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

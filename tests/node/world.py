"""A chain with one validator and two rich accounts, and what tests do to it."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_keys.datatypes import PrivateKey

from steelyard.chain.bls import derive_secret_key
from steelyard.chain.cid import compute_blob_name
from steelyard.chain.genesis import encode_genesis
from steelyard.chain.params import BLOB_DECLARATION_ADDRESS
from steelyard.chain.types import Address, BlobName, Hash
from steelyard.node.clock import Clock
from steelyard.node.config import (
    CONFIG_FILE,
    BlocksConfig,
    KeeperConfig,
    NodeConfig,
    StorageConfig,
    encode_config,
)
from steelyard.node.directory import GENESIS_FILE
from steelyard.node.founding import Foundation, create_document
from steelyard.node.keyfiles import Secrets
from steelyard.node.node import Node

CHAIN_ID = 7700
COIN = 10**18
SECRETS = Secrets(PrivateKey(b"\x11" * 32), derive_secret_key(b"\x22" * 32), b"\x33" * 32)
ALICE: LocalAccount = Account.from_key(b"\x44" * 32)
BOB: LocalAccount = Account.from_key(b"\x55" * 32)
CONFIG = NodeConfig(
    blocks=BlocksConfig(interval_seconds=0.02),
    keeper=KeeperConfig(enabled=False),
    storage=StorageConfig(map_bytes=2**28, min_free_bytes=2**20),
)
PATIENCE_SECONDS = 60.0
HEARTBEAT_MS = 120_000
"""Longer than anybody waits here: no block comes by itself."""


def get_address(account: LocalAccount) -> Address:
    return Address(bytes.fromhex(account.address[2:]))


def make_foundation(**changes: object) -> Foundation:
    """Choices for a test chain; `changes` are fields of it."""
    plan = Foundation(
        chain_id=CHAIN_ID,
        name="test",
        timestamp=1_700_000_000,
        stake=32 * COIN,
        validator_balance=100 * COIN,
        funds={get_address(ALICE): 1000 * COIN, get_address(BOB): 1000 * COIN},
        heartbeat_ms=HEARTBEAT_MS,
        timeout_ms=10_000,
        gas_limit=30_000_000,
        blob_retention_seconds=3_600,
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


def found(directory: Path, **changes: object) -> Path:
    """A data directory without key files; `changes` are fields of the foundation."""
    document = encode_genesis(create_document(make_foundation(**changes), SECRETS))
    directory.mkdir(parents=True)
    (directory / GENESIS_FILE).write_bytes(document)
    (directory / CONFIG_FILE).write_text(encode_config(CONFIG))
    return directory


def open_node(directory: Path, config: NodeConfig = CONFIG, clock: Clock | None = None) -> Node:
    return Node.open(directory, SECRETS, config, clock)


class HandClock:
    """Both of a node's clocks stand still but for what a test skips."""

    def __init__(self) -> None:
        self.seconds = 1_000.0
        self.clock = Clock(lambda: self.seconds, lambda: 1_800_000_000 + self.seconds)

    def skip(self, node: Node, seconds: float) -> None:
        """Let so much time have passed for a node, and let it see what is due."""
        self.seconds += seconds
        node.driver.wake()


def sign_transaction(
    account: LocalAccount,
    nonce: int,
    *,
    blobs: tuple[BlobName, ...] = (),
    gas: int = 21_000,
    fee: int = 10**10,
    tip: int = 10**6,
    value: int = 1,
    to: bytes | None = b"\x99" * 20,
    data: bytes = b"",
    chain_id: int = CHAIN_ID,
) -> bytes:
    """A transfer, unless told otherwise; blobs are declared and paid for."""
    words = [word for name in blobs for word in (name.digest, name.size.to_bytes(32, "big"))]
    keys = ["0x" + word.hex() for word in words]
    access_list = [{"address": "0x" + BLOB_DECLARATION_ADDRESS.hex(), "storageKeys": keys}]
    blob_gas = sum(40_000 + name.size // 16 for name in blobs)
    transaction: dict[str, object] = {
        "type": 2,
        "chainId": chain_id,
        "nonce": nonce,
        "value": value,
        "data": data,
        "gas": gas + blob_gas,
        "maxFeePerGas": fee,
        "maxPriorityFeePerGas": tip,
        "accessList": access_list if blobs else [],
    }
    if to is not None:
        transaction["to"] = to
    return bytes(account.sign_transaction(transaction).raw_transaction)


def make_blob(size: int, seed: int = 0) -> tuple[BlobName, bytes]:
    period = bytes((i * 31 + seed) % 251 for i in range(251))
    data = (period * (size // 251 + 1))[:size]
    return compute_blob_name(data), data


def upload(node: Node, data: bytes) -> None:
    from steelyard.chain.cid import get_blob_cid

    blob = node.open_blob_upload(get_blob_cid(compute_blob_name(data)), len(data))
    for start in range(0, len(data), 65_536):
        blob.write(data[start : start + 65_536])
    blob.commit()


def wait_until(condition: Callable[[], object]) -> None:
    """Poll, as other processes and threads must be waited for; fail after a long while."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def wait_for(node: Node, transaction_hash: Hash) -> int:
    """The height at which a transaction is final."""
    wait_until(lambda: node.find_transaction(transaction_hash) is not None)
    inclusion = node.find_transaction(transaction_hash)
    assert inclusion is not None
    return inclusion.height

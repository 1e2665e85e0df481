"""A real node with its HTTP side, in this process, and accounts with money on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from eth_account import Account
from eth_account.signers.local import LocalAccount

from steelyard.chain.types import Address
from steelyard.node.config import NodeConfig
from steelyard.node.founding import Foundation, init_directory
from steelyard.node.http import HttpServer
from steelyard.node.node import Node

CHAIN_ID = 7718
MNEMONIC = "test test test test test test test test test test test junk"
HD_PATH = "m/44'/60'/0'/0/{}"
COIN = 10**18


@dataclass(frozen=True, slots=True)
class World:
    """Where the node answers. ape uses the first two accounts."""

    url: str
    node: Node
    accounts: tuple[LocalAccount, ...]


@contextmanager
def run_world(directory: Path) -> Iterator[World]:
    """Found a chain with one validator and run it until the block ends."""
    Account.enable_unaudited_hdwallet_features()
    accounts = tuple(
        Account.from_mnemonic(MNEMONIC, account_path=HD_PATH.format(index)) for index in range(5)
    )
    foundation = Foundation(
        chain_id=CHAIN_ID,
        name="clients",
        timestamp=1_700_000_000,
        stake=32 * COIN,
        validator_balance=COIN,
        funds={Address(bytes.fromhex(one.address[2:])): 1_000 * COIN for one in accounts},
        heartbeat_ms=1_000,
        timeout_ms=10_000,
        gas_limit=30_000_000,
        blob_retention_seconds=86_400,
    )
    _, secrets = init_directory(directory, "password", foundation, NodeConfig(), scrypt_n=2**10)
    node = Node.open(directory, secrets)
    server = HttpServer(node, "127.0.0.1", 0)
    server.start()
    node.start()
    try:
        yield World(server.url, node, accounts)
    finally:
        server.stop()
        node.stop()

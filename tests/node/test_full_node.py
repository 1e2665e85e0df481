"""A node whose keys are of no validator: it follows one, serves all, and passes on what it is sent.

Both are whole nodes in this process, each with its HTTP side.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from eth_keys.datatypes import PrivateKey

from steelyard.chain.bls import derive_secret_key
from steelyard.chain.cid import encode_cid
from steelyard.chain.types import BlobName, Hash
from steelyard.node.clock import Clock
from steelyard.node.config import FollowConfig, NodeConfig
from steelyard.node.directory import GENESIS_FILE
from steelyard.node.following.starting import begin_at_checkpoint
from steelyard.node.http import HttpServer
from steelyard.node.keyfiles import Secrets
from steelyard.node.node import Node

from .world import (
    ALICE,
    BOB,
    CONFIG,
    SECRETS,
    found,
    make_blob,
    sign_transaction,
    wait_for,
    wait_until,
)

STRANGER = Secrets(PrivateKey(b"\x61" * 32), derive_secret_key(b"\x62" * 32), b"\x63" * 32)


@contextmanager
def run_node(directory: Path, secrets: Secrets, config: NodeConfig) -> Iterator[tuple[Node, str]]:
    node = Node.open(directory, secrets, config)
    with ExitStack() as stack:
        stack.callback(node.stop)
        server = HttpServer(node, "127.0.0.1", 0)
        server.start()
        stack.callback(server.stop)
        node.start()
        yield node, server.url


@pytest.fixture
def validator(tmp_path: Path) -> Iterator[tuple[Node, str]]:
    directory = found(tmp_path / "validator", epoch_blocks=2, heartbeat_ms=200)
    with run_node(directory, SECRETS, CONFIG) as one:
        yield one


def prepare(directory: Path, validator: tuple[Node, str], checkpoint: str = "") -> NodeConfig:
    """The directory and settings of a full node; the chain of these tests began long ago."""
    directory.mkdir()
    (directory / GENESIS_FILE).write_bytes(validator[0].get_genesis_document())
    follow = FollowConfig(
        nodes=(validator[1],), interval_seconds=0.02, checkpoint=checkpoint, trust_old_head=True
    )
    return replace(CONFIG, follow=follow)


def send(url: str, raw: bytes) -> Hash:
    call = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "eth_sendRawTransaction",
        "params": ["0x" + raw.hex()],
    }
    reply = httpx.post(url, json=call, timeout=60).json()
    return Hash(bytes.fromhex(reply["result"][2:]))


def upload(url: str, name: BlobName, data: bytes) -> None:
    reply = httpx.put(f"{url}/blobs/{encode_cid(name)}", content=data, timeout=60)
    assert reply.status_code == 201


@pytest.mark.slow
def test_a_client_can_use_a_full_node_alone(validator: tuple[Node, str], tmp_path: Path) -> None:
    name, data = make_blob(400_000)
    config = prepare(tmp_path / "full", validator)
    with run_node(tmp_path / "full", STRANGER, config) as (full, url):
        transfer = send(url, sign_transaction(ALICE, 0))
        declaring = send(url, sign_transaction(BOB, 0, blobs=(name,)))
        upload(url, name, data)
        for transaction in (transfer, declaring):
            height = wait_for(full, transaction)
            assert full.get_hash(height) == validator[0].get_hash(height)
        assert validator[0].blobs.has(name)
        assert httpx.get(f"{url}/blobs/{encode_cid(name)}", timeout=60).content == data
        wait_until(lambda: full.get_head().height >= 5)  # two epochs on
        health = httpx.get(f"{url}/health", timeout=60).json()
        assert (health["healthy"], health["is_validator"]) == (True, False)
        assert health["following"]["refusal"] is None
        assert list(health["following"]["sources"]) == [validator[1]]


@pytest.mark.slow
def test_a_node_that_began_at_a_checkpoint_goes_on_and_serves(
    validator: tuple[Node, str], tmp_path: Path
) -> None:
    node, source = validator
    name, data = make_blob(5_000)
    declaring = node.submit_transaction(sign_transaction(ALICE, 0, blobs=(name,)))
    upload(source, name, data)
    height = wait_for(node, declaring) + 2
    wait_until(lambda: node.get_head().height >= height)
    at = node.get_hash(height)
    assert at is not None
    config = prepare(tmp_path / "full", validator, f"{height}:0x{at.hex()}")
    header = node.get_header(at)
    assert header is not None
    # The chains of these tests are old: the start happens in their time.
    clock = Clock(get_unix_seconds=lambda: float(header.timestamp))
    begin_at_checkpoint(tmp_path / "full", config, lambda _: None, clock)
    with run_node(tmp_path / "full", STRANGER, config) as (full, url):
        last = wait_for(full, send(url, sign_transaction(ALICE, 1)))
        assert full.get_hash(last) == node.get_hash(last)
        # A blob from before the checkpoint: nothing here names it but the state.
        full.following.fetch_blobs((name,))
        wait_until(lambda: full.blobs.has(name))
        full.driver.sweep()
        assert full.blobs.has(name)
        for method, params, code in (
            ("eth_getBalance", [ALICE.address, "0x1"], "state_pruned"),
            ("eth_getLogs", [{"fromBlock": "0x1"}], "history_missing"),
            ("eth_getBlockReceipts", [hex(height)], "history_missing"),
        ):
            call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            reply = httpx.post(url, json=call, timeout=60).json()
            assert reply["error"]["data"]["code"] == code

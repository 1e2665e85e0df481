"""A task on a real node: published, joined, revealed; the keeper does the rest and is paid."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from eth_abi.abi import decode, encode
from eth_account.signers.local import LocalAccount
from eth_utils.abi import function_signature_to_4byte_selector

from steelyard.chain import pricing
from steelyard.chain.block import Block, decode_block, encode_block
from steelyard.chain.cid import compute_blob_name
from steelyard.chain.execute import CallRequest
from steelyard.chain.genesis import parse_genesis
from steelyard.chain.model import Manifest, Role, TensorSpec, decode_model, encode_model
from steelyard.chain.params import ROUNDS_ADDRESS, TASKS_ADDRESS
from steelyard.chain.replay import replay
from steelyard.chain.transactions import decode_transaction
from steelyard.chain.types import Address, BlobName, Digest, Hash, Round, TaskId
from steelyard.chain.update import Mode, UpdateHeader, encode_update
from steelyard.node.config import KeeperConfig
from steelyard.node.keeper import PAGES, ROUND_TYPES
from steelyard.node.node import Node
from steelyard.node.steps import PAGE_GAS_PERCENT

from .world import (
    ALICE,
    BOB,
    CHAIN_ID,
    CONFIG,
    SECRETS,
    found,
    get_address,
    open_node,
    sign_transaction,
    upload,
    wait_for,
    wait_until,
)

ONE, RATE = 2**20, 2**12
SALT = b"\x05" * 32
BLOB = "(bytes32,uint256)"
RULE = "(uint8,uint256,uint256,uint256,uint256)"
NUMBERS = ",".join(["uint256"] * 7)
PARAMETERS = (
    f"({RULE},uint8,uint8,{NUMBERS},uint8,{NUMBERS},uint256,uint256,uint8,"
    "uint256,uint256,uint256,uint256,uint256,address,uint256)"
)
PUBLISH = f"publish(string,{PARAMETERS},{BLOB},{BLOB},address[])"
REVEAL = f"reveal(uint256,uint256,uint256,{BLOB},uint256,bytes32)"
OF_ROUNDS = ("commit", "reveal", "compute_commitment", "get_round")
"""Calls of the contract Rounds; all others are of Tasks."""
MEAN = (0, 0, ONE, RATE, 0)
CLIPPED_WITH_MOMENTUM = (1, 2**24, ONE, RATE, RATE // 2)
RESERVE, BOUNTY, REWARD = 10**17, 10**12, 10**18
FINISHED, ABORTED = 3, 4


def make_manifest(values: int) -> Manifest:
    return Manifest((TensorSpec("weight", (values,), "float32", 24, Role.TRAIN),))


def make_model(values: int) -> bytes:
    return encode_model(make_manifest(values), np.arange(values, dtype=np.int32))


def find_contract(signature: str) -> Address:
    is_of_rounds = signature.partition("(")[0] in OF_ROUNDS
    return Address(ROUNDS_ADDRESS if is_of_rounds else TASKS_ADDRESS)


def encode_call(signature: str, *values: object) -> bytes:
    """Calldata: arguments are encoded as one tuple, whose offset is left out if it has one."""
    arguments = encode([signature[signature.index("(") :]], [values])
    is_dynamic = "string" in signature or "[]" in signature
    selector = function_signature_to_4byte_selector(signature)
    return bytes(selector + arguments[32 if is_dynamic else 0 :])


class Caller:
    """One account that calls the contracts and waits until it is final."""

    def __init__(self, node: Node, account: LocalAccount) -> None:
        self.node, self.account, self.address = node, account, get_address(account)

    def send(
        self,
        signature: str,
        *values: object,
        wei: int = 0,
        blobs: dict[BlobName, bytes] | None = None,
    ) -> None:
        """Raises AssertionError if it is reverted."""
        raw = sign_transaction(
            self.account,
            self.node.get_nonce(self.address, pending=True),
            to=find_contract(signature),
            value=wei,
            data=encode_call(signature, *values),
            gas=2_500_000,
            blobs=tuple(blobs or ()),
        )
        transaction_hash = self.node.submit_transaction(raw)
        for name, data in (blobs or {}).items():
            if not self.node.blobs.has(name):
                upload(self.node, data)
        wait_for(self.node, transaction_hash)
        inclusion = self.node.find_transaction(transaction_hash)
        assert inclusion is not None
        receipt = self.node.get_receipts(inclusion.block_hash)[inclusion.index]
        assert receipt.status == 1, signature


def view(node: Node, signature: str, returns: str, *values: object) -> tuple[object, ...]:
    request = CallRequest(to=find_contract(signature), data=encode_call(signature, *values))
    result = node.call(request)
    assert not result.is_error
    found_values: tuple[object, ...] = decode([returns], result.output)
    return found_values


def get_state(node: Node) -> int:
    request = CallRequest(to=Address(TASKS_ADDRESS), data=encode_call("get_task(uint256)", 1))
    (fields,) = decode(["(uint256,address,uint8)"], node.call(request).output[32:])
    return int(fields[2])


def publish(
    owner: Caller, join_seconds: int, model: bytes, rule: tuple[int, ...] = MEAN
) -> BlobName:
    """Task 1: one round, one client, everything due within seconds."""
    name = compute_blob_name(model)
    nobody = "0x" + "00" * 20
    parameters = (
        rule, 2, 8, 1, 1, 1, ONE, 0, 0, ONE, 0, 0, 2**256 - 1, 0, join_seconds, 60, 60,
        10**15, 0, 0, 0, 0, 2**100, REWARD, RESERVE, BOUNTY, nobody, 0,
    )  # fmt: skip
    owner.send(
        PUBLISH,
        "heart",
        parameters,
        (name.digest, name.size),
        (bytes(32), 0),
        [],
        wei=REWARD + RESERVE,
        blobs={name: model},
    )
    return name


def make_update(base: BlobName, sender: Address, values: int) -> bytes:
    blocks = -(-values // 4096)
    header = UpdateHeader(Mode.OPEN, 8, Round(1), CHAIN_ID, TaskId(1), values, blocks, base, sender)
    q = np.resize(np.arange(-32, 32, dtype=np.int8), values)
    return encode_update(header, np.full(blocks, -20, np.int8), q)


def found_here(directory: Path, gas_limit: int = 30_000_000) -> Path:
    return found(
        directory / "node",
        heartbeat_ms=1_000,
        blob_retention_seconds=30 * 86_400,
        gas_limit=gas_limit,
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return found_here(tmp_path)


def start_with_keeper(home: Path) -> Node:
    node = open_node(home, replace(CONFIG, keeper=KeeperConfig(interval_seconds=0.1)))
    node.start()
    return node


@pytest.fixture
def node(home: Path) -> Iterator[Node]:
    node = start_with_keeper(home)
    yield node
    node.stop()


def run_round(node: Node, values: int = 64, rule: tuple[int, ...] = MEAN) -> tuple[object, ...]:
    """Publish, join, commit, reveal, and wait for the keeper. Returns the round's record."""
    owner, client = Caller(node, ALICE), Caller(node, BOB)
    base = publish(owner, 600, make_model(values), rule)
    client.send("join(uint256,uint256)", 1, 10, wei=10**15)
    update = make_update(base, client.address, values)
    name = compute_blob_name(update)
    (commitment,) = view(
        node,
        f"compute_commitment(uint256,uint256,uint256,address,{BLOB},uint256,bytes32)",
        "bytes32",
        1, 1, 1, client.account.address, (name.digest, name.size), 10, SALT,
    )  # fmt: skip
    client.send("commit(uint256,uint256,uint256,bytes32)", 1, 1, 1, commitment)
    client.send(REVEAL, 1, 1, 1, (name.digest, name.size), 10, SALT, blobs={name: update})
    wait_until(lambda: get_state(node) == FINISHED)
    (fields,) = view(node, "get_round(uint256,uint256)", ROUND_TYPES, 1, 1)
    return fields  # type: ignore[return-value]


def get_made(record: tuple[object, ...]) -> BlobName:
    """Return the model that a round made."""
    digest, size = record[11]  # type: ignore[misc]
    return BlobName(Digest(digest), size)


def list_blocks(node: Node) -> list[Block]:
    heights = range(1, node.get_head().height + 1)
    blocks = [node.get_block(Hash(node.get_hash(one) or b"")) for one in heights]
    return [decode_block(encode_block(block)) for block in blocks if block is not None]


def check_replay(node: Node) -> None:
    """Assert that who has only the genesis, the blocks and the blobs gets the same roots."""
    genesis, blocks = parse_genesis(node.get_genesis_document()), list_blocks(node)
    replayed = list(replay(genesis, blocks, node.blobs))
    assert [one.height for one in replayed] == list(range(1, len(blocks) + 1))
    assert all(one.difference is None for one in replayed)


@pytest.mark.slow
def test_the_keeper_closes_a_round_and_claims_its_pay(node: Node) -> None:
    model = get_made(run_round(node))
    values = decode_model(node.blobs.read(model)).values
    assert values.tolist() == [i + ((i - 32) << 4) for i in range(64)]
    expiry = node.store.get_blob_expiry(model)
    assert expiry is not None
    assert expiry > node.get_head().timestamp
    keeper = SECRETS.address
    wait_until(
        lambda: view(node, "claimable(uint256,address)", "uint256", 1, "0x" + keeper.hex()) == (0,)
    )
    assert node.get_nonce(keeper, pending=False) == 2


@pytest.mark.slow
def test_the_keeper_closes_a_large_round_page_by_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pricing, "VALUES_PER_GAS", 1)  # as if the model were 256 times as large
    node = start_with_keeper(found_here(tmp_path, gas_limit=3_000_000))
    try:
        record = run_round(node, 300_000, CLIPPED_WITH_MOMENTUM)
        pages = record[PAGES]
        assert isinstance(pages, int)
        assert pages >= 2, "measured and combined apart"
        values = decode_model(node.blobs.read(get_made(record))).values
        assert values.tolist()[:64] == [i + ((i - 32) << 4) for i in range(64)]
        assert node.get_nonce(SECRETS.address, pending=False) > pages, "each page in its own call"
        sent = [decode_transaction(raw) for one in list_blocks(node) for raw in one.transactions]
        gas = [
            one.gas for one in sent if one.sender == SECRETS.address and one.to == ROUNDS_ADDRESS
        ]
        assert gas == [3_000_000 * PAGE_GAS_PERCENT // 100] * (pages + 1)
        check_replay(node)
    finally:
        node.stop()


@pytest.mark.slow
def test_a_lobby_that_nobody_joins_is_aborted_by_the_keeper(node: Node) -> None:
    publish(Caller(node, ALICE), 1, make_model(64))
    wait_until(lambda: get_state(node) == ABORTED)
    assert node.get_nonce(SECRETS.address, pending=False) == 1


@pytest.mark.slow
def test_the_whole_chain_replays_from_its_genesis(node: Node) -> None:
    run_round(node)
    check_replay(node)


@pytest.mark.slow
def test_a_made_model_survives_a_restart(home: Path) -> None:
    node = start_with_keeper(home)
    model = get_made(run_round(node))
    node.stop()
    node = start_with_keeper(home)
    wait_for(node, node.submit_transaction(sign_transaction(ALICE, 1)))
    assert decode_model(node.blobs.read(model)).manifest == make_manifest(64)
    node.stop()

"""A keeper closes what pays for itself and nothing else, on the contracts themselves."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eth_account.signers.local import LocalAccount

from steelyard.chain.artifacts import get_artifact
from steelyard.chain.cid import compute_blob_name
from steelyard.chain.model import Manifest, Role, TensorSpec, encode_model
from steelyard.chain.params import TASKS_ADDRESS
from steelyard.chain.receipts import Receipt
from steelyard.chain.transactions import Transaction, decode_transaction
from steelyard.chain.types import Address
from steelyard.client.abi import Contract
from steelyard.node.config import KeeperConfig
from steelyard.node.keeper import Keeper
from steelyard.node.node import Node
from steelyard.node.steps import CLOSE_PAID, OPENING_GAS
from steelyard.node.wallet import Wallet

from .cluster import Cluster, make_document
from .world import ALICE, BOB, get_address, sign_transaction, upload

ONE = 2**20
TASKS = Contract(Address(TASKS_ADDRESS), get_artifact("Tasks").abi)
MANIFEST = Manifest((TensorSpec("weight", (64,), "float32", 24, Role.TRAIN),))
PLENTY = 10**17


class Stage:
    """One validator whose keeper looks when told to. Alice publishes, Bob joins."""

    def __init__(self, directory: Path, **config: Any) -> None:
        self.cluster = Cluster(directory, make_document((10,), heartbeat_ms=60_000), 1)
        self.cluster.start(0)
        self.node: Node = self.cluster.nodes[0]
        secrets = self.cluster.secrets[0]
        self.account = secrets.address
        settings = replace(self.node.config, keeper=KeeperConfig(**config))
        self.node.config = settings
        self.keeper = Keeper(self.node, Wallet(self.node, secrets.account))

    def send(
        self, who: LocalAccount, name: str, *values: Any, wei: int = 0, blob: bytes = b""
    ) -> int:
        """Have a call of Tasks made final. Returns its gas; AssertionError if it is reverted."""
        names = (compute_blob_name(blob),) if blob else ()
        raw = sign_transaction(
            who,
            self.node.get_nonce(get_address(who), pending=True),
            to=TASKS_ADDRESS,
            value=wei,
            data=TASKS.encode_call(name, *values),
            gas=2_500_000,
            blobs=names,
        )
        transaction_hash = self.cluster.submit(raw)
        if blob:
            upload(self.node, blob)
        self.finish()
        inclusion = self.node.find_transaction(transaction_hash)
        assert inclusion is not None
        receipt = self.node.get_receipts(inclusion.block_hash)[inclusion.index]
        assert receipt.status == 1, name
        return receipt.gas_used

    def finish(self) -> None:
        """Make all that is pending final."""
        self.cluster.run(lambda: not self.node.get_pending())

    def publish(
        self, reserve: int, bounty: int = 0, *, rounds: int = 9, extensions: int = 0
    ) -> int:
        """A task that starts as soon as Bob is in. Returns what gas this cost him and Alice."""
        model = encode_model(MANIFEST, np.arange(64, dtype=np.int32))
        name = compute_blob_name(model)
        parameters = (
            (0, 0, ONE, 2**12, 0), 2, 8, rounds, 1, 1, ONE, 0, 0, ONE, 1 if extensions else 0,
            extensions, 2**256 - 1, 0, 60, 1, 1, 10**15, 0, 0, 0, 0, 2**100, 0, reserve, bounty,
            bytes(20), 0,
        )  # fmt: skip
        files = (name.digest, name.size), (bytes(32), 0)
        gas = self.send(
            ALICE, "publish", "heart", parameters, *files, [], wei=rounds * reserve, blob=model
        )
        return gas + self.send(BOB, "join", 1, 10, wei=10**15)

    def play(self, rounds: int) -> int:
        """Let the keeper look so often, a round's time apart; return how often it closed."""
        closed = 0
        for _ in range(rounds):
            self.cluster.rest(2)
            self.keeper.look()
            closed += len(self.node.get_pending())
            self.finish()
        return closed

    def claim(self) -> None:
        """Have the task over, and the keeper claim."""
        self.send(ALICE, "cancel", 1)
        self.cluster.rest(30)
        self.keeper.look()
        self.finish()

    def list_own(self) -> list[tuple[Transaction, Receipt]]:
        """What the keeper sent, and what came of it."""
        own = []
        for height in range(1, self.cluster.get_height() + 1):
            block_hash = self.node.get_hash(height)
            assert block_hash is not None
            block = self.node.get_block(block_hash)
            assert block is not None
            receipts = self.node.get_receipts(block_hash)
            for raw, receipt in zip(block.transactions, receipts, strict=True):
                transaction = decode_transaction(raw)
                if transaction.sender == self.account:
                    own.append((transaction, receipt))
        return own

    def count_cost(self) -> int:
        """What the keeper's gas cost, tips included though they came back here, in wei."""
        return sum(one.gas_used * one.effective_gas_price for _, one in self.list_own())

    def count_pay(self) -> int:
        """What tasks credited the keeper with, in wei."""
        logs = [log for _, receipt in self.list_own() for log in receipt.logs]
        return sum(int.from_bytes(log.data) for log in logs if log.topics[:1] == (CLOSE_PAID,))


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    stages: list[Stage] = []

    def make(**config: Any) -> Stage:
        stages.append(Stage(tmp_path / str(len(stages)), **config))
        return stages[-1]

    yield make
    for stage in stages:
        stage.cluster.close()


@pytest.mark.slow
def test_rounds_without_a_reserve_cost_a_keeper_nothing(begin: Callable[..., Stage]) -> None:
    stage = begin(retry_seconds=1.0)
    stage.publish(reserve=0, rounds=10_000)
    assert stage.play(4) == 0
    assert stage.list_own() == []
    assert stage.node.get_status().rounds_left == 0, "the node's own keeper rests"
    assert stage.keeper.count_left() == 1


@pytest.mark.slow
def test_whoever_serves_all_pays_for_them(begin: Callable[..., Stage]) -> None:
    stage = begin(retry_seconds=1.0, close_unpaid=True)
    stage.publish(reserve=0, rounds=10_000)
    assert stage.play(2) == 2
    assert stage.count_pay() == 0
    assert stage.count_cost() > 0


@pytest.mark.slow
@pytest.mark.parametrize(("reserve", "bounty"), [(PLENTY, 0), (PLENTY, 10**13), (10**13, 10**13)])
def test_a_keeper_has_more_after_a_task_than_before_it(
    begin: Callable[..., Stage], reserve: int, bounty: int
) -> None:
    """Claim included, and every tip counted as spent. It closes what has a reserve for that."""
    stage = begin(retry_seconds=1.0)
    stage.publish(reserve, bounty)
    assert stage.play(3) == (3 if reserve == PLENTY else 0)
    stage.claim()
    assert stage.count_pay() >= stage.count_cost()
    assert {receipt.status for _, receipt in stage.list_own()} <= {1}


@pytest.mark.slow
def test_a_reserve_that_ends_among_extensions_is_not_overdrawn(begin: Callable[..., Stage]) -> None:
    """Of each call, the trial says what is left to pay it: the round is left where that ends."""
    stage = begin(retry_seconds=1.0)
    stage.publish(reserve=3 * 10**14, extensions=16)
    closed = stage.play(4)
    assert 0 < closed < 4
    assert stage.keeper.count_left() == 1
    waived = OPENING_GAS * stage.list_own()[0][1].effective_gas_price
    assert stage.count_pay() + waived >= stage.count_cost()
    assert stage.count_pay() <= 3 * 10**14

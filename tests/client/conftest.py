"""A chain in memory, an organisation and a hospital on it."""

from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from eth_account import Account as Keys
from eth_account.signers.local import LocalAccount

from steelyard.client.organisation import Organisation
from steelyard.client.outbox import Clock
from steelyard.client.participant import Client
from steelyard.client.rpc import Rpc
from steelyard.client.terms import Task
from steelyard.client.training import Result

from .ledger import GAS_LIMIT, Ledger

URL = "http://node.test"
CHAIN = {"gas_limit": GAS_LIMIT, "base_fee": 7, "tip": 1, "retention_seconds": 30 * 86_400}
"""What a task is drafted for."""
ORGANISATION = Keys.from_key(b"\x01" * 32)
HOSPITAL = Keys.from_key(b"\x02" * 32)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def open_rpc(
    ledger: Ledger, answer: Callable[[httpx.Request], httpx.Response] | None = None
) -> Rpc:
    return Rpc(URL, transport=httpx.MockTransport(answer or ledger.answer), sleep=ledger.sleep)


def open_account(kind, ledger: Ledger, key: LocalAccount, state: Path, answer=None, report=None):
    return kind(
        open_rpc(ledger, answer),
        key,
        state=state,
        report=report or (lambda line: None),
        clock=Clock(lambda: ledger.now, ledger.sleep),
    )


@pytest.fixture
def organisation(ledger: Ledger, tmp_path: Path):
    with open_account(Organisation, ledger, ORGANISATION, tmp_path / "organisation") as opened:
        yield opened


@pytest.fixture
def hospital(ledger: Ledger, tmp_path: Path):
    with open_account(Client, ledger, HOSPITAL, tmp_path / "hospital") as opened:
        opened.train(train)
        yield opened


def make_model() -> dict[str, np.ndarray]:
    return {
        "bias": np.zeros(2, np.float32),
        "weight": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2),
    }


def make_task(**changes) -> Task:
    settings = {
        "name": "heart",
        "model": make_model(),
        "rounds": 2,
        "min_clients": 1,
        "max_clients": 1,
        "reward": 1000,
        "round_seconds": 100,
    }
    return Task(**settings | changes)


def train(arrays, context) -> Result:
    """Add a little that depends on the round."""
    moved = {name: array + np.float32(0.01 * context.round) for name, array in arrays.items()}
    return Result(moved, samples=30, metrics={"loss": 0.5})

"""`steelyard localnet` as a user has it: four validators, one dies and comes back, nobody minds."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from steelyard.node import localnet
from steelyard.node.localnet import Localnet
from steelyard.node.localnet_commands import app
from tests.bench.cluster import PATIENCE_SECONDS, Wallet, make_account

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def invoke(*words: object, code: int = 0) -> Any:
    """Return what `steelyard localnet` says in JSON; what it waits for is on stderr."""
    result = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert result.exit_code == code, (result.output, result.exception)
    return json.loads(result.stdout)


def test_transfers_are_final_before_during_and_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localnet, "ANSWER_SECONDS", 60.0)  # of a machine with other things to do
    home, account = tmp_path / "net", make_account(0)
    words = ("--http-port", 0, "--heartbeat", 0.5, "--timeout", 1)
    with ExitStack() as stack:
        stack.callback(lambda: Localnet(home).stop())  # whatever `up` got done
        first = invoke("up", home, *words, "--fund", f"{account.address}=10")
        assert first["healthy"]
        assert len(first["validators"]) == 4
        net = Localnet(home)
        wallet = Wallet.open(account, net.urls[2])
        stack.callback(wallet.close)
        wallet.hand_in(wallet.sign_transfer())
        net.kill(3)
        for _ in range(2):
            wallet.hand_in(wallet.sign_transfer())
        check_one_state(net, (1, 2, 4))
        height = first["height"] + 4  # each validator would have led once
        net.wait_final(height, patience=PATIENCE_SECONDS)
        status = invoke("status", home, code=1)
        assert status["agree"]
        assert not status["healthy"]
        assert invoke("up", home, "--only", 3)["height"] > height
        wallet.hand_in(wallet.sign_transfer())
        net.wait_final(net.report(2).height or 0, patience=PATIENCE_SECONDS)
        check_one_state(net, net.numbers)
        down = invoke("down", home)
        assert down == {"stopped": [1, 2, 3, 4], "killed": []}
        assert {net.find_process(number) for number in net.numbers} == {None}


def check_one_state(net: Localnet, numbers: Sequence[int]) -> None:
    """These have the same hash, which covers the state, at the highest block that all have."""
    height = min(net.report(number).height or 0 for number in numbers)
    assert height > 0
    names = {net.get_hash(number, height) for number in numbers}
    assert len(names) == 1
    assert None not in names

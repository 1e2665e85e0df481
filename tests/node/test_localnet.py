"""Several validators on one machine: found again by whoever opens the directory, and nobody else's
processes touched.

Four of them, one killed, are in tests/e2e; long runs under kill -9 in tests/bench.
"""

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from steelyard.chain.errors import SteelyardError
from steelyard.chain.genesis import parse_genesis
from steelyard.node.config import load_config
from steelyard.node.localnet import (
    PASSWORD_FILE,
    PID_FILE,
    Localnet,
    Report,
    is_node,
    read_pid,
)
from steelyard.node.localnet_commands import app, describe
from steelyard.node.ports import find_ports, get_first_outgoing

from .world import make_foundation


def get_code(act: Any, *words: Any, **options: Any) -> str:
    with pytest.raises(SteelyardError) as caught:
        act(*words, **options)
    return caught.value.code


def invoke(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Localnet:
    directory = tmp_path_factory.mktemp("localnet") / "net"
    return Localnet.create(directory, make_foundation(), validators=3)


# -- making one ------------------------------------------------------------------------------------
def test_each_validator_has_its_keys_and_all_have_one_document(net: Localnet) -> None:
    documents = {(net.get_directory(i) / "genesis.json").read_bytes() for i in net.numbers}
    assert len(documents) == 1
    genesis = parse_genesis(documents.pop())
    assert len(genesis.validators) == 3
    ports = [load_config(net.get_directory(i)).http.port for i in net.numbers]
    endpoints = {one.endpoint for one in genesis.validators}
    assert endpoints == {f"127.0.0.1:{port + 1}" for port in ports}


def test_each_validator_follows_others_in_case_it_is_jailed_while_it_is_down(
    net: Localnet,
) -> None:
    for number in net.numbers:
        follow = load_config(net.get_directory(number)).follow
        assert set(follow.nodes) == set(net.urls.values()) - {net.urls[number]}


def test_the_password_is_for_its_owner_only(net: Localnet) -> None:
    mode = (net.directory / PASSWORD_FILE).stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_a_directory_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert get_code(Localnet.create, tmp_path / "full", make_foundation()) == "data_exists"
    bad = make_foundation(gas_limit=1)
    assert get_code(Localnet.create, tmp_path / "net", bad, validators=1) == "genesis_range"
    assert [one.name for one in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize("validators", [0, -1, 33])
def test_a_number_of_validators_that_does_not_fit_is_refused(
    tmp_path: Path, validators: int
) -> None:
    code = get_code(Localnet.create, tmp_path / "n", make_foundation(), validators=validators)
    assert code == "localnet_size"


def test_a_directory_that_is_no_localnet_is_named(tmp_path: Path, net: Localnet) -> None:
    assert get_code(Localnet, tmp_path) == "localnet_missing"
    assert get_code(invoke, "status", tmp_path / "none") == "localnet_missing"
    assert get_code(net.get_directory, 0) == "localnet_number"
    assert get_code(net.get_directory, 4) == "localnet_number"


def test_up_refuses_another_number_of_validators_than_there_are(net: Localnet) -> None:
    assert get_code(invoke, "up", net.directory, "--validators", 4) == "data_exists"


# -- ports -----------------------------------------------------------------------------------------
def test_free_ports_are_apart_and_none_that_a_connection_could_take() -> None:
    ports = find_ports(8, 0)
    used = [one for port in ports for one in range(port, port + 3)]
    assert len(set(used)) == 24
    assert max(used) < get_first_outgoing()


def test_a_port_in_use_is_named_before_anything_is_made() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(SteelyardError, match=str(port)) as caught:
            find_ports(1, port - 2)
    assert caught.value.code == "port_taken"
    assert get_code(find_ports, 2, 65_530) == "port_taken"


# -- processes -------------------------------------------------------------------------------------
def test_a_process_that_is_not_this_directorys_node_is_never_taken_for_it(net: Localnet) -> None:
    home = net.get_directory(1)
    (home / PID_FILE).write_text(f"{os.getpid()}\n")
    assert net.find_process(1) is None
    net.kill(1)
    assert net.stop() == ()
    (home / PID_FILE).unlink()


@pytest.mark.parametrize("text", ["", "x", "-1", "99999999999", "1 2", "¹"])
def test_a_damaged_pid_file_is_nobodys(tmp_path: Path, text: str) -> None:
    (tmp_path / "pid").write_text(text)
    assert read_pid(tmp_path / "pid") is None


def test_a_process_that_ended_is_gone_before_anybody_asks_how(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "pass", "run", str(tmp_path)]
    process = subprocess.Popen(words)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_node(process.pid, tmp_path)
    process.wait()


def test_two_commands_do_not_start_and_stop_at_once(net: Localnet) -> None:
    with net.busy():
        assert get_code(invoke, "down", net.directory) == "localnet_busy"
    assert "stopped 0 of 3" in invoke("down", net.directory)


# -- saying how it is ------------------------------------------------------------------------------
def test_status_says_no_while_nothing_runs(net: Localnet) -> None:
    said = json.loads(invoke("status", net.directory, "--json", code=1))
    assert not said["healthy"]
    assert [one["pid"] for one in said["validators"]] == [None] * 3
    assert invoke("status", net.directory, code=1).count("down") == 3


def test_validators_with_different_blocks_at_one_height_do_not_agree(
    net: Localnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = [Report(1, "", "", 7, height=5), Report(2, "", "", 8, height=9)]
    asked = []

    def get_hash(number: int, height: int) -> str:
        asked.append((number, height))
        return f"0x{number}"

    monkeypatch.setattr(net, "get_hash", get_hash)
    assert net.agree(reports) == (5, False)
    assert sorted(asked) == [(1, 5), (2, 5)]
    monkeypatch.setattr(net, "get_hash", lambda number, height: "0x1")
    assert net.agree(reports) == (5, True)


def test_a_line_of_status_names_what_is_wrong() -> None:
    assert "down" in describe(Report(1, "d", "u"))
    assert "no answer; see d/log" in describe(Report(1, "d", "u", 7))
    assert "ALARM disk_full" in describe(Report(1, "d", "u", 7, 1, 2, 3, "0x", ("disk_full",)))


@pytest.mark.e2e
def test_up_down_and_up_again_go_on_with_the_same_chain(tmp_path: Path) -> None:
    home = tmp_path / "net"
    words = ("up", home, "--validators", 1, "--http-port", 0, "--heartbeat", 0.2, "--json")
    net = None
    try:
        first = json.loads(invoke(*words))
        net = Localnet(home)
        assert first["healthy"]
        assert json.loads(invoke(*words))["validators"][0]["pid"] == first["validators"][0]["pid"]
        height = first["height"]
        held = net.get_hash(1, height)
        net.kill(1)
        assert "down" in invoke("status", home, code=1)
        again = json.loads(invoke("up", home, "--only", 1, "--json"))
        assert again["height"] > height
        assert net.get_hash(1, height) == held
        (home / "validator-1" / PID_FILE).unlink()  # as if killed between start and writing it
        assert json.loads(invoke("down", home, "--json")) == {"stopped": [1], "killed": []}
        assert get_code(net.wait_answer, [1]) == "localnet_ended"
        net.remove()
        assert not home.exists()
    finally:
        if net is not None and home.exists():
            net.stop()

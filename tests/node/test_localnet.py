"""Several validators on one machine: found again by whoever opens the directory, and nobody else's
processes touched.

Four of them, one killed, are in tests/e2e; long runs under kill -9 in tests/bench.
"""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from steelyard.chain.errors import SteelyardError
from steelyard.chain.genesis import parse_genesis
from steelyard.node import localnet as localnet_module
from steelyard.node import localnet_commands
from steelyard.node.config import load_config
from steelyard.node.localnet import (
    LOG_FILE,
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
    return result.stdout


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


# -- waiting ---------------------------------------------------------------------------------------
@pytest.fixture
def starting(net: Localnet, monkeypatch: pytest.MonkeyPatch) -> Iterator[Localnet]:
    """A localnet whose first validator runs, and has not come as far as to answer."""
    home = net.get_directory(1)
    code = "import time; print(flush=True); time.sleep(600)"
    words = [sys.executable, "-c", code, "run", str(home)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()  # before, /proc may not show its words yet
    (home / PID_FILE).write_text(f"{process.pid}\n")
    with socket.socket() as held:  # its own port may be anybody's by now
        held.bind(("127.0.0.1", 0))
        monkeypatch.setitem(net.urls, 1, f"http://127.0.0.1:{held.getsockname()[1]}")
        yield net
    process.kill()
    process.wait()
    process.stdout.close()
    (home / PID_FILE).unlink()
    (home / LOG_FILE).unlink(missing_ok=True)


def test_a_validator_that_only_starts_is_waited_for_and_one_is_told_so(
    starting: Localnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localnet_module, "PROGRESS_SECONDS", 0.0)
    (starting.get_directory(1) / LOG_FILE).write_text("first\nnode_starting\n")

    class Told(Exception):
        pass

    def tell(line: str) -> None:
        raise Told(line)

    with pytest.raises(Told) as told:
        starting.wait_answer([1], tell=tell)
    assert re.fullmatch(
        r"waiting for validator 1 to answer: \d+ s of 600; last words: node_starting",
        str(told.value),
    )


@pytest.mark.parametrize("said", ["", "node_starting\n"])
def test_who_gave_up_waiting_is_told_what_runs_and_what_to_do(
    starting: Localnet, said: str
) -> None:
    log = starting.get_directory(1) / LOG_FILE
    log.write_text(said)
    with pytest.raises(SteelyardError) as caught:
        starting.wait_answer([1], patience=0)
    assert caught.value.code == "localnet_stalled"
    text = caught.value.message
    for part in (
        "still run",
        f"localnet up {starting.directory}",
        "--patience",
        f"localnet down {starting.directory}",
        f"the end of {log}:\nnode_starting" if said else f"{log} is empty so far",
    ):
        assert part in text


def test_a_validator_that_ended_is_not_waited_for_and_its_last_words_are_told(
    net: Localnet,
) -> None:
    log = net.get_directory(2) / LOG_FILE
    log.write_text("".join(f"line {number}\n" for number in range(5_000)) + "port_taken: 1\n")
    with pytest.raises(SteelyardError, match="port_taken: 1") as caught:
        net.wait_answer([2])
    log.unlink()
    assert caught.value.code == "localnet_ended"
    assert "line 4999" in caught.value.message
    assert "line 4900" not in caught.value.message


@pytest.mark.parametrize(
    ("only", "order"), [([], ["compile", 1, 2, 3]), (["--only", 1, "--only", 2], ["compile", 1, 2])]
)
def test_one_process_compiles_the_kernels_before_several_start(
    net: Localnet, monkeypatch: pytest.MonkeyPatch, only: list[object], order: list[object]
) -> None:
    done = record_up(monkeypatch)
    invoke("up", net.directory, *only)
    assert done == order


def test_a_validator_that_starts_alone_compiles_by_itself(
    net: Localnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = record_up(monkeypatch)
    invoke("up", net.directory, "--only", 2)
    assert done == [2]


def record_up(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What `up` would have started, in order; nothing is."""
    done: list[object] = []
    monkeypatch.setattr(localnet_commands, "compile_kernels", lambda _: done.append("compile"))
    monkeypatch.setattr(localnet_commands, "wait_until_final", lambda *_: None)
    monkeypatch.setattr(Localnet, "start", lambda _, number: done.append(number))
    return done


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """What was started to compile the kernels: it never ends by itself."""
    started: list[subprocess.Popen[bytes]] = []

    def start(words: list[str], **options: Any) -> subprocess.Popen[bytes]:
        assert words[1:] == ["-m", "steelyard", "selftest"]
        started.append(original([words[0], "-c", "import time; time.sleep(600)"], **options))
        return started[-1]

    original = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(localnet_module, "PROGRESS_SECONDS", 0.0)
    return started


def test_compiling_is_told_of_and_given_up_when_patience_ends(
    compiling: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    looks = iter((False, True))
    monkeypatch.setattr(localnet_module.Waiting, "is_over", lambda _: next(looks))
    localnet_commands.compile_kernels(60)
    said = capsys.readouterr()
    assert said.err.startswith("waiting for the kernels to be compiled")
    assert said.out == ""
    assert [process.returncode for process in compiling] == [-signal.SIGKILL]


def test_who_is_ended_while_kernels_are_compiled_ends_that_too(
    compiling: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localnet_commands, "say", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        localnet_commands.compile_kernels(60)
    assert caught.value.code == 128 + signal.SIGTERM
    assert [process.returncode for process in compiling] == [-signal.SIGKILL]
    assert signal.getsignal(signal.SIGTERM) == before


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
    monkeypatch.setattr(net, "get_hash", lambda number, height: "0x1" if number == 1 else None)
    assert net.agree(reports) == (5, True), "one had no time to answer"


def test_a_line_of_status_names_what_is_wrong() -> None:
    assert "down" in describe(Report(1, "d", "u"))
    assert "no answer; see d/log" in describe(Report(1, "d", "u", 7))
    assert "ALARM disk_full" in describe(Report(1, "d", "u", 7, 1, 2, 3, "0x", ("disk_full",)))


@pytest.mark.e2e
def test_up_down_and_up_again_go_on_with_the_same_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localnet_module, "ANSWER_SECONDS", 60.0)
    home = tmp_path / "net"
    words = ("up", home, "--validators", 1, "--http-port", 0, "--heartbeat", 0.2, "--json")
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
        if home.exists():  # whatever the first `up` got done
            Localnet(home).stop()

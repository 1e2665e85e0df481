"""`steelyard node`, as a person meets it: real processes, exit codes, and errors that help."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_utils.address import to_checksum_address
from typer.testing import CliRunner

from steelyard.chain.errors import SteelyardError
from steelyard.chain.genesis import DEFAULT_GAS_LIMIT, parse_genesis
from steelyard.node import commands
from steelyard.node.commands import app, drop_zeros
from steelyard.node.config import load_config
from steelyard.node.founding import parse_amount, parse_fund
from steelyard.node.options import PASSWORD_VARIABLE, answer

from .world import ALICE, found, get_address, wait_until

PASSWORD = "correct horse"
START_SECONDS = 180.0
RUNNER = CliRunner()


def invoke(*words: object) -> str:
    result = RUNNER.invoke(app, [str(word) for word in words], env={PASSWORD_VARIABLE: PASSWORD})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def get_code(*words: object) -> str:
    with pytest.raises(SteelyardError) as caught:
        invoke(*words)
    return caught.value.code


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("commands") / "node"
    invoke("init", home, "--port", 0, "--heartbeat", 0.2, "--fund", f"{ALICE.address}=1000")
    return home


@pytest.mark.slow
# -- init and keys ---------------------------------------------------------------------------------
def test_init_makes_a_chain_of_one_validator(home: Path) -> None:
    genesis = parse_genesis((home / "genesis.json").read_bytes())
    described = json.loads(invoke("keys", home, "--json"))
    assert len(genesis.validators) == 1
    assert described["address"] == to_checksum_address(genesis.validators[0].address)
    assert described["bls_key"] == "0x" + genesis.validators[0].bls_key.hex()
    assert described["network_key"] == "0x" + genesis.validators[0].network_key.hex()
    assert dict(genesis.alloc)[get_address(ALICE)] == 1000 * 10**18
    assert genesis.consensus.heartbeat_ms == 200
    assert genesis.gas_limit == DEFAULT_GAS_LIMIT


@pytest.mark.slow
def test_init_touches_nothing_that_exists(home: Path) -> None:
    assert get_code("init", home) == "data_exists"

    file = home / "genesis.json"
    assert get_code("init", file) == "data_exists"
    assert get_code("init", file / "below") == "file_write"


@pytest.mark.slow
def test_init_can_take_a_document_and_says_that_new_keys_do_not_fit(
    home: Path, tmp_path: Path
) -> None:
    said = invoke("init", tmp_path / "new", "--genesis", home / "genesis.json")
    assert (tmp_path / "new/genesis.json").read_bytes() == (home / "genesis.json").read_bytes()
    assert "of no validator in the document" in said
    assert "--keys DIR" in said


@pytest.mark.slow
def test_init_can_take_a_document_and_the_keys_of_its_validator(home: Path, tmp_path: Path) -> None:
    new, keys = tmp_path / "new", home / "keys"
    said = invoke("init", new, "--genesis", home / "genesis.json", "--keys", keys)
    assert "node run" in said
    assert "of no validator" not in said
    for file in keys.iterdir():
        assert (new / "keys" / file.name).read_bytes() == file.read_bytes()
        assert (new / "keys" / file.name).stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_init_copies_no_keys_that_are_of_no_use(home: Path, tmp_path: Path) -> None:
    invoke("init", tmp_path / "other")
    options = ("--genesis", home / "genesis.json", "--keys")
    new = tmp_path / "new"
    assert get_code("init", new, *options, tmp_path / "other" / "keys") == "key_validator"
    assert get_code("init", new, *options, tmp_path / "nothing") == "key_missing"
    assert get_code("init", new, *options, home / "genesis.json") == "key_missing"
    assert not new.exists()


@pytest.mark.slow
def test_init_can_follow_a_chain_with_keys_that_are_not_in_its_document(
    home: Path, tmp_path: Path
) -> None:
    checkpoint = "7:0x" + "ab" * 32
    words = ("--genesis", home / "genesis.json", "--follow", "http://one:8545", "--follow")
    invoke("init", tmp_path / "new", *words, "http://two:8545", "--checkpoint", checkpoint)
    follow = load_config(tmp_path / "new").follow
    assert follow.nodes == ("http://one:8545", "http://two:8545")
    assert follow.checkpoint == checkpoint


def test_pruning_needs_a_chain_that_nobody_uses(tmp_path: Path) -> None:
    assert get_code("prune", tmp_path / "nothing") == "data_missing"
    assert get_code("prune", found(tmp_path / "new")) == "chain_empty"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--follow", "nowhere"), "follow_url"),
        (("--checkpoint", "7:0x" + "ab" * 32), "follow_missing"),
        (("--follow", "http://one", "--checkpoint", "7"), "checkpoint_malformed"),
        (("--checkpoint", "7"), "checkpoint_malformed"),
        (("--trust-genesis", "--genesis", "missing.json"), "follow_missing"),
        (("--follow", "http://one"), "genesis_missing"),
        (("--epoch-blocks", "0"), "genesis_range"),
        (("--issuance", "-1"), "amount_malformed"),
        (("--unbonding-days", "0"), "genesis_range"),
        (("--unbonding-days", "nan"), "genesis_range"),
        (("--min-stake", "33"), "genesis_validators"),
        (("--genesis", "missing.json"), "genesis_missing"),
        (("--genesis", "."), "genesis_missing"),
        *[
            ((option, value), "genesis_range")
            for option in ("--heartbeat", "--timeout")
            for value in ("nan", "inf", "-inf", "0", "-1", "0.0001", "1e300")
        ],
        (("--port", "99999"), "config_value"),
        (("--port", "-1"), "config_value"),
        (("--retention-days", "-1"), "genesis_range"),
        (("--gas-limit", "0"), "genesis_range"),
        (("--chain-id", "0"), "genesis_range"),
        (("--name", ""), "genesis_range"),
    ],
)
def test_init_refuses_what_no_chain_can_have(
    tmp_path: Path, words: tuple[str, ...], code: str
) -> None:
    assert get_code("init", tmp_path / "new", *words) == code
    assert not (tmp_path / "new").exists()


def test_a_document_that_is_none_is_named(home: Path, tmp_path: Path) -> None:
    document = tmp_path / "chain.json"
    document.write_text("{}")
    for words in (("init", tmp_path / "new", "--genesis", document), ("standing", tmp_path)):
        with pytest.raises(
            SteelyardError, match=r"(chain|genesis)\.json: .*GET /chain/genesis"
        ) as it:
            invoke(*words)
        assert it.value.code == "genesis_malformed"
        (tmp_path / "genesis.json").write_text("[]")
        (tmp_path / "endpoint").write_text("http://127.0.0.1:1")


def test_an_answer_for_people_has_a_row_for_each_fact_in_a_group(
    capsys: pytest.CaptureFixture[str],
) -> None:
    facts = {"height": 7, "following": {"behind": 2, "sources": {"http://a:1": "9"}}, "none": {}}
    answer(facts | {"list": ["a", "b"], "empty": [], "seconds": 1.26, "nothing": None}, False)
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()] == [
        ["height", "7"],
        ["following.behind", "2"],
        ["following.sources.http://a:1", "9"],
        ["none", "none"],
        ["list", "a, b"],
        ["empty", "none"],
        ["seconds", "1.3"],
        ["nothing", "none"],
    ]


def test_counters_that_never_counted_are_not_shown_to_people() -> None:
    counts = {"dropped": {"epoch": 2, "muted": 0}, "work": {"chunks_served": 0}, "muted": 0}
    assert drop_zeros(counts) == {"dropped": {"epoch": 2}}


def test_init_needs_a_password(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    assert get_code("init", tmp_path / "a", "--password-file", empty) == "password_missing"
    assert get_code("init", tmp_path / "a", "--password-file", tmp_path / "b") == "password_missing"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("text", "wei"),
    [("1", 10**18), ("0.5", 5 * 10**17), ("7wei", 7), ("1_000", 10**21), ("1e3", 10**21)],
)
def test_amounts_are_coins_unless_they_say_wei(text: str, wei: int) -> None:
    assert parse_amount(text) == wei


@pytest.mark.parametrize("text", ["", "x", "-1", "0.5wei", "nan", "inf", "1e-19"])
def test_amounts_that_are_no_whole_wei_are_refused(text: str) -> None:
    with pytest.raises(SteelyardError) as caught:
        parse_amount(text)
    assert caught.value.code == "amount_malformed"


@pytest.mark.parametrize("text", ["", "=1", "0x12=1", f"{ALICE.address}", "0x" + "g" * 40 + "=1"])
def test_funds_without_an_address_are_refused(text: str) -> None:
    with pytest.raises(SteelyardError) as caught:
        parse_fund(text)
    assert caught.value.code == "fund_malformed"


# -- run and status --------------------------------------------------------------------------------
def start(home: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "steelyard", "node", "run", str(home), *words],
        env={**os.environ, PASSWORD_VARIABLE: PASSWORD},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("listening on "), line + (
        process.stderr.read() if process.stderr else ""
    )
    return line.split()[-1]


def get_health(url: str) -> dict[str, Any]:
    facts: dict[str, Any] = httpx.get(f"{url}/health", timeout=START_SECONDS).json()
    return facts


def finish(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str]:
    process.send_signal(number)
    _, errors = process.communicate(timeout=START_SECONDS)
    return process.returncode, errors


@pytest.fixture
def running(home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = start(home)
    try:
        yield process, read_url(process)
    finally:
        if process.poll() is None:
            finish(process)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.mark.e2e
def test_a_running_node_answers_refuses_a_twin_and_stops_cleanly(
    home: Path, running: tuple[subprocess.Popen[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "STATUS_SECONDS", START_SECONDS)
    process, url = running
    first = json.loads(invoke("status", home, "--json"))
    assert first["healthy"]
    assert "healthy" in invoke("status", "--url", url)
    twin = start(home)
    _, errors = twin.communicate(timeout=START_SECONDS)
    assert twin.returncode == 2
    assert "data_locked" in errors
    wait_until(lambda: get_health(url)["height"] > first["height"])
    code, errors = finish(process)
    assert code == 0
    assert "block_finalized height=" in errors
    assert "node_stopped" in errors
    assert "Traceback" not in errors
    assert get_code("status", home) == "node_stopped"


@pytest.mark.e2e
def test_a_taken_port_is_named(home: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        process = start(home, "--port", str(listener.getsockname()[1]))
        _, errors = process.communicate(timeout=START_SECONDS)
    assert process.returncode == 2
    assert "port_taken" in errors


@pytest.mark.e2e
def test_a_damaged_database_is_refused_with_advice_and_left_alone(tmp_path: Path) -> None:
    home = tmp_path / "node"
    invoke("init", home, "--port", 0)
    process = start(home)
    read_url(process)
    assert finish(process)[0] == 0
    path = home / "chain" / "data.mdb"
    held = path.read_bytes()
    for bad in (held[: len(held) // 2], b"\xa5" * len(held)):
        path.write_bytes(bad)
        process = start(home)
        _, errors = process.communicate(timeout=START_SECONDS)
        assert process.returncode == 2
        assert "data_corrupt" in errors
        assert "restore" in errors
        assert "Traceback" not in errors
        assert path.read_bytes() == bad
    path.write_bytes(held)
    process = start(home)
    read_url(process)
    assert finish(process)[0] == 0


@pytest.mark.e2e
def test_a_process_killed_again_and_again_keeps_its_chain(home: Path) -> None:
    seen: dict[int, str] = {}
    for _ in range(3):
        process = start(home)
        url = read_url(process)
        target = max(seen, default=0) + 3
        while max(seen, default=0) < target:
            wait_until(lambda url=url: get_health(url)["height"] > max(seen, default=-1))
            facts = get_health(url)
            assert seen.setdefault(facts["height"], facts["block_hash"]) == facts["block_hash"]
        finish(process, signal.SIGKILL)
    process = start(home)
    url = read_url(process)
    for height, block_hash in seen.items():
        body = {"jsonrpc": "2.0", "id": 1, "method": "eth_getBlockByNumber"}
        call = {**body, "params": [hex(height), False]}
        reply = httpx.post(url, json=call, timeout=START_SECONDS).json()
        assert reply["result"]["hash"] == block_hash
    assert finish(process)[0] == 0


@pytest.mark.slow
def test_run_names_what_is_wrong_with_its_directory(home: Path, tmp_path: Path) -> None:
    assert get_code("run", tmp_path / "nothing") == "config_missing"
    assert get_code("run", home / "genesis.json") == "config_missing"
    assert get_code("keys", home / "genesis.json") == "key_missing"
    assert get_code("run", home, "--log", "foo") == "config_value"
    assert get_code("run", home, "--port", 99999) == "config_value"
    with pytest.raises(SteelyardError) as caught:
        RUNNER.invoke(
            app, ["run", str(home)], env={PASSWORD_VARIABLE: "wrong"}, catch_exceptions=False
        )
    assert caught.value.code == "key_password"


def test_status_without_an_answer_says_so() -> None:
    with pytest.raises(SteelyardError, match=r"steelyard node run DIR.*--url") as caught:
        invoke("status", "--url", "http://127.0.0.1:1")
    assert caught.value.code == "node_unreachable"

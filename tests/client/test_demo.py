"""The demo: its data, its liar, what it reports; and one run as a user starts it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from steelyard.chain.bls import Signature
from steelyard.chain.consensus.certificates import (
    Certificate,
    decode_certificate,
    encode_certificate,
)
from steelyard.chain.consensus.votes import Kind, Statement
from steelyard.chain.errors import SteelyardError
from steelyard.chain.types import Epoch, Hash, View
from steelyard.client.amounts import coins
from steelyard.client.demo import heart
from steelyard.client.demo.liar import flip_bit_of, forge_certificates, serve_liar
from steelyard.client.demo.processes import Processes
from steelyard.client.demo.report import (
    Accuracies,
    Intrusion,
    Money,
    Recovery,
    Story,
    describe_story,
    encode_stories,
    merge_verdicts,
)
from steelyard.client.demo.story import wait_for_reports
from steelyard.client.demo.validators import Validators, kill_node

KEYS = {
    "seconds",
    "rounds",
    "federated",
    "pooled",
    "local_only",
    "float_fedavg",
    "escrow",
    "paid",
    "fee",
    "refunded",
    "audit",
    "tampered",
    "forged",
}


PATIENCE_SECONDS = 900
"""Of a whole demo, which alone takes half a minute, beside other tests on a slow machine."""


def make_money(*, escrow: int = 100, paid: int = 90, fee: int = 3) -> Money:
    return Money(escrow, paid, fee, escrow - paid - fee, {"Cleveland": paid - 40, "Hungary": 40})


def make_story(money: Money | None = None, **changes: object) -> Story:
    settings: dict[str, object] = {
        "rounds": 8,
        "accuracies": Accuracies(0.81, 0.82, 0.75, 0.812),
        "money": money or make_money(),
        "audit": "YES",
        "tampered": "REFUTED",
        "forged": "REFUTED",
    }
    return Story(**settings | changes)


# -- the report ------------------------------------------------------------------------------------
def test_the_json_is_one_line_with_what_the_demo_promises() -> None:
    line = encode_stories([make_story()], 12.3456)
    assert "\n" not in line
    document = json.loads(line)
    assert set(document) >= KEYS
    assert document["seconds"] == 12.346
    assert document["rounds"] == 8
    assert (document["federated"], document["pooled"]) == (0.81, 0.82)
    assert (document["audit"], document["tampered"]) == ("YES", "REFUTED")
    assert "intruder" not in document


def test_amounts_are_decimal_strings_that_hold_every_wei() -> None:
    money = make_money(escrow=coins(500) + 1, paid=coins(499), fee=7)
    document = json.loads(encode_stories([make_story(money)], 1))
    assert document["escrow"] == "500000000000000000001"
    parts = [document[name] for name in ("paid", "fee", "refunded")]
    assert all(isinstance(part, str) for part in parts)
    assert int(document["escrow"]) == sum(map(int, parts))


def test_means_over_splits_still_add_up() -> None:
    monies = [make_money(escrow=100 + n, paid=80 + n // 2, fee=n % 3) for n in range(7)]
    for count in range(1, len(monies) + 1):
        stories = [make_story(money) for money in monies[:count]]
        document = json.loads(encode_stories(stories, 1))
        escrow, *parts = (int(document[n]) for n in ("escrow", "paid", "fee", "refunded"))
        assert escrow == sum(parts)
        assert min(parts) >= 0
        assert document["splits"] == count


def test_accuracies_are_means_over_splits() -> None:
    stories = [make_story(accuracies=Accuracies(x, x, x, x)) for x in (0.5, 0.75)]
    assert json.loads(encode_stories(stories, 1))["federated"] == 0.625


@pytest.mark.parametrize(
    ("verdicts", "expected", "merged"),
    [
        (["YES", "YES"], "YES", "YES"),
        (["YES", "UNKNOWN", "REFUTED"], "YES", "UNKNOWN"),
        (["REFUTED", "YES"], "REFUTED", "YES"),
    ],
)
def test_one_bad_verdict_spoils_all(verdicts: list[str], expected: str, merged: str) -> None:
    assert merge_verdicts(verdicts, expected) == merged


@pytest.mark.parametrize(
    ("changes", "is_good"),
    [
        ({}, True),
        ({"audit": "UNKNOWN"}, False),
        ({"tampered": "YES"}, False),
        ({"forged": "YES"}, False),
        ({"forged": "UNKNOWN"}, False),
        ({"recovery": Recovery(3, has_same_root=True, has_voted_twice=False)}, True),
        ({"recovery": Recovery(3, has_same_root=False, has_voted_twice=False)}, False),
        ({"recovery": Recovery(3, has_same_root=True, has_voted_twice=True)}, False),
        ({"intrusion": Intrusion(0.42, 0.8, 8, 8)}, True),
        ({"intrusion": Intrusion(0.42, 0.8, 7, 8)}, False),
        ({"intrusion": Intrusion(0.82, 0.8, 8, 8)}, False),
        ({"money": Money(100, 90, 3, 6, {"Cleveland": 90})}, False),
        ({"money": Money(100, 90, 3, 7, {"Cleveland": 89})}, False),
    ],
)
def test_a_story_is_good_if_every_promise_was_kept(changes: dict, is_good: bool) -> None:
    assert make_story(**changes).is_good is is_good


def test_money_that_does_not_add_up_is_said() -> None:
    assert any("adds up" in line for line in describe_story(make_story()))
    lost = make_story(Money(100, 90, 3, 6, {"Cleveland": 90}))
    assert any("DOES NOT ADD UP" in line for line in describe_story(lost))


def test_a_recovery_is_told_by_splits_that_had_one() -> None:
    good = make_story(recovery=Recovery(3, has_same_root=True, has_voted_twice=False))
    bad = make_story(recovery=Recovery(3, has_same_root=False, has_voted_twice=True))
    assert "recovered" not in json.loads(encode_stories([make_story()], 1))
    assert json.loads(encode_stories([good, make_story()], 1))["recovered"] is True
    assert json.loads(encode_stories([good, bad], 1))["recovered"] is False
    assert bad.recovery is not None
    assert "ANOTHER ROOT" in bad.recovery.description
    assert "DOUBLE VOTE" in bad.recovery.description


def test_the_intruder_is_told_by_rule() -> None:
    story = make_story(intrusion=Intrusion(0.42, 0.8, 7, 8))
    assert json.loads(encode_stories([story, make_story()], 1))["intruder"] == {
        "fedavg": 0.42,
        "multi_krum": 0.8,
        "flagged": 7,
        "rounds": 8,
    }
    line = " intruder    fifth client, sign-flip x4: fedavg 0.420 | multi_krum 0.800, flagged 7/8"
    assert line in describe_story(story)


# -- the data --------------------------------------------------------------------------------------
def test_the_table_has_the_patients_of_four_hospitals() -> None:
    rows = heart.read_rows()
    assert len(rows) == 920
    assert Counter(row["dataset"] for row in rows) == {
        "Cleveland": 304,
        "Hungary": 293,
        "VA Long Beach": 200,
        "Switzerland": 123,
    }


def test_every_row_becomes_finite_features_and_a_label() -> None:
    patients = heart.encode_rows(heart.read_rows())
    assert patients.features.shape == (920, heart.FEATURES)
    assert patients.features.dtype == np.float32
    assert np.isfinite(patients.features).all()
    assert set(patients.labels.tolist()) == {0, 1}


def test_a_split_follows_from_its_seed_and_loses_nobody() -> None:
    rows = heart.read_rows()
    parts = heart.split_rows(rows, 3)
    assert parts == heart.split_rows(heart.read_rows(), 3)
    assert parts != heart.split_rows(rows, 4)
    for name, (train, test) in parts.items():
        own = [row for row in rows if row["dataset"] == name]
        assert len(test) == round(0.3 * len(own))
        ids = [row["id"] for row in [*train, *test]]
        assert sorted(ids) == sorted(row["id"] for row in own)


def test_a_hospitals_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rows = heart.read_rows()[:20]
    heart.write_rows(tmp_path / "own.csv", rows)
    again = heart.encode_rows(heart.read_rows(tmp_path / "own.csv"))
    assert np.array_equal(again.features, heart.encode_rows(rows).features)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "short.csv"
    path.write_text("dataset,age\nCleveland,50\n")
    with pytest.raises(SteelyardError, match="trestbps") as caught:
        heart.read_rows(path)
    assert caught.value.code == "data_columns"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("age", "old"),
        ("chol", "nan"),
        ("chol", "inf"),
        ("sex", "M"),
        ("thal", None),
        ("num", ""),
        ("num", "many"),
    ],
)
def test_a_bad_value_is_named(column: str, value: str | None) -> None:
    row = heart.read_rows()[0] | {column: value}
    with pytest.raises(SteelyardError, match=f"{column} is {value!r}") as caught:
        heart.encode_rows([row])
    assert caught.value.code == "data_value"


def test_a_row_of_an_unknown_hospital_is_named() -> None:
    row = heart.read_rows()[0] | {"dataset": "Atlantis"}
    with pytest.raises(SteelyardError, match="Atlantis") as caught:
        heart.split_rows([row], 0)
    assert caught.value.code == "data_value"


# -- the liar --------------------------------------------------------------------------------------
class Echo(BaseHTTPRequestHandler):
    """Answers a GET with its path and range, a POST with what it was sent."""

    def do_GET(self) -> None:
        self._answer(f"{self.path} {self.headers.get('Range', '')}".encode())

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes) -> None:
        self.send_response(404 if "missing" in self.path else 200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def honest() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_liar_changes_one_bit_of_one_blob_and_nothing_else(honest: str) -> None:
    with serve_liar(honest, flip_bit_of("bvictim")) as url:
        true, told = httpx.get(f"{honest}/blobs/bvictim"), httpx.get(f"{url}/blobs/bvictim")
        differing = [a ^ b for a, b in zip(true.content, told.content, strict=True) if a != b]
        assert [bits.bit_count() for bits in differing] == [1]
        other = httpx.get(f"{url}/blobs/bother", headers={"Range": "bytes=5-"})
        assert other.content == b"/blobs/bother bytes=5-"
        assert httpx.post(url, content=b"bvictim").content == b"bvictim"
        assert httpx.get(f"{url}/missing").status_code == 404


def test_a_forged_certificate_has_two_signers_and_says_the_same() -> None:
    statement = Statement(Epoch(1), View(7), Kind.FINALIZE, Hash(b"\7" * 32))
    honest = Certificate(statement, bytes([0b1101]), Signature(bytes(96)))
    forged = decode_certificate(
        forge_certificates("/chain/certificates/5", encode_certificate(honest))
    )
    assert forged == Certificate(statement, bytes([0b0101]), honest.signature)
    assert forge_certificates("/chain/blocks/5", b"a block") == b"a block"


def test_hospitals_that_report_too_late_or_never_are_not_waited_for_without_end() -> None:
    answers = iter([3, 4])
    checks: list[None] = []
    stage = SimpleNamespace(processes=SimpleNamespace(check_alive=lambda: checks.append(None)))
    rounds = SimpleNamespace(get_metrics=lambda *_: SimpleNamespace(reports=next(answers)))
    task: Any = SimpleNamespace(number=1, organisation=SimpleNamespace(rounds=rounds))
    wait_for_reports(stage, task, 8)  # type: ignore[arg-type]
    assert len(checks) == 1
    answers = iter([3])
    with pytest.raises(SteelyardError, match="round 8 in -1 s") as caught:
        wait_for_reports(stage, task, 8, seconds=-1)  # type: ignore[arg-type]
    assert caught.value.code == "demo_process"


# -- its processes ---------------------------------------------------------------------------------
def test_what_a_process_waits_for_is_told_while_it_does(tmp_path: Path) -> None:
    code = (
        "import sys; print('waiting for a: 1 s\\nnoise\\nwaiting for b: 2 s', file=sys.stderr);"
        "print('{}')"
    )
    told: list[str] = []
    with Processes(tmp_path) as processes:
        assert processes.follow(processes.start("up", ["-c", code]), told.append) == "{}\n"
    assert told == ["waiting for a: 1 s", "waiting for b: 2 s"]


def test_a_process_that_gave_up_waiting_is_told_without_all_it_waited_for(tmp_path: Path) -> None:
    code = "import sys; sys.exit('waiting for a: 1 s\\nlocalnet_stalled: why\\nthe end')"
    with Processes(tmp_path) as processes:
        running = processes.start("up", ["-c", code])
        with pytest.raises(SteelyardError) as caught:
            processes.follow(running, lambda _: None)
    assert caught.value.code == "demo_process"
    assert caught.value.message == "up ended with 1:\nlocalnet_stalled: why\nthe end"


def test_validators_get_the_demos_patience_and_failing_says_how_to_get_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def start(processes: Processes, name: str, arguments: list[str]) -> object:
        commands.append(arguments)
        return original(processes, name, ["-c", "import sys; sys.exit('localnet_stalled: why')"])

    original = Processes.start
    monkeypatch.setattr(Processes, "start", start)
    with Processes(tmp_path) as processes, pytest.raises(SteelyardError) as caught:
        Validators.start(processes, [], patience=1234.0, tell=lambda _: None)
    (words,) = commands
    assert words[words.index("--patience") + 1] == "1234.0"
    for part in ("localnet_stalled: why", "demo --patience", f"{tmp_path}/validators/validator-"):
        assert part in caught.value.message


# -- a validator's death ---------------------------------------------------------------------------
@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose command line is that of a node in `tmp_path`."""
    words = ["run", str(tmp_path)]
    code = "import time; print(flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_process_that_runs_now_is_killed(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    (tmp_path / "pid").write_text(f"{sleeper.pid}\n")
    kill_node(tmp_path)
    assert sleeper.wait(60) == -signal.SIGKILL
    with pytest.raises(SteelyardError, match="no process runs"):
        kill_node(tmp_path)


@pytest.mark.parametrize("content", [None, "", "none\n", "-1\n", "2147483647\n"])
def test_a_validator_that_does_not_run_is_an_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "pid").write_text(content)
    with pytest.raises(SteelyardError) as caught:
        kill_node(tmp_path)
    assert caught.value.code == "demo_process"


def test_a_number_that_somebody_else_has_got_is_left_alone(
    sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    other = tmp_path / "validator-3"
    other.mkdir()
    (other / "pid").write_text(f"{sleeper.pid}\n")
    with pytest.raises(SteelyardError, match="is not the one that runs"):
        kill_node(other)
    assert sleeper.poll() is None


# -- the whole -------------------------------------------------------------------------------------
def find_processes(directory: Path) -> list[str]:
    """Return the command lines of processes that were told of `directory`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode("utf-8", "replace").replace("\0", " ")
        except OSError:
            continue
        if str(directory) in words:
            found.append(words)
    return found


def start_demo(directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "steelyard", "demo", "--rounds", "2", "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(directory)},
    )


@pytest.mark.e2e
@pytest.mark.slow
def test_the_demo_keeps_its_promises_and_leaves_nothing_behind(tmp_path: Path) -> None:
    demo = start_demo(tmp_path)
    output, log = demo.communicate(timeout=PATIENCE_SECONDS)
    assert demo.returncode == 0, log
    document = json.loads(output)
    assert set(document) >= KEYS
    assert document["rounds"] == 2
    assert [document[n] for n in ("audit", "tampered", "forged")] == ["YES", "REFUTED", "REFUTED"]
    assert document["recovered"] is True
    escrow, *parts = (int(document[n]) for n in ("escrow", "paid", "fee", "refunded"))
    assert escrow == sum(parts)
    assert document["federated"] > 0.5
    assert find_processes(tmp_path) == []
    assert list(tmp_path.glob("steelyard-*")) == []


@pytest.mark.e2e
@pytest.mark.slow
def test_a_demo_that_is_ended_ends_its_processes(tmp_path: Path) -> None:
    demo = start_demo(tmp_path)
    assert demo.stderr is not None
    for line in demo.stderr:
        if "finalizing" in line:
            break
    assert find_processes(tmp_path)
    demo.send_signal(signal.SIGTERM)
    demo.communicate(timeout=PATIENCE_SECONDS)
    assert demo.returncode == 128 + signal.SIGTERM
    deadline = time.monotonic() + 60
    while find_processes(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert find_processes(tmp_path) == []

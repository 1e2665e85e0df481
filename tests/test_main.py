"""The `steelyard` command as a person starts it: every part it lists can be asked for help."""

import errno
import importlib
import json
import os
import subprocess
import sys
import tomllib

import pytest
from typer.testing import CliRunner

from steelyard import selftest
from steelyard.__main__ import PARTS, is_output_lost, main
from steelyard.chain.errors import SteelyardError

from .test_architecture import ROOT

ANSWER_SECONDS = 600
"""The first process of a new installation compiles the kernels."""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "steelyard", *words],
        capture_output=True,
        text=True,
        timeout=ANSWER_SECONDS,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_every_command_that_is_listed_explains_itself(name: str) -> None:
    done = run(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"steelyard {name}" in done.stdout
    assert "completion" not in done.stdout  # one part cannot complete the words of all


@pytest.mark.slow
def test_selftest_says_that_this_machine_computes_right() -> None:
    done = run("selftest")
    assert (done.returncode, done.stderr) == (0, "")
    assert "all as expected" in done.stdout
    answer = json.loads(run("selftest", "--json").stdout)
    assert answer["passed"] is True
    assert answer["cases"] > 0
    assert answer["failures"] == []


@pytest.mark.slow
def test_the_demo_explains_itself_without_torch_and_says_what_to_install_when_it_is_run() -> None:
    hide = "import sys; sys.modules['torch'] = None; import steelyard.__main__ as it; it.main({})"
    for words, code, said in (
        (["demo", "--help"], 0, "Four hospitals"),
        (["demo"], 2, "pip install 'steelyard[demo]'"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", hide.format(words)],
            capture_output=True,
            text=True,
            timeout=ANSWER_SECONDS,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert said in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_selftest_says_that_this_machine_computes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "run", lambda _cases: ["one update: saturated is 0, not 1"])
    told = CliRunner().invoke(selftest.app, [])
    assert told.exit_code == 1
    assert "saturated is 0, not 1" in told.stdout
    told = CliRunner().invoke(selftest.app, ["--json"])
    assert told.exit_code == 1
    assert json.loads(told.stdout)["passed"] is False


def test_the_wheel_holds_every_module_of_the_command() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    packed = set(build["targets"]["wheel"]["only-include"])
    modules = {f"src/steelyard/{path.name}" for path in (ROOT / "src/steelyard").glob("*.py")}
    assert modules <= packed


def test_a_nodes_words_cannot_write_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(words: list[str], prog_name: str) -> None:
        raise SteelyardError("reverted", "no\x1b[2K\rYES \u202e\x07\n  lines of ours stay")

    monkeypatch.setattr(importlib.import_module(PARTS["round"].module), "round", command)
    with pytest.raises(SystemExit) as caught:
        main(["round", "explain"])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said == "steelyard: reverted: no\ufffd[2K\ufffdYES \ufffd\ufffd\n  lines of ours stay\n"


@pytest.mark.parametrize("flaw", [ValueError("a\x1b[2Jb"), KeyError("x"), ModuleNotFoundError("y")])
@pytest.mark.parametrize("json_words", [[], ["--json"]])
def test_a_fault_of_ours_is_no_answer(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flaw: Exception,
    json_words: list[str],
) -> None:
    """Python would exit with 1, which says REFUTED."""

    def command(words: list[str], prog_name: str) -> None:
        raise flaw

    monkeypatch.setattr(importlib.import_module(PARTS["audit"].module), "audit", command)
    with pytest.raises(SystemExit) as caught:
        main(["audit", "1", *json_words])
    assert caught.value.code == 2
    told = capsys.readouterr()
    assert f"steelyard: unexpected: {type(flaw).__name__}" in told.err
    assert "Traceback" in told.err
    assert "\x1b" not in told.err
    assert bool(json_words) is ('{"error": "unexpected"' in told.out)


@pytest.mark.parametrize(
    "line",
    [
        ["audit", "round", str(2**256), "1"],
        ["audit", "round", "1", str(2**256)],
        ["audit", "round", "1", "10001"],
        ["round", "show", str(2**64), "1"],
        ["round", "show", "1", "0"],
        ["task", "show", str(2**256)],
        ["task", "model", "1", "--round", "0", "--output", "x"],
        ["task", "model", "1", "--round", str(2**256), "--output", "x"],
    ],
)
def test_a_number_that_no_task_or_round_has_is_a_wrong_use(
    capsys: pytest.CaptureFixture[str], line: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(line)
    assert caught.value.code == 2
    assert "or equal to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["audit", "round", "x", "1"], "TASK"),
        (["round", "show", "1", "0"], "ROUND"),
        (["task", "list", "--nonsense"], "--nonsense"),
        (["client", "nonsense"], "nonsense"),
    ],
)
def test_words_that_no_command_takes_are_told_to_programs_too(
    capsys: pytest.CaptureFixture[str], line: list[str], said: str
) -> None:
    for words, lines in ((line, 0), ([*line, "--json"], 1)):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
        told = capsys.readouterr()
        assert said in told.err
        assert len(told.out.splitlines()) == lines
    answer = json.loads(told.out)
    assert answer["error"] == "usage"
    assert said in answer["message"]


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--version"], ["keys", "balance", "x", "--json"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_answer_that_cannot_be_written_is_not_a_no(words: list[str], unbuffered: str) -> None:
    reader, pipe = os.pipe()
    os.close(reader)
    said = []
    for target in (os.open("/dev/full", os.O_WRONLY), pipe):
        done = subprocess.run(
            [sys.executable, "-m", "steelyard", *words],
            stdout=target,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            text=True,
            timeout=ANSWER_SECONDS,
            check=False,
        )
        os.close(target)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        said.append("output_lost" in done.stderr)
    assert said == [True, False]


@pytest.mark.slow
def test_a_refusal_that_cannot_be_said_is_not_a_no() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    command = [sys.executable, "-m", "steelyard", "nonsense"]
    assert subprocess.run(command, stderr=full, timeout=ANSWER_SECONDS, check=False).returncode == 2
    os.close(full)


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (OSError(errno.ENOSPC, "full"), True),
        (BrokenPipeError(errno.EPIPE, "closed"), True),
        (OSError(errno.ENOSPC, "full", "out.bin"), False),
        (OSError(errno.EACCES, "no"), False),
        (ValueError(errno.ENOSPC), False),
        (None, False),
    ],
)
def test_a_file_that_cannot_be_written_is_not_a_lost_answer(
    error: Exception | None, is_lost: bool
) -> None:
    assert is_output_lost(error) == is_lost

"""The `steelyard` command as a person starts it: every part it lists can be asked for help."""

import json
import subprocess
import sys
import tomllib

import pytest
from typer.testing import CliRunner

from steelyard import selftest
from steelyard.__main__ import PARTS

from .test_architecture import ROOT

ANSWER_SECONDS = 120


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

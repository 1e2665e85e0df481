"""Faults of the operator's own code: its file and line are named wherever they show."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from steelyard.client.commands import models
from steelyard.client.errors import ClientError, InvalidTraining
from steelyard.client.faults import MAX_WORDS, describe_fault
from steelyard.client.loading import call_own, load_app
from steelyard.client.quantize import build_manifest, quantize_model
from steelyard.client.training import Result

from .conftest import make_model, make_task

BROKEN = """
def read(model):
    return model["weigth"]

def train(model, ctx):
    return read(model)

def evaluate(model, ctx):
    raise ValueError("no held-out rows")
"""
PLACE = "training failed: KeyError: 'weigth' in {}, line 3, in read; the whole traceback is in {}"


@pytest.fixture
def app(tmp_path: Path) -> Path:
    path = tmp_path / "client.py"
    path.write_text(BROKEN)
    return path


def test_a_dry_run_names_the_line_of_a_fault_and_keeps_the_traceback(
    organisation, hospital, app
) -> None:
    task = organisation.publish(make_task()).number
    hospital.use(app)
    with pytest.raises(InvalidTraining) as caught:
        hospital.dry_run(task)
    kept = hospital.journal.directory / "traceback.txt"
    assert caught.value.code == "training_failed"
    assert caught.value.message == PLACE.format(app, kept)
    assert "line 6, in train\n    return read(model)" in kept.read_text()


@pytest.mark.slow
def test_a_run_names_the_line_of_a_fault_in_the_same_words(organisation, hospital, app) -> None:
    lines: list[str] = []
    hospital.report = lines.append
    task = organisation.publish(make_task()).number
    hospital.run(task, samples=50, app=app)
    kept = hospital.journal.directory / "traceback.txt"
    assert f"round 1: {PLACE.format(app, kept)}; waiting for the next round" in lines


@pytest.mark.slow
def test_an_evaluation_names_the_line_of_a_fault(organisation, hospital, app) -> None:
    lines: list[str] = []
    hospital.report = lines.append
    hospital.evaluate(load_app(app).evaluate)
    hospital.run(organisation.publish(make_task()).number, samples=50)
    told = f"round 1: evaluation failed: ValueError: no held-out rows in {app}, line 9, in evaluate"
    assert any(line.startswith(told) for line in lines)


def test_a_function_that_exits_does_not_end_the_program(app) -> None:
    with pytest.raises(ClientError, match=r"function of .*client.py failed: SystemExit: 3 in"):
        call_own(app, lambda: sys.exit(3))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "\ndef train(a\n    pass\n",
            "SyntaxError: '[(]' was never closed in .*client.py, line 2;",
        ),
        ("import os\nimport no_such_module\n", "ModuleNotFoundError: .* client.py, line 2;"),
        ("import numpy\n\nnumpy.zeros('a')\n", "TypeError: .* in .*client.py, line 3;"),
        ("import sys\nsys.exit()", "SystemExit in .*client.py, line 2;"),
    ],
)
def test_a_file_that_cannot_be_imported_names_the_line(app, text: str, told: str) -> None:
    app.write_text(text)
    with pytest.raises(ClientError, match=told.replace(" client", " .*client")) as caught:
        load_app(app)
    assert caught.value.code == "app_failed"


def test_an_evaluation_that_returns_no_result_is_told(app) -> None:
    model = app.with_name("m.model")
    model.write_bytes(quantize_model(make_model(), build_manifest(make_model())))
    app.write_text("def evaluate(model, ctx):\n    return 0.5\n")
    words = ["eval", str(model), "--app", str(app)]
    error = CliRunner().invoke(models.app, words).exception
    assert isinstance(error, ClientError)
    assert error.code == "app_failed"
    assert error.message.endswith("returned float; return Result(samples=…, metrics=…)")


def test_what_own_code_returns_is_told_as_json_or_refused(app) -> None:
    model = app.with_name("m.model")
    model.write_bytes(quantize_model(make_model(), build_manifest(make_model())))
    np.save(app.with_name("rows.npy"), np.zeros((2, 3)))
    app.write_text(
        "import numpy as np\n"
        "from steelyard.client.training import Result\n"
        "def evaluate(model, ctx):\n    return Result(samples=np.int64(5))\n"
        "def predict(model, rows):\n    return [[1], [2, 3]]\n"
    )
    words = [str(model), "--app", str(app)]
    told = CliRunner().invoke(models.app, ["eval", *words, "--json"]).stdout
    assert json.loads(told)["samples"] == 5
    rows = ["--rows", str(app.with_name("rows.npy"))]
    error = CliRunner().invoke(models.app, ["predict", *words, *rows]).exception
    assert isinstance(error, ClientError)
    assert error.code == "app_failed"


def test_a_missing_torch_names_what_installs_it(app, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "steelyard.client.torch", raising=False)
    app.write_text("from steelyard.client.torch import dump\n")
    with pytest.raises(ClientError, match=r"pip install 'steelyard\[torch\]'.*client.py, line 1"):
        load_app(app)


def test_a_fault_below_an_installed_library_names_the_line_that_called_it(tmp_path: Path) -> None:
    library = tmp_path / "dist-packages" / "lib.py"
    library.parent.mkdir()
    library.write_text("def fail(): 1 / 0\n")
    (tmp_path / "own.py").write_text("def call(f): f()\n")
    inner, outer = {}, {}
    exec(compile(library.read_text(), library, "exec"), inner)
    exec(compile((tmp_path / "own.py").read_text(), tmp_path / "own.py", "exec"), outer)
    for call, told in [
        (lambda: outer["call"](inner["fail"]), f"{tmp_path}/own.py, line 1, in call"),
        (inner["fail"], f"{library}, line 1, in fail"),
    ]:
        with pytest.raises(ClientError) as caught:
            call_own(Path("own.py"), get_from_nowhere(call))
        assert caught.value.message.endswith(told)


def get_from_nowhere(call):
    """This file, too, is an operator's: here it is taken for Python's."""
    here = {"call": call}
    exec(compile("def go(): call()", "<frozen test>", "exec"), here)
    return here["go"]


def test_words_that_fill_a_screen_are_cut(tmp_path: Path) -> None:
    told = describe_fault(RuntimeError("size mismatch\n" * 100), tmp_path / "absent")
    assert len(told) == MAX_WORDS + 1
    assert "\n" not in told


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ([1.0], "training_result"),
        ({"bias": "ab", "weight": [[0.0, 0.0]] * 3}, "training_shape"),
        ({"bias": ["a", "b"], "weight": [[0.0, 0.0]] * 3}, "training_tensor"),
        ({"bias": [[1], [1, 2]], "weight": [[0.0, 0.0]] * 3}, "training_tensor"),
    ],
)
def test_what_is_no_array_is_refused_by_its_name(organisation, hospital, arrays, code) -> None:
    hospital.train(lambda model, ctx: Result(arrays, samples=np.int64(3)))
    task = organisation.publish(make_task()).number
    with pytest.raises(InvalidTraining) as caught:
        hospital.dry_run(task)
    assert caught.value.code == code

"""Flower code runs unmodified: a NumPyClient by place, a ClientApp by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steelyard.chain.errors import SteelyardError
from steelyard.client.flower import adapt, is_flower, name_parameters
from steelyard.client.loading import load_app
from steelyard.client.training import Context

CONTEXT = Context(7, 3, 8, {"local_epochs": 2, "note": None}, b"\x01" * 20)
NAMES = ["b.weight", "a.bias"]
MODEL = {"a.bias": np.ones(2, np.float32), "b.weight": np.zeros((2, 3), np.float32)}


class Halving:
    """Knows its two tensors by place: the weight first."""

    config: dict[str, Any]

    def fit(self, parameters: list[Any], config: dict[str, Any]) -> tuple[Any, ...]:
        self.config = config
        weight, bias = parameters
        assert (weight.shape, bias.shape) == ((2, 3), (2,))
        return [weight + 1, bias / 2], 20, {"loss": 0.5, "note": "text", "done": True}

    def evaluate(self, parameters: list[Any], config: dict[str, Any]) -> tuple[Any, ...]:
        return np.float32(0.25), 10, {"accuracy": 0.75}


def refuse(code: str, call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(SteelyardError) as caught:
        call(*arguments)
    assert caught.value.code == code


def test_a_client_gets_its_tensors_in_its_own_order_and_the_settings() -> None:
    client = Halving()
    app = adapt(client, NAMES)
    result = app.train(dict(MODEL), CONTEXT)
    assert result.arrays is not None
    assert np.array_equal(result.arrays["b.weight"], np.ones((2, 3)))
    assert np.array_equal(result.arrays["a.bias"], np.full(2, 0.5))
    assert (result.samples, result.metrics) == (20, {"loss": 0.5})
    assert client.config == {"local_epochs": 2, "note": None, "server_round": 3}


def test_an_evaluation_reports_its_loss_as_a_metric() -> None:
    result = adapt(Halving(), NAMES).evaluate(dict(MODEL), CONTEXT)
    assert (result.samples, result.metrics) == (10, {"loss": 0.25, "accuracy": 0.75})


def test_names_by_place_keep_the_order_of_a_long_list() -> None:
    parameters = [np.full((2, 3), 0.0), *(np.full(2, float(i)) for i in range(1, 12))]
    named = name_parameters(parameters)
    assert [named[name].flat[0] for name in sorted(named)] == [float(i) for i in range(12)]


def test_a_model_by_place_needs_no_names() -> None:
    model = name_parameters([MODEL["b.weight"], MODEL["a.bias"]])
    assert adapt(Halving()).train(model, CONTEXT).samples == 20


@pytest.mark.parametrize("names", [None, ["b.weight"], [*NAMES, "c"]])
def test_tensors_that_cannot_be_matched_are_refused(names: list[str] | None) -> None:
    refuse("flower_names", adapt(Halving(), names).train, dict(MODEL), CONTEXT)


@pytest.mark.parametrize("answer", [None, ([], 1, {}), ([1, 2], 1), ([1, 2], 1, None), (1, 1, {})])
def test_an_answer_that_is_not_flowers_is_refused(answer: object) -> None:
    client = Halving()
    client.fit = lambda _parameters, _config: answer  # type: ignore[assignment,method-assign,return-value]
    refuse("flower_answer", adapt(client, NAMES).train, dict(MODEL), CONTEXT)


def test_what_cannot_train_is_no_flower_code() -> None:
    assert not is_flower(object())
    refuse("flower_code", adapt, object())


def test_a_client_in_a_file_or_a_module_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "class C:\n    def fit(self, p, c): return p, 1, {}\nclient = C()\nnothing = 1\n"
    (tmp_path / "flower_project.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    for where in (tmp_path / "flower_project.py", "flower_project:client"):
        app = load_app(where)
        assert app.train is not None
        assert app.train(name_parameters([np.ones(2)]), CONTEXT).samples == 1
    refuse("flower_code", load_app, "flower_project:nothing")
    refuse("app_failed", load_app, "flower_project:absent")
    refuse("app_missing", load_app, "absent.py")


@pytest.mark.slow
def test_a_client_app_gets_and_gives_arrays_by_name() -> None:
    flwr = pytest.importorskip("flwr.app", reason="flwr is optional: pip install steelyard[flower]")
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def train(message: Any, context: Any) -> Any:
        arrays = {k: v.numpy() + 1 for k, v in message.content["arrays"].items()}
        assert message.content["config"]["server-round"] == 3
        assert context.run_config["local_epochs"] == 2
        metrics = flwr.MetricRecord({"num-examples": 30, "loss": 0.5})
        record = flwr.ArrayRecord({k: flwr.Array(v) for k, v in arrays.items()})
        content = flwr.RecordDict({"arrays": record, "metrics": metrics})
        return flwr.Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Any, context: Any) -> Any:
        content = flwr.RecordDict({"metrics": flwr.MetricRecord({"accuracy": 0.5})})
        return flwr.Message(content, reply_to=message)

    assert is_flower(app)
    adapted = adapt(app)
    result = adapted.train(dict(MODEL), CONTEXT)
    assert result.arrays is not None
    assert np.array_equal(result.arrays["b.weight"], np.ones((2, 3)))
    assert (result.samples, result.metrics["loss"]) == (30, 0.5)
    refuse("flower_answer", adapted.evaluate, dict(MODEL), CONTEXT)
    refuse("flower_code", adapt(ClientApp(client_fn=lambda context: None)).train, MODEL, CONTEXT)

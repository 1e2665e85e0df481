"""Flower code, unmodified, as training functions of this client.

    from steelyard.client.flower import adapt
    app = adapt(FlowerClient())          # a NumPyClient; or a flwr ClientApp
    train, evaluate = app.train, app.evaluate

A NumPyClient is called directly (`fit`, `evaluate`), so flwr itself need not be installed. It knows
its tensors by place: `name_parameters` gives a list names that keep its order, and a model whose
tensors have names of their own needs `names`. A ClientApp gets a Message with an ArrayRecord by
name and must answer with one (flwr is what made it, so flwr is there).

The settings of the task's bundle arrive as the `config` that a Flower server would send, with
`server_round` (`server-round` in a ConfigRecord). No server, no simulation: what Flower's server
did is the chain's now. Source: Flower 1.41, `flwr.client.NumPyClient`, `flwr.clientapp.ClientApp`.
"""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .errors import ClientError, InvalidTraining
from .training import Context, Result, Trainer

PLACE: Final = re.compile(r"array_[0-9]{6}")
EXAMPLES: Final = ("num-examples", "num_examples")
"""Where a ClientApp says how many rows it used: the key that Flower's FedAvg weighs by."""
NODE_ID: Final = 1
"""Flower numbers its nodes; ours has no number, and a message needs one."""
LIFETIME_SECONDS: Final = 30 * 86_400.0
"""Of a message: the longest period that a round may have. Nothing waits for it."""
Arrays = dict[str, NDArray[Any]]


class FlowerApp:
    """Training functions made of Flower code; `predict` is not Flower's business."""

    predict = None

    def __init__(self, train: Trainer, evaluate: Trainer) -> None:
        self.train, self.evaluate = train, evaluate


def name_parameters(parameters: Sequence[NDArray[Any]]) -> Arrays:
    """Return a list of arrays under names that sort in its order: the first model of a task."""
    return {f"array_{place:06}": np.asarray(array) for place, array in enumerate(parameters)}


def is_flower(found: object) -> bool:
    """Is this something `adapt` takes?"""
    return is_client_app(found) or callable(getattr(found, "fit", None))


def is_client_app(found: object) -> bool:
    """Is this a flwr ClientApp? Told without importing flwr."""
    return any(
        kind.__name__ == "ClientApp" and kind.__module__.split(".")[0] == "flwr"
        for kind in type(found).__mro__
    )


def adapt(code: Any, names: Sequence[str] | None = None) -> FlowerApp:
    """Return the training functions of a NumPyClient or a ClientApp.

    `names`: the model's tensors in the order of the NumPyClient's list, e.g.
    `list(net.state_dict())`; not needed for models named by `name_parameters`, nor by a ClientApp.
    Raises: ClientError `flower_code`.
    """
    if is_client_app(code):
        return _adapt_client_app(code)
    if not callable(getattr(code, "fit", None)):
        raise ClientError(
            "flower_code", f"{type(code).__name__} is neither a NumPyClient nor a ClientApp"
        )
    return _adapt_numpy_client(code, names)


# -- NumPyClient -----------------------------------------------------------------------------------
def _adapt_numpy_client(client: Any, names: Sequence[str] | None) -> FlowerApp:
    def train(model: Arrays, context: Context) -> Result:
        order = get_order(model, names)
        answer = client.fit([model[name] for name in order], build_config(context))
        parameters, samples, metrics = _unpack(answer, "fit", "(parameters, examples, metrics)")
        if not isinstance(parameters, Sequence) or len(parameters) != len(order):
            raise InvalidTraining(
                "flower_answer", f"fit must return a list of {len(order)} arrays, one a tensor"
            )
        arrays = {name: np.asarray(a) for name, a in zip(order, parameters, strict=True)}
        return Result(arrays, samples=samples, metrics=pick_numbers(metrics))

    def evaluate(model: Arrays, context: Context) -> Result:
        order = get_order(model, names)
        answer = client.evaluate([model[name] for name in order], build_config(context))
        loss, samples, metrics = _unpack(answer, "evaluate", "(loss, examples, metrics)")
        return Result(samples=samples, metrics={"loss": float(loss)} | pick_numbers(metrics))

    return FlowerApp(train, evaluate)


def get_order(model: Arrays, names: Sequence[str] | None) -> list[str]:
    """Return the model's tensors in the order of the client's list. Raises InvalidTraining."""
    if names is not None:
        if sorted(names) != sorted(model):
            odd = sorted(set(names) ^ set(model))
            raise InvalidTraining(
                "flower_names", f"`names` and the model's tensors differ: {', '.join(odd[:5])}"
            )
        return list(names)
    if not all(PLACE.fullmatch(name) for name in model):
        raise InvalidTraining(
            "flower_names",
            "the model's tensors have names, a NumPyClient has an order: give "
            "adapt(client, names=list(net.state_dict()))",
        )
    return sorted(model)


def build_config(context: Context) -> dict[str, Any]:
    """Return what a Flower server would send with the parameters."""
    return {**context.config, "server_round": context.round}


def pick_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that are numbers; Flower allows text and bytes as well."""
    numbers = (int, float, np.integer, np.floating)
    return {
        str(name): float(value)
        for name, value in metrics.items()
        if isinstance(value, numbers) and not isinstance(value, bool)
    }


def _unpack(answer: Any, name: str, shape: str) -> tuple[Any, int, Mapping[str, Any]]:
    if not isinstance(answer, tuple) or len(answer) != 3 or not isinstance(answer[2], Mapping):
        raise InvalidTraining("flower_answer", f"{name} must return {shape}, as Flower documents")
    return answer[0], int(answer[1]), answer[2]


# -- ClientApp -------------------------------------------------------------------------------------
def _adapt_client_app(app: Any) -> FlowerApp:
    def train(model: Arrays, context: Context) -> Result:
        content = _ask(app, "train", model, context)
        (record,) = content.array_records.values()
        arrays = {str(name): array.numpy() for name, array in record.items()}
        metrics = _get_metrics(content)
        return Result(arrays, samples=_get_samples(metrics), metrics=pick_numbers(metrics))

    def evaluate(model: Arrays, context: Context) -> Result:
        metrics = _get_metrics(_ask(app, "evaluate", model, context))
        return Result(samples=_get_samples(metrics), metrics=pick_numbers(metrics))

    return FlowerApp(train, evaluate)


def _ask(app: Any, kind: str, model: Arrays, context: Context) -> Any:
    """Send one message to the app, as a SuperNode would, and return what it answers."""
    import flwr.app as flower

    if getattr(app, "_call", None) is not None:
        raise ClientError(
            "flower_code", "this ClientApp is made of a client_fn: give adapt() its NumPyClient"
        )
    settings = {name: value for name, value in context.config.items() if value is not None}
    arrays = {name: flower.Array(np.ascontiguousarray(array)) for name, array in model.items()}
    content = flower.RecordDict(
        {
            "arrays": flower.ArrayRecord(arrays),
            "config": flower.ConfigRecord({**settings, "server-round": context.round}),
        }
    )
    metadata = flower.Metadata(
        run_id=context.task,
        message_id="",
        src_node_id=0,
        dst_node_id=NODE_ID,
        reply_to_message_id="",
        group_id=str(context.round),
        created_at=time.time(),
        ttl=LIFETIME_SECONDS,
        message_type=kind,
    )
    message = flower.Message(metadata=metadata, content=content)
    site = flower.Context(
        run_id=context.task,
        node_id=NODE_ID,
        node_config={},
        state=flower.RecordDict(),
        run_config=settings,
    )
    reply = app(message, site)
    if reply.has_error():
        raise InvalidTraining("flower_answer", f"the ClientApp answered {reply.error}")
    if kind == "train" and len(reply.content.array_records) != 1:
        raise InvalidTraining("flower_answer", "train must answer with one ArrayRecord")
    return reply.content


def _get_metrics(content: Any) -> dict[str, Any]:
    return {
        name: value for record in content.metric_records.values() for name, value in record.items()
    }


def _get_samples(metrics: Mapping[str, Any]) -> int:
    for key in EXAMPLES:
        if key in metrics:
            return int(metrics[key])
    raise InvalidTraining(
        "flower_answer", f'the MetricRecord lacks "{EXAMPLES[0]}": how many rows were used'
    )

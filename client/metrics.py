"""Metrics by name: which one stands at which place on chain."""

import json
from collections.abc import Mapping
from typing import Any, Final

from .bundle import Config
from .errors import InvalidTraining
from .records import MAX_METRICS, METRIC_UNIT

METRICS_SETTING: Final = "metrics"
"""In the bundle: which metric stands at which place on chain."""
DEFAULT_METRICS: Final = ("accuracy", "loss")


def read_metric_names(config: Config) -> tuple[str, ...]:
    """Return which metric stands at which place: the bundle's `metrics`, comma-separated."""
    setting = config.get(METRICS_SETTING)
    if not isinstance(setting, str):
        return DEFAULT_METRICS
    return tuple(name.strip() for name in setting.split(",") if name.strip())


def read_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return what a function says of its result. Raises InvalidTraining `training_metrics`."""
    try:
        return {str(name): float(value) for name, value in metrics.items()}
    except Exception as error:  # whatever a user's own object does
        raise InvalidTraining(
            "training_metrics", f"metrics must be numbers by name: {error!r}"
        ) from None


def encode_metrics(metrics: Mapping[str, float], names: tuple[str, ...]) -> list[int]:
    """Return the metrics at the places that the task names, as far as they are known."""
    values: list[int] = []
    for name in names[:MAX_METRICS]:
        value = metrics.get(name)
        if value is None or abs(value) >= 2**63 or value != value:  # noqa: PLR0124 - NaN
            break
        values.append(round(value * METRIC_UNIT))
    return values


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Return metrics for a line of progress."""
    if not metrics:
        return ""
    return ", " + json.dumps({name: round(value, 4) for name, value in metrics.items()})[1:-1]

"""The user's own code and files: training functions from a Python file, models from disk."""

import importlib
import importlib.util
import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from steelyard.chain.errors import SteelyardError

from .consents import check_consent
from .errors import ClientError
from .faults import describe_fault
from .flower import adapt, is_flower
from .training import Trainer

MAX_MODEL_FILE_BYTES: Final = 512 * 2**20


Predictor = Callable[[dict[str, NDArray[np.float32]], NDArray[np.float32]], Any]
"""(arrays of the model, rows) -> one prediction for each row."""


@dataclass(frozen=True, slots=True)
class App:
    """The functions `train`, `evaluate` and `predict` of a file; each may be missing."""

    train: Trainer | None
    evaluate: Trainer | None
    predict: Predictor | None


def load_app(source: Path | str) -> App:
    """Return the training functions in the operator's own code: a Python file, or `module:name`.

    A file has functions `train` and `evaluate`, or Flower code under the name `app` or `client`;
    `module:name` is Flower code, as in a Flower project (`pkg.client_app:app`).
    This runs the code: it is for your own, or for a bundle that was approved and is unchanged.
    Raises: ClientError `app_missing`, `app_failed`, `app_empty`, `flower_code`; as
    `consents.check_consent`.
    """
    path = Path(source)
    check_consent(path)
    if path.is_file():
        return read_functions(import_file(path), str(path))
    module, separator, name = str(source).partition(":")
    if not separator:
        raise ClientError("app_missing", f"{path} does not exist; `steelyard new` makes a project")
    return adapt_flower(import_object(module, name))


def import_file(path: Path) -> ModuleType:
    """Run a Python file, with its directory importable, and return it as a module."""
    spec = importlib.util.spec_from_file_location(f"steelyard_app_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ClientError("app_failed", f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ClientError(
            "app_failed",
            f"{path} cannot be imported: {describe_fault(error)}; `python {path}` shows all of it",
        ) from error
    return module


def import_object(module: str, name: str) -> object:
    """Import `name` of a module that is installed or below the present directory."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        raise ClientError(
            "app_failed",
            f"{module}:{name} cannot be imported: {describe_fault(error)}; "
            f"`python -c 'import {module}'` shows all of it",
        ) from error


def call_own(source: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function of the operator's code returns. Raises ClientError `app_failed`."""
    try:
        return function(*arguments)
    except SteelyardError:
        raise
    except (Exception, SystemExit) as error:
        told = describe_fault(error)
        raise ClientError("app_failed", f"a function of {source} failed: {told}") from error


def read_functions(module: ModuleType, source: str) -> App:
    """Return what a module offers. Raises ClientError `app_empty`."""
    app = App(*(getattr(module, name, None) for name in App.__slots__))
    if callable(app.train) or callable(app.evaluate):
        return app
    for name in ("app", "client"):
        if is_flower(found := getattr(module, name, None)):
            return adapt_flower(found)
    raise ClientError("app_empty", f"{source} has neither a function `train` nor `evaluate`")


def adapt_flower(code: object) -> App:
    """Return the functions of a NumPyClient or a ClientApp. Raises ClientError `flower_code`."""
    adapted = adapt(code)
    return App(adapted.train, adapted.evaluate, None)


def read_model_file(path: Path) -> bytes | dict[str, NDArray[Any]]:
    """Return the bytes of a chain model file, or the arrays of an .npz file.

    Raises: ClientError `model_file`.
    """
    try:
        if path.stat().st_size > MAX_MODEL_FILE_BYTES:
            raise ClientError("model_file", f"{path} is too large for a model")
        data = path.read_bytes()
        return read_arrays(data) if path.suffix == ".npz" else data
    except (OSError, ValueError) as error:
        raise ClientError("model_file", f"cannot read the model {path}: {error}") from None


def read_arrays(data: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz file; pickles are refused."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def read_rows(path: Path) -> NDArray[np.float32]:
    """Return the rows to predict, shape (rows, features), of an .npy or a numeric .csv file.

    Raises: ClientError `rows_file`.
    """
    try:
        if path.suffix == ".npy":
            rows = np.load(path, allow_pickle=False)
        else:
            rows = np.loadtxt(path, np.float32, delimiter=",", ndmin=2)
        if rows.ndim < 2 or not len(rows):
            raise ValueError(f"shape {rows.shape} is not (rows, features)")
        return np.asarray(rows, np.float32)
    except (OSError, ValueError, EOFError) as error:
        raise ClientError(
            "rows_file", f"cannot read rows from {path}: {error}; give an .npy or a numeric .csv"
        ) from None


def format_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return names and shapes, one tensor a line."""
    return "\n".join(f"  {name} {list(array.shape)}" for name, array in arrays.items())

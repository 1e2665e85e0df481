"""From a base model to an update file: everything between the chain and the training function.

The training function sees named float32 arrays and returns named arrays. The delta is taken
against exactly the arrays that were handed out, scaled down if its norm is above what the task
admits, quantized with a rounding seed that anybody can derive, and encoded. The same inputs give
the same bytes.
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from steelyard.chain.cid import compute_blob_name
from steelyard.chain.model import Manifest, Model, Role, compute_layout
from steelyard.chain.types import Address, BlobName, Round, TaskId
from steelyard.chain.update import Mode, UpdateHeader, encode_update

from .bundle import Config
from .errors import InvalidTraining
from .quantize import dequantize_model, quantize

Arrays = Mapping[str, NDArray[np.float32]]
"""Named tensors, as training functions see them."""

NORM_UNIT: Final = 2**24
"""Norms on chain are integers in units of 1/NORM_UNIT."""
SHRINK_ATTEMPTS: Final = 24


@dataclass(frozen=True, slots=True)
class Result:
    """What a training or evaluation function returns.

    `arrays`: the trained tensors by name; None from an evaluation. `samples`: rows that were used.
    `metrics`: plain numbers, shown here and, from an evaluation, reported to the task.
    """

    arrays: Mapping[str, NDArray[np.generic]] | None = None
    samples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Context:
    """What a training or evaluation function may want to know."""

    task: int
    round: int
    rounds: int
    config: Config
    """The settings in the task's bundle, e.g. `ctx.config["local_epochs"]`."""
    address: Address


Trainer = Callable[[dict[str, NDArray[np.float32]], Context], Result]


@dataclass(frozen=True, slots=True)
class Prepared:
    """An update, ready to be journalled."""

    update: BlobName
    data: bytes
    norm: float
    """L2 norm of the delta over the trained tensors, before it was scaled down."""
    scale: float
    """1.0, or what the delta was multiplied with to stay below the task's admission norm."""
    personal: bytes | None


def compute_rounding_seed(chain_id: int, task: int, round_number: int, sender: Address) -> bytes:
    """Return the seed of the rounding: derived, so that a quantization can be audited."""
    numbers = b"".join(n.to_bytes(8, "big") for n in (chain_id, task, round_number))
    return hashlib.sha256(b"steelyard-rounding-1" + numbers + sender).digest()


def build_arrays(model: Model, personal: bytes | None) -> dict[str, NDArray[np.float32]]:
    """Return what the training function gets: the model, and this client's personal tensors."""
    arrays = dict(dequantize_model(model))
    if personal is not None:
        arrays |= decode_personal(personal, model.manifest)
    return arrays


def prepare_update(
    model: Model,
    base: BlobName,
    result: Result,
    *,
    chain_id: int,
    task: int,
    round_number: int,
    sender: Address,
    bits: int,
    max_norm2: int,
    clip_norm: float | None = None,
) -> Prepared:
    """Return the update file for a training result. `max_norm2`: units of 2**-48.

    Raises: InvalidTraining (what the function returned), SteelyardError from the quantizer.
    """
    manifest = model.manifest
    check_result(result, manifest)
    assert result.arrays is not None
    delta = compute_delta(model, result.arrays)
    is_train = np.concatenate(
        [np.full(spec.size, spec.role is Role.TRAIN) for spec in manifest.updated]
    )
    norm = float(np.linalg.norm(delta[is_train]))
    limit = isqrt(max_norm2) / NORM_UNIT
    if clip_norm is not None:
        limit = min(limit, clip_norm)
    scale = min(1.0, limit / norm) if norm > 0 and np.isfinite(norm) else 1.0
    seed = compute_rounding_seed(chain_id, task, round_number, sender)
    for _ in range(SHRINK_ATTEMPTS):
        scaled = np.where(is_train, delta * scale, delta) if scale < 1 else delta
        exponents, values = quantize(scaled, manifest, bits, seed)
        if compute_norm2(exponents, values, manifest) <= max_norm2:
            break
        # Rounding to integers can lengthen the delta a little.
        scale *= 0.97
    else:
        raise InvalidTraining(
            "norm_too_small",
            f"no delta of {bits} bits fits the admitted norm {limit:g}; "
            "the task needs a larger admission_norm, or bits=16",
        )
    header = UpdateHeader(
        mode=Mode.OPEN,
        bits=bits,
        round=Round(round_number),
        chain_id=chain_id,
        task=TaskId(task),
        values=len(values),
        exponents=len(exponents),
        base=base,
        sender=sender,
    )
    data = encode_update(header, exponents, values)
    personal = encode_personal(result.arrays, manifest)
    return Prepared(compute_blob_name(data), data, norm, scale, personal)


def check_result(result: Result, manifest: Manifest) -> None:
    """Raises InvalidTraining unless `result` has all tensors of an update, in their shapes."""
    if not isinstance(result, Result):
        raise InvalidTraining(
            "training_result",
            f"the training function returned {type(result).__name__}; return "
            "Result(arrays, samples=…, metrics=…)",
        )
    if result.arrays is None:
        raise InvalidTraining("training_result", "the result has no arrays: Result(dump(net), …)")
    if isinstance(result.samples, bool) or not isinstance(result.samples, int | np.integer):
        raise InvalidTraining("training_samples", "samples must be an integer")
    if result.samples < 1:
        raise InvalidTraining(
            "training_samples", "samples must be at least 1: how many rows were trained on"
        )
    if not isinstance(result.arrays, Mapping):
        raise InvalidTraining(
            "training_result",
            f"the result has a {type(result.arrays).__name__}; its arrays must be a dict by name",
        )
    for spec in manifest.updated:
        array = result.arrays.get(spec.name)
        if array is None:
            raise InvalidTraining(
                "training_tensor", f"the result lacks the tensor {spec.name!r} of the model"
            )
        if (shape := get_shape(spec.name, array)) != spec.shape:
            raise InvalidTraining(
                "training_shape",
                f"tensor {spec.name!r} has shape {shape}, the model's is {spec.shape}",
            )
    known = {spec.name for spec in manifest.tensors}
    if unknown := sorted(set(result.arrays) - known, key=repr):
        raise InvalidTraining(
            "training_tensor", f"the model has no tensor {unknown[0]!r}: is it another network?"
        )


def get_shape(name: str, array: Any) -> tuple[int, ...]:
    """Return the shape of a tensor of a result. Raises InvalidTraining `training_tensor`."""
    try:
        return tuple(np.shape(array))
    except Exception as error:  # what the function returned converts itself, and raises anything
        raise explain_tensor(name, error) from None


def read_array(name: str, array: Any, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """Return a tensor of a result as an array. Raises InvalidTraining `training_tensor`."""
    try:
        return np.asarray(array, dtype)
    except Exception as error:  # as above
        raise explain_tensor(name, error) from None


def explain_tensor(name: str, error: Exception) -> InvalidTraining:
    """Return what to say of something that is no array."""
    return InvalidTraining(
        "training_tensor",
        f"tensor {name!r} of the result is no array of numbers ({error}); "
        "of a torch module, `steelyard.client.torch.dump` makes arrays",
    )


def compute_delta(model: Model, trained: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float64]:
    """Return trained minus base in update order, shape (update values,), in float64."""
    base = dequantize_model(model)
    parts = [
        read_array(spec.name, trained[spec.name], np.float64).reshape(-1)
        - np.asarray(base[spec.name], dtype=np.float64).reshape(-1)
        for spec in model.manifest.updated
    ]
    return np.concatenate(parts)


def compute_norm2(
    exponents: NDArray[np.int8], values: NDArray[np.int8] | NDArray[np.int16], manifest: Manifest
) -> int:
    """Return the squared norm over trained tensors in units of 2**-48, exact."""
    layout = compute_layout(manifest)
    total = 0
    for index in np.flatnonzero(layout.is_train):
        start = int(layout.update_start[index])
        block = values[start : start + int(layout.length[index])].astype(np.int64)
        total += int(block @ block) << (2 * (int(exponents[index]) + 24))
    return total


def encode_personal(arrays: Mapping[str, NDArray[np.generic]], manifest: Manifest) -> bytes | None:
    """Return the personal tensors of a result for the journal; None without any."""
    personal = {
        spec.name: read_array(spec.name, arrays[spec.name])
        for spec in manifest.tensors
        if spec.role is Role.LOCAL and spec.name in arrays
    }
    if not personal:
        return None
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **personal)
    return stream.getvalue()


def decode_personal(data: bytes, manifest: Manifest) -> dict[str, NDArray[np.float32]]:
    """Return the personal tensors that the journal kept."""
    names = {spec.name for spec in manifest.tensors if spec.role is Role.LOCAL}
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files if name in names}

"""Between float tensors and the integers of the chain.

A model becomes int32 in units of `2**-fraction_bits`; a delta becomes one power-of-two exponent for
each block and small integers, rounded stochastically so that its mean stays where it was. The
random numbers come from Philox under a key derived from a seed. Philox's raw stream is the same in
every version of numpy, so whoever knows seed and delta can repeat a quantization bit for bit.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from steelyard.chain.errors import InvalidModel, SteelyardError
from steelyard.chain.model import (
    FLOAT_DTYPES,
    INTEGER_DTYPES,
    Manifest,
    Model,
    Role,
    TensorSpec,
    check_manifest,
    encode_model,
)
from steelyard.chain.params import BLOCK_VALUES, FRACTION_BITS, MAX_EXPONENT, VALUE_LIMIT

HEADROOM: Final = 4
"""`build_manifest` leaves room for values to grow this many times."""
AVERAGE_FRACTION_BITS: Final = 16
"""Running variances of unscaled pixels reach 10**4 and must not saturate; 2**-16 is about the
epsilon that batch normalisation adds to them anyway."""
_SEGMENT_VALUES: Final = 128 * BLOCK_VALUES
"""Quantized at a time, to bound the memory beside the delta itself."""

Delta = NDArray[np.float32] | NDArray[np.float64]


class NamedArrays(dict[str, NDArray[Any]]):
    """Tensors by name, and what happens to each in a round where that is not the default."""

    def __init__(
        self, arrays: Mapping[str, NDArray[Any]], roles: Mapping[str, Role] | None = None
    ) -> None:
        super().__init__(arrays)
        self.roles: dict[str, Role] = dict(roles or {})


# -- models ----------------------------------------------------------------------------------------


def build_manifest(
    arrays: Mapping[str, NDArray[Any]],
    roles: Mapping[str, Role] | None = None,
    fraction_bits: Mapping[str, int] | None = None,
) -> Manifest:
    """Return the manifest for a first model.

    `roles` default to those that `arrays` carries (`NamedArrays`), then to `train` for floats and
    `keep` for integers. `fraction_bits` default to the most that leave HEADROOM. Raises
    SteelyardError and InvalidModel, naming the tensor.
    """
    if roles is None:
        roles = arrays.roles if isinstance(arrays, NamedArrays) else {}
    fraction_bits = fraction_bits or {}
    for name in sorted({*roles, *fraction_bits} - set(arrays)):
        raise SteelyardError(
            "model_tensor", f"a role or format is given for {name!r}: no such tensor"
        )
    tensors: list[TensorSpec] = []
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        dtype = array.dtype.name
        if dtype not in (*FLOAT_DTYPES, *INTEGER_DTYPES):
            raise SteelyardError(
                "model_dtype", f"tensor {name!r} is {dtype}; convert it to float32 or int32"
            )
        is_float = dtype in FLOAT_DTYPES
        role = roles.get(name, Role.TRAIN if is_float else Role.KEEP)
        bits = fraction_bits.get(name)
        if bits is None:
            bits = _choose_fraction_bits(name, array, role) if is_float else 0
        tensors.append(TensorSpec(name, array.shape, dtype, bits, role))
    manifest = Manifest(tuple(tensors))
    check_manifest(manifest)
    return manifest


def _choose_fraction_bits(name: str, array: NDArray[Any], role: Role) -> int:
    _check_finite(name, array, "model_not_finite")
    largest = float(np.max(np.abs(array), initial=0)) * HEADROOM
    bits = AVERAGE_FRACTION_BITS if role is Role.AVERAGE else FRACTION_BITS
    while bits > 0 and largest * 2.0**bits >= VALUE_LIMIT:
        bits -= 1
    return bits


def quantize_model(arrays: Mapping[str, NDArray[Any]], manifest: Manifest) -> bytes:
    """Return the model file of `arrays`, rounded to the nearest, ties to even.

    Raises SteelyardError, naming the tensor, if one is missing, has another shape, is not finite
    or does not fit its format; InvalidModel if the manifest breaks a rule.
    """
    check_manifest(manifest)
    known = {spec.name for spec in manifest.tensors}
    for name in sorted(set(arrays) - known):
        raise SteelyardError("model_tensor", f"the manifest has no tensor {name!r}")
    parts: list[NDArray[np.int32]] = []
    for spec in manifest.stored:
        if spec.name not in arrays:
            raise SteelyardError("model_tensor", f"tensor {spec.name!r} is missing")
        array = np.asarray(arrays[spec.name])
        if array.shape != spec.shape:
            raise SteelyardError(
                "model_tensor",
                f"tensor {spec.name!r} has shape {array.shape}, the manifest says {spec.shape}",
            )
        parts.append(_quantize_tensor(spec, array))
    return encode_model(manifest, np.concatenate(parts))


def _quantize_tensor(spec: TensorSpec, array: NDArray[Any]) -> NDArray[np.int32]:
    _check_finite(spec.name, array, "model_not_finite")
    flat = array.reshape(-1)
    if array.dtype.kind in "iub":
        if spec.fraction_bits:
            flat = np.ldexp(flat.astype(np.float64), spec.fraction_bits)
    else:
        with np.errstate(over="ignore"):
            flat = np.rint(np.ldexp(flat.astype(np.float64), spec.fraction_bits))
    if flat.max() >= VALUE_LIMIT or flat.min() < -VALUE_LIMIT:
        raise SteelyardError("model_out_of_range", _explain_range(spec, array))
    return flat.astype(np.int32)


def _explain_range(spec: TensorSpec, array: NDArray[Any]) -> str:
    largest = float(np.max(np.abs(array.astype(np.float64))))
    text = (
        f"tensor {spec.name!r} reaches {largest:g}, too much for {spec.fraction_bits} fraction bits"
    )
    fitting = next(
        (
            bits
            for bits in range(spec.fraction_bits, -1, -1)
            if largest * 2.0**bits < VALUE_LIMIT - 1
        ),
        None,
    )
    if fitting is None:
        return f"{text}, and for any; scale it down, or give it the role local"
    return f"{text}; use fraction_bits={fitting} or fewer for it"


def dequantize_model(model: Model) -> NamedArrays:
    """Return the stored tensors by name: float32, or for integer tensors their own dtype.

    Exactly these arrays are the base that deltas are taken against. Raises InvalidModel if an
    integer does not fit the dtype that the manifest names.
    """
    arrays: dict[str, NDArray[Any]] = {}
    start = 0
    for spec in model.manifest.stored:
        values = model.values[start : start + spec.size].reshape(spec.shape)
        start += spec.size
        if spec.dtype in FLOAT_DTYPES:
            # Through float64, which holds every int32, so that there is one rounding.
            scaled = np.ldexp(values.astype(np.float64), -spec.fraction_bits)
            arrays[spec.name] = scaled.astype(np.float32)
            continue
        whole = values.astype(np.dtype(spec.dtype))
        if not np.array_equal(whole, values):
            raise InvalidModel("model_value", f"{spec.name!r} has values that are no {spec.dtype}")
        arrays[spec.name] = whole
    return NamedArrays(arrays, {spec.name: spec.role for spec in model.manifest.stored})


# -- updates ---------------------------------------------------------------------------------------


def quantize(
    delta: Delta, manifest: Manifest, bits: int = 8, seed: bytes = b""
) -> tuple[NDArray[np.int8], NDArray[np.int8] | NDArray[np.int16]]:
    """Return (exponents, values) of a delta with stochastic rounding.

    Shapes: delta (manifest.update_values,), in update order; exponents (blocks,); values as delta.
    Each block gets the smallest exponent with which its largest value fits, so that the result is
    unbiased and never clipped. The same arguments give the same result.
    Raises: SteelyardError `delta_not_finite` or `delta_too_large`, naming the tensor.
    """
    assert bits in (8, 16), bits
    assert delta.shape == (manifest.update_values,), delta.shape
    # Two steps, because the seed may have any length and the key has 128 bits.
    key = hashlib.sha256(b"steelyard-quantize-1" + seed).digest()
    source = np.random.Philox(key=np.frombuffer(key[:16], dtype="<u8"))
    exponents: list[NDArray[np.int8]] = []
    values = np.empty(delta.shape, dtype=np.int8 if bits == 8 else np.int16)
    for spec, start, end in _iter_segments(manifest):
        segment = delta[start:end].astype(np.float64)
        _check_finite(spec.name, segment, "delta_not_finite")
        blocks = np.pad(segment, (0, -len(segment) % BLOCK_VALUES)).reshape(-1, BLOCK_VALUES)
        exponent = _choose_exponents(spec, np.abs(blocks).max(axis=1), bits)
        scaled = np.ldexp(blocks, -exponent[:, np.newaxis]).reshape(-1)[: len(segment)]
        below = np.floor(scaled)
        uniform = (source.random_raw(len(segment)) >> np.uint64(11)) * 2.0**-53
        # Not floor(scaled + uniform): that sum rounds, and could reach the next integer but one.
        values[start:end] = below + (uniform < scaled - below)
        exponents.append(exponent.astype(np.int8))
    return np.concatenate(exponents), values


def _iter_segments(manifest: Manifest) -> Iterator[tuple[TensorSpec, int, int]]:
    """Cut the tensors of an update into runs of whole blocks."""
    offset = 0
    for spec in manifest.updated:
        for start in range(0, spec.size, _SEGMENT_VALUES):
            end = min(start + _SEGMENT_VALUES, spec.size)
            yield spec, offset + start, offset + end
        offset += spec.size


def _choose_exponents(
    spec: TensorSpec, largest: NDArray[np.float64], bits: int
) -> NDArray[np.int32]:
    """Return the smallest e >= -f with `largest <= (2**(bits-1) - 1) * 2**e`, for each block."""
    most = 2 ** (bits - 1) - 1
    # largest = mantissa * 2**power with mantissa in [1/2, 1)
    _, power = np.frexp(largest)
    exponent = power.astype(np.int32) - (bits - 1)
    exponent += largest > np.ldexp(float(most), exponent)
    exponent = np.where(largest > 0, exponent, -spec.fraction_bits)
    exponent = np.maximum(exponent, -spec.fraction_bits).astype(np.int32)
    # What the block decodes to if its largest value is rounded up, in the model's units.
    with np.errstate(over="ignore"):
        reach = np.ldexp(np.ceil(np.ldexp(largest, -exponent)), exponent + spec.fraction_bits)
    if np.any(reach >= VALUE_LIMIT) or np.any(exponent > MAX_EXPONENT):
        raise SteelyardError(
            "delta_too_large",
            f"the delta of tensor {spec.name!r} reaches {largest.max():g}, its format holds less "
            f"than {VALUE_LIMIT / 2**spec.fraction_bits:g}; did training diverge? Lower the "
            "learning rate or clip the delta",
        )
    return exponent


def clip(delta: Delta, clip_norm: float) -> NDArray[np.float64]:
    """Return the delta in float64, scaled down if its L2 norm is above `clip_norm`.

    Norms count trained values: pass those only. Raises SteelyardError `delta_not_finite`.
    """
    assert clip_norm > 0, clip_norm
    exact = delta.astype(np.float64)
    norm = float(np.linalg.norm(exact))
    if not np.isfinite(norm):
        raise SteelyardError("delta_not_finite", "the delta has no finite norm; did it diverge?")
    return exact if norm <= clip_norm else exact * (clip_norm / norm)


def _check_finite(name: str, array: NDArray[Any], code: str) -> None:
    # Not kind "f": bfloat16, which other packages add to numpy, is of another kind.
    if array.dtype.kind not in "iub" and not np.isfinite(array).all():
        index = int(np.flatnonzero(~np.isfinite(array.reshape(-1)))[0])
        raise SteelyardError(
            code,
            f"tensor {name!r} has NaN or infinite values (the first at {index}); did training "
            "diverge? Lower the learning rate or clip gradients",
        )

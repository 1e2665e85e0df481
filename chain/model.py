"""Model files: safetensors of int32 with one canonical header (docs/protocol.md, "Models").

The file lists its tensors twice: in the safetensors table, so that anybody's tools open it, and in
the manifest, which says what the numbers mean. Everything in the table follows from the manifest.
So decoding reads the manifest alone, with a pattern that accepts the canonical form and nothing
else, writes the header that belongs to it, and compares bytes. No general JSON parser meets hostile
bytes: nesting, duplicate keys, NaN and huge integers have no way in, and a model has exactly one
encoding.

Pure: numpy only. The values of a decoded model are a read-only view of the caller's bytes.
"""

import json
import re
import sys
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidModel
from .params import (
    BLOCK_VALUES,
    FRACTION_BITS,
    MAX_BLOB_BYTES,
    MAX_MODEL_HEADER_BYTES,
    MAX_MODEL_PARAMETERS,
    MAX_MODEL_TENSORS,
    MAX_TENSOR_DIMENSIONS,
    MAX_TENSOR_NAME_BYTES,
)
from .types import Buffer

MODEL_FORMAT: Final = "steelyard-model-1"
FLOAT_DTYPES: Final = ("bfloat16", "float16", "float32", "float64")
INTEGER_DTYPES: Final = ("bool", "int16", "int32", "int64", "int8", "uint8")
VALUE_BYTES: Final = 4

assert sys.byteorder == "little", "values are read in place, so the machine must be little-endian"


class Role(StrEnum):
    """What happens to a tensor in a round; the table is in docs/protocol.md, "Models"."""

    TRAIN = "train"
    AVERAGE = "average"
    KEEP = "keep"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor: a stored value `v` means `v * 2**-fraction_bits`; `dtype` is the trainer's."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    fraction_bits: int
    role: Role

    @property
    def size(self) -> int:
        """Number of values; a shape of () has one."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Manifest:
    """All tensors of a model, in the bytewise order of their names."""

    tensors: tuple[TensorSpec, ...]

    @property
    def stored(self) -> tuple[TensorSpec, ...]:
        """The tensors in the file, in file order."""
        return tuple(spec for spec in self.tensors if spec.role is not Role.LOCAL)

    @property
    def updated(self) -> tuple[TensorSpec, ...]:
        """The tensors in updates, in update order."""
        return tuple(spec for spec in self.tensors if spec.role in (Role.TRAIN, Role.AVERAGE))

    @property
    def parameters(self) -> int:
        """Values in the file."""
        return sum(spec.size for spec in self.stored)

    @property
    def update_values(self) -> int:
        """Values in an update."""
        return sum(spec.size for spec in self.updated)


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A decoded model. `values`: shape (manifest.parameters,), flat, in file order, read-only."""

    manifest: Manifest
    values: NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where each block of an update lies. All arrays have shape (blocks,) and are read-only.

    Block i covers values `update_start[i] : update_start[i] + length[i]` of an update and the same
    number of values from `model_start[i]` of the model. Blocks never cross tensors.
    """

    update_start: NDArray[np.int64]
    model_start: NDArray[np.int64]
    length: NDArray[np.int64]
    fraction_bits: NDArray[np.int64]
    is_train: NDArray[np.bool_]
    update_values: int


def check_manifest(manifest: Manifest) -> None:
    """Raise InvalidModel unless a model file may carry this manifest."""
    if not 1 <= len(manifest.tensors) <= MAX_MODEL_TENSORS:
        raise InvalidModel(
            "model_manifest",
            f"a model has 1 to {MAX_MODEL_TENSORS} tensors, this one has {len(manifest.tensors)}",
        )
    for spec in manifest.tensors:
        _check_name(spec.name)
        _check_shape(spec)
        _check_meaning(spec)
    # Code points sort as their UTF-8 bytes do.
    for before, after in pairwise(manifest.tensors):
        if before.name >= after.name:
            raise InvalidModel(
                "model_manifest",
                f"{after.name!a} is repeated or out of order; sort tensors by the bytes of names",
            )
    if manifest.parameters > MAX_MODEL_PARAMETERS:
        raise InvalidModel(
            "model_too_large",
            f"{manifest.parameters} stored values, the most is {MAX_MODEL_PARAMETERS}; "
            "train adapters over a frozen model instead",
        )
    if not any(spec.role is Role.TRAIN for spec in manifest.tensors):
        raise InvalidModel("model_role", "no tensor has the role train, so nothing can be learned")


def _check_name(name: str) -> None:
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise InvalidModel("model_name", f"{name!a} is not Unicode text") from error
    if not 1 <= size <= MAX_TENSOR_NAME_BYTES:
        raise InvalidModel(
            "model_name",
            f"a name has 1 to {MAX_TENSOR_NAME_BYTES} bytes, {name[:40]!a}… has {size}",
        )
    if name == "__metadata__" or any(character < " " or character == "\x7f" for character in name):
        raise InvalidModel("model_name", f"{name!a} is reserved or has control characters")


def _check_shape(spec: TensorSpec) -> None:
    if len(spec.shape) > MAX_TENSOR_DIMENSIONS:
        raise InvalidModel(
            "model_shape",
            f"{spec.name!a} has {len(spec.shape)} dimensions, the most is {MAX_TENSOR_DIMENSIONS}",
        )
    if any(length < 1 for length in spec.shape):
        raise InvalidModel("model_shape", f"{spec.name!a} has no values; leave empty tensors out")
    if spec.size > MAX_MODEL_PARAMETERS:
        raise InvalidModel(
            "model_too_large",
            f"{spec.name!a} has {spec.size} values, the most is {MAX_MODEL_PARAMETERS}",
        )


def _check_meaning(spec: TensorSpec) -> None:
    """Integer tensors are counters and indices: a mean of them says nothing."""
    if not 0 <= spec.fraction_bits <= FRACTION_BITS:
        raise InvalidModel(
            "model_manifest", f"{spec.name!a}: fraction_bits is 0 to {FRACTION_BITS}"
        )
    if spec.dtype in FLOAT_DTYPES:
        return
    if spec.dtype not in INTEGER_DTYPES:
        raise InvalidModel("model_manifest", f"{spec.name!a}: unknown dtype {spec.dtype!a}")
    if spec.fraction_bits != 0:
        raise InvalidModel("model_manifest", f"{spec.name!a}: integers have 0 fraction bits")
    if spec.role not in (Role.KEEP, Role.LOCAL):
        raise InvalidModel("model_role", f"{spec.name!a}: integers can only be kept or local")


def encode_model(manifest: Manifest, values: NDArray[np.int32]) -> bytes:
    """Return the model file. `values`: shape (manifest.parameters,), in file order.

    Raises InvalidModel if the manifest breaks a rule or its header is too long.
    """
    check_manifest(manifest)
    assert values.dtype == np.int32, values.dtype
    assert values.shape == (manifest.parameters,), values.shape
    header = _encode_header(manifest, encode_manifest(manifest))
    return b"".join((len(header).to_bytes(8, "little"), header, values.data))


def decode_model(data: Buffer) -> Model:
    """Return the model in `data`, without copying its values. Raises InvalidModel."""
    view = memoryview(data)
    if len(view) > MAX_BLOB_BYTES:
        raise InvalidModel("model_too_large", f"{len(view)} bytes, the most is {MAX_BLOB_BYTES}")
    if len(view) < 8:
        raise InvalidModel("model_header", f"{len(view)} bytes are too few for a safetensors file")
    size = int.from_bytes(view[:8], "little")
    if size > min(MAX_MODEL_HEADER_BYTES, len(view) - 8):
        raise InvalidModel(
            "model_header",
            f"the header says it has {size} bytes; {len(view) - 8} follow and "
            f"{MAX_MODEL_HEADER_BYTES} are the most",
        )
    manifest = _decode_header(bytes(view[8 : 8 + size]))
    expected = 8 + size + VALUE_BYTES * manifest.parameters
    if len(view) != expected:
        raise InvalidModel(
            "model_length", f"{len(view)} bytes, but its tensors make {expected}; send it whole"
        )
    values = np.frombuffer(view, dtype=np.int32, offset=8 + size)
    values.flags.writeable = False
    return Model(manifest, values)


@lru_cache(maxsize=8)
def compute_layout(manifest: Manifest) -> Layout:
    """Return the blocks of updates to a model with this (checked) manifest, in update order."""
    update_start: list[int] = []
    model_start: list[int] = []
    length: list[int] = []
    fraction_bits: list[int] = []
    is_train: list[bool] = []
    update_offset = model_offset = 0
    for spec in manifest.stored:
        if spec.role is not Role.KEEP:
            for start in range(0, spec.size, BLOCK_VALUES):
                update_start.append(update_offset + start)
                model_start.append(model_offset + start)
                length.append(min(BLOCK_VALUES, spec.size - start))
                fraction_bits.append(spec.fraction_bits)
                is_train.append(spec.role is Role.TRAIN)
            update_offset += spec.size
        model_offset += spec.size
    layout = Layout(
        update_start=_freeze(update_start),
        model_start=_freeze(model_start),
        length=_freeze(length),
        fraction_bits=_freeze(fraction_bits),
        is_train=np.array(is_train, dtype=np.bool_),
        update_values=update_offset,
    )
    layout.is_train.flags.writeable = False
    return layout


def _freeze(numbers: list[int]) -> NDArray[np.int64]:
    array = np.array(numbers, dtype=np.int64)
    array.flags.writeable = False
    return array


# -- the header ------------------------------------------------------------------------------------

_QUOTED: Final = r'"((?:[ !#-\[\]-~]|\\.){0,%d})"'
"""A JSON string of printable ASCII; what the escapes mean is checked by decoding them."""
_NAME_CHARACTERS: Final = 6 * MAX_TENSOR_NAME_BYTES
"""An escaped name: at most `\\uXXXX` for each byte of it."""
_MANIFEST_START: Final = f'"__metadata__":{{"format":"{MODEL_FORMAT}","manifest":"'
"""Inside a string its quotes would be escaped, so it can only be found where it belongs."""
_ENTRY: Final = re.compile(
    r"[{,]"
    + _QUOTED % _NAME_CHARACTERS
    + r':\{"dtype":"([a-z0-9]{1,16})","fraction_bits":([0-9]{1,2}),"role":"([a-z]{1,16})",'
    r'"shape":\[((?:[0-9]{1,10}(?:,[0-9]{1,10}){0,31})?)\]\}'
)


def _encode_json(document: object) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def encode_manifest(manifest: Manifest) -> str:
    """Return the canonical JSON of a manifest."""
    return _encode_json(
        {
            spec.name: {
                "dtype": spec.dtype,
                "fraction_bits": spec.fraction_bits,
                "role": spec.role.value,
                "shape": list(spec.shape),
            }
            for spec in manifest.tensors
        }
    )


def decode_manifest(text: str) -> Manifest:
    """Return the manifest in canonical JSON. Raises InvalidModel."""
    tensors: list[TensorSpec] = []
    position = 0
    while (entry := _ENTRY.match(text, position)) is not None:
        if len(tensors) == MAX_MODEL_TENSORS:
            raise InvalidModel("model_manifest", f"more than {MAX_MODEL_TENSORS} tensors")
        name, dtype, fraction_bits, role, shape = entry.groups()
        tensors.append(
            TensorSpec(
                _decode_name(name),
                tuple(int(length) for length in shape.split(",")) if shape else (),
                dtype,
                int(fraction_bits),
                _decode_role(role),
            )
        )
        position = entry.end()
    manifest = Manifest(tuple(tensors))
    if text[position:] != "}" or not tensors:
        raise InvalidModel(
            "model_manifest", f"not the canonical form from character {position}: see the protocol"
        )
    check_manifest(manifest)
    if encode_manifest(manifest) != text:
        raise InvalidModel("model_canonical", "the manifest is not written in the canonical form")
    return manifest


def _decode_name(quoted: str) -> str:
    try:
        name = json.loads(f'"{quoted}"')
    except ValueError as error:
        raise InvalidModel("model_name", f"{quoted[:40]!a} has a malformed escape") from error
    assert isinstance(name, str)
    return name


def _decode_role(role: str) -> Role:
    try:
        return Role(role)
    except ValueError as error:
        raise InvalidModel("model_role", f"unknown role {role!a}") from error


def _encode_header(manifest: Manifest, text: str) -> bytes:
    document: dict[str, object] = {"__metadata__": {"format": MODEL_FORMAT, "manifest": text}}
    start = 0
    for spec in manifest.stored:
        end = start + VALUE_BYTES * spec.size
        document[spec.name] = {
            "dtype": "I32",
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
        start = end
    header = _encode_json(document).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_MODEL_HEADER_BYTES:
        raise InvalidModel(
            "model_header",
            f"the header has {len(header)} bytes, the most is {MAX_MODEL_HEADER_BYTES}; "
            "shorten the names of tensors",
        )
    return header


@lru_cache(maxsize=8)
def _decode_header(header: bytes) -> Manifest:
    if not header.isascii():
        raise InvalidModel("model_canonical", "the header is not ASCII")
    text = header.decode("ascii")
    start = text.find(_MANIFEST_START)
    if start < 0:
        raise InvalidModel("model_header", f"no {MODEL_FORMAT} manifest in the metadata")
    start += len(_MANIFEST_START)
    # A canonical manifest ends in `}`, and inside it a quote is always escaped.
    end = text.find('}"}', start)
    if end < 0:
        raise InvalidModel("model_header", "the manifest has no end")
    manifest_text = _decode_manifest_string(text[start : end + 1])
    manifest = decode_manifest(manifest_text)
    if _encode_header(manifest, manifest_text) != header:
        raise InvalidModel(
            "model_canonical",
            "the header is not the one that belongs to its manifest; write it with encode_model",
        )
    return manifest


def _decode_manifest_string(quoted: str) -> str:
    try:
        text = json.loads(f'"{quoted}"')
    except ValueError as error:
        raise InvalidModel("model_header", "the manifest is not a JSON string") from error
    assert isinstance(text, str)
    return text

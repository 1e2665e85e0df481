"""A model as the chain has it: checked against its name, readable as arrays, saved for any tool."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelyard.chain.cid import encode_cid
from steelyard.chain.model import Model, decode_model
from steelyard.chain.types import BlobName

from .errors import ClientError
from .ipfs import Store
from .quantize import dequantize_model


@dataclass(frozen=True)
class PublishedModel:
    """A model file with its name. `data` has been checked against `name`."""

    name: BlobName
    data: bytes

    @property
    def cid(self) -> str:
        """The model's CID: the same file on chain, in IPFS and on disk."""
        return encode_cid(self.name)

    @property
    def decoded(self) -> Model:
        """Manifest and integers."""
        return decode_model(self.data)

    @property
    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The tensors as float32, by name."""
        return dequantize_model(self.decoded)

    def save(self, path: str | Path) -> Path:
        """Write the tensors as an ordinary float32 safetensors file."""
        return write_file(Path(path), encode_safetensors(self.arrays, {"steelyard_cid": self.cid}))

    def save_exact(self, path: str | Path) -> Path:
        """Write the chain's own file: integers and manifest, with the same CID."""
        return write_file(Path(path), self.data)

    def export(self, store: Store) -> str:
        """Add the chain's own file to an IPFS store; return its CID."""
        cid = store.add(self.data)
        assert cid == self.cid, "one file has one CID"
        return cid


def encode_safetensors(arrays: dict[str, NDArray[np.float32]], metadata: dict[str, str]) -> bytes:
    """Return a safetensors file of float32 tensors (huggingface/safetensors, README, "Format")."""
    header: dict[str, object] = {"__metadata__": metadata}
    start = 0
    for name, array in sorted(arrays.items()):
        end = start + 4 * array.size
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    values = [np.ascontiguousarray(array, "<f4").tobytes() for _, array in sorted(arrays.items())]
    return b"".join((len(text).to_bytes(8, "little"), text, *values))


def write_file(path: Path, data: bytes) -> Path:
    """Write a file completely or not at all. Raises ClientError `file_write`."""
    temporary = path.with_name(path.name + f".{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ClientError("file_write", f"cannot write {path}: {error}") from None
    return path

"""Small models and updates for the tests of aggregation, from plain lists of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steelyard.chain.cid import compute_blob_name
from steelyard.chain.model import Manifest, Role, TensorSpec, compute_layout, encode_model
from steelyard.chain.types import Address, BlobName, Round, TaskId
from steelyard.chain.update import Binding, Mode, UpdateHeader, encode_update

CHAIN_ID, TASK, ROUND = 1337, TaskId(5), Round(2)


def make_manifest(*tensors: tuple[int, int, Role]) -> Manifest:
    """Return a manifest of float tensors (size, fraction_bits, role), in this order."""
    return Manifest(
        tuple(
            TensorSpec(f"t{i:04}", (size,), "float32", bits, role)
            for i, (size, bits, role) in enumerate(tensors)
        )
    )


@dataclass(frozen=True)
class Base:
    """A base model and its name."""

    manifest: Manifest
    data: bytes
    name: BlobName

    @property
    def blocks(self) -> int:
        return int(compute_layout(self.manifest).length.size)

    def make_update(
        self, values: Sequence[int], exponents: Sequence[int], bits: int = 8, sender: int = 1
    ) -> tuple[BlobName, bytes]:
        """Return an update to this model, and its name."""
        header = UpdateHeader(
            mode=Mode.OPEN,
            bits=bits,
            round=ROUND,
            chain_id=CHAIN_ID,
            task=TASK,
            values=len(values),
            exponents=len(exponents),
            base=self.name,
            sender=Address(sender.to_bytes(20, "big")),
        )
        dtype = np.int8 if bits == 8 else np.int16
        data = encode_update(header, np.array(exponents, np.int8), np.array(values, dtype))
        return compute_blob_name(data), data

    def bind(self, sender: int = 1) -> Binding:
        """Return what an update by `sender` must be bound to."""
        return Binding(CHAIN_ID, TASK, ROUND, self.name, Address(sender.to_bytes(20, "big")))


def make_base(manifest: Manifest, values: Sequence[int] | None = None) -> Base:
    """Return a base model; without values it is all zero."""
    numbers = np.zeros(manifest.parameters, np.int32) if values is None else values
    data = encode_model(manifest, np.array(numbers, np.int32))
    return Base(manifest, data, compute_blob_name(data))


def make_flat_base(size: int, fraction_bits: int = 24) -> Base:
    """Return a zero model of one `train` tensor."""
    return make_base(make_manifest((size, fraction_bits, Role.TRAIN)))

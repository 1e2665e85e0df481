"""What the aggregation precompile charges, as a function of sizes (docs/protocol.md, section 5).

Apart from the precompile, because whoever publishes a task wants to know what closing a round will
cost, and a thin client has no kernels. Knows blobs by their names only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .model import VALUE_BYTES, Layout
from .params import (
    BLOB_GAS_EACH,
    BYTES_MADE_PER_GAS,
    BYTES_READ_PER_GAS,
    GAS_CALL,
    GAS_PER_UPDATE,
    HEADER_BYTES_PER_GAS,
    MAX_MODEL_HEADER_BYTES,
    VALUES_PER_GAS,
)
from .types import BlobName, Buffer
from .update import compute_update_size


@dataclass(frozen=True, slots=True)
class Work:
    """What a call is about to do; gas follows from it, and it follows from the names of blobs."""

    read: int
    values: int
    made: int = 0

    @property
    def gas(self) -> int:
        """Gas of reading, computing and making, without GAS_CALL and GAS_PER_UPDATE."""
        making = BLOB_GAS_EACH + -(-self.made // BYTES_MADE_PER_GAS) if self.made else 0
        return -(-self.read // BYTES_READ_PER_GAS) + -(-self.values // VALUES_PER_GAS) + making


def compute_aggregation_work(base: BlobName, updates: Sequence[int]) -> Work:
    """Return the work of an aggregation over updates of these sizes.

    A model has at most one value in four bytes. What its header costs more is not in its name.
    """
    values = base.size // VALUE_BYTES
    return Work(base.size + sum(updates), values * (1 + len(updates)), base.size)


def compute_header_gas(model: Buffer) -> int:
    """Return the gas of decoding a model's header, from the length that it begins with."""
    size = int.from_bytes(memoryview(model)[:8], "little")
    return -(-min(size, MAX_MODEL_HEADER_BYTES, len(model)) // HEADER_BYTES_PER_GAS)


def compute_aggregation_gas(
    base: BlobName, model: Buffer, layout: Layout, updates: int, bits: int
) -> int:
    """Return the gas of aggregating that many updates of `bits` on `model`, of name `base`."""
    size = compute_update_size(layout.update_values, layout.length.size, bits)
    work = compute_aggregation_work(base, [size] * updates)
    return GAS_CALL + GAS_PER_UPDATE * updates + work.gas + compute_header_gas(model)

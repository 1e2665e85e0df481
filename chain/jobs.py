"""What an aggregation is about, decoded, checked for form and arranged for the kernels.

Pure: numpy only. Called by `aggregate.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidUpdate
from .model import Layout, Model, compute_layout, decode_model
from .params import MAX_EXPONENT
from .rules import Rule
from .server import check_velocity_use, decode_velocity
from .types import BlobName, Buffer
from .update import Mode, Update, decode_update

Named: TypeAlias = Sequence[tuple[BlobName, Buffer]]
"""Updates with their names, in the order of the call."""


@dataclass(frozen=True, slots=True, eq=False)
class Payloads:
    """Updates as kernels take them: 8-bit ones first.

    `order[k]` is the place of payload k in the list, `place[i]` that of the list's i here. Holds
    the updates, because an address keeps nothing alive.
    """

    updates: tuple[Update, ...]
    order: tuple[int, ...]
    place: tuple[int, ...]
    addresses: NDArray[np.uint64]
    narrow: int
    exponents: NDArray[np.int8]


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """The decoded inputs of both phases. `velocity` is empty where there was none before."""

    rule: Rule
    model: Model
    layout: Layout
    velocity: NDArray[np.int64]
    payloads: Payloads


def open_job(rule: Rule, base: Buffer, velocity: Buffer | None, updates: Named) -> Job:
    """Decode everything that both phases need.

    Raises: InvalidModel, InvalidAggregation for the velocity, InvalidUpdate for the first update
    in the list that has not the form; values are checked when they are read.
    """
    model = decode_model(base)
    layout = compute_layout(model.manifest)
    before = np.empty(0, np.int64)
    check_velocity_use(rule, layout.update_values, is_given=velocity is not None)
    if velocity is not None:
        before = np.require(decode_velocity(velocity, layout.update_values), requirements="A")
    decoded: list[Update] = []
    for _, data in updates:
        update = decode_update(data)
        check_form(update, layout)
        decoded.append(update)
    return Job(rule, model, layout, before, arrange(decoded))


def arrange(updates: Sequence[Update]) -> Payloads:
    """Return updates as kernels take them."""
    order = sorted(range(len(updates)), key=lambda i: updates[i].header.bits)
    arranged = tuple(_align(updates[i]) for i in order)
    return Payloads(
        updates=arranged,
        order=tuple(order),
        place=tuple(sorted(range(len(order)), key=lambda k: order[k])),
        addresses=np.array([update.values.ctypes.data for update in arranged], np.uint64),
        narrow=sum(update.header.bits == 8 for update in arranged),
        exponents=np.stack([update.exponents for update in arranged]),
    )


def _align(update: Update) -> Update:
    """Blobs in files and in bytes are aligned; a slice of something larger may not be."""
    if update.values.flags.aligned:
        return update
    return Update(update.header, update.exponents, update.values.copy())


def get_arrays(layout: Layout) -> tuple[NDArray[np.int64], ...]:
    """Return what kernels take as LAYOUT."""
    return layout.update_start, layout.model_start, layout.length, layout.fraction_bits


def get_table(payloads: Payloads) -> tuple[NDArray[np.uint64], int, NDArray[np.int8]]:
    """Return what kernels take as PAYLOADS."""
    return payloads.addresses, payloads.narrow, payloads.exponents


def get_end(layout: Layout, block: int) -> int:
    """Return where a block ends in an update."""
    return int(layout.update_start[block] + layout.length[block])


def check_form(update: Update, layout: Layout) -> None:
    """Raise InvalidUpdate unless mode, counts and exponents fit the model."""
    header = update.header
    if header.mode is not Mode.OPEN:
        raise InvalidUpdate("update_mode", "masked updates are for masked tasks; send it open")
    if header.values != layout.update_values or header.exponents != layout.length.size:
        raise InvalidUpdate(
            "update_count",
            f"{header.values} values in {header.exponents} blocks; the model has "
            f"{layout.update_values} in {layout.length.size}",
        )
    exponents = update.exponents.astype(np.int64)
    bad = (exponents < -layout.fraction_bits) | (exponents > MAX_EXPONENT)
    if bad.any():
        block = int(bad.argmax())
        raise InvalidUpdate(
            "update_exponent",
            f"block {block} has exponent {exponents[block]}; it has "
            f"{-layout.fraction_bits[block]} to {MAX_EXPONENT}",
        )

"""What the aggregation precompile charges, as a function of sizes (docs/protocol.md, section 5).

Apart from the precompile, because whoever publishes a task wants to know what closing a round will
cost, and a thin client has no kernels. Knows blobs by their names only.

What each rule costs is told in *visits*: one value of one update, once through the kernel of the
mean. About 0.1 nanoseconds where vectors are wide; charged ten times that (decision 7).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from .errors import InvalidAggregation
from .model import VALUE_BYTES, Layout
from .pages import (
    PAGE_HEADER_BYTES,
    compute_combined_size,
    compute_measures_size,
)
from .params import (
    BLOB_GAS_EACH,
    BYTES_MADE_PER_GAS,
    BYTES_READ_PER_GAS,
    GAS_CALL,
    GAS_PER_DISTANCE,
    GAS_PER_UPDATE,
    HEADER_BYTES_PER_GAS,
    MAX_BLOB_BYTES,
    MAX_MODEL_HEADER_BYTES,
    MAX_PAGES,
    PAGE_BYTES_PER_GAS,
    PAIR_VALUES_PER_BLOCK,
    PAIR_VALUES_PER_GAS,
    STEP_VISITS,
    TRIMMED_VISITS,
    VALUES_PER_GAS,
)
from .rules import Rule, RuleKind, needs_measures
from .server import check_velocity_size, compute_velocity_size
from .types import BlobName, Buffer
from .update import compute_update_size


def _divide(amount: int, per_gas: int) -> int:
    return -(-amount // per_gas)


# -- reading and making ----------------------------------------------------------------------------


def compute_reading_gas(*sizes: int) -> int:
    """Return the gas of reading that many bytes of blobs."""
    return _divide(sum(sizes), BYTES_READ_PER_GAS)


def compute_making_gas(size: int) -> int:
    """Return the gas of encoding, hashing and storing a blob."""
    return BLOB_GAS_EACH + _divide(size, BYTES_MADE_PER_GAS)


def compute_header_gas(model: Buffer) -> int:
    """Return the gas of decoding a model's header, from the length that it begins with."""
    size = int.from_bytes(memoryview(model)[:8], "little")
    return _divide(min(size, MAX_MODEL_HEADER_BYTES, len(model)), HEADER_BYTES_PER_GAS)


def compute_checking_gas(model: int, update: int = 0) -> int:
    """Return the gas of reading a model of that size, and an update to it, and checking them."""
    visits = model // VALUE_BYTES * (2 if update else 1)
    return compute_reading_gas(model, update) + _divide(visits, VALUES_PER_GAS)


# -- the phases ------------------------------------------------------------------------------------


def compute_measuring_gas(rule: Rule, values: int, blocks: int, updates: int) -> int:
    """Return the gas of phase 1 over that many values in so many blocks, or in none that counts.

    None for rules that need no measures.
    """
    match rule.kind:
        case RuleKind.NORM_CLIPPED_MEAN:
            return _divide(values * updates, VALUES_PER_GAS)
        case RuleKind.MULTI_KRUM:
            pairs = updates * (updates + 1) // 2
            visits = max(values, PAIR_VALUES_PER_BLOCK * blocks) * pairs
            return _divide(visits, PAIR_VALUES_PER_GAS) + GAS_PER_DISTANCE * updates**2
        case _:
            return 0


def compute_deciding_gas(rule: Rule, updates: int) -> int:
    """Return the gas of turning measures into shares: distances are compared one by one."""
    return GAS_PER_DISTANCE * updates**2 if rule.kind is RuleKind.MULTI_KRUM else 0


def compute_combining_gas(rule: Rule, values: int, updates: int) -> int:
    """Return the gas of phase 2 over that many values."""
    visits = 1 + updates + (STEP_VISITS if rule.has_server_step else 0)
    if rule.kind is RuleKind.TRIMMED_MEAN:
        visits += TRIMMED_VISITS * updates
    return _divide(values * visits, VALUES_PER_GAS)


def compute_aggregating_gas(rule: Rule, base: int, velocity: int, updates: Sequence[int]) -> int:
    """Return the gas of one `aggregate` over blobs of these sizes, from which all of it follows.

    Not with it: GAS_CALL, GAS_PER_UPDATE, and the header of the model. A model has at most one
    value in four bytes. How many blocks it has does not follow; but what its header says of a
    tensor takes 140 bytes, that of a block of one value is so paid as 35.
    """
    values, count = base // VALUE_BYTES, len(updates)
    gas = compute_reading_gas(base, velocity, *updates) + compute_making_gas(base)
    if rule.has_momentum:
        gas += compute_making_gas(compute_velocity_size(values))
    return (
        gas
        + compute_measuring_gas(rule, values, 0, count)
        + compute_deciding_gas(rule, count)
        + compute_combining_gas(rule, values, count)
    )


# -- pages -----------------------------------------------------------------------------------------


def compute_range_bytes(size: int, layout: Layout, values: int) -> int:
    """Return what is read of an update of `size` bytes for `values` of its values.

    All of its head, and of what follows the part that the values are of all values.
    """
    fixed = compute_update_size(0, layout.length.size, 8)
    return min(size, fixed) + _divide(max(size - fixed, 0) * values, layout.update_values)


def compute_measure_gas(rule: Rule, values: int, blocks: int, updates: int, read: int) -> int:
    """Return the gas of a page of phase 1 over `values` in `blocks`, reading `read` bytes.

    Not with it: GAS_CALL, GAS_PER_UPDATE, and the model, which is read before.
    """
    return (
        compute_reading_gas(read)
        + compute_measuring_gas(rule, values, blocks, updates)
        + compute_making_gas(compute_measures_size(rule, updates))
    )


def compute_combine_gas(rule: Rule, values: int, updates: int, read: int) -> int:
    """Return the gas of a page of phase 2. Not with it: as in compute_measure_gas, and measures."""
    return (
        compute_reading_gas(read)
        + compute_deciding_gas(rule, updates)
        + compute_combining_gas(rule, values, updates)
        + compute_making_gas(compute_combined_size(rule, updates, values))
    )


def compute_assembling_gas(rule: Rule, base: int, layout: Layout, updates: int) -> int:
    """Return the gas of putting pages together. Not with it: the model, and reading the pages."""
    gas = compute_deciding_gas(rule, updates) + compute_making_gas(base)
    if rule.has_momentum:
        gas += compute_making_gas(compute_velocity_size(layout.update_values))
    return gas + _divide(base // VALUE_BYTES, VALUES_PER_GAS)


def compute_measures_gas(rule: Rule, updates: int, pages: int) -> int:
    """Return the gas of decoding that many pages of phase 1."""
    return _divide(pages * compute_measures_size(rule, updates), PAGE_BYTES_PER_GAS)


def compute_combined_gas(rule: Rule, layout: Layout, updates: int, pages: int) -> int:
    """Return the gas of decoding that many pages of phase 2, which cover the model."""
    numbers = pages * compute_combined_size(rule, updates, 0)
    values = compute_combined_size(rule, 0, layout.update_values) - PAGE_HEADER_BYTES
    return _divide(numbers, PAGE_BYTES_PER_GAS) + compute_reading_gas(values)


# -- what a task will need -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """How to close a round: page i of m covers blocks i*blocks//m to (i+1)*blocks//m.

    No measures and one page of phase 2 mean that a single `aggregate` fits.
    """

    measures: int
    combines: int
    blocks: int


def compute_aggregation_gas(
    rule: Rule, base: BlobName, model: Buffer, layout: Layout, updates: int, bits: int
) -> int:
    """Return the gas of aggregating that many updates of `bits` on `model`, of name `base`.

    Raises InvalidAggregation if that can never be.
    """
    if rule.has_momentum:
        check_velocity_size(layout.update_values)
    sizes = [_compute_size(layout, bits)] * updates
    velocity = compute_velocity_size(layout.update_values) if rule.has_momentum else 0
    return (
        GAS_CALL
        + GAS_PER_UPDATE * updates
        + compute_aggregating_gas(rule, base.size, velocity, sizes)
        + compute_header_gas(model)
    )


def plan_pages(
    rule: Rule,
    base: BlobName,
    model: Buffer,
    layout: Layout,
    updates: int,
    bits: int,
    page_gas: int,
) -> Plan:
    """Return the fewest pages that need at most `page_gas` each.

    Raises InvalidAggregation aggregation_capacity if MAX_PAGES of each phase are too few.
    """
    blocks = int(layout.length.size)
    if compute_aggregation_gas(rule, base, model, layout, updates, bits) <= page_gas:
        return Plan(0, 1, blocks)
    opening = GAS_CALL + compute_reading_gas(base.size) + compute_header_gas(model)
    left = page_gas - opening - GAS_PER_UPDATE * updates
    size = _compute_size(layout, bits)
    velocity = compute_velocity_size(layout.update_values) if rule.has_momentum else 0

    def is_measurable(values: int, of_blocks: int) -> bool:
        read = updates * compute_range_bytes(size, layout, values)
        return compute_measure_gas(rule, values, of_blocks, updates, read) <= left

    measures = _count_pages(layout, 1, is_measurable) if needs_measures(rule) else 0
    left -= compute_measures_gas(rule, updates, measures) + GAS_PER_UPDATE * measures

    def is_combinable(values: int, _of_blocks: int) -> bool:
        read = updates * compute_range_bytes(size, layout, values)
        gas = compute_combine_gas(rule, values, updates, read + velocity)
        return gas <= left and compute_combined_size(rule, updates, values) <= MAX_BLOB_BYTES

    combines = _count_pages(layout, 1 if measures else 2, is_combinable)
    left -= compute_combined_gas(rule, layout, updates, combines) + GAS_PER_UPDATE * combines
    if compute_assembling_gas(rule, base.size, layout, updates) > left:
        raise _refuse(f"putting {combines} pages together needs more than {page_gas} gas")
    return Plan(measures, combines, blocks)


def get_page_range(page: int, pages: int, blocks: int) -> tuple[int, int]:
    """Return the first block of a page and the one after its last."""
    return page * blocks // pages, (page + 1) * blocks // pages


def _count_pages(layout: Layout, fewest: int, fits: Callable[[int, int], bool]) -> int:
    """Return the smallest number of pages that fit, by the most values and blocks of any."""
    blocks = int(layout.length.size)
    ends = [0, *accumulate(layout.length.tolist())]
    for pages in range(fewest, min(MAX_PAGES, blocks) + 1):
        ranges = (get_page_range(page, pages, blocks) for page in range(pages))
        if fits(max(ends[last] - ends[first] for first, last in ranges), -(-blocks // pages)):
            return pages
    raise _refuse(f"{MAX_PAGES} pages of one phase, or one of each block, are too few")


def _compute_size(layout: Layout, bits: int) -> int:
    return compute_update_size(layout.update_values, layout.length.size, bits)


def _refuse(reason: str) -> InvalidAggregation:
    return InvalidAggregation(
        "aggregation_capacity", f"{reason}; use fewer clients, a smaller model or a simpler rule"
    )

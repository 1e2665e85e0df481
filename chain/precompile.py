"""The aggregation precompile: Solidity ABI around the pure functions (docs/protocol.md, section 5).

A call reads its arguments as one sequence of words that must be laid out canonically, pays for
all that it is about to do from the sizes in the blobs' names, and only then touches a blob. What
names do not tell is the length of a model's header: that is paid before the model is decoded.
Refusals are `SteelyardError`s; the engine makes them reverts with Error("fedavg: <code>").

Knows no EVM: what it may ask of the frame that called it is `PrecompileHost`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from eth_hash.auto import keccak

from . import aggregate as fedavg
from .admission import Admission
from .arguments import NO_BLOB, WORD, Arguments, encode_array, encode_words
from .cid import compute_blob_name
from .errors import InvalidAggregation, InvalidBlobName
from .model import Layout, compute_layout, decode_model
from .pages import (
    Measures,
    check_cover,
    check_range,
    compute_combine_key,
    compute_combined_size,
    compute_measure_key,
    compute_measures_size,
    count_values,
    decode_combined,
    decode_measures,
    encode_combined,
    encode_measures,
)
from .params import GAS_CALL, GAS_PER_PLAN, GAS_PER_UPDATE, MAX_BLOB_BYTES, MAX_UPDATES
from .pricing import (
    compute_aggregating_gas,
    compute_aggregation_gas,
    compute_assembling_gas,
    compute_checking_gas,
    compute_combine_gas,
    compute_combined_gas,
    compute_header_gas,
    compute_measure_gas,
    compute_measures_gas,
    compute_range_bytes,
    compute_reading_gas,
    plan_pages,
)
from .rules import Aggregate, Rule, check_enough, check_rule, needs_measures
from .server import check_velocity_use
from .shares import check_names, compute_shares
from .types import Address, BlobName, Buffer, Height, Round, TaskId
from .update import Binding


class PrecompileHost(Protocol):
    """What a call may ask of the frame that called it."""

    chain_id: int
    is_static: bool
    timestamp: int
    height: Height

    def consume_gas(self, amount: int, reason: str) -> None:
        """Charge the frame, or end it."""

    def get_admission(self, name: BlobName) -> Admission | None:
        """Return the blob's record, expired or not."""

    def read_blob(self, name: BlobName) -> Buffer:
        """Return the bytes of a blob whose record is unexpired. Raises UnavailableBlob."""

    def write_blob(self, name: BlobName, data: bytes) -> None:
        """Keep a blob that this call made, and record its admission."""


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """A base model that was paid for and decodes."""

    data: Buffer
    layout: Layout


# -- blobs -----------------------------------------------------------------------------------------


def _charge(host: PrecompileHost, gas: int) -> None:
    host.consume_gas(gas, "fedavg work")


def _check_readable(host: PrecompileHost, *names: BlobName) -> None:
    for name in names:
        admission = host.get_admission(name)
        if admission is None:
            raise InvalidBlobName("blob_unknown", "no transaction declared this blob")
        if host.timestamp > admission.expires_at:
            raise InvalidBlobName(
                "blob_expired", "the blob may no longer be read; declare it again"
            )


def _read(host: PrecompileHost, name: BlobName) -> Buffer:
    _check_readable(host, name)
    return host.read_blob(name)


def _list_given(velocity: BlobName) -> tuple[BlobName, ...]:
    return () if velocity == NO_BLOB else (velocity,)


def _read_updates(host: PrecompileHost, names: Sequence[BlobName]) -> list[tuple[BlobName, Buffer]]:
    return [(name, _read(host, name)) for name in names]


def _read_velocity(host: PrecompileHost, name: BlobName) -> Buffer | None:
    return None if name == NO_BLOB else _read(host, name)


def _read_model(host: PrecompileHost, name: BlobName) -> Buffer:
    """Return the bytes of a model that may now be decoded."""
    data = _read(host, name)
    host.consume_gas(compute_header_gas(data), "fedavg header")
    return data


def _open_base(host: PrecompileHost, name: BlobName, rule: Rule, velocity: BlobName) -> Base:
    """Return a base of which only the header and a part are read; all of it is paid.

    Raises InvalidAggregation too, for a velocity that is given or would be made.
    """
    _charge(host, compute_reading_gas(name.size))
    data = _read_model(host, name)
    layout = compute_layout(decode_model(data).manifest)
    check_velocity_use(rule, layout.update_values, is_given=velocity != NO_BLOB)
    return Base(data, layout)


def _write(host: PrecompileHost, data: bytes) -> BlobName:
    name = compute_blob_name(data)
    host.write_blob(name, data)
    return name


def _check_writable(host: PrecompileHost) -> None:
    if host.is_static:
        raise InvalidAggregation("call_static", "a call that makes a blob cannot be static")


# -- calls: updates and models ---------------------------------------------------------------------


def _verify(host: PrecompileHost, arguments: Arguments) -> bytes:
    name = arguments.take_blob()
    task, round_ = arguments.take_word(), arguments.take_word()
    base = arguments.take_blob()
    sender = Address(arguments.take_word(2**160).to_bytes(20, "big"))
    max_norm2 = arguments.take_word()
    arguments.finish()
    host.consume_gas(GAS_PER_UPDATE, "fedavg updates")
    _charge(host, compute_checking_gas(base.size, name.size))
    _check_readable(host, name, base)
    model, update = decode_model(_read_model(host, base)), _read(host, name)
    binding = Binding(host.chain_id, TaskId(task), Round(round_), base, sender)
    return encode_words(fedavg.verify_update(update, model, binding, max_norm2))


def _info(host: PrecompileHost, arguments: Arguments) -> bytes:
    name = arguments.take_blob()
    arguments.finish()
    admission = host.get_admission(name)
    if admission is None:
        return encode_words(0, 0, 0)
    return encode_words(name.size, admission.height, admission.expires_at)


def _check_model(host: PrecompileHost, arguments: Arguments) -> bytes:
    name = arguments.take_blob()
    arguments.finish()
    _charge(host, compute_checking_gas(name.size))
    manifest = decode_model(_read_model(host, name)).manifest
    return encode_words(manifest.parameters, manifest.update_values)


# -- calls: one aggregation ------------------------------------------------------------------------


def _normalise(host: PrecompileHost, arguments: Arguments) -> bytes:
    rule = arguments.take_rule()
    at_updates, at_weights = arguments.take_word(), arguments.take_word()
    names = arguments.take_updates(host, at_updates)
    weights = arguments.take_numbers(at_weights, len(names))
    arguments.finish()
    check_rule(rule)
    shares = compute_shares(names, weights, rule.max_share)
    return encode_words(WORD, encode_array(shares))


def _aggregate(host: PrecompileHost, arguments: Arguments) -> bytes:
    _check_writable(host)
    rule, base, velocity = arguments.take_rule(), arguments.take_blob(), arguments.take_blob()
    at_updates, at_weights = arguments.take_word(), arguments.take_word()
    names = arguments.take_updates(host, at_updates)
    weights = arguments.take_numbers(at_weights, len(names))
    arguments.finish()
    sizes = [name.size for name in names]
    _charge(host, compute_aggregating_gas(rule, base.size, velocity.size, sizes))
    _check_readable(host, base, *_list_given(velocity), *names)
    fedavg.check_list(rule, names, weights)
    updates = _read_updates(host, names)
    before = _read_velocity(host, velocity)
    model = _read_model(host, base)
    return _answer(host, fedavg.aggregate(rule, model, before, updates, weights))


def _answer(host: PrecompileHost, made: Aggregate) -> bytes:
    """Keep the blobs that an aggregation made and return its record."""
    model = _write(host, made.model)
    velocity = NO_BLOB if made.velocity is None else _write(host, made.velocity)
    head, array = 8 * WORD, WORD * (1 + len(made.shares))
    return encode_words(
        model.digest,
        model.size,
        velocity.digest,
        velocity.size,
        head,
        head + array,
        head + 2 * array,
        made.saturated,
        encode_array(made.shares),
        encode_array(made.scores),
        encode_array(made.flags),
    )


# -- calls: pages ----------------------------------------------------------------------------------


def _measure(host: PrecompileHost, arguments: Arguments) -> bytes:
    _check_writable(host)
    rule, base_name = arguments.take_rule(), arguments.take_blob()
    at_updates = arguments.take_word()
    first, last = arguments.take_word(), arguments.take_word()
    names = arguments.take_updates(host, at_updates)
    arguments.finish()
    _check_readable(host, base_name, *names)
    check_rule(rule)
    if not needs_measures(rule):
        raise InvalidAggregation("aggregation_rule", "this rule weighs without measuring")
    check_names(names)
    check_enough(rule, len(names))
    base = _open_base(host, base_name, rule, NO_BLOB)
    check_range(first, last, base.layout.length.size)
    values = count_values(base.layout, first, last)
    read = sum(compute_range_bytes(name.size, base.layout, values) for name in names)
    _charge(host, compute_measure_gas(rule, values, last - first, len(names), read))
    measures = fedavg.measure_range(rule, base.data, _read_updates(host, names), first, last)
    page = _write(host, encode_measures(measures, compute_measure_key(rule, base_name, names)))
    return encode_words(page.digest, page.size)


def _combine(host: PrecompileHost, arguments: Arguments) -> bytes:
    _check_writable(host)
    rule, base_name, velocity = arguments.take_rule(), arguments.take_blob(), arguments.take_blob()
    at_updates, at_weights, at_measures = (arguments.take_word() for _ in range(3))
    first, last = arguments.take_word(), arguments.take_word()
    names = arguments.take_updates(host, at_updates)
    weights = arguments.take_numbers(at_weights, len(names))
    pages = arguments.take_pages(host, at_measures)
    arguments.finish()
    _check_readable(host, base_name, *_list_given(velocity), *names, *pages)
    fedavg.check_list(rule, names, weights)
    base = _open_base(host, base_name, rule, velocity)
    layout = base.layout
    check_range(first, last, layout.length.size)
    values = count_values(layout, first, last)
    if compute_combined_size(rule, len(names), values) > MAX_BLOB_BYTES:
        raise InvalidAggregation("aggregation_capacity", f"{values} values do not fit in one page")
    read = sum(compute_range_bytes(name.size, layout, values) for name in names)
    _charge(host, compute_combine_gas(rule, values, len(names), read + velocity.size))
    measures = _read_measures(host, rule, base_name, names, pages, layout)
    updates = _read_updates(host, names)
    before = _read_velocity(host, velocity)
    combined = fedavg.combine_range(
        rule, base.data, before, updates, weights, measures, first, last
    )
    key = compute_combine_key(rule, base_name, velocity, names, weights, pages)
    page = _write(host, encode_combined(combined, key))
    return encode_words(page.digest, page.size)


def _assemble(host: PrecompileHost, arguments: Arguments) -> bytes:
    _check_writable(host)
    rule, base_name, velocity = arguments.take_rule(), arguments.take_blob(), arguments.take_blob()
    at_updates, at_weights, at_measures, at_pages = (arguments.take_word() for _ in range(4))
    names = arguments.take_updates(host, at_updates)
    weights = arguments.take_numbers(at_weights, len(names))
    measure_names = arguments.take_pages(host, at_measures)
    page_names = arguments.take_pages(host, at_pages)
    arguments.finish()
    _check_readable(host, base_name, *measure_names, *page_names)
    fedavg.check_list(rule, names, weights)
    base = _open_base(host, base_name, rule, velocity)
    layout = base.layout
    count = len(names)
    _charge(host, compute_assembling_gas(rule, base_name.size, layout, count))
    measures = _read_measures(host, rule, base_name, names, measure_names, layout)
    empty = compute_combined_size(rule, count, 0)
    values_size = compute_combined_size(rule, count, layout.update_values) - empty
    if sum(name.size for name in page_names) != empty * len(page_names) + values_size:
        raise InvalidAggregation("page_length", "the pages do not have the values of the model")
    _charge(host, compute_combined_gas(rule, layout, count, len(page_names)))
    key = compute_combine_key(rule, base_name, velocity, names, weights, measure_names)
    combined = [decode_combined(_read(host, name), key, rule, count, layout) for name in page_names]
    check_cover(combined, layout.length.size)
    return _answer(host, fedavg.assemble(rule, base.data, names, weights, measures, combined))


def _read_measures(
    host: PrecompileHost,
    rule: Rule,
    base: BlobName,
    names: Sequence[BlobName],
    pages: Sequence[BlobName],
    layout: Layout,
) -> list[Measures]:
    """Return all of phase 1; none for a rule that has none."""
    if not needs_measures(rule):
        if pages:
            raise InvalidAggregation("page_cover", "this rule weighs without measuring")
        return []
    size = compute_measures_size(rule, len(names))
    if any(page.size != size for page in pages):
        raise InvalidAggregation("page_length", f"a page of phase 1 has {size} bytes")
    _charge(host, compute_measures_gas(rule, len(names), len(pages)))
    key = compute_measure_key(rule, base, names)
    measures = [decode_measures(_read(host, page), key, rule, len(names), layout) for page in pages]
    check_cover(measures, layout.length.size)
    return measures


# -- calls: what it will cost ----------------------------------------------------------------------


def _quote(host: PrecompileHost, arguments: Arguments) -> bytes:
    rule, name, updates, bits = _take_round(arguments)
    arguments.finish()
    base = _open_quoted(host, rule, name, updates, bits)
    return encode_words(compute_aggregation_gas(rule, name, base.data, base.layout, updates, bits))


def _plan(host: PrecompileHost, arguments: Arguments) -> bytes:
    rule, name, updates, bits = _take_round(arguments)
    page_gas = arguments.take_word()
    arguments.finish()
    host.consume_gas(GAS_PER_PLAN, "fedavg plan")
    base = _open_quoted(host, rule, name, updates, bits)
    plan = plan_pages(rule, name, base.data, base.layout, updates, bits, page_gas)
    return encode_words(plan.measures, plan.combines, plan.blocks)


def _take_round(arguments: Arguments) -> tuple[Rule, BlobName, int, int]:
    """Return a rule, a model, and how many updates of how many bits a round may have."""
    rule, name = arguments.take_rule(), arguments.take_blob()
    return rule, name, arguments.take_word(), arguments.take_word()


def _open_quoted(host: PrecompileHost, rule: Rule, name: BlobName, updates: int, bits: int) -> Base:
    """Return the base of a round that can be."""
    _charge(host, compute_checking_gas(name.size))
    _check_readable(host, name)
    check_rule(rule)
    if not 1 <= updates <= MAX_UPDATES or bits not in (8, 16):
        raise InvalidAggregation("aggregation_count", f"{updates} updates of {bits} bits")
    check_enough(rule, updates)
    data = _read_model(host, name)
    return Base(data, compute_layout(decode_model(data).manifest))


_BLOB: Final = "(bytes32,uint256)"
_RULE: Final = "(uint8,uint256,uint256,uint256,uint256)"
_LISTS: Final = f"{_BLOB}[],uint256[]"
_CALLS: Final[dict[str, Callable[[PrecompileHost, Arguments], bytes]]] = {
    f"verify({_BLOB},uint256,uint256,{_BLOB},address,uint256)": _verify,
    f"aggregate({_RULE},{_BLOB},{_BLOB},{_LISTS})": _aggregate,
    f"measure({_RULE},{_BLOB},{_BLOB}[],uint256,uint256)": _measure,
    f"combine({_RULE},{_BLOB},{_BLOB},{_LISTS},{_BLOB}[],uint256,uint256)": _combine,
    f"assemble({_RULE},{_BLOB},{_BLOB},{_LISTS},{_BLOB}[],{_BLOB}[])": _assemble,
    f"plan({_RULE},{_BLOB},uint256,uint256,uint256)": _plan,
    f"quote({_RULE},{_BLOB},uint256,uint256)": _quote,
    f"normalise({_RULE},{_LISTS})": _normalise,
    f"info({_BLOB})": _info,
    f"check_model({_BLOB})": _check_model,
}
SIGNATURES: Final = {keccak(signature.encode())[:4]: signature for signature in _CALLS}
SELECTORS: Final = {
    selector: signature.partition("(")[0] for selector, signature in SIGNATURES.items()
}
"""The first four bytes of a call, and its name."""


def call(host: PrecompileHost, data: bytes) -> bytes:
    """Run one call and return its ABI-encoded answer.

    Raises: SteelyardError for what the caller did wrong, UnavailableBlob if this machine lacks a
    blob that the chain admitted, and whatever `consume_gas` raises.
    """
    host.consume_gas(GAS_CALL, "fedavg call")
    signature = SIGNATURES.get(bytes(data[:4]))
    if signature is None:
        raise InvalidAggregation("call_unknown", f"no call has the selector 0x{data[:4].hex()}")
    return _CALLS[signature](host, Arguments(bytes(data[4:])))

"""The aggregation precompile: Solidity ABI around the pure functions (docs/protocol.md, section 5).

A call reads its arguments as one sequence of words that must be laid out canonically, pays for
all that it is about to do from the sizes in the blobs' names, and only then touches a blob. What
names do not tell is the length of a model's header: that is paid before the model is decoded.
Refusals are `SteelyardError`s; the engine makes them reverts with Error("fedavg: <code>").

Knows no EVM: what it may ask of the frame that called it is `PrecompileHost`.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from eth_hash.auto import keccak

from . import aggregate as fedavg
from .admission import Admission
from .cid import compute_blob_name
from .errors import InvalidAggregation, InvalidBlobName
from .model import VALUE_BYTES, compute_layout, decode_model
from .params import GAS_CALL, GAS_PER_UPDATE, MAX_PARTIAL_BYTES, MAX_UPDATES
from .partial import PARTIAL_HEADER_BYTES
from .pricing import (
    Work,
    compute_aggregation_gas,
    compute_aggregation_work,
    compute_header_gas,
)
from .rules import Rule, RuleKind, check_rule
from .shares import compute_shares
from .types import Address, BlobName, Buffer, Digest, Height, Round, TaskId
from .update import Binding

WORD: Final = 32


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


# -- arguments and answers -------------------------------------------------------------------------


class Arguments:
    """Reads ABI words in order. Only the canonical layout passes: no gaps, overlaps, leftovers."""

    def __init__(self, data: bytes) -> None:
        if len(data) % WORD:
            raise InvalidAggregation(
                "call_encoding", "arguments are not whole words; encode by ABI"
            )
        self._data, self._at = data, 0

    def take_word(self, limit: int = 2**256) -> int:
        """Return the next word, which must be below `limit`."""
        if self._at + WORD > len(self._data):
            raise InvalidAggregation("call_encoding", "arguments are missing; encode by ABI")
        word = int.from_bytes(self._data[self._at : self._at + WORD], "big")
        self._at += WORD
        if word >= limit:
            raise InvalidAggregation("call_encoding", f"an argument is {word}, past its type")
        return word

    def take_blob(self) -> BlobName:
        """Return a blob's name; its size bounds all work that follows from it."""
        digest = self.take_word().to_bytes(WORD, "big")
        size = self.take_word()
        if size > MAX_PARTIAL_BYTES:
            raise InvalidBlobName("blob_size", f"no blob has {size} bytes")
        return BlobName(Digest(digest), size)

    def take_rule(self) -> Rule:
        """Return a rule that can be computed."""
        kind, bound = self.take_word(2**8), self.take_word()
        if kind not in tuple(RuleKind):
            raise InvalidAggregation("aggregation_rule", f"there is no rule {kind}")
        rule = Rule(RuleKind(kind), bound)
        check_rule(rule)
        return rule

    def take_offsets(self) -> None:
        """Check the offsets of two arrays, which end every head that has any.

        The second array's place follows from the first one's length: blobs take two words.
        """
        first, second = self.take_word(), self.take_word()
        count = self._peek_count()
        if first != self._at or second != self._at + WORD * (1 + 2 * count):
            raise InvalidAggregation("call_encoding", "arrays are not in the canonical places")

    def _peek_count(self) -> int:
        count = self.take_word()
        self._at -= WORD
        if count > MAX_UPDATES:
            raise InvalidAggregation("aggregation_count", f"{count} updates, past {MAX_UPDATES}")
        return count

    def take_pairs(self, host: PrecompileHost) -> tuple[list[BlobName], list[int]]:
        """Return an array of blobs and one of numbers; each update is paid for before reading."""
        self.take_offsets()
        count = self.take_word()
        host.consume_gas(GAS_PER_UPDATE * count, "fedavg updates")
        names = [self.take_blob() for _ in range(count)]
        numbers = self.take_word()
        if numbers != count:
            raise InvalidAggregation("aggregation_count", f"{numbers} numbers for {count} updates")
        return names, [self.take_word() for _ in range(count)]

    def finish(self) -> None:
        """Refuse what is left over."""
        if self._at != len(self._data):
            raise InvalidAggregation("call_encoding", "bytes follow the arguments; encode by ABI")


def _encode(*words: int | bytes) -> bytes:
    return b"".join(
        word if isinstance(word, bytes) else (word % 2**256).to_bytes(WORD, "big") for word in words
    )


def _encode_array(numbers: Sequence[int]) -> bytes:
    return _encode(len(numbers), *numbers)


# -- blobs -----------------------------------------------------------------------------------------


def _charge(host: PrecompileHost, work: Work) -> None:
    host.consume_gas(work.gas, "fedavg work")


def _read(host: PrecompileHost, name: BlobName) -> Buffer:
    admission = host.get_admission(name)
    if admission is None:
        raise InvalidBlobName("blob_unknown", "no transaction declared this blob")
    if host.timestamp > admission.expires_at:
        raise InvalidBlobName("blob_expired", "the blob may no longer be read; declare it again")
    return host.read_blob(name)


def _read_model(host: PrecompileHost, name: BlobName) -> Buffer:
    """Return the bytes of a model that may now be decoded."""
    data = _read(host, name)
    host.consume_gas(compute_header_gas(data), "fedavg header")
    return data


def _write(host: PrecompileHost, data: bytes) -> BlobName:
    name = compute_blob_name(data)
    host.write_blob(name, data)
    return name


def _check_writable(host: PrecompileHost) -> None:
    if host.is_static:
        raise InvalidAggregation("call_static", "a call that makes a blob cannot be static")


# -- calls -----------------------------------------------------------------------------------------


def _verify(host: PrecompileHost, arguments: Arguments) -> bytes:
    name = arguments.take_blob()
    task, round_ = arguments.take_word(), arguments.take_word()
    base = arguments.take_blob()
    sender = Address(arguments.take_word(2**160).to_bytes(20, "big"))
    max_norm2 = arguments.take_word()
    arguments.finish()
    host.consume_gas(GAS_PER_UPDATE, "fedavg updates")
    _charge(host, Work(name.size + base.size, 2 * (base.size // VALUE_BYTES)))
    update, model = _read(host, name), decode_model(_read_model(host, base))
    binding = Binding(host.chain_id, TaskId(task), Round(round_), base, sender)
    return _encode(fedavg.verify_update(update, model, binding, max_norm2))


def _aggregate(host: PrecompileHost, arguments: Arguments) -> bytes:
    _check_writable(host)
    rule, base = arguments.take_rule(), arguments.take_blob()
    names, weights = arguments.take_pairs(host)
    arguments.finish()
    _charge(host, compute_aggregation_work(base, [name.size for name in names]))
    updates = [(name, _read(host, name)) for name in names]
    made = fedavg.aggregate(rule, base, _read_model(host, base), updates, weights)
    model = _write(host, made.model)
    head, array = 6 * WORD, WORD * (1 + len(names))
    return _encode(
        model.digest,
        model.size,
        head,
        head + array,
        head + 2 * array,
        made.saturated,
        _encode_array(made.shares),
        _encode_array(made.scores),
        _encode_array(made.flags),
    )


def _normalise(host: PrecompileHost, arguments: Arguments) -> bytes:
    names, weights = arguments.take_pairs(host)
    arguments.finish()
    return _encode(WORD, _encode_array(compute_shares(names, weights)))


def _accumulate(host: PrecompileHost, arguments: Arguments) -> bytes:
    _check_writable(host)
    rule, partial, base = arguments.take_rule(), arguments.take_blob(), arguments.take_blob()
    names, shares = arguments.take_pairs(host)
    arguments.finish()
    work = compute_aggregation_work(base, [name.size for name in names])
    made = PARTIAL_HEADER_BYTES + 2 * base.size
    _charge(host, Work(work.read + partial.size, work.values, made))
    updates = [(name, _read(host, name)) for name in names]
    before = _read(host, partial) if partial.size else None
    data = fedavg.accumulate(rule, before, base, _read_model(host, base), updates, shares)
    page = _write(host, data)
    return _encode(page.digest, page.size)


def _finish(host: PrecompileHost, arguments: Arguments) -> bytes:
    _check_writable(host)
    base, partial = arguments.take_blob(), arguments.take_blob()
    arguments.finish()
    _charge(host, Work(base.size + partial.size, base.size // VALUE_BYTES, base.size))
    data, saturated = fedavg.finish(base, _read_model(host, base), _read(host, partial))
    model = _write(host, data)
    return _encode(model.digest, model.size, saturated)


def _info(host: PrecompileHost, arguments: Arguments) -> bytes:
    name = arguments.take_blob()
    arguments.finish()
    admission = host.get_admission(name)
    if admission is None:
        return _encode(0, 0, 0)
    return _encode(name.size, admission.height, admission.expires_at)


def _check_model(host: PrecompileHost, arguments: Arguments) -> bytes:
    name = arguments.take_blob()
    arguments.finish()
    _charge(host, Work(name.size, name.size // VALUE_BYTES))
    manifest = decode_model(_read_model(host, name)).manifest
    return _encode(manifest.parameters, manifest.update_values)


def _quote(host: PrecompileHost, arguments: Arguments) -> bytes:
    arguments.take_rule()
    name = arguments.take_blob()
    updates, bits = arguments.take_word(), arguments.take_word()
    arguments.finish()
    if not 1 <= updates <= MAX_UPDATES or bits not in (8, 16):
        raise InvalidAggregation("aggregation_count", f"{updates} updates of {bits} bits")
    _charge(host, Work(name.size, name.size // VALUE_BYTES))
    model = _read_model(host, name)
    layout = compute_layout(decode_model(model).manifest)
    return _encode(compute_aggregation_gas(name, model, layout, updates, bits))


_BLOB: Final = "(bytes32,uint256)"
_RULE: Final = "(uint8,uint256)"
_CALLS: Final[dict[str, Callable[[PrecompileHost, Arguments], bytes]]] = {
    f"verify({_BLOB},uint256,uint256,{_BLOB},address,uint256)": _verify,
    f"aggregate({_RULE},{_BLOB},{_BLOB}[],uint256[])": _aggregate,
    f"normalise({_BLOB}[],uint256[])": _normalise,
    f"accumulate({_RULE},{_BLOB},{_BLOB},{_BLOB}[],uint256[])": _accumulate,
    f"finish({_BLOB},{_BLOB})": _finish,
    f"info({_BLOB})": _info,
    f"check_model({_BLOB})": _check_model,
    f"quote({_RULE},{_BLOB},uint256,uint256)": _quote,
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

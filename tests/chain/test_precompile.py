"""The precompile reads strict ABI, charges before it works, and answers what eth_abi can read."""

from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import pytest
from eth_abi import decode, encode
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.chain import aggregate, precompile
from steelyard.chain.admission import Admission
from steelyard.chain.cid import compute_blob_name
from steelyard.chain.errors import InvalidModel, SteelyardError, UnavailableBlob
from steelyard.chain.model import Manifest, Role, TensorSpec, encode_model
from steelyard.chain.params import (
    GAS_CALL,
    GAS_PER_UPDATE,
    MAX_PARTIAL_BYTES,
    MAX_UPDATES,
    WEIGHT_TOTAL,
)
from steelyard.chain.pricing import compute_header_gas
from steelyard.chain.types import BlobName, Digest, Height

from .aggregation_kit import CHAIN_ID, ROUND, TASK, Base, make_base, make_manifest

TYPES = {
    signature.partition("(")[0]: signature.partition("(")[2][:-1]
    for signature in precompile.SIGNATURES.values()
}
SELECTORS = {name: selector for selector, name in precompile.SELECTORS.items()}
RESULTS = {
    "verify": ["uint256"],
    "aggregate": ["(bytes32,uint256)", "uint256[]", "int256[]", "uint256[]", "uint256"],
    "normalise": ["uint256[]"],
    "accumulate": ["(bytes32,uint256)"],
    "finish": ["(bytes32,uint256)", "uint256"],
    "info": ["uint256"] * 3,
    "check_model": ["uint256"] * 2,
    "quote": ["uint256"],
}
MEAN = (0, 0)
NOTHING = (bytes(32), 0)
HEIGHT = Height(7)


class OutOfGas(Exception):
    """What the engine raises."""


@dataclass
class Host:
    """A frame with some blobs, all admitted at height 3 and readable until second 100."""

    gas: int = 10**9
    is_static: bool = False
    timestamp: int = 100
    height: Height = HEIGHT
    chain_id: int = CHAIN_ID
    blobs: dict[BlobName, bytes] = field(default_factory=dict)
    admissions: dict[BlobName, Admission] = field(default_factory=dict)
    reads: int = 0

    def add(self, data: bytes) -> BlobName:
        name = compute_blob_name(data)
        self.blobs[name], self.admissions[name] = data, Admission(Height(3), 100)
        return name

    def consume_gas(self, amount: int, reason: str) -> None:
        assert amount >= 0
        if amount > self.gas:
            raise OutOfGas(reason)
        self.gas -= amount

    def get_admission(self, name: BlobName) -> Admission | None:
        return self.admissions.get(name)

    def read_blob(self, name: BlobName) -> bytes:
        self.reads += 1
        if name not in self.blobs:
            raise UnavailableBlob("blob_unavailable", "wait for it")
        return self.blobs[name]

    def write_blob(self, name: BlobName, data: bytes) -> None:
        assert compute_blob_name(data) == name
        self.blobs[name], self.admissions[name] = data, Admission(self.height, 200)

    def ask(self, name: str, *arguments: object) -> tuple:
        return decode(RESULTS[name], precompile.call(self, encode_call(name, *arguments)))


def split_types(text: str) -> list[str]:
    """Split at the commas outside parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def encode_call(name: str, *arguments: object) -> bytes:
    return SELECTORS[name] + encode(split_types(TYPES[name]), arguments)


def pair(name: BlobName) -> tuple[bytes, int]:
    return name.digest, name.size


@dataclass
class World:
    host: Host
    base: Base
    updates: list[BlobName]

    @property
    def pairs(self) -> list[tuple[bytes, int]]:
        return [pair(name) for name in self.updates]


@pytest.fixture
def world() -> World:
    manifest = make_manifest((3, 24, Role.TRAIN), (2, 0, Role.KEEP), (1, 20, Role.AVERAGE))
    base = make_base(manifest, [1, 2, 3, 4, 5, 6])
    host = Host()
    host.add(base.data)
    updates = [
        host.add(base.make_update([i, -i, 5, 1], [-20, -20], 8 + 8 * (i % 2), i)[1])
        for i in range(1, 5)
    ]
    return World(host, base, updates)


def catch_code(host: Host, data: bytes) -> str:
    with pytest.raises(SteelyardError) as caught:
        precompile.call(host, data)
    return caught.value.code


# -- answers ---------------------------------------------------------------------------------------


def test_aggregate_makes_a_model_and_the_record(world: World) -> None:
    model, shares, scores, flags, saturated = world.host.ask(
        "aggregate", MEAN, pair(world.base.name), world.pairs, [1, 1, 1, 1]
    )
    made = BlobName(Digest(model[0]), model[1])
    assert world.host.admissions[made].height == 7
    assert made.size == world.base.name.size
    assert (shares, flags, saturated) == ((WEIGHT_TOTAL // 4,) * 4, (0,) * 4, 0)
    assert len(scores) == 4
    assert all(0 < score <= WEIGHT_TOTAL for score in scores)


def test_scores_may_be_negative(world: World) -> None:
    updates = [
        world.host.add(world.base.make_update([q, 0, 0, 0], [-20, -20], sender=9 + q)[1])
        for q in (1, -1)
    ]
    scores = world.host.ask(
        "aggregate", MEAN, pair(world.base.name), [pair(name) for name in updates], [1, 1]
    )[2]
    assert scores == (-WEIGHT_TOTAL, -WEIGHT_TOTAL)


def test_pages_give_the_model_of_aggregate(world: World) -> None:
    base, host = pair(world.base.name), world.host
    model, shares, _, _, saturated = host.ask("aggregate", MEAN, base, world.pairs, [1, 2, 3, 4])
    assert host.ask("normalise", world.pairs, [1, 2, 3, 4]) == (shares,)
    (partial,) = host.ask("accumulate", MEAN, NOTHING, base, world.pairs[:3], shares[:3])
    (partial,) = host.ask("accumulate", MEAN, partial, base, world.pairs[3:], shares[3:])
    assert host.ask("finish", base, partial) == (model, saturated)


def test_verify_returns_the_norm(world: World) -> None:
    arguments = (TASK, ROUND, pair(world.base.name), (2).to_bytes(20, "big"))
    update = world.pairs[1]
    norm2 = (4 + 4 + 25) * 2**8
    assert world.host.ask("verify", update, *arguments, norm2) == (norm2,)
    assert catch_code(world.host, encode_call("verify", update, *arguments, norm2 - 1)) == (
        "update_norm"
    )


def test_info_tells_the_record_even_of_an_expired_blob(world: World) -> None:
    world.host.timestamp = 101
    size = world.base.name.size
    assert world.host.ask("info", pair(world.base.name)) == (size, 3, 100)
    assert world.host.ask("info", (bytes(32), 5)) == (0, 0, 0)


def test_check_model_counts_what_is_stored_and_what_is_updated(world: World) -> None:
    assert world.host.ask("check_model", pair(world.base.name)) == (6, 4)


@pytest.mark.parametrize("bits", [8, 16])
def test_quote_is_what_aggregate_charges(world: World, bits: int) -> None:
    updates = [
        world.host.add(world.base.make_update([i, 0, 0, 0], [-20, -20], bits, 50 + i)[1])
        for i in range(3)
    ]
    base = pair(world.base.name)
    (quote,) = world.host.ask("quote", MEAN, base, 3, bits)
    before = world.host.gas
    world.host.ask("aggregate", MEAN, base, [pair(name) for name in updates], [1, 1, 1])
    assert before - world.host.gas == quote


# -- gas and blobs ---------------------------------------------------------------------------------


def test_everything_is_paid_before_a_blob_is_read(world: World) -> None:
    base = pair(world.base.name)
    calls = [
        encode_call("aggregate", MEAN, base, world.pairs, [1] * 4),
        encode_call("accumulate", MEAN, NOTHING, base, world.pairs, [1] * 4),
        encode_call("finish", base, world.pairs[0]),
        encode_call("verify", world.pairs[0], TASK, ROUND, base, bytes(20), 1),
        encode_call("check_model", base),
        encode_call("quote", MEAN, base, 1, 8),
    ]
    header = compute_header_gas(world.base.data)
    for data in calls:
        needed = Host(blobs=world.host.blobs, admissions=world.host.admissions)
        try:
            precompile.call(needed, data)
        except SteelyardError:
            assert data[:4] in (SELECTORS["finish"], SELECTORS["verify"])
        poor = Host(
            gas=10**9 - needed.gas - header - 1,
            blobs=world.host.blobs,
            admissions=world.host.admissions,
        )
        with pytest.raises(OutOfGas):
            precompile.call(poor, data)
        assert poor.reads == 0


def test_the_header_of_a_model_is_paid_before_it_is_decoded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest(
        tuple(TensorSpec(f"{i:04}", (1,), "float32", 24, Role.TRAIN) for i in range(4096))
    )
    model = pair(world.host.add(encode_model(manifest, np.zeros(4096, np.int32))))
    update = world.pairs[0]
    calls = [
        encode_call("aggregate", MEAN, model, [update], [1]),
        encode_call("accumulate", MEAN, NOTHING, model, [update], [2**20]),
        encode_call("finish", model, update),
        encode_call("verify", update, TASK, ROUND, model, bytes(20), 1),
        encode_call("check_model", model),
        encode_call("quote", MEAN, model, 1, 8),
    ]

    def decode_nothing(_data: bytes) -> NoReturn:
        raise InvalidModel("model_header", "decoded")

    monkeypatch.setattr(precompile, "decode_model", decode_nothing)
    monkeypatch.setattr(aggregate, "decode_model", decode_nothing)
    for data in calls:
        before = world.host.gas
        assert catch_code(world.host, data) == "model_header"
        spent = before - world.host.gas
        assert spent > 70_000
        poor = Host(gas=spent - 1, blobs=world.host.blobs, admissions=world.host.admissions)
        with pytest.raises(OutOfGas, match="header"):
            precompile.call(poor, data)


@pytest.mark.parametrize("data", [b"", b"\1", b"\xff" * 8, b"\xff" * 100])
def test_a_length_of_the_header_that_cannot_be_costs_what_is_there(data: bytes) -> None:
    assert compute_header_gas(data) == -(-len(data) // 8)


def test_updates_are_paid_before_their_names_are_decoded() -> None:
    data = encode_call("normalise", [(bytes(32), 2**255)] * MAX_UPDATES, [1] * MAX_UPDATES)
    with pytest.raises(OutOfGas):
        precompile.call(Host(gas=GAS_CALL + GAS_PER_UPDATE * MAX_UPDATES - 1), data)


def test_a_blob_that_was_never_declared_is_refused(world: World) -> None:
    del world.host.admissions[world.updates[2]]
    data = encode_call("aggregate", MEAN, pair(world.base.name), world.pairs, [1] * 4)
    assert catch_code(world.host, data) == "blob_unknown"


def test_an_expired_blob_is_refused(world: World) -> None:
    data = encode_call("check_model", pair(world.base.name))
    world.host.timestamp = 100
    precompile.call(world.host, data)
    world.host.timestamp = 101
    assert catch_code(world.host, data) == "blob_expired"


def test_a_missing_blob_is_not_an_answer(world: World) -> None:
    del world.host.blobs[world.updates[2]]
    with pytest.raises(UnavailableBlob):
        world.host.ask("aggregate", MEAN, pair(world.base.name), world.pairs, [1] * 4)


def test_no_blob_is_larger_than_a_partial(world: World) -> None:
    data = encode_call("check_model", (bytes(32), MAX_PARTIAL_BYTES + 1))
    assert catch_code(world.host, data) == "blob_size"


@pytest.mark.parametrize("name", ["aggregate", "accumulate", "finish"])
def test_calls_that_make_blobs_are_refused_when_static(world: World, name: str) -> None:
    world.host.is_static = True
    base = pair(world.base.name)
    arguments = {
        "aggregate": (MEAN, base, world.pairs, [1] * 4),
        "accumulate": (MEAN, NOTHING, base, world.pairs, [1] * 4),
        "finish": (base, base),
    }[name]
    assert catch_code(world.host, encode_call(name, *arguments)) == "call_static"


# -- strict ABI ------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"\0\0\0", b"\0\0\0\0", b"\xff" * 100])
def test_unknown_calls_are_refused(data: bytes) -> None:
    assert catch_code(Host(), data) == "call_unknown"


def test_arguments_have_one_encoding(world: World) -> None:
    good = encode_call("aggregate", MEAN, pair(world.base.name), world.pairs, [1] * 4)

    def replace(word: int, value: int) -> bytes:
        at = 4 + 32 * word
        return good[:at] + value.to_bytes(32, "big") + good[at + 32 :]

    cases = {
        "call_encoding": [
            good[:-1],
            good[:-32],
            good + b"\0",
            good + bytes(32),
            good[:4],
            replace(0, 256),
            replace(4, 7 * 32),
            replace(4, 2**255),
            replace(5, 6 * 32),
            replace(5, 2**256 - 32),
            replace(6, 3),
            replace(6, 5),
        ],
        "aggregation_count": [replace(6, MAX_UPDATES + 1), replace(6, 2**256 - 1), replace(15, 3)],
        "aggregation_rule": [replace(0, 2), replace(0, 255)],
        "aggregation_bound": [replace(1, 1)],
        "aggregation_weight": [replace(16, 2**256 - 1)],
        "aggregation_duplicate": [good[:292] + good[228:292] + good[356:]],
    }
    for code, encodings in cases.items():
        for data in encodings:
            assert catch_code(world.host, data) == code


def test_an_address_has_twenty_bytes(world: World) -> None:
    good = encode_call("verify", world.pairs[0], TASK, ROUND, pair(world.base.name), bytes(20), 1)
    at = 4 + 32 * 6
    assert catch_code(world.host, good[:at] + b"\1" + good[at + 1 :]) == "call_encoding"


@pytest.mark.parametrize(("updates", "bits"), [(0, 8), (MAX_UPDATES + 1, 8), (1, 32), (1, 0)])
def test_quotes_are_for_aggregations_that_can_be(world: World, updates: int, bits: int) -> None:
    data = encode_call("quote", MEAN, pair(world.base.name), updates, bits)
    assert catch_code(world.host, data) == "aggregation_count"


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(precompile.SELECTORS)),
    st.lists(st.one_of(st.integers(0, 400), st.integers(0, 2**256 - 1)), max_size=24),
    st.binary(max_size=3),
)
def test_random_arguments_only_raise_our_errors(
    selector: bytes, words: list[int], rest: bytes
) -> None:
    data = selector + b"".join(word.to_bytes(32, "big") for word in words) + rest
    try:
        precompile.call(Host(), data)
    except (SteelyardError, OutOfGas):
        return
    assert precompile.SELECTORS[selector] in ("info", "normalise")

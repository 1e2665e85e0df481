"""The precompile reads strict ABI, charges before it works, and answers what eth_abi can read."""

from typing import NoReturn

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.chain import aggregate, jobs, precompile
from steelyard.chain.errors import InvalidModel, SteelyardError, UnavailableBlob
from steelyard.chain.model import Manifest, Role, TensorSpec, encode_model
from steelyard.chain.params import (
    GAS_CALL,
    GAS_PER_UPDATE,
    MAX_BLOB_BYTES,
    MAX_UPDATES,
    WEIGHT_TOTAL,
)
from steelyard.chain.pricing import compute_header_gas
from steelyard.chain.types import BlobName, Digest

from .aggregation_kit import ROUND, TASK, make_base, make_manifest
from .precompile_kit import (
    CLIPPED,
    KRUM,
    MEAN,
    NOTHING,
    RULES,
    SELECTORS,
    Host,
    OutOfGas,
    World,
    catch_code,
    encode_call,
    pair,
)


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


# -- answers ---------------------------------------------------------------------------------------


def test_aggregate_makes_a_model_and_the_record(world: World) -> None:
    model, velocity, shares, scores, flags, saturated = world.host.ask(
        "aggregate", MEAN, world.model, NOTHING, world.pairs, [1, 1, 1, 1]
    )
    assert velocity == NOTHING
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
        "aggregate", MEAN, world.model, NOTHING, [pair(name) for name in updates], [1, 1]
    )[3]
    assert scores == (-WEIGHT_TOTAL, -WEIGHT_TOTAL)


def test_momentum_hands_a_velocity_on(world: World) -> None:
    rule = (0, 0, 2**20, 2**12, 2**11)
    ask = ("aggregate", rule, world.model)
    model, velocity, *_ = world.host.ask(*ask, NOTHING, world.pairs, [1] * 4)
    assert world.host.admissions[BlobName(Digest(velocity[0]), velocity[1])].height == 7
    faster, further, *_ = world.host.ask(*ask, velocity, world.pairs, [1] * 4)
    assert faster != model
    assert further != velocity
    assert catch_code(
        world.host, encode_call("aggregate", MEAN, world.model, velocity, world.pairs, [1] * 4)
    ) == ("velocity_unused")


def test_normalise_keeps_to_the_cap(world: World) -> None:
    capped = (0, 0, 2**19, 2**12, 0)
    (shares,) = world.host.ask("normalise", capped, world.pairs, [9, 1, 1, 0])
    assert shares == (2**19, 2**18, 2**18, 0)
    assert world.host.ask("normalise", MEAN, world.pairs, [2, 1, 1, 0])[0] == shares


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
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_quote_is_what_aggregate_charges(world: World, rule: tuple[int, ...], bits: int) -> None:
    updates = [
        pair(world.host.add(world.base.make_update([i, 0, 0, 0], [-20, -20], bits, 50 + i)[1]))
        for i in range(5)
    ]
    arguments = (updates, [1] * 5)
    velocity = NOTHING
    if rule[4]:
        velocity = world.host.ask("aggregate", rule, world.model, NOTHING, *arguments)[1]
    (quote,) = world.host.ask("quote", rule, world.model, 5, bits)
    before = world.host.gas
    world.host.ask("aggregate", rule, world.model, velocity, *arguments)
    assert before - world.host.gas == quote


# -- gas and blobs ---------------------------------------------------------------------------------


def test_everything_is_paid_before_a_blob_is_read(world: World) -> None:
    base = world.model
    calls = [
        encode_call("aggregate", MEAN, base, NOTHING, world.pairs, [1] * 4),
        encode_call("aggregate", CLIPPED, base, NOTHING, world.pairs, [1] * 4),
        encode_call("verify", world.pairs[0], TASK, ROUND, base, bytes(20), 1),
        encode_call("check_model", base),
        encode_call("quote", MEAN, base, 1, 8),
        encode_call("plan", KRUM, base, 9, 8, 10**6),
    ]
    header = compute_header_gas(world.base.data)
    for data in calls:
        needed = Host(blobs=world.host.blobs, admissions=world.host.admissions)
        try:
            precompile.call(needed, data)
        except SteelyardError:
            assert data[:4] == SELECTORS["verify"]
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
        encode_call("aggregate", MEAN, model, NOTHING, [update], [1]),
        encode_call("measure", CLIPPED, model, [update], 0, 1),
        encode_call("combine", MEAN, model, NOTHING, [update], [1], [], 0, 1),
        encode_call("assemble", MEAN, model, NOTHING, [update], [1], [], [update]),
        encode_call("verify", update, TASK, ROUND, model, bytes(20), 1),
        encode_call("check_model", model),
        encode_call("quote", MEAN, model, 1, 8),
        encode_call("plan", MEAN, model, 1, 8, 10**6),
    ]

    def decode_nothing(_data: bytes) -> NoReturn:
        raise InvalidModel("model_header", "decoded")

    monkeypatch.setattr(precompile, "decode_model", decode_nothing)
    monkeypatch.setattr(aggregate, "decode_model", decode_nothing)
    monkeypatch.setattr(jobs, "decode_model", decode_nothing)
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
    data = encode_call("normalise", MEAN, [(bytes(32), 2**255)] * MAX_UPDATES, [1] * MAX_UPDATES)
    with pytest.raises(OutOfGas):
        precompile.call(Host(gas=GAS_CALL + GAS_PER_UPDATE * MAX_UPDATES - 1), data)


def test_a_blob_that_was_never_declared_is_refused(world: World) -> None:
    del world.host.admissions[world.updates[2]]
    data = encode_call("aggregate", MEAN, world.model, NOTHING, world.pairs, [1] * 4)
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
        world.host.ask("aggregate", MEAN, world.model, NOTHING, world.pairs, [1] * 4)


def test_no_blob_is_larger_than_there_are(world: World) -> None:
    data = encode_call("check_model", (bytes(32), MAX_BLOB_BYTES + 1))
    assert catch_code(world.host, data) == "blob_size"


@pytest.mark.parametrize("name", ["aggregate", "measure", "combine", "assemble"])
def test_calls_that_make_blobs_are_refused_when_static(world: World, name: str) -> None:
    world.host.is_static = True
    round_ = (MEAN, world.model, NOTHING, world.pairs, [1] * 4)
    arguments = {
        "aggregate": round_,
        "measure": (CLIPPED, world.model, world.pairs, 0, 1),
        "combine": (*round_, [], 0, 1),
        "assemble": (*round_, [], []),
    }[name]
    assert catch_code(world.host, encode_call(name, *arguments)) == "call_static"


# -- strict ABI ------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"\0\0\0", b"\0\0\0\0", b"\xff" * 100])
def test_unknown_calls_are_refused(data: bytes) -> None:
    assert catch_code(Host(), data) == "call_unknown"


def test_arguments_have_one_encoding(world: World) -> None:
    good = encode_call("aggregate", MEAN, world.model, NOTHING, world.pairs, [1] * 4)

    def at(word: int) -> int:
        return 4 + 32 * word

    def replace(word: int, value: int) -> bytes:
        return good[: at(word)] + value.to_bytes(32, "big") + good[at(word + 1) :]

    cases = {
        "call_encoding": [
            good[:-1],
            good[:-32],
            good + b"\0",
            good + bytes(32),
            good[:4],
            replace(0, 256),
            replace(9, 12 * 32),
            replace(9, 2**255),
            replace(10, 11 * 32),
            replace(10, 2**256 - 32),
            replace(11, 3),
            replace(11, 5),
        ],
        "aggregation_count": [
            replace(11, MAX_UPDATES + 1),
            replace(11, 2**256 - 1),
            replace(20, 3),
        ],
        "aggregation_rule": [replace(0, 4), replace(0, 255)],
        "aggregation_bound": [replace(1, 1)],
        "aggregation_cap": [replace(2, 0), replace(2, 2**20 + 1)],
        "aggregation_server_lr": [replace(3, 0), replace(3, 2**15 + 1)],
        "aggregation_momentum": [replace(4, 4081)],
        "aggregation_weight": [replace(21, 2**256 - 1)],
        "aggregation_duplicate": [good[: at(14)] + good[at(12) : at(14)] + good[at(16) :]],
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
    for name, rest in (("quote", ()), ("plan", (10**6,))):
        data = encode_call(name, MEAN, world.model, updates, bits, *rest)
        assert catch_code(world.host, data) == "aggregation_count"


def test_quotes_are_for_as_many_updates_as_the_rule_takes(world: World) -> None:
    for updates in (4, 257):
        data = encode_call("quote", KRUM, world.model, updates, 8)
        assert catch_code(world.host, data) == "aggregation_rule_count"


@pytest.mark.slow
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

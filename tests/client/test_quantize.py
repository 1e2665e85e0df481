"""The quantizer: unbiased, never out of range, repeatable, and clear about what it refuses."""

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from steelyard.chain.errors import InvalidModel, SteelyardError
from steelyard.chain.model import (
    Manifest,
    Model,
    Role,
    TensorSpec,
    compute_layout,
    decode_model,
    encode_model,
)
from steelyard.chain.params import BLOCK_VALUES, VALUE_LIMIT
from steelyard.client.quantize import (
    NamedArrays,
    build_manifest,
    clip,
    dequantize_model,
    quantize,
    quantize_model,
)

MANIFEST = Manifest(
    (
        TensorSpec("a", (3, 7), "float32", 24, Role.TRAIN),
        TensorSpec("b", (2 * BLOCK_VALUES + 5,), "float32", 20, Role.TRAIN),
        TensorSpec("n", (), "int64", 0, Role.KEEP),
        TensorSpec("v", (4,), "float32", 10, Role.AVERAGE),
    )
)
SEED = b"task 1, round 2, sender 3"


def make_delta(scale: float, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(0, scale, MANIFEST.update_values)


def decode(
    exponents: NDArray[np.int8], values: NDArray[Any], manifest: Manifest = MANIFEST
) -> NDArray[np.float64]:
    """Return what an update means, in floats."""
    layout = compute_layout(manifest)
    scale = np.repeat(exponents.astype(np.int64), layout.length)
    return np.ldexp(values.astype(np.float64), scale)


def check_in_range(exponents: NDArray[np.int8], values: NDArray[Any], bits: int) -> None:
    """The rules of docs/protocol.md, "Updates", in plain integers."""
    layout = compute_layout(MANIFEST)
    most = 2 ** (bits - 1) - 1
    for index, exponent in enumerate(exponents.tolist()):
        start, length = int(layout.update_start[index]), int(layout.length[index])
        block = values[start : start + length].astype(np.int64)
        fraction_bits = int(layout.fraction_bits[index])
        assert -fraction_bits <= exponent <= 30
        assert int(np.abs(block).max()) <= most
        assert int(np.abs(block).max()) << (exponent + fraction_bits) < VALUE_LIMIT


def refuse(code: str, call: Any, *arguments: Any) -> str:
    with pytest.raises(SteelyardError) as caught:
        call(*arguments)
    assert caught.value.code == code
    return caught.value.message


# -- updates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-7, 1e-3, 1.0, 20.0])
def test_a_delta_comes_back_within_one_step_of_its_block(bits: int, scale: float) -> None:
    delta = make_delta(scale)
    exponents, values = quantize(delta, MANIFEST, bits, SEED)
    check_in_range(exponents, values, bits)
    assert values.dtype == (np.int8 if bits == 8 else np.int16)
    step = np.ldexp(1.0, np.repeat(exponents.astype(np.int64), compute_layout(MANIFEST).length))
    assert np.all(np.abs(decode(exponents, values) - delta) < step)


@given(
    st.sampled_from([8, 16]),
    st.lists(st.floats(-127, 127, allow_nan=False), min_size=1, max_size=30),
    st.binary(max_size=40),
)
@settings(max_examples=100, deadline=None)
def test_any_finite_delta_within_the_format_quantizes_within_the_rules(
    bits: int, numbers: list[float], seed: bytes
) -> None:
    delta = np.resize(np.array(numbers), MANIFEST.update_values)
    exponents, values = quantize(delta, MANIFEST, bits, seed)
    check_in_range(exponents, values, bits)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_exponent_is_the_smallest_that_fits(bits: int, sign: int) -> None:
    most = 2 ** (bits - 1) - 1
    for exponent in (-20, -12, -10):
        limit = most * 2.0**exponent
        delta = np.zeros(MANIFEST.update_values)
        delta[0] = sign * limit
        exponents, values = quantize(delta, MANIFEST, bits, SEED)
        assert (exponents[0], values[0]) == (exponent, sign * most)
        delta[0] = sign * np.nextafter(limit, np.inf)
        exponents, values = quantize(delta, MANIFEST, bits, SEED)
        assert exponents[0] == exponent + 1


def test_the_most_negative_integer_never_occurs() -> None:
    for seed in range(50):
        delta = np.full(MANIFEST.update_values, -np.nextafter(127 * 2.0**-10, 0))
        _, values = quantize(delta, MANIFEST, 8, bytes([seed]))
        assert values.min() >= -127


def test_rounding_is_unbiased() -> None:
    manifest = Manifest((TensorSpec("w", (BLOCK_VALUES,), "float32", 24, Role.TRAIN),))
    delta = np.full(BLOCK_VALUES, 0.3 * 2.0**-10)
    delta[0] = 127 * 2.0**-10
    means = [
        decode(*quantize(delta, manifest, 8, bytes([seed])), manifest)[1:].mean()
        for seed in range(20)
    ]
    # The mean of 80,000 draws of variance 0.21 lies within 0.01 of 0.3: six standard deviations.
    assert abs(np.mean(means) * 2.0**10 - 0.3) < 0.01


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not() -> None:
    delta = make_delta(0.01)
    first = quantize(delta, MANIFEST, 8, SEED)
    again = quantize(delta.copy(), MANIFEST, 8, SEED)
    other = quantize(delta, MANIFEST, 8, SEED + b"!")
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def test_the_rounding_can_be_repeated_on_any_machine() -> None:
    # Multiples of 2**-24 below one, so that no platform's random normals are involved.
    digest = hashlib.shake_256(b"delta").digest(4 * MANIFEST.update_values)
    delta = np.frombuffer(digest, dtype="<i4").astype(np.float64) * 2.0**-32
    exponents, values = quantize(delta, MANIFEST, 8, SEED)
    assert exponents.tolist() == [-8, -7, -7, -8, -8]
    # As a plain-Python Philox4x64-10 over fractions gives it.
    known = "f98ccb53bd9eef8a77972f1782998af90aff81f1584eeb7023b3205bc347b0bf"
    assert hashlib.sha256(values.tobytes()).hexdigest() == known


def test_long_tensors_are_cut_where_blocks_end(monkeypatch: pytest.MonkeyPatch) -> None:
    delta = make_delta(0.01)
    whole = quantize(delta, MANIFEST, 8, SEED)
    monkeypatch.setattr("steelyard.client.quantize._SEGMENT_VALUES", BLOCK_VALUES)
    cut = quantize(delta, MANIFEST, 8, SEED)
    assert np.array_equal(whole[0], cut[0])
    assert np.array_equal(whole[1], cut[1])


def test_a_float32_delta_gives_what_its_float64_copy_gives() -> None:
    delta = make_delta(0.01).astype(np.float32)
    narrow, wide = quantize(delta, MANIFEST), quantize(delta.astype(np.float64), MANIFEST)
    assert np.array_equal(narrow[0], wide[0])
    assert np.array_equal(narrow[1], wide[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("index", "name"), [(0, "a"), (21 + BLOCK_VALUES, "b"), (-1, "v")])
def test_a_delta_that_is_not_finite_is_refused_by_name(bad: float, index: int, name: str) -> None:
    delta = make_delta(0.01)
    delta[index] = bad
    assert f"tensor '{name}'" in refuse("delta_not_finite", quantize, delta, MANIFEST)


@pytest.mark.parametrize("size", [128.0, -128.0, 127.9999999999, 1e30, 1e308])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_delta_too_large_for_its_format_is_refused_by_name(size: float, bits: int) -> None:
    delta = make_delta(0.01)
    delta[5] = size
    assert "tensor 'a'" in refuse("delta_too_large", quantize, delta, MANIFEST, bits)


def test_the_range_grows_as_fraction_bits_shrink() -> None:
    delta = make_delta(0.01)
    delta[-1] = 2e6
    check_in_range(*quantize(delta, MANIFEST, 8, SEED), bits=8)
    delta[-1] = 2.0**21
    assert "tensor 'v'" in refuse("delta_too_large", quantize, delta, MANIFEST)


def test_no_exponent_is_above_what_the_protocol_allows() -> None:
    manifest = Manifest((TensorSpec("w", (2,), "float32", 0, Role.TRAIN),))
    for size in (127 * 2.0**24, 2.0**31 - 2.0**25):
        exponents, values = quantize(np.array([size, 0.0]), manifest, 8)
        assert int(values[0]) << int(exponents[0]) == size
    refuse("delta_too_large", quantize, np.array([2.0**31, 0.0]), manifest)


def test_clipping_leaves_short_deltas_alone_and_shortens_long_ones() -> None:
    delta = make_delta(0.01)
    norm = float(np.linalg.norm(delta))
    assert np.array_equal(clip(delta, norm), delta)
    clipped = clip(delta, norm / 3)
    assert np.linalg.norm(clipped) == pytest.approx(norm / 3)
    assert np.allclose(clipped * 3, delta)
    delta[0] = np.nan
    refuse("delta_not_finite", clip, delta, 1.0)


# -- models ----------------------------------------------------------------------------------------


def make_arrays() -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(1)
    return {
        "a": random.normal(0, 1, (3, 7)).astype(np.float32),
        "b": random.normal(0, 1, 2 * BLOCK_VALUES + 5).astype(np.float32),
        "n": np.array(1234567, dtype=np.int64),
        "v": np.array([9127.25, 1.0, 0.5, -3.0], dtype=np.float32),
    }


def test_a_model_comes_back_within_half_a_unit() -> None:
    arrays = make_arrays()
    model = decode_model(quantize_model(arrays, MANIFEST))
    assert model.manifest == MANIFEST
    back = dequantize_model(model)
    assert set(back) == set(arrays)
    for spec in MANIFEST.tensors:
        assert back[spec.name].shape == spec.shape
        error = np.abs(back[spec.name].astype(np.float64) - arrays[spec.name])
        assert error.max() <= 2.0 ** -(spec.fraction_bits + 1)


def test_integers_come_back_exactly_and_in_their_dtype() -> None:
    back = dequantize_model(decode_model(quantize_model(make_arrays(), MANIFEST)))
    assert back["n"] == 1234567
    assert back["n"].dtype == np.int64
    assert back["a"].dtype == np.float32


def test_what_is_handed_out_becomes_the_same_model_again() -> None:
    arrays = {name: array * 0.01 for name, array in make_arrays().items()}
    arrays["n"] = np.array(5)
    data = quantize_model(arrays, MANIFEST)
    assert quantize_model(dequantize_model(decode_model(data)), MANIFEST) == data


def test_rounding_a_model_is_to_nearest_even() -> None:
    manifest = Manifest((TensorSpec("w", (4,), "float32", 0, Role.TRAIN),))
    data = quantize_model({"w": np.array([0.5, 1.5, -2.5, 2.6])}, manifest)
    assert decode_model(data).values.tolist() == [0, 2, -2, 3]


@pytest.mark.parametrize("value", [128.0, -128.1, 1e38])
def test_a_value_out_of_range_is_refused_with_what_would_fit(value: float) -> None:
    arrays = make_arrays()
    arrays["a"][0, 0] = value
    message = refuse("model_out_of_range", quantize_model, arrays, MANIFEST)
    assert "tensor 'a'" in message
    if abs(value) < 1e30:
        assert "fraction_bits=23" in message or "fraction_bits=22" in message
    else:
        assert "role local" in message


def test_the_suggested_fraction_bits_fit() -> None:
    for value in (128.0, -4000.0, 2.0**30):
        spec = TensorSpec("w", (1,), "float64", 24, Role.TRAIN)
        message = refuse(
            "model_out_of_range", quantize_model, {"w": np.array([value])}, Manifest((spec,))
        )
        bits = int(message.split("fraction_bits=")[1].split()[0])
        fitting = Manifest((TensorSpec("w", (1,), "float64", bits, Role.TRAIN),))
        quantize_model({"w": np.array([value])}, fitting)


def test_an_integer_out_of_range_is_refused_by_name() -> None:
    for value in (2**31, -(2**31) - 1, 2**62):
        arrays = make_arrays() | {"n": np.array(value)}
        assert "tensor 'n'" in refuse("model_out_of_range", quantize_model, arrays, MANIFEST)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_that_is_not_finite_is_refused_by_name(bad: float) -> None:
    arrays = make_arrays()
    arrays["b"][7] = bad
    assert "tensor 'b'" in refuse("model_not_finite", quantize_model, arrays, MANIFEST)
    assert "tensor 'b'" in refuse("model_not_finite", build_manifest, arrays)


def test_missing_unknown_and_reshaped_tensors_are_refused() -> None:
    arrays = make_arrays()
    extra = arrays | {"x": np.zeros(1)}
    refuse("model_tensor", quantize_model, extra, MANIFEST)
    reshaped = arrays | {"a": arrays["a"].T}
    refuse("model_tensor", quantize_model, reshaped, MANIFEST)
    del arrays["v"]
    refuse("model_tensor", quantize_model, arrays, MANIFEST)


def test_a_kept_integer_that_does_not_fit_its_dtype_is_refused() -> None:
    manifest = Manifest(
        (
            TensorSpec("n", (), "int8", 0, Role.KEEP),
            TensorSpec("w", (), "float32", 24, Role.TRAIN),
        )
    )
    model = Model(manifest, np.array([128, 0], dtype=np.int32))
    with pytest.raises(InvalidModel) as caught:
        dequantize_model(decode_model(encode_model(model.manifest, model.values)))
    assert caught.value.code == "model_value"


# -- manifests -------------------------------------------------------------------------------------


def test_a_manifest_follows_from_the_arrays() -> None:
    manifest = build_manifest(make_arrays(), {"v": Role.AVERAGE})
    assert [(spec.name, spec.role, spec.fraction_bits) for spec in manifest.tensors] == [
        ("a", Role.TRAIN, 24),
        ("b", Role.TRAIN, 24),
        ("n", Role.KEEP, 0),
        ("v", Role.AVERAGE, 15),
    ]


def test_values_have_room_to_grow() -> None:
    for value, bits in ((31.0, 24), (33.0, 23), (1e4, 15), (2.0**26, 2), (2.0**33, 0)):
        manifest = build_manifest({"w": np.array([value, -1.0])})
        assert manifest.tensors[0].fraction_bits == bits


def test_roles_travel_with_named_arrays_and_can_be_overridden() -> None:
    arrays = NamedArrays(make_arrays(), {"v": Role.LOCAL})
    assert build_manifest(arrays).tensors[-1].role is Role.LOCAL
    assert build_manifest(arrays, {"v": Role.KEEP}).tensors[-1].role is Role.KEEP
    assert build_manifest(arrays, fraction_bits={"a": 12}).tensors[0].fraction_bits == 12


def test_local_tensors_stay_out_of_the_file() -> None:
    arrays = NamedArrays(make_arrays(), {"b": Role.LOCAL})
    model = decode_model(quantize_model(arrays, build_manifest(arrays)))
    assert set(dequantize_model(model)) == {"a", "n", "v"}


def test_a_manifest_is_refused_for_what_is_no_tensor_of_ours() -> None:
    refuse("model_dtype", build_manifest, {"w": np.array(["text"])})
    refuse("model_dtype", build_manifest, {"w": np.zeros(2, dtype=np.complex64)})
    refuse("model_dtype", build_manifest, {"w": np.zeros(2, dtype=np.uint64)})
    refuse("model_tensor", build_manifest, make_arrays(), {"x": Role.KEEP})
    refuse("model_tensor", build_manifest, make_arrays(), None, {"x": 3})
    refuse("model_shape", build_manifest, {"w": np.zeros((0, 3))})
    refuse("model_manifest", build_manifest, {})
    refuse("model_role", build_manifest, {"n": np.arange(3)})

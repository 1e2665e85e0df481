"""The model format: one encoding for each model, readable by safetensors, hostile input refused."""

import dataclasses
import json
import time
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.chain import model as module
from steelyard.chain.errors import InvalidModel
from steelyard.chain.model import (
    FLOAT_DTYPES,
    INTEGER_DTYPES,
    Manifest,
    Role,
    TensorSpec,
    check_manifest,
    compute_layout,
    decode_manifest,
    decode_model,
    encode_manifest,
    encode_model,
)
from steelyard.chain.params import (
    BLOCK_VALUES,
    MAX_BLOB_BYTES,
    MAX_MODEL_HEADER_BYTES,
    MAX_MODEL_PARAMETERS,
    MAX_MODEL_TENSORS,
)

WEIGHT = TensorSpec("weight", (3, 5), "float32", 24, Role.TRAIN)
MANIFEST = Manifest(
    (
        TensorSpec("Bias", (), "float64", 20, Role.TRAIN),
        TensorSpec("count", (2,), "int64", 0, Role.KEEP),
        TensorSpec("head", (4,), "float32", 24, Role.LOCAL),
        TensorSpec("mean", (5000,), "float32", 16, Role.AVERAGE),
        WEIGHT,
    )
)
VALUES = np.arange(-100, MANIFEST.parameters - 100, dtype=np.int32)
GOOD = encode_model(MANIFEST, VALUES)
HEADER_SIZE = int.from_bytes(GOOD[:8], "little")
HEADER = GOOD[8 : 8 + HEADER_SIZE]


def make_file(header: bytes, pad: bool = True) -> bytes:
    if pad:
        header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + VALUES.tobytes()


def make_document() -> Any:
    return json.loads(HEADER)


def dump(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def with_manifest(text: str) -> bytes:
    document = make_document()
    document["__metadata__"]["manifest"] = text
    return make_file(dump(document))


def refuse(code: str, data: bytes) -> None:
    with pytest.raises(InvalidModel) as caught:
        decode_model(data)
    assert caught.value.code == code


def refuse_manifest(code: str, *tensors: TensorSpec) -> None:
    with pytest.raises(InvalidModel) as caught:
        check_manifest(Manifest(tensors))
    assert caught.value.code == code


names = st.text(
    st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from('"\\}{,:[]'),
    min_size=1,
    max_size=30,
).filter(lambda name: len(name.encode()) <= 256 and name != "__metadata__")
shapes = st.lists(st.integers(1, 5), max_size=4).map(tuple)
floats = st.builds(
    TensorSpec,
    names,
    shapes,
    st.sampled_from(FLOAT_DTYPES),
    st.integers(0, 24),
    st.sampled_from(list(Role)),
)
integers = st.builds(
    TensorSpec,
    names,
    shapes,
    st.sampled_from(INTEGER_DTYPES),
    st.just(0),
    st.sampled_from([Role.KEEP, Role.LOCAL]),
)
manifests = (
    st.lists(floats | integers, min_size=1, max_size=6, unique_by=lambda spec: spec.name)
    .filter(lambda specs: any(spec.role is Role.TRAIN for spec in specs))
    .map(lambda specs: Manifest(tuple(sorted(specs, key=lambda spec: spec.name.encode()))))
)


@pytest.mark.slow
@given(manifests, st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_decoding_gives_back_what_was_encoded(manifest: Manifest, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = np.frombuffer(random.bytes(4 * manifest.parameters), dtype=np.int32)
    data = encode_model(manifest, values)
    model = decode_model(data)
    assert model.manifest == manifest
    assert np.array_equal(model.values, values)
    assert encode_model(model.manifest, model.values) == data


@pytest.mark.slow
@given(manifests)
@settings(max_examples=50, deadline=None)
def test_safetensors_opens_a_model_and_sees_the_same_tensors(manifest: Manifest) -> None:
    values = np.arange(manifest.parameters, dtype=np.int32)
    tensors = safetensors.numpy.load(encode_model(manifest, values))
    assert sorted(tensors) == [spec.name for spec in manifest.stored]
    start = 0
    for spec in manifest.stored:
        array = tensors[spec.name]
        assert array.dtype == np.int32
        assert array.shape == spec.shape
        assert np.array_equal(array.reshape(-1), values[start : start + spec.size])
        start += spec.size


def test_safetensors_reads_the_manifest_from_the_metadata(tmp_path: Any) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(GOOD)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        assert metadata["format"] == "steelyard-model-1"
        assert decode_manifest(metadata["manifest"]) == MANIFEST
        assert file.get_tensor("Bias") == -100


def test_the_header_is_the_canonical_json_of_the_protocol() -> None:
    assert HEADER_SIZE % 8 == 0
    assert HEADER.rstrip(b" ") == dump(make_document())
    document = make_document()
    assert set(document) == {"__metadata__", "Bias", "count", "mean", "weight"}
    assert document["weight"] == {
        "data_offsets": [4 * 5003, 4 * 5018],
        "dtype": "I32",
        "shape": [3, 5],
    }
    text = document["__metadata__"]["manifest"]
    assert text == encode_manifest(MANIFEST)
    assert json.loads(text)["head"] == {
        "dtype": "float32",
        "fraction_bits": 24,
        "role": "local",
        "shape": [4],
    }


def test_the_values_are_a_read_only_view_of_the_bytes() -> None:
    data = bytearray(GOOD)
    model = decode_model(data)
    data[-4:] = (77).to_bytes(4, "little")
    assert model.values[-1] == 77
    with pytest.raises(ValueError, match="read-only"):
        model.values[0] = 1


def test_a_numpy_buffer_decodes_as_well() -> None:
    array: Any = np.frombuffer(GOOD, dtype=np.uint8)
    assert decode_model(array).manifest == MANIFEST


def test_sizes_count_what_is_stored_and_what_is_updated() -> None:
    assert [spec.name for spec in MANIFEST.stored] == ["Bias", "count", "mean", "weight"]
    assert [spec.name for spec in MANIFEST.updated] == ["Bias", "mean", "weight"]
    assert (MANIFEST.parameters, MANIFEST.update_values) == (5018, 5016)


# -- layout ----------------------------------------------------------------------------------------


def test_blocks_do_not_cross_tensors() -> None:
    layout = compute_layout(MANIFEST)
    assert layout.update_start.tolist() == [0, 1, 4097, 5001]
    assert layout.model_start.tolist() == [0, 3, 4099, 5003]
    assert layout.length.tolist() == [1, BLOCK_VALUES, 904, 15]
    assert layout.fraction_bits.tolist() == [20, 16, 16, 24]
    assert layout.is_train.tolist() == [True, False, False, True]
    assert layout.update_values == MANIFEST.update_values


@pytest.mark.slow
@given(manifests)
@settings(max_examples=50, deadline=None)
def test_blocks_cover_every_value_of_an_update_once(manifest: Manifest) -> None:
    layout = compute_layout(manifest)
    ends = layout.update_start + layout.length
    assert layout.update_start[0] == 0
    assert np.array_equal(layout.update_start[1:], ends[:-1])
    assert ends[-1] == layout.update_values == manifest.update_values
    assert np.all((layout.length > 0) & (layout.length <= BLOCK_VALUES))


def test_a_layout_is_computed_once_and_cannot_be_changed() -> None:
    layout = compute_layout(MANIFEST)
    assert compute_layout(MANIFEST) is layout
    for field in dataclasses.fields(layout):
        array = getattr(layout, field.name)
        assert isinstance(array, int) or not array.flags.writeable


# -- manifests that are refused --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("model_name", {"name": ""}),
        ("model_name", {"name": "x" * 257}),
        ("model_name", {"name": "é" * 129}),
        ("model_name", {"name": "__metadata__"}),
        ("model_name", {"name": "a\nb"}),
        ("model_name", {"name": "a\x7f"}),
        ("model_name", {"name": "\ud800"}),
        ("model_shape", {"shape": (0,)}),
        ("model_shape", {"shape": (3, -1)}),
        ("model_shape", {"shape": (1,) * 9}),
        ("model_too_large", {"shape": (MAX_MODEL_PARAMETERS + 1,)}),
        ("model_too_large", {"shape": (10**10,) * 8}),
        ("model_manifest", {"fraction_bits": -1}),
        ("model_manifest", {"fraction_bits": 25}),
        ("model_manifest", {"dtype": "float8"}),
        ("model_manifest", {"dtype": "int64"}),
        ("model_role", {"dtype": "int64", "fraction_bits": 0}),
        ("model_role", {"dtype": "bool", "fraction_bits": 0, "role": Role.AVERAGE}),
        ("model_role", {"role": Role.KEEP}),
        ("model_role", {"role": Role.AVERAGE}),
    ],
)
def test_a_tensor_that_breaks_a_rule_is_refused(code: str, change: dict[str, Any]) -> None:
    refuse_manifest(code, dataclasses.replace(WEIGHT, **change))


def test_names_must_be_sorted_and_different() -> None:
    refuse_manifest("model_manifest", WEIGHT, WEIGHT)
    refuse_manifest("model_manifest", WEIGHT, dataclasses.replace(WEIGHT, name="a"))


def test_names_sort_by_bytes_also_past_the_basic_plane() -> None:
    tensors = tuple(
        dataclasses.replace(WEIGHT, name=name) for name in ("z", "\uffff", "\U0001f600")
    )
    manifest = Manifest(tensors)
    data = encode_model(manifest, np.zeros(manifest.parameters, dtype=np.int32))
    assert decode_model(data).manifest == manifest
    assert sorted(tensors, key=lambda spec: spec.name.encode()) == list(tensors)


def test_the_number_of_tensors_is_bounded() -> None:
    refuse_manifest("model_manifest")
    tensors = [dataclasses.replace(WEIGHT, name=f"{i:05}") for i in range(MAX_MODEL_TENSORS + 1)]
    check_manifest(Manifest(tuple(tensors[:-1])))
    refuse_manifest("model_manifest", *tensors)


def test_the_number_of_stored_values_is_bounded() -> None:
    half = MAX_MODEL_PARAMETERS // 2
    first = dataclasses.replace(WEIGHT, name="a", shape=(half,))
    second = dataclasses.replace(WEIGHT, name="b", shape=(half,))
    check_manifest(Manifest((first, second)))
    more = dataclasses.replace(second, name="c", shape=())
    refuse_manifest("model_too_large", first, second, more)
    # Personal layers never reach the chain.
    check_manifest(Manifest((first, second, dataclasses.replace(more, role=Role.LOCAL))))


@pytest.mark.slow
def test_a_header_that_is_too_long_is_not_written() -> None:
    names_of_length = (f"{i:05}".ljust(256, "x") for i in range(MAX_MODEL_TENSORS))
    manifest = Manifest(
        tuple(dataclasses.replace(WEIGHT, name=name, shape=()) for name in names_of_length)
    )
    with pytest.raises(InvalidModel) as caught:
        encode_model(manifest, np.zeros(manifest.parameters, dtype=np.int32))
    assert caught.value.code == "model_header"


# -- files that are refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:7],
        GOOD[:8],
        GOOD[: 8 + HEADER_SIZE - 1],
        (2**64 - 1).to_bytes(8, "little") + GOOD[8:],
        (MAX_MODEL_HEADER_BYTES + 8).to_bytes(8, "little") + b" " * (MAX_MODEL_HEADER_BYTES + 8),
        make_file(b""),
        make_file(b"{}"),
        make_file(dump({"w": {"data_offsets": [0, 4], "dtype": "F32", "shape": [1]}})),
        make_file(dump({"__metadata__": {"format": "pt"}})),
        make_file(HEADER.replace(b"steelyard-model-1", b"steelyard-model-2")),
        make_file(HEADER[: HEADER.find(b'}"}')]),
        make_file(json.dumps(make_document(), sort_keys=True).encode()),
    ],
    ids=range(13),
)
def test_a_file_without_our_header_is_refused(data: bytes) -> None:
    refuse("model_header", data)


@pytest.mark.parametrize("data", [GOOD[:-1], GOOD + b"\0", GOOD + bytes(4), GOOD[:-400]])
def test_a_file_of_another_length_than_its_tensors_is_refused(data: bytes) -> None:
    refuse("model_length", data)


def test_a_file_larger_than_a_blob_is_refused_before_it_is_read() -> None:
    refuse("model_too_large", bytes(MAX_BLOB_BYTES + 1))


def change_entry(**change: Any) -> bytes:
    document = make_document()
    document["weight"] |= change
    return make_file(dump(document))


@pytest.mark.parametrize(
    "data",
    [
        change_entry(data_offsets=[0, 60]),
        change_entry(data_offsets=[20012, 2**63]),
        change_entry(data_offsets=[-4, 60]),
        change_entry(data_offsets=[float("nan"), 60]),
        change_entry(data_offsets=[10**300, 60]),
        change_entry(shape=[5, 3]),
        change_entry(shape=[15]),
        change_entry(dtype="F32"),
        change_entry(more=1),
        make_file(dump(make_document() | {"another": {}})),
        make_file(dump({key: value for key, value in make_document().items() if key != "mean"})),
        make_file(dump(dict(reversed(make_document().items()))).replace(b"Bias", b"Bia\\u0073")),
        make_file(HEADER.rstrip(b" ")[:-1] + b',"weight":' + b"[" * 200_000 + b"}"),
        make_file(HEADER.rstrip(b" ")[:-1] + b',"weight":' + b'{"a":' * 100_000 + b"}"),
        make_file(HEADER.rstrip(b" ") + b" " * 8),
        make_file(HEADER.rstrip(b" ") + b"\t" * (-len(HEADER.rstrip(b" ")) % 8)),
        make_file(HEADER.rstrip(b" "), pad=False),
        make_file(b" " * 8 + HEADER),
        make_file(HEADER.replace(b"weight", b"w\xc3\xa9ght")),
        make_file(HEADER.replace(b'"Bias":{"data', b'"Bias":{},"Bias":{"data')),
    ],
    ids=range(20),
)
def test_a_header_that_does_not_belong_to_its_manifest_is_refused(data: bytes) -> None:
    refuse("model_canonical", data)


TEXT = encode_manifest(MANIFEST)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("model_manifest", ""),
        ("model_manifest", "{}"),
        ("model_manifest", "[]"),
        ("model_manifest", "[" * 400_000),
        ("model_manifest", '{"a":' * 90_000),
        ("model_manifest", TEXT[:-1]),
        ("model_manifest", TEXT + " "),
        ("model_manifest", TEXT.replace('"role":"keep",', "")),
        ("model_manifest", TEXT.replace('"role":"keep"', '"role":"keep","role":"keep"')),
        ("model_manifest", TEXT.replace('"fraction_bits":20', '"fraction_bits":NaN')),
        ("model_manifest", TEXT.replace('"fraction_bits":20', '"fraction_bits":2e1')),
        ("model_manifest", TEXT.replace('"fraction_bits":20', '"fraction_bits":-1')),
        ("model_manifest", TEXT.replace('"fraction_bits":20', '"fraction_bits":' + "9" * 10_000)),
        ("model_manifest", TEXT.replace('"fraction_bits":20', '"fraction_bits":25')),
        ("model_manifest", TEXT.replace("[5000]", "[" + "9" * 10_000 + "]")),
        ("model_manifest", TEXT.replace("[5000]", "[-5000]")),
        ("model_manifest", TEXT.replace("[5000]", "[５]")),
        ("model_manifest", TEXT.replace("float64", "float63")),
        ("model_manifest", TEXT.replace('"Bias"', '"mean"')),
        ("model_manifest", TEXT[:-1] + "," + TEXT[1:]),
        ("model_too_large", TEXT.replace("[5000]", "[9999999999,9999999999]")),
        ("model_shape", TEXT.replace("[5000]", "[0]")),
        ("model_shape", TEXT.replace("[5000]", "[1,1,1,1,1,1,1,1,1]")),
        ("model_role", TEXT.replace("average", "medium")),
        ("model_role", TEXT.replace("keep", "train")),
        ("model_name", TEXT.replace('"Bias"', '""')),
        ("model_name", TEXT.replace('"Bias"', '"\\ud800"')),
        ("model_name", TEXT.replace('"Bias"', '"\\q"')),
        ("model_name", TEXT.replace('"Bias"', '"' + "B" * 300 + '"')),
        ("model_canonical", TEXT.replace("[5000]", "[05000]")),
        ("model_canonical", TEXT.replace('"fraction_bits":0', '"fraction_bits":00')),
        ("model_canonical", TEXT.replace('"Bias"', '"\\u0042ias"')),
        ("model_canonical", TEXT.replace('"Bias"', '"B\\/ias"')),
    ],
    ids=range(33),
)
def test_a_manifest_that_breaks_a_rule_is_refused(code: str, text: str) -> None:
    assert text != TEXT
    with pytest.raises(InvalidModel) as caught:
        decode_manifest(text)
    assert caught.value.code == code
    # A text that does not even end like a manifest is not found in the header.
    refuse(code if text.endswith("}") else "model_header", with_manifest(text))


def test_a_second_manifest_is_not_taken_for_the_first() -> None:
    start = HEADER.find(b'"__metadata__"')
    copy = HEADER[start : HEADER.find(b'}"}', start) + 3].replace(b"5000", b"4000")
    refuse("model_canonical", make_file(HEADER[:start] + copy + b"," + HEADER[start:]))


def test_a_name_that_looks_like_metadata_is_only_a_name() -> None:
    name = module._MANIFEST_START + "{}" + '}"},'
    manifest = Manifest((dataclasses.replace(WEIGHT, name=name),))
    data = encode_model(manifest, np.zeros(15, dtype=np.int32))
    assert decode_model(data).manifest == manifest


@pytest.mark.parametrize(
    "filler",
    ['{"' + "\\" * 2, '"', '{"' + "a" * 1000, "\\u", ',{"a":', '{"x":{"dtype":"', "}", "[1,"],
)
def test_refusing_a_header_of_the_largest_size_is_quick(filler: str) -> None:
    escaped = json.dumps(filler)[1:-1].encode()
    start = module._MANIFEST_START.encode()
    room = MAX_MODEL_HEADER_BYTES - len(start) - 16
    header = b"{" + start + escaped * (room // len(escaped)) + b'}"}}'
    began = time.process_time()
    with pytest.raises(InvalidModel):
        decode_model(make_file(header))
    assert time.process_time() - began < 1


@given(st.integers(0, HEADER_SIZE + 7), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_no_damage_to_a_header_is_overlooked(position: int, byte: int) -> None:
    data = bytearray(GOOD)
    data[position] = byte
    if bytes(data) == GOOD:
        return
    try:
        model = decode_model(data)
    except InvalidModel:
        return
    # Only a header that means something else, and says so in its one encoding, may pass.
    assert model.manifest != MANIFEST
    assert encode_model(model.manifest, model.values) == data


@given(st.binary(max_size=300))
def test_no_bytes_make_the_decoder_fail_otherwise(data: bytes) -> None:
    for candidate in (data, make_file(module._MANIFEST_START.encode() + data)):
        with pytest.raises(InvalidModel):
            decode_model(candidate)

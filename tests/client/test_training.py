"""From a training result to an update: what must be refused, and what must not change."""

import numpy as np
import pytest

from steelyard.chain.cid import compute_blob_name
from steelyard.chain.errors import SteelyardError
from steelyard.chain.model import Role, decode_model
from steelyard.chain.types import Address
from steelyard.chain.update import decode_update
from steelyard.client.errors import InvalidTraining
from steelyard.client.quantize import NamedArrays, build_manifest, quantize_model
from steelyard.client.training import (
    Result,
    build_arrays,
    compute_norm2,
    compute_rounding_seed,
    prepare_update,
)

SENDER = Address(b"\x09" * 20)


def make(roles=None):
    arrays = NamedArrays(
        {
            "head": np.ones(3, np.float32),
            "mean": np.zeros(2, np.float32),
            "steps": np.array(7, np.int64),
            "weight": np.linspace(-1, 1, 50, dtype=np.float32).reshape(5, 10),
        },
        {"head": Role.LOCAL, "mean": Role.AVERAGE, "steps": Role.KEEP},
    )
    data = quantize_model(arrays, build_manifest(arrays))
    return decode_model(data), compute_blob_name(data), arrays


def prepare(result, bits=8, max_norm2=2**56, round_number=1):
    model, base, _ = make()
    return prepare_update(
        model,
        base,
        result,
        chain_id=4242,
        task=7,
        round_number=round_number,
        sender=SENDER,
        bits=bits,
        max_norm2=max_norm2,
    )


def move(step: float) -> Result:
    _, _, arrays = make()
    moved = {name: array + array.dtype.type(step) for name, array in arrays.items()}
    return Result(moved, samples=10)


def test_the_same_training_gives_the_same_bytes() -> None:
    assert prepare(move(0.013)).data == prepare(move(0.013)).data
    assert prepare(move(0.013)).data != prepare(move(0.013), round_number=2).data


def test_an_update_is_bound_to_chain_task_round_base_and_sender() -> None:
    header = decode_update(prepare(move(0.013)).data).header
    assert (header.chain_id, header.task, header.round, header.sender) == (4242, 7, 1, SENDER)
    assert header.base == make()[1]


def test_the_rounding_seed_depends_on_everything_it_names() -> None:
    seeds = {
        compute_rounding_seed(*numbers, sender)
        for numbers in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)]
        for sender in (SENDER, Address(b"\x08" * 20))
    }
    assert len(seeds) == 8


@pytest.mark.parametrize("bits", [8, 16])
def test_a_delta_above_the_admitted_norm_is_scaled_to_fit(bits: int) -> None:
    limit = int(0.25 * 2**48)
    prepared = prepare(move(1.0), bits, limit)
    update = decode_update(prepared.data)
    found = compute_norm2(update.exponents, update.values, make()[0].manifest)
    assert 0.8 * limit < found <= limit
    assert prepared.scale < 1
    assert prepared.norm == pytest.approx(np.sqrt(50), rel=1e-3)


def test_a_delta_within_the_norm_is_left_alone() -> None:
    assert prepare(move(0.01)).scale == 1.0


def test_running_means_do_not_count_in_the_norm() -> None:
    _, _, arrays = make()
    moved = {name: array.copy() for name, array in arrays.items()}
    moved["mean"] += 100
    assert prepare(Result(moved, samples=1), max_norm2=2**40).norm < 1e-6


def test_personal_tensors_stay_here_and_come_back() -> None:
    prepared = prepare(move(0.5))
    assert prepared.personal is not None
    model = make()[0]
    assert "head" not in build_arrays(model, None)
    assert np.array_equal(build_arrays(model, prepared.personal)["head"], np.full(3, 1.5))
    values = decode_update(prepared.data).values
    assert len(values) == 52, "50 weights and 2 means; neither head nor steps"


def change(**arrays):
    moved = dict(move(0.01).arrays) | arrays
    return Result({k: v for k, v in moved.items() if v is not None}, samples=5)


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (None, "training_result"),
        ((1, 2), "training_result"),
        (Result(samples=3), "training_result"),
        (Result({}, samples=0), "training_samples"),
        (Result({}, samples=-1), "training_samples"),
        (Result({}, samples=True), "training_samples"),
        (Result({}, samples=1.5), "training_samples"),
        (Result({}, samples=3), "training_tensor"),
        (change(weight=None), "training_tensor"),
        (change(weight=np.zeros((10, 5), np.float32)), "training_shape"),
        (change(stranger=np.zeros(1, np.float32)), "training_tensor"),
        (Result({**change().arrays, 0: np.zeros(1), None: np.zeros(1)}, 3), "training_tensor"),
        (change(weight=np.full((5, 10), np.nan, np.float32)), "delta_not_finite"),
        (change(weight=np.full((5, 10), np.inf, np.float32)), "delta_not_finite"),
        (change(mean=np.full(2, 1e30, np.float32)), "delta_too_large"),
    ],
)
def test_what_cannot_become_an_update_is_named(result, code) -> None:
    with pytest.raises(SteelyardError) as caught:
        prepare(result)
    assert caught.value.code == code


def test_a_norm_that_no_integer_reaches_asks_for_more_bits() -> None:
    with pytest.raises(InvalidTraining) as caught:
        prepare(move(1.0), bits=8, max_norm2=4)
    assert caught.value.code == "norm_too_small"

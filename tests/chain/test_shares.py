"""Largest remainder: shares sum to the total, whatever the order of the clients."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.chain import reference
from steelyard.chain.errors import InvalidAggregation
from steelyard.chain.params import MAX_RAW_WEIGHT, MAX_UPDATES, WEIGHT_TOTAL
from steelyard.chain.shares import compute_shares
from steelyard.chain.types import BlobName, Digest

weight_lists = st.lists(
    st.one_of(st.integers(0, 5), st.integers(0, MAX_RAW_WEIGHT)), min_size=1, max_size=20
).filter(any)


def make_names(count: int) -> list[BlobName]:
    return [BlobName(Digest(i.to_bytes(32, "big")), 1) for i in range(count)]


@given(weight_lists)
def test_shares_sum_to_the_total_and_are_less_than_one_unit_off(weights: list[int]) -> None:
    shares = compute_shares(make_names(len(weights)), weights)
    total = sum(weights)
    assert sum(shares) == WEIGHT_TOTAL
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share * total - weight * WEIGHT_TOTAL) < total


@given(weight_lists, st.randoms(use_true_random=False))
def test_shares_do_not_depend_on_the_order(weights: list[int], random: object) -> None:
    names = make_names(len(weights))
    pairs = list(zip(names, weights, strict=True))
    random.shuffle(pairs)  # type: ignore[attr-defined]
    shuffled = compute_shares([name for name, _ in pairs], [weight for _, weight in pairs])
    by_name = {name: share for (name, _), share in zip(pairs, shuffled, strict=True)}
    assert tuple(by_name[name] for name in names) == compute_shares(names, weights)


@given(weight_lists)
def test_shares_are_those_of_the_reference(weights: list[int]) -> None:
    names = make_names(len(weights))
    assert compute_shares(names, weights) == reference.compute_shares(names, weights)


def test_a_tie_goes_to_the_smaller_digest() -> None:
    first, second, third = make_names(3)
    assert compute_shares([third, first, second], [1, 1, 1]) == (349525, 349526, 349525)


@pytest.mark.parametrize(
    ("count", "weights", "code"),
    [
        (0, [], "aggregation_count"),
        (MAX_UPDATES + 1, [1] * (MAX_UPDATES + 1), "aggregation_count"),
        (2, [1], "aggregation_count"),
        (2, [0, 0], "aggregation_weight"),
        (1, [MAX_RAW_WEIGHT + 1], "aggregation_weight"),
        (2, [-1, 2], "aggregation_weight"),
    ],
)
@pytest.mark.parametrize("compute", [compute_shares, reference.compute_shares])
def test_unusable_lists_are_refused(compute, count: int, weights: list[int], code: str) -> None:
    with pytest.raises(InvalidAggregation) as caught:
        compute(make_names(count), weights)
    assert caught.value.code == code


@pytest.mark.parametrize("compute", [compute_shares, reference.compute_shares])
@pytest.mark.parametrize("weights", [[1, 1], [1]])
def test_a_repeated_name_is_refused_before_the_weights_are_counted(compute, weights) -> None:
    with pytest.raises(InvalidAggregation) as caught:
        compute(make_names(1) * 2, weights)
    assert caught.value.code == "aggregation_duplicate"

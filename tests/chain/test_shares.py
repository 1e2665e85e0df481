"""Largest remainder: shares sum to the total, whatever the order of the clients."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.chain import reference
from steelyard.chain.errors import InvalidAggregation
from steelyard.chain.params import MAX_RAW_WEIGHT, MAX_UPDATES, WEIGHT_TOTAL
from steelyard.chain.shares import compute_capped_shares, compute_shares
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


caps = st.one_of(st.integers(1, 2000), st.integers(1, WEIGHT_TOTAL))


@given(weight_lists, caps)
def test_no_share_exceeds_the_cap_or_the_least_cap_that_can_be_kept(
    weights: list[int], cap: int
) -> None:
    names = make_names(len(weights))
    shares, capped = compute_capped_shares(names, weights, cap)
    least = -(-WEIGHT_TOTAL // sum(weight > 0 for weight in weights))
    assert sum(shares) == WEIGHT_TOTAL
    assert max(shares) <= max(cap, least)
    for share, weight, is_capped in zip(shares, weights, capped, strict=True):
        assert share == max(cap, least) or not is_capped
        assert weight > 0 or share == 0
    assert shares == reference.compute_shares(names, weights, cap)


@given(weight_lists, caps)
def test_those_below_the_cap_divide_the_rest_by_their_weights(weights: list[int], cap: int) -> None:
    names = make_names(len(weights))
    shares, capped = compute_capped_shares(names, weights, cap)
    free = [i for i, is_capped in enumerate(capped) if not is_capped]
    rest, total = sum(shares[i] for i in free), sum(weights[i] for i in free)
    for i in free:
        assert abs(shares[i] * total - weights[i] * rest) < total or rest == 0


@pytest.mark.slow
@given(weight_lists, caps, st.randoms(use_true_random=False))
def test_capped_shares_do_not_depend_on_the_order(
    weights: list[int], cap: int, random: object
) -> None:
    names = make_names(len(weights))
    pairs = list(zip(names, weights, strict=True))
    random.shuffle(pairs)  # type: ignore[attr-defined]
    shuffled = compute_shares([name for name, _ in pairs], [weight for _, weight in pairs], cap)
    by_name = {name: share for (name, _), share in zip(pairs, shuffled, strict=True)}
    assert tuple(by_name[name] for name in names) == compute_shares(names, weights, cap)


def test_what_a_cap_takes_may_lift_others_to_it() -> None:
    """With 40 % the most: 80, 15, 5 gives 40 and 60 left for 3 : 1, of which 45 is too much."""
    tenth = WEIGHT_TOTAL // 10
    shares, capped = compute_capped_shares(make_names(3), [80, 15, 5], 4 * tenth)
    assert shares == (4 * tenth, 4 * tenth, WEIGHT_TOTAL - 8 * tenth)
    assert capped == (True, True, False)


def test_a_cap_nobody_exceeds_changes_nothing() -> None:
    names = make_names(4)
    assert compute_shares(names, [1, 1, 2, 4], WEIGHT_TOTAL // 2) == (
        compute_shares(names, [1, 1, 2, 4])
    )


def test_a_chain_of_caps_ends() -> None:
    weights = [2**i for i in range(100)]
    shares, capped = compute_capped_shares(make_names(100), weights, 1)
    assert max(shares) == -(-WEIGHT_TOTAL // 100)
    assert sum(shares) == WEIGHT_TOTAL
    assert sum(capped) == 99


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

"""Validator sets: quorum, leader, and what is no set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.chain.consensus.validators import Validator, ValidatorSet, has_quorum
from steelyard.chain.errors import InvalidGenesis
from steelyard.chain.params import MAX_POWER, MAX_VALIDATORS
from tests.consensus.makers import make_validators

FOUR = make_validators([1, 1, 1, 1])


@pytest.mark.parametrize(
    ("power", "total", "answer"),
    [(2, 3, False), (3, 3, True), (1, 1, True), (0, 1, False), (3, 4, True), (66, 99, False)],
)
def test_exactly_two_thirds_is_no_quorum(power: int, total: int, answer: bool) -> None:
    assert has_quorum(power, total) is answer


@given(st.integers(1, 2**140))
def test_the_quorum_is_two_thirds_rounded_down_plus_one(total: int) -> None:
    least = 2 * total // 3 + 1
    assert has_quorum(least, total)
    assert not has_quorum(least - 1, total)


def test_a_signer_counts_once() -> None:
    assert not FOUR.has_quorum([0, 1, 1, 1])
    assert FOUR.has_quorum([0, 1, 2])
    assert FOUR.quorum == 3


def test_power_decides_not_the_number_of_validators() -> None:
    validators = make_validators([7, 1, 1, 1])
    assert validators.has_quorum([0])
    assert not validators.has_quorum([1, 2, 3])


def test_leaders_are_drawn_by_power_and_known_in_advance() -> None:
    validators = make_validators([1, 2, 5])
    turns = [validators.get_leader(0, view) for view in range(1, 8001)]
    for place, power in enumerate([1, 2, 5]):
        assert abs(turns.count(place) - 1000 * power) < 120
    assert turns[:5] == [validators.get_leader(0, view) for view in range(1, 6)]


def test_the_first_leaders_are_a_format() -> None:
    """A change here is a change of consensus."""
    leaders = [FOUR.get_leader(0, view) for view in range(1, 13)]
    assert leaders == [3, 0, 0, 2, 0, 0, 2, 1, 0, 1, 3, 1]


def test_leaders_of_two_epochs_differ() -> None:
    first = [FOUR.get_leader(0, view) for view in range(1, 20)]
    assert first != [FOUR.get_leader(1, view) for view in range(1, 20)]


def test_validators_are_found_by_address_and_by_key() -> None:
    assert FOUR.find(FOUR[2].address) == 2
    assert FOUR.find_key(FOUR[3].key) == 3
    assert FOUR.find(bytes(20)) is None
    assert FOUR.find_key(FOUR[2].address) is None


def test_an_empty_or_too_large_set_is_refused() -> None:
    with pytest.raises(InvalidGenesis, match="validators_count"):
        ValidatorSet(())
    with pytest.raises(InvalidGenesis, match="validators_count"):
        make_validators([1] * (MAX_VALIDATORS + 1))


@pytest.mark.parametrize("power", [0, -1, MAX_POWER + 1])
def test_a_power_out_of_range_is_refused(power: int) -> None:
    with pytest.raises(InvalidGenesis, match="validators_power"):
        make_validators([1, power])


def test_nobody_is_in_a_set_twice() -> None:
    first, second = FOUR.validators[:2]
    for twin in (
        Validator(first.address, second.key, first.power),
        Validator(second.address, first.key, first.power),
    ):
        with pytest.raises(InvalidGenesis, match="validators_repeated"):
            ValidatorSet((first, twin))


@pytest.mark.parametrize(("address", "key"), [(19, 48), (20, 47), (48, 20)])
def test_addresses_and_keys_have_their_length(address: int, key: int) -> None:
    with pytest.raises(InvalidGenesis, match="validators_key"):
        ValidatorSet((Validator(bytes(address), bytes(key), 1),))

"""Coins and wei: exact both ways, floats refused."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.client.amounts import coins, format_coins
from steelyard.client.errors import ClientError


@pytest.mark.parametrize(
    ("amount", "wei"),
    [
        (500, 500 * 10**18),
        ("0.1", 10**17),
        ("1e-18", 1),
        (Decimal("2.5"), 25 * 10**17),
        (0, 0),
        ("12345678901234567890.000000000000000001", 12345678901234567890 * 10**18 + 1),
    ],
)
def test_coins_are_exact(amount: object, wei: int) -> None:
    assert coins(amount) == wei


@pytest.mark.parametrize(
    "amount",
    [
        0.1,
        True,
        None,
        "x",
        "",
        "1e-19",
        "-1",
        -1,
        "NaN",
        "Infinity",
        "1e999999999",
        "1e99999",
        "1e70",
    ],
)
def test_what_is_no_amount_is_refused(amount: object) -> None:
    with pytest.raises(ClientError) as caught:
        coins(amount)
    assert caught.value.code == "amount"


@given(st.integers(min_value=0, max_value=2**200))
def test_what_is_shown_reads_back_the_same(wei: int) -> None:
    assert coins(format_coins(wei)) == wei


def test_negative_balances_can_be_shown() -> None:
    assert format_coins(-(10**17)) == "-0.1"

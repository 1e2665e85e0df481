"""Amounts of money: integers in wei inside, decimal coins outside."""

from decimal import Decimal, localcontext
from typing import Final

from .errors import ClientError

WEI_PER_COIN: Final = 10**18
WEI_PER_GWEI: Final = 10**9
MAX_WEI: Final = 2**256


def coins(amount: int | str | Decimal) -> int:
    """Return `amount` coins in wei, exactly.

    Raises: ClientError `amount` for a negative amount, one that is not a number, or a fraction of
    a wei. Floats are refused: write `coins("0.1")`.
    """
    if isinstance(amount, bool) or not isinstance(amount, int | str | Decimal):
        raise ClientError(
            "amount", f'write {amount!r} coins as an integer or a string: coins("1.5")'
        )
    try:
        with localcontext() as context:
            context.prec = 100
            wei = Decimal(amount) * WEI_PER_COIN
            whole = int(wei.to_integral_value()) if wei < MAX_WEI else -1
            exact = wei == whole
    except (ArithmeticError, ValueError):
        raise ClientError(
            "amount", f"{amount!r} is not an amount; write a number of coins"
        ) from None
    if whole < 0 or not exact:
        raise ClientError(
            "amount", f"{amount!r} coins is negative, too large or not a whole number of wei"
        )
    return whole


def format_coins(wei: int) -> str:
    """Return `wei` as decimal coins without trailing zeros, exactly."""
    sign, wei = ("-", -wei) if wei < 0 else ("", wei)
    whole, rest = divmod(wei, WEI_PER_COIN)
    fraction = f"{rest:018d}".rstrip("0")
    return f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"


def format_gwei(wei: int) -> str:
    """Return wei a gas in gwei, exactly."""
    return format_coins(wei * WEI_PER_GWEI)

"""How much gas a message needs: the smallest limit that succeeds, to within two per cent."""

from collections.abc import Callable
from dataclasses import replace

from steelyard.chain.errors import InvalidTransaction
from steelyard.chain.execute import CallResult

CLOSE_ENOUGH_PERCENT = 2


def estimate(try_with: Callable[[int], CallResult], cap: int) -> CallResult:
    """The result of `try_with(limit)` with `gas_used` replaced by a limit that suffices.

    A failure at the cap is returned as it is. What a message uses is not always enough for it: a
    frame passes on at most 63/64 of its gas, and refunds come at the end. Hence the search.
    """
    result = try_with(cap)
    if result.is_error:
        return result
    low, high = result.gas_used - 1, cap
    guess = result.gas_used
    for _ in range(64):
        if (high - low) * 100 <= high * CLOSE_ENOUGH_PERCENT:
            break
        if is_enough(try_with, guess):
            high = guess
        else:
            low = guess
        spread = (result.gas_used + result.gas_refund) * 64 // 63 + 5_000
        guess = spread if low < spread < high else (low + high) // 2
    return replace(result, gas_used=high)


def is_enough(try_with: Callable[[int], CallResult], gas: int) -> bool:
    try:
        return not try_with(gas).is_error
    except InvalidTransaction:
        return False

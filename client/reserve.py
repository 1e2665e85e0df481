"""What closing a task's rounds takes, and what is set aside for whoever closes them.

Validators close what pays for itself (docs/node.md, "What the keeper is paid"). They are paid gas
at the base fee out of the round's reserve, which is in wei and never grows, so it has to last for
base fees that nobody knows yet. What was not needed returns to the publisher in the end.

The contract reckons the same (contracts/capacity.vy).
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from steelyard.chain.cid import compute_blob_name
from steelyard.chain.errors import InvalidAggregation
from steelyard.chain.model import Layout, compute_layout, decode_model
from steelyard.chain.pricing import Plan, compute_aggregation_gas, plan_pages
from steelyard.chain.rules import Rule
from steelyard.chain.server import check_velocity_size

from .amounts import WEI_PER_GWEI, format_coins, format_gwei
from .errors import InvalidTask
from .records import Parameters
from .terms import Task

CLOSE_GAS: Final = 800_000
CLOSE_GAS_PER_CLIENT: Final = 60_000
CLOSE_BLOCK_PART: Final = Fraction(3, 4)
"""The part of a block's gas that one call of `close` may need. All three are in capacity.vy."""
EXTENSION_GAS: Final = 240_000
"""A call of `close` that extends a round: at most 236,552 (tests/contracts/gas.json)."""
WIDEST_BITS: Final = 16
RESERVE_HEADROOM: Final = 16
"""The default reserve, over the cost at the present base fee."""
LEAST_PRICE: Final = WEI_PER_GWEI
"""Wei a gas that the default reserve pays for at least: a base fee near nothing multiplies by 16
within two dozen full blocks, which cost next to nothing either."""


@dataclass(frozen=True, slots=True)
class Closing:
    """What closing one round takes: calls of `close`, and gas for all of them together."""

    calls: int
    """That end the round, beside its extensions."""
    gas: int
    """At most, with every page as large as may be, and with all extensions."""


def compute_closing(
    rule: Rule, model: bytes, clients: int, gas_limit: int, extensions: int = 0
) -> Closing:
    """Return what closing a round takes, as `publish` will reckon it.

    Raises: InvalidTask `task_momentum`, `task_capacity`.
    """
    layout = compute_layout(decode_model(model).manifest)
    check_momentum(rule, layout)
    name, overhead = compute_blob_name(model), CLOSE_GAS + clients * CLOSE_GAS_PER_CLIENT
    page_gas = int(gas_limit * CLOSE_BLOCK_PART) - overhead
    if page_gas <= 0:
        raise InvalidTask("task_capacity", f"{clients} clients are too many for a block's gas")
    try:
        plan = plan_pages(rule, name, model, layout, clients, WIDEST_BITS, page_gas)
        least = compute_aggregation_gas(rule, name, model, layout, clients, WIDEST_BITS)
    except InvalidAggregation as error:
        raise InvalidTask(
            "task_capacity", f"a round of {clients} clients could not be closed: {error.message}"
        ) from None
    calls = count_calls(plan)
    gas = overhead + least if calls == 1 else calls * (overhead + page_gas)
    return Closing(calls, gas + extensions * EXTENSION_GAS)


def count_calls(plan: Plan) -> int:
    """Return how often `close` is called: once, or for each page and to put them together."""
    pages = plan.measures + plan.combines
    return 1 if pages == 1 else pages + 1


def check_momentum(rule: Rule, layout: Layout) -> None:
    """Raises InvalidTask if what momentum gathers does not fit into a blob."""
    try:
        if rule.has_momentum:
            check_velocity_size(layout.update_values)
    except InvalidAggregation as error:
        raise InvalidTask("task_momentum", f"{error.message}; leave momentum at 0") from None


def compute_closing_pay(task: Task, gas: int, base_fee: int, tip: int) -> tuple[int, int]:
    """Return a round's reserve for closing, and the bounty in it. Raises InvalidTask."""
    bounty = 2 * gas * tip if task.close_bounty is None else task.close_bounty
    reserve = (
        compute_reserve(gas, bounty, base_fee, tip)
        if task.close_reserve is None
        else task.close_reserve
    )
    if bounty > reserve:
        raise InvalidTask(
            "task_close_reserve",
            f"close_reserve of {format_coins(reserve)} coins is below the bounty of "
            f"{format_coins(bounty)}; raise it, or give a smaller close_bounty",
        )
    return reserve, bounty


def compute_reserve(gas: int, bounty: int, base_fee: int, tip: int) -> int:
    """Return a round's reserve that outlasts ordinary rises of the base fee."""
    return gas * max(RESERVE_HEADROOM * base_fee + tip, LEAST_PRICE) + bounty


def compute_price(terms: Parameters, closing: Closing) -> int:
    """Return up to how many wei a gas the reserve pays, if a round takes all that it may."""
    return (terms.close_reserve - terms.close_bounty) // closing.gas


def find_weakness(terms: Parameters, closing: Closing, base_fee: int, tip: int) -> str | None:
    """Return why validators may leave this task's rounds to its members; None if they will not.

    A keeper wants its gas, and room for a tip and for the base fee to rise by an eighth
    (node/steps.py). The bounty pays for no extension and no page but the last.
    """
    price = compute_price(terms, closing)
    paid, now = format_gwei(price), format_gwei(base_fee)
    if price < base_fee + -(-base_fee // 8) + tip:
        found = (
            f"validators may close no round: close_reserve without close_bounty pays {paid} gwei a "
            f"gas, and they want the base fee ({now} now), an eighth more and a tip"
        )
    elif price < LEAST_PRICE:
        found = (
            f"validators may stop closing rounds when the base fee comes near {paid} gwei (it is "
            f"{now} now, and whoever fills blocks raises it)"
        )
    else:
        return None
    enough = format_coins(compute_reserve(closing.gas, terms.close_bounty, base_fee, tip))
    return (
        f"{found}; leave close_reserve out or raise it to {enough} coins (what is not used "
        "returns), or have members close with `steelyard round close`"
    )

"""What is set aside for closing: enough for ordinary rises of the base fee, and told where not."""

import json
from pathlib import Path

import numpy as np
import pytest

from steelyard.client.commands.taskfiles import describe_draft, format_draft
from steelyard.client.drafting import Draft, draft_task
from steelyard.client.organisation import Organisation
from steelyard.client.reserve import (
    EXTENSION_GAS,
    LEAST_PRICE,
    RESERVE_HEADROOM,
    compute_reserve,
)
from steelyard.client.terms import MAX_WEI
from steelyard.client.transactions import MAX_BASE_FEE, MAX_TIP
from steelyard.node.steps import Pay, Unpaid, compute_paid_bid
from steelyard.node.wallet import Prices

from .conftest import CHAIN, ORGANISATION, make_task, open_account

GWEI = 10**9
IDLE = {"base_fee": 10**6, "tip": 10**6}
BUSY = {"base_fee": 3 * GWEI, "tip": 10**6}
KRUM = {"rule": "multi_krum", "byzantine": 1, "min_clients": 5, "max_clients": 128}
SNAPSHOT = Path(__file__).parents[1] / "contracts" / "gas.json"


def draft(fees: dict[str, int], **changes) -> Draft:
    return draft_task(make_task(**changes), **CHAIN | fees)


def find_told(checked: Draft) -> str | None:
    """The warning about the reserve."""
    told = [text for text in checked.warnings if text.startswith("validators")]
    assert len(told) < 2
    return told[0] if told else None


def is_kept(checked: Draft, base_fee: int, tip: int) -> bool:
    """Whether a keeper makes a page, an extension and the end, all as dear as may be."""
    terms, gas = checked.parameters, checked.closing.gas
    prices = Prices(base_fee=base_fee, least_tip=0, usual_tip=tip, cap=10**13)
    paged = terms.close_reserve - terms.close_bounty
    last = min(gas * base_fee + terms.close_bounty, terms.close_reserve)
    try:
        compute_paid_bid(Pay(min(gas * base_fee, paged), paged), gas, prices)
        compute_paid_bid(Pay(last, terms.close_reserve), gas, prices)
    except Unpaid:
        return False
    return True


@pytest.mark.parametrize("fees", [IDLE, BUSY])
def test_the_default_reserve_outlasts_ordinary_rises(fees: dict[str, int]) -> None:
    checked = draft(fees)
    highest = max(RESERVE_HEADROOM * fees["base_fee"], GWEI)
    assert highest <= checked.close_price <= highest + fees["tip"]
    assert find_told(checked) is None
    assert is_kept(checked, highest * 8 // 9 - fees["tip"], fees["tip"])
    assert not is_kept(checked, checked.close_price, fees["tip"])


@pytest.mark.parametrize("base_fee", [1, 10**6, GWEI, MAX_BASE_FEE])
@pytest.mark.parametrize("tip", [0, 10**6, MAX_TIP])
@pytest.mark.parametrize("changes", [{}, {"close_bounty": 0}, {"close_bounty": 10**18}])
def test_a_default_reserve_is_never_warned_of(base_fee: int, tip: int, changes) -> None:
    fees = {"base_fee": base_fee, "tip": tip}
    checked = draft(fees, **changes)
    assert find_told(checked) is None
    assert is_kept(checked, **fees)


def test_the_largest_default_reserve_is_one_that_the_contract_takes() -> None:
    gas = 1_000 * 10**9  # of 129 pages, each 600 times a usual block
    bounty = 2 * gas * MAX_TIP
    assert compute_reserve(gas, bounty, MAX_BASE_FEE, MAX_TIP) < MAX_WEI


def test_a_reserve_that_pays_for_no_close_is_told_with_what_to_do() -> None:
    checked = draft(BUSY, close_reserve=0, close_bounty=0)
    told = find_told(checked)
    assert told is not None
    assert "may close no round" in told
    assert "pays 0 gwei a gas" in told
    assert "3 now" in told
    assert "`steelyard round close`" in told
    assert not is_kept(checked, **BUSY)


def test_the_bounty_is_no_pay_for_gas() -> None:
    plenty = draft(BUSY).parameters.close_reserve
    assert find_told(draft(BUSY, close_reserve=plenty, close_bounty=0)) is None
    assert find_told(draft(BUSY, close_reserve=plenty, close_bounty=plenty)) is not None


@pytest.mark.parametrize("fees", [IDLE, BUSY])
def test_whoever_follows_the_advice_is_not_warned_again(fees: dict[str, int]) -> None:
    plain = draft(fees)
    bounty = plain.parameters.close_bounty
    enough = compute_reserve(plain.closing.gas, bounty, **fees)
    assert find_told(draft(fees, close_reserve=enough)) is None
    assert find_told(draft(fees, close_reserve=bounty)) is not None


def test_the_warning_begins_where_a_keeper_stops() -> None:
    gas = draft(BUSY).closing.gas
    least = gas * (BUSY["base_fee"] * 9 // 8 + BUSY["tip"])
    good = draft(BUSY, close_reserve=least, close_bounty=0)
    assert find_told(good) is None
    assert is_kept(good, **BUSY)
    bad = draft(BUSY, close_reserve=least - 1, close_bounty=0)
    assert "may close no round" in str(find_told(bad))
    assert not is_kept(
        draft(BUSY, close_reserve=least - gas * BUSY["tip"] - 1, close_bounty=0), **BUSY
    )


def test_a_reserve_for_an_idle_chain_only_is_told() -> None:
    gas = draft(IDLE).closing.gas
    told = find_told(draft(IDLE, close_reserve=16 * gas * 10**6, close_bounty=0))
    assert told is not None
    assert "near 0.016 gwei (it is 0.001 now" in told
    assert find_told(draft(IDLE, close_reserve=gas * LEAST_PRICE, close_bounty=0)) is None
    assert find_told(draft(IDLE, close_reserve=gas * LEAST_PRICE - 1, close_bounty=0)) is not None


@pytest.mark.parametrize("count", [1, 3])
def test_each_extension_of_a_round_is_reserved_for(count: int) -> None:
    plain = draft(IDLE)
    extended = draft(IDLE, on_failed_quorum="extend", max_extensions=count)
    assert extended.closing.calls == plain.closing.calls
    assert extended.closing.gas == plain.closing.gas + count * EXTENSION_GAS
    assert extended.close_price >= LEAST_PRICE
    poor = draft(
        IDLE,
        on_failed_quorum="extend",
        max_extensions=count,
        close_reserve=plain.parameters.close_reserve,
        close_bounty=plain.parameters.close_bounty,
    )
    assert "may stop closing" in str(find_told(poor))


def test_an_extension_takes_no_more_than_is_reckoned() -> None:
    calls = json.loads(SNAPSHOT.read_text("utf-8"))["failed quorums, with 4 clients"]
    found = [gas for name, gas in calls.items() if "extend" in name]
    assert len(found) == 2
    assert EXTENSION_GAS * 9 // 10 < max(found) <= EXTENSION_GAS


def test_all_pages_of_a_round_are_reserved_for() -> None:
    checked = draft(
        IDLE | {"gas_limit": 20_000_000}, **KRUM, model={"w": np.zeros(2_000_000, np.float32)}
    )
    assert checked.closing.calls > 2
    assert checked.close_price == LEAST_PRICE
    assert find_told(checked) is None


def test_the_preview_tells_how_dear_gas_may_become() -> None:
    checked = draft(IDLE, close_reserve=10**15, close_bounty=0)
    price = 10**15 // checked.closing.gas
    assert describe_draft(checked)["close_price"] == str(price)
    assert "it pays validators for gas up to 1.1" in format_draft(checked)
    assert "the base fee is 0.001 now" in format_draft(checked)
    assert "warning: validators" not in format_draft(checked)
    poor = draft(IDLE, close_reserve=0, close_bounty=0)
    assert "up to 0 gwei" in format_draft(poor)
    assert "warning: validators may close no round" in format_draft(poor)


def test_publishing_tells_the_same_once_and_before_it_sends(ledger, tmp_path: Path) -> None:
    lines: list[str] = []
    state = tmp_path / "organisation"
    with open_account(Organisation, ledger, ORGANISATION, state, report=lines.append) as account:
        task = make_task(close_reserve=0, close_bounty=0)
        told = find_told(account.check(task))
        account.publish(task)
        account.publish(task)
        assert [line for line in lines if "validators" in line] == [f"warning: {told}"]
        assert lines.index(f"warning: {told}") < lines.index("task 1 is published")
        lines.clear()
        account.publish(make_task())
        assert not any("validators" in line for line in lines)

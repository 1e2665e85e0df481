"""What a step costs against what it is paid: to the wei, and with the money that is kept back."""

import logging

import pytest

from steelyard.chain.calls import CallRequest, CallResult
from steelyard.chain.errors import InvalidTransaction, SteelyardError
from steelyard.chain.params import STAKING_ADDRESS
from steelyard.chain.types import Hash
from steelyard.node.keeper import STATE_INTERVALS, Keeper
from steelyard.node.steps import (
    CLAIM_FACTOR,
    CLAIM_GAS,
    LEAST_CLOSE_GAS,
    OPENING_GAS,
    Pay,
    Step,
    Unpaid,
    compute_paid_bid,
)
from steelyard.node.wallet import Attempts, Bid, Prices, Wallet, compute_bid, encode_call

from .keeper_kit import (
    FINISHED,
    GAS,
    GAS_USED,
    GWEI,
    METERED_GAS,
    SELECTORS,
    TIP,
    UNMETERED_GAS,
    Contract,
    NodeDouble,
    build,
)
from .world import SECRETS

PRICES = Prices(base_fee=1_000, least_tip=0, usual_tip=100, cap=10**6)
PAID_GAS = METERED_GAS + UNMETERED_GAS
MUCH = 10**12
CHECK_IN = encode_call("check_in()")


def list_names(node: NodeDouble) -> list[str]:
    return [SELECTORS[one.data[:4]] for one in node.sent]


# -- the decision ----------------------------------------------------------------------------------
def test_pay_that_just_covers_the_gas_buys_no_tip() -> None:
    assert compute_paid_bid(Pay(50_000, MUCH), 50, PRICES) == Bid(0, 2_000)
    with pytest.raises(Unpaid):
        compute_paid_bid(Pay(49_999, MUCH), 50, PRICES)


@pytest.mark.parametrize(
    ("fee", "tip"), [(50_099, 0), (50_100, 1), (59_999, 99), (60_000, 100), (90_000, 100)]
)
def test_half_of_what_is_over_goes_to_the_tip_up_to_the_usual_one(fee: int, tip: int) -> None:
    assert compute_paid_bid(Pay(fee, MUCH), 50, PRICES).tip == tip


def test_the_least_tip_must_be_covered_whole() -> None:
    prices = Prices(base_fee=1_000, least_tip=40, usual_tip=100, cap=10**6)
    assert compute_paid_bid(Pay(52_000, MUCH), 50, prices).tip == 40
    with pytest.raises(Unpaid):
        compute_paid_bid(Pay(51_999, MUCH), 50, prices)


def test_the_cap_is_where_the_reserve_ends() -> None:
    assert compute_paid_bid(Pay(60_000, 150_000), 50, PRICES) == Bid(100, 2_100)
    assert compute_paid_bid(Pay(60_000, 104_999), 50, PRICES) == Bid(100, 2_099)


def test_a_reserve_that_bears_no_block_of_rising_fees_is_too_small() -> None:
    assert compute_paid_bid(Pay(60_000, 61_250), 50, PRICES) == Bid(100, 1_225)
    with pytest.raises(Unpaid):
        compute_paid_bid(Pay(60_000, 61_249), 50, PRICES)


def test_no_pay_lifts_the_cap_of_the_settings() -> None:
    prices = Prices(base_fee=1_000, least_tip=0, usual_tip=100, cap=1_200)
    assert compute_paid_bid(Pay(MUCH, MUCH), 50, prices) == Bid(100, 1_200)
    with pytest.raises(SteelyardError) as caught:
        compute_bid(Prices(base_fee=1_101, least_tip=0, usual_tip=100, cap=1_200))
    assert caught.value.code == "keeper_fee"


@pytest.mark.parametrize("base_fee", [100, 999, GWEI])
@pytest.mark.parametrize("percent", [118, 150, 10_000])
def test_whatever_the_base_fee_becomes_a_close_costs_no_more_than_it_pays(
    base_fee: int, percent: int
) -> None:
    """Rounds pays for a tenth more gas than this takes, up to the reserve."""
    gas, reserve = 400_000, 400_000 * base_fee * percent // 100

    def pay(price: int) -> int:
        return min(gas * 11 // 10 * price, reserve)

    prices = Prices(base_fee, 0, base_fee, 500 * GWEI)
    bid = compute_paid_bid(Pay(pay(base_fee), reserve), gas, prices)
    assert bid.tip > 0
    for step in range(101):
        later = base_fee + (bid.max_fee - base_fee) * step // 100
        assert gas * min(later + bid.tip, bid.max_fee) <= pay(later)


# -- closing ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("reserve", "sent"), [(0, 0), (10**18, 1)])
def test_a_round_without_a_reserve_is_left_and_one_with_it_is_closed(
    reserve: int, sent: int
) -> None:
    node, keeper = build(Contract({1: (Step.CLOSE, 4)}, count=1, reserve=reserve))
    keeper.look()
    assert len(node.sent) == sent
    assert keeper.count_left() == 1 - sent


def test_whoever_serves_all_closes_unpaid_rounds_too() -> None:
    node, keeper = build(Contract({1: (Step.CLOSE, 4)}, count=1, reserve=0), close_unpaid=True)
    keeper.look()
    assert list_names(node) == ["close"]
    assert keeper.count_left() == 0


def test_a_reserve_too_small_for_any_close_is_not_even_tried_out() -> None:
    """Trying out an aggregation is work, and nobody pays for that either."""
    contract = Contract({1: (Step.CLOSE, 4)}, count=1, reserve=LEAST_CLOSE_GAS * GWEI - 1)
    node, keeper = build(contract)
    keeper.look()
    assert node.tried == []
    contract.reserve += 1
    node.now += 60
    keeper.look()
    assert node.tried == ["close"]
    assert node.sent == []


def test_what_a_task_owes_nobody_yet_costs_more_once() -> None:
    """The pay is short by less than the two records that a first close makes."""
    contract = Contract({1: (Step.CLOSE, 4), 2: (Step.CLOSE, 4)}, owed={2: 1}, count=2)
    contract.metered = GAS_USED - UNMETERED_GAS - OPENING_GAS
    node, keeper = build(contract)
    keeper.look()
    assert [int.from_bytes(one.data[4:36]) for one in node.sent] == [1]
    assert keeper.count_left() == 1


def test_a_round_becomes_worth_closing_when_gas_is_cheap_again() -> None:
    contract = Contract({1: (Step.CLOSE, 4)}, count=1, reserve=PAID_GAS * GWEI)
    node, keeper = build(contract)
    node.base_fee = 2 * GWEI
    keeper.look()
    assert (node.sent, keeper.count_left()) == ([], 1)
    node.base_fee, node.now = GWEI, 60.0
    keeper.look()
    assert list_names(node) == ["close"]
    assert keeper.count_left() == 0


def test_a_round_that_somebody_else_closed_is_no_longer_left() -> None:
    contract = Contract({1: (Step.CLOSE, 4)}, count=1, reserve=0)
    _, keeper = build(contract)
    keeper.look()
    contract.due.clear()
    keeper.look()
    assert keeper.count_left() == 0


def test_an_unpaid_round_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    node, keeper = build(Contract({1: (Step.CLOSE, 4)}, count=1, reserve=0), retry_seconds=1)
    with caplog.at_level(logging.INFO, "steelyard.node"):
        for second in range(50):
            node.now = float(second)
            keeper.look()
    told = [line for line in caplog.messages if line.startswith("keeper_skipped")]
    assert len(told) == 1
    assert "task=1 step=close round=4 code=keeper_unpaid" in told[0]


# -- pages -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("spare", "sent"), [(-1, 0), (0, 1)])
def test_the_bounty_pays_for_no_page_but_the_last(spare: int, sent: int) -> None:
    need = GAS_USED * (GWEI + GWEI // 8)
    contract = Contract({1: (Step.CLOSE, 4)}, owed={1: 1}, splits={1: (3, 2, 9)}, count=1)
    contract.is_last, contract.bounty = False, 10**17
    contract.reserve = contract.bounty + need + spare
    node, keeper = build(contract)
    node.tip = 0
    keeper.look()
    assert len(node.sent) == sent


def test_a_page_has_gas_for_another_one_as_far_as_that_is_paid_for() -> None:
    """Somebody's close may come first, and ours then makes the next page."""
    contract = Contract({1: (Step.CLOSE, 4)}, owed={1: 1}, splits={1: (3, 2, 9)}, count=1)
    contract.is_last = False
    contract.reserve = PAID_GAS * GWEI + 1_000_000 * (2 * GWEI + TIP)
    node, keeper = build(contract)
    keeper.look()
    assert [one.gas for one in node.sent] == [1_000_000]


def test_the_last_call_is_paid_from_all_of_the_reserve() -> None:
    contract = Contract({1: (Step.CLOSE, 4)}, owed={1: 1}, splits={1: (3, 2, 9)}, count=1)
    contract.bounty = contract.reserve
    node, keeper = build(contract)
    keeper.look()
    assert len(node.sent) == 1


def test_gas_for_another_page_leaves_what_check_ins_need() -> None:
    contract = Contract({1: (Step.CLOSE, 4)}, splits={1: (3, 2, 9)}, count=1)
    node, keeper = build(contract, min_balance_wei=10**17)
    node.balance = 10**17 + 1_000_000 * (2 * GWEI + TIP)
    keeper.look()
    assert [one.gas for one in node.sent] == [1_000_000]


def test_a_page_that_is_paid_for_alone_has_gas_for_itself() -> None:
    contract = Contract({1: (Step.CLOSE, 4)}, owed={1: 1}, splits={1: (3, 2, 9)}, count=1)
    contract.is_last, contract.reserve = False, PAID_GAS * GWEI
    node, keeper = build(contract)
    keeper.look()
    assert [one.gas for one in node.sent] == [GAS]


def test_where_gas_costs_nothing_pages_are_made_and_have_gas_for_any_other() -> None:
    """A chain may have no base fee: then nothing is paid for a page, and nothing is spent on it."""
    contract = Contract({1: (Step.CLOSE, 4)}, splits={1: (3, 2, 9)}, count=1)
    contract.is_last = False
    node, keeper = build(contract)
    node.base_fee = 0
    keeper.look()
    assert [(one.gas, one.max_fee) for one in node.sent] == [(9_600_000, 0)]


# -- the other steps -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("reserve", "config", "names"),
    [
        (GAS_USED * (GWEI + TIP), {}, ["start"]),
        (GAS_USED * (GWEI + TIP) - 1, {}, []),
        (0, {"close_unpaid": True}, ["start"]),
    ],
)
def test_a_task_is_started_if_it_can_pay_as_much_for_a_round(
    reserve: int, config: dict[str, bool], names: list[str]
) -> None:
    node, keeper = build(Contract({1: (Step.START, 0)}, count=1, reserve=reserve), **config)
    keeper.look()
    assert list_names(node) == names


@pytest.mark.parametrize(("spare", "sent"), [(-1, 0), (0, 1)])
def test_what_is_not_worth_a_claim_is_left(spare: int, sent: int) -> None:
    owed = GAS_USED * (GWEI + TIP) + spare
    node, keeper = build(Contract(states={1: FINISHED}, owed={1: owed}, count=1))
    keeper.look()
    assert len(node.sent) == sent


@pytest.mark.parametrize(
    ("owed", "balance", "names"),
    [
        (10**17, 10**18, ["claim"]),
        (10**17 - 1, 10**18, []),
        (10**16, 2 * 10**17 - 1, ["claim"]),
        (10**16, 2 * 10**17, []),
        (CLAIM_FACTOR * CLAIM_GAS * GWEI - 1, 0, []),
    ],
)
def test_a_task_that_goes_on_is_claimed_from_when_it_owes_much_or_money_is_short(
    owed: int, balance: int, names: list[str]
) -> None:
    node, keeper = build(Contract(owed={1: owed}, count=1))
    node.balance = balance
    keeper.look()
    assert list_names(node) == names


def test_a_claim_and_an_unpaid_round_do_not_make_each_other_be_tried_anew() -> None:
    contract = Contract({1: (Step.CLOSE, 4)}, owed={1: 10**17}, count=1, reserve=0)
    node, keeper = build(contract, retry_seconds=30)
    keeper.look()
    before = dict(keeper.attempts.entries)
    node.now = float(STATE_INTERVALS)
    keeper.look()
    assert list_names(node) == ["claim"]
    assert keeper.attempts.entries == before


# -- what is kept back -----------------------------------------------------------------------------
@pytest.mark.parametrize("step", [Step.START, Step.CLOSE, Step.ABORT])
@pytest.mark.parametrize(("spare", "sent"), [(-1, 0), (0, 1)])
def test_steps_of_tasks_leave_what_check_ins_need(step: Step, spare: int, sent: int) -> None:
    node, keeper = build(Contract({1: (step, 4)}, owed={1: 1}, count=1), min_balance_wei=10**17)
    node.balance = 10**17 + GAS * (2 * GWEI + TIP) + spare
    keeper.look()
    assert len(node.sent) == sent
    assert keeper.count_left() == (1 - sent if step is Step.CLOSE else 0)


def test_an_account_that_is_given_coins_closes_at_once_and_a_trickle_gains_no_trials() -> None:
    contract = Contract({1: (Step.CLOSE, 4)}, owed={1: 1}, count=1)
    node, keeper = build(contract, min_balance_wei=10**17)
    node.balance = 10**17
    keeper.look()
    tried = len(node.tried)
    node.balance += 10**16
    keeper.look()
    assert (len(node.tried), node.sent) == (tried, [])
    node.balance += 1
    keeper.look()
    assert len(node.tried) > tried
    assert len(node.sent) == 1


def test_a_check_in_that_nobody_could_pay_is_sent_as_soon_as_the_account_has_coins() -> None:
    node, _ = build(Contract())
    wallet = Wallet(node, SECRETS.account)  # type: ignore[arg-type]
    attempts = Attempts(node, wallet.address)  # type: ignore[arg-type]

    def check_in() -> SteelyardError | None:
        return attempts.run("check in", lambda: wallet.submit(STAKING_ADDRESS, CHECK_IN), {})

    node.balance, node.refusal = 0, InvalidTransaction("tx_balance", "0 wei")
    assert check_in() is not None
    node.refusal = None
    assert check_in() is None
    assert node.sent == [], "it is not time, and the account has nothing still"
    node.balance = 1
    assert check_in() is None
    assert len(node.sent) == 1


def test_an_account_that_has_paid_meanwhile_is_richer_by_what_it_is_given_then() -> None:
    """What was pending counted as spent already, so it was as poor before."""
    node, _ = build(Contract())
    wallet = Wallet(node, SECRETS.account)  # type: ignore[arg-type]
    attempts = Attempts(node, wallet.address)  # type: ignore[arg-type]

    def check_in() -> SteelyardError | None:
        return attempts.run("check in", lambda: wallet.submit(STAKING_ADDRESS, CHECK_IN), {})

    node.balance, node.refusal = 1_000, InvalidTransaction("tx_balance", "1000 wei, all spent")
    assert check_in() is not None
    node.refusal = None
    # It pays for something else first, and is given coins after that.
    for balance, sent in ((500, 0), (550, 0), (551, 1)):
        node.balance = balance
        assert check_in() is None
        assert len(node.sent) == sent


def test_coins_that_come_while_a_check_in_fails_for_want_of_them_are_not_overlooked() -> None:
    node, _ = build(Contract())
    wallet = Wallet(node, SECRETS.account)  # type: ignore[arg-type]
    attempts, tried = Attempts(node, wallet.address), []  # type: ignore[arg-type]

    def fail() -> Hash:
        node.balance = 1_000  # of another thread
        tried.append(node.balance)
        raise InvalidTransaction("tx_balance", "0 wei")

    node.balance = 0
    for _ in range(2):
        attempts.run("check in", fail, {})
    assert len(tried) == 2


@pytest.mark.parametrize("config", [{}, {"close_unpaid": True}])
def test_what_is_pending_counts_as_spent(config: dict[str, bool]) -> None:
    contract = Contract({task: (Step.CLOSE, 1) for task in (1, 2, 3)}, count=3)
    node, keeper = build(contract, **config)
    node.balance = 10**17 + 5 * GAS * (2 * GWEI + TIP) // 2
    keeper.look()
    assert len(node.sent) == 2


def test_a_check_in_may_spend_what_is_kept_back() -> None:
    node, _ = build(Contract(), min_balance_wei=10**17)
    node.balance = 10**16
    Wallet(node, SECRETS.account).submit(STAKING_ADDRESS, CHECK_IN)  # type: ignore[arg-type]
    assert [one.to for one in node.sent] == [STAKING_ADDRESS]


def test_no_number_of_tasks_takes_the_turn_of_a_check_in() -> None:
    node, _ = build(Contract({task: (Step.CLOSE, 1) for task in range(1, 9)}, count=8))
    wallet = Wallet(node, SECRETS.account)  # type: ignore[arg-type]
    keeper = Keeper(node, wallet, lambda: order.append(len(node.sent)))  # type: ignore[arg-type]
    order: list[int] = []
    keeper.work()
    assert (order, len(node.sent)) == ([0], 4)


def test_what_waits_for_a_block_is_not_sent_again() -> None:
    """Only one of two closes of a round is paid."""
    node, keeper = build(Contract({1: (Step.CLOSE, 4)}, count=1), retry_seconds=30)
    keeper.look()
    node.now = 31.0
    keeper.look()
    assert len(node.sent) == 1
    node.now, node.final = 92.0, 1
    keeper.look()
    assert len(node.sent) == 2


# -- a base fee that leaves us behind --------------------------------------------------------------
@pytest.fixture
def stuck() -> NodeDouble:
    """Four closes are pending, and the base fee is above their caps."""
    contract = Contract({task: (Step.CLOSE, 1) for task in range(1, 5)}, count=4)
    node, keeper = build(contract)
    keeper.look()
    node.base_fee = 3 * GWEI
    return node


def test_a_check_in_takes_the_place_of_what_the_base_fee_left_behind(stuck: NodeDouble) -> None:
    wallet, old = Wallet(stuck, SECRETS.account), stuck.sent[0]  # type: ignore[arg-type]
    assert not wallet.is_busy()
    wallet.submit(STAKING_ADDRESS, CHECK_IN)
    new = stuck.sent[-1]
    assert new.nonce == old.nonce == 0
    assert 100 * new.max_fee >= 110 * old.max_fee
    assert 100 * new.max_priority_fee >= 110 * old.max_priority_fee


def test_what_is_final_is_not_replaced(stuck: NodeDouble) -> None:
    """It leaves the pool a moment after its block has become the head."""
    stuck.keeps_final, stuck.final = True, 4
    Wallet(stuck, SECRETS.account).submit(STAKING_ADDRESS, CHECK_IN)  # type: ignore[arg-type]
    assert stuck.sent[-1].nonce == 4


def test_what_the_base_fee_still_lets_in_keeps_its_place(stuck: NodeDouble) -> None:
    stuck.base_fee = 2 * GWEI
    wallet = Wallet(stuck, SECRETS.account)  # type: ignore[arg-type]
    assert wallet.is_busy()
    wallet.submit(STAKING_ADDRESS, CHECK_IN)
    assert stuck.sent[-1].nonce == 4


def test_a_check_in_behind_what_is_stuck_is_sent_again_in_its_place() -> None:
    """A close whose cap ends with its reserve keeps back what was sent with a higher one."""
    contract = Contract({1: (Step.CLOSE, 1)}, owed={1: 1}, count=1)
    contract.reserve = GAS_USED * GWEI * 5 // 4
    node, keeper = build(contract)
    keeper.look()
    wallet = Wallet(node, SECRETS.account)  # type: ignore[arg-type]
    wallet.submit(STAKING_ADDRESS, CHECK_IN)
    with pytest.raises(SteelyardError, match="waits for a block already"):
        wallet.submit(STAKING_ADDRESS, CHECK_IN)
    node.base_fee = 3 * GWEI // 2
    keeper.look()
    wallet.submit(STAKING_ADDRESS, CHECK_IN)
    assert [(one.nonce, one.data == CHECK_IN) for one in node.sent] == [
        (0, False), (1, True), (0, True)
    ]  # fmt: skip


def test_a_step_behind_what_is_stuck_is_not_sent_twice() -> None:
    """Its double would be refused at our cost; nobody pays for that."""
    contract = Contract({1: (Step.CLOSE, 1)}, owed={1: 1}, count=1)
    contract.reserve = GAS_USED * GWEI * 5 // 4
    node, keeper = build(contract)
    keeper.look()
    contract.due, contract.count, contract.reserve = {2: (Step.CLOSE, 1)}, 2, 10**18
    keeper.look()
    node.base_fee, node.now = 3 * GWEI // 2, 31.0
    keeper.look()
    assert [one.nonce for one in node.sent] == [0, 1]


def test_what_leaves_the_pool_before_others_is_made_up_for_first() -> None:
    """Nothing moves over a nonce that is missing, whatever the base fee left behind after it."""
    node, keeper = build(Contract({task: (Step.CLOSE, 1) for task in (1, 2)}, count=2))
    keeper.look()
    del node.sent[0]
    node.base_fee = 3 * GWEI
    Wallet(node, SECRETS.account).submit(STAKING_ADDRESS, CHECK_IN)  # type: ignore[arg-type]
    assert [one.nonce for one in node.sent] == [1, 0]


# -- pauses ----------------------------------------------------------------------------------------
def test_a_round_that_gas_was_too_dear_for_is_closed_when_it_is_cheaper() -> None:
    """Not up to an hour later: else a dear block now and then would stop every close."""
    contract = Contract({1: (Step.CLOSE, 4)}, count=1, reserve=PAID_GAS * GWEI)
    node, keeper = build(contract)
    node.base_fee = 2 * GWEI
    for minute in range(90):
        node.now = 60.0 * minute
        keeper.look()
    tried = len(node.tried)
    node.base_fee = 2 * GWEI * 9 // 10
    keeper.look()
    assert len(node.tried) == tried, "hardly cheaper"
    node.base_fee -= 1
    keeper.look()
    keeper.look()
    assert len(node.tried) == tried + 1, "cheaper, and not cheap enough"
    node.base_fee = GWEI
    keeper.look()
    assert list_names(node) == ["close"]


def test_where_gas_costs_nothing_a_refusal_is_not_repeated_at_each_look() -> None:
    contract = Contract({1: (Step.CLOSE, 4)}, count=1)
    node, keeper = build(contract)
    node.base_fee, node.balance = 0, 10**17 - 1
    for _ in range(3):
        keeper.look()
    assert node.tried == ["close"]
    assert keeper.count_left() == 1


def test_a_look_ends_when_trials_take_long_and_the_next_one_goes_on() -> None:
    contract = Contract({task: (Step.CLOSE, 1) for task in range(1, 9)}, count=8, reserve=0)
    node, keeper = build(contract, close_unpaid=True, max_in_flight=8)
    real = node.call

    def take_a_second(request: CallRequest) -> CallResult:
        node.now += request.sender == SECRETS.address
        return real(request)

    node.call = take_a_second  # type: ignore[method-assign]
    looks = []
    for _ in range(4):
        keeper.look()
        looks.append(len(node.sent))
    assert looks == [2, 4, 6, 8]

"""The keeper does what is due once, waits, pays sanely and never floods."""

import pytest
from eth_abi.abi import decode, encode
from eth_utils.abi import function_signature_to_4byte_selector

from steelyard.chain.errors import InvalidTransaction, SteelyardError
from steelyard.chain.params import ROUNDS_ADDRESS
from steelyard.node.keeper import LOOKS_AT_ONCE, STATE_INTERVALS
from steelyard.node.steps import Due, Step, encode_step
from steelyard.node.wallet import describe_revert

from .keeper_kit import (
    FINISHED,
    GAS,
    GWEI,
    PAUSED,
    SELECTORS,
    TIP,
    Contract,
    build,
)
from .world import SECRETS


def test_a_due_round_is_closed_once_and_again_only_after_a_wait() -> None:
    node, keeper = build(Contract({1: (Step.CLOSE, 4)}, count=1), retry_seconds=30)
    for _ in range(3):
        keeper.look()
    assert len(node.sent) == 1
    sent = node.sent[0]
    assert sent.to == ROUNDS_ADDRESS
    assert sent.sender == SECRETS.address
    assert decode(["uint256", "uint256"], sent.data[4:]) == (1, 4)
    assert SELECTORS[sent.data[:4]] == "close"
    node.now, node.final = 31.0, 1
    keeper.look()
    assert len(node.sent) == 2


def test_the_next_page_of_a_round_is_sent_as_soon_as_the_last_one_is_in_a_block() -> None:
    contract = Contract({1: (Step.CLOSE, 4)}, count=1)
    node, keeper = build(contract, retry_seconds=30)
    for page in range(5):
        contract.pages[1], node.final = page, len(node.sent)
        keeper.look()
        keeper.look()
        assert len(node.sent) == page + 1, "one call for each page, without a wait"
    assert {decode(["uint256", "uint256"], one.data[4:]) for one in node.sent} == {(1, 4)}
    assert list(keeper.attempts.entries) == [Due(1, Step.CLOSE, 4, 4)]


def test_a_round_that_was_extended_is_closed_when_it_is_due_again() -> None:
    contract = Contract({1: (Step.CLOSE, 4)}, count=1)
    node, keeper = build(contract, retry_seconds=30)
    keeper.look()
    contract.extensions, node.final = 1, 1
    keeper.look()
    assert len(node.sent) == 2


def test_a_round_that_is_being_closed_does_not_wait_for_its_turn_among_many() -> None:
    contract = Contract({3: (Step.CLOSE, 1)}, pages={3: 1}, count=10 * LOOKS_AT_ONCE)
    node, keeper = build(contract)
    keeper.look()
    for page in range(2, 6):
        contract.pages[3], node.final = page, len(node.sent)
        keeper.look()
        assert len(node.sent) == page
    contract.due.clear()
    keeper.look()
    looks = len(contract.looks)
    keeper.look()
    assert 3 not in contract.looks[looks:]


@pytest.mark.parametrize("split", [(3, 2, 9), (0, 2, 9), (1, 1, 9)])
def test_a_page_is_sent_with_gas_for_any_page(split: tuple[int, int, int]) -> None:
    contract = Contract({1: (Step.CLOSE, 4), 2: (Step.CLOSE, 4)}, splits={1: split}, count=2)
    node, keeper = build(contract)
    keeper.look()
    assert [one.gas for one in node.sent] == [9_600_000, GAS], "12 million in a block"


def test_gas_for_any_page_is_no_more_than_the_account_can_pay() -> None:
    due = {task: (Step.CLOSE, 4) for task in (1, 2, 3)}
    contract = Contract(due, splits=dict.fromkeys(due, (3, 2, 9)), count=3)
    node, keeper = build(contract, min_balance_wei=0)
    node.balance = 13_000_000 * (2 * GWEI + TIP) + 5
    keeper.look()
    assert [one.gas for one in node.sent] == [9_600_000, 3_400_000, GAS]


@pytest.mark.parametrize("step", [Step.START, Step.ABORT])
def test_lobbies_are_started_and_aborted(step: Step) -> None:
    node, keeper = build(Contract({7: (step, 0)}, count=7))
    keeper.look()
    assert SELECTORS[node.sent[0].data[:4]] == step.name.lower()
    assert decode(["uint256"], node.sent[0].data[4:]) == (7,)


def test_nothing_due_means_nothing_sent() -> None:
    node, keeper = build(Contract(count=3))
    keeper.look()
    assert node.sent == []


def test_fees_have_a_margin_and_a_cap() -> None:
    node, keeper = build(Contract({1: (Step.START, 0)}, count=1), max_fee_wei=3 * GWEI)
    keeper.look()
    assert node.sent[0].max_fee == 2 * GWEI + TIP
    assert node.sent[0].gas == GAS
    node, keeper = build(Contract({1: (Step.START, 0)}, count=1), max_fee_wei=3 * GWEI)
    node.base_fee = 2 * GWEI
    keeper.look()
    assert node.sent[0].max_fee == 3 * GWEI


def test_a_base_fee_above_the_cap_waits() -> None:
    node, keeper = build(Contract({1: (Step.START, 0)}, count=1), max_fee_wei=GWEI)
    keeper.look()
    assert node.sent == []
    node.base_fee, node.now = GWEI // 2, 31.0
    keeper.look()
    assert len(node.sent) == 1


def test_a_step_that_would_revert_is_not_sent_and_left_alone_longer_each_time() -> None:
    node, keeper = build(Contract({1: (Step.CLOSE, 1)}, count=1, reverts=True), retry_seconds=10)
    tries = []
    for second in range(200):
        node.now = float(second)
        before = len(keeper.attempts.entries)
        keeper.look()
        tries.append(keeper.attempts.entries[Due(1, Step.CLOSE, 1)].failures)
        assert len(keeper.attempts.entries) >= before
    assert node.sent == []
    assert tries[0] == 1
    assert tries[-1] == 5  # at 0, 10, 30, 70 and 150 seconds


def test_a_refused_transaction_is_not_repeated_at_once() -> None:
    node, keeper = build(Contract({1: (Step.CLOSE, 1)}, count=1))
    node.refusal = InvalidTransaction("tx_balance", "no money")
    keeper.look()
    keeper.look()
    assert keeper.attempts.entries[Due(1, Step.CLOSE, 1)].failures == 1


def test_few_transactions_are_pending_at_once() -> None:
    contract = Contract({task: (Step.CLOSE, 1) for task in range(1, 11)}, count=10)
    node, keeper = build(contract, max_in_flight=4)
    keeper.look()
    assert len(node.sent) == 4
    node.final = 4
    keeper.look()
    assert len(node.sent) == 8


def test_many_tasks_are_looked_at_in_turn() -> None:
    contract = Contract(count=100)
    _, keeper = build(contract)
    for _ in range(4):
        keeper.look()
    assert len(contract.looks) == LOOKS_AT_ONCE * 4
    assert set(contract.looks) == set(range(1, 101))


def test_whether_a_running_task_is_over_is_asked_now_and_then() -> None:
    contract = Contract(count=1)
    node, keeper = build(contract)
    keeper.look()
    contract.states[1], contract.owed[1] = FINISHED, 10**15
    node.now += STATE_INTERVALS - 1
    keeper.look()
    assert node.sent == []
    node.now += 1
    keeper.look()
    assert [SELECTORS[one.data[:4]] for one in node.sent] == ["claim"]


def test_a_finished_task_is_claimed_from_and_then_forgotten() -> None:
    contract = Contract(count=1, states={1: FINISHED}, owed={1: 10**15})
    node, keeper = build(contract)
    keeper.look()
    keeper.look()
    assert [SELECTORS[one.data[:4]] for one in node.sent] == ["claim"]
    contract.owed[1] = 0
    node.now += STATE_INTERVALS
    keeper.look()
    looks = len(contract.looks)
    keeper.look()
    assert len(contract.looks) == looks
    assert keeper.attempts.entries == {}


def test_a_paused_task_is_looked_at_again() -> None:
    contract = Contract(count=1, states={1: PAUSED})
    node, keeper = build(contract)
    keeper.look()
    contract.due[1] = (Step.CLOSE, 2)
    keeper.look()
    assert len(node.sent) == 1


def test_keepers_behind_the_leader_wait() -> None:
    node, keeper = build(Contract({1: (Step.CLOSE, 1)}, count=1))
    node.rank = 2
    keeper.look()
    assert node.sent == []
    node.now = 10.0
    keeper.look()
    assert len(node.sent) == 1


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "out of gas"),
        (
            function_signature_to_4byte_selector("Error(string)") + b"\xff" * 64,
            "a malformed reason",
        ),
        (
            function_signature_to_4byte_selector("Error(string)") + encode(["string"], ["why"]),
            "why",
        ),
    ],
)
def test_reverts_are_told(data: bytes, text: str) -> None:
    assert describe_revert(data, "out of gas") == text


def test_a_step_names_task_and_round() -> None:
    assert encode_step(Due(1, Step.ABORT, 9))[4:] == encode(["uint256"], [1])


def test_a_look_that_fails_does_not_make_the_keeper_forget_the_task() -> None:
    contract = Contract({1: (Step.CLOSE, 4)}, count=1)
    node, keeper = build(contract)
    contract.failing = 1
    with pytest.raises(SteelyardError):
        keeper.look()
    contract.failing = 0
    keeper.look()
    assert len(node.sent) == 1


def test_a_closing_task_whose_look_fails_does_not_starve_the_others() -> None:
    contract = Contract({1: (Step.CLOSE, 4)}, pages={1: 1}, count=2)
    node, keeper = build(contract)
    keeper.work()
    contract.failing, contract.due[2] = 1, (Step.CLOSE, 7)
    for _ in range(3):
        keeper.work()
    assert [decode(["uint256"] * 2, one.data[4:]) for one in node.sent] == [(1, 4), (2, 7)]
    contract.failing, contract.pages[1], node.final = 0, 2, 2
    keeper.work()
    assert decode(["uint256"] * 2, node.sent[-1].data[4:]) == (1, 4)


# -- near the head ---------------------------------------------------------------------------------
@pytest.mark.parametrize(("age_seconds", "sent"), [(-3.0, 1), (45.0, 1), (45.5, 0), (1e9, 0)])
def test_nothing_is_sent_while_the_head_is_older_than_a_chain_in_motion_lets_it_be(
    age_seconds: float, sent: int
) -> None:
    node, keeper = build(Contract({1: (Step.CLOSE, 4)}, count=1))
    node.age_seconds = age_seconds
    keeper.work()
    assert len(node.sent) == sent


@pytest.mark.parametrize(
    ("ahead_seconds", "sent"), [(1e6, 1), (1e6 - 45.0, 1), (1e6 - 45.5, 0), (-1e6, 0), (None, 0)]
)
def test_a_clock_ahead_of_the_others_does_not_make_the_head_old(
    ahead_seconds: float | None, sent: int
) -> None:
    node, keeper = build(Contract({1: (Step.CLOSE, 4)}, count=1))
    node.age_seconds, node.ahead_seconds = 1e6, ahead_seconds
    keeper.work()
    assert len(node.sent) == sent


@pytest.mark.parametrize("is_validator", [True, False])
def test_at_genesis_only_who_may_vote_has_duties(is_validator: bool) -> None:
    node, keeper = build(Contract({1: (Step.CLOSE, 4)}, count=1))
    node.height, node.age_seconds, node.is_validator = 0, 1e9, is_validator
    keeper.work()
    assert len(node.sent) == is_validator

"""Validators and reporters that are contracts: paid once, called while they are, or refusing.

What Tasks pays such wallets is in test_money.py.
"""

import ape
import pytest
from stage import COIN, LEAVING, OTHER_PAIR, UNBONDING_SECONDS, get_key, get_proof


@pytest.fixture
def wallet(wallet_type, stage):
    return stage.stranger.deploy(wallet_type)


def run_as(stage, wallet, call, value=0):
    return wallet.execute(stage.staking, call, value=value, sender=stage.stranger)


def prepare(stage, wallet, call, *, refuses=False):
    wallet.prepare(stage.staking, call, refuses, sender=stage.stranger)


@pytest.fixture
def leaving(stage, wallet):
    """The wallet is a validator whose stake of ten coins may be withdrawn."""
    staking = stage.begin(10, 20)
    deposit = staking.deposit.encode_input(
        get_key(5), get_proof(5), b"\5" * 32, "127.0.0.1:9005", wallet.address
    )
    run_as(stage, wallet, deposit, value=10 * COIN)
    run_as(stage, wallet, staking.request_exit.encode_input())
    stage.advance_seconds(UNBONDING_SECONDS)
    stage.advance_epochs(2)
    return staking


@pytest.mark.parametrize("name", ["withdraw", "total_stake", "get_validators"])
def test_a_wallet_that_calls_back_withdraws_once_and_reads_nothing_meanwhile(
    stage, wallet, leaving, name
):
    prepare(stage, wallet, getattr(leaving, name).encode_input())
    run_as(stage, wallet, leaving.withdraw.encode_input())
    assert not wallet.reentered()
    assert (wallet.balance, leaving.balance, leaving.total_stake()) == (
        10 * COIN,
        30 * COIN,
        30 * COIN,
    )
    stage.stranger.transfer(wallet, 1)
    assert wallet.reentered() == (name != "withdraw"), "what can be read outside a payment"


def test_a_wallet_that_refuses_its_stake_keeps_it_here(stage, wallet, leaving):
    prepare(stage, wallet, b"", refuses=True)
    with ape.reverts():
        run_as(stage, wallet, leaving.withdraw.encode_input())
    assert leaving.get_standing(wallet).state == LEAVING
    prepare(stage, wallet, b"")
    run_as(stage, wallet, leaving.withdraw.encode_input())
    assert wallet.balance == 10 * COIN


def test_a_reporter_that_calls_back_reports_nothing_else_meanwhile(stage, wallet):
    """Though its second report would be taken, as it is afterwards."""
    staking = stage.begin(10, 20, 30)
    prepare(stage, wallet, staking.report.encode_input(*stage.make_evidence([1], [1], OTHER_PAIR)))
    run_as(stage, wallet, staking.report.encode_input(*stage.make_evidence([1], [1])))
    assert not wallet.reentered()
    assert (stage.stake_of(1), wallet.balance) == (18 * COIN, 2 * COIN // 10)
    assert staking.total_stake() == staking.balance == 58 * COIN
    stage.stranger.transfer(wallet, 1)
    assert wallet.reentered()
    assert stage.stake_of(1) == 16.2 * COIN


def test_a_reporter_that_refuses_its_reward_slashes_nobody(stage, wallet):
    staking = stage.begin(10, 20, 30)
    evidence = stage.make_evidence([1], [1])
    prepare(stage, wallet, b"", refuses=True)
    with ape.reverts():
        run_as(stage, wallet, staking.report.encode_input(*evidence))
    assert (stage.stake_of(1), staking.balance) == (20 * COIN, 60 * COIN)
    staking.report(*evidence, sender=stage.stranger)
    assert stage.stake_of(1) == 18 * COIN

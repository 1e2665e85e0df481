"""Validators: what genesis writes and must not, who gets a place, who may leave, and when."""

import ape
import pytest
from stage import (
    ACTIVE,
    CHECK_IN,
    COIN,
    EPOCH_BLOCKS,
    JAIL_EPOCHS,
    JAILED,
    LEAVING,
    MIN_STAKE,
    NOBODY,
    NOTHING,
    UNBONDING_SECONDS,
    UNJAIL,
    WAITING,
    get_key,
    get_proof,
)


# -- genesis ---------------------------------------------------------------------------------------
def test_genesis_validators_are_listed_in_order(stage, accounts):
    validators = [stage.make_validator(number) for number in range(3)]
    staking = stage.deploy(validators)
    assert [tuple(listed) for listed in staking.get_validators()] == validators
    assert tuple(staking.get_validator(accounts[1])) == validators[1]
    assert staking.is_validator(accounts[2])
    assert not staking.is_validator(accounts[3])
    assert staking.total_stake() == staking.active_stake() == staking.balance == 60 * COIN
    rules = (staking.MIN_STAKE(), staking.UNBONDING_SECONDS(), staking.EPOCH_BLOCKS())
    assert rules == (MIN_STAKE, UNBONDING_SECONDS, EPOCH_BLOCKS)


def make_crowd(stage, count=64, stake=10 * COIN):
    """Validators without keys that sign."""
    return [
        stage.make_validator(
            0,
            account="0x" + (1000 + number).to_bytes(20, "big").hex(),
            bls_key=b"\x80" + number.to_bytes(47, "big"),
            network_key=b"\x80" + number.to_bytes(31, "big"),
            stake=stake + number,
        )
        for number in range(count)
    ]


def test_each_registration_is_logged(stage):
    staking = stage.begin(10, 20)
    receipt = staking.creation_metadata.receipt
    assert [event.stake for event in receipt.decode_logs(staking.Registered)] == [
        10 * COIN,
        20 * COIN,
    ]
    assert len(receipt.decode_logs(staking.Entered)) == 2


def test_an_unknown_validator_cannot_be_read(stage, accounts):
    staking = stage.begin(10)
    with ape.reverts("staking: not a validator"):
        staking.get_validator(accounts[5])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"account": NOBODY}, "no account"),
        ({"fee_recipient": NOBODY}, "no fee recipient"),
        ({"bls_key": b"\1" * 47}, "BLS key must have 48 bytes"),
        ({"stake": 0}, "no stake"),
        ({"endpoint": ""}, "no endpoint"),
    ],
)
def test_an_incomplete_validator_is_refused(stage, changes, reason):
    with ape.reverts(f"staking: {reason}"):
        stage.deploy([stage.make_validator(0, **changes)])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"account": 0}, "already a validator"),
        ({"bls_key": get_key(0)}, "BLS key already registered"),
        ({"network_key": bytes(32)}, "network key already registered"),
    ],
)
def test_account_and_keys_register_once(stage, accounts, changes, reason):
    if "account" in changes:
        changes = {"account": accounts[0].address}
    with ape.reverts(f"staking: {reason}"):
        stage.deploy([stage.make_validator(0), stage.make_validator(1, **changes)])


def test_a_chain_needs_validators_a_minimum_and_epochs(stage):
    with ape.reverts("staking: no validators"):
        stage.deploy([])
    with ape.reverts("staking: no minimum stake"):
        stage.deploy([stage.make_validator(0)], min_stake=0)
    with ape.reverts("staking: no epoch length"):
        stage.deploy([stage.make_validator(0)], epoch_blocks=0)


@pytest.mark.parametrize("difference", [-1, 1])
def test_stakes_must_be_backed_exactly(stage, difference):
    with ape.reverts("staking: value differs from the stakes"):
        stage.deploy([stage.make_validator(0)], value=10 * COIN + difference)


# -- joining ---------------------------------------------------------------------------------------
def test_whoever_deposits_is_in_the_next_set(stage, accounts):
    staking = stage.begin(10)
    receipt = stage.deposit(1, value=7 * COIN)
    assert stage.list_active() == [0, 1]
    validator = staking.get_validator(accounts[1])
    assert validator.bls_key == get_key(1)
    assert (validator.stake, validator.endpoint) == (7 * COIN, "127.0.0.1:9001")
    assert staking.total_stake() == staking.balance == 17 * COIN
    assert [event.account for event in receipt.decode_logs(staking.Registered)] == [accounts[1]]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"value": MIN_STAKE - 1}, "staking: stake below the minimum"),
        ({"proof": get_proof(0)}, "evidence: bls_possession"),
        ({"bls_key": get_key(1)[:47]}, "evidence: bls_key"),
        ({"bls_key": b"\xc0" + bytes(47)}, "evidence: bls_key"),
        ({"bls_key": get_key(0), "proof": get_proof(0)}, "staking: BLS key already registered"),
        ({"network_key": bytes(32)}, "staking: network key already registered"),
        ({"endpoint": ""}, "staking: no endpoint"),
        ({"fee_recipient": NOBODY}, "staking: no fee recipient"),
    ],
)
def test_a_bad_deposit_is_refused(stage, changes, reason):
    stage.begin(10)
    with ape.reverts(reason):
        stage.deposit(1, **changes)
    assert stage.list_active() == [0]


def test_an_account_deposits_once(stage):
    stage.begin(10)
    with ape.reverts("staking: already a validator"):
        stage.deposit(0, network_key=b"\7" * 32)


@pytest.mark.usefixtures("no_evidence_precompile")
def test_a_deposit_needs_the_precompile(stage):
    stage.begin(10)
    with ape.reverts("staking: no answer from the precompile"):
        stage.deposit(1)


def test_stake_can_be_added_until_one_leaves(stage, accounts):
    staking = stage.begin(10, 10)
    staking.add_stake(sender=accounts[0], value=COIN)
    assert stage.stake_of(0) == 11 * COIN
    assert staking.total_stake() == staking.active_stake() == staking.balance == 21 * COIN
    with ape.reverts("staking: no stake"):
        staking.add_stake(sender=accounts[0])
    with ape.reverts("staking: not a validator"):
        staking.add_stake(sender=accounts[5], value=COIN)
    staking.request_exit(sender=accounts[0])
    with ape.reverts("staking: already leaving"):
        staking.add_stake(sender=accounts[0], value=COIN)


def test_a_validator_can_move(stage, accounts):
    staking = stage.begin(10, 10)
    staking.set_endpoint("[::1]:9", sender=accounts[0])
    staking.set_network_key(b"\7" * 32, sender=accounts[0])
    staking.set_fee_recipient(accounts[9], sender=accounts[0])
    validator = staking.get_validator(accounts[0])
    assert (validator.endpoint, validator.network_key) == ("[::1]:9", b"\7" * 32)
    assert validator.fee_recipient == accounts[9]
    stage.advance_epochs(1)
    staking.set_network_key(bytes(32), sender=accounts[0])  # its first one
    with ape.reverts("staking: network key already registered"):
        staking.set_network_key(b"\7" * 32, sender=accounts[1])  # nobody's now, but once another's


def test_a_network_key_changes_once_an_epoch(stage, accounts):
    staking = stage.begin(10, 10)
    stage.advance_epochs(1)
    staking.set_network_key(b"\7" * 32, sender=accounts[0])
    with ape.reverts("staking: network key already changed"):
        staking.set_network_key(b"\5" * 32, sender=accounts[0])
    stage.advance_epochs(1)
    staking.set_network_key(b"\6" * 32, sender=accounts[0])


def test_a_move_is_checked_as_a_registration_is(stage, accounts):
    staking = stage.begin(10, 10)
    with ape.reverts("staking: no endpoint"):
        staking.set_endpoint("", sender=accounts[0])
    with ape.reverts("staking: network key already registered"):
        staking.set_network_key(b"\1" * 32, sender=accounts[0])
    with ape.reverts("staking: no fee recipient"):
        staking.set_fee_recipient(NOBODY, sender=accounts[0])
    staking.request_exit(sender=accounts[1])
    for call, argument in (
        (staking.set_endpoint, "a:1"),
        (staking.set_network_key, b"\7" * 32),
        (staking.set_fee_recipient, accounts[5]),
    ):
        with ape.reverts("staking: not a validator"):
            call(argument, sender=accounts[5])
        with ape.reverts("staking: already leaving"):
            call(argument, sender=accounts[1])


def test_in_a_full_set_a_higher_stake_takes_the_lowest_place(stage, accounts):
    crowd = make_crowd(stage, 63)
    staking = stage.deploy([stage.make_validator(1, stake=9 * COIN), *crowd])
    assert len(staking.get_validators()) == 64
    with ape.reverts("staking: the set is full"):
        stage.deposit(2, value=9 * COIN)
    receipt = stage.deposit(2, value=9 * COIN + 1)
    assert [event.account for event in receipt.decode_logs(staking.Displaced)] == [accounts[1]]
    assert (stage.state_of(1), stage.state_of(2)) == (WAITING, ACTIVE)
    assert staking.get_validators()[0].account == crowd[-1][0]  # the last one moved there
    assert staking.get_validators()[-1].account == accounts[2].address

    with ape.reverts("staking: the set is full"):
        staking.enter(sender=accounts[1])
    staking.add_stake(sender=accounts[1], value=2)
    assert staking.active_stake() == staking.balance - stage.stake_of(1)
    staking.enter(sender=accounts[1])
    assert (stage.state_of(1), stage.state_of(2)) == (ACTIVE, WAITING)
    assert staking.active_stake() == staking.balance - stage.stake_of(2)
    staking.request_exit(sender=accounts[1])
    staking.enter(sender=accounts[2])
    assert len(staking.get_validators()) == 64


def test_only_the_displaced_enter(stage, accounts):
    staking = stage.begin(10)
    for account in (accounts[0], accounts[5]):
        with ape.reverts("staking: not waiting"):
            staking.enter(sender=account)


# -- liveness --------------------------------------------------------------------------------------
def test_a_validator_checks_in_once_an_epoch(stage, accounts):
    staking = stage.begin(10, 10)
    stage.advance_epochs(1)
    assert staking.next_duty(accounts[0]) == CHECK_IN
    receipt = staking.check_in(sender=accounts[0])
    (event,) = receipt.decode_logs(staking.CheckedIn)
    assert event.epoch == staking.epoch() == staking.get_standing(accounts[0]).checked_in
    assert staking.next_duty(accounts[0]) == NOTHING
    with ape.reverts("staking: already checked in"):
        staking.check_in(sender=accounts[0])
    with ape.reverts("staking: not active"):
        staking.check_in(sender=accounts[5])
    assert staking.next_duty(accounts[5]) == NOTHING
    stage.advance_epochs(1)
    staking.check_in(sender=accounts[0])


def test_the_absent_are_jailed_by_anybody_and_lose_no_stake(stage, accounts):
    staking = stage.begin(30, 30, 10)
    for _ in range(JAIL_EPOCHS):
        stage.advance_epochs(1)
        staking.check_in(sender=accounts[0])
        staking.check_in(sender=accounts[1])
        with ape.reverts("staking: not absent"):
            staking.jail(accounts[2], sender=stage.stranger)
    assert staking.list_absent() == []
    stage.advance_epochs(1)
    assert staking.list_absent() == [accounts[2]]
    receipt = staking.jail(accounts[2], sender=stage.stranger)
    assert [event.account for event in receipt.decode_logs(staking.Jailed)] == [accounts[2]]
    assert stage.list_active() == [0, 1]
    assert (stage.state_of(2), stage.stake_of(2)) == (JAILED, 10 * COIN)
    assert staking.active_stake() == 60 * COIN
    with ape.reverts("staking: not active"):
        staking.jail(accounts[2], sender=stage.stranger)
    with ape.reverts("staking: not active"):
        staking.check_in(sender=accounts[2])


def test_nobody_is_jailed_while_a_third_of_the_stake_is_missing(stage, accounts):
    staking = stage.begin(20, 10)
    stage.advance_epochs(JAIL_EPOCHS + 1)
    with ape.reverts("staking: too few checked in"):
        staking.jail(accounts[1], sender=accounts[0])
    staking.check_in(sender=accounts[0])  # exactly two thirds
    assert staking.list_absent() == []
    with ape.reverts("staking: too few checked in"):
        staking.jail(accounts[1], sender=accounts[0])
    staking.add_stake(sender=accounts[0], value=1)
    assert staking.list_absent() == [accounts[1]]
    staking.jail(accounts[1], sender=accounts[0])


def test_a_newcomer_has_time_to_check_in(stage, accounts):
    staking = stage.begin(30)
    stage.advance_epochs(JAIL_EPOCHS - 1)
    stage.deposit(1)
    joined = staking.epoch()
    assert staking.get_standing(accounts[1]).checked_in == joined + 1
    stage.advance_epochs(JAIL_EPOCHS + 1)
    staking.check_in(sender=accounts[0])
    assert staking.list_absent() == []
    stage.advance_epochs(1)
    assert staking.list_absent() == [accounts[1]]


def test_the_jailed_return_in_a_later_epoch(stage, accounts):
    staking = stage.begin(30, 10)
    stage.advance_epochs(JAIL_EPOCHS + 1)
    staking.check_in(sender=accounts[0])
    staking.jail(accounts[1], sender=stage.stranger)
    assert staking.next_duty(accounts[1]) == NOTHING
    with ape.reverts("staking: still jailed"):
        staking.unjail(sender=accounts[1])
    with ape.reverts("staking: not jailed"):
        staking.unjail(sender=accounts[0])
    stage.advance_epochs(1)
    assert staking.next_duty(accounts[1]) == UNJAIL
    staking.unjail(sender=accounts[1])
    assert stage.list_active() == [0, 1]
    assert staking.list_absent() == []
    assert staking.active_stake() == 40 * COIN


def test_the_jailed_return_to_a_full_set_with_a_higher_stake_only(stage, accounts):
    staking = stage.deploy(
        [
            stage.make_validator(1, stake=COIN),
            stage.make_validator(2, stake=10_000 * COIN),
            *make_crowd(stage, 62),
        ]
    )
    stage.advance_epochs(JAIL_EPOCHS + 1)
    staking.check_in(sender=accounts[2])
    staking.jail(accounts[1], sender=stage.stranger)
    stage.deposit(3)
    stage.advance_epochs(1)
    with ape.reverts("staking: the set is full"):
        staking.unjail(sender=accounts[1])
    staking.add_stake(sender=accounts[1], value=9 * COIN)
    with ape.reverts("staking: the set is full"):
        staking.unjail(sender=accounts[1])
    staking.add_stake(sender=accounts[1], value=1)
    receipt = staking.unjail(sender=accounts[1])
    (event,) = receipt.decode_logs(staking.Displaced)
    assert event.account == make_crowd(stage, 1)[0][0], "the first of two with ten coins"
    assert stage.state_of(3) == stage.state_of(1) == ACTIVE


def test_a_check_in_is_a_witness_in_its_epoch_and_the_next(stage, accounts):
    staking = stage.begin(30, 10)
    stage.advance_epochs(JAIL_EPOCHS - 1)
    staking.check_in(sender=accounts[0])
    stage.advance_epochs(2)
    assert staking.list_absent() == []
    with ape.reverts("staking: too few checked in"):
        staking.jail(accounts[1], sender=stage.stranger)
    staking.check_in(sender=accounts[0])
    stage.advance_epochs(1)
    assert staking.list_absent() == [accounts[1]]


# -- leaving ---------------------------------------------------------------------------------------
def test_a_stake_is_paid_out_after_the_unbonding_time_and_the_epoch(stage, accounts):
    staking = stage.begin(10, 20)
    receipt = staking.request_exit(sender=accounts[1])
    (event,) = receipt.decode_logs(staking.Left)
    assert event.unlocks_at == receipt.timestamp + UNBONDING_SECONDS
    assert (stage.list_active(), stage.state_of(1)) == ([0], LEAVING)
    with ape.reverts("staking: still unbonding"):
        staking.withdraw(sender=accounts[1])
    stage.advance_seconds(UNBONDING_SECONDS)
    for _ in range(2):
        with ape.reverts("staking: still in the set"):
            staking.withdraw(sender=accounts[1])
        stage.advance_epochs(1)
    before = accounts[1].balance
    receipt = staking.withdraw(sender=accounts[1])
    assert accounts[1].balance - before == 20 * COIN - receipt.total_fees_paid
    assert staking.total_stake() == staking.balance == 10 * COIN
    with ape.reverts("staking: not leaving"):
        staking.withdraw(sender=accounts[1])


def test_a_stake_is_withdrawn_from_the_second_on_when_it_unlocks(stage, accounts, chain):
    staking = stage.begin(10, 20)
    unlocks_at = staking.request_exit(sender=accounts[1]).timestamp + UNBONDING_SECONDS
    stage.advance_epochs(2)
    chain.pending_timestamp = unlocks_at - 1
    with ape.reverts("staking: still unbonding"):
        staking.withdraw(sender=accounts[1])
    assert chain.blocks.head.timestamp == unlocks_at - 1
    chain.pending_timestamp = unlocks_at
    assert staking.withdraw(sender=accounts[1]).timestamp == unlocks_at


def test_the_last_validator_stays(stage, accounts):
    staking = stage.begin(10, 20)
    staking.request_exit(sender=accounts[0])
    with ape.reverts("staking: the last validator"):
        staking.request_exit(sender=accounts[1])
    with ape.reverts("staking: already leaving"):
        staking.request_exit(sender=accounts[0])
    with ape.reverts("staking: not a validator"):
        staking.request_exit(sender=accounts[5])
    with ape.reverts("staking: not leaving"):
        staking.withdraw(sender=accounts[1])


def test_the_jailed_and_the_displaced_may_leave_too(stage, accounts):
    staking = stage.begin(30, 10)
    stage.advance_epochs(JAIL_EPOCHS + 1)
    staking.check_in(sender=accounts[0])
    staking.jail(accounts[1], sender=stage.stranger)
    staking.request_exit(sender=accounts[1])
    assert stage.state_of(1) == LEAVING
    assert staking.active_stake() == 30 * COIN


def test_whoever_left_returns_with_its_own_key_only(stage, accounts):
    staking = stage.begin(10, 20)
    staking.request_exit(sender=accounts[1])
    stage.advance_seconds(UNBONDING_SECONDS)
    stage.advance_epochs(2)
    staking.withdraw(sender=accounts[1])
    with ape.reverts("staking: account has another BLS key"):
        stage.deposit(1, bls_key=get_key(7), proof=get_proof(7))
    with ape.reverts("staking: BLS key already registered"):
        stage.deposit(2, bls_key=get_key(1), proof=get_proof(1))
    stage.deposit(1)
    assert stage.list_active() == [0, 1]

"""The validator registry: what genesis writes, and what it must not."""

import ape
import pytest


def make_validator(accounts, index, **changes):
    validator = {
        "account": accounts[index].address,
        "bls_key": bytes([index + 1]) * 48,
        "network_key": bytes([index]) * 32,
        "endpoint": f"127.0.0.1:{9000 + index}",
        "fee_recipient": accounts[index + 1].address,
        "stake": 10**18 * (index + 1),
    } | changes
    return tuple(validator.values())


def deploy(compiled, accounts, validators, value=None):
    value = sum(validator[5] for validator in validators) if value is None else value
    return accounts[0].deploy(compiled.Staking, validators, value=value)


def test_genesis_validators_are_listed_in_order(compiled, accounts):
    validators = [make_validator(accounts, index) for index in range(3)]
    staking = deploy(compiled, accounts, validators)
    assert [tuple(listed) for listed in staking.get_validators()] == validators
    assert tuple(staking.get_validator(accounts[1])) == validators[1]
    assert staking.is_validator(accounts[2])
    assert not staking.is_validator(accounts[3])
    assert staking.total_stake() == staking.balance == 6 * 10**18


def test_a_full_set_can_be_deployed(compiled, accounts):
    validators = [
        make_validator(
            accounts,
            0,
            account="0x" + (1000 + index).to_bytes(20, "big").hex(),
            bls_key=index.to_bytes(48, "big"),
            stake=1,
        )
        for index in range(64)
    ]
    assert len(deploy(compiled, accounts, validators).get_validators()) == 64


def test_each_registration_is_logged(compiled, accounts):
    staking = deploy(compiled, accounts, [make_validator(accounts, index) for index in range(2)])
    events = staking.creation_metadata.receipt.decode_logs(staking.Registered)
    assert [event.stake for event in events] == [10**18, 2 * 10**18]


def test_an_unknown_validator_cannot_be_read(compiled, accounts):
    staking = deploy(compiled, accounts, [make_validator(accounts, 0)])
    with ape.reverts("staking: not a validator"):
        staking.get_validator(accounts[5])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"account": "0x" + "00" * 20}, "no account"),
        ({"fee_recipient": "0x" + "00" * 20}, "no fee recipient"),
        ({"bls_key": b"\1" * 47}, "BLS key must have 48 bytes"),
        ({"stake": 0}, "no stake"),
    ],
)
def test_an_incomplete_validator_is_refused(compiled, accounts, changes, reason):
    with ape.reverts(f"staking: {reason}"):
        deploy(compiled, accounts, [make_validator(accounts, 0, **changes)])


def test_an_account_registers_once(compiled, accounts):
    first = make_validator(accounts, 0)
    again = make_validator(accounts, 0, bls_key=b"\7" * 48)
    with ape.reverts("staking: already a validator"):
        deploy(compiled, accounts, [first, again])


def test_a_key_registers_once(compiled, accounts):
    first = make_validator(accounts, 0)
    again = make_validator(accounts, 1, bls_key=first[1])
    with ape.reverts("staking: BLS key already registered"):
        deploy(compiled, accounts, [first, again])


def test_a_chain_without_validators_is_refused(compiled, accounts):
    with ape.reverts("staking: no validators"):
        deploy(compiled, accounts, [])


@pytest.mark.parametrize("difference", [-1, 1])
def test_stakes_must_be_backed_exactly(compiled, accounts, difference):
    with ape.reverts("staking: value differs from the stakes"):
        deploy(compiled, accounts, [make_validator(accounts, 0)], value=10**18 + difference)

"""Evidence: who is slashed, how much, once, and where the money goes."""

import random
from contextlib import suppress
from dataclasses import replace

import ape
import pytest
from ape.exceptions import ContractLogicError
from stage import (
    ACTIVE,
    COIN,
    EPOCH_BLOCKS,
    LEAVING,
    NOBODY,
    OTHER_PAIR,
    PAIR,
    UNBONDING_SECONDS,
    A,
    B,
    get_key,
    say,
)

from steelyard.chain.consensus.votes import Kind
from steelyard.chain.evidence import encode_statement


@pytest.mark.parametrize(
    ("pair", "offence"),
    [
        (PAIR, 1),
        ((say(Kind.FINALIZE, A), say(Kind.FINALIZE, B)), 2),
        (OTHER_PAIR, 3),
        ((say(Kind.FINALIZE, A), say(Kind.NOTARIZE, B)), 4),
    ],
)
def test_two_votes_cost_a_tenth_and_the_place(stage, accounts, pair, offence):
    staking = stage.begin(10, 20, 30, 40)
    receipt = stage.report([1], [1], pair)
    (event,) = receipt.decode_logs(staking.Slashed)
    assert (event.account, event.offence, event.amount) == (accounts[1], offence, 2 * COIN)
    assert (event.epoch, event.view) == (pair[0].epoch, pair[0].view)
    assert stage.list_active() == [0, 3, 2]
    assert (stage.state_of(1), stage.stake_of(1)) == (LEAVING, 18 * COIN)
    assert staking.get_penalty(accounts[1], pair[0].epoch, pair[0].view) == 10
    assert staking.total_stake() == staking.balance == 98 * COIN
    assert staking.active_stake() == 80 * COIN


def test_the_reporter_gets_a_tenth_and_the_rest_is_burned(stage, accounts, chain):
    staking = stage.begin(10, 20, 30)
    before, burned = stage.stranger.balance, chain.provider.get_balance(NOBODY)
    receipt = stage.report([1], [1])
    (event,) = receipt.decode_logs(staking.Reported)
    assert (event.reporter, event.slashed) == (stage.stranger, 2 * COIN)
    assert event.reward == 2 * COIN // 10
    assert stage.stranger.balance == before + event.reward - receipt.total_fees_paid
    assert chain.provider.get_balance(NOBODY) == burned + 2 * COIN - event.reward


def test_a_view_is_paid_for_once_and_another_view_again(stage):
    stage.begin(10, 20, 30)
    stage.report([1], [1])
    with ape.reverts("staking: nothing to slash"):
        stage.report([1], [1])
    with ape.reverts("staking: nothing to slash"):
        stage.report([1], [1], (say(Kind.FINALIZE, A), say(Kind.FINALIZE, B)))
    stage.report([1], [1], OTHER_PAIR)
    assert stage.stake_of(1) == 16.2 * COIN


def test_only_those_who_signed_both_are_slashed(stage, accounts):
    staking = stage.begin(40, 40, 40, 20)
    receipt = stage.report([0, 1, 3], [3, 2])
    assert [event.account for event in receipt.decode_logs(staking.Slashed)] == [accounts[3]]
    assert stage.stake_of(3) == 18 * COIN
    assert stage.list_active() == [0, 1, 2]
    with ape.reverts("staking: nothing to slash"):
        stage.report([0, 1], [2])


def test_conflicting_certificates_cost_everything(stage, accounts):
    staking = stage.begin(20, 20, 10, 10)
    receipt = stage.report([0, 1, 3], [1, 0, 2])
    assert [event.amount for event in receipt.decode_logs(staking.Slashed)] == [20 * COIN] * 2
    assert stage.list_active() == [2, 3]
    assert staking.total_stake() == staking.active_stake() == staking.balance == 20 * COIN
    with ape.reverts("staking: not a validator"):
        stage.stake_of(0)
    assert [staking.banned(account) for account in accounts[:3]] == [True, True, False]
    with ape.reverts("staking: banned"):
        stage.deposit(0)


@pytest.mark.parametrize("signers", [([0, 1], [1, 0, 2]), ([0, 1, 2], [1, 0])])
def test_two_thirds_are_no_certificate_however_many_signed(stage, signers):
    staking = stage.begin(20, 20, 20)
    stage.report(*signers)
    assert (stage.stake_of(0), stage.stake_of(1)) == (18 * COIN, 18 * COIN)
    assert staking.balance == 56 * COIN


def test_one_signer_is_no_certificate_whatever_its_stake(stage):
    stage.begin(90, 10)
    stage.report([0], [0, 1])
    assert stage.stake_of(0) == 81 * COIN


def begin_epoch(stage, *stakes):
    """Validators with these stakes, and two notarizations of an epoch whose stake is noted."""
    staking = stage.begin(*stakes)
    stage.advance_epochs(1)
    staking.check_in(sender=stage.accounts[len(stakes) - 1])
    return staking, tuple(replace(statement, epoch=staking.epoch()) for statement in PAIR)


def test_reporting_oneself_first_does_not_soften_the_blow(stage, accounts):
    staking, pair = begin_epoch(stage, 20, 20, 10, 10)
    stage.report([0], [0], pair, sender=accounts[0])
    assert stage.stake_of(0) == 18 * COIN
    stage.report([0, 1, 3], [0, 1, 2], pair)
    penalties = {staking.get_penalty(accounts[place], pair[0].epoch, 5) for place in (0, 1)}
    assert (penalties, staking.balance) == ({100}, 20 * COIN)
    with ape.reverts("staking: nothing to slash"):
        stage.report([0, 1, 3], [0, 1, 2], pair)


def test_stake_that_comes_after_an_attack_does_not_dilute_it(stage):
    """Whoever attacked can bring in money until the report, and would get that back."""
    staking, pair = begin_epoch(stage, 20, 20, 10, 10)
    stage.report([0], [0], tuple(replace(statement, view=6) for statement in pair))
    stage.deposit(5, value=100 * COIN)
    staking.add_stake(sender=stage.accounts[3], value=20 * COIN)
    stage.report([0, 1, 2], [0, 1, 3], pair)
    assert staking.total_stake() == 140 * COIN


@pytest.mark.parametrize("blocks", [0, EPOCH_BLOCKS - 2])
def test_the_first_stake_that_an_epoch_brings_does_not_dilute_it_either(stage, chain, blocks):
    """In its second block, or in the last one of the epoch before, which comes after its set."""
    staking = stage.begin(20, 20, 10, 10)
    stage.advance_epochs(1)
    chain.mine(blocks)
    receipt = staking.add_stake(sender=stage.accounts[3], value=100 * COIN)
    assert (receipt.block_number % EPOCH_BLOCKS == 0) == (blocks > 0)
    epoch = receipt.block_number // EPOCH_BLOCKS
    pair = tuple(replace(statement, epoch=epoch) for statement in PAIR)
    stage.report([0, 1, 2], [0, 1, 3], pair)
    assert staking.total_stake() == 120 * COIN


def test_a_stake_counts_to_a_certificate_as_it_was_before_it_was_slashed(stage):
    """Of 60 coins 41 are a certificate; without the tenth of 21 that is lost they would not be."""
    staking, pair = begin_epoch(stage, 21, 20, 10, 9)
    stage.report([0], [0], pair)
    stage.report([0, 1], [1, 0], pair)
    assert staking.total_stake() == 19 * COIN


def test_two_strangers_do_not_make_a_certificate_of_an_accident(stage):
    stage.begin(40, 20, 20)
    for number in (5, 6):
        stage.deposit(number, value=5 * COIN)
    stage.report([0, 5], [0, 6])
    assert stage.stake_of(0) == 36 * COIN


def test_a_rich_stranger_makes_no_certificate_of_a_small_accident(stage):
    staking, pair = begin_epoch(stage, 10, 20, 20)
    for number in (5, 6):
        stage.deposit(number, value=500 * COIN)
    stage.report([0, 5], [0, 6], pair)
    assert (stage.stake_of(0), staking.balance) == (9 * COIN, 1049 * COIN)


def test_a_leaving_stake_is_slashed_and_waits_no_longer(stage, accounts):
    staking = stage.begin(10, 20, 30)
    staking.request_exit(sender=accounts[1])
    unlocks_at = staking.get_standing(accounts[1]).unlocks_at
    stage.advance_seconds(UNBONDING_SECONDS // 2)
    stage.report([1], [1])
    assert stage.stake_of(1) == 18 * COIN
    assert staking.get_standing(accounts[1]).unlocks_at == unlocks_at
    stage.advance_seconds(UNBONDING_SECONDS)
    stage.advance_epochs(2)
    before = accounts[1].balance
    receipt = staking.withdraw(sender=accounts[1])
    assert accounts[1].balance == before + 18 * COIN - receipt.total_fees_paid
    with ape.reverts("staking: nothing to slash"):
        stage.report([1], [1], OTHER_PAIR)
    with ape.reverts("staking: banned"):
        stage.deposit(1)


def test_even_the_last_validator_is_slashed(stage):
    staking = stage.begin(10)
    stage.report([0], [0])
    assert staking.get_validators() == []
    assert staking.active_stake() == 0
    stage.deposit(1)
    assert stage.list_active() == [1]


def test_a_few_wei_are_slashed_too(stage):
    stage.deploy([stage.make_validator(0, stake=1), stage.make_validator(1)])
    stage.report([0], [0])
    assert stage.list_active() == [1]


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ((PAIR[0], PAIR[0]), "evidence: evidence_conflict"),
        ((say(Kind.NOTARIZE, A), say(Kind.NULLIFY)), "evidence: evidence_conflict"),
        ((say(Kind.NOTARIZE, A), say(Kind.NOTARIZE, B, view=6)), "evidence: evidence_conflict"),
        ((say(Kind.NOTARIZE, A), say(Kind.NOTARIZE, B, epoch=2)), "evidence: evidence_conflict"),
    ],
)
def test_what_one_may_sign_costs_nothing(stage, pair, reason):
    stage.begin(10, 20)
    with ape.reverts(reason):
        stage.report([1], [1], pair)
    assert stage.stake_of(1) == 20 * COIN


def test_forged_evidence_costs_nothing(stage, accounts):
    staking = stage.begin(10, 20)
    first, second = (encode_statement(statement) for statement in PAIR)
    true = [stage.sign(statement, [1]) for statement in PAIR]
    elsewhere = [stage.sign(statement, [1], domain=b"\x08" * 32) for statement in PAIR]
    signers, innocent = [accounts[1]], [accounts[0]]
    for arguments, reason in (
        ((first, signers, true[1], second, signers, true[0]), "evidence_signature"),
        ((first, signers, elsewhere[0], second, signers, true[1]), "evidence_signature"),
        ((first, innocent, true[0], second, innocent, true[1]), "evidence_signature"),
        ((first, [*signers, *innocent], true[0], second, signers, true[1]), "evidence_signature"),
        ((first, signers, b"", second, signers, true[1]), "evidence_signature"),
        ((first, signers * 2, true[0], second, signers, true[1]), "evidence_repeated"),
        ((first, [], true[0], second, signers, true[1]), "evidence_count"),
        ((first[1:], signers, true[0], second, signers, true[1]), "vote_malformed"),
    ):
        with ape.reverts(f"evidence: {reason}"):
            staking.report(*arguments, sender=stage.stranger)
    with ape.reverts("staking: unknown signer"):
        stage.report([5], [1])
    assert staking.balance == 30 * COIN


@pytest.mark.usefixtures("no_evidence_precompile")
def test_a_report_needs_the_precompile(stage):
    stage.begin(10, 20)
    with ape.reverts("staking: no answer from the precompile"):
        stage.report([1], [1])
    assert stage.stake_of(1) == 20 * COIN


def test_exactly_a_third_of_the_stake_on_both_sides_is_an_attack(stage):
    """Strangers make up the rest of the certificates; whoever signed both had a third."""
    staking, pair = begin_epoch(stage, 10, 10, 10)
    for number in (5, 6):
        stage.deposit(number, value=500 * COIN)
    stage.report([0, 5], [0, 6], pair)
    assert staking.balance == 1020 * COIN


def test_sixty_four_signers_fit_in_a_block(stage, accounts):
    """The worst report there is, with the gas that it takes."""
    signers = ["0x" + (1000 + number).to_bytes(20, "big").hex() for number in range(64)]
    staking = stage.deploy(
        [
            stage.make_validator(
                number % 18,
                account=signers[number],
                bls_key=get_key(number),
                network_key=bytes([number]) * 32,
                stake=10 * COIN,
            )
            for number in range(64)
        ]
    )
    arguments = []
    for statement in PAIR:
        arguments += [encode_statement(statement), signers, stage.sign(statement, range(64))]
    receipt = staking.report(*arguments, sender=stage.stranger)
    assert receipt.gas_used < 12_000_000
    assert staking.balance == 0


def choose_call(stage, dice, number):
    """Any call by account `number`, most of them refused."""
    staking, account = stage.staking, stage.accounts[number]
    pair = tuple(replace(statement, view=dice.randrange(1, 4)) for statement in PAIR)
    pair = (pair[0], replace(pair[1], view=pair[0].view))
    return dice.choice(
        [
            lambda: stage.deposit(number, value=dice.choice([4, 5, 10]) * COIN),
            lambda: staking.add_stake(sender=account, value=COIN),
            lambda: staking.request_exit(sender=account),
            lambda: staking.withdraw(sender=account),
            lambda: staking.check_in(sender=account),
            lambda: staking.jail(stage.accounts[dice.randrange(6)], sender=account),
            lambda: staking.unjail(sender=account),
            lambda: stage.report([number], [number], pair),
            lambda: stage.report([number, (number + 1) % 6], [(number + 1) % 6, number], pair),
            lambda: stage.advance_seconds(UNBONDING_SECONDS // 2),
            lambda: stage.advance_epochs(dice.choice([1, 3, 9])),
        ]
    )


@pytest.mark.parametrize("seed", range(2))
def test_the_balance_is_the_sum_of_the_stakes_whatever_happens(stage, seed):
    dice = random.Random(seed)
    staking = stage.begin(10, 20, 30, 40)
    done = 0
    for turn in range(60):
        with suppress(ContractLogicError):
            choose_call(stage, dice, dice.randrange(6))()
            done += 1
        if turn % 6:
            continue
        known = [number for number in range(6) if stage.state_of(number)]
        assert staking.balance == staking.total_stake() == sum(map(stage.stake_of, known))
        active = stage.list_active()
        assert staking.active_stake() == sum(map(stage.stake_of, active))
        assert sorted(active) == [number for number in known if stage.state_of(number) == ACTIVE]
    assert done >= 12

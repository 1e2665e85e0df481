"""Failed quorums, bonds, and what a silence costs."""

import ape
import pytest
from world import (
    ABORTED,
    BASE_STAKE,
    BOND,
    CLOSE,
    CLOSE_TIMEOUT_SECONDS,
    COMMIT_SECONDS,
    EXTEND,
    OPEN,
    REFUND,
    REVEAL_SECONDS,
    SKIPPED,
    compute_stake,
)

NOBODY = "0x" + "00" * 20
FLOOR, ONE = 2**17, 2**20


# -- extend, refund --------------------------------------------------------------------------------


def test_missing_commitments_extend_the_commit_period(world):
    task = world.start(count=3, on_failed_quorum=EXTEND, max_extensions=1)
    world.commit(task, 1, world.hospitals[0])
    receipt = world.skip_round(task, 1)
    (event,) = receipt.decode_logs(world.rounds.RoundExtended)
    current = world.rounds.get_round(task, 1)
    assert (current.state, current.extensions) == (OPEN, 1)
    assert current.commit_ends == receipt.timestamp + COMMIT_SECONDS == event.commit_ends
    assert current.reveal_ends == current.commit_ends + REVEAL_SECONDS == event.reveal_ends
    assert world.rounds.is_bound(task, world.hospitals[0])
    for value, hospital in enumerate(world.hospitals[1:3], start=2):
        world.commit(task, 1, hospital, value=value)
    for hospital in world.hospitals[:3]:
        world.reveal(task, 1, hospital)
    world.close(task, 1)
    assert world.tasks.claimable(task, world.hospitals[0]) > 0


def test_missing_reveals_extend_the_reveal_period_only(world):
    task = world.start(count=2, on_failed_quorum=EXTEND, max_extensions=1)
    world.commit_all(task, 1, world.hospitals[:2])
    commit_ends = world.rounds.get_round(task, 1).commit_ends
    world.reveal(task, 1, world.hospitals[0])
    world.advance_to(world.rounds.get_round(task, 1).reveal_ends)
    receipt = world.close(task, 1)
    current = world.rounds.get_round(task, 1)
    assert current.commit_ends == commit_ends
    assert current.reveal_ends == receipt.timestamp + REVEAL_SECONDS
    assert world.tasks.get_participant(task, world.hospitals[1]).stake == compute_stake(20)
    world.reveal(task, 1, world.hospitals[1])
    world.close(task, 1)
    assert world.tasks.get_task(task).round == 2


def test_after_its_last_extension_a_round_is_skipped(world):
    task = world.start(count=2, on_failed_quorum=EXTEND, max_extensions=2)
    for _ in range(2):
        world.skip_round(task, 1)
        assert world.tasks.get_task(task).round == 1
    assert tuple(world.tasks.next_action(task)) != (CLOSE, 1)
    world.skip_round(task, 1)
    assert world.rounds.get_round(task, 1).state == SKIPPED
    assert world.tasks.get_task(task).round == 2


def test_extensions_are_paid_from_the_same_reserve(world):
    reserve, bounty = 10**15, 10**14
    task = world.start(
        count=2,
        rounds=1,
        on_failed_quorum=EXTEND,
        max_extensions=1,
        close_reserve=reserve,
        close_bounty=bounty,
    )
    (first,) = world.skip_round(task, 1).decode_logs(world.tasks.ClosePaid)
    (second,) = world.skip_round(task, 1).decode_logs(world.tasks.ClosePaid)
    assert 0 < first.fee <= reserve - bounty
    assert bounty <= second.fee
    assert first.fee + second.fee <= reserve
    assert world.tasks.get_account(task).fees == first.fee + second.fee


def test_extensions_do_not_let_an_update_expire_before_the_close(world):
    task = world.start(count=2, on_failed_quorum=EXTEND, max_extensions=3)
    world.commit_all(task, 1, world.hospitals[:2])
    sealed = world.sealed[task, 1, world.hospitals[0].address]
    data = world.shelf.blobs[sealed.name]
    left = world.rounds.get_round(task, 1).reveal_ends - world.now
    needed = left + 3 * REVEAL_SECONDS + CLOSE_TIMEOUT_SECONDS
    world.declare(data, retention_seconds=needed - 1)
    with ape.reverts("rounds: update expires too soon"):
        world.reveal(task, 1, world.hospitals[0])
    world.declare(data, retention_seconds=needed)
    world.reveal(task, 1, world.hospitals[0])


def test_no_extension_lets_the_base_of_who_is_bound_expire(world):
    task = world.start(count=2, on_failed_quorum=EXTEND, max_extensions=2)
    left = world.rounds.get_round(task, 1).reveal_ends - world.now
    needed = left + 2 * (COMMIT_SECONDS + REVEAL_SECONDS) + CLOSE_TIMEOUT_SECONDS
    world.declare(world.make_model(), retention_seconds=needed - 1)
    with ape.reverts("rounds: model expires too soon"):
        world.commit(task, 1, world.hospitals[0])
    world.declare(world.make_model(), retention_seconds=needed)
    world.commit(task, 1, world.hospitals[0])


def test_a_failed_quorum_may_end_the_task_and_give_the_money_back(world):
    task = world.start(count=2, on_failed_quorum=REFUND)
    world.skip_round(task, 1)
    assert world.tasks.get_task(task).state == ABORTED
    world.tasks.leave(task, sender=world.hospitals[0])
    world.tasks.refund(task, sender=world.publisher)
    account = world.tasks.get_account(task)
    assert account.deposited == account.refunded + account.fees


def test_nothing_is_revealed_while_commitments_are_missing(world):
    """Or somebody could copy it and commit when the round is extended."""
    task = world.start(count=3, on_failed_quorum=EXTEND, max_extensions=1)
    world.commit(task, 1, world.hospitals[0])
    world.advance_to(world.rounds.get_round(task, 1).commit_ends)
    with ape.reverts("rounds: too few commitments"):
        world.reveal(task, 1, world.hospitals[0])


def test_too_few_who_are_drawn_do_not_open_the_reveals(world):
    task = world.start(count=3)
    world.tasks.leave(task, sender=world.hospitals[1])
    world.tasks.leave(task, sender=world.hospitals[2])
    ends = world.rounds.get_round(task, 1).commit_ends
    world.commit(task, 1, world.hospitals[0])
    assert world.rounds.get_round(task, 1).commit_ends == ends


# -- work that was shown in vain -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weighting", "weights"),
    [
        (0, (5, 20, 30)),
        (1, (compute_stake(10), compute_stake(20), compute_stake(30))),
        (2, (1, 1, 1)),
    ],
)
def test_who_revealed_is_paid_when_the_silence_of_others_spoils_a_round(world, weighting, weights):
    """The silent count as high as they may claim: 20 and 30 samples, not the 5 committed to."""
    task = world.start(count=3, min_clients=3, rounds=3, weighting=weighting)
    pool = world.rounds.get_round(task, 1).pool
    reputation = world.tasks.get_reputation(world.publisher, world.hospitals[0])
    world.commit_all(task, 1, world.hospitals[:3], samples=5)
    world.reveal(task, 1, world.hospitals[0])
    world.advance_to(world.rounds.get_round(task, 1).reveal_ends)
    receipt = world.close(task, 1)
    assert world.rounds.get_round(task, 1).state == SKIPPED
    share = weights[0] * ONE // sum(weights)
    (event,) = receipt.decode_logs(world.rounds.Compensated)
    assert (event.clients, event.shares) == ([world.hospitals[0]], [share])
    assert world.tasks.claimable(task, world.hospitals[0]) == pool * share >> 20
    assert world.tasks.claimable(task, world.hospitals[1]) == 0
    (settled,) = receipt.decode_logs(world.tasks.Settled)
    assert (settled.outcome, settled.paid, settled.platform) == (2, pool * share >> 20, 0)
    assert settled.burned == 2 * BOND
    assert world.tasks.get_reputation(world.publisher, world.hospitals[0]) == reputation
    rest = world.tasks.get_account(task).reward_left
    assert rest == world.tasks.get_task(task).parameters.reward - settled.paid
    assert world.rounds.get_round(task, 2).pool == rest // 2


def test_stake_that_comes_after_the_commitment_of_a_silent_one_dilutes_nobody(world):
    task = world.start(count=2, rounds=3, weighting=1)
    world.commit_all(task, 1, world.hospitals[:2])
    world.reveal(task, 1, world.hospitals[0])
    world.advance_to(world.rounds.get_round(task, 1).reveal_ends)
    world.tasks.add_stake(task, value=10**18, sender=world.hospitals[1])
    (event,) = world.close(task, 1).decode_logs(world.rounds.Compensated)
    assert event.shares == [compute_stake(10) * ONE // (compute_stake(10) + compute_stake(20))]


@pytest.mark.parametrize(("cap", "share"), [(ONE // 2 + 1, ONE // 2 + 1), (1, ONE // 2)])
def test_nobody_is_compensated_above_the_cap(world, cap, share):
    """The cap is lifted to the least feasible one, as in an aggregation."""
    task = world.start(count=2, rounds=3, rule=(0, 0, cap, 4096, 0))
    world.commit(task, 1, world.hospitals[0], value=1)
    world.commit(task, 1, world.hospitals[1], samples=20, value=2)
    world.reveal(task, 1, world.hospitals[1])
    world.advance_to(world.rounds.get_round(task, 1).reveal_ends)
    (event,) = world.close(task, 1).decode_logs(world.rounds.Compensated)
    assert event.shares == [share]
    assert share < 20 * ONE // 30


def test_a_refunded_round_pays_who_revealed_too(world):
    task = world.start(
        count=2, on_failed_quorum=REFUND, platform=world.stranger.address, platform_share=ONE // 8
    )
    world.fail_round(task, 1, world.hospitals[:2])
    assert world.tasks.get_task(task).state == ABORTED
    assert world.tasks.claimable(task, world.hospitals[1]) > 0
    assert world.tasks.claimable(task, world.stranger) == 0


def test_a_round_that_nobody_revealed_in_pays_nobody(world):
    task = world.start(count=2)
    world.commit_all(task, 1, world.hospitals[:2])
    world.advance_to(world.rounds.get_round(task, 1).reveal_ends)
    receipt = world.close(task, 1)
    assert len(receipt.decode_logs(world.rounds.Compensated)) == 0
    assert world.tasks.get_account(task).paid == 0


# -- bonds -----------------------------------------------------------------------------------------


def test_a_silence_burns_the_bond_and_halves_the_reputation(world):
    task = world.start(count=3, rounds=3)
    silent = world.hospitals[0]
    world.play_round(task, 1, world.hospitals[:3])
    reputation = world.tasks.get_reputation(world.publisher, silent)
    held, burned = world.tasks.balance, world.chain.provider.get_balance(NOBODY)
    receipt = world.fail_round(task, 2, world.hospitals[:3])
    (event,) = receipt.decode_logs(world.tasks.Slashed)
    assert (event.participant, event.amount, event.sponsored) == (silent, BOND, 0)
    (settled,) = receipt.decode_logs(world.tasks.Settled)
    assert (settled.outcome, settled.burned) == (1, BOND)
    assert world.tasks.get_participant(task, silent).stake == compute_stake(10) - BOND
    assert world.tasks.balance == held - BOND
    assert world.chain.provider.get_balance(NOBODY) == burned + BOND
    assert world.tasks.get_account(task).burned == BOND
    assert reputation > FLOOR
    assert world.tasks.get_reputation(world.publisher, silent) == max(FLOOR, reputation // 2)


def test_a_silence_of_all_is_burned_in_a_skipped_round_too(world):
    task = world.start(count=2)
    world.commit_all(task, 1, world.hospitals[:2])
    world.advance_to(world.rounds.get_round(task, 1).reveal_ends)
    world.close(task, 1)
    assert world.tasks.get_account(task).burned == 2 * BOND
    assert world.rounds.get_round(task, 1).state == SKIPPED


def test_who_could_not_reveal_is_not_silent(world):
    task = world.start(count=2)
    reputation = world.tasks.get_reputation(world.publisher, world.hospitals[0])
    world.commit(task, 1, world.hospitals[0])
    world.skip_round(task, 1)
    assert world.tasks.get_participant(task, world.hospitals[0]).stake == compute_stake(10)
    assert world.tasks.get_reputation(world.publisher, world.hospitals[0]) == reputation


def test_not_committing_costs_nothing(world):
    task = world.start(count=3)
    world.commit_all(task, 1, world.hospitals[:2])
    world.advance_to(world.rounds.get_round(task, 1).commit_ends)
    for hospital in world.hospitals[:2]:
        world.reveal(task, 1, hospital)
    world.close(task, 1)
    assert world.tasks.get_participant(task, world.hospitals[2]).stake == compute_stake(30)


@pytest.mark.parametrize(("own", "sponsored_loss"), [(BOND, 0), (BOND // 4, BOND - BOND // 4)])
def test_a_bond_is_taken_from_the_own_stake_first(world, own, sponsored_loss):
    task = world.publish(max_clients=2, min_clients=1)
    silent, sponsored = world.hospitals[0], compute_stake(10)
    world.tasks.sponsor(task, silent, 0, value=sponsored, sender=world.publisher)
    world.join(task, silent, value=own)
    world.join(task, world.hospitals[1])
    world.fail_round(task, 1, world.hospitals[:2])
    participant = world.tasks.get_participant(task, silent)
    assert participant.stake == own + sponsored - BOND
    assert participant.sponsored == sponsored - sponsored_loss
    before = silent.balance
    receipt = world.tasks.leave(task, sender=silent)
    assert silent.balance == before + max(0, own - BOND) - receipt.total_fees_paid
    assert world.tasks.claimable(task, world.publisher) == sponsored - sponsored_loss


def test_who_has_less_than_the_base_stake_left_commits_no_more(world):
    task = world.start(count=2, rounds=3, min_clients=1, bond=BASE_STAKE, stake_per_sample=0)
    silent = world.hospitals[0]
    stake = world.tasks.get_participant(task, silent).stake
    world.fail_round(task, 1, world.hospitals[:2])
    assert world.tasks.get_participant(task, silent).stake == stake - BASE_STAKE
    assert 0 < stake - BASE_STAKE < BASE_STAKE
    with ape.reverts("rounds: stake below the base stake"):
        world.rounds.commit(task, 2, 2, b"\1" * 32, sender=silent)


def test_a_bond_as_large_as_the_base_stake_is_lost_once(world):
    task = world.start(
        count=3,
        rounds=3,
        min_clients=1,
        max_staleness=1,
        bond=BASE_STAKE,
        base_stake=BASE_STAKE,
        stake_per_sample=1,
    )
    silent = world.hospitals[0]
    world.fail_round(task, 1, world.hospitals[:3])
    world.tasks.leave(task, sender=silent)
    assert world.tasks.get_account(task).burned == BASE_STAKE

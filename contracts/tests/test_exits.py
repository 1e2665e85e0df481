"""Nobody is locked in: leaving, aborting, claiming and refunding, once each."""

import ape
from world import (
    ABORTED,
    CLOSE_TIMEOUT_SECONDS,
    COMMIT_SECONDS,
    PARAMETERS,
    REVEAL_SECONDS,
    compute_stake,
)


def test_leaving_a_lobby_returns_the_stake(world):
    task = world.publish()
    hospital = world.hospitals[0]
    world.join(task, hospital)
    before = hospital.balance
    receipt = world.tasks.leave(task, sender=hospital)
    assert hospital.balance == before + compute_stake(10) - receipt.total_fees_paid
    assert world.tasks.get_participants(task) == []
    assert world.tasks.get_participant(task, hospital).stake == 0


def test_leaving_twice_is_refused(world):
    task = world.publish()
    world.join(task, world.hospitals[0])
    world.tasks.leave(task, sender=world.hospitals[0])
    with ape.reverts("tasks: not a participant"):
        world.tasks.leave(task, sender=world.hospitals[0])


def test_a_stranger_has_nothing_to_leave(world):
    task = world.start()
    with ape.reverts("tasks: not a participant"):
        world.tasks.leave(task, sender=world.stranger)


def test_whoever_left_may_join_again(world):
    task = world.publish()
    world.join(task, world.hospitals[0])
    world.tasks.leave(task, sender=world.hospitals[0])
    world.join(task, world.hospitals[0])
    assert world.tasks.get_participants(task) == [world.hospitals[0]]


def test_nobody_is_moved_by_a_departure(world):
    task = world.publish(max_clients=4)
    for hospital in world.hospitals[:3]:
        world.join(task, hospital)
    world.tasks.leave(task, sender=world.hospitals[0])
    assert world.tasks.get_participants(task) == world.hospitals[1:3]
    assert world.tasks.get_seat(task, world.hospitals[2]).seat == 2
    assert world.tasks.get_seats(task) == (0b110, 0b110)


def test_leaving_while_bound_by_a_commitment_is_refused(world):
    task = world.start()
    world.commit(task, 1, world.hospitals[0])
    with ape.reverts("rounds: bound by a commitment"):
        world.tasks.leave(task, sender=world.hospitals[0])


def test_a_reveal_does_not_loosen_the_commitment(world):
    task = world.start(count=2)
    for value, hospital in enumerate(world.hospitals[:2], start=1):
        world.commit(task, 1, hospital, value=value)
    world.reveal(task, 1, world.hospitals[0])
    with ape.reverts("rounds: bound by a commitment"):
        world.tasks.leave(task, sender=world.hospitals[0])


def test_a_closed_round_frees_its_participants(world):
    task = world.start(count=2)
    world.play_round(task, 1, world.hospitals[:2])
    world.tasks.leave(task, sender=world.hospitals[0])
    assert world.tasks.claimable(task, world.hospitals[0]) > 0, "earnings stay"
    world.tasks.claim(task, sender=world.hospitals[0])


def test_a_participant_without_a_commitment_may_leave_a_running_task(world):
    task = world.start(count=3)
    world.tasks.leave(task, sender=world.hospitals[2])
    assert world.rounds.get_round(task, 1).drawn == 0b11


def test_nobody_waits_for_a_participant_who_left(world):
    task = world.start(count=3)
    for value, hospital in enumerate(world.hospitals[:2], start=1):
        world.commit(task, 1, hospital, value=value)
    receipt = world.tasks.leave(task, sender=world.hospitals[2])
    assert world.rounds.get_round(task, 1).commit_ends == receipt.timestamp
    for hospital in world.hospitals[:2]:
        world.reveal(task, 1, hospital)
    world.close(task, 1)


def test_a_departure_in_the_reveal_period_moves_no_deadline(world):
    task = world.start(count=3)
    for value, hospital in enumerate(world.hospitals[:2], start=1):
        world.commit(task, 1, hospital, value=value)
    before = world.rounds.get_round(task, 1)
    world.advance_to(before.commit_ends)
    world.tasks.leave(task, sender=world.hospitals[2])
    assert world.rounds.get_round(task, 1).reveal_ends == before.reveal_ends


def test_a_task_that_everybody_left_still_ends(world):
    task = world.start(count=2)
    for hospital in world.hospitals[:2]:
        world.tasks.leave(task, sender=hospital)
    for round in (1, 2):
        world.skip_round(task, round)
    world.tasks.refund(task, sender=world.publisher)
    account = world.tasks.get_account(task)
    assert account.left == account.paid == 0
    assert account.refunded + account.fees == account.deposited


def test_aborting_a_round_that_is_not_due_is_refused(world):
    task = world.start()
    for sender in (world.stranger, world.publisher):
        with ape.reverts("tasks: too early to abort"):
            world.tasks.abort(task, sender=sender)


def test_anybody_may_abort_a_round_that_nobody_closes(world):
    """The bound participants get their stakes, the publisher gets the escrow."""
    task = world.start(count=2)
    for value, hospital in enumerate(world.hospitals[:2], start=1):
        world.commit(task, 1, hospital, value=value)
    world.reveal(task, 1, world.hospitals[0])
    world.advance_to(world.rounds.get_round(task, 1).reveal_ends + CLOSE_TIMEOUT_SECONDS)
    world.tasks.abort(task, sender=world.stranger)
    assert world.tasks.get_task(task).state == ABORTED
    for hospital in world.hospitals[:2]:
        world.tasks.leave(task, sender=hospital)
    world.tasks.refund(task, sender=world.publisher)
    account = world.tasks.get_account(task)
    assert account.refunded == account.deposited


def test_an_updates_expiry_cannot_lock_a_task(world):
    """A close that the precompile refuses for ever ends in the time-out."""
    task = world.start(count=2)
    for value, hospital in enumerate(world.hospitals[:2], start=1):
        world.commit(task, 1, hospital, value=value)
    for hospital in world.hospitals[:2]:
        world.reveal(task, 1, hospital)
    world.advance(31 * 86_400)
    with ape.reverts("fedavg: blob_expired"):
        world.close(task, 1)
    world.tasks.abort(task, sender=world.stranger)
    assert world.tasks.get_task(task).state == ABORTED


def test_a_task_that_is_over_cannot_be_aborted(world):
    task = world.start(count=2, rounds=1)
    world.play_round(task, 1, world.hospitals[:2])
    with ape.reverts("tasks: not open"):
        world.tasks.abort(task, sender=world.publisher)


# -- release ---------------------------------------------------------------------------------------


def test_anybody_may_release_a_participant_of_a_task_that_is_over(world):
    task, hospital = world.publish(), world.hospitals[0]
    world.tasks.sponsor(task, hospital, 0, value=compute_stake(10), sender=world.publisher)
    world.join(task, hospital, value=7)
    world.tasks.cancel(task, sender=world.publisher)
    before = hospital.balance
    world.tasks.release(task, hospital, sender=world.stranger)
    assert hospital.balance == before, "nothing is sent to who has not asked"
    assert world.tasks.claimable(task, hospital) == 7
    assert world.tasks.claimable(task, world.publisher) == compute_stake(10)
    assert world.tasks.get_participants(task) == []
    with ape.reverts("tasks: not a participant"):
        world.tasks.release(task, hospital, sender=world.stranger)
    with ape.reverts("tasks: not a participant"):
        world.tasks.leave(task, sender=hospital)
    world.tasks.claim(task, sender=hospital)


def test_nobody_is_released_from_a_task_that_goes_on(world):
    task = world.publish()
    world.join(task, world.hospitals[0])
    with ape.reverts("tasks: not over"):
        world.tasks.release(task, world.hospitals[0], sender=world.publisher)


# -- claim and refund ------------------------------------------------------------------------------


def test_a_claim_pays_what_was_earned(world):
    task = world.start(count=2)
    world.play_round(task, 1, world.hospitals[:2])
    hospital = world.hospitals[0]
    earned, before = world.tasks.claimable(task, hospital), hospital.balance
    receipt = world.tasks.claim(task, sender=hospital)
    assert earned == PARAMETERS["reward"] // 2 // 2
    assert hospital.balance == before + earned - receipt.total_fees_paid


def test_a_double_claim_is_refused(world):
    task = world.start(count=2)
    world.play_round(task, 1, world.hospitals[:2])
    world.tasks.claim(task, sender=world.hospitals[0])
    with ape.reverts("tasks: nothing to claim"):
        world.tasks.claim(task, sender=world.hospitals[0])


def test_a_stranger_has_nothing_to_claim(world):
    task = world.start(count=2)
    world.play_round(task, 1, world.hospitals[:2])
    with ape.reverts("tasks: nothing to claim"):
        world.tasks.claim(task, sender=world.stranger)


def test_earnings_of_one_task_cannot_be_claimed_from_another(world):
    task, other = world.start(count=2), world.start(count=2)
    world.play_round(task, 1, world.hospitals[:2])
    with ape.reverts("tasks: nothing to claim"):
        world.tasks.claim(other, sender=world.hospitals[0])


def test_a_refund_returns_what_nobody_earned(world):
    task = world.start(count=2, rounds=1)
    world.play_round(task, 1, world.hospitals[:2])
    left, before = world.tasks.get_account(task).left, world.publisher.balance
    receipt = world.tasks.refund(task, sender=world.publisher)
    assert left > 0
    assert world.publisher.balance == before + left - receipt.total_fees_paid


def test_a_second_refund_is_refused(world):
    task = world.publish()
    world.tasks.cancel(task, sender=world.publisher)
    world.tasks.refund(task, sender=world.publisher)
    with ape.reverts("tasks: nothing to refund"):
        world.tasks.refund(task, sender=world.publisher)


def test_a_refund_before_the_end_is_refused(world):
    task = world.publish()
    with ape.reverts("tasks: not over"):
        world.tasks.refund(task, sender=world.publisher)


def test_only_the_publisher_is_refunded(world):
    task = world.publish()
    world.tasks.cancel(task, sender=world.publisher)
    with ape.reverts("tasks: not the publisher"):
        world.tasks.refund(task, sender=world.stranger)


def test_nobody_is_refunded_for_a_task_that_does_not_exist(world):
    with ape.reverts("tasks: not the publisher"):
        world.tasks.refund(world.tasks.task_count() + 1, sender=world.stranger)


# -- closing fees ----------------------------------------------------------------------------------


def test_the_closer_is_credited_gas_at_the_base_fee_and_the_bounty(world):
    task = world.start(count=2)
    receipt = world.play_round(task, 1, world.hospitals[:2])
    base_fee = world.chain.blocks[receipt.block_number].base_fee
    (event,) = receipt.decode_logs(world.tasks.ClosePaid)
    repaid = event.fee - PARAMETERS["close_bounty"]
    assert event.closer == world.keeper
    assert world.tasks.claimable(task, world.keeper) == event.fee
    assert receipt.gas_used * base_fee <= repaid <= (receipt.gas_used + 60_000) * base_fee


def test_the_fee_never_exceeds_the_rounds_reserve(world):
    task = world.start(count=2, close_reserve=10**6, close_bounty=10)
    world.play_round(task, 1, world.hospitals[:2])
    assert world.tasks.claimable(task, world.keeper) == 10**6


def test_skipping_a_round_is_paid_too(world):
    task = world.start(count=2)
    world.skip_round(task, 1)
    assert world.tasks.claimable(task, world.keeper) > PARAMETERS["close_bounty"]


def test_without_a_reserve_closing_is_not_paid(world):
    task = world.start(count=2, close_reserve=0, close_bounty=0)
    world.play_round(task, 1, world.hospitals[:2])
    assert world.tasks.claimable(task, world.keeper) == 0


def test_the_periods_of_a_round_follow_each_other(world):
    task = world.start()
    current = world.rounds.get_round(task, 1)
    assert current.reveal_ends - current.commit_ends == REVEAL_SECONDS
    assert current.commit_ends - world.now == COMMIT_SECONDS

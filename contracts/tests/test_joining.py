"""Who is let in: invitations, applications, reputation, and stakes that the publisher pays."""

import ape
import pytest
from world import (
    APPLICANTS,
    BOND,
    INVITED,
    NO_BLOB,
    ONE,
    compute_stake,
)

STATEMENT = (b"\5" * 32, 100)
FLOOR = 2**17


# -- invitations and applications ------------------------------------------------------------------


def test_an_invitation_may_come_later(world):
    task = world.publish(admission=INVITED)
    hospital = world.hospitals[0]
    with ape.reverts("tasks: not invited"):
        world.join(task, hospital)
    receipt = world.tasks.invite(task, [hospital], sender=world.publisher)
    (event,) = receipt.decode_logs(world.tasks.Invited)
    assert event.participants == [hospital]
    world.join(task, hospital)


def test_an_invitation_may_be_taken_back(world):
    task = world.publish(admission=INVITED, invited=world.hospitals[:2])
    receipt = world.tasks.uninvite(task, world.hospitals[0], sender=world.publisher)
    assert len(receipt.decode_logs(world.tasks.Uninvited)) == 1
    assert not world.tasks.is_invited(task, world.hospitals[0])
    with ape.reverts("tasks: not invited"):
        world.join(task, world.hospitals[0])
    world.join(task, world.hospitals[1])


def test_taking_back_an_invitation_moves_nobody_who_has_joined(world):
    task = world.publish(admission=INVITED, invited=world.hospitals[:1])
    world.join(task, world.hospitals[0])
    world.tasks.uninvite(task, world.hospitals[0], sender=world.publisher)
    assert world.tasks.get_participants(task) == world.hospitals[:1]


def test_what_nobody_was_given_cannot_be_taken_back(world):
    task = world.publish(admission=INVITED)
    with ape.reverts("tasks: not invited"):
        world.tasks.uninvite(task, world.stranger, sender=world.publisher)


def test_only_the_publisher_invites(world):
    task = world.publish(admission=INVITED, invited=world.hospitals[:1])
    with ape.reverts("tasks: not the publisher"):
        world.tasks.invite(task, [world.stranger], sender=world.stranger)
    with ape.reverts("tasks: not the publisher"):
        world.tasks.uninvite(task, world.hospitals[0], sender=world.stranger)


def test_a_task_for_everybody_has_no_invitations(world):
    with ape.reverts("tasks: open to everybody"):
        world.publish(invited=world.hospitals[:1])
    task = world.publish()
    with ape.reverts("tasks: open to everybody"):
        world.tasks.invite(task, [world.stranger], sender=world.publisher)


def test_a_task_that_is_over_invites_nobody(world):
    task = world.publish(admission=INVITED)
    world.tasks.cancel(task, sender=world.publisher)
    with ape.reverts("tasks: not open"):
        world.tasks.invite(task, [world.stranger], sender=world.publisher)


def test_an_applicant_joins_once_invited(world):
    task = world.publish(admission=APPLICANTS)
    hospital = world.hospitals[0]
    receipt = world.tasks.apply(task, STATEMENT, sender=hospital)
    (event,) = receipt.decode_logs(world.tasks.Applied)
    assert (event.applicant, tuple(event.statement)) == (hospital, STATEMENT)
    assert world.tasks.has_applied(task, hospital)
    with ape.reverts("tasks: not invited"):
        world.join(task, hospital)
    world.tasks.invite(task, [hospital], sender=world.publisher)
    world.join(task, hospital)


def test_an_application_is_made_once(world):
    task = world.publish(admission=APPLICANTS)
    world.tasks.apply(task, NO_BLOB, sender=world.hospitals[0])
    with ape.reverts("tasks: already applied"):
        world.tasks.apply(task, STATEMENT, sender=world.hospitals[0])


@pytest.mark.parametrize("admission", [0, INVITED])
def test_only_a_task_for_applicants_takes_applications(world, admission):
    task = world.publish(admission=admission)
    with ape.reverts("tasks: takes no applicants"):
        world.tasks.apply(task, STATEMENT, sender=world.hospitals[0])


def test_a_task_that_does_not_exist_takes_no_applications(world):
    with ape.reverts("tasks: not open"):
        world.tasks.apply(world.tasks.task_count() + 1, STATEMENT, sender=world.stranger)


# -- reputation ------------------------------------------------------------------------------------


def test_everybody_begins_at_the_floor(world):
    assert world.tasks.get_reputation(world.publisher, world.stranger) == FLOOR


def test_an_accepted_update_raises_reputation_with_its_publisher_only(world):
    task = world.start(count=2)
    before = world.tasks.get_reputation(world.publisher, world.hospitals[0])
    world.play_round(task, 1, world.hospitals[:2])
    raised = before + (ONE - before) // 16
    assert before >= FLOOR
    assert world.tasks.get_reputation(world.publisher, world.hospitals[0]) == raised
    assert world.tasks.get_reputation(world.stranger, world.hospitals[0]) == FLOOR
    world.play_round(task, 2, world.hospitals[:2])
    assert (
        world.tasks.get_reputation(world.publisher, world.hospitals[0])
        == raised + (ONE - raised) // 16
    )


def test_a_reputation_gates_the_next_task(world):
    task = world.start(count=2)
    world.play_round(task, 1, world.hospitals[:2])
    gated = world.publish(min_reputation=FLOOR + 1)
    world.join(gated, world.hospitals[0])
    with ape.reverts("tasks: reputation too low"):
        world.join(gated, world.hospitals[5])


def test_at_the_floor_the_gate_is_open(world):
    task = world.publish(min_reputation=FLOOR)
    world.join(task, world.stranger)


# -- sponsorships ----------------------------------------------------------------------------------


def test_a_sponsor_pays_gas_at_once_and_the_stake_when_it_is_used(world):
    task, hospital = world.publish(), world.hospitals[0]
    before, held = hospital.balance, world.tasks.balance
    stake = compute_stake(10)
    receipt = world.tasks.sponsor(task, hospital, 5, value=stake + 5, sender=world.publisher)
    (event,) = receipt.decode_logs(world.tasks.Sponsored)
    assert (event.gas_wei, event.stake) == (5, stake)
    assert hospital.balance == before + 5
    assert world.tasks.balance == held + stake
    assert world.tasks.get_sponsorship(task, hospital) == stake
    world.join(task, hospital, value=0)
    participant = world.tasks.get_participant(task, hospital)
    assert (participant.stake, participant.sponsored) == (stake, stake)
    account = world.tasks.get_account(task)
    assert (account.stakes, account.sponsorships) == (stake, 0)


def test_a_sponsored_stake_returns_to_the_sponsor(world):
    """The participant gets what it put down itself, however it leaves."""
    task, hospital = world.publish(), world.hospitals[0]
    stake = compute_stake(10)
    world.tasks.sponsor(task, hospital, 0, value=stake, sender=world.publisher)
    world.join(task, hospital, value=7)
    before = hospital.balance
    receipt = world.tasks.leave(task, sender=hospital)
    assert hospital.balance == before + 7 - receipt.total_fees_paid
    (event,) = receipt.decode_logs(world.tasks.Left)
    assert (event.stake, event.sponsored) == (7, stake)
    assert world.tasks.claimable(task, world.publisher) == stake
    world.tasks.claim(task, sender=world.publisher)


def test_sponsorships_of_one_account_add_up(world):
    task, hospital = world.publish(), world.hospitals[0]
    for _ in range(2):
        world.tasks.sponsor(task, hospital, 0, value=compute_stake(5), sender=world.publisher)
    world.join(task, hospital, value=0)
    assert world.tasks.get_participant(task, hospital).sponsored == 2 * compute_stake(5)


def test_a_sponsorship_does_not_excuse_from_the_rest(world):
    task, hospital = world.publish(), world.hospitals[0]
    world.tasks.sponsor(task, hospital, 0, value=compute_stake(9), sender=world.publisher)
    with ape.reverts("tasks: samples not covered by stake"):
        world.join(task, hospital, value=compute_stake(10) - compute_stake(9) - 1)
    assert world.tasks.get_sponsorship(task, hospital) == compute_stake(9)


def test_an_unused_sponsorship_can_be_taken_back_once(world):
    task, hospital = world.publish(), world.hospitals[0]
    world.tasks.sponsor(task, hospital, 0, value=100, sender=world.publisher)
    world.tasks.cancel(task, sender=world.publisher)
    before = world.publisher.balance
    receipt = world.tasks.unsponsor(task, hospital, sender=world.publisher)
    assert len(receipt.decode_logs(world.tasks.Unsponsored)) == 1
    assert world.publisher.balance == before + 100 - receipt.total_fees_paid
    with ape.reverts("tasks: nothing sponsored"):
        world.tasks.unsponsor(task, hospital, sender=world.publisher)


def test_a_used_sponsorship_cannot_be_taken_back(world):
    task, hospital = world.publish(), world.hospitals[0]
    world.tasks.sponsor(task, hospital, 0, value=compute_stake(10), sender=world.publisher)
    world.join(task, hospital, value=0)
    with ape.reverts("tasks: nothing sponsored"):
        world.tasks.unsponsor(task, hospital, sender=world.publisher)


def test_only_the_publisher_sponsors(world):
    task, hospital = world.publish(), world.hospitals[0]
    with ape.reverts("tasks: not the publisher"):
        world.tasks.sponsor(task, hospital, 0, value=1, sender=world.stranger)
    world.tasks.sponsor(task, hospital, 0, value=1, sender=world.publisher)
    with ape.reverts("tasks: not the publisher"):
        world.tasks.unsponsor(task, hospital, sender=hospital)


def test_a_sponsorship_needs_a_value_and_a_newcomer(world):
    task, hospital = world.publish(), world.hospitals[0]
    with ape.reverts("tasks: amount out of range"):
        world.tasks.sponsor(task, hospital, 0, value=0, sender=world.publisher)
    with ape.reverts("tasks: more gas than value"):
        world.tasks.sponsor(task, hospital, 2, value=1, sender=world.publisher)
    world.join(task, hospital)
    with ape.reverts("tasks: already joined"):
        world.tasks.sponsor(task, hospital, 0, value=1, sender=world.publisher)


def test_a_task_that_is_over_takes_no_sponsorship(world):
    task, hospital = world.publish(), world.hospitals[0]
    world.tasks.cancel(task, sender=world.publisher)
    with ape.reverts("tasks: not open"):
        world.tasks.sponsor(task, hospital, 0, value=1, sender=world.publisher)


# -- more stake ------------------------------------------------------------------------------------


def test_a_stake_can_be_added_to(world):
    task = world.publish()
    world.join(task, world.hospitals[0])
    receipt = world.tasks.add_stake(task, value=BOND, sender=world.hospitals[0])
    assert len(receipt.decode_logs(world.tasks.StakeAdded)) == 1
    assert world.tasks.get_participant(task, world.hospitals[0]).stake == compute_stake(10) + BOND
    assert world.tasks.get_account(task).stakes == compute_stake(10) + BOND


def test_a_stranger_adds_no_stake(world):
    task = world.publish()
    with ape.reverts("tasks: not a participant"):
        world.tasks.add_stake(task, value=1, sender=world.stranger)


@pytest.mark.parametrize(
    ("value", "reason"), [(0, "amount out of range"), (2**100, "stake out of range")]
)
def test_an_added_stake_has_bounds(world, value, reason):
    task = world.publish()
    world.join(task, world.hospitals[0])
    with ape.reverts(f"tasks: {reason}"):
        world.tasks.add_stake(task, value=value, sender=world.hospitals[0])


def test_a_task_that_is_over_takes_no_stake(world):
    task = world.publish()
    world.join(task, world.hospitals[0])
    world.tasks.cancel(task, sender=world.publisher)
    with ape.reverts("tasks: not open"):
        world.tasks.add_stake(task, value=1, sender=world.hospitals[0])

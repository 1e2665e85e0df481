"""Commit, reveal, close: who, when, and what it makes."""

import ape
import pytest
from world import (
    AGGREGATED,
    BOND,
    CLOSE,
    CLOSE_TIMEOUT_SECONDS,
    COMMIT_SECONDS,
    FINISHED,
    NO_BLOB,
    OPEN,
    PARAMETERS,
    REVEAL_SECONDS,
    SKIPPED,
    STAKE_PER_SAMPLE,
    WAIT,
    as_tuple,
    compute_stake,
)

from steelyard.chain.model import decode_model
from steelyard.chain.types import BlobName

SHARES = 2**20


# -- commit ----------------------------------------------------------------------------------------


def test_a_commitment_is_recorded(world):
    task = world.start()
    world.commit(task, 1, world.hospitals[0])
    submission = world.rounds.get_submission(task, 1, world.hospitals[0])
    assert bytes(submission.commitment) != bytes(32)
    assert submission.update.size == 0
    assert world.rounds.get_round(task, 1).committed == 0b1


def test_the_view_computes_the_documented_commitment(world):
    task = world.start()
    world.commit(task, 1, world.hospitals[0])
    sealed = world.sealed[task, 1, world.hospitals[0].address]
    assert (
        world.rounds.compute_commitment(
            task,
            1,
            1,
            world.hospitals[0],
            (sealed.name.digest, sealed.name.size),
            sealed.samples,
            sealed.salt,
        )
        == world.rounds.get_submission(task, 1, world.hospitals[0]).commitment
    )


def test_a_second_commitment_is_refused(world):
    task = world.start()
    world.commit(task, 1, world.hospitals[0])
    with ape.reverts("rounds: already committed"):
        world.commit(task, 1, world.hospitals[0], value=2)


def test_a_stranger_cannot_commit(world):
    task = world.start()
    with ape.reverts("rounds: not a participant"):
        world.commit(task, 1, world.stranger)


@pytest.mark.parametrize("round", [0, 2])
def test_only_the_current_round_takes_commitments(world, round):
    task = world.start()
    with ape.reverts("rounds: not the current round"):
        world.rounds.commit(task, round, round, b"\1" * 32, sender=world.hospitals[0])


def test_a_lobby_takes_no_commitments(world):
    task = world.publish()
    world.join(task, world.hospitals[0])
    with ape.reverts("rounds: not the current round"):
        world.rounds.commit(task, 0, 0, b"\1" * 32, sender=world.hospitals[0])


def test_an_empty_commitment_is_refused(world):
    task = world.start()
    with ape.reverts("rounds: empty commitment"):
        world.rounds.commit(task, 1, 1, bytes(32), sender=world.hospitals[0])


def test_the_last_commitment_opens_the_reveals_at_once(world):
    task = world.start(count=2)
    world.commit(task, 1, world.hospitals[0])
    receipt = world.commit(task, 1, world.hospitals[1])
    current = world.rounds.get_round(task, 1)
    assert current.commit_ends == receipt.timestamp
    assert current.reveal_ends == receipt.timestamp + REVEAL_SECONDS
    (event,) = receipt.decode_logs(world.rounds.RevealOpened)
    assert event.reveal_ends == current.reveal_ends


def test_the_commit_period_lasts_while_somebody_is_missing(world):
    task = world.start(count=3)
    ends = world.rounds.get_round(task, 1).commit_ends
    for hospital in world.hospitals[:2]:
        world.commit(task, 1, hospital)
    assert world.rounds.get_round(task, 1).commit_ends == ends


# -- reveal ----------------------------------------------------------------------------------------


@pytest.fixture
def revealing(world):
    """A round in its reveal period, with two commitments of three."""
    task = world.start(count=3)
    for value, hospital in enumerate(world.hospitals[:2], start=1):
        world.commit(task, 1, hospital, value=value)
    world.advance_to(world.rounds.get_round(task, 1).commit_ends)
    return task


def test_a_reveal_is_recorded_with_its_norm(world, revealing):
    receipt = world.reveal(revealing, 1, world.hospitals[0])
    submission = world.rounds.get_submission(revealing, 1, world.hospitals[0])
    assert (
        bytes(submission.update.digest)
        == world.sealed[revealing, 1, world.hospitals[0].address].name.digest
    )
    assert submission.samples == 10
    (event,) = receipt.decode_logs(world.rounds.Revealed)
    assert event.norm2 == 8 * 2**8, "eight values of 1 x 2**-20, in units of 2**-48"


def test_a_reveal_without_commit_is_refused(world, revealing):
    with ape.reverts("rounds: no commitment"):
        world.reveal(revealing, 1, world.hospitals[0], sender=world.hospitals[2])


def test_a_second_reveal_is_refused(world, revealing):
    world.reveal(revealing, 1, world.hospitals[0])
    with ape.reverts("rounds: already revealed"):
        world.reveal(revealing, 1, world.hospitals[0])


def test_a_wrong_salt_is_refused(world, revealing):
    with ape.reverts("rounds: differs from the commitment"):
        world.reveal(revealing, 1, world.hospitals[0], salt=b"\7" * 32)


def test_other_samples_than_committed_are_refused(world, revealing):
    with ape.reverts("rounds: differs from the commitment"):
        world.reveal(revealing, 1, world.hospitals[0], samples=9)


def test_another_update_than_committed_is_refused(world, revealing):
    other = world.sealed[revealing, 1, world.hospitals[1].address].name
    with ape.reverts("rounds: differs from the commitment"):
        world.reveal(revealing, 1, world.hospitals[0], name=other)


def test_somebody_elses_commitment_cannot_be_revealed(world):
    """A thief copies the commitment, waits, and copies the reveal too: the sender is inside."""
    task = world.start(count=3)
    owner, thief = world.hospitals[:2]
    world.commit(task, 1, owner)
    stolen = world.rounds.get_submission(task, 1, owner).commitment
    world.rounds.commit(task, 1, 1, stolen, sender=thief)
    world.advance_to(world.rounds.get_round(task, 1).commit_ends)
    with ape.reverts("rounds: differs from the commitment"):
        world.reveal(task, 1, owner, sender=thief)
    world.reveal(task, 1, owner)


def test_somebody_elses_update_cannot_be_committed_as_ones_own(world):
    """The update's header names its maker, so a copy fails although its commitment is right."""
    task = world.start(count=2)
    owner, thief = world.hospitals[:2]
    world.commit(task, 1, owner)
    world.commit(task, 1, thief, maker=owner)
    with ape.reverts("fedavg: update_sender"):
        world.reveal(task, 1, thief)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"round": 2}, "update_round"),
        ({"task": 2**40}, "update_task"),
        ({"chain_id": 1}, "update_chain"),
        ({"base": BlobName(b"\1" * 32, 100)}, "update_base"),
    ],
)
def test_an_update_bound_to_something_else_is_refused(world, changes, code):
    task = world.start(count=2)
    hospital = world.hospitals[0]
    base = world.get_base(task, 1)
    data = world.make_update(
        **{"task": task, "round": 1, "base": base, "maker": hospital} | changes
    )
    salt = b"\3" * 32
    name = world.declare(data)
    commitment = world.compute_commitment(task, 1, hospital, name, 10, salt)
    world.rounds.commit(task, 1, 1, commitment, sender=hospital)
    world.commit(task, 1, world.hospitals[1])
    with ape.reverts(f"fedavg: {code}"):
        world.rounds.reveal(task, 1, 1, (name.digest, name.size), 10, salt, sender=hospital)


@pytest.mark.parametrize(
    ("code", "damage"),
    [
        ("update_magic", lambda data: b"X" + data[1:]),
        ("update_version", lambda data: data[:8] + b"\2" + data[9:]),
        ("update_length", lambda data: data[:-1]),
        ("update_length", lambda data: data + b"\0"),
        ("update_exponent", lambda data: data[:192] + b"\x1f" + data[193:]),
        ("update_value", lambda data: data[:200] + b"\x80" + data[201:]),
    ],
)
def test_a_damaged_update_is_refused_and_costs_its_maker_the_bond(world, code, damage):
    before = world.tasks.balance
    task = world.start(count=2)
    hospital, other = world.hospitals[:2]
    data = world.make_update(task, 1, world.get_base(task, 1), hospital)
    name, salt = world.declare(damage(data)), b"\3" * 32
    commitment = world.compute_commitment(task, 1, hospital, name, 10, salt)
    world.rounds.commit(task, 1, 1, commitment, sender=hospital)
    world.commit(task, 1, other)
    with ape.reverts(f"fedavg: {code}"):
        world.rounds.reveal(task, 1, 1, (name.digest, name.size), 10, salt, sender=hospital)
    world.reveal(task, 1, other)
    world.advance_to(world.rounds.get_round(task, 1).reveal_ends)
    world.close(task, 1)
    assert world.rounds.get_round(task, 1).state == SKIPPED
    assert world.tasks.get_participant(task, hospital).stake == compute_stake(10) - BOND
    world.tasks.leave(task, sender=hospital)
    assert world.tasks.balance - before == world.compute_promises([task])


def test_an_update_above_the_admission_norm_is_refused(world):
    task = world.start(count=2, admission_norm2=8 * 2**8 * 4 - 1)
    for value, hospital in enumerate(world.hospitals[:2], start=1):
        world.commit(task, 1, hospital, value=value)
    world.reveal(task, 1, world.hospitals[0])
    with ape.reverts("fedavg: update_norm"):
        world.reveal(task, 1, world.hospitals[1])


def test_more_samples_than_staked_for_are_refused(world):
    task = world.start(count=2)
    world.commit(task, 1, world.hospitals[0], samples=11)
    world.commit(task, 1, world.hospitals[1], samples=20)
    with ape.reverts("rounds: samples not covered by stake"):
        world.reveal(task, 1, world.hospitals[0])
    world.reveal(task, 1, world.hospitals[1])


def test_what_a_bond_took_covers_no_samples_until_it_is_filled_up(world):
    bond = 5 * STAKE_PER_SAMPLE
    task = world.start(count=2, rounds=2, min_clients=1, bond=bond)
    silent = world.hospitals[0]
    world.fail_round(task, 1, world.hospitals[:2])
    world.commit_all(task, 2, world.hospitals[:2])
    with ape.reverts("rounds: samples not covered by stake"):
        world.reveal(task, 2, silent)
    world.tasks.add_stake(task, value=bond, sender=silent)
    world.reveal(task, 2, silent)


def test_more_samples_than_promised_are_refused_whatever_is_staked(world):
    task = world.publish(max_clients=2)
    for hospital in world.hospitals[:2]:
        world.join(task, hospital, samples=10, value=compute_stake(20))
    world.commit(task, 1, world.hospitals[0], samples=11)
    world.commit(task, 1, world.hospitals[1], samples=10)
    with ape.reverts("rounds: samples not covered by stake"):
        world.reveal(task, 1, world.hospitals[0])
    world.reveal(task, 1, world.hospitals[1])


def test_no_samples_are_refused(world):
    task = world.start(count=2)
    world.commit(task, 1, world.hospitals[0], samples=0)
    world.commit(task, 1, world.hospitals[1])
    with ape.reverts("rounds: samples out of range"):
        world.reveal(task, 1, world.hospitals[0])


def test_an_update_nobody_declared_is_refused(world, revealing):
    sealed = world.sealed[revealing, 1, world.hospitals[0].address]
    del world.shelf.admissions[sealed.name], world.shelf.blobs[sealed.name]
    with ape.reverts("fedavg: blob_unknown"):
        world.reveal(revealing, 1, world.hospitals[0])


def test_an_update_that_could_expire_before_the_close_is_refused(world, revealing):
    """Otherwise one participant could make every close revert and stop the task."""
    sealed = world.sealed[revealing, 1, world.hospitals[0].address]
    data = world.shelf.blobs[sealed.name]
    left = world.rounds.get_round(revealing, 1).reveal_ends - world.now
    world.declare(data, retention_seconds=left + CLOSE_TIMEOUT_SECONDS - 1)
    with ape.reverts("rounds: update expires too soon"):
        world.reveal(revealing, 1, world.hospitals[0])
    world.declare(data, retention_seconds=left + CLOSE_TIMEOUT_SECONDS)
    world.reveal(revealing, 1, world.hospitals[0])


def test_a_base_model_that_could_expire_must_be_declared_again(world):
    task = world.start(count=2)
    left = world.rounds.get_round(task, 1).reveal_ends - world.now
    world.declare(world.make_model(), retention_seconds=left + CLOSE_TIMEOUT_SECONDS - 1)
    with ape.reverts("rounds: model expires too soon"):
        world.commit(task, 1, world.hospitals[0])
    world.declare(world.make_model(), retention_seconds=left + CLOSE_TIMEOUT_SECONDS)
    world.commit(task, 1, world.hospitals[0])


def test_whoever_is_bound_may_reveal_on_a_base_that_expires_soon(world, revealing):
    world.declare(world.make_model(), retention_seconds=REVEAL_SECONDS)
    world.reveal(revealing, 1, world.hospitals[0])


def test_a_pause_costs_no_bond_though_the_base_expires(world):
    task = world.start(count=2, rounds=3)
    world.tasks.pause(task, sender=world.publisher)
    world.play_round(task, 1, world.hospitals[:2])
    world.advance(29 * 86_400 + 86_000)
    world.tasks.resume(task, sender=world.publisher)
    with ape.reverts("rounds: model expires too soon"):
        world.commit(task, 2, world.hospitals[0])
    base = world.get_base(task, 2)
    world.declare(world.shelf.blobs[base])
    world.play_round(task, 2, world.hospitals[:2])
    assert world.rounds.get_round(task, 2).state == AGGREGATED
    assert world.tasks.get_account(task).burned == 0


def test_a_closed_round_takes_no_reveal(world, revealing):
    for hospital in world.hospitals[:2]:
        world.reveal(revealing, 1, hospital)
    world.close(revealing, 1)
    with ape.reverts("rounds: not the current round"):
        world.reveal(revealing, 1, world.hospitals[0])


# -- close -----------------------------------------------------------------------------------------


def test_a_round_with_enough_reveals_makes_the_next_model(world, revealing):
    """Values 1 and 2 (x 2**-20) with 10 samples each: the mean is 1.5 x 2**-20 = 24 units."""
    for hospital in world.hospitals[:2]:
        world.reveal(revealing, 1, hospital)
    assert tuple(world.tasks.next_action(revealing)) == (CLOSE, 1)
    receipt = world.close(revealing, 1)
    closed = world.rounds.get_round(revealing, 1)
    assert closed.state == AGGREGATED
    assert closed.revealed == 0b11
    name = BlobName(bytes(closed.model.digest), closed.model.size)
    assert decode_model(world.shelf.blobs[name]).values.tolist() == [24 + i for i in range(8)]
    assert world.tasks.get_task(revealing).model == closed.model
    opened = world.rounds.get_round(revealing, 2)
    assert opened.state == OPEN
    assert opened.base == closed.model
    assert opened.commit_ends == receipt.timestamp + COMMIT_SECONDS
    assert opened.reveal_ends == opened.commit_ends + REVEAL_SECONDS


def test_the_record_holds_what_an_auditor_needs(world, revealing):
    for hospital in world.hospitals[:2]:
        world.reveal(revealing, 1, hospital)
    (record,) = world.close(revealing, 1).decode_logs(world.rounds.Aggregated)
    assert (record.task, record.round) == (revealing, 1)
    assert record.clients == [hospital.address for hospital in world.hospitals[:2]]
    assert [tuple(update) for update in record.updates] == [
        as_tuple(world.sealed[revealing, 1, hospital.address].name)
        for hospital in world.hospitals[:2]
    ]
    assert record.raw_weights == [10 * SHARES, 10 * SHARES]
    assert record.origins == [1, 1]
    assert record.pool == world.rounds.get_round(revealing, 1).pool == PARAMETERS["reward"] // 2
    assert tuple(record.velocity) == tuple(record.velocity_before) == NO_BLOB
    assert record.shares == [SHARES // 2, SHARES // 2]
    assert len(record.scores) == len(record.flags) == 2
    assert record.saturated == 0


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [(0, [10, 20]), (1, [10**15 + 10**13, 10**15 + 2 * 10**13]), (2, [1, 1])],
)
def test_raw_weights_follow_the_weighting(world, weighting, expected):
    task = world.start(count=2, weighting=weighting)
    world.commit(task, 1, world.hospitals[0], samples=10, value=1)
    world.commit(task, 1, world.hospitals[1], samples=20, value=2)
    for hospital in world.hospitals[:2]:
        world.reveal(task, 1, hospital)
    (record,) = world.close(task, 1).decode_logs(world.rounds.Aggregated)
    assert record.raw_weights == [weight * SHARES for weight in expected]


def test_pay_follows_the_shares_rounded_down(world):
    task = world.start(count=2, reward=10**18 + 7)
    world.commit(task, 1, world.hospitals[0], samples=10, value=1)
    world.commit(task, 1, world.hospitals[1], samples=20, value=2)
    for hospital in world.hospitals[:2]:
        world.reveal(task, 1, hospital)
    (record,) = world.close(task, 1).decode_logs(world.rounds.Aggregated)
    pool = (10**18 + 7) // 2
    pay = [world.tasks.claimable(task, hospital) for hospital in world.hospitals[:2]]
    assert pay == [pool * share // SHARES for share in record.shares]
    assert world.tasks.get_account(task).paid == sum(pay) <= pool


def test_the_clipped_rule_pays_by_the_shares_before_clipping(world):
    task = world.start(count=2, rule=(1, 2**6, SHARES, 4096, 0))
    world.play_round(task, 1, world.hospitals[:2])
    pool = PARAMETERS["reward"] // 2
    pay = [world.tasks.claimable(task, hospital) for hospital in world.hospitals[:2]]
    assert pay == [pool // 2, pool // 2]


def test_a_round_with_too_few_reveals_is_skipped_on_the_same_base(world, revealing):
    base = world.rounds.get_round(revealing, 1).base
    world.reveal(revealing, 1, world.hospitals[0])
    world.advance_to(world.rounds.get_round(revealing, 1).reveal_ends)
    receipt = world.close(revealing, 1)
    assert world.rounds.get_round(revealing, 1).state == SKIPPED
    assert world.rounds.get_round(revealing, 1).model.size == 0
    assert world.rounds.get_round(revealing, 2).base == base
    assert (
        world.rounds.get_round(revealing, 1).pool // 3 > world.tasks.get_account(revealing).paid > 0
    )
    (event,) = receipt.decode_logs(world.rounds.RoundSkipped)
    assert (event.committed, event.revealed) == (2, 1)


def test_too_few_commitments_make_a_round_due_without_waiting_for_reveals(world):
    task = world.start(count=3)
    world.commit(task, 1, world.hospitals[0])
    current = world.rounds.get_round(task, 1)
    assert tuple(world.tasks.next_action(task)) == (WAIT, 1)
    world.advance_to(current.commit_ends)
    assert world.now < current.reveal_ends
    assert tuple(world.tasks.next_action(task)) == (CLOSE, 1)
    world.close(task, 1)
    assert world.rounds.get_round(task, 1).state == SKIPPED


def test_closing_in_the_commit_period_is_refused(world):
    task = world.start()
    with ape.reverts("rounds: not due"):
        world.close(task, 1)


def test_closing_while_a_reveal_is_missing_is_refused(world, revealing):
    world.reveal(revealing, 1, world.hospitals[0])
    with ape.reverts("rounds: not due"):
        world.close(revealing, 1)


def test_closing_twice_is_refused(world, revealing):
    for hospital in world.hospitals[:2]:
        world.reveal(revealing, 1, hospital)
    world.close(revealing, 1)
    with ape.reverts("rounds: not the current round"):
        world.close(revealing, 1)


def test_the_last_close_finishes_the_task(world):
    task = world.start(count=2, rounds=1)
    receipt = world.play_round(task, 1, world.hospitals[:2])
    assert world.tasks.get_task(task).state == FINISHED
    assert len(receipt.decode_logs(world.tasks.Finished)) == 1
    assert tuple(world.tasks.next_action(task)) == (WAIT, 1)
    with ape.reverts("rounds: not the current round"):
        world.close(task, 1)


def test_sixteen_bit_updates_are_taken(world):
    task = world.start(count=2, bits=16)
    for value, hospital in enumerate(world.hospitals[:2], start=1):
        world.commit(task, 1, hospital, value=value, bits=16)
    for hospital in world.hospitals[:2]:
        world.reveal(task, 1, hospital)
    world.close(task, 1)
    assert world.rounds.get_round(task, 1).state == AGGREGATED


def test_stake_that_comes_after_the_commitment_weighs_nothing(world):
    task = world.start(count=2, weighting=1)
    world.commit_all(task, 1, world.hospitals[:2])
    staked = [world.tasks.get_participant(task, each).stake for each in world.hospitals[:2]]
    world.reveal(task, 1, world.hospitals[0])
    world.tasks.add_stake(task, value=10**18, sender=world.hospitals[1])
    world.reveal(task, 1, world.hospitals[1])
    assert world.rounds.get_submission(task, 1, world.hospitals[1]).stake == staked[1]
    (record,) = world.close(task, 1).decode_logs(world.rounds.Aggregated)
    assert record.raw_weights == [stake * SHARES for stake in staked]


def test_stake_that_comes_before_the_commitment_weighs(world):
    task = world.start(count=2, weighting=1)
    world.tasks.add_stake(task, value=10**18, sender=world.hospitals[0])
    world.play_round(task, 1, world.hospitals[:2])
    weighed = world.rounds.get_submission(task, 1, world.hospitals[0]).stake
    assert weighed == world.tasks.get_participant(task, world.hospitals[0]).stake > 10**18

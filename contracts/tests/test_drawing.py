"""Who is drawn for a round: so many, by a seed that anybody can check."""

import ape
import pytest
from eth_abi import encode
from eth_utils import keccak
from world import BASE_STAKE, COMMIT_SECONDS, ONE


def draw(seed, seats, target):
    """The drawing as docs/tasks.md says it, written again."""
    order = [seat for seat in range(128) if seats >> seat & 1]
    count = len(order)
    if target == count:
        return seats
    for index in range(target):
        number = int.from_bytes(keccak(encode(["bytes32", "uint256"], [seed, index])), "big")
        other = index + number % (count - index)
        order[index], order[other] = order[other], order[index]
    return sum(1 << seat for seat in order[:target])


def split_by_drawing(world, task, round, count):
    """Who of the first `count` hospitals is drawn, and who is not."""
    drawn = [
        hospital
        for hospital in world.hospitals[:count]
        if world.rounds.is_drawn(task, round, hospital)
    ]
    return drawn, [hospital for hospital in world.hospitals[:count] if hospital not in drawn]


@pytest.mark.parametrize(
    ("fraction", "spare", "expected"),
    [(ONE // 2, 0, 3), (ONE // 2 + 1, 0, 4), (1, 0, 2), (1, 1, 3), (ONE // 2, 5, 6), (ONE, 0, 6)],
)
def test_so_many_are_drawn_as_the_task_says(world, fraction, spare, expected):
    """Of six: the fraction rounded up, at least the minimum of two, and the spare ones."""
    task = world.start(count=6, fraction_fit=fraction, spare_clients=spare)
    opened = world.rounds.get_round(task, 1)
    assert opened.drawn.bit_count() == expected
    assert opened.drawn & ~0b111111 == 0
    assert opened.drawn == draw(bytes(opened.seed), 0b111111, expected)


def test_the_seed_comes_from_the_block_before(world):
    world.publish()
    task = world.publish(max_clients=4, fraction_fit=ONE // 2)
    for hospital in world.hospitals[:3]:
        world.join(task, hospital)
    assert task != 1, "or the seed could hold the round twice"
    receipt = world.join(task, world.hospitals[3])
    (event,) = receipt.decode_logs(world.rounds.RoundOpened)
    parent = world.chain.blocks[receipt.block_number - 1].hash
    seed = keccak(encode(["bytes32", "uint256", "uint256"], [parent, task, 1]))
    assert bytes(event.seed) == bytes(world.rounds.get_round(task, 1).seed) == seed
    assert event.seats == 0b1111
    assert event.drawn == world.rounds.get_round(task, 1).drawn == draw(seed, 0b1111, 2)


def test_rounds_are_drawn_apart(world):
    """Eight rounds with the same two of six have a chance of 15**-7."""
    task = world.start(count=6, rounds=8, fraction_fit=1)
    sets = set()
    for round in range(1, 8):
        sets.add(world.rounds.get_round(task, round).drawn)
        world.skip_round(task, round)
    assert len(sets) > 1


def test_who_is_not_drawn_cannot_commit(world):
    task = world.start(count=4, fraction_fit=ONE // 2)
    drawn, others = split_by_drawing(world, task, 1, 4)
    assert len(drawn) == len(others) == 2
    with ape.reverts("rounds: not drawn"):
        world.commit(task, 1, others[0])
    assert not world.rounds.is_drawn(task, 1, world.stranger)


def test_the_drawn_alone_open_the_reveals_and_are_paid(world):
    task = world.start(count=4, fraction_fit=ONE // 2)
    drawn, others = split_by_drawing(world, task, 1, 4)
    world.play_round(task, 1, drawn, samples=5)
    assert all(world.tasks.claimable(task, hospital) > 0 for hospital in drawn)
    assert all(world.tasks.claimable(task, hospital) == 0 for hospital in others)


def test_a_departure_of_somebody_drawn_is_waited_for_no_longer(world):
    task = world.start(count=4, min_clients=1, fraction_fit=ONE // 2)
    (first, second), _ = split_by_drawing(world, task, 1, 4)
    world.commit(task, 1, first)
    receipt = world.tasks.leave(task, sender=second)
    assert world.rounds.get_round(task, 1).commit_ends == receipt.timestamp
    assert not world.rounds.is_drawn(task, 1, second)


def test_a_newcomer_on_a_drawn_seat_is_not_drawn(world):
    task = world.start(count=3, rounds=3)
    gone, newcomer = world.hospitals[0], world.hospitals[5]
    world.tasks.leave(task, sender=gone)
    world.join(task, newcomer)
    assert world.tasks.get_seat(task, newcomer).seat == 0
    assert not world.rounds.is_drawn(task, 1, newcomer)
    with ape.reverts("rounds: not active in that round"):
        world.commit(task, 1, newcomer)
    world.skip_round(task, 1)
    assert world.rounds.is_drawn(task, 2, newcomer)


def test_a_stake_below_the_base_stake_is_not_drawn_until_it_is_covered_to_the_wei(world):
    task = world.start(count=3, rounds=4, bond=BASE_STAKE, stake_per_sample=0)
    poor = world.hospitals[0]
    world.fail_round(task, 1, world.hospitals[:3])
    assert world.tasks.get_participant(task, poor).stake < BASE_STAKE
    assert world.tasks.get_seats(task) == (0b111, 0b110)
    assert world.rounds.get_round(task, 2).drawn == 0b110
    missing = BASE_STAKE - world.tasks.get_participant(task, poor).stake
    world.tasks.add_stake(task, value=missing - 1, sender=poor)
    assert world.tasks.get_seats(task) == (0b111, 0b110)
    world.tasks.add_stake(task, value=1, sender=poor)
    assert world.tasks.get_seats(task) == (0b111, 0b111)
    world.skip_round(task, 2)
    assert world.rounds.get_round(task, 3).drawn == 0b111


def test_an_empty_task_opens_a_round_for_nobody(world):
    task = world.start(count=2)
    for hospital in world.hospitals[:2]:
        world.tasks.leave(task, sender=hospital)
    world.advance(COMMIT_SECONDS)
    world.close(task, 1)
    assert world.rounds.get_round(task, 2).drawn == 0

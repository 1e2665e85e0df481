"""Rounds that are closed in pages make the same model, and momentum is carried on."""

import ape
import numpy as np
import pytest
from eth_abi import encode
from eth_utils import keccak
from world import (
    AGGREGATED,
    BLOB,
    CLOSE,
    CLOSING,
    NO_BLOB,
    ONE,
    PARAMETERS,
    PAUSED,
    RULE,
    as_tuple,
)

from steelyard.chain import precompile
from steelyard.chain.model import Manifest, Role, TensorSpec, encode_model

PLAN = keccak(text=f"plan({RULE},{BLOB},uint256,uint256,uint256)")[:4]
MANIFEST = Manifest(
    tuple(TensorSpec(name, (4,), "float32", 24, Role.TRAIN) for name in ("a", "b", "c"))
)
KRUM, CLIPPED, MEAN = (3, 1), (1, 2**6), (0, 0)


def play(world, monkeypatch, rule, split, count):
    """Play one round of a model of three blocks; the precompile plans `split` pages for it."""

    def call(host, data):
        return encode(["uint256"] * 3, split) if data[:4] == PLAN else genuine(host, data)

    genuine = precompile.call
    with monkeypatch.context() as patch:
        patch.setattr(precompile, "call", call)
        model = world.declare(encode_model(MANIFEST, np.arange(12, dtype=np.int32)))
        task = world.publish(
            model=model,
            rule=(*rule, ONE, 4096, 2048),
            min_clients=count,
            max_clients=count,
            rounds=2,
        )
    for hospital in world.hospitals[:count]:
        world.join(task, hospital)
    for value, hospital in enumerate(world.hospitals[:count], start=1):
        world.commit(task, 1, hospital, value=value * value)
    for hospital in world.hospitals[:count]:
        world.reveal(task, 1, hospital)
    return task


@pytest.fixture
def three_blocks(world, monkeypatch):
    monkeypatch.setattr(
        world,
        "make_update",
        lambda task, round, base, maker, value=1, bits=8: make_update(
            world, task, round, base, maker, value
        ),
    )


def make_update(world, task, round, base, maker, value):
    from steelyard.chain.update import Mode, UpdateHeader, encode_update

    # Tasks have different numbers, so only what the header does not bind can be the same.
    header = UpdateHeader(
        mode=Mode.OPEN,
        bits=8,
        round=round,
        chain_id=world.chain.chain_id,
        task=task,
        values=12,
        exponents=3,
        base=base,
        sender=bytes.fromhex(maker.address[2:]),
    )
    exponents = np.full(3, -20, np.int8)
    return encode_update(header, exponents, np.full(12, value, np.int8))


@pytest.mark.parametrize(
    ("rule", "split", "count"),
    [(MEAN, (0, 2, 3), 2), (CLIPPED, (2, 3, 3), 2), (KRUM, (3, 1, 3), 5)],
)
def test_pages_make_what_one_call_makes(world, monkeypatch, three_blocks, rule, split, count):
    whole = play(world, monkeypatch, rule, (0, 1, 3), count)
    (expected,) = world.close(whole, 1).decode_logs(world.rounds.Aggregated)
    task = play(world, monkeypatch, rule, split, count)
    pages = split[0] + split[1]
    for page in range(pages):
        assert tuple(world.tasks.next_action(task)) == (CLOSE, 1)
        receipt = world.close(task, 1)
        (event,) = receipt.decode_logs(world.rounds.PageMade)
        assert event.page == page
        assert len(receipt.decode_logs(world.tasks.ClosePaid)) == 1
        current = world.rounds.get_round(task, 1)
        assert (current.state, current.pages) == (CLOSING, page + 1)
        assert world.rounds.is_bound(task, world.hospitals[0])
    made = world.rounds.get_pages(task, 1)
    assert (len(made.measures), len(made.combines)) == split[:2]
    (record,) = world.close(task, 1).decode_logs(world.rounds.Aggregated)
    assert tuple(record.model) == tuple(expected.model)
    assert tuple(record.velocity) == tuple(expected.velocity) != NO_BLOB
    assert record.saturated == expected.saturated
    assert world.rounds.get_round(task, 1).state == AGGREGATED
    assert world.rounds.get_round(task, 2).velocity == world.rounds.get_velocity(task)


def test_a_round_that_is_being_closed_takes_nothing_more(world, monkeypatch, three_blocks):
    task = play(world, monkeypatch, MEAN, (0, 2, 3), 2)
    world.close(task, 1)
    with ape.reverts("rounds: not the current round"):
        world.reveal(task, 1, world.hospitals[0])
    with ape.reverts("rounds: bound by a commitment"):
        world.tasks.leave(task, sender=world.hospitals[0])


def test_a_close_that_stops_half_way_can_be_given_up(world, monkeypatch, three_blocks):
    task = play(world, monkeypatch, MEAN, (0, 2, 3), 2)
    world.close(task, 1)
    with ape.reverts("tasks: too early to abort"):
        world.tasks.abort(task, sender=world.stranger)
    world.advance(86_400)
    world.tasks.abort(task, sender=world.stranger)
    world.tasks.leave(task, sender=world.hospitals[0])


def test_all_pages_together_cost_at_most_the_reserve(world, monkeypatch, three_blocks):
    changed = {"close_reserve": 10**14, "close_bounty": 10**13}
    monkeypatch.setitem(PARAMETERS, "close_reserve", changed["close_reserve"])
    monkeypatch.setitem(PARAMETERS, "close_bounty", changed["close_bounty"])
    task = play(world, monkeypatch, MEAN, (0, 2, 3), 2)
    fees = [world.close(task, 1).decode_logs(world.tasks.ClosePaid)[0].fee for _ in range(3)]
    assert sum(fees) == world.tasks.get_account(task).fees <= changed["close_reserve"]
    assert fees[-1] >= changed["close_bounty"]


# -- momentum --------------------------------------------------------------------------------------


def test_momentum_is_carried_from_round_to_round_and_over_a_pause(world):
    task = world.start(count=2, rounds=3, rule=(0, 0, ONE, 4096, 2048))
    assert tuple(world.rounds.get_velocity(task)) == NO_BLOB
    (first,) = world.play_round(task, 1, world.hospitals[:2]).decode_logs(world.rounds.Aggregated)
    assert tuple(first.velocity_before) == NO_BLOB
    assert tuple(first.velocity) != NO_BLOB
    world.tasks.pause(task, sender=world.publisher)
    (second,) = world.play_round(task, 2, world.hospitals[:2]).decode_logs(world.rounds.Aggregated)
    assert tuple(second.velocity_before) == tuple(first.velocity)
    assert world.tasks.get_task(task).state == PAUSED
    receipt = world.tasks.resume(task, sender=world.publisher)
    (opened,) = receipt.decode_logs(world.rounds.RoundOpened)
    assert (
        tuple(opened.velocity) == tuple(second.velocity) == tuple(world.rounds.get_velocity(task))
    )


def test_a_velocity_that_could_expire_must_be_declared_again(world):
    task = world.start(count=2, rounds=3, rule=(0, 0, ONE, 4096, 2048))
    world.play_round(task, 1, world.hospitals[:2])
    velocity = world.rounds.get_velocity(task)
    (name,) = [name for name in world.shelf.blobs if as_tuple(name) == tuple(velocity)]
    world.declare(world.shelf.blobs[name], retention_seconds=86_400)
    with ape.reverts("rounds: velocity expires soon"):
        world.commit(task, 2, world.hospitals[0])
    world.declare(world.shelf.blobs[name])
    world.commit(task, 2, world.hospitals[0])

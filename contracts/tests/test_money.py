"""Conservation in wei over whole lives, ordinary and random, and nobody paid twice."""

import random

import ape
import pytest
from ape.exceptions import ContractLogicError
from eth_abi import encode
from eth_utils import keccak
from world import (
    BLOB,
    CLOSE_TIMEOUT_SECONDS,
    FINISHED,
    LOBBY,
    NO_BLOB,
    PARAMETERS,
    RULE,
    RUNNING,
)

from steelyard.chain import precompile

AGGREGATE = keccak(text=f"aggregate({RULE},{BLOB},{BLOB},{BLOB}[],uint256[])")[:4]


@pytest.fixture
def wallet(wallet_type, world):
    """A participant that is a contract and calls back when it is paid."""
    return world.stranger.deploy(wallet_type)


def run_as(wallet, world, method, *arguments, value=0):
    payload = method.encode_input(*arguments)
    return wallet.execute(world.tasks, payload, value=value, sender=world.stranger)


def take_everything_out(world, task):
    """Everybody who has something in `task` takes it; refusals mean there is nothing."""
    for hospital in world.hospitals[:4]:
        if world.tasks.get_participant(task, hospital).position:
            world.tasks.leave(task, sender=hospital)
    for person in (world.keeper, world.publisher, *world.hospitals[:4]):
        if world.tasks.claimable(task, person):
            world.tasks.claim(task, sender=person)
    if world.tasks.get_account(task).left:
        world.tasks.refund(task, sender=world.publisher)


def test_an_ordinary_life_leaves_no_wei_behind(world):
    before = world.tasks.balance
    task = world.publish()
    for hospital in world.hospitals[:3]:
        world.join(task, hospital)
    for round in (1, 2):
        world.play_round(task, round, world.hospitals[:3])
        assert world.tasks.balance - before == world.compute_promises([task])
    assert world.tasks.get_task(task).state == FINISHED
    account = world.tasks.get_account(task)
    shares = 2**20 // 3 * 3 + 1
    assert PARAMETERS["reward"] * shares // 2**20 - 6 <= account.paid <= PARAMETERS["reward"]
    take_everything_out(world, task)
    account = world.tasks.get_account(task)
    assert account.deposited == account.paid + account.fees + account.refunded
    assert account.left == 0
    assert world.tasks.balance == before


def test_tasks_do_not_pay_for_each_other(world):
    rich, poor = world.start(count=2, reward=10**20), world.start(count=2, reward=0)
    world.play_round(poor, 1, world.hospitals[:2])
    account = world.tasks.get_account(rich)
    assert account.left == account.deposited
    assert world.tasks.get_account(poor).paid == 0


@pytest.mark.parametrize(
    "shares", [[2**20], [2**19, 2**19 + 1], [2**20 + 1, 0], [2**20, 2**20, 2**20]]
)
def test_a_precompile_that_shares_out_more_than_the_pool_pays_nobody(world, monkeypatch, shares):
    """The contract does not take the word even of the node for another round's money."""
    task = world.start(count=2, reward=2**21, rounds=2)
    output = [BLOB, BLOB, "uint256[]", "int256[]", "uint256[]", "uint256"]

    def call(host, data):
        if data[:4] != AGGREGATE:
            return genuine(host, data)
        return encode(
            output, [(bytes(32), 1), NO_BLOB, shares, [0] * len(shares), [0] * len(shares), 0]
        )

    genuine = precompile.call
    monkeypatch.setattr(precompile, "call", call)
    with ape.reverts("tasks: wrong shares"):
        world.play_round(task, 1, world.hospitals[:2])
    assert world.tasks.get_account(task).paid == 0


def choose_move(world, dice, task, round):
    """Mostly what the task waits for, sometimes anything."""
    anything = ["join", "start", "leave", "claim", "refund", "abort", "close", "reveal", "wait"]
    current = world.rounds.get_round(task, round)
    if dice.random() < 0.25:
        return dice.choice(anything)
    if world.tasks.get_task(task).state == LOBBY:
        return "join"
    if world.now < current.commit_ends:
        return dice.choice(["commit", "commit", "commit", "wait"])
    if world.now < current.reveal_ends:
        return dice.choice(["reveal", "reveal", "reveal", "wait"])
    return "close"


def play_randomly(world, dice, tasks):
    """Send one random transaction. Returns its name, or None if it was refused."""
    task = dice.choice(tasks)
    round = world.tasks.get_task(task).round
    hospital = dice.choice(world.hospitals[:4])
    moves = {
        "join": lambda: world.join(task, hospital, samples=dice.randint(1, 50)),
        "start": lambda: world.tasks.start(task, sender=world.publisher),
        "commit": lambda: world.commit(task, round, hospital, samples=1, value=3),
        "reveal": lambda: world.reveal(task, round, hospital),
        "close": lambda: world.close(task, round),
        "leave": lambda: world.tasks.leave(task, sender=hospital),
        "claim": lambda: world.tasks.claim(task, sender=hospital),
        "refund": lambda: world.tasks.refund(task, sender=world.publisher),
        "abort": lambda: world.tasks.abort(task, sender=world.keeper),
        "wait": lambda: world.advance(dice.choice([10, 600])),
    }
    move = choose_move(world, dice, task, round)
    try:
        moves[move]()
    except (ContractLogicError, KeyError):
        return None
    return move


def test_a_random_life_conserves_every_wei_and_ends_empty(world):
    """Many more, without ape: tests/chain/ and tests/bench/conservation.py."""
    dice = random.Random(1)
    before = world.tasks.balance
    tasks = [
        world.publish(
            rounds=dice.randint(2, 4),
            join_seconds=10_000,
            min_clients=dice.randint(1, 2),
            max_clients=dice.randint(2, 4),
            weighting=dice.randint(0, 2),
            reward=dice.randint(0, 10**19),
        )
        for _ in range(2)
    ]
    accepted = set()
    for _ in range(60):
        move = play_randomly(world, dice, tasks)
        if move is not None and move != "wait":
            accepted.add(move)
        if move in ("close", "leave", "refund"):
            assert world.tasks.balance - before == world.compute_promises(tasks)
    assert {"join", "commit", "reveal", "close"} <= accepted
    for task in tasks:
        if world.tasks.get_task(task).state == LOBBY:
            world.tasks.cancel(task, sender=world.publisher)
        elif world.tasks.get_task(task).state == RUNNING:
            world.advance(CLOSE_TIMEOUT_SECONDS + 2_000)
            world.tasks.abort(task, sender=world.keeper)
        take_everything_out(world, task)
    assert world.tasks.balance == before


# -- re-entrancy -----------------------------------------------------------------------------------


def test_a_wallet_that_calls_back_is_paid_its_stake_once(world, wallet):
    task = world.publish()
    other = world.publish()
    for each in (task, other):
        run_as(wallet, world, world.tasks.join, each, 10, value=10**16)
    wallet.prepare(world.tasks, world.tasks.leave.encode_input(other), False, sender=world.stranger)
    run_as(wallet, world, world.tasks.leave, task)
    assert wallet.balance == 10**16
    assert not wallet.reentered()
    assert world.tasks.get_participant(other, wallet).stake == 10**16
    run_as(wallet, world, world.tasks.leave, other)
    assert wallet.balance == 2 * 10**16


@pytest.mark.parametrize("view", ["get_task", "get_account", "get_participants"])
def test_a_wallet_that_is_being_paid_cannot_read_half_written_books(world, wallet, view):
    task = world.publish()
    run_as(wallet, world, world.tasks.join, task, 10, value=10**16)
    payload = getattr(world.tasks, view).encode_input(task)
    wallet.prepare(world.tasks, payload, False, sender=world.stranger)
    run_as(wallet, world, world.tasks.leave, task)
    assert not wallet.reentered()


def test_a_wallet_that_refuses_money_hurts_only_itself(world, wallet):
    task = world.publish(max_clients=2)
    run_as(wallet, world, world.tasks.join, task, 10, value=10**16)
    wallet.prepare(world.tasks, b"", True, sender=world.stranger)
    with ape.reverts():
        run_as(wallet, world, world.tasks.leave, task)
    world.join(task, world.hospitals[0])
    world.tasks.cancel(task, sender=world.publisher)
    world.tasks.leave(task, sender=world.hospitals[0])
    world.tasks.refund(task, sender=world.publisher)
    wallet.prepare(world.tasks, b"", False, sender=world.stranger)
    run_as(wallet, world, world.tasks.leave, task)
    assert wallet.balance == 10**16

"""Pruning lets go of old states, of nothing else, and survives being killed at any instant."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from steelyard.chain import proofs
from steelyard.chain.errors import SteelyardError
from steelyard.chain.traversal import Kind, list_references, list_roots
from steelyard.chain.trie import MissingState
from steelyard.chain.types import Hash
from steelyard.node import pruning
from steelyard.node.history import StatePruned, check_state, get_oldest_state
from steelyard.node.pruning import MARKS, Pruner, Pruning, prune
from steelyard.node.store import ChainStore, CorruptData, Database

from .follow_kit import Chain
from .world import ALICE, BOB, get_address, sign_transaction


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    one = Chain(tmp_path)
    for nonce in range(8):
        one.grow(1, [sign_transaction(ALICE, nonce, value=10**18)])
    yield one
    one.close()


def walk(store: ChainStore, state_root: Hash) -> set[bytes]:
    """Everything that a state is made of. Raises MissingState."""
    seen: set[bytes] = set()
    stack = list(list_roots(state_root))
    while stack:
        one = stack.pop()
        data = store.get_node(one.hash)
        if data is None:
            raise MissingState(one.hash)
        seen.add(one.hash)
        stack.extend(list_references(one.kind, data))
    return seen


def walk_at(chain: Chain, height: int) -> set[bytes]:
    block_hash = chain.store.get_hash(height)
    assert block_hash is not None
    header = chain.store.get_header(block_hash)
    assert header is not None
    return walk(chain.store, header.state_root)


def list_keys(store: ChainStore) -> set[bytes]:
    return {bytes(key) for key, _ in store.database.scan("nodes", b"", 10**6)}


def run(chain: Chain, keep: int) -> pruning.Pruned:
    return prune(chain.store, keep, lambda _: None)


def test_exactly_the_states_of_the_last_blocks_stay(chain: Chain) -> None:
    before = list_keys(chain.store)
    kept = walk_at(chain, 8) | walk_at(chain, 7) | walk_at(chain, 6)
    pruned = run(chain, 3)
    assert list_keys(chain.store) == kept
    assert (pruned.oldest_state, pruned.nodes_kept) == (6, len(kept))
    assert pruned.nodes_deleted == len(before) - len(kept) > 0
    assert pruned.bytes_freed > 0
    assert chain.store.database.scan(MARKS, b"", 1) == []


def find_inner_node(chain: Chain) -> bytes:
    """A node of some account's storage that refers to others."""
    stack = list(list_roots(chain.head.state_root))
    while stack:
        one = stack.pop()
        data = chain.store.get_node(one.hash)
        assert data is not None
        below = list_references(one.kind, data)
        if one.kind is Kind.STORAGE and below:
            return data
        stack.extend(below)
    raise AssertionError("no storage in this state")


def deploy(nonce: int, code: bytes) -> bytes:
    """A transaction that makes a contract of exactly these bytes."""
    copies = bytes.fromhex("61") + len(code).to_bytes(2, "big") + bytes.fromhex("80600a5f395ff3")
    return sign_transaction(ALICE, nonce, to=b"", data=copies + code, gas=1_000_000)


def test_a_code_with_the_bytes_of_a_node_does_not_hide_what_is_below_the_node(
    chain: Chain,
) -> None:
    node = find_inner_node(chain)
    for nonce in range(8, 14):  # several accounts, so that a walk meets one before the node
        chain.grow(1, [deploy(nonce, node)])
    whole = walk_at(chain, 14)
    run(chain, 1)
    assert list_keys(chain.store) == whole == walk_at(chain, 14)


def test_the_chain_goes_on_and_accounts_are_as_before(chain: Chain) -> None:
    run(chain, 1)
    chain.grow(2, [sign_transaction(ALICE, 8), sign_transaction(BOB, 0)])
    account = proofs.get_account(chain.store, chain.head.state_root, get_address(ALICE))
    assert account.nonce == 9
    walk_at(chain, 10)


def test_a_height_that_is_pruned_has_a_typed_error(chain: Chain) -> None:
    run(chain, 2)
    assert get_oldest_state(chain.store) == 7
    check_state(chain.store, 7)
    with pytest.raises(StatePruned, match="block 6"):
        check_state(chain.store, 6)


def test_more_blocks_than_there_are_keep_everything(chain: Chain) -> None:
    before = list_keys(chain.store)
    assert run(chain, 1_000).oldest_state == 0
    assert set.union(*(walk_at(chain, height) for height in range(9))) == list_keys(chain.store)
    assert list_keys(chain.store) <= before


def test_nothing_is_kept_of_nothing(chain: Chain) -> None:
    with pytest.raises(SteelyardError) as caught:
        run(chain, 0)
    assert caught.value.code == "prune_keep"


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small steps, so that a small chain has many."""
    monkeypatch.setattr(pruning, "MARKS_AT_ONCE", 16)
    monkeypatch.setattr(pruning, "SWEPT_AT_ONCE", 16)
    monkeypatch.setattr(pruning, "STEP_NODES", 8)


class Killed(Exception):
    """In the place of kill -9."""


@pytest.mark.parametrize("writes", range(1, 12, 2))
def test_a_kill_at_any_instant_harms_nothing(
    writes: int, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    original, done = Database.write, [0]

    def write(database: Database) -> object:
        done[0] += 1
        if done[0] > writes:
            raise Killed
        return original(database)

    monkeypatch.setattr(Database, "write", write)
    with pytest.raises(Killed):
        run(chain, 2)
    monkeypatch.setattr(Database, "write", original)
    walk_at(chain, 8)
    chain.grow(3, [sign_transaction(ALICE, 8)])  # the node runs in between
    run(chain, 2)
    assert walk_at(chain, 11) | walk_at(chain, 10) <= list_keys(chain.store)
    with pytest.raises(MissingState):
        walk_at(chain, 1)
    run(chain, 2)
    assert list_keys(chain.store) == walk_at(chain, 11) | walk_at(chain, 10)


def test_a_head_without_its_state_is_never_swept(chain: Chain) -> None:
    before = list_keys(chain.store)
    victim = sorted(walk_at(chain, 8) - {chain.head.state_root})[0]
    with chain.store.database.write() as writer:
        writer.delete("nodes", victim)
    with pytest.raises(CorruptData):
        run(chain, 2)
    assert list_keys(chain.store) == before - {victim}


def test_blocks_that_become_final_between_two_steps_are_kept(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    nonce = 8
    for steps, _ in enumerate(Pruning(chain.store, 2).run()):
        if steps % 5 == 0 and nonce < 24:
            # Back and forth: nodes that were let go come again.
            chain.grow(1, [sign_transaction(ALICE, nonce, to=bytes([nonce % 3 + 1]) * 20)])
            nonce += 1
    assert nonce == 24
    for height in (7, 8, 12, 16, chain.head.height):
        walk_at(chain, height)
    with pytest.raises(MissingState):
        walk_at(chain, 3)
    run(chain, 1)
    assert list_keys(chain.store) == walk_at(chain, chain.head.height)


def test_a_running_node_prunes_when_there_is_enough_to_let_go(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(pruning, "LEAST_PAUSE", 4)
    ticks = iter(range(10**6))
    pruner = Pruner(chain.store, 3, lambda: float(next(ticks)))  # each look ends a step
    keys = len(list_keys(chain.store))
    pruner.work()
    calls = 1
    while get_oldest_state(chain.store) != 6 or chain.store.database.scan(MARKS, b"", 1):
        pruner.work()
        calls += 1
        assert calls < 10**4
    assert calls > 10
    assert len(list_keys(chain.store)) < keys
    pruner.work()
    assert get_oldest_state(chain.store) == 6  # not again before enough blocks are final
    chain.grow(4)
    for _ in range(calls):
        pruner.work()
    assert get_oldest_state(chain.store) == 10


def test_a_node_that_keeps_all_states_walks_none(chain: Chain) -> None:
    keys = list_keys(chain.store)
    Pruner(chain.store, 0, lambda: 0.0).work()
    assert list_keys(chain.store) == keys


def test_a_pruner_that_failed_begins_again(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "LEAST_PAUSE", 0)
    pruner = Pruner(chain.store, 2, lambda: 0.0)
    original = Database.write

    def fail(_: Database) -> object:
        raise Killed

    monkeypatch.setattr(Database, "write", fail)
    with pytest.raises(Killed):
        pruner.work()
    monkeypatch.setattr(Database, "write", original)
    chain.grow(2)
    pruner.work()
    assert get_oldest_state(chain.store) == 9

"""The driver in a set of several: views without a leader, other people's blocks, lost blobs."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from eth_keys.datatypes import PrivateKey

from steelyard.chain.block import Block, compute_base_fee
from steelyard.chain.bls import (
    Signature,
    compute_public_key,
    derive_secret_key,
    prove_possession,
    sign,
)
from steelyard.chain.consensus.messages import Propose
from steelyard.chain.consensus.votes import Kind, Statement, Vote, compute_signing_root
from steelyard.chain.errors import UnavailableBlob
from steelyard.chain.genesis import (
    ConsensusSettings,
    GenesisValidator,
    create_genesis,
    encode_genesis,
)
from steelyard.chain.types import Epoch, Hash, View
from steelyard.node import builder as builder_module
from steelyard.node import driver as driver_module
from steelyard.node import tree as tree_module
from steelyard.node.builder import Builder
from steelyard.node.clock import Clock
from steelyard.node.config import NetworkConfig
from steelyard.node.driver import Driver
from steelyard.node.inbox import Arrival
from steelyard.node.keyfiles import Secrets, compute_network_key
from steelyard.node.network.mesh import Mesh, Peer
from steelyard.node.network.quota import FAULTS
from steelyard.node.network.wire import VoteMessage
from steelyard.node.node import Node
from steelyard.node.tree import BlockTree, get_candidate

from .world import (
    ALICE,
    BOB,
    CHAIN_ID,
    COIN,
    CONFIG,
    SECRETS,
    HandClock,
    found,
    get_address,
    open_node,
    sign_transaction,
    wait_for,
    wait_until,
)

OTHER = Secrets(PrivateKey(b"\x66" * 32), derive_secret_key(b"\x67" * 32), b"\x68" * 32)
OUR_PLACE, THEIR_PLACE = 0, 1
TIMEOUT_MS, HEARTBEAT_MS = 3_000, 5_000


def list_validator(secrets: Secrets, stake: int) -> GenesisValidator:
    return GenesisValidator(
        address=secrets.address,
        bls_key=compute_public_key(secrets.voting),
        proof_of_possession=prove_possession(secrets.voting),
        network_key=compute_network_key(secrets.network),
        endpoint="127.0.0.1:1",
        fee_recipient=secrets.address,
        stake=stake,
    )


@pytest.fixture
def hand() -> HandClock:
    return HandClock()


@pytest.fixture
def pair(tmp_path: Path, hand: HandClock) -> Iterator[Node]:
    """A node with five sixths of the power; the other validator leads one view in six.

    No view ends for want of time, unless a test skips some.
    """
    home = found(tmp_path / "node")
    genesis = create_genesis(
        chain_id=CHAIN_ID,
        name="pair",
        timestamp=1_700_000_000,
        validators=(list_validator(SECRETS, 5 * COIN), list_validator(OTHER, COIN)),
        alloc={get_address(ALICE): COIN, get_address(BOB): COIN},
        consensus=ConsensusSettings(timeout_ms=TIMEOUT_MS, heartbeat_ms=HEARTBEAT_MS),
    )
    (home / "genesis.json").write_bytes(encode_genesis(genesis))
    config = replace(
        CONFIG,
        blocks=replace(CONFIG.blocks, interval_seconds=0.0),
        network=NetworkConfig(listen="127.0.0.1:0"),
    )
    node = open_node(home, config, hand.clock)
    yield node
    node.stop()


def find_view(node: Node, leader: int) -> View:
    """The first view of that leader."""
    return next(
        View(view)
        for view in range(1, 1_000)
        if node.get_epoch_set().validators.get_leader(Epoch(0), View(view)) == leader
    )


# -- the other validator's blocks ------------------------------------------------------------------
def build_theirs(node: Node, view: View, timestamp: float, transactions: list[bytes]) -> Block:
    """A block of the other validator on our finalized head."""
    for raw in transactions:
        node.mempool.add(raw)
    tree = BlockTree(node.rules, node.store, node.blobs)
    clock = Clock(get_unix_seconds=lambda: timestamp)
    builder = Builder(node.rules, node.mempool, CONFIG.blocks, clock)
    parent = tree.prepare(tree.root.hash)
    root = node.store.get_block(tree.root.hash)
    assert root is not None
    return builder.build(Propose(Epoch(0), view, get_candidate(root)), parent).block


def vote_as_them(node: Node, block: Block) -> Vote:
    statement = Statement(Epoch(0), block.extension.view, Kind.NOTARIZE, block.hash)
    root = compute_signing_root(statement, node.rules.domain)
    return Vote(statement, THEIR_PLACE, sign(OTHER.voting, root))


def reach_their_view(node: Node) -> View:
    """Finalize blocks of ours until the other validator leads."""
    view, nonce = find_view(node, THEIR_PLACE), 0
    node.start()
    while node.driver.get_view() < view:
        wait_for(node, node.submit_transaction(sign_transaction(ALICE, nonce)))
        nonce += 1
    wait_until(lambda: node.driver.get_view() == view)
    return view


def send(node: Node, hand: HandClock, raw: bytes) -> int:
    """Let time pass, and so views without a leader, until a transaction is final: its height."""
    sent = node.submit_transaction(raw)

    def is_final() -> bool:
        hand.skip(node, 0.05)
        return node.find_transaction(sent) is not None

    wait_until(is_final)
    return wait_for(node, sent)


def test_a_good_block_of_another_leader_is_executed_and_final(pair: Node) -> None:
    view = reach_their_view(pair)
    transactions = [sign_transaction(BOB, 0)]
    block = build_theirs(pair, view, pair.clock.get_unix_seconds(), transactions)
    pair.driver.deliver(Arrival(block, vote_as_them(pair, block)))
    wait_until(lambda: pair.get_head().hash == block.hash)
    assert pair.get_nonce(get_address(BOB), pending=False) == 1
    wait_until(lambda: pair.get_pending() == ())


@pytest.mark.slow
def test_a_bad_block_of_another_leader_ends_its_view_and_not_the_chain(
    pair: Node, hand: HandClock
) -> None:
    view = reach_their_view(pair)
    good = build_theirs(pair, view, pair.clock.get_unix_seconds(), [])
    header = replace(good.header, state_root=Hash(b"\x01" * 32))
    block = replace(good, header=header)
    pair.driver.deliver(Arrival(block, vote_as_them(pair, block)))
    wait_until(lambda: pair.driver.get_view() > view)
    send(pair, hand, sign_transaction(BOB, 0))
    assert pair.driver.alarm is None
    assert pair.get_header(block.hash) is None


@pytest.mark.slow
def test_a_block_that_makes_us_stumble_ends_its_view_and_not_the_chain(
    pair: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = reach_their_view(pair)
    block = build_theirs(pair, view, pair.clock.get_unix_seconds(), [])
    apply = tree_module.apply_block

    def stumble(nodes, blobs, rules, parent, one, *rest):  # type: ignore[no-untyped-def]
        if one.hash == block.hash:
            raise RecursionError("a bug that this block finds")
        return apply(nodes, blobs, rules, parent, one, *rest)

    monkeypatch.setattr(tree_module, "apply_block", stumble)
    pair.driver.deliver(Arrival(block, vote_as_them(pair, block)))
    wait_until(lambda: pair.driver.get_view() > view)
    assert pair.driver.alarm is None


def test_a_block_from_the_future_waits_for_the_clock(pair: Node, hand: HandClock) -> None:
    view = reach_their_view(pair)
    block = build_theirs(pair, view, pair.clock.get_unix_seconds() + 2, [])
    pair.driver.deliver(Arrival(block, vote_as_them(pair, block)))
    session = pair.driver._session
    assert session is not None
    wait_until(lambda: session._requests.retry_at is not None)
    assert pair.get_head().hash == block.header.parent_hash
    hand.skip(pair, 1)
    wait_until(lambda: pair.get_head().hash == block.hash)


@pytest.mark.slow
def test_the_view_of_an_absent_leader_is_given_up(pair: Node, hand: HandClock) -> None:
    view = reach_their_view(pair)
    height = send(pair, hand, sign_transaction(BOB, 0))
    block = pair.get_block(Hash(pair.get_hash(height) or b""))
    assert block is not None
    assert block.extension.view > view
    assert block.extension.proposer == SECRETS.address


@pytest.mark.slow
def test_a_message_with_a_wrong_signature_changes_nothing(pair: Node, hand: HandClock) -> None:
    view = reach_their_view(pair)
    block = build_theirs(pair, view, pair.clock.get_unix_seconds(), [])
    vote = replace(
        vote_as_them(pair, block), signature=vote_as_them(pair, block).signature[:-1] + b"\0"
    )
    pair.driver.deliver(Arrival(block, vote))
    send(pair, hand, sign_transaction(BOB, 0))
    assert pair.get_header(block.hash) is None
    assert pair.driver.alarm is None


@pytest.mark.slow
def test_a_validator_that_floods_forged_votes_is_muted_and_the_chain_goes_on(
    pair: Node, hand: HandClock
) -> None:
    pair.start()
    network = pair.membership.network
    assert network is not None
    endpoint = network.mesh.endpoint  # type: ignore[attr-defined]
    ours = Peer(SECRETS.address, compute_network_key(SECRETS.network), endpoint)
    flood = Mesh(OTHER.network, "127.0.0.1:0", NetworkConfig(), lambda _peer, _message: None)
    flood.set_peers([ours])
    flood.start()
    try:
        wait_until(lambda: flood.get_peers()[0].is_connected)
        view = View(pair.driver.get_view() + 4)
        for number in range(1, 4 * FAULTS):
            said = Statement(Epoch(0), view, Kind.NOTARIZE, Hash(number.to_bytes(32, "big")))
            flood.broadcast(VoteMessage(Vote(said, THEIR_PLACE, Signature(b"\xff" * 96))))
        wait_until(lambda: pair.get_status().network.muted == 1)
        assert pair.get_status().network.refused["vote_signature"] > FAULTS
        send(pair, hand, sign_transaction(BOB, 0))
    finally:
        flood.stop()
    assert pair.driver.alarm is None


# -- what a transaction provokes here --------------------------------------------------------------
@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = open_node(found(tmp_path / "node"))
    yield node
    node.stop()


@pytest.mark.parametrize(
    ("error", "stays"), [(UnavailableBlob("blob_unavailable", "lost"), 1), (ValueError("bug"), 0)]
)
def test_a_transaction_that_cannot_be_executed_here_does_not_stop_the_chain(
    node: Node, monkeypatch: pytest.MonkeyPatch, error: Exception, stays: int
) -> None:
    poison = sign_transaction(ALICE, 0, tip=10**7)
    build_block = builder_module.build_block

    def build(*arguments: object) -> object:
        *front, transactions, current, should_stop = arguments

        def iter_transactions() -> Iterator[bytes]:
            for raw in transactions:  # type: ignore[attr-defined]
                if raw == poison:
                    raise error
                yield raw

        return build_block(*front, iter_transactions(), current, should_stop)  # type: ignore[arg-type]

    monkeypatch.setattr(builder_module, "build_block", build)
    node.submit_transaction(poison)
    good = node.submit_transaction(sign_transaction(BOB, 0))
    node.start()
    wait_for(node, good)
    # A receipt can be read a moment before its transaction leaves the pool.
    wait_until(lambda: [one.raw for one in node.get_pending()] == [poison] * stays)
    assert node.get_nonce(get_address(ALICE), pending=False) == 0
    assert node.driver.alarm is None


def test_a_builder_that_has_no_time_takes_one_transaction_and_no_more(node: Node) -> None:
    """An empty block would make all that waits wait for a heartbeat."""
    for nonce in range(3):
        node.mempool.add(sign_transaction(ALICE, nonce))
    ticks = itertools.count()
    clock = Clock(lambda: 10.0 * next(ticks))  # each look at it finds that the time is over
    tree = BlockTree(node.rules, node.store, node.blobs)
    root = node.store.get_block(tree.root.hash)
    assert root is not None
    builder = Builder(node.rules, node.mempool, CONFIG.blocks, clock)
    request = Propose(Epoch(0), View(1), get_candidate(root))
    built = builder.build(request, tree.prepare(tree.root.hash))
    assert built.block.transactions == (sign_transaction(ALICE, 0),)


def test_a_database_that_is_full_stops_production_and_keeps_what_is_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "RETRY_SECONDS", 3_600.0)  # the alarm stays until we looked
    config = replace(CONFIG, storage=replace(CONFIG.storage, map_bytes=600 * 1024))
    node = open_node(found(tmp_path / "node"), config)
    node.start()
    nonce = 0
    while node.driver.alarm is None and nonce < 64:
        node.submit_transaction(
            sign_transaction(ALICE, nonce, data=b"\x01" * 100_000, gas=5_000_000, fee=2 * 10**9)
        )
        before = nonce
        wait_until(
            lambda before=before: (
                node.driver.alarm is not None
                or node.get_nonce(get_address(ALICE), pending=False) > before
            )
        )
        nonce += 1
    assert node.driver.alarm is not None
    assert node.driver.alarm.code == "disk_full"
    assert "map_bytes" in node.driver.alarm.message
    head = node.get_head()
    assert node.get_block(head.hash) is not None
    node.stop()
    node = open_node(tmp_path / "node")
    assert node.get_head() == head
    node.start()
    wait_for(node, node.submit_transaction(sign_transaction(BOB, 0)))
    node.stop()


def test_the_base_fee_of_the_next_block_is_the_chains(node: Node) -> None:
    expected = compute_base_fee(node.get_head(), node.rules.min_base_fee)
    assert node.get_next_base_fee() == expected


def test_the_rank_of_a_leader_is_zero(node: Node) -> None:
    assert isinstance(node.driver, Driver)
    assert node.driver.get_rank() == 0

"""Four whole nodes: they agree, go on without one, stop without two, and go on again."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from steelyard.chain.block import Block, compute_extension_hash
from steelyard.chain.consensus.messages import Propose
from steelyard.chain.execute import Built
from steelyard.chain.types import Epoch, Hash, View
from steelyard.node.node import Node
from steelyard.node.tree import Parent

from .cluster import Cluster, make_document
from .world import ALICE, BOB, get_address, make_blob, sign_transaction, upload

Begin = Callable[..., Cluster]
FOUR = (10, 10, 10, 10)
A = get_address(ALICE)


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Makes a cluster and starts its nodes."""
    clusters: list[Cluster] = []

    def make(stakes: tuple[int, ...] = FOUR, **changes: object) -> Cluster:
        document = make_document(stakes, **changes)  # type: ignore[arg-type]
        cluster = Cluster(tmp_path / str(len(clusters)), document, len(stakes))
        clusters.append(cluster)
        cluster.start()
        return cluster

    yield make
    for cluster in clusters:
        cluster.close()


def finalize(cluster: Cluster, *nonces: int) -> None:
    """Transfers of Alice, one after the other, until every node that runs has each."""
    for nonce in nonces:
        sent = cluster.submit(sign_transaction(ALICE, nonce))
        cluster.run(
            lambda sent=sent: all(one.find_transaction(sent) for one in cluster.nodes.values())
        )


@pytest.mark.slow
def test_four_validators_make_the_same_chain_final(begin: Begin) -> None:
    cluster = begin()
    finalize(cluster, 0, 1)
    cluster.check_agreement()
    assert {one.get_nonce(A, pending=False) for one in cluster.nodes.values()} == {2}
    assert {one.driver.count_timeouts() for one in cluster.nodes.values()} == {0}


@pytest.mark.slow
def test_a_blob_goes_from_whoever_has_it_to_all_before_they_vote(begin: Begin) -> None:
    cluster = begin()
    name, data = make_blob(5_000)
    sent = cluster.submit(sign_transaction(ALICE, 0, blobs=(name,)))
    leader = cluster.nodes[0].get_epoch_set().validators.get_leader(Epoch(0), View(1))
    upload(cluster.nodes[leader], data)
    cluster.run(lambda: all(one.find_transaction(sent) for one in cluster.nodes.values()))
    cluster.run(lambda: all(one.blobs.has(name) for one in cluster.nodes.values()))
    cluster.check_agreement()


@pytest.mark.slow
def test_a_blob_that_nobody_serves_costs_its_view_and_nothing_else(begin: Begin) -> None:
    cluster = begin()
    name, data = make_blob(5_000)
    cluster.withheld.add(name)
    lost = cluster.submit(sign_transaction(BOB, 0, blobs=(name,)))
    upload(cluster.nodes[0], data)
    finalize(cluster, 0, 1, 2)
    assert cluster.nodes[1].find_transaction(lost) is None
    assert {one.driver.alarm for one in cluster.nodes.values()} == {None}
    cluster.withheld.clear()
    cluster.run(lambda: all(one.find_transaction(lost) for one in cluster.nodes.values()))


@pytest.mark.slow
def test_three_go_on_without_the_fourth_which_then_catches_up(begin: Begin) -> None:
    cluster = begin(epoch_blocks=3)
    finalize(cluster, 0)
    cluster.kill(3)
    finalize(cluster, *range(1, 7))
    assert cluster.get_height() > 6, "two epochs ended meanwhile"
    cluster.start(3)
    cluster.run(lambda: cluster.nodes[3].get_nonce(A, pending=False) == 7)
    finalize(cluster, 7)
    cluster.check_agreement()
    assert cluster.nodes[3].driver.is_validator()
    assert cluster.nodes[3].get_epoch_set().epoch >= 2
    cluster.check_honesty()


@pytest.mark.slow
def test_two_of_four_make_nothing_final_and_go_on_when_a_third_is_back(begin: Begin) -> None:
    cluster = begin()
    finalize(cluster, 0)
    height = cluster.get_height()
    cluster.kill(2, 3)
    sent = cluster.submit(sign_transaction(ALICE, 1))
    cluster.rest(60)
    assert cluster.nodes[0].find_transaction(sent) is None
    assert cluster.get_height() <= height + 1, "a block may have been final already"
    cluster.start(2)
    cluster.run(lambda: all(one.find_transaction(sent) for one in cluster.nodes.values()))
    cluster.start(3)
    cluster.run(lambda: all(one.find_transaction(sent) for one in cluster.nodes.values()))
    cluster.check_agreement()


@pytest.mark.slow
def test_one_that_comes_back_is_enough_when_another_goes(begin: Begin) -> None:
    """It doubts its signer, as others went on meanwhile; that costs a few views, no more."""
    cluster = begin()
    finalize(cluster, 0)
    cluster.kill(3)
    finalize(cluster, 1, 2)
    cluster.kill(2)
    cluster.start(3)
    began = cluster.now
    finalize(cluster, 3)
    assert cluster.now - began < 30
    cluster.check_agreement()
    cluster.check_honesty()


@pytest.mark.slow
def test_a_partition_in_halves_stops_finality_and_heals_by_itself(begin: Begin) -> None:
    cluster = begin()
    finalize(cluster, 0)
    cluster.part({0, 1}, {2, 3})
    sent = cluster.submit(sign_transaction(ALICE, 1))
    cluster.rest(60)
    assert not any(one.find_transaction(sent) for one in cluster.nodes.values())
    cluster.part()
    cluster.run(lambda: all(one.find_transaction(sent) for one in cluster.nodes.values()))
    cluster.check_agreement()


@pytest.mark.slow
def test_all_killed_at_once_go_on_where_they_were(begin: Begin) -> None:
    cluster = begin(epoch_blocks=3)
    finalize(cluster, 0, 1, 2)
    cluster.kill(0, 1, 2, 3)
    cluster.start()
    finalize(cluster, 3, 4)
    cluster.check_agreement()


# -- leaders that cheat ----------------------------------------------------------------------------
def change_root(block: Block) -> Block:
    return replace(block, header=replace(block.header, state_root=Hash(b"\x01" * 32)))


def change_extension(block: Block) -> Block:
    extension = replace(block.extension, next_validator_set_hash=Hash(b"\x02" * 32))
    header = replace(block.header, parent_beacon_block_root=compute_extension_hash(extension))
    return Block(header, extension, block.transactions, block.withdrawals)


def change_timestamp(block: Block) -> Block:
    return replace(block, header=replace(block.header, timestamp=block.header.timestamp + 3_600))


def change_past(block: Block) -> Block:
    return replace(block, header=replace(block.header, timestamp=1))


def change_gas(block: Block) -> Block:
    return replace(block, header=replace(block.header, gas_used=block.header.gas_used + 1))


def change_coinbase(block: Block) -> Block:
    return replace(block, header=replace(block.header, coinbase=A))


def change_transactions(block: Block) -> Block:
    """Other contents than the header names."""
    return replace(block, transactions=(*block.transactions, b"\x02junk"))


CHANGES = (
    change_root,
    change_extension,
    change_timestamp,
    change_past,
    change_gas,
    change_coinbase,
    change_transactions,
)


def corrupt(node: Node, change: Callable[[Block], Block]) -> None:
    """Make this node's blocks wrong, as its leader would build them on purpose."""
    builder = node.driver._parts.builder
    build = builder.build

    def build_wrong(request: Propose, parent: Parent) -> Built:
        built = build(request, parent)
        return Built(change(built.block), built.outcome)

    builder.build = build_wrong  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_wrong_block_is_nullified_and_the_chain_goes_on(
    begin: Begin, change: Callable[[Block], Block]
) -> None:
    cluster = begin()
    for node in cluster.nodes.values():
        corrupt(node, lambda block, node=node: change(block) if is_odd(block) else block)
    finalize(cluster, 0, 1)
    cluster.check_agreement()
    blocks = [get_block(cluster.nodes[0], one) for one in range(1, cluster.get_height() + 1)]
    assert not any(is_odd(block) for block in blocks)
    assert blocks[-1].extension.view > len(blocks), "no view was given up"
    assert {one.driver.alarm for one in cluster.nodes.values()} == {None}


def is_odd(block: Block) -> bool:
    return block.extension.view % 2 == 1


def get_block(node: Node, height: int) -> Block:
    block = node.get_block(Hash(node.get_hash(height) or b""))
    assert block is not None
    return block

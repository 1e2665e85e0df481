"""A node whose key enters the validators at a boundary votes from the next epoch on; one that left
follows."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount

from steelyard.chain.bls import compute_public_key, prove_possession
from steelyard.chain.epochs import EpochSet, Member, get_genesis_set
from steelyard.chain.errors import InvalidKey, SteelyardError
from steelyard.chain.genesis import build_genesis, parse_genesis
from steelyard.chain.params import STAKING_ADDRESS
from steelyard.chain.types import Epoch, View
from steelyard.node.keyfiles import Secrets, compute_network_key
from steelyard.node.membership import Membership
from steelyard.node.network.service import Network
from steelyard.node.outbox import Nobody
from steelyard.node.wallet import encode_call

from .cluster import Cluster, make_document, make_secrets
from .test_cluster import finalize
from .world import COIN, sign_transaction

EPOCH_BLOCKS = 4
NEW = 4


def get_account(secrets: Secrets) -> LocalAccount:
    account: LocalAccount = Account.from_key(secrets.account.to_bytes())
    return account


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Four validators and a fifth node that follows."""
    document = make_document((10,) * NEW, epoch_blocks=EPOCH_BLOCKS)
    cluster = Cluster(tmp_path / "nodes", document, NEW + 1)
    cluster.start()
    yield cluster
    cluster.close()


def deposit(cluster: Cluster) -> None:
    secrets = cluster.secrets[NEW]
    data = encode_call(
        "deposit(bytes,bytes,bytes32,string,address)",
        compute_public_key(secrets.voting),
        prove_possession(secrets.voting),
        compute_network_key(secrets.network),
        "127.0.0.1:99",
        secrets.address,
    )
    raw = sign_transaction(
        get_account(secrets), 0, to=STAKING_ADDRESS, value=100 * COIN, data=data, gas=2_000_000
    )
    sent = cluster.submit(raw)
    cluster.run(lambda: all(one.find_transaction(sent) for one in cluster.nodes.values()))


@pytest.mark.slow
def test_a_validator_that_joins_votes_from_the_next_epoch_on(cluster: Cluster) -> None:
    node = cluster.nodes[NEW]
    finalize(cluster, 0)
    assert not node.driver.is_validator()
    assert cluster.said[node.address] == []
    deposit(cluster)
    cluster.run(node.driver.is_validator)
    epoch = node.get_epoch_set().epoch
    assert epoch >= 1
    assert len(node.get_epoch_set().members) == NEW + 1
    cluster.kill(0)  # with most of the power the new one is needed
    finalize(cluster, 1, 2)
    assert min(said.epoch for said in cluster.said[node.address]) == epoch
    proposers = {
        block.extension.proposer
        for height in range(1, node.get_head().height + 1)
        if (block := node.get_block(node.get_hash(height) or b"")) is not None  # type: ignore[arg-type]
    }
    assert node.address in proposers
    cluster.check_agreement()
    cluster.check_honesty()


@pytest.mark.slow
def test_a_validator_that_leaves_follows_from_the_next_epoch_on(cluster: Cluster) -> None:
    node = cluster.nodes[3]
    cluster.run(node.driver.is_validator)
    account = get_account(cluster.secrets[3])
    data = encode_call("request_exit()")
    cluster.submit(sign_transaction(account, 0, to=STAKING_ADDRESS, value=0, data=data, gas=10**6))
    cluster.run(lambda: not node.driver.is_validator())
    assert node.get_epoch_set().find(node.address) is None
    finalize(cluster, 0)
    cluster.check_agreement()
    assert {said.epoch for said in cluster.said[node.address]} == {node.get_epoch_set().epoch - 1}


class Wires:
    """Networks that a membership opens and closes."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.closed = 0
        self.refusal: SteelyardError | None = None

    def connect(self, member: Member) -> Network:
        if self.refusal is not None:
            raise self.refusal
        self.opened.append(member.endpoint)
        return cast(Network, Nobody())

    def disconnect(self, network: Network) -> None:
        self.closed += 1


def test_a_node_is_connected_while_it_is_one_of_several_validators() -> None:
    genesis = parse_genesis(make_document((10, 10, 10)))
    several = get_genesis_set(genesis)
    alone = EpochSet(Epoch(1), several.members[:1])
    others = EpochSet(Epoch(2), several.members[1:])
    wires = Wires()
    membership = Membership(several.members[0].address, wires.connect, wires.disconnect)
    head = build_genesis(genesis).block.header
    for sets, opened, closed in [
        ((alone,), 0, 0),
        ((several, alone), 1, 0),
        ((others, several), 1, 0),
        ((others,), 1, 1),
        ((several,), 2, 1),
        ((alone,), 2, 2),
    ]:
        membership.set_place(sets, View(1), head)
        assert (len(wires.opened), wires.closed) == (opened, closed)


def test_a_port_that_is_taken_is_an_alarm_once_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    genesis = parse_genesis(make_document((10, 10, 10)))
    several, wires = get_genesis_set(genesis), Wires()
    membership = Membership(several.members[0].address, wires.connect, wires.disconnect)
    head = build_genesis(genesis).block.header
    wires.refusal = SteelyardError("port_taken", "by another process")
    for _ in range(3):
        membership.set_place((several,), View(1), head)
    assert caplog.text.count("network_failed") == 1
    wires.refusal = None
    membership.set_place((several,), View(1), head)
    assert wires.opened


def test_an_account_with_another_voting_key_is_refused_at_the_start(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, make_document((10, 10, 10, 10)), 4)
    cluster.secrets[3] = replace(cluster.secrets[3], voting=make_secrets(7).voting)
    with pytest.raises(InvalidKey) as caught:
        cluster.start(3)
    assert caught.value.code == "key_validator"

"""Four real networks on 127.0.0.1: threads, sockets, encryption."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from steelyard.chain.consensus.messages import VoteReceived
from steelyard.node.clock import Clock
from steelyard.node.config import NetworkConfig
from steelyard.node.keyfiles import compute_network_key
from steelyard.node.network.mesh import Mesh
from steelyard.node.network.wire import CHUNK_BYTES
from tests.chain.following_kit import FOUR, certify, make_blocks
from tests.node.world import BOB, make_blob, sign_transaction

from .kit import wait_until
from .test_service import VOTE
from .web import Spot

BLOB, DATA = make_blob(20 * CHUNK_BYTES + 7)
TRANSACTION = sign_transaction(BOB, 0, blobs=(BLOB,))


@pytest.fixture
def spots(tmp_path: Path) -> Iterator[list[Spot]]:
    config, clock = NetworkConfig(), Clock()
    secrets = [bytes([0x40 + place]) * 32 for place in range(4)]
    spots = [
        Spot(
            tmp_path / str(place),
            place,
            clock,
            lambda on_message, secret=secret: Mesh(secret, "127.0.0.1:0", config, on_message),
            config,
        )
        for place, secret in enumerate(secrets)
    ]
    meshes = [spot.network.mesh for spot in spots]
    for spot in spots:
        spot.network.start()
    members = tuple(
        replace(member, network_key=compute_network_key(secret), endpoint=mesh.endpoint)
        for member, secret, mesh in zip(FOUR.members, secrets, meshes, strict=True)
        if isinstance(mesh, Mesh)
    )
    for spot in spots:
        spot.epoch_sets = (replace(FOUR, members=members),)
        spot.set_place()
    yield spots
    for spot in spots:
        spot.network.stop()
        spot.close()


def count_connected(spot: Spot) -> int:
    return sum(one.is_connected for one in spot.network.get_status().peers)


@pytest.mark.slow
def test_blobs_votes_and_segments_travel_over_sockets(spots: list[Spot]) -> None:
    wait_until(lambda: all(count_connected(spot) == 3 for spot in spots))
    spots[0].pool.add(TRANSACTION)
    wait_until(lambda: all(spot.has(TRANSACTION) for spot in spots))
    spots[0].upload(DATA)
    wait_until(lambda: all(spot.count_eligible() == 1 for spot in spots))
    assert all(bytes(spot.blobs.read(BLOB)) == DATA for spot in spots)
    spots[0].network.broadcast(VOTE, None)
    wait_until(lambda: all(VoteReceived(VOTE) in spot.incoming for spot in spots[1:]))
    (epoch_set,) = spots[0].epoch_sets
    chain = make_blocks(6, epoch_set)
    spots[1].finalize(chain, certify(chain[5].hash, current=epoch_set))
    wait_until(lambda: all(spot.store.get_head().height == 6 for spot in spots))
    wait_until(lambda: not any(spot.network.get_status().is_catching_up for spot in spots))

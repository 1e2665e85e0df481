"""Four whole nodes: they agree, go on without one, stop without two, and go on again."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .cluster import Cluster, make_document
from .world import ALICE, get_address, sign_transaction

Begin = Callable[..., Cluster]
FOUR = (10, 10, 10, 10)


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


def test_four_validators_make_the_same_chain_final(begin: Begin) -> None:
    cluster = begin()
    for nonce in range(3):
        sent = cluster.submit(sign_transaction(ALICE, nonce))
        cluster.run(
            lambda sent=sent: all(one.find_transaction(sent) for one in cluster.nodes.values())
        )
    cluster.check_agreement()
    assert {one.get_nonce(get_address(ALICE), pending=False) for one in cluster.nodes.values()} == {
        3
    }
    assert cluster.now < 1_010, cluster.now

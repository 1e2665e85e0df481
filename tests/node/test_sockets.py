"""Four nodes in one process, each with its threads, talking over real sockets on 127.0.0.1."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from steelyard.node.config import CONFIG_FILE, encode_config
from steelyard.node.directory import GENESIS_FILE
from steelyard.node.node import Node

from .cluster import make_document, make_secrets
from .world import ALICE, CONFIG, make_blob, sign_transaction, upload, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
COUNT = 4


def find_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    for first in range(20_000, 60_000, 2 * count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    first = find_ports(2 * COUNT)
    document = make_document((10,) * COUNT, first_port=first, heartbeat_ms=60_000)
    opened = []
    for place in range(COUNT):
        home = tmp_path / str(place)
        home.mkdir()
        (home / GENESIS_FILE).write_bytes(document)
        (home / CONFIG_FILE).write_text(encode_config(CONFIG))
        opened.append(Node.open(home, make_secrets(place), CONFIG))
    for node in opened:
        node.start()
    yield opened
    for node in opened:
        node.stop()


def test_four_nodes_agree_over_sockets(nodes: list[Node]) -> None:
    for nonce in range(3):
        sent = nodes[nonce].submit_transaction(sign_transaction(ALICE, nonce))
        wait_until(lambda sent=sent: all(one.find_transaction(sent) for one in nodes))
    name, data = make_blob(300_000)
    sent = nodes[0].submit_transaction(sign_transaction(ALICE, 3, blobs=(name,)))
    upload(nodes[0], data)
    wait_until(lambda: all(one.find_transaction(sent) for one in nodes))
    wait_until(lambda: all(one.blobs.has(name) for one in nodes))
    height = min(one.get_head().height for one in nodes)
    assert len({one.get_hash(height) for one in nodes}) == 1
    assert all(one.driver.alarm is None for one in nodes)

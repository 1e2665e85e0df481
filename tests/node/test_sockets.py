"""Four nodes in one process, each with its threads, talking over real sockets on 127.0.0.1."""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from steelyard.chain.errors import SteelyardError
from steelyard.node.config import CONFIG_FILE, encode_config
from steelyard.node.directory import GENESIS_FILE
from steelyard.node.node import Node
from steelyard.node.ports import get_first_outgoing

from .cluster import make_document, make_secrets
from .world import ALICE, CONFIG, make_blob, sign_transaction, upload, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
COUNT = 4


def start_all(directory: Path, first: int, stack: ExitStack) -> list[Node]:
    """Nodes on the ports from `first` on. Raises SteelyardError port_taken."""
    document = make_document((10,) * COUNT, first_port=first, heartbeat_ms=60_000)
    nodes = []
    for place in range(COUNT):
        home = directory / str(place)
        home.mkdir(parents=True)
        (home / GENESIS_FILE).write_bytes(document)
        (home / CONFIG_FILE).write_text(encode_config(CONFIG))
        nodes.append(Node.open(home, make_secrets(place), CONFIG))
        stack.callback(nodes[-1].stop)
    for node in nodes:
        node.start()
    return nodes


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    """The document names their ports before they are bound, so others may be faster."""
    for attempt in range(5):
        first = random.randrange(10_000, get_first_outgoing() - 2 * COUNT)
        with ExitStack() as stack:
            try:
                opened = start_all(tmp_path / str(attempt), first, stack)
            except SteelyardError as error:
                if error.code != "port_taken":
                    raise
                continue
            yield opened
            return
    pytest.fail("no free ports")


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

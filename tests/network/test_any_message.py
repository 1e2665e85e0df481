"""Whatever decodes may come from a validator: nothing of it breaks what serves the others."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steelyard.node.network.wire import BlobChunk, BlobRequest, Message
from tests.chain.following_kit import certify, make_blocks
from tests.node.world import ALICE, BOB, make_blob, sign_transaction

from .messages import messages
from .web import Web

FIRST = sign_transaction(ALICE, 0)
BLOB, DATA = make_blob(1_000)
BLOB_TRANSACTION = sign_transaction(BOB, 0, blobs=(BLOB,))
CHAIN = make_blocks(3)
near = st.sampled_from((BlobRequest(BLOB, 0), BlobChunk(BLOB, 0, DATA), BlobChunk(BLOB, 0, b"x")))
"""What could be mistaken for something that was asked for."""


@pytest.mark.slow
def test_no_message_of_a_validator_breaks_anything(tmp_path: Path) -> None:
    web = Web(tmp_path)
    web.spots[1].finalize(CHAIN, certify(CHAIN[-1].hash))
    target, liar = web.spots[0].network, web.wires[0].peers[web.spots[3].address]

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.one_of(messages, near), min_size=5, max_size=30))
    def send(several: list[Message]) -> None:
        for message in several:
            target.on_message(liar, message)
        target.loop.run_once()
        target.bulk.run_once()
        web.now += 0.3

    send()
    assert target.loop.failures == target.bulk.failures == 0
    web.spots[1].pool.add(FIRST)
    web.spots[2].pool.add(BLOB_TRANSACTION)
    web.spots[2].upload(DATA)
    web.run(10.0)
    assert web.spots[0].has(FIRST)
    assert web.spots[0].count_eligible() == 2
    assert web.spots[0].store.get_head() == CHAIN[-1].header
    web.close()

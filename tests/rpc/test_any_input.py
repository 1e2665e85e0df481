"""Laws: no body and no arguments, however strange, cause an internal error."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.chain.errors import SteelyardError
from steelyard.chain.receipts import Log
from steelyard.node.rpc.dispatcher import Caller, Dispatcher, Lane, encode_json
from steelyard.node.rpc.errors import INTERNAL_ERROR, RpcError
from steelyard.node.rpc.methods import build_methods
from steelyard.node.workers import WorkerPool

from .double import CONTRACT, TOPIC, DoubleNode, sign

if TYPE_CHECKING:
    from steelyard.node.node import Node

HEX = st.sampled_from(["0x", "0x0", "0x1", "0x01", "0X1", "0x" + "0" * 64, "0x" + "c0" * 20])
WORDS = st.sampled_from(
    ["latest", "pending", "earliest", "newHeads", "logs", "0x" + TOPIC.hex(), "0x" + "f" * 65]
)
KEYS = st.sampled_from(
    [
        *("to", "from", "data", "input", "gas", "value", "nonce", "accessList", "gasPrice", "type"),
        *("address", "topics", "fromBlock", "toBlock", "blockHash", "blockNumber", "storageKeys"),
    ]
)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
)
ANYTHING = st.recursive(
    LEAVES | HEX | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> DoubleNode:
    node = DoubleNode(Path(tmp_path_factory.mktemp("blobs")))
    node.add_block([sign(1), sign(2, kind=1)], [Log(CONTRACT, (TOPIC,), b"\x01")])
    return node


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_no_arguments_cause_an_internal_error(chain: DoubleNode, data: st.DataObject) -> None:
    methods = build_methods(cast("Node", chain), "0")
    name = data.draw(st.sampled_from(sorted(methods)), "method")
    params = data.draw(st.lists(ANYTHING, max_size=4) | ANYTHING, "params")
    try:
        encode_json(methods[name].handler(params, Caller("10.0.0.1")))
    except (RpcError, SteelyardError):
        return


class Inline:
    """A pool without threads."""

    async def run(self, work: Callable[[], bytes]) -> bytes:
        return work()


@pytest.mark.slow
@given(body=st.binary(max_size=60) | ANYTHING.map(lambda one: json.dumps(one).encode()))
@settings(max_examples=200, deadline=None)
def test_every_body_gets_json_or_nothing(chain: DoubleNode, body: bytes) -> None:
    pool = cast(WorkerPool, Inline())
    methods = build_methods(cast("Node", chain), "0")
    lanes = {Lane.QUICK: pool, Lane.HEAVY: pool}
    dispatcher = Dispatcher(methods, lanes, lambda *_: None)
    answered = asyncio.run(dispatcher.answer(body, Caller("10.0.0.1")))
    parsed = [] if answered is None else json.loads(answered)
    for one in parsed if isinstance(parsed, list) else [parsed]:
        assert one.get("error", {}).get("code") != INTERNAL_ERROR

"""Each method against a chain in memory: shapes, nulls, and the errors that clients act on."""

import pytest
from eth_abi import encode

from steelyard.chain.block import Block
from steelyard.chain.errors import SteelyardError, UnavailableBlob
from steelyard.chain.execute import CallResult
from steelyard.chain.receipts import Log
from steelyard.chain.transactions import decode_transaction
from steelyard.chain.types import Hash

from .conftest import Rpc
from .double import BASE_FEE, CONTRACT, OTHER_TOPIC, SENDER, TIP, TOPIC, DoubleNode, sign

UNKNOWN = "0x" + "99" * 32
TO = "0x" + CONTRACT.hex()


def to_hex(data: bytes) -> str:
    return "0x" + data.hex()


@pytest.fixture(scope="module")
def block(node: DoubleNode) -> Block:
    """A block with one transaction of each type, the first with two logs."""
    node.add_block([sign(90)], [Log(CONTRACT, (TOPIC,), b"earlier")])
    raws = [sign(1), sign(2, kind=1, accessList=[{"address": TO, "storageKeys": [UNKNOWN]}])]
    logs = [Log(CONTRACT, (TOPIC, OTHER_TOPIC), b"\x01"), Log(CONTRACT, (), b"")]
    return node.add_block([*raws, sign(3, kind=0)], logs)


def test_identity(rpc: Rpc) -> None:
    assert rpc.call("eth_chainId") == "0x1e25"
    assert rpc.call("net_version") == "7717"
    assert rpc.call("web3_clientVersion").startswith("steelyard/v")
    assert rpc.call("eth_syncing") is False
    assert rpc.call("eth_accounts") == []
    assert rpc.call("web3_sha3", "0x") == (
        "0xc5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    )


def test_a_block_has_the_fields_of_a_prague_header(rpc: Rpc, block: Block) -> None:
    shown = rpc.call("eth_getBlockByNumber", "latest", False)
    assert shown["hash"] == to_hex(block.hash)
    assert shown["number"] == hex(block.height)
    assert shown["transactions"] == [
        to_hex(decode_transaction(raw).hash) for raw in block.transactions
    ]
    assert set(shown) == {
        "number", "hash", "parentHash", "sha3Uncles", "miner", "stateRoot", "transactionsRoot",
        "receiptsRoot", "logsBloom", "difficulty", "gasLimit", "gasUsed", "timestamp", "extraData",
        "mixHash", "nonce", "baseFeePerGas", "withdrawalsRoot", "blobGasUsed", "excessBlobGas",
        "parentBeaconBlockRoot", "requestsHash", "size", "transactions", "uncles", "withdrawals",
    }  # fmt: skip


def test_a_block_is_found_by_height_tag_and_hash(rpc: Rpc, block: Block) -> None:
    by_hash = rpc.call("eth_getBlockByHash", to_hex(block.hash), True)
    assert by_hash == rpc.call("eth_getBlockByNumber", hex(block.height), True)
    assert by_hash == rpc.call("eth_getBlockByNumber", "finalized", True)
    assert by_hash["transactions"][1]["hash"] == by_hash["transactions"][1]["hash"]
    assert rpc.call("eth_getBlockByNumber", "earliest", False)["number"] == "0x0"


def test_what_is_not_there_is_null(rpc: Rpc) -> None:
    assert rpc.call("eth_getBlockByNumber", "0xffff", False) is None
    assert rpc.call("eth_getBlockByHash", UNKNOWN, False) is None
    assert rpc.call("eth_getTransactionByHash", UNKNOWN) is None
    assert rpc.call("eth_getTransactionReceipt", UNKNOWN) is None
    assert rpc.call("eth_getBlockReceipts", "0xffff") is None
    assert rpc.call("eth_getBlockTransactionCountByHash", UNKNOWN) is None
    assert rpc.call("eth_getTransactionByBlockNumberAndIndex", "latest", "0x99") is None


def test_a_transaction_is_the_same_wherever_it_is_found(rpc: Rpc, block: Block) -> None:
    raw = decode_transaction(block.transactions[0])
    shown = rpc.call("eth_getTransactionByHash", to_hex(raw.hash))
    number, block_hash = hex(block.height), to_hex(block.hash)
    assert shown == rpc.call("eth_getTransactionByBlockNumberAndIndex", number, "0x0")
    assert shown == rpc.call("eth_getTransactionByBlockHashAndIndex", block_hash, "0x0")
    assert shown["from"] == SENDER.address
    assert shown["type"] == "0x2"
    assert int(shown["gasPrice"], 16) == BASE_FEE + TIP
    assert (int(shown["r"], 16), int(shown["s"], 16)) == (raw.r, raw.s)
    assert shown["v"] == shown["yParity"] == hex(raw.y_parity)
    assert rpc.call("eth_getBlockTransactionCountByNumber", number) == "0x3"


def test_each_transaction_type_shows_its_own_fields(rpc: Rpc, block: Block) -> None:
    dynamic, listed, legacy = rpc.call("eth_getBlockByNumber", "latest", True)["transactions"]
    assert "maxFeePerGas" in dynamic
    assert "maxFeePerGas" not in listed
    assert listed["accessList"] == [{"address": dynamic["to"], "storageKeys": [UNKNOWN]}]
    assert "accessList" not in legacy
    assert int(legacy["v"], 16) in (7717 * 2 + 35, 7717 * 2 + 36)


def test_a_pending_transaction_has_no_block(rpc: Rpc) -> None:
    raw = sign(77)
    sent = rpc.call("eth_sendRawTransaction", to_hex(raw))
    assert sent == to_hex(decode_transaction(raw).hash)
    shown = rpc.call("eth_getTransactionByHash", sent)
    assert shown["blockHash"] is shown["blockNumber"] is shown["transactionIndex"] is None
    assert rpc.call("eth_getTransactionReceipt", sent) is None


def test_a_receipt_places_its_logs_in_the_block(rpc: Rpc, block: Block) -> None:
    receipts = rpc.call("eth_getBlockReceipts", "latest")
    assert [one["transactionIndex"] for one in receipts] == ["0x0", "0x1", "0x2"]
    assert receipts[0] == rpc.call("eth_getTransactionReceipt", receipts[0]["transactionHash"])
    assert receipts[2] == rpc.call("eth_getTransactionReceipt", receipts[2]["transactionHash"])
    assert [log["logIndex"] for log in receipts[0]["logs"]] == ["0x0", "0x1"]
    assert receipts[0]["status"] == "0x1"
    assert receipts[1]["cumulativeGasUsed"] == hex(42_000)


def test_refused_transactions_carry_our_code_and_familiar_words(rpc: Rpc) -> None:
    stale = rpc.fail("eth_sendRawTransaction", to_hex(sign(0)))
    assert stale["code"] == -32000
    assert stale["message"].startswith("nonce too low")
    assert stale["data"] == {"code": "tx_nonce_low"}
    foreign = rpc.fail("eth_sendRawTransaction", to_hex(sign(1, chainId=1)))
    assert foreign["data"] == {"code": "tx_chain_id"}


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ("0x", "tx_malformed"),
        ("0x03c0", "tx_type"),
        ("0x04c0", "tx_type"),
        ("0xc0", "tx_malformed"),
    ],
)
def test_bytes_that_are_no_transaction_are_refused(rpc: Rpc, raw: str, code: str) -> None:
    assert rpc.fail("eth_sendRawTransaction", raw)["data"] == {"code": code}


def test_an_oversized_transaction_is_told_about_blobs(rpc: Rpc) -> None:
    error = rpc.fail("eth_sendRawTransaction", "0x" + "00" * 131_073)
    assert error["code"] == -32602
    assert "PUT /blobs" in error["message"]


def test_state_is_read_at_a_block(rpc: Rpc, block: Block) -> None:
    assert rpc.call("eth_getBalance", TO, "latest") == hex(10**18)
    assert rpc.call("eth_getBalance", TO, {"blockHash": to_hex(block.hash)}) == hex(10**18)
    assert rpc.call("eth_getCode", TO, "0x0") == "0x6000"
    assert rpc.call("eth_getStorageAt", TO, "0x5", "latest") == "0x" + "5".rjust(64, "0")
    assert rpc.call("eth_getTransactionCount", TO, "latest") == "0x8"
    assert rpc.call("eth_getTransactionCount", TO, "pending") == "0x9"


def test_state_at_an_unknown_block_is_an_error(rpc: Rpc) -> None:
    for reference in ("0xffff", UNKNOWN, {"blockHash": UNKNOWN}):
        assert rpc.fail("eth_getBalance", TO, reference)["data"] == {"code": "unknown_block"}


def test_a_proof_has_the_shape_of_eip_1186(rpc: Rpc) -> None:
    proof = rpc.call("eth_getProof", TO, ["0x1", "0x" + "0" * 63 + "2"], "latest")
    assert (proof["nonce"], proof["balance"], proof["accountProof"]) == ("0x3", "0x4", ["0xf9"])
    assert [one["key"] for one in proof["storageProof"]] == ["0x1", "0x2"]
    assert rpc.fail("eth_getProof", TO, ["0x1"] * 1_025, "latest")["code"] == -32602


def test_a_call_reaches_the_node_as_sent(rpc: Rpc, node: DoubleNode) -> None:
    fields = {
        "from": SENDER.address, "to": TO, "gas": "0x5208", "maxFeePerGas": "0x9", "value": "0x1",
        "input": "0xaabb", "accessList": [{"address": TO, "storageKeys": [UNKNOWN]}], "type": "0x2",
    }  # fmt: skip
    assert rpc.call("eth_call", fields, "latest") == "0x" + "2a".rjust(64, "0")
    request = node.requests[-1]
    assert (request.gas, request.gas_price, request.value) == (21_000, 9, 1)
    assert (request.data, request.to) == (b"\xaa\xbb", CONTRACT)
    assert request.access_list == ((CONTRACT, (int(UNKNOWN, 16),)),)
    assert rpc.call("eth_estimateGas", {"to": TO}) == hex(30_000)


@pytest.mark.parametrize("method", ["eth_call", "eth_estimateGas"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x08\xc3\x79\xa0" + encode(["string"], ["tasks: too late"]), ": tasks: too late"),
        (b"\x4e\x48\x7b\x71" + encode(["uint256"], [0x11]), ": panic code 0x11"),
        (b"", ""),
        (b"\x08\xc3\x79\xa0" + b"\xff" * 64, ""),
        (b"\x08\xc3\x79\xa0" + encode(["bytes"], [b"\xff\xfe"]), ""),
        (b"\x12\x34\x56\x78" + bytes(32), ""),
    ],
)
def test_a_revert_is_code_3_with_its_data(
    rpc: Rpc,
    node: DoubleNode,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    data: bytes,
    message: str,
) -> None:
    failed = CallResult(data, 25_000, 0, "execution reverted", True, (), None)
    monkeypatch.setattr(node, "result", failed)
    assert rpc.fail(method, {"to": TO}, "latest") == {
        "code": 3,
        "message": "execution reverted" + message,
        "data": to_hex(data),
    }


def test_a_call_that_dies_otherwise_says_of_what(
    rpc: Rpc, node: DoubleNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = CallResult(b"", 25_000, 0, "out of gas", False, (), None)
    monkeypatch.setattr(node, "result", failed)
    error = rpc.fail("eth_call", {"to": TO}, "latest")
    assert (error["code"], error["message"]) == (-32000, "out of gas")


def test_a_missing_blob_is_never_an_evm_result(
    rpc: Rpc, node: DoubleNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def miss() -> None:
        raise UnavailableBlob("blob_unavailable", "not here yet")

    monkeypatch.setattr(node, "on_call", miss)
    assert rpc.fail("eth_call", {"to": TO}, "latest")["data"] == {"code": "blob_unavailable"}


def test_overrides_are_refused_rather_than_ignored(rpc: Rpc) -> None:
    assert rpc.fail("eth_call", {"to": TO}, "latest", {TO: {"balance": "0x1"}})["code"] == -32602
    assert "0x" in rpc.call("eth_call", {"to": TO}, "latest", {}, {})


def test_too_many_calls_at_once_are_refused_as_busy(
    rpc: Rpc, node: DoubleNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise SteelyardError("busy", "too many calls are waiting")

    monkeypatch.setattr(node, "on_call", refuse)
    assert rpc.fail("eth_call", {"to": TO}, "latest")["code"] == -32005


def test_fees(rpc: Rpc) -> None:
    assert int(rpc.call("eth_gasPrice"), 16) == BASE_FEE + TIP
    assert int(rpc.call("eth_maxPriorityFeePerGas"), 16) == TIP


def test_the_fee_history_has_one_base_fee_more_than_blocks(rpc: Rpc, block: Block) -> None:
    history = rpc.call("eth_feeHistory", "0x2", "latest", [0, 50.0, 100])
    assert history["oldestBlock"] == hex(block.height - 1)
    assert len(history["baseFeePerGas"]) == 3
    assert history["gasUsedRatio"] == [21_000 / 30_000_000, 63_000 / 30_000_000]
    assert history["reward"] == [[hex(TIP)] * 3] * 2
    assert "reward" not in rpc.call("eth_feeHistory", "0x1", "pending", [])
    assert len(rpc.call("eth_feeHistory", "0xffff", "latest")["gasUsedRatio"]) == block.height + 1
    assert rpc.call("eth_feeHistory", 1, "latest", [])["oldestBlock"] == hex(block.height)


def test_the_fee_history_begins_where_the_node_began(
    rpc: Rpc, node: DoubleNode, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        node, "get_block", lambda block_hash: block if block_hash == block.hash else None
    )
    history = rpc.call("eth_feeHistory", "0x5", "latest")
    assert history["oldestBlock"] == hex(block.height)
    assert (len(history["baseFeePerGas"]), len(history["gasUsedRatio"])) == (2, 1)


@pytest.mark.parametrize(
    "params",
    [
        ["0x1", "0xffff", []],
        ["x", "latest", []],
        ["0x1", "latest", [101]],
        ["0x1", "latest", [-1]],
        ["0x1", "latest", [50, 20]],
        ["0x1", "latest", ["50"]],
        ["0x1", "latest", [True]],
        ["0x1", "latest", [1] * 101],
        ["0x1"],
    ],
)
def test_a_malformed_fee_history_is_refused(rpc: Rpc, params: list[object]) -> None:
    assert rpc.fail("eth_feeHistory", *params)["code"] == -32602


def test_logs_are_filtered_by_range_address_and_topics(rpc: Rpc, block: Block) -> None:
    height = hex(block.height)
    every = rpc.call("eth_getLogs", {"fromBlock": "earliest"})
    assert [log["data"] for log in every[-3:]] == [to_hex(b"earlier"), "0x01", "0x"]
    assert rpc.call("eth_getLogs", {"blockHash": to_hex(block.hash)}) == every[-2:]
    assert rpc.call("eth_getLogs", {"fromBlock": height, "toBlock": height}) == every[-2:]
    topics = [[to_hex(TOPIC), UNKNOWN], to_hex(OTHER_TOPIC)]
    assert rpc.call("eth_getLogs", {"fromBlock": "0x0", "topics": topics}) == every[-2:-1]
    assert rpc.call("eth_getLogs", {"address": [SENDER.address]}) == []
    assert rpc.call("eth_getLogs", {"address": TO, "topics": []}) == every[-2:]
    assert every[-2]["logIndex"] == "0x0"
    assert every[-2]["removed"] is False


def test_a_range_past_the_head_is_empty_and_one_upside_down_is_wrong(rpc: Rpc) -> None:
    assert rpc.call("eth_getLogs", {"fromBlock": "0xffff"}) == []
    assert rpc.fail("eth_getLogs", {"fromBlock": "0x2", "toBlock": "0x1"})["code"] == -32602
    error = rpc.fail("eth_getLogs", {"blockHash": UNKNOWN})
    assert error["data"] == {"code": "unknown_block"}


def test_log_queries_are_bounded_in_blocks_and_results(
    rpc: Rpc, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steelyard.node.rpc.logs.MAX_LOG_BLOCKS", block.height)
    assert rpc.fail("eth_getLogs", {"fromBlock": "earliest"})["code"] == -32005
    monkeypatch.setattr("steelyard.node.rpc.logs.MAX_LOGS", 1)
    assert rpc.fail("eth_getLogs", {"blockHash": to_hex(block.hash)})["code"] == -32005


def test_a_block_that_was_never_finalized_is_not_shown(
    rpc: Rpc, node: DoubleNode, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "get_hash", lambda _height: Hash(bytes(32)))
    assert rpc.call("eth_getBlockByHash", to_hex(block.hash), False) is None
    error = rpc.fail("eth_getBalance", TO, {"blockHash": to_hex(block.hash)})
    assert error["data"] == {"code": "unknown_block"}


def test_a_transaction_that_becomes_final_during_the_question_is_found(
    rpc: Rpc, node: DoubleNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = sign(31)
    transaction_hash = node.submit_transaction(raw)
    find, get_pending = node.find_transaction, node.get_pending_transaction

    def finalize() -> None:
        if node.pool.pop(transaction_hash, None) is not None:
            node.add_block([raw])

    def find_and_finalize(one: Hash) -> object:
        found = find(one)
        finalize()
        return found

    def get_and_finalize(one: Hash) -> object:
        found = get_pending(one)
        finalize()
        return found

    monkeypatch.setattr(node, "find_transaction", find_and_finalize)
    monkeypatch.setattr(node, "get_pending_transaction", get_and_finalize)
    shown = rpc.call("eth_getTransactionByHash", to_hex(transaction_hash))
    assert shown["hash"] == to_hex(transaction_hash)

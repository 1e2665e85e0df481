"""The HTTP side in front of the real node: what the chain in memory cannot show."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from eth_account.signers.local import LocalAccount

from steelyard.chain.block import decode_block
from steelyard.chain.cid import compute_blob_name, encode_cid
from steelyard.chain.consensus.certificates import decode_certificate
from steelyard.chain.params import BLOB_DECLARATION_ADDRESS
from steelyard.chain.proofs import check_proof

from .conftest import PATIENCE_SECONDS, Rpc
from .world import CHAIN_ID, World

pytestmark = pytest.mark.e2e

SELF_CALL = bytes.fromhex("5f5f5f5f5f305af100")
"""Calls itself with all the gas there is."""
STORE_ONE = bytes.fromhex("60015f55")


@pytest.fixture(scope="module")
def real(world: World) -> Iterator[Rpc]:
    one = Rpc(world.url)
    yield one
    one.http.close()


def send(real: Rpc, account: LocalAccount, **fields: object) -> str:
    """Sign and send a transaction; return its hash."""
    nonce = int(real.call("eth_getTransactionCount", account.address, "pending"), 16)
    price = int(real.call("eth_gasPrice"), 16)
    transaction: dict[str, Any] = {
        "type": 2, "chainId": CHAIN_ID, "nonce": nonce, "gas": 1_000_000, "value": 0,
        "maxFeePerGas": 2 * price, "maxPriorityFeePerGas": 10**6, **fields,
    }  # fmt: skip
    raw = account.sign_transaction(transaction).raw_transaction
    return str(real.call("eth_sendRawTransaction", "0x" + bytes(raw).hex()))


def wait(real: Rpc, transaction_hash: str) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (receipt := real.call("eth_getTransactionReceipt", transaction_hash)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return receipt


def deploy(real: Rpc, account: LocalAccount, runtime: bytes) -> str:
    """Put code on the chain: PUSH1 size, DUP1, PUSH1 offset, PUSH0, CODECOPY, PUSH0, RETURN."""
    initcode = bytes([0x60, len(runtime), 0x80, 0x60, 9, 0x5F, 0x39, 0x5F, 0xF3]) + runtime
    return str(wait(real, send(real, account, data=initcode))["contractAddress"])


def test_a_declared_blob_travels_after_its_transaction(real: Rpc, world: World) -> None:
    data = b"a blob of this test " * 20_000
    name = compute_blob_name(data)
    cid = encode_cid(name)
    assert real.http.put(f"/blobs/{cid}", content=data).json()["error"] == "blob_undeclared"
    keys = ["0x" + name.digest.hex(), "0x" + name.size.to_bytes(32, "big").hex()]
    declaration = {"address": "0x" + BLOB_DECLARATION_ADDRESS.hex(), "storageKeys": keys}
    sent = send(real, world.accounts[3], to="0x" + "55" * 20, accessList=[declaration])
    assert real.call("eth_getTransactionByHash", sent)["blockHash"] is None
    wrong = real.http.put(f"/blobs/{cid}", content=data[:-1])
    assert wrong.json()["error"] == "blob_size"
    altered = real.http.put(f"/blobs/{cid}", content=data[:-1] + b"!")
    assert (altered.status_code, altered.json()["error"]) == (422, "blob_mismatch")
    assert real.http.put(f"/blobs/{cid}", content=data).status_code == 201
    assert wait(real, sent)["status"] == "0x1"
    assert real.http.get(f"/blobs/{cid}").content == data
    assert real.http.get(f"/ipfs/{cid}", headers={"range": "bytes=0-5"}).content == b"a blob"
    assert real.call("eth_getTransactionByHash", sent)["accessList"][0]["storageKeys"] == keys


def test_a_follower_gets_blocks_and_certificates(real: Rpc, world: World) -> None:
    wait(real, send(real, world.accounts[3], to="0x" + "56" * 20, value=1))
    head = int(real.call("eth_blockNumber"), 16)
    assert real.http.get("/chain/genesis").json()["chain_id"] == CHAIN_ID
    block = decode_block(real.http.get(f"/chain/blocks/{head}").content)
    shown = real.call("eth_getBlockByNumber", hex(head), False)
    assert shown["hash"] == "0x" + block.hash.hex()
    certificate = decode_certificate(real.http.get(f"/chain/certificates/{head}").content)
    assert certificate.hash == block.hash


def test_whoever_sees_a_receipt_sees_its_block_and_the_next_nonce(real: Rpc, world: World) -> None:
    account = world.accounts[3]
    for _ in range(15):
        nonce = int(real.call("eth_getTransactionCount", account.address, "pending"), 16)
        receipt = wait(real, send(real, account, to="0x" + "57" * 20, value=1))
        assert (
            int(real.call("eth_getTransactionCount", account.address, "pending"), 16) == nonce + 1
        )
        assert int(real.call("eth_getTransactionCount", account.address, "latest"), 16) == nonce + 1
        assert int(real.call("eth_blockNumber"), 16) >= int(receipt["blockNumber"], 16)


def test_a_proof_convinces_somebody_who_trusts_only_the_state_root(real: Rpc, world: World) -> None:
    address = deploy(real, world.accounts[3], STORE_ONE)
    wait(real, send(real, world.accounts[3], to=address))
    block = real.call("eth_getBlockByNumber", "latest", False)
    root = bytes.fromhex(block["stateRoot"][2:])
    height = int(block["number"], 16)
    proof = world.node.get_proof(bytes.fromhex(address[2:]), [0], height)  # type: ignore[arg-type]
    check_proof(root, proof)  # type: ignore[arg-type]
    shown = real.call("eth_getProof", address, ["0x0"], block["number"])
    assert shown["storageProof"][0]["value"] == "0x1"
    assert shown["accountProof"] == ["0x" + node.hex() for node in proof.proof]


def test_the_deepest_calls_do_not_kill_the_process(real: Rpc, world: World) -> None:
    address = deploy(real, world.accounts[3], SELF_CALL)
    answer = real.send("eth_call", {"to": address, "gas": hex(30_000_000)}, "latest")
    assert answer.get("result") == "0x" or answer["error"]["code"] == -32000
    assert real.call("eth_chainId") == hex(CHAIN_ID)


def test_a_call_without_enough_gas_says_so(real: Rpc) -> None:
    error = real.fail("eth_call", {"to": "0x" + "55" * 20, "gas": "0x1"}, "latest")
    assert error["data"] == {"code": "tx_gas"}


def test_a_transaction_nobody_can_pay_is_refused_in_familiar_words(real: Rpc, world: World) -> None:
    account = world.accounts[4]
    raw = account.sign_transaction(
        {
            "type": 2,
            "chainId": CHAIN_ID,
            "nonce": 0,
            "gas": 21_000,
            "to": "0x" + "55" * 20,
            "value": 10**30,
            "maxFeePerGas": 10**12,
            "maxPriorityFeePerGas": 10**6,
        }
    ).raw_transaction
    error = real.fail("eth_sendRawTransaction", "0x" + bytes(raw).hex())
    assert error["message"].startswith("insufficient funds")
    assert error["data"] == {"code": "tx_balance"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"chainId": 1}, "tx_chain_id"),
        ({"nonce": 10_000}, "tx_nonce_high"),
        ({"maxFeePerGas": 1, "maxPriorityFeePerGas": 0}, "tx_fee_low"),
        ({"gas": 20_999}, "tx_gas"),
        ({"gas": 10**9}, "tx_gas_limit"),
    ],
)
def test_what_the_pool_refuses_keeps_its_code(
    real: Rpc, world: World, change: dict[str, Any], code: str
) -> None:
    transaction: dict[str, Any] = {
        "type": 2, "chainId": CHAIN_ID, "nonce": 0, "gas": 21_000, "to": "0x" + "55" * 20,
        "value": 1, "maxFeePerGas": 10**12, "maxPriorityFeePerGas": 10**6,
    }  # fmt: skip
    raw = world.accounts[4].sign_transaction(transaction | change).raw_transaction
    error = real.fail("eth_sendRawTransaction", "0x" + bytes(raw).hex())
    assert error["data"] == {"code": code}
    assert real.http.get("/health").json()["healthy"] is True


def test_metrics_and_health_follow_the_chain(real: Rpc, world: World) -> None:
    wait(real, send(real, world.accounts[3], to="0x" + "58" * 20, value=1))
    status = real.http.get("/health").json()
    assert status["chain_id"] == CHAIN_ID
    assert status["height"] > 0
    assert "steelyard_height" in real.http.get("/metrics").text

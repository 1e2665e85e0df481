"""What a web3.py user writes. Nothing here knows Steelyard: URL, key and contract are arguments."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

from vyper.compiler import compile_code
from web3 import AsyncWeb3, HTTPProvider, Web3, WebSocketProvider
from web3.exceptions import ContractLogicError, TransactionNotFound, Web3RPCError
from web3.middleware import SignAndSendRawMiddlewareBuilder


def get_refusal(action: Callable[[], object], kind: type[Exception]) -> str:
    """The message of the error that the action must raise."""
    try:
        action()
    except kind as error:
        return str(error)
    raise AssertionError("nothing was refused")


url, key, source = sys.argv[1], sys.argv[2], Path(sys.argv[3])
w3 = Web3(HTTPProvider(url))
assert w3.is_connected()
account = w3.eth.account.from_key(key)
w3.middleware_onion.inject(SignAndSendRawMiddlewareBuilder.build(account), layer=0)
w3.eth.default_account = account.address
assert w3.client_version.startswith("steelyard/")
assert int(w3.net.version) == w3.eth.chain_id

# Deploy and read.
output = compile_code(source.read_text(), output_formats=["abi", "bytecode"])
Counter = w3.eth.contract(abi=output["abi"], bytecode=output["bytecode"])
receipt = w3.eth.wait_for_transaction_receipt(Counter.constructor(5).transact(), timeout=120)
assert receipt.status == 1
counter = w3.eth.contract(address=receipt.contractAddress, abi=output["abi"])
assert counter.functions.value().call() == 5
assert counter.functions.multiply(6).call() == 30
assert w3.eth.get_code(counter.address)
assert counter.functions.value().call(block_identifier=receipt.blockNumber) == 5

# Filters first, then the transaction that they must report.
log_filter = counter.events.Bumped.create_filter(from_block="latest")
block_filter = w3.eth.filter("latest")
pending_filter = w3.eth.filter("pending")
bump = counter.functions.bump(3)
assert bump.call() == 8
assert bump.estimate_gas() < 100_000
transaction = bump.build_transaction(
    {"nonce": w3.eth.get_transaction_count(account.address, "pending")}
)
signed = account.sign_transaction(transaction)
sent = w3.eth.send_raw_transaction(signed.raw_transaction)
receipt = w3.eth.wait_for_transaction_receipt(sent, timeout=120)
assert receipt.status == 1
assert receipt.gasUsed <= transaction["gas"]
(event,) = log_filter.get_new_entries()
assert (event.args.who, event.args.value) == (account.address, 8)
assert log_filter.get_new_entries() == []
assert receipt.blockHash in block_filter.get_new_entries()
assert sent in pending_filter.get_new_entries()
assert w3.eth.uninstall_filter(block_filter.filter_id)

# Logs, by receipt and by range.
assert counter.events.Bumped().process_receipt(receipt)[0].args.value == 8
assert [one.args.value for one in counter.events.Bumped.get_logs(from_block=0)] == [8]
assert counter.events.Bumped.get_logs(from_block=0, argument_filters={"who": counter.address}) == []

# Blocks, transactions, state, proofs, fees.
block = w3.eth.get_block(receipt.blockNumber, full_transactions=True)
assert block.transactions[receipt.transactionIndex] == w3.eth.get_transaction(sent)
assert w3.eth.get_block(block.hash).transactions == [one.hash for one in block.transactions]
assert w3.eth.get_block_receipts(block.number)[receipt.transactionIndex] == receipt
assert w3.eth.get_block("finalized").number >= block.number
assert int.from_bytes(w3.eth.get_storage_at(counter.address, 0)) == 8
proof = w3.eth.get_proof(counter.address, [0], "latest")
assert int.from_bytes(proof.storageProof[0].value) == 8
assert len(w3.eth.fee_history(2, "latest", [25.0, 75.0]).reward) == 2
assert w3.eth.max_priority_fee >= 0
price = w3.eth.gas_price  # of the next block: those after it are no dearer while nobody sends
assert price >= w3.eth.get_block("latest").baseFeePerGas * 7 // 8

# Value, and what is refused.
before = w3.eth.get_balance("0x" + "77" * 20)
paid = w3.eth.send_transaction({"to": "0x" + "77" * 20, "value": 12_345})
w3.eth.wait_for_transaction_receipt(paid, timeout=120)
assert w3.eth.get_balance("0x" + "77" * 20) - before == 12_345
for refused in (counter.functions.bump(0).call, counter.functions.bump(0).estimate_gas):
    assert "counter: nothing to add" in get_refusal(refused, ContractLogicError)
assert "nonce too low" in get_refusal(
    lambda: w3.eth.send_raw_transaction(signed.raw_transaction), Web3RPCError
)
get_refusal(lambda: w3.eth.get_transaction("0x" + "99" * 32), TransactionNotFound)

# Batches.
with w3.batch_requests() as batch:
    batch.add(w3.eth.get_block("latest"))
    batch.add(counter.functions.value())
    assert batch.execute()[1] == 8


async def follow() -> None:
    """Subscriptions over a WebSocket."""
    async with AsyncWeb3(WebSocketProvider(url.replace("http", "ws", 1))) as ws:
        heads = await ws.eth.subscribe("newHeads")
        logs = await ws.eth.subscribe("logs", {"address": counter.address})
        counter.functions.bump(2).transact()
        seen: set[str] = set()
        async for message in ws.socket.process_subscriptions():
            seen.add(message["subscription"])
            if seen == {heads, logs}:
                break
        assert await ws.eth.unsubscribe(heads)
        assert await ws.eth.block_number >= block.number


asyncio.run(asyncio.wait_for(follow(), 120))
print("web3: done")

"""Blocks, transactions, receipts and logs in the JSON shapes of ethereum/execution-apis."""

from collections.abc import Sequence
from typing import TypeAlias

from eth_hash.auto import keccak
from eth_utils.address import to_checksum_address

from steelyard.chain.block import Block, Header, encode_block
from steelyard.chain.proofs import AccountProof
from steelyard.chain.receipts import Receipt
from steelyard.chain.transactions import (
    ACCESS_LIST,
    DYNAMIC_FEE,
    LEGACY,
    Transaction,
    decode_transaction,
)

from ..records import LogEntry
from .errors import Json

JsonObject: TypeAlias = dict[str, Json]


def encode_quantity(value: int) -> str:
    """A number: 0x and hex digits without leading zeros."""
    return hex(value)


def encode_data(value: bytes) -> str:
    return "0x" + value.hex()


def encode_address(value: bytes) -> str:
    """With the mixed-case checksum of EIP-55."""
    return to_checksum_address(value)


def compute_gas_price(transaction: Transaction, base_fee: int) -> int:
    """What a unit of gas costs in a block with this base fee, in wei (EIP-1559)."""
    return min(transaction.max_fee, base_fee + transaction.max_priority_fee)


def encode_header(header: Header) -> JsonObject:
    """The 21 fields and the hash: what `newHeads` pushes."""
    return {
        "number": encode_quantity(header.height),
        "hash": encode_data(header.hash),
        "parentHash": encode_data(header.parent_hash),
        "sha3Uncles": encode_data(header.ommers_hash),
        "miner": encode_address(header.coinbase),
        "stateRoot": encode_data(header.state_root),
        "transactionsRoot": encode_data(header.transactions_root),
        "receiptsRoot": encode_data(header.receipts_root),
        "logsBloom": encode_data(header.bloom),
        "difficulty": encode_quantity(header.difficulty),
        "gasLimit": encode_quantity(header.gas_limit),
        "gasUsed": encode_quantity(header.gas_used),
        "timestamp": encode_quantity(header.timestamp),
        "extraData": encode_data(header.extra_data),
        "mixHash": encode_data(header.prev_randao),
        "nonce": encode_data(header.nonce),
        "baseFeePerGas": encode_quantity(header.base_fee),
        "withdrawalsRoot": encode_data(header.withdrawals_root),
        "blobGasUsed": encode_quantity(header.blob_gas_used),
        "excessBlobGas": encode_quantity(header.excess_blob_gas),
        "parentBeaconBlockRoot": encode_data(header.parent_beacon_block_root),
        "requestsHash": encode_data(header.requests_hash),
    }


def encode_full_block(block: Block, with_transactions: bool) -> JsonObject:
    """A block with its transactions, whole or as hashes."""
    listed: list[Json] = [
        encode_transaction(decode_transaction(raw), block.header, index)
        if with_transactions
        else encode_data(keccak(raw))
        for index, raw in enumerate(block.transactions)
    ]
    return {
        **encode_header(block.header),
        "size": encode_quantity(len(encode_block(block))),
        "transactions": listed,
        "uncles": [],
        "withdrawals": [
            {
                "index": encode_quantity(one.index),
                "validatorIndex": encode_quantity(one.validator_index),
                "address": encode_address(one.address),
                "amount": encode_quantity(one.amount_gwei),
            }
            for one in block.withdrawals
        ],
    }


def encode_transaction(
    transaction: Transaction, header: Header | None, index: int | None
) -> JsonObject:
    """A transaction; `header` and `index` are None while it is pending."""
    fee = transaction.max_fee
    if header is not None:
        fee = compute_gas_price(transaction, header.base_fee)
    encoded: JsonObject = {
        "type": encode_quantity(transaction.type),
        "hash": encode_data(transaction.hash),
        "chainId": encode_quantity(transaction.chain_id),
        "nonce": encode_quantity(transaction.nonce),
        "from": encode_address(transaction.sender),
        "to": None if transaction.to is None else encode_address(transaction.to),
        "value": encode_quantity(transaction.value),
        "gas": encode_quantity(transaction.gas),
        "gasPrice": encode_quantity(fee),
        "input": encode_data(transaction.data),
        "v": encode_quantity(transaction.v),
        "r": encode_quantity(transaction.r),
        "s": encode_quantity(transaction.s),
        "blockHash": None if header is None else encode_data(header.hash),
        "blockNumber": None if header is None else encode_quantity(header.height),
        "transactionIndex": None if index is None else encode_quantity(index),
    }
    if transaction.type != LEGACY:
        assert transaction.type in (ACCESS_LIST, DYNAMIC_FEE)
        encoded["yParity"] = encode_quantity(transaction.y_parity)
        encoded["accessList"] = encode_access_list(transaction)
    if transaction.type == DYNAMIC_FEE:
        encoded["maxFeePerGas"] = encode_quantity(transaction.max_fee)
        encoded["maxPriorityFeePerGas"] = encode_quantity(transaction.max_priority_fee)
    return encoded


def encode_access_list(transaction: Transaction) -> list[Json]:
    """As signed, declared blobs included."""
    return [
        {
            "address": encode_address(address),
            "storageKeys": [encode_data(key.to_bytes(32, "big")) for key in keys],
        }
        for address, keys in transaction.access_list
    ]


def encode_receipts(block: Block, receipts: Sequence[Receipt]) -> list[JsonObject]:
    """The receipts of a whole block, in order; log indices count over the block."""
    transactions = [decode_transaction(raw) for raw in block.transactions]
    encoded, log_index = [], 0
    for index, (transaction, receipt) in enumerate(zip(transactions, receipts, strict=True)):
        encoded.append(encode_receipt(block.header, transaction, index, receipt, log_index))
        log_index += len(receipt.logs)
    return encoded


def encode_receipt(
    header: Header, transaction: Transaction, index: int, receipt: Receipt, first_log_index: int
) -> JsonObject:
    """One receipt; `first_log_index` is the number of logs before it in the block."""
    entries = [
        LogEntry(log, header.height, header.hash, transaction.hash, index, first_log_index + offset)
        for offset, log in enumerate(receipt.logs)
    ]
    created = receipt.contract_address
    return {
        "type": encode_quantity(receipt.type),
        "status": encode_quantity(receipt.status),
        "transactionHash": encode_data(transaction.hash),
        "transactionIndex": encode_quantity(index),
        "blockHash": encode_data(header.hash),
        "blockNumber": encode_quantity(header.height),
        "from": encode_address(transaction.sender),
        "to": None if transaction.to is None else encode_address(transaction.to),
        "contractAddress": None if created is None else encode_address(created),
        "gasUsed": encode_quantity(receipt.gas_used),
        "cumulativeGasUsed": encode_quantity(receipt.cumulative_gas_used),
        "effectiveGasPrice": encode_quantity(receipt.effective_gas_price),
        "logs": [encode_log(entry) for entry in entries],
        "logsBloom": encode_data(receipt.bloom),
    }


def encode_log(entry: LogEntry) -> JsonObject:
    """A log of a finalized block: never removed."""
    return {
        "address": encode_address(entry.log.address),
        "topics": [encode_data(topic) for topic in entry.log.topics],
        "data": encode_data(entry.log.data),
        "blockNumber": encode_quantity(entry.height),
        "blockHash": encode_data(entry.block_hash),
        "transactionHash": encode_data(entry.transaction_hash),
        "transactionIndex": encode_quantity(entry.transaction_index),
        "logIndex": encode_quantity(entry.log_index),
        "removed": False,
    }


def encode_proof(proof: AccountProof) -> JsonObject:
    """An account with its Merkle-Patricia proof, and those of the slots asked for (EIP-1186)."""
    account = proof.account
    return {
        "address": encode_address(proof.address),
        "balance": encode_quantity(account.balance),
        "nonce": encode_quantity(account.nonce),
        "codeHash": encode_data(account.code_hash),
        "storageHash": encode_data(account.storage_root),
        "accountProof": [encode_data(node) for node in proof.proof],
        "storageProof": [
            {
                "key": encode_quantity(one.slot),
                "value": encode_quantity(one.value),
                "proof": [encode_data(node) for node in one.proof],
            }
            for one in proof.storage
        ],
    }

"""The table of everything that is served. A method that is not here answers -32601."""

from typing import TYPE_CHECKING

from eth_hash.auto import keccak

from .blocks import BlockMethods
from .dispatcher import Caller, Lane, Method
from .encoding import encode_data, encode_quantity
from .errors import Json
from .fees import FeeMethods
from .filters import FilterMethods
from .logs import LogMethods
from .parameters import parse_data, take
from .state import StateMethods
from .subscriptions import SubscriptionMethods
from .transactions import TransactionMethods

if TYPE_CHECKING:
    from ..node import Node
    from .dispatcher import Handler


class NetworkMethods:
    """Who answers, and on which chain."""

    def __init__(self, node: "Node", version: str) -> None:
        self.chain_id = node.rules.chain_id
        self.version = version

    def get_chain_id(self, params: object, _caller: Caller) -> Json:
        take(params, 0, 0)
        return encode_quantity(self.chain_id)

    def get_network_id(self, params: object, _caller: Caller) -> Json:
        take(params, 0, 0)
        return str(self.chain_id)

    def get_client_version(self, params: object, _caller: Caller) -> Json:
        take(params, 0, 0)
        return f"steelyard/v{self.version}"

    def compute_keccak(self, params: object, _caller: Caller) -> Json:
        (value,) = take(params, 1, 1)
        return encode_data(keccak(parse_data(value, "data")))


def answer_always(value: Json) -> "Handler":
    """A method without parameters whose answer never changes."""

    def handler(params: object, _caller: Caller) -> Json:
        take(params, 0, 0)
        return value

    return handler


def build_methods(node: "Node", version: str) -> dict[str, Method]:
    """The table for one node."""
    network, blocks, state = NetworkMethods(node, version), BlockMethods(node), StateMethods(node)
    transactions, fees = TransactionMethods(node), FeeMethods(node)
    logs, filters, subscriptions = LogMethods(node), FilterMethods(node), SubscriptionMethods()
    inline = {
        "web3_clientVersion": network.get_client_version,
        "eth_chainId": network.get_chain_id,
        "net_version": network.get_network_id,
        "net_listening": answer_always(True),
        "net_peerCount": answer_always("0x0"),
        "eth_syncing": answer_always(False),
        "eth_accounts": answer_always([]),
        "eth_mining": answer_always(False),
        "eth_subscribe": subscriptions.subscribe,
        "eth_unsubscribe": subscriptions.unsubscribe,
    }
    quick = {
        "web3_sha3": network.compute_keccak,
        "eth_blockNumber": blocks.get_block_number,
        "eth_getBlockByNumber": blocks.get_block_by_number,
        "eth_getBlockByHash": blocks.get_block_by_hash,
        "eth_getBlockTransactionCountByNumber": blocks.count_transactions_by_number,
        "eth_getBlockTransactionCountByHash": blocks.count_transactions_by_hash,
        "eth_getBalance": state.get_balance,
        "eth_getTransactionCount": state.get_transaction_count,
        "eth_getCode": state.get_code,
        "eth_getStorageAt": state.get_storage_at,
        "eth_sendRawTransaction": transactions.send_raw_transaction,
        "eth_getTransactionByHash": transactions.get_transaction_by_hash,
        "eth_getTransactionByBlockHashAndIndex": transactions.get_transaction_by_block_hash,
        "eth_getTransactionByBlockNumberAndIndex": transactions.get_transaction_by_block_number,
        "eth_getTransactionReceipt": transactions.get_transaction_receipt,
        "eth_gasPrice": fees.get_gas_price,
        "eth_maxPriorityFeePerGas": fees.get_priority_fee,
        "eth_newFilter": filters.create_log_filter,
        "eth_newBlockFilter": filters.create_block_filter,
        "eth_newPendingTransactionFilter": filters.create_pending_filter,
        "eth_uninstallFilter": filters.uninstall,
    }
    heavy = {
        "eth_call": state.call,
        "eth_estimateGas": state.estimate_gas,
        "eth_getProof": state.get_proof,
        "eth_getBlockReceipts": blocks.get_block_receipts,
        "eth_feeHistory": fees.get_fee_history,
        "eth_getLogs": logs.get_logs,
        "eth_getFilterChanges": filters.get_changes,
        "eth_getFilterLogs": filters.get_logs,
    }
    lanes = ((Lane.INLINE, inline), (Lane.QUICK, quick), (Lane.HEAVY, heavy))
    return {name: Method(one, lane) for lane, table in lanes for name, one in table.items()}

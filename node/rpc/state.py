"""Accounts, storage, proofs, and computing on the state without changing it."""

from typing import TYPE_CHECKING

from steelyard.chain.execute import CallRequest, CallResult
from steelyard.chain.params import MAX_INITCODE_BYTES
from steelyard.chain.transactions import AccessList
from steelyard.chain.types import Address

from .blocks import get_height
from .dispatcher import Caller
from .encoding import encode_data, encode_proof, encode_quantity
from .errors import REFUSED, InvalidParameters, Json, Reverted, RpcError
from .limits import MAX_ACCESS_LIST_KEYS, MAX_PROOF_SLOTS
from .parameters import (
    parse_address,
    parse_block,
    parse_data,
    parse_hash,
    parse_list,
    parse_object,
    parse_quantity,
    parse_slot,
    take,
)

if TYPE_CHECKING:
    from ..node import Node

NO_SENDER = Address(bytes(20))
MAX_GAS = 2**64 - 1
CALL_FIELDS = frozenset(
    {
        "from",
        "to",
        "gas",
        "gasPrice",
        "maxFeePerGas",
        "maxPriorityFeePerGas",
        "value",
        "data",
        "input",
        "nonce",
        "chainId",
        "type",
        "accessList",
    }
)
"""`nonce` and `type` are read and change nothing: a call is not signed."""


class StateMethods:
    """eth_getBalance, eth_getCode, eth_getProof, eth_call, eth_estimateGas…"""

    def __init__(self, node: "Node") -> None:
        self.node = node

    def get_balance(self, params: object, _caller: Caller) -> Json:
        address, block = take(params, 1, 2)
        return encode_quantity(
            self.node.get_balance(parse_address(address), self._get_height(block))
        )

    def get_transaction_count(self, params: object, _caller: Caller) -> Json:
        address, block = take(params, 1, 2)
        account = parse_address(address)
        if block == "pending":
            return encode_quantity(self.node.get_nonce(account, pending=True))
        height = self._get_height(block)
        return encode_quantity(self.node.get_nonce(account, pending=False, height=height))

    def get_code(self, params: object, _caller: Caller) -> Json:
        address, block = take(params, 1, 2)
        return encode_data(self.node.get_code(parse_address(address), self._get_height(block)))

    def get_storage_at(self, params: object, _caller: Caller) -> Json:
        address, slot, block = take(params, 2, 3)
        account, number = parse_address(address), parse_slot(slot)
        value = self.node.get_storage(account, number, self._get_height(block))
        return encode_data(value.to_bytes(32, "big"))

    def get_proof(self, params: object, _caller: Caller) -> Json:
        address, keys, block = take(params, 2, 3)
        slots = [parse_slot(key) for key in parse_list(keys, "storage keys", MAX_PROOF_SLOTS)]
        account = parse_address(address)
        return encode_proof(self.node.get_proof(account, slots, self._get_height(block)))

    def call(self, params: object, _caller: Caller) -> Json:
        request, block = self._parse_call(params)
        result = self.node.call(request, self._get_height(block))
        check_result(result)
        return encode_data(result.output)

    def estimate_gas(self, params: object, _caller: Caller) -> Json:
        request, block = self._parse_call(params)
        result = self.node.estimate_gas(request, self._get_height(block))
        check_result(result)
        return encode_quantity(result.gas_used)

    def _parse_call(self, params: object) -> tuple[CallRequest, object]:
        """The request and the block; overrides are refused unless they are empty."""
        request, block, state, header = take(params, 1, 4)
        for value, what in ((state, "state"), (header, "block")):
            if value:
                raise InvalidParameters(f"{what} overrides are not served here")
        return parse_call(request, self.node.rules.chain_id), block

    def _get_height(self, block: object) -> int | None:
        return get_height(self.node, parse_block(block))


def check_result(result: CallResult) -> None:
    """Raise what a failed call answers: Reverted with its data, or what stopped the EVM."""
    if result.is_revert:
        raise Reverted(result.output)
    if result.error is not None:
        raise RpcError(REFUSED, result.error, {"code": "call_failed"})


def parse_call(value: object, chain_id: int) -> CallRequest:
    """The transaction object of eth_call and eth_estimateGas."""
    fields = parse_object(value, "call", CALL_FIELDS)
    given = {key: one for key, one in fields.items() if one is not None}
    if "chainId" in given and parse_quantity(given["chainId"], "chainId") != chain_id:
        raise InvalidParameters(f"chainId differs from this chain's, {chain_id}")
    for name in ("nonce", "type"):
        parse_quantity(given.get(name, "0x0"), name)
    gas = parse_quantity(given["gas"], "gas", MAX_GAS) if "gas" in given else None
    to = parse_address(given["to"], "to") if "to" in given else None
    data = parse_call_data(given)
    if to is None and len(data) > MAX_INITCODE_BYTES:
        raise InvalidParameters(f"init code may have {MAX_INITCODE_BYTES} bytes, not {len(data)}")
    return CallRequest(
        sender=parse_address(given["from"], "from") if "from" in given else NO_SENDER,
        to=to,
        value=parse_quantity(given.get("value", "0x0"), "value"),
        data=data,
        gas=gas,
        gas_price=parse_price(given),
        access_list=parse_access_list(given.get("accessList")),
    )


def parse_call_data(given: dict[str, object]) -> bytes:
    """`input` or `data`; both only if they agree."""
    parsed = [parse_data(given[name], name) for name in ("input", "data") if name in given]
    if len(parsed) == 2 and parsed[0] != parsed[1]:
        raise InvalidParameters("input and data differ; send one of them")
    return parsed[0] if parsed else b""


def parse_price(given: dict[str, object]) -> int:
    """The most that a unit of gas may cost, in wei; 0 (no charge) if nothing is said."""
    if "gasPrice" in given and ("maxFeePerGas" in given or "maxPriorityFeePerGas" in given):
        raise InvalidParameters("gasPrice excludes maxFeePerGas and maxPriorityFeePerGas")
    tip = parse_quantity(given.get("maxPriorityFeePerGas", "0x0"), "maxPriorityFeePerGas")
    if "maxFeePerGas" in given:
        cap = parse_quantity(given["maxFeePerGas"], "maxFeePerGas")
        if tip > cap:
            raise InvalidParameters("maxPriorityFeePerGas is above maxFeePerGas")
        return cap
    return parse_quantity(given.get("gasPrice", "0x0"), "gasPrice")


def parse_access_list(value: object) -> AccessList:
    """EIP-2930: addresses with their storage keys."""
    if value is None:
        return ()
    parsed = []
    left = MAX_ACCESS_LIST_KEYS
    for item in parse_list(value, "accessList", MAX_ACCESS_LIST_KEYS):
        fields = parse_object(item, "accessList entry", frozenset({"address", "storageKeys"}))
        keys = parse_list(fields.get("storageKeys", []), "storageKeys", left)
        left -= len(keys)
        numbers = tuple(int.from_bytes(parse_hash(key, "storage key"), "big") for key in keys)
        parsed.append((parse_address(fields.get("address")), numbers))
    return tuple(parsed)

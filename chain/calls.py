"""Trying out a message on a state: eth_call, gas estimation, and what the protocol itself reads."""

from dataclasses import dataclass
from typing import Final

from .block import Rules
from .environment import BlobSource, Environment
from .errors import InvalidTransaction
from .evm import BlockState, Execution
from .params import MAX_INITCODE_BYTES
from .receipts import Log
from .transactions import AccessList, compute_floor_gas, compute_intrinsic_gas, read_blobs
from .trie import NodeSource
from .types import Address, Hash

ZERO_ADDRESS: Final = Address(bytes(20))


@dataclass(frozen=True, slots=True)
class CallRequest:
    """A message to try out. `to` None runs initcode; `gas` None means the cap; wei."""

    sender: Address = ZERO_ADDRESS
    to: Address | None = None
    value: int = 0
    data: bytes = b""
    gas: int | None = None
    gas_price: int = 0
    access_list: AccessList = ()


@dataclass(frozen=True, slots=True)
class CallResult:
    """What would come of it. `gas_used` counts intrinsic gas and the floor, less the refund.

    `error` is None on success. A revert has `is_revert` and its data in `output`.
    """

    output: bytes
    gas_used: int
    gas_refund: int
    error: str | None
    is_revert: bool
    logs: tuple[Log, ...]
    contract_address: Address | None

    @property
    def is_error(self) -> bool:
        """Whether it failed."""
        return self.error is not None

    @property
    def revert_data(self) -> bytes:
        """What the contract reverted with; empty otherwise."""
        return self.output if self.is_revert else b""


def call(
    nodes: NodeSource,
    blobs: BlobSource,
    rules: Rules,
    state_root: Hash,
    environment: Environment,
    request: CallRequest,
    gas_cap: int,
) -> CallResult:
    """Run a message on a state and throw the state away; nobody pays for the gas.

    Raises: InvalidTransaction tx_gas, tx_balance (of the value), tx_initcode, blob_declaration;
    UnavailableBlob, MissingState.
    """
    gas = gas_cap if request.gas is None else min(request.gas, gas_cap)
    declared = read_blobs(request.access_list)
    intrinsic_gas = compute_intrinsic_gas(request.to, request.data, request.access_list, declared)
    floor_gas = compute_floor_gas(request.data, declared)
    needed = max(intrinsic_gas, floor_gas)
    if gas < needed:
        raise InvalidTransaction("tx_gas", f"{gas} gas; at least {needed} is needed")
    if request.to is None and len(request.data) > MAX_INITCODE_BYTES:
        raise InvalidTransaction("tx_initcode", f"initcode above {MAX_INITCODE_BYTES} bytes")
    state = BlockState(nodes, blobs, rules, state_root, environment)
    if state.get_balance(request.sender) < request.value:
        raise InvalidTransaction("tx_balance", "the sender does not have that value")
    result = state.process_call(
        Execution(
            sender=request.sender,
            to=request.to,
            value=request.value,
            data=request.data,
            gas=gas,
            gas_price=request.gas_price,
            tip=0,
            access_list=request.access_list,
            blobs=declared,
            intrinsic_gas=intrinsic_gas,
            floor_gas=floor_gas,
        )
    )
    return CallResult(
        output=result.output,
        gas_used=result.gas_used,
        gas_refund=result.gas_refund,
        error=result.error,
        is_revert=result.is_revert,
        logs=result.logs,
        contract_address=result.contract_address,
    )

"""Signed transactions with blob declarations, as bytes (docs/protocol.md, sections 1 and 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from eth_account.signers.local import LocalAccount

from steelyard.chain import params
from steelyard.chain.types import Address, BlobName, Hash

from .amounts import format_gwei
from .errors import ClientError

CALL_OVERHEAD_GAS: Final = 900_000
"""Upper bound of what a call of Tasks costs beside blobs and the precompile. Unused gas is not
paid; a blob transaction cannot be estimated, because its blobs reach the node after it."""
MAX_BASE_FEE: Final = 10**12
MAX_TIP: Final = 10**11
"""Wei per gas. Tips go to whoever makes the block, perhaps the node that suggests them, and closing
bounties follow from them: above these, a node is not believed."""


@dataclass(frozen=True, slots=True)
class Fees:
    """Wei per gas: the cap on everything, and the part that goes to the proposer."""

    max_fee: int
    max_tip: int


@dataclass(frozen=True, slots=True)
class Call:
    """What a transaction is to do. `gas` None asks the node for an estimate; never with blobs.

    `gas_after`: of what has to follow it. Nothing is signed that the balance cannot pay to its end.
    `is_traceless`: carried out twice, nothing on the chain would show it, so it is never signed
    again where its nonce is gone and no node knows to whom.
    """

    to: Address
    data: bytes
    value: int = 0
    gas: int | None = None
    blobs: tuple[BlobName, ...] = ()
    gas_after: int = 0
    is_traceless: bool = False


@dataclass(frozen=True, slots=True)
class Signed:
    """A transaction as it leaves this machine: the same bytes every time it is sent."""

    raw: bytes
    hash: Hash
    nonce: int


def compute_access_list(blobs: Sequence[BlobName]) -> list[dict[str, object]]:
    """Return the access list that declares `blobs`: pairs of storage keys, digest and size."""
    if not blobs:
        return []
    keys = [key for name in blobs for key in (name.digest, name.size.to_bytes(32, "big"))]
    return [
        {
            "address": "0x" + params.BLOB_DECLARATION_ADDRESS.hex(),
            "storageKeys": ["0x" + bytes(key).hex() for key in keys],
        }
    ]


def compute_blob_gas(blobs: Sequence[BlobName]) -> int:
    """Return the intrinsic gas that declaring `blobs` adds."""
    return sum(params.BLOB_GAS_EACH + -(-name.size // params.BLOB_BYTES_PER_GAS) for name in blobs)


def compute_blob_call_gas(blobs: Sequence[BlobName], read: Sequence[BlobName], values: int) -> int:
    """Return a gas limit for a call of Tasks that declares `blobs` and reads the blobs `read`.

    `values`: numbers that the precompile walks through (an update's values, a model's parameters).
    """
    reading = sum(-(-name.size // params.BYTES_READ_PER_GAS) for name in read)
    headers = sum(min(name.size, params.MAX_MODEL_HEADER_BYTES) for name in read)
    reading += -(-headers // params.HEADER_BYTES_PER_GAS)
    work = params.GAS_CALL + params.GAS_PER_UPDATE + reading + -(-values // params.VALUES_PER_GAS)
    return compute_blob_gas(blobs) + 2 * work + CALL_OVERHEAD_GAS


def check_prices(base_fee: int, tip: int) -> None:
    """Raises ClientError `fee_high` for prices of gas that no honest node would name."""
    for what, price, most in (("base fee", base_fee, MAX_BASE_FEE), ("tip", tip, MAX_TIP)):
        if price > most:
            raise ClientError(
                "fee_high",
                f"the node names a {what} of {format_gwei(price)} gwei a gas, above the "
                f"{format_gwei(most)} that this client pays; ask another node, or try again later",
            )


def sign_call(
    account: LocalAccount, call: Call, *, chain_id: int, nonce: int, gas: int, fees: Fees
) -> Signed:
    """Return `call` as a signed type-2 transaction. Signatures are deterministic (RFC 6979)."""
    fields: dict[str, Any] = {
        "type": 2,
        "chainId": chain_id,
        "nonce": nonce,
        "maxFeePerGas": fees.max_fee,
        "maxPriorityFeePerGas": fees.max_tip,
        "gas": gas,
        "to": bytes(call.to),
        "value": call.value,
        "data": "0x" + call.data.hex(),
        "accessList": compute_access_list(call.blobs),
    }
    signed = account.sign_transaction(fields)
    return Signed(bytes(signed.raw_transaction), Hash(bytes(signed.hash)), nonce)

"""JSON-RPC errors: the codes that Ethereum clients act on, and how ours become them."""

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError

from steelyard.chain.errors import SteelyardError

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
UNKNOWN_METHOD: Final = -32601
INVALID_PARAMETERS: Final = -32602
INTERNAL_ERROR: Final = -32603
REFUSED: Final = -32000
"""Any refusal of the chain or the node; `data.code` says which."""
LIMIT_EXCEEDED: Final = -32005
REVERTED: Final = 3

ERROR_SELECTOR: Final = bytes.fromhex("08c379a0")
"""Error(string)."""
PANIC_SELECTOR: Final = bytes.fromhex("4e487b71")
"""Panic(uint256)."""
MAX_REASON_CHARACTERS: Final = 1_024

FAMILIAR: Final = {
    "tx_nonce_low": "nonce too low",
    "tx_nonce_high": "nonce too high",
    "tx_balance": "insufficient funds for gas * price + value",
    "tx_fee_low": "max fee per gas less than block base fee",
    "tx_gas": "intrinsic gas too low",
    "tx_gas_limit": "exceeds block gas limit",
    "tx_underpriced": "replacement transaction underpriced",
    "tx_chain_id": "invalid chain id for signer",
}
"""Words that ethers, web3.py and ape look for in the message, put before ours."""
LIMIT_CODES: Final = frozenset({"busy", "logs_limit"})


class RpcError(Exception):
    """An answer with an error in it: code, message, and data that programs can read."""

    def __init__(self, code: int, message: str, data: Json = None) -> None:
        super().__init__(message)
        self.code, self.message, self.data = code, message, data


class InvalidParameters(RpcError):
    """An argument of the wrong type, shape or size."""

    def __init__(self, message: str) -> None:
        super().__init__(INVALID_PARAMETERS, message)


class LimitExceeded(RpcError):
    """More than this node gives in one call or to one caller."""

    def __init__(self, message: str) -> None:
        super().__init__(LIMIT_EXCEEDED, message)


class Reverted(RpcError):
    """An EVM call that reverted: `data` holds what it returned, in hex."""

    def __init__(self, data: bytes) -> None:
        reason = decode_reason(data)
        message = "execution reverted" + (f": {reason}" if reason else "")
        super().__init__(REVERTED, message, "0x" + data.hex())


def encode_refusal(error: SteelyardError) -> RpcError:
    """One of our typed errors as a JSON-RPC error that keeps its code."""
    familiar = FAMILIAR.get(error.code)
    message = f"{familiar}: {error.message}" if familiar else error.message
    code = LIMIT_EXCEEDED if error.code in LIMIT_CODES else REFUSED
    return RpcError(code, message, {"code": error.code})


def decode_reason(data: bytes) -> str:
    """The text of `Error(string)` or the number of `Panic(uint256)`; empty for anything else."""
    try:
        if data[:4] == ERROR_SELECTOR:
            (reason,) = decode(["string"], data[4:])
            return str(reason)[:MAX_REASON_CHARACTERS]
        if data[:4] == PANIC_SELECTOR:
            (number,) = decode(["uint256"], data[4:])
            return f"panic code 0x{number:02x}"
    except (DecodingError, UnicodeDecodeError, OverflowError):
        return ""
    return ""

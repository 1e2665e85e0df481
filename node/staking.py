"""A validator's account and the contract Staking, over JSON-RPC: join, add, leave, be paid out.

Any node of the chain will do; it is not trusted with more than to pass on what was signed: chain
and genesis are compared with the validator's own document, and the fee has a limit.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import httpx
from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_account import Account
from eth_keys.datatypes import PrivateKey
from eth_utils.abi import function_signature_to_4byte_selector

from steelyard.chain.errors import SteelyardError
from steelyard.chain.genesis import GenesisValidator
from steelyard.chain.params import STAKING_ADDRESS
from steelyard.chain.transactions import Transaction
from steelyard.chain.types import Address

from .alarms import State
from .options import explain_silence
from .sent import SendingUnclear, SentFile

ANSWER_SECONDS: Final = 20.0
FINAL_SECONDS: Final = 120.0
POLL_SECONDS: Final = 0.25
TIP_WEI: Final = 10**6
MAX_FEE_WEI: Final = 500 * 10**9
"""For a unit of gas; a node that names more is not believed."""
GAS_MARGIN_PERCENT: Final = 125
GAS_MARGIN: Final = 30_000
"""Whatever comes first in an epoch pays for what Staking notes then."""
REFUSED: Final = "tx_"
"""How codes begin with which a pool refuses a transaction; after other failures it may have it."""
REVERTED: Final = 3
"""The JSON-RPC error of a call that its contract refused."""
STAKING: Final = "0x" + bytes(STAKING_ADDRESS).hex()


@dataclass(frozen=True, slots=True)
class Validator:
    """An account as Staking has it. `stake` in wei, `unlocks_at` in Unix seconds."""

    state: State
    stake: int
    endpoint: str
    since: int
    unlocks_at: int
    is_banned: bool


class StakingView:
    """What Staking says of one account, through one node. Raises SteelyardError."""

    def __init__(self, url: str, address: Address, genesis_hash: str) -> None:
        self._url, self._genesis_hash, self.address = url, genesis_hash, address

    def check_chain(self) -> None:
        """The node is on our chain. Raises SteelyardError wrong_chain."""
        block = self._ask("eth_getBlockByNumber", "0x0", False)
        found = block.get("hash") if isinstance(block, dict) else None
        if found != self._genesis_hash:
            raise SteelyardError(
                "wrong_chain",
                f"{self._url} is on a chain that begins with {found}, and genesis.json with "
                f"{self._genesis_hash}; name another node",
            )

    def read(self) -> Validator:
        """Where the account stands."""
        state, _, since, unlocks_at = self._view("get_standing", "(uint8,uint256,uint256,uint256)")
        is_banned = bool(self._view("banned", "bool"))
        stake, endpoint = 0, ""
        if state != State.NOBODY:
            row = self._view("get_validator", "(address,bytes,bytes32,string,address,uint256)")
            stake, endpoint = row[5], row[3]
        return Validator(State(state), stake, endpoint, since, unlocks_at, is_banned)

    def get_balance(self) -> int:
        """Coins of the account, in wei."""
        return _read_quantity(self._ask("eth_getBalance", self._show(), "latest"))

    def _view(self, name: str, returns: str) -> Any:
        data = encode_call(f"{name}(address)", self._show())
        output = self._ask("eth_call", {"to": STAKING, "data": data}, "latest")
        try:
            return decode([returns], bytes.fromhex(output[2:]))[0]
        except (DecodingError, ValueError, TypeError) as error:
            raise SteelyardError("rpc_answer", f"{self._url}: {name}: {error}") from None

    def _show(self) -> str:
        return "0x" + self.address.hex()

    def _ask(self, method: str, *params: Any) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        try:
            reply = httpx.post(self._url, json=body, timeout=ANSWER_SECONDS).json()
        except httpx.HTTPError as error:
            raise SteelyardError("node_unreachable", explain_silence(self._url, error)) from None
        except ValueError as error:
            raise SteelyardError("rpc_answer", f"{self._url}: {error}") from None
        if not isinstance(reply, dict) or not ("result" in reply or "error" in reply):
            raise SteelyardError("rpc_answer", f"{self._url} does not speak JSON-RPC")
        if "error" in reply:
            raise _read_error(method, reply["error"])
        return reply["result"]


class StakingAccount(StakingView):
    """One account's calls to Staking through one node. Raises SteelyardError.

    What carries coins is kept in `sent` until `forget` is called, once its end has been told.
    """

    def __init__(
        self,
        url: str,
        account: PrivateKey,
        chain_id: int,
        genesis_hash: str,
        sent: SentFile,
        get_seconds: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(url, Address(account.public_key.to_canonical_address()), genesis_hash)
        self._account, self._chain_id, self._sent = account, chain_id, sent
        self._get_seconds, self._sleep = get_seconds, sleep

    def settle(self) -> Transaction | None:
        """Bring to its end what an earlier run sent with coins, and has not told of.

        Returns None if there is nothing of the kind. Raises SteelyardError: `reverted`, after which
        it is forgotten; SendingUnclear, after which it is the caller's to tell and forget; as any
        sending.
        """
        sent = self._sent.read()
        if sent is None:
            return None
        name = "0x" + sent.hash.hex()
        if self._find_receipt(name) is None:
            try:
                self._ask("eth_sendRawTransaction", "0x" + sent.raw.hex())
            except SteelyardError:
                # In a block since, or never: then what the node says against it stands.
                if self._count_sent() <= sent.nonce:
                    raise
                if self._find_receipt(name) is None:
                    raise SendingUnclear(
                        f"an earlier run sent {name}; its nonce is used, and {self._url} has no "
                        "receipt of it. See with `steelyard node standing` what is at stake; the "
                        "same command again sends anew"
                    ) from None
        self._finish(name, carries=True)
        return sent

    def hold(self) -> AbstractContextManager[None]:
        """Let no other command send coins meanwhile. Raises SteelyardError deposit_busy."""
        return self._sent.hold()

    def forget(self) -> None:
        """What carried coins has been told of: the same call is a new one from now on."""
        self._sent.remove()

    def deposit(self, entry: GenesisValidator) -> str:
        """Become a validator with the entry's keys, endpoint and stake."""
        data = encode_call(
            "deposit(bytes,bytes,bytes32,string,address)",
            entry.bls_key,
            entry.proof_of_possession,
            entry.network_key,
            entry.endpoint,
            "0x" + entry.fee_recipient.hex(),
        )
        return self._send(data, entry.stake)

    def add_stake(self, amount: int) -> str:
        """Add wei to the stake."""
        return self._send(encode_call("add_stake()"), amount)

    def move(self, endpoint: str) -> str:
        """Be found elsewhere from the next epoch on."""
        return self._send(encode_call("set_endpoint(string)", endpoint))

    def act(self, name: str) -> str:
        """`enter`, `unjail`, `request_exit` or `withdraw`."""
        try:
            return self._send(encode_call(f"{name}()"))
        except SteelyardError as error:
            if name != "withdraw" or error.code != "reverted":
                raise
            raise SteelyardError(error.code, f"{error.message}{self._explain_wait()}") from None

    def _explain_wait(self) -> str:
        """When the stake is paid out, if the node still tells."""
        try:
            found = self.read()
        except SteelyardError:
            return ""
        if found.state != State.LEAVING:
            return "; only a stake that leaves is paid out: steelyard node exit DIR, then wait"
        return (
            f"; it is paid out from {show_time(found.unlocks_at)} on, and not before the second "
            "epoch after the request"
        )

    def _send(self, data: str, value: int = 0) -> str:
        """Sign, send, wait until it is final. Returns the transaction's hash."""
        call = {"from": self._show(), "to": STAKING, "data": data, "value": hex(value)}
        estimate = _read_quantity(self._ask("eth_estimateGas", call))
        gas = estimate * GAS_MARGIN_PERCENT // 100 + GAS_MARGIN
        max_fee = 2 * _read_quantity(self._ask("eth_gasPrice")) + TIP_WEI
        if max_fee > MAX_FEE_WEI:
            raise SteelyardError(
                "fee_high", f"{self._url} names a fee of {max_fee} wei for a unit of gas"
            )
        transaction = {
            "type": 2,
            "chainId": self._chain_id,
            "nonce": self._count_sent("pending"),
            "to": bytes(STAKING_ADDRESS),
            "value": value,
            "data": data,
            "gas": gas,
            "maxFeePerGas": max_fee,
            "maxPriorityFeePerGas": TIP_WEI,
        }
        signed = Account.sign_transaction(transaction, self._account)
        raw, name = bytes(signed.raw_transaction), "0x" + bytes(signed.hash).hex()
        if value:
            self._sent.write(raw)
        try:
            self._ask("eth_sendRawTransaction", "0x" + raw.hex())
        except SteelyardError as error:
            if value and error.code.startswith(REFUSED):
                self._sent.remove()
            raise
        self._finish(name, carries=value > 0)
        return name

    def _count_sent(self, block: str = "latest") -> int:
        """Transactions of this account in blocks, or with those of the node's pool: `pending`."""
        return _read_quantity(self._ask("eth_getTransactionCount", self._show(), block))

    def _find_receipt(self, transaction_hash: str) -> dict[str, Any] | None:
        found = self._ask("eth_getTransactionReceipt", transaction_hash)
        if found is not None and not isinstance(found, dict):
            raise SteelyardError("rpc_answer", f"{self._url}: {found!r} is no receipt")
        return found

    def _finish(self, transaction_hash: str, *, carries: bool) -> None:
        """Wait until it is final; what carries coins and failed moved none, and is forgotten.

        Raises SteelyardError `reverted`, `transaction_pending`.
        """
        deadline = self._get_seconds() + FINAL_SECONDS
        while self._get_seconds() < deadline:
            receipt = self._find_receipt(transaction_hash)
            if receipt is not None:
                if receipt.get("status") != "0x1":
                    if carries:
                        self._sent.remove()
                    raise SteelyardError("reverted", f"{transaction_hash} is final, and failed")
                return
            self._sleep(POLL_SECONDS)
        raise SteelyardError(
            "transaction_pending",
            f"{transaction_hash} is sent and not final yet; run the same again later",
        )


def show_time(seconds: int) -> str:
    """Unix seconds for people, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))


def encode_call(signature: str, *values: object) -> str:
    """Calldata in hex."""
    types = signature.partition("(")[2].removesuffix(")")
    selector = function_signature_to_4byte_selector(signature)
    return "0x" + (selector + encode(types.split(",") if types else [], values)).hex()


def _read_error(method: str, error: Any) -> SteelyardError:
    """The node's refusal, with its code if it has one of ours."""
    fields = error if isinstance(error, dict) else {}
    message = f"{method}: {fields.get('message', error)}"
    if fields.get("code") == REVERTED:
        return SteelyardError("reverted", message)
    data = fields.get("data")
    code = data.get("code") if isinstance(data, dict) else None
    return SteelyardError(code if isinstance(code, str) else "rpc_error", message)


def _read_quantity(value: Any) -> int:
    try:
        return int(value, 16)
    except (TypeError, ValueError):
        raise SteelyardError("rpc_answer", f"{value!r} is not a number") from None

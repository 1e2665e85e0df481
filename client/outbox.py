"""Sending one transaction to its end: sign once, journal, send, send again, read the receipt.

The order is what makes it survive a kill between any two steps:

1. an entry in the journal decides everything: its bytes are the only ones that are ever sent;
2. without one, nonce and fees are chosen, the transaction is signed and journalled (fsync);
3. transaction first, blobs second, then wait for the receipt; whatever waits too long is sent
   again, the same bytes, to the next node that answers;
4. if the account's nonce has passed ours and our transaction is in no block, another program
   used the nonce: ours can never be included, and the same call is signed under the next nonce.

Asking for nonce and receipt goes to one node in one batch, so that two nodes at different heights
cannot make a transaction look lost. Before one is given up, every node is asked for its receipt.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeGuard

from eth_account.signers.local import LocalAccount

from steelyard.chain.types import Address, BlobName, Hash

from .abi import Log, decode_log
from .amounts import format_coins
from .errors import (
    ClientError,
    NodeRefused,
    NodeUnreachable,
    Reverted,
    SendingUnclear,
    TransactionPending,
)
from .keys import format_address
from .rpc import Json, Rpc, as_bytes, as_hex, as_int, as_object
from .state import Entry, Journal, Status
from .stillness import Stillness
from .transactions import Call, Fees, check_prices, compute_access_list, sign_call

REBROADCAST_SECONDS: Final = 15.0
POLL_GROWTH: Final = 1.2
MAX_POLL_PAUSES: Final = 3
"""Polling for a receipt begins at a quarter of the account's period and slows down to this many."""
WAIT_SECONDS: Final = 900.0
TRANSFER_GAS: Final = 21_000
"""What coins to an account without code take, exactly: nothing can change it."""
GAS_MARGIN_PERCENT: Final = 125
GAS_HEADROOM: Final = 500_000
"""Over the estimate. What happens before ours in the same block can change its cost: whoever takes
the last free place starts the task, the last to commit opens the reveals. Only used gas is paid."""
BASE_FEE_HEADROOM: Final = 8
"""The fee cap over the current base fee; only the base fee of the block is paid."""

WAITING_CODES: Final = frozenset(
    {
        "tx_nonce_high",
        "tx_nonce_low",
        "tx_fee_low",
        "tx_underpriced",
        "tx_pool_full",
        "tx_blob_pending",
        "tx_block_full",
        "busy",
        "disk_full",
        "body_timeout",
        "blob_held",
        "blob_quota",
        "blob_undeclared",
        "blob_too_late",
    }
)
"""Refusals that time can cure, or that mean the node has it already: wait, then send again."""
NEVER_CODES: Final = frozenset(
    {
        "tx_malformed",
        "tx_type",
        "tx_signature",
        "tx_chain_id",
        "tx_gas",
        "tx_gas_limit",
        "tx_initcode",
        "tx_size",
        "blob_declaration",
    }
)
"""Refusals that hold for these bytes for ever: their nonce is free again, if the node is right."""
UNEXPLAINED: Final = "it failed in its block, though not when asked again (out of gas, or too late)"
MAX_NONCES_AHEAD: Final = 1_024
"""Transactions of one account that may wait at once, as far as a node is believed: ours keep 64."""
MAX_SIGNED: Final = 3
"""How often one call is signed in a row because its nonce was gone."""
VOID: Final = (Status.REPLACED, Status.REFUSED)
REPORTED_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a finalized transaction did."""

    hash: Hash
    height: int
    block_hash: Hash
    status: bool
    gas_used: int
    gas_price: int
    logs: tuple[Log, ...]


@dataclass(frozen=True, slots=True)
class Clock:
    """The time that waiting takes; tests bring their own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Outbox:
    """The transactions of one account on one chain."""

    def __init__(
        self,
        rpc: Rpc,
        journal: Journal,
        account: LocalAccount,
        *,
        clock: Clock | None = None,
        report: Callable[[str], object] = str,
        poll_seconds: float = 1.0,
    ) -> None:
        self.rpc, self.journal, self.account = rpc, journal, account
        self.clock = clock or Clock()
        self._report, self._poll_seconds = report, poll_seconds
        self.turn = threading.RLock()
        """Threads that share an account send one after the other: two would choose one nonce."""

    @property
    def address(self) -> Address:
        """The account that signs."""
        return Address(bytes.fromhex(self.account.address[2:]))

    def send(self, label: str, call: Call, data: Mapping[BlobName, bytes] | None = None) -> Receipt:
        """Carry out `call` once, however often this is called with the same label.

        Returns the receipt of a successful transaction. Raises: Reverted when the contract
        refused it (then a later call with this label raises it again); TransactionPending when it
        is still waiting after WAIT_SECONDS; SendingUnclear; NodeRefused,
        NodeUnreachable.
        """
        with self.turn:
            self.flush(label)
            entry = self.journal.get_entry(label)
            receipt, signed = self._find_refused(entry, call), 0
            while receipt is None:
                if entry is None or entry.status in VOID:
                    check_repeatable(entry, call, signed)
                    signed += 1
                    entry = self._sign(label, entry, call, data or {})
                receipt = self._finish(entry)
                entry = self.journal.get_entry(label)
        if not receipt.status:
            raise Reverted(self._explain(call, receipt))
        return receipt

    def flush(self, label: str = "") -> None:
        """Bring every transaction on its way to its end, except the one under `label`.

        A signed transaction may have left before a crash and holds its nonce: nothing with a
        higher nonce can be included before it.
        """
        with self.turn:
            for entry in self.journal.get_entries():
                if entry.status is Status.SIGNED and entry.label != label:
                    self._finish(entry)

    def _finish(self, entry: Entry) -> Receipt | None:
        """Wait for one transaction and record its end. None: it can never be included."""
        try:
            receipt = self._wait(entry)
        except NodeRefused as refusal:
            if refusal.code in NEVER_CODES and entry.status is Status.SIGNED:
                self.journal.set_status(entry, Status.REFUSED)
            raise
        if receipt is None:
            if entry.status is not Status.SIGNED:
                raise NodeRefused(
                    "receipt_missing",
                    f"{self.rpc.url} lacks the receipt of {entry.label}, which was finalized at "
                    f"height {entry.height}; ask another node",
                )
            self.journal.set_status(entry, Status.REPLACED)
            self._report(f"another transaction took nonce {entry.nonce} of {entry.label}")
        elif entry.status is Status.SIGNED:
            status = Status.INCLUDED if receipt.status else Status.FAILED
            self.journal.set_status(entry, status, receipt.height)
        return receipt

    # -- signing -----------------------------------------------------------------------------------
    def _sign(
        self, label: str, former: Entry | None, call: Call, data: Mapping[BlobName, bytes]
    ) -> Entry:
        """Choose nonce, fees and gas, sign, and journal. Nothing has left when this returns.

        `former` is what was signed under this label before, and is void.
        """
        assert all(name in data or self.journal.get_blob(name) for name in call.blobs)
        sender = as_hex(self.address)
        nonce_then, nonce_now, block, balance = self.rpc.call_together(
            [
                ("eth_getTransactionCount", (sender, "pending")),
                ("eth_getTransactionCount", (sender, "latest")),
                ("eth_getBlockByNumber", ("latest", False)),
                ("eth_getBalance", (sender, "latest")),
            ]
        )
        nonce = self._choose_nonce(as_int(nonce_then), as_int(nonce_now))
        if is_doubtful(former, call) and not self.journal.has_used(former.nonce):
            check_free(former, as_int(nonce_now))
            nonce = former.nonce
        tip = as_int(self.rpc.call("eth_maxPriorityFeePerGas"))
        base_fee = as_int(as_object(block).get("baseFeePerGas"))
        check_prices(base_fee, tip)
        fees = Fees(BASE_FEE_HEADROOM * base_fee + tip, tip)
        gas = call.gas if call.gas is not None else self.estimate_gas(call)
        worst = call.value + (gas + call.gas_after) * fees.max_fee
        if as_int(balance) < worst:
            what = "this call and the one it binds to" if call.gas_after else "this call"
            raise ClientError(
                "balance_low",
                f"{format_address(self.address)} has {format_coins(as_int(balance))} coins and "
                f"{what} may need {format_coins(worst)} ({format_coins(call.value)} of it sent "
                "along); send coins to the account and run again",
            )
        chain_id = self.rpc.network.chain_id
        signed = sign_call(self.account, call, chain_id=chain_id, nonce=nonce, gas=gas, fees=fees)
        attempt = 0 if former is None else former.attempt + 1
        entry = Entry(
            label, attempt, nonce, signed.hash, signed.raw, call.blobs, Status.SIGNED, None
        )
        self.journal.add_entry(entry, data)
        return entry

    def _choose_nonce(self, pending: int, latest: int) -> int:
        """Return the next nonce. What is signed with one that never comes holds up all after it.

        Raises NodeRefused `nonce_implausible`.
        """
        known = self.journal.get_next_nonce()
        if latest > known + MAX_NONCES_AHEAD:
            latest = min((latest, *self._count_elsewhere()))
        if pending > max(latest, known) + MAX_NONCES_AHEAD:
            raise NodeRefused(
                "nonce_implausible",
                f"{self.rpc.url} names nonce {pending} for the next transaction, and {latest} are "
                "in blocks; ask another node",
            )
        return max(pending, known)

    def _count_elsewhere(self) -> list[int]:
        """Return how many transactions of the account are in blocks, as each node says."""
        counts = self.rpc.call_each("eth_getTransactionCount", as_hex(self.address), "latest")
        return [as_int(count) for count in counts.values() if isinstance(count, str)]

    def estimate_gas(self, call: Call) -> int:
        """Return the node's estimate, with a margin where code runs. Raises Reverted."""
        assert not call.blobs, "a blob transaction cannot be estimated: its blobs come after it"
        estimate = as_int(self.rpc.call("eth_estimateGas", encode_call(self.address, call)))
        if estimate <= TRANSFER_GAS:
            return estimate
        return estimate * GAS_MARGIN_PERCENT // 100 + GAS_HEADROOM

    # -- waiting -----------------------------------------------------------------------------------
    def _wait(self, entry: Entry) -> Receipt | None:
        """Send, and send again, until there is a receipt. None: the nonce went to another."""
        started = self.clock.now()
        sent_at: float | None = None
        pause, problem, told = self._poll_seconds / 4, "", ""
        stillness = Stillness(entry.label)
        while True:
            try:
                receipt, is_passed = self._look(entry, stillness)
                if receipt is None and is_passed:
                    receipt = self._find_receipt(entry)
                if receipt is not None or is_passed:
                    return receipt
                if sent_at is None or self.clock.now() - sent_at >= REBROADCAST_SECONDS:
                    if sent_at is not None:
                        self.rpc.move_on()  # this one may keep it to itself, or stand still
                    problem = self._broadcast(entry) or problem
                    sent_at = self.clock.now()  # a large file takes long: not to the next one yet
            except NodeUnreachable as error:
                sent_at, problem = None, error.message
            waited = self.clock.now() - started
            if waited >= WAIT_SECONDS:
                raise TransactionPending(
                    "transaction_pending",
                    f"{entry.label} (0x{entry.hash.hex()}) is in no block after {waited:.0f} s"
                    f"{': ' + problem if problem else ''}; run again to resend the same bytes",
                )
            if problem not in ("", told) and waited >= REPORTED_SECONDS:
                self._report(f"still waiting for {entry.label}: {problem}")
                told = problem
            self.clock.sleep(pause)
            pause = min(pause * POLL_GROWTH, MAX_POLL_PAUSES * self._poll_seconds)

    def _look(self, entry: Entry, stillness: Stillness) -> tuple[Receipt | None, bool]:
        """Return the receipt if there is one, and whether the account's nonce has passed ours."""
        count, receipt, height = self.rpc.call_together(
            [
                ("eth_getTransactionCount", (as_hex(self.address), "latest")),
                ("eth_getTransactionReceipt", (as_hex(entry.hash),)),
                ("eth_blockNumber", ()),
            ]
        )
        if receipt is not None:
            return decode_receipt(receipt, entry.hash), True
        if line := stillness.observe(as_int(height), self.clock.now()):
            self._report(line)
        return None, as_int(count) > entry.nonce

    def _find_receipt(self, entry: Entry) -> Receipt | None:
        """Return a receipt that the current node lacks: it may have begun after that block.

        Without one the same call is signed again, and could be carried out twice.
        """
        return None if len(self.rpc.urls) == 1 else self._ask_each(entry)

    def _find_refused(self, entry: Entry | None, call: Call) -> Receipt | None:
        """Return, and record, the receipt of what a node refused and passed on all the same."""
        if not is_doubtful(entry, call) or (receipt := self._ask_each(entry)) is None:
            return None
        status = Status.INCLUDED if receipt.status else Status.FAILED
        self.journal.set_status(entry, status, receipt.height)
        return receipt

    def _ask_each(self, entry: Entry) -> Receipt | None:
        """Return a receipt that any of the nodes has."""
        answers = self.rpc.call_each("eth_getTransactionReceipt", as_hex(entry.hash))
        for answer in answers.values():
            try:
                return decode_receipt(as_object(answer), entry.hash)
            except NodeRefused:
                continue
        return None

    def _broadcast(self, entry: Entry) -> str:
        """Send the transaction, then its blobs. Returns what the node objects to for now."""
        problem = ""
        try:
            self.rpc.call("eth_sendRawTransaction", as_hex(entry.raw))
        except NodeRefused as refusal:
            if refusal.code not in WAITING_CODES:
                raise
            problem = refusal.message
        for name in entry.blobs:
            data = self.journal.get_blob(name)
            if data is None:
                assert entry.status is not Status.SIGNED, "bytes are journalled before their entry"
                continue  # it was in a block, as a node said: others have the file
            try:
                if not self.rpc.has_blob(name):
                    self.rpc.put_blob(name, data)
            except NodeRefused as refusal:
                if refusal.code not in WAITING_CODES:
                    raise
                problem = problem or refusal.message
        return problem

    def _explain(self, call: Call, receipt: Receipt) -> str:
        """Return why a finalized transaction failed, by asking for the same call at its block."""
        if receipt.gas_used == 0:
            return "it used no gas"
        try:
            self.rpc.call("eth_call", encode_call(self.address, call), as_hex(receipt.height))
        except (Reverted, NodeRefused) as error:
            return error.reason if isinstance(error, Reverted) else error.message
        return UNEXPLAINED


def is_doubtful(entry: Entry | None, call: Call) -> TypeGuard[Entry]:
    """Whether a node's word alone says that this was not carried out, and nothing would show it.

    Then it is signed anew with the same nonce: of the two, one at most can be carried out.
    """
    return entry is not None and entry.status is Status.REFUSED and call.is_traceless


def check_free(entry: Entry, count: int) -> None:
    """Raises SendingUnclear where the nonce of `entry` is gone, to none of our transactions."""
    if count > entry.nonce:
        raise SendingUnclear(explain_gone(entry))


def check_repeatable(entry: Entry | None, call: Call, signed: int) -> None:
    """Raises SendingUnclear where signing again might carry out a call twice.

    Nor is one signed for ever, `signed` times by now, for nodes that have no receipts at all.
    """
    is_replaced = entry is not None and entry.status is Status.REPLACED
    if entry is not None and is_replaced and (call.is_traceless or signed >= MAX_SIGNED):
        raise SendingUnclear(explain_gone(entry))


def explain_gone(entry: Entry) -> str:
    """Return what is known of a call whose nonce is gone."""
    return (
        f"nonce {entry.nonce} is used and no node has the receipt of 0x{entry.hash.hex()}: "
        "another transaction took it, or that one was carried out before these nodes began. "
        "See whether it arrived; run again to send it anew"
    )


def encode_call(sender: Address, call: Call) -> dict[str, Json]:
    """Return `call` as JSON-RPC's transaction object."""
    encoded: dict[str, Json] = {
        "from": as_hex(sender),
        "to": as_hex(call.to),
        "value": as_hex(call.value),
        "data": as_hex(call.data),
    }
    if call.blobs:
        encoded["accessList"] = compute_access_list(call.blobs)
    return encoded


def decode_receipt(value: Json, expected: Hash | None = None) -> Receipt:
    """Return a JSON-RPC receipt. Raises NodeRefused `rpc_answer`."""
    try:
        receipt = Receipt(
            Hash(as_bytes(value["transactionHash"], 32)),
            as_int(value["blockNumber"]),
            Hash(as_bytes(value["blockHash"], 32)),
            as_int(value["status"]) == 1,
            as_int(value["gasUsed"]),
            as_int(value["effectiveGasPrice"]),
            tuple(decode_log(log) for log in value["logs"]),
        )
    except (KeyError, TypeError, AttributeError):
        raise NodeRefused("rpc_answer", "the node's receipt is malformed") from None
    if expected is not None and receipt.hash != expected:
        raise NodeRefused("rpc_answer", "the node answered with another transaction's receipt")
    return receipt

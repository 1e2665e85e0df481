"""The account that pays for what the keeper does: tries a call out, signs it, submits it.

It never has more than a few transactions pending and never pays more than its cap; one that the
base fee has left behind is replaced by the next. `Attempts` keeps what is tried from being tried
too often: once, then again after a pause that grows, or when gas has become cheaper or the account
richer, if it failed for that.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_account import Account
from eth_keys.datatypes import PrivateKey
from eth_utils.abi import function_signature_to_4byte_selector

from steelyard.chain.calls import CallRequest, CallResult
from steelyard.chain.errors import SteelyardError
from steelyard.chain.transactions import Transaction
from steelyard.chain.types import Address, Hash

from .logs import log_event
from .mempool import REPLACEMENT_PERCENT

if TYPE_CHECKING:
    from .node import Node

GAS_MARGIN_PERCENT = 130
GAS_MARGIN = 50_000
MAX_PAUSE_SECONDS = 3_600.0
PRICED = frozenset({"keeper_unpaid", "keeper_fee", "keeper_floor"})
"""Refusals that cheaper gas may lift."""
POOR = frozenset({"keeper_floor", "tx_balance"})
"""Refusals that coins for the account lift."""
CHANGE_PART = 10
"""By one such part of what it was gas must be cheaper, or the account richer, for what failed of
that to be tried before its time: an empty block takes off an eighth, and coins cost who sends them.
"""


class WouldRevert(SteelyardError):
    """A call of ours would fail; `message` is the contract's reason."""

    def __init__(self, reason: str) -> None:
        super().__init__("keeper_reverted", reason)


@dataclass(frozen=True, slots=True)
class Prices:
    """Wei a gas: what the next block burns; the least tip that is taken and the usual one; what
    this account never exceeds."""

    base_fee: int
    least_tip: int
    usual_tip: int
    cap: int


@dataclass(frozen=True, slots=True)
class Bid:
    """What a transaction offers, in wei a gas."""

    tip: int
    max_fee: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """An account's transactions that are in no block yet."""

    moving: tuple[Transaction, ...]
    """Those that the next blocks can take, by nonce."""
    stuck: Transaction | None
    """The one after them, if the base fee has left it behind: until that falls again nothing behind
    it moves either, not even a check-in. None if there is nothing at that nonce."""
    paying: tuple[Transaction, ...]
    """Those that the base fee has not left behind, whatever is before them."""
    next_nonce: int
    """Where the next one goes: after those that move, in the place of one that is stuck."""


def compute_bid(prices: Prices, tip: int | None = None) -> Bid:
    """Return an offer with room for a base fee twice as high. Raises SteelyardError keeper_fee."""
    tip = prices.usual_tip if tip is None else tip
    max_fee = min(2 * prices.base_fee + tip, prices.cap)
    if max_fee < prices.base_fee + tip:
        raise SteelyardError(
            "keeper_fee", f"a base fee of {prices.base_fee} wei is more than the keeper may pay"
        )
    return Bid(tip, max_fee)


def sort_waiting(own: Iterable[Transaction], nonce: int, base_fee: int) -> Waiting:
    """Return where an account's pending transactions stand; `nonce` is that of its next one."""
    by_nonce = {one.nonce: one for one in own}
    moving: list[Transaction] = []
    while (one := by_nonce.get(nonce)) is not None and one.max_fee >= base_fee:
        moving.append(one)
        nonce += 1
    paying = tuple(one for one in by_nonce.values() if one.max_fee >= base_fee)
    return Waiting(tuple(moving), by_nonce.get(nonce), paying, nonce)


class Wallet:
    """One account of this node."""

    def __init__(self, node: "Node", account: PrivateKey) -> None:
        self._node, self._account = node, account
        self._config = node.config.keeper
        self.address = Address(account.public_key.to_canonical_address())

    def ask(self, to: bytes, signature: str, *values: object) -> bytes:
        """What a view of the contract at `to` answers. Raises SteelyardError keeper_view."""
        request = CallRequest(to=Address(to), data=encode_call(signature, *values))
        result = self._node.call(request)
        if result.is_error:
            raise SteelyardError("keeper_view", f"{signature}: {result.error}")
        return result.output

    def is_busy(self) -> bool:
        """Are as many transactions pending as there may be? What is stuck does not count, nor what
        is behind it: the next one takes its place.
        """
        return len(self._list_waiting().moving) >= self._config.max_in_flight

    def submit(self, to: bytes, data: bytes) -> Hash:
        """Try a call out, then sign and submit it. Raises SteelyardError if it would fail."""
        result = self.try_out(to, data)
        return self.send(to, data, self.compute_gas(result), compute_bid(self.get_prices()))

    def try_out(self, to: bytes, data: bytes) -> CallResult:
        """What a call of ours would do now. Raises WouldRevert."""
        result = self._call(to, data)
        if result.is_error:
            raise WouldRevert(describe_revert(result.revert_data, result.error))
        return result

    def find_refusal(self, to: bytes, data: bytes) -> str | None:
        """Why a call of ours would fail now, or None."""
        result = self._call(to, data)
        return describe_revert(result.revert_data, result.error) if result.is_error else None

    def compute_gas(self, result: CallResult) -> int:
        """Return a limit for what was tried out: one run and a margin; a finer search would compute
        an aggregation several times.
        """
        needed = (result.gas_used + result.gas_refund) * GAS_MARGIN_PERCENT // 100 + GAS_MARGIN
        return min(needed, self._node.rules.gas_limit)

    def get_prices(self) -> Prices:
        """What gas costs in the next block. To take a stuck one's place costs a tenth more tip."""
        least, stuck = self._node.config.mempool.min_tip_wei, self._list_waiting().stuck
        if stuck is not None:
            least = max(least, -(-stuck.max_priority_fee * REPLACEMENT_PERCENT // 100))
        return Prices(
            base_fee=self._node.get_next_base_fee(),
            least_tip=least,
            usual_tip=max(least, self._node.get_suggested_tip()),
            cap=self._config.max_fee_wei,
        )

    def get_free_balance(self) -> int:
        """What our pending transactions leave, at their fee caps, in wei."""
        pending = (one for one in self._node.mempool.get_all() if one.sender == self.address)
        return self._node.get_balance(self.address) - sum(one.max_cost for one in pending)

    def send(self, to: bytes, data: bytes, gas: int, bid: Bid, floor: int = 0) -> Hash:
        """Sign and submit. Raises SteelyardError keeper_pending if the same call is on its way,
        keeper_floor if this could leave less than `floor` wei; InvalidTransaction if the pool
        refuses it.
        """
        waiting = self._list_waiting()
        # What is behind a stuck one may wait for hours: a duty is sent again, in that one's place,
        # and its double is refused in turn. A step of a task is not worth that.
        doubles = waiting.paying if floor else waiting.moving
        if any((one.to, one.data) == (to, data) for one in doubles):
            raise SteelyardError("keeper_pending", "the same call waits for a block already")
        left = self.get_free_balance() - gas * bid.max_fee
        if floor and left < floor:
            raise SteelyardError(
                "keeper_floor", f"it could leave {left} wei; {floor} are kept for check-ins"
            )
        transaction = {
            "type": 2,
            "chainId": self._node.rules.chain_id,
            "nonce": waiting.next_nonce,
            "to": bytes(to),
            "value": 0,
            "data": data,
            "gas": gas,
            "maxFeePerGas": bid.max_fee,
            "maxPriorityFeePerGas": bid.tip,
        }
        signed = Account.sign_transaction(transaction, self._account)
        return self._node.submit_transaction(bytes(signed.raw_transaction))

    def _call(self, to: bytes, data: bytes) -> CallResult:
        return self._node.call(CallRequest(sender=self.address, to=Address(to), data=data))

    def _list_waiting(self) -> Waiting:
        """Our pending transactions. The pool may still have what is final."""
        nonce = self._node.get_nonce(self.address, pending=False)
        if self._node.mempool.get_next_nonce(self.address) is None:
            return Waiting((), None, (), nonce)
        pool, base_fee = self._node.mempool.get_all(), self._node.get_next_base_fee()
        own = [one for one in pool if one.sender == self.address and one.nonce >= nonce]
        return sort_waiting(own, nonce, base_fee)


@dataclass(slots=True)
class Attempt:
    """Seen first, and not to be touched before `after`; seconds of the monotonic clock."""

    after: float
    failures: int = 0
    code: str | None = None
    """Why it failed last. The log is told once, not each time."""
    base_fee: int = 0
    """At which it was too dear, in wei a gas."""
    balance: int | None = None
    """With which the account was too poor for it, in wei; the least that it has had since."""


class Attempts:
    """What was tried from the account `payer`, and when it may be tried again."""

    def __init__(self, node: "Node", payer: Address) -> None:
        self._node, self._retry_seconds = node, node.config.keeper.retry_seconds
        self._payer = payer
        self.entries: dict[Hashable, Attempt] = {}

    def run(
        self,
        key: Hashable,
        act: Callable[[], Hash],
        fields: Mapping[str, Any],
        wait_seconds: float = 0.0,
    ) -> SteelyardError | None:
        """Do it if it is time, for the first time `wait_seconds` from now; return its failure.

        What was too dear is tried again when gas costs a tenth less, too: whoever lifts the base
        fee now and then must not gain the pauses between. What the account could not pay is tried
        again when it has a tenth more: who sends it coins for a check-in must not wait for an hour.
        """
        now, base_fee = self._node.clock.get_seconds(), self._node.get_next_base_fee()
        attempt = self.entries.setdefault(key, Attempt(now + wait_seconds))
        if now < attempt.after and not self._look_again(attempt, base_fee):
            return None
        balance = self._get_balance()  # coins that come while it is tried are news
        try:
            transaction_hash = act()
        except SteelyardError as error:
            pause = self._retry_seconds * 2 ** min(attempt.failures, 10)
            attempt.after = now + min(pause, MAX_PAUSE_SECONDS)
            attempt.failures += 1
            if error.code != attempt.code:
                log_event("keeper_skipped", **fields, code=error.code, message=error.message)
            attempt.code = error.code
            attempt.base_fee = base_fee if error.code in PRICED else 0
            attempt.balance = balance if error.code in POOR else None
            return error
        attempt.after, attempt.code = now + self._retry_seconds, None
        attempt.base_fee, attempt.balance = 0, None
        log_event("keeper_sent", **fields, hash=transaction_hash)
        return None

    def _look_again(self, attempt: Attempt, base_fee: int) -> bool:
        """Return whether what stood against it is better by now; note where it is worse."""
        dear, poor = attempt.base_fee, attempt.balance
        if base_fee < dear - dear // CHANGE_PART:
            return True
        if poor is None:
            return False
        balance = self._get_balance()
        attempt.balance = min(poor, balance)
        return balance > poor + poor // CHANGE_PART

    def _get_balance(self) -> int:
        return self._node.get_balance(self._payer)

    def has_failed(self, key: Hashable) -> bool:
        """Was it tried in vain the last time?"""
        attempt = self.entries.get(key)
        return attempt is not None and attempt.code is not None

    def forget(self, is_over: Callable[[Hashable], bool]) -> None:
        """Forget what will not be tried again."""
        self.entries = {key: one for key, one in self.entries.items() if not is_over(key)}


def encode_call(signature: str, *values: object) -> bytes:
    """The calldata of `name(type,…)`, without tuples."""
    types = [kind for kind in signature[signature.index("(") + 1 : -1].split(",") if kind]
    return bytes(function_signature_to_4byte_selector(signature) + encode(types, values))


def describe_revert(data: bytes, error: str | None) -> str:
    """The text of `Error(string)`, or the machine's own word for what happened."""
    if data[:4] == function_signature_to_4byte_selector("Error(string)"):
        try:
            return str(decode(["string"], data[4:])[0])
        except (DecodingError, ValueError, OverflowError):
            return "a malformed reason"
    return error or "no reason given"

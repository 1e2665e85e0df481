"""One step of a task: what it costs us, what the task pays for it, and sending it.

A close is paid from its round's reserve (`Tasks.pay_closer`): gas at the base fee, with the call
that ends the round a bounty on top, and never more than what is left. Nobody else repays us, so a
close is sent if that covers what it takes from this account: its gas at base fee and tip. The base
fee is burned. A tip goes to whoever proposes the block; that may be this node, but nobody can know
beforehand, so a tip counts as spent.

What may change until the close is in a block: a base fee that rises is repaid as long as the
reserve lasts, and the fee cap stops where it ends. Somebody's close may come first. Then ours is
refused at once, or makes the next page: that gets no more gas than is paid for too.
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from eth_abi.abi import decode
from eth_utils.crypto import keccak

from steelyard.chain.calls import CallRequest, CallResult
from steelyard.chain.errors import SteelyardError
from steelyard.chain.params import ROUNDS_ADDRESS, TASKS_ADDRESS
from steelyard.chain.types import Address, Hash

from .wallet import Bid, Prices, Wallet, compute_bid, encode_call

if TYPE_CHECKING:
    from .node import Node

PAGE_GAS_PERCENT: Final = 80
"""Of a block's gas, for a call that makes a page: Rounds plans each for three quarters of it, and a
64th stays behind at each call. Not all of it: such a transaction would have to be first in its
block, and whoever pays a higher tip for a transfer would keep it out."""
OPENING_GAS: Final = 40_000
"""What a task's first close costs its keeper more than any later one: two records of what it is
owed are made, and kept for the rest of the task. The contract counts a flat sum for each call. This
much is not asked back, once a task; publishing one costs over a million."""
LEAST_CLOSE_GAS: Final = 100_000
"""No close takes so little; a reserve below its cost is not worth trying one out."""
CLAIM_GAS: Final = 31_000
CLAIM_FACTOR: Final = 16
"""What a task owes while it goes on is claimed if it is so many times the cost of a claim."""
ALL_GAS: Final = 2**128
"""More than any reserve pays for, and times a base fee less than a word holds."""
PAY_CLOSER: Final = "pay_closer(uint256,uint256,address,uint256,bool)"
CLOSE_PAID: Final = keccak(b"ClosePaid(uint256,uint256,address,uint256)")
SETTLED: Final = keccak(b"Settled(uint256,uint256,uint8,uint256,uint256,uint256,uint256)")
"""What Tasks says of every close, and of one that ends its round."""


class Step(IntEnum):
    """What `next_action` answers; CLAIM is the keeper's own."""

    WAIT = 0
    START = 1
    CLOSE = 2
    ABORT = 3
    CLAIM = 4


@dataclass(frozen=True, slots=True)
class Due:
    """One step of one task. `calls`: how often the round's close was called before."""

    task: int
    step: Step
    round: int
    calls: int = 0


@dataclass(frozen=True, slots=True)
class Pay:
    """What a close is paid, in wei: at the base fee of the next block, and at most."""

    fee: int
    most: int


class Unpaid(SteelyardError):
    """A step would cost more than it brings."""

    def __init__(self, message: str) -> None:
        super().__init__("keeper_unpaid", message)


def compute_paid_bid(pay: Pay, gas: int, prices: Prices) -> Bid:
    """Return what a close that uses `gas` may offer without a loss. Raises Unpaid, keeper_fee.

    At most half of what the pay leaves over the base fee goes to the tip. The pay covers the cap,
    too, and at least the base fee's steepest rise in one block.
    """
    base_fee, surplus = prices.base_fee, pay.fee - gas * prices.base_fee
    tip = max(prices.least_tip, min(prices.usual_tip, surplus // (2 * gas)))
    if surplus < gas * tip:
        cost = gas * (base_fee + tip)
        raise Unpaid(f"{gas} gas cost {cost} wei, and the reserve pays {pay.fee}")
    highest = pay.most // gas
    if highest < base_fee + -(-base_fee // 8) + tip:
        raise Unpaid(f"{gas} gas: with {pay.most} wei the reserve bears no rise of the base fee")
    bid = compute_bid(prices, tip)
    return replace(bid, max_fee=min(bid.max_fee, highest))


def bound_gas(gas: int, wei: int, bid: Bid) -> int:
    """Return so much of `gas` as `wei` pay for; where it costs nothing, all of it."""
    return min(gas, wei // bid.max_fee) if bid.max_fee else gas


class Steps:
    """Sends what is due from the wallet, if that is worth it."""

    def __init__(self, node: "Node", wallet: Wallet) -> None:
        self._node, self._wallet = node, wallet
        self._config = node.config.keeper

    def send(self, due: Due) -> Hash:
        """Try a step out, then send it. Raises SteelyardError: keeper_reverted, keeper_unpaid,
        keeper_floor, keeper_fee, keeper_view; InvalidTransaction.
        """
        send = {Step.CLOSE: self._close, Step.START: self._start, Step.CLAIM: self._claim}
        return send.get(due.step, self._abort)(due, encode_step(due))

    def get_owed(self, task: int) -> int:
        """What this account may claim, in wei."""
        me = self._wallet.address
        output = self._wallet.ask(TASKS_ADDRESS, "claimable(uint256,address)", task, me)
        return int(decode(["uint256"], output)[0])

    def is_worth_claiming(self, owed: int) -> bool:
        """Should a task that goes on pay out so many wei? If it owes us as much as we keep back, or
        we have no more than that, and claiming is cheap beside it.
        """
        floor, prices = self._config.min_balance_wei, self._wallet.get_prices()
        is_needed = owed >= floor or self._wallet.get_free_balance() < 2 * floor
        return is_needed and owed >= CLAIM_FACTOR * CLAIM_GAS * prices.base_fee

    # -- closing -----------------------------------------------------------------------------------
    def _close(self, due: Due, data: bytes) -> Hash:
        """`close` names no page: if somebody's close comes first, ours makes another than we tried,
        which may be dearer.
        """
        wallet, serves_all = self._wallet, self._config.close_unpaid
        base_fee = self._node.get_next_base_fee()
        least = LEAST_CLOSE_GAS * (base_fee + wallet.get_prices().least_tip)
        if not serves_all and self._get_most(due.task, due.round, is_last=True) < least:
            raise Unpaid("the reserve is too small for any close")
        result = wallet.try_out(ROUNDS_ADDRESS, data)
        prices = wallet.get_prices()
        # The trial may have seen an older head.
        prices = replace(prices, base_fee=max(base_fee, prices.base_fee))
        gas, page_gas = wallet.compute_gas(result), self._get_page_gas(due.task)
        if serves_all:
            bid = compute_bid(prices)
        else:
            pay = self._read_pay(due, result)
            waived = 0 if self.get_owed(due.task) else OPENING_GAS
            bid = compute_paid_bid(pay, result.gas_used - waived, prices)
            page_gas = bound_gas(page_gas, pay.most - pay.fee, bid)
        floor = self._config.min_balance_wei
        page_gas = bound_gas(page_gas, wallet.get_free_balance() - floor, bid)
        return wallet.send(ROUNDS_ADDRESS, data, max(gas, page_gas), bid, floor)

    def _get_page_gas(self, task: int) -> int:
        """Gas for any page; 0 if the task's rounds close in one call. The plan's last words say:
        phase 1, 2, blocks.
        """
        output = self._wallet.ask(ROUNDS_ADDRESS, "get_plan(uint256)", task)
        measures, combines, _ = decode(["uint256"] * 3, output[-3 * 32 :])
        is_paged = (measures, combines) != (0, 1)
        return self._node.rules.gas_limit * PAGE_GAS_PERCENT // 100 if is_paged else 0

    def _read_pay(self, due: Due, result: CallResult) -> Pay:
        """What the trial of a close was paid; other pages have had their part of the reserve."""
        logs = [one for one in result.logs if one.address == TASKS_ADDRESS]
        fee = sum(int.from_bytes(one.data) for one in logs if one.topics[0] == CLOSE_PAID)
        is_last = any(one.topics[0] == SETTLED for one in logs)
        return Pay(fee, self._get_most(due.task, due.round, is_last=is_last))

    def _get_most(self, task: int, number: int, *, is_last: bool) -> int:
        """What is left of a round's reserve for its next close, in wei: what Rounds would have
        Tasks pay for endless gas. Raises SteelyardError keeper_view.
        """
        me = self._wallet.address
        data = encode_call(PAY_CLOSER, task, number, me, ALL_GAS, is_last)
        sender, to = Address(ROUNDS_ADDRESS), Address(TASKS_ADDRESS)
        result = self._node.call(CallRequest(sender=sender, to=to, data=data))
        if result.is_error:
            raise SteelyardError("keeper_view", f"{PAY_CLOSER}: {result.error}")
        return sum(int.from_bytes(one.data) for one in result.logs if one.topics[0] == CLOSE_PAID)

    # -- the other steps ---------------------------------------------------------------------------
    def _start(self, due: Due, data: bytes) -> Hash:
        """Nobody pays for a start. It is done for tasks that can pay for as much in each round."""
        result = self._wallet.try_out(TASKS_ADDRESS, data)
        prices = self._wallet.get_prices()
        bid = compute_bid(prices)
        cost = result.gas_used * (prices.base_fee + bid.tip)
        reserve = self._get_most(due.task, due.round + 1, is_last=True)
        if reserve < cost and not self._config.close_unpaid:
            raise Unpaid(f"a start costs {cost} wei, and the reserve of a round is {reserve}")
        return self._send_tried(data, result, bid)

    def _abort(self, _due: Due, data: bytes) -> Hash:
        """Unpaid and cheap, once a task: it is not looked at again."""
        result = self._wallet.try_out(TASKS_ADDRESS, data)
        return self._send_tried(data, result, compute_bid(self._wallet.get_prices()))

    def _claim(self, due: Due, data: bytes) -> Hash:
        result = self._wallet.try_out(TASKS_ADDRESS, data)
        prices, owed = self._wallet.get_prices(), self.get_owed(due.task)
        bid = compute_bid(prices)
        cost = result.gas_used * (prices.base_fee + bid.tip)
        if owed < cost:
            raise Unpaid(f"claiming costs {cost} wei, and brings {owed}")
        gas = self._wallet.compute_gas(result)
        return self._wallet.send(TASKS_ADDRESS, data, gas, bid)

    def _send_tried(self, data: bytes, result: CallResult, bid: Bid) -> Hash:
        gas, floor = self._wallet.compute_gas(result), self._config.min_balance_wei
        return self._wallet.send(TASKS_ADDRESS, data, gas, bid, floor)


def encode_step(due: Due) -> bytes:
    """The calldata of a step."""
    if due.step is Step.CLOSE:
        return encode_call("close(uint256,uint256)", due.task, due.round)
    return encode_call(f"{due.step.name.lower()}(uint256)", due.task)

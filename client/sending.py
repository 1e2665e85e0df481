"""Calls that carry coins, sent once.

Most calls show on the chain whether they were made: who has joined, left, claimed or asked has done
so, and the contract refuses the second. Coins that are added to coins do not: an account, a reward,
a stake or a sponsorship may have grown by anybody's doing, or by an earlier order of the same. So
what is to be done with them is an *order*, kept in the journal until whoever gave it has been told
what came of it. A run that is killed before that, and started again, tells of the same transaction:
it sends no second.

1. An order says what is asked for to the last wei: the call, the task, the account, the amount. Its
   labels in the journal begin with that, and a number makes each sending a label of its own.
2. It is open while a transaction of it may have been carried out (signed, included, or its nonce
   gone to nobody knows whom) and nobody was told. The same order again is that one, until its end.
3. Told is who gets an answer: when the call returns, or, inside `Told.hold`, when that block ends;
   a command prints inside. From then on the same order is a new one.
4. What failed in its block moved no coins: it is not kept. What a node refused for ever may be in
   a block all the same; so it is signed anew with the same nonce, and one of the two is void.
5. Where a nonce is gone and no node has the receipt, nothing is signed again: `sending_unclear`,
   which tells, so that the same order is then a new one.
6. Threads give orders of their own: one waits while another looks for an open one, sends, tells.
7. Versions before kept no orders of fund, sponsor and stake. What the journal has under their
   labels counts as told, but for what is still on its way: nobody was, so it becomes an order.

Orders: coins to an account (`transfer_coins`), `fund`, `sponsor`, `add_stake` with an amount.
Publishing a task, and its sponsorships then, have one label for good (`send_for_good`): the same
description is the same task, so only rule 5 concerns them. What is missing of a stake is read off
the chain, by a node that has seen all that this account has sent (`check_seen`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Final

from steelyard.chain.types import Address, BlobName, Hash

from .amounts import format_coins
from .errors import ClientError, NodeRefused, SendingUnclear
from .keys import format_address
from .outbox import Receipt
from .registered import parse_account
from .rpc import Rpc, as_hex, as_int
from .state import Journal, Status
from .transactions import Call

if TYPE_CHECKING:
    from .account import Account

KEPT: Final = (Status.SIGNED, Status.INCLUDED, Status.REPLACED, Status.REFUSED)
"""May have been carried out: REPLACED, too, is only what nodes without a receipt make of it, and
REFUSED the word of one node."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done with coins, as the labels of its transactions begin."""

    prefix: str
    former: str | None = None
    """How versions that kept no orders began their labels for the same."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Coins that have arrived. Amounts in wei."""

    to: Address
    amount: int
    hash: Hash
    height: int
    fee: int
    left: int
    """On the sender's account, afterwards."""


class Told:
    """Of which transactions whoever gave the order has been told. Safe from any thread."""

    def __init__(self, journal: Journal, turn: RLock) -> None:
        self._journal, self._turn = journal, turn
        self._held: list[str] | None = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Take what is told inside for told when this ends, and not at all if it fails.

        Others that send wait meanwhile. Inside another one, this ends with that.
        """
        with self._turn:
            if (outer := self._held) is not None:
                before = len(outer)
                try:
                    yield
                except BaseException:
                    del outer[before:]
                    raise
                return
            try:
                self._held = []
                yield
                if self._held:
                    self._journal.set_told(*self._held)
            finally:
                self._held = None

    def add(self, label: str) -> None:
        """Whoever gave the order is told of this one now."""
        with self.hold():
            assert self._held is not None
            self._held.append(label)

    def has(self, label: str) -> bool:
        """Whether whoever gave the order was told: then the same order is a new one."""
        return label in (self._held or ()) or self._journal.is_told(label)


# -- orders ----------------------------------------------------------------------------------------
def name_order(what: str) -> Order:
    """Return the order for what was labelled `what/1`, `what/2` before there were orders."""
    return Order(f"once/{what}/", f"{what}/")


def carry_out(
    account: "Account", order: Order, call: Call, check: Callable[[], object] | None = None
) -> Receipt:
    """Send `call`, or bring to its end what an earlier run sent for this order and has not told.

    `check` is called before anything new is signed, and raises where nothing should be. Raises: as
    `check` and `Outbox.send`. After `sending_unclear`, of which the sender is told by that, the
    same order is a new one.
    """
    call = replace(call, is_traceless=True)
    with account.told.hold():
        label = find_open(account, order)
        if label is None:
            account.outbox.flush()
            if check is not None:
                check()
            label = make_label(account.journal, order)
        else:
            account.report(
                "an earlier run began to send these: they are not sent twice; later, ask again"
            )
        receipt = send_once(account, label, call)
        account.told.add(label)
    return receipt


def send_once(
    account: "Account", label: str, call: Call, data: Mapping[BlobName, bytes] | None = None
) -> Receipt:
    """Send, and tell what is unclear: after that it is the sender's to decide."""
    try:
        return account.outbox.send(label, call, data)
    except SendingUnclear as error:
        account.report(error.message)  # before it counts as told: a kill may come next
        account.journal.set_told(label)
        raise


def send_for_good(
    account: "Account", label: str, call: Call, data: Mapping[BlobName, bytes] | None = None
) -> Receipt:
    """Send what is sent only once under its label, for ever; anew only after `sending_unclear`.

    Raises: as `Outbox.send`.
    """
    current = get_current_label(account.journal, label)
    return send_once(account, current, replace(call, is_traceless=True), data)


def get_current_label(journal: Journal, label: str) -> str:
    """Return what is for good under `label`: of what became unclear its sender was told."""
    current, number = label, 1
    while journal.is_told(current):
        number += 1
        current = f"{label}/{number}"
    return current


def find_open(account: "Account", order: Order) -> str | None:
    """Return the label of what may have been carried out without anybody being told."""
    journal = account.journal
    for label in dict.fromkeys(entry.label for entry in journal.get_entries(order.prefix)):
        entry = journal.get_entry(label)
        if entry is not None and entry.status in KEPT and not account.told.has(label):
            return label
    return None if order.former is None else adopt(journal, order, order.former)


def adopt(journal: Journal, order: Order, former: str) -> str | None:
    """Make what an older version left on its way an order; return its label now."""
    for entry in journal.get_entries(former):
        if entry.status is Status.SIGNED:
            label = make_label(journal, order)
            journal.rename(entry.label, label)
            return label
    return None


def make_label(journal: Journal, order: Order) -> str:
    """Return the label of a sending of its own."""
    known = {entry.label for entry in journal.get_entries(order.prefix)}
    return f"{order.prefix}{1 + len(known)}"


def check_seen(account: "Account") -> None:
    """Raises NodeRefused `node_behind` if this node has not seen all that has been sent.

    What it says of the account's money is then from before. To be asked when nothing is on its way.
    """
    count = as_int(account.rpc.call("eth_getTransactionCount", as_hex(account.address), "latest"))
    sent = account.journal.count_passed()
    if count < sent:
        raise NodeRefused(
            "node_behind",
            f"{account.rpc.url} has seen {count} transactions of this account, and {sent} are in "
            "blocks; nothing was sent. Ask again in a moment, or another node",
        )


# -- coins from one account to another -------------------------------------------------------------
def transfer_coins(account: "Account", to: str | Address, amount: int) -> Transfer:
    """Send `amount` wei to `to`, or return what an earlier run sent and has not told.

    Raises: ClientError `account_malformed`, `amount`, `balance_low`; as `carry_out`.
    """
    receiver = parse_receiver(to)
    if amount <= 0:
        raise ClientError("amount", f"{format_coins(amount)} coins are nothing to send")
    order = Order(f"coins/{receiver.hex()}/{amount}/")
    with account.told.hold():
        call = Call(receiver, b"", amount)
        receipt = carry_out(account, order, call, partial(check_balance, account, amount))
        left = get_balance(account.rpc, account.address)
    fee = receipt.gas_used * receipt.gas_price
    return Transfer(receiver, amount, receipt.hash, receipt.height, fee, left)


def parse_receiver(to: str | Address) -> Address:
    """Return who gets coins. Raises ClientError `account_malformed`."""
    receiver = parse_account(to)
    if not any(receiver):
        raise ClientError("account_malformed", "nobody has the key of the address of zeros")
    return receiver


def check_balance(account: "Account", amount: int) -> None:
    """Raises ClientError `balance_low` where a node would only say that the call fails."""
    balance = get_balance(account.rpc, account.address)
    if balance < amount:
        raise ClientError(
            "balance_low",
            f"{format_address(account.address)} has {format_coins(balance)} coins, less than "
            f"{format_coins(amount)}; nothing was sent",
        )


def get_balance(rpc: Rpc, who: Address) -> int:
    """Return an account's wei."""
    return as_int(rpc.call("eth_getBalance", as_hex(who), "latest"))

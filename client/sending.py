"""Coins from one account to another, sent once.

Most calls show on the chain whether they were made; coins do not: who has more of them may have got
them from anybody. So the journal keeps what was sent until the sender has been told of it. A run
that is killed before that, and started again, tells of the same transaction: it sends no second.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from steelyard.chain.types import Address, Hash

from .amounts import format_coins
from .errors import ClientError
from .keys import format_address
from .outbox import Receipt, encode_call
from .registered import parse_account
from .rpc import Rpc, as_hex, as_int
from .state import Journal, Status
from .transactions import Call

if TYPE_CHECKING:
    from .account import Account

TRANSFER_GAS: Final = 21_000
"""What coins to an account without code take, exactly."""
KEPT: Final = (Status.SIGNED, Status.INCLUDED, Status.REPLACED)
"""May have been carried out: REPLACED, too, is only what nodes without a receipt make of it."""


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
    label: str
    """In the journal."""


def transfer_coins(account: "Account", to: str | Address, amount: int) -> Transfer:
    """Send `amount` wei to `to`, or return what an earlier run sent and has not told.

    Raises: ClientError `account_malformed`, `amount`, `balance_low`; as `Outbox.send`. After
    `sending_unclear`, of which the sender is told by that, the same call sends anew.
    """
    receiver = parse_receiver(to)
    if amount <= 0:
        raise ClientError("amount", f"{format_coins(amount)} coins are nothing to send")
    call = Call(receiver, b"", amount, is_traceless=True)
    label = find_untold(account.journal, receiver, amount)
    if label is None:
        account.outbox.flush()
        label = make_label(account.journal, receiver, amount)
        check_balance(account, amount)
        call = replace(call, gas=compute_gas(account, call))
    else:
        account.report(
            "an earlier run began to send these: they are not sent twice; later, ask again"
        )
    receipt = send_once(account, label, call)
    left = get_balance(account.rpc, account.address)
    fee = receipt.gas_used * receipt.gas_price
    return Transfer(receiver, amount, receipt.hash, receipt.height, fee, left, label)


def send_once(account: "Account", label: str, call: Call) -> Receipt:
    """Send, and take what is unclear for told: after that it is the sender's to decide."""
    try:
        return account.outbox.send(label, call)
    except ClientError as error:
        if error.code == "sending_unclear":
            account.journal.set_told(label)
        raise


def parse_receiver(to: str | Address) -> Address:
    """Return who gets coins. Raises ClientError `account_malformed`."""
    receiver = parse_account(to)
    if not any(receiver):
        raise ClientError("account_malformed", "nobody has the key of the address of zeros")
    return receiver


def find_untold(journal: Journal, receiver: Address, amount: int) -> str | None:
    """Return the label of coins that may have left without their sender being told."""
    for entry in journal.get_entries(get_prefix(receiver, amount)):
        if entry.status in KEPT and not journal.is_told(entry.label):
            return entry.label
    return None


def make_label(journal: Journal, receiver: Address, amount: int) -> str:
    """Return the label of a sending of its own."""
    prefix = get_prefix(receiver, amount)
    return f"{prefix}{1 + len({entry.label for entry in journal.get_entries(prefix)})}"


def get_prefix(receiver: Address, amount: int) -> str:
    """Return how the labels of such sendings begin."""
    return f"coins/{receiver.hex()}/{amount}/"


def check_balance(account: "Account", amount: int) -> None:
    """Raises ClientError `balance_low` where a node would only say that the call fails."""
    balance = get_balance(account.rpc, account.address)
    if balance < amount:
        raise ClientError(
            "balance_low",
            f"{format_address(account.address)} has {format_coins(balance)} coins, less than "
            f"{format_coins(amount)}; nothing was sent",
        )


def compute_gas(account: "Account", call: Call) -> int:
    """Return the gas of a transfer: exact without code at the receiver's. Raises Reverted."""
    gas = as_int(account.rpc.call("eth_estimateGas", encode_call(account.address, call)))
    return gas if gas <= TRANSFER_GAS else account.outbox.estimate_gas(call)


def get_balance(rpc: Rpc, who: Address) -> int:
    """Return an account's wei."""
    return as_int(rpc.call("eth_getBalance", as_hex(who), "latest"))

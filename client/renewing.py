"""What a round is made of must stay readable until it is closed; else it is declared again.

The contract refuses a commitment to a round whose base or velocity may expire before the last close
that extensions can lead to (docs/tasks.md, "Files that expire"), as after a long pause. Any
transaction that carries a blob makes it readable for the whole retention from then on; here the one
that needs it is that transaction.

Nothing is asked for a round where nothing expires: a commitment is estimated before it is signed,
and the refusal comes with that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from eth_abi.abi import encode
from eth_hash.auto import keccak

from steelyard.chain.cid import encode_cid
from steelyard.chain.params import FEDAVG_ADDRESS, MAX_BLOB_BYTES_PER_BLOCK
from steelyard.chain.types import BlobName

from .account import Account
from .contracts import encode_name
from .errors import BlobGone, NodeUnreachable, Reverted
from .outbox import VOID, Receipt
from .records import CLOSE_TIMEOUT_SECONDS, Parameters
from .refusals import EXPIRING
from .rpc import MISSING, Rpc, as_bytes, as_hex
from .state import Status
from .transactions import Call, compute_blob_call_gas, compute_blob_gas

INFO: Final = keccak(b"info((bytes32,uint256))")[:4]
INFO_BYTES: Final = 96
"""Size, height of the admission, last second at which the blob may be read."""

GetFile = Callable[[BlobName], bytes]
"""Returns a blob, checked against its name. Raises NodeUnreachable."""


def compute_readable_until(terms: Parameters, reveal_ends: int, extensions: int = 0) -> int:
    """Return until when a round needs its files, in seconds: as `commit` reckons it."""
    period = terms.commit_seconds + terms.reveal_seconds
    return reveal_ends + CLOSE_TIMEOUT_SECONDS + (terms.max_extensions - extensions) * period


def get_expiries(rpc: Rpc, names: Sequence[BlobName]) -> list[int]:
    """Return the last second at which each blob may be read, 0 if it never could. One request."""
    calls = [
        (
            "eth_call",
            (
                {
                    "to": as_hex(FEDAVG_ADDRESS),
                    "data": as_hex(INFO + encode(["(bytes32,uint256)"], [encode_name(name)])),
                },
                "latest",
            ),
        )
        for name in names
    ]
    answers = [as_bytes(answer, INFO_BYTES) for answer in rpc.call_together(calls)]
    return [int.from_bytes(answer[64:], "big") for answer in answers]


def send_or_renew(
    account: Account, label: str, call: Call, names: Sequence[BlobName], until: int, get: GetFile
) -> Receipt:
    """Send a call that is estimated; if blobs expire too soon for it, declare them with it.

    Raises: as `Outbox.send`; BlobGone.
    """
    try:
        return account.outbox.send(label, call)
    except Reverted as error:
        entry = account.journal.get_entry(label)
        is_spent = entry is not None and entry.status is Status.FAILED
        if is_spent or error.reason not in EXPIRING:
            raise
    return send_renewed(account, label, call, names, until, get)


def send_renewed(
    account: Account, label: str, call: Call, names: Sequence[BlobName], until: int, get: GetFile
) -> Receipt:
    """Send a call, and declare with it those of `names` that may not be read until then.

    What is signed is what is sent: then nothing is asked and nothing fetched. Raises: as
    `Outbox.send`; BlobGone.
    """
    entry = account.journal.get_entry(label)
    if entry is not None and entry.status not in VOID:
        return account.outbox.send(label, call)
    wanted = list(dict.fromkeys(name for name in names if name.size))
    expiries = get_expiries(account.rpc, wanted) if wanted else []
    short = [name for name, ends in zip(wanted, expiries, strict=True) if ends < until]
    if short:
        listed = ", ".join(encode_cid(name) for name in short)
        account.report(f"declaring again what would expire before the round is closed: {listed}")
    return declare_again(account, label, call, {name: fetch(name, get) for name in short})


def fetch(name: BlobName, get: GetFile) -> bytes:
    """Return a blob that is to be declared again. Raises BlobGone, NodeUnreachable."""
    try:
        return get(name)
    except NodeUnreachable as error:
        if set(error.codes.values()) != {MISSING}:
            raise
        raise BlobGone(encode_cid(name)) from None


def declare_again(
    account: Account, label: str, call: Call, data: Mapping[BlobName, bytes]
) -> Receipt:
    """Send a call in a transaction that carries these blobs too.

    What does not fit into one block with it goes ahead, each in a transaction of its own.
    """
    together = list(data)
    while sum(name.size for name in (*call.blobs, *together)) > MAX_BLOB_BYTES_PER_BLOCK:
        name = together.pop()
        gas = compute_blob_call_gas((name,), (), values=0)
        alone = Call(account.address, b"", gas=gas, blobs=(name,))
        account.outbox.send(f"renew/{label}/{name.digest.hex()}", alone, {name: data[name]})
    if not together:
        return account.outbox.send(label, call)
    names = tuple(together)
    gas = (
        compute_blob_call_gas(names, (), values=0)
        if call.gas is None
        else call.gas + compute_blob_gas(names)
    )
    carrying = replace(call, gas=gas, blobs=(*call.blobs, *names))
    return account.outbox.send(label, carrying, {name: data[name] for name in names})

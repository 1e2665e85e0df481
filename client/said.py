"""What an account has said to the registry, checked by its signature instead of a node's word.

A node can answer a view as it likes, but it cannot sign for others. Every entry of the registry
began with a transaction of the account whose word it is; whoever finds that transaction in a block,
with the same content, needs to trust nobody for "this account said so". What a node can still do is
keep silent, about a revocation too.

To find an event is to look through the whole chain: who has it already gives it.
"""

from collections.abc import Sequence
from typing import Any

from eth_hash.auto import keccak

from steelyard.chain.block import decode_block
from steelyard.chain.errors import SteelyardError
from steelyard.chain.transactions import Transaction, decode_transaction
from steelyard.chain.types import Address, BlobName

from .abi import Event
from .errors import NodeRefused
from .finality import MAX_BLOCK_ANSWER_BYTES
from .records import NO_BLOB
from .registered import Access, AccessState, Attestation, Dataset, Identity, Publication
from .registered import RegistryView as View


def has_said_identity(view: View, identity: Identity) -> bool:
    """Whether the account itself named the file that describes it."""
    return any(
        is_said(view, event, identity.account, "register", metadata=identity.metadata)
        for event in view.find_events("Registered", identity.account)[-1:]
    )


def has_said_attestation(
    view: View, attestation: Attestation, events: Sequence[Event] | None = None
) -> bool:
    """Whether the issuer itself made the statement. That it was not revoked is the node's word."""
    if events is None:
        events = [
            event
            for event in view.find_events("Attested", attestation.issuer, attestation.subject)
            if event.values["statement"] == attestation.statement
        ]
    return any(
        is_said(
            view,
            event,
            attestation.issuer,
            "attest",
            subject=attestation.subject,
            statement=attestation.statement,
        )
        for event in events[-1:]
    )


def has_said_publication(view: View, publication: Publication) -> bool:
    """Whether the publisher itself published the model, with this origin, parent and metadata."""
    parent = view.get_publication(publication.parent).model if publication.parent else NO_BLOB
    return any(
        is_said(
            view,
            event,
            publication.publisher,
            "publish_model",
            model=publication.model,
            task=publication.task,
            round=publication.round,
            parent=parent,
            metadata=publication.metadata,
        )
        for event in view.find_events("ModelPublished", publication.number)[-1:]
    )


def has_said_dataset(view: View, dataset: Dataset, events: Sequence[Event] | None = None) -> bool:
    """Whether the owner itself published this content with this metadata."""
    if events is None:
        events = view.find_events("DatasetPublished", dataset.number)
    return any(
        is_said(
            view,
            event,
            dataset.owner,
            "publish_dataset",
            metadata=dataset.metadata,
            content=dataset.content,
        )
        for event in events[-1:]
    )


def has_said_request(view: View, access: Access, events: Sequence[Event] | None = None) -> bool:
    """Whether the requester itself asked with this public key."""
    if events is None:
        events = view.find_events("AccessRequested", access.dataset, access.requester)
    return any(
        is_said(
            view,
            event,
            access.requester,
            "request_access",
            dataset=access.dataset,
            public_key=access.public_key,
        )
        for event in events[-1:]
    )


def has_said_grant(view: View, access: Access, owner: Address) -> bool:
    """Whether the owner itself gave this wrapped key."""
    return access.state is AccessState.GRANTED and any(
        is_said(
            view,
            event,
            owner,
            "grant_access",
            dataset=access.dataset,
            requester=access.requester,
            wrapped=access.wrapped,
        )
        for event in view.find_events("AccessGranted", access.dataset, access.requester)[-1:]
    )


def is_said(
    view: View, event: Event, account: Address, call: str, **arguments: int | bytes | BlobName
) -> bool:
    """Whether the transaction of `event` was signed by `account` and is this call.

    False for what an account says through a contract: then only the chain's state tells.
    Raises: NodeRefused `rpc_answer`.
    """
    sent = fetch_transaction(view, event)
    expected: tuple[str, dict[str, Any]] = (call, arguments)
    return (
        sent.sender == account
        and sent.to == view.address
        and sent.chain_id == view.rpc.network.chain_id
        and view.contract.decode_call(sent.data) == expected
    )


def fetch_transaction(view: View, event: Event) -> Transaction:
    """Return the signed transaction that made an event.

    Raises: NodeRefused `rpc_answer` if the node's block of that height does not hold it.
    """
    rpc = view.rpc
    data = rpc.get_bytes(f"/chain/blocks/{event.height}", MAX_BLOCK_ANSWER_BYTES)
    try:
        found = [raw for raw in decode_block(data).transactions if keccak(raw) == event.transaction]
        if found:
            return decode_transaction(found[0])
        problem = "it is not there"
    except SteelyardError as error:
        problem = error.message
    raise NodeRefused(
        "rpc_answer",
        f"{rpc.url} gives no transaction for an event of block {event.height} ({problem}); "
        "ask another node",
    )

"""What the registry says, read through nodes that nobody trusts (docs/registry.md).

Views are asked at the newest finalized block and are as true as the node. What an account has said
can be checked without trust, since it signed the transaction that said it (said.py). Files are
checked against their names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from steelyard.chain.cid import decode_cid, encode_cid, is_named
from steelyard.chain.types import Address, BlobName

from .abi import Event, check_number
from .contracts import Deployed, build_record, encode_name
from .documents import MAX_DOCUMENT_BYTES
from .errors import ClientError, NodeRefused, NodeUnreachable
from .events import collect_events
from .records import NO_BLOB
from .rpc import MISSING, Rpc, as_bytes, as_hex
from .sealing import Grant
from .terms import parse_address

MAX_WRAPPED_BYTES: Final = 128
MAX_LISTED: Final = 10_000
"""Entries that are looked through for one: a node may name any count."""
BATCH: Final = 50
MAX_DIGITS: Final = 77
"""Of a number that the contract can hold, whatever its digits."""


class AccessState(IntEnum):
    """Where a request for a dataset's key stands."""

    NONE = 0
    REQUESTED = 1
    GRANTED = 2
    DENIED = 3


@dataclass(frozen=True, slots=True)
class Identity:
    """An account and the file that it says describes it. Times in seconds, 0 is never."""

    account: Address
    metadata: BlobName
    registered_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class Attestation:
    """What an issuer has stated about a subject. Times in seconds, 0 is never."""

    issuer: Address
    subject: Address
    statement: BlobName
    issued_at: int
    revoked_at: int

    @property
    def stands(self) -> bool:
        """Made, and not taken back."""
        return self.issued_at > 0 and not self.revoked_at


@dataclass(frozen=True, slots=True)
class Publication:
    """One account's word about one model. `parent`: number of an earlier publication, or 0."""

    number: int
    publisher: Address
    model: BlobName
    task: int
    round: int
    parent: int
    metadata: BlobName
    published_at: int


@dataclass(frozen=True, slots=True)
class Dataset:
    """A published dataset; without content it is a description of data that nobody is given."""

    number: int
    owner: Address
    metadata: BlobName
    content: BlobName
    published_at: int
    retired_at: int


@dataclass(frozen=True, slots=True)
class Access:
    """A request for a dataset's key, and its answer."""

    dataset: int
    requester: Address
    state: AccessState
    public_key: bytes
    wrapped: bytes


class RegistryView(Deployed):
    """The contract `Registry`, read. Needs no key."""

    def __init__(self, rpc: Rpc) -> None:
        super().__init__(rpc, "Registry")

    # -- identities --------------------------------------------------------------------------------
    def get_identity(self, account: Address) -> Identity:
        """Return what an account says it is; `registered_at` 0 if it never registered."""
        answer = self.read("get_identity", account)
        return build_record(Identity, answer | {"account": account})

    def get_attestation(
        self, issuer: Address, subject: Address, statement: BlobName
    ) -> Attestation:
        """Return when a statement was made, and taken back."""
        answer = self.read("get_attestation", issuer, subject, encode_name(statement))
        names = {"issuer": issuer, "subject": subject, "statement": statement}
        return build_record(Attestation, answer | names)

    def list_attestations(
        self, subject: Address, issuer: Address | None = None, limit: int = MAX_LISTED
    ) -> list[Attestation]:
        """Return the newest statements about a subject, the oldest first, revoked ones too.

        Anybody can state anything: name the `issuer` whose word counts.
        """
        return [found for found, _ in self.find_attestations(subject, issuer, limit)]

    def find_attestations(
        self, subject: Address, issuer: Address | None = None, limit: int = MAX_LISTED
    ) -> list[tuple[Attestation, Event]]:
        """As `list_attestations`, each with the last event that made it: one look at the chain."""
        events = self.find_events("Attested", issuer, subject)
        last = {(event.values["issuer"], event.values["statement"]): event for event in events}
        return [
            (self.get_attestation(who, subject, statement), event)
            for (who, statement), event in list(last.items())[-limit:]
        ]

    # -- models ------------------------------------------------------------------------------------
    def get_publication(self, number: int) -> Publication:
        """Return a publication by its number. Raises ClientError `publication_unknown`."""
        return self._read_publication(self.read("get_publication", number), str(number), number)

    def get_model(self, model: BlobName) -> Publication:
        """Return a model's first publication with a proved origin, or else its first one.

        Raises: ClientError `publication_unknown`.
        """
        text = encode_cid(model)
        found = self._read_publication(self.read("get_model", encode_name(model)), text)
        if found.model != model:
            raise NodeRefused("rpc_answer", f"the node answered with another model than {text}")
        return found

    def find_model(self, text: str) -> Publication:
        """Return a publication by its number or by its model's CID, among the newest MAX_LISTED.

        Raises: ClientError `publication_unknown`; InvalidBlobName.
        """
        if text.isdecimal():
            number = int(text) if len(text) <= MAX_DIGITS else 0
            return self.get_publication(number)
        cid = decode_cid(text)
        for found in self.list_publications(MAX_LISTED):
            if is_named(found.model, cid):
                return self.get_model(found.model)
        raise unknown_publication(text)

    def list_publications(self, limit: int) -> list[Publication]:
        """Return the newest publications, the newest first."""
        numbers = self._count_down("model_count", limit)
        answers = self._read_each("get_publication", numbers)
        return [
            self._read_publication(answer, str(number), number)
            for number, answer in zip(numbers, answers, strict=True)
        ]

    def get_lineage(self, publication: Publication) -> list[Publication]:
        """Return the parents of a publication, the nearest first, at most MAX_LISTED."""
        line: list[Publication] = []
        while publication.parent and len(line) < MAX_LISTED:
            parent = self.get_publication(publication.parent)
            if parent.number >= publication.number:
                raise NodeRefused("rpc_answer", "the node names a parent that came later")
            line.append(parent)
            publication = parent
        return line

    def _read_publication(
        self, answer: Mapping[str, Any], text: str, number: int | None = None
    ) -> Publication:
        if not answer["number"]:
            raise unknown_publication(text)
        if number not in (None, answer["number"]):
            raise NodeRefused("rpc_answer", f"the node answered with another number than {number}")
        return build_record(Publication, answer)

    # -- datasets ----------------------------------------------------------------------------------
    def get_dataset(self, number: int) -> Dataset:
        """Return a dataset. Raises ClientError `dataset_unknown`."""
        return self._read_dataset(self.read("get_dataset", number), number)

    def list_datasets(self, limit: int) -> list[Dataset]:
        """Return the newest datasets, the newest first."""
        numbers = self._count_down("dataset_count", limit)
        answers = self._read_each("get_dataset", numbers)
        return [
            self._read_dataset(answer, number)
            for number, answer in zip(numbers, answers, strict=True)
        ]

    def _read_dataset(self, answer: Mapping[str, Any], number: int) -> Dataset:
        if not answer["published_at"]:
            raise ClientError(
                "dataset_unknown",
                f"there is no dataset {number}; see `steelyard registry dataset list`",
            )
        return build_record(Dataset, dict(answer) | {"number": number})

    def get_access(self, dataset: int, requester: Address) -> Access:
        """Return where a request stands. Raises NodeRefused `rpc_answer`."""
        answer = self.read("get_access", dataset, requester)
        known = tuple(AccessState)
        if answer["state"] not in known or len(answer["wrapped"]) > MAX_WRAPPED_BYTES:
            raise NodeRefused("rpc_answer", "the node answered with an access that cannot be")
        more = {
            "dataset": dataset,
            "requester": requester,
            "state": AccessState(answer["state"]),
        }
        return build_record(Access, answer | more)

    def list_accesses(self, dataset: int, limit: int = MAX_LISTED) -> list[Access]:
        """Return the newest requests for a dataset's key and their answers, the oldest first."""
        events = self.find_events("AccessRequested", dataset)
        return [access for access, _ in self.read_accesses(dataset, events, limit)]

    def read_accesses(
        self, dataset: int, events: Sequence[Event], limit: int
    ) -> list[tuple[Access, Event]]:
        """Return the newest of the requests that these events made, each with its last event."""
        last = {event.values["requester"]: event for event in events}
        return [
            (self.get_access(dataset, requester), event)
            for requester, event in list(last.items())[-limit:]
        ]

    def get_grant(self, dataset: Dataset, requester: Address) -> Grant:
        """Return what a wrapped key of this dataset is bound to."""
        return Grant(self.rpc.network, dataset.number, dataset.owner, requester, dataset.content)

    # -- files -------------------------------------------------------------------------------------
    def fetch_document(self, name: BlobName) -> bytes | None:
        """Return metadata or a statement; None if there is none, or if no node keeps it.

        Raises: NodeRefused `rpc_answer` for a size that the contract admits for no document.
        """
        if name == NO_BLOB:
            return None
        if not 0 < name.size <= MAX_DOCUMENT_BYTES:
            raise NodeRefused("rpc_answer", f"the node names a document of {name.size} bytes")
        try:
            return self.rpc.get_blob(name)
        except NodeUnreachable as error:
            if set(error.codes.values()) != {MISSING}:
                raise
            return None

    # -- events ------------------------------------------------------------------------------------
    def find_events(
        self, names: str | Sequence[str], *indexed: Address | int | None
    ) -> list[Event]:
        """Return the events of these names; `indexed`: what their topics are, None for any.

        This looks through the whole chain, whatever it finds: once for all names.
        """
        wanted = [names] if isinstance(names, str) else names
        topics: list[Any] = [[as_hex(self.contract.get_topic(name)) for name in wanted]]
        for value in indexed:
            if isinstance(value, int):
                check_number("number", value)
            word = value if not isinstance(value, int) else value.to_bytes(32, "big")
            topics.append(None if word is None else as_hex(word.rjust(32, b"\0")))
        return collect_events(self.rpc, {self.address: self.contract}, topics)

    # -- lists -------------------------------------------------------------------------------------
    def _count_down(self, name: str, limit: int) -> list[int]:
        count: int = self.read(name)
        return list(range(count, max(0, count - min(limit, MAX_LISTED)), -1))

    def _read_each(self, name: str, numbers: Sequence[int]) -> list[Any]:
        """Return what a view answers for each number, asked in batches."""
        found: list[Any] = []
        for start in range(0, len(numbers), BATCH):
            calls = [
                {"to": as_hex(self.address), "data": as_hex(self.encode(name, number))}
                for number in numbers[start : start + BATCH]
            ]
            together = self.rpc.call_together([("eth_call", (one, "latest")) for one in calls])
            found += [self.contract.decode_output(name, as_bytes(answer))[0] for answer in together]
        return found


def check_content(dataset: Dataset, cid: str | None) -> None:
    """Raises ClientError `dataset_differs` unless the content is the one that was meant."""
    if cid is not None and not is_named(dataset.content, decode_cid(cid)):
        raise ClientError(
            "dataset_differs",
            f"dataset {dataset.number} has the content {encode_cid(dataset.content)}, not {cid}",
        )


def check_granted(access: Access) -> None:
    """Raises ClientError `access_missing`, `access_waiting`, `access_denied`."""
    if access.state is AccessState.NONE:
        raise ClientError(
            "access_missing",
            f"this account has not asked for dataset {access.dataset}: "
            f"`steelyard registry dataset request {access.dataset}`",
        )
    if access.state is AccessState.REQUESTED:
        raise ClientError(
            "access_waiting", f"the owner has not answered for dataset {access.dataset} yet"
        )
    if access.state is AccessState.DENIED:
        raise ClientError("access_denied", f"the owner has denied dataset {access.dataset}")


def unknown_publication(text: str) -> ClientError:
    """Return the error for a model that nobody has published."""
    return ClientError(
        "publication_unknown",
        f"nobody has published {text}; see `steelyard registry model list`",
    )


def parse_account(text: str | Address) -> Address:
    """Return an account's address. Raises ClientError `account_malformed`."""
    address = parse_address(text)
    if address is None:
        raise ClientError(
            "account_malformed", f"{text!r:.60} is not an address of 20 bytes, or mistyped"
        )
    return address

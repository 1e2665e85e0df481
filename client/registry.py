"""The registry: who one is, what one states about others, models with their origin, datasets.

    with Registry("https://node.example", key="site.key") as registry:
        registry.register({"name": "University Hospital"})
        number = registry.publish_dataset({"title": "ECG"}, Path("ecg.parquet").read_bytes())

Everything said here is public and stays; a dataset's content is encrypted first (sealing.py). Files
go to the chain's nodes, which keep them for the chain's retention time, and to the store in the
state directory, which keeps them for good.
"""

import hashlib
from functools import cached_property

from steelyard.chain.cid import compute_blob_name, decode_cid, encode_cid, is_named
from steelyard.chain.params import MAX_BLOB_BYTES
from steelyard.chain.types import Address, BlobName

from .account import Account
from .contracts import encode_name
from .documents import Document, check_text, encode_document
from .errors import ClientError, InvalidSeal, NodeUnreachable
from .ipfs import Store, open_store
from .keys import format_address
from .outbox import VOID, Receipt
from .records import NO_BLOB
from .registered import (
    Access,
    AccessState,
    Dataset,
    RegistryView,
    check_content,
    check_granted,
    parse_account,
)
from .rpc import MISSING
from .said import has_said_dataset, has_said_grant, has_said_request
from .sealing import (
    derive_exchange_key,
    get_public_key,
    open_content,
    recover_content_key,
    seal_content,
    unwrap_key,
    wrap_key,
)
from .transactions import Call, compute_blob_call_gas


class Registry(Account):
    """An account that speaks in the registry. Same options as `Client` and `Organisation`."""

    @cached_property
    def view(self) -> RegistryView:
        """What the registry says."""
        return RegistryView(self.rpc)

    @cached_property
    def store(self) -> Store:
        """Where this account keeps the files that it has published."""
        return open_store(self.state / "ipfs")

    # -- identities --------------------------------------------------------------------------------
    def register(self, metadata: Document | None) -> Receipt | None:
        """Name the file that describes this account; None takes it away and stays registered.

        None is returned when there is nothing to send: the same file stands, and is still served.
        Raises: ClientError `document_size`, `document_malformed`.
        """
        data = b"" if metadata is None else encode_document(metadata)
        name = compute_blob_name(data) if data else NO_BLOB
        self.outbox.flush()
        known = self.view.get_identity(self.address)
        is_served = name == NO_BLOB or self.rpc.has_blob(name)
        if known.registered_at and known.metadata == name and is_served:
            return None
        label = self.get_label(f"registry/register/{name.digest.hex()}")
        return self._send(label, [data], "register", encode_name(name))

    def attest(self, subject: str | Address, statement: bytes) -> BlobName:
        """State publicly, in a text or JSON file, something about another account.

        Returns the statement's name, which revokes it. Sends nothing if it stands already. Raises:
        ClientError `document_size`, `document_malformed`; Reverted.
        """
        address, name = parse_account(subject), compute_blob_name(check_text(statement))
        self.outbox.flush()
        if not self.view.get_attestation(self.address, address, name).stands:
            label = self.get_label(f"registry/attest/{address.hex()}/{name.digest.hex()}")
            self._send(label, [statement], "attest", address, encode_name(name))
        return name

    def revoke(self, subject: str | Address, statement: bytes | BlobName | str) -> bool:
        """Take a statement back, by its file, name or CID. Returns False if it does not stand."""
        address = parse_account(subject)
        self.outbox.flush()
        name = self._find_statement(address, statement)
        if name is None or not self.view.get_attestation(self.address, address, name).stands:
            return False
        label = self.get_label(f"registry/revoke/{address.hex()}/{name.digest.hex()}")
        self.send(label, "revoke_attestation", address, encode_name(name), contract=self.view)
        return True

    def _find_statement(
        self, subject: Address, statement: bytes | BlobName | str
    ) -> BlobName | None:
        if isinstance(statement, bytes):
            return compute_blob_name(statement)
        if isinstance(statement, BlobName):
            return statement
        cid = decode_cid(statement)
        made = (event.values for event in self.view.find_events("Attested", self.address, subject))
        return next((one["statement"] for one in made if is_named(one["statement"], cid)), None)

    # -- models ------------------------------------------------------------------------------------
    def publish_model(
        self,
        model: bytes | BlobName | None = None,
        *,
        task: int = 0,
        round_number: int = 0,
        parent: BlobName = NO_BLOB,
        metadata: Document | None = None,
    ) -> int:
        """Publish a model: its bytes, the name of one that others keep, or what a round has made.

        `task` and `round_number` are its origin, which the contract checks; `parent` is a model
        that somebody has published. Returns the publication's number; publishes once. Raises:
        ClientError `model_unknown`, `model_file`, `document_size`, `document_malformed`; Reverted.
        """
        data = model if isinstance(model, bytes) else b""
        if len(data) > MAX_BLOB_BYTES:
            raise ClientError("model_file", f"a model has at most {MAX_BLOB_BYTES} bytes")
        name = compute_blob_name(data) if data else self._find_made(model, task, round_number)
        document = b"" if metadata is None else encode_document(metadata)
        described = compute_blob_name(document) if document else NO_BLOB
        self.outbox.flush()
        known: int = self.view.read("find_publication", encode_name(name), self.address)
        if known:
            return known
        receipt = self._send(
            self.get_label(f"registry/model/{name.digest.hex()}"),
            [data, document],
            "publish_model",
            encode_name(name),
            task,
            round_number,
            encode_name(parent),
            encode_name(described),
        )
        (event,) = [e for e in self.view.decode_logs(receipt.logs) if e.name == "ModelPublished"]
        number: int = event.values["number"]
        self.report(f"model {encode_cid(name)} is publication {number}")
        return number

    def _find_made(self, model: bytes | BlobName | None, task: int, number: int) -> BlobName:
        if isinstance(model, BlobName):
            return model
        made = self.rounds.get_round(task, number).model if task and number else NO_BLOB
        if made == NO_BLOB:
            raise ClientError(
                "model_unknown",
                f"round {number} of task {task} has made no model"
                if task and number
                else "give a model file, or the task and the round that made it",
            )
        return made

    # -- datasets: the owner -----------------------------------------------------------------------
    def publish_dataset(
        self, metadata: Document, data: bytes | None = None, *, reference: str = ""
    ) -> int:
        """Publish a dataset, its content encrypted; without `data` only its description.

        Returns the dataset's number. The same again gives the same number; another `reference`
        publishes it anew, under a new key. Raises: InvalidSeal `dataset_size`; ClientError
        `document_size`, `document_malformed`, `balance_low`.
        """
        document = encode_document(metadata)
        parts = [document, b"none" if data is None else b"some", data or b"", reference.encode()]
        digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts))
        label = f"registry/dataset/{digest.hexdigest()[:32]}"
        content = b"" if data is None else seal_content(data, self._secret, self.rpc.network)
        self.outbox.flush()
        entry = self.journal.get_entry(label)
        if entry is None or entry.status in VOID:
            for file in filter(None, (document, content)):
                self.store.add(file)
        receipt = self._send(
            label,
            [document, content],
            "publish_dataset",
            encode_name(compute_blob_name(document)),
            encode_name(compute_blob_name(content) if content else NO_BLOB),
        )
        (event,) = [e for e in self.view.decode_logs(receipt.logs) if e.name == "DatasetPublished"]
        number: int = event.values["dataset"]
        self.report(f"dataset {number} is published")
        return number

    def grant_access(
        self,
        number: int,
        requester: str | Address,
        *,
        public_key: bytes | None = None,
        content: str | None = None,
    ) -> bool:
        """Give a dataset's key to an account that asked for it. Returns False if it has it already.

        The key is wrapped to the public key in the request, which the requester must have signed:
        no node can put its own there. For a request made through a contract, give the `public_key`
        that its owner told you. `content`: the CID of what you mean to give; without it a node
        could pass another dataset of yours off as this one. A key cannot be taken back.
        Raises: ClientError `dataset_unknown`, `dataset_owner`, `dataset_differs`, `access_missing`,
        `request_unsigned`, `request_key`; InvalidSeal `content_key`, `public_key`; Reverted.
        """
        address = parse_account(requester)
        self.outbox.flush()
        dataset = self._get_own(number, content)
        access = self.view.get_access(number, address)
        if access.state is AccessState.GRANTED:
            return False
        if access.state is not AccessState.REQUESTED:
            raise ClientError(
                "access_missing",
                f"{format_address(address)} has no open request for dataset {number}; "
                "it must ask first",
            )
        if public_key is None and not has_said_request(self.view, access):
            raise ClientError(
                "request_unsigned",
                f"{format_address(address)} did not sign this request itself: it came through a "
                "contract, or the node lies; ask the requester for its public key and give that",
            )
        if public_key not in (None, access.public_key):
            raise ClientError(
                "request_key", f"the request has the public key 0x{access.public_key.hex()}"
            )
        key = recover_content_key(self.fetch_content(dataset), self._secret, self.rpc.network)
        wrapped = wrap_key(key, access.public_key, self.view.get_grant(dataset, address))
        label = self.get_label(f"registry/grant/{number}/{address.hex()}")
        self.send(label, "grant_access", number, address, wrapped, contract=self.view)
        self.report(f"granted dataset {number} to {format_address(address)}")
        return True

    def deny_access(self, number: int, requester: str | Address) -> bool:
        """Answer a request with no. Returns False if it was denied already. Raises: Reverted."""
        address = parse_account(requester)
        self.outbox.flush()
        if self.view.get_access(number, address).state is AccessState.DENIED:
            return False
        label = self.get_label(f"registry/deny/{number}/{address.hex()}")
        self.send(label, "deny_access", number, address, contract=self.view)
        return True

    def retire_dataset(self, number: int) -> bool:
        """Take no more requests and give no more keys. Returns False if it was retired already."""
        self.outbox.flush()
        if self.view.get_dataset(number).retired_at:
            return False
        label = self.get_label(f"registry/retire/{number}")
        self.send(label, "retire_dataset", number, contract=self.view)
        return True

    def renew_dataset(self, number: int) -> list[BlobName]:
        """Put a dataset's files on the chain's nodes again, for another retention time.

        Anybody may who has them: from its own store, else from the nodes. Returns their names.
        """
        dataset = self.view.get_dataset(number)
        names = [name for name in (dataset.metadata, dataset.content) if name.size]
        files = {name: self.fetch_file(name) for name in names}
        self.outbox.flush()
        gas = compute_blob_call_gas(tuple(files), (), values=0)
        call = Call(self.address, b"", gas=gas, blobs=tuple(files))
        self.outbox.send(self.get_label(f"registry/renew/{number}"), call, files)
        return names

    def _get_own(self, number: int, content: str | None) -> Dataset:
        """Return a dataset of this account that it has itself published."""
        dataset = self.view.get_dataset(number)
        check_content(dataset, content)
        if dataset.owner != self.address or not has_said_dataset(self.view, dataset):
            raise ClientError("dataset_owner", f"dataset {number} was not published by this key")
        return dataset

    # -- datasets: the requester -------------------------------------------------------------------
    def request_access(self, number: int) -> bool:
        """Ask for a dataset's key. Returns False if this account has asked, or has the key.

        After a denial, or if the granted key does not open, this asks again. Raises: ClientError
        `dataset_unknown`, `request_key`; Reverted.
        """
        self.outbox.flush()
        dataset, access = self.view.get_dataset(number), self.view.get_access(number, self.address)
        private_key = self._get_private_key(number)
        public_key = get_public_key(private_key)
        if access.state is AccessState.REQUESTED:
            self._check_request(access, public_key)
            return False
        if access.state is AccessState.GRANTED and access.public_key == public_key:
            try:
                unwrap_key(access.wrapped, private_key, self.view.get_grant(dataset, self.address))
            except InvalidSeal as error:
                self.report(f"asking again: {error.message}")
            else:
                return False
        label = self.get_label(f"registry/request/{number}")
        self.send(label, "request_access", number, public_key, contract=self.view)
        self.report(f"asked {format_address(dataset.owner)} for dataset {number}")
        return True

    def fetch_dataset(
        self,
        number: int,
        *,
        owner: str | Address | None = None,
        content: str | None = None,
        store: Store | None = None,
    ) -> bytes:
        """Return a dataset's data: this account owns it, or was granted it by the owner.

        `owner`, `content`: whose it must be, and the CID that it must have; without them a node
        decides what stands under the number. `store`: where else the content may be.
        Raises: ClientError `dataset_unknown`, `dataset_differs`, `dataset_empty`, `access_missing`,
        `access_waiting`, `access_denied`, `grant_unsigned`, `request_key`; InvalidSeal.
        """
        dataset = self.view.get_dataset(number)
        if owner is not None and parse_account(owner) != dataset.owner:
            raise ClientError(
                "dataset_differs",
                f"dataset {number} is of {format_address(dataset.owner)}, not {owner!r}",
            )
        check_content(dataset, content)
        if dataset.owner == self.address:
            sealed = self.fetch_content(dataset, store)
            key = recover_content_key(sealed, self._secret, self.rpc.network)
        else:
            key = self._unwrap(dataset)
            sealed = self.fetch_content(dataset, store)
        return open_content(sealed, key)

    def _unwrap(self, dataset: Dataset) -> bytes:
        """Return the key that the owner has granted to this account."""
        access = self.view.get_access(dataset.number, self.address)
        check_granted(access)
        private_key = self._get_private_key(dataset.number)
        self._check_request(access, get_public_key(private_key))
        if not has_said_grant(self.view, access, dataset.owner):
            raise ClientError(
                "grant_unsigned",
                f"the owner of dataset {dataset.number} did not sign this grant itself; ask "
                "another node",
            )
        return unwrap_key(access.wrapped, private_key, self.view.get_grant(dataset, self.address))

    def fetch_content(self, dataset: Dataset, store: Store | None = None) -> bytes:
        """Return a dataset's encrypted content from the own store, the chain, or `store`.

        Raises: ClientError `dataset_empty`, `blob_size`; NodeUnreachable if nobody keeps it.
        """
        name = dataset.content
        if name == NO_BLOB:
            raise ClientError(
                "dataset_empty", f"dataset {dataset.number} is a description: nothing to read"
            )
        return self.fetch_file(name, store)

    def fetch_file(self, name: BlobName, store: Store | None = None) -> bytes:
        """Return a file from the own store, the chain's nodes, or `store`; checked by its name.

        Raises: ClientError `blob_size`, `blob_mismatch`, `ipfs_missing`; NodeUnreachable.
        """
        cid = encode_cid(name)
        if self.store.has(cid):
            return self.store.get(cid)
        try:
            return self.rpc.get_blob(name)
        except NodeUnreachable as error:
            if store is None or set(error.codes.values()) != {MISSING}:
                raise
            return store.get(cid)

    def _check_request(self, access: Access, public_key: bytes) -> None:
        if access.public_key != public_key:
            raise ClientError(
                "request_key",
                f"the request for dataset {access.dataset} has a public key that does not follow "
                "from this account's key: another program made it, and only that one can open the "
                "grant",
            )

    # -- sending -----------------------------------------------------------------------------------
    @property
    def _secret(self) -> bytes:
        return bytes(self.signer.key)

    def _get_private_key(self, dataset: int) -> bytes:
        return derive_exchange_key(self._secret, self.rpc.network, dataset)

    def _send(self, label: str, files: list[bytes], name: str, *arguments: object) -> Receipt:
        """Call the registry and carry the files along."""
        data = {compute_blob_name(file): file for file in files if file}
        blobs = tuple(data)
        gas = compute_blob_call_gas(blobs, (), values=0) if blobs else None
        call = Call(self.view.address, self.view.encode(name, *arguments), gas=gas, blobs=blobs)
        return self.outbox.send(label, call, data)

"""The contract Registry in Python (docs/registry.md), and a ledger that has it and its blocks."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from steelyard.chain.artifacts import get_artifact
from steelyard.chain.block import Block, Extension, Header, encode_block
from steelyard.chain.params import REGISTRY_ADDRESS
from steelyard.chain.types import Address, BlobName, Epoch, Hash, Height, View
from steelyard.client.abi import format_type
from steelyard.client.contracts import encode_name, get_contract
from steelyard.client.records import NO_BLOB

from .agreement import Agreement, demand
from .ledger import Ledger

REQUESTED, GRANTED, DENIED = 1, 2, 3
ZERO = Hash(bytes(32))
ACCESS = (0, bytes(32), b"")


@dataclass
class Records:
    """What was said. Publications and datasets are lists in the order of the ABI's structs."""

    identities: dict[bytes, list] = field(default_factory=dict)
    attestations: dict[tuple, list] = field(default_factory=dict)
    publications: list[list] = field(default_factory=list)
    datasets: list[list] = field(default_factory=list)
    accesses: dict[tuple, tuple] = field(default_factory=dict)


class Archive(Agreement):
    """Tasks, Rounds and Registry."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.records = Records()
        contract = get_contract("Registry")
        self.contracts[contract.address] = contract
        for entry in get_artifact("Registry").abi:
            if entry["type"] == "function":
                types = [format_type(item) for item in entry["outputs"]]
                self._outputs[contract.address, entry["name"]] = types
            elif entry["type"] == "event":
                self._events[entry["name"]] = (contract.address, entry)

    # -- identities ------------------------------------------------------------------------------
    def do_register(self, sender, value, metadata):
        now = self._get_time()
        first = self.records.identities.get(sender, [None, now])[1]
        self.records.identities[sender] = [encode_name(metadata), first, now]
        self.log("Registered", [sender], [encode_name(metadata)])

    def do_attest(self, sender, value, subject, statement):
        demand(subject != sender, "registry: about oneself")
        key = (sender, subject, statement)
        issued, revoked = self.records.attestations.get(key, (0, 0))
        demand(not issued or revoked, "registry: already attested")
        self.records.attestations[key] = [self._get_time(), 0]
        self.log("Attested", [sender, subject], [encode_name(statement)])

    def do_revoke_attestation(self, sender, value, subject, statement):
        found = self.records.attestations.get((sender, subject, statement))
        demand(found is not None and not found[1], "registry: not attested")
        found[1] = self._get_time()
        self.log("AttestationRevoked", [sender, subject], [encode_name(statement)])

    def view_get_identity(self, account):
        return [self.records.identities.get(account, [encode_name(NO_BLOB), 0, 0])]

    def view_get_attestation(self, issuer, subject, statement):
        return [self.records.attestations.get((issuer, subject, statement), [0, 0])]

    # -- models ----------------------------------------------------------------------------------
    def do_publish_model(self, sender, value, model, task, round, parent, metadata):
        if task:
            made = self.tasks[task].rounds[round].model
            demand(made == model, "registry: not the model of that round")
        ancestor = self._find_leading(parent)
        demand(parent == NO_BLOB or ancestor, "registry: unknown parent")
        number = len(self.records.publications) + 1
        names = [encode_name(model), task, round, ancestor, encode_name(metadata)]
        self.records.publications.append([number, sender, *names, self._get_time()])
        plain = [round, encode_name(model), ancestor, encode_name(metadata)]
        self.log("ModelPublished", [number, sender, task], plain)

    def _find_leading(self, model: BlobName) -> int:
        same = [one for one in self.records.publications if one[2] == encode_name(model)]
        return next((one[0] for one in same if one[3]), same[0][0] if same else 0)

    def view_model_count(self):
        return [len(self.records.publications)]

    def view_get_publication(self, number):
        none = [0, bytes(20), encode_name(NO_BLOB), 0, 0, 0, encode_name(NO_BLOB), 0]
        known = 0 < number <= len(self.records.publications)
        return [self.records.publications[number - 1] if known else none]

    def view_get_model(self, model):
        return self.view_get_publication(self._find_leading(model))

    def view_find_publication(self, model, publisher):
        found = [
            one[0]
            for one in self.records.publications
            if one[1] == publisher and one[2] == encode_name(model)
        ]
        return [found[0] if found else 0]

    # -- datasets --------------------------------------------------------------------------------
    def do_publish_dataset(self, sender, value, metadata, content):
        names = [encode_name(metadata), encode_name(content)]
        self.records.datasets.append([sender, *names, self._get_time(), 0])
        self.log("DatasetPublished", [len(self.records.datasets), sender], names)

    def do_retire_dataset(self, sender, value, dataset):
        self._get_owned(sender, dataset)[4] = self._get_time()
        self.log("DatasetRetired", [dataset], [])

    def do_request_access(self, sender, value, dataset, public_key):
        found = self.records.datasets[dataset - 1]
        demand(not found[4], "registry: retired")
        demand(found[0] != sender, "registry: already its owner")
        demand(self._get_access(dataset, sender)[0] != REQUESTED, "registry: already requested")
        self.records.accesses[dataset, sender] = (REQUESTED, public_key, b"")
        self.log("AccessRequested", [dataset, sender], [public_key])

    def do_grant_access(self, sender, value, dataset, requester, wrapped):
        demand(not self._get_owned(sender, dataset)[4], "registry: retired")
        state, public_key, _ = self._get_access(dataset, requester)
        demand(state == REQUESTED, "registry: not requested")
        self.records.accesses[dataset, requester] = (GRANTED, public_key, wrapped)
        self.log("AccessGranted", [dataset, requester], [public_key, wrapped])

    def do_deny_access(self, sender, value, dataset, requester):
        self._get_owned(sender, dataset)
        state, public_key, _ = self._get_access(dataset, requester)
        demand(state == REQUESTED, "registry: not requested")
        self.records.accesses[dataset, requester] = (DENIED, public_key, b"")
        self.log("AccessDenied", [dataset, requester], [])

    def _get_owned(self, sender, dataset) -> list:
        found = self.records.datasets[dataset - 1]
        demand(found[0] == sender, "registry: not the owner")
        return found

    def _get_access(self, dataset, requester) -> tuple:
        return self.records.accesses.get((dataset, requester), ACCESS)

    def view_dataset_count(self):
        return [len(self.records.datasets)]

    def view_get_dataset(self, dataset):
        none = [bytes(20), encode_name(NO_BLOB), encode_name(NO_BLOB), 0, 0]
        known = 0 < dataset <= len(self.records.datasets)
        return [self.records.datasets[dataset - 1] if known else none]

    def view_get_access(self, dataset, requester):
        return [self._get_access(dataset, requester)]


class ArchiveLedger(Ledger):
    """A ledger with the registry. Blocks can be fetched; only their transactions are real."""

    def __init__(self) -> None:
        super().__init__()
        self.agreement = Archive(lambda: self.timestamp, self._write_log, self._pay)

    @property
    def records(self) -> Records:
        return self.agreement.records

    def _try(
        self, sender: bytes, to: bytes, data: bytes, value: int, declared: Sequence[BlobName] = ()
    ) -> str:
        saved = copy.deepcopy(self.agreement.records)
        try:
            return super()._try(sender, to, data, value, declared)
        finally:
            self.agreement.records = saved

    def answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path.startswith("/chain/blocks/") and path != "/chain/blocks/0":
            height = int(path.removeprefix("/chain/blocks/"))
            return httpx.Response(200, content=encode_block(self.make_block(height)))
        return super().answer(request)

    def make_block(self, height: int) -> Block:
        """A block with the transactions that were included at a height."""
        raws = tuple(
            sent.raw
            for sent in self.included
            if self.receipts[sent.hash]["blockNumber"] == hex(height)
        )
        zeros = {"state_root": ZERO, "transactions_root": ZERO, "receipts_root": ZERO}
        zeros |= {"prev_randao": ZERO, "withdrawals_root": ZERO, "parent_beacon_block_root": ZERO}
        miner = Address(bytes(20))
        header = Header(
            parent_hash=ZERO,
            coinbase=miner,
            bloom=bytes(256),
            height=Height(height),
            gas_limit=30_000_000,
            gas_used=0,
            timestamp=self.timestamp,
            base_fee=7,
            **zeros,
        )
        return Block(header, Extension(Epoch(0), View(1), miner, ZERO), raws)


REGISTRY = Address(REGISTRY_ADDRESS)

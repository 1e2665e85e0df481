"""What organisations say in the registry, and what a lying node can make of it."""

import json
from pathlib import Path

import httpx
import pytest
from eth_account import Account as Keys

from steelyard.chain.cid import compute_blob_name, encode_cid
from steelyard.chain.types import Address, BlobName, Digest
from steelyard.client.contracts import encode_name
from steelyard.client.errors import (
    ClientError,
    InvalidSeal,
    NodeRefused,
    Reverted,
    TransactionPending,
)
from steelyard.client.ipfs import EmbeddedStore
from steelyard.client.organisation import Organisation
from steelyard.client.participant import Client
from steelyard.client.records import NO_BLOB
from steelyard.client.registered import AccessState
from steelyard.client.registry import Registry
from steelyard.client.said import (
    has_said_attestation,
    has_said_dataset,
    has_said_grant,
    has_said_identity,
    has_said_publication,
    has_said_request,
)

from .archive import DENIED, GRANTED, REQUESTED, ArchiveLedger
from .conftest import HOSPITAL, ORGANISATION, make_task, open_account, train

OWNER, READER = (Address(bytes.fromhex(one.address[2:])) for one in (ORGANISATION, HOSPITAL))
ROWS = b"age,pressure\n63,145\n"
TITLE = {"title": "heart"}


@pytest.fixture
def ledger() -> ArchiveLedger:
    return ArchiveLedger()


@pytest.fixture
def owner(ledger: ArchiveLedger, tmp_path: Path):
    with open_account(Registry, ledger, ORGANISATION, tmp_path / "owner") as opened:
        yield opened


@pytest.fixture
def reader(ledger: ArchiveLedger, tmp_path: Path):
    with open_account(Registry, ledger, HOSPITAL, tmp_path / "reader") as opened:
        yield opened


def count_calls(ledger: ArchiveLedger) -> int:
    return len(ledger.included)


# -- identities ------------------------------------------------------------------------------------
def test_an_identity_is_registered_once_and_its_file_is_served(ledger, owner) -> None:
    assert owner.register({"name": "Clinic"}) is not None
    assert owner.register({"name": "Clinic"}) is None
    identity = owner.view.get_identity(OWNER)
    assert json.loads(owner.view.fetch_document(identity.metadata)) == {"name": "Clinic"}
    assert has_said_identity(owner.view, identity)


def test_an_identity_whose_file_is_gone_is_registered_again(ledger, owner) -> None:
    owner.register({"name": "Clinic"})
    ledger.blobs.clear()
    assert owner.register({"name": "Clinic"}) is not None
    assert owner.view.fetch_document(owner.view.get_identity(OWNER).metadata)


def test_a_description_can_be_taken_away(owner) -> None:
    owner.register({"name": "Clinic"})
    owner.register(None)
    identity = owner.view.get_identity(OWNER)
    assert identity.metadata == NO_BLOB
    assert identity.registered_at
    assert owner.view.fetch_document(identity.metadata) is None


def test_a_file_that_a_node_attributes_to_an_account_is_not_its_word(ledger, owner) -> None:
    owner.register({"name": "Clinic"})
    ledger.records.identities[OWNER][0] = encode_name(ledger.add_blob(b'{"name": "Else"}'))
    assert not has_said_identity(owner.view, owner.view.get_identity(OWNER))


@pytest.mark.parametrize("metadata", [b"[1]", b"name", b"\xff", {"x": object()}])
def test_metadata_is_a_json_object(owner, metadata) -> None:
    with pytest.raises(ClientError) as caught:
        owner.register(metadata)
    assert caught.value.code == "document_malformed"


@pytest.mark.parametrize("statement", [b"", b"x" * (2**20 + 1)])
def test_a_statement_has_a_size(owner, statement: bytes) -> None:
    with pytest.raises(ClientError) as caught:
        owner.attest(READER, statement)
    assert caught.value.code == "document_size"


def test_a_statement_is_text(owner) -> None:
    with pytest.raises(ClientError) as caught:
        owner.attest(READER, b"\xff\xfe")
    assert caught.value.code == "document_malformed"


def test_a_document_larger_than_the_contract_admits_is_not_fetched(owner) -> None:
    with pytest.raises(NodeRefused) as caught:
        owner.view.fetch_document(BlobName(Digest(b"\x01" * 32), 2**20 + 1))
    assert caught.value.code == "rpc_answer"


# -- attestations ----------------------------------------------------------------------------------
def test_a_statement_stands_until_it_is_revoked(ledger, owner) -> None:
    name = owner.attest(READER, b"an accredited hospital")
    calls = count_calls(ledger)
    assert owner.attest(READER, b"an accredited hospital") == name
    assert count_calls(ledger) == calls, "it stands: nothing is sent"
    (found,) = owner.view.list_attestations(READER)
    assert (found.issuer, found.stands) == (OWNER, True)
    assert has_said_attestation(owner.view, found)
    assert owner.revoke(READER, encode_cid(name))
    assert not owner.view.list_attestations(READER)[0].stands
    assert not owner.revoke(READER, name)


def test_statements_are_those_of_an_issuer_or_the_newest(ledger, owner, tmp_path) -> None:
    with open_account(Registry, ledger, Keys.from_key(b"\x03" * 32), tmp_path / "3") as stranger:
        stranger.attest(READER, b"spam")
        first = owner.attest(READER, b"an accredited hospital")
        stranger.attest(READER, b"more spam")
    (found,) = owner.view.list_attestations(READER, OWNER)
    assert found.statement == first
    assert len(owner.view.list_attestations(READER)) == 3
    newest = owner.view.list_attestations(READER, limit=2)
    assert [one.statement for one in newest][:1] == [first]
    assert len(newest) == 2


def test_what_was_never_stated_cannot_be_revoked(owner) -> None:
    owner.attest(READER, b"an accredited hospital")
    assert not owner.revoke(READER, b"something else")
    assert not owner.revoke(READER, encode_cid(compute_blob_name(b"something else")))


def test_nobody_attests_about_itself(owner) -> None:
    with pytest.raises(Reverted, match="about oneself"):
        owner.attest(OWNER, b"the best")


def test_an_address_is_checked(owner) -> None:
    with pytest.raises(ClientError) as caught:
        owner.attest("0x1234", b"who")
    assert caught.value.code == "account_malformed"


# -- models ----------------------------------------------------------------------------------------
def test_a_model_is_published_with_the_round_that_made_it(ledger, owner, tmp_path) -> None:
    with open_account(Organisation, ledger, ORGANISATION, tmp_path / "o") as organisation:
        task = organisation.publish(make_task()).number
    with open_account(Client, ledger, HOSPITAL, tmp_path / "h") as hospital:
        hospital.train(train)
        hospital.run(task, samples=50)
    number = owner.publish_model(task=task, round_number=1, metadata=TITLE)
    assert owner.publish_model(task=task, round_number=1) == number
    found = owner.view.get_publication(number)
    assert (found.task, found.round, found.publisher) == (task, 1, OWNER)
    assert has_said_publication(owner.view, found)
    with pytest.raises(Reverted, match="not the model"):
        owner.publish_model(b"another model", task=task, round_number=1)


def test_lineage_leads_to_the_first_model(owner) -> None:
    names = [compute_blob_name(data) for data in (b"one", b"two", b"three")]
    parents = [NO_BLOB, *names[:2]]
    for data, parent in zip((b"one", b"two", b"three"), parents, strict=True):
        owner.publish_model(data, parent=parent)
    last = owner.view.find_model(encode_cid(names[2]))
    assert [one.model for one in owner.view.get_lineage(last)] == [names[1], names[0]]
    assert has_said_publication(owner.view, last)
    assert [one.number for one in owner.view.list_publications(2)] == [3, 2]


def test_a_parent_that_a_node_invents_is_not_the_publishers_word(ledger, owner) -> None:
    owner.publish_model(b"one")
    owner.publish_model(b"two")
    ledger.records.publications[1][5] = 1
    assert not has_said_publication(owner.view, owner.view.get_publication(2))


def test_a_lineage_that_does_not_go_back_is_a_lie(ledger, owner) -> None:
    owner.publish_model(b"one")
    ledger.records.publications[0][5] = 1
    with pytest.raises(NodeRefused) as caught:
        owner.view.get_lineage(owner.view.get_publication(1))
    assert caught.value.code == "rpc_answer"


@pytest.mark.parametrize("text", ["0", "7", "9" * 5000, encode_cid(compute_blob_name(b"unknown"))])
def test_a_model_that_nobody_published_is_unknown(owner, text: str) -> None:
    owner.publish_model(b"one")
    with pytest.raises(ClientError) as caught:
        owner.view.find_model(text)
    assert caught.value.code == "publication_unknown"


def test_a_round_without_a_model_has_nothing_to_publish(owner) -> None:
    with pytest.raises(ClientError) as caught:
        owner.publish_model()
    assert caught.value.code == "model_unknown"


# -- datasets --------------------------------------------------------------------------------------
def test_a_dataset_is_read_by_who_was_granted_it(ledger, owner, reader) -> None:
    number = owner.publish_dataset(TITLE, ROWS)
    assert all(ROWS not in blob for blob in ledger.blobs.values()), "only ciphertext leaves"
    assert reader.request_access(number)
    assert not reader.request_access(number)
    (access,) = owner.view.list_accesses(number)
    assert access.state is AccessState.REQUESTED
    assert owner.grant_access(number, READER)
    assert not owner.grant_access(number, READER)
    assert reader.fetch_dataset(number, owner=OWNER) == ROWS
    assert not reader.request_access(number), "the granted key opens"


def test_a_lost_state_directory_loses_nothing(ledger, owner, reader, tmp_path) -> None:
    number = owner.publish_dataset(TITLE, ROWS)
    reader.request_access(number)
    with open_account(Registry, ledger, ORGANISATION, tmp_path / "new owner") as again:
        assert again.grant_access(number, READER)
        assert again.fetch_dataset(number) == ROWS
    with open_account(Registry, ledger, HOSPITAL, tmp_path / "new reader") as again:
        assert again.fetch_dataset(number) == ROWS


def test_the_owner_still_has_what_the_chain_has_dropped(ledger, owner, reader) -> None:
    number = owner.publish_dataset(TITLE, ROWS)
    content = owner.view.get_dataset(number).content
    sealed = ledger.blobs.pop(content)
    reader.request_access(number)
    owner.grant_access(number, READER)
    with pytest.raises(ClientError) as caught:
        reader.fetch_dataset(number)
    assert caught.value.code == "node_unreachable"
    assert content in owner.renew_dataset(number)
    assert ledger.blobs[content] == sealed
    assert reader.fetch_dataset(number) == ROWS


def test_a_content_may_come_from_another_store(ledger, owner, reader, tmp_path) -> None:
    number = owner.publish_dataset(TITLE, ROWS)
    reader.request_access(number)
    owner.grant_access(number, READER)
    store = EmbeddedStore(tmp_path / "elsewhere")
    store.add(ledger.blobs.pop(owner.view.get_dataset(number).content))
    assert reader.fetch_dataset(number, store=store) == ROWS


def test_a_dataset_is_published_once_unless_it_has_another_reference(ledger, owner) -> None:
    first = owner.publish_dataset(TITLE, ROWS)
    assert owner.publish_dataset(TITLE, ROWS) == first
    second = owner.publish_dataset(TITLE, ROWS, reference="after a leak")
    names = {owner.view.get_dataset(number).content for number in (first, second)}
    assert second != first
    assert len(names) == 2, "another key, another content"


def test_a_publication_that_was_cut_off_goes_on_with_the_same_content(ledger, tmp_path) -> None:
    ledger.is_mining = False
    with (
        open_account(Registry, ledger, ORGANISATION, tmp_path / "o") as first,
        pytest.raises(TransactionPending),
    ):
        first.publish_dataset(TITLE, ROWS)
    sent = set(ledger.seen)
    ledger.is_mining = True
    with open_account(Registry, ledger, ORGANISATION, tmp_path / "o") as again:
        number = again.publish_dataset(TITLE, ROWS)
        assert ledger.seen == sent, "the same bytes, no second transaction"
        assert again.store.has(encode_cid(again.view.get_dataset(number).content))
        assert again.fetch_dataset(number) == ROWS


def test_a_description_has_nothing_to_read(owner, reader) -> None:
    number = owner.publish_dataset(TITLE)
    with pytest.raises(ClientError) as caught:
        owner.fetch_dataset(number)
    assert caught.value.code == "dataset_empty"


@pytest.mark.parametrize(
    ("state", "code"),
    [(0, "access_missing"), (REQUESTED, "access_waiting"), (DENIED, "access_denied")],
)
def test_nothing_is_read_without_a_grant(ledger, owner, reader, state: int, code: str) -> None:
    number = owner.publish_dataset(TITLE, ROWS)
    if state:
        reader.request_access(number)
    if state == DENIED:
        assert owner.deny_access(number, READER)
        assert not owner.deny_access(number, READER)
    with pytest.raises(ClientError) as caught:
        reader.fetch_dataset(number)
    assert caught.value.code == code


def test_who_was_denied_may_ask_again(owner, reader) -> None:
    number = owner.publish_dataset(TITLE, ROWS)
    reader.request_access(number)
    owner.deny_access(number, READER)
    assert reader.request_access(number)
    assert owner.grant_access(number, READER)


def test_nothing_is_granted_to_who_did_not_ask(owner, reader) -> None:
    number = owner.publish_dataset(TITLE, ROWS)
    with pytest.raises(ClientError) as caught:
        owner.grant_access(number, READER)
    assert caught.value.code == "access_missing"


def test_a_retired_dataset_takes_no_requests(owner, reader) -> None:
    number = owner.publish_dataset(TITLE, ROWS)
    assert owner.retire_dataset(number)
    assert not owner.retire_dataset(number)
    with pytest.raises(Reverted, match="retired"):
        reader.request_access(number)


def test_only_the_owner_grants(owner, reader) -> None:
    number = owner.publish_dataset(TITLE, ROWS)
    reader.request_access(number)
    with pytest.raises(ClientError) as caught:
        reader.grant_access(number, READER)
    assert caught.value.code == "dataset_owner"


def test_a_dataset_that_does_not_exist_is_unknown(owner) -> None:
    with pytest.raises(ClientError) as caught:
        owner.view.get_dataset(9)
    assert caught.value.code == "dataset_unknown"


# -- a node that lies ------------------------------------------------------------------------------
def test_no_key_is_wrapped_to_a_public_key_that_a_node_puts_in(ledger, owner, reader) -> None:
    number = owner.publish_dataset(TITLE, ROWS)
    reader.request_access(number)
    ledger.records.accesses[number, READER] = (REQUESTED, b"\x09" * 32, b"")
    calls = count_calls(ledger)
    with pytest.raises(ClientError) as caught:
        owner.grant_access(number, READER)
    assert caught.value.code == "request_unsigned"
    assert count_calls(ledger) == calls


def test_a_public_key_given_by_the_requester_must_be_that_of_the_request(owner, reader) -> None:
    number = owner.publish_dataset(TITLE, ROWS)
    reader.request_access(number)
    with pytest.raises(ClientError) as caught:
        owner.grant_access(number, READER, public_key=b"\x09" * 32)
    assert caught.value.code == "request_key"
    right = owner.view.get_access(number, READER).public_key
    assert owner.grant_access(number, READER, public_key=right)


def test_another_dataset_under_the_number_is_noticed_by_its_cid(ledger, owner, reader) -> None:
    meant = owner.publish_dataset(TITLE, ROWS)
    secret = owner.publish_dataset({"title": "secret"}, b"names")
    cid = encode_cid(owner.view.get_dataset(meant).content)
    reader.request_access(meant)
    ledger.records.datasets[meant - 1] = ledger.records.datasets[secret - 1]
    with pytest.raises(ClientError) as caught:
        owner.grant_access(meant, READER, content=cid)
    assert caught.value.code == "dataset_differs"
    with pytest.raises(ClientError) as caught:
        owner.grant_access(meant, READER)
    assert caught.value.code == "dataset_owner", "the event of that number names the other content"


def test_a_grant_that_the_owner_did_not_sign_is_refused(ledger, owner, reader) -> None:
    number = owner.publish_dataset(TITLE, ROWS)
    reader.request_access(number)
    owner.grant_access(number, READER)
    state, public_key, wrapped = ledger.records.accesses[number, READER]
    forged = wrapped[:-1] + bytes([wrapped[-1] ^ 1])
    ledger.records.accesses[number, READER] = (state, public_key, forged)
    with pytest.raises(ClientError) as caught:
        reader.fetch_dataset(number)
    assert caught.value.code == "grant_unsigned"


def test_a_grant_under_another_owner_is_refused(ledger, owner, reader) -> None:
    number = owner.publish_dataset(TITLE, ROWS)
    reader.request_access(number)
    owner.grant_access(number, READER)
    ledger.records.datasets[number - 1][0] = b"\x33" * 20
    with pytest.raises(ClientError) as caught:
        reader.fetch_dataset(number)
    assert caught.value.code == "grant_unsigned"
    with pytest.raises(ClientError) as caught:
        reader.fetch_dataset(number, owner=OWNER)
    assert caught.value.code == "dataset_differs"


def test_a_grant_does_not_open_for_another_content(ledger, owner, reader) -> None:
    number = owner.publish_dataset(TITLE, ROWS)
    reader.request_access(number)
    owner.grant_access(number, READER)
    other = ledger.add_blob(b"poisoned" * 20)
    ledger.records.datasets[number - 1][2] = encode_name(other)
    with pytest.raises(InvalidSeal) as caught:
        reader.fetch_dataset(number)
    assert caught.value.code == "wrapped_key"


def test_content_of_other_bytes_is_refused(ledger, owner, reader) -> None:
    number = owner.publish_dataset(TITLE, ROWS)
    reader.request_access(number)
    owner.grant_access(number, READER)
    content = owner.view.get_dataset(number).content
    ledger.blobs[content] = bytes(content.size)
    with pytest.raises(ClientError) as caught:
        reader.fetch_dataset(number)
    assert caught.value.code == "blob_mismatch"


def test_a_request_of_another_program_is_named(ledger, owner, reader) -> None:
    number = owner.publish_dataset(TITLE, ROWS)
    reader.request_access(number)
    ledger.records.accesses[number, READER] = (REQUESTED, b"\x09" * 32, b"")
    with pytest.raises(ClientError) as caught:
        reader.request_access(number)
    assert caught.value.code == "request_key"


def test_who_cannot_open_its_grant_asks_again(ledger, owner, reader) -> None:
    number = owner.publish_dataset(TITLE, ROWS)
    reader.request_access(number)
    owner.grant_access(number, READER)
    _, public_key, wrapped = ledger.records.accesses[number, READER]
    ledger.records.accesses[number, READER] = (GRANTED, public_key, bytes(len(wrapped)))
    assert reader.request_access(number)


@pytest.mark.parametrize("access", [(4, bytes(32), b""), (GRANTED, bytes(32), bytes(129))])
def test_an_access_that_cannot_be_is_refused(ledger, owner, access) -> None:
    number = owner.publish_dataset(TITLE, ROWS)
    ledger.records.accesses[number, READER] = access
    with pytest.raises(NodeRefused) as caught:
        owner.view.get_access(number, READER)
    assert caught.value.code == "rpc_answer"


def test_words_are_signed_by_those_who_said_them(ledger, owner, reader) -> None:
    number = owner.publish_dataset(TITLE, ROWS)
    reader.request_access(number)
    owner.grant_access(number, READER)
    access = owner.view.get_access(number, READER)
    assert has_said_dataset(owner.view, owner.view.get_dataset(number))
    assert has_said_request(owner.view, access)
    assert has_said_grant(owner.view, access, OWNER)
    assert not has_said_grant(owner.view, access, READER)


@pytest.mark.parametrize("content", [b"", b"\xc0", b"\xff" * 40])
def test_a_node_that_keeps_the_block_back_is_named(ledger, owner, tmp_path, content) -> None:
    number = owner.publish_dataset(TITLE, ROWS)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/chain/blocks/"):
            return httpx.Response(200, content=content)
        return ledger.answer(request)

    with open_account(Registry, ledger, HOSPITAL, tmp_path / "x", answer) as other:
        dataset = other.view.get_dataset(number)
        with pytest.raises(NodeRefused) as caught:
            has_said_dataset(other.view, dataset)
    assert caught.value.code == "rpc_answer"


def test_a_count_that_cannot_be_does_not_keep_a_client_busy(owner, monkeypatch) -> None:
    asked: list[list[int]] = []
    monkeypatch.setattr(owner.view, "read", lambda name: 2**256 - 1)
    monkeypatch.setattr(owner.view, "_read_each", lambda name, numbers: asked.append(numbers) or ())
    with pytest.raises(ValueError, match="shorter"):
        owner.view.list_datasets(10**9)
    assert len(asked[0]) == 10_000

"""Registry: what accounts say in their own name, and the one thing that the chain proves."""

import json
from pathlib import Path

import ape
import pytest
import vyper
from eth_utils import to_checksum_address
from injection import install_code

from steelyard.chain.params import MAX_BLOB_BYTES, ROUNDS_ADDRESS

CONTRACTS = Path(__file__).resolve().parents[1]
PAGE = (CONTRACTS.parent / "docs" / "registry.md").read_text()
NONE = (bytes(32), 0)
NOBODY = "0x" + "00" * 20
MAX_DOCUMENT_BYTES = 2**20
MAX_CONTENT_BYTES = 2**40
MAX_WRAPPED_BYTES = 128
UNKNOWN, REQUESTED, GRANTED, DENIED = 0, 1, 2, 3
KEY, OTHER_KEY = b"\x09" * 32, b"\x0a" * 32
HALF_NAMES = [(b"\x01" * 32, 0), (bytes(32), 1)]
TASK, ROUND = 7, 3


def make_name(number, size=100):
    """A file's name that no other number has."""
    return (number.to_bytes(32, "big"), size)


MODEL, OTHER_MODEL, CHILD = make_name(0xABC, 4_000), make_name(0xABD, 4_000), make_name(0xABE)
METADATA, CONTENT = make_name(1), make_name(2, 10**9)

ROUNDS_STAND_IN = """
struct Blob:
    digest: bytes32
    size: uint256

struct Round:
    state: uint8
    base: Blob
    velocity: Blob
    pool: uint256
    seed: bytes32
    drawn: uint256
    committed: uint256
    revealed: uint256
    commit_ends: uint256
    reveal_ends: uint256
    extensions: uint256
    model: Blob
    saturated: uint256
    pages: uint256

rounds: HashMap[uint256, HashMap[uint256, Round]]

@external
def make(task: uint256, round: uint256, base: Blob, model: Blob):
    self.rounds[task][round].state = 2
    self.rounds[task][round].base = base
    self.rounds[task][round].model = model

@view
@external
def get_round(task: uint256, round: uint256) -> Round:
    return self.rounds[task][round]
"""


@pytest.fixture(scope="module")
def stand_in():
    return vyper.compile_code(ROUNDS_STAND_IN, output_formats=["abi", "bytecode_runtime"])


@pytest.fixture
def registry(compiled, accounts):
    return accounts[0].deploy(compiled.Registry)


@pytest.fixture
def rounds(chain, accounts, stand_in):
    """A stand-in for Rounds, at its address, in which one round made MODEL."""
    install_code(chain, ROUNDS_ADDRESS, bytes.fromhex(stand_in["bytecode_runtime"][2:]))
    rounds = ape.Contract(to_checksum_address(ROUNDS_ADDRESS), abi=stand_in["abi"])
    rounds.make(TASK, ROUND, OTHER_MODEL, MODEL, sender=accounts[0])
    return rounds


@pytest.fixture
def hospital(accounts):
    return accounts[4]


@pytest.fixture
def university(accounts):
    return accounts[5]


# -- identities ------------------------------------------------------------------------------------


def test_registering_names_the_file_that_describes_the_caller(registry, hospital):
    receipt = registry.register(METADATA, sender=hospital)
    identity = registry.get_identity(hospital)
    assert tuple(identity.metadata) == METADATA
    assert identity.registered_at == identity.updated_at == receipt.timestamp
    (event,) = receipt.decode_logs(registry.Registered)
    assert event.account == hospital
    assert tuple(event.metadata) == METADATA


def test_registering_again_replaces_the_file_and_keeps_the_first_date(registry, hospital):
    first = registry.register(METADATA, sender=hospital)
    second = registry.register(NONE, sender=hospital)
    identity = registry.get_identity(hospital)
    assert tuple(identity.metadata) == NONE
    assert (identity.registered_at, identity.updated_at) == (first.timestamp, second.timestamp)
    assert second.timestamp > first.timestamp


def test_nobody_registers_another_account(registry, hospital, university):
    registry.register(METADATA, sender=hospital)
    assert registry.get_identity(university).registered_at == 0


@pytest.mark.parametrize("half", HALF_NAMES)
def test_half_a_name_is_refused_everywhere(registry, hospital, university, half):
    calls = [
        lambda: registry.register(half, sender=hospital),
        lambda: registry.attest(university, half, sender=hospital),
        lambda: registry.publish_model(half, 0, 0, NONE, NONE, sender=hospital),
        lambda: registry.publish_model(MODEL, 0, 0, NONE, half, sender=hospital),
        lambda: registry.publish_dataset(half, NONE, sender=hospital),
        lambda: registry.publish_dataset(METADATA, half, sender=hospital),
    ]
    for call in calls:
        with ape.reverts("registry: malformed name"):
            call()
    with ape.reverts("registry: unknown parent"):
        registry.publish_model(MODEL, 0, 0, half, NONE, sender=hospital)


def test_the_largest_files_are_taken_and_a_byte_more_is_refused(registry, hospital, university):
    calls = {
        MAX_DOCUMENT_BYTES: [
            lambda file: registry.register(file, sender=hospital),
            lambda file: registry.attest(university, file, sender=hospital),
            lambda file: registry.publish_model(MODEL, 0, 0, NONE, file, sender=hospital),
            lambda file: registry.publish_dataset(file, NONE, sender=hospital),
        ],
        MAX_BLOB_BYTES: [
            lambda file: registry.publish_model(file, 0, 0, NONE, NONE, sender=hospital)
        ],
        MAX_CONTENT_BYTES: [lambda file: registry.publish_dataset(METADATA, file, sender=hospital)],
    }
    for limit, limited in calls.items():
        for call in limited:
            with ape.reverts("registry: file too large"):
                call(make_name(9, limit + 1))
            call(make_name(9, limit))


# -- attestations ----------------------------------------------------------------------------------


def test_an_attestation_is_its_senders_statement_about_the_subject(registry, hospital, university):
    receipt = registry.attest(hospital, METADATA, sender=university)
    assert registry.is_attested(university, hospital, METADATA)
    attestation = registry.get_attestation(university, hospital, METADATA)
    assert (attestation.issued_at, attestation.revoked_at) == (receipt.timestamp, 0)
    (event,) = receipt.decode_logs(registry.Attested)
    assert (event.issuer, event.subject) == (university, hospital)
    assert tuple(event.statement) == METADATA
    assert not registry.is_attested(hospital, university, METADATA)
    assert not registry.is_attested(university, hospital, make_name(1, 101))
    assert not registry.is_attested(university, hospital, make_name(3))


def test_an_issuer_may_make_several_statements_about_one_subject(registry, hospital, university):
    registry.attest(hospital, METADATA, sender=university)
    registry.attest(hospital, (*CONTENT[:1], 7), sender=university)
    registry.revoke_attestation(hospital, METADATA, sender=university)
    assert not registry.is_attested(university, hospital, METADATA)
    assert registry.is_attested(university, hospital, (*CONTENT[:1], 7))


def test_attesting_nothing_oneself_or_nobody_is_refused(registry, hospital):
    with ape.reverts("registry: about oneself"):
        registry.attest(hospital, METADATA, sender=hospital)
    with ape.reverts("registry: no subject"):
        registry.attest(NOBODY, METADATA, sender=hospital)
    with ape.reverts("registry: no statement"):
        registry.attest(registry, NONE, sender=hospital)


def test_the_same_statement_is_made_once_until_it_is_revoked(registry, hospital, university):
    registry.attest(hospital, METADATA, sender=university)
    with ape.reverts("registry: already attested"):
        registry.attest(hospital, METADATA, sender=university)
    registry.revoke_attestation(hospital, METADATA, sender=university)
    registry.attest(hospital, METADATA, sender=university)
    assert registry.is_attested(university, hospital, METADATA)
    assert registry.get_attestation(university, hospital, METADATA).revoked_at == 0


def test_a_revoked_statement_says_when(registry, hospital, university):
    first = registry.attest(hospital, METADATA, sender=university)
    receipt = registry.revoke_attestation(hospital, METADATA, sender=university)
    attestation = registry.get_attestation(university, hospital, METADATA)
    assert (attestation.issued_at, attestation.revoked_at) == (first.timestamp, receipt.timestamp)
    assert not registry.is_attested(university, hospital, METADATA)
    (event,) = receipt.decode_logs(registry.AttestationRevoked)
    assert (event.issuer, event.subject) == (university, hospital)
    assert tuple(event.statement) == METADATA


def test_only_its_issuer_revokes_a_statement_and_once(registry, hospital, university, accounts):
    registry.attest(hospital, METADATA, sender=university)
    for other in (hospital, accounts[6]):
        with ape.reverts("registry: not attested"):
            registry.revoke_attestation(hospital, METADATA, sender=other)
    with ape.reverts("registry: not attested"):
        registry.revoke_attestation(hospital, CONTENT, sender=university)
    registry.revoke_attestation(hospital, METADATA, sender=university)
    with ape.reverts("registry: not attested"):
        registry.revoke_attestation(hospital, METADATA, sender=university)


# -- models ----------------------------------------------------------------------------------------


def test_a_model_is_published_with_the_round_that_made_it(registry, rounds, hospital):
    receipt = registry.publish_model(MODEL, TASK, ROUND, NONE, METADATA, sender=hospital)
    found = registry.get_model(MODEL)
    assert (found.number, found.publisher, found.task, found.round) == (1, hospital, TASK, ROUND)
    assert (tuple(found.model), tuple(found.metadata)) == (MODEL, METADATA)
    assert (found.parent, found.published_at) == (0, receipt.timestamp)
    assert registry.model_count() == 1
    assert registry.find_publication(MODEL, hospital) == 1
    assert registry.get_publication(1) == found
    (event,) = receipt.decode_logs(registry.ModelPublished)
    assert (event.number, event.publisher, event.task, event.round) == (1, hospital, TASK, ROUND)
    assert (tuple(event.model), event.parent, tuple(event.metadata)) == (MODEL, 0, METADATA)


@pytest.mark.parametrize(
    ("model", "task", "round"),
    [
        (OTHER_MODEL, TASK, ROUND),
        ((*MODEL[:1], MODEL[1] + 1), TASK, ROUND),
        (make_name(0xFFF, MODEL[1]), TASK, ROUND),
        (MODEL, TASK + 1, ROUND),
        (MODEL, TASK, ROUND - 1),
    ],
)
def test_a_round_that_did_not_make_the_model_is_refused(
    registry, rounds, hospital, model, task, round
):
    """The base of the round, another size, another digest, another task, another round."""
    with ape.reverts("registry: not the model of that round"):
        registry.publish_model(model, task, round, NONE, NONE, sender=hospital)


def test_an_origin_cannot_be_claimed_where_there_is_no_rounds_contract(registry, hospital):
    with ape.reverts():
        registry.publish_model(MODEL, TASK, ROUND, NONE, NONE, sender=hospital)
    assert registry.model_count() == 0


@pytest.mark.parametrize(("task", "round"), [(TASK, 0), (0, ROUND)])
def test_half_an_origin_is_refused(registry, rounds, hospital, task, round):
    with ape.reverts("registry: round without a task"):
        registry.publish_model(MODEL, task, round, NONE, NONE, sender=hospital)


def test_a_model_without_a_name_is_refused(registry, hospital):
    with ape.reverts("registry: no model"):
        registry.publish_model(NONE, 0, 0, NONE, METADATA, sender=hospital)


def test_an_account_publishes_a_model_once(registry, rounds, hospital):
    registry.publish_model(MODEL, 0, 0, NONE, NONE, sender=hospital)
    with ape.reverts("registry: already published"):
        registry.publish_model(MODEL, TASK, ROUND, NONE, NONE, sender=hospital)


def test_nobody_can_take_a_models_place_by_publishing_it_first(
    registry, rounds, hospital, university, accounts
):
    """A proved origin goes before an unproved word, and the first proved one stays."""
    registry.publish_model(MODEL, 0, 0, NONE, NONE, sender=university)
    assert registry.get_model(MODEL).publisher == university
    registry.publish_model(MODEL, TASK, ROUND, NONE, METADATA, sender=hospital)
    assert registry.get_model(MODEL).publisher == hospital
    registry.publish_model(MODEL, TASK, ROUND, NONE, NONE, sender=accounts[6])
    registry.publish_model(MODEL, 0, 0, NONE, NONE, sender=accounts[7])
    assert registry.get_model(MODEL).publisher == hospital
    assert registry.find_publication(MODEL, university) == 1
    assert registry.get_publication(1).publisher == university


def test_the_first_word_about_an_unproved_model_stays(registry, hospital, university):
    registry.publish_model(MODEL, 0, 0, NONE, NONE, sender=university)
    registry.publish_model(MODEL, 0, 0, NONE, METADATA, sender=hospital)
    assert registry.get_model(MODEL).publisher == university


def test_lineage_leads_to_an_earlier_publication(registry, rounds, hospital, university):
    registry.publish_model(OTHER_MODEL, 0, 0, NONE, NONE, sender=university)
    registry.publish_model(MODEL, TASK, ROUND, OTHER_MODEL, NONE, sender=hospital)
    registry.publish_model(CHILD, 0, 0, MODEL, NONE, sender=university)
    assert [registry.get_publication(number).parent for number in (1, 2, 3)] == [0, 1, 2]


def test_lineage_has_no_cycles_whatever_other_accounts_say(registry, hospital, university):
    registry.publish_model(MODEL, 0, 0, NONE, NONE, sender=hospital)
    registry.publish_model(CHILD, 0, 0, MODEL, NONE, sender=hospital)
    registry.publish_model(MODEL, 0, 0, CHILD, NONE, sender=university)
    for number in (1, 2, 3):
        assert registry.get_publication(number).parent < number


def test_an_unknown_parent_is_refused(registry, hospital):
    with ape.reverts("registry: unknown parent"):
        registry.publish_model(MODEL, 0, 0, OTHER_MODEL, NONE, sender=hospital)


def test_a_model_is_not_its_own_parent(registry, hospital, university):
    registry.publish_model(MODEL, 0, 0, NONE, NONE, sender=university)
    with ape.reverts("registry: its own parent"):
        registry.publish_model(MODEL, 0, 0, MODEL, NONE, sender=hospital)


def test_an_unpublished_model_has_no_publication(registry, hospital):
    found = registry.get_model(MODEL)
    assert (found.number, found.publisher, found.published_at) == (0, NOBODY, 0)
    assert registry.find_publication(MODEL, hospital) == 0


# -- datasets --------------------------------------------------------------------------------------


def publish_dataset(registry, owner, content=CONTENT):
    registry.publish_dataset(METADATA, content, sender=owner)
    return registry.dataset_count()


def test_a_dataset_belongs_to_whoever_published_it(registry, hospital, university):
    receipt = registry.publish_dataset(METADATA, CONTENT, sender=hospital)
    dataset = registry.get_dataset(1)
    assert dataset.owner == hospital
    assert (tuple(dataset.metadata), tuple(dataset.content)) == (METADATA, CONTENT)
    assert (dataset.published_at, dataset.retired_at) == (receipt.timestamp, 0)
    (event,) = receipt.decode_logs(registry.DatasetPublished)
    assert (event.dataset, event.owner) == (1, hospital)
    assert (tuple(event.metadata), tuple(event.content)) == (METADATA, CONTENT)
    assert publish_dataset(registry, university) == 2
    assert registry.get_dataset(2).owner == university


def test_a_dataset_without_metadata_is_refused(registry, hospital):
    with ape.reverts("registry: no metadata"):
        registry.publish_dataset(NONE, CONTENT, sender=hospital)


def test_a_granted_key_is_wrapped_for_the_key_of_the_request(registry, hospital, university):
    dataset = publish_dataset(registry, hospital)
    receipt = registry.request_access(dataset, KEY, sender=university)
    access = registry.get_access(dataset, university)
    assert (access.state, bytes(access.public_key), bytes(access.wrapped)) == (REQUESTED, KEY, b"")
    (event,) = receipt.decode_logs(registry.AccessRequested)
    assert (event.dataset, event.requester, bytes(event.public_key)) == (dataset, university, KEY)
    wrapped = bytes(range(MAX_WRAPPED_BYTES))
    receipt = registry.grant_access(dataset, university, wrapped, sender=hospital)
    access = registry.get_access(dataset, university)
    assert (access.state, bytes(access.public_key)) == (GRANTED, KEY)
    assert bytes(access.wrapped) == wrapped
    (event,) = receipt.decode_logs(registry.AccessGranted)
    assert (event.dataset, event.requester, bytes(event.public_key)) == (dataset, university, KEY)
    assert bytes(event.wrapped) == wrapped


def test_only_the_owner_answers_a_request(registry, hospital, university, accounts):
    dataset = publish_dataset(registry, hospital)
    registry.request_access(dataset, KEY, sender=university)
    for other in (university, accounts[6]):
        with ape.reverts("registry: not the owner"):
            registry.grant_access(dataset, university, b"\1", sender=other)
        with ape.reverts("registry: not the owner"):
            registry.deny_access(dataset, university, sender=other)
        with ape.reverts("registry: not the owner"):
            registry.retire_dataset(dataset, sender=other)
    assert registry.get_access(dataset, university).state == REQUESTED


def test_nobody_is_given_a_key_without_asking(registry, hospital, university):
    dataset = publish_dataset(registry, hospital)
    with ape.reverts("registry: not requested"):
        registry.grant_access(dataset, university, b"\1", sender=hospital)
    with ape.reverts("registry: not requested"):
        registry.deny_access(dataset, university, sender=hospital)


def test_a_request_is_answered_once(registry, hospital, university):
    dataset = publish_dataset(registry, hospital)
    registry.request_access(dataset, KEY, sender=university)
    registry.grant_access(dataset, university, b"\1", sender=hospital)
    with ape.reverts("registry: not requested"):
        registry.grant_access(dataset, university, b"\2", sender=hospital)
    with ape.reverts("registry: not requested"):
        registry.deny_access(dataset, university, sender=hospital)


@pytest.mark.parametrize("size", [0, MAX_WRAPPED_BYTES + 1])
def test_a_wrapped_key_has_a_size(registry, hospital, university, size):
    dataset = publish_dataset(registry, hospital)
    registry.request_access(dataset, KEY, sender=university)
    with ape.reverts("registry: no key" if size == 0 else None):
        registry.grant_access(dataset, university, bytes(size), sender=hospital)
    assert registry.get_access(dataset, university).state == REQUESTED


def test_an_open_request_keeps_its_key(registry, hospital, university):
    """Else the owner could wrap for a key that was replaced meanwhile."""
    dataset = publish_dataset(registry, hospital)
    registry.request_access(dataset, KEY, sender=university)
    with ape.reverts("registry: already requested"):
        registry.request_access(dataset, OTHER_KEY, sender=university)


def test_whoever_was_answered_may_ask_again(registry, hospital, university):
    """Denied, or with a lost key; the old answer is gone then."""
    dataset = publish_dataset(registry, hospital)
    registry.request_access(dataset, KEY, sender=university)
    receipt = registry.deny_access(dataset, university, sender=hospital)
    assert registry.get_access(dataset, university).state == DENIED
    (event,) = receipt.decode_logs(registry.AccessDenied)
    assert (event.dataset, event.requester) == (dataset, university)
    registry.request_access(dataset, KEY, sender=university)
    registry.grant_access(dataset, university, b"\1", sender=hospital)
    registry.request_access(dataset, OTHER_KEY, sender=university)
    access = registry.get_access(dataset, university)
    assert (access.state, bytes(access.public_key)) == (REQUESTED, OTHER_KEY)
    assert bytes(access.wrapped) == b""


def test_requests_that_cannot_be_answered_are_refused(registry, hospital, university):
    described = publish_dataset(registry, hospital, content=NONE)
    with ape.reverts("registry: nothing to read"):
        registry.request_access(described, KEY, sender=university)
    with ape.reverts("registry: no such dataset"):
        registry.request_access(described + 1, KEY, sender=university)
    dataset = publish_dataset(registry, hospital)
    with ape.reverts("registry: already its owner"):
        registry.request_access(dataset, KEY, sender=hospital)
    with ape.reverts("registry: no public key"):
        registry.request_access(dataset, bytes(32), sender=university)


def test_a_retired_dataset_gives_no_more_keys(registry, hospital, university, accounts):
    dataset = publish_dataset(registry, hospital)
    for reader in (university, accounts[6], accounts[7]):
        registry.request_access(dataset, KEY, sender=reader)
    registry.grant_access(dataset, university, b"\1", sender=hospital)
    receipt = registry.retire_dataset(dataset, sender=hospital)
    assert registry.get_dataset(dataset).retired_at == receipt.timestamp
    (event,) = receipt.decode_logs(registry.DatasetRetired)
    assert event.dataset == dataset
    with ape.reverts("registry: retired"):
        registry.request_access(dataset, KEY, sender=accounts[8])
    with ape.reverts("registry: retired"):
        registry.grant_access(dataset, accounts[6], b"\1", sender=hospital)
    with ape.reverts("registry: retired"):
        registry.retire_dataset(dataset, sender=hospital)
    registry.deny_access(dataset, accounts[6], sender=hospital)
    assert bytes(registry.get_access(dataset, university).wrapped) == b"\1"
    assert registry.get_access(dataset, accounts[7]).state == REQUESTED


def test_requests_for_one_dataset_open_no_other(registry, hospital, university):
    first, second = publish_dataset(registry, hospital), publish_dataset(registry, hospital)
    registry.request_access(first, KEY, sender=university)
    with ape.reverts("registry: not requested"):
        registry.grant_access(second, university, b"\1", sender=hospital)
    assert registry.get_access(second, university).state == UNKNOWN


def test_the_owner_of_no_dataset_is_nobody(registry, hospital):
    for call in (
        lambda: registry.retire_dataset(0, sender=hospital),
        lambda: registry.grant_access(1, hospital, b"\1", sender=hospital),
        lambda: registry.deny_access(1, hospital, sender=hospital),
    ):
        with ape.reverts("registry: not the owner"):
            call()


# -- the surface -----------------------------------------------------------------------------------


def test_only_these_calls_change_the_registry_and_none_takes_money(compiled):
    methods = compiled.Registry.contract_type.mutable_methods
    assert {method.name for method in methods} == {
        "register",
        "attest",
        "revoke_attestation",
        "publish_model",
        "publish_dataset",
        "retire_dataset",
        "request_access",
        "grant_access",
        "deny_access",
    }
    assert [method.name for method in methods if method.is_payable] == []


def test_every_event_and_call_of_the_registry_is_documented(compiled):
    contract = compiled.Registry.contract_type
    calls = [*contract.mutable_methods, *contract.view_methods]
    assert [event.name for event in contract.events if f"`{event.name}(" not in PAGE] == []
    assert [call.name for call in calls if f"`{call.name}(" not in PAGE] == []


def test_these_tests_run_the_registry_that_genesis_deploys(compiled):
    artifact = json.loads((CONTRACTS.parent / "chain/artifacts/Registry.json").read_text())
    bytecode = compiled.Registry.contract_type.deployment_bytecode.bytecode
    assert str(bytecode) == artifact["init_code"]

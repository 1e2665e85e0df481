"""The genesis document and block 0."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from eth_abi import decode

from steelyard.chain.artifacts import get_artifact
from steelyard.chain.block import check_header, compute_extension_hash
from steelyard.chain.errors import InvalidGenesis, InvalidKey
from steelyard.chain.execute import CallRequest
from steelyard.chain.genesis import (
    Genesis,
    GenesisContract,
    build_genesis,
    encode_genesis,
    parse_genesis,
)
from steelyard.chain.genesis_document import (
    CONTRACT_ADDRESSES,
    MAX_GENESIS_BYTES,
    MAX_GENESIS_VALIDATORS,
    MAX_SUPPLY,
    schedule_forks,
)
from steelyard.chain.params import FEDAVG_ADDRESS, STAKING_ADDRESS, TASKS_ADDRESS
from steelyard.chain.proofs import get_account, get_code
from steelyard.chain.trie import get_trie_value, keccak
from steelyard.chain.types import Address, Hash

from .evm_kit import (
    ADDRESSES,
    CHAIN_ID,
    ETHER,
    Chain,
    get_genesis_state,
    make_genesis,
    make_validator,
    run_with_stack,
)


def get_document() -> dict[str, object]:
    return json.loads(encode_genesis(make_genesis()))


def refuse(document: object) -> str:
    """Return the code with which a document is refused."""
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(InvalidGenesis) as caught:
        parse_genesis(data)
    return caught.value.code


# -- the document ----------------------------------------------------------------------------------
def test_a_document_survives_and_its_layout_does_not_matter() -> None:
    genesis = make_genesis()
    assert parse_genesis(encode_genesis(genesis)) == genesis
    document = get_document()
    shuffled = json.dumps(dict(reversed(document.items())), indent=4).encode()
    assert parse_genesis(shuffled).hash == genesis.hash
    assert genesis.hash == keccak(encode_genesis(genesis))


def test_every_parameter_moves_the_hash_of_block_zero() -> None:
    block = get_genesis_state().block
    assert block.header.extra_data == make_genesis().hash
    for change in (
        {"blob_retention_seconds": 5},
        {"epoch_blocks": 5},
        {"issuance_gwei": 5},
        {"unbonding_seconds": 5},
        {"min_stake": 5},
        {"name": "other"},
    ):
        other = make_genesis(**change)
        assert run_with_stack(lambda genesis=other: build_genesis(genesis)).block.hash != block.hash


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        bytes(MAX_GENESIS_BYTES + 1),
        b'{"chain_id": 1, "chain_id": 1}',
        b'{"chain_id": 1.5}',
        b'{"chain_id": NaN}',
    ],
)
def test_what_is_no_document_is_refused(data: bytes) -> None:
    assert refuse(data) == "genesis_malformed"


@pytest.mark.parametrize("key", sorted(json.loads(encode_genesis(make_genesis()))))
def test_every_key_is_needed_and_has_a_type(key: str) -> None:
    document = get_document()
    document[key] = None
    assert refuse(document) in {"genesis_malformed", "genesis_validators"}
    del document[key]
    assert refuse(document) == "genesis_malformed"


def test_unknown_keys_are_refused() -> None:
    assert refuse({**get_document(), "gaslimit": 1}) == "genesis_malformed"
    document = get_document()
    document["consensus"]["timeout"] = 1
    assert refuse(document) == "genesis_malformed"


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("chain_id", 0, "genesis_range"),
        ("chain_id", 2**53, "genesis_range"),
        ("chain_id", True, "genesis_malformed"),
        ("chain_id", "7", "genesis_malformed"),
        ("name", "", "genesis_range"),
        ("name", "x" * 65, "genesis_range"),
        ("name", "a\nb", "genesis_malformed"),
        ("timestamp", -1, "genesis_range"),
        ("gas_limit", 999_999, "genesis_range"),
        ("base_fee", 7, "genesis_malformed"),
        ("base_fee", "07", "genesis_range"),
        ("base_fee", "-7", "genesis_malformed"),
        ("base_fee", "٣", "genesis_malformed"),
        ("base_fee", str(2**128), "genesis_range"),
        ("base_fee", "9" * 5_000, "genesis_range"),
        ("base_fee", "1", "genesis_range"),
        ("blob_retention_seconds", 0, "genesis_range"),
        ("epoch_blocks", 0, "genesis_range"),
        ("issuance_gwei", -1, "genesis_range"),
        ("issuance_gwei", 2**53 + 1, "genesis_range"),
        ("issuance_gwei", "7", "genesis_malformed"),
        ("unbonding_seconds", 0, "genesis_range"),
        ("min_stake", 7, "genesis_malformed"),
        ("min_stake", str(10**21 + 1), "genesis_validators"),
        ("consensus", {"timeout_ms": 0, "heartbeat_ms": 1}, "genesis_range"),
        ("forks", {"tomorrow": 5}, "genesis_fork"),
        ("alloc", {"0x" + "00" * 20: {"balance": "1"}}, "genesis_alloc"),
        ("alloc", {"0x" + TASKS_ADDRESS.hex(): {"balance": "1"}}, "genesis_alloc"),
        ("alloc", {"0x" + "11" * 20: {"balance": "0"}}, "genesis_alloc"),
        ("alloc", {"0x" + "11" * 20: {"balance": "1", "code": "0x"}}, "genesis_malformed"),
        ("alloc", {"0x" + "AA" * 20: {"balance": "1"}}, "genesis_malformed"),
        ("alloc", {"11" * 20: {"balance": "1"}}, "genesis_malformed"),
        ("alloc", {"0x" + "11" * 19: {"balance": "1"}}, "genesis_malformed"),
        ("alloc", {"0x" + "11" * 20: {"balance": str(MAX_SUPPLY - 1)}}, "genesis_alloc"),
        ("validators", [], "genesis_validators"),
        ("validators", {}, "genesis_validators"),
        ("validators", [{}], "genesis_malformed"),
        ("validators", [{}] * (MAX_GENESIS_VALIDATORS + 1), "genesis_validators"),
        ("contracts", {}, "genesis_malformed"),
    ],
)
def test_a_value_out_of_range_is_refused(key: str, value: object, code: str) -> None:
    assert refuse({**get_document(), key: value}) == code


# -- rule changes ----------------------------------------------------------------------------------
FORK = "test-only"


@pytest.fixture
def known_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that knows one rule change."""
    monkeypatch.setattr("steelyard.chain.genesis_document.KNOWN_FORKS", frozenset({FORK}))


@pytest.mark.usefixtures("known_fork")
def test_a_rule_change_holds_from_its_height_on() -> None:
    genesis = parse_genesis(json.dumps({**get_document(), "forks": {FORK: 5}}).encode())
    assert [genesis.rules.is_active(FORK, height) for height in (4, 5, 6)] == [False, True, True]
    assert not genesis.rules.is_active("other", 6)
    assert genesis.hash != make_genesis().hash
    moved = parse_genesis(json.dumps({**get_document(), "forks": {FORK: 6}}).encode())
    assert moved.hash != genesis.hash


@pytest.mark.usefixtures("known_fork")
def test_a_rule_change_can_be_scheduled_after_genesis() -> None:
    rules = schedule_forks(make_genesis().rules, {FORK: 7})
    assert [rules.is_active(FORK, height) for height in (6, 7)] == [False, True]
    assert rules == replace(make_genesis().rules, forks=((FORK, 7),))
    assert schedule_forks(rules, {FORK: 7}) == rules
    assert schedule_forks(rules, {}) == rules


@pytest.mark.usefixtures("known_fork")
def test_a_schedule_never_contradicts_genesis() -> None:
    rules = schedule_forks(make_genesis().rules, {FORK: 7})
    with pytest.raises(InvalidGenesis) as caught:
        schedule_forks(rules, {FORK: 8})
    assert caught.value.code == "genesis_fork"
    for height in (0, -1, 2**63 + 1):
        with pytest.raises(InvalidGenesis) as caught:
            schedule_forks(make_genesis().rules, {FORK: height})
        assert caught.value.code == "genesis_range"


@pytest.mark.usefixtures("known_fork")
def test_a_release_that_does_not_know_a_rule_change_asks_for_an_upgrade() -> None:
    with pytest.raises(InvalidGenesis, match="upgrade") as caught:
        schedule_forks(make_genesis().rules, {FORK: 7, "tomorrow": 9})
    assert caught.value.code == "genesis_fork"
    document = {**get_document(), "forks": {FORK: 5, "tomorrow": 9}}
    assert refuse(document) == "genesis_fork"


def test_too_many_accounts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    document = get_document()
    monkeypatch.setattr("steelyard.chain.genesis_document.MAX_ALLOC", 3)
    assert refuse(document) == "genesis_alloc"


def test_a_contract_belongs_at_its_address() -> None:
    document = get_document()
    document["contracts"]["Tasks"]["address"] = "0x" + "11" * 20
    assert refuse(document) == "genesis_contract"


def test_reading_a_document_needs_no_engine() -> None:
    script = (
        "import sys; from steelyard.chain.genesis import parse_genesis; "
        "parse_genesis(sys.stdin.buffer.read()); "
        "sys.exit(any(name in sys.modules for name in ('eth', 'trie', 'py_ecc', 'pyblst')))"
    )
    document = encode_genesis(make_genesis())
    done = subprocess.run([sys.executable, "-c", script], input=document, check=False)
    assert done.returncode == 0


# -- block 0 ---------------------------------------------------------------------------------------
def build(genesis: Genesis) -> None:
    run_with_stack(lambda: build_genesis(genesis))


def test_block_zero_is_the_same_every_time() -> None:
    state = run_with_stack(lambda: build_genesis(parse_genesis(encode_genesis(make_genesis()))))
    assert state.block == get_genesis_state().block
    assert state.nodes == get_genesis_state().nodes


def test_block_zero_has_the_accounts_and_contracts() -> None:
    state = get_genesis_state()
    nodes, root = state.nodes, state.block.header.state_root
    assert get_account(nodes, root, ADDRESSES[0]).balance == 1_000 * ETHER
    assert get_account(nodes, root, Address(FEDAVG_ADDRESS)).nonce == 1
    assert get_code(nodes, root, Address(FEDAVG_ADDRESS)).hex() == "60006000fd"
    for name, address in CONTRACT_ADDRESSES.items():
        assert len(get_code(nodes, root, Address(address))) >= len(get_artifact(name).runtime_code)
    for system in (
        "000f3df6d732807ef1319fb7b8bb8522d0beac02",
        "0000f90827f1c53a10cb7a02335b175320002935",
    ):
        assert get_code(nodes, root, Address(bytes.fromhex(system)))
    assert get_trie_value(nodes, root, keccak(bytes(20))) is None


def test_the_staking_contract_has_room_for_as_many_validators_as_a_document() -> None:
    source = (Path(__file__).parents[2] / "contracts" / "places.vy").read_text(encoding="utf-8")
    assert f"MAX_VALIDATORS: constant(uint256) = {MAX_GENESIS_VALIDATORS}\n" in source


def test_the_staking_contract_holds_the_validators_and_their_stakes() -> None:
    chain = Chain()
    data = keccak(b"get_validators()")[:4]
    output = chain.call(CallRequest(to=Address(STAKING_ADDRESS), data=data)).output
    ((row,),) = decode(["(address,bytes,bytes32,string,address,uint256)[]"], output)
    validator = make_validator()
    assert row == (
        "0x" + validator.address.hex(),
        validator.bls_key,
        validator.network_key,
        validator.endpoint,
        "0x" + validator.fee_recipient.hex(),
        validator.stake,
    )
    account = get_account(chain.nodes, chain.head.state_root, Address(STAKING_ADDRESS))
    assert account.balance == validator.stake


def test_block_zero_names_the_first_validators_and_can_be_followed() -> None:
    state = get_genesis_state()
    block = state.block
    assert block.extension.next_validator_set_hash == state.epoch_set.hash
    assert block.header.parent_beacon_block_root == compute_extension_hash(block.extension)
    assert state.validators[0].power == make_validator().stake
    chain = Chain()
    chain.add()
    check_header(chain.headers[0], chain.head, make_genesis().rules)
    assert make_genesis().rules.chain_id == CHAIN_ID


def test_votes_are_signed_for_the_document_which_block_zero_names() -> None:
    genesis, block = make_genesis(), get_genesis_state().block
    assert genesis.rules.domain == genesis.domain == genesis.hash == block.header.extra_data
    assert genesis.domain != block.hash
    assert parse_genesis(encode_genesis(genesis)).domain == genesis.domain
    assert replace(genesis, timestamp=genesis.timestamp + 1).domain != genesis.domain


def test_a_key_without_a_proof_of_possession_is_refused() -> None:
    other = replace(make_validator(), proof_of_possession=make_validator(1).proof_of_possession)
    with pytest.raises(InvalidKey) as caught:
        build(make_genesis(validators=(other,)))
    assert caught.value.code == "bls_possession"


def test_a_validator_there_twice_is_refused() -> None:
    with pytest.raises(InvalidGenesis):
        build(make_genesis(validators=(make_validator(), make_validator())))


def test_a_document_for_other_contracts_is_refused() -> None:
    contracts = make_genesis().contracts
    wrong = GenesisContract("Tasks", Address(TASKS_ADDRESS), Hash(bytes(32)))
    with pytest.raises(InvalidGenesis) as caught:
        build(make_genesis(contracts=(contracts[0], wrong)))
    assert caught.value.code == "genesis_contract"


def test_contracts_that_refuse_to_be_deployed_stop_it() -> None:
    nobody = replace(make_validator(), fee_recipient=Address(bytes(20)))
    with pytest.raises(InvalidGenesis) as caught:
        build(make_genesis(validators=(nobody,)))
    assert caught.value.code == "genesis_contract"


def test_a_system_contract_gets_no_allocation() -> None:
    system = Address(bytes.fromhex("000f3df6d732807ef1319fb7b8bb8522d0beac02"))
    with pytest.raises(InvalidGenesis) as caught:
        build(make_genesis(alloc=((system, 1),)))
    assert caught.value.code == "genesis_alloc"

"""The state transition: building and importing agree, refusals touch nothing, blobs, calls."""

from dataclasses import replace

import pytest

from steelyard.chain import execute, params, precompile
from steelyard.chain.admission import Admission, compute_admission_slot, decode_admission
from steelyard.chain.block import Block, compute_transactions_root
from steelyard.chain.errors import (
    InvalidAggregation,
    InvalidBlock,
    InvalidTransaction,
    UnavailableBlob,
)
from steelyard.chain.evm import FedavgHost
from steelyard.chain.execute import Built, CallRequest, apply_block, build_block
from steelyard.chain.params import (
    BLOB_GAS_EACH,
    FEDAVG_ADDRESS,
    MAX_BLOB_BYTES,
    MAX_BLOB_BYTES_PER_BLOCK,
)
from steelyard.chain.proofs import Account, get_account, get_storage
from steelyard.chain.trie import MissingState
from steelyard.chain.types import Address, BlobName, Digest, Hash

from .evm_kit import (
    ADDRESSES,
    ETHER,
    FEES,
    GWEI,
    KEYS,
    RETURN_ALL,
    RETURN_WORD,
    REVERT,
    Blobs,
    Chain,
    Draft,
    call_code,
    declare,
    name_blob,
    push,
    put_account,
    run_with_stack,
    sign,
)

BLOB = b"an update"
NAME = name_blob(BLOB)
STRANGER = Address(b"\x77" * 20)
READ, MAKE, INFO = 1, 2, 3


@pytest.fixture
def fake_precompile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A precompile of three calls: READ name, MAKE blob, INFO name; the first byte picks one."""

    def run(host: FedavgHost, data: bytes) -> bytes:
        host.consume_gas(1_000, "fake")
        name = BlobName(Digest(data[1:33]), int.from_bytes(data[33:65], "big"))
        if data[0] == MAKE:
            host.write_blob(name_blob(data[1:]), data[1:])
            return name_blob(data[1:]).digest
        admission = host.get_admission(name)
        if admission is None:
            raise InvalidAggregation("blob_unknown", "not admitted")
        if data[0] == INFO:
            return admission.height.to_bytes(32, "big") + admission.expires_at.to_bytes(32, "big")
        return bytes(host.read_blob(name))

    monkeypatch.setattr(precompile, "call", run)


def encode_name(kind: int, name: BlobName) -> bytes:
    return bytes([kind]) + name.digest + name.size.to_bytes(32, "big")


def get_admission(chain: Chain, name: BlobName) -> Admission | None:
    root = chain.head.state_root
    slot = compute_admission_slot(name)
    return decode_admission(get_storage(chain.nodes, root, Address(FEDAVG_ADDRESS), slot))


# -- blocks ----------------------------------------------------------------------------------------
def test_a_transfer_moves_money_pays_the_tip_and_burns_the_base_fee() -> None:
    chain = Chain()
    outcome = chain.add(sign(Draft(to=STRANGER, value=5 * ETHER, gas=21_000)))
    receipt = outcome.receipts[0]
    base_fee = chain.head.base_fee
    assert (receipt.status, receipt.gas_used, receipt.logs) == (1, 21_000, ())
    assert receipt.effective_gas_price == base_fee + GWEI
    balance = {
        address: get_account(chain.nodes, chain.head.state_root, address).balance
        for address in (ADDRESSES[0], STRANGER, FEES)
    }
    assert balance[STRANGER] == 5 * ETHER
    assert balance[FEES] == 21_000 * GWEI
    assert balance[ADDRESSES[0]] == 995 * ETHER - 21_000 * (GWEI + base_fee)


def test_building_and_importing_agree_and_blocks_may_share_a_second() -> None:
    chain = Chain()
    contract = chain.deploy(push(1) + b"\x5f\x54\x01\x5f\x55" + push(7) + b"\x5f\x5f\xa1\x00")
    for number in range(3):
        raw = [sign(Draft(nonce=number, to=contract), key) for key in KEYS[:3]]
        outcome = chain.add(*raw, proposal=chain.propose(timestamp=chain.head.timestamp))
        assert [receipt.status for receipt in outcome.receipts] == [1, 1, 1]
        assert outcome.bloom != bytes(256)
    assert get_storage(chain.nodes, chain.head.state_root, contract, 0) == 9
    assert len({header.timestamp for header in chain.headers[1:]}) == 1


def test_two_children_of_one_parent_can_both_be_extended() -> None:
    chain = Chain()
    raw = sign(Draft())
    first = chain.build(raw)
    other = chain.build(raw, proposal=chain.propose(view=2))
    assert first.block.hash != other.block.hash
    fork = Chain()
    chain.import_block(first)
    fork.import_block(other)
    assert chain.add(sign(Draft(nonce=1))).state_root
    assert fork.add(sign(Draft(nonce=1))).state_root
    nodes = {**chain.nodes, **fork.nodes}
    for head in (chain.head, fork.head):
        assert get_account(nodes, head.state_root, ADDRESSES[0]).nonce == 2


def test_executing_changes_neither_the_parent_state_nor_the_node_source() -> None:
    chain = Chain()
    before = dict(chain.nodes)
    chain.build(sign(Draft()))
    assert chain.nodes == before


def test_the_parents_hash_and_beacon_root_are_written_at_the_start() -> None:
    chain = Chain()
    chain.add()
    hashes = chain.call(
        CallRequest(
            to=Address(bytes.fromhex("0000f90827f1c53a10cb7a02335b175320002935")), data=bytes(32)
        )
    )
    roots = chain.call(
        CallRequest(
            to=Address(bytes.fromhex("000f3df6d732807ef1319fb7b8bb8522d0beac02")),
            data=chain.head.timestamp.to_bytes(32, "big"),
        )
    )
    assert roots.output == chain.head.parent_beacon_block_root
    assert hashes.output == chain.headers[0].hash


def test_blockhash_reaches_the_ancestors() -> None:
    chain = Chain()
    contract = chain.deploy(b"\x5f\x35\x40" + RETURN_WORD)
    for _ in range(3):
        chain.add()
    for height in (0, 1, chain.head.height - 1):
        data = height.to_bytes(32, "big")
        result = chain.call(CallRequest(to=contract, data=data))
        assert result.output == chain.headers[height].hash


def test_the_builder_stops_when_told_to() -> None:
    chain = Chain()
    answers = iter([False, True])
    built = run_with_stack(
        lambda: build_block(
            chain.nodes,
            chain.blobs,
            chain.genesis.rules,
            chain.head,
            chain.propose(),
            [sign(Draft()), sign(Draft(nonce=1))],
            chain.current,
            lambda: next(answers),
        )
    )
    assert len(built.block.transactions) == 1


# -- refusals --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"\x03" + bytes(10), "tx_type"),
        (b"\x04" + bytes(10), "tx_type"),
        (sign(Draft())[:-1], "tx_malformed"),
        (sign(Draft(), high_s=True), "tx_signature"),
        (sign(Draft(chain_id=8)), "tx_chain_id"),
        (sign(Draft(nonce=1)), "tx_nonce_high"),
        (sign(Draft(max_fee=10, tip=1)), "tx_fee_low"),
        (sign(Draft(tip=11 * GWEI)), "tx_tip"),
        (sign(Draft(gas=20_999)), "tx_gas"),
        (sign(Draft(data=b"\1" * 1_000, gas=37_500)), "tx_gas"),
        (sign(Draft(gas=30_000_001)), "tx_gas_limit"),
        (sign(Draft(value=1_000 * ETHER)), "tx_balance"),
        (sign(Draft(value=1_000 * ETHER - 200_000 * GWEI * 9)), "tx_balance"),
        (sign(Draft(), KEYS[11]), "tx_balance"),
        (sign(Draft(to=b"", data=bytes(49_153), gas=9_000_000)), "tx_initcode"),
        (sign(Draft(to=params.BLOB_DECLARATION_ADDRESS)), "blob_declaration"),
    ],
)
def test_a_refused_transaction_is_never_charged(raw: bytes, code: str) -> None:
    chain = Chain()
    empty = chain.build()
    built = chain.build(raw)
    assert [refused.error.code for refused in built.outcome.refused] == [code]
    assert built.outcome.refused[0].raw == raw
    assert built.block.hash == empty.block.hash
    with pytest.raises(InvalidBlock) as caught:
        chain.import_block(smuggle(built, raw))
    assert caught.value.code == "block_transaction"
    assert code in caught.value.message


def smuggle(built: Built, raw: bytes) -> Built:
    """Return the block with one more transaction, and a root that says so."""
    raws = (*built.block.transactions, raw)
    header = replace(built.block.header, transactions_root=compute_transactions_root(raws))
    block = Block(header, built.block.extension, raws, built.block.withdrawals)
    return Built(block, built.outcome)


def test_a_refused_transaction_does_not_disturb_its_neighbours() -> None:
    chain = Chain()
    good = [sign(Draft(nonce=0)), sign(Draft(nonce=1))]
    bad = sign(Draft(nonce=0, value=1))
    built = chain.build(good[0], bad, good[1])
    assert built.block.transactions == tuple(good)
    assert [item.error.code for item in built.outcome.refused] == ["tx_nonce_low"]
    chain.import_block(built)


def test_a_sender_with_code_is_refused() -> None:
    address = ADDRESSES[0]
    chain = Chain()
    account = get_account(chain.nodes, chain.head.state_root, address)
    assert account.code_hash == Account().code_hash
    put_account(chain, address, balance=ETHER, code=b"\0")
    built = chain.build(sign(Draft()))
    assert [item.error.code for item in built.outcome.refused] == ["tx_sender_code"]


def test_a_full_block_refuses_for_now_and_an_overfull_one_is_invalid() -> None:
    chain = Chain()
    wide = [sign(Draft(gas=16_000_000), key) for key in KEYS[:2]]
    burner = chain.deploy(b"\xfe")
    burn = [sign(Draft(to=burner, gas=16_000_000), key) for key in KEYS[:2]]
    assert not chain.build(*wide).outcome.refused
    built = chain.build(*burn)
    assert [item.error.code for item in built.outcome.refused] == ["tx_block_full"]
    with pytest.raises(InvalidBlock) as caught:
        chain.import_block(smuggle(built, burn[1]))
    assert "tx_block_full" in caught.value.message


def test_a_block_has_room_for_so_many_blob_bytes() -> None:
    chain = Chain()
    assert MAX_BLOB_BYTES_PER_BLOCK < 2 * MAX_BLOB_BYTES
    raw = [
        sign(Draft(access_list=declare(BlobName(NAME.digest, MAX_BLOB_BYTES)), gas=5_000_000), key)
        for key in KEYS[:2]
    ]
    built = chain.build(*raw)
    assert [item.error.code for item in built.outcome.refused] == ["tx_block_full"]
    with pytest.raises(InvalidBlock):
        chain.import_block(smuggle(built, raw[1]))


@pytest.mark.parametrize(
    ("limit", "value"), [("MAX_BLOCK_TRANSACTIONS", 1), ("MAX_TRANSACTIONS_BYTES", 150)]
)
def test_a_block_has_room_for_so_many_transactions(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(execute, limit, value)
    built = Chain().build(sign(Draft()), sign(Draft(nonce=1)))
    assert [item.error.code for item in built.outcome.refused] == ["tx_block_full"]


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("state_root", Hash(b"\1" * 32), "block_state_root"),
        ("receipts_root", Hash(b"\1" * 32), "block_receipts_root"),
        ("bloom", b"\1" * 256, "block_bloom"),
        ("gas_used", 21_001, "block_gas_used"),
        ("transactions_root", Hash(b"\1" * 32), "block_transactions_root"),
        ("parent_hash", Hash(b"\1" * 32), "block_parent"),
    ],
)
def test_a_header_that_lies_about_what_the_block_does_is_refused(
    field: str, value: object, code: str
) -> None:
    chain = Chain()
    built = chain.build(sign(Draft()))
    block = replace(built.block, header=replace(built.block.header, **{field: value}))
    with pytest.raises(InvalidBlock) as caught:
        chain.import_block(Built(block, built.outcome))
    assert caught.value.code == code
    chain.import_block(built)


# -- blobs -----------------------------------------------------------------------------------------
def test_declaring_a_blob_admits_it_even_if_the_call_reverts() -> None:
    chain = Chain()
    reverter = chain.deploy(REVERT)
    outcome = chain.add(sign(Draft(to=reverter, access_list=declare(NAME))))
    assert outcome.receipts[0].status == 0
    assert outcome.declared == (NAME,)
    expected = chain.head.timestamp + chain.genesis.blob_retention_seconds
    assert outcome.blobs_expire_at == expected
    assert get_admission(chain, NAME) == Admission(chain.head.height, expected)
    assert outcome.blobs == {}


def test_declaring_again_extends_and_a_refused_declaration_admits_nothing() -> None:
    chain = Chain()
    chain.add(sign(Draft(access_list=declare(NAME))))
    chain.add(sign(Draft(nonce=1, access_list=declare(NAME))))
    admission = get_admission(chain, NAME)
    assert admission is not None
    assert admission.height == 2
    other = name_blob(b"other")
    built = chain.build(sign(Draft(nonce=9, access_list=declare(other))))
    assert built.outcome.declared == ()
    chain.import_block(built)
    assert get_admission(chain, other) is None


def test_blob_gas_is_charged_whatever_is_refunded() -> None:
    chain = Chain()
    plain = chain.add(sign(Draft(data=b"\1" * 100))).receipts[0].gas_used
    draft = Draft(nonce=1, data=b"\1" * 100, access_list=declare(NAME))
    with_blob = chain.add(sign(draft)).receipts[0].gas_used
    floor = 21_000 + 10 * 4 * 100
    assert plain == floor
    assert with_blob == max(floor + BLOB_GAS_EACH + 1, 21_000 + 1_600 + 6_200 + BLOB_GAS_EACH + 1)


@pytest.mark.usefixtures("fake_precompile")
def test_an_admitted_blob_can_be_read_in_the_same_transaction() -> None:
    chain = Chain(blobs=Blobs(BLOB))
    reader = chain.deploy(call_code(FEDAVG_ADDRESS, encode_name(READ, NAME)) + RETURN_WORD)
    outcome = chain.add(sign(Draft(to=reader, access_list=declare(NAME))))
    assert outcome.receipts[0].status == 1
    assert chain.blobs.reads


@pytest.mark.usefixtures("fake_precompile")
def test_a_missing_blob_escapes_and_leaves_nothing_behind() -> None:
    chain = Chain()
    reader = chain.deploy(call_code(FEDAVG_ADDRESS, encode_name(READ, NAME)) + b"\x00")
    chain.blobs.held[NAME] = BLOB
    built = chain.build(sign(Draft(to=reader, access_list=declare(NAME))))
    del chain.blobs.held[NAME]
    before = dict(chain.nodes)
    with pytest.raises(UnavailableBlob):
        chain.import_block(built)
    assert (chain.nodes, len(chain.headers)) == (before, 2)
    chain.blobs.held[NAME] = BLOB
    assert chain.import_block(built) == built.outcome


@pytest.mark.usefixtures("fake_precompile")
def test_a_blob_that_was_cut_off_on_this_disk_is_missing_and_no_result() -> None:
    chain = Chain(blobs=Blobs(BLOB))
    chain.blobs.held[NAME] = BLOB[:-1]
    reader = chain.deploy(call_code(FEDAVG_ADDRESS, encode_name(READ, NAME)) + b"\x00")
    with pytest.raises(UnavailableBlob):
        chain.build(sign(Draft(to=reader, access_list=declare(NAME))))


@pytest.mark.usefixtures("fake_precompile")
def test_a_made_blob_is_recorded_and_can_be_read_later_in_the_block() -> None:
    chain = Chain()
    made = b"a model made here"
    chain.add()
    raw = [
        sign(Draft(nonce=0, to=FEDAVG_ADDRESS, data=bytes([MAKE]) + made)),
        sign(Draft(nonce=1, to=FEDAVG_ADDRESS, data=encode_name(READ, name_blob(made)))),
    ]
    outcome = chain.add(*raw)
    assert [receipt.status for receipt in outcome.receipts] == [1, 1]
    assert outcome.blobs == {name_blob(made): made}
    assert outcome.declared == ()
    admission = get_admission(chain, name_blob(made))
    assert admission == Admission(chain.head.height, outcome.blobs_expire_at)


@pytest.mark.usefixtures("fake_precompile")
def test_a_revert_undoes_the_record_of_a_made_blob_and_the_blob() -> None:
    chain = Chain()
    make = call_code(FEDAVG_ADDRESS, bytes([MAKE]) + b"x" * 31) + b"\x50"
    contract = chain.deploy(make + REVERT)
    outcome = chain.add(sign(Draft(to=contract)))
    assert outcome.receipts[0].status == 0
    assert outcome.blobs == {}
    assert get_admission(chain, name_blob(b"x" * 31)) is None


@pytest.mark.usefixtures("fake_precompile")
def test_an_inner_revert_undoes_only_the_inner_blob() -> None:
    chain = Chain()
    inner = chain.deploy(call_code(FEDAVG_ADDRESS, bytes([MAKE]) + b"y" * 31) + b"\x50" + REVERT)
    outer = chain.deploy(
        call_code(inner) + call_code(FEDAVG_ADDRESS, bytes([MAKE]) + b"z" * 31) + b"\x00"
    )
    outcome = chain.add(sign(Draft(to=outer, gas=400_000)))
    assert list(outcome.blobs) == [name_blob(b"z" * 31)]


@pytest.mark.usefixtures("fake_precompile")
def test_a_refusal_of_the_precompile_is_a_revert_with_its_code() -> None:
    chain = Chain()
    data = encode_name(INFO, NAME)
    result = chain.call(CallRequest(to=Address(FEDAVG_ADDRESS), data=data))
    assert result.is_revert
    assert result.revert_data[:4].hex() == "08c379a0"
    assert b"fedavg: blob_unknown" in result.revert_data
    assert result.gas_used < 30_000


@pytest.mark.usefixtures("fake_precompile")
@pytest.mark.parametrize(("opcode", "status"), [(0xF1, 1), (0xFA, 1), (0xF2, 0), (0xF4, 0)])
def test_the_precompile_refuses_delegation(opcode: int, status: int) -> None:
    chain = Chain(blobs=Blobs(BLOB))
    data = encode_name(READ, NAME)
    contract = chain.deploy(call_code(FEDAVG_ADDRESS, data, opcode=opcode) + RETURN_ALL)
    request = CallRequest(to=contract, access_list=declare(NAME))
    output = chain.call(request).output
    assert output == BLOB if status else b"fedavg: call_delegated" in output


@pytest.mark.usefixtures("fake_precompile")
def test_the_precompile_takes_no_money() -> None:
    chain = Chain()
    request = CallRequest(ADDRESSES[0], Address(FEDAVG_ADDRESS), 1, encode_name(INFO, NAME))
    assert b"fedavg: call_value" in chain.call(request).revert_data


def test_the_input_of_the_precompile_is_bounded() -> None:
    request = CallRequest(to=Address(FEDAVG_ADDRESS), data=bytes(2**18 + 1))
    assert b"fedavg: call_size" in Chain().call(request).revert_data


def test_the_precompiles_account_has_code_and_survives_being_touched() -> None:
    chain = Chain()
    sizer = chain.deploy(push(FEDAVG_ADDRESS) + b"\x3b" + RETURN_WORD)
    assert int.from_bytes(chain.call(CallRequest(to=sizer)).output, "big") == 5
    chain.add(sign(Draft(to=FEDAVG_ADDRESS, data=b"\0")))
    assert get_account(chain.nodes, chain.head.state_root, Address(FEDAVG_ADDRESS)).nonce == 1


# -- calls -----------------------------------------------------------------------------------------
def test_a_call_returns_output_and_gas_and_changes_nothing() -> None:
    chain = Chain()
    contract = chain.deploy(
        push(7) + b"\x5f\x55" + push(9) + b"\x5f\x5f\xa1" + push(5) + RETURN_WORD
    )
    root = chain.head.state_root
    result = chain.call(CallRequest(sender=ADDRESSES[0], to=contract))
    assert int.from_bytes(result.output, "big") == 5
    assert (result.is_error, result.revert_data) == (False, b"")
    assert [log.address for log in result.logs] == [contract]
    assert 43_000 < result.gas_used < 45_000
    assert get_storage(chain.nodes, root, contract, 0) == 0
    spent = chain.add(sign(Draft(to=contract))).receipts[0].gas_used
    assert spent == result.gas_used


def test_a_call_can_create_and_can_run_out_of_gas() -> None:
    chain = Chain()
    created = chain.call(CallRequest(sender=ADDRESSES[0], data=b"\x5f\x5f\xf3"))
    assert created.contract_address is not None
    failed = chain.call(CallRequest(to=chain.deploy(b"\x5b\x5f\x56"), gas=100_000))
    assert failed.is_error
    assert not failed.is_revert
    assert failed.revert_data == b""
    assert failed.gas_used == 100_000


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (CallRequest(to=STRANGER, gas=20_999), "tx_gas"),
        (CallRequest(sender=STRANGER, to=ADDRESSES[0], value=1), "tx_balance"),
        (CallRequest(data=bytes(49_153)), "tx_initcode"),
        (
            CallRequest(
                to=STRANGER, access_list=((Address(params.BLOB_DECLARATION_ADDRESS), (1,)),)
            ),
            "blob_declaration",
        ),
    ],
)
def test_a_call_that_could_not_be_sent_is_refused(request_: CallRequest, code: str) -> None:
    with pytest.raises(InvalidTransaction) as caught:
        Chain().call(request_)
    assert caught.value.code == code


def test_a_call_is_capped() -> None:
    chain = Chain()
    contract = chain.deploy(b"\x5a" + RETURN_WORD)
    result = chain.call(CallRequest(to=contract, gas=10**12), gas_cap=100_000)
    assert int.from_bytes(result.output, "big") < 79_000


@pytest.mark.usefixtures("fake_precompile")
def test_a_call_that_needs_a_missing_blob_says_so() -> None:
    data = encode_name(READ, NAME)
    with pytest.raises(UnavailableBlob):
        Chain().call(CallRequest(to=Address(FEDAVG_ADDRESS), data=data, access_list=declare(NAME)))


def test_a_state_that_is_not_here_is_missing_state() -> None:
    chain = Chain()
    built = chain.build(sign(Draft()))
    with pytest.raises(MissingState):
        run_with_stack(
            lambda: apply_block(
                {},
                chain.blobs,
                chain.genesis.rules,
                chain.head,
                built.block,
                chain.ancestors,
                chain.current,
            )
        )

"""One test for each input that made stock py-evm crawl, crash or lie (facts/evm.md)."""

import os
import subprocess
import sys
import tracemalloc
import warnings
from random import Random
from typing import ClassVar

import pytest
from eth.db.storage import AccountStorageDB
from eth.vm.code_stream import CodeStream
from eth.vm.forks.prague.computation import PragueComputation
from eth.vm.message import Message
from hypothesis import given
from hypothesis import strategies as st

from steelyard.chain import evm_guards, precompile
from steelyard.chain.errors import InvalidModel
from steelyard.chain.evm import EngineComputation
from steelyard.chain.evm_guards import LinearCodeStream, find_opcodes
from steelyard.chain.execute import CallRequest, CallResult
from steelyard.chain.params import FEDAVG_ADDRESS, MAX_INITCODE_BYTES
from steelyard.chain.proofs import get_account, get_storage
from steelyard.chain.trie import MissingState, get_trie_value, keccak
from steelyard.chain.types import Address

from .evm_kit import (
    ADDRESSES,
    ETHER,
    FEES,
    GWEI,
    KEYS,
    RETURN_ALL,
    RETURN_WORD,
    REVERT,
    Chain,
    Draft,
    call_code,
    deploy,
    push,
    put_account,
    sign,
)

STOP = b"\x00"
GAS_LEFT = b"\x5a"
SELF_CALL = b"\x5f\x5f\x5f\x5f\x5f\x30\x5a\xf1\x00"
"""Calls itself with all gas."""


def get_address(number: int) -> Address:
    return Address(number.to_bytes(20, "big"))


def call_precompile(number: int, data: bytes, gas: int = 1_000_000) -> CallResult:
    return Chain().call(CallRequest(to=get_address(number), data=data, gas=gas))


def get_precompile_gas(number: int, data: bytes) -> int:
    """Return what a precompile charges, by comparison with IDENTITY, whose price is known."""
    chain = Chain()
    spent = []
    for target in (number, 4):
        code = GAS_LEFT + call_code(get_address(target), data) + b"\x50" + GAS_LEFT + b"\x90\x03"
        result = chain.call(CallRequest(to=chain.deploy(code + RETURN_WORD)))
        spent.append(int.from_bytes(result.output, "big"))
    return spent[0] - spent[1] + 15 + 3 * -(-len(data) // 32)


# -- jump targets ----------------------------------------------------------------------------------
@given(st.binary(max_size=400))
def test_linear_jump_targets_are_those_of_the_stock_scan(code: bytes) -> None:
    stock, linear = CodeStream(code), LinearCodeStream(code, {})
    for position in range(len(code) + 2):
        assert linear.is_valid_opcode(position) == stock.is_valid_opcode(position)


def test_a_jump_behind_thirteen_thousand_pushes_works_at_any_recursion_limit() -> None:
    pushes = b"\x60\x60" * 13_002
    target = 4 + len(pushes)
    code = push(target.to_bytes(2, "big")) + b"\x56" + pushes + b"\x5b" + push(7) + RETURN_WORD
    results = []
    for limit in (1_000, 50_000):
        before = sys.getrecursionlimit()
        sys.setrecursionlimit(limit)
        try:
            results.append(Chain().call(CallRequest(sender=ADDRESSES[0], data=code)))
        finally:
            sys.setrecursionlimit(before)
    assert results[0] == results[1]
    assert results[0].error is None


@pytest.mark.slow
def test_each_code_is_scanned_once_however_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scans: list[bytes] = []

    def scan(code: bytes) -> bytes:
        scans.append(code)
        return find_opcodes(code)

    monkeypatch.setattr(evm_guards, "find_opcodes", scan)
    chain, first, codes, calls = Chain(), 2**20, 300, 900
    for number in range(codes):
        code = push(6) + b"\x56" + push(number.to_bytes(2, "big")) + b"\x5b\x00"
        put_account(chain, get_address(first + number), nonce=1, code=code)
    target = push(codes) + b"\x86\x06" + push(first) + b"\x01"
    body = b"\x5b" + push(1) + b"\x90\x03" + b"\x5f" * 5 + target + b"\x5a\xf1\x50\x80"
    start = push(calls.to_bytes(2, "big"))
    loop = start + body + push(len(start)) + b"\x57\x00"
    result = chain.call(CallRequest(to=chain.deploy(loop)))
    assert result.error is None
    assert len(scans) == len(set(scans)) == codes + 1


# -- depth -----------------------------------------------------------------------------------------
@pytest.mark.slow
def test_calls_nest_1024_deep_within_the_documented_stack() -> None:
    chain = Chain()
    counter = chain.deploy(push(1) + b"\x5f\x54\x01\x5f\x55" + SELF_CALL)
    result = chain.call(CallRequest(to=counter, gas=2**40), gas_cap=2**40)
    assert result.error is None
    deploying = b"\x38\x5f\x5f\x39\x5f\x38\x5f\x5f\xf5\x00"
    result = chain.call(CallRequest(sender=ADDRESSES[0], data=deploying, gas=2**40), gas_cap=2**40)
    assert result.error is None


@pytest.mark.slow
def test_the_recursion_limit_of_the_importer_decides_nothing() -> None:
    results = []
    for limit in (400, 100_000):
        chain = Chain()
        contract = chain.deploy(SELF_CALL)
        before = sys.getrecursionlimit()
        sys.setrecursionlimit(limit)
        try:
            results.append(chain.add(sign(Draft(to=contract, gas=20_000_000))).state_root)
        finally:
            sys.setrecursionlimit(before)
    assert results[0] == results[1]


# -- cost --------------------------------------------------------------------------------------
def test_a_call_does_not_visit_the_accounts_that_the_block_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chain = Chain()
    writers = [chain.deploy(push(1) + push(number) + b"\x55\x00") for number in range(20)]
    caller = chain.deploy(b"".join(call_code(get_address(4)) + b"\x50" for _ in range(100)) + STOP)
    visits = []
    record = AccountStorageDB.record
    monkeypatch.setattr(
        AccountStorageDB,
        "record",
        lambda store, checkpoint: (visits.append(1), record(store, checkpoint))[1],
    )
    raw = [sign(Draft(nonce=number, to=item)) for number, item in enumerate(writers)]
    chain.build(*raw)
    before = len(visits)
    visits.clear()
    chain.build(*raw, sign(Draft(nonce=20, to=caller, gas=2_000_000)))
    assert len(visits) == before


def test_a_finished_frame_gives_its_memory_back() -> None:
    parent = make_frame()
    for _ in range(3):
        child = make_frame()
        child.extend_memory(0, 1_000)
        child.output = bytes(1_000)
        parent.add_child_computation(child)
    assert [len(child._memory) for child in parent.children] == [0, 0, 0]
    assert [len(child._output) for child in parent.children] == [0, 0, 1_000]
    assert len(parent.return_data) == 1_000


def make_frame() -> EngineComputation:
    class NoState:
        coinbase = FEES
        scanned_codes: ClassVar[dict[bytes, bytes]] = {}

        def mark_address_warm(self, address: bytes) -> None:
            """Nothing."""

    message = Message(10**6, ADDRESSES[0], ADDRESSES[1], 0, b"", b"")
    return EngineComputation(NoState(), message, None)


def test_a_call_with_a_large_input_copies_none_of_it_and_keeps_none_of_it() -> None:
    chain = Chain()
    size, calls = 2**20, 300
    head = push(calls) + b"\x5b\x5f\x5f" + push(size) + b"\x5f\x5f"
    loop = head + push(ADDRESSES[5]) + b"\x5a\xf1\x50" + push(1) + b"\x90\x03\x80"
    contract = chain.deploy(loop + push(len(push(calls))) + b"\x57\x00")
    tracemalloc.start()
    try:
        result = chain.call(CallRequest(to=contract))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.error is None
    assert peak < 8 * size


def test_a_refused_call_of_the_precompile_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size, calls = 2**20, 100

    def refuse(_host: object, _data: bytes) -> bytes:
        held = bytes(size)
        raise InvalidModel("model_header", f"not of {len(held)} bytes")

    monkeypatch.setattr(precompile, "call", refuse)
    chain = Chain()
    loop = push(calls) + b"\x5b" + call_code(FEDAVG_ADDRESS) + b"\x50" + push(1) + b"\x90\x03\x80"
    contract = chain.deploy(loop + push(len(push(calls))) + b"\x57" + RETURN_ALL)
    tracemalloc.start()
    try:
        result = chain.call(CallRequest(to=contract))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert b"fedavg: model_header" in result.output
    assert peak < 8 * size


def test_shared_input_is_what_the_caller_had_in_memory() -> None:
    chain = Chain()
    echo = chain.deploy(b"\x36\x5f\x5f\x37" + b"\x60\x20\x35\x5f\x52" + b"\x36\x5f\xf3")
    data = bytes(range(100))
    caller = chain.deploy(call_code(echo, data) + b"\x50" + RETURN_ALL)
    output = chain.call(CallRequest(to=caller)).output
    padded = data + bytes(200)
    assert output == padded[32:64] + data[32:]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 10))
def test_precompiles_answer_calls_from_memory_as_they_answer_transactions(number: int) -> None:
    random = Random(number)
    point = (1).to_bytes(32, "big") + (2).to_bytes(32, "big")
    inputs = [
        b"",
        random.randbytes(100),
        point + point,
        point + random.randbytes(32),
        bytes(192),
        (12).to_bytes(4, "big") + random.randbytes(208) + b"\1",
        b"".join(size.to_bytes(32, "big") for size in (1, 1, 32))
        + b"\3\5"
        + bytes(30)
        + b"\x80" * 9,
        keccak(b"message") + (28).to_bytes(32, "big") + point,
    ]
    chain = Chain()
    for data in inputs:
        direct = chain.call(CallRequest(to=get_address(number), data=data, gas=2_000_000))
        caller = chain.deploy(
            call_code(get_address(number), data, gas=1_500_000) + b"\x50" + RETURN_ALL
        )
        assert chain.call(CallRequest(to=caller, gas=2_000_000)).output == direct.output


# -- precompiles -----------------------------------------------------------------------------------
@pytest.mark.parametrize("number", range(0x0A, 0x12))
def test_slow_curve_precompiles_burn_the_gas_of_the_call(number: int) -> None:
    result = call_precompile(number, b"", gas=500_000)
    assert result.gas_used == 500_000
    assert result.error is not None
    inner = call_code(get_address(number), b"", gas=50_000) + RETURN_WORD
    chain = Chain()
    assert int.from_bytes(chain.call(CallRequest(to=chain.deploy(inner))).output, "big") == 0


@pytest.mark.parametrize(
    ("number", "data", "gas"),
    [
        (6, b"", 150 * 10),
        (7, b"", 6_000 * 4),
        (8, b"", 45_000 * 8),
        (8, bytes(192), (45_000 + 34_000) * 8),
        (9, (12).to_bytes(4, "big") + bytes(208) + b"\1", 12 * 16),
        (2, b"", 60),
        (4, b"", 15),
    ],
)
def test_precompiles_slower_than_the_interpreter_cost_more(
    number: int, data: bytes, gas: int
) -> None:
    assert get_precompile_gas(number, data) == gas


def test_a_repriced_precompile_is_charged_before_it_works() -> None:
    data = (2**32 - 1).to_bytes(4, "big") + bytes(208) + b"\1"
    result = call_precompile(9, data, gas=10_000_000)
    assert result.error is not None
    assert result.gas_used == 10_000_000


@pytest.mark.parametrize(
    "lengths", [(1, 1, 1025), (1025, 1, 1), (1, 2**255, 1), (2**256 - 1, 0, 0), (0, 2**62, 0)]
)
def test_modexp_operands_are_bounded(lengths: tuple[int, int, int]) -> None:
    data = b"".join(length.to_bytes(32, "big") for length in lengths)
    result = call_precompile(5, data)
    assert result.error is not None
    assert "MODEXP" in result.error


def test_modexp_works_up_to_the_bound() -> None:
    lengths = (1).to_bytes(32, "big") + (1).to_bytes(32, "big") + (2).to_bytes(32, "big")
    assert call_precompile(5, lengths + b"\x03\x05" + (1_000).to_bytes(2, "big")).output == (
        243
    ).to_bytes(2, "big")


# -- exceptions ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "error", [ValueError("x"), TypeError("x"), KeyError("x"), OverflowError("x"), AssertionError()]
)
def test_a_deterministic_error_in_a_frame_fails_that_frame(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(host: object, data: bytes) -> bytes:
        raise error

    monkeypatch.setattr(precompile, "call", fail)
    chain = Chain()
    contract = chain.deploy(call_code(FEDAVG_ADDRESS, gas=50_000) + push(5) + b"\x55\x00")
    outcome = chain.add(sign(Draft(to=contract)))
    assert outcome.receipts[0].status == 1
    direct = chain.add(sign(Draft(nonce=1, to=FEDAVG_ADDRESS)))
    assert (direct.receipts[0].status, direct.receipts[0].gas_used) == (0, 200_000)


@pytest.mark.parametrize("error", [MemoryError(), RecursionError(), OSError("disk")])
def test_this_machines_own_problems_escape(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(host: object, data: bytes) -> bytes:
        raise error

    monkeypatch.setattr(precompile, "call", fail)
    chain = Chain()
    contract = chain.deploy(call_code(FEDAVG_ADDRESS) + STOP)
    with pytest.raises(type(error)):
        chain.build(sign(Draft(to=contract)))


@pytest.mark.slow
def test_a_lost_node_is_missing_state_and_never_a_result() -> None:
    chain = Chain()
    fill = b"".join(push(slot + 1) + push(slot) + b"\x55" for slot in range(30))
    target = chain.deploy(fill + b"\x00")
    chain.add(sign(Draft(to=target, gas=2_000_000)))
    clearer = chain.deploy(b"".join(b"\x5f" + push(slot) + b"\x55" for slot in range(5)) + STOP)
    caller = call_code(target, gas=500_000) + b"\x50" + call_code(clearer) + STOP
    raw = sign(Draft(nonce=1, to=chain.deploy(caller), gas=2_000_000))
    whole, outcome = chain.nodes, chain.build(raw).outcome
    lost = []
    for key in whole:
        chain.nodes = {other: node for other, node in whole.items() if other != key}
        try:
            assert chain.build(raw).outcome == outcome
        except MissingState as error:
            lost.append((key, error.key))
    assert len(lost) > 10
    assert all(key == missing for key, missing in lost)


def test_selfdestruct_raises_no_python_warning() -> None:
    chain = Chain()
    contract = chain.deploy(push(ADDRESSES[3]) + b"\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = chain.add(sign(Draft(to=contract, value=7)))
    assert outcome.receipts[0].status == 1
    assert (
        get_account(chain.nodes, chain.head.state_root, ADDRESSES[3]).balance == 1_000 * ETHER + 7
    )


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_never_raise(seed: int) -> None:
    random = Random(seed)
    opcodes = sorted(PragueComputation.opcodes)
    edges = [0, 1, 32, 2**16, 2**32, 2**63, 2**64, 2**255, 2**256 - 1]

    chain = Chain()
    for _ in range(60):
        code = b""
        for _ in range(random.randrange(1, 12)):
            code += b"".join(push(random.choice(edges)) for _ in range(random.randrange(8)))
            code += bytes([random.choice(opcodes)])
        request = CallRequest(ADDRESSES[0], None, data=code, gas=300_000)
        assert chain.call(request).gas_used <= 300_000


# -- accounting ------------------------------------------------------------------------------------
def test_receipt_gas_is_what_was_charged_when_floor_and_refund_cap_both_bind() -> None:
    chain = Chain()
    clear = b"".join(b"\x5f" + push(slot) + b"\x55" for slot in range(1, 9))
    fill = b"".join(push(1) + push(slot) + b"\x55" for slot in range(1, 9))
    contract = chain.deploy(b"\x36" + push(len(fill) + 5) + b"\x57" + fill + STOP + b"\x5b" + clear)
    chain.add(sign(Draft(to=contract, gas=500_000)))
    before = get_account(chain.nodes, chain.head.state_root, ADDRESSES[0]).balance
    draft = Draft(nonce=1, to=contract, data=b"\1" * 3_000, gas=500_000)
    receipt = chain.add(sign(draft)).receipts[0]
    after = get_account(chain.nodes, chain.head.state_root, ADDRESSES[0]).balance
    assert receipt.status == 1
    assert receipt.gas_used == 21_000 + 10 * 4 * 3_000
    assert before - after == receipt.gas_used * receipt.effective_gas_price


def test_a_refund_is_a_fifth_at_most() -> None:
    chain = Chain()
    clear = b"".join(b"\x5f" + push(slot) + b"\x55" for slot in range(1, 9))
    fill = b"".join(push(1) + push(slot) + b"\x55" for slot in range(1, 9))
    contract = chain.deploy(b"\x36" + push(len(fill) + 5) + b"\x57" + fill + STOP + b"\x5b" + clear)
    chain.add(sign(Draft(to=contract, gas=500_000)))
    result = chain.call(CallRequest(to=contract, data=b"\1"))
    assert result.gas_refund > 0
    assert result.gas_refund == (result.gas_used + result.gas_refund) // 5


def test_initcode_is_paid_for_once_and_limited_in_create() -> None:
    chain = Chain()
    init = deploy(STOP)
    receipt = chain.add(sign(Draft(to=b"", data=init))).receipts[0]
    executed = 3 * 2 + 2 * 2 + 3 + 3 + 3 + 2 + 200
    calldata = 4 * (4 * len(init) - 3 * init.count(0))
    assert receipt.gas_used - 53_000 - calldata - 2 == pytest.approx(executed, abs=8)
    too_long = push(MAX_INITCODE_BYTES + 1) + b"\x5f\x5f\xf0" + RETURN_WORD
    result = chain.call(CallRequest(to=chain.deploy(too_long), gas=1_000_000))
    assert (result.error is not None, result.gas_used) == (True, 1_000_000)


def test_a_collision_burns_the_gas_and_uses_the_nonce() -> None:
    chain = Chain()
    first = chain.call(CallRequest(sender=ADDRESSES[0], data=deploy(STOP))).contract_address
    assert first is not None
    put_account(chain, first, nonce=1)
    receipt = chain.add(sign(Draft(to=b"", data=deploy(STOP)))).receipts[0]
    assert (receipt.status, receipt.gas_used, receipt.contract_address) == (0, 200_000, None)
    assert chain.get_nonce(KEYS[0]) == 1


def test_accounts_touched_and_left_empty_are_not_created() -> None:
    chain = Chain()
    empty = get_address(0xABCDEF)
    contract = chain.deploy(call_code(empty) + STOP)
    chain.add(sign(Draft(to=contract)), sign(Draft(nonce=1, to=empty)))
    root = chain.head.state_root
    assert get_trie_value(chain.nodes, root, keccak(empty)) is None
    assert get_trie_value(chain.nodes, root, keccak(FEES)) is not None


def test_a_proposer_without_tips_is_not_created() -> None:
    chain = Chain()
    draft = Draft(to=get_address(0xABCDEF), max_fee=GWEI, tip=0)
    chain.add(sign(draft))
    assert get_trie_value(chain.nodes, chain.head.state_root, keccak(FEES)) is None


def test_transient_storage_ends_with_the_transaction() -> None:
    chain = Chain()
    keep = b"\x5f\x5c" + b"\x5f\x54\x01\x5f\x55" + push(1) + b"\x5f\x5d\x00"
    contract = chain.deploy(keep)
    chain.add(*[sign(Draft(nonce=number, to=contract)) for number in range(3)])
    proof = chain.call(CallRequest(to=chain.deploy(STOP)))
    assert proof.error is None
    assert get_storage(chain.nodes, chain.head.state_root, contract, 0) == 0


def test_a_revert_undoes_storage_of_every_depth() -> None:
    chain = Chain()
    writer = chain.deploy(push(1) + b"\x5f\x54\x01\x5f\x55\x00")
    inner = chain.deploy(call_code(writer) + b"\x50" + call_code(writer) + b"\x50" + REVERT)
    outer = chain.deploy(
        call_code(writer) + b"\x50" + call_code(inner) + b"\x50" + call_code(writer) + b"\x50\x00"
    )
    chain.add(sign(Draft(to=outer, gas=500_000)), sign(Draft(nonce=1, to=writer)))
    assert get_storage(chain.nodes, chain.head.state_root, writer, 0) == 3


@pytest.mark.slow
def test_no_environment_variable_chooses_the_libraries_that_recover_signers_and_hash() -> None:
    script = (
        "import steelyard.chain.evm\n"
        "from eth_hash.auto import keccak\n"
        "from eth_hash.backends.pysha3 import backend\n"
        "from eth_keys import keys\n"
        "from steelyard.chain.transactions import SIGNATURE_BACKEND\n"
        "assert type(SIGNATURE_BACKEND).__name__ == 'CoinCurveECCBackend'\n"
        "assert keys.backend is SIGNATURE_BACKEND\n"
        "assert keccak.hasher == backend.keccak256\n"
        "assert keccak(b'').hex().startswith('c5d2460186f7233c')\n"
    )
    environment = os.environ | {
        "ECC_BACKEND_CLASS": "eth_keys.backends.native.NativeECCBackend",
        "ETH_HASH_BACKEND": "pycryptodome",
    }
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)

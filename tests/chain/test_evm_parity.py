"""Our account database and executor against py-evm's own: same gas, same logs, same roots."""

from random import Random

import pytest
from eth.db.atomic import AtomicDB
from eth.db.backends.memory import MemoryDB
from eth.vm.execution_context import ExecutionContext
from eth.vm.forks.cancun.constants import BEACON_ROOTS_ADDRESS, HISTORY_BUFFER_LENGTH
from eth.vm.forks.prague.constants import HISTORY_SERVE_WINDOW, HISTORY_STORAGE_ADDRESS
from eth.vm.forks.prague.state import PragueState
from eth.vm.forks.prague.transactions import PragueTransactionBuilder

from steelyard.chain.block import Header
from steelyard.chain.execute import Outcome

from .evm_kit import (
    ADDRESSES,
    FEES,
    KEYS,
    REVERT,
    Chain,
    Draft,
    call_code,
    deploy,
    push,
    run_with_stack,
    sign,
)

POP = b"\x50"
FRESH = [bytes([0xAA, number]) * 10 for number in range(6)]


def write_program(random: Random, contracts: list[bytes]) -> bytes:
    """Return a random contract that stores, calls, creates, logs, pays, and ends somehow."""
    code = b"".join(write_step(random, contracts) for _ in range(random.randrange(1, 9)))
    ends = [b"\x00", b"\x00", b"\x00", REVERT, b"\xfe", push(random.choice(FRESH)) + b"\xff"]
    return code + random.choice(ends)


def write_step(random: Random, contracts: list[bytes]) -> bytes:
    slot, value = push(random.randrange(4)), push(random.randrange(3))
    opcode = random.choice([0xF1, 0xF1, 0xF2, 0xF4, 0xFA])
    gas = random.choice([2_000, 60_000, 200_000])
    targets = [*contracts, *FRESH, *((1).to_bytes(20, "big"), (4).to_bytes(20, "big"))]
    return random.choice(
        [
            value + slot + b"\x55",
            value + slot + b"\x55",
            slot + b"\x54" + slot + b"\x55",
            value + slot + b"\x5d" + slot + b"\x5c" + slot + b"\x55",
            value + push(0) + push(0) + b"\xa1",
            call_code(random.choice(FRESH), value=random.randrange(2)) + POP,
            call_code(random.choice(targets), opcode=opcode, gas=gas, data=b"abc") + POP,
            call_code(random.choice(targets), opcode=opcode, gas=gas) + slot + b"\x55",
            write_create(random, contracts),
        ]
    )


def write_create(random: Random, contracts: list[bytes]) -> bytes:
    """Return code that creates a contract, by CREATE or CREATE2, and calls it."""
    inner = random.choice(
        [
            push(1) + push(2) + b"\x55" + deploy(push(7) + push(1) + b"\x55\x00"),
            push(1) + push(2) + b"\x55" + REVERT,
            push(1) + push(2) + b"\x55" + push(random.choice(FRESH)) + b"\xff",
            call_code(random.choice(contracts), gas=60_000)
            + POP
            + deploy(push(FRESH[0]) + b"\xff"),
            b"\xfe",
        ]
    )
    words = [inner[i : i + 32].ljust(32, b"\0") for i in range(0, len(inner), 32)]
    store = b"".join(push(word) + push(32 * i) + b"\x52" for i, word in enumerate(words))
    size, value = push(len(inner)), push(random.randrange(2))
    if random.random() < 0.5:
        create = size + push(0) + value + b"\xf0"
    else:
        create = push(random.randrange(2)) + size + push(0) + value + b"\xf5"
    back = push(0) * 5 + b"\x85" + push(60_000) + b"\xf1" + POP + POP
    return store + create + back


def run_stock(chain: Chain, header: Header, raw: tuple[bytes, ...]) -> tuple[bytes, list[int]]:
    """Return the state root and the gas of each transaction as stock py-evm has them."""
    context = ExecutionContext(
        coinbase=FEES,
        timestamp=header.timestamp,
        block_number=header.height,
        difficulty=0,
        mix_hash=header.prev_randao,
        gas_limit=header.gas_limit,
        prev_hashes=chain.ancestors,
        chain_id=chain.genesis.chain_id,
        base_fee_per_gas=header.base_fee,
        excess_blob_gas=0,
    )
    state = PragueState(AtomicDB(MemoryDB(dict(chain.nodes))), context, chain.head.state_root)
    index = header.timestamp % HISTORY_BUFFER_LENGTH
    state.set_storage(BEACON_ROOTS_ADDRESS, index, header.timestamp)
    root = int.from_bytes(header.parent_beacon_block_root, "big")
    state.set_storage(BEACON_ROOTS_ADDRESS, index + HISTORY_BUFFER_LENGTH, root)
    parent = int.from_bytes(header.parent_hash, "big")
    slot = (header.height - 1) % HISTORY_SERVE_WINDOW
    state.set_storage(HISTORY_STORAGE_ADDRESS, slot, parent)
    gas = []
    for item in raw:
        transaction = PragueTransactionBuilder.decode(item)
        state.lock_changes()
        before = state.get_balance(transaction.sender)
        state.apply_transaction(transaction)
        spent = before - state.get_balance(transaction.sender)
        price = min(transaction.max_fee_per_gas, 10**9 + header.base_fee)
        gas.append(spent // price)
    state.persist()
    return state.state_root, gas


def compare(chain: Chain, raw: list[bytes]) -> Outcome:
    built = chain.build(*raw)
    assert not built.outcome.refused
    root, gas = run_with_stack(lambda: run_stock(chain, built.block.header, tuple(raw)))
    assert gas == [receipt.gas_used for receipt in built.outcome.receipts]
    assert root == built.outcome.state_root
    chain.import_block(built)
    return built.outcome


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:SELFDESTRUCT")
@pytest.mark.parametrize("seed", range(12))
def test_random_programs_have_the_gas_and_the_roots_of_stock_py_evm(seed: int) -> None:
    random = Random(seed)
    chain = Chain()
    contracts: list[bytes] = [compute_create_address(chain, number) for number in range(5)]
    creations = [
        Draft(number, b"", 5, deploy(write_program(random, contracts)), 2_000_000)
        for number in range(5)
    ]
    compare(chain, [sign(draft, KEYS[9]) for draft in creations])
    for block in range(3):
        drafts = [
            Draft(block * 12 + number, random.choice(contracts), 0, b"", 1_500_000)
            for number in range(12)
        ]
        outcome = compare(chain, [sign(draft) for draft in drafts])
    assert outcome.transactions


def compute_create_address(chain: Chain, nonce: int) -> bytes:
    from steelyard.chain.evm import _compute_create_address

    assert chain.get_nonce(KEYS[9]) == 0
    return _compute_create_address(ADDRESSES[9], nonce)

"""The pool takes what a block could hold, orders it by pay, and is bounded everywhere."""

from dataclasses import dataclass, field

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount

from steelyard.chain.block import Rules
from steelyard.chain.cid import get_blob_cid
from steelyard.chain.errors import InvalidTransaction
from steelyard.chain.params import MAX_BLOB_BYTES, MAX_BLOB_BYTES_PER_BLOCK
from steelyard.chain.transactions import decode_transaction
from steelyard.chain.types import Address, BlobName, Digest, Domain
from steelyard.node.config import MempoolConfig
from steelyard.node.mempool import Mempool, Sender

from .world import ALICE, BOB, CHAIN_ID, COIN, get_address, make_blob, sign_transaction

BASE_FEE = 10**9
BLOB, _ = make_blob(1_000)
OTHER_BLOB, _ = make_blob(2_000)
TOO_LARGE_TOGETHER = tuple(BlobName(Digest(bytes([i]) * 32), MAX_BLOB_BYTES) for i in (1, 2))
RICH = Sender(nonce=0, balance=1_000 * COIN, has_code=False)


@dataclass
class World:
    """A pool over accounts, blobs and a clock that tests set by hand."""

    config: MempoolConfig = field(default_factory=MempoolConfig)
    senders: dict[Address, Sender] = field(default_factory=dict)
    held: set[BlobName] = field(default_factory=set)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.pool = Mempool(
            Rules(CHAIN_ID, Domain(bytes(32)), 30_000_000, 10**6, 3_600),
            self.config,
            lambda address: self.senders.get(address, RICH),
            lambda: BASE_FEE,
            self.held.__contains__,
            lambda: self.now,
        )

    def add(self, raw: bytes) -> None:
        self.pool.add(raw)

    def set_sender(self, account: LocalAccount, sender: Sender) -> None:
        self.senders[get_address(account)] = sender

    def list_eligible(self, base_fee: int = BASE_FEE) -> list[tuple[Address, int]]:
        eligible = self.pool.iter_eligible(base_fee, {})
        return [(one.sender, one.nonce) for one in eligible]


def get_code(world: World, raw: bytes) -> str:
    size = world.pool.get_size()
    with pytest.raises(InvalidTransaction) as caught:
        world.add(raw)
    assert world.pool.get_size() == size
    return caught.value.code


A, B = get_address(ALICE), get_address(BOB)
CAROL, DAVE, ERIN = (Account.from_key(bytes([i]) * 32) for i in (0x71, 0x72, 0x73))


# -- order -----------------------------------------------------------------------------------------
def test_the_best_paying_come_first_and_each_sender_in_the_order_of_its_nonces() -> None:
    world = World()
    world.add(sign_transaction(ALICE, 1, tip=9 * 10**8))
    world.add(sign_transaction(ALICE, 0, tip=1))
    world.add(sign_transaction(BOB, 0, tip=10**8))
    assert world.list_eligible() == [(B, 0), (A, 0), (A, 1)]


def test_equal_pay_means_first_come_first_served() -> None:
    world = World()
    world.add(sign_transaction(BOB, 0))
    world.add(sign_transaction(ALICE, 0))
    assert world.list_eligible() == [(B, 0), (A, 0)]
    assert [one.sender for one in world.pool.get_all()] == [B, A]


def test_a_gap_in_the_nonces_holds_back_what_follows() -> None:
    world = World()
    world.add(sign_transaction(ALICE, 0))
    world.add(sign_transaction(ALICE, 2))
    assert world.list_eligible() == [(A, 0)]
    assert world.pool.get_next_nonce(A) == 1
    world.add(sign_transaction(ALICE, 1))
    assert world.list_eligible() == [(A, 0), (A, 1), (A, 2)]
    assert world.pool.get_next_nonce(A) == 3


def test_a_cap_below_the_base_fee_waits() -> None:
    world = World()
    world.add(sign_transaction(ALICE, 0, fee=5 * 10**8))
    assert world.list_eligible() == []
    assert world.list_eligible(base_fee=10**8) == [(A, 0)]


def test_nonces_that_unfinalized_blocks_used_are_skipped() -> None:
    world = World()
    world.add(sign_transaction(ALICE, 0))
    world.add(sign_transaction(ALICE, 1))
    eligible = world.pool.iter_eligible(BASE_FEE, {A: 1})
    assert [one.nonce for one in eligible] == [1]
    assert not world.pool.has_eligible(BASE_FEE, {A: 2})


def test_a_blob_transaction_waits_for_all_its_blobs() -> None:
    world = World()
    world.add(sign_transaction(ALICE, 0, blobs=(BLOB, OTHER_BLOB)))
    world.add(sign_transaction(ALICE, 1))
    world.held.add(BLOB)
    assert world.list_eligible() == []
    world.held.add(OTHER_BLOB)
    assert world.list_eligible() == [(A, 0), (A, 1)]


def test_a_block_is_offered_no_more_blob_bytes_than_it_may_hold() -> None:
    world = World()
    count = MAX_BLOB_BYTES_PER_BLOCK // MAX_BLOB_BYTES + 1
    for i in range(count):
        name = BlobName(Digest(bytes([i]) * 32), MAX_BLOB_BYTES)
        account = Account.from_key(bytes([i + 1]) * 32)
        world.held.add(name)
        world.add(sign_transaction(account, 0, blobs=(name,)))
    assert len(world.list_eligible()) == count - 1


# -- refusals --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "tx_malformed"),
        (b"\x03\xc0", "tx_type"),
        (sign_transaction(ALICE, 0, chain_id=1), "tx_chain_id"),
        (sign_transaction(ALICE, 0, gas=20_999), "tx_gas"),
        (sign_transaction(ALICE, 0, gas=30_000_001), "tx_gas_limit"),
        (sign_transaction(ALICE, 0, fee=10**6 - 1, tip=1), "tx_fee_low"),
        (sign_transaction(ALICE, 0, fee=10**7, tip=10**7 + 1), "tx_tip"),
        (sign_transaction(ALICE, 64), "tx_nonce_high"),
        (sign_transaction(ALICE, 0, value=1_000 * COIN), "tx_balance"),
        (sign_transaction(ALICE, 1, blobs=(BLOB,)), "tx_nonce_high"),
        (sign_transaction(ALICE, 0, blobs=TOO_LARGE_TOGETHER), "blob_declaration"),
    ],
)
def test_what_no_block_could_hold_is_refused(raw: bytes, code: str) -> None:
    assert get_code(World(), raw) == code


def test_a_used_nonce_is_refused() -> None:
    world = World()
    world.set_sender(ALICE, Sender(nonce=5, balance=COIN, has_code=False))
    assert get_code(world, sign_transaction(ALICE, 4)) == "tx_nonce_low"


def test_a_sender_with_code_is_refused() -> None:
    world = World()
    world.set_sender(ALICE, Sender(nonce=0, balance=COIN, has_code=True))
    assert get_code(world, sign_transaction(ALICE, 0)) == "tx_sender_code"


def test_a_node_may_ask_for_a_tip() -> None:
    world = World(MempoolConfig(min_tip_wei=100))
    assert get_code(world, sign_transaction(ALICE, 0, tip=99)) == "tx_tip"


def test_the_balance_covers_all_that_is_pending() -> None:
    world = World()
    world.set_sender(ALICE, Sender(nonce=0, balance=10, has_code=False))
    cost = 21_000 * 10**10 + 1
    world.set_sender(ALICE, Sender(nonce=0, balance=2 * cost, has_code=False))
    world.add(sign_transaction(ALICE, 0))
    world.add(sign_transaction(ALICE, 1))
    assert get_code(world, sign_transaction(ALICE, 2)) == "tx_balance"


def test_a_sender_has_one_pending_blob_transaction() -> None:
    world = World()
    world.add(sign_transaction(ALICE, 0, blobs=(BLOB,)))
    assert get_code(world, sign_transaction(ALICE, 1, blobs=(OTHER_BLOB,))) == "tx_blob_pending"
    world.add(sign_transaction(BOB, 0, blobs=(OTHER_BLOB,)))


def test_a_final_blob_transaction_that_has_not_left_the_pool_yet_is_in_nobodys_way() -> None:
    world = World()
    world.add(sign_transaction(ALICE, 0, blobs=(BLOB,)))
    world.set_sender(ALICE, Sender(nonce=1, balance=COIN, has_code=False))
    world.add(sign_transaction(ALICE, 1, blobs=(OTHER_BLOB,)))


# -- replacing -------------------------------------------------------------------------------------
def test_known_bytes_are_accepted_again_and_change_nothing() -> None:
    world = World()
    raw = sign_transaction(ALICE, 0)
    assert world.pool.add(raw) == world.pool.add(raw)
    assert world.pool.get_size() == (1, len(raw))


def test_a_replacement_pays_a_tenth_more() -> None:
    world = World()
    world.add(sign_transaction(ALICE, 0, fee=100 * 10**8, tip=100))
    assert get_code(world, sign_transaction(ALICE, 0, fee=109 * 10**8, tip=110)) == "tx_underpriced"
    assert get_code(world, sign_transaction(ALICE, 0, fee=110 * 10**8, tip=109)) == "tx_underpriced"
    raw = sign_transaction(ALICE, 0, fee=110 * 10**8, tip=110)
    world.add(raw)
    assert [one.raw for one in world.pool.get_all()] == [raw]


def test_replacing_a_blob_transaction_costs_double_and_frees_its_blobs() -> None:
    world = World()
    world.add(sign_transaction(ALICE, 0, blobs=(BLOB,), fee=10**10, tip=100))
    cheap = sign_transaction(ALICE, 0, fee=2 * 10**10 - 1, tip=200)
    assert get_code(world, cheap) == "tx_underpriced"
    world.add(sign_transaction(ALICE, 0, fee=2 * 10**10, tip=200))
    assert not world.pool.is_declared(BLOB)


# -- limits ----------------------------------------------------------------------------------------
def test_a_full_pool_makes_room_for_better_pay_only() -> None:
    world = World(MempoolConfig(max_transactions=2))
    world.add(sign_transaction(ALICE, 0, tip=10))
    world.add(sign_transaction(ALICE, 1, tip=10))
    assert get_code(world, sign_transaction(BOB, 0, tip=10)) == "tx_pool_full"
    world.add(sign_transaction(BOB, 0, tip=11))
    assert world.list_eligible() == [(B, 0), (A, 0)]


def test_a_full_pool_lets_go_first_of_what_no_block_can_hold_now() -> None:
    world = World(MempoolConfig(max_transactions=5))
    world.add(sign_transaction(ALICE, 0, tip=10))
    world.add(sign_transaction(BOB, 0, fee=BASE_FEE - 1, tip=BASE_FEE - 1))
    world.add(sign_transaction(BOB, 1, tip=500))
    world.add(sign_transaction(CAROL, 1, tip=500))
    world.add(sign_transaction(DAVE, 0, tip=500, blobs=(BLOB,)))
    assert get_code(world, sign_transaction(ERIN, 1, fee=10**9, tip=1)) == "tx_pool_full"
    for nonce in range(3):
        world.add(sign_transaction(ERIN, nonce, tip=5))
    assert {(one.sender, one.nonce) for one in world.pool.get_all()} == {
        (A, 0), (get_address(DAVE), 0), *((get_address(ERIN), nonce) for nonce in range(3)),
    }  # fmt: skip


def test_blobs_are_not_taken_for_what_may_wait_as_long_as_it_likes() -> None:
    world = World()
    cheap = sign_transaction(ALICE, 0, blobs=(BLOB,), fee=BASE_FEE - 1)
    assert get_code(world, cheap) == "tx_fee_low"
    world.add(sign_transaction(ALICE, 0, fee=BASE_FEE - 1))
    assert get_code(world, sign_transaction(ALICE, 1, blobs=(BLOB,))) == "tx_fee_low"


def test_nobody_evicts_itself() -> None:
    world = World(MempoolConfig(max_transactions=1))
    world.add(sign_transaction(ALICE, 0, tip=10))
    assert get_code(world, sign_transaction(ALICE, 1, tip=99)) == "tx_pool_full"


def test_the_bytes_of_a_pool_are_limited() -> None:
    world = World(MempoolConfig(max_bytes=1_000))
    raw = sign_transaction(ALICE, 0, data=b"\1" * 600, gas=60_000)
    world.add(raw)
    assert get_code(world, sign_transaction(BOB, 0, data=b"\1" * 600, gas=60_000)) == "tx_pool_full"
    assert world.pool.get_size() == (1, len(raw))


# -- leaving ---------------------------------------------------------------------------------------
def test_a_final_block_removes_its_transactions_and_what_they_made_void() -> None:
    world = World()
    for nonce in range(3):
        world.add(sign_transaction(ALICE, nonce))
    other = sign_transaction(ALICE, 1, value=7)
    world.pool.remove_included([decode_transaction(other)])
    assert world.list_eligible() == [(A, 2)]
    assert world.pool.get_next_nonce(A) == 3


@pytest.mark.parametrize("code", ["tx_nonce_high", "tx_fee_low", "tx_block_full"])
def test_a_passing_refusal_keeps_a_transaction(code: str) -> None:
    world = World()
    raw = sign_transaction(ALICE, 0)
    world.add(raw)
    world.pool.remove_refused(raw, InvalidTransaction(code, ""))
    assert world.pool.get_size()[0] == 1


@pytest.mark.parametrize("code", ["tx_nonce_low", "tx_balance", "tx_sender_code", "tx_crashed"])
def test_a_lasting_refusal_drops_a_transaction(code: str) -> None:
    world = World()
    raw = sign_transaction(ALICE, 0)
    world.add(raw)
    world.pool.remove_refused(raw, InvalidTransaction(code, ""))
    world.pool.remove_refused(raw, InvalidTransaction(code, ""))
    assert world.pool.get_size() == (0, 0)


def test_blobs_that_do_not_come_in_time_end_their_transaction() -> None:
    world = World(MempoolConfig(blob_expiry_seconds=600))
    world.add(sign_transaction(ALICE, 0, blobs=(BLOB,)))
    world.add(sign_transaction(BOB, 0, blobs=(OTHER_BLOB,)))
    world.held.add(OTHER_BLOB)
    world.now = 601
    assert len(world.pool.expire()) == 1
    assert world.list_eligible() == [(B, 0)]
    assert world.pool.is_late(get_blob_cid(BLOB))
    assert not world.pool.is_late(get_blob_cid(OTHER_BLOB))
    world.add(sign_transaction(ALICE, 0, blobs=(BLOB,)))
    assert not world.pool.is_late(get_blob_cid(BLOB))
    assert world.pool.find_declared(get_blob_cid(BLOB)) == (BLOB,)


def test_everything_expires_in_the_end() -> None:
    world = World(MempoolConfig(expiry_seconds=1_000))
    world.add(sign_transaction(ALICE, 1))
    world.now = 1_000
    assert world.pool.expire() == ()
    world.now = 1_001
    assert len(world.pool.expire()) == 1
    assert world.pool.get_size() == (0, 0)
    assert world.pool.get_next_nonce(A) is None


# -- other validators ------------------------------------------------------------------------------
def test_what_is_held_here_but_not_available_elsewhere_is_not_eligible() -> None:
    world = World(held={BLOB})
    available: set[BlobName] = set()
    world.pool.is_available = available.__contains__
    world.add(sign_transaction(ALICE, 0, blobs=(BLOB,)))
    assert world.list_eligible() == []
    available.add(BLOB)
    assert world.list_eligible() == [(A, 0)]


def test_a_new_transaction_is_told_once_with_its_source_and_a_refused_one_never() -> None:
    world, told = World(), []
    world.pool.on_added = lambda transaction, source: told.append((transaction.nonce, source))
    raw = sign_transaction(ALICE, 0)
    world.add(raw)
    world.add(raw)
    world.pool.add_transaction(decode_transaction(sign_transaction(ALICE, 1)), B)
    with pytest.raises(InvalidTransaction):
        world.add(sign_transaction(ALICE, 10_000))
    assert told == [(0, None), (1, B)]


def test_own_transactions_are_those_that_no_validator_sent() -> None:
    world = World()
    world.pool.add_transaction(decode_transaction(sign_transaction(ALICE, 0)), B)
    world.add(sign_transaction(BOB, 0))
    world.add(sign_transaction(BOB, 1, blobs=(BLOB,)))
    assert [entry.transaction.sender for entry in world.pool.get_own()] == [B, B]
    assert world.pool.get_declared() == (BLOB,)

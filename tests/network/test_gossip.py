"""Transactions among validators: passed on once, tried again if early, and garbage costs."""

from dataclasses import replace

from steelyard.chain.transactions import decode_transaction
from steelyard.chain.types import Address
from steelyard.node.config import MempoolConfig
from steelyard.node.mempool import Sender
from steelyard.node.network.gossip import (
    ALLOWANCE,
    ALLOWANCE_PER_SECOND,
    COST_OF_GARBAGE,
    EARLY_SECONDS,
    MAX_EARLY,
    MAX_REPEATED,
    MAX_REPEATED_BYTES,
    REPEAT_SECONDS,
    RETRY_SECONDS,
    Gossip,
)
from steelyard.node.network.outgoing import Outgoing
from steelyard.node.network.wire import TransactionMessage
from tests.node.test_mempool import BLOB, RICH, World
from tests.node.world import ALICE, BOB, COIN, sign_transaction

from .blob_kit import ANN, BEN, ME

FIRST, SECOND = sign_transaction(ALICE, 0), sign_transaction(ALICE, 1)


class Talk:
    """A pool and its gossip; `sent` is what the pool's news made it send."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World()
        self.pool = self.world.pool
        self.gossip = Gossip(self.pool)
        self.gossip.set_peers([ANN, BEN], 0.0)
        self.sent: list[Outgoing] = []
        self.pool.on_added = lambda transaction, source: self.sent.extend(
            self.gossip.on_added(transaction, source)
        )
        self.gossip.tick(0.0)

    @property
    def now(self) -> float:
        return self.world.now

    def hear(self, raw: bytes, peer: Address = ANN) -> None:
        self.gossip.on_transaction(peer, raw, self.now)

    def tick(self, seconds: float = 0.2) -> list[Outgoing]:
        self.world.now += seconds
        return self.gossip.tick(self.now)

    def list_pending(self) -> list[bytes]:
        return [one.raw for one in self.pool.get_all()]


# -- ours ------------------------------------------------------------------------------------------
def test_what_a_user_hands_in_is_sent_to_all_once() -> None:
    talk = Talk()
    talk.pool.add(FIRST)
    talk.pool.add(FIRST)
    assert talk.sent == [(None, TransactionMessage(FIRST))]


def test_what_a_validator_sent_is_taken_and_never_passed_on() -> None:
    talk = Talk()
    talk.hear(FIRST)
    assert talk.list_pending() == [FIRST]
    assert talk.sent == []
    assert talk.tick(REPEAT_SECONDS) == []
    assert talk.gossip.on_connected(BEN) == []


def test_who_connects_gets_own_pending_ones_in_their_order_and_not_those_of_others() -> None:
    talk = Talk()
    talk.pool.add(FIRST)
    talk.hear(sign_transaction(BOB, 0))
    talk.pool.add(SECOND)
    expected = [(BEN, TransactionMessage(raw)) for raw in (FIRST, SECOND)]
    assert talk.gossip.on_connected(BEN) == expected


def test_own_ones_that_wait_are_sent_again_and_those_that_are_final_are_not() -> None:
    talk = Talk()
    talk.pool.add(FIRST)
    assert talk.tick(REPEAT_SECONDS / 2) == []
    assert talk.tick(REPEAT_SECONDS) == [(None, TransactionMessage(FIRST))]
    talk.pool.remove_included([decode_transaction(FIRST)])
    assert talk.tick(REPEAT_SECONDS) == []


def test_what_is_sent_again_is_bounded_and_takes_turns() -> None:
    talk = Talk(World(config=MempoolConfig(max_per_sender=400)))
    template = decode_transaction(FIRST)
    count = MAX_REPEATED + 40
    for nonce in range(count):
        name = nonce.to_bytes(32, "big")
        talk.pool.add_transaction(replace(template, nonce=nonce, hash=name, raw=name), None)
    assert len(talk.gossip.on_connected(ANN)) == MAX_REPEATED
    first, second = talk.tick(REPEAT_SECONDS), talk.tick(REPEAT_SECONDS)
    assert [message for _, message in first + second] == [
        TransactionMessage(nonce.to_bytes(32, "big")) for nonce in range(count)
    ]


def test_what_is_sent_again_is_bounded_in_bytes() -> None:
    talk = Talk()
    raw = bytes(100_000)
    template = decode_transaction(FIRST)
    for nonce in range(20):
        name = nonce.to_bytes(32, "big")
        talk.pool.add_transaction(replace(template, nonce=nonce, hash=name, raw=raw), None)
    assert len(talk.gossip.on_connected(ANN)) == MAX_REPEATED_BYTES // len(raw) + 1


# -- early -----------------------------------------------------------------------------------------
def test_a_blob_transaction_before_its_predecessor_is_taken_when_that_comes() -> None:
    talk = Talk()
    early = sign_transaction(ALICE, 1, blobs=(BLOB,))
    talk.hear(early)
    assert talk.list_pending() == []
    talk.hear(FIRST, BEN)
    assert talk.list_pending() == [FIRST, early]
    assert talk.gossip.count_early() == 0


def test_a_transaction_before_the_block_that_funds_its_sender_is_taken_at_the_new_head() -> None:
    talk = Talk()
    talk.world.set_sender(ALICE, Sender(0, 0, has_code=False))
    talk.hear(FIRST)
    assert talk.list_pending() == []
    talk.world.set_sender(ALICE, Sender(0, COIN, has_code=False))
    talk.gossip.on_head(talk.now)
    assert talk.list_pending() == [FIRST]


def test_a_blob_transaction_before_the_block_with_the_one_before_is_taken_in_time() -> None:
    talk = Talk()
    before = sign_transaction(ALICE, 0, blobs=(BLOB,))
    after = sign_transaction(ALICE, 1, blobs=(BLOB,))
    talk.hear(before)
    talk.hear(after)
    assert talk.list_pending() == [before]
    talk.world.set_sender(ALICE, replace(RICH, nonce=1))
    talk.pool.remove_included([decode_transaction(before)])
    talk.tick(RETRY_SECONDS)
    assert talk.list_pending() == [after]


def test_what_stays_early_is_forgotten() -> None:
    talk = Talk()
    talk.hear(sign_transaction(ALICE, 1, blobs=(BLOB,)))
    talk.tick(EARLY_SECONDS - 1)
    assert talk.gossip.count_early() == 1
    talk.tick(2.0)
    assert talk.gossip.count_early() == 0


def test_what_is_early_is_bounded_for_each_validator() -> None:
    talk = Talk()
    talk.world.set_sender(ALICE, Sender(0, 0, has_code=False))
    for nonce in range(MAX_EARLY + 3):
        talk.hear(sign_transaction(ALICE, nonce))
    talk.hear(sign_transaction(ALICE, 0), BEN)
    assert talk.gossip.count_early() == MAX_EARLY + 1


def test_what_can_never_enter_is_not_set_aside() -> None:
    talk = Talk()
    talk.world.set_sender(ALICE, replace(RICH, nonce=5))
    talk.hear(FIRST)
    assert talk.gossip.count_early() == 0
    assert talk.gossip.counters.transactions_refused == 1


# -- garbage ---------------------------------------------------------------------------------------
def test_who_sends_only_garbage_is_not_heard_until_its_allowance_is_back() -> None:
    talk = Talk()
    for number in range(100):
        talk.hear(bytes([2, number]))
    allowed = int(ALLOWANCE / COST_OF_GARBAGE)
    counters = talk.gossip.counters
    assert (counters.transactions_refused, counters.transactions_unheard) == (
        allowed,
        100 - allowed,
    )
    talk.hear(FIRST)
    assert talk.list_pending() == []
    talk.hear(SECOND, BEN)
    assert talk.list_pending() == [SECOND]
    talk.world.now += 2 * COST_OF_GARBAGE / ALLOWANCE_PER_SECOND
    talk.hear(FIRST)
    assert talk.list_pending() == [SECOND, FIRST]


def test_what_an_honest_validator_may_send_costs_little() -> None:
    talk = Talk()
    talk.world.set_sender(ALICE, replace(RICH, nonce=500))
    for nonce in range(100):
        talk.hear(sign_transaction(ALICE, nonce))
    assert talk.gossip.counters.transactions_unheard == 0
    talk.hear(sign_transaction(BOB, 0))
    assert len(talk.list_pending()) == 1


def test_known_and_hopeless_bytes_are_decoded_once() -> None:
    talk = Talk()
    talk.world.set_sender(BOB, replace(RICH, nonce=5))
    for _ in range(3):
        talk.hear(FIRST)
        talk.hear(sign_transaction(BOB, 0))
        talk.hear(b"\x02garbage")
    assert talk.gossip.counters.transactions_received == 3


def test_a_stranger_is_not_heard() -> None:
    talk = Talk()
    talk.hear(FIRST, ME)
    assert talk.list_pending() == []
    talk.gossip.set_peers([BEN], talk.now)
    talk.hear(FIRST, ANN)
    assert talk.list_pending() == []

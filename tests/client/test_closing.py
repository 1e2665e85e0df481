"""A member closes a round that no keeper closes: on a double, and on the true contracts."""

import functools

import pytest
from eth_account import Account as Keys
from typer.testing import CliRunner

from steelyard.chain.transactions import decode_transaction
from steelyard.chain.types import Address
from steelyard.client import closing
from steelyard.client.closing import ClosedRound, Ending
from steelyard.client.commands import options
from steelyard.client.commands import rounds as commands
from steelyard.client.errors import ClientError, NodeRefused, Reverted
from steelyard.client.keys import create_key
from steelyard.client.outbox import Clock
from steelyard.client.participant import Client
from steelyard.client.rpc import Network
from steelyard.node.rpc.encoding import encode_receipts
from tests.chain.evm_kit import CHAIN_ID, GWEI, KEYS

from .agreement import TasksRefusal
from .books import Submitted
from .conftest import HOSPITAL, URL, make_task, open_rpc
from .ledger import GAS_LIMIT, Ledger, make_blob_name
from .quiet import KEEPER, ONE, QuietChain, QuietRpc
from .story import NEAR, force_split

BOUNTY = 77


@pytest.fixture
def ledger() -> Ledger:
    """No validator's keeper closes anything here."""
    made = Ledger()
    made.agreement.is_kept = False
    return made


@pytest.fixture
def task(ledger: Ledger, organisation, hospital):
    """In its first round, with one member who has neither committed nor revealed."""
    terms = make_task(close_reserve=1_000, close_bounty=BOUNTY, min_clients=1, metrics=())
    published = organisation.publish(terms)
    hospital.join(published.number, 50)
    return published


def show(ledger: Ledger, number: int) -> None:
    """The member commits to an update of a round and reveals it."""
    done = Submitted(b"c" * 32, number, make_blob_name(b"update"), samples=30)
    ledger.tasks[1].rounds[number].done[bytes.fromhex(HOSPITAL.address[2:])] = done


def wait(ledger: Ledger, seconds: float = 200) -> None:
    ledger.sleep(seconds)


# -- what is due is closed -------------------------------------------------------------------------
def test_a_member_closes_a_due_round_and_is_credited(ledger, task, hospital) -> None:
    show(ledger, 1)
    wait(ledger)
    closed = hospital.close_round(1)
    assert (closed.round, closed.ending, closed.is_ended) == (1, Ending.AGGREGATED, True)
    assert closed.model == task.get_info().model
    assert (closed.calls, closed.gas, closed.cost) == (1, 21_000, 21_000)
    assert (closed.credited, closed.reason) == (BOUNTY, "")
    assert task.get_info().round == 2
    assert hospital.claim(1) == BOUNTY + 500


def test_the_organisation_closes_the_last_round(ledger, task) -> None:
    for number in (1, 2):
        show(ledger, number)
        wait(ledger)
        assert task.close_round().round == number
    assert task.close_round().reason == "task 1 is finished: no round is open"


def test_a_round_without_updates_is_skipped(ledger, task, hospital) -> None:
    wait(ledger)
    closed = hospital.close_round(1)
    assert (closed.ending, closed.model.size, closed.credited) == (Ending.SKIPPED, 0, BOUNTY)


def test_a_round_with_too_few_updates_is_extended(ledger, organisation, hospital) -> None:
    organisation.publish(make_task(on_failed_quorum="extend", max_extensions=1))
    hospital.join(1, 50)
    wait(ledger)
    closed = hospital.close_round(1)
    assert (closed.ending, closed.is_ended, closed.credited) == (Ending.EXTENDED, False, 0)
    assert hospital.close_round(1).ending is Ending.NOT_DUE
    wait(ledger)
    assert hospital.close_round(1).ending is Ending.SKIPPED


def test_a_page_carries_gas_for_any_page_as_far_as_it_can_be_paid(
    ledger, task, hospital, monkeypatch
) -> None:
    plan = ledger.agreement.view_get_plan(1)[0]
    monkeypatch.setattr(ledger.agreement, "view_get_plan", lambda task: [plan, (1, 1, 2)])
    wait(ledger)
    hospital.close_round(1)
    assert ledger.included[-1].gas == 48_000_000, "four fifths of a block"
    wait(ledger)
    ledger.balances[hospital.address] = 10**9
    hospital.close_round(1)
    assert ledger.included[-1].gas == 10**9 // (9 * 7 + 1)


def test_a_purse_that_limits_a_page_bears_a_dearer_block_before_it_is_signed(
    ledger, task, hospital, monkeypatch
) -> None:
    plan = ledger.agreement.view_get_plan(1)[0]
    monkeypatch.setattr(ledger.agreement, "view_get_plan", lambda task: [plan, (1, 1, 2)])
    wait(ledger)
    ledger.balances[hospital.address] = 10**9
    real, fees = ledger.eth_getBlockByNumber, ["0x40", "0x48"]

    def grow_dearer(tag, full):
        return real(tag, full) | {"baseFeePerGas": fees[0] if len(fees) == 1 else fees.pop(0)}

    monkeypatch.setattr(ledger, "eth_getBlockByNumber", grow_dearer)
    assert hospital.close_round(1).ending is Ending.SKIPPED
    assert fees == ["0x48"]


def test_no_close_carries_more_gas_than_a_block_holds(ledger, task, hospital, monkeypatch) -> None:
    """An estimate has a margin, of which a small block may not hold all."""
    wait(ledger)
    monkeypatch.setattr(ledger, "eth_estimateGas", lambda call: hex(GAS_LIMIT * 9 // 10))
    hospital.close_round(1)
    assert ledger.included[-1].gas == GAS_LIMIT


# -- what is not -----------------------------------------------------------------------------------
def tell_nothing(hospital, ledger) -> str:
    sent = len(ledger.seen)
    closed = hospital.close_round(1)
    assert (closed.ending, closed.calls, closed.cost) == (Ending.NOT_DUE, 0, 0)
    assert len(ledger.seen) == sent
    return closed.reason


def test_nothing_is_sent_while_nothing_is_due(ledger, task, hospital) -> None:
    assert tell_nothing(hospital, ledger).startswith("round 1 of task 1 is not due yet: in 1 min")


def test_a_lobby_has_no_round_to_close(ledger, organisation, hospital) -> None:
    organisation.publish(make_task(max_clients=2))
    assert tell_nothing(hospital, ledger) == "task 1 is in its lobby: no round is open"
    wait(ledger, 4_000)
    assert "`steelyard task abort 1`" in tell_nothing(hospital, ledger)
    ledger.tasks[1].parameters["min_clients"] = 0
    assert "`steelyard task start 1`" in tell_nothing(hospital, ledger)


def test_an_unknown_task_cannot_be_closed(ledger, hospital) -> None:
    with pytest.raises(ClientError) as caught:
        hospital.close_round(9)
    assert caught.value.code == "task_unknown"


def test_a_node_cannot_invent_an_action(ledger, task, hospital, monkeypatch) -> None:
    monkeypatch.setattr(ledger.agreement, "view_next_action", lambda task: [9, 1])
    with pytest.raises(NodeRefused, match="knows no Action 9"):
        hospital.close_round(1)


# -- what fails ------------------------------------------------------------------------------------
def refuse_close(ledger: Ledger, monkeypatch, reason: str, *, when_tried: bool) -> None:
    """`close` reverts in its block, and if so wished already when it is tried out."""

    def refuse(*_arguments, **_names):
        raise TasksRefusal(reason)

    monkeypatch.setattr(ledger.agreement, "do_close", refuse)
    if not when_tried:
        monkeypatch.setattr(ledger, "eth_estimateGas", lambda call: hex(200_000))


def test_a_round_that_cannot_be_closed_says_why_and_what_remains(
    ledger, task, hospital, monkeypatch
) -> None:
    wait(ledger)
    refuse_close(ledger, monkeypatch, "fedavg: blob_expired", when_tried=True)
    sent = len(ledger.seen)
    with pytest.raises(Reverted, match="`steelyard task abort 1`") as caught:
        hospital.close_round(1)
    assert caught.value.reason == "fedavg: blob_expired"
    assert "is spent" not in caught.value.message
    assert len(ledger.seen) == sent
    refuse_close(ledger, monkeypatch, "fedavg: blob_expired", when_tried=False)
    with pytest.raises(Reverted, match=r"gas for 0\.000000000000021 coins is spent"):
        hospital.close_round(1)


def test_who_comes_second_is_told_so_and_what_it_cost(ledger, task, hospital, monkeypatch) -> None:
    show(ledger, 1)
    wait(ledger)
    agreement = ledger.agreement
    monkeypatch.setattr(ledger, "eth_estimateGas", lambda call: hex(200_000))
    real = ledger._include

    def close_before(transaction):
        agreement._close(1, ledger.tasks[1], ledger.tasks[1].rounds[1])
        real(transaction)

    monkeypatch.setattr(ledger, "_include", close_before)
    closed = hospital.close_round(1)
    assert (closed.ending, closed.reason) == (Ending.AGGREGATED, "somebody else was faster")
    assert (closed.calls, closed.cost, closed.credited) == (0, 21_000, 0)


# -- the command -----------------------------------------------------------------------------------
def run(tmp_path, ledger: Ledger, monkeypatch, *words: str):
    clock = Clock(lambda: ledger.now, ledger.sleep)
    monkeypatch.setenv("STEELYARD_PASSWORD", "correct horse")
    monkeypatch.setattr(options, "Rpc", lambda nodes: open_rpc(ledger))
    monkeypatch.setattr(options, "Client", functools.partial(Client, clock=clock))
    key = tmp_path / "site.key"
    if not key.exists():
        create_key(key, "correct horse", b"\x05" * 32, scrypt_n=2**4)
    words = ("close", "1", *words, "--node", URL, "--key", str(key))
    return CliRunner().invoke(commands.app, [*words, "--state", str(tmp_path / "state")])


def test_the_command_closes_a_round_and_tells_what_it_cost_and_brought(
    ledger, task, tmp_path, monkeypatch
) -> None:
    done = run(tmp_path, ledger, monkeypatch)
    assert (done.exit_code, "is not due yet: in 1 min" in done.stdout) == (1, True)
    show(ledger, 1)
    wait(ledger)
    done = run(tmp_path, ledger, monkeypatch)
    assert done.exit_code == 0, done.output
    assert "round 1 of task 1 is aggregated, model bafk" in done.stdout
    told = "1 call, 21000 gas for 0.000000000000021 coins; 0.000000000000000077 coins are credited"
    assert told in done.stdout
    assert "`steelyard client claim 1` fetches them" in done.stdout
    wait(ledger)
    done = run(tmp_path, ledger, monkeypatch, "--json")
    assert done.exit_code == 0
    for part in ('"ending": "skipped"', '"cost": "21000"', '"credited": "77"', '"model": null'):
        assert part in done.stdout
    assert run(tmp_path, ledger, monkeypatch).exit_code == 1


def test_the_command_says_no_while_pages_are_left(ledger, task, tmp_path, monkeypatch) -> None:
    wait(ledger)
    monkeypatch.setattr(closing, "MAX_CALLS", 1)
    agreement = ledger.agreement
    page = make_blob_name(b"page")

    def make_page(sender, value, task, round):
        agreement.log("PageMade", [task, round], [1, (page.digest, page.size)])

    monkeypatch.setattr(agreement, "do_close", make_page)
    done = run(tmp_path, ledger, monkeypatch)
    assert (done.exit_code, "more pages are to be made" in done.stdout) == (1, True)


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        (Ending.EXTENDED, "is extended: there were too few updates"),
        (Ending.UNFINISHED, "not closed yet: more pages are to be made, run this again"),
        (Ending.STOPPED, "stopped: its task has ended"),
    ],
)
def test_every_ending_has_its_words(ending: Ending, words: str) -> None:
    closed = ClosedRound(1, 2, ending, make_blob_name(b"m"), 2, 5, 5, 0, "somebody else was faster")
    text = commands.format_closed(closed)
    assert words in text
    assert "somebody else was faster" in text
    assert "claim" not in text


# -- the true contracts ----------------------------------------------------------------------------
class ActingRpc(QuietRpc):
    """A way to the node that also takes transactions: each is in a block of its own at once."""

    def __init__(self, chain: QuietChain) -> None:
        super().__init__(chain.node, {})
        self._chain, self._network = chain, Network(CHAIN_ID, bytes(32))

    def call(self, method: str, *arguments):
        own = getattr(self, method, None)
        return own(*arguments) if own else super().call(method, *arguments)

    def eth_getTransactionCount(self, address, tag):
        return hex(self._chain.nonces[KEEPER])

    def eth_getBalance(self, address, tag):
        return hex(10**21)

    def eth_getBlockByNumber(self, tag, full):
        head = self._chain.chain.head
        return {
            "baseFeePerGas": hex(head.base_fee),
            "gasLimit": hex(head.gas_limit),
            "timestamp": hex(head.timestamp),
        }

    def eth_maxPriorityFeePerGas(self):
        return hex(GWEI)

    def eth_estimateGas(self, call):
        return super().call("eth_call", call, "latest") and hex(4_000_000)

    def eth_sendRawTransaction(self, raw):
        self._chain.nonces[KEEPER] += 1
        self._chain.waiting.append(bytes.fromhex(raw[2:]))
        self._chain.mine()

    def eth_getTransactionReceipt(self, text):
        node = self._chain.node
        for block in node.blocks.values():
            for place, raw in enumerate(block.transactions):
                if decode_transaction(raw).hash.hex() == text[2:]:
                    return encode_receipts(block, node.receipts[block.hash])[place]
        return None


@pytest.mark.slow
def test_all_pages_of_a_real_round_are_made_and_paid(tmp_path) -> None:
    chain = QuietChain()
    with force_split(1, 2):
        chain.publish(1, 0, 1, rounds=1, rule=(1, 2**20, ONE, 4_096, 0))
        chain.mine()
    for client in (0, 1):
        chain.commit(1, 1, client, NEAR[client])
    chain.reveal(1, 1, 0, 1)
    chain.mine()
    key = Keys.from_key(KEYS[KEEPER].to_bytes())
    clock = Clock(lambda: 0.0, lambda seconds: None)
    with Client(ActingRpc(chain), key, state=tmp_path, report=str, clock=clock) as member:
        assert member.address == Address(KEYS[KEEPER].public_key.to_canonical_address())
        closed = member.close_round(1)
        assert (closed.ending, closed.calls) == (Ending.AGGREGATED, 4)
        found = chain.get_round(1, 1)
        assert (found["state"], found["pages"], found["model"]) == (2, 3, closed.model)
        assert closed.credited == member.tasks.get_claimable(1, member.address) > 1_000
        assert closed.cost > closed.credited - 1_000, "the tip is not repaid"
        assert member.close_round(1).reason == "task 1 is finished: no round is open"


def test_a_page_carries_as_much_gas_as_any_page_may_need() -> None:
    """Rounds plans a page for three quarters of a block, and a 64th stays behind at each call."""
    assert closing.PAGE_GAS_PERCENT / 100 * (63 / 64) ** 2 > 3 / 4

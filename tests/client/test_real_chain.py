"""The client on a real node: two hospitals, an organisation and an auditor, over HTTP."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from eth_account import Account as Keys
from eth_account.signers.local import LocalAccount

from steelyard.chain.block import decode_block
from steelyard.chain.cid import encode_cid
from steelyard.chain.params import TASKS_ADDRESS
from steelyard.chain.types import Address, BlobName
from steelyard.client import finalized
from steelyard.client.amounts import coins
from steelyard.client.audit import audit_replay, audit_round
from steelyard.client.contracts import Tasks
from steelyard.client.errors import ClientError, Reverted
from steelyard.client.events import get_events
from steelyard.client.explain import explain_round
from steelyard.client.organisation import Organisation, PublishedTask
from steelyard.client.outbox import TRANSFER_GAS, Receipt
from steelyard.client.participant import Client, Summary
from steelyard.client.proven import (
    ACCOUNT_WORDS,
    PARAMETERS_OFFSET,
    ROUND_WORDS,
    RULE_WORDS,
    TERMS_WORDS,
)
from steelyard.client.records import Parameters, TaskState
from steelyard.client.rpc import Network, Rpc
from steelyard.client.sending import get_balance
from steelyard.client.terms import Task
from steelyard.client.training import Result
from steelyard.client.transactions import Call, compute_blob_call_gas
from steelyard.client.verdicts import Report, Verdict
from steelyard.node.clock import Clock
from steelyard.node.config import BlocksConfig, NodeConfig, StorageConfig
from steelyard.node.founding import Foundation, init_directory
from steelyard.node.http import HttpServer
from steelyard.node.node import Node

pytestmark = pytest.mark.e2e

PUBLISHER, FIRST, SECOND = (Keys.from_key(bytes([n]) * 32) for n in (1, 2, 3))
REWARD = coins(100)
ROUNDS = 3


class Calendar:
    """A clock that jumps."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def get_unix_seconds(self) -> float:
        return time.time() + self.ahead


@dataclass(frozen=True)
class Chain:
    """A running node and what happened on it: one finished task of two hospitals."""

    url: str
    calendar: Calendar
    directory: Path
    organisation: Organisation
    task: PublishedTask
    summaries: dict[str, Summary]


def found(directory: Path, clock: Clock | None = None) -> Node:
    foundation = Foundation(
        chain_id=4711,
        name="client tests",
        timestamp=1_700_000_000,
        stake=coins(32),
        validator_balance=coins(10),
        funds={
            Address(bytes.fromhex(one.address[2:])): coins(1000)
            for one in (PUBLISHER, FIRST, SECOND)
        },
        heartbeat_ms=500,
        timeout_ms=10_000,
        gas_limit=30_000_000,
        blob_retention_seconds=7 * 86_400,
    )
    config = NodeConfig(
        blocks=BlocksConfig(interval_seconds=0.05),
        storage=StorageConfig(map_bytes=2**28, min_free_bytes=2**20),
    )
    _, secrets = init_directory(directory, "password", foundation, config, scrypt_n=2**10)
    return Node.open(directory, secrets, config, clock=clock)


def make_model() -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    return {
        "bias": random.normal(size=3).astype(np.float32),
        "weight": random.normal(size=(50, 100)).astype(np.float32),
    }


def make_trainer(key: LocalAccount):
    def train(model, ctx) -> Result:
        random = np.random.default_rng([ctx.round, int(key.address, 16) % 1000])
        moved = {
            name: array + random.normal(0, 0.01, array.shape).astype(np.float32)
            for name, array in model.items()
        }
        return Result(moved, samples=30 if key is FIRST else 10)

    return train


def make_evaluator(key: LocalAccount):
    def evaluate(model, ctx) -> Result:
        return Result(samples=10, metrics={"accuracy": 0.5 if key is FIRST else 0.75})

    return evaluate


def open_client(url: str, key: LocalAccount, state: Path) -> Client:
    client = Client(url, key, state=state, report=str, poll_seconds=0.1)
    client.train(make_trainer(key))
    client.evaluate(make_evaluator(key))
    return client


def run_hospitals(url: str, directory: Path, task: int) -> dict[str, Summary]:
    summaries: dict[str, Summary] = {}

    def run(key: LocalAccount) -> None:
        with open_client(url, key, directory / key.address) as client:
            summaries[key.address] = client.run(task, samples=40)

    threads = [threading.Thread(target=run, args=(key,)) for key in (FIRST, SECOND)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return summaries


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    directory = tmp_path_factory.mktemp("chain")
    calendar = Calendar()
    node = found(directory / "validator", Clock(get_unix_seconds=calendar.get_unix_seconds))
    server = HttpServer(node, "127.0.0.1", 0)
    server.start()
    node.start()
    organisation = Organisation(
        server.url, PUBLISHER, state=directory / "org", report=str, poll_seconds=0.1
    )
    try:
        task = organisation.publish(
            Task(
                name="heart",
                model=make_model(),
                config={"local_epochs": 2},
                rounds=ROUNDS,
                min_clients=2,
                max_clients=2,
                join_seconds=600,
                round_seconds=600,
                reward=REWARD,
                stake_per_sample=coins("0.1"),
                metrics=("accuracy",),
            )
        )
        summaries = run_hospitals(server.url, directory, task.number)
        yield Chain(server.url, calendar, directory, organisation, task, summaries)
    finally:
        organisation.close()
        server.stop()
        node.stop()


def test_the_task_finishes_and_everybody_is_paid_by_weight(chain: Chain) -> None:
    assert chain.task.get_info().state is TaskState.FINISHED
    claimed = {key: summary.claimed for key, summary in chain.summaries.items()}
    expected, left = {FIRST.address: 0, SECOND.address: 0}, REWARD
    for played in range(ROUNDS):
        pool = left // (ROUNDS - played)
        for key, share in {FIRST.address: 3 * 2**18, SECOND.address: 2**18}.items():
            expected[key] += pool * share >> 20
            left -= pool * share >> 20
    assert claimed == expected
    assert {s.submitted for s in chain.summaries.values()} == {ROUNDS}


def test_the_stake_returns_and_the_books_balance(chain: Chain) -> None:
    for key in (FIRST, SECOND):
        with open_client(chain.url, key, chain.directory / key.address) as client:
            assert client.leave(chain.task.number) == coins(4)
    chain.task.refund()
    account = chain.organisation.tasks.get_account(chain.task.number)
    assert account.left == 0
    assert account.deposited == account.paid + account.fees + account.refunded
    assert account.paid == sum(summary.claimed for summary in chain.summaries.values())


def test_the_metrics_are_the_mean_of_what_was_reported(chain: Chain) -> None:
    for number in range(1, ROUNDS + 1):
        metrics = chain.organisation.rounds.get_metrics(chain.task.number, number)
        assert (metrics.reports, metrics.means) == (2, (0.625,))


def test_the_model_moved_and_is_what_the_last_round_made(chain: Chain) -> None:
    model = chain.task.model()
    assert model.name == chain.task.model(ROUNDS).name
    moved = model.arrays["weight"] - make_model()["weight"]
    assert 0.001 < float(np.abs(moved).mean()) < 0.05


def test_watching_tells_every_round(chain: Chain) -> None:
    events = [event for event in chain.task.watch() if event.kind == "Aggregated"]
    assert [(event.round, event.submitted) for event in events] == [(1, 2), (2, 2), (3, 2)]


def test_a_round_is_explained_to_each_participant(chain: Chain) -> None:
    told = explain_round(Rpc(chain.url), chain.task.number, 2)
    parts = {part.address.hex(): part for part in told.parts}
    first = parts[FIRST.address[2:].lower()]
    assert (first.outcome, first.samples, first.weighing.share) == ("in the mean", 30, 3 * 2**18)
    assert first.norm == pytest.approx(0.707, rel=0.1)
    assert first.paid == told.payment.to_share * 3 // 4
    assert told.payment.pool - told.payment.dust == sum(part.paid for part in told.parts)
    assert first.steps[0] == f"weight  30 samples << 20 = {30 << 20}"
    assert first.steps[1].endswith(f"= {3 * 2**18} of {2**20} (exact)")
    assert first.steps[2].endswith(f"= {first.paid} wei")
    assert told.summary.startswith("aggregated: 2 drawn, 2 committed, 2 revealed")


# -- auditors --------------------------------------------------------------------------------------
def get_check(report: Report, name: str) -> tuple[Verdict | None, str]:
    (check,) = [check for check in report.checks if check.name == name]
    return check.verdict, check.detail


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_an_honest_round_is_confirmed(chain: Chain, number: int) -> None:
    genesis = (chain.directory / "validator" / "genesis.json").read_bytes()
    report = audit_round(Rpc(chain.url), chain.task.number, number, genesis=genesis)
    assert report.verdict is Verdict.YES, report.checks
    assert get_check(report, "finality")[1].startswith("1 of 1 validators signed")
    assert {check.verdict for check in report.checks} == {Verdict.YES}


@pytest.mark.parametrize("victim", ["base", "update"])
def test_one_changed_bit_is_refuted_and_named(chain: Chain, victim: str) -> None:
    rpc = Rpc(chain.url)
    (record,) = get_events(
        chain.organisation.rpc, chain.task.number, ["Aggregated"], round_number=2
    )
    name = record.values["base"] if victim == "base" else record.values["updates"][1]

    def tamper(wanted: BlobName) -> bytes:
        data = rpc.get_blob(wanted)
        return data[:-1] + bytes([data[-1] ^ 1]) if wanted == name else data

    report = audit_round(rpc, chain.task.number, 2, fetch=tamper)
    assert report.verdict is Verdict.REFUTED
    verdict, detail = get_check(report, "blobs")
    assert verdict is Verdict.REFUTED
    assert "digest mismatch" in detail
    assert encode_cid(name) in detail


class Liar(Rpc):
    """A node that changes one answer."""

    def __init__(self, url: str, lies: dict[str, object]) -> None:
        super().__init__(url)
        self.lies = lies

    def call(self, method: str, *arguments: object) -> object:
        answer = super().call(method, *arguments)
        return self.lies[method](answer) if method in self.lies else answer

    def call_together(self, calls: list) -> list:
        answers = zip(calls, super().call_together(calls), strict=True)
        return [self.lies[name](a) if name in self.lies else a for (name, _), a in answers]

    def get_bytes(self, path: str, limit: int = 2**26) -> bytes:
        data = super().get_bytes(path, limit)
        place = path.split("/")[2]
        return self.lies[place](data) if place in self.lies else data


def flip_last_byte(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def lie_about_logs(logs: list[dict[str, str]]) -> list[dict[str, str]]:
    """Another saturation count in the record."""
    return [{**log, "data": log["data"][:-1] + "7"} for log in logs]


def lie_about_receipts(receipts: list[dict[str, object]]) -> list[dict[str, object]]:
    """The record of the lie, in its receipt too."""
    return [{**r, "logs": lie_about_logs(r["logs"])} for r in receipts]


def change_word(width: int, place: int):
    """Return a lie: one bit of one word in the proofs of that many words, under the true proof."""

    def lie(proof: dict[str, object]) -> dict[str, object]:
        words = [dict(word) for word in proof["storageProof"]]
        if len(words) == width:
            words[place]["value"] = hex(int(words[place]["value"], 16) ^ 1)
        return {**proof, "storageProof": words}

    return lie


TASK, ROUND, CLAIMS = TERMS_WORDS, ROUND_WORDS, 5
"""Words in one proof. Claims are of two clients, the platform, the publisher and a closer."""
NORM = PARAMETERS_OFFSET + RULE_WORDS + Parameters.__slots__[1:].index("admission_norm2")


@pytest.mark.parametrize(
    ("lies", "name"),
    [
        ({"eth_getLogs": lie_about_logs}, "receipts"),
        (
            {"eth_getLogs": lie_about_logs, "eth_getBlockReceipts": lie_about_receipts},
            "receipts",
        ),
        ({"eth_getLogs": lambda logs: logs * 2}, "record"),
        ({"blocks": flip_last_byte}, "header"),
        ({"certificates": flip_last_byte}, "finality"),
        ({"genesis": lambda data: b"{}"}, "genesis"),
        ({"eth_getProof": change_word(TASK, NORM)}, "storage"),
        ({"eth_getProof": change_word(ROUND, 6)}, "storage"),
        ({"eth_getProof": change_word(1, 0)}, "storage"),
        ({"eth_getProof": change_word(ACCOUNT_WORDS, 3)}, "storage"),
        ({"eth_getProof": change_word(CLAIMS, 0)}, "payments"),
    ],
)
def test_a_lying_node_is_refuted_where_it_lies(chain: Chain, lies: dict, name: str) -> None:
    report = audit_round(Liar(chain.url, lies), chain.task.number, 2)
    assert report.verdict is Verdict.REFUTED, report.checks
    assert get_check(report, name)[0] is Verdict.REFUTED


def test_an_audit_believes_no_view(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chain id and admission norm decide what is refuted; a node may say of both what it likes."""
    rpc = Rpc(chain.url)
    monkeypatch.setattr(Rpc, "network", Network(1, bytes(32)))
    real = Tasks.get_task

    def lie(tasks: Tasks, number: int):
        info = real(tasks, number)
        return replace(info, parameters=replace(info.parameters, admission_norm2=1))

    monkeypatch.setattr(Tasks, "get_task", lie)
    report = audit_round(rpc, chain.task.number, 2)
    assert report.verdict is Verdict.YES, report.checks


def test_payments_are_proven_from_both_sides_of_the_block(chain: Chain) -> None:
    report = audit_round(Rpc(chain.url), chain.task.number, 1)
    paid = sum(REWARD // ROUNDS * share // 2**20 for share in (3 * 2**18, 2**18))
    assert get_check(report, "payments") == (
        Verdict.YES,
        f"{paid} wei credited by the shares; proven",
    )


def test_a_node_that_shows_no_record_proves_nothing(chain: Chain) -> None:
    report = audit_round(Liar(chain.url, {"eth_getLogs": lambda logs: []}), chain.task.number, 2)
    assert (report.verdict, report.checks[-1].name) == (Verdict.UNKNOWN, "record")


def test_without_signatures_checked_nothing_is_confirmed(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node could forge the whole block; a thin install must not say YES to it."""
    monkeypatch.setattr(finalized, "can_check_certificates", lambda: False)
    report = audit_round(Rpc(chain.url), chain.task.number, 2)
    assert report.verdict is Verdict.UNKNOWN
    assert "pip install" in get_check(report, "finality")[1]


def test_another_genesis_than_the_auditors_is_refuted(chain: Chain) -> None:
    genesis = (chain.directory / "validator" / "genesis.json").read_bytes()
    other = genesis.replace(b'"client tests"', b'"another name"')
    assert other != genesis
    for report in (
        audit_round(Rpc(chain.url), chain.task.number, 1, genesis=other),
        audit_replay(Rpc(chain.url), genesis=other),
    ):
        assert report.verdict is Verdict.REFUTED
        assert get_check(report, "genesis")[0] is Verdict.REFUTED


def test_a_withholding_node_proves_nothing(chain: Chain) -> None:
    class Withholding(Rpc):
        def get_blob(self, name: BlobName) -> bytes:
            return super().get_blob(BlobName(name.digest, name.size + 1))

    report = audit_round(Withholding(chain.url), chain.task.number, 1)
    assert report.verdict in (Verdict.UNKNOWN, Verdict.REFUTED)
    assert audit_round(Rpc("http://127.0.0.1:1"), 1, 1).verdict is Verdict.UNKNOWN
    assert audit_round(Rpc(chain.url), chain.task.number, 99).verdict is Verdict.UNKNOWN
    assert audit_round(Rpc(chain.url), 99, 1).verdict is Verdict.UNKNOWN


def test_the_chain_replays_from_genesis(chain: Chain) -> None:
    heights: list[int] = []
    report = audit_replay(Rpc(chain.url), progress=heights.append)
    assert report.verdict is Verdict.YES, report.checks
    assert heights == list(range(1, len(heights) + 1))
    assert len(heights) > 10


def test_a_replayed_chain_must_be_the_finalized_one(chain: Chain) -> None:
    """Blocks that execute rightly are not yet those that the validators agreed on."""
    report = audit_replay(Liar(chain.url, {"certificates": flip_last_byte}), last_height=3)
    assert get_check(report, "execution")[0] is Verdict.YES
    assert get_check(report, "finality")[0] is Verdict.REFUTED


def test_a_replay_of_nothing_proves_nothing(chain: Chain) -> None:
    report = audit_replay(Liar(chain.url, {"eth_blockNumber": lambda head: "0x0"}))
    assert report.verdict is Verdict.UNKNOWN
    assert audit_replay(Rpc(chain.url), last_height=10**9).verdict is Verdict.UNKNOWN


def test_a_descendants_certificate_finalizes_a_round(chain: Chain) -> None:
    """After a crash one certificate may stand for several blocks."""
    (record,) = get_events(
        chain.organisation.rpc, chain.task.number, ["Aggregated"], round_number=1
    )
    later = Rpc(chain.url).get_bytes(f"/chain/certificates/{record.height + 2}")
    liar = Liar(chain.url, {"certificates": lambda data: later})
    assert audit_round(liar, chain.task.number, 1).verdict is Verdict.YES
    earlier = Rpc(chain.url).get_bytes(f"/chain/certificates/{record.height - 1}")
    liar = Liar(chain.url, {"certificates": lambda data: earlier})
    assert audit_round(liar, chain.task.number, 1).verdict is not Verdict.YES


def test_a_replay_names_the_first_height_that_differs(chain: Chain) -> None:
    class Forger(Rpc):
        """Block 3 claims another gas limit in its seal: its hash changes."""

        def get_bytes(self, path: str, limit: int = 2**26) -> bytes:
            data = super().get_bytes(path, limit)
            if not path.endswith("/blocks/3"):
                return data
            block = decode_block(data)
            root = block.header.state_root
            return data.replace(root, flip_last_byte(root))

    report = audit_replay(Forger(chain.url))
    assert report.verdict is Verdict.REFUTED
    assert "height 3 differs: block_state_root" in report.checks[-1].detail


# -- what the contract refuses ---------------------------------------------------------------------
def publish_small(chain: Chain, **changes: object) -> PublishedTask:
    settings: dict[str, object] = {
        "name": "small",
        "model": {"w": np.zeros(4, np.float32)},
        "rounds": 1,
        "min_clients": 1,
        "max_clients": 1,
        "round_seconds": 600,
    }
    return chain.organisation.publish(Task(**settings | changes))


def test_an_update_above_the_norm_is_refused_and_explained(chain: Chain) -> None:
    """A client that skips the check learns the reason from the chain."""
    task = publish_small(chain, admission_norm=0.5)
    state, told = chain.directory / "wild", list[str]()

    def report(line: str) -> None:
        """Nobody waits for the end of the round once the reveal was refused."""
        told.append(line)
        if "fedavg: update_norm" in line:
            chain.calendar.ahead += 600

    with open_client(chain.url, FIRST, state) as client:
        client.report = report

        @client.train
        def train(model, ctx) -> Result:
            return Result({"w": np.ones(4, np.float32)}, samples=3)

        real = client.tasks.get_task

        def forget_the_norm(number: int):
            info = real(number)
            return replace(info, parameters=replace(info.parameters, admission_norm2=2**60))

        client.tasks.get_task = forget_the_norm
        summary = client.run(task.number, samples=5)
    assert summary.submitted == 0, told
    (part,) = explain_round(Rpc(chain.url), task.number, 1).parts
    assert part.outcome == "committed, never revealed"
    assert "fedavg: update_norm" in part.refusals[0]


def test_somebody_elses_update_cannot_be_revealed(chain: Chain) -> None:
    """A copied update is bound to its sender, whatever the commitment says."""
    task = publish_small(chain, name="theft")
    with open_client(chain.url, SECOND, chain.directory / "thief") as thief:
        (record,) = get_events(
            chain.organisation.rpc, chain.task.number, ["Aggregated"], round_number=1
        )
        stolen = record.values["updates"][0]
        thief.join(task.number, 5)
        from steelyard.client.contracts import compute_commitment

        salt = b"s" * 32
        commitment = compute_commitment(4711, task.number, 1, 1, thief.address, stolen, 5, salt)
        words = (task.number, 1, 1, commitment)
        thief.send("steal/commit", "commit", *words, contract=thief.rounds)
        arguments = [task.number, 1, 1, (stolen.digest, stolen.size), 5, salt]
        call = Call(
            thief.rounds.address,
            thief.rounds.encode("reveal", *arguments),
            gas=compute_blob_call_gas((), (stolen,), stolen.size),
        )
        with pytest.raises(Reverted, match="fedavg: update_"):
            thief.outbox.send("steal/reveal", call)


def test_receipts_say_what_a_transaction_did(chain: Chain) -> None:
    task = publish_small(chain, name="receipt", base_stake=5, rounds=2, max_clients=3)
    with open_client(chain.url, FIRST, chain.directory / "joiner") as client:
        receipt = client.join(task.number, 5)
        assert isinstance(receipt, Receipt)
        assert receipt.status
        events = client.tasks.decode_logs(receipt.logs)
        assert events[0].name == "Joined"
        assert events[0].values["stake"] == 5
        with pytest.raises(Reverted, match="already joined"):
            client.send("again", "join", task.number, 5, value=5)


def test_coins_reach_a_new_account_for_exactly_the_gas_of_a_transfer(chain: Chain) -> None:
    newcomer = Address(b"\x77" * 20)
    before = get_balance(chain.organisation.rpc, chain.organisation.address)
    done = chain.organisation.send_coins(newcomer, coins("2.5"))
    assert get_balance(chain.organisation.rpc, newcomer) == coins("2.5")
    assert done.left == before - coins("2.5") - done.fee
    receipt = chain.organisation.rpc.call("eth_getTransactionReceipt", "0x" + done.hash.hex())
    assert int(receipt["gasUsed"], 16) == TRANSFER_GAS


def test_a_contract_that_takes_no_coins_is_sent_none(chain: Chain) -> None:
    entries = chain.organisation.journal.get_entries()
    with pytest.raises(ClientError):
        chain.organisation.send_coins(Address(TASKS_ADDRESS), 5)
    assert chain.organisation.journal.get_entries() == entries

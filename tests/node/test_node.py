"""A validator alone: blocks when there is work, blobs before blocks, restarts, full disks."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from eth_keys.datatypes import PrivateKey

from steelyard.chain.block import Header
from steelyard.chain.cid import get_blob_cid
from steelyard.chain.consensus.certificates import check_certificate
from steelyard.chain.errors import InvalidKey, InvalidTransaction, SteelyardError
from steelyard.chain.execute import CallRequest
from steelyard.chain.proofs import check_proof
from steelyard.chain.types import Address, BlobName, Hash
from steelyard.node import directory as directory_module
from steelyard.node import opening
from steelyard.node.config import BlobsConfig, MempoolConfig
from steelyard.node.node import Node
from steelyard.node.records import LogQuery
from steelyard.node.store import ChainStore, CorruptData, StorageFull

from .world import (
    ALICE,
    BOB,
    CONFIG,
    HEARTBEAT_MS,
    PATIENCE_SECONDS,
    SECRETS,
    HandClock,
    found,
    get_address,
    make_blob,
    open_node,
    sign_transaction,
    upload,
    wait_for,
    wait_until,
)

A = get_address(ALICE)
LOGGER = bytes.fromhex("600760006000a100")
"""LOG1 with topic 7 and no data, whatever it is called with."""
LOGGER_CREATION = b"\x67" + LOGGER + bytes.fromhex("60005260086018f3")
TOPIC = (7).to_bytes(32, "big")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return found(tmp_path / "node")


@pytest.fixture
def node(home: Path) -> Iterator[Node]:
    node = open_node(home)
    node.start()
    yield node
    node.stop()


# -- blocks ----------------------------------------------------------------------------------------
def test_a_transaction_makes_a_block_at_once(node: Node) -> None:
    assert PATIENCE_SECONDS < HEARTBEAT_MS / 1000
    height = wait_for(node, node.submit_transaction(sign_transaction(ALICE, 0)))
    assert height == 1
    assert node.get_nonce(A, pending=False) == 1
    assert node.get_balance(Address(b"\x99" * 20)) == 1
    wait_until(lambda: node.get_pending() == ())


def test_every_block_has_a_certificate_that_verifies(node: Node) -> None:
    for nonce in range(3):
        wait_for(node, node.submit_transaction(sign_transaction(ALICE, nonce)))
    for height in range(1, 4):
        certificate = node.get_certificate(height)
        assert certificate is not None
        assert certificate.hash == node.get_hash(height)
        check_certificate(certificate, node.get_epoch_set().validators, node.rules.domain)
    assert node.get_certificate(4) is None


def test_a_burst_shares_a_block(home: Path) -> None:
    config = replace(CONFIG, blocks=replace(CONFIG.blocks, interval_seconds=0.3))
    hand = HandClock()
    node = open_node(home, config, hand.clock)
    node.start()
    hashes = [node.submit_transaction(sign_transaction(ALICE, nonce)) for nonce in range(20)]
    assert wait_for(node, hashes[0]) == 1
    wait_until(lambda: node.driver.progress.final_at is not None)
    hand.skip(node, 0.3)  # not before all the others have come
    heights = {wait_for(node, one) for one in hashes}
    node.stop()
    assert heights <= {1, 2}


@pytest.mark.slow
def test_an_idle_chain_beats_and_does_not_race(tmp_path: Path) -> None:
    node = open_node(found(tmp_path / "node", heartbeat_ms=300))
    node.start()
    wait_until(lambda: node.get_head().height >= 3)
    status = node.get_status()
    node.stop()
    assert status.uptime_seconds >= 0.3 * (status.height - 1)


def test_a_transaction_that_never_fits_does_not_make_a_chain_of_empty_blocks(node: Node) -> None:
    waiting = node.submit_transaction(sign_transaction(ALICE, 0, fee=2 * 10**6, tip=1))
    for nonce in range(8):
        assert wait_for(node, node.submit_transaction(sign_transaction(BOB, nonce))) == nonce + 1
    wait_until(lambda: [one.hash for one in node.get_pending()] == [waiting])


def test_blocks_follow_each_other_long_before_a_heartbeat(node: Node) -> None:
    headers: list[Header] = []
    node.subscribe(headers.append)
    for nonce in range(4):
        wait_for(node, node.submit_transaction(sign_transaction(ALICE, nonce)))
    wait_until(lambda: len(headers) == 4)  # listeners learn of a block after it is stored
    assert [header.height for header in headers] == [1, 2, 3, 4]
    assert headers[-1].timestamp - headers[0].timestamp < HEARTBEAT_MS // 1000


def test_a_listener_that_fails_harms_nobody(node: Node) -> None:
    heights: list[int] = []
    failed: list[int] = []

    def fail(header: Header) -> None:
        failed.append(header.height)
        raise ValueError("mine")

    node.subscribe(fail)
    unsubscribe = node.subscribe(lambda header: heights.append(header.height))
    wait_for(node, node.submit_transaction(sign_transaction(ALICE, 0)))
    wait_until(lambda: heights == [1])
    unsubscribe()
    unsubscribe()
    wait_for(node, node.submit_transaction(sign_transaction(ALICE, 1)))
    wait_until(lambda: failed == [1, 2])
    assert heights == [1]
    assert node.driver.alarm is None


# -- reading ---------------------------------------------------------------------------------------
def deploy_logger(node: Node) -> Address:
    """ALICE's first transaction."""
    creation = sign_transaction(ALICE, 0, to=None, value=0, data=LOGGER_CREATION, gas=200_000)
    created = node.submit_transaction(creation)
    wait_for(node, created)
    inclusion = node.find_transaction(created)
    assert inclusion is not None
    contract = node.get_receipts(inclusion.block_hash)[0].contract_address
    assert contract is not None
    assert node.get_code(contract) == LOGGER
    return contract


def test_logs_are_found_by_address_topic_and_range(node: Node) -> None:
    contract = deploy_logger(node)
    for nonce in (1, 2):
        call = sign_transaction(ALICE, nonce, to=contract, value=0, gas=60_000)
        wait_for(node, node.submit_transaction(call))
    found_logs = node.get_logs(LogQuery(0, 10**9), 10)
    assert [(one.height, one.log_index) for one in found_logs] == [(2, 0), (3, 0)]
    assert found_logs[0].log.address == contract
    assert found_logs[0].log.topics == (TOPIC,)
    assert node.find_transaction(found_logs[0].transaction_hash) is not None
    accepted = frozenset({contract})
    assert node.get_logs(LogQuery(3, 3, accepted, (frozenset({TOPIC}),)), 10) == found_logs[1:]
    assert node.get_logs(LogQuery(0, 9, accepted, (None, None)), 10) == ()
    assert node.get_logs(LogQuery(0, 9, frozenset({A})), 10) == ()
    assert node.get_logs(LogQuery(0, 9, topics=(frozenset({bytes(32)}),)), 10) == ()
    with pytest.raises(SteelyardError) as caught:
        node.get_logs(LogQuery(0, 9), 1)
    assert caught.value.code == "logs_limit"


def test_state_can_be_asked_for_at_a_height(node: Node) -> None:
    wait_for(node, node.submit_transaction(sign_transaction(ALICE, 0)))
    receiver = Address(b"\x99" * 20)
    assert node.get_balance(receiver, 0) == 0
    assert node.get_balance(receiver, 1) == 1
    proof = node.get_proof(receiver, [0], 1)
    header = node.get_header(Hash(node.get_hash(1) or b""))
    assert header is not None
    check_proof(header.state_root, proof)
    assert proof.account.balance == 1
    assert node.get_storage(receiver, 0) == 0
    with pytest.raises(SteelyardError) as caught:
        node.get_balance(receiver, 2)
    assert caught.value.code == "unknown_block"


def test_an_estimate_for_a_contract_suffices(node: Node) -> None:
    contract = deploy_logger(node)
    request = CallRequest(sender=A, to=contract)
    estimate = node.estimate_gas(request).gas_used
    assert not node.call(replace(request, gas=estimate)).is_error
    assert estimate <= node.call(request).gas_used * 102 // 100


def test_an_estimate_suffices_and_is_exact_for_a_transfer(node: Node) -> None:
    request = CallRequest(sender=A, to=Address(b"\x99" * 20), value=1)
    assert node.estimate_gas(request).gas_used == 21_000
    with pytest.raises(InvalidTransaction) as caught:
        node.estimate_gas(replace(request, value=10**30))
    assert caught.value.code == "tx_balance"


def test_a_call_at_the_head_sees_the_block_to_come(node: Node) -> None:
    # NUMBER, TIMESTAMP: store both in memory and return 64 bytes.
    data = bytes.fromhex("43600052426020526040" + "6000f3")
    before = int(time.time())
    result = node.call(CallRequest(sender=A, data=data))
    assert int.from_bytes(result.output[:32], "big") == 1
    assert before <= int.from_bytes(result.output[32:], "big") <= time.time()
    past = node.call(CallRequest(sender=A, data=data), 0)
    assert int.from_bytes(past.output[:32], "big") == 0
    assert int.from_bytes(past.output[32:], "big") == node.genesis.timestamp


def test_the_pool_shows_what_is_pending(home: Path) -> None:
    node = open_node(home)  # not started: nothing is built
    transaction_hash = node.submit_transaction(sign_transaction(ALICE, 0))
    assert [one.hash for one in node.get_pending()] == [transaction_hash]
    assert node.get_pending_transaction(transaction_hash) is not None
    assert node.get_nonce(A, pending=True) == 1
    assert node.get_nonce(A, pending=False) == 0
    assert node.get_status().mempool_transactions == 1
    node.stop()


# -- blobs -----------------------------------------------------------------------------------------
def test_a_blob_transaction_waits_for_its_blob_and_then_goes(node: Node) -> None:
    name, data = make_blob(300_000)
    transaction_hash = node.submit_transaction(sign_transaction(ALICE, 0, blobs=(name,)))
    wait_for(node, node.submit_transaction(sign_transaction(BOB, 0)))
    assert node.find_transaction(transaction_hash) is None
    upload(node, data)
    height = wait_for(node, transaction_hash)
    header = node.get_header(Hash(node.get_hash(height) or b""))
    assert header is not None
    assert node.store.get_blob_expiry(name) == header.timestamp + 3_600
    found_file = node.open_blob(get_blob_cid(name))
    assert found_file is not None
    assert Path(found_file.path).read_bytes() == data


def get_upload_code(node: Node, name: BlobName, size: int | None = None) -> str:
    with pytest.raises(SteelyardError) as caught:
        node.open_blob_upload(get_blob_cid(name), name.size if size is None else size)
    return caught.value.code


def test_blobs_come_after_their_transaction_and_once(node: Node) -> None:
    name, data = make_blob(1_000)
    assert get_upload_code(node, name) == "blob_undeclared"
    transaction_hash = node.submit_transaction(sign_transaction(ALICE, 0, blobs=(name,)))
    assert get_upload_code(node, name, 1_001) == "blob_size"
    assert get_upload_code(node, name, 300_000) == "blob_size"
    upload(node, data)
    assert get_upload_code(node, name) == "blob_held"
    wait_for(node, transaction_hash)
    assert get_upload_code(node, name) == "blob_held"


@pytest.mark.slow
def test_a_blob_whose_transaction_expired_is_too_late(home: Path) -> None:
    config = replace(CONFIG, mempool=MempoolConfig(blob_expiry_seconds=0.1))
    node = open_node(home, config)
    node.start()
    name, _ = make_blob(1_000)
    node.submit_transaction(sign_transaction(ALICE, 0, blobs=(name,)))
    wait_until(lambda: node.get_pending() == ())
    assert get_upload_code(node, name) == "blob_too_late"
    node.stop()


def test_a_quota_bounds_what_waits(home: Path) -> None:
    node = open_node(home, replace(CONFIG, blobs=BlobsConfig(max_pending_bytes=500)))
    name, _ = make_blob(1_000)
    node.submit_transaction(sign_transaction(ALICE, 0, blobs=(name,)))
    assert get_upload_code(node, name) == "blob_quota"
    node.stop()


def test_a_full_disk_takes_no_blobs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = open_node(home)
    name, _ = make_blob(1_000)
    node.submit_transaction(sign_transaction(ALICE, 0, blobs=(name,)))
    monkeypatch.setattr(directory_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert get_upload_code(node, name) == "disk_full"
    monkeypatch.undo()
    node.stop()


def test_uploads_under_way_together_leave_the_free_space_that_blocks_need(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = open_node(home)
    names = [make_blob(100_000, seed)[0] for seed in range(3)]
    node.submit_transaction(sign_transaction(ALICE, 0, blobs=tuple(names)))
    free = CONFIG.storage.min_free_bytes + 250_000
    monkeypatch.setattr(directory_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    uploads = [node.open_blob_upload(get_blob_cid(one), one.size) for one in names[:2]]
    assert get_upload_code(node, names[2]) == "disk_full"
    for upload_ in uploads:
        upload_.abort()
    node.open_blob_upload(get_blob_cid(names[2]), names[2].size).abort()
    node.stop()


@pytest.mark.slow
def test_what_nobody_needs_any_more_goes_even_while_the_disk_is_full(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = open_node(home, replace(CONFIG, mempool=MempoolConfig(expiry_seconds=0.2)))
    name, data = make_blob(1_000)
    node.submit_transaction(sign_transaction(ALICE, 0, blobs=(name,)))
    upload(node, data)
    monkeypatch.setattr(directory_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    node.start()
    wait_until(lambda: not node.blobs.has(name))
    wait_until(lambda: node.driver.alarm is not None)  # the house is kept before space is missed
    assert node.get_pending() == ()
    node.stop()


@pytest.mark.slow
def test_a_replaced_transactions_blob_is_deleted(node: Node) -> None:
    name, data = make_blob(1_000)
    never_sent, _ = make_blob(2_000)
    node.submit_transaction(sign_transaction(ALICE, 0, blobs=(name, never_sent)))
    upload(node, data)
    node.submit_transaction(sign_transaction(ALICE, 0, fee=2 * 10**10, tip=2 * 10**6))
    wait_until(lambda: not node.blobs.has(name))


def admit_short_lived_blob(home: Path, *, archive: bool) -> tuple[Node, BlobName]:
    node = open_node(home, replace(CONFIG, blobs=BlobsConfig(archive=archive)))
    name, data = make_blob(1_000)
    held: list[bool] = []
    node.subscribe(lambda _: held.append(node.blobs.has(name)))  # later it may have expired
    declaring = node.submit_transaction(sign_transaction(ALICE, 0, blobs=(name,)))
    upload(node, data)
    node.start()
    wait_until(lambda: held)
    assert node.find_transaction(declaring) is not None
    assert held[0]
    return node, name


@pytest.mark.slow
def test_an_expired_blob_is_deleted(tmp_path: Path) -> None:
    home = found(tmp_path / "node", blob_retention_seconds=1, heartbeat_ms=200)
    node, name = admit_short_lived_blob(home, archive=False)
    wait_until(lambda: not node.blobs.has(name))
    wait_until(lambda: node.store.get_blob_expiry(name) is None)
    node.stop()


@pytest.mark.slow
def test_an_archive_keeps_expired_blobs(tmp_path: Path) -> None:
    home = found(tmp_path / "node", blob_retention_seconds=1, heartbeat_ms=200)
    node, name = admit_short_lived_blob(home, archive=True)
    expires_at = node.store.get_blob_expiry(name) or 0
    wait_until(lambda: node.get_head().timestamp > expires_at + 1)
    assert node.blobs.has(name)
    node.stop()
    node = open_node(home)
    assert node.blobs.has(name)
    node.stop()


def test_a_lost_blob_can_be_sent_again(home: Path) -> None:
    name, data = make_blob(1_000)
    node = open_node(home)
    node.start()
    transaction_hash = node.submit_transaction(sign_transaction(ALICE, 0, blobs=(name,)))
    upload(node, data)
    wait_for(node, transaction_hash)
    node.stop()
    next((home / "blobs").glob("??/*")).unlink()
    node = open_node(home)
    upload(node, data)
    assert bytes(node.blobs.read(name)) == data
    node.stop()


# -- restarts --------------------------------------------------------------------------------------
def test_a_restart_goes_on_where_it_stopped(home: Path) -> None:
    node = open_node(home)
    node.start()
    first = node.submit_transaction(sign_transaction(ALICE, 0))
    wait_for(node, first)
    head = node.get_head()
    node.stop()
    node = open_node(home)
    assert node.get_head() == head
    assert node.find_transaction(first) is not None
    node.start()
    assert wait_for(node, node.submit_transaction(sign_transaction(ALICE, 1))) == 2
    node.stop()


def test_two_processes_cannot_share_a_directory(node: Node, home: Path) -> None:
    with pytest.raises(SteelyardError, match="never run two validators") as caught:
        open_node(home)
    assert caught.value.code == "data_locked"


def test_a_failed_start_lets_go_of_the_lock(home: Path) -> None:
    config = (home / "config.toml").read_text()
    (home / "config.toml").write_text("[nonsense]")
    with pytest.raises(SteelyardError):
        Node.open(home, SECRETS)
    (home / "config.toml").write_text(config)
    Node.open(home, SECRETS).stop()


def test_a_missing_directory_or_genesis_says_what_to_do(tmp_path: Path, home: Path) -> None:
    with pytest.raises(SteelyardError, match="node init") as caught:
        open_node(tmp_path / "nothing")
    assert caught.value.code == "data_missing"
    (home / "genesis.json").unlink()
    with pytest.raises(SteelyardError, match="node init") as caught:
        open_node(home)
    assert caught.value.code == "genesis_missing"


def test_a_machine_with_wrong_kernels_does_not_start(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening.selftest, "run", lambda: ["case: wrong bits"])
    with pytest.raises(SteelyardError, match="wrong bits") as caught:
        open_node(home)
    assert caught.value.code == "selftest"


def test_keys_of_somebody_else_are_refused(home: Path) -> None:
    stranger = replace(SECRETS, account=PrivateKey(b"\x77" * 32))
    with pytest.raises(InvalidKey) as caught:
        Node.open(home, stranger, CONFIG)
    assert caught.value.code == "key_validator"


def test_the_genesis_of_another_chain_is_refused(home: Path, tmp_path: Path) -> None:
    open_node(home).stop()
    other = found(tmp_path / "other", name="other")
    (home / "genesis.json").write_bytes((other / "genesis.json").read_bytes())
    with pytest.raises(SteelyardError) as caught:
        open_node(home)
    assert caught.value.code in {"genesis_mismatch", "signer_mismatch"}


def test_a_chain_that_vanished_under_a_key_that_voted_is_refused(home: Path) -> None:
    import shutil

    node = open_node(home)
    node.start()
    wait_for(node, node.submit_transaction(sign_transaction(ALICE, 0)))
    node.stop()
    shutil.rmtree(home / "chain")
    with pytest.raises(CorruptData, match="backup"):
        open_node(home)


# -- faults that may pass --------------------------------------------------------------------------
@pytest.mark.slow
def test_a_full_disk_stops_production_and_not_reading(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for(node, node.submit_transaction(sign_transaction(ALICE, 0)))
    monkeypatch.setattr(directory_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    waiting = node.submit_transaction(sign_transaction(ALICE, 1))
    wait_until(lambda: node.driver.alarm is not None)
    assert node.driver.alarm is not None
    assert node.driver.alarm.code == "disk_full"
    assert node.get_balance(Address(b"\x99" * 20)) == 1
    assert node.find_transaction(waiting) is None
    monkeypatch.undo()
    wait_for(node, waiting)
    wait_until(lambda: node.get_status().alarm is None)


@pytest.mark.slow
def test_a_commit_that_fails_is_made_up_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, calls = ChainStore.commit, []

    def fail_once(store: ChainStore, *arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            raise StorageFull("disk_full", "no space")
        commit(store, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ChainStore, "commit", fail_once)
    first = node.submit_transaction(sign_transaction(ALICE, 0))
    assert wait_for(node, first) == 1
    assert len(calls) == 2
    assert node.get_certificate(1) is not None


def test_our_own_mistake_stops_production_and_not_reading(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(ChainStore, "commit", fail)
    node.submit_transaction(sign_transaction(ALICE, 0))
    wait_until(lambda: node.driver.alarm is not None)
    status = node.get_status()
    assert status.alarm == "driver_failed"
    assert "ours" in (status.alarm_message or "")
    assert node.get_head().height == 0

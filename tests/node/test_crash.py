"""Killed at any instant, a validator loses no finalized block and never says two things in a view.

Each run is a child process that writes what left it (votes, finalized blocks) to a file that
outlives it. It dies at a chosen step of persistence, or when the parent kills it; the next child
takes over the same directory.
"""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from steelyard.chain.block import Header
from steelyard.chain.consensus.votes import Kind, Statement, Vote, find_offence
from steelyard.chain.transactions import StaleNonce
from steelyard.chain.types import Epoch, Hash, View
from steelyard.node import driver
from steelyard.node.journal import CERTIFICATE
from steelyard.node.node import Node
from steelyard.node.signer import Signer
from steelyard.node.store import Database, StorageFull, Writer

from .world import (
    ALICE,
    CONFIG,
    found,
    get_address,
    make_blob,
    open_node,
    sign_transaction,
    upload,
    wait_until,
)

HASTY = replace(CONFIG, blocks=replace(CONFIG.blocks, interval_seconds=0.0))
KILLED = 137
MAX_STEPS = 200
KILLS = 30
STEP_BLOCKS = 8
"""Enough work in each run that it has more than sixty steps to die at."""
A = get_address(ALICE)


# -- in the child ----------------------------------------------------------------------------------
class Witness:
    """Appends to a file what left this process; a kill cannot take that back."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def saw_vote(self, vote: Vote) -> None:
        said = vote.statement
        self._write(f"vote {said.view} {said.kind} {said.hash.hex()}")

    def saw_block(self, header: Header) -> None:
        self._write(f"block {header.height} {header.hash.hex()}")

    def _write(self, line: str) -> None:
        os.write(self._handle, f"{line}\n".encode())


def watch_votes(witness: Witness) -> None:
    original = Signer.sign_vote

    def sign_vote(signer: Signer, statement: Statement, place: int) -> Vote:
        vote = original(signer, statement, place)
        witness.saw_vote(vote)
        return vote

    Signer.sign_vote = sign_vote  # type: ignore[method-assign]


def die_at(step: int) -> None:
    """End the process, as a power cut would, at the nth step of persistence from now on."""
    left = step

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os._exit(KILLED)

    def around(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            count()
            result = function(*arguments, **options)
            count()
            return result

        return call

    write = Database.write

    @contextmanager
    def counted_write(database: Database) -> Iterator[Writer]:
        with write(database) as writer:
            yield writer
            count()
        count()

    Database.write = counted_write  # type: ignore[method-assign]
    os.fsync = around(os.fsync)  # type: ignore[assignment]
    Path.replace = around(Path.replace)  # type: ignore[method-assign, assignment]


def work(node: Node, count: int) -> None:
    """Transfers, and every third time a blob, until `count` more are final."""
    first = node.get_nonce(A, pending=False)
    for nonce in range(first, first + count):
        with suppress(StaleNonce):  # the driver made final, since we asked, what was left over
            send(node, nonce)
        wait_until(lambda nonce=nonce: node.get_nonce(A, pending=False) > nonce)


def send(node: Node, nonce: int) -> None:
    if nonce % 3 == 1:
        name, data = make_blob(5_000, nonce)
        node.submit_transaction(sign_transaction(ALICE, nonce, blobs=(name,)))
        if not node.blobs.has(name):
            upload(node, data)
    else:
        node.submit_transaction(sign_transaction(ALICE, nonce))


def run_child(home: Path, journal: Path, step: int | None, count: int) -> int:
    """Fork a node on the directory; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        witness = Witness(journal)
        watch_votes(witness)
        if step is not None:
            die_at(step)
        node = open_node(home, HASTY)
        node.subscribe(witness.saw_block)
        node.start()
        work(node, count)
        node.stop()
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def wait_for_child(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


# -- in the parent ---------------------------------------------------------------------------------
def check_witness(home: Path, journal: Path) -> int:
    """Every block that was announced is still there; no two votes conflict. Returns the height."""
    statements: set[Statement] = set()
    blocks: dict[int, Hash] = {}
    for line in journal.read_text().splitlines() if journal.exists() else ():
        kind, *fields = line.split()
        block = Hash(bytes.fromhex(fields[-1]))
        if kind == "vote":
            view = View(int(fields[0]))
            statements.add(Statement(Epoch(0), view, Kind(int(fields[1])), block))
        else:
            assert blocks.setdefault(int(fields[0]), block) == block
    for first, second in combinations(sorted(statements), 2):
        assert find_offence(first, second) is None
    node = open_node(home)
    for height, block in blocks.items():
        assert node.get_hash(height) == block
        certificate = node.get_certificate(height)
        assert certificate is not None
    height = node.get_head().height
    assert all(node.get_header(Hash(node.get_hash(one) or b"")) for one in range(height + 1))
    node.stop()
    return height


@pytest.mark.slow
def test_a_kill_at_any_step_of_persistence_loses_nothing(tmp_path: Path) -> None:
    home, journal = found(tmp_path / "node"), tmp_path / "witness"
    for step in range(1, MAX_STEPS):
        code = wait_for_child(run_child(home, journal, step, STEP_BLOCKS))
        if code == 0:
            break
        assert code == KILLED
        if step % 10 == 0:
            check_witness(home, journal)
    assert code == 0
    assert step > 60
    assert check_witness(home, journal) >= 3


@pytest.mark.slow
def test_a_kill_at_any_instant_loses_nothing(tmp_path: Path) -> None:
    home, journal = found(tmp_path / "node"), tmp_path / "witness"
    instants = random.Random(1)
    for _ in range(KILLS):
        pid = run_child(home, journal, None, 10_000)
        time.sleep(instants.uniform(0.02, 0.25))
        os.kill(pid, signal.SIGKILL)
        assert wait_for_child(pid) == -signal.SIGKILL
    assert wait_for_child(run_child(home, journal, None, 3)) == 0
    assert check_witness(home, journal) >= 3


def test_the_witness_would_see_a_double_vote(tmp_path: Path) -> None:
    home, journal = found(tmp_path / "node"), tmp_path / "witness"
    journal.write_text(f"vote 1 1 {'aa' * 32}\nvote 1 1 {'bb' * 32}\n")
    with pytest.raises(AssertionError):
        check_witness(home, journal)


# -- what is written when --------------------------------------------------------------------------
def test_a_validator_alone_writes_its_journal_once_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, writes = open_node(found(tmp_path / "node"), HASTY), list[object]()
    write = node.store.write_journal

    def count(entries: Mapping[bytes, bytes | None]) -> None:
        writes.append(entries)
        write(entries)

    monkeypatch.setattr(node.store, "write_journal", count)
    node.start()
    work(node, 4)
    blocks = node.get_head().height
    node.stop()
    assert blocks <= len(writes) <= blocks + 1  # one may be on its way


def test_votes_without_their_certificate_are_enough_for_a_validator_alone_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies between its finalize vote, of which the journal knows nothing, and the commit."""
    home = found(tmp_path / "node")
    node, said = open_node(home, HASTY), list[Statement]()
    sign_vote, has_died = Signer.sign_vote, threading.Event()

    def sign(signer: Signer, statement: Statement, place: int) -> Vote:
        vote = sign_vote(signer, statement, place)
        said.append(statement)
        if statement.kind == Kind.FINALIZE:
            has_died.set()
            raise StorageFull("disk_full", "the process ends here")
        return vote

    with monkeypatch.context() as patch:
        patch.setattr(Signer, "sign_vote", sign)
        patch.setattr(driver, "RETRY_SECONDS", 3_600.0)  # it has no second life before it is killed
        node.submit_transaction(sign_transaction(ALICE, 0))
        node.start()
        assert has_died.wait(60)
        node.stop()
    node = open_node(home, HASTY)
    assert node.get_head().height == 0
    assert all(key[:1] != CERTIFICATE for key, _ in node.store.read_journal())
    node.start()
    wait_until(lambda: node.get_head().height >= 1)
    assert node.get_hash(1) == said[-1].hash
    node.stop()

"""Lives of tasks, datasets and validators in which every call is taken, and its gas noted.

A name stands for the first call of that name, when the slots that it writes are empty; a label says
what a call did that does different things.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from eth_abi.abi import encode

from steelyard.chain import bls
from steelyard.chain.consensus.votes import Kind, Statement, compute_signing_root
from steelyard.chain.evidence import encode_statement
from steelyard.chain.model import encode_model
from steelyard.chain.types import Address, BlobName, Digest, Domain, Hash, Round, TaskId
from steelyard.chain.update import Mode, UpdateHeader, encode_update

from .agreement import CLOSE_TIMEOUT_SECONDS, ONE
from .arena import CHAIN_ID, ZERO, Arena, get_codes
from .course import Reveal, compute_commitment
from .player import MANIFEST, VALUES, as_tuple, encode_terms, force_split
from .referee import KEEPER, NO_BLOB, PUBLISHERS

PUBLISHER, READER = PUBLISHERS
INVITED, APPLICANTS, EXTEND = 1, 2, 1
JOIN_SECONDS, COMMIT_SECONDS, REVEAL_SECONDS = 100, 50, 50
TERMS = {
    "rule": {"kind": 0, "bound": 0, "max_share": ONE, "server_lr": 4_096, "momentum": 0},
    "weighting": 0, "bits": 8, "rounds": 2, "min_clients": 2, "max_clients": 2,
    "fraction_fit": ONE, "spare_clients": 0, "max_staleness": 0, "staleness_discount": 0,
    "on_failed_quorum": 0, "max_extensions": 0, "max_saturated": 2**256 - 1, "evaluate_every": 1,
    "join_seconds": JOIN_SECONDS, "commit_seconds": COMMIT_SECONDS,
    "reveal_seconds": REVEAL_SECONDS, "base_stake": 100, "stake_per_sample": 1, "bond": 50,
    "admission": 0, "min_reputation": 0, "admission_norm2": 2**200, "reward": 10**9,
    "close_reserve": 10**9, "close_bounty": 10**5, "platform": ZERO, "platform_share": 0,
}  # fmt: skip
SALT = b"\x5a" * 32
PLACES = 64
"""Of validators; as many are there from the beginning, so that each call looks at all."""
EPOCH_BLOCKS, UNBONDING_SECONDS, JAIL_EPOCHS = 2, 100, 8


class Meter:
    """An arena with `count` clients, and the gas of what was sent there."""

    def __init__(self, count: int, others: Sequence[Address] = ()) -> None:
        self.clients = [Address(bytes([0x10 + i]) * 20) for i in range(count)]
        self.arena = Arena([PUBLISHER, READER, KEEPER, *self.clients, *others], get_codes())
        self.gas: dict[str, int] = {}
        self.tasks = 0

    def send(
        self,
        sender: Address,
        contract: str,
        name: str,
        *arguments: Any,
        label: str = "",
        value: int = 0,
        blobs: Sequence[BlobName] = (),
    ) -> None:
        """Send a call that must be taken."""
        done = self.arena.send(sender, contract, name, *arguments, value=value, blobs=blobs)
        assert done.reason is None, (name, done.reason)
        self.gas.setdefault(f"{contract}.{label or name}", done.gas_used)

    def publish(self, *, starts: bool = True, **changes: Any) -> int:
        """Publish a task, which all clients join if it is to start; return its number."""
        count = len(self.clients)
        terms = TERMS | {"min_clients": count, "max_clients": count} | changes
        model = self.arena.put(encode_model(MANIFEST, np.zeros(VALUES, np.int32)))
        value = terms["reward"] + terms["rounds"] * terms["close_reserve"]
        self.send(
            PUBLISHER, "Tasks", "publish", "heart", encode_terms(self.arena, terms),
            as_tuple(model), as_tuple(NO_BLOB), [], value=value, blobs=[model],
        )  # fmt: skip
        self.tasks += 1
        if starts:
            self.join(self.tasks, self.clients)
        return self.tasks

    def join(self, task: int, clients: Sequence[Address]) -> None:
        for client in clients:
            self.send(client, "Tasks", "join", task, 10, value=110)

    def commit(self, task: int, number: int) -> dict[Address, Reveal]:
        """Commit for all clients; return what they will reveal."""
        base = self.arena.ask("Rounds", "get_round", task, number)["base"]
        shown = {}
        for index, client in enumerate(self.clients):
            header = UpdateHeader(
                mode=Mode.OPEN, bits=8, round=Round(number), chain_id=CHAIN_ID,
                task=TaskId(task), values=VALUES, exponents=3, base=base, sender=client,
            )  # fmt: skip
            values = np.full(VALUES, index + 1, np.int8)
            name = self.arena.put(encode_update(header, np.full(3, -20, np.int8), values))
            shown[client] = Reveal(number, name, 10, SALT)
            commitment = compute_commitment(task, number, client, shown[client])
            self.send(client, "Rounds", "commit", task, number, number, commitment)
        return shown

    def reveal(self, task: int, number: int, client: Address, shown: Reveal) -> None:
        self.send(
            client, "Rounds", "reveal", task, number, number, as_tuple(shown.update), 10, SALT,
            blobs=[shown.update],
        )  # fmt: skip

    def play_round(self, task: int, number: int, label: str) -> None:
        """Commit, reveal and close."""
        for client, shown in self.commit(task, number).items():
            self.reveal(task, number, client, shown)
        self.close(task, number, label)

    def close(self, task: int, number: int, label: str) -> None:
        self.send(KEEPER, "Rounds", "close", task, number, label=label)


# -- tasks -----------------------------------------------------------------------------------------


def play_life(count: int) -> Meter:
    """One task of two rounds with so many clients, to its end."""
    meter = Meter(count)
    task = meter.publish(starts=False)
    meter.send(PUBLISHER, "Tasks", "fund", task, value=1)
    meter.send(PUBLISHER, "Tasks", "sponsor", task, meter.clients[0], 7, value=200)
    meter.join(task, meter.clients)
    for number in (1, 2):
        meter.play_round(task, number, f"close {number}")
        meter.send(meter.clients[0], "Rounds", "report", task, number, 10, [5, 6])
    for client in meter.clients:
        meter.send(client, "Tasks", "claim", task)
        meter.send(client, "Tasks", "leave", task)
    meter.send(PUBLISHER, "Tasks", "refund", task)
    return meter


def play_lobby() -> Meter:
    """Who is let in, by whom; then the publisher starts, pauses, resumes and cancels."""
    meter = Meter(3)
    first, second, third = meter.clients
    changes = {"min_clients": 2, "rounds": 3, "evaluate_every": 0, "admission": APPLICANTS}
    task = meter.publish(starts=False, **changes)
    meter.send(first, "Tasks", "apply", task, as_tuple(NO_BLOB))
    meter.send(PUBLISHER, "Tasks", "invite", task, [first, second, third])
    meter.send(PUBLISHER, "Tasks", "uninvite", task, third)
    meter.send(PUBLISHER, "Tasks", "sponsor", task, third, 7, value=200)
    meter.send(PUBLISHER, "Tasks", "unsponsor", task, third)
    meter.join(task, [first, second])
    meter.send(first, "Tasks", "add_stake", task, value=1)
    meter.send(PUBLISHER, "Tasks", "start", task)
    meter.send(PUBLISHER, "Tasks", "pause", task)
    meter.clients.remove(third)
    meter.play_round(task, 1, "close and pause")
    meter.send(PUBLISHER, "Rounds", "request_evaluation", task, 1)
    meter.send(PUBLISHER, "Tasks", "resume", task)
    meter.send(PUBLISHER, "Tasks", "cancel", task)
    meter.send(KEEPER, "Tasks", "release", task, first)
    task = meter.publish()
    meter.arena.advance(COMMIT_SECONDS + CLOSE_TIMEOUT_SECONDS)
    meter.send(KEEPER, "Tasks", "abort", task)
    return meter


def play_failures() -> Meter:
    """Closes that make no model: for want of reveals, then of commitments."""
    meter = Meter(4)
    task = meter.publish(rounds=3, on_failed_quorum=EXTEND, max_extensions=1)
    client, shown = next(iter(meter.commit(task, 1).items()))
    meter.reveal(task, 1, client, shown)
    meter.arena.advance(REVEAL_SECONDS)
    meter.close(task, 1, "close and extend the reveals")
    meter.arena.advance(REVEAL_SECONDS)
    meter.close(task, 1, "close and compensate one, punish three")
    meter.arena.advance(COMMIT_SECONDS)
    meter.close(task, 2, "close and extend the commitments")
    meter.arena.advance(COMMIT_SECONDS)
    meter.close(task, 2, "close and skip")
    return meter


def play_pages() -> Meter:
    """A round under Multi-Krum that is closed by a measure, two combines and the assembly."""
    meter = Meter(5)
    krum = {"kind": 3, "bound": 1, "max_share": ONE, "server_lr": 4_096, "momentum": 0}
    with force_split(1, 2):
        task = meter.publish(rule=krum)
    for client, shown in meter.commit(task, 1).items():
        meter.reveal(task, 1, client, shown)
    for label in ("measure", "combine", "combine again", "assemble"):
        meter.close(task, 1, f"close: {label}")
    return meter


# -- the registry ----------------------------------------------------------------------------------


def play_registry() -> Meter:
    """An identity with statements, a base model and what a round made of it, two datasets."""
    meter = Meter(2)
    task = meter.publish()
    base = meter.arena.ask("Rounds", "get_round", task, 1)["base"]
    meter.play_round(task, 1, "close")
    made = meter.arena.ask("Rounds", "get_round", task, 1)["model"]
    meter.gas.clear()
    meter.arena.deploy("Registry")
    file, none = as_tuple(BlobName(Digest(b"\x5b" * 32), 100)), as_tuple(NO_BLOB)
    key = b"\x5c" * 32

    def send(sender: Address, name: str, *arguments: Any, label: str = "") -> None:
        meter.send(sender, "Registry", name, *arguments, label=label)

    send(PUBLISHER, "register", file)
    send(READER, "attest", PUBLISHER, file)
    send(READER, "revoke_attestation", PUBLISHER, file)
    send(PUBLISHER, "publish_model", as_tuple(base), 0, 0, none, file)
    label = "publish_model with origin and parent"
    send(PUBLISHER, "publish_model", as_tuple(made), task, 1, as_tuple(base), file, label=label)
    send(PUBLISHER, "publish_dataset", file, file)
    send(READER, "request_access", 1, key)
    send(PUBLISHER, "grant_access", 1, READER, b"\x5d" * 80)
    send(KEEPER, "request_access", 1, key)
    send(PUBLISHER, "deny_access", 1, KEEPER)
    send(PUBLISHER, "retire_dataset", 1)
    return meter


# -- validators ------------------------------------------------------------------------------------


def make_secret(number: int) -> bls.SecretKey:
    return bls.derive_secret_key(bytes([number + 1]) * 32)


def make_rows(accounts: Sequence[Address]) -> list[tuple[Any, ...]]:
    """Return what genesis tells Staking: one rich, one with a key that signs, and poor ones."""
    keys = [b"\x80" + number.to_bytes(47, "big") for number in range(len(accounts))]
    keys[1] = bytes(bls.compute_public_key(make_secret(1)))
    return [
        (
            account, keys[number], b"\x80" + number.to_bytes(31, "big"), f"127.0.0.1:{number + 1}",
            account, 10**6 if number == 0 else 200 if number == 1 else 100 + number,
        )
        for number, account in enumerate(accounts)
    ]  # fmt: skip


def play_staking() -> Meter:
    """A full set of 64: somebody takes a place, somebody is jailed, leaves, is slashed."""
    accounts = [Address(bytes([0x20, number]) * 10) for number in range(PLACES + 1)]
    meter = Meter(0, accounts)
    rows = make_rows(accounts[:PLACES])
    types = ["(address,bytes,bytes32,string,address,uint256)[]", "uint256", "uint256", "uint256"]
    arguments = encode(types, [rows, 1, UNBONDING_SECONDS, EPOCH_BLOCKS])
    meter.arena.deploy("Staking", arguments, value=sum(row[-1] for row in rows))
    rich, forger, lowest, absent = (*accounts[:3], accounts[PLACES - 1])
    newcomer, secret = accounts[PLACES], make_secret(PLACES)

    def send(sender: Address, name: str, *arguments: Any, value: int = 0) -> None:
        meter.send(sender, "Staking", name, *arguments, value=value)

    def advance(epochs: int) -> None:
        for _ in range(epochs * EPOCH_BLOCKS):
            meter.arena.advance(UNBONDING_SECONDS)

    proof = bytes(bls.prove_possession(secret))
    key = bytes(bls.compute_public_key(secret))
    send(newcomer, "deposit", key, proof, b"\x5a" * 32, "127.0.0.1:9", newcomer, value=300)
    send(lowest, "add_stake", value=200)
    send(lowest, "enter")
    send(newcomer, "set_endpoint", "127.0.0.1:10")
    send(newcomer, "set_network_key", b"\x5b" * 32)
    send(newcomer, "set_fee_recipient", KEEPER)
    advance(JAIL_EPOCHS + 2)
    send(rich, "check_in")
    send(KEEPER, "jail", absent)
    advance(1)
    send(absent, "unjail")
    send(newcomer, "request_exit")
    advance(2)
    send(newcomer, "withdraw")
    send(KEEPER, "report", *make_evidence(forger))
    return meter


def make_evidence(forger: Address) -> list[Any]:
    """Return the arguments of a report: two notarizations in one view."""
    arguments: list[Any] = []
    for block in (b"\xaa" * 32, b"\xbb" * 32):
        statement = Statement(1, 5, Kind.NOTARIZE, Hash(block))
        signature = bls.sign(make_secret(1), compute_signing_root(statement, Domain(bytes(32))))
        arguments += [encode_statement(statement), [forger], bytes(signature)]
    return arguments


PLAYS: dict[str, Callable[[], Meter]] = {
    "a task with 2 clients": lambda: play_life(2),
    "a task with 16 clients": lambda: play_life(16),
    "the publisher's hand, with 2 clients": play_lobby,
    "failed quorums, with 4 clients": play_failures,
    "pages, with 5 clients": play_pages,
    "the registry": play_registry,
    "64 validators": play_staking,
}

"""A small stage for tests: both contracts, a publisher, hospitals, a stranger, a keeper."""

import hashlib
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
from eth.vm.state import BaseState
from eth_abi import encode
from eth_utils import keccak, to_checksum_address

from steelyard.chain.model import Manifest, Role, TensorSpec, encode_model
from steelyard.chain.params import FEDAVG_ADDRESS
from steelyard.chain.types import BlobName
from steelyard.chain.update import Mode, UpdateHeader, encode_update

LOBBY, RUNNING, FINISHED, ABORTED, PAUSED = 1, 2, 3, 4, 5
OPEN, AGGREGATED, SKIPPED, CLOSING, STOPPED = 1, 2, 3, 4, 5
WAIT, START, CLOSE, ABORT = 0, 1, 2, 3
SKIP, EXTEND, REFUND = 0, 1, 2
ANYBODY, INVITED, APPLICANTS = 0, 1, 2

ONE = 2**20
NEVER = 2**256 - 1

CLOSE_TIMEOUT_SECONDS = 86_400
JOIN_SECONDS, COMMIT_SECONDS, REVEAL_SECONDS = 1_000, 600, 500
STAKE_PER_SAMPLE, BASE_STAKE, BOND = 10**12, 10**15, 10**14
MANIFEST = Manifest((TensorSpec("w", (8,), "float32", 24, Role.TRAIN),))
NO_BLOB = (bytes(32), 0)
BLOB, RULE = "(bytes32,uint256)", "(uint8,uint256,uint256,uint256,uint256)"

PARAMETERS = {
    "rule": (0, 0, ONE, 4096, 0),
    "weighting": 0,
    "bits": 8,
    "rounds": 2,
    "min_clients": 2,
    "max_clients": 3,
    "fraction_fit": ONE,
    "spare_clients": 0,
    "max_staleness": 0,
    "staleness_discount": ONE,
    "on_failed_quorum": SKIP,
    "max_extensions": 0,
    "max_saturated": NEVER,
    "evaluate_every": 1,
    "join_seconds": JOIN_SECONDS,
    "commit_seconds": COMMIT_SECONDS,
    "reveal_seconds": REVEAL_SECONDS,
    "base_stake": BASE_STAKE,
    "stake_per_sample": STAKE_PER_SAMPLE,
    "bond": BOND,
    "admission": ANYBODY,
    "min_reputation": 0,
    "admission_norm2": 2**80,
    "reward": 10**18 + 7,
    "close_reserve": 10**16,
    "close_bounty": 10**12,
    "platform": "0x" + "00" * 20,
    "platform_share": 0,
}


def compute_stake(samples):
    return BASE_STAKE + samples * STAKE_PER_SAMPLE


def as_tuple(name):
    return (name.digest, name.size)


class World:
    """Sends transactions and prepares blobs; asserts nothing by itself."""

    def __init__(self, tasks, rounds, accounts, chain, shelf):
        self.tasks, self.rounds, self.chain, self.shelf = tasks, rounds, chain, shelf
        self.publisher, self.keeper, self.stranger = accounts[1], accounts[2], accounts[3]
        self.hospitals = list(accounts[4:18])
        self.sealed = {}

    # -- time and blobs

    @property
    def now(self):
        return self.chain.blocks.head.timestamp

    def advance_to(self, timestamp):
        """Mine a block at `timestamp`; the next transaction is one second later or more."""
        self.chain.pending_timestamp = timestamp
        self.chain.mine()

    def advance(self, seconds):
        self.advance_to(self.now + seconds)

    def set_next(self, timestamp):
        """Let the next transaction be in a block at `timestamp` to the second."""
        self.chain.pending_timestamp = timestamp

    def declare(self, data, **retention):
        return self.shelf.put(data, self.chain.blocks.height, self.now, **retention)

    def make_model(self, first_value=0):
        values = np.arange(8, dtype=np.int32) + np.int32(first_value)
        return encode_model(MANIFEST, values)

    def make_update(self, task, round, base, maker, value=1, bits=8, **changes):
        header = {
            "mode": Mode.OPEN,
            "bits": bits,
            "round": round,
            "chain_id": self.chain.chain_id,
            "task": task,
            "values": 8,
            "exponents": 1,
            "base": base,
            "sender": bytes.fromhex(maker.address[2:]),
        } | changes
        dtype = np.int8 if bits == 8 else np.int16
        return encode_update(
            UpdateHeader(**header), np.array([-20], np.int8), np.full(8, value, dtype)
        )

    @contextmanager
    def limited_block_gas(self, gas_limit):
        """Make contracts see another block gas limit."""
        genuine = BaseState.gas_limit
        BaseState.gas_limit = property(lambda state: gas_limit)
        try:
            yield
        finally:
            BaseState.gas_limit = genuine

    def quote(self, rule, model, updates, bits):
        """Gas of one aggregation, as the precompile says."""
        types = [RULE, BLOB, "uint256", "uint256"]
        selector = keccak(text=f"quote({','.join(types)})")[:4]
        data = selector + encode(types, [rule, model, updates, bits])
        call = {"to": to_checksum_address(FEDAVG_ADDRESS), "data": "0x" + data.hex()}
        return int.from_bytes(self.chain.provider.web3.eth.call(call), "big")

    # -- the life of a task

    def publish(self, *, invited=(), value=None, sender=None, model=None, name="heart", **changes):
        """Publish a task; keyword arguments change its parameters. Returns its number."""
        parameters = PARAMETERS | changes
        if value is None:
            value = parameters["reward"] + parameters["rounds"] * parameters["close_reserve"]
        model = self.declare(self.make_model()) if model is None else model
        self.tasks.publish(
            name,
            tuple(parameters.values()),
            as_tuple(model),
            NO_BLOB,
            [account.address for account in invited],
            value=value,
            sender=sender or self.publisher,
        )
        return self.tasks.task_count()

    def join(self, task, hospital, samples=10, value=None):
        """Join with just the stake that the ordinary terms ask for."""
        value = compute_stake(samples) if value is None else value
        return self.tasks.join(task, samples, value=value, sender=hospital)

    def start(self, count=3, **changes):
        """Publish a task that starts when `count` hospitals have joined, and let them."""
        task = self.publish(max_clients=count, **changes)
        for index, hospital in enumerate(self.hospitals[:count]):
            self.join(task, hospital, samples=10 * (index + 1))
        return task

    def get_base(self, task, round):
        base = self.rounds.get_round(task, round).base
        return BlobName(bytes(base.digest), base.size)

    def commit(self, task, round, hospital, samples=10, value=1, maker=None, bits=8, origin=None):
        """Declare an update and commit to it; `reveal` will find it."""
        origin = round if origin is None else origin
        base = self.get_base(task, origin)
        data = self.make_update(task, origin, base, maker or hospital, value, bits)
        name = self.declare(data)
        salt = hashlib.sha256(hospital.address.encode()).digest()
        self.sealed[task, round, hospital.address] = SimpleNamespace(
            name=name, samples=samples, salt=salt, origin=origin
        )
        commitment = self.compute_commitment(task, round, hospital, name, samples, salt, origin)
        return self.rounds.commit(task, round, origin, commitment, sender=hospital)

    def compute_commitment(self, task, round, hospital, name, samples, salt, origin=None):
        fields = [
            ("uint256", self.chain.chain_id),
            ("address", self.rounds.address),
            ("uint256", task),
            ("uint256", round),
            ("uint256", round if origin is None else origin),
            ("address", hospital.address),
            ("bytes32", name.digest),
            ("uint256", name.size),
            ("uint256", samples),
            ("bytes32", salt),
        ]
        return keccak(encode([kind for kind, _ in fields], [value for _, value in fields]))

    def reveal(self, task, round, hospital, sender=None, **changes):
        """Reveal what `commit` sealed, changed by `name`, `samples`, `salt` or `origin`."""
        sealed = SimpleNamespace(**(vars(self.sealed[task, round, hospital.address]) | changes))
        return self.rounds.reveal(
            task,
            round,
            sealed.origin,
            as_tuple(sealed.name),
            sealed.samples,
            sealed.salt,
            sender=sender or hospital,
        )

    def close(self, task, round, sender=None):
        return self.rounds.close(task, round, sender=sender or self.keeper)

    def commit_all(self, task, round, hospitals, samples=10):
        for value, hospital in enumerate(hospitals, start=1):
            self.commit(task, round, hospital, samples, value)

    def play_round(self, task, round, hospitals, samples=10):
        """Commit, reveal and close with all of `hospitals`, which are all that are active."""
        self.commit_all(task, round, hospitals, samples)
        for hospital in hospitals:
            self.reveal(task, round, hospital)
        return self.close(task, round)

    def fail_round(self, task, round, hospitals):
        """Let the first of `hospitals`, who all commit, keep silent until the end, and close."""
        self.commit_all(task, round, hospitals)
        for hospital in hospitals[1:]:
            self.reveal(task, round, hospital)
        self.advance_to(self.rounds.get_round(task, round).reveal_ends)
        return self.close(task, round)

    def skip_round(self, task, round):
        """Let the commit period pass without enough commitments, and close."""
        self.advance_to(self.rounds.get_round(task, round).commit_ends)
        return self.close(task, round)

    # -- money

    def compute_promises(self, tasks):
        """What Tasks owes for `tasks` to the first four hospitals and the others, by its views."""
        everybody = [self.publisher, self.keeper, self.stranger, *self.hospitals[:4]]
        owed = 0
        for task in tasks:
            account = self.tasks.get_account(task)
            assert account.deposited == sum(
                (account.left, account.paid, account.fees, account.platform, account.refunded)
            )
            assert account.reward_left <= account.left
            participants = [self.tasks.get_participant(task, person) for person in everybody]
            assert account.stakes == sum(each.stake for each in participants)
            assert all(each.sponsored <= each.stake for each in participants)
            assert account.sponsorships == sum(
                self.tasks.get_sponsorship(task, person) for person in everybody
            )
            owed += account.left + account.stakes + account.sponsorships
            owed += sum(self.tasks.claimable(task, person) for person in everybody)
        return owed

"""A small stage for tests: one deployed contract, a publisher, hospitals, a stranger, a keeper."""

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

LOBBY, RUNNING, FINISHED, ABORTED = 1, 2, 3, 4
OPEN, AGGREGATED, SKIPPED = 1, 2, 3
WAIT, START, CLOSE, ABORT = 0, 1, 2, 3

CLOSE_TIMEOUT_SECONDS = 86_400
JOIN_SECONDS, COMMIT_SECONDS, REVEAL_SECONDS = 1_000, 600, 500
STAKE_PER_SAMPLE, BASE_STAKE = 10**12, 10**15
MANIFEST = Manifest((TensorSpec("w", (8,), "float32", 24, Role.TRAIN),))
NO_BLOB = (bytes(32), 0)

PARAMETERS = {
    "rule": (0, 0),
    "weighting": 0,
    "bits": 8,
    "rounds": 2,
    "min_clients": 2,
    "max_clients": 3,
    "join_seconds": JOIN_SECONDS,
    "commit_seconds": COMMIT_SECONDS,
    "reveal_seconds": REVEAL_SECONDS,
    "base_stake": BASE_STAKE,
    "stake_per_sample": STAKE_PER_SAMPLE,
    "admission_norm2": 2**80,
    "reward": 10**18 + 7,
    "close_reserve": 10**16,
    "close_bounty": 10**12,
}


def compute_stake(samples):
    return BASE_STAKE + samples * STAKE_PER_SAMPLE


def as_tuple(name):
    return (name.digest, name.size)


class World:
    """Sends transactions and prepares blobs; asserts nothing by itself."""

    def __init__(self, tasks, accounts, chain, shelf):
        self.tasks, self.chain, self.shelf = tasks, chain, shelf
        self.publisher, self.keeper, self.stranger = accounts[1], accounts[2], accounts[3]
        self.hospitals = list(accounts[4:12])
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
        types = ["(uint8,uint256)", "(bytes32,uint256)", "uint256", "uint256"]
        selector = keccak(text=f"quote({','.join(types)})")[:4]
        data = selector + encode(types, [rule, model, updates, bits])
        call = {"to": to_checksum_address(FEDAVG_ADDRESS), "data": "0x" + data.hex()}
        return int.from_bytes(self.chain.provider.web3.eth.call(call), "big")

    # -- the life of a task

    def publish(
        self, *, allowlist=(), value=None, sender=None, model=None, name="heart", **changes
    ):
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
            [account.address for account in allowlist],
            value=value,
            sender=sender or self.publisher,
        )
        return self.tasks.task_count()

    def join(self, task, hospital, samples=10, value=None):
        value = compute_stake(samples) if value is None else value
        return self.tasks.join(task, samples, value=value, sender=hospital)

    def start(self, count=3, **changes):
        """Publish a task that starts when `count` hospitals have joined, and let them."""
        task = self.publish(max_clients=count, **changes)
        for index, hospital in enumerate(self.hospitals[:count]):
            self.join(task, hospital, samples=10 * (index + 1))
        return task

    def get_base(self, task, round):
        base = self.tasks.get_round(task, round).base
        return BlobName(bytes(base.digest), base.size)

    def commit(self, task, round, hospital, samples=10, value=1, maker=None, bits=8):
        """Declare an update and commit to it; `reveal` will find it."""
        base = self.get_base(task, round)
        data = self.make_update(task, round, base, maker or hospital, value, bits)
        name = self.declare(data)
        salt = hashlib.sha256(hospital.address.encode()).digest()
        self.sealed[task, round, hospital.address] = SimpleNamespace(
            name=name, samples=samples, salt=salt
        )
        commitment = self.compute_commitment(task, round, hospital, name, samples, salt)
        return self.tasks.commit(task, round, commitment, sender=hospital)

    def compute_commitment(self, task, round, hospital, name, samples, salt):
        fields = [
            ("uint256", self.chain.chain_id),
            ("address", self.tasks.address),
            ("uint256", task),
            ("uint256", round),
            ("address", hospital.address),
            ("bytes32", name.digest),
            ("uint256", name.size),
            ("uint256", samples),
            ("bytes32", salt),
        ]
        return keccak(encode([kind for kind, _ in fields], [value for _, value in fields]))

    def reveal(self, task, round, hospital, sender=None, **changes):
        """Reveal what `commit` sealed, changed by `name`, `samples` or `salt`."""
        sealed = SimpleNamespace(**(vars(self.sealed[task, round, hospital.address]) | changes))
        return self.tasks.reveal(
            task,
            round,
            as_tuple(sealed.name),
            sealed.samples,
            sealed.salt,
            sender=sender or hospital,
        )

    def close(self, task, round, sender=None):
        return self.tasks.close(task, round, sender=sender or self.keeper)

    def play_round(self, task, round, hospitals, samples=10):
        """Commit, reveal and close with all of `hospitals`, which are all that are active."""
        for value, hospital in enumerate(hospitals, start=1):
            self.commit(task, round, hospital, samples, value)
        for hospital in hospitals:
            self.reveal(task, round, hospital)
        return self.close(task, round)

    def skip_round(self, task, round):
        """Let the commit period pass without enough commitments, and close."""
        self.advance_to(self.tasks.get_round(task, round).commit_ends)
        return self.close(task, round)

    # -- money

    def compute_promises(self, tasks):
        """What the contract owes for `tasks` by its own views: escrow, credits and stakes.

        Stakes of participants only: anybody else's would be missing in the sum.
        """
        everybody = [self.publisher, self.keeper, self.stranger, *self.hospitals]
        owed = 0
        for task in tasks:
            members = self.tasks.get_participants(task)
            account = self.tasks.get_account(task)
            assert account.deposited == sum(
                (account.left, account.paid, account.fees, account.refunded)
            )
            owed += account.left
            owed += sum(self.tasks.claimable(task, person) for person in everybody)
            owed += sum(self.tasks.get_participant(task, person).stake for person in members)
        return owed

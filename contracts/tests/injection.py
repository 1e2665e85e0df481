"""Our precompiles inside ape's local py-evm: the same `call`s that nodes run.

Blobs live on a shelf in this process instead of in transactions and on disk.
"""

import hashlib
from collections import Counter

from eth.exceptions import Revert
from eth.vm.forks.prague.computation import PragueComputation
from eth_abi import decode, encode

from steelyard.chain import evidence, precompile
from steelyard.chain.admission import Admission
from steelyard.chain.errors import SteelyardError
from steelyard.chain.params import EVIDENCE_ADDRESS, FEDAVG_ADDRESS
from steelyard.chain.types import BlobName, Digest

RETENTION_SECONDS = 30 * 86_400
DOMAIN = b"\x07" * 32
"""What votes are signed for on ape's chain, which has no genesis document."""
ERROR_SELECTOR = bytes.fromhex("08c379a0")


class BlobShelf:
    """Blobs by name, with the second at which each expires."""

    def __init__(self):
        self.blobs, self.admissions = {}, {}

    def clear(self):
        self.blobs.clear()
        self.admissions.clear()

    def put(self, data, height, timestamp, retention_seconds=RETENTION_SECONDS):
        """Declare one raw block at `timestamp`, as a transaction would."""
        assert len(data) <= 262_144
        name = BlobName(Digest(hashlib.sha256(data).digest()), len(data))
        self.blobs[name] = data
        self.admissions[name] = Admission(height, timestamp + retention_seconds)
        return name


class ComputationHost:
    """What the precompiles may see of one py-evm call."""

    def __init__(self, computation, shelf):
        self.computation, self.shelf = computation, shelf
        self.chain_id = computation.state.execution_context.chain_id
        self.domain = DOMAIN
        self.is_static = computation.msg.is_static
        self.timestamp = computation.state.timestamp
        self.height = computation.state.block_number

    def consume_gas(self, amount, reason):
        self.computation.consume_gas(amount, reason)

    def get_admission(self, name):
        return self.shelf.admissions.get(name)

    def read_blob(self, name):
        return self.shelf.blobs[name]

    def write_blob(self, name, data):
        assert self.shelf.put(data, self.height, self.timestamp) == name


def inject_precompiles(shelf):
    """Give ape's local network the precompiles, for as long as this process lives."""

    def build(name, module):
        def run(computation):
            host = ComputationHost(computation, shelf)
            try:
                computation.output = module.call(host, computation.msg.data_as_bytes)
            except SteelyardError as error:
                computation.output = ERROR_SELECTOR + encode(["string"], [f"{name}: {error.code}"])
                raise Revert(computation.output) from error
            return computation

        return run

    PragueComputation._precompiles = {
        **PragueComputation._precompiles,
        FEDAVG_ADDRESS: build("fedavg", precompile),
        EVIDENCE_ADDRESS: build("evidence", evidence),
    }


class CallRecorder:
    """How often each selector was taken and refused, by transactions, views and contracts.

    `reasons` holds each selector with the words that it was refused with; a constructor has none.
    """

    def __init__(self):
        self.taken, self.refused, self.reasons = Counter(), Counter(), set()

    def install(self):
        """Hear of every call on ape's local network, for as long as this process lives."""
        genuine = PragueComputation.apply_message.__func__

        def apply_message(cls, state, message, context, parent_computation=None):
            computation = genuine(cls, state, message, context, parent_computation)
            selector, output = bytes(message.data[:4]), computation.output
            calls = self.refused if computation.is_error else self.taken
            calls[selector] += 1
            if computation.is_error and output[:4] == ERROR_SELECTOR:
                self.reasons.add((selector, decode(["string"], output[4:])[0]))
            return computation

        PragueComputation.apply_message = classmethod(apply_message)


def install_code(chain, address, code):
    """Put a contract's code at a fixed address, as genesis does."""
    backend = chain.provider.evm_backend
    state = backend.chain.get_vm().state
    state.set_nonce(address, 1)
    state.set_code(address, code)
    state.persist()
    backend.chain.header = backend.chain.header.copy(state_root=state.state_root)
    chain.mine()

"""The engine: one block's worth of Ethereum state over py-evm 0.12.1b1 (Prague rules).

`evm.py`, `evm_state.py` and `evm_guards.py` are the only files that know py-evm; everything above
sees `BlockState`. It never writes to the node source: `finish` returns the new nodes.

Call frames nest up to 1024 deep, and each takes a dozen Python frames: run it in a thread with a
stack of EVM_STACK_BYTES. The recursion limit is set here: no result depends on what was imported.
"""

import sys
from dataclasses import dataclass
from typing import ClassVar, NoReturn, cast

from eth.constants import CREATE_CONTRACT_ADDRESS
from eth.db.atomic import AtomicDB
from eth.exceptions import ContractCreationCollision, Revert
from eth.vm.execution_context import ExecutionContext
from eth.vm.forks.cancun.constants import (
    BEACON_ROOTS_ADDRESS,
    BEACON_ROOTS_CONTRACT_CODE,
    HISTORY_BUFFER_LENGTH,
)
from eth.vm.forks.cancun.transaction_context import CancunTransactionContext
from eth.vm.forks.prague.constants import (
    HISTORY_SERVE_WINDOW,
    HISTORY_STORAGE_ADDRESS,
    HISTORY_STORAGE_CONTRACT_CODE,
)
from eth.vm.forks.prague.state import PragueState
from eth.vm.message import Message
from eth_abi.abi import encode
from eth_hash.auto import keccak

from .admission import Admission, compute_admission_slot, decode_admission, encode_admission
from .block import Rules, Withdrawal
from .environment import BlobSource, Environment
from .errors import (
    InvalidAggregation,
    InvalidBlobName,
    InvalidCall,
    InvalidEvidence,
    InvalidKey,
    InvalidModel,
    InvalidUpdate,
    InvalidVote,
    UnavailableBlob,
)
from .evm_guards import GuardedComputation, list_frames
from .evm_state import Accounts, Overlay, missing_state
from .params import (
    EVIDENCE_ADDRESS,
    EVM_RECURSION_LIMIT,
    FEDAVG_ADDRESS,
    MAX_EVIDENCE_BYTES,
)
from .receipts import Log
from .rlp import encode_rlp
from .transactions import AccessList
from .trie import NodeSource
from .types import Address, BlobName, Domain, Hash, Height

# py-evm imports py_ecc, which raises the limit to a height where nested JSON ends the process.
sys.setrecursionlimit(EVM_RECURSION_LIMIT)

REVERT_SELECTOR = bytes.fromhex("08c379a0")
"""Error(string)."""
REFUSALS = (InvalidCall, InvalidAggregation, InvalidBlobName, InvalidModel, InvalidUpdate)
"""What callers of the aggregation precompile do wrong. Any other error is this machine's."""
EVIDENCE_REFUSALS = (InvalidCall, InvalidEvidence, InvalidVote, InvalidKey)
"""What callers of the evidence precompile do wrong."""
MAX_INPUT_BYTES = 2**18
"""Of a call to the aggregation precompile; MAX_UPDATES names and weights fit twice."""
MAX_REFUND_QUOTIENT = 5
"""EIP-3529."""
WEI_PER_GWEI = 10**9


@dataclass(frozen=True, slots=True)
class Execution:
    """What the engine needs of a transaction or a call. Gas includes the intrinsic gas."""

    sender: Address
    to: Address | None
    value: int
    data: bytes
    gas: int
    gas_price: int
    tip: int
    access_list: AccessList
    blobs: tuple[BlobName, ...]
    intrinsic_gas: int
    floor_gas: int


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it. `error` is None, or py-evm's reason; `output` holds revert data too."""

    gas_used: int
    gas_refund: int
    output: bytes
    error: str | None
    is_revert: bool
    logs: tuple[Log, ...]
    contract_address: Address | None


# -- the aggregation precompile --------------------------------------------------------------------
class FedavgHost:
    """What `precompile.call` may ask of the frame that called it."""

    def __init__(self, computation: GuardedComputation) -> None:
        self._computation = computation
        self._state: EngineState = computation.state
        self.chain_id: int = self._state.execution_context.chain_id
        self.domain: Domain = self._state.domain
        self.is_static: bool = computation.msg.is_static
        self.timestamp: int = self._state.timestamp
        self.height = Height(self._state.block_number)

    def consume_gas(self, amount: int, reason: str) -> None:
        """Charge the frame; running out ends it."""
        self._computation.consume_gas(amount, reason)

    def get_admission(self, name: BlobName) -> Admission | None:
        """Return the record of a blob, as this frame sees it."""
        return self._state.get_admission(name)

    def read_blob(self, name: BlobName) -> bytes | memoryview:
        """Return an admitted blob: of this block, or of the disk. Raises UnavailableBlob."""
        made = self._state.made_blobs.get(name)
        if made is not None:
            return made
        data = self._state.blob_source.read(name)
        if len(data) != name.size:  # cut off on this disk: a model of that length is invalid
            raise UnavailableBlob("blob_unavailable", f"{len(data)} of {name.size} bytes are here")
        return data

    def write_blob(self, name: BlobName, data: bytes) -> None:
        """Keep a blob and its record; a revert undoes the record, and with it the blob."""
        self._state.made_blobs[name] = data
        self._state.admit(name)


def run_fedavg(computation: GuardedComputation) -> None:
    """Run the precompile at FEDAVG_ADDRESS; its refusals revert with Error("fedavg: <code>")."""
    from . import precompile  # late: reading a state needs no kernels

    try:
        check_frame(computation, MAX_INPUT_BYTES)
        computation.output = precompile.call(FedavgHost(computation), bytes(computation.msg.data))
        return
    except REFUSALS as error:
        code = error.code
    # Not in the handler: the revert would keep all that the refused call held, to the block's end.
    revert(computation, f"fedavg: {code}")


# -- the evidence precompile -----------------------------------------------------------------------
def run_evidence(computation: GuardedComputation) -> None:
    """Run the precompile at EVIDENCE_ADDRESS; refusals revert with Error("evidence: <code>")."""
    from . import evidence  # late: reading a state needs no curve

    try:
        check_frame(computation, MAX_EVIDENCE_BYTES)
        computation.output = evidence.call(FedavgHost(computation), bytes(computation.msg.data))
        return
    except EVIDENCE_REFUSALS as error:
        code = error.code
    revert(computation, f"evidence: {code}")


def check_frame(computation: GuardedComputation, limit: int) -> None:
    """Check how one of our precompiles was called. Raises InvalidCall."""
    message = computation.msg
    if message.code_address != message.storage_address:
        raise InvalidCall("call_delegated", "use CALL or STATICCALL")
    if message.value:
        raise InvalidCall("call_value", "the precompile takes no money")
    if len(message.data) > limit:
        raise InvalidCall("call_size", f"input above {limit} bytes")


def revert(computation: GuardedComputation, reason: str) -> NoReturn:
    """End the frame with Error(reason)."""
    computation.output = REVERT_SELECTOR + encode(["string"], [reason])
    raise Revert(computation.output)


class EngineComputation(GuardedComputation):
    """A call frame that knows our two precompiles."""

    _precompiles: ClassVar = {
        **GuardedComputation._precompiles,
        FEDAVG_ADDRESS: run_fedavg,
        EVIDENCE_ADDRESS: run_evidence,
    }


# -- state -----------------------------------------------------------------------------------------
class EngineState(PragueState):  # type: ignore[misc]
    """py-evm's state with our accounts, our frames, and the blobs of one block."""

    account_db_class = Accounts
    computation_class = EngineComputation

    blob_source: BlobSource
    made_blobs: dict[BlobName, bytes]
    scanned_codes: dict[bytes, bytes]
    admission: Admission
    domain: Domain

    def set_system_contracts(self) -> None:
        """They are in genesis."""

    def get_admission(self, name: BlobName) -> Admission | None:
        """Return the admission record of a blob."""
        return decode_admission(self.get_storage(FEDAVG_ADDRESS, compute_admission_slot(name)))

    def admit(self, name: BlobName) -> None:
        """Record a blob as admitted by this block."""
        self.set_storage(
            FEDAVG_ADDRESS, compute_admission_slot(name), encode_admission(self.admission)
        )


class BlockState:
    """The state after a parent block, being changed by the block in `environment`."""

    def __init__(
        self,
        nodes: NodeSource,
        blobs: BlobSource,
        rules: Rules,
        state_root: Hash,
        environment: Environment,
    ) -> None:
        sys.setrecursionlimit(EVM_RECURSION_LIMIT)
        self._overlay = Overlay(nodes)
        self._environment = environment
        context = ExecutionContext(
            coinbase=environment.coinbase,
            timestamp=environment.timestamp,
            block_number=environment.height,
            difficulty=0,
            mix_hash=environment.prev_randao,
            gas_limit=rules.gas_limit,
            prev_hashes=environment.ancestors,
            chain_id=rules.chain_id,
            base_fee_per_gas=environment.base_fee,
            excess_blob_gas=0,
        )
        self._state = EngineState(AtomicDB(self._overlay), context, state_root)
        self._state.blob_source = blobs
        self._state.made_blobs = {}
        self._state.scanned_codes = {}
        self._state.domain = rules.domain
        self._state.admission = Admission(
            environment.height, environment.timestamp + rules.blob_retention_seconds
        )

    # -- reading -----------------------------------------------------------------------------------
    def get_nonce(self, address: Address) -> int:
        """Return the account's nonce, 0 if there is none."""
        with missing_state():
            return int(self._state.get_nonce(address))

    def get_balance(self, address: Address) -> int:
        """Return the balance in wei, 0 if there is no account."""
        with missing_state():
            return int(self._state.get_balance(address))

    def get_code(self, address: Address) -> bytes:
        """Return the contract's code, empty if there is none."""
        with missing_state():
            return bytes(self._state.get_code(address))

    def get_storage(self, address: Address, slot: int) -> int:
        """Return a storage word."""
        with missing_state():
            return int(self._state.get_storage(address, slot))

    # -- the start and the end of a block ----------------------------------------------------------
    def process_start(self) -> None:
        """Write the parent's beacon root (EIP-4788) and hash (EIP-2935)."""
        environment = self._environment
        index = environment.timestamp % HISTORY_BUFFER_LENGTH
        beacon_root = int.from_bytes(environment.parent_beacon_block_root, "big")
        with missing_state():
            if self._state.get_code(BEACON_ROOTS_ADDRESS):
                self._state.set_storage(BEACON_ROOTS_ADDRESS, index, environment.timestamp)
                self._state.set_storage(
                    BEACON_ROOTS_ADDRESS, index + HISTORY_BUFFER_LENGTH, beacon_root
                )
            if self._state.get_code(HISTORY_STORAGE_ADDRESS):
                self._state.set_storage(
                    HISTORY_STORAGE_ADDRESS,
                    (environment.height - 1) % HISTORY_SERVE_WINDOW,
                    int.from_bytes(environment.parent_hash, "big"),
                )

    def process_withdrawal(self, withdrawal: Withdrawal) -> None:
        """Pay what consensus pays."""
        with missing_state():
            self._state.delta_balance(withdrawal.address, withdrawal.amount_gwei * WEI_PER_GWEI)
            self._state._account_db.clear_empty_accounts()

    def process_account(self, address: Address, *, balance: int, nonce: int, code: bytes) -> None:
        """Put an account into the state of genesis."""
        self._state.set_balance(address, balance)
        self._state.set_nonce(address, nonce)
        if code:
            self._state.set_code(address, code)
        self._state._account_db.clear_empty_accounts()

    def process_system_contracts(self) -> None:
        """Put Ethereum's own contracts into the state of genesis (EIP-4788, EIP-2935)."""
        for address, code in (
            (BEACON_ROOTS_ADDRESS, BEACON_ROOTS_CONTRACT_CODE),
            (HISTORY_STORAGE_ADDRESS, HISTORY_STORAGE_CONTRACT_CODE),
        ):
            self.process_account(Address(address), balance=0, nonce=1, code=code)

    def process_deployment(
        self, address: Address, init_code: bytes, *, value: int, gas: int
    ) -> str | None:
        """Run init code at a fixed address, with money that comes into being; return the error."""
        creator = Address(bytes(20))
        self._state.set_balance(creator, value)
        execution = Execution(
            sender=creator,
            to=None,
            value=value,
            data=init_code,
            gas=gas,
            gas_price=0,
            tip=0,
            access_list=(),
            blobs=(),
            intrinsic_gas=0,
            floor_gas=0,
        )
        return self.process_call(execution, address).error

    def finish(self) -> tuple[Hash, dict[bytes, bytes]]:
        """Return the state root and the new trie nodes and codes. Ends the use of this object."""
        with missing_state():
            self._state.persist()
        return Hash(self._state.state_root), self._overlay.new

    def list_made_blobs(self) -> dict[BlobName, bytes]:
        """Return the blobs that the precompile made and whose record of this block survived."""
        return {
            name: data
            for name, data in self._state.made_blobs.items()
            if self._state.get_admission(name) == self._state.admission
        }

    # -- transactions ------------------------------------------------------------------------------
    def process_transaction(self, execution: Execution) -> Result:
        """Charge the sender, admit the blobs, run, pay. Every rule was checked before.

        Raises: UnavailableBlob, MissingState; the state must be thrown away then.
        """
        state = self._state
        with missing_state():
            self._begin()
            state.delta_balance(execution.sender, -execution.gas * execution.gas_price)
            state.increment_nonce(execution.sender)
            for name in execution.blobs:
                state.admit(name)
            nonce = state.get_nonce(execution.sender) - 1
            target = None if execution.to else _compute_create_address(execution.sender, nonce)
            result = self._run(execution, target)
            unused = execution.gas - result.gas_used
            state.delta_balance(execution.sender, unused * execution.gas_price)
            state.delta_balance(state.coinbase, result.gas_used * execution.tip)
            self._end()
        return result

    def process_call(self, execution: Execution, create_address: Address | None = None) -> Result:
        """Run without charging anyone or moving the nonce: eth_call, and genesis' deployments."""
        with missing_state():
            self._begin()
            for name in execution.blobs:
                self._state.admit(name)
            if execution.to is None and create_address is None:
                nonce = self._state.get_nonce(execution.sender)
                create_address = _compute_create_address(execution.sender, nonce)
            result = self._run(execution, create_address)
            self._end()
        return result

    def _begin(self) -> None:
        self._state.lock_changes()
        self._state._transient_storage = None
        self._deleted: list[Address] = []

    def _end(self) -> None:
        for address in self._deleted:
            self._state.delete_account(address)
        self._state._account_db.clear_empty_accounts()

    def _run(self, execution: Execution, create_address: Address | None) -> Result:
        """Run the outermost frame and account for its gas; money is the caller's affair."""
        computation = self._apply(execution, create_address)
        frames = list(list_frames(computation))
        used = execution.gas - computation.get_gas_remaining()
        refund = max(sum(frame.get_gas_meter().gas_refunded for frame in frames), 0)
        refund = min(refund, used // MAX_REFUND_QUOTIENT)
        deleted = {address for frame in frames for address in frame.accounts_to_delete}
        self._deleted = sorted(deleted)
        entries = sorted(entry for frame in frames for entry in frame._log_entries)
        error = computation.error if computation.is_error else None
        return Result(
            gas_used=max(used - refund, execution.floor_gas),
            gas_refund=refund,
            output=bytes(computation.output),
            error=None if error is None else f"{type(error).__name__}: {error}",
            is_revert=isinstance(error, Revert),
            logs=tuple(_build_log(*entry[1:]) for entry in entries),
            contract_address=create_address if execution.to is None and not error else None,
        )

    def _apply(self, execution: Execution, create_address: Address | None) -> EngineComputation:
        state = self._state
        context = CancunTransactionContext(gas_price=execution.gas_price, origin=execution.sender)
        is_create = execution.to is None
        message = Message(
            gas=execution.gas - execution.intrinsic_gas,
            to=CREATE_CONTRACT_ADDRESS if is_create else execution.to,
            sender=execution.sender,
            value=execution.value,
            data=b"" if is_create else execution.data,
            code=execution.data if is_create else state.get_code(execution.to),
            create_address=create_address,
        )
        state.mark_address_warm(execution.sender)
        state.mark_address_warm(message.storage_address)
        for address, slots in execution.access_list:
            state.mark_address_warm(address)
            for slot in slots:
                state.mark_storage_warm(address, slot)
        if not is_create:
            return cast(EngineComputation, EngineComputation.apply_message(state, message, context))
        if state.has_code_or_nonce(create_address):
            computation = EngineComputation(state, message, context)
            computation.error = ContractCreationCollision("an account is there already")
            return computation
        return cast(
            EngineComputation, EngineComputation.apply_create_message(state, message, context)
        )


def _compute_create_address(sender: Address, nonce: int) -> Address:
    return Address(keccak(encode_rlp([sender, nonce]))[12:])


def _build_log(address: bytes, topics: tuple[int, ...], data: bytes) -> Log:
    return Log(
        address=Address(address),
        topics=tuple(Hash(topic.to_bytes(32, "big")) for topic in topics),
        data=bytes(data),
    )

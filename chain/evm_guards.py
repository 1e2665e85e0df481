"""What stock py-evm must not be trusted with: jump targets, precompiles, frames, exceptions.

Each guard stands for an input that made py-evm 0.12.1b1 crawl, crash, or behave differently under
another recursion limit (docs/decisions; tests/chain/test_evm_guards.py has one test for each):

- jump targets come from one linear pass; the stock scan recurses backwards through the code;
- precompiles slower than the interpreter are repriced or refused: a refused one burns the gas of
  its call, where a deleted one would make calls to it succeed;
- MODEXP takes operands of at most 1024 bytes (EIP-7823), so no length can exhaust memory;
- a deterministic Python error inside a frame fails that frame; MemoryError, RecursionError, OSError
  and a missing blob are this machine's problems and stop the execution;
- SELFDESTRUCT raises no Python warning, which would be an exception under `-W error`;
- a call shares its input with the caller's memory: stock py-evm copies it, so that 130 gas moved
  megabytes, and keeps every copy, so that one transaction took 16 GB;
- a finished frame gives back what it holds, which the stock tree of frames keeps to the end;
- Keccak comes from the fastest library there is, which no environment variable chooses.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from types import TracebackType
from typing import ClassVar, Final, TypeAlias, cast

from eth.exceptions import OutOfGas, VMError
from eth.vm.code_stream import CodeStream
from eth.vm.forks.prague.computation import PragueComputation
from eth.vm.memory import Memory
from eth.vm.message import Message
from eth_hash.abc import BackendAPI
from eth_hash.auto import keccak
from eth_hash.utils import load_backend
from eth_keys.main import lazy_key_api
from eth_utils.exceptions import ValidationError

from .transactions import SIGNATURE_BACKEND
from .types import Address

Precompile: TypeAlias = Callable[["GuardedComputation"], object]

BN128_ADD_FACTOR: Final = 10
BN128_MUL_FACTOR: Final = 4
BN128_PAIRING_FACTOR: Final = 8
BLAKE2F_FACTOR: Final = 16
MAX_MODEXP_BYTES: Final = 1024

DETERMINISTIC_ERRORS: Final = (
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AssertionError,
    ValidationError,
)
"""Python errors that depend on the input alone, so every node raises the same ones."""

PUSH1, PUSH32, SELFDESTRUCT = 0x60, 0x7F, 0xFF
CALLS: Final = (0xF1, 0xF2, 0xF4, 0xFA)
BLAKE2F_BYTES: Final = 213
GAS_IDENTITY, GAS_IDENTITY_WORD, GAS_PAIRING = 15, 3, 45_000


# -- code ------------------------------------------------------------------------------------------
@lru_cache(maxsize=64)
def find_opcodes(code: bytes) -> bytes:
    """Return a 1 for each byte that is an instruction, a 0 for each that a PUSH carries."""
    found = bytearray(len(code))
    position, length = 0, len(code)
    while position < length:
        found[position] = 1
        opcode = code[position]
        position += opcode - PUSH1 + 2 if PUSH1 <= opcode <= PUSH32 else 1
    return bytes(found)


class LinearCodeStream(CodeStream):  # type: ignore[misc]
    """A code stream whose jump targets cost one pass over each code.

    `scanned` holds the codes of a block. A cache of fixed size alone would be passed by one more
    code than it holds, called in turn: 100 gas for each scan of 24 kB.
    """

    def __init__(self, code: bytes, scanned: dict[bytes, bytes]) -> None:
        super().__init__(code)
        self._scanned = scanned
        self._opcodes = b""

    def is_valid_opcode(self, position: int) -> bool:
        """Tell whether an instruction starts here."""
        if position >= self._length_cache:
            return False
        if not self._opcodes:
            code = self._raw_code_bytes
            if code not in self._scanned:
                self._scanned[code] = find_opcodes(code)
            self._opcodes = self._scanned[code]
        return self._opcodes[position] == 1


# -- input of calls --------------------------------------------------------------------------------
class Slices:
    """Memory that is read a slice at a time, each a copy, without copying the rest."""

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def __getitem__(self, part: slice) -> bytes:
        return bytes(self._view[part])


class SharedMessage(Message):  # type: ignore[misc]
    """A message whose data may be a view of the caller's memory."""

    @property
    def data_as_bytes(self) -> bytes | Slices:
        """What CALLDATALOAD and CALLDATACOPY slice."""
        return self.data if isinstance(self.data, bytes) else Slices(self.data)


def share_input(opcode: Callable[..., object]) -> Callable[..., object]:
    """Return a CALL whose first read of memory, that of the input, is a view."""

    def run(computation: "GuardedComputation") -> None:
        computation.is_reading_input = True
        opcode(computation=computation)

    return run


def take_input(precompile: Precompile, limit: int) -> Precompile:
    """Return a precompile that gets a copy of its input, of which it reads `limit` bytes."""

    def run(computation: "GuardedComputation") -> object:
        computation.msg.data = bytes(computation.msg.data[:limit])
        return precompile(computation)

    return run


def run_identity(computation: "GuardedComputation") -> None:
    """Charge, then copy."""
    words = -(-len(computation.msg.data) // 32)
    computation.consume_gas(GAS_IDENTITY + words * GAS_IDENTITY_WORD, reason="IDENTITY")
    computation.output = bytes(computation.msg.data)


def run_pairing(computation: "GuardedComputation") -> object:
    """Look at the gas before copying the input; the stock function charges."""
    if computation.get_gas_remaining() < GAS_PAIRING * BN128_PAIRING_FACTOR:
        raise OutOfGas("too little gas for any pairing")
    computation.msg.data = bytes(computation.msg.data)
    return PAIRING(computation)


# -- precompiles -----------------------------------------------------------------------------------
# ECRECOVER would use the library that an environment variable names.
lazy_key_api.backend = SIGNATURE_BACKEND


# -- hashing ---------------------------------------------------------------------------------------
def find_keccak() -> BackendAPI:
    """Return Keccak-256 of the C extension, or where it cannot be had, of the slower library.

    eth_hash by itself takes the slower one first: a quarter of a validator's time.
    """
    try:
        return load_backend("pysha3")
    except ImportError:
        return load_backend("pycryptodome")


keccak.hasher = find_keccak().keccak256


# -- refusing and repricing ------------------------------------------------------------------------
def refuse(_computation: "GuardedComputation") -> object:
    """Burn the gas of a call to a precompile that this chain does not have."""
    raise VMError("this precompile is not available on this chain")


def reprice(precompile: Precompile, factor: int) -> Precompile:
    """Return the precompile at `factor` times its standard price, charged before the work."""

    def run(computation: "GuardedComputation") -> object:
        consume_gas = computation.consume_gas

        def consume(amount: int, reason: str) -> None:
            consume_gas(amount * factor, reason)

        computation.consume_gas = consume
        try:
            return precompile(computation)
        finally:
            del computation.consume_gas

    return run


def bound_modexp(precompile: Precompile) -> Precompile:
    """Return MODEXP with operands of at most MAX_MODEXP_BYTES (EIP-7823)."""

    def run(computation: "GuardedComputation") -> object:
        lengths = bytes(computation.msg.data[:96]).ljust(96, b"\0")
        for start in (0, 32, 64):
            if int.from_bytes(lengths[start : start + 32], "big") > MAX_MODEXP_BYTES:
                raise VMError(f"a MODEXP operand above {MAX_MODEXP_BYTES} bytes")
        return precompile(computation)

    return run


def _address(number: int) -> Address:
    return Address(number.to_bytes(20, "big"))


PAIRING: Final = reprice(PragueComputation.get_precompiles()[_address(8)], BN128_PAIRING_FACTOR)


def build_precompiles() -> dict[bytes, Precompile]:
    """Return Prague's precompiles as this chain has them."""
    stock: dict[bytes, Precompile] = dict(PragueComputation.get_precompiles())
    guarded = {
        1: take_input(stock[_address(1)], 128),
        4: run_identity,
        5: take_input(bound_modexp(stock[_address(5)]), 96 + 3 * MAX_MODEXP_BYTES),
        6: take_input(reprice(stock[_address(6)], BN128_ADD_FACTOR), 128),
        7: take_input(reprice(stock[_address(7)], BN128_MUL_FACTOR), 96),
        8: run_pairing,
        9: take_input(reprice(stock[_address(9)], BLAKE2F_FACTOR), BLAKE2F_BYTES + 1),
        **dict.fromkeys(range(0x0A, 0x12), refuse),
    }
    return {**stock, **{_address(number): function for number, function in guarded.items()}}


# -- frames ----------------------------------------------------------------------------------------
class GuardedComputation(PragueComputation):  # type: ignore[misc]
    """One call frame."""

    opcodes: ClassVar = {
        **PragueComputation.opcodes,
        **{number: share_input(PragueComputation.opcodes[number]) for number in CALLS},
        SELFDESTRUCT: PragueComputation.opcodes[SELFDESTRUCT].__wrapped__,
    }
    _precompiles: ClassVar[dict[bytes, Precompile]] = build_precompiles()

    is_reading_input = False

    def __init__(self, state: object, message: object, transaction_context: object) -> None:
        super().__init__(state, message, transaction_context)
        self.code = LinearCodeStream(self.msg.code, self.state.scanned_codes)

    @classmethod
    def consume_initcode_gas_cost(cls, computation: "GuardedComputation") -> None:
        """Charge nothing: it is in the transaction's intrinsic gas, and CREATE charges its own."""

    def prepare_child_message(
        self,
        gas: int,
        to: bytes,
        value: int,
        data: bytes | memoryview,
        code: bytes,
        **options: object,
    ) -> SharedMessage:
        """Return the message of a call or a creation from this frame."""
        options.setdefault("sender", self.msg.storage_address)
        depth = self.msg.depth + 1
        return SharedMessage(
            gas=gas, to=to, value=value, data=data, code=code, depth=depth, **options
        )

    def memory_read_bytes(self, start_position: int, size: int) -> bytes | memoryview:
        """Return a copy of memory; a view where a call reads its input."""
        if self.is_reading_input:
            self.is_reading_input = False
            return cast(memoryview, self._memory.read(start_position, size))
        return bytes(self._memory.read(start_position, size))

    def add_child_computation(self, child: "GuardedComputation") -> None:
        """Take a finished frame, and let go of what no one will read again."""
        for finished in (*self.children[-1:], *child.children[-1:]):
            finished._output = b""
        super().add_child_computation(child)
        child._memory, child.return_data, child.msg.data = Memory(), b"", b""
        if child.is_error:
            child.error.with_traceback(None)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if isinstance(error, DETERMINISTIC_ERRORS):
            error = VMError(f"{type(error).__name__}: {error}")
            kind = VMError
        suppress: bool | None = super().__exit__(kind, error, traceback)
        return suppress


def list_frames(computation: GuardedComputation) -> Iterator[GuardedComputation]:
    """Yield the frames whose effects stand: this one and those below, without failed ones."""
    waiting = [computation]
    while waiting:
        frame = waiting.pop()
        if not frame.is_error:
            yield frame
            waiting.extend(frame.children)

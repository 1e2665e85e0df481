"""A chain in memory for tests of the state transition: keys, signing, tiny contracts, blocks."""

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TypeVar

from eth_hash.auto import keccak
from eth_keys.datatypes import PrivateKey

from steelyard.chain import bls
from steelyard.chain.block import Header, compute_extension_hash
from steelyard.chain.errors import UnavailableBlob
from steelyard.chain.evm import BlockState
from steelyard.chain.execute import (
    Built,
    CallRequest,
    CallResult,
    Outcome,
    Proposal,
    apply_block,
    build_block,
    build_environment,
    call,
)
from steelyard.chain.genesis import (
    Genesis,
    GenesisState,
    GenesisValidator,
    build_genesis,
    create_genesis,
)
from steelyard.chain.params import BLOB_DECLARATION_ADDRESS, EVM_STACK_BYTES
from steelyard.chain.proofs import get_account
from steelyard.chain.rlp import encode_rlp
from steelyard.chain.types import Address, BlobName, Digest, Domain, Hash, View

T = TypeVar("T")
CHAIN_ID = 7
DOMAIN, OTHER_DOMAIN = Domain(b"\x07" * 32), Domain(b"\x08" * 32)
"""Of votes about blocks that belong to no genesis document."""
GWEI = 10**9
ETHER = 10**18
KEYS = [PrivateKey((number + 1).to_bytes(32, "big")) for number in range(12)]
ADDRESSES = [Address(key.public_key.to_canonical_address()) for key in KEYS]
FEES = Address(b"\xfe" * 20)
"""The coinbase of every block here."""
CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def run_with_stack(function: Callable[[], T]) -> T:
    """Run in a thread with the stack that execution needs, and return or raise what it does."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    previous = threading.stack_size(EVM_STACK_BYTES)
    limit = sys.getrecursionlimit()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    threading.stack_size(previous)
    sys.setrecursionlimit(limit)
    if errors:
        raise errors[0]
    return results[0]


# -- transactions ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Draft:
    """A type-2 transaction before its signature; `type` picks another envelope."""

    nonce: int = 0
    to: bytes = ADDRESSES[1]
    value: int = 0
    data: bytes = b""
    gas: int = 200_000
    max_fee: int = 10 * GWEI
    tip: int = GWEI
    chain_id: int = CHAIN_ID
    access_list: tuple[tuple[bytes, tuple[int, ...]], ...] = ()
    type: int = 2


def declare(*names: BlobName) -> tuple[tuple[bytes, tuple[int, ...]], ...]:
    """Return the access list that declares these blobs."""
    keys = [key for name in names for key in (int.from_bytes(name.digest, "big"), name.size)]
    return ((BLOB_DECLARATION_ADDRESS, tuple(keys)),)


def sign(draft: Draft, key: PrivateKey = KEYS[0], *, high_s: bool = False) -> bytes:
    """Return the raw bytes of the signed draft."""
    access = [
        [address, [slot.to_bytes(32, "big") for slot in slots]]
        for address, slots in draft.access_list
    ]
    target = [draft.gas, draft.to, draft.value, draft.data]
    if draft.type == 0:
        fields = [draft.nonce, draft.max_fee, *target]
        message = encode_rlp([*fields, draft.chain_id, 0, 0])
        parity, r, s = _sign(key, message, high_s=high_s)
        return encode_rlp([*fields, parity + 35 + 2 * draft.chain_id, r, s])
    prices = [draft.max_fee] if draft.type == 1 else [draft.tip, draft.max_fee]
    fields = [draft.chain_id, draft.nonce, *prices, *target, access]
    prefix = bytes([draft.type])
    return prefix + encode_rlp([*fields, *_sign(key, prefix + encode_rlp(fields), high_s=high_s)])


def _sign(key: PrivateKey, message: bytes, *, high_s: bool) -> tuple[int, int, int]:
    parity, r, s = key.sign_msg_hash(keccak(message)).vrs
    return (1 - parity, r, CURVE_ORDER - s) if high_s else (parity, r, s)


# -- tiny contracts --------------------------------------------------------------------------------
def push(value: int | bytes) -> bytes:
    """Return the shortest PUSH of a value."""
    data = (
        value if isinstance(value, bytes) else value.to_bytes((value.bit_length() + 7) // 8, "big")
    )
    return bytes([0x5F + len(data)]) + data


def deploy(runtime: bytes) -> bytes:
    """Return init code that installs `runtime`."""
    size = push(len(runtime).to_bytes(2, "big"))
    copy, finish = push(0) + b"\x39", size + push(0) + b"\xf3"
    offset = len(size) + 2 + len(copy) + len(finish)
    return size + push(bytes([offset])) + copy + finish + runtime


def call_code(
    address: bytes, data: bytes = b"", *, opcode: int = 0xF1, value: int = 0, gas: int | None = None
) -> bytes:
    """Return code that calls `address` and leaves success on the stack.

    `opcode`: 0xF1 CALL, 0xF2 CALLCODE, 0xF4 DELEGATECALL, 0xFA STATICCALL. All gas by default.
    """
    words = [data[i : i + 32].ljust(32, b"\0") for i in range(0, len(data), 32)]
    code = b"".join(push(word) + push(32 * i) + b"\x52" for i, word in enumerate(words))
    code += push(0) + push(0) + push(len(data)) + push(0)
    if opcode in {0xF1, 0xF2}:
        code += push(value)
    return code + push(address) + (b"\x5a" if gas is None else push(gas)) + bytes([opcode])


RETURN_WORD = push(0) + b"\x52" + push(32) + push(0) + b"\xf3"
"""Code that returns the word on the stack."""
RETURN_ALL = b"\x3d\x5f\x5f\x3e\x3d\x5f\xf3"
"""Code that returns what the last call returned."""
REVERT = push(0) + push(0) + b"\xfd"


# -- blobs -----------------------------------------------------------------------------------------
def name_blob(data: bytes) -> BlobName:
    """Return a name for test bytes: not a CID, which execution never computes."""
    return BlobName(Digest(keccak(data)), len(data))


class Blobs:
    """Blobs on a machine."""

    def __init__(self, *blobs: bytes) -> None:
        self.held = {name_blob(data): data for data in blobs}
        self.reads: list[BlobName] = []

    def read(self, name: BlobName) -> bytes:
        self.reads.append(name)
        if name not in self.held:
            raise UnavailableBlob("blob_unavailable", name.digest.hex())
        return self.held[name]


# -- the chain -------------------------------------------------------------------------------------
@cache
def make_validator(number: int = 0) -> GenesisValidator:
    """Return a validator with real keys."""
    secret = bls.derive_secret_key(bytes([number + 1]) * 32)
    return GenesisValidator(
        address=ADDRESSES[-1 - number],
        bls_key=bls.compute_public_key(secret),
        proof_of_possession=bls.prove_possession(secret),
        network_key=bytes([number]) * 32,
        endpoint=f"127.0.0.1:{9000 + number}",
        fee_recipient=FEES,
        stake=10**21,
    )


def make_genesis(**changes: object) -> Genesis:
    """Return a document with one validator and 1000 ether for each of the first ten keys."""
    genesis = create_genesis(
        chain_id=CHAIN_ID,
        name="test",
        timestamp=1_000,
        validators=(make_validator(),),
        alloc={address: 1_000 * ETHER for address in ADDRESSES[:10]},
        gas_limit=30_000_000,
    )
    return replace(genesis, **changes) if changes else genesis


@cache
def get_genesis_state() -> GenesisState:
    """Return block 0 of `make_genesis()`."""
    return run_with_stack(lambda: build_genesis(make_genesis()))


@dataclass
class Chain:
    """A chain that grows by one block a call of `add`, each built and imported."""

    genesis: Genesis = field(default_factory=make_genesis)
    blobs: Blobs = field(default_factory=Blobs)

    def __post_init__(self) -> None:
        state = (
            get_genesis_state()
            if self.genesis == make_genesis()
            else run_with_stack(lambda: build_genesis(self.genesis))
        )
        self.nodes = dict(state.nodes)
        self.headers: list[Header] = [state.block.header]
        self.current = state.epoch_set

    @property
    def head(self) -> Header:
        return self.headers[-1]

    @property
    def ancestors(self) -> tuple[Hash, ...]:
        return tuple(header.hash for header in reversed(self.headers))[:256]

    def propose(self, timestamp: int | None = None, view: int = 1) -> Proposal:
        """Return a proposal on the head, one second later."""
        return Proposal(
            view=View(view),
            timestamp=self.head.timestamp + 1 if timestamp is None else timestamp,
            ancestors=self.ancestors,
        )

    def build(self, *raw: bytes, proposal: Proposal | None = None) -> Built:
        """Build on the head; nothing is stored."""
        return run_with_stack(
            lambda: build_block(
                self.nodes,
                self.blobs,
                self.genesis.rules,
                self.head,
                proposal or self.propose(),
                raw,
                self.current,
            )
        )

    def import_block(self, built: Built) -> Outcome:
        """Import a block on the head and store it."""
        outcome = run_with_stack(
            lambda: apply_block(
                self.nodes,
                self.blobs,
                self.genesis.rules,
                self.head,
                built.block,
                self.ancestors,
                self.current,
            )
        )
        self.nodes.update(outcome.nodes)
        self.blobs.held.update(outcome.blobs)
        if outcome.next_set is not None:
            self.current = outcome.next_set.epoch_set
        self.headers.append(built.block.header)
        return outcome

    def add(self, *raw: bytes, proposal: Proposal | None = None) -> Outcome:
        """Build, import, compare, store. Every transaction must enter."""
        built = self.build(*raw, proposal=proposal)
        assert not built.outcome.refused, built.outcome.refused
        outcome = self.import_block(built)
        assert outcome == built.outcome
        return outcome

    def deploy(self, runtime: bytes, key: PrivateKey = KEYS[9]) -> Address:
        """Install a contract and return its address."""
        draft = Draft(nonce=self.get_nonce(key), to=b"", data=deploy(runtime), gas=10_000_000)
        receipt = self.add(sign(draft, key)).receipts[0]
        assert receipt.contract_address is not None
        return receipt.contract_address

    def get_nonce(self, key: PrivateKey) -> int:
        address = Address(key.public_key.to_canonical_address())
        return get_account(self.nodes, self.head.state_root, address).nonce

    def call(self, request: CallRequest, gas_cap: int = 30_000_000) -> CallResult:
        """Call on the head."""
        environment = build_environment(self.head, (), self.ancestors[1:])
        return run_with_stack(
            lambda: call(
                self.nodes,
                self.blobs,
                self.genesis.rules,
                self.head.state_root,
                environment,
                request,
                gas_cap,
            )
        )


def alter(built: Built, **changes: object) -> Built:
    """Return the block with another extension, and a header that commits to it."""
    extension = replace(built.block.extension, **changes)
    header = replace(built.block.header, parent_beacon_block_root=compute_extension_hash(extension))
    return Built(replace(built.block, header=header, extension=extension), built.outcome)


def put_account(
    chain: Chain, address: Address, *, nonce: int = 0, balance: int = 0, code: bytes = b""
) -> None:
    """Change the head's state behind the chain's back."""
    environment = build_environment(chain.head, (), ())
    rules, root = chain.genesis.rules, chain.head.state_root
    state = BlockState(chain.nodes, chain.blobs, rules, root, environment)
    state.process_account(address, balance=balance, nonce=nonce, code=code)
    root, nodes = state.finish()
    chain.nodes.update(nodes)
    chain.headers[-1] = replace(chain.head, state_root=root)

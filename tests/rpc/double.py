"""A chain in memory with the signatures of `node.Node`: what the HTTP side is tested against.

Blocks are made by hand from signed transactions; calls answer what the test puts in. The real node
is tested end to end in test_clients.py.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from eth_account import Account
from eth_account.signers.local import LocalAccount

from steelyard.chain.block import Block, Extension, Header, Rules
from steelyard.chain.cid import Cid, compute_blob_name, encode_cid, is_named
from steelyard.chain.consensus.certificates import Certificate
from steelyard.chain.errors import InvalidTransaction, SteelyardError
from steelyard.chain.execute import CallRequest, CallResult
from steelyard.chain.proofs import Account as AccountState
from steelyard.chain.proofs import AccountProof, StorageProof
from steelyard.chain.receipts import Log, Receipt, merge_blooms
from steelyard.chain.transactions import Transaction, decode_transaction
from steelyard.chain.types import Address, BlobName, Domain, Epoch, Hash, Height, View
from steelyard.node.log_index import is_match
from steelyard.node.records import (
    BlobFile,
    Inclusion,
    LogEntry,
    LogQuery,
    NetworkTotals,
    NodeStatus,
)

CHAIN_ID = 7717
BASE_FEE = 10**9
TIP = 2 * 10**9
SENDER: LocalAccount = Account.from_key(b"\x11" * 32)
CONTRACT = Address(b"\xc0" * 20)
TOPIC = Hash(b"\x70" * 32)
OTHER_TOPIC = Hash(b"\x71" * 32)


def sign(nonce: int, kind: int = 2, **fields: object) -> bytes:
    """A signed transaction of SENDER to CONTRACT."""
    fees: dict[str, object] = {"gasPrice": BASE_FEE + TIP}
    if kind == 2:
        fees = {"maxFeePerGas": 5 * BASE_FEE, "maxPriorityFeePerGas": TIP}
    if kind:
        fees["type"] = kind
    transaction = {
        "chainId": CHAIN_ID,
        "nonce": nonce,
        "gas": 50_000,
        "to": CONTRACT,
        "value": 1,
        "data": b"\x01\x02",
        **fees,
        **fields,
    }
    return bytes(SENDER.sign_transaction(transaction).raw_transaction)


class Upload:
    """A blob on its way into a DoubleNode."""

    def __init__(self, node: "DoubleNode", cid: Cid, size: int) -> None:
        self.node, self.cid, self.size, self.data = node, cid, size, bytearray()
        self.is_open = True

    def write(self, chunk: bytes) -> None:
        self.data += chunk

    def commit(self) -> None:
        name = compute_blob_name(bytes(self.data))
        if len(self.data) != self.size or not is_named(name, self.cid):
            raise SteelyardError("blob_mismatch", "other bytes")
        self.node.add_blob(bytes(self.data))
        self.is_open = False

    def abort(self) -> None:
        self.is_open = False
        self.node.aborted.append(self.cid)


class DoubleNode:
    """The facade that node/http.py needs."""

    def __init__(self, directory: Path) -> None:
        self.rules = Rules(CHAIN_ID, Domain(bytes(32)), 30_000_000, BASE_FEE, 10**6)
        self.directory = directory
        self.blocks: list[Block] = []
        self.receipts: dict[Hash, tuple[Receipt, ...]] = {}
        self.places: dict[Hash, Inclusion] = {}
        self.pool: dict[Hash, Transaction] = {}
        self.callbacks: list[Callable[[Header], None]] = []
        self.declared: dict[Cid, int] = {}
        self.files: dict[BlobName, Path] = {}
        self.aborted: list[Cid] = []
        self.uploads: list[Upload] = []
        self.requests: list[CallRequest] = []
        self.result = CallResult(b"\x2a".rjust(32, b"\0"), 30_000, 0, None, False, (), None)
        self.on_call: Callable[[], None] = lambda: None
        self.alarm: str | None = None
        self.network = NetworkTotals()
        self.certificates: dict[int, Certificate] = {}
        self.lock = threading.Lock()
        self.add_block(())

    # -- making a chain ---------------------------------------------------------------------------
    def add_block(self, transactions: Sequence[bytes], logs: Sequence[Log] = ()) -> Block:
        """Append a block; its first transaction emits the logs."""
        decoded = [decode_transaction(raw) for raw in transactions]
        receipts = tuple(
            Receipt(
                type=one.type,
                status=1,
                cumulative_gas_used=21_000 * (index + 1),
                gas_used=21_000,
                effective_gas_price=min(one.max_fee, BASE_FEE + one.max_priority_fee),
                logs=tuple(logs) if index == 0 else (),
                contract_address=None,
            )
            for index, one in enumerate(decoded)
        )
        height = len(self.blocks)
        header = Header(
            parent_hash=self.blocks[-1].hash if self.blocks else Hash(bytes(32)),
            coinbase=Address(b"\xcb" * 20),
            state_root=Hash(b"\x01" * 32),
            transactions_root=Hash(b"\x02" * 32),
            receipts_root=Hash(b"\x03" * 32),
            bloom=merge_blooms(one.bloom for one in receipts),
            height=Height(height),
            gas_limit=30_000_000,
            gas_used=21_000 * len(receipts),
            timestamp=1_700_000_000 + height,
            prev_randao=Hash(b"\x04" * 32),
            base_fee=BASE_FEE,
            withdrawals_root=Hash(b"\x05" * 32),
            parent_beacon_block_root=Hash(b"\x06" * 32),
        )
        extension = Extension(Epoch(0), View(height), Address(b"\xcb" * 20), Hash(bytes(32)))
        block = Block(header, extension, tuple(transactions))
        with self.lock:
            self.receipts[block.hash] = receipts
            for index, one in enumerate(decoded):
                self.places[one.hash] = Inclusion(block.hash, Height(height), index)
                self.pool.pop(one.hash, None)
            self.blocks.append(block)
        for callback in list(self.callbacks):
            callback(header)
        return block

    def add_blob(self, data: bytes) -> Cid:
        name = compute_blob_name(data)
        path = self.directory / encode_cid(name)
        path.write_bytes(data)
        self.files[name] = path
        return next(cid for cid in self.iter_cids(name))

    def iter_cids(self, name: BlobName) -> list[Cid]:
        return [
            cid for cid in (Cid(0x55, name.digest), Cid(0x70, name.digest)) if is_named(name, cid)
        ]

    # -- the facade -------------------------------------------------------------------------------
    def get_head(self) -> Header:
        return self.blocks[-1].header

    def get_header(self, block_hash: Hash) -> Header | None:
        block = self.get_block(block_hash)
        return None if block is None else block.header

    def get_block(self, block_hash: Hash) -> Block | None:
        return next((one for one in self.blocks if one.hash == block_hash), None)

    def get_hash(self, height: int) -> Hash | None:
        return self.blocks[height].hash if height < len(self.blocks) else None

    def get_receipts(self, block_hash: Hash) -> tuple[Receipt, ...]:
        return self.receipts[block_hash]

    def get_certificate(self, height: int) -> Certificate | None:
        return self.certificates.get(height)

    def find_transaction(self, transaction_hash: Hash) -> Inclusion | None:
        return self.places.get(transaction_hash)

    def get_logs(self, query: LogQuery, limit: int) -> tuple[LogEntry, ...]:
        found = []
        for block in self.blocks[query.from_height : query.to_height + 1]:
            index = 0
            for position, receipt in enumerate(self.receipts[block.hash]):
                for log in receipt.logs:
                    transaction = decode_transaction(block.transactions[position])
                    entry = LogEntry(
                        log, block.height, block.hash, transaction.hash, position, index
                    )
                    index += 1
                    if is_match(query, log):
                        found.append(entry)
        if len(found) > limit:
            raise SteelyardError("logs_limit", f"more than {limit} logs match")
        return tuple(found)

    def _check_height(self, height: int | None) -> None:
        if height is not None and height >= len(self.blocks):
            raise SteelyardError("unknown_block", f"height {height} is not finalized")

    def get_balance(self, address: Address, height: int | None = None) -> int:
        self._check_height(height)
        return 10**18

    def get_nonce(self, address: Address, *, pending: bool, height: int | None = None) -> int:
        self._check_height(height)
        return 9 if pending else 8

    def get_code(self, address: Address, height: int | None = None) -> bytes:
        self._check_height(height)
        return b"\x60\x00" if address == CONTRACT else b""

    def get_storage(self, address: Address, slot: int, height: int | None = None) -> int:
        self._check_height(height)
        return slot

    def get_proof(
        self, address: Address, slots: Sequence[int], height: int | None = None
    ) -> AccountProof:
        self._check_height(height)
        storage = tuple(StorageProof(slot, slot, (b"\xf8",)) for slot in slots)
        return AccountProof(address, AccountState(3, 4), (b"\xf9",), storage)

    def call(self, request: CallRequest, height: int | None = None) -> CallResult:
        self._check_height(height)
        self.requests.append(request)
        self.on_call()
        return self.result

    estimate_gas = call

    def get_next_base_fee(self) -> int:
        return BASE_FEE

    def get_suggested_tip(self) -> int:
        return TIP

    def submit_transaction(self, raw: bytes) -> Hash:
        transaction = decode_transaction(raw)
        if transaction.chain_id != CHAIN_ID:
            raise InvalidTransaction("tx_chain_id", f"chain id {transaction.chain_id}")
        if transaction.nonce == 0:
            raise InvalidTransaction("tx_nonce_low", "nonce 0 was already used")
        self.pool[transaction.hash] = transaction
        return transaction.hash

    def get_pending(self) -> tuple[Transaction, ...]:
        return tuple(self.pool.values())

    def get_pending_transaction(self, transaction_hash: Hash) -> Transaction | None:
        return self.pool.get(transaction_hash)

    def open_blob_upload(self, cid: Cid, size: int) -> Upload:
        if any(is_named(name, cid) for name in self.files):
            raise SteelyardError("blob_held", "already here")
        if cid not in self.declared:
            raise SteelyardError("blob_undeclared", "no pending transaction declares it")
        if self.declared[cid] != size:
            raise SteelyardError("blob_size", "another size was declared")
        self.uploads.append(Upload(self, cid, size))
        return self.uploads[-1]

    def open_blob(self, cid: Cid) -> BlobFile | None:
        for name, path in self.files.items():
            if is_named(name, cid):
                return BlobFile(name, str(path))
        return None

    def subscribe(self, callback: Callable[[Header], None]) -> Callable[[], None]:
        self.callbacks.append(callback)
        return lambda: self.callbacks.remove(callback)

    def get_status(self) -> NodeStatus:
        head = self.get_head()
        return NodeStatus(
            version="0", chain_id=CHAIN_ID, genesis_hash="0x00", validator="0x00",
            height=head.height, block_hash="0x" + head.hash.hex(), timestamp=head.timestamp, view=1,
            uptime_seconds=1.5, blocks_built=1, transactions_finalized=2, mempool_transactions=3,
            mempool_bytes=4, blob_files=5, blob_bytes=6, free_disk_bytes=7, last_block_seconds=0.5,
            alarm=self.alarm, alarm_message=self.alarm, network=self.network,
        )  # fmt: skip

    def get_genesis_document(self) -> bytes:
        return b'{"chain_id":7717}'

"""The state transition: one function for building, importing and replaying a block.

    execute(parent state, environment, transactions) -> outcome

Nothing is written: the outcome holds the new trie nodes and blobs, and the caller stores them, in
one database transaction, when the block is final. A losing fork leaves nothing behind. A block that
reads a blob which is not on this machine raises UnavailableBlob: fetch it and execute again.

Run these functions in a thread with a stack of EVM_STACK_BYTES (see `evm.py`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import takewhile

from .block import (
    MAX_ANCESTORS,
    MAX_TRANSACTIONS_BYTES,
    Block,
    Extension,
    Header,
    Rules,
    check_block,
    compute_base_fee,
    compute_extension_hash,
    compute_prev_randao,
    compute_transactions_root,
    compute_withdrawals_root,
)
from .calls import CallRequest, CallResult, call
from .environment import BlobSource, Environment, build_environment
from .epochs import (
    EpochSet,
    NextSet,
    check_next_set,
    check_place,
    compute_epoch,
    compute_withdrawals,
    is_boundary,
    read_next_set,
)
from .errors import InvalidBlock, InvalidTransaction
from .evm import BlockState, Execution
from .params import MAX_BLOB_BYTES_PER_BLOCK, MAX_BLOCK_TRANSACTIONS
from .receipts import Receipt, compute_receipts_root, merge_blooms
from .transactions import (
    BlockFull,
    Transaction,
    check_fee,
    check_sender,
    check_transaction,
    compute_gas_price,
    decode_transaction,
)
from .trie import NodeSource
from .types import BlobName, Hash, Height, View

__all__ = [
    "BlobSource",
    "Built",
    "CallRequest",
    "CallResult",
    "Environment",
    "NodeSource",
    "Outcome",
    "Proposal",
    "Refused",
    "Rules",
    "apply_block",
    "build_block",
    "build_environment",
    "build_header",
    "call",
    "execute",
]


@dataclass(frozen=True, slots=True)
class Refused:
    """A transaction that was left out of a block, and why."""

    raw: bytes
    error: InvalidTransaction


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a block does. `declared` and `blobs` (made, and still recorded) may be read until
    `blobs_expire_at`; `nodes` are the new trie nodes and codes by hash."""

    state_root: Hash
    transactions_root: Hash
    receipts_root: Hash
    withdrawals_root: Hash
    gas_used: int
    bloom: bytes
    transactions: tuple[Transaction, ...]
    receipts: tuple[Receipt, ...]
    refused: tuple[Refused, ...]
    nodes: dict[bytes, bytes] = field(repr=False)
    blobs: dict[BlobName, bytes] = field(repr=False)
    declared: tuple[BlobName, ...]
    blobs_expire_at: int
    next_set: NextSet | None = None
    """Of a boundary block only: the validators of the next epoch."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a leader decides about a block; the rest follows from its parent, view and epoch.

    `ancestors` are hashes, parent first, at most 256.
    """

    view: View
    timestamp: int
    ancestors: tuple[Hash, ...] = ()
    extra_data: bytes = b""


@dataclass(frozen=True, slots=True)
class Built:
    """A new block, and what it does."""

    block: Block
    outcome: Outcome


# -- execute ---------------------------------------------------------------------------------------
class _Run:
    """A block in the making: what was included so far."""

    def __init__(self, state: BlockState, rules: Rules, environment: Environment) -> None:
        self.state, self.rules, self.environment = state, rules, environment
        self.transactions: list[Transaction] = []
        self.receipts: list[Receipt] = []
        self.gas_used = self.raw_bytes = self.blob_bytes = 0

    def process_transaction(self, raw: bytes) -> None:
        """Include one transaction. Raises InvalidTransaction, with the state as it was."""
        transaction = decode_transaction(raw)
        self._check(transaction)
        base_fee = self.environment.base_fee
        gas_price = compute_gas_price(transaction, base_fee)
        result = self.state.process_transaction(
            Execution(
                sender=transaction.sender,
                to=transaction.to,
                value=transaction.value,
                data=transaction.data,
                gas=transaction.gas,
                gas_price=gas_price,
                tip=gas_price - base_fee,
                access_list=transaction.access_list,
                blobs=transaction.blobs,
                intrinsic_gas=transaction.intrinsic_gas,
                floor_gas=transaction.floor_gas,
            )
        )
        self.gas_used += result.gas_used
        self.raw_bytes += len(raw)
        self.blob_bytes += transaction.blob_bytes
        self.transactions.append(transaction)
        self.receipts.append(
            Receipt(
                type=transaction.type,
                status=0 if result.error else 1,
                cumulative_gas_used=self.gas_used,
                gas_used=result.gas_used,
                effective_gas_price=gas_price,
                logs=result.logs,
                contract_address=result.contract_address,
            )
        )

    def _check(self, transaction: Transaction) -> None:
        check_transaction(transaction, self.rules.chain_id, self.rules.gas_limit)
        check_fee(transaction, self.environment.base_fee)
        check_sender(
            transaction,
            nonce=self.state.get_nonce(transaction.sender),
            balance=self.state.get_balance(transaction.sender),
            has_code=bool(self.state.get_code(transaction.sender)),
        )
        if self.gas_used + transaction.gas > self.rules.gas_limit:
            raise BlockFull(f"{self.rules.gas_limit - self.gas_used} gas is left in the block")
        if self.blob_bytes + transaction.blob_bytes > MAX_BLOB_BYTES_PER_BLOCK:
            raise BlockFull("the block has no room for these blobs")
        if (
            self.raw_bytes + len(transaction.raw) > MAX_TRANSACTIONS_BYTES
            or len(self.transactions) >= MAX_BLOCK_TRANSACTIONS
        ):
            raise BlockFull("the block has no room for these bytes")


def execute(
    nodes: NodeSource,
    blobs: BlobSource,
    rules: Rules,
    parent_state_root: Hash,
    environment: Environment,
    transactions: Iterable[bytes],
    on_refusal: Callable[[bytes, InvalidTransaction], None],
) -> Outcome:
    """Return what these transactions do.

    One that breaks a rule goes to `on_refusal`, which may raise.
    Raises: UnavailableBlob, MissingState, and what `on_refusal` raises. Nothing is written.
    """
    state = BlockState(nodes, blobs, rules, parent_state_root, environment)
    state.process_start()
    run = _Run(state, rules, environment)
    refused = []
    for raw in transactions:
        try:
            run.process_transaction(raw)
        except InvalidTransaction as error:
            on_refusal(raw, error)
            refused.append(Refused(raw, error))
    for withdrawal in environment.withdrawals:
        state.process_withdrawal(withdrawal)
    made = state.list_made_blobs()
    state_root, new_nodes = state.finish()
    included = tuple(run.transactions)
    return Outcome(
        state_root=state_root,
        transactions_root=compute_transactions_root(tuple(item.raw for item in included)),
        receipts_root=compute_receipts_root(run.receipts),
        withdrawals_root=compute_withdrawals_root(environment.withdrawals),
        gas_used=run.gas_used,
        bloom=merge_blooms(receipt.bloom for receipt in run.receipts),
        transactions=included,
        receipts=tuple(run.receipts),
        refused=tuple(refused),
        nodes=new_nodes,
        blobs=made,
        declared=tuple(dict.fromkeys(name for item in included for name in item.blobs)),
        blobs_expire_at=environment.timestamp + rules.blob_retention_seconds,
    )


# -- blocks ----------------------------------------------------------------------------------------
def build_block(
    nodes: NodeSource,
    blobs: BlobSource,
    rules: Rules,
    parent: Header,
    proposal: Proposal,
    transactions: Iterable[bytes],
    current: EpochSet,
    should_stop: Callable[[], bool] = lambda: False,
) -> Built:
    """Return the block of the view's leader with those transactions that may enter it, in order.

    `current` is the set of the block's epoch. `should_stop` is asked before each transaction; a
    driver uses it to keep to its time. Raises: UnavailableBlob, MissingState.
    """
    height = Height(parent.height + 1)
    assert current.epoch == compute_epoch(height, rules.epoch_blocks), "the set of another epoch"
    leader = current.get_leader(proposal.view)
    next_set = _read_next_set(nodes, blobs, rules, parent, current)
    extension = Extension(
        epoch=current.epoch,
        view=proposal.view,
        proposer=leader.address,
        next_validator_set_hash=_get_following(next_set, current).hash,
    )
    environment = Environment(
        height=height,
        timestamp=max(proposal.timestamp, parent.timestamp),
        coinbase=leader.fee_recipient,
        base_fee=compute_base_fee(parent, rules.min_base_fee),
        prev_randao=compute_prev_randao(parent, proposal.view),
        parent_hash=parent.hash,
        parent_beacon_block_root=compute_extension_hash(extension),
        withdrawals=compute_withdrawals(height, rules, current),
        ancestors=proposal.ancestors[:MAX_ANCESTORS],
    )
    candidates = takewhile(lambda _: not should_stop(), transactions)
    outcome = execute(
        nodes, blobs, rules, parent.state_root, environment, candidates, lambda _raw, _error: None
    )
    header = build_header(rules, environment, outcome, proposal.extra_data)
    raw = tuple(transaction.raw for transaction in outcome.transactions)
    block = Block(header, extension, raw, environment.withdrawals)
    return Built(block, replace(outcome, next_set=next_set))


def _read_next_set(
    nodes: NodeSource, blobs: BlobSource, rules: Rules, parent: Header, current: EpochSet
) -> NextSet | None:
    """Return the set after `current` if the next block is the last of its epoch."""
    if not is_boundary(parent.height + 1, rules.epoch_blocks):
        return None
    return read_next_set(nodes, blobs, rules, parent, current)


def _get_following(next_set: NextSet | None, current: EpochSet) -> EpochSet:
    """Return the set that decides the block after this one."""
    return current if next_set is None else next_set.epoch_set


def build_header(
    rules: Rules, environment: Environment, outcome: Outcome, extra_data: bytes = b""
) -> Header:
    """Return the header that says what this outcome was."""
    return Header(
        parent_hash=environment.parent_hash,
        coinbase=environment.coinbase,
        state_root=outcome.state_root,
        transactions_root=outcome.transactions_root,
        receipts_root=outcome.receipts_root,
        bloom=outcome.bloom,
        height=environment.height,
        gas_limit=rules.gas_limit,
        gas_used=outcome.gas_used,
        timestamp=environment.timestamp,
        prev_randao=environment.prev_randao,
        base_fee=environment.base_fee,
        withdrawals_root=outcome.withdrawals_root,
        parent_beacon_block_root=environment.parent_beacon_block_root,
        extra_data=extra_data,
    )


def _raise_invalid_block(_raw: bytes, error: InvalidTransaction) -> None:
    raise InvalidBlock("block_transaction", f"{error.code}: {error.message}") from error


def apply_block(
    nodes: NodeSource,
    blobs: BlobSource,
    rules: Rules,
    parent: Header,
    block: Block,
    ancestors: tuple[Hash, ...],
    current: EpochSet,
) -> Outcome:
    """Return what `block` does after `parent`; `ancestors` are hashes, parent first, up to 256.

    `current` is the set that decides the block after `parent`: of another epoch, a block is
    refused. Raises: InvalidBlock (codes of `check_block`, `check_place` and `check_next_set`,
    block_transaction, block_state_root, block_receipts_root, block_bloom, block_gas_used);
    UnavailableBlob, MissingState.
    """
    check_block(parent, block, rules)
    check_place(block, rules, current)
    next_set = _read_next_set(nodes, blobs, rules, parent, current)
    check_next_set(block, _get_following(next_set, current))
    header = block.header
    environment = build_environment(header, block.withdrawals, ancestors)
    outcome = execute(
        nodes,
        blobs,
        rules,
        parent.state_root,
        environment,
        block.transactions,
        _raise_invalid_block,
    )
    claims: tuple[tuple[str, bytes | int, bytes | int], ...] = (
        ("block_gas_used", header.gas_used, outcome.gas_used),
        ("block_receipts_root", header.receipts_root, outcome.receipts_root),
        ("block_bloom", header.bloom, outcome.bloom),
        ("block_state_root", header.state_root, outcome.state_root),
    )
    for code, claimed, computed in claims:
        if claimed != computed:
            raise InvalidBlock(code, f"claims {_show(claimed)}; it is {_show(computed)}")
    return replace(outcome, next_set=next_set)


def _show(value: bytes | int) -> str:
    return f"0x{value.hex()}" if isinstance(value, bytes) else str(value)

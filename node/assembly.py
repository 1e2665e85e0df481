"""Putting a node together: every part with what it needs, checked before anything starts."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from steelyard.chain import proofs
from steelyard.chain.block import Header, compute_base_fee
from steelyard.chain.bls import compute_public_key
from steelyard.chain.genesis import Genesis, build_genesis
from steelyard.chain.types import Address

from .blobs import BlobStore
from .builder import Builder
from .clock import Clock
from .config import NodeConfig
from .directory import CHAIN, SIGNER
from .driver import Driver
from .finality import Finalizer
from .keyfiles import Secrets
from .mempool import Mempool, Sender
from .opening import check_kernels, check_votes, open_chain
from .parts import Parts
from .session import check_key, read_journal
from .signer import Signer
from .store import ChainStore
from .tree import BlockTree


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts of one node. `on_final` is called with every finalized header and its number of
    transactions, on the driver's thread."""

    config: NodeConfig
    clock: Clock
    store: ChainStore
    blobs: BlobStore
    mempool: Mempool
    signer: Signer
    driver: Driver
    address: Address
    on_final: list[Callable[[Header, int], None]] = field(default_factory=list)


def assemble(
    directory: Path, genesis: Genesis, secrets: Secrets, config: NodeConfig, clock: Clock
) -> Assembly:
    """Open the stores, check that they belong together, connect the parts.

    Raises SteelyardError, InvalidKey, CorruptData, StorageFull.
    """
    check_kernels()
    state = build_genesis(genesis)
    voting_key = compute_public_key(secrets.voting)
    with ExitStack() as opened:
        store = ChainStore(directory / CHAIN, config.storage.map_bytes)
        opened.callback(store.close)
        signer = Signer(directory / SIGNER, secrets.voting, genesis.chain_id, state.block.hash)
        opened.callback(signer.close)
        open_chain(store, signer, state, secrets.address)
        blobs = BlobStore(directory, config.blobs)
        tree = BlockTree(genesis.rules, store, blobs)
        check_key(tree.current, secrets.address, voting_key)
        read_journal(store, tree)
        check_votes(directory, store, signer, tree, secrets.address)
        opened.pop_all()

    def read_sender(address: Address) -> Sender:
        account = proofs.get_account(store, store.get_head().state_root, address)
        has_code = account.code_hash != proofs.EMPTY_CODE_HASH
        return Sender(account.nonce, account.balance, has_code)

    def read_base_fee() -> int:
        return compute_base_fee(store.get_head(), genesis.rules.min_base_fee)

    mempool = Mempool(
        genesis.rules, config.mempool, read_sender, read_base_fee, blobs.has, clock.get_seconds
    )
    on_final: list[Callable[[Header, int], None]] = []

    def announce(header: Header, transactions: int) -> None:
        for callback in on_final:
            callback(header, transactions)

    parts = Parts(
        directory=directory,
        rules=genesis.rules,
        consensus=genesis.consensus,
        address=secrets.address,
        voting_key=voting_key,
        config=config,
        store=store,
        blobs=blobs,
        mempool=mempool,
        signer=signer,
        builder=Builder(genesis.rules, mempool, config.blocks, clock),
        finalizer=Finalizer(store, blobs, mempool, signer, announce, archive=config.blobs.archive),
        clock=clock,
    )
    driver = Driver(parts)
    blobs.on_arrival = lambda _: driver.wake_for_blob()
    driver.sweep()
    return Assembly(config, clock, store, blobs, mempool, signer, driver, secrets.address, on_final)

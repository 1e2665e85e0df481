"""Putting a node together: every part with what it needs, checked before anything starts."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from steelyard.chain import proofs
from steelyard.chain.block import Header, Rules, compute_base_fee
from steelyard.chain.bls import compute_public_key
from steelyard.chain.epochs import Member
from steelyard.chain.genesis import Genesis, build_genesis, schedule_forks
from steelyard.chain.types import Address, BlobName

from .blobs import BlobStore
from .builder import Builder
from .clock import Clock
from .config import NodeConfig
from .directory import CHAIN, SIGNER, check_space
from .driver import Driver
from .finality import Finalizer
from .following.service import AssistedOutbox, Following
from .following.sync import FollowerParts
from .journal import read_journal
from .keyfiles import Secrets
from .membership import Membership
from .mempool import Mempool, Sender
from .network.mesh import Mesh, compute_listen
from .network.service import Network, NetworkParts
from .opening import check_kernels, check_votes, open_chain
from .parts import Parts
from .pruning import Pruner
from .signer import Signer
from .store import ChainStore
from .tree import BlockTree
from .voting import check_key


@dataclass(frozen=True, slots=True)
class Assembly:
    """One node, put together. `on_final` is called with every finalized header and its number of
    transactions, on the driver's thread."""

    parts: Parts
    driver: Driver
    membership: Membership
    following: Following
    on_final: list[Callable[[Header, int], None]]


def assemble(
    directory: Path, genesis: Genesis, secrets: Secrets, config: NodeConfig, clock: Clock
) -> Assembly:
    """Open the stores, check that they belong together, connect the parts.

    Raises SteelyardError, InvalidKey, CorruptData, StorageFull.
    """
    check_kernels()
    rules = schedule_forks(genesis.rules, config.upgrades)
    stores = open_stores(directory, genesis, rules, secrets, config)
    on_final: list[Callable[[Header, int], None]] = []
    parts = build_parts(directory, genesis, rules, secrets, config, clock, stores, on_final)
    driver = Driver(parts)
    following = Following(
        FollowerParts(
            genesis=genesis,
            config=config.follow,
            store=parts.store,
            blobs=parts.blobs,
            deliver=driver.deliver,
            wake=driver.wake_for_blob,
            is_member=driver.is_validator,
            clock=clock,
        ),
        parts.mempool,
    )
    on_final.append(following.on_final)
    connector = Connector(parts, secrets, driver, following)
    connector.detach()
    membership = Membership(secrets.address, connector.connect, connector.disconnect)
    driver.outbox = AssistedOutbox(membership, following)
    driver.sweep()
    return Assembly(parts, driver, membership, following, on_final)


@dataclass(frozen=True, slots=True)
class Stores:
    """What is on disk."""

    chain: ChainStore
    signer: Signer
    blobs: BlobStore


def open_stores(
    directory: Path, genesis: Genesis, rules: Rules, secrets: Secrets, config: NodeConfig
) -> Stores:
    """Open what is on disk, or begin it, if all of it belongs together."""
    state = build_genesis(genesis)
    with ExitStack() as opened:
        store = ChainStore(directory / CHAIN, config.storage.map_bytes)
        opened.callback(store.close)
        signer = Signer(directory / SIGNER, secrets.voting, genesis.domain, state.block.hash)
        opened.callback(signer.close)
        open_chain(store, signer, state, secrets.address)
        store.check_upgrades(rules.forks)
        blobs = BlobStore(directory, config.blobs)
        tree = BlockTree(rules, store, blobs)
        check_key(tree.current, secrets.address, compute_public_key(secrets.voting))
        read_journal(store, tree)
        check_votes(directory, store, signer, tree, secrets.address)
        opened.pop_all()
    return Stores(store, signer, blobs)


def build_parts(
    directory: Path,
    genesis: Genesis,
    rules: Rules,
    secrets: Secrets,
    config: NodeConfig,
    clock: Clock,
    stores: Stores,
    on_final: list[Callable[[Header, int], None]],
) -> Parts:
    """What every session of consensus works with."""
    store, blobs = stores.chain, stores.blobs
    mempool = build_mempool(rules, config, store, blobs, clock)

    def announce(header: Header, transactions: int) -> None:
        for callback in on_final:
            callback(header, transactions)

    return Parts(
        directory=directory,
        rules=rules,
        consensus=genesis.consensus,
        address=secrets.address,
        voting_key=compute_public_key(secrets.voting),
        config=config,
        store=store,
        blobs=blobs,
        mempool=mempool,
        signer=stores.signer,
        builder=Builder(rules, mempool, config.blocks, clock),
        finalizer=Finalizer(
            store,
            blobs,
            mempool,
            stores.signer,
            announce,
            archive=config.blobs.archive,
            prune=Pruner(store, config.storage.keep_states, clock.get_seconds).work,
        ),
        clock=clock,
    )


def build_mempool(
    rules: Rules, config: NodeConfig, store: ChainStore, blobs: BlobStore, clock: Clock
) -> Mempool:
    """The pool over the finalized state."""

    def read_sender(address: Address) -> Sender:
        account = proofs.get_account(store, store.get_head().state_root, address)
        has_code = account.code_hash != proofs.EMPTY_CODE_HASH
        return Sender(account.nonce, account.balance, has_code)

    def read_base_fee() -> int:
        return compute_base_fee(store.get_head(), rules.min_base_fee)

    return Mempool(rules, config.mempool, read_sender, read_base_fee, blobs.has, clock.get_seconds)


class Connector:
    """Makes networks for `Membership`, and puts pool and blobs in touch with them."""

    def __init__(
        self, parts: Parts, secrets: Secrets, driver: Driver, following: Following
    ) -> None:
        self._parts, self._secrets = parts, secrets
        self._driver, self._following = driver, following

    def connect(self, member: Member) -> Network:
        """A network that runs. Raises SteelyardError: endpoint_malformed, port_taken, …."""
        parts, config = self._parts, self._parts.config.network
        listen = compute_listen(config.listen, member.endpoint)
        genesis_hash = parts.store.get_hash(0)
        assert genesis_hash is not None, "a store is initialised before it is read"
        network = Network(
            NetworkParts(
                address=parts.address,
                config=config,
                domain=parts.rules.domain,
                epoch_blocks=parts.rules.epoch_blocks,
                genesis_hash=genesis_hash,
                store=parts.store,
                mempool=parts.mempool,
                blobs=parts.blobs,
                check_space=self._check_space,
                clock=parts.clock,
            ),
            lambda on_message: Mesh(self._secrets.network, listen, config, on_message, parts.clock),
        )
        network.start()
        self._attach(network)
        return network

    def disconnect(self, network: Network) -> None:
        """Close it, and let pool and blobs go on without."""
        network.stop()
        self.detach()

    def _check_space(self, size: int) -> None:
        check_space(self._parts.directory, self._parts.config.storage.min_free_bytes + size)

    def _attach(self, network: Network) -> None:
        network.attach(self._driver.deliver, self._driver.wake)

        def note_blob(name: BlobName) -> None:
            network.on_arrival(name)
            self._note_blob(name)

        self._parts.blobs.on_arrival = note_blob

    def detach(self) -> None:
        """Nobody is told of what comes but the driver and the sources."""
        self._parts.blobs.on_arrival = self._note_blob
        self._parts.mempool.is_available = self._parts.blobs.has
        self._parts.mempool.on_added = lambda *_: self._driver.wake()

    def _note_blob(self, _name: BlobName) -> None:
        self._driver.wake_for_blob()
        self._following.wake()

"""Putting a node together: every part with what it needs, checked before anything starts."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from steelyard.chain import proofs, selftest
from steelyard.chain.block import Header, compute_base_fee
from steelyard.chain.bls import compute_public_key
from steelyard.chain.consensus.simplex import Settings
from steelyard.chain.consensus.validators import ValidatorSet
from steelyard.chain.consensus.votes import Kind, Statement
from steelyard.chain.errors import InvalidKey, SteelyardError
from steelyard.chain.genesis import Genesis, GenesisState, build_genesis
from steelyard.chain.types import Address, Epoch, Height

from .blobs import BlobStore
from .builder import Builder, Identity
from .clock import Clock
from .config import NodeConfig
from .directory import CHAIN, SIGNER
from .driver import Driver, Parts, read_journal
from .finality import Finalizer
from .keyfiles import Secrets
from .logs import log_event
from .mempool import Mempool, Sender
from .signer import Signer
from .store import ChainStore, CorruptData, FinalBlock
from .tree import BlockTree, get_candidate

FIRST_EPOCH = Epoch(0)
WHOLE = (
    "restore the whole directory from one backup: then the blocks made final since are lost, so "
    "tell clients and auditors"
)
CHAIN_ADVICE = (
    f"put back the chain/ and blobs/ that lay beside this signer/; if they are lost, {WHOLE}"
)
SIGNER_ADVICE = f"put back the signer/ that lay beside this chain/; if it is lost, {WHOLE}"


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
    identity: Identity
    validators: ValidatorSet
    on_final: list[Callable[[Header, int], None]] = field(default_factory=list)


def assemble(
    directory: Path, genesis: Genesis, secrets: Secrets, config: NodeConfig, clock: Clock
) -> Assembly:
    """Open the stores, check that they belong together, connect the parts.

    Raises SteelyardError, InvalidKey, CorruptData, StorageFull.
    """
    check_kernels()
    state = build_genesis(genesis)
    me = find_validator(state.validators, secrets)
    with ExitStack() as opened:
        store = ChainStore(directory / CHAIN, config.storage.map_bytes)
        opened.callback(store.close)
        signer = Signer(directory / SIGNER, secrets.voting, me, genesis.chain_id, state.block.hash)
        opened.callback(signer.close)
        open_chain(store, signer, state)
        blobs = BlobStore(directory, config.blobs)
        tree = BlockTree(genesis.rules, store, blobs)
        read_journal(store, tree)
        check_votes(directory, store, signer, tree)
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

    fee_recipient = genesis.validators[me].fee_recipient
    identity = Identity(secrets.address, fee_recipient)
    parts = Parts(
        directory=directory,
        rules=genesis.rules,
        settings=Settings(
            chain_id=genesis.chain_id,
            epoch=FIRST_EPOCH,
            last_height=Height(genesis.epoch_blocks),
            validators=state.validators,
            me=me,
            timeout_ms=genesis.consensus.timeout_ms,
            heartbeat_ms=genesis.consensus.heartbeat_ms,
        ),
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
    blobs.on_arrival = lambda _: driver.wake()
    driver.sweep()
    return Assembly(
        config, clock, store, blobs, mempool, signer, driver, identity, state.validators, on_final
    )


def check_kernels() -> None:
    """Refuse to vote with kernels that compute something else. Raises SteelyardError selftest."""
    failures = selftest.run()
    if failures:
        raise SteelyardError(
            "selftest",
            f"this machine computes wrong aggregates ({failures[0]}); run `steelyard selftest` and "
            "install the versions of constraints.txt",
        )


def find_validator(validators: ValidatorSet, secrets: Secrets) -> int:
    """Our place in the set. Raises InvalidKey key_validator, SteelyardError validators_quorum."""
    place = validators.find(secrets.address)
    if place is None or validators[place].key != compute_public_key(secrets.voting):
        raise InvalidKey(
            "key_validator",
            f"0x{secrets.address.hex()} with this voting key is no validator of genesis.json; use "
            "the keys that were made with it",
        )
    if not validators.has_quorum((place,)):
        raise SteelyardError(
            "validators_quorum",
            "this validator alone has no quorum of the power, and this release cannot connect to "
            "others; make a genesis with one validator",
        )
    return place


def open_chain(store: ChainStore, signer: Signer, state: GenesisState) -> None:
    """Start an empty store from block 0, or check the one that is there."""
    if not store.is_empty():
        store.check(state.block.hash)
        return
    if not signer.is_new():
        raise CorruptData(store.path, "the chain is gone, but this key has voted on it")
    store.commit([FinalBlock(state.block, (), state.nodes, (), state.epoch_set)], None, {})
    log_event("genesis_committed", hash=state.block.hash)


def check_votes(directory: Path, store: ChainStore, signer: Signer, tree: BlockTree) -> None:
    """Refuse a chain and a signer of different ages. Raises CorruptData.

    No certificate is made without us (`find_validator`), so what made the head final was signed
    here before the commit; and a block is on disk before our vote for it (`Driver`). A kill leaves
    both true. With an older chain consensus would wait for ever for the blocks that were voted for;
    with an older signer, or none, the key might contradict itself.
    """
    block = store.get_block(tree.root.hash)
    assert block is not None, "the head's body is stored with it"
    head = get_candidate(block)
    place = (head.epoch, head.view)
    known = {candidate.hash for candidate in tree.get_candidates()}
    ahead = [
        (said.epoch, said.view)
        for said in signer.get_statements()
        if (said.epoch, said.view) > place and said.kind != Kind.NULLIFY and said.hash not in known
    ]
    voted = max((signer.get_floor(), *ahead))
    if voted > place:
        raise CorruptData(
            directory,
            f"chain/ is older than signer/: this key has voted in view {voted[1]} for a block that "
            f"chain/, which ends with block {head.height} of view {head.view}, does not hold, and "
            "it never contradicts a vote: nothing would become final any more",
            CHAIN_ADVICE,
        )
    if head.height > 0 and not signer.has_said(
        Statement(head.epoch, head.view, Kind.FINALIZE, head.hash)
    ):
        raise CorruptData(
            directory,
            f"signer/ is gone, or older than chain/: it lacks the vote that made block "
            f"{head.height} final, so this key could contradict what it said",
            SIGNER_ADVICE,
        )

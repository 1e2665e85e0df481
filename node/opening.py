"""Opening a data directory: do keys, chain and signer belong together, and is each the newest?

What is refused, and what is not:

chain/ older than signer/, or gone
    If we alone are a quorum: refused, as nobody else has the blocks. Else fine: others have them.
signer/ older than chain/, or gone
    Refused, as the key could contradict itself: if we alone are a quorum whenever it lacks the vote
    that made the head final, else whenever chain/ remembers a later vote than it does.
both older (a whole backup)
    Goes on from there; among several `voting` guards what the key says.

An old chain and a new signer do no harm among several: the signer refuses to vote again in views
that it voted in, consensus is told what was signed, and the others bring what we lack.
"""

from pathlib import Path

from steelyard.chain import selftest
from steelyard.chain.block import Header
from steelyard.chain.consensus.votes import Kind, Statement
from steelyard.chain.epochs import EpochSet
from steelyard.chain.errors import SteelyardError
from steelyard.chain.genesis import GenesisState
from steelyard.chain.types import Address, Epoch, View

from .journal import VOTED
from .logs import log_event
from .signer import Signer, decode_place
from .store import ChainStore, CorruptData, FinalBlock
from .tree import BlockTree, get_candidate

WHOLE = (
    "restore the whole directory from one backup: then the blocks made final since are lost, so "
    "tell clients and auditors"
)
CHAIN_ADVICE = (
    f"put back the chain/ and blobs/ that lay beside this signer/; if they are lost, {WHOLE}"
)
SIGNER_ADVICE = f"put back the signer/ that lay beside this chain/; if it is lost, {WHOLE}"


def check_kernels() -> None:
    """Refuse to vote with kernels that compute something else. Raises SteelyardError selftest."""
    failures = selftest.run()
    if failures:
        raise SteelyardError(
            "selftest",
            f"this machine computes wrong aggregates ({failures[0]}); run `steelyard selftest` and "
            "install the versions of constraints.txt",
        )


def is_alone(epoch_set: EpochSet, address: Address) -> bool:
    """Has this validator a quorum by itself? Then nothing is certified without it."""
    place = epoch_set.validators.find(address)
    return place is not None and epoch_set.validators.has_quorum((place,))


def open_chain(store: ChainStore, signer: Signer, state: GenesisState, address: Address) -> None:
    """Start an empty store from block 0, or check the one that is there.

    Raises CorruptData, SteelyardError votes_retired.
    """
    if signer.is_retired():
        raise SteelyardError(
            "votes_retired",
            "this directory was retired: its key votes where its votes were taken over; "
            "to go on here as a full node, make a new directory with --follow",
        )
    if not store.is_empty():
        store.check(state.block.hash)
        return
    if not signer.is_new() and is_alone(state.epoch_set, address):
        raise CorruptData(store.path, "the chain is gone, but this key has voted on it")
    store.commit([FinalBlock(state.block, (), state.nodes, (), state.epoch_set)], None, {})
    log_event("genesis_committed", hash=state.block.hash)


def check_votes(
    directory: Path, store: ChainStore, signer: Signer, tree: BlockTree, address: Address
) -> None:
    """Refuse a chain and a signer of different ages, as the module says. Raises CorruptData."""
    remembered = dict(store.read_journal()).get(VOTED)
    if remembered is not None and signer.get_last() < decode_place(remembered):
        raise _make_signer_error(directory, f"a vote in view {decode_place(remembered)[1]}")
    if is_alone(tree.current, address):
        _check_chain(directory, store, signer, tree)
    head = tree.root
    if head.height > 0:
        epoch, view = get_final_place(store, head)
        final = Statement(epoch, view, Kind.FINALIZE, head.hash)
        made_by = store.find_epoch_set(epoch)  # None after a start at a later block
        is_ours = made_by is not None and is_alone(made_by, address)
        if is_ours and not signer.has_said(final):
            raise _make_signer_error(directory, f"the vote that made block {head.height} final")


def get_final_place(store: ChainStore, head: Header) -> tuple[Epoch, View]:
    """Epoch and view in which the head became final: of a boundary block perhaps a view later
    than its own."""
    certificate = store.get_certificate(head.height)
    if certificate is not None:
        return certificate.epoch, certificate.view
    block = store.get_block(head.hash)
    assert block is not None, "the head's body is stored with it"
    made = get_candidate(block)
    return made.epoch, made.view


def _make_signer_error(directory: Path, what: str) -> CorruptData:
    return CorruptData(
        directory,
        f"signer/ is gone, or older than chain/: it lacks {what}, so this key could contradict "
        "what it said",
        SIGNER_ADVICE,
    )


def _check_chain(directory: Path, store: ChainStore, signer: Signer, tree: BlockTree) -> None:
    """No certificate is made without us, and a block is on disk before our vote for it. A kill
    leaves that true. With an older chain consensus would wait for ever for what was voted for.
    """
    head = tree.root
    place = get_final_place(store, head)
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
            f"chain/, which ends with block {head.height} of view {place[1]}, does not hold, and "
            "it never contradicts a vote: nothing would become final any more",
            CHAIN_ADVICE,
        )

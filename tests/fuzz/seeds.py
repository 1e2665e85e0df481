"""Where the fuzzer begins: valid input of each target."""

from collections.abc import Callable
from typing import Final

import numpy as np

from steelyard.chain.block import encode_block
from steelyard.chain.bls import compute_public_key, derive_secret_key
from steelyard.chain.cid import (
    compute_blob_name,
    compute_directory,
    encode_cid,
    get_blob_cid,
    iter_blocks,
)
from steelyard.chain.consensus.certificates import encode_certificate
from steelyard.chain.consensus.votes import encode_vote
from steelyard.chain.epochs import EpochSet, Member, encode_epoch_set
from steelyard.chain.genesis_document import encode_genesis
from steelyard.chain.model import Manifest, encode_model
from steelyard.chain.rlp import encode_rlp
from steelyard.chain.types import Address, Epoch, Power
from steelyard.node.network.wire import encode_message

from ..chain import test_model, test_update
from ..chain.evm_kit import make_genesis
from ..network.messages import CERTIFICATE, EXAMPLES, VOTE, make_block


def list_seeds(target: str) -> list[bytes]:
    """Valid input of one target."""
    return SEEDS[target]()


def list_nodes() -> list[bytes]:
    name = get_blob_cid(compute_blob_name(b"x"))
    tree = [block for _, block in iter_blocks(bytes(2**18 + 1))]
    return [compute_directory({"a": (name, 1)})[2], *(one for one in tree if len(one) < 500)]


def list_models() -> list[bytes]:
    manifest = Manifest((test_model.WEIGHT,))
    return [encode_model(manifest, np.arange(manifest.parameters, dtype=np.int32))]


def list_transactions() -> list[bytes]:
    to, rows = (
        bytes(range(20)),
        [[(0x0F00).to_bytes(20, "big"), [bytes(32), b"\1".rjust(32, b"\0")]]],
    )
    legacy = [0, 1, 21_000, to, 5, b"data", 2 * 7700 + 35, 1, 1]
    listed = [7700, 0, 1, 21_000, to, 5, b"", rows, 1, 1, 1]
    dynamic = [7700, 0, 1, 2, 21_000, b"", 5, b"init", rows, 0, 1, 1]
    return [encode_rlp(legacy), b"\1" + encode_rlp(listed), b"\2" + encode_rlp(dynamic)]


def make_member() -> Member:
    key = compute_public_key(derive_secret_key(bytes(32)))
    address = Address(bytes(range(20)))
    return Member(address, key, Power(32), bytes(32), "a.example:5", address)


SEEDS: Final[dict[str, Callable[[], list[bytes]]]] = {
    "message": lambda: [encode_message(one) for one in EXAMPLES],
    "block": lambda: [encode_block(make_block(transactions=one)) for one in ((), (b"\2ab",))],
    "vote": lambda: [encode_vote(VOTE)],
    "certificate": lambda: [encode_certificate(CERTIFICATE)],
    "transaction": list_transactions,
    "update": lambda: [test_update.GOOD],
    "model": list_models,
    "genesis": lambda: [encode_genesis(make_genesis())],
    "node": list_nodes,
    "cid": lambda: [encode_cid(compute_blob_name(bytes(one))).encode() for one in (1, 2**18 + 1)],
    "epoch_set": lambda: [encode_epoch_set(EpochSet(Epoch(1), (make_member(),)))],
    "endpoint": lambda: [b"1.2.3.4:5", b"[::1]:5/9", b"a-b.example:30303"],
}

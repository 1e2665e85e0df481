"""What is fuzzed: each target takes any bytes, and raises only if something is wrong.

A decoder may refuse with its own error and no other. What it accepts it must encode to the same
bytes again, wherever there is one encoding only.
"""

from collections.abc import Callable
from typing import Final

from steelyard.chain.block import decode_block, encode_block
from steelyard.chain.cid import decode_cid, decode_node, encode_cid
from steelyard.chain.consensus import certificates, votes
from steelyard.chain.epochs import decode_epoch_set, decode_validators, encode_epoch_set
from steelyard.chain.errors import (
    InvalidBlobName,
    InvalidBlock,
    InvalidGenesis,
    InvalidKey,
    InvalidModel,
    InvalidTransaction,
    InvalidUpdate,
    InvalidVote,
    SteelyardError,
)
from steelyard.chain.genesis_document import encode_genesis, parse_genesis
from steelyard.chain.model import decode_model, encode_model
from steelyard.chain.transactions import decode_transaction
from steelyard.chain.update import decode_update
from steelyard.node.network.endpoint import InvalidEndpoint, parse_endpoint
from steelyard.node.network.wire import InvalidMessage, Lane, decode_message, encode_message


def _refuses(kind: type[SteelyardError], decode: Callable[[], object]) -> bool:
    try:
        decode()
    except kind:
        return True
    return False


def try_message(data: bytes) -> None:
    for lane in Lane:
        if not _refuses(InvalidMessage, lambda lane=lane: decode_message(data, lane)):  # type: ignore[misc]
            assert encode_message(decode_message(data, lane)) == data


def try_block(data: bytes) -> None:
    if not _refuses(InvalidBlock, lambda: decode_block(data)):
        assert encode_block(decode_block(data)) == data


def try_vote(data: bytes) -> None:
    if not _refuses(InvalidVote, lambda: votes.decode_vote(data)):
        assert votes.encode_vote(votes.decode_vote(data)) == data


def try_certificate(data: bytes) -> None:
    if not _refuses(InvalidVote, lambda: certificates.decode_certificate(data)):
        decoded = certificates.decode_certificate(data)
        assert certificates.encode_certificate(decoded) == data


def try_transaction(data: bytes) -> None:
    if not _refuses(InvalidTransaction, lambda: decode_transaction(data)):
        assert decode_transaction(data).raw == data


def try_update(data: bytes) -> None:
    _refuses(InvalidUpdate, lambda: decode_update(data))


def try_model(data: bytes) -> None:
    if not _refuses(InvalidModel, lambda: decode_model(data)):
        model = decode_model(data)
        assert encode_model(model.manifest, model.values) == data


def try_genesis(data: bytes) -> None:
    try:
        genesis = parse_genesis(data)
    except (InvalidGenesis, InvalidKey):
        return
    assert parse_genesis(encode_genesis(genesis)) == genesis


def try_node(data: bytes) -> None:
    _refuses(InvalidBlobName, lambda: decode_node(data))


def try_cid(data: bytes) -> None:
    text = data.decode("latin-1")
    if not _refuses(InvalidBlobName, lambda: decode_cid(text)):
        assert encode_cid(decode_cid(text)) == text


def try_epoch_set(data: bytes) -> None:
    if not _refuses(SteelyardError, lambda: decode_epoch_set(data)):
        assert encode_epoch_set(decode_epoch_set(data)) == data
    _refuses(SteelyardError, lambda: decode_validators(data))


def try_endpoint(data: bytes) -> None:
    text = data.decode("latin-1")
    if not _refuses(InvalidEndpoint, lambda: parse_endpoint(text)):
        endpoint = parse_endpoint(text)
        assert parse_endpoint(str(endpoint)) == endpoint


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "message": try_message,
    "block": try_block,
    "vote": try_vote,
    "certificate": try_certificate,
    "transaction": try_transaction,
    "update": try_update,
    "model": try_model,
    "genesis": try_genesis,
    "node": try_node,
    "cid": try_cid,
    "epoch_set": try_epoch_set,
    "endpoint": try_endpoint,
}

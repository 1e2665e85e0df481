"""What a chain's genesis fixed for good, as far as a node can be believed.

A node may serve any document. Its hash stands in block 0 (chain/genesis_document.py), and the hash
of block 0 is what makes two nodes one chain and what the journal keeps: a node that names other
parameters than the chain's has to be on another chain.
"""

from steelyard.chain.block import decode_block
from steelyard.chain.errors import SteelyardError
from steelyard.chain.genesis_document import MAX_GENESIS_BYTES, Genesis, parse_genesis

from .errors import NodeRefused
from .finality import MAX_BLOCK_ANSWER_BYTES
from .rpc import Rpc


def fetch_genesis(rpc: Rpc) -> Genesis:
    """Return the genesis document of the chain that the nodes of `rpc` are on.

    Raises: NodeRefused `rpc_answer` for one that the hash of block 0 does not cover;
    NodeUnreachable.
    """
    network = rpc.network
    document = rpc.get_bytes("/chain/genesis", MAX_GENESIS_BYTES)
    first = rpc.get_bytes("/chain/blocks/0", MAX_BLOCK_ANSWER_BYTES)
    try:
        genesis, block = parse_genesis(document), decode_block(first)
    except SteelyardError as error:
        raise NodeRefused(
            "rpc_answer", f"{rpc.url} serves no genesis: {error.message}; ask another node"
        ) from None
    if block.hash != network.genesis_hash or block.header.extra_data != genesis.hash:
        raise NodeRefused(
            "rpc_answer", f"{rpc.url} serves the genesis of another chain; ask another node"
        )
    return genesis

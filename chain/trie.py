"""Merkle-Patricia tries without an EVM: roots of lists, look-ups, proofs.

The engine writes state tries with py-evm's own; this module computes the roots that a header holds
over transactions, receipts and withdrawals, reads values for RPC and auditors, and checks proofs
from nodes that nobody trusts. Source: Ethereum yellow paper, appendix D.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from eth_hash.auto import keccak

from .errors import SteelyardError
from .rlp import InvalidEncoding, Item, decode_rlp, encode_rlp, read_bytes
from .types import Hash

EMPTY_ROOT: Final = Hash(keccak(encode_rlp(b"")))
"""The root of a trie that holds nothing."""


class NodeSource(Protocol):
    """Trie nodes and contract code by their keccak-256."""

    def get(self, key: bytes, /) -> bytes | None:
        """Return the bytes with this hash, or None if they are not stored."""


class MissingState(SteelyardError):
    """The state of that block is not stored here, or a node of it was lost; `state_missing`."""

    def __init__(self, key: bytes) -> None:
        super().__init__("state_missing", f"no node or code with hash 0x{key.hex()}")
        self.key = key


class InvalidProof(SteelyardError):
    """Nodes that do not prove what they should; code `proof`."""

    def __init__(self, message: str) -> None:
        super().__init__("proof", message)


# -- build -----------------------------------------------------------------------------------------
def compute_list_root(items: Sequence[bytes]) -> Hash:
    """Return the root of the trie that maps rlp(index) to each item, as in block headers."""
    return build_list_trie(items)[0]


def build_list_trie(items: Sequence[bytes]) -> tuple[Hash, dict[bytes, bytes]]:
    """Return the root of `items` by index and the nodes, from which `get_trie_proof` can prove."""
    return build_trie({encode_rlp(index): item for index, item in enumerate(items)})


def build_trie(items: Mapping[bytes, bytes]) -> tuple[Hash, dict[bytes, bytes]]:
    """Return the root and the nodes of a trie with these keys. Values are not empty."""
    nodes: dict[bytes, bytes] = {}
    pairs = sorted((_split_nibbles(key), value) for key, value in items.items())
    if not pairs:
        return EMPTY_ROOT, nodes
    root_node = encode_rlp(_build_node(pairs, 0, nodes))
    root = Hash(keccak(root_node))
    nodes[root] = root_node
    return root, nodes


def _build_node(
    pairs: list[tuple[bytes, bytes]], depth: int, nodes: dict[bytes, bytes]
) -> list[Item]:
    """Return the node over `pairs`, whose keys agree before `depth`; store its children."""
    first, last = pairs[0][0], pairs[-1][0]
    if len(pairs) == 1:
        return [_encode_path(first[depth:], is_leaf=True), pairs[0][1]]
    shared = depth
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    if shared > depth:
        child = _refer(_build_node(pairs, shared, nodes), nodes)
        return [_encode_path(first[depth:shared], is_leaf=False), child]
    branch: list[Item] = [b""] * 17
    if len(first) == depth:
        branch[16] = pairs[0][1]
        pairs = pairs[1:]
    for nibble in range(16):
        below = [pair for pair in pairs if pair[0][depth] == nibble]
        if below:
            branch[nibble] = _refer(_build_node(below, depth + 1, nodes), nodes)
    return branch


def _refer(node: list[Item], nodes: dict[bytes, bytes]) -> Item:
    """Return how a parent names this node: itself when short, else its hash."""
    encoded = encode_rlp(node)
    if len(encoded) < 32:
        return node
    key = keccak(encoded)
    nodes[key] = encoded
    return key


# -- read ------------------------------------------------------------------------------------------
def get_trie_value(nodes: NodeSource, root: Hash, key: bytes) -> bytes | None:
    """Return the value at `key`, or None. Raises MissingState."""
    return _walk(nodes, root, key, [])


def get_trie_proof(nodes: NodeSource, root: Hash, key: bytes) -> tuple[bytes, ...]:
    """Return the nodes from the root towards `key`, as eth_getProof wants them.

    They prove absence too. An empty trie has an empty proof. Raises MissingState.
    """
    path: list[bytes] = []
    _walk(nodes, root, key, path)
    return tuple(path)


def check_trie_proof(root: Hash, key: bytes, proof: Sequence[bytes]) -> bytes | None:
    """Return the value that `proof` proves at `key`, or None if it proves absence.

    Raises InvalidProof if nodes are missing, or if some were not needed.
    """
    nodes = {keccak(node): node for node in proof}
    path: list[bytes] = []
    try:
        value = _walk(nodes, root, key, path)
    except MissingState as error:
        raise InvalidProof("a node is missing or altered") from error
    if tuple(path) != tuple(proof):
        raise InvalidProof("nodes that are not on the path")
    return value


def _walk(nodes: NodeSource, root: Hash, key: bytes, path: list[bytes]) -> bytes | None:
    """Follow `key` from `root`, appending the hashed nodes that were read to `path`."""
    if root == EMPTY_ROOT:
        return None
    rest = _split_nibbles(key)
    reference: Item = root
    while True:
        node = _load(nodes, reference, path)
        if len(node) == 17:
            if not rest:
                return read_bytes(node[16]) or None
            reference, rest = node[rest[0]], rest[1:]
        else:
            nibbles, is_leaf = decode_path(read_bytes(node[0]))
            if is_leaf:
                return read_bytes(node[1]) if nibbles == rest else None
            if not nibbles or rest[: len(nibbles)] != nibbles:
                return None
            reference, rest = node[1], rest[len(nibbles) :]
        if reference == b"":
            return None


def _load(nodes: NodeSource, reference: Item, path: list[bytes]) -> list[Item]:
    if isinstance(reference, bytes):
        encoded = nodes.get(reference)
        if encoded is None:
            raise MissingState(reference)
        path.append(encoded)
        try:
            reference = decode_rlp(encoded)
        except InvalidEncoding as error:
            raise MissingState(keccak(encoded)) from error
    if not isinstance(reference, list) or len(reference) not in {2, 17}:
        raise MissingState(b"")
    return reference


# -- paths -----------------------------------------------------------------------------------------
def _split_nibbles(key: bytes) -> bytes:
    """Return the half-bytes of a key, one in each byte."""
    return bytes(nibble for byte in key for nibble in (byte >> 4, byte & 15))


def _encode_path(nibbles: bytes, *, is_leaf: bool) -> bytes:
    flag = 2 if is_leaf else 0
    full = bytes([flag + 1]) + nibbles if len(nibbles) % 2 else bytes([flag, 0]) + nibbles
    return bytes(full[i] << 4 | full[i + 1] for i in range(0, len(full), 2))


def decode_path(data: bytes) -> tuple[bytes, bool]:
    """Return the nibbles of a leaf's or extension's path, and whether it is a leaf's.

    Raises MissingState if there are none.
    """
    nibbles = _split_nibbles(data)
    if not nibbles:
        raise MissingState(b"")
    return nibbles[2 - nibbles[0] % 2 :], nibbles[0] >= 2

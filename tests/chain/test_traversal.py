"""A walk finds all of a state and nothing else, and no bytes can make it fail otherwise."""

import pytest
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

from steelyard.chain.errors import SteelyardError
from steelyard.chain.genesis import build_genesis
from steelyard.chain.proofs import Account, encode_account
from steelyard.chain.rlp import Encodable, encode_rlp
from steelyard.chain.segments import (
    InvalidSegment,
    decode_segment,
    encode_final_blocks,
    encode_segment,
)
from steelyard.chain.traversal import Kind, Reference, list_references, list_roots
from steelyard.chain.trie import EMPTY_ROOT, MissingState, build_trie
from steelyard.chain.types import Hash

from .evm_kit import make_genesis

HASH = Hash(keccak(b"something"))
items: st.SearchStrategy[Encodable] = st.recursive(
    st.binary(max_size=40), lambda inner: st.lists(inner, max_size=17), max_leaves=40
)


def test_a_walk_finds_every_node_and_code_of_genesis() -> None:
    state = build_genesis(make_genesis())
    stack, seen = list(list_roots(state.block.header.state_root)), set()
    while stack:
        one = stack.pop()
        seen.add(bytes(one.hash))
        stack.extend(list_references(one.kind, state.nodes[one.hash]))
    assert seen <= state.nodes.keys()
    for key in state.nodes.keys() - seen:  # what deployments overwrote
        assert key not in b"".join(state.nodes[one] for one in seen)


def test_an_empty_state_has_no_roots() -> None:
    assert list_roots(EMPTY_ROOT) == ()


def test_an_account_refers_to_its_storage_and_its_code() -> None:
    rich = Account(nonce=1, balance=2, storage_root=HASH, code_hash=Hash(keccak(b"code")))
    root, nodes = build_trie({keccak(b"rich"): encode_account(rich)})
    assert list_references(Kind.ACCOUNTS, nodes[root]) == (
        Reference(Kind.STORAGE, HASH),
        Reference(Kind.CODE, Hash(keccak(b"code"))),
    )
    root, nodes = build_trie({keccak(b"poor"): encode_account(Account(balance=1))})
    assert list_references(Kind.ACCOUNTS, nodes[root]) == ()


def test_children_that_a_node_holds_itself_are_walked_too() -> None:
    short = {bytes([first, 1]): b"v" for first in (0x10, 0x20)}
    root, nodes = build_trie(short)
    assert len(nodes) == 1
    assert list_references(Kind.STORAGE, nodes[root]) == ()
    others: list[Encodable] = [b""] * 16
    inline = encode_rlp([[b"\x11", HASH], *others])
    assert list_references(Kind.STORAGE, inline) == (Reference(Kind.STORAGE, HASH),)
    with pytest.raises(MissingState):
        list_references(Kind.STORAGE, encode_rlp([[b"\x00\x11", b"x" * 31], *others]))


@given(kind=st.sampled_from(Kind), data=st.one_of(st.binary(max_size=200), items.map(encode_rlp)))
def test_any_bytes_are_a_node_or_missing_state(kind: Kind, data: bytes) -> None:
    try:
        found = list_references(kind, data)
    except MissingState:
        return
    assert all(len(one.hash) == 32 for one in found)


@pytest.mark.slow
@given(st.one_of(st.binary(max_size=300), items.map(encode_rlp)))
def test_any_bytes_are_a_segment_or_a_typed_error(data: bytes) -> None:
    try:
        segment = decode_segment(data)
    except SteelyardError:
        return
    assert encode_final_blocks(segment) == data


def test_a_segment_holds_a_block() -> None:
    with pytest.raises(InvalidSegment, match="segment_malformed"):
        decode_segment(encode_segment([], b""))

"""Tries and proofs against the reference implementation."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trie import HexaryTrie

from steelyard.chain.params import FEDAVG_ADDRESS
from steelyard.chain.proofs import (
    Account,
    AccountProof,
    StorageProof,
    check_proof,
    get_account,
    get_code,
    get_proof,
    get_storage,
)
from steelyard.chain.rlp import encode_rlp
from steelyard.chain.trie import (
    EMPTY_ROOT,
    InvalidProof,
    MissingState,
    build_list_trie,
    build_trie,
    check_trie_proof,
    compute_list_root,
    get_trie_proof,
    get_trie_value,
)
from steelyard.chain.types import Address, Hash

from .evm_kit import ADDRESSES, ETHER, KEYS, Chain, Draft, push, sign

maps = st.dictionaries(st.binary(max_size=6), st.binary(min_size=1, max_size=60), max_size=30)


@pytest.mark.slow
@given(maps)
def test_the_root_of_a_map_is_that_of_the_reference(items: dict[bytes, bytes]) -> None:
    reference = HexaryTrie({})
    for key, value in items.items():
        reference[key] = value
    root, nodes = build_trie(items)
    assert root == reference.root_hash
    for key in [*items, b"absent", b""]:
        value = get_trie_value(nodes, root, key)
        assert value == items.get(key)
        assert check_trie_proof(root, key, get_trie_proof(nodes, root, key)) == value


@pytest.mark.parametrize("count", [0, 1, 2, 16, 127, 128, 129, 300])
def test_the_root_of_a_list_is_that_of_the_reference(count: int) -> None:
    random = Random(count)
    items = [random.randbytes(random.choice([1, 31, 32, 200])) for _ in range(count)]
    reference = HexaryTrie({})
    for index, item in enumerate(items):
        reference[encode_rlp(index)] = item
    assert compute_list_root(items) == reference.root_hash


def test_nothing_has_the_empty_root_and_an_empty_proof() -> None:
    assert compute_list_root([]) == EMPTY_ROOT
    assert get_trie_proof({}, EMPTY_ROOT, b"key") == ()
    assert check_trie_proof(EMPTY_ROOT, b"key", ()) is None


def test_a_proof_with_a_node_missing_added_or_altered_is_refused() -> None:
    root, nodes = build_list_trie([bytes([number]) * 40 for number in range(200)])
    key = encode_rlp(77)
    proof = get_trie_proof(nodes, root, key)
    assert check_trie_proof(root, key, proof) == bytes([77]) * 40
    other = get_trie_proof(nodes, root, encode_rlp(199))[-1]
    bad = [
        proof[:-1],
        proof[1:],
        (),
        (*proof, other),
        (*proof[:-1], proof[-1][:-1] + b"\0"),
        proof[::-1],
    ]
    for nodes_given in bad:
        with pytest.raises(InvalidProof):
            check_trie_proof(root, key, nodes_given)


def test_a_missing_or_broken_node_is_missing_state() -> None:
    root = Hash(b"\1" * 32)
    for nodes in ({}, {root: b"\xff"}, {root: b"\xc1\x80"}, {root: b"\xc2\x80\x01"}):
        with pytest.raises(MissingState):
            get_trie_value(nodes, root, b"key")


# -- accounts --------------------------------------------------------------------------------------
def build_chain() -> tuple[Chain, Address]:
    """Return a chain with a contract that has slots 0 to 39 set."""
    chain = Chain()
    store = b"".join(push(number + 1) + push(number) + b"\x55" for number in range(40))
    contract = chain.deploy(store + b"\x00")
    chain.add(sign(Draft(to=contract, gas=2_000_000)))
    return chain, contract


def test_accounts_code_and_storage_can_be_read_and_proven() -> None:
    chain, contract = build_chain()
    root = chain.head.state_root
    assert get_account(chain.nodes, root, ADDRESSES[5]).balance == 1_000 * ETHER
    assert get_account(chain.nodes, root, Address(b"\x99" * 20)) == Account()
    assert get_code(chain.nodes, root, contract)[:1] == push(1)[:1]
    assert get_code(chain.nodes, root, ADDRESSES[5]) == b""
    assert [get_storage(chain.nodes, root, contract, slot) for slot in (0, 39, 40)] == [1, 40, 0]
    for address in (contract, ADDRESSES[5], Address(b"\x99" * 20), Address(FEDAVG_ADDRESS)):
        proof = get_proof(chain.nodes, root, address, [0, 39, 40])
        check_proof(root, proof)
    assert get_account(chain.nodes, root, contract).nonce == 1
    assert chain.get_nonce(KEYS[0]) == 1


def test_a_proof_of_something_else_is_refused() -> None:
    chain, contract = build_chain()
    root = chain.head.state_root
    good = get_proof(chain.nodes, root, contract, [3])
    richer = Account(good.account.nonce, 1, good.account.storage_root, good.account.code_hash)
    slot = good.storage[0]
    bad = [
        AccountProof(good.address, richer, good.proof, good.storage),
        AccountProof(ADDRESSES[5], good.account, good.proof, good.storage),
        AccountProof(good.address, Account(), (), ()),
        AccountProof(good.address, good.account, good.proof, (StorageProof(3, 5, slot.proof),)),
        AccountProof(good.address, good.account, good.proof, (StorageProof(4, 4, slot.proof),)),
        AccountProof(good.address, good.account, good.proof, (StorageProof(3, 0, ()),)),
    ]
    for proof in bad:
        with pytest.raises(InvalidProof):
            check_proof(root, proof)
    with pytest.raises(InvalidProof):
        check_proof(chain.headers[0].state_root, good)


def test_a_state_that_is_not_here_is_missing_state() -> None:
    chain = Chain()
    with pytest.raises(MissingState) as caught:
        get_account(chain.nodes, Hash(b"\7" * 32), ADDRESSES[0])
    assert caught.value.code == "state_missing"

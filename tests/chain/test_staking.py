"""Staking in the engine: real signatures through real transactions change the next set."""

from dataclasses import replace

import pytest
from eth_abi.abi import decode, encode
from eth_hash.auto import keccak
from eth_keys.datatypes import PrivateKey

from steelyard.chain import bls
from steelyard.chain.consensus.votes import Kind, Statement, compute_signing_root
from steelyard.chain.evidence import encode_statement
from steelyard.chain.execute import CallRequest
from steelyard.chain.params import EVIDENCE_ADDRESS, STAKING_ADDRESS
from steelyard.chain.proofs import get_account, get_code
from steelyard.chain.receipts import Receipt
from steelyard.chain.types import Address, Domain, Epoch, Hash, View

from .evm_kit import (
    ADDRESSES,
    ETHER,
    KEYS,
    Chain,
    Draft,
    make_genesis,
    make_validator,
    sign,
)

STAKE = make_validator().stake
REPORT = "report(bytes,address[],bytes,bytes,address[],bytes)"
DEPOSIT = "deposit(bytes,bytes,bytes32,string,address)"


@pytest.fixture
def chain() -> Chain:
    """Three validators, the accounts 11, 10 and 9, and epochs of four blocks."""
    validators = tuple(make_validator(number) for number in range(3))
    return Chain(make_genesis(validators=validators, epoch_blocks=4))


def encode_call(signature: str, *arguments: object) -> bytes:
    types = signature[signature.index("(") + 1 : -1].split(",")
    return keccak(signature.encode())[:4] + encode(types, arguments)


def send(chain: Chain, key: PrivateKey, data: bytes, value: int = 0) -> Receipt:
    draft = Draft(chain.get_nonce(key), STAKING_ADDRESS, value, data, gas=2_000_000)
    return chain.add(sign(draft, key)).receipts[0]


def get_secret(number: int) -> bls.SecretKey:
    """The voting key of `make_validator(number)`."""
    return bls.derive_secret_key(bytes([number + 1]) * 32)


def make_report(number: int, domain: Domain) -> bytes:
    """Two notarizations by one validator in one view."""
    arguments: list[object] = []
    for block in (b"\xaa" * 32, b"\xbb" * 32):
        said = Statement(Epoch(0), View(3), Kind.NOTARIZE, Hash(block))
        signature = bls.sign(get_secret(number), compute_signing_root(said, domain))
        arguments += [encode_statement(said), [make_validator(number).address], signature]
    return encode_call(REPORT, *arguments)


def finish_epoch(chain: Chain) -> None:
    epoch = chain.current.epoch
    while chain.current.epoch == epoch:
        chain.add()


def list_members(chain: Chain) -> list[tuple[Address, int]]:
    return [(member.address, member.power) for member in chain.current.members]


def test_a_cheat_is_out_of_the_set_of_the_next_epoch(chain: Chain) -> None:
    assert len(list_members(chain)) == 3
    receipt = send(chain, KEYS[0], make_report(1, chain.genesis.domain))
    assert receipt.status == 1
    finish_epoch(chain)
    assert list_members(chain) == [
        (make_validator(0).address, STAKE),
        (make_validator(2).address, STAKE),
    ]
    balance = get_account(chain.nodes, chain.head.state_root, Address(STAKING_ADDRESS)).balance
    assert balance == 3 * STAKE - STAKE // 10
    assert send(chain, KEYS[0], make_report(1, chain.genesis.domain)).status == 0


def test_the_evidence_of_a_chain_with_the_same_id_is_refused(chain: Chain) -> None:
    other = Chain(replace(chain.genesis, timestamp=chain.genesis.timestamp + 1))
    assert other.genesis.chain_id == chain.genesis.chain_id
    request = CallRequest(to=Address(STAKING_ADDRESS), data=make_report(1, chain.genesis.domain))
    assert not chain.call(request).is_error
    refused = other.call(request)
    assert decode(["string"], refused.revert_data[4:]) == ("evidence: evidence_signature",)


def test_a_deposit_makes_a_validator_of_the_next_epoch(chain: Chain) -> None:
    joining = make_validator(5)
    data = encode_call(
        DEPOSIT,
        joining.bls_key,
        joining.proof_of_possession,
        joining.network_key,
        joining.endpoint,
        ADDRESSES[0],
    )
    assert send(chain, KEYS[0], data, value=2 * ETHER).status == 1
    finish_epoch(chain)
    member = chain.current.members[-1]
    assert (member.address, member.bls_key, member.power) == (
        ADDRESSES[0],
        joining.bls_key,
        2 * ETHER,
    )


def test_contracts_see_that_the_precompile_is_there(chain: Chain) -> None:
    code = get_code(chain.nodes, chain.head.state_root, Address(EVIDENCE_ADDRESS))
    assert code == bytes.fromhex("60006000fd")

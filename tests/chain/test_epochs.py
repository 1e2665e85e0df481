"""Epochs: heights, sets and their bytes, what the boundary block names and pays, and its rules."""

from contextlib import suppress
from dataclasses import replace
from functools import cache

import pytest
from eth_abi import encode
from hypothesis import given
from hypothesis import strategies as st

from steelyard.chain import bls
from steelyard.chain.block import (
    Block,
    Withdrawal,
    compute_prev_randao,
    compute_withdrawals_root,
)
from steelyard.chain.bls import INFINITY_KEY
from steelyard.chain.epochs import (
    GET_VALIDATORS,
    EpochSet,
    NextSet,
    compute_epoch,
    compute_issuance,
    decode_epoch_set,
    decode_validators,
    encode_epoch_set,
    get_boundary,
    get_genesis_set,
    is_boundary,
    read_next_set,
)
from steelyard.chain.errors import InvalidBlock, InvalidEpochSet, InvalidGenesis, InvalidKey
from steelyard.chain.execute import Built, CallRequest
from steelyard.chain.genesis import Genesis, GenesisValidator
from steelyard.chain.genesis_document import MAX_GENESIS_VALIDATORS
from steelyard.chain.params import (
    MAX_EPOCH_SET_BYTES,
    MAX_VALIDATORS,
    NEXT_SET_GAS,
    STAKING_ADDRESS,
)
from steelyard.chain.proofs import get_account
from steelyard.chain.rlp import decode_rlp, encode_rlp
from steelyard.chain.types import Address, Epoch, Hash, Power, View

from .evm_kit import (
    GWEI,
    REVERT,
    Chain,
    Draft,
    alter,
    make_genesis,
    make_validator,
    push,
    put_account,
    run_with_stack,
    sign,
)

ROWS = "(address,bytes,bytes32,string,address,uint256)[]"
ISSUANCE_GWEI = 1_000
EPOCH_BLOCKS = 3


@cache
def make_pair() -> Genesis:
    """Two validators, one with twice the power of the other, and three blocks an epoch."""
    pair = (
        replace(make_validator(0), fee_recipient=Address(b"\xf1" * 20), stake=2 * 10**21),
        replace(make_validator(1), fee_recipient=Address(b"\xf2" * 20), stake=10**21),
    )
    return make_genesis(validators=pair, epoch_blocks=EPOCH_BLOCKS, issuance_gwei=ISSUANCE_GWEI)


@pytest.fixture
def chain() -> Chain:
    """One block before the boundary of epoch 0."""
    chain = Chain(make_pair())
    for _ in range(EPOCH_BLOCKS - 1):
        chain.add()
    return chain


# -- heights ---------------------------------------------------------------------------------------
def test_an_epoch_ends_with_its_boundary_block() -> None:
    epochs = [compute_epoch(height, 3) for height in range(8)]
    assert epochs == [0, 0, 0, 0, 1, 1, 1, 2]
    assert [height for height in range(8) if is_boundary(height, 3)] == [3, 6]
    assert [get_boundary(epoch, 3) for epoch in range(2)] == [3, 6]
    assert [compute_epoch(height, 1) for height in range(4)] == [0, 0, 1, 2]


@given(st.integers(1, 2**40), st.integers(1, 2**20))
def test_every_block_but_the_boundary_is_followed_by_one_of_its_epoch(
    height: int, blocks: int
) -> None:
    epoch = compute_epoch(height, blocks)
    assert is_boundary(height, blocks) == (height == get_boundary(epoch, blocks))
    assert compute_epoch(height + 1, blocks) == epoch + is_boundary(height, blocks)


# -- sets and their bytes --------------------------------------------------------------------------
def get_set() -> EpochSet:
    return get_genesis_set(make_pair())


def test_a_set_survives_its_encoding() -> None:
    epoch_set = replace(get_set(), epoch=Epoch(7))
    assert decode_epoch_set(encode_epoch_set(epoch_set)) == epoch_set


def test_a_set_that_stays_keeps_its_hash_and_any_change_moves_it() -> None:
    epoch_set = get_set()
    assert replace(epoch_set, epoch=Epoch(7)).hash == epoch_set.hash
    first, second = epoch_set.members
    changes: list[dict[str, object]] = [
        {"address": Address(b"\x01" * 20)},
        {"bls_key": make_validator(2).bls_key},
        {"power": Power(5)},
        {"network_key": b"\x07" * 32},
        {"endpoint": "10.0.0.1:1"},
        {"fee_recipient": Address(b"\x01" * 20)},
    ]
    others = [EpochSet(Epoch(0), (replace(first, **change), second)) for change in changes]
    hashes = {one.hash for one in [epoch_set, *others, EpochSet(Epoch(0), (second, first))]}
    assert len(hashes) == len(changes) + 2


def test_a_member_is_found_by_its_account() -> None:
    epoch_set = get_set()
    assert epoch_set.find(epoch_set.members[1].address) == epoch_set.members[1]
    assert epoch_set.find(bytes(20)) is None


def spoil(place: int, value: object) -> bytes:
    """Return an encoded set whose first member has another value at one place."""
    epoch, members = decode_rlp(encode_epoch_set(get_set()))
    members[0][place] = value
    return encode_rlp([epoch, members])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc0",
        encode_rlp([b"", []]),
        encode_rlp([b"\0\1", []]),
        encode_rlp([2**64, []]),
        encode_epoch_set(get_set()) + b"\0",
        encode_rlp([1, decode_rlp(encode_epoch_set(get_set()))[1] * 2]),
        spoil(0, bytes(19)),
        spoil(1, bytes(47)),
        spoil(2, b""),
        spoil(2, b"\1" + bytes(16)),
        spoil(3, bytes(31)),
        spoil(4, b"x" * 65),
        spoil(4, b"a b:1"),
        spoil(4, "bücher:1".encode()),
        spoil(5, bytes(21)),
        spoil(5, [b""]),
        bytes(MAX_EPOCH_SET_BYTES + 1),
    ],
)
def test_bytes_that_are_no_set_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidEpochSet) as caught:
        decode_epoch_set(data)
    assert caught.value.code == "epoch_set_malformed"


def test_the_same_validator_twice_is_no_set() -> None:
    with pytest.raises(InvalidGenesis):
        EpochSet(Epoch(0), get_set().members * 2)
    with pytest.raises(InvalidGenesis):
        EpochSet(Epoch(0), ())


# -- the boundary ----------------------------------------------------------------------------------
def test_the_boundary_block_hands_over_to_the_set_that_staking_names(chain: Chain) -> None:
    first = chain.current
    assert chain.build().block.extension.epoch == 0
    outcome = chain.add()
    assert outcome.next_set == NextSet(replace(first, epoch=Epoch(1)))
    assert chain.current.epoch == 1
    built = chain.build()
    assert built.block.extension.epoch == 1
    assert built.block.extension.next_validator_set_hash == chain.current.hash
    assert built.outcome.next_set is None
    chain.import_block(built)


def test_the_boundary_block_pays_the_issuance_by_power(chain: Chain) -> None:
    built = chain.build()
    paid = [(one.index, one.validator_index, one.amount_gwei) for one in built.block.withdrawals]
    assert paid == [(0, 0, 666), (1, 1, 333)]
    chain.import_block(built)
    root = chain.head.state_root
    assert get_account(chain.nodes, root, Address(b"\xf2" * 20)).balance == 333 * GWEI
    for _ in range(EPOCH_BLOCKS):
        built = chain.build()
        chain.import_block(built)
    assert [one.index for one in built.block.withdrawals] == [MAX_VALIDATORS, MAX_VALIDATORS + 1]


def test_no_other_block_pays() -> None:
    assert Chain(make_pair()).build().block.withdrawals == ()


@given(st.integers(0, 2**53), st.lists(st.integers(1, 2**100), min_size=2, max_size=2))
def test_issuance_is_floored_and_nothing_is_left_out(issuance: int, powers: list[int]) -> None:
    members = tuple(
        replace(member, power=Power(power))
        for member, power in zip(get_set().members, powers, strict=True)
    )
    paid = compute_issuance(EpochSet(Epoch(1), members), issuance)
    assert issuance - len(members) < sum(one.amount_gwei for one in paid) <= issuance
    assert all(one.amount_gwei for one in paid)


def pay(block: Block, *withdrawals: Withdrawal) -> Block:
    header = replace(block.header, withdrawals_root=compute_withdrawals_root(withdrawals))
    return replace(block, header=header, withdrawals=withdrawals)


def refuse(chain: Chain, block: Block) -> str:
    """Return the code with which a block on the head is refused; the honest one still enters."""
    honest = chain.build()
    with pytest.raises(InvalidBlock) as caught:
        chain.import_block(Built(block, honest.outcome))
    return caught.value.code


@pytest.mark.parametrize("epoch", [1, 2**63])
def test_a_block_of_another_epoch_is_refused(chain: Chain, epoch: int) -> None:
    block = alter(chain.build(), epoch=Epoch(epoch)).block
    assert refuse(chain, block) == "block_epoch"


def test_a_block_of_an_epoch_that_has_not_begun_here_is_refused(chain: Chain) -> None:
    before = chain.current
    chain.add()
    built = chain.build()
    chain.current = before
    with pytest.raises(InvalidBlock, match="not over") as caught:
        chain.import_block(built)
    assert caught.value.code == "block_epoch"


def test_a_block_by_somebody_else_than_the_leader_is_refused(chain: Chain) -> None:
    built = chain.build()
    others = [one.address for one in chain.current.members]
    others.remove(built.block.extension.proposer)
    for other in (others[0], Address(bytes(20))):
        assert refuse(chain, alter(built, proposer=other).block) == "block_proposer"


def test_the_view_that_does_not_exist_has_no_leader(chain: Chain) -> None:
    built = alter(chain.build(), view=View(0))
    header = replace(built.block.header, prev_randao=compute_prev_randao(chain.head, View(0)))
    assert refuse(chain, replace(built.block, header=header)) == "block_proposer"


def test_a_leader_cannot_send_its_fees_elsewhere(chain: Chain) -> None:
    block = chain.build().block
    header = replace(block.header, coinbase=Address(b"\xee" * 20))
    assert refuse(chain, replace(block, header=header)) == "block_coinbase"


def test_the_boundary_block_pays_exactly_the_issuance(chain: Chain) -> None:
    block = chain.build().block
    first, second = block.withdrawals
    more = replace(first, amount_gwei=first.amount_gwei + 1)
    elsewhere = replace(first, address=Address(b"\xee" * 20))
    for wrong in (
        (),
        (first,),
        (second, first),
        (more, second),
        (elsewhere, second),
        (replace(first, index=9), second),
        (first, second, Withdrawal(2, 2, first.address, 1)),
    ):
        assert refuse(chain, pay(block, *wrong)) == "block_withdrawals"


def test_a_block_inside_an_epoch_pays_nobody() -> None:
    chain = Chain(make_pair())
    block = pay(chain.build().block, Withdrawal(0, 0, Address(b"\xee" * 20), 1))
    assert refuse(chain, block) == "block_withdrawals"


def test_a_block_that_names_other_validators_is_refused(chain: Chain) -> None:
    named = alter(chain.build(), next_validator_set_hash=Hash(b"\1" * 32)).block
    assert refuse(chain, named) == "block_next_set"
    inside = Chain(make_pair())
    named = alter(inside.build(), next_validator_set_hash=Hash(b"\1" * 32)).block
    assert refuse(inside, named) == "block_next_set"


# -- what Staking answers --------------------------------------------------------------------------
Row = tuple[str, bytes, bytes, str | bytes, str, int]


def make_row(number: int, **changes: object) -> Row:
    one = make_validator(number)
    row = {
        "account": "0x" + one.address.hex(),
        "bls_key": one.bls_key,
        "network_key": one.network_key,
        "endpoint": one.endpoint,
        "fee_recipient": "0x" + one.fee_recipient.hex(),
        "stake": one.stake,
    }
    return tuple((row | changes).values())  # type: ignore[return-value]


def encode_rows(*rows: Row) -> bytes:
    kind = ROWS.replace("string", "bytes")
    raw = [
        (*row[:3], row[3].encode() if isinstance(row[3], str) else row[3], *row[4:]) for row in rows
    ]
    return encode([kind], [raw])


def answer(data: bytes) -> bytes:
    """Return code that answers these bytes, whatever it is asked."""
    size = push(len(data).to_bytes(3, "big"))
    front = size + push((17).to_bytes(3, "big")) + push(0) + b"\x39" + size + push(0) + b"\xf3"
    assert len(front) == 16
    return front + b"\0" + data


def read(chain: Chain, code: bytes) -> NextSet:
    """Return the next set where Staking has this code."""
    put_account(chain, Address(STAKING_ADDRESS), balance=1, nonce=1, code=code)
    return run_with_stack(
        lambda: read_next_set(
            chain.nodes, chain.blobs, chain.genesis.rules, chain.head, chain.current
        )
    )


def test_the_answer_of_staking_becomes_the_next_set() -> None:
    chain = Chain()
    found = read(chain, answer(encode_rows(make_row(2), make_row(1, endpoint="", stake=7))))
    assert found.error is None
    assert found.epoch_set.epoch == 1
    assert [member.power for member in found.epoch_set.members] == [10**21, 7]
    assert found.epoch_set.members[0].endpoint == make_validator(2).endpoint
    assert found.epoch_set.members[1].endpoint == ""


@pytest.mark.parametrize("endpoint", [b"\xff\xfe", b"a b:1", b"\n", "bücher:1".encode()])
def test_an_endpoint_of_nonsense_does_not_spoil_the_set(endpoint: bytes) -> None:
    found = read(Chain(), answer(encode_rows(make_row(0), make_row(1, endpoint=endpoint))))
    assert found.error is None
    assert found.epoch_set.members[1].endpoint == ""


GOOD = encode_rows(make_row(0), make_row(1))
NOT_IN_GROUP = bytes.fromhex("80" + "00" * 46 + "04")
NOT_CANONICAL = bytes([make_validator(0).bls_key[0] & 0x7F]) + make_validator(0).bls_key[1:]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (REVERT, "next_set_call"),
        (b"\xfe", "next_set_call"),
        pytest.param(b"\x5b\x5f\x56", "next_set_call", marks=pytest.mark.slow),  # runs for ever
        (b"\x00", "next_set_malformed"),
        (answer(GOOD[:-32]), "next_set_malformed"),
        (answer(GOOD + bytes(32)), "next_set_malformed"),
        (answer(GOOD[:-1]), "next_set_malformed"),
        (answer(bytes(31) + b"\x40" + GOOD[32:]), "next_set_malformed"),
        (answer(GOOD[:95] + b"\x41" + GOOD[96:]), "next_set_malformed"),
        (answer(GOOD[:32] + b"\xff" * 32 + GOOD[64:]), "next_set_malformed"),
        (answer(encode(["uint256"], [5])), "next_set_malformed"),
        (answer(GOOD.replace(b"127.0.0.1:9000", b"127.0.0.1:9000\1")), "next_set_malformed"),
        (answer(encode_rows()), "validators_count"),
        (answer(encode_rows(*[make_row(0)] * (MAX_VALIDATORS + 1))), "next_set_malformed"),
        (answer(encode_rows(make_row(0), make_row(0))), "validators_repeated"),
        (
            answer(encode_rows(make_row(0), make_row(1, bls_key=make_validator(0).bls_key))),
            "validators_repeated",
        ),
        (answer(encode_rows(make_row(0, stake=0))), "validators_power"),
        (answer(encode_rows(make_row(0, stake=2**128))), "validators_power"),
        (answer(encode_rows(make_row(0, bls_key=INFINITY_KEY))), "bls_key"),
        (answer(encode_rows(make_row(0, bls_key=bytes(48)))), "bls_key"),
        (answer(encode_rows(make_row(0, bls_key=b"\xff" * 48))), "bls_key"),
        (answer(encode_rows(make_row(0, bls_key=NOT_IN_GROUP))), "bls_key"),
        (answer(encode_rows(make_row(0, bls_key=NOT_CANONICAL))), "bls_key"),
        (answer(encode_rows(make_row(0, bls_key=bytes(47)))), "bls_key"),
        (answer(encode_rows(make_row(0, bls_key=bytes(49)))), "next_set_malformed"),
        (answer(encode_rows(make_row(0, endpoint="x" * 65))), "next_set_malformed"),
    ],
)
def test_an_answer_that_is_no_set_keeps_the_members_and_says_why(code: bytes, reason: str) -> None:
    chain = Chain()
    found = read(chain, code)
    assert found.error is not None
    assert found.error.startswith(reason)
    assert found.epoch_set == EpochSet(Epoch(1), chain.current.members)


def test_a_chain_goes_on_when_staking_cannot_be_read(chain: Chain) -> None:
    put_account(chain, Address(STAKING_ADDRESS), balance=1, nonce=1, code=REVERT)
    before = chain.current
    outcome = chain.add(sign(Draft()))
    assert outcome.next_set is not None
    assert outcome.next_set.error is not None
    assert chain.current.members == before.members
    chain.add()


@given(st.binary(max_size=600))
def test_any_answer_is_a_set_or_refused(data: bytes) -> None:
    with suppress(InvalidEpochSet, InvalidKey):
        decode_validators(data)
    with suppress(InvalidEpochSet):
        decode_epoch_set(data)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_a_changed_byte_never_raises_anything_else(place: int, value: int) -> None:
    changed = GOOD[:place] + bytes([value]) + GOOD[place + 1 :]
    with suppress(InvalidEpochSet, InvalidKey):
        decode_validators(changed)
    wire = encode_epoch_set(get_set())
    place %= len(wire)
    with suppress(InvalidEpochSet):
        found = decode_epoch_set(wire[:place] + bytes([value]) + wire[place + 1 :])
        assert len(encode_epoch_set(found)) == len(wire)


@pytest.mark.slow
def test_as_many_validators_as_staking_holds_are_read_with_gas_to_spare() -> None:
    validators = tuple(make_stranger(number) for number in range(MAX_GENESIS_VALIDATORS))
    chain = Chain(make_genesis(validators=validators, epoch_blocks=1))
    outcome = chain.add()
    assert outcome.next_set is not None
    assert outcome.next_set.error is None
    assert outcome.next_set.epoch_set.members == get_genesis_set(chain.genesis).members
    request = CallRequest(to=Address(STAKING_ADDRESS), data=GET_VALIDATORS)
    assert 2 * chain.call(request).gas_used < NEXT_SET_GAS


def make_stranger(number: int) -> GenesisValidator:
    """Return a validator with real BLS keys and an account that nobody has the key of."""
    secret = bls.derive_secret_key((number + 2**20).to_bytes(32, "big"))
    return replace(
        make_validator(0),
        address=Address((number + 2**20).to_bytes(20, "big")),
        bls_key=bls.compute_public_key(secret),
        proof_of_possession=bls.prove_possession(secret),
        network_key=number.to_bytes(32, "big"),
        endpoint="validator-of-a-long-name.example.org:" + str(10_000 + number),
    )

"""Epochs: who the validators are, at which height they change, and what they are paid.

    height      1 … n | n+1 … 2n | …      n = epoch_blocks of genesis
    epoch         0   |    1     | …
    boundary      n   |    2n    | …      the last block of an epoch

The set of the next epoch is read from Staking on the state of the boundary block's *parent*, so it
is known before that block runs; the boundary block names it and pays the issuance of its epoch.
Every other block names the current set. docs/protocol.md, "Epochs".

Only `read_next_set` needs the engine, and imports it.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from eth_hash.auto import keccak

from .block import Block, Header, Rules, Withdrawal
from .bls import PUBLIC_KEY_BYTES, PublicKey, check_public_key
from .consensus.validators import Validator, ValidatorSet, check_validators
from .errors import InvalidBlock, InvalidEpochSet, SteelyardError
from .params import (
    MAX_ENDPOINT_BYTES,
    MAX_EPOCH_SET_BYTES,
    MAX_VALIDATORS,
    NEXT_SET_GAS,
    STAKING_ADDRESS,
)
from .rlp import InvalidEncoding, Item, decode_rlp, encode_rlp, read_bytes, read_int, read_list
from .types import Address, Epoch, Hash, Height, Power, View

if TYPE_CHECKING:
    from .environment import BlobSource
    from .genesis_document import Genesis
    from .trie import NodeSource

NETWORK_KEY_BYTES: Final = 32
GET_VALIDATORS: Final = keccak(b"get_validators()")[:4]
"""Answers (address account, bytes bls_key, bytes32 network_key, string endpoint, address
fee_recipient, uint256 stake)[], in the order of the set."""
WORD: Final = 32
ROW_WORDS: Final = 6


@dataclass(frozen=True, slots=True)
class Member:
    """One validator of an epoch, as Staking has it. `power` is its stake in wei.

    `endpoint` is host:port, or empty if the validator gave none that anybody could use.
    """

    address: Address
    bls_key: PublicKey
    power: Power
    network_key: bytes
    endpoint: str
    fee_recipient: Address


@dataclass(frozen=True)
class EpochSet:
    """The validators of one epoch, in their order. Raises InvalidGenesis if they are no set."""

    epoch: Epoch
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        check_validators(self.validators.validators)

    @cached_property
    def validators(self) -> ValidatorSet:
        """Who votes with which key and power."""
        return ValidatorSet(
            tuple(Validator(one.address, one.bls_key, one.power) for one in self.members)
        )

    @cached_property
    def hash(self) -> Hash:
        """keccak256(rlp([[address, bls key, power, network key, endpoint, fee recipient], …])).

        Without the epoch: a set that stays keeps its hash.
        """
        return Hash(keccak(encode_rlp([_list_member(one) for one in self.members])))

    def get_leader(self, view: View) -> Member:
        """Return the member that proposes in `view`."""
        return self.members[self.validators.get_leader(self.epoch, view)]

    def find(self, address: bytes) -> Member | None:
        """Return the member with this account, or None."""
        place = self.validators.find(address)
        return None if place is None else self.members[place]


@dataclass(frozen=True, slots=True)
class NextSet:
    """The set of the next epoch. `error` says why it is the old members once more, if it is."""

    epoch_set: EpochSet
    error: str | None = None


# -- heights ---------------------------------------------------------------------------------------
def compute_epoch(height: int, epoch_blocks: int) -> Epoch:
    """Return the epoch of a height; the genesis block counts to epoch 0."""
    return Epoch(max(height - 1, 0) // epoch_blocks)


def get_boundary(epoch: int, epoch_blocks: int) -> Height:
    """Return the height of the last block of an epoch."""
    return Height((epoch + 1) * epoch_blocks)


def is_boundary(height: int, epoch_blocks: int) -> bool:
    """Is the block at this height the last one of its epoch?"""
    return height > 0 and height % epoch_blocks == 0


# -- codec -----------------------------------------------------------------------------------------
def _list_member(member: Member) -> list[bytes | int]:
    return [
        member.address,
        member.bls_key,
        member.power,
        member.network_key,
        member.endpoint.encode("ascii"),
        member.fee_recipient,
    ]


def encode_epoch_set(epoch_set: EpochSet) -> bytes:
    """Return rlp([epoch, [[address, bls key, power, network key, endpoint, fee recipient], …]])."""
    return encode_rlp([epoch_set.epoch, [_list_member(one) for one in epoch_set.members]])


def decode_epoch_set(data: bytes) -> EpochSet:
    """Return the set in these bytes. Its hash says whether it is the right one.

    Raises: InvalidEpochSet epoch_set_malformed.
    """
    if len(data) > MAX_EPOCH_SET_BYTES:
        raise InvalidEpochSet("epoch_set_malformed", f"above {MAX_EPOCH_SET_BYTES} bytes")
    try:
        epoch, rows = read_list(decode_rlp(data), 2)
        members = tuple(_read_member(row) for row in read_list(rows, limit=MAX_VALIDATORS))
        return EpochSet(Epoch(read_int(epoch, 64)), members)
    except SteelyardError as error:
        raise InvalidEpochSet("epoch_set_malformed", error.message) from error


def _read_member(item: Item) -> Member:
    fields = read_list(item, 6)
    endpoint = read_bytes(fields[4], limit=MAX_ENDPOINT_BYTES)
    if read_endpoint(endpoint).encode() != endpoint:
        raise InvalidEncoding("an endpoint is printable ASCII")
    return Member(
        address=Address(read_bytes(fields[0], 20)),
        bls_key=PublicKey(read_bytes(fields[1], PUBLIC_KEY_BYTES)),
        power=Power(read_int(fields[2], 128)),
        network_key=read_bytes(fields[3], NETWORK_KEY_BYTES),
        endpoint=endpoint.decode("ascii"),
        fee_recipient=Address(read_bytes(fields[5], 20)),
    )


def read_endpoint(data: bytes) -> str:
    """Return an endpoint of visible ASCII; empty for anything else, which nobody can connect to.

    One validator's nonsense must not spoil the set for the others.
    """
    is_visible = all(0x21 <= byte <= 0x7E for byte in data)
    return data.decode("ascii") if is_visible and len(data) <= MAX_ENDPOINT_BYTES else ""


# -- the sets --------------------------------------------------------------------------------------
def get_genesis_set(genesis: "Genesis") -> EpochSet:
    """Return the set of epoch 0. Possession of the keys is checked where block 0 is made.

    Raises: InvalidGenesis validators_power, validators_repeated, ….
    """
    return EpochSet(
        Epoch(0),
        tuple(
            Member(
                address=one.address,
                bls_key=PublicKey(one.bls_key),
                power=Power(one.stake),
                network_key=one.network_key,
                endpoint=read_endpoint(one.endpoint.encode()),
                fee_recipient=one.fee_recipient,
            )
            for one in genesis.validators
        ),
    )


def read_next_set(
    nodes: "NodeSource", blobs: "BlobSource", rules: Rules, parent: Header, current: EpochSet
) -> NextSet:
    """Return the set after `current`, as Staking answers on the state of `parent`.

    `parent` is the block before the boundary block. An answer that is no validator set keeps the
    members: everybody gets the same bytes, so everybody keeps them. Raises: MissingState.
    """
    from .calls import CallRequest, call  # late: a follower that does not execute has no engine
    from .environment import build_environment

    epoch = Epoch(current.epoch + 1)
    request = CallRequest(to=Address(STAKING_ADDRESS), data=GET_VALIDATORS, gas=NEXT_SET_GAS)
    environment = build_environment(parent, (), ())
    result = call(nodes, blobs, rules, parent.state_root, environment, request, NEXT_SET_GAS)
    try:
        if result.error is not None:
            raise InvalidEpochSet("next_set_call", result.error)
        return NextSet(EpochSet(epoch, decode_validators(result.output)))
    except SteelyardError as error:
        return NextSet(EpochSet(epoch, current.members), f"{error.code}: {error.message}")


def decode_validators(output: bytes) -> tuple[Member, ...]:
    """Return the members in an answer of `get_validators`. Only the canonical layout passes.

    Raises: InvalidEpochSet next_set_malformed; InvalidKey bls_key.
    """
    words = _Words(output)
    words.expect(WORD)
    count = words.take(MAX_VALIDATORS + 1)
    first = words.at
    offsets = [words.take() for _ in range(count)]
    members = []
    for offset in offsets:
        if offset != words.at - first:
            raise InvalidEpochSet("next_set_malformed", "rows are not in the canonical places")
        members.append(_take_member(words))
    words.finish()
    return tuple(members)


def _take_member(words: "_Words") -> Member:
    row = words.at
    address = words.take(2**160).to_bytes(20, "big")
    words.expect(ROW_WORDS * WORD)
    network_key = words.take().to_bytes(WORD, "big")
    endpoint_offset = words.take()
    fee_recipient = words.take(2**160).to_bytes(20, "big")
    stake = words.take()
    bls_key = words.take_bytes(PUBLIC_KEY_BYTES)
    check_public_key(bls_key)
    if endpoint_offset != words.at - row:
        raise InvalidEpochSet("next_set_malformed", "an endpoint is not in its canonical place")
    endpoint = read_endpoint(words.take_bytes(MAX_ENDPOINT_BYTES))
    return Member(
        address=Address(address),
        bls_key=PublicKey(bls_key),
        power=Power(stake),
        network_key=network_key,
        endpoint=endpoint,
        fee_recipient=Address(fee_recipient),
    )


class _Words:
    """Reads ABI words in order. Raises InvalidEpochSet next_set_malformed."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def take(self, limit: int = 2**256) -> int:
        """Return the next word, which must be below `limit`."""
        word = self._data[self.at : self.at + WORD]
        if len(word) != WORD or int.from_bytes(word, "big") >= limit:
            raise InvalidEpochSet("next_set_malformed", f"the word at byte {self.at} is wrong")
        self.at += WORD
        return int.from_bytes(word, "big")

    def expect(self, value: int) -> None:
        """Take a word that can only be `value`."""
        if self.take() != value:
            raise InvalidEpochSet("next_set_malformed", f"not {value} before byte {self.at}")

    def take_bytes(self, limit: int) -> bytes:
        """Return at most `limit` bytes: their length, then they, padded with zeros."""
        size = self.take(limit + 1)
        padded = b"".join(self.take().to_bytes(WORD, "big") for _ in range(-(-size // WORD)))
        if any(padded[size:]):
            raise InvalidEpochSet("next_set_malformed", "bytes are not padded with zeros")
        return padded[:size]

    def finish(self) -> None:
        """Refuse what is left over."""
        if self.at != len(self._data):
            raise InvalidEpochSet("next_set_malformed", "bytes follow the answer")


# -- what blocks owe to the epoch ------------------------------------------------------------------
def compute_issuance(current: EpochSet, issuance_gwei: int) -> tuple[Withdrawal, ...]:
    """Return what an epoch pays: a part of the issuance by power, floored; nothing of nothing."""
    total = current.validators.total_power
    amounts = [issuance_gwei * member.power // total for member in current.members]
    return tuple(
        Withdrawal(current.epoch * MAX_VALIDATORS + place, place, member.fee_recipient, amount)
        for place, (member, amount) in enumerate(zip(current.members, amounts, strict=True))
        if amount
    )


def compute_withdrawals(height: int, rules: Rules, current: EpochSet) -> tuple[Withdrawal, ...]:
    """Return the withdrawals of the block at `height`: the issuance at the boundary, or none."""
    if not is_boundary(height, rules.epoch_blocks):
        return ()
    return compute_issuance(current, rules.issuance_gwei)


def check_place(block: Block, rules: Rules, current: EpochSet) -> None:
    """Raise InvalidBlock unless the validators of `current` owe this block to its height and view.

    Codes: block_epoch, block_proposer, block_coinbase, block_withdrawals.
    """
    said = block.extension
    epoch = compute_epoch(block.height, rules.epoch_blocks)
    if said.epoch != epoch:
        raise InvalidBlock("block_epoch", f"block {block.height} is of epoch {epoch}")
    if current.epoch != epoch:
        raise InvalidBlock("block_epoch", f"epoch {current.epoch} is not over here")
    if said.view < 1:
        raise InvalidBlock("block_proposer", "views start at 1")
    leader = current.get_leader(said.view)
    if said.proposer != leader.address:
        raise InvalidBlock("block_proposer", f"0x{leader.address.hex()} leads view {said.view}")
    if block.header.coinbase != leader.fee_recipient:
        raise InvalidBlock(
            "block_coinbase", f"the leader's fee recipient is 0x{leader.fee_recipient.hex()}"
        )
    if block.withdrawals != compute_withdrawals(block.height, rules, current):
        raise InvalidBlock("block_withdrawals", "not exactly what the epoch pays at this height")


def check_next_set(block: Block, expected: EpochSet) -> None:
    """Raise InvalidBlock block_next_set unless the block names the set that follows it."""
    if block.extension.next_validator_set_hash != expected.hash:
        raise InvalidBlock("block_next_set", f"the next validators are 0x{expected.hash.hex()}")

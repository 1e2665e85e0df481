"""The voters of one epoch: an ordered set, its quorum and the leader of each view.

A validator is named by its place in the set wherever an epoch is at hand (votes, bitmaps), by its
address elsewhere. docs/protocol.md, section 8.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Final

from eth_utils.crypto import keccak

from ..bls import PUBLIC_KEY_BYTES, PublicKey
from ..errors import InvalidGenesis
from ..params import MAX_POWER, MAX_VALIDATORS
from ..types import Address, Epoch, Power, View

LEADER_TAG: Final = b"steelyard-leader-1"
ADDRESS_BYTES: Final = 20


def has_quorum(power: int, total_power: int) -> bool:
    """More than two thirds, in integers: exactly two thirds is not a quorum."""
    return 3 * power > 2 * total_power


@dataclass(frozen=True, slots=True)
class Validator:
    """One voter: its account, its BLS key (possession proven elsewhere) and its voting power."""

    address: Address
    key: PublicKey
    power: Power


@dataclass(frozen=True)
class ValidatorSet:
    """The validators of one epoch in their fixed order. Raises InvalidGenesis if it is no set."""

    validators: tuple[Validator, ...]

    def __post_init__(self) -> None:
        check_validators(self.validators)

    def __len__(self) -> int:
        return len(self.validators)

    def __getitem__(self, index: int) -> Validator:
        return self.validators[index]

    @cached_property
    def total_power(self) -> int:
        """The sum W of all powers."""
        return sum(validator.power for validator in self.validators)

    @cached_property
    def quorum(self) -> int:
        """The least power that is a quorum: floor(2W/3) + 1."""
        return 2 * self.total_power // 3 + 1

    def has_quorum(self, signers: Iterable[int]) -> bool:
        """Do these validators, each counted once, have more than two thirds of the power?"""
        return has_quorum(self.get_power(signers), self.total_power)

    def get_power(self, signers: Iterable[int]) -> int:
        """Return the power of these validators together, each counted once."""
        return sum(self.validators[index].power for index in set(signers))

    def find(self, address: bytes) -> int | None:
        """Return the place of the validator with this address, or None."""
        return self._places.get(bytes(address))

    def find_key(self, key: bytes) -> int | None:
        """Return the place of the validator with this BLS key, or None."""
        return self._places_by_key.get(bytes(key))

    def get_leader(self, epoch: Epoch, view: View) -> int:
        """Return the place of the validator that proposes in `view`, drawn by power.

        keccak256(tag || u64 epoch || u64 view) mod W falls into one validator's share of the
        line 0..W. Everybody can compute every leader in advance: that is a matter of liveness
        only, and the draw needs no randomness (facts/consensus.md, rule 2).
        """
        seed = keccak(LEADER_TAG + epoch.to_bytes(8, "big") + view.to_bytes(8, "big"))
        point = int.from_bytes(seed, "big") % self.total_power
        return next(place for place, end in enumerate(self._ends) if point < end)

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        return tuple(accumulate(validator.power for validator in self.validators))

    @cached_property
    def _places(self) -> dict[bytes, int]:
        return {validator.address: place for place, validator in enumerate(self.validators)}

    @cached_property
    def _places_by_key(self) -> dict[bytes, int]:
        return {validator.key: place for place, validator in enumerate(self.validators)}


def check_validators(validators: tuple[Validator, ...]) -> None:
    """Check size, lengths, powers and that nobody is there twice. Raises InvalidGenesis."""
    if not 1 <= len(validators) <= MAX_VALIDATORS:
        raise InvalidGenesis("validators_count", f"a set has 1 to {MAX_VALIDATORS} validators")
    for validator in validators:
        if len(validator.address) != ADDRESS_BYTES or len(validator.key) != PUBLIC_KEY_BYTES:
            raise InvalidGenesis("validators_key", "an address has 20 bytes and a BLS key 48")
        if not 1 <= validator.power <= MAX_POWER:
            raise InvalidGenesis("validators_power", f"{validator.power} is no voting power")
    for distinct in ({v.address for v in validators}, {v.key for v in validators}):
        if len(distinct) != len(validators):
            raise InvalidGenesis("validators_repeated", "an address or a BLS key is there twice")

"""What makes one model of many deltas: floats as any server would, or the chain's arithmetic.

`chain.py` has the third: the same arithmetic in a real validator's blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from steelyard.chain.aggregate import aggregate
from steelyard.chain.cid import compute_blob_name
from steelyard.chain.model import Model, decode_model
from steelyard.chain.params import WEIGHT_BITS
from steelyard.chain.rules import Rule, RuleKind
from steelyard.chain.types import Address
from steelyard.client.quantize import build_manifest, dequantize_model, quantize_model
from steelyard.client.training import Prepared, Result, prepare_update

from .training import Arrays

CHAIN_ID: Final = 7700
TASK: Final = 1
UPDATE_BITS: Final = 8
NORM_UNIT: Final = 2**24
ADMISSION_NORM2: Final = (100 * NORM_UNIT) ** 2
"""Far above every honest update: the rules are tested here, not the admission."""


@dataclass(frozen=True, slots=True)
class Deal:
    """How a task aggregates. `weights`: the rows that each participant claims; `drawn`: how many
    of them take part in a round."""

    rule: Rule
    is_uniform: bool
    weights: tuple[int, ...]
    drawn: int

    @property
    def raw_weights(self) -> tuple[int, ...]:
        return tuple((1 if self.is_uniform else one) << WEIGHT_BITS for one in self.weights)


def make_deal(
    rule: str, dishonest: int, norm: float, weights: Sequence[int], drawn: int | None = None
) -> Deal:
    """Return the deal of a rule by its name, told how many are dishonest, or what to clip to.

    The trimmed mean counts everybody alike, since a value has no weight once it is sorted.
    """
    rules = {
        "fedavg": Rule(RuleKind.WEIGHTED_MEAN, 0),
        "clipped": Rule(RuleKind.NORM_CLIPPED_MEAN, round(norm * NORM_UNIT)),
        "trimmed": Rule(RuleKind.TRIMMED_MEAN, dishonest),
        "multi_krum": Rule(RuleKind.MULTI_KRUM, dishonest),
    }
    return Deal(rules[rule], rule == "trimmed", tuple(weights), drawn or len(weights))


RULES: Final = ("fedavg", "clipped", "trimmed", "multi_krum")


class Server(Protocol):
    """Holds the model and plays rounds."""

    @property
    def arrays(self) -> Arrays:
        """The model that participants train from."""

    def get_drawn(self) -> Sequence[int]:
        """Return the places of those who take part in the next round."""

    def play(self, deltas: Mapping[int, Arrays]) -> None:
        """Make the next model of the deltas, by the places of those who made them."""


class FloatServer:
    """FedAvg in float64. Source: McMahan et al., arXiv:1602.05629, Algorithm 1."""

    def __init__(
        self, arrays: Arrays, weights: Sequence[int], draws: Sequence[Sequence[int]] = ()
    ) -> None:
        """`draws`: who takes part in each round; everybody in all that are not listed."""
        self.arrays = arrays
        self._weights, self._draws, self._round = weights, draws, 0

    def get_drawn(self) -> Sequence[int]:
        if self._round < len(self._draws):
            return self._draws[self._round]
        return range(len(self._weights))

    def play(self, deltas: Mapping[int, Arrays]) -> None:
        self._round += 1
        weights = np.array([self._weights[place] for place in deltas], np.float64)
        portions = weights / weights.sum()
        self.arrays = {
            name: (
                array
                + np.tensordot(portions, np.stack([one[name] for one in deltas.values()]), axes=1)
            ).astype(np.float32)
            for name, array in self.arrays.items()
        }


class Typist:
    """Writes participants' updates as the SDK does."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self.addresses = tuple(addresses)

    def prepare(
        self, model: bytes, number: int, deltas: Mapping[int, Arrays]
    ) -> dict[int, Prepared]:
        """Return the update files for round `number`, by place."""
        decoded = decode_model(model)
        name = compute_blob_name(model)
        base = dequantize_model(decoded)
        return {
            place: prepare_update(
                decoded,
                name,
                Result(
                    {key: base[key] + value.astype(np.float64) for key, value in delta.items()}, 1
                ),
                chain_id=CHAIN_ID,
                task=TASK,
                round_number=number,
                sender=self.addresses[place],
                bits=UPDATE_BITS,
                max_norm2=ADMISSION_NORM2,
            )
            for place, delta in deltas.items()
        }


def encode_first_model(arrays: Arrays) -> bytes:
    return quantize_model(arrays, build_manifest(arrays))


def decode_arrays(model: bytes) -> Arrays:
    decoded: Model = decode_model(model)
    return dict(dequantize_model(decoded))


class ExactServer:
    """The chain's arithmetic without a chain: what every block must agree with."""

    def __init__(self, arrays: Arrays, deal: Deal, addresses: Sequence[Address]) -> None:
        self.model = encode_first_model(arrays)
        self.deal, self.round = deal, 0
        self._typist = Typist(addresses)
        self.shares: list[tuple[int, ...]] = []
        """Of each round, in the order of the participants."""
        self.flags: list[tuple[int, ...]] = []

    @property
    def arrays(self) -> Arrays:
        return decode_arrays(self.model)

    def get_drawn(self) -> Sequence[int]:
        return range(len(self.deal.weights))

    def play(self, deltas: Mapping[int, Arrays]) -> None:
        self.round += 1
        updates = self._typist.prepare(self.model, self.round, deltas)
        made = aggregate(
            self.deal.rule,
            self.model,
            None,
            [(one.update, one.data) for one in updates.values()],
            [self.deal.raw_weights[place] for place in updates],
        )
        self.model = made.model
        self.shares.append(made.shares)
        self.flags.append(made.flags)

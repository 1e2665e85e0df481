"""What makes one model of many deltas: floats as any server would, or the chain's arithmetic.

`chain.py` has the third: the same arithmetic in a real validator's blocks.
"""

from collections.abc import Sequence
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
    """How a task aggregates. `weights`: the rows that each participant claims."""

    rule: Rule
    is_uniform: bool
    weights: tuple[int, ...]

    @property
    def raw_weights(self) -> tuple[int, ...]:
        return tuple((1 if self.is_uniform else one) << WEIGHT_BITS for one in self.weights)


def make_deal(rule: str, dishonest: int, norm: float, weights: Sequence[int]) -> Deal:
    """Return the deal of a rule by its name, told how many are dishonest, or what to clip to.

    The trimmed mean counts everybody alike, since a value has no weight once it is sorted.
    """
    rules = {
        "fedavg": Rule(RuleKind.WEIGHTED_MEAN, 0),
        "clipped": Rule(RuleKind.NORM_CLIPPED_MEAN, round(norm * NORM_UNIT)),
        "trimmed": Rule(RuleKind.TRIMMED_MEAN, dishonest),
        "multi_krum": Rule(RuleKind.MULTI_KRUM, dishonest),
    }
    return Deal(rules[rule], rule == "trimmed", tuple(weights))


RULES: Final = ("fedavg", "clipped", "trimmed", "multi_krum")


class Server(Protocol):
    """Holds the model and plays rounds."""

    @property
    def arrays(self) -> Arrays:
        """The model that participants train from."""

    def play(self, deltas: Sequence[Arrays]) -> None:
        """Make the next model of everybody's delta."""


class FloatServer:
    """FedAvg in float64. Source: McMahan et al., arXiv:1602.05629, Algorithm 1."""

    def __init__(self, arrays: Arrays, weights: Sequence[int]) -> None:
        self.arrays = arrays
        self._portions = np.array(weights, np.float64) / sum(weights)

    def play(self, deltas: Sequence[Arrays]) -> None:
        self.arrays = {
            name: (
                array
                + np.tensordot(self._portions, np.stack([one[name] for one in deltas]), axes=1)
            ).astype(np.float32)
            for name, array in self.arrays.items()
        }


class Typist:
    """Writes participants' updates as the SDK does."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self.addresses = tuple(addresses)

    def prepare(self, model: bytes, number: int, deltas: Sequence[Arrays]) -> list[Prepared]:
        """Return each participant's update file for round `number`."""
        decoded = decode_model(model)
        name = compute_blob_name(model)
        base = dequantize_model(decoded)
        return [
            prepare_update(
                decoded,
                name,
                Result(
                    {key: base[key] + value.astype(np.float64) for key, value in delta.items()}, 1
                ),
                chain_id=CHAIN_ID,
                task=TASK,
                round_number=number,
                sender=address,
                bits=UPDATE_BITS,
                max_norm2=ADMISSION_NORM2,
            )
            for address, delta in zip(self.addresses, deltas, strict=True)
        ]


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

    def play(self, deltas: Sequence[Arrays]) -> None:
        self.round += 1
        updates = self._typist.prepare(self.model, self.round, deltas)
        made = aggregate(
            self.deal.rule,
            self.model,
            None,
            [(one.update, one.data) for one in updates],
            self.deal.raw_weights,
        )
        self.model = made.model
        self.shares.append(made.shares)
        self.flags.append(made.flags)

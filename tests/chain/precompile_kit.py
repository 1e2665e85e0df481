"""The precompile without an engine: a host with blobs, rules of every kind, calls by name."""

from dataclasses import dataclass, field

from eth_abi import decode, encode

from steelyard.chain import precompile
from steelyard.chain.admission import Admission
from steelyard.chain.cid import compute_blob_name
from steelyard.chain.errors import SteelyardError, UnavailableBlob
from steelyard.chain.types import BlobName, Height

from .aggregation_kit import CHAIN_ID, Base

TYPES = {
    signature.partition("(")[0]: signature.partition("(")[2][:-1]
    for signature in precompile.SIGNATURES.values()
}
SELECTORS = {name: selector for selector, name in precompile.SELECTORS.items()}
BLOB = "(bytes32,uint256)"
RECORD = [BLOB, BLOB, "uint256[]", "int256[]", "uint256[]", "uint256"]
RESULTS = {
    "verify": ["uint256"],
    "aggregate": RECORD,
    "measure": [BLOB],
    "combine": [BLOB],
    "assemble": RECORD,
    "plan": ["uint256"] * 3,
    "normalise": ["uint256[]"],
    "info": ["uint256"] * 3,
    "check_model": ["uint256"] * 2,
    "quote": ["uint256"],
}
ONE, RATE = 2**20, 2**12
MEAN = (0, 0, ONE, RATE, 0)
CLIPPED = (1, 900, ONE, RATE, 0)
TRIMMED = (2, 1, ONE // 3, RATE // 2, 0)
KRUM = (3, 1, ONE, RATE, RATE // 2)
RULES = {"mean": MEAN, "clipped": CLIPPED, "trimmed": TRIMMED, "krum": KRUM}
NOTHING = (bytes(32), 0)
HEIGHT = Height(7)


class OutOfGas(Exception):
    """What the engine raises."""


@dataclass
class Host:
    """A frame with some blobs, all admitted at height 3 and readable until second 100."""

    gas: int = 10**9
    is_static: bool = False
    timestamp: int = 100
    height: Height = HEIGHT
    chain_id: int = CHAIN_ID
    blobs: dict[BlobName, bytes] = field(default_factory=dict)
    admissions: dict[BlobName, Admission] = field(default_factory=dict)
    reads: int = 0

    def add(self, data: bytes) -> BlobName:
        name = compute_blob_name(data)
        self.blobs[name], self.admissions[name] = data, Admission(Height(3), 100)
        return name

    def consume_gas(self, amount: int, reason: str) -> None:
        assert amount >= 0
        if amount > self.gas:
            raise OutOfGas(reason)
        self.gas -= amount

    def get_admission(self, name: BlobName) -> Admission | None:
        return self.admissions.get(name)

    def read_blob(self, name: BlobName) -> bytes:
        self.reads += 1
        if name not in self.blobs:
            raise UnavailableBlob("blob_unavailable", "wait for it")
        return self.blobs[name]

    def write_blob(self, name: BlobName, data: bytes) -> None:
        assert compute_blob_name(data) == name
        self.blobs[name], self.admissions[name] = data, Admission(self.height, 200)

    def ask(self, name: str, *arguments: object) -> tuple:
        return decode(RESULTS[name], self.run(name, *arguments))

    def run(self, name: str, *arguments: object) -> bytes:
        return precompile.call(self, encode_call(name, *arguments))


def split_types(text: str) -> list[str]:
    """Split at the commas outside parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def encode_call(name: str, *arguments: object) -> bytes:
    return SELECTORS[name] + encode(split_types(TYPES[name]), arguments)


def pair(name: BlobName) -> tuple[bytes, int]:
    return name.digest, name.size


@dataclass
class World:
    """A base and updates to it, all on the host."""

    host: Host
    base: Base
    updates: list[BlobName]

    @property
    def pairs(self) -> list[tuple[bytes, int]]:
        return [pair(name) for name in self.updates]

    @property
    def model(self) -> tuple[bytes, int]:
        return pair(self.base.name)


def catch_code(host: Host, data: bytes) -> str:
    """Return the code that a call is refused with."""
    try:
        precompile.call(host, data)
    except SteelyardError as error:
        return error.code
    raise AssertionError("the call was answered")

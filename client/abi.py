"""Contracts through their ABI: calls encoded, answers and events decoded.

Answers come from an untrusted node: they are decoded strictly, and a malformed one raises
NodeRefused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_hash.auto import keccak

from steelyard.chain.types import Address, BlobName, Digest, Hash

from .errors import ClientError, NodeRefused
from .rpc import Json, as_bytes, as_int


@dataclass(frozen=True, slots=True)
class Log:
    """One event of the chain, with where it stands."""

    address: Address
    topics: tuple[bytes, ...]
    data: bytes
    height: int
    transaction: Hash
    index: int


@dataclass(frozen=True, slots=True)
class Event:
    """A decoded event. Values: int, bool, str, bytes (addresses too), BlobName, lists of these."""

    name: str
    values: Mapping[str, Any]
    height: int
    transaction: Hash
    index: int


class Contract:
    """One contract's ABI: encodes calls, decodes answers and events."""

    def __init__(self, address: Address, abi: Sequence[Mapping[str, Any]]) -> None:
        self.address = address
        self._functions = {entry["name"]: entry for entry in abi if entry["type"] == "function"}
        self._events = {
            keccak(compute_signature(entry).encode()): entry
            for entry in abi
            if entry["type"] == "event"
        }

    def encode_call(self, name: str, *arguments: Any) -> bytes:
        """Return the data of a call. What does not fit its type is our own mistake, but for
        numbers, which users give. Raises ClientError `number_range`.
        """
        function = self._functions[name]
        for entry, value in zip(function["inputs"], arguments, strict=True):
            if entry["type"].startswith("uint") and "[" not in entry["type"]:
                check_number(entry["name"], value, int(entry["type"].removeprefix("uint")))
        types = [format_type(entry) for entry in function["inputs"]]
        return keccak(compute_signature(function).encode())[:4] + encode(types, arguments)

    def decode_call(self, data: bytes) -> tuple[str, dict[str, Any]] | None:
        """Return a call's function and arguments by name; None if it is not one of ours."""
        for name, function in self._functions.items():
            if keccak(compute_signature(function).encode())[:4] == data[:4]:
                try:
                    return name, decode_values(function["inputs"], data[4:])
                except NodeRefused:
                    return None
        return None

    def decode_output(self, name: str, data: bytes) -> list[Any]:
        """Return what a call answered, structs as dictionaries. Raises NodeRefused."""
        outputs = self._functions[name]["outputs"]
        named = [dict(entry, name=str(index)) for index, entry in enumerate(outputs)]
        return list(decode_values(named, data).values())

    def get_topic(self, name: str) -> bytes:
        """Return an event's first topic."""
        return next(topic for topic, entry in self._events.items() if entry["name"] == name)

    def has_event(self, name: str) -> bool:
        """Whether the contract makes an event of that name."""
        return any(entry["name"] == name for entry in self._events.values())

    def decode_event(self, log: Log) -> Event | None:
        """Return the event in a log; None for another contract's. Raises NodeRefused."""
        entry = self._events.get(log.topics[0]) if log.topics else None
        if entry is None or log.address != self.address:
            return None
        indexed = [item for item in entry["inputs"] if item["indexed"]]
        plain = [item for item in entry["inputs"] if not item["indexed"]]
        if len(log.topics) != 1 + len(indexed):
            raise NodeRefused("rpc_answer", f"an event {entry['name']} has missing topics")
        values = decode_values(plain, log.data)
        for item, topic in zip(indexed, log.topics[1:], strict=True):
            values |= decode_values([item], topic)
        return Event(entry["name"], values, log.height, log.transaction, log.index)


def check_number(name: str, value: object, bits: int = 256) -> None:
    """Raises ClientError `number_range` for what no contract takes as a number."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**bits:
        raise ClientError(
            "number_range", f"{name} is {value!r:.60}; give a whole number from 0 to 2**{bits} - 1"
        )


def format_type(entry: Mapping[str, Any]) -> str:
    """Return an ABI entry's type with its tuples spelled out."""
    kind: str = entry["type"]
    if not kind.startswith("tuple"):
        return kind
    inner = ",".join(format_type(item) for item in entry["components"])
    return f"({inner}){kind.removeprefix('tuple')}"


def compute_signature(entry: Mapping[str, Any]) -> str:
    """Return the canonical signature of a function or event."""
    return f"{entry['name']}({','.join(format_type(item) for item in entry['inputs'])})"


def decode_values(entries: Sequence[Mapping[str, Any]], data: bytes) -> dict[str, Any]:
    """Return ABI values by name. Raises NodeRefused `rpc_answer`."""
    try:
        values = decode([format_type(entry) for entry in entries], data)
    except (DecodingError, OverflowError, ValueError) as error:
        raise NodeRefused(
            "rpc_answer", f"the contract's answer does not decode ({error}); is this our chain?"
        ) from None
    return {
        entry["name"]: convert(entry, value) for entry, value in zip(entries, values, strict=True)
    }


def convert(entry: Mapping[str, Any], value: Any) -> Any:
    """Return one ABI value in our own types: addresses as bytes, structs by name, blobs named."""
    kind: str = entry["type"]
    if kind.endswith("]"):
        item = dict(entry, type=kind[: kind.rindex("[")])
        return [convert(item, element) for element in value]
    if kind == "address":
        return Address(bytes.fromhex(value[2:]))
    if kind == "tuple":
        names = [item["name"] for item in entry["components"]]
        fields = {
            item["name"]: convert(item, element)
            for item, element in zip(entry["components"], value, strict=True)
        }
        if names == ["digest", "size"]:
            return BlobName(Digest(fields["digest"]), fields["size"])
        return fields
    return value


def decode_log(value: Json) -> Log:
    """Return one JSON-RPC log. Raises NodeRefused `rpc_answer`."""
    try:
        return Log(
            Address(as_bytes(value["address"], 20)),
            tuple(as_bytes(topic, 32) for topic in value["topics"]),
            as_bytes(value["data"]),
            as_int(value["blockNumber"]),
            Hash(as_bytes(value["transactionHash"], 32)),
            as_int(value["logIndex"]),
        )
    except (KeyError, TypeError):
        raise NodeRefused("rpc_answer", "the node's log is malformed") from None

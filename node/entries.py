"""An *entry*: what a validator tells the others, in a file that is public and proves itself.

Each operator makes one beside its own keys; a genesis ceremony collects them, and a later deposit
repeats one. An entry is a row of the genesis document with a format and a version around it, so
that a file of another kind or age is named as such.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from eth_utils.address import is_address, is_checksum_address, to_canonical_address

from steelyard.chain.bls import check_possession, compute_public_key, prove_possession
from steelyard.chain.errors import InvalidKey, SteelyardError
from steelyard.chain.genesis import Genesis, GenesisValidator
from steelyard.chain.genesis_document import RESERVED_BELOW
from steelyard.chain.params import MAX_ENDPOINT_BYTES
from steelyard.chain.types import Address

from .keyfiles import Secrets, compute_network_key
from .network.endpoint import Endpoint, InvalidEndpoint, parse_endpoint

ENTRY_FILE: Final = "entry.json"
FORMAT: Final = "steelyard-validator-entry"
VERSION: Final = 1
MAX_ENTRY_BYTES: Final = 16_384
MAX_STAKE_DIGITS: Final = 39
SIZES: Final = {"bls_key": 48, "proof_of_possession": 96, "network_key": 32}
FIELDS: Final = {"format", "version", "address", "fee_recipient", "endpoint", "stake", *SIZES}
WILDCARDS: Final = {"0.0.0.0", "::"}  # noqa: S104 - refused, not listened on


class InvalidEntry(SteelyardError):
    """A validator's entry that cannot go into a genesis document."""


def make_entry(
    secrets: Secrets, endpoint: str, stake: int, fee_recipient: Address | None = None
) -> GenesisValidator:
    """The entry of these keys; fees go to its own account unless told otherwise. Stake in wei."""
    check_reachable(endpoint)
    return GenesisValidator(
        address=secrets.address,
        bls_key=compute_public_key(secrets.voting),
        proof_of_possession=prove_possession(secrets.voting),
        network_key=compute_network_key(secrets.network),
        endpoint=endpoint,
        fee_recipient=secrets.address if fee_recipient is None else fee_recipient,
        stake=stake,
    )


def encode_entry(entry: GenesisValidator) -> bytes:
    """The file's bytes; `parse_entry` reads them back."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "address": "0x" + entry.address.hex(),
        "bls_key": "0x" + entry.bls_key.hex(),
        "proof_of_possession": "0x" + entry.proof_of_possession.hex(),
        "network_key": "0x" + entry.network_key.hex(),
        "endpoint": entry.endpoint,
        "fee_recipient": "0x" + entry.fee_recipient.hex(),
        "stake": str(entry.stake),
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def read_entry(path: Path) -> GenesisValidator:
    """The checked entry in a file. Raises InvalidEntry, its message with the file's name."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_ENTRY_BYTES + 1)
    except OSError as error:
        raise InvalidEntry("entry_file", f"{path}: {error.strerror}") from None
    try:
        return parse_entry(data)
    except InvalidEntry as error:
        raise InvalidEntry(error.code, f"{path}: {error.message}") from None


def parse_entry(data: bytes) -> GenesisValidator:
    """The entry, its proof of possession checked.

    Raises: InvalidEntry entry_malformed, entry_version, entry_endpoint, entry_possession.
    """
    fields = _read_fields(data)
    keys = {name: _read_hex(fields, name, size) for name, size in SIZES.items()}
    stake = fields["stake"]
    if not isinstance(stake, str) or not re.fullmatch(r"[1-9][0-9]*", stake, re.ASCII):
        raise InvalidEntry("entry_malformed", "stake is not a decimal string of wei above 0")
    if len(stake) > MAX_STAKE_DIGITS:
        raise InvalidEntry("entry_malformed", "stake is larger than all coins")
    endpoint = fields["endpoint"]
    if not isinstance(endpoint, str):
        raise InvalidEntry("entry_malformed", "endpoint is not text")
    check_reachable(endpoint)
    try:
        check_possession(keys["bls_key"], keys["proof_of_possession"])
    except InvalidKey as error:
        raise InvalidEntry(
            "entry_possession",
            f"{error.message}; ask its operator for the file as `steelyard node keys new` wrote it",
        ) from None
    return GenesisValidator(
        address=_read_address(fields, "address"),
        endpoint=endpoint,
        fee_recipient=_read_address(fields, "fee_recipient"),
        stake=int(stake),
        **keys,
    )


def _read_fields(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_ENTRY_BYTES:
        raise InvalidEntry("entry_malformed", f"above {MAX_ENTRY_BYTES} bytes: no entry")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidEntry("entry_malformed", f"not JSON: {error}") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise InvalidEntry(
            "entry_malformed", f"not a {FORMAT}; `steelyard node keys new` writes {ENTRY_FILE}"
        )
    if fields.get("version") != VERSION or isinstance(fields["version"], bool):
        raise InvalidEntry(
            "entry_version",
            f"version {fields.get('version')!r}, and this release knows {VERSION}; make it with "
            "the release that the ceremony uses",
        )
    if set(fields) != FIELDS:
        wrong = ", ".join(sorted(set(fields) ^ FIELDS))
        raise InvalidEntry("entry_malformed", f"unknown or missing keys: {wrong}")
    return fields


def _read_hex(fields: dict[str, Any], name: str, size: int) -> bytes:
    value = fields[name]
    if isinstance(value, str) and re.fullmatch(rf"0x[0-9a-f]{{{2 * size}}}", value, re.ASCII):
        return bytes.fromhex(value[2:])
    raise InvalidEntry("entry_malformed", f"{name} is not {size} bytes of lower-case hex")


def _read_address(fields: dict[str, Any], name: str) -> Address:
    value = fields[name]
    if not isinstance(value, str):
        raise InvalidEntry("entry_malformed", f"{name} is not an address")
    try:
        return parse_address(value)
    except SteelyardError as error:
        raise InvalidEntry("entry_malformed", f"{name}: {error.message}") from None


def parse_address(text: str) -> Address:
    """An account that can hold coins. Raises SteelyardError address_malformed."""
    is_mixed = text.lower() != text and text[2:].upper() != text[2:]
    if not is_address(text) or (is_mixed and not is_checksum_address(text)):
        raise SteelyardError("address_malformed", f"{text!r} is no address, or is mistyped")
    address = Address(to_canonical_address(text))
    if int.from_bytes(address, "big") < RESERVED_BELOW:
        raise SteelyardError("address_malformed", f"{text} is reserved: nobody has its key")
    return address


def check_reachable(text: str) -> Endpoint:
    """Where the other validators reach one. Raises InvalidEntry entry_endpoint."""
    try:
        endpoint = parse_endpoint(text)
    except InvalidEndpoint as error:
        raise InvalidEntry(
            "entry_endpoint", f"{error.message}; like validator.example:8546"
        ) from None
    if len(text) > MAX_ENDPOINT_BYTES:
        raise InvalidEntry("entry_endpoint", f"above {MAX_ENDPOINT_BYTES} bytes: {text[:80]!r}")
    if endpoint.host in WILDCARDS:
        raise InvalidEntry(
            "entry_endpoint", f"{text}: name the address under which the others reach this machine"
        )
    return endpoint


def check_distinct(entries: Sequence[GenesisValidator]) -> None:
    """No two entries share an address, a key or a port. Raises InvalidEntry entry_repeated."""
    seen: dict[object, int] = {}
    for place, entry in enumerate(entries, 1):
        endpoint = check_reachable(entry.endpoint)
        claims: dict[str, object] = {
            "the address": entry.address,
            "the BLS key": entry.bls_key,
            "the network key": entry.network_key,
        }
        for port in endpoint.ports:
            claims[f"port {port} of {endpoint.host}"] = (endpoint.host.lower(), port)
        for what, claim in claims.items():
            if claim in seen:
                cause = (
                    "each validator needs its endpoint's port and the one above for itself"
                    if isinstance(claim, tuple)
                    else "one is a copy, or an operator used the keys of another directory"
                )
                raise InvalidEntry(
                    "entry_repeated",
                    f"entries {seen[claim]} and {place} both have {what}; {cause}",
                )
            seen[claim] = place


def check_listed(entry: GenesisValidator, genesis: Genesis) -> None:
    """The document has this entry as its operator made it. Raises InvalidEntry entry_differs."""
    for listed in genesis.validators:
        if listed.address == entry.address:
            wrong = [
                name
                for name in ("bls_key", "network_key", "endpoint", "fee_recipient", "stake")
                if getattr(listed, name) != getattr(entry, name)
            ]
            if wrong:
                raise InvalidEntry(
                    "entry_differs",
                    f"the document has another {' and '.join(wrong)} than {ENTRY_FILE}; do not "
                    "start: ask the coordinator to use your file",
                )
            return
    raise InvalidEntry(
        "entry_differs",
        f"0x{entry.address.hex()} is not in the document; send {ENTRY_FILE} to the coordinator, "
        "or give --follow URL to join the chain later",
    )

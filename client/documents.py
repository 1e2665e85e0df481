"""Documents of the registry: metadata, a JSON object, and statements, text or JSON."""

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from .errors import ClientError

MAX_DOCUMENT_BYTES: Final = 2**20
"""As the contract has it."""
MAX_DEPTH: Final = 64
"""Levels of JSON, one in another: much less than what Python can print."""

Document = Mapping[str, Any] | bytes
"""Metadata: a JSON object, or a file with one."""


def encode_document(document: Document) -> bytes:
    """Return metadata as a JSON file. Raises ClientError `document_size`, `document_malformed`."""
    if isinstance(document, bytes):
        data = document
        check_size(data)
        try:
            found = parse_json(data)
        except ValueError as error:
            raise ClientError("document_malformed", f"metadata is JSON: {error}") from None
        if not isinstance(found, dict):
            raise ClientError("document_malformed", "metadata is a JSON object: {…}")
        return data
    try:
        check_depth(document)
        data = (json.dumps(document, sort_keys=True, indent=1) + "\n").encode()
        check_size(data)
        parse_json(data)
    except (TypeError, ValueError, RecursionError) as error:
        raise ClientError("document_malformed", f"metadata is JSON: {error}") from None
    return data


def parse_json(data: bytes) -> Any:
    """Return JSON that can be written again as JSON. Raises ValueError.

    Python also reads NaN and numbers that become infinite, which no JSON has (RFC 8259, section 6),
    and more levels than it can write.
    """
    try:
        found = json.loads(data, parse_constant=parse_finite, parse_float=parse_finite)
    except RecursionError:
        raise ValueError("too many levels") from None
    check_depth(found)
    return found


def check_depth(found: Any) -> None:
    """Raise ValueError if a JSON value has more than MAX_DEPTH levels."""
    level = [found]
    for _ in range(MAX_DEPTH):
        level = [item for one in level for item in list_items(one)]
        if not level:
            return
    raise ValueError(f"more than {MAX_DEPTH} levels")


def parse_finite(text: str) -> float:
    """Return a number. Raises ValueError for NaN and the infinities."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a number that JSON has")
    return value


def list_items(value: Any) -> list[Any]:
    """Return what is directly in a JSON value."""
    match value:
        case dict():
            return list(value.values())
        case list():
            return value
    return []


def check_text(statement: bytes) -> bytes:
    """Return a statement. Raises ClientError `document_size`, `document_malformed`."""
    check_size(statement)
    try:
        statement.decode()
    except UnicodeDecodeError:
        raise ClientError("document_malformed", "a statement is text in UTF-8") from None
    return statement


def check_size(data: bytes) -> None:
    """Raises ClientError `document_size`."""
    if not 0 < len(data) <= MAX_DOCUMENT_BYTES:
        raise ClientError(
            "document_size",
            f"metadata and statements have 1 to {MAX_DOCUMENT_BYTES} bytes, not {len(data)}",
        )

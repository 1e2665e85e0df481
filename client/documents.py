"""Documents of the registry: metadata, a JSON object, and statements, text or JSON."""

import json
from collections.abc import Mapping
from typing import Any, Final

from .errors import ClientError

MAX_DOCUMENT_BYTES: Final = 2**20
"""As the contract has it."""

Document = Mapping[str, Any] | bytes
"""Metadata: a JSON object, or a file with one."""


def encode_document(document: Document) -> bytes:
    """Return metadata as a JSON file. Raises ClientError `document_size`, `document_malformed`."""
    if isinstance(document, bytes):
        data = document
        check_size(data)
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ClientError("document_malformed", f"metadata is JSON: {error}") from None
        if not isinstance(found, dict):
            raise ClientError("document_malformed", "metadata is a JSON object: {…}")
        return data
    try:
        data = (json.dumps(document, sort_keys=True, indent=1) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise ClientError("document_malformed", f"metadata is JSON: {error}") from None
    check_size(data)
    return data


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

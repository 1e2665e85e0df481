"""What the registry's commands read from disk, and how they show what strangers wrote."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..documents import parse_json
from ..errors import ClientError

Person = Annotated[str, typer.Argument(metavar="ADDRESS", help="an account")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="the newest so many")]
MAX_NUMBER = 2**256 - 1
MetadataFile = Annotated[
    Path | None, typer.Option("--metadata", help="JSON file, public: what it is")
]


def read_file(path: Path, limit: int) -> bytes:
    """Return a file of at most `limit` bytes. Raises ClientError `document_file`."""
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise ClientError("document_file", f"cannot read {path}: {error}") from None
    if len(data) > limit:
        raise ClientError("document_file", f"{path} has more than {limit} bytes")
    return data


def describe_document(data: bytes | None) -> Any:
    """Return what a document says: JSON, text if it cannot be shown as JSON; None without any."""
    if data is None:
        return None
    try:
        return parse_json(data)
    except ValueError:
        return data.decode("utf-8", "replace")


def format_document(document: Any) -> str:
    """Return what a document says for people: JSON in one line, in ASCII, whoever wrote it."""
    return json.dumps(document)


def write_private(path: Path, data: bytes) -> Path:
    """Write a file that only its owner can read, completely or not at all.

    Raises: ClientError `file_write`.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "wb") as stream:
            stream.write(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ClientError("file_write", f"cannot write {path}: {error}") from None
    return path

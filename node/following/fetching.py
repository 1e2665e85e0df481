"""Blobs by name, from whichever source has them."""

from typing import Final

from steelyard.chain.cid import compute_blob_name, encode_cid
from steelyard.chain.errors import SteelyardError
from steelyard.chain.params import MAX_BLOB_BYTES
from steelyard.chain.types import BlobName

from .sources import Source, SourceLacks, Sources, SourceWrong

BLOB_SECONDS: Final = 30.0
BLOB_RATE: Final = 64 * 2**10
"""Bytes a second: a blob of n bytes may take BLOB_SECONDS + n / BLOB_RATE."""


def fetch_blob(sources: Sources, name: BlobName) -> bytes | None:
    """The bytes of this name, or None if no source gave them now. Raises Stopped."""
    if not 0 < name.size <= MAX_BLOB_BYTES:
        return None
    for source in sources.get_available():
        try:
            return fetch_from(sources, source, name)
        except SourceLacks:
            continue  # it let it go, or has not got it yet: that is allowed
        except SteelyardError as error:
            sources.set_aside(source, error)
    return None


def fetch_from(sources: Sources, source: Source, name: BlobName) -> bytes:
    """Raises SteelyardError: SourceLacks, Unreachable, SourceWrong source_blob."""
    cid = encode_cid(name)
    seconds = BLOB_SECONDS + name.size / BLOB_RATE
    data = sources.get(source, f"/blobs/{cid}", name.size, seconds)
    if len(data) != name.size or compute_blob_name(data) != name:
        raise SourceWrong("source_blob", f"it serves other bytes as {cid}")
    return data

"""Logs of finalized blocks by address and topic, blooms first."""

from collections.abc import Iterator

from eth_utils.crypto import keccak

from steelyard.chain.errors import SteelyardError
from steelyard.chain.receipts import Log, may_contain
from steelyard.chain.types import Hash, Height

from .records import LogEntry, LogQuery
from .store import ChainStore

BLOOMS_AT_ONCE = 1024


def find_logs(store: ChainStore, query: LogQuery, limit: int) -> tuple[LogEntry, ...]:
    """Matching logs in the order of the chain. Raises SteelyardError logs_limit above `limit`."""
    found: list[LogEntry] = []
    for height in iter_heights(store, query):
        for entry in iter_block_logs(store, height):
            if is_match(query, entry.log):
                found.append(entry)
                if len(found) > limit:
                    raise SteelyardError(
                        "logs_limit", f"more than {limit} logs match; ask for fewer blocks at once"
                    )
    return tuple(found)


def iter_heights(store: ChainStore, query: LogQuery) -> Iterator[int]:
    """Heights in the range whose bloom does not exclude a match."""
    start = max(query.from_height, 0)
    while start <= query.to_height:
        blooms = store.scan_blooms(start, BLOOMS_AT_ONCE)
        for height, bloom in blooms:
            if height > query.to_height:
                return
            if is_possible(query, bloom):
                yield height
        if len(blooms) < BLOOMS_AT_ONCE:
            return
        start = blooms[-1][0] + 1


def iter_block_logs(store: ChainStore, height: int) -> Iterator[LogEntry]:
    """Every log of a finalized block."""
    block_hash = store.get_hash(height)
    block = None if block_hash is None else store.get_block(block_hash)
    if block_hash is None or block is None:
        return
    log_index = 0
    for index, receipt in enumerate(store.get_receipts(block_hash)):
        for log in receipt.logs:
            yield LogEntry(
                log=log,
                height=Height(height),
                block_hash=block_hash,
                transaction_hash=Hash(keccak(block.transactions[index])),
                transaction_index=index,
                log_index=log_index,
            )
            log_index += 1


def is_possible(query: LogQuery, bloom: bytes) -> bool:
    if query.addresses and not any(may_contain(bloom, one) for one in query.addresses):
        return False
    return all(
        accepted is None or any(may_contain(bloom, topic) for topic in accepted)
        for accepted in query.topics
    )


def is_match(query: LogQuery, log: Log) -> bool:
    if query.addresses and log.address not in query.addresses:
        return False
    if len(log.topics) < len(query.topics):
        return False
    return all(
        accepted is None or topic in accepted
        for accepted, topic in zip(query.topics, log.topics, strict=False)
    )

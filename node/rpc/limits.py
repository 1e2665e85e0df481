"""How much one caller may ask for: every loop and buffer has its bound here."""

from typing import Final

MAX_BODY_BYTES: Final = 4 * 2**20
"""A request body or WebSocket message: far above twice the largest transaction in hex."""
MAX_BUFFERED_BYTES: Final = 256 * 2**20
"""Request bodies in memory, of all connections together."""
SMALL_BODY_BYTES: Final = 16 * 2**10
"""Bodies up to this are parsed on the event loop: faster than handing them to a thread."""
MAX_NESTING: Final = 32
"""Brackets inside brackets in a request."""
MAX_BATCH_CALLS: Final = 200
MAX_RESPONSE_BYTES: Final = 32 * 2**20
"""Of one result, and of all results of a batch together."""
BODY_SECONDS: Final = 30.0
"""How long a client may take to send a request body."""

QUICK_THREADS: Final = 4
QUICK_WAITING: Final = 512
HEAVY_THREADS: Final = 2
"""Computing: eth_call, estimates, logs, proofs. Separate, so that reads are never stuck behind."""
HEAVY_WAITING: Final = 64
TRANSFER_THREADS: Final = 2
"""Blob bytes to and from the disk."""
TRANSFER_WAITING: Final = 2_048
"""More than there are connections: a download under way is never refused its next bytes."""

MAX_LOG_BLOCKS: Final = 10_000
MAX_LOGS: Final = 10_000
MAX_BLOCK_LOGS: Final = 1_000_000
"""Of one block, for subscriptions: far more than its gas allows."""
MAX_LOG_ADDRESSES: Final = 1_000
MAX_TOPIC_VALUES: Final = 1_000
MAX_FEE_HISTORY_BLOCKS: Final = 1_024
MAX_REWARD_BLOCKS: Final = 128
"""Blocks of a fee history with rewards: each means reading all its receipts."""
MAX_REWARD_PERCENTILES: Final = 100
MAX_PROOF_SLOTS: Final = 1_024
MAX_ACCESS_LIST_KEYS: Final = 10_000

MAX_FILTERS: Final = 1_024
MAX_FILTERS_PER_CALLER: Final = 128
"""A caller is an IP address: HTTP requests have nothing more lasting."""
FILTER_IDLE_SECONDS: Final = 300.0
"""A filter that nobody polls for this long is forgotten."""

MAX_SOCKETS: Final = 256
MAX_SUBSCRIPTIONS: Final = 1_024
MAX_SUBSCRIPTIONS_PER_SOCKET: Final = 64
MAX_QUEUED_MESSAGES: Final = 1_024
MAX_QUEUED_BYTES: Final = 4 * 2**20
"""A subscriber that lets this much wait is disconnected."""

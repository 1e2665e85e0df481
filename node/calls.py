"""Threads with a large stack for EVM work: py-evm recurses once for every nested call."""

import sys
import threading
from collections.abc import Callable

from steelyard.chain.params import EVM_RECURSION_LIMIT, EVM_STACK_BYTES

_STACK_LOCK = threading.Lock()


def start_thread(name: str, target: Callable[[], None]) -> threading.Thread:
    """Start a daemon thread on which the EVM may run."""
    with _STACK_LOCK:
        sys.setrecursionlimit(EVM_RECURSION_LIMIT)
        before = threading.stack_size(EVM_STACK_BYTES)
        try:
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    return thread

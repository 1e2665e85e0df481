"""A node with its HTTP side, from start to signal."""

import os
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from .config import NodeConfig
from .directory import ENDPOINT
from .http import HttpServer
from .keyfiles import Secrets
from .logs import log_event
from .node import Node

OPEN_FILES = 65_536
"""Connections, uploads and mapped blobs together pass the usual limit of 1,024."""


def run_service(
    directory: Path, secrets: Secrets, config: NodeConfig, announce: Callable[[str], None]
) -> None:
    """Run until SIGINT or SIGTERM. `announce` gets the URL once it answers.

    Raises SteelyardError (port_taken, data_locked, …), CorruptData.
    """
    stopping = threading.Event()

    def stop(number: int, _frame: FrameType | None) -> None:
        log_event("node_stopping", signal=signal.Signals(number).name)
        stopping.set()

    raise_file_limit()
    node = Node.open(directory, secrets, config)
    try:
        server = HttpServer(node, config.http.host, config.http.port)
        server.start()
        try:
            write_endpoint(directory, server.url)  # from here on it answers
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, stop)
            node.start()
            announce(server.url)
            while not stopping.wait(1.0):
                pass
        finally:
            (directory / ENDPOINT).unlink(missing_ok=True)
            server.stop()
    finally:
        node.stop()


def raise_file_limit() -> None:
    """Open as many files as the system lets us, up to OPEN_FILES."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def write_endpoint(directory: Path, url: str) -> None:
    """Leave the URL where `node status` finds it; complete or not at all."""
    temporary = directory / f"{ENDPOINT}.new"
    temporary.write_text(url + "\n", encoding="utf-8")
    os.replace(temporary, directory / ENDPOINT)

"""What tests leave open is closed after them."""

from collections.abc import Iterator

import pytest

from steelyard.node.network import links, sockets

from .blob_kit import OPEN
from .kit import PATIENCE_SECONDS


@pytest.fixture(autouse=True)
def _wait_for_slow_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tests send once is not given up before they are."""
    monkeypatch.setattr(links, "MAX_AGE_SECONDS", PATIENCE_SECONDS)
    monkeypatch.setattr(sockets, "HANDSHAKE_MS", int(1_000 * PATIENCE_SECONDS))


@pytest.fixture(autouse=True)
def _close_desks() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().exchange.close()

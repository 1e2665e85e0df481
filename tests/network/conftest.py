"""What tests leave open is closed after them."""

from collections.abc import Iterator

import pytest

from .blob_kit import OPEN


@pytest.fixture(autouse=True)
def _close_desks() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().exchange.close()

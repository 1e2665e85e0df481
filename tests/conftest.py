"""Settings of every test run."""

import gc


def pytest_collection_finish() -> None:
    """Keep the collector from going through modules and tests again and again."""
    gc.collect()
    gc.freeze()

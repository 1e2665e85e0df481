"""Structured log events: one line each, `block_finalized height=12 hash=0x…`.

Tools may rely on the names of events and fields. Secrets never become fields.
"""

import logging
import sys
import time

from steelyard.chain.errors import SteelyardError

LOGGER = logging.getLogger("steelyard.node")
LEVELS = ("debug", "info", "warning", "error")


def log_event(name: str, **values: object) -> None:
    """Something that happened as it should."""
    LOGGER.info("%s", format_event(name, values))


def log_alarm(name: str, *, trace: bool = False, **values: object) -> None:
    """Something that a person must look at; `trace` adds the exception at hand."""
    LOGGER.error("%s", format_event(name, values), exc_info=trace)


def format_event(name: str, values: dict[str, object]) -> str:
    """The event as `name key=value …`; bytes in hex; text with spaces or line ends quoted."""
    return " ".join([name, *(f"{key}={format_value(value)}" for key, value in values.items())])


def format_value(value: object) -> str:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return (
        text if text.isprintable() and text and not set(' "=') & set(text) else ascii_quoted(text)
    )


def ascii_quoted(text: str) -> str:
    """Quoted and escaped: nobody can forge a second line or a second field."""
    inner = ascii(text)[1:-1].replace('"', '\\"')
    return f'"{inner}"'


def configure_logs(level: str) -> None:
    """Send events to stderr with a UTC time stamp. Raises SteelyardError config_value."""
    if level.lower() not in LEVELS:
        raise SteelyardError("config_value", f"no log level {level!r}: {', '.join(LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level.upper())
    LOGGER.propagate = False

"""Endpoints as Staking names them: `host:port`, or `host:port/bulk` with a second port.

Without a second port the bulk lane is at the next one. A validator chooses this text itself, so
it is read strictly: an IPv4 address, an IPv6 address in brackets, or a DNS name.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from steelyard.chain.errors import SteelyardError

from .wire import Lane

MAX_PORT: Final = 65_535
MAX_HOST_CHARACTERS: Final = 253
FORM: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9.-]{1,253}):(\d{1,5})(?:/(\d{1,5}))?")
LABEL: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


class InvalidEndpoint(SteelyardError):
    """A text that names no place to connect to."""

    def __init__(self, message: str) -> None:
        super().__init__("endpoint_malformed", message)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host (no brackets) and a port for each lane; 0, for listening only, is any free one."""

    host: str
    ports: tuple[int, int]

    @property
    def is_literal(self) -> bool:
        """Whether the host is an address and not a name."""
        return ":" in self.host or self.host.replace(".", "").isdigit()

    def __str__(self) -> str:
        consensus, bulk = self.ports
        host = f"[{self.host}]" if ":" in self.host else self.host
        second = "" if bulk == consensus + 1 else f"/{bulk}"
        return f"{host}:{consensus}{second}"


def format_address(host: str, port: int) -> str:
    """The address of a socket, as ZeroMQ takes it; `host` is an IPv4 or IPv6 address."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def parse_endpoint(text: str) -> Endpoint:
    """Read where a peer is. Raises InvalidEndpoint."""
    endpoint = parse_listen(text)
    if 0 in endpoint.ports:
        raise InvalidEndpoint("port 0 is not a port to connect to")
    return endpoint


def parse_listen(text: str) -> Endpoint:
    """Read where to listen: an endpoint, but port 0 is any free one. Raises InvalidEndpoint."""
    match = FORM.fullmatch(text)
    if match is None:
        raise InvalidEndpoint(f"not host:port: {text[:80]!r}")
    host, first, second = match.groups()
    port = int(first)
    bulk = int(second) if second is not None else port + 1 if port else 0
    if max(port, bulk) > MAX_PORT or (port == bulk and port):
        raise InvalidEndpoint(f"no two ports: {text[:80]!r}")
    return Endpoint(_read_host(host), (port, bulk))


def _read_host(host: str) -> str:
    is_name = not host.startswith("[") and not host.replace(".", "").isdigit()
    if is_name:
        labels = host.rstrip(".").split(".")
        if len(host) > MAX_HOST_CHARACTERS or not all(map(LABEL.fullmatch, labels)):
            raise InvalidEndpoint(f"not a host name: {host[:80]!r}")
        return host
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        raise InvalidEndpoint(f"not an address: {host[:80]!r}") from None
    if (address.version == 6) != host.startswith("["):
        raise InvalidEndpoint("an IPv6 address stands in brackets, an IPv4 address does not")
    return str(address)


def get_port(endpoint: Endpoint, lane: Lane) -> int:
    """The port of one lane."""
    return endpoint.ports[lane]

"""Ports on this machine for several validators: each has one for HTTP and two lanes above it."""

import random
import socket
from pathlib import Path
from typing import Final

from steelyard.chain.errors import SteelyardError

HOST: Final = "127.0.0.1"
PORT_STEP: Final = 10
"""Validator i has HTTP at base + 10 i, consensus at one above, blobs at two above."""
LANES: Final = 3


def find_ports(count: int, base: int) -> list[int]:
    """The HTTP port of each validator; the two above are its lanes. Raises port_taken.

    Free ports are looked for below those that the system gives to outgoing connections, or a
    validator that is down might find its own taken when it comes back.
    """
    if base:
        ports = [base + PORT_STEP * place for place in range(count)]
        taken = [one for port in ports for one in range(port, port + LANES) if not is_free(one)]
        if taken:
            raise SteelyardError(
                "port_taken", f"ports {taken} are in use; choose others: --http-port BASE, or 0"
            )
        return ports
    ports = []
    for _ in range(10_000):
        port = random.randrange(10_000, get_first_outgoing() - LANES)  # noqa: S311
        is_apart = all(abs(port - other) >= LANES for other in ports)
        if is_apart and all(is_free(one) for one in range(port, port + LANES)):
            ports.append(port)
            if len(ports) == count:
                return ports
    raise SteelyardError("port_taken", f"no {count} free ranges of ports on {HOST}")


def get_first_outgoing() -> int:
    """The lowest port that the system gives to outgoing connections."""
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
        return max(20_000, int(text.split()[0]))
    except (OSError, ValueError, IndexError):
        return 32_768


def is_free(port: int) -> bool:
    """Could a server listen there?"""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except (OSError, OverflowError):
            return False
    return True

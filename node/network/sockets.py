"""The listening side: ZeroMQ sockets with every limit set.

A PULL socket, because nothing ever goes back on a connection, and so there are no routing ids that
one peer could take from another. Source of the options: zmq_setsockopt(3), libzmq 4.3.5.
"""

from typing import Final

import zmq

from steelyard.chain.errors import SteelyardError

from .endpoint import format_address
from .wire import MAX_MESSAGE_BYTES, Lane

HANDSHAKE_MS: Final = 5_000
HEARTBEAT_MS: Final = 2_000
SILENCE_MS: Final = 15_000
"""A connection without a sign of life is closed: the time that the largest message may take."""
RECEIVE_MESSAGES: Final = 8
"""In ZeroMQ's own queue, of each connection."""
OVERHEAD: Final = 64
"""A message as ZeroMQ sends it: CURVE's nonce, box and flags."""
BACKLOG: Final = 256

ZAP: Final = "inproc://zeromq.zap.01"
"""Where libzmq asks whether a key may come in (ZeroMQ RFC 27)."""


def listen(
    context: "zmq.Context[zmq.Socket[bytes]]", secret: bytes, lane: Lane, host: str, port: int
) -> "tuple[zmq.Socket[bytes], int]":
    """The socket on which a lane receives, and its port.

    `host` is an address. Raises SteelyardError port_taken, listen_failed.
    """
    socket = context.socket(zmq.PULL)
    socket.linger = 0
    socket.ipv6 = ":" in host
    socket.handshake_ivl = HANDSHAKE_MS
    socket.heartbeat_ivl = HEARTBEAT_MS
    socket.heartbeat_timeout = SILENCE_MS
    socket.tcp_maxrt = SILENCE_MS
    socket.curve_server = True
    socket.curve_secretkey = secret
    socket.zap_domain = b"steelyard"
    socket.rcvhwm = RECEIVE_MESSAGES
    socket.maxmsgsize = MAX_MESSAGE_BYTES[lane] + OVERHEAD
    socket.backlog = BACKLOG
    try:
        socket.bind(format_address(host, port))
    except zmq.ZMQError as error:
        socket.close()
        place = f"{host} port {port}"
        if error.errno == zmq.EADDRINUSE:
            raise SteelyardError("port_taken", f"{place} is in use") from None
        raise SteelyardError("listen_failed", f"{place}: {error}") from None
    bound = bytes(socket.getsockopt(zmq.LAST_ENDPOINT))
    return socket, int(bound.rstrip(b"\0").rpartition(b":")[2])


def watch(
    context: "zmq.Context[zmq.Socket[bytes]]", socket: "zmq.Socket[bytes]"
) -> "zmq.Socket[bytes]":
    """A socket that tells of connections to a listening one.

    Without a limit: ZeroMQ's thread would wait for a reader that is behind. A connection is worth
    about a hundred bytes here, and costs its maker more.
    """
    address = f"inproc://connections-{id(socket)}"
    socket.monitor(address, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
    monitor = context.socket(zmq.PAIR)
    monitor.rcvhwm = 0
    monitor.linger = 0
    monitor.connect(address)
    return monitor

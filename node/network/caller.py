"""The calling side of CurveZMQ: connect, prove who we are, send. Never waits for anything.

Not libzmq's own, because that ends the whole process if the one it calls answers the handshake
with a key of small order, which any validator could do (`zmq_assert` in curve_client_tools.hpp of
libzmq 4.3.5). Here that is one connection that failed. libzmq still listens: that side checks.

Source: ZeroMQ RFC 26 (CurveZMQ) and RFC 37 (ZMTP 3.1).
"""

import contextlib
import secrets
import socket
from collections.abc import Callable
from typing import Final

from nacl.bindings import (
    crypto_box,
    crypto_box_beforenm,
    crypto_box_easy_afternm,
    crypto_box_keypair,
    crypto_box_open,
    crypto_box_open_easy_afternm,
)
from nacl.exceptions import CryptoError

HANDSHAKE_SECONDS: Final = 5.0
"""From the first packet to the peer's READY."""
PING_SECONDS: Final = 2.0
SILENCE_SECONDS: Final = 15.0
"""A connection without a sign of life is closed: the time that the largest message may take."""
ROOM_BYTES: Final = 256 * 1024
"""No further message is encrypted while this much has not gone out."""
MAX_COMMAND_BYTES: Final = 2_048
READ_BYTES: Final = 65_536

MECHANISM: Final = b"CURVE".ljust(20, b"\0")
GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x01" + MECHANISM + bytes(32)
COMMAND, LONG, INNER_COMMAND = 0x04, 0x02, 0x02
METADATA: Final = b"\x0bSocket-Type" + (4).to_bytes(4, "big") + b"PUSH"
TTL: Final = int(SILENCE_SECONDS * 10).to_bytes(2, "big")


class _Refused(Exception):
    """The peer does not keep to the protocol, or is somebody else."""


class Caller:
    """One connection, from the call to its end; the lane's thread owns it.

    `keys`: our secret and public X25519 key; `host`: an IPv4 or IPv6 address; `now`: seconds of a
    monotonic clock.
    """

    def __init__(
        self, keys: tuple[bytes, bytes], peer_key: bytes, host: str, port: int, now: float
    ) -> None:
        self.is_ready = self.is_closed = False
        self._keys, self._peer_key = keys, peer_key
        self.called_at = self._heard_at = self._pinged_at = now
        self._nonce = 0
        self._in = bytearray()
        self._out = bytearray(GREETING)
        self._next: Callable[[], bool] = self._read_greeting
        self._own_public, self._own_secret = crypto_box_keypair()
        self._shared = b""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(BlockingIOError):
                self._socket.connect((host, port))
        except OSError:
            self.close()

    # -- what the lane asks ------------------------------------------------------------------------
    @property
    def descriptor(self) -> int:
        return self._socket.fileno()

    @property
    def has_unsent(self) -> bool:
        return bool(self._out)

    @property
    def has_room(self) -> bool:
        """Whether `send` may be called."""
        return self.is_ready and not self.is_closed and len(self._out) < ROOM_BYTES

    def send(self, data: bytes, now: float) -> None:
        """Encrypt a message and send what goes out now; the rest follows in `advance`."""
        self._put_message(0, data)
        self.advance(now)

    def advance(self, now: float) -> None:
        """Read and write what is possible. Ends the connection if the peer breaks the protocol."""
        if self.is_closed:
            return
        try:
            self._write()
            self._read(now)
            self._write()
        except (OSError, _Refused, CryptoError, RuntimeError):
            self.close()

    def watch(self, now: float) -> None:
        """Ping when it is time, and end a connection that is silent for too long."""
        limit = self._heard_at + SILENCE_SECONDS
        if not self.is_ready:
            limit = self.called_at + HANDSHAKE_SECONDS
        if now >= limit:
            self.close()
        elif self.has_room and now >= self._pinged_at + PING_SECONDS:
            self._pinged_at = now
            self._put_message(INNER_COMMAND, b"\x04PING" + TTL)
            self.advance(now)

    def close(self) -> None:
        self.is_closed, self.is_ready = True, False
        self._socket.close()

    # -- bytes -------------------------------------------------------------------------------------
    def _write(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._out:
                del self._out[: self._socket.send(self._out)]

    def _read(self, now: float) -> None:
        with contextlib.suppress(BlockingIOError):
            data = self._socket.recv(READ_BYTES)
            if not data:
                raise _Refused
            self._heard_at = now
            if self.is_ready:
                return  # only answers to our pings come, and that they come is all they say
            self._in += data
            while not self.is_ready and self._next():
                pass

    def _take(self, size: int) -> bytes | None:
        if len(self._in) < size:
            return None
        data = bytes(self._in[:size])
        del self._in[:size]
        return data

    def _take_command(self, name: bytes) -> bytes | None:
        """The body of the next command, which must be this one, once it is all there."""
        if len(self._in) < 9:
            return None
        is_long = self._in[0] == COMMAND | LONG
        size = int.from_bytes(self._in[1:9], "big") if is_long else self._in[1]
        if self._in[0] | LONG != COMMAND | LONG or size > MAX_COMMAND_BYTES:
            raise _Refused
        frame = self._take((9 if is_long else 2) + size)
        if frame is None:
            return None
        body = frame[9 if is_long else 2 :]
        if not body.startswith(name):
            raise _Refused
        return body[len(name) :]

    def _get_nonce(self) -> bytes:
        self._nonce += 1
        return self._nonce.to_bytes(8, "big")

    def _put_frame(self, flags: int, body: bytes) -> None:
        if len(body) < 256:
            self._out += bytes([flags, len(body)])
        else:
            self._out += bytes([flags | LONG]) + len(body).to_bytes(8, "big")
        self._out += body

    def _put_message(self, flags: int, data: bytes) -> None:
        nonce = self._get_nonce()
        box = crypto_box_easy_afternm(
            bytes([flags]) + data, b"CurveZMQMESSAGEC" + nonce, self._shared
        )
        self._put_frame(0, b"\x07MESSAGE" + nonce + box)

    # -- the handshake -----------------------------------------------------------------------------
    def _read_greeting(self) -> bool:
        greeting = self._take(len(GREETING))
        if greeting is None:
            return False
        # Whether it says to listen is not asked: libzmq leaves that out.
        if greeting[0] != 0xFF or not greeting[9] & 1 or greeting[10] < 3:
            raise _Refused
        if greeting[12:32] != MECHANISM:
            raise _Refused
        nonce = self._get_nonce()
        box = crypto_box(bytes(64), b"CurveZMQHELLO---" + nonce, self._peer_key, self._own_secret)
        self._put_frame(COMMAND, b"\x05HELLO\x01\x00" + bytes(72) + self._own_public + nonce + box)
        self._next = self._read_welcome
        return True

    def _read_welcome(self) -> bool:
        welcome = self._take_command(b"\x07WELCOME")
        if welcome is None:
            return False
        if len(welcome) != 160:
            raise _Refused
        opened = crypto_box_open(
            welcome[16:], b"WELCOME-" + welcome[:16], self._peer_key, self._own_secret
        )
        their_public, cookie = opened[:32], opened[32:]
        self._shared = crypto_box_beforenm(their_public, self._own_secret)
        vouch_nonce = secrets.token_bytes(16)
        vouch = crypto_box(
            self._own_public + self._peer_key,
            b"VOUCH---" + vouch_nonce,
            their_public,
            self._keys[0],
        )
        nonce = self._get_nonce()
        box = crypto_box_easy_afternm(
            self._keys[1] + vouch_nonce + vouch + METADATA,
            b"CurveZMQINITIATE" + nonce,
            self._shared,
        )
        self._put_frame(COMMAND, b"\x08INITIATE" + cookie + nonce + box)
        self._next = self._read_ready
        return True

    def _read_ready(self) -> bool:
        ready = self._take_command(b"\x05READY")
        if ready is None:
            return False
        crypto_box_open_easy_afternm(ready[8:], b"CurveZMQREADY---" + ready[:8], self._shared)
        self.is_ready = True
        return False

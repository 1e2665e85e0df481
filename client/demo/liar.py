"""A node that lies: it passes everything on, except that it tampers with some answers.

An auditor that trusts nobody must notice and say what is wrong; the demo shows that it does.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

import httpx

from steelyard.chain.consensus.certificates import (
    Certificate,
    decode_certificate,
    encode_certificate,
)

Tamper = Callable[[str, bytes], bytes]
"""The path of a request and the honest answer, to what is answered instead."""
PASSED_ON: Final = ("content-type", "accept", "range")
BACK: Final = ("content-type", "content-range")
TIMEOUT_SECONDS: Final = 60.0
FORGERS: Final = 2


def flip_bit_of(victim_cid: str) -> Tamper:
    """Return what changes the last bit of one blob."""

    def tamper(path: str, content: bytes) -> bytes:
        is_victim = victim_cid in path and content
        return content[:-1] + bytes([content[-1] ^ 1]) if is_victim else content

    return tamper


def forge_certificates(path: str, content: bytes) -> bytes:
    """Claim a certificate of two signers only, as two cheats without the others could make."""
    if not path.startswith("/chain/certificates/"):
        return content
    honest = decode_certificate(content)
    bits = int.from_bytes(honest.bitmap, "little")
    signers = [place for place in range(8 * len(honest.bitmap)) if bits >> place & 1]
    few = sum(1 << place for place in signers[:FORGERS])
    bitmap = few.to_bytes(len(honest.bitmap), "little")
    return encode_certificate(Certificate(honest.statement, bitmap, honest.signature))


@contextmanager
def serve_liar(honest_url: str, tamper: Tamper) -> Iterator[str]:
    """Yield the address of a node that tampers with the answers of `honest_url`."""

    class Liar(BaseHTTPRequestHandler):
        """Forwards one request."""

        def do_GET(self) -> None:
            """Pass a GET on, and tamper with its answer."""
            self._forward(b"")

        def do_POST(self) -> None:
            """Pass a JSON-RPC call on."""
            self._forward(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def _forward(self, body: bytes) -> None:
            headers = {k: v for k, v in self.headers.items() if k.lower() in PASSED_ON}
            answer = httpx.request(
                self.command,
                honest_url + self.path,
                content=body or None,
                headers=headers,
                timeout=TIMEOUT_SECONDS,
            )
            content = answer.content
            if self.command == "GET" and answer.status_code < 300:
                content = tamper(self.path, content)
            self.send_response(answer.status_code)
            for name in BACK:
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Liar)
    thread = threading.Thread(target=server.serve_forever, name="liar", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

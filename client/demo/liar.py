"""A node that lies: it passes everything on, but flips one bit of one blob.

An auditor that trusts nobody must notice and name the blob; the demo shows that it does.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

import httpx

PASSED_ON: Final = ("content-type", "accept", "range")
BACK: Final = ("content-type", "content-range")
TIMEOUT_SECONDS: Final = 60.0


@contextmanager
def serve_liar(honest_url: str, victim_cid: str) -> Iterator[str]:
    """Yield the address of a node that tampers with the blob `victim_cid` of `honest_url`."""

    class Liar(BaseHTTPRequestHandler):
        """Forwards one request."""

        def do_GET(self) -> None:
            """Pass a GET on, and tamper with its answer if it is the victim's."""
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
            if victim_cid in self.path and content:
                content = content[:-1] + bytes([content[-1] ^ 1])
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

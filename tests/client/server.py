"""The chain in memory behind a real address on loopback, at real time."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx

from .ledger import Ledger


@contextmanager
def serve_ledger(ledger: Ledger) -> Iterator[str]:
    """Yield the node's address. A block is made before each answer."""
    started = time.monotonic()
    begin = time.time()

    class Handler(BaseHTTPRequestHandler):
        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            ledger.now = begin + time.monotonic() - started
            ledger.mine()
            answer = ledger.answer(
                httpx.Request(
                    self.command,
                    f"http://ledger{self.path}",
                    headers=dict(self.headers),
                    content=body,
                )
            )
            self.send_response(answer.status_code)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.content)

        do_GET = do_HEAD = do_POST = do_PUT = _forward

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""As much of an IPFS daemon's /api/v0 as the store uses, on loopback."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from steelyard.chain.cid import compute_blob_name, encode_cid


@dataclass
class Daemon:
    address: str = ""
    named: str | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    pins: set[str] = field(default_factory=set)
    parameters: dict[str, str] = field(default_factory=dict)


@contextmanager
def serve_daemon() -> Iterator[Daemon]:  # noqa: C901 - one line for each call
    daemon = Daemon()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            url = urlsplit(self.path)
            words = dict(parse_qsl(url.query))
            body = self._read_body()
            status, answer = self._answer(url.path.removeprefix("/api/v0/"), words, body)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _read_body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _answer(self, name: str, words: dict[str, str], body: bytes) -> tuple[int, object]:
            cid = words.get("arg", "")
            if name == "add":
                daemon.parameters = words
                kind = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                (part,) = BytesParser().parsebytes(kind + body).get_payload()
                data = part.get_payload(decode=True)
                cid = daemon.named or encode_cid(compute_blob_name(data))
                daemon.files[cid] = data
                daemon.pins.add(cid)
                return 200, {"Name": cid, "Hash": cid, "Size": str(len(data))}
            if name == "cat":
                return 200, daemon.files[cid]
            if name == "pin/ls":
                return 200, {"Keys": {pin: {"Type": "recursive"} for pin in daemon.pins}}
            if name == "pin/rm":
                daemon.pins.discard(cid)
                return 200, {"Pins": [cid]}
            return 404, {"Message": name, "Code": 0, "Type": "error"}

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    daemon.address = f"/ip4/127.0.0.1/tcp/{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield daemon
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

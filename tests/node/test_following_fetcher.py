"""One HTTP exchange is bounded whatever the other side does."""

import gzip
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from steelyard.chain.errors import SteelyardError
from steelyard.node.following.fetcher import Fetcher, Stopped, Unreachable, check_url


class Handler(BaseHTTPRequestHandler):
    """A redirect, a compressed answer, or no HTTP at all."""

    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("location", "/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()
        elif self.path == "/packed":
            body = gzip.compress(bytes(10**6))
            self.send_response(200)
            self.send_header("content-encoding", "gzip")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            self.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n")
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Be silent."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def fetcher() -> Iterator[Fetcher]:
    one = Fetcher()
    yield one
    one.close()


def test_redirects_are_not_followed(url: str, fetcher: Fetcher) -> None:
    assert fetcher.get(url + "/moved", limit=10, seconds=60).status == 302


def test_compressed_answers_are_refused(url: str, fetcher: Fetcher) -> None:
    with pytest.raises(Unreachable, match="follow_encoding"):
        fetcher.get(url + "/packed", limit=10**7, seconds=60)


def test_what_is_not_http_is_unreachable(url: str, fetcher: Fetcher) -> None:
    with pytest.raises(Unreachable, match="follow_unreachable"):
        fetcher.get(url + "/other", limit=10, seconds=60)


def test_after_a_stop_nothing_is_asked(url: str, fetcher: Fetcher) -> None:
    fetcher.stop()
    for ask in (
        lambda: fetcher.get(url + "/moved", limit=10, seconds=60),
        fetcher.check,
        lambda: fetcher.wait(60),
    ):
        with pytest.raises(Stopped):
            ask()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host:1",
        "ftp://host",
        "http://",
        "http://h?x=1",
        "http://h#x",
        "http://[::1",
        "http://h:99999",
        "http://h:port",
        "http://h\x00",
    ],
)
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(SteelyardError, match="follow_url"):
        check_url(text)


def test_a_trailing_slash_is_dropped() -> None:
    assert check_url("https://node.example/steelyard/") == "https://node.example/steelyard"

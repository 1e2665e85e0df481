"""What bounds the mesh: bytes nobody takes, numbers of connections, quotas, endpoints, names."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from steelyard.node.network import names
from steelyard.node.network.connections import MET_CHECKS, Connections, read_received
from steelyard.node.network.endpoint import InvalidEndpoint, parse_endpoint, parse_listen
from steelyard.node.network.names import Names
from steelyard.node.network.quota import FAULTS, LARGEST_BURST, Bucket, Quota
from steelyard.node.network.wire import WEIGHTS

from .kit import wait_until

KEY = "aa"


@contextlib.contextmanager
def accepted(count: int = 1) -> Iterator[tuple[int, list[socket.socket], list[socket.socket]]]:
    """A listening port, `count` clients, and the same connections on our side."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        clients, ours = [], []
        for _ in range(count):
            place = listener.getsockname()
            clients.append(stack.enter_context(socket.create_connection(place, timeout=60)))
            ours.append(stack.enter_context(listener.accept()[0]))
        yield listener.getsockname()[1], clients, ours


def has_ended(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_a_message_that_never_ends_runs_into_a_limit() -> None:
    with accepted() as (port, [client], [ours]):
        connections = Connections(port, max_unread=1_000)
        connections.add(ours.fileno(), peers=1)
        client.sendall(bytes(900))
        wait_until(lambda: read_received(ours.fileno()) == 900)
        connections.check(is_drained=True)
        assert not has_ended(client)
        client.sendall(bytes(101))
        wait_until(lambda: read_received(ours.fileno()) == 1_001)
        connections.check(is_drained=True)
        wait_until(lambda: has_ended(client))
        assert connections.shut == 1
        assert not connections.rows


def test_messages_that_are_taken_count_no_more() -> None:
    with accepted() as (port, [client], [ours]):
        connections = Connections(port, max_unread=1_000)
        connections.add(ours.fileno(), peers=1)
        connections.check(is_drained=True)
        for turn in range(1, 6):
            client.sendall(bytes(600))
            wait_until(lambda turn=turn: read_received(ours.fileno()) == 600 * turn)  # type: ignore[misc]
            connections.note(ours.fileno(), KEY)
            connections.check(is_drained=True)
        assert not has_ended(client)


def test_a_message_taken_from_a_queue_that_never_was_empty_proves_nothing() -> None:
    with accepted() as (port, [client], [ours]):
        connections = Connections(port, max_unread=1_000)
        connections.add(ours.fileno(), peers=1)
        for turn in range(1, 4):
            client.sendall(bytes(400))
            wait_until(lambda turn=turn: read_received(ours.fileno()) == 400 * turn)  # type: ignore[misc]
            connections.note(ours.fileno(), KEY)
            connections.check(is_drained=False)
        wait_until(lambda: has_ended(client))


def test_the_oldest_silent_connection_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelyard.node.network.connections.SPARE_CONNECTIONS", -1)
    with accepted(4) as (port, clients, ours):
        connections = Connections(port, max_unread=1_000)
        for one in ours[:3]:
            connections.add(one.fileno(), peers=1)
        connections.note(ours[0].fileno(), KEY)
        connections.add(ours[3].fileno(), peers=1)
        wait_until(lambda: has_ended(clients[1]))
        assert [has_ended(one) for one in clients] == [False, True, False, False]


def test_a_flood_of_strangers_does_not_displace_peers_that_have_said_nothing_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("steelyard.node.network.connections.SPARE_CONNECTIONS", -2)
    with accepted(4) as (port, clients, ours):
        connections = Connections(port, max_unread=1_000)
        connections.add(ours[0].fileno(), peers=1)
        for _ in range(MET_CHECKS):
            connections.check(is_drained=True)
        for one in ours[1:]:
            connections.add(one.fileno(), peers=1)
        wait_until(lambda: has_ended(clients[1]) and has_ended(clients[2]))
        assert [has_ended(one) for one in clients] == [False, True, True, False]


def test_without_silent_ones_who_has_most_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelyard.node.network.connections.SPARE_CONNECTIONS", -1)
    with accepted(4) as (port, clients, ours):
        connections = Connections(port, max_unread=1_000)
        for one, key in zip(ours[:3], ("bb", KEY, KEY), strict=True):
            connections.add(one.fileno(), peers=1)
            connections.note(one.fileno(), key)
        connections.add(ours[3].fileno(), peers=1)
        wait_until(lambda: has_ended(clients[1]))
        assert [has_ended(one) for one in clients] == [False, True, False, False]


def test_a_number_that_belongs_to_something_else_is_left_alone() -> None:
    with accepted() as (port, [client], [ours]):
        connections = Connections(port + 1, max_unread=0)
        connections.shut_down(ours.fileno())
        assert not has_ended(client)
        left, right = socket.socketpair()
        with left, right:
            connections.shut_down(left.fileno())
            assert not has_ended(right)
    connections.shut_down(2**20)  # closed meanwhile
    assert read_received(2**20) == 0


def test_a_bucket_fills_at_its_rate_up_to_its_burst() -> None:
    bucket = Bucket.create(rate=2, burst=3, now=0.0)
    assert [bucket.has_taken(1, 0.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.has_taken(2, 1.0)
    assert not bucket.has_taken(4, 1_000.0)
    assert bucket.has_taken(3, 1_000.0)
    assert not bucket.has_taken(1, 999.0)  # a clock that goes back gives nothing


def test_a_peer_is_muted_once_and_for_a_while() -> None:
    quota = Quota.create(1, 1, 0.0)
    assert [quota.add_fault(60, 0.0) for _ in range(FAULTS + 2)] == [False] * FAULTS + [True, False]
    assert quota.is_muted(59.9)
    assert not quota.is_muted(60.0)


def test_the_largest_message_fits_any_quota() -> None:
    assert Quota.create(1, 1, 0.0).has_room(LARGEST_BURST, 0.0)


@pytest.mark.parametrize(
    ("text", "host", "ports"),
    [
        ("1.2.3.4:5", "1.2.3.4", (5, 6)),
        ("[2001:DB8::1]:5", "2001:db8::1", (5, 6)),
        ("a-1.example.org:65534", "a-1.example.org", (65534, 65535)),
        ("host:9/5", "host", (9, 5)),
    ],
)
def test_endpoints_are_read(text: str, host: str, ports: tuple[int, int]) -> None:
    endpoint = parse_endpoint(text)
    assert (endpoint.host, endpoint.ports) == (host, ports)
    assert parse_endpoint(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        *("", ":1", "a", "a:", "a:0", "a:65535", "a:65536/1", "a:1/0", "a:7/7", "a:1/2/3", "a: 1"),
        *("1.2.3:4", "1.2.3.400:5", "::1:5", "[::1]", "[1.2.3.4]:5", "[::g]:5", "-a:1", "a-:1"),
        *("a..b:1", "a_b:1", "a\n:1", "a:1\n", "*:1", "eth0;x:1", "tcp://a:1", "ä:1", "a:²"),
        *("a" * 64 + ":1", "a." * 130 + "a:1", "1" * 254 + ":1", "a:" + "9" * 99),
    ],
)
def test_other_endpoints_are_refused(text: str) -> None:
    with pytest.raises(InvalidEndpoint) as caught:
        parse_endpoint(text)
    assert caught.value.code == "endpoint_malformed"


def test_only_those_who_listen_may_leave_the_port_open() -> None:
    assert parse_listen("127.0.0.1:0").ports == (0, 0)


def test_one_slow_name_holds_up_no_other() -> None:
    gate = threading.Event()
    calls: list[str] = []

    def look_up(host: str) -> tuple[str, ...]:
        calls.append(host)
        if host == "slow":
            assert gate.wait(60)
        return (host,)

    found = Names(look_up)
    assert [found.get("slow") for _ in range(3)] == [()] * 3
    wait_until(lambda: found.get("quick") == ("quick",))
    gate.set()
    wait_until(lambda: found.get("slow") == ("slow",))
    assert calls.count("slow") == 1


def test_names_are_asked_for_again_and_keep_their_last_answer() -> None:
    seconds, answers = [0.0], [("1.1.1.1",), ("2.2.2.2",), ()]
    found = Names(lambda _: answers.pop(0), lambda: seconds[0])
    wait_until(lambda: found.get("a") == ("1.1.1.1",))
    seconds[0] = names.LOOKUP_SECONDS
    wait_until(lambda: found.get("a") == ("2.2.2.2",))
    seconds[0] *= 2
    found.get("a")
    wait_until(lambda: not answers)
    assert found.get("a") == ("2.2.2.2",)


def test_a_name_of_nobody_has_no_address() -> None:
    assert names.look_up("a" * 64) == ()


def test_what_costs_more_to_read_counts_as_several_messages() -> None:
    quota = Quota.create(100, 2**30, 0.0)
    assert all(quota.has_room(1, 0.0, 20) for _ in range(10))
    assert not quota.has_room(1, 0.0, 1)
    assert Quota.create(0.1, 2**30, 0.0).has_room(1, 0.0, max(WEIGHTS.values()))

"""What strangers write into the registry: it is shown, and costs who looks no more than ours."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account as Keys
from typer.testing import CliRunner

from steelyard.chain.types import Address
from steelyard.client.commands import datasets, registries
from steelyard.client.commands.registryfiles import describe_document
from steelyard.client.documents import MAX_DEPTH
from steelyard.client.errors import ClientError
from steelyard.client.registry import Registry

from .archive import ArchiveLedger
from .conftest import HOSPITAL, ORGANISATION, open_account, open_rpc

SUBJECT = Address(bytes.fromhex(HOSPITAL.address[2:]))
STRANGERS = 2
DEEP = b"[" * 650 + b"]" * 650
"""Python reads it, and cannot write it."""


class CountedLedger(ArchiveLedger):
    """Counts how often somebody looks through the chain's logs."""

    looks = 0

    def eth_getLogs(self, query):
        self.looks += 1
        return super().eth_getLogs(query)


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> CountedLedger:
    made = CountedLedger()
    for module in (registries, datasets):
        monkeypatch.setattr(module, "open_nodes", lambda nodes: open_rpc(made))
    return made


@pytest.fixture
def strangers(ledger: CountedLedger, tmp_path: Path):
    keys = [Keys.from_key(bytes([10 + place]) * 32) for place in range(STRANGERS)]
    opened = [
        open_account(Registry, ledger, key, tmp_path / str(place)) for place, key in enumerate(keys)
    ]
    yield opened
    for account in opened:
        account.close()


def ask(*words: object) -> tuple[int, Any]:
    """Run one command; return its exit code and its answer, which must be JSON as others read it"""
    app = importlib.import_module("steelyard.client.commands").registry
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception

    def refuse(constant: str) -> None:
        raise AssertionError(f"no JSON has {constant}")

    return done.exit_code, json.loads(done.stdout.splitlines()[-1], parse_constant=refuse)


# -- documents -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "data",
    [
        DEEP,
        b"[" * 100_000,
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b'{"a": ' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH,
        b'{"a": NaN}',
        b"[1, -Infinity]",
        b"1e400",
        b"9" * 10_000,
    ],
)
def test_what_cannot_be_written_as_json_is_shown_as_text(data: bytes) -> None:
    assert describe_document(data) == data.decode()


def test_a_document_is_shown_as_json_up_to_its_depth() -> None:
    data = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert describe_document(data) == json.loads(data)
    assert describe_document(b'{"a": [1.5, "NaN", null]}') == {"a": [1.5, "NaN", None]}


def nest(levels: int) -> dict[str, Any]:
    """Return so many objects, one in another."""
    document: dict[str, Any] = {}
    for _ in range(levels - 1):
        document = {"a": document}
    return document


@pytest.mark.parametrize(
    "metadata", [{"a": float("nan")}, b'{"a": Infinity}', nest(MAX_DEPTH + 1), nest(2_000)]
)
def test_metadata_that_no_json_has_is_not_published(strangers, metadata) -> None:
    with pytest.raises(ClientError) as caught:
        strangers[0].register(metadata)
    assert caught.value.code == "document_malformed"


@pytest.mark.parametrize("data", [DEEP, b'{"a": NaN, "b": 1e400}'])
def test_a_strangers_document_does_not_end_the_command_that_shows_it(
    strangers, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr("steelyard.client.registry.encode_document", lambda given: given)
    stranger = strangers[0]
    stranger.attest(SUBJECT, data)
    stranger.register(data)
    stranger.publish_model(b"a model", metadata=data)
    number = stranger.publish_dataset(data, b"rows")
    code, (attested,) = ask("attestations", HOSPITAL.address)
    assert (code, attested["document"]) == (0, data.decode())
    for words in (
        ("identity", "show", stranger.signer.address),
        ("model", "show", 1),
        ("dataset", "show", number),
    ):
        code, shown = ask(*words)
        assert (code, shown["document"]) == (0, data.decode())


# -- looking through the chain ---------------------------------------------------------------------
def count_looks(ledger: CountedLedger, look: Callable[[], object]) -> int:
    before = ledger.looks
    look()
    return ledger.looks - before


def test_a_list_of_statements_looks_through_the_chain_once(ledger, strangers) -> None:
    for stranger in strangers:
        stranger.attest(SUBJECT, b"spam")
    found: list[Any] = []
    looks = count_looks(ledger, lambda: found.extend(ask("attestations", HOSPITAL.address)[1]))
    assert [one["signed"] for one in found] == [True] * STRANGERS
    assert looks == 1


def test_a_dataset_is_shown_with_one_look_through_the_chain(ledger, strangers, tmp_path) -> None:
    with open_account(Registry, ledger, ORGANISATION, tmp_path / "owner") as owner:
        number = owner.publish_dataset({"title": "heart"}, b"rows")
    for stranger in strangers:
        stranger.request_access(number)
    found: dict[str, Any] = {}
    looks = count_looks(ledger, lambda: found.update(ask("dataset", "show", number)[1]))
    assert found["signed"]
    assert [one["signed"] for one in found["requests"]] == [True] * STRANGERS
    assert looks == 1


def test_a_statement_made_again_is_signed_by_its_last_transaction(ledger, strangers) -> None:
    stranger = strangers[0]
    name = stranger.attest(SUBJECT, b"spam")
    stranger.revoke(SUBJECT, name)
    stranger.attest(SUBJECT, b"spam")
    ((_, event),) = stranger.view.find_attestations(SUBJECT)
    assert event == stranger.view.find_events("Attested", None, SUBJECT)[-1]


def test_another_accounts_event_does_not_sign_a_request(ledger, strangers, tmp_path) -> None:
    """Handing an event over spares the look, not the check of who signed it."""
    with open_account(Registry, ledger, ORGANISATION, tmp_path / "owner") as owner:
        number = owner.publish_dataset({"title": "heart"}, b"rows")
    for stranger in strangers:
        stranger.request_access(number)
    view = strangers[0].view
    (one, _), (_, other) = view.read_accesses(
        number, view.find_events("AccessRequested", number), 10
    )
    assert not datasets.describe_access(view, one, other)["signed"]

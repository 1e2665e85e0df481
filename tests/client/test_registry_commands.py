"""`steelyard registry`: each command answers 0, 1 or 2, in words or in one line of JSON."""

import importlib
import json
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steelyard.chain.cid import compute_blob_name, encode_cid
from steelyard.chain.errors import SteelyardError
from steelyard.client.commands import datasets
from steelyard.client.errors import ClientError, InvalidSeal
from steelyard.client.keys import create_key

from .archive import ArchiveLedger
from .conftest import HOSPITAL, ORGANISATION
from .server import serve_ledger

PASSWORD = "correct horse"
ROWS = b"age,pressure\n63,145\n"


class Desk:
    """A directory with two keys, and a node's address. `org` and `site` name the keys."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory, self.url = directory, url

    def run(self, line: str, who: str = "") -> tuple[int, str]:
        """Run one command line; return its exit code and its output."""
        words = line.format(d=self.directory).split()
        more = ["--node", self.url]
        if who:
            more += ["--key", f"{self.directory}/{who}.key", "--state", f"{self.directory}/{who}"]
        app = importlib.import_module("steelyard.client.commands").registry
        done = CliRunner().invoke(app, [*words, *more])
        if isinstance(done.exception, SteelyardError):
            raise done.exception
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout

    def ask(self, line: str, who: str = "") -> tuple[int, object]:
        """As `run`, with the last line of output as JSON."""
        code, output = self.run(line + " --json", who)
        return code, json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    create_key(directory / "org.key", PASSWORD, bytes(ORGANISATION.key), scrypt_n=2**10)
    create_key(directory / "site.key", PASSWORD, bytes(HOSPITAL.key), scrypt_n=2**10)
    return directory


@pytest.fixture
def desk(keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("STEELYARD_PASSWORD", PASSWORD)
    for name in ("org.key", "site.key"):
        (tmp_path / name).write_bytes((keys / name).read_bytes())
    (tmp_path / "who.json").write_text('{"name": "Clinic \\u001b[31m"}')
    (tmp_path / "said.txt").write_text("an accredited hospital")
    (tmp_path / "rows.csv").write_bytes(ROWS)
    (tmp_path / "model.bin").write_bytes(b"a model")
    with serve_ledger(ArchiveLedger()) as url:
        yield Desk(tmp_path, url)


@pytest.mark.slow
def test_an_account_says_who_it_is(desk: Desk) -> None:
    who = ORGANISATION.address
    assert desk.ask(f"identity show {who}")[0] == 1
    assert desk.ask("identity register --metadata {d}/who.json", "org")[1]["sent"]
    assert not desk.ask("identity register --metadata {d}/who.json", "org")[1]["sent"]
    code, found = desk.ask(f"identity show {who}")
    assert (code, found["signed"], found["document"]["name"]) == (0, True, "Clinic \x1b[31m")
    shown = desk.run(f"identity show {who}")[1]
    assert "\x1b" not in shown, "strangers' words are escaped"
    assert 'says        {"name": "Clinic \\u001b[31m"}\n' in shown, "as the JSON it is"
    at = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(found["registered_at"]))
    assert f"registered  {at}\n" in shown


@pytest.mark.slow
def test_a_statement_is_made_listed_and_taken_back(desk: Desk) -> None:
    who = HOSPITAL.address
    assert desk.run(f"attestations {who}")[0] == 1
    cid = desk.ask(f"attest {who} {{d}}/said.txt", "org")[1]["statement"]
    code, (found,) = desk.ask(f"attestations {who}")
    assert (code, found["stands"], found["signed"]) == (0, True, True)
    assert found["document"] == "an accredited hospital"
    assert desk.run(f"revoke {who} {cid}", "org")[0] == 0
    assert desk.run(f"revoke {who} {cid}", "org")[0] == 1
    assert desk.run(f"attestations {who}")[0] == 1


@pytest.mark.slow
def test_a_model_is_published_with_its_parent(desk: Desk) -> None:
    cid = encode_cid(compute_blob_name(b"a model"))
    first = desk.ask("model publish --file {d}/model.bin --metadata {d}/who.json", "org")[1]
    (desk.directory / "model.bin").write_bytes(b"a better model")
    second = desk.ask(f"model publish --file {{d}}/model.bin --parent {cid}", "site")[1]
    assert (first["number"], second["number"], second["parent"]) == (1, 2, 1)
    code, found = desk.ask("model show 2")
    assert (code, found["signed"], found["lineage"][0]["model"]) == (0, True, cid)
    assert [one["number"] for one in desk.ask("model list")[1]] == [2, 1]
    assert cid in desk.run("model show 2")[1]
    assert desk.run("model list")[0] == 0


@pytest.mark.slow
def test_a_dataset_goes_from_its_owner_to_who_asked(desk: Desk) -> None:
    said = desk.ask("dataset publish {d}/rows.csv --metadata {d}/who.json", "org")[1]
    assert said["number"] == 1
    code, told = desk.run("dataset fetch 1 -o {d}/got.csv", "site")
    assert (code, "steelyard registry dataset request 1" in told) == (1, True), "not asked"
    assert desk.ask("dataset request 1", "site")[1]["sent"]
    assert desk.run("dataset fetch 1 -o {d}/got.csv", "site")[0] == 1, "not answered"
    (request,) = desk.ask("dataset show 1")[1]["requests"]
    assert (request["state"], request["signed"]) == ("requested", True)
    assert desk.run(f"dataset deny 1 {HOSPITAL.address}", "org")[0] == 0
    assert desk.run(f"dataset deny 1 {HOSPITAL.address}", "org")[0] == 1
    assert desk.ask("dataset request 1", "site")[1]["sent"]
    assert (
        desk.run(f"dataset grant 1 {HOSPITAL.address} --content {said['content']}", "org")[0] == 0
    )
    code, done = desk.ask(
        f"dataset fetch 1 -o {{d}}/got.csv --owner {ORGANISATION.address}", "site"
    )
    path = desk.directory / "got.csv"
    assert (code, done["bytes"], path.read_bytes()) == (0, len(ROWS), ROWS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ClientError) as caught:
        desk.run("dataset fetch 1 -o {d}/got.csv", "site")
    assert caught.value.code == "file_exists"
    path.write_bytes(b"older")
    assert desk.run("dataset fetch 1 --force -o {d}/got.csv", "site")[0] == 0
    assert path.read_bytes() == ROWS
    assert len(desk.ask("dataset renew 1", "org")[1]["files"]) == 2
    assert desk.run("dataset retire 1", "org")[0] == 0
    assert desk.run("dataset retire 1", "org")[0] == 1
    assert desk.ask("dataset list")[1][0]["retired_at"]
    assert "retired" in desk.run("dataset list")[1]
    at = time.gmtime(desk.ask("dataset show 1")[1]["retired_at"])
    assert time.strftime("retired    %Y-%m-%d %H:%M:%SZ\n", at) in desk.run("dataset show 1")[1]
    assert HOSPITAL.address in desk.run("dataset show 1")[1]


def test_a_file_that_cannot_be_read_is_named(desk: Desk) -> None:
    for line in (
        "identity register --metadata {d}/missing.json",
        "dataset publish {d}/missing.csv --metadata {d}/who.json",
    ):
        with pytest.raises(ClientError) as caught:
            desk.run(line, "org")
        assert caught.value.code == "document_file"


def test_data_that_is_too_large_is_not_read(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    with (desk.directory / "rows.csv").open("r+b") as stream:
        stream.truncate(2**40)
    monkeypatch.setattr(datasets, "read_file", lambda path, limit: b"{}")
    with pytest.raises(InvalidSeal) as caught:
        desk.run("dataset publish {d}/rows.csv --metadata {d}/who.json", "org")
    assert caught.value.code == "dataset_size"


@pytest.mark.parametrize("words", ["", " --task 1", " --round 1"])
def test_an_origin_is_a_task_and_a_round_or_a_file(desk: Desk, words: str) -> None:
    with pytest.raises(ClientError) as caught:
        desk.run(f"model publish{words}", "org")
    assert caught.value.code == "model_origin"
    assert "--task" in caught.value.message


@pytest.mark.parametrize(
    "line", ["registry dataset fetch 1 -o {d}/no/where", "task model 1 -o {d}/no/where"]
)
def test_no_directory_is_made_for_a_file(desk: Desk, line: str) -> None:
    part, words = line.split(" ", 1)
    app = getattr(importlib.import_module("steelyard.client.commands"), part)
    done = CliRunner().invoke(app, words.format(d=desk.directory).split())
    assert isinstance(done.exception, ClientError)
    assert done.exception.code == "file_write"
    assert not (desk.directory / "no").exists()


def test_a_public_key_is_hexadecimal(desk: Desk) -> None:
    with pytest.raises(ClientError) as caught:
        desk.run(f"dataset grant 1 {HOSPITAL.address} --public-key nonsense", "org")
    assert caught.value.code == "request_key"
